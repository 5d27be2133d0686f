"""A verified release, ready to answer: onnxruntime, one thread, and nothing of the training stack."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fedward.common.bundle import Bundle, model_bytes, read_bundle
from fedward.common.errors import BundleRefused, GoldenRefused, ImageRefused, SettingRefused
from fedward.common.golden import Golden, read_golden
from fedward.common.graph_forms import FP32, in_form
from fedward.common.manifest import GOLDEN, Manifest
from fedward.common.onnx_options import session_options
from fedward.common.trust import TrustedKey

Batch = npt.NDArray[np.float32]
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Answer:
    """One image's logits, float32 (classes,), and the seconds that the model took for it."""

    logits: Batch
    seconds: float


class EdgeModel:
    """A release that was verified and that reproduces its golden outputs on this machine."""

    def __init__(self, manifest: Manifest, session: ort.InferenceSession, form: str) -> None:
        """Take what `open` has verified; use `open`."""
        self.manifest, self.form = manifest, form
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    @classmethod
    def open(
        cls,
        path: Path,
        trust: Sequence[TrustedKey],
        providers: Sequence[str] = ("CPUExecutionProvider",),
        now: datetime | None = None,
        form: str = FP32,
    ) -> "EdgeModel":
        """Verify a bundle, then decompress it, then run its golden inputs.

        Args:
            path: the bundle, a directory or a tar.
            trust: the keys that may have signed it.
            providers: onnxruntime's execution providers, the preferred one first.
            now: the time to compare with the release's expiry; None means this machine's clock.
            form: how the graph computes, one of `fedward.common.graph_forms.FORMS`.

        Raises:
            SignatureRefused: no trusted key signed exactly this.
            BundleRefused: incomplete, malformed, expired, or no model that onnxruntime runs.
            SettingRefused: a provider that this machine does not have.
            GoldenRefused: the model's outputs here are not those it was signed with, or not in that form.
        """
        return cls.of(read_bundle(path, trust, now), providers, form)

    @classmethod
    def of(
        cls, bundle: Bundle, providers: Sequence[str] = ("CPUExecutionProvider",), form: str = FP32
    ) -> "EdgeModel":
        """`open` for a bundle that was read, and so verified, already; raises what comes after that."""
        model = cls(bundle.manifest, _session(_in_form(model_bytes(bundle), form), providers), form)
        model._check_golden(read_golden(bundle.files[GOLDEN]))
        return model

    def predict(self, images: Batch) -> Batch:
        """The logits, float32 (n, classes), of float32 images (n, channels, height, width).

        Raises:
            ImageRefused: images of another shape or type, or with values that are not finite.
            BundleRefused: the model fails on them, or answers with something else than finite logits.
        """
        self._check_images(images)
        if not len(images):
            return np.empty((0, len(self.manifest["classes"])), dtype=np.float32)
        if self.form == FP32:
            return self._run(images)
        # In int8 the range is a batch's own: no image's answer is to depend on its company.
        return np.concatenate([self._run(images[row : row + 1]) for row in range(len(images))])

    def _run(self, images: Batch) -> Batch:
        try:
            (logits,) = self._session.run([self._output], {self._input: images})
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise BundleRefused(f"The release's model fails on this machine ({_line(error)}).") from error
        if logits.shape != (len(images), len(self.manifest["classes"])) or not np.isfinite(logits).all():
            raise BundleRefused("The release's model does not answer with one finite number a class.")
        return np.asarray(logits, dtype=np.float32)

    def answers(self, images: Batch) -> list[Answer]:
        """One answer an image, each run and timed alone, as beside a scanner.

        Raises:
            ImageRefused, BundleRefused: as `predict`.
        """
        return [self._timed(images[row : row + 1]) for row in range(len(images))]

    def _timed(self, image: Batch) -> Answer:
        start = time.perf_counter()
        logits = self.predict(image)
        return Answer(logits[0], time.perf_counter() - start)

    def _check_images(self, images: Batch) -> None:
        wanted = tuple(self.manifest["preprocessing"][key] for key in ("channels", "height", "width"))
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != wanted:
            raise ImageRefused(
                f"The release takes float32 images of {wanted}, not {images.dtype} {images.shape}."
            )
        if not np.isfinite(images).all():
            raise ImageRefused("An image has values that are no finite numbers.")

    def _check_golden(self, golden: Golden) -> None:
        tolerance = golden.tolerance if self.form == FP32 else golden.form_tolerance
        if tolerance is None:
            raise GoldenRefused(
                "The release was not found to decide alike in int8: use it as it was shipped."
            )
        try:
            logits = self.predict(golden.inputs)
        except ImageRefused as refusal:
            raise GoldenRefused(f"The golden inputs are not for this release: {refusal}") from refusal
        if logits.shape != golden.logits.shape:
            raise GoldenRefused("The golden logits are not of this release's classes.")
        distance = float(np.abs(logits - golden.logits).max())
        if distance > tolerance:
            raise GoldenRefused(
                f"The model's golden outputs differ by {distance:.3g} here (allowed {tolerance:.3g}): "
                "do not use it on this machine, and tell the study."
            )


def _in_form(model: bytes, form: str) -> bytes:
    try:
        return in_form(model, form)
    except ValueError as error:
        raise BundleRefused(
            f"The release's model cannot be brought into the form {form}: {error}."
        ) from error


def _session(model: bytes, providers: Sequence[str]) -> ort.InferenceSession:
    # Asked for one that is missing, onnxruntime only warns and takes the CPU.
    _check_providers(providers, ort.get_available_providers())
    options = session_options()
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # as in `predict`
        raise BundleRefused(f"The release's model does not load ({_line(error)}).") from error
    _check_providers(providers, session.get_providers())
    if len(session.get_inputs()) != 1 or [output.name for output in session.get_outputs()] != ["logits"]:
        raise BundleRefused("The release's model must have one input and one output, logits.")
    return session


def _check_providers(wanted: Sequence[str], there: Sequence[str]) -> None:
    if not wanted or set(wanted) - set(there):
        raise SettingRefused(
            f"This machine's providers are {', '.join(there)}, not {', '.join(wanted) or 'none'}."
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
