"""The public cells in which a private metric counts records; accuracy and AUC follow from the counts alone.

Every record, whatever it is and whatever model was sent, adds 1 in exactly `MetricCells.a_record` cells:
one of each *table* (true label by decision) and one of each *histogram* (member or not of a class, by the
class's score). So adding or removing a record moves the vector of counts by sqrt(a_record) in L2, exactly.

A score is the class's probability at temperature 2, in 16 equal bins: even steps near the threshold, and
yet some order left among confident answers. Bins cannot depend on the scores, for these are private; and an
AUC's error from the noise grows with the root of their number, where 16 already keep nearly all of the order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedward.common.decision import decide, probabilities

BINS = 16
_TEMPERATURE = 2.0
_LARGEST_LOGIT = 1e6  # beyond it, and where a logit is no number, a hostile model's answers are cut
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MetricCells:
    """Where the counts of a task stand in the one vector: the tables first, then the histograms.

    Attributes:
        task: binary, multi-class or multi-label.
        classes: how many.
    """

    task: str
    classes: int

    @property
    def tables(self) -> tuple[int, int, int]:
        """Shape of the tables: (tables, true label, decision)."""
        return (self.classes, 2, 2) if self.task == "multi-label" else (1, self.classes, self.classes)

    @property
    def histograms(self) -> tuple[int, int, int]:
        """Shape of the histograms: (histograms, not a member or a member, bins); binary has class 1's."""
        return (1 if self.task == "binary" else self.classes, 2, BINS)

    @property
    def a_record(self) -> int:
        """In how many cells a record adds 1: the vector's sensitivity, squared."""
        return self.tables[0] + self.histograms[0]

    @property
    def count(self) -> int:
        """How many cells there are."""
        return int(np.prod(self.tables) + np.prod(self.histograms))

    def places(self, logits: npt.NDArray[np.float32], labels: Ints) -> Ints:
        """In which cells each record adds 1, int64 (n, a_record), no two of a row alike: private.

        Args:
            logits: (n, classes), of any values.
            labels: (n,) class indices, or (n, classes) of 0 and 1 for multi-label.
        """
        usable = np.nan_to_num(logits.astype(np.float64), nan=0.0).clip(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        truth, decided = self._by_table(labels), self._by_table(decide(usable, self.task))
        scores = probabilities(usable, self.task, _TEMPERATURE)
        members = labels if self.task == "multi-label" else np.eye(self.classes, dtype=np.int64)[labels]
        if self.task == "binary":
            scores, members = scores[:, 1:], members[:, 1:]
        bins = (scores * BINS).astype(np.int64).clip(0, BINS - 1)
        behind = int(np.prod(self.tables))
        parts = [_cells(self.tables, truth, decided), behind + _cells(self.histograms, members, bins)]
        return np.concatenate(parts, axis=1)

    def counts(self, places: Ints) -> Ints:
        """How many records stand in each cell, int64 (count,)."""
        return np.bincount(places.ravel(), minlength=self.count).astype(np.int64)

    def split(self, counts: Ints) -> tuple[Ints, Ints]:
        """The tables and the histograms of a vector of counts, in their shapes."""
        middle = int(np.prod(self.tables))
        return counts[:middle].reshape(self.tables), counts[middle:].reshape(self.histograms)

    def _by_table(self, values: Ints) -> Ints:
        return values if values.ndim == 2 else values[:, None]


def _cells(shape: tuple[int, int, int], rows: Ints, columns: Ints) -> Ints:
    """The flat index of (k, rows[i, k], columns[i, k]) in an array of `shape`, int64 (n, shape[0])."""
    return np.asarray(np.ravel_multi_index((np.arange(shape[0])[None, :], rows, columns), shape), np.int64)
