"""From empty folders to a release on a clinician's device, by the commands that people type."""

from pathlib import Path

import pytest

from fedward.common.datasets import Split, save_npz
from fedward.server.study_folder import StudyFolder
from fedward.simulations.deployment import Deployment, found, let_in, typed, up, wait_for
from fedward.simulations.phantoms import make_phantoms

NAMES = ("St. Mary", "Charite", "Ospedale")
IMAGES = 40
SETTINGS = ("--rounds", 5, "--epsilon", 20, "--student", "fp32-cnn", "--quorum", 3, "--round-timeout", 300)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, with a user of its own."""
    path = tmp_path_factory.mktemp("f")
    monkeypatch.setenv("FEDWARD_CONFIG", str(path / "config"))
    return path


def _public_and_private(path: Path) -> Path:
    """Each hospital's images, and the public ones of the same kind."""
    phantoms = make_phantoms(size=16, counts=(IMAGES * len(NAMES), 24, 8), seed=3)
    save_npz(path / "public.npz", phantoms)
    for number in range(len(NAMES)):
        rows = slice(number * IMAGES, (number + 1) * IMAGES)
        save_npz(path / f"{number}.npz", Split(phantoms.train.images[rows], phantoms.train.labels[rows]))
    return path / "public.npz"


def test_from_empty_folders_to_a_release_that_a_device_accepts(short: Path) -> None:
    public = _public_and_private(short)
    coordinator, folder = short / "c", StudyFolder(short / "study")
    hospitals = [short / f"h{number}" for number in range(len(NAMES))]
    found(coordinator)
    for number, (name, state) in enumerate(zip(NAMES, hospitals, strict=True)):
        data = ("--data", short / f"{number}.npz", "--classes", 2, "--epsilon", 20)
        typed("hospital", "init", "--name", name, *data, "--state", state)
        let_in(coordinator, state)
    typed("coordinator", "plan", folder.path, "--reference", public, *SETTINGS, "--state", coordinator)
    commands = [["coordinator", "up", "--state", str(coordinator)]]
    commands += [["hospital", "up", "--state", str(state)] for state in hospitals]
    with up(commands, short):
        deployment = Deployment(coordinator, hospitals, folder)
        typed("coordinator", "start", folder.path, "--state", coordinator)
        for state in hospitals:
            wait_for(lambda state=state: typed("hospital", "studies", "--state", state)["studies"])
            typed("hospital", "approve", "study", "--state", state)
        wait_for((folder.path / "published.json").exists, 300)
        told = typed("hospital", "fetch", "--state", hospitals[1])
    answer = typed("edge", "predict", told["release"], f"{public}:test_images[0]", "--trust", told["trust"])
    print(answer, [event["seconds"] for event in deployment.events("closed")])
