"""A patch: a release in a few per cent of its bytes, for whoever holds the release before it.

One frame (`fedward.common.framing`) of

    head.json               canonical JSON: schema, SHA-256 of the base's tar and of the result's, and the
                            bytes of each of the result's papers
    papers                  manifest, golden outputs and signatures, in that order, one zstd frame with the
                            base's own as its dictionary (`zstd --patch-from`)
    gaps, values, numbers   the model's difference (`fedward.common.code_changes`)

Law: `apply_patch(base, make_patch(base, result)) == result`, byte for byte; and `apply_patch` gives the tar
of the SHA-256 that the patch names, or refuses. A patch is not signed and proves nothing: what it makes is
verified like a release that came whole (`fedward.common.bundle.read_tar`).

The model is compressed again where the patch is applied. That gives the result's bytes with the release of
zstd that made them; with another it may not, and then the patch is refused and the whole release is needed.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import zstandard

from fedward.common.archive import files_of, tar_of
from fedward.common.bundle import LIMITS_BYTES, MANIFEST, SIGNATURES, model_bytes, unverified_tar
from fedward.common.code_changes import GAPS, NUMBERS, VALUES, difference, restored
from fedward.common.compression import WINDOW_LIMIT_BYTES, compressed, family_of, opened
from fedward.common.errors import PatchRefused, PayloadRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.framing import MOST_FRAME_BYTES, pack, unpack
from fedward.common.manifest import GOLDEN, MODEL, check_manifest

SCHEMA = "fedward.patch/1"
PATCH_LIMIT_BYTES = MOST_FRAME_BYTES
_HEAD, _PAPERS = "head.json", "papers"
_PARTS = {_HEAD, _PAPERS, GAPS, VALUES, NUMBERS}
_IN_PAPERS = (MANIFEST, GOLDEN, SIGNATURES)
_LEVEL = 19


def make_patch(base: bytes, result: bytes) -> bytes:
    """The patch that makes the tar `result` of the tar `base`; it was applied once and gave it.

    Raises:
        BundleRefused: one of them is no bundle.
        PatchRefused: they are of different students, or zstd does not compress the model here as it was.
    """
    models = [model_bytes(unverified_tar(tar)) for tar in (base, result)]
    old, new = (files_of(tar, LIMITS_BYTES) for tar in (base, result))
    try:
        changes = difference(*models)
    except ValueError as error:
        raise PatchRefused(
            f"There is no patch between these releases: {error}; send the whole release."
        ) from error
    head = {
        "schema": SCHEMA,
        "base": _digest(base),
        "result": _digest(result),
        "papers": {name: len(new[name]) for name in _IN_PAPERS},
    }
    papers = _compressed_papers(_papers(new), _papers(old))
    patch = pack({_HEAD: canonical_json(head), _PAPERS: papers, **changes})
    apply_patch(base, patch)
    return patch


def apply_patch(base: bytes, patch: bytes) -> bytes:
    """The tar that `patch` names, made of the tar `base`; it still has to be verified.

    Raises:
        BundleRefused: `base` is no bundle.
        PatchRefused: damaged, cut, hostile, for another base, or it does not give what it names.
    """
    try:
        return _applied(base, patch)
    except PayloadRefused as error:
        raise PatchRefused(
            "The patch is cut, or none at all: fetch it again, or the whole release."
        ) from error
    except ValueError as error:
        raise PatchRefused(
            f"The patch is damaged ({error}): fetch it again, or the whole release."
        ) from error


def _applied(base: bytes, patch: bytes) -> bytes:
    parts = {name: bytes(part) for name, part in unpack(patch).items()}
    if set(parts) != _PARTS:
        raise ValueError("it does not have a patch's parts")
    head = _head(parts[_HEAD])
    if _digest(base) != head["base"]:
        raise PatchRefused(
            f"The patch is for another release than this one (its base begins with {head['base'][:12]}): "
            "fetch the whole release."
        )
    model = model_bytes(unverified_tar(base))
    papers = _opened_papers(parts[_PAPERS], _papers(files_of(base, LIMITS_BYTES)), head["papers"])
    manifest = check_manifest(parse_canonical(papers[MANIFEST]))
    frame = compressed(restored(model, parts), family_of(manifest["student"]))
    files = {**papers, MODEL: frame}
    result = tar_of({name: files[name] for name in LIMITS_BYTES})
    if _digest(result) != head["result"]:
        raise PatchRefused("The patch does not give the release that it names: fetch the whole release.")
    return result


def _head(data: bytes) -> dict[str, Any]:
    head = parse_canonical(data)
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    if set(head) != {"schema", "base", "result", "papers"} or not isinstance(head["base"], str):
        raise ValueError("its head is not a patch's")
    sizes = head["papers"]
    if not isinstance(sizes, dict) or set(sizes) != set(_IN_PAPERS):
        raise ValueError("its papers are not a release's")
    if not all(type(size) is int and 0 <= size <= LIMITS_BYTES[name] for name, size in sizes.items()):
        raise ValueError("one of its papers is larger than allowed")
    return head


def _papers(files: Mapping[str, bytes]) -> bytes:
    return b"".join(files[name] for name in _IN_PAPERS)


def _compressed_papers(papers: bytes, dictionary: bytes) -> bytes:
    # A window that both fit in, or zstd would not look back to the dictionary's begin.
    window = min((len(papers) + len(dictionary)).bit_length(), WINDOW_LIMIT_BYTES.bit_length() - 1)
    settings = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=max(10, window))
    return zstandard.ZstdCompressor(
        dict_data=_as_dictionary(dictionary), compression_params=settings
    ).compress(papers)


def _opened_papers(frame: bytes, dictionary: bytes, sizes: Mapping[str, int]) -> dict[str, bytes]:
    data = opened(frame, sum(sizes.values()), _as_dictionary(dictionary))
    papers, start = {}, 0
    for name in _IN_PAPERS:
        papers[name] = data[start : start + sizes[name]]
        start += sizes[name]
    return papers


def _as_dictionary(data: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
