"""A patch makes the next release of the one before it, byte for byte, or is refused and nothing is kept."""

import contextlib
import hashlib
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common import patch as module
from fedward.common.bundle import pack_tar, read_tar
from fedward.common.config import LocalSettings
from fedward.common.errors import BundleRefused, PatchRefused, SignatureRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.framing import pack, unpack
from fedward.common.models import build_student, flatten, initialise
from fedward.common.patch import apply_patch, make_patch
from fedward.common.randomness import KeyedGenerator
from fedward.common.signing import Signer
from fedward.server.export import to_onnx

Releases = Callable[..., bytes]


def _latents(local: LocalSettings) -> np.ndarray:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(0))
    return flatten(list(model.parameters())).numpy()


@pytest.fixture(scope="module")
def tar_of_student(
    tmp_path_factory: pytest.TempPathFactory,
    make_release: Callable[..., Path],
    make_local: Callable[..., LocalSettings],
) -> Releases:
    """tar_of_student(student, moved by how much, **manifest) -> a signed release's tar."""
    made = iter(range(1000))

    def make(student: str, moved: float, **changes: Any) -> bytes:
        local = make_local(student=student)
        latents = _latents(local)
        noise = np.random.default_rng(1).normal(size=len(latents))
        model = to_onnx(local, (latents + moved * noise).astype(np.float32))
        place = tmp_path_factory.mktemp("releases") / str(next(made))
        return pack_tar(make_release(place, model=model, student=student, **changes))

    return make


@pytest.fixture(scope="module")
def base(tar_of_student: Releases) -> bytes:
    return tar_of_student("ternary-cnn", 0.0, version=1)


@pytest.fixture(scope="module")
def result(tar_of_student: Releases) -> bytes:
    return tar_of_student("ternary-cnn", 0.005, version=2)


@pytest.fixture(scope="module")
def made(base: bytes, result: bytes) -> bytes:
    return make_patch(base, result)


@pytest.mark.parametrize("student", ["ternary-cnn", "int8-depthwise", "fp32-cnn"])
@pytest.mark.parametrize("moved", [0.0, 0.001, 1.0])
def test_the_next_release_comes_out_byte_for_byte(
    tar_of_student: Releases, signer: Signer, student: str, moved: float
) -> None:
    old, new = tar_of_student(student, 0.0, version=1), tar_of_student(student, moved, version=2)
    found = apply_patch(old, make_patch(old, new))
    assert found == new
    assert read_tar(found, [signer.public()]).manifest["version"] == 2


def test_a_patch_is_a_part_of_the_release(base: bytes, result: bytes, made: bytes) -> None:
    signatures = 4_900  # two of them, nothing of which was there before
    assert len(made) < signatures + (len(result) - signatures) / 3


def test_any_changed_byte_is_refused_or_changes_nothing(base: bytes, result: bytes, made: bytes) -> None:
    @settings(max_examples=150, deadline=None, database=None)
    @given(place=st.integers(0, len(made) - 1), flip=st.integers(1, 255))
    def check(place: int, flip: int) -> None:
        changed = bytearray(made)
        changed[place] ^= flip
        with contextlib.suppress(BundleRefused):
            assert apply_patch(base, bytes(changed)) == result

    check()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_patch_is_refused(base: bytes, made: bytes, share: float) -> None:
    with pytest.raises(PatchRefused, match="fetch"):
        apply_patch(base, made[: int(share * len(made))])
    with pytest.raises(PatchRefused, match="fetch"):
        apply_patch(base, made + b"\0")


def test_another_base_is_named_and_refused(result: bytes, made: bytes) -> None:
    with pytest.raises(PatchRefused, match="for another release than this one"):
        apply_patch(result, made)


def test_no_base_at_all_is_refused(made: bytes) -> None:
    forged = _with(made, base=hashlib.sha256(b"no tar").hexdigest())
    with pytest.raises(BundleRefused, match="no bundle"):
        apply_patch(b"no tar", forged)


def _with(patch: bytes, parts: dict[str, bytes] | None = None, **head: Any) -> bytes:
    found = {name: bytes(part) for name, part in unpack(patch).items()}
    found["head.json"] = canonical_json({**parse_canonical(found["head.json"]), **head})
    return pack({**found, **(parts or {})})


@pytest.mark.parametrize(
    "head",
    [
        {"schema": "fedward.patch/2"},
        {"more": 1},
        {"base": 3},
        {"result": "0" * 64},
        {"papers": {}},
        {"papers": {"manifest.json": 1, "golden.npz": -1, "signatures.json": 1}},
        {"papers": {"manifest.json": 1, "golden.npz": 1 << 60, "signatures.json": 1}},
        {"papers": {"manifest.json": 1, "golden.npz": True, "signatures.json": 1}},
    ],
)
def test_a_head_that_no_patch_has_is_refused(base: bytes, made: bytes, head: dict[str, Any]) -> None:
    with pytest.raises(PatchRefused, match="fetch"):
        apply_patch(base, _with(made, **head))


@pytest.mark.parametrize("part", ["papers", "gaps", "values", "numbers"])
def test_a_part_that_decompresses_without_end_is_not_decompressed(
    base: bytes, made: bytes, part: str
) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))
    unsized = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(bytes(1 << 28))
    assert len(bomb) < 1 << 17
    tracemalloc.start()
    try:
        for hostile in (bomb, unsized, b"", b"no frame"):
            with pytest.raises(PatchRefused, match="fetch"):
                apply_patch(base, _with(made, {part: hostile}))
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_codes_that_are_not_there_cannot_be_changed(base: bytes, made: bytes) -> None:
    press = zstandard.ZstdCompressor().compress
    for gaps, values in ((b"\xff" * 9000, b""), (b"\x00", b"\x01\x01"), (b"\xff" * 3000 + b"\x00", b"\x01")):
        with pytest.raises(PatchRefused, match="fetch"):
            apply_patch(base, _with(made, {"gaps": press(gaps), "values": press(values)}))


def test_another_student_has_no_patch(tar_of_student: Releases, base: bytes) -> None:
    with pytest.raises(PatchRefused, match="send the whole release"):
        make_patch(base, tar_of_student("ternary-depthwise", 0.0))


def test_a_zstd_that_compresses_otherwise_is_noticed(
    base: bytes, result: bytes, made: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "compressed", lambda graph, _: zstandard.ZstdCompressor(level=1).compress(graph)
    )
    for attempt in (lambda: apply_patch(base, made), lambda: make_patch(base, result)):
        with pytest.raises(PatchRefused, match="fetch the whole release"):
            attempt()


@pytest.fixture
def files(tmp_path: Path, base: bytes, result: bytes, made: bytes) -> Path:
    for name, data in (("old.tar", base), ("new.tar", result), ("patch", made)):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_the_commands_patch_and_apply(files: Path, trust_file: Path, fedward: Callable[..., Any]) -> None:
    written = fedward("bundle", "patch", files / "old.tar", files / "new.tar", files / "p", "--json")
    assert (written.code, (files / "p").read_bytes()) == (0, (files / "patch").read_bytes())
    told = fedward(
        "bundle", "apply", files / "old.tar", files / "p", files / "out.tar", "--trust", trust_file
    )
    assert (told.code, told.out.startswith("verified: tiny version 2")) == (0, True)
    assert (files / "out.tar").read_bytes() == (files / "new.tar").read_bytes()


def test_what_a_patch_makes_is_written_only_if_a_trusted_key_signed_it(
    files: Path, tar_of_student: Releases, base: bytes, stranger: Signer, trust_file: Path,
    fedward: Callable[..., Any],
) -> None:  # fmt: skip
    (files / "patch").write_bytes(make_patch(base, tar_of_student("ternary-cnn", 0.005, by=stranger)))
    refused = fedward(
        "bundle", "apply", files / "old.tar", files / "patch", files / "out.tar", "--trust", trust_file
    )
    assert (refused.code, refused.err.partition(":")[0]) == (1, SignatureRefused.__name__)
    assert sorted(path.name for path in files.iterdir()) == ["new.tar", "old.tar", "patch", "trust.json"]


def test_nothing_is_written_over(files: Path, trust_file: Path, fedward: Callable[..., Any]) -> None:
    shutil.copy(files / "patch", files / "there")
    for command in (
        ("patch", files / "old.tar", files / "new.tar", files / "there"),
        ("apply", files / "old.tar", files / "patch", files / "there", "--trust", trust_file),
    ):
        assert fedward("bundle", *command).err.startswith("OutputRefused")
    assert (files / "there").read_bytes() == (files / "patch").read_bytes()
