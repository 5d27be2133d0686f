"""What a release says of itself: the manifest's fields, checked from one table, and its digest."""

import copy
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fedward.common.digests import is_digest
from fedward.common.errors import BundleRefused
from fedward.common.files import canonical_json

SCHEMA = "fedward.release/1"
MODEL = "model.onnx.zst"
GOLDEN = "golden.npz"
MODEL_RAW_LIMIT_BYTES = 1 << 30
_HUGE = 1e300
_DATE = "%Y-%m-%dT%H:%M:%SZ"
# What may differ between two runs that gave the same model, and so is no part of its digest.
_NOT_IN_DIGEST = ("provenance", "expires")

Manifest = dict[str, Any]
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 10_000


def _number(value: Any) -> bool:
    # Compared, not converted: JSON has integers that no float holds. NaN compares false.
    return isinstance(value, int | float) and not isinstance(value, bool) and -_HUGE < value < _HUGE


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _not_negative(value: Any) -> bool:
    return _number(value) and value >= 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _anything(value: Any) -> bool:
    return isinstance(value, dict)


def _date(value: Any) -> bool:
    # strptime alone would take digits of other scripts and missing zeros.
    return isinstance(value, str) and bool(re.fullmatch("[0-9-]{10}T[0-9:]{8}Z", value)) and _parses(value)


def _parses(value: str) -> bool:
    try:
        datetime.strptime(value, _DATE)
    except ValueError:
        return False
    return True


def _integer(low: int, high: int = 2**53) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _one_of(*names: str | int) -> Check:
    return lambda value: type(value) in (str, int) and value in names


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check, low: int = 0, high: int = 10_000) -> Check:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(check, value))


def _object(fields: dict[str, Check]) -> Check:
    return lambda value: (
        isinstance(value, dict) and set(value) == set(fields) and not _first_wrong(value, fields)
    )


_FILE = _object({"sha256": is_digest, "size": _integer(1)})
_SITE = _object({"name": _text, "epsilon": _or_null(_not_negative), "delta": _or_null(_not_negative)})

# Objects that are checked by `_anything` are open: producers add to them. All others are exact.
_FIELDS: dict[str, Check] = {
    "schema": _one_of(SCHEMA),
    "study": _text,
    "student": _text,
    "version": _integer(1),
    "parent": _or_null(is_digest),
    "dataset": _text,
    "task": _one_of("binary", "multi-class", "multi-label"),
    "classes": _list_of(_text, low=1),
    "preprocessing": _object(
        {
            "channels": _one_of(1, 3),
            "height": _integer(1, 4096),
            "width": _integer(1, 4096),
            "mean": _list_of(_number, low=1, high=3),
            "std": _list_of(_positive, low=1, high=3),
        }
    ),
    "decision": _object(
        {
            "rule": _one_of("argmax", "threshold"),
            "thresholds": _list_of(_number),
            "prior": _text,
            "source": _text,
        }
    ),
    "calibration": lambda v: _anything(v) and "temperature" in v and _or_null(_positive)(v["temperature"]),
    "privacy": _object(
        {"unit": _text, "sites": _list_of(_SITE), "reproducible_noise": _flag, "statement": _text}
    ),
    "metrics": _anything,
    "model": _object(
        {"format": _one_of("onnx+zstd"), "sha256": is_digest, "size": _integer(1, MODEL_RAW_LIMIT_BYTES)}
    ),
    "files": _object({MODEL: _FILE, GOLDEN: _FILE}),
    "provenance": _anything,
    "expires": _date,
}


def check_manifest(manifest: Any) -> Manifest:
    """The manifest itself, once every field is known to be there and of its type.

    Raises:
        BundleRefused: another schema, a missing, unknown or ill-typed field, or fields that contradict
            each other.
    """
    if not isinstance(manifest, dict):
        raise BundleRefused("The manifest is not a JSON object.")
    if manifest.get("schema") != SCHEMA:
        raise BundleRefused(
            f"The manifest's schema is not {SCHEMA}: install a version of fedward that reads this release."
        )
    if strange := sorted(set(manifest) ^ set(_FIELDS)):
        raise BundleRefused(
            f"The manifest's fields are missing or unknown: {', '.join(map(ascii, strange))}."
        )
    if wrong := _first_wrong(manifest, _FIELDS):
        raise BundleRefused(f"The manifest's field {wrong} is not what {SCHEMA} says.")
    _check_agreement(manifest)
    return manifest


def expiry(manifest: Manifest) -> datetime:
    """The moment, in UTC, from which a checked manifest is no longer to be used."""
    return datetime.strptime(manifest["expires"], _DATE).replace(tzinfo=UTC)


def release_digest(manifest: Manifest) -> str:
    """SHA-256 of what the release is, in hex: the same model by the same rules has the same digest.

    "provenance" (engine, host, paths, times, tool versions) and "expires" are left out; the model and the
    golden outputs are in it by their own SHA-256 under "files".
    """
    kept = {key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST}
    return hashlib.sha256(canonical_json(kept)).hexdigest()


def with_files(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    """A copy of `manifest` whose "files" says the SHA-256 and size, in bytes, of `files`."""
    filled = copy.deepcopy(manifest)
    filled["files"] = {name: file_entry(data) for name, data in files.items()}
    return filled


def file_entry(data: bytes) -> dict[str, str | int]:
    """A file's SHA-256, in hex, and size in bytes."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _first_wrong(value: dict[str, Any], fields: dict[str, Check]) -> str | None:
    return next((name for name, check in fields.items() if not check(value[name])), None)


def _check_agreement(manifest: Manifest) -> None:
    """Fields that are right each alone must also fit together."""
    task, classes = manifest["task"], len(manifest["classes"])
    shown, decision = manifest["preprocessing"], manifest["decision"]
    thresholds = decision["thresholds"]
    wanted = 1 if task == "binary" else classes
    is_argmax = decision["rule"] == "argmax"
    agreements = {
        "classes must differ": len(set(manifest["classes"])) == classes,
        "the binary task has two classes": task != "binary" or classes == 2,
        "the multi-class task has at least two classes": task != "multi-class" or classes >= 2,
        "mean and std have one number a channel": len(shown["mean"])
        == len(shown["std"])
        == shown["channels"],
        "argmax is no rule for multi-label": not (is_argmax and task == "multi-label"),
        "argmax has thresholds of 0": not is_argmax or not any(thresholds),
        f"this task has {wanted} thresholds": len(thresholds) == wanted or (is_argmax and not thresholds),
    }
    if broken := [rule for rule, holds in agreements.items() if not holds]:
        raise BundleRefused(f"The manifest contradicts itself: {'; '.join(broken)}.")
