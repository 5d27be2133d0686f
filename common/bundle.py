"""The release bundle: a directory, or the one tar of it, of exactly four files.

    manifest.json     what the release is (`fedward.common.manifest`), canonical JSON
    model.onnx.zst    the model, ONNX in one zstd frame
    golden.npz        inputs, logits and tolerance, to be reproduced wherever the model runs
    signatures.json   Ed25519 and ML-DSA-65 over the SHA-256 of the other three (`fedward.common.signing`)

Law: `read_bundle(write_bundle(d, m, f, signer), [signer.public()])` gives `m` (with its files' digests)
and `f` again, and refuses whatever differs from it in one byte. Signatures are checked on the raw bytes
before anything in them is parsed or decompressed.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard

from fedward.common.archive import files_of, tar_of
from fedward.common.compression import WINDOW_LIMIT_BYTES
from fedward.common.errors import BundleRefused, OutputRefused, Refusal, SignatureRefused
from fedward.common.files import (
    canonical_json,
    parse_canonical,
    read_bounded,
    refused_output,
    sync_folder,
    write_atomically,
)
from fedward.common.manifest import (
    GOLDEN,
    MODEL,
    SCHEMA,
    Manifest,
    check_manifest,
    expiry,
    file_entry,
    with_files,
)
from fedward.common.signing import STATEMENT_TYPE, Signer, verify
from fedward.common.trust import TrustedKey

MANIFEST = "manifest.json"
SIGNATURES = "signatures.json"
LIMITS_BYTES = {MANIFEST: 1 << 20, MODEL: 256 << 20, GOLDEN: 64 << 20, SIGNATURES: 64 << 10}
TAR_LIMIT_BYTES = sum(LIMITS_BYTES.values()) + (1 << 16)  # and its headers and padding
PREDICATE_TYPE = "urn:fedward:release:1"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A release that was read whole.

    Attributes:
        manifest: checked, see `fedward.common.manifest`.
        files: the bytes of model.onnx.zst and golden.npz.
    """

    manifest: Manifest
    files: dict[str, bytes]


def write_bundle(directory: Path, manifest: Manifest, files: dict[str, bytes], signer: Signer) -> Path:
    """Sign a release and write it to `directory`, which appears whole or not at all.

    Args:
        directory: must not exist; its parent must.
        manifest: every field but "files", which is filled in here.
        files: exactly model.onnx.zst and golden.npz.
        signer: the key to sign with.

    Raises:
        BundleRefused: the manifest or the files are not those of a release.
        OutputRefused: `directory` exists, or cannot be written.
    """
    if set(files) != {MODEL, GOLDEN}:
        raise BundleRefused(f"A bundle holds {MODEL} and {GOLDEN}, not {sorted(files)}.")
    raw = {MANIFEST: _manifest_bytes(with_files(manifest, files)), **files}
    raw[SIGNATURES] = signer.sign(_statement(raw))
    for name, data in raw.items():
        if len(data) > LIMITS_BYTES[name]:
            raise BundleRefused(f"{name} would be larger than the {LIMITS_BYTES[name]} bytes allowed.")
    if os.path.lexists(directory):
        raise OutputRefused(
            f"{directory} exists already; a release is never overwritten: name another place."
        )
    _write_folder(directory, raw)
    return directory


def read_bundle(path: Path, trust: Sequence[TrustedKey], now: datetime | None = None) -> Bundle:
    """Read and verify a bundle, a directory or a tar.

    Args:
        path: the bundle.
        trust: the keys that may have signed it.
        now: the time to compare with "expires"; None means this machine's clock.

    Raises:
        SignatureRefused: it is not what a key in `trust` signed.
        BundleRefused: a file is missing, unknown, too large or a link; a malformed manifest; expired.
    """
    return _verified(_read_raw(path), trust, now)


def read_tar(tar: bytes, trust: Sequence[TrustedKey], now: datetime | None = None) -> Bundle:
    """`read_bundle` of a tar that is in memory and was not kept yet; raises the same."""
    return _verified(_files_of(tar, "What came"), trust, now)


def unverified_tar(tar: bytes) -> Bundle:
    """What stands in a tar, whoever signed it.

    Raises:
        BundleRefused: it is no bundle at all.
    """
    return _parse(_files_of(tar, "What came"))


def inspect_bundle(
    path: Path, trust: Callable[[], Sequence[TrustedKey]], now: datetime | None = None
) -> tuple[Bundle, Refusal | None]:
    """What stands in a bundle, verified or not, and the refusal `read_bundle` would give.

    Args:
        path: the bundle.
        trust: gives the trusted keys; a refusal of its own counts as not verified.
        now: as for `read_bundle`.

    Raises:
        BundleRefused: it is no bundle at all.
    """
    raw = _read_raw(path)
    bundle = _parse(raw)
    try:
        _check_signatures(raw, trust())
        _check_expiry(bundle.manifest, now)
    except Refusal as refusal:
        return bundle, refusal
    return bundle, None


def pack_tar(path: Path) -> bytes:
    """The one tar of a bundle, a directory or a tar: equal bundles give equal bytes.

    Raises:
        BundleRefused: it does not hold exactly a bundle's files.
    """
    return tar_of(_read_raw(path))


def model_bytes(bundle: Bundle) -> bytes:
    """The ONNX model, decompressed and compared with the manifest's size and SHA-256.

    Raises:
        BundleRefused: not zstd, or another model than the manifest's; no more is decompressed than it says.
    """
    promised = bundle.manifest["model"]
    frame = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT_BYTES).stream_reader(bundle.files[MODEL])
    model = bytearray()
    try:
        while len(model) <= promised["size"] and (chunk := frame.read(_CHUNK_BYTES)):
            model += chunk
    except (zstandard.ZstdError, MemoryError) as error:
        raise BundleRefused(f"{MODEL} cannot be decompressed; fetch the release again.") from error
    raw = bytes(model)
    if file_entry(raw) != {"sha256": promised["sha256"], "size": promised["size"]}:
        raise BundleRefused(f"{MODEL} does not hold the model that the manifest describes.")
    return raw


def _manifest_bytes(manifest: Manifest) -> bytes:
    try:
        return canonical_json(check_manifest(manifest))
    except (ValueError, TypeError) as error:  # NaN in the metrics, an object that JSON does not have
        raise BundleRefused(f"The manifest is no JSON: {error}.") from error


def _statement(raw: dict[str, bytes]) -> dict[str, Any]:
    """The in-toto statement about the three files; made from bytes alone, so nothing is parsed for it."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": file_entry(raw[name])["sha256"]}}
            for name in (MANIFEST, MODEL, GOLDEN)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"schema": SCHEMA},
    }


def _check_signatures(raw: dict[str, bytes], trust: Sequence[TrustedKey]) -> None:
    if verify(raw[SIGNATURES], trust) != _statement(raw):
        raise SignatureRefused(
            "The signatures are not of these files: the release was changed; fetch it again."
        )


def _check_expiry(manifest: Manifest, now: datetime | None) -> None:
    if (now or datetime.now(UTC)) >= expiry(manifest):
        raise BundleRefused(f"The release expired at {manifest['expires']}; fetch a newer one.")


def _parse(raw: dict[str, bytes]) -> Bundle:
    try:
        manifest = check_manifest(parse_canonical(raw[MANIFEST]))
    except ValueError as error:
        raise BundleRefused(f"{MANIFEST} is not to be read: {error}.") from error
    files = {name: raw[name] for name in (MODEL, GOLDEN)}
    for name, data in files.items():
        if manifest["files"][name] != file_entry(data):
            raise BundleRefused(f"{name} does not have the size and SHA-256 that the manifest says.")
    return Bundle(manifest, files)


def _read_raw(path: Path) -> dict[str, bytes]:
    """The four files as they are, unverified, within their limits."""
    if os.path.isdir(path):
        return _read_folder(path)
    return _files_of(read_bounded(path, TAR_LIMIT_BYTES, refusal=BundleRefused), str(path))


def _files_of(tar: bytes, name: str) -> dict[str, bytes]:
    try:
        return files_of(tar, LIMITS_BYTES)
    except ValueError as error:
        raise BundleRefused(f"{name} is no bundle: {error}; fetch the release again.") from error


def _verified(raw: dict[str, bytes], trust: Sequence[TrustedKey], now: datetime | None) -> Bundle:
    _check_signatures(raw, trust)
    bundle = _parse(raw)
    _check_expiry(bundle.manifest, now)
    return bundle


def _read_folder(directory: Path) -> dict[str, bytes]:
    try:
        names = set(os.listdir(directory))
    except OSError as error:
        raise BundleRefused(f"{directory} cannot be read: {error.strerror}.") from error
    if wrong := sorted(names ^ set(LIMITS_BYTES)):
        raise BundleRefused(
            f"{directory} is no bundle: missing or unknown {', '.join(map(ascii, wrong[:5]))}."
        )
    return {
        name: read_bounded(directory / name, limit, refusal=BundleRefused, follow_links=False)
        for name, limit in LIMITS_BYTES.items()
    }


def _write_folder(directory: Path, raw: dict[str, bytes]) -> None:
    """Write all files beside `directory` and rename once: nobody sees half a bundle."""
    draft = directory.parent / f".draft-{secrets.token_hex(8)}"
    try:
        draft.mkdir()
        for name, data in raw.items():
            write_atomically(draft / name, data)
        draft.rename(directory)
        sync_folder(directory.parent)
    except OSError as error:
        raise refused_output(directory, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
