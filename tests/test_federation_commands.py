"""From empty folders to a release on a clinician's device, by the commands that people type."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from fedward.client.charging import DATASET
from fedward.client.registry import Registry
from fedward.common.bundle import read_bundle
from fedward.common.datasets import Split, save_npz
from fedward.common.trust import load_trust
from fedward.server.control import Control
from fedward.server.coordinator import Coordinator
from fedward.server.orders import FINISHED, Orders
from fedward.server.processes import Link
from fedward.server.study_folder import StudyFolder
from fedward.simulations.deployment import found, let_in, typed, up, wait_for
from fedward.simulations.phantoms import make_phantoms

NAMES = ("St. Mary", "Ospedale Maggiore", "Riverside")
IMAGES = 40
ETHERTYPE_ANY = 3
TLS_RECORD, ENVELOPE = b"\x17\x03\x03", b"FEDWARD\x01"  # how a record of data and an envelope begin
SETTINGS = ("--rounds", 5, "--epsilon", 20, "--student", "fp32-cnn", "--quorum", 3, "--round-timeout", 300)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a short path, and a user of its own."""
    path = tmp_path_factory.mktemp("f")
    monkeypatch.setenv("FEDWARD_CONFIG", str(path / "config"))
    return path


def _write_data(path: Path) -> Path:
    """Each hospital's images, and public ones of the same kind, whose file is returned."""
    phantoms = make_phantoms(size=16, counts=(IMAGES * len(NAMES), 24, 8), seed=3)
    save_npz(path / "public.npz", phantoms)
    for number in range(len(NAMES)):
        rows = slice(number * IMAGES, (number + 1) * IMAGES)
        save_npz(path / f"{number}.npz", Split(phantoms.train.images[rows], phantoms.train.labels[rows]))
    return path / "public.npz"


def _fetched_by(coordinator: Path) -> set[str]:
    """Which sites the coordinator's gateway gave a release to."""
    lines = map(json.loads, (coordinator / "gateway" / "access.log").read_text().split("\n")[:-1])
    return {line["subject"] for line in lines if line["uri"].endswith(".tar") and line["status"] == 200}


def _state(coordinator: Path) -> str:
    """The one study's."""
    return str(Orders(coordinator).report_of(Orders(coordinator).all()[0]).state)


def _nodes(coordinator: Path) -> int:
    link = Link.of(Coordinator(coordinator))
    return len(Control(link.address, link.authority).nodes())


class Eavesdropper:
    """Takes down what goes over this host's loopback, which is all, and what SuperLink's database holds."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._wire, self._disk = bytearray(), bytearray()
        self._until = threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._read)]

    def __enter__(self) -> "Eavesdropper":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._until.set()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ANY)) as tap:
            tap.bind(("lo", 0))
            tap.settimeout(0.2)
            while not self._until.is_set():
                with suppress(TimeoutError):
                    self._wire += tap.recv(1 << 17)

    def _read(self) -> None:
        seen = b""
        while not self._until.wait(0.2):
            files = sorted(self._database.parent.glob(self._database.name + "*"))
            found = b"".join(path.read_bytes() for path in files if path.exists())
            self._disk += b"" if found == seen else found
            seen = found

    def assert_nothing_is_readable(self, states: list[Path]) -> None:
        """No part of an answer: what each hospital stored of its answers is looked for in both."""
        assert self._wire.count(TLS_RECORD) > 100
        assert ENVELOPE in self._disk  # it is the right place
        stored = [path for state in states for path in (state / "replies").rglob("*") if path.is_file()]
        answers = [path.read_bytes() for path in stored if path.suffix != ".lock"]
        assert len(answers) >= 3 * len(NAMES)
        for answer in answers:
            header, _, update = answer.partition(b"\n")
            parts = [update[at : at + 24] for at in range(200, len(update), 4001)]
            telling = [part for part in parts if len(set(part)) > 8]
            assert len(telling) > 2
            assert not any(part in self._wire or part in self._disk for part in (header, *telling))


def test_from_empty_folders_to_a_release_that_a_device_accepts(
    folder: Path, fedward: Callable[..., Any]
) -> None:
    public = _write_data(folder)
    coordinator, study = folder / "c", folder / "study"
    hospitals = [folder / f"h{number}" for number in range(len(NAMES))]
    at_office = ("--state", coordinator)
    found(coordinator)
    office = [["coordinator", "up", "--state", str(coordinator)]]
    sites = [["hospital", "up", "--state", str(state)] for state in hospitals]
    eavesdropper = Eavesdropper(coordinator / "superlink.db")
    with ExitStack() as running:
        running.enter_context(eavesdropper)
        running.enter_context(up(office, folder))
        for number, (name, state) in enumerate(zip(NAMES, hospitals, strict=True)):
            data = ("--data", folder / f"{number}.npz", "--classes", 2, "--epsilon", 20)
            typed("hospital", "init", "--name", name, *data, "--state", state)
            let_in(coordinator, state)
        typed("coordinator", "plan", study, "--reference", public, *SETTINGS, *at_office)
        running.enter_context(up(sites, folder))
        typed("coordinator", "start", study, *at_office)
        for state in hospitals:
            wait_for((state / "studies.json").exists, 300)
            typed("hospital", "approve", "study", "--state", state)
        wait_for(lambda: _state(coordinator) == FINISHED, 300)
        told = typed("hospital", "fetch", "--state", hospitals[1])
        assert typed("hospital", "doctor", "--state", hospitals[0])
        assert (len(_fetched_by(coordinator)), _nodes(coordinator)) == (1, 3)
        typed("coordinator", "revoke", NAMES[2], *at_office)
        assert "401" in fedward("hospital", "fetch", "--state", hospitals[2]).err
        wait_for(lambda: _nodes(coordinator) == 2, 20)
    eavesdropper.assert_nothing_is_readable(hospitals)
    image = f"{public}:test_images[0]"
    answer = typed("edge", "predict", told["release"], image, "--trust", told["trust"])
    assert (answer["release"], answer["refused"]) == (told["digest"], [])
    manifest = read_bundle(Path(told["release"]), load_trust(Path(told["trust"]))).manifest
    spent = [site["epsilon"] for site in manifest["privacy"]["sites"]]
    ledgers = [Registry(state / "budget").budget(DATASET).spent() for state in hospitals]
    assert spent == pytest.approx(ledgers, rel=1e-9)
    assert manifest["privacy"]["reproducible_noise"] is False
    assert StudyFolder(study).study().rounds == 5
