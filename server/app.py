"""The coordinator's Flower ServerApp: rounds, then ``final.npy`` in the study's folder.

A refusal is written to ``progress.jsonl`` by name, since Flower's engines keep the text of exceptions to
themselves.
"""

import io
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward.common.errors import Refusal
from fedward.common.files import write_atomically
from fedward.common.thin_app import COORDINATOR_FOLDER, STUDY_FOLDER
from fedward.server.coordinator import PROFILE
from fedward.server.letters import forget_sealing_key
from fedward.server.rounds import run_rounds
from fedward.server.study_folder import StudyFolder

app = ServerApp()


def _coordinator(context: Context) -> Path | None:
    """The coordinator's state folder, where it has a federation; its sites take envelopes only."""
    named = str(context.run_config.get(COORDINATOR_FOLDER, ""))
    return Path(named) if named and (Path(named) / PROFILE).exists() else None


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the folder that the run configuration names."""
    folder = StudyFolder(Path(str(context.run_config[STUDY_FOLDER])))
    try:
        with folder.held():
            buffer = io.BytesIO()
            np.save(buffer, run_rounds(grid, folder, _coordinator(context)))
            # First: with the model there, nobody would come back for the key. All rounds are closed and on
            # the disk, so whoever resumes between the two needs no key any more.
            forget_sealing_key(folder.path)
            write_atomically(folder.final, buffer.getvalue())
    except Refusal as refusal:
        folder.note("refused", name=refusal.name, message=str(refusal))
        raise
    folder.note("finished")
