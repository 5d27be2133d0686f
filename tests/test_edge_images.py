"""Pictures come in as they are shown; what is no picture, or too large, is refused by name."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFile
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from fedward.client.edge import limits, picture_sets
from fedward.client.edge.images import prepare, read_image
from fedward.client.edge.jpeg_sizes import coded_size
from fedward.common.errors import ImageRefused

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
GREY = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]}
RGB = {"channels": 3, "height": 8, "width": 8, "mean": [0.0] * 3, "std": [1.0] * 3}


def _testfile(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def _dicom(tmp_path: Path, pixels: npt.NDArray[Any], **fields: Any) -> Path:
    """A plain DICOM image; `fields` overrides what is derived from `pixels`."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = fields.pop("syntax", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2")
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if pixels.ndim < 4 else pixels.shape[1:3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    path = tmp_path / "image"
    dataset.save_as(path, enforce_file_format=True)
    return path


# Pictures


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "no ending"])
def test_a_png_keeps_every_pixel_whatever_its_name(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name, format="PNG")
    assert np.array_equal(read_image(tmp_path / name), RAMP[None, ..., None])


def test_a_colour_png_keeps_every_pixel_and_leaves_transparency_out(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a", format="PNG")
    assert np.array_equal(read_image(tmp_path / "a"), pixels[None, ..., :3])


def test_16_bit_grey_is_brought_to_8_bits(tmp_path: Path) -> None:
    pixels = np.array([[0, 128, 129, 257], [32768, 65278, 65279, 65535]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a", format="PNG")
    assert read_image(tmp_path / "a")[0, ..., 0].tolist() == [[0, 0, 1, 1], [128, 254, 254, 255]]


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_other_png_modes_are_grey_or_rgb(tmp_path: Path, mode: str, channels: int) -> None:
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "a", format="PNG")
    assert read_image(tmp_path / "a").shape == (1, 8, 8, channels)


def test_a_jpeg_is_read_the_way_up_it_was_taken(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.repeat(RAMP, 2, axis=1)).save(tmp_path / "a", format="JPEG", exif=exif, quality=95)
    assert read_image(tmp_path / "a").shape == (1, 16, 8, 1)


def _png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(1 << 14, 1 << 13), (60_000, 60_000), (1 << 30, 1)])
def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise RuntimeError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    (tmp_path / "a").write_bytes(_png_of_size(*size))
    with pytest.raises(ImageRefused, match=r"larger than allowed|exceeds limit"):
        read_image(tmp_path / "a")


def _encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8])
def test_a_cut_picture_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    whole = _encoded(kind)
    (tmp_path / "a").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageRefused):
        read_image(tmp_path / "a")


@given(data=st.data())
def test_damage_is_refused_or_still_a_picture(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(_encoded(data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(whole)
    with contextlib.suppress(ImageRefused):
        assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + b"\0" * 200, b"text", b"\0" * 1000, b"II*\0" + b"\0" * 100]
)
def test_what_is_no_picture_is_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageRefused, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageRefused):
            read_image(path)


# npz


@pytest.fixture
def picture_set(tmp_path: Path) -> Path:
    images = np.random.default_rng(2).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    np.savez_compressed(
        tmp_path / "set.npz",
        test_images=images,
        train_images=images[..., 0],
        test_labels=np.zeros((10, 1), np.uint8),
        floats=np.zeros((2, 3, 3)),
    )
    return tmp_path / "set.npz"


def test_an_npz_gives_what_is_asked_for(picture_set: Path) -> None:
    images = np.load(picture_set)["test_images"]
    assert np.array_equal(read_image(picture_set), images)
    assert np.array_equal(read_image(f"{picture_set}:test_images"), images)
    assert np.array_equal(read_image(f"{picture_set}:test_images[3]"), images[3:4])
    assert np.array_equal(read_image(f"{picture_set}:test_images[2:6]"), images[2:6])
    assert np.array_equal(read_image(f"{picture_set}:train_images[9]"), images[9:10, ..., :1])


@pytest.mark.parametrize(
    "selection",
    ["val_images", "test_images[10]", "test_images[5:5]", "test_images[8:11]", "floats", "test_labels[0]"],
)
def test_what_an_npz_does_not_hold_is_refused(picture_set: Path, selection: str) -> None:
    with pytest.raises(ImageRefused, match=r"set\.npz"):
        read_image(f"{picture_set}:{selection}")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (1, 4, 5, 1)),
        ((4, 5, 3), (1, 4, 5, 3)),
        ((2, 4, 5), (2, 4, 5, 1)),
        ((2, 4, 5, 1), (2, 4, 5, 1)),
    ],
)
def test_a_single_array_is_taken_for_what_it_can_be(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "a", anything=np.zeros(shape, np.uint8))
    assert read_image(tmp_path / "a.npz").shape == expected


@pytest.mark.parametrize("shape", [(4,), (0, 4, 4), (2, 4, 5, 2), (1, 1, 1, 1, 1)])
def test_a_single_array_that_is_no_images_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a", test_images=np.zeros(shape, np.uint8))
    with pytest.raises(ImageRefused):
        read_image(tmp_path / "a.npz")


def test_too_many_images_at_once_are_refused_and_some_of_them_are_not(
    picture_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IMAGES_LIMIT", 9)
    with pytest.raises(ImageRefused, match="send fewer"):
        read_image(picture_set)
    assert len(read_image(f"{picture_set}:test_images[0:9]")) == 9


def test_a_file_whose_name_has_a_colon_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a:b[1]"
    Image.fromarray(RAMP).save(path, format="PNG")
    assert read_image(path).shape == (1, 8, 8, 1)
    assert picture_sets.split_selection(str(path)) == (str(path), None)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a", allow_pickle=True, test_images=np.array([{}], dtype=object))
    with pytest.raises(ImageRefused):
        read_image(tmp_path / "a.npz")


# DICOM


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = _dicom(tmp_path, RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_image(path)[0, ..., 0], 255 - RAMP)


def test_8_bits_without_a_window_stay_as_they_are(tmp_path: Path) -> None:
    assert np.array_equal(read_image(_dicom(tmp_path, RAMP))[0, ..., 0], RAMP)


def test_rescale_and_window_are_applied(tmp_path: Path) -> None:
    hounsfield = np.array([[-1000, -160, 40, 240, 3000]], dtype=np.int16)
    stored = ((hounsfield + 1024) // 2).astype(np.uint16)
    window = {"WindowCenter": "40.5", "WindowWidth": "401", "RescaleSlope": "2", "RescaleIntercept": "-1024"}
    path = _dicom(tmp_path, stored, BitsStored=12, HighBit=11, **window)
    # Linear from -160 to 240 (PS3.3 C.11.2.1.2.1): 40 lies half way.
    assert read_image(path)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("bits", [8, 12])
def test_a_voi_lut_of_many_entries_is_looked_up_without_wrapping(tmp_path: Path, bits: int) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [1000, 100, bits])
    item.add_new("LUTData", "US", [round(k * (2**bits - 1) / 999) for k in range(1000)])
    stored = np.array([[0, 100, 600, 1099, 4000]], dtype=np.uint16)
    path = _dicom(tmp_path, stored, VOILUTSequence=[item])
    assert read_image(path)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_without_a_window_deep_pixels_are_stretched_and_padding_is_no_pixel(tmp_path: Path) -> None:
    stored = np.linspace(1000, 2000, 10_000).astype(np.int16).reshape(100, 100)
    stored[0] = -2000
    shown = read_image(_dicom(tmp_path, stored, PixelPaddingValue=-2000))[0, ..., 0]
    assert (shown[0] == 0).all()
    assert shown[-1].min() >= 250
    assert abs(int(shown[50, 0]) - 126) <= 2


def test_an_image_of_one_value_is_shown(tmp_path: Path) -> None:
    assert read_image(_dicom(tmp_path, np.full((4, 4), 700, np.uint16))).shape == (1, 4, 4, 1)


def test_frames_are_images(tmp_path: Path) -> None:
    frames = np.stack([RAMP, RAMP.T, 255 - RAMP])
    assert np.array_equal(read_image(_dicom(tmp_path, frames, NumberOfFrames=3))[..., 0], frames)


def test_the_same_scan_in_any_transfer_syntax_is_the_same_image() -> None:
    names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm")
    first, *others = (read_image(_testfile(name)) for name in (*names, "MR_small_bigendian.dcm"))
    assert first.shape == (1, 64, 64, 1)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("CT_small.dcm", (1, 128, 128, 1)),
        ("examples_overlay.dcm", (1, 300, 484, 1)),
        ("examples_palette.dcm", (1, 350, 800, 3)),
        ("examples_rgb_color.dcm", (1, 240, 320, 3)),
        ("JPGExtended.dcm", (1, 1024, 256, 1)),
        ("J2K_pixelrep_mismatch.dcm", (1, 512, 512, 1)),
        ("rtdose.dcm", (15, 10, 10, 1)),
    ],
)
def test_scanners_files_are_read(name: str, shape: tuple[int, ...]) -> None:
    images = read_image(_testfile(name))
    assert images.shape == shape
    assert images.max() > images.min()


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", ["MR_truncated.dcm", "waveform_ecg.dcm", "badVR.dcm", "no_meta.dcm"])
def test_dicom_that_is_broken_or_no_image_is_refused(name: str) -> None:
    with pytest.raises(ImageRefused, match=name):
        read_image(_testfile(name))


@pytest.mark.parametrize(
    "fields",
    [
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 2**31 - 1},
        {"NumberOfFrames": -1},
        {"Rows": 0},
        {"Rows": 9},
        {"SamplesPerPixel": 4},
        {"PhotometricInterpretation": "HSV"},
        {"WindowCenter": "1", "WindowWidth": "0"},
    ],
)
def test_dicom_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ImageRefused):
        read_image(_dicom(tmp_path, RAMP, **fields))


def test_deflated_dicom_is_refused_before_it_is_inflated() -> None:
    with pytest.raises(ImageRefused, match="Deflated"):
        read_image(_testfile("image_dfl.dcm"))


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)])
def test_a_coded_frame_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, kind: str, syntax: str
) -> None:
    coded = _encoded(kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))  # 16 x 16
    right = np.zeros((16, 16), np.uint8)
    wrong = np.zeros((8, 8), np.uint8)
    whole = encapsulate([coded])
    assert read_image(_dicom(tmp_path, right, syntax=syntax, PixelData=whole)).shape == (1, 16, 16, 1)
    with pytest.raises(ImageRefused, match="another size"):
        read_image(_dicom(tmp_path, wrong, syntax=syntax, PixelData=whole))


def test_a_coded_frame_of_an_unknown_kind_is_not_given_to_a_decoder(tmp_path: Path) -> None:
    boxed = encapsulate([_encoded("JPEG2000")])  # the JP2 file format, which DICOM does not allow
    with pytest.raises(ImageRefused, match="another size"):
        read_image(_dicom(tmp_path, np.zeros((16, 16), np.uint8), syntax=JPEG2000Lossless, PixelData=boxed))


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.sampled_from(["JPEG", "JPEG2000"])
)
def test_the_coded_size_is_what_decodes(pixels: npt.NDArray[np.uint8], kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    assert coded_size(buffer.getvalue()) == pixels.shape


@given(st.binary(max_size=64), st.sampled_from([b"\xff\xd8", b"\xff\x4f\xff\x51", b""]))
def test_a_damaged_coded_header_is_a_value_error(data: bytes, start: bytes) -> None:
    with contextlib.suppress(ValueError):
        coded_size(start + data)


# What the model takes


@given(arrays(np.uint8, (2, 8, 8, 1)))
def test_an_image_of_the_right_size_keeps_every_pixel(images: npt.NDArray[np.uint8]) -> None:
    prepared = prepare(images, GREY)
    assert prepared.dtype == np.float32
    assert prepared.shape == (2, 1, 8, 8)
    expected = (images[..., 0].astype(np.float64) / 255 - 0.5) / 0.5
    assert np.allclose(prepared[:, 0], expected, atol=1e-6)


def test_each_channel_has_its_own_mean_and_std() -> None:
    images = np.full((1, 8, 8, 3), 255, np.uint8)
    prepared = prepare(images, {**RGB, "mean": [0.0, 0.5, 1.0], "std": [1.0, 0.5, 2.0]})
    assert prepared[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_grey_becomes_rgb_and_rgb_becomes_luma() -> None:
    colours = np.zeros((1, 8, 8, 3), np.uint8)
    colours[0, 0, :4] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    grey = prepare(colours, {**GREY, "mean": [0.0], "std": [1.0]})
    assert np.rint(grey[0, 0, 0, :4] * 255).tolist() == [76, 150, 29, 255]
    spread = prepare(RAMP[None, ..., None], RGB)
    assert np.array_equal(spread[0, 0], spread[0, 2])
    assert np.allclose(spread[0, 1], RAMP / 255, atol=1e-6)


@given(
    value=st.integers(0, 255),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
)
def test_a_flat_image_stays_flat_at_any_size(value: int, height: int, width: int, channels: int) -> None:
    flat = np.full((1, height, width, channels), value, np.uint8)
    for wanted in (GREY, RGB):
        prepared = prepare(flat, {**wanted, "mean": [0.0] * 3, "std": [1.0] * 3} if wanted is RGB else wanted)
        expected = value / 255 if wanted is RGB else (value / 255 - 0.5) / 0.5
        assert prepared.shape == (1, wanted["channels"], 8, 8)
        assert np.allclose(prepared, expected, atol=1e-6)


def test_a_shrunk_image_does_not_alias() -> None:
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = 255
    shrunk = prepare(stripes, {**GREY, "mean": [0.0], "std": [1.0]})
    assert np.abs(shrunk[..., 1:-1] - 0.5).max() < 0.02


def test_no_images_are_prepared_to_none() -> None:
    assert prepare(np.zeros((0, 8, 8, 1), np.uint8), GREY).shape == (0, 1, 8, 8)
