"""A bundle reads back as it was written; whatever differs from it in a byte is refused by name."""

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common import bundle as bundle_module
from fedward.common.archive import files_of, tar_of
from fedward.common.bundle import (
    LIMITS_BYTES,
    MANIFEST,
    SIGNATURES,
    Bundle,
    inspect_bundle,
    model_bytes,
    pack_tar,
    read_bundle,
    write_bundle,
)
from fedward.common.errors import BundleRefused, OutputRefused, SignatureRefused, TrustRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.manifest import GOLDEN, MODEL, release_digest, with_files
from fedward.common.signing import Signer
from fedward.common.trust import TrustedKey

ReleaseMaker = Callable[..., Path]
FILES = {MODEL: b"model", GOLDEN: b"golden"}


@pytest.fixture(scope="module")
def trust(signer: Signer) -> list[TrustedKey]:
    return [signer.public()]


@pytest.fixture(scope="module")
def release(make_release: ReleaseMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("release") / "bundle")


@pytest.fixture(scope="module")
def manifest(release: Path) -> dict[str, Any]:
    return dict(parse_canonical((release / MANIFEST).read_bytes()))


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def _signed(directory: Path, raw: dict[str, bytes], signer: Signer) -> Path:
    """A bundle of any files whatever, rightly signed: for what the writer itself would refuse."""
    directory.mkdir()
    for name, data in raw.items():
        (directory / name).write_bytes(data)
    (directory / SIGNATURES).write_bytes(signer.sign(bundle_module._statement(raw)))
    return directory


def test_a_bundle_reads_back_as_written(
    tmp_path: Path, manifest: dict[str, Any], signer: Signer, trust: list[TrustedKey]
) -> None:
    directory = write_bundle(tmp_path / "b", manifest, FILES, signer)
    expected = Bundle(with_files(manifest, FILES), FILES)
    assert read_bundle(directory, trust) == expected
    (tmp_path / "b.tar").write_bytes(pack_tar(directory))
    assert read_bundle(tmp_path / "b.tar", trust) == expected
    assert sorted(os.listdir(tmp_path)) == ["b", "b.tar"]


# Every single byte of signatures.json is tried in test_signing.
@pytest.mark.parametrize("name", list(LIMITS_BYTES))
def test_a_changed_byte_in_any_file_is_refused(copy: Path, trust: list[TrustedKey], name: str) -> None:
    whole = (copy / name).read_bytes()

    @settings(max_examples=60, deadline=None, database=None)
    @given(place=st.integers(0, len(whole) - 1), flip=st.integers(1, 255))
    def check(place: int, flip: int) -> None:
        changed = bytearray(whole)
        changed[place] ^= flip
        (copy / name).write_bytes(changed)
        with pytest.raises(SignatureRefused):
            read_bundle(copy, trust)

    check()


@settings(max_examples=150, deadline=None, database=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_anywhere_in_a_tar_is_refused(
    release: Path, trust: list[TrustedKey], tmp_path_factory: pytest.TempPathFactory, share: float, flip: int
) -> None:
    tar = bytearray(pack_tar(release))
    tar[int(share * len(tar))] ^= flip
    path = tmp_path_factory.getbasetemp() / "changed.tar"
    path.write_bytes(tar)
    with pytest.raises(BundleRefused):
        read_bundle(path, trust)


def test_a_cut_longer_or_reordered_tar_is_refused(
    release: Path, trust: list[TrustedKey], tmp_path: Path
) -> None:
    tar = pack_tar(release)
    files = files_of(tar, LIMITS_BYTES)
    others = (
        b"",
        tar[:700],
        tar[:-1],
        tar[: len(tar) // 2],
        tar + b"\0" * 512,
        tar_of(dict(sorted(files.items(), reverse=True))),
        tar_of({**files, "more": b""}),
        tar_of({name: files[name] for name in (MANIFEST, MODEL, GOLDEN)}),
    )
    for other in others:
        (tmp_path / "t.tar").write_bytes(other)
        with pytest.raises(BundleRefused):
            read_bundle(tmp_path / "t.tar", trust)


def test_equal_bundles_pack_to_equal_bytes(release: Path, copy: Path) -> None:
    os.utime(copy / MODEL, (1, 1))
    (copy / MODEL).chmod(0o600)
    assert pack_tar(copy) == pack_tar(release)


def test_a_bundle_signed_again_by_another_is_refused(
    tmp_path: Path, make_release: ReleaseMaker, stranger: Signer, trust: list[TrustedKey]
) -> None:
    directory = make_release(tmp_path / "b", by=stranger)
    with pytest.raises(SignatureRefused, match="trust file does not hold"):
        read_bundle(directory, trust)
    (tmp_path / "b.tar").write_bytes(pack_tar(directory))
    with pytest.raises(SignatureRefused):
        read_bundle(tmp_path / "b.tar", trust)


def test_signatures_of_another_release_are_refused(
    tmp_path: Path, copy: Path, make_release: ReleaseMaker, trust: list[TrustedKey]
) -> None:
    other = make_release(tmp_path / "other", version=2)
    shutil.copy(other / SIGNATURES, copy / SIGNATURES)
    with pytest.raises(SignatureRefused, match="not of these files"):
        read_bundle(copy, trust)


@pytest.mark.parametrize("name", list(LIMITS_BYTES))
def test_a_missing_cut_or_linked_file_is_refused(copy: Path, trust: list[TrustedKey], name: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:-1])
    with pytest.raises(BundleRefused):
        read_bundle(copy, trust)
    (copy / name).unlink()
    with pytest.raises(BundleRefused, match=f"missing or unknown '{name}'"):
        read_bundle(copy, trust)
    (copy.parent / "outside").write_bytes(whole)
    (copy / name).symlink_to(copy.parent / "outside")
    with pytest.raises(BundleRefused, match="link"):
        read_bundle(copy, trust)
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(BundleRefused):
        read_bundle(copy, trust)


def test_an_unknown_file_is_refused(copy: Path, trust: list[TrustedKey]) -> None:
    (copy / "install.py").write_bytes(b"")
    with pytest.raises(BundleRefused, match=r"install\.py"):
        read_bundle(copy, trust)


@pytest.mark.parametrize("name", list(LIMITS_BYTES))
def test_no_file_is_read_beyond_its_limit(
    copy: Path, trust: list[TrustedKey], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = copy.parent / "b.tar"
    tar.write_bytes(pack_tar(copy))
    size = (copy / name).stat().st_size
    monkeypatch.setitem(LIMITS_BYTES, name, size)
    read_bundle(copy, trust)
    monkeypatch.setitem(LIMITS_BYTES, name, size - 1)
    for path in (copy, tar):
        with pytest.raises(BundleRefused, match="larger"):
            read_bundle(path, trust)


def test_nothing_is_parsed_before_the_signatures_verify(
    copy: Path, trust: list[TrustedKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise RuntimeError("parsed unverified bytes")

    monkeypatch.setattr(bundle_module, "parse_canonical", never)
    (copy / MANIFEST).write_bytes(b"[" * 1000)
    with pytest.raises(SignatureRefused):
        read_bundle(copy, trust)


def test_a_signed_manifest_must_be_canonical_and_agree_with_its_files(
    tmp_path: Path, manifest: dict[str, Any], signer: Signer, trust: list[TrustedKey]
) -> None:
    right = with_files(manifest, FILES)
    wrong = {
        "spaced": canonical_json(right) + b"\n",
        "other size": canonical_json(with_files(manifest, {**FILES, MODEL: b"other"})),
        "other schema": canonical_json({**right, "schema": "fedward.release/2"}),
        "no object": b"[]",
        "no json": b"{",
    }
    for name, data in wrong.items():
        directory = _signed(tmp_path / name, {MANIFEST: data, **FILES}, signer)
        with pytest.raises(BundleRefused) as caught:
            read_bundle(directory, trust)
        assert not isinstance(caught.value, SignatureRefused)


def test_an_expired_release_is_refused_from_that_second_on(
    tmp_path: Path, make_release: ReleaseMaker, trust: list[TrustedKey]
) -> None:
    directory = make_release(tmp_path / "b", expires="2030-01-02T03:04:05Z")
    read_bundle(directory, trust, now=datetime(2030, 1, 2, 3, 4, 4, tzinfo=UTC))
    with pytest.raises(BundleRefused, match="expired"):
        read_bundle(directory, trust, now=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_a_release_is_never_overwritten(copy: Path, manifest: dict[str, Any], signer: Signer) -> None:
    before = pack_tar(copy)
    with pytest.raises(OutputRefused, match="exists already"):
        write_bundle(copy, manifest, FILES, signer)
    assert pack_tar(copy) == before
    assert os.listdir(copy.parent) == ["copy"]


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, manifest: dict[str, Any], signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputRefused("the disk is full")

    monkeypatch.setattr(bundle_module, "write_atomically", full)
    with pytest.raises(OutputRefused):
        write_bundle(tmp_path / "b", manifest, FILES, signer)
    assert os.listdir(tmp_path) == []


def test_a_missing_parent_folder_is_named(tmp_path: Path, manifest: dict[str, Any], signer: Signer) -> None:
    with pytest.raises(OutputRefused, match="does not exist"):
        write_bundle(tmp_path / "no" / "b", manifest, FILES, signer)


@pytest.mark.parametrize("files", [{}, {MODEL: b"m"}, {**FILES, "more": b""}])
def test_other_files_are_not_written(
    tmp_path: Path, manifest: dict[str, Any], signer: Signer, files: dict[str, bytes]
) -> None:
    with pytest.raises(BundleRefused):
        write_bundle(tmp_path / "b", manifest, files, signer)


def test_what_no_json_can_say_is_not_written(
    tmp_path: Path, manifest: dict[str, Any], signer: Signer
) -> None:
    for value in (float("nan"), object(), "\ud800"):
        with pytest.raises(BundleRefused):
            write_bundle(tmp_path / "b", {**manifest, "metrics": {"auc": value}}, FILES, signer)


def _with_model(manifest: dict[str, Any], frame: bytes, size: int) -> Bundle:
    return Bundle({**manifest, "model": {**manifest["model"], "size": size}}, {**FILES, MODEL: frame})


def test_the_model_comes_out_of_its_frame(release: Path, trust: list[TrustedKey]) -> None:
    found = read_bundle(release, trust)
    model = model_bytes(found)
    assert len(model) == found.manifest["model"]["size"]
    assert zstandard.decompress(found.files[MODEL]) == model


def test_a_bomb_is_stopped_at_the_promised_size(
    manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    seen: list[int] = []
    decompressor = zstandard.ZstdDecompressor

    class Watched:
        """Not a subclass: zstandard's types crash the garbage collector when derived from."""

        def __init__(self, **limits: Any) -> None:
            self.limits = limits

        def stream_reader(self, frame: bytes) -> "Watched":
            self.inner = decompressor(**self.limits).stream_reader(frame)
            return self

        def read(self, size: int) -> bytes:
            data: bytes = self.inner.read(size)
            seen.append(len(data))
            return data

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Watched)
    with pytest.raises(BundleRefused, match="manifest describes"):
        model_bytes(_with_model(manifest, bomb, 1000))
    assert 1000 < sum(seen) <= 2 << 20


def test_a_frame_that_is_no_frame_is_refused(manifest: dict[str, Any]) -> None:
    frame = zstandard.compress(b"x" * 1000)
    for damaged in (b"", b"x", frame[:-3], frame[:4], b"\0" + frame):
        with pytest.raises(BundleRefused):
            model_bytes(_with_model(manifest, damaged, 1000))


def test_the_digest_is_of_the_release_and_not_of_the_run(manifest: dict[str, Any]) -> None:
    digest = release_digest(manifest)
    run = {**manifest, "provenance": {"engine": "ray"}, "expires": "2031-01-01T00:00:00Z"}
    assert release_digest(run) == digest
    assert release_digest({**manifest, "version": 2}) != digest
    assert release_digest(with_files(manifest, FILES)) != digest


def test_an_unverified_bundle_is_shown_with_its_refusal(
    release: Path, copy: Path, stranger: Signer, trust: list[TrustedKey]
) -> None:
    assert inspect_bundle(release, lambda: trust)[1] is None
    found, refusal = inspect_bundle(copy, lambda: [stranger.public()])
    assert isinstance(refusal, SignatureRefused)
    assert found.manifest["study"] == "tiny"

    def no_trust() -> list[TrustedKey]:
        raise TrustRefused("no trust file")

    assert isinstance(inspect_bundle(copy, no_trust)[1], TrustRefused)
