"""`logs` shows the last lines of each process, and `unit` what an IT department may install."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common import log_files
from fedward.common.log_files import follow, last_lines
from fedward.simulations.deployment import wait_for


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    for name in ("daemon", "gateway"):
        (tmp_path / "logs" / f"{name}.log").write_text("".join(f"{name} {n}\n" for n in range(30)))
    return tmp_path


def test_the_last_lines_of_the_named_processes_are_shown(state: Path, fedward: Callable[..., Any]) -> None:
    shown = fedward("hospital", "logs", "daemon", "--last", 2, "--state", state)
    assert shown.out.splitlines() == ["daemon: daemon 28", "daemon: daemon 29"]
    everything = fedward("coordinator", "logs", "--state", state).out.splitlines()
    assert len(everything) == 40


def test_a_log_that_is_not_there_is_named_with_those_that_are(
    state: Path, fedward: Callable[..., Any]
) -> None:
    refused = fedward("hospital", "logs", "torch", "--state", state)
    assert (refused.code, refused.err.startswith("UnknownName")) == (1, True)
    assert "daemon, gateway" in refused.err


def test_a_line_that_steers_the_terminal_is_shown_and_not_obeyed(
    state: Path, fedward: Callable[..., Any]
) -> None:
    (state / "logs" / "daemon.log").write_text("\x1b[2Jhello\n\x1b[92mINFO\x1b[0m up\n")
    shown = fedward("hospital", "logs", "daemon", "--state", state).out
    assert "\x1b" not in shown
    assert shown.splitlines()[1] == "daemon: INFO up"


@settings(max_examples=50, deadline=None)
@given(lines=st.lists(st.text("ab ", max_size=20), max_size=30), count=st.integers(0, 40))
def test_last_lines_are_the_end_of_all_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int
) -> None:
    path = tmp_path_factory.mktemp("l") / "a.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "_CHUNK_BYTES", 7)
        assert last_lines(path, count) == (lines[-count:] if count else [])


def test_follow_tells_of_whole_new_lines_also_after_a_log_began_anew(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "_LOOK_SECONDS", 0.01)
    path, said = state / "logs" / "daemon.log", list[str]()
    threading.Thread(target=follow, args=([path], lambda _, line: said.append(line)), daemon=True).start()
    wait_for(lambda: said or _append(path, "new\n"), 20)
    _append(path, "ha")
    _append(path, "lf\n")
    wait_for(lambda: said[-1] == "half", 20)
    path.write_text("anew\n")
    wait_for(lambda: said[-1] == "anew", 20)
    assert set(said) == {"new", "half", "anew"}


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize("side", ["hospital", "coordinator"])
def test_a_unit_lets_a_side_write_its_state_folder_and_nothing_else(
    side: str, tmp_path: Path, fedward: Callable[..., Any]
) -> None:
    text = fedward(side, "unit", "--state", "/var/lib/fedward", "--user", "root").out
    assert f" {side} up --state /var/lib/fedward\n" in text
    for wanted in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ReadWritePaths=/var/lib/fedward",
        "PrivateTmp=yes",
    ):
        assert f"{wanted}\n" in text
    assert "MemoryDenyWriteExecute" not in text  # torch's convolutions need memory that they may run
    if (analyse := shutil.which("systemd-analyze")) is not None:
        file = tmp_path / f"fedward-{side}.service"
        file.write_text(text)
        done = subprocess.run([analyse, "verify", file], capture_output=True, text=True, check=False)
        # The only thing that may be missing on a developer's machine is the console script.
        said = [
            line for line in done.stderr.splitlines() if "fedward" in line and "not executable" not in line
        ]
        assert said == []


@pytest.mark.parametrize("path", ["/a b", "/a\nUser=root", "/a%h"])
def test_a_path_that_a_unit_would_misread_is_refused(path: str, fedward: Callable[..., Any]) -> None:
    assert fedward("hospital", "unit", "--state", path).err.startswith("SettingRefused")
