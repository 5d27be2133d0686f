"""`python -m fedward.simulations.sample_image RUN FILE.png`: one test image of a run, to try."""

import io
import sys
from pathlib import Path

from PIL import Image

from fedward.common.files import write_atomically
from fedward.simulations.prepare import reopen


def main(run: str, file: str) -> None:
    """Write the first test image of the run in folder `run` as a PNG."""
    test = reopen(Path(run)).dataset.test
    pixels = test.images[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    write_atomically(Path(file), buffer.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
