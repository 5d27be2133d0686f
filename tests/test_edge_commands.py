"""`fedward edge predict` answers what it can, names what it refuses, and does without the training stack."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from fedward.common.bundle import pack_tar
from fedward.common.cli import run
from fedward.common.signing import Signer

ReleaseMaker = Callable[..., Path]
NOT_ON_THE_EDGE = ("torch", "torchvision", "opacus", "flwr", "medmnist", "scipy", "onnx", "matplotlib", "ray")


@pytest.fixture
def release(make_release: ReleaseMaker, tmp_path: Path) -> Path:
    return make_release(tmp_path / "bundle")


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    Image.fromarray(np.full((4, 4), 204, np.uint8)).save(tmp_path / "bright.png")
    return tmp_path / "bright.png"


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    Image.fromarray(np.full((9, 7), 0, np.uint8)).save(tmp_path / "dark.png")
    return tmp_path / "dark.png"


def _predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["edge", "predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_class_probability_and_latency_are_printed(
    capsys: pytest.CaptureFixture[str], release: Path, trust_file: Path, bright: Path, dark: Path
) -> None:
    code, out, err = _predict(capsys, release, bright, dark, "--trust", trust_file)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    # 204 / 255 is 0.6 after normalisation, 16 of them times 0.25 is a logit of 2.4 against 0.
    assert first.startswith(f"{bright}  pneumonia  {1 / (1 + np.exp(-2.4)):.4f}  ")
    assert second.startswith(f"{dark}  normal  {1 / (1 + np.exp(-4)):.4f}  ")
    assert first.endswith(" ms")


def test_json_says_the_same_and_the_releases_digest(
    capsys: pytest.CaptureFixture[str], release: Path, trust_file: Path, bright: Path
) -> None:
    code, out, _ = _predict(capsys, release, bright, "--trust", trust_file, "--json")
    answer = json.loads(out)
    assert code == 0
    assert len(answer["release"]) == 64
    (row,) = answer["images"]
    assert row["image"] == str(bright)
    assert row["class"] == "pneumonia"
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(-2.4)))
    assert row["probabilities"]["normal"] == pytest.approx(1 - row["probability"])
    assert row["latency_ms"] > 0
    assert answer["refused"] == []


def test_the_releases_threshold_and_temperature_decide(
    capsys: pytest.CaptureFixture[str],
    make_release: ReleaseMaker,
    tmp_path: Path,
    trust_file: Path,
    bright: Path,
) -> None:
    release = make_release(
        tmp_path / "strict",
        decision={"rule": "threshold", "thresholds": [2.5], "prior": "balanced", "source": "half A"},
        calibration={"temperature": 2.0},
    )
    _, out, _ = _predict(capsys, release, bright, "--trust", trust_file, "--json")
    (row,) = json.loads(out)["images"]
    assert row["class"] == "normal"
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(1.2)))


def test_a_multi_label_release_names_every_class_that_is_present(
    capsys: pytest.CaptureFixture[str],
    make_release: ReleaseMaker,
    tmp_path: Path,
    trust_file: Path,
    bright: Path,
) -> None:
    rule = {"rule": "threshold", "thresholds": [-0.5, 0.5, 0.0], "prior": "none", "source": "default"}
    names = {"task": "multi-label", "classes": ["a", "b", "c"], "decision": rule}
    release = make_release(tmp_path / "labels", **names)
    _, out, _ = _predict(capsys, release, bright, "--trust", trust_file, "--json")
    (row,) = json.loads(out)["images"]
    assert row["class"] == ["a", "c"]
    assert row["probability"] == [pytest.approx(0.5), pytest.approx(1 / (1 + np.exp(-2.4)))]
    _, out, _ = _predict(capsys, release, bright, "--trust", trust_file)
    assert "a 0.5000, c 0.91" in out


def test_one_bad_image_does_not_keep_the_others_from_an_answer(
    capsys: pytest.CaptureFixture[str],
    release: Path,
    trust_file: Path,
    bright: Path,
    dark: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "bad\x1b[31m.png").write_bytes(b"no picture")
    arguments = (release, bright, tmp_path / "bad\x1b[31m.png", dark, "--trust", trust_file)
    code, out, err = _predict(capsys, *arguments)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert err.startswith("ImageRefused: ")
    assert "\x1b" not in out + err
    code, out, _ = _predict(capsys, *arguments, "--json")
    answer = json.loads(out)
    assert code == 1
    assert [row["class"] for row in answer["images"]] == ["pneumonia", "normal"]
    assert answer["refused"][0]["error"] == "ImageRefused"


def test_npz_and_dicom_are_answered_image_by_image(
    capsys: pytest.CaptureFixture[str], release: Path, trust_file: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "set.npz", test_images=np.stack([np.full((4, 4), v, np.uint8) for v in (0, 255, 0)]))
    chosen = f"{tmp_path / 'set.npz'}:test_images[1]"
    dicom = get_testdata_file("CT_small.dcm", download=False)
    _, out, _ = _predict(
        capsys, release, tmp_path / "set.npz", chosen, dicom, "--trust", trust_file, "--json"
    )
    rows = json.loads(out)["images"]
    assert [row["class"] for row in rows[:4]] == ["normal", "pneumonia", "normal", "pneumonia"]
    assert [row["image"] for row in rows[:2]] == [f"{tmp_path / 'set.npz'}#0", f"{tmp_path / 'set.npz'}#1"]
    assert rows[3]["image"] == chosen
    assert rows[4]["image"] == dicom


def test_a_release_that_does_not_verify_answers_nothing(
    capsys: pytest.CaptureFixture[str],
    make_release: ReleaseMaker,
    stranger: Signer,
    release: Path,
    trust_file: Path,
    bright: Path,
    tmp_path: Path,
) -> None:
    changed = Path(shutil.copytree(release, tmp_path / "changed"))
    whole = bytearray((changed / "golden.npz").read_bytes())
    whole[-1] ^= 1
    (changed / "golden.npz").write_bytes(whole)
    for bundle in (changed, make_release(tmp_path / "foreign", by=stranger)):
        code, out, err = _predict(capsys, bundle, bright, "--trust", trust_file)
        assert (code, out) == (1, "")
        assert err.startswith("SignatureRefused: ")


def test_without_a_trust_file_nothing_is_believed(
    capsys: pytest.CaptureFixture[str],
    release: Path,
    bright: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "none"))
    code, out, err = _predict(capsys, release, bright)
    assert (code, out) == (1, "")
    assert "TrustRefused" in err
    assert "--trust" in err


_BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'blocked {{name}}', name=name)
sys.meta_path.insert(0, Block())
from fedward.common.cli import run
code = run({arguments!r})
assert not {blocked!r} & set(sys.modules), {blocked!r} & set(sys.modules)
sys.exit(code)
"""


def _run_blocked(blocked: set[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    script = _BLOCKED.format(blocked=blocked, arguments=[str(argument) for argument in arguments])
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def test_predict_runs_where_the_training_stack_cannot_be_imported(
    release: Path, trust_file: Path, bright: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.tar").write_bytes(pack_tar(release))
    options = ("--trust", trust_file, "--json")
    found = _run_blocked(set(NOT_ON_THE_EDGE), "edge", "predict", tmp_path / "b.tar", bright, *options)
    assert found.returncode == 0, found.stderr
    answer: dict[str, Any] = json.loads(found.stdout)
    assert answer["images"][0]["class"] == "pneumonia"


def test_verify_runs_with_the_light_base_alone(release: Path, trust_file: Path) -> None:
    blocked = {*NOT_ON_THE_EDGE, "onnxruntime", "PIL", "pydicom", "pylibjpeg"}
    found = _run_blocked(blocked, "bundle", "verify", release, "--trust", trust_file)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("verified: tiny version 1, ")


def test_without_the_extra_one_sentence_says_which_to_install(release: Path, bright: Path) -> None:
    found = _run_blocked({"onnxruntime"}, "edge", "predict", release, bright, "--json")
    assert found.returncode == 1
    assert found.stderr == (
        "ExtraMissing: `fedward edge` needs the package onnxruntime: run `pip install 'fedward[edge]'`.\n"
    )
    assert json.loads(found.stdout)["error"] == "ExtraMissing"
