"""DICOM in: what a viewer would show of an image, as 8-bit grey or RGB.

Grey: modality LUT or rescale, then the first VOI LUT or window (PS3.3 C.11.1, C.11.2), then MONOCHROME1
inverted. Without a window, 8-bit pixels stay as they are and deeper ones are stretched between their
0.5th and 99.5th percentile. Colour: YBR and PALETTE COLOR become RGB (PS3.3 C.7.6.3.1.2).
Windows that stand in the functional groups of enhanced multi-frame images are not applied.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from fedward.client.edge.jpeg_sizes import coded_size
from fedward.client.edge.limits import check_size
from fedward.common.errors import ImageRefused

Floats = npt.NDArray[np.float64]
Pictures = npt.NDArray[np.uint8]
_PREAMBLE_BYTES = 128
# Without a preamble: an element of group 0002 or 0008, little or big endian.
_BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x02\x00", b"\x00\x08\x00")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SPREAD_PERCENTILES = (0.5, 99.5)
_CAUSE_LETTERS = 160  # decoders give theirs over many lines
_FAR = 1e15  # beyond any window's edge
_SMALLEST_SPREAD = 1e-12  # an image of one value is shown black, not divided by zero
_CODED_SLACK_BYTES = 1 << 16  # headers, tables and comments of a compressed frame
_ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


def is_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file look like DICOM."""
    return start[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM" or start.startswith(_BARE_STARTS)


def read_dicom(data: bytes) -> Pictures:
    """The frames of a DICOM file, as uint8 (frames, height, width, channels), channels 1 or 3.

    Raises:
        ImageRefused: damaged, truncated, too large, or without pixels.
    """
    try:
        return _frames_of(_dataset(data))
    except ImageRefused:
        raise
    except Exception as error:  # pydicom and its decoders raise whatever a damaged file leads them to
        cause = " ".join(str(error).split())[:_CAUSE_LETTERS]
        raise ImageRefused(f"Its DICOM is damaged or cut short ({type(error).__name__}: {cause}).") from error


def _dataset(data: bytes) -> Dataset:
    """The data set, with its size checked before a pixel is decoded."""
    if DeflatedExplicitVRLittleEndian.encode() in data:
        # pydicom would inflate the whole of it at once, whatever its size.
        raise ImageRefused("Deflated DICOM is not read; send it in another transfer syntax.")
    dataset = dcmread(io.BytesIO(data), force=True)  # `is_dicom` has looked already
    if not any(name in dataset for name in _PIXELS):
        raise ImageRefused("Its DICOM holds no image.")
    return dataset


def _frames_of(dataset: Dataset) -> Pictures:
    frames, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    samples, kind = int(dataset.get("SamplesPerPixel", 1)), dataset.PhotometricInterpretation
    check_size(frames, rows, columns, samples)
    if (samples, kind in _ONE_SAMPLE) not in ((1, True), (3, False)):
        raise ImageRefused(f"DICOM of {samples} samples of {kind!a} is not read.")
    _check_coded_sizes(dataset, frames, rows, columns)
    pixels = pixel_array(dataset)  # YBR becomes RGB here
    if pixels.size != frames * rows * columns * samples:
        raise ImageRefused("Its DICOM holds other pixels than it says.")
    if kind == "PALETTE COLOR":
        bits = dataset.RedPaletteColorLookupTableDescriptor[2]
        coloured = apply_color_lut(pixels, dataset)[..., :3]
        return _to_eight_bits(coloured, bits).reshape(frames, rows, columns, 3)
    if samples == 3:
        return _to_eight_bits(pixels, dataset.BitsStored).reshape(frames, rows, columns, 3)
    return _grey(pixels.reshape(frames, rows, columns), dataset)[..., None]


def _check_coded_sizes(dataset: Dataset, frames: int, rows: int, columns: int) -> None:
    """Compressed frames must say Rows x Columns, and not be larger than twice what they decode to."""
    if "PixelData" not in dataset or not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    raw_bytes = rows * columns * int(dataset.get("SamplesPerPixel", 1)) * int(dataset.BitsAllocated) // 8
    # Run lengths say no size, but expand 64 times at most.
    is_run_length = dataset.file_meta.TransferSyntaxUID == RLELossless
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        is_sized = is_run_length or coded_size(frame) == (rows, columns)
        if not is_sized or len(frame) > 2 * raw_bytes + _CODED_SLACK_BYTES:
            raise ImageRefused("A compressed frame of its DICOM has another size than it says.")


def _to_eight_bits(pixels: npt.NDArray[Any], bits: int) -> Pictures:
    if pixels.dtype == np.uint8 and bits == 8:
        return pixels
    return _to_bytes(pixels / float(2**bits - 1))


def _to_bytes(shares: Floats) -> Pictures:
    """0 to 1 as 0 to 255; what lies outside is clipped."""
    return np.asarray(np.rint(shares.clip(0, 1) * 255), dtype=np.uint8)


def _grey(frames: npt.NDArray[Any], dataset: Dataset) -> Pictures:
    if not np.isfinite(frames).all():
        raise ImageRefused("Its DICOM holds pixels that are no numbers.")
    show = _voi(frames, dataset)
    grey = np.stack([_to_bytes(show(apply_modality_lut(frame, dataset))) for frame in frames])
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _voi(frames: npt.NDArray[Any], dataset: Dataset) -> Callable[[npt.NDArray[Any]], Floats]:
    """What brings the values after the modality LUT to shares of full brightness."""
    if dataset.get("VOILUTSequence"):
        return _lookup(dataset)
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        low, high = apply_windowing(np.array([-_FAR, _FAR]), dataset)
        return lambda values: (apply_windowing(values, dataset) - low) / (high - low)
    low, high = _spread(frames, dataset)
    return lambda values: (values.astype(np.float64) - low) / max(high - low, _SMALLEST_SPREAD)


def _lookup(dataset: Dataset) -> Callable[[npt.NDArray[Any]], Floats]:
    """The first VOI LUT (PS3.3 C.11.2.1.1).

    pydicom's own keeps the index in the type of the entries, which wraps where more than 256 entries have
    8 bits, as in many a CR image.
    """
    item = dataset.VOILUTSequence[0]
    count, first, bits = item.LUTDescriptor
    data = item.LUTData
    if isinstance(data, bytes):
        little = dataset.original_encoding[1]
        data = np.frombuffer(data, np.uint8 if len(data) == count else f"{'<' if little else '>'}u2")
    entries = np.asarray(data, dtype=np.float64).ravel()[: count or 1 << 16] / (2**bits - 1)
    return lambda values: entries[(np.rint(values).astype(np.int64) - first).clip(0, len(entries) - 1)]


def _spread(frames: npt.NDArray[Any], dataset: Dataset) -> Floats:
    """The darkest and the brightest value, after the modality LUT, of an image that brings no window."""
    bits = int(dataset.get("BitsStored", 64))
    if bits <= 8 and not dataset.PixelRepresentation:
        ends = np.array([0, 2**bits - 1])
    else:
        seen = frames[frames != dataset.get("PixelPaddingValue")]
        ends = np.percentile(seen if seen.size else frames, _SPREAD_PERCENTILES, method="nearest")
    return np.sort(apply_modality_lut(ends.astype(frames.dtype), dataset).astype(np.float64))
