"""What the report shows of the test split beyond metrics.json: outputs, decisions and a few images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedward.common.datasets import TASKS


@dataclass(frozen=True)
class ReportDetails:
    """The release's answers on the test split.

    Attributes:
        logits: float32, (n, k).
        labels: (n,) class indices, or (n, k) of 0/1 for the multi-label task.
        images: uint8, (m, height, width, channels): the first m <= n images of the split; m may be 0.
        decisions: as labels, decided by the release's own rule.
        classes: names in label order; the binary task has two.
        task: one of `fedward.common.datasets.TASKS`.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    images: npt.NDArray[np.uint8]
    decisions: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    task: str

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            ValueError: an unknown task, or shapes that do not fit each other.
        """
        if self.task not in TASKS:
            raise ValueError(f"Unknown task {self.task!r}; there are {', '.join(TASKS)}.")
        count, outputs = self.logits.shape if self.logits.ndim == 2 else (-1, -1)
        wanted = (count, outputs) if self.task == "multi-label" else (count,)
        if self.labels.shape != wanted or self.decisions.shape != wanted:
            raise ValueError("Logits, labels and decisions must describe the same images.")
        if outputs != len(self.classes) and not (self.task == "binary" and outputs == 1):
            raise ValueError(f"There are {len(self.classes)} class names for {outputs} outputs.")
        if self.images.ndim != 4 or len(self.images) > count or self.images.dtype != np.uint8:
            raise ValueError("Images must be uint8 (m, height, width, channels), at most n of them.")
        if len(self.images) and self.images.shape[3] not in (1, 3):
            raise ValueError("Images must have 1 or 3 channels.")
