"""How much one file may ask of this machine, checked before anything is decoded."""

from fedward.common.errors import ImageRefused

FILE_LIMIT_BYTES = 512 << 20
IMAGE_LIMIT_PIXELS = 1 << 26  # 8192 x 8192; a large mammogram has 14 million
TOTAL_LIMIT_PIXELS = 1 << 28
IMAGES_LIMIT = 10_000


def check_size(count: int, height: int, width: int, channels: int) -> None:
    """Refuse what is empty or would not fit in memory.

    Raises:
        ImageRefused: no images, no pixels, too many images or too many pixels.
    """
    if min(count, height, width, channels) < 1:
        raise ImageRefused("It holds no pixels.")
    if height * width > IMAGE_LIMIT_PIXELS:
        raise ImageRefused(
            f"An image of {width} x {height} pixels is larger than allowed; send a smaller one."
        )
    if count > IMAGES_LIMIT or count * height * width * channels > TOTAL_LIMIT_PIXELS:
        raise ImageRefused(f"{count} images of {width} x {height} are too many at once; send fewer.")
