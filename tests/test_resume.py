"""A run that was cut off anywhere goes on to the very same release; a damaged one is refused by name."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client import hospital
from fedward.client.hospital import open_hospital
from fedward.client.registry import Registry
from fedward.client.state_folder import BUDGETS
from fedward.common.errors import DatasetRefused
from fedward.common.mechanisms import Mechanism
from fedward.common.privacy import epsilon
from fedward.server import rounds
from fedward.simulations import simulate, sources
from fedward.simulations.metrics_file import check_metrics

DATA = "phantom:train=60,val=30,test=40"
Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """Hospitals are opened anew, as in a new process."""
    open_hospital.cache_clear()
    yield
    open_hospital.cache_clear()


@pytest.fixture(scope="module")
def start(fedward: Command) -> Command:
    """start(out, *options): a run of three hospitals and two rounds."""

    def run(out: Path, *options: object) -> Any:
        base = ("simulate", "--dataset", DATA, "--hospitals", 3, "--rounds", 2, "--out", out)
        return fedward(*base, *options)

    return run


@pytest.fixture(scope="module")
def finished(start: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing cut off; copy it before changing it."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert start(out).code == 0
    return Path(out)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def digest_of(out: Path) -> str:
    metrics = json.loads((out / "metrics.json").read_text())
    check_metrics(metrics)
    return str(metrics["release"]["digest"])


def refused(done: Any, name: str, *words: str) -> None:
    assert done.code == 1, done
    line = done.err.splitlines()[-1]
    assert line.startswith(f"{name}: "), line
    assert [word for word in words if word not in line] == [], line


def cut(patch: pytest.MonkeyPatch, where: Any, name: str, call: int, after: bool = False) -> None:
    """Ctrl-C at the `call`-th call of a step, before or after its work."""
    original, calls = getattr(where, name), [0]

    def step(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] < call:
            return original(*arguments, **named)
        if after:
            original(*arguments, **named)
        raise KeyboardInterrupt

    patch.setattr(where, name, step)


CUTS = {
    "before the first round": (simulate, "run_in_process", 1, False),
    "while hospitals enrol": (rounds, "enrol", 1, False),
    "before the first checkpoint": (rounds, "save_checkpoint", 1, False),
    "after a charge, before its training": (hospital, "train", 2, False),
    "after a training, before its reply": (hospital, "encode", 2, False),
    "between replies and checkpoint": (rounds, "save_checkpoint", 2, False),
    "between two rounds": (rounds, "save_checkpoint", 2, True),
    "in the second round": (hospital, "train", 5, False),
    "after the last checkpoint": (rounds, "save_checkpoint", 3, True),
    "before the release": (simulate, "make_release", 1, False),
    "after the release": (simulate, "make_release", 1, True),
    "before the metrics": (simulate, "write_metrics", 1, False),
    "before the report": (simulate, "write_report", 1, False),
    "after the report": (simulate, "write_report", 1, True),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_run_goes_on_from_wherever_it_was_cut(
    name: str, start: Command, fedward: Command, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "it's out"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, *CUTS[name])
        done = start(out)
    assert done.code == 130
    assert f"fedward simulate --resume --out '{tmp_path}/it'\"'\"'s out'" in done.err
    assert "Traceback" not in done.err
    open_hospital.cache_clear()
    resumed = fedward("simulate", "--resume", "--out", out)
    assert resumed.code == 0, resumed.err
    assert digest_of(out) == digest_of(finished)
    assert (out / "report.html").exists()
    spent = [site["epsilon"] for site in json.loads((out / "metrics.json").read_text())["hospitals"]]
    assert max(spent) <= 3.0  # a round that ran twice was charged once
    assert len(set(spent)) == 1


def test_a_run_killed_in_a_round_goes_on(fedward: Command, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = [str(Path(sys.executable).with_name("fedward")), "simulate", "--dataset", DATA]
    program += ["--hospitals", "3", "--rounds", "400", "--epsilon", "none", "--out", str(out)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while b'"closed"' not in _read(out / "progress.jsonl") and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.MonkeyPatch.context() as patch:
        closed = _read(out / "progress.jsonl").count(b'"closed"')
        assert 0 < closed < 400
        cut(patch, rounds, "save_checkpoint", 2, after=True)
        assert fedward("simulate", "--resume", "--out", out).code == 130
    numbers = [json.loads(line).get("round") for line in _read(out / "progress.jsonl").splitlines()[:-1]]
    assert max(number for number in numbers if number) in (closed + 2, closed + 3)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def test_a_finished_run_is_left_as_it_is(fedward: Command, copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = fedward("simulate", "--resume", "--out", copy)
    assert done.code == 0
    assert "finished already" in done.err
    assert "test     AUC" in done.out
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "release", "final.npy"])
def test_what_is_missing_from_a_finished_run_is_made_again(
    fedward: Command, copy: Path, finished: Path, name: str
) -> None:
    victim = copy / name
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    done = fedward("simulate", "--resume", "--out", copy)
    assert done.code == 0, done.err
    assert digest_of(copy) == digest_of(finished)
    assert victim.exists() or "finished already" in done.err
    seconds = [
        json.loads((out / "metrics.json").read_text())["timing"]["train_seconds"] for out in (copy, finished)
    ]
    assert seconds[0] == seconds[1]  # of the rounds, whenever they ran


def test_damaged_metrics_are_written_again(fedward: Command, copy: Path, finished: Path) -> None:
    for damage in (b"", b"{", b"[]", b"{}", b"\xff", b'{"schema": "fedward.metrics/1"}'):
        (copy / "metrics.json").write_bytes(damage)
        assert fedward("simulate", "--resume", "--out", copy).code == 0
        assert digest_of(copy) == digest_of(finished)


@pytest.mark.parametrize(
    "options", [["--rounds", "3"], ["--seed", "0"], ["--trust", "x"], ["--epsilon", "3", "--compare"]]
)
def test_other_settings_beside_resume_are_refused(
    fedward: Command, finished: Path, options: list[str]
) -> None:
    flags = [option for option in options if option.startswith("--")]
    refused(fedward("simulate", "--resume", "--out", finished, *options), "SettingRefused", *flags)


def test_an_empty_or_missing_folder_holds_no_run(fedward: Command, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none", tmp_path / ("n" * 300)):
        refused(fedward("simulate", "--resume", "--out", out), "CheckpointRefused", "no run to resume")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_does_not_touch_the_first(start: Command, copy: Path, finished: Path) -> None:
    refused(start(copy), "OutputRefused", "holds a run already", "--resume")
    assert digest_of(copy) == digest_of(finished)


def _damages(data: bytes) -> Iterator[bytes]:
    yield from (b"", b"null", b"[]", b"5", b'"x"', b"{}", data[:-1], data[: len(data) // 2], data + b"}")
    middle = len(data) // 2
    yield data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    yield data.replace(b'"rounds":2', b'"rounds":3')
    yield data.replace(b'"seed":0', b'"seed":1')
    yield b"[" * 100_000
    yield os.urandom(200)


@pytest.mark.parametrize("name", ["simulation.json", "study.json"])
def test_damaged_settings_are_refused(fedward: Command, copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    for damage in _damages(data):
        (copy / name).write_bytes(damage)
        refused(fedward("simulate", "--resume", "--out", copy), "CheckpointRefused", name)
    (copy / name).write_bytes(data)
    assert fedward("simulate", "--resume", "--out", copy).code == 0


@pytest.mark.parametrize("name", ["simulation.json", "study.json", "checkpoint.bin"])
def test_a_missing_file_is_refused(fedward: Command, copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / "report.html").unlink()
    refused(fedward("simulate", "--resume", "--out", copy), "CheckpointRefused")


def test_a_damaged_checkpoint_is_refused(fedward: Command, copy: Path) -> None:
    (copy / "report.html").unlink()
    data = (copy / "checkpoint.bin").read_bytes()
    flipped = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    for damage in (b"", data[:20], data[:-1], flipped, data + b"x"):
        (copy / "checkpoint.bin").write_bytes(damage)
        for has_final in (True, False):
            if not has_final:
                (copy / "final.npy").unlink(missing_ok=True)
            done = fedward("simulate", "--resume", "--out", copy)
            refused(done, "CheckpointRefused", "checkpoint.bin", "damaged")


def test_final_latents_that_are_not_the_rounds_are_refused(fedward: Command, copy: Path) -> None:
    final, data = copy / "final.npy", (copy / "final.npy").read_bytes()
    shutil.rmtree(copy / "release")
    short, archive = io.BytesIO(), io.BytesIO()
    np.save(short, np.zeros(3, np.float32))
    np.savez(archive, a=np.zeros(2))
    changed = data[:-1] + bytes([data[-1] ^ 1])
    for damage in (
        b"",
        data[:50],
        data[:-4],
        changed,
        b"PK\x03\x04" + bytes(40),
        short.getvalue(),
        archive.getvalue(),
    ):
        final.write_bytes(damage)
        refused(fedward("simulate", "--resume", "--out", copy), "CheckpointRefused", "final.npy", "delete it")
    assert not (copy / "release").exists()
    final.unlink()
    assert fedward("simulate", "--resume", "--out", copy).code == 0


def test_a_damaged_release_is_refused_and_can_be_made_again(
    fedward: Command, copy: Path, finished: Path
) -> None:
    model = copy / "release" / "model.onnx.zst"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    refused(fedward("simulate", "--resume", "--out", copy), "SignatureRefused", "delete", "--resume")
    shutil.rmtree(copy / "release")
    assert fedward("simulate", "--resume", "--out", copy).code == 0
    assert digest_of(copy) == digest_of(finished)


def test_other_reference_records_are_refused(fedward: Command, copy: Path) -> None:
    (copy / "reference.npz").unlink()
    refused(fedward("simulate", "--resume", "--out", copy), "CheckpointRefused", "reference.npz")


def test_another_data_set_under_the_same_name_is_refused(
    fedward: Command, start: Command, tmp_path: Path
) -> None:
    def save(seed: int) -> None:
        draws, arrays = np.random.default_rng(seed), dict[str, Any]()
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = draws.integers(0, 256, (12, 28, 28)).astype(np.uint8)
            arrays[f"{split}_labels"] = (np.arange(12) % 2)[:, None]
        np.savez(tmp_path / "own.npz", **arrays)

    save(1)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, simulate, "run_in_process", 1)
        assert start(tmp_path / "out", "--dataset", tmp_path / "own.npz").code == 130
    save(2)
    refused(
        fedward("simulate", "--resume", "--out", tmp_path / "out"), "CheckpointRefused", "put that one back"
    )
    (tmp_path / "own.npz").unlink()
    refused(fedward("simulate", "--resume", "--out", tmp_path / "out"), "DatasetRefused", "does not exist")
    save(1)
    assert fedward("simulate", "--resume", "--out", tmp_path / "out").code == 0


def test_phantoms_that_auto_fell_back_to_are_those_that_are_resumed(
    fedward: Command, start: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> Path:
        raise DatasetRefused("there is no network.")

    monkeypatch.setattr(sources, "search_folders", list)
    monkeypatch.setattr(sources, "download_medmnist", offline)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, simulate, "run_in_process", 1)
        assert start(tmp_path / "out", "--dataset", "auto").code == 130
    monkeypatch.setattr(sources, "download_medmnist", lambda *_: pytest.fail("looked for it again"))
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, simulate, "run_in_process", 1)
        done = fedward("simulate", "--resume", "--out", tmp_path / "out")
    assert "because pneumoniamnist is not on this machine" in done.err


def test_epsilon_is_read_from_each_hospitals_own_ledger(
    fedward: Command, start: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, simulate, "make_release", 1)
        assert start(out).code == 130
    budget = Registry(out / "hospitals" / "1" / BUDGETS).budget("records")
    budget.set_total(40.0)
    budget.charge("another study", 1, "0" * 64, Mechanism(1.0, 1.0, 1))
    expected = epsilon(budget.mechanisms(), 1e-5)
    assert fedward("simulate", "--resume", "--out", out).code == 0
    first, second, third = json.loads((out / "metrics.json").read_text())["hospitals"]
    assert second["epsilon"] == pytest.approx(expected)
    assert first["epsilon"] == third["epsilon"] < 3.0 < second["epsilon"]


def test_a_full_disk_stops_the_run_and_it_goes_on_later(
    fedward: Command, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = [str(Path(sys.executable).with_name("fedward")), "simulate", "--dataset", DATA]
    done = subprocess.run(
        [*program, "--hospitals", "3", "--rounds", "2", "--out", str(out)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("OutputRefused: ")
    assert "larger than allowed here" in last
    assert "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if "draft" in path.name]
    assert fedward("simulate", "--resume", "--out", out).code == 0
    assert digest_of(out) == digest_of(finished)
