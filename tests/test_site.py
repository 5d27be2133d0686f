"""What does not fit is refused by name, and doctor names each wrong thing of a hospital and its cure."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedward.client import checkup
from fedward.client.checkup import findings
from fedward.client.site import command
from fedward.client.state_folder import SECRET_FILE
from fedward.client.uplink import Uplink
from fedward.common.config import LocalSettings, Study
from fedward.common.errors import SettingRefused
from fedward.server.study_folder import StudyFolder


@pytest.fixture
def folder(
    tmp_path: Path,
    make_federation: Callable[..., StudyFolder],
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
) -> Path:
    study = make_study(make_local(), (30,), quorum=1)
    return make_federation(tmp_path / "s", study).path / "hospitals" / "0"


@pytest.mark.parametrize(
    ("uplink", "words"),
    [
        ({"superlink": "nowhere"}, "host:port"),
        ({"superlink": ":80"}, "host:port"),
        ({"superlink": "coordinator.example:443"}, "TLS only"),
        ({"superlink": "127.0.0.1:443", "node_key": Path("key")}, "needs TLS"),
    ],
)
def test_an_uplink_whose_parts_do_not_fit_is_refused(uplink: dict[str, object], words: str) -> None:
    with pytest.raises(SettingRefused, match=words):
        Uplink(**uplink)  # type: ignore[arg-type]


def test_a_coordinator_elsewhere_is_reached_by_tls_with_the_nodes_own_key() -> None:
    options = Uplink("coordinator.example:443", Path("/ca.pem"), Path("/node")).flower_options()
    assert "--insecure" not in options
    assert options[options.index("--root-certificates") + 1] == "/ca.pem"
    assert options[options.index("--auth-supernode-private-key") + 1] == "/node"


def test_up_becomes_a_program_with_every_setting(tmp_path: Path) -> None:
    parts = command(tmp_path, Uplink("c.example:443", Path("/ca.pem"), Path("/node")), ["ab", "cd"])
    for pair in (("--superlink", "c.example:443"), ("--root-certificates", "/ca.pem"), ("--approve", "cd")):
        assert pair in list(itertools.pairwise(parts))


def _wrong(folder: Path) -> dict[str, str]:
    return {one.subject: one.wrong for one in findings(folder) if one.wrong}


def test_doctor_finds_nothing_but_the_processes_wrong_with_a_hospital_that_is_down(folder: Path) -> None:
    assert set(_wrong(folder)) == {"processes", "daemon"}


def test_doctor_says_what_to_do_about_each_wrong_thing(folder: Path) -> None:
    assert all(one.cure for one in findings(folder) if one.wrong)


def test_doctor_names_a_folder_that_is_no_hospitals(tmp_path: Path) -> None:
    assert list(_wrong(tmp_path)) == ["state folder"]


def test_doctor_names_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_LEAST_FREE_BYTES", 1 << 62)
    assert "MiB" in _wrong(folder)["disk"]


def test_doctor_names_another_flower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "FLOWER", "1.0.0")
    assert "1.0.0" in _wrong(folder)["version of Flower"]


def test_doctor_names_data_that_were_changed(folder: Path) -> None:
    data = (folder / "data.npz").read_bytes()
    (folder / "data.npz").write_bytes(data[: len(data) // 2])
    assert "DatasetRefused" in _wrong(folder)["data"]


def test_doctor_names_a_ledger_that_was_changed(folder: Path) -> None:
    for path in (folder / "budget").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[:-5] + b"xxxxx")
    assert {"data", "ledgers"} & set(_wrong(folder))


def test_doctor_names_a_secret_that_others_can_read(folder: Path) -> None:
    (folder / SECRET_FILE).write_bytes(b"x")
    os.chmod(folder / SECRET_FILE, 0o644)
    assert "others" in _wrong(folder)["permissions"]


def test_doctor_names_ports_that_nothing_listens_on(folder: Path) -> None:
    entry = {"children": {}, "pid": os.getpid(), "port": 1, "schema": 1, "superlink": "127.0.0.1:1"}
    (folder / "processes.json").write_text(json.dumps(entry, separators=(",", ":"), sort_keys=True))
    assert {"task port", "uplink"} <= set(_wrong(folder))


def test_status_and_doctor_exit_with_one_where_something_is_wrong(
    folder: Path, fedward: Callable[..., Any]
) -> None:
    status = fedward("hospital", "status", "--state", folder, "--json")
    assert status.code == 1
    assert json.loads(status.out)["daemon"] is False
    doctor = fedward("hospital", "doctor", "--state", folder)
    assert doctor.code == 1
    assert "right  disk" in doctor.out
    assert "wrong  daemon" in doctor.out
