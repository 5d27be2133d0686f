"""The edge extra alone, in a fresh environment, verifies and answers: no torch, opacus or flwr comes with it.

Uses the network: pip fetches the extra's packages.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

PROJECT = Path(__file__).resolve().parent.parent
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "client", "common", "server", "simulations")
NOT_ON_THE_EDGE = ("torch", "torchvision", "opacus", "flwr", "medmnist", "scipy", "onnx", "ray")
_PRESENT = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"


def _source(folder: Path) -> Path:
    """A copy to build from: pip leaves build folders where it builds."""
    folder.mkdir()
    for name in SHIPPED:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, folder / name)
    return folder


def _run(*command: object, seconds: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env=inherited,
        check=False,
    )


@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_edge_extra_alone_answers(
    make_release: Callable[..., Path], tmp_path: Path, trust_file: Path
) -> None:
    release = make_release(tmp_path / "bundle")
    Image.fromarray(np.full((4, 4), 204, np.uint8)).save(tmp_path / "bright.png")
    scan = get_testdata_file("MR_small_jp2klossless.dcm", download=False)

    made = _run(sys.executable, "-m", "venv", tmp_path / "venv", seconds=60, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    binaries = tmp_path / "venv" / "bin"
    constraints = PROJECT / "constraints.txt"
    pins = ["-c", constraints] if constraints.exists() else []
    source = _source(tmp_path / "source")
    pip = (binaries / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *pins)
    installed = _run(*pip, f"{source}[edge]", seconds=240, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr

    present = _run(binaries / "python", "-c", _PRESENT, *NOT_ON_THE_EDGE, seconds=30, cwd=tmp_path)
    assert present.stdout == "[]\n"
    predict = (binaries / "fedward", "edge", "predict", release, tmp_path / "bright.png", scan)
    answered = _run(*predict, "--trust", trust_file, "--json", seconds=60, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    first, second = json.loads(answered.stdout)["images"]
    assert first["class"] == "pneumonia"
    assert second["latency_ms"] > 0

    golden = bytearray((release / "golden.npz").read_bytes())
    golden[len(golden) // 2] ^= 1
    (release / "golden.npz").write_bytes(golden)
    refused = _run(*predict, "--trust", trust_file, seconds=60, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("SignatureRefused: ")
