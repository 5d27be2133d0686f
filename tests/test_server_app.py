"""The ServerApp leaves a whole final.npy, or a refusal by name in the study's own record."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedward.client.app import app as client_app
from fedward.common.config import LocalSettings, Study
from fedward.common.errors import CheckpointRefused, OutputRefused
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.app import app
from fedward.server.checkpoint import Progress, load_checkpoint, save_checkpoint
from fedward.server.rounds import initial_latents
from fedward.server.strategy import released_latents
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import InProcessGrid


def _run(folder: StudyFolder, hospitals: int) -> None:
    config = {STUDY_FOLDER: str(folder.path)}
    grid = InProcessGrid(client_app, hospitals, config)
    app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config))


def _events(folder: StudyFolder) -> list[dict[str, object]]:
    lines = (folder.path / "progress.jsonl").read_bytes().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


@pytest.fixture
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(rounds=1), [20, 30])


def test_the_released_latents_are_those_of_the_last_checkpoint(
    tmp_path: Path, study: Study, make_federation: Callable[..., StudyFolder]
) -> None:
    folder = make_federation(tmp_path, study)
    _run(folder, 2)
    progress = load_checkpoint(folder.checkpoint, study)
    np.testing.assert_array_equal(np.load(folder.final), released_latents(progress, study))
    assert _events(folder)[0] == {"event": "enrolling", "hospitals": 2}
    assert _events(folder)[-1] == {"event": "finished"}
    assert not np.array_equal(progress.latents, initial_latents(study))


def test_a_refusal_is_noted_by_name_and_no_model_is_left(tmp_path: Path, study: Study) -> None:
    folder = StudyFolder(tmp_path)
    folder.create(study, None)
    folder.checkpoint.write_bytes(b"damaged")
    with pytest.raises(CheckpointRefused):
        _run(folder, 0)
    (event,) = _events(folder)
    assert (event["event"], event["name"]) == ("refused", "CheckpointRefused")
    assert "damaged" in str(event["message"])
    assert not folder.final.exists()


def test_one_study_has_one_coordinator_at_a_time(
    tmp_path: Path,
    study: Study,
    make_federation: Callable[..., StudyFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was thought dead may still be there: two would ask the hospitals for the same rounds."""
    monkeypatch.setattr("fedward.server.study_folder._LOCK_SECONDS", 0.1)
    folder = make_federation(tmp_path, study)
    with StudyFolder(tmp_path).held(), pytest.raises(OutputRefused, match="another process runs this study"):
        _run(folder, 2)
    assert not folder.checkpoint.exists()
    _run(folder, 2)
    assert folder.final.exists()


def test_a_study_cut_off_before_its_last_file_is_finished_without_its_hospitals(
    tmp_path: Path, study: Study
) -> None:
    folder = StudyFolder(tmp_path)
    folder.create(study, None)
    latents = initial_latents(study)
    save_checkpoint(folder.checkpoint, Progress(1, latents, latents, latents.astype(np.float64)), study)
    _run(folder, 0)
    np.testing.assert_array_equal(np.load(folder.final), latents)
