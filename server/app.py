"""The coordinator's Flower ServerApp: rounds, then ``final.npy`` in the study's folder.

A refusal is written to ``progress.jsonl`` by name, since Flower's engines keep the text of exceptions to
themselves.
"""

import io
import os
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward.common.errors import Refusal
from fedward.common.files import write_atomically
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.coordinator import COORDINATOR_STATE
from fedward.server.letters import forget_sealing_key
from fedward.server.rounds import run_rounds
from fedward.server.study_folder import StudyFolder

app = ServerApp()


def _coordinator() -> Path | None:
    """The state folder of a federation's coordinator, whose sites take envelopes only.

    By the environment that `fedward coordinator up` gives, not by the run's configuration: that stands in
    SuperLink's database, whose holder must not be able to ask for plain messages.
    """
    named = os.environ.get(COORDINATOR_STATE)
    return None if named is None else Path(named)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the folder that the run configuration names."""
    folder = StudyFolder(Path(str(context.run_config[STUDY_FOLDER])))
    try:
        with folder.held():
            buffer = io.BytesIO()
            np.save(buffer, run_rounds(grid, folder, _coordinator()))
            # First: with the model there, nobody would come back for the key. All rounds are closed and on
            # the disk, so whoever resumes between the two needs no key any more.
            forget_sealing_key(folder.path)
            write_atomically(folder.final, buffer.getvalue())
    except Refusal as refusal:
        folder.note("refused", name=refusal.name, message=str(refusal))
        raise
    folder.note("finished")
