"""Published test figures of the twelve 2D sets of MedMNIST v2, to stand beside measured ones.

The five models at 28 pixels are of Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023, table 3: accuracy
of the likeliest class, and with several labels the mean over labels at probability one half. BiTMedViT, at
224 pixels, is of Walczak et al., arXiv:2510.13760: the test column of table 1 in the README of its authors'
repository, which gives accuracies and no AUC. None is private, and none is federated.
"""

from collections.abc import Collection
from dataclasses import dataclass
from statistics import mean

_V2 = "Yang et al., MedMNIST v2, Scientific Data 10:41, 2023, table 3"
_BITMEDVIT = "Walczak et al., BiTMedViT, arXiv:2510.13760, README of its repository, table 1 (test)"


@dataclass(frozen=True)
class Published:
    """One model's test figures.

    Attributes:
        name: of the model.
        pixels: side of the images that it takes.
        source: where the figures stand.
        megabytes: of the model's file, where its authors give it.
        accuracies, aucs: by set's name; AUCs may be missing.
    """

    name: str
    pixels: int
    source: str
    megabytes: float | None
    accuracies: dict[str, float]
    aucs: dict[str, float]

    def mean_over(self, sets: Collection[str]) -> tuple[float | None, float | None]:
        """Mean accuracy and mean AUC over exactly `sets`; None where one of them has no figure."""
        return _mean(self.accuracies, sets), _mean(self.aucs, sets)


def _mean(figures: dict[str, float], sets: Collection[str]) -> float | None:
    known = sets and all(name in figures for name in sets)
    return mean(figures[name] for name in sets) if known else None


_NAMES = ("ResNet-18", "ResNet-50", "auto-sklearn", "AutoKeras", "Google AutoML Vision")
# One line a set, and in it AUC and accuracy of each of _NAMES.
_FIGURES = {
    "pathmnist": ".983 .907  .990 .911  .934 .716  .959 .834  .944 .728",
    "chestmnist": ".768 .947  .769 .947  .649 .779  .742 .937  .778 .948",
    "dermamnist": ".917 .735  .913 .735  .902 .719  .915 .749  .914 .768",
    "octmnist": ".943 .743  .952 .762  .887 .601  .955 .763  .963 .771",
    "pneumoniamnist": ".944 .854  .948 .854  .942 .855  .947 .878  .991 .946",
    "retinamnist": ".717 .524  .726 .528  .690 .515  .719 .503  .750 .531",
    "breastmnist": ".901 .863  .857 .812  .836 .803  .871 .831  .919 .861",
    "bloodmnist": ".998 .958  .997 .956  .984 .878  .998 .961  .998 .966",
    "tissuemnist": ".930 .676  .931 .680  .828 .532  .941 .703  .924 .673",
    "organamnist": ".997 .935  .997 .935  .963 .762  .994 .905  .990 .886",
    "organcmnist": ".992 .900  .992 .905  .976 .829  .990 .879  .988 .877",
    "organsmnist": ".972 .782  .972 .770  .945 .672  .974 .813  .964 .749",
}
_BITMEDVIT_ACCURACIES = {
    "pathmnist": 0.821,
    "chestmnist": 0.937,
    "dermamnist": 0.762,
    "octmnist": 0.857,
    "pneumoniamnist": 0.880,
    "retinamnist": 0.513,
    "breastmnist": 0.821,
    "bloodmnist": 0.975,
    "tissuemnist": 0.638,
    "organamnist": 0.902,
    "organcmnist": 0.884,
    "organsmnist": 0.741,
}


def _of_table_3(column: int) -> Published:
    values = {name: [float(text) for text in line.split()] for name, line in _FIGURES.items()}
    aucs = {name: line[2 * column] for name, line in values.items()}
    accuracies = {name: line[2 * column + 1] for name, line in values.items()}
    return Published(_NAMES[column], 28, _V2, None, accuracies, aucs)


BITMEDVIT = Published("BiTMedViT", 224, _BITMEDVIT, 10.5, _BITMEDVIT_ACCURACIES, {})
PUBLISHED = (*(_of_table_3(column) for column in range(len(_NAMES))), BITMEDVIT)
RESNET_18 = PUBLISHED[0]
