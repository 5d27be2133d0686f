"""Which form of a release's graph is the fastest on this machine: measured once, and remembered.

A form that does not reproduce the golden outputs, within what the study signed for it, is not used. What was
found stands in ``edge-forms.json`` of the user's own folder, by the model's SHA-256, the version of
onnxruntime and the kind of machine. It only ever chooses among forms that are checked again when the release
is opened, so that a damaged or foreign file costs speed and nothing else.
"""

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

from fedward.client.edge.runtime import EdgeModel
from fedward.common.bundle import Bundle, read_bundle
from fedward.common.errors import BundleRefused, PayloadRefused
from fedward.common.files import (
    canonical_json,
    config_folder,
    make_folder,
    parse_canonical,
    read_bounded,
    write_atomically,
)
from fedward.common.golden import read_golden
from fedward.common.graph_forms import FORMS, FP32
from fedward.common.manifest import GOLDEN, Manifest
from fedward.common.trust import TrustedKey

CHOICES = "edge-forms.json"
_LIMIT_BYTES = 1 << 20
_MOST_CHOICES = 1000
_WARM_UP = 3  # runs that are not counted


@dataclass(frozen=True)
class Tried:
    """A form, its median milliseconds for one image, or why it is not used."""

    form: str
    milliseconds: float | None
    refusal: str | None = None


def tune(bundle: Bundle, seconds: float) -> list[Tried]:
    """Every form measured for about so many seconds, all taking turns, the fastest first; it is remembered.

    Raises:
        BundleRefused, GoldenRefused: as `EdgeModel.of` of the release as it was shipped.
    """
    models = {FP32: EdgeModel.of(bundle)}
    refused = []
    for form in FORMS[1:]:
        try:
            models[form] = EdgeModel.of(bundle, form=form)
        except BundleRefused as refusal:  # GoldenRefused is one, too
            refused.append(Tried(form, None, str(refusal)))
    image = read_golden(bundle.files[GOLDEN]).inputs[:1]
    measured = [Tried(form, spent) for form, spent in _medians(models, image, seconds).items()]
    found = sorted(measured, key=lambda one: one.milliseconds or 0.0)
    _remember(bundle.manifest, found[0].form)
    return found + refused


def open_tuned(path: Path, trust: Sequence[TrustedKey]) -> EdgeModel:
    """The release in the form that was found to be the fastest here, or as it was shipped.

    Raises:
        SignatureRefused, BundleRefused, GoldenRefused: as `EdgeModel.open`.
    """
    bundle = read_bundle(path, trust)
    form = _choices().get(_key(bundle.manifest), FP32)
    if form != FP32:
        try:
            return EdgeModel.of(bundle, form=form)
        except BundleRefused:  # something on this machine changed since; fp32 has a check of its own
            pass
    return EdgeModel.of(bundle)


def _medians(models: dict[str, EdgeModel], image: np.ndarray, seconds: float) -> dict[str, float]:
    """Milliseconds of one image; turn by turn, so that whatever else runs here slows all alike."""
    times: dict[str, list[float]] = {form: [] for form in models}
    until, turn = time.monotonic() + seconds * len(models), 0
    while turn <= _WARM_UP or time.monotonic() < until:
        for form, model in models.items():
            (answer,) = model.answers(image)
            if turn >= _WARM_UP:
                times[form].append(1000 * answer.seconds)
        turn += 1
    return {form: median(own) for form, own in times.items()}


def _key(manifest: Manifest) -> str:
    named = [manifest["model"]["sha256"], ort.__version__, platform.machine(), platform.node()]
    return hashlib.sha256(canonical_json(named)).hexdigest()


def _choices() -> dict[str, str]:
    """What is remembered; of a file that is not what it must be, nothing."""
    try:
        found = parse_canonical(read_bounded(config_folder() / CHOICES, _LIMIT_BYTES))
    except (PayloadRefused, ValueError):
        return {}
    is_known = isinstance(found, dict) and all(form in FORMS for form in found.values())
    return found if is_known else {}


def _remember(manifest: Manifest, form: str) -> None:
    key = _key(manifest)
    others = [(name, one) for name, one in _choices().items() if name != key]
    make_folder(config_folder(), 0o700)
    write_atomically(config_folder() / CHOICES, canonical_json(dict([*others, (key, form)][-_MOST_CHOICES:])))
