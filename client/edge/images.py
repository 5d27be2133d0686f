"""Pictures in, as uint8 (n, height, width, channels), and what a release wants of them, as float32 NCHW.

A file's kind is told by its content, never by its name.
"""

import io
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fedward.client.edge.dicom import is_dicom, read_dicom
from fedward.client.edge.limits import FILE_LIMIT_BYTES, check_size
from fedward.client.edge.picture_sets import read_picture_set, split_selection
from fedward.common.errors import ImageRefused
from fedward.common.files import open_regular

Pictures = npt.NDArray[np.uint8]
_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_SNIFFED_BYTES = 132
_LUMA = np.array([299, 587, 114])  # ITU-R BT.601, in thousandths


def read_image(path: str | os.PathLike[str]) -> Pictures:
    """The images in a file: PNG, JPEG, DICOM, or an npz of uint8 images.

    Args:
        path: the file; for an npz also `file.npz:array`, `file.npz:array[3]` or `file.npz:array[3:9]`.

    Returns:
        uint8 (n, height, width, channels), channels 1 or 3. 16-bit grey is brought to 8 bits; DICOM is
        brought to what a viewer would show (see `fedward.client.edge.dicom`).

    Raises:
        ImageRefused: unreadable, truncated, of another kind, too large, or without pixels.
    """
    file_name, selection = split_selection(os.fspath(path))
    with open_regular(Path(file_name), refusal=ImageRefused) as file:
        try:
            return _read(file, selection)
        except ImageRefused as refusal:
            raise ImageRefused(f"{file_name}: {refusal}") from refusal
        except OSError as error:
            raise ImageRefused(f"{file_name}: It cannot be read ({error.strerror or error}).") from error


def prepare(images: Pictures, preprocessing: dict[str, Any]) -> npt.NDArray[np.float32]:
    """What the model takes: resized, in its channels, and normalised.

    Each image is stretched to the release's size; one that has it already keeps every pixel.

    Args:
        images: uint8 (n, height, width, channels), channels 1 or 3.
        preprocessing: the manifest's: channels, height, width, and mean and std a channel.

    Returns:
        float32 (n, channels, height, width): (pixel / 255 - mean) / std.
    """
    size = (preprocessing["height"], preprocessing["width"])
    shown = _in_channels(images, preprocessing["channels"])
    if shown.shape[1:3] != size:
        shown = _resized(shown, *size)
    mean, std = (np.asarray(preprocessing[key], dtype=np.float32) for key in ("mean", "std"))
    scaled = (shown.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _read(file: BinaryIO, selection: str | None) -> Pictures:
    start = file.read(_SNIFFED_BYTES)
    file.seek(0)
    if start.startswith(_ZIP_STARTS):
        return read_picture_set(file, selection)
    if selection is not None:
        raise ImageRefused("Only an npz has arrays to choose from.")
    data = file.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise ImageRefused(f"It is larger than the {FILE_LIMIT_BYTES} bytes allowed.")
    if start.startswith(_PICTURE_STARTS):
        return _read_picture(data)
    if is_dicom(start):
        return read_dicom(data)
    raise ImageRefused("It is neither PNG, JPEG, DICOM nor npz." if data else "It is empty.")


def _read_picture(data: bytes) -> Pictures:
    try:
        # The warning is Pillow's, at a third of our own limit; ours is checked before anything is decoded.
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        check_size(1, picture.height, picture.width, len(picture.getbands()))
        if getattr(picture, "n_frames", 1) > 1:
            raise ImageRefused("It is an animation; send one picture.")
        return _pixels(ImageOps.exif_transpose(picture))[None]
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ImageRefused(f"It is damaged or cut short ({error}).") from error


def _pixels(picture: Image.Image) -> Pictures:
    """One picture as uint8 (height, width, channels); transparency is left out."""
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        # Pillow's mode I holds a 16-bit PNG too. 65535 = 255 * 257.
        return ((wide.clip(0, 65535) + 128) // 257).astype(np.uint8)[..., None]
    if picture.mode in ("1", "L", "LA"):
        return np.asarray(picture.convert("L"))[..., None]
    return np.asarray(picture.convert("RGB"))


def _in_channels(images: Pictures, channels: int) -> Pictures:
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    return np.asarray((images @ _LUMA + 500) // 1000, dtype=np.uint8)[..., None]


def _resized(images: Pictures, height: int, width: int) -> Pictures:
    """Bilinear; where it shrinks, Pillow widens the filter so that nothing aliases."""
    resized = [
        np.asarray(
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for image in images
    ]
    return np.stack(resized).reshape(len(images), height, width, images.shape[3])
