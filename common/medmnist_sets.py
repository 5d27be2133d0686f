"""What is known of the twelve 2D sets of MedMNIST v2: task, class names and the official files' digests.

Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023. Facts only, so that a hospital or an edge device can
name classes without installing medmnist. RetinaMNIST's ordinal grades are treated as classes.
"""

from dataclasses import dataclass

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclass(frozen=True)
class MedMnistSet:
    """One set's task (as in `fedward.common.datasets.TASKS`), its 28-pixel file's MD5 and its class names."""

    task: str
    md5: str
    classes: tuple[str, ...]


MEDMNIST_SETS = {
    "bloodmnist": MedMnistSet(
        "multi-class",
        "7053d0359d879ad8a5505303e11de1dc",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocyte",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "breastmnist": MedMnistSet(
        "binary", "750601b1f35ba3300ea97c75c52ff8f6", ("malignant", "normal or benign")
    ),
    "chestmnist": MedMnistSet(
        "multi-label",
        "02c8a6516a18b556561a56cbdd36c4a8",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural thickening",
            "hernia",
        ),
    ),
    "dermamnist": MedMnistSet(
        "multi-class",
        "0744692d530f8e62ec473284d019b0c7",
        (
            "actinic keratosis",
            "basal cell carcinoma",
            "benign keratosis",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevus",
            "vascular lesion",
        ),
    ),
    "octmnist": MedMnistSet(
        "multi-class",
        "c68d92d5b585d8d81f7112f81e2d0842",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    "organamnist": MedMnistSet("multi-class", "68e3f8846a6bd62f0c9bf841c0d9eacc", _ORGANS),
    "organcmnist": MedMnistSet("multi-class", "b9ceb9546e10131b32923c5bbeaea2b1", _ORGANS),
    "organsmnist": MedMnistSet("multi-class", "9ab87b696fb54e2a387ebe992d6ed5f1", _ORGANS),
    "pathmnist": MedMnistSet(
        "multi-class",
        "a8b06965200029087d5bd730944a56c1",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "pneumoniamnist": MedMnistSet("binary", "28209eda62fecd6e6a2d98b1501bb15f", ("normal", "pneumonia")),
    "retinamnist": MedMnistSet(
        "multi-class",
        "bd4c0672f1bba3e3a89f0e4e876791e4",
        ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    ),
    "tissuemnist": MedMnistSet(
        "multi-class",
        "ebe78ee8b05294063de985d821c1c34b",
        (
            "collecting duct or connecting tubule",
            "distal convoluted tubule",
            "glomerular endothelial cell",
            "interstitial endothelial cell",
            "leukocyte",
            "podocyte",
            "proximal tubule segment",
            "thick ascending limb",
        ),
    ),
}
