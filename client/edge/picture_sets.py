"""Images out of an npz: MedMNIST's layout, or any one array of uint8 images."""

import os
import re
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fedward.client.edge.limits import TOTAL_LIMIT_PIXELS, check_size
from fedward.common.errors import ImageRefused
from fedward.common.npz import ArrayHeader, array_headers, read_rows

_SUFFIX = re.compile(r"(?P<file>.+):(?P<array>\w+(\[\d{1,12}(:\d{1,12})?\])?)", re.DOTALL | re.ASCII)
_SELECTION = re.compile(r"(?P<array>\w+)(\[(?P<first>\d+)(:(?P<end>\d+))?\])?", re.ASCII)
_DEFAULT_ARRAY = "test_images"


def split_selection(path: str) -> tuple[str, str | None]:
    """A path and what follows its last colon, unless a file has the whole of it as its name."""
    parts = _SUFFIX.fullmatch(path)
    if parts is None or os.path.lexists(path):
        return path, None
    return parts["file"], parts["array"]


def read_picture_set(file: BinaryIO, selection: str | None) -> npt.NDArray[np.uint8]:
    """The images of one array, as uint8 (n, height, width, channels).

    Args:
        file: an npz.
        selection: `array`, `array[3]` or `array[3:9]`; None takes all of `test_images`, or the only
            array of uint8 images.

    Raises:
        ImageRefused: no such array or row, not uint8 images, too many, or a damaged file.
    """
    try:
        headers = array_headers(file)
        name, rows = _chosen(selection, headers)
        header = headers[name]
        count, height, width, channels = _image_shape(header.shape, name)
        _check_type(header, name)
        if rows is not None and header.shape != (count, height, width, channels)[: len(header.shape)]:
            raise ImageRefused(f"The array {name} is one image: it has no rows to choose.")
        check_size(count if rows is None else rows[1] - rows[0], height, width, channels)
        images = read_rows(file, name, TOTAL_LIMIT_PIXELS, rows)
    except ValueError as error:
        raise ImageRefused(f"It is no usable npz: {error}.") from error
    return images.reshape(-1, height, width, channels)


def _chosen(selection: str | None, headers: dict[str, ArrayHeader]) -> tuple[str, tuple[int, int] | None]:
    if selection is None:
        return _default(headers), None
    parts = _SELECTION.fullmatch(selection)
    if parts is None or parts["array"] not in headers:
        raise ImageRefused(f"It has no array {selection}, only {_listed(headers)}.")
    if parts["first"] is None:
        return parts["array"], None
    first = int(parts["first"])
    end = first + 1 if parts["end"] is None else int(parts["end"])
    if end <= first:
        raise ImageRefused(f"{selection} chooses no images.")
    return parts["array"], (first, end)


def _default(headers: dict[str, ArrayHeader]) -> str:
    if _DEFAULT_ARRAY in headers:
        return _DEFAULT_ARRAY
    images = [name for name, header in headers.items() if header.dtype == np.uint8 and len(header.shape) > 1]
    if len(images) != 1:
        raise ImageRefused(f"Choose one of its arrays by file.npz:array; it has {_listed(headers)}.")
    return images[0]


def _image_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int, int]:
    """(n, height, width, channels) of what is (h, w), (h, w, 1 or 3), (n, h, w) or (n, h, w, 1 or 3)."""
    is_coloured = len(shape) > 2 and shape[-1] in (1, 3)
    sides = shape if is_coloured else (*shape, 1)
    whole = sides if len(sides) == 4 else (1, *sides)
    if len(whole) != 4:
        raise ImageRefused(f"The array {name} of shape {shape} is not of images.")
    return whole[0], whole[1], whole[2], whole[3]


def _check_type(header: ArrayHeader, name: str) -> None:
    if header.dtype != np.uint8:
        raise ImageRefused(f"The array {name} must be uint8, not {header.dtype}.")


def _listed(headers: dict[str, ArrayHeader]) -> str:
    return ", ".join(ascii(name) for name in list(headers)[:20]) or "none"
