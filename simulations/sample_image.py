"""`python -m fedward.simulations.sample_image RUN FILE.png`: one test image of a run, to try."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fedward.common.errors import Refusal
from fedward.common.files import write_atomically
from fedward.common.printing import printable
from fedward.simulations.prepare import reopen


def write_sample(run: Path, file: Path) -> None:
    """Write the first test image of the run in folder `run` as a PNG.

    Raises:
        CheckpointRefused: `run` holds no run, or a damaged one.
        OutputRefused: the file cannot be written.
    """
    pixels = reopen(run).dataset.test.images[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    write_atomically(file, buffer.getvalue())


def main(arguments: Sequence[str]) -> int:
    """The command line; returns its exit code, as `fedward` gives it."""
    if len(arguments) != 2:
        sys.stderr.write("Usage: python -m fedward.simulations.sample_image RUN FILE.png\n")
        return 2
    try:
        write_sample(Path(arguments[0]), Path(arguments[1]))
    except Refusal as refusal:
        sys.stderr.write(printable(f"{refusal.name}: {refusal}") + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
