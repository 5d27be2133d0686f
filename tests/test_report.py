"""The page a hospital's board sees: complete, self-contained, safe, the same each time."""

import base64
import copy
import dataclasses
import functools
import html
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedward.common.errors import OutputRefused
from fedward.common.metrics import evaluate, macro_auc_standard_error
from fedward.simulations import report_header
from fedward.simulations.report import ReportDetails, render_report, write_report

HOSTILE = '<script>alert(\'x\')</script>"onload="y" & \u202egpj.exe\x00 $\\frac{$ \u6f22'
SECTIONS = (
    "rounds",
    "roc",
    "confusion",
    "hospitals",
    "privacy",
    "traffic",
    "release",
    "samples",
    "comparison",
    "settings",
    "environment",
    "refusals",
    "glossary",
)


@dataclass(frozen=True)
class Run:
    """One run's metrics and details, as `simulate` hands them over."""

    metrics: dict[str, Any]
    details: ReportDetails


def made_up_run(
    task: str = "binary",
    classes: tuple[str, ...] = ("normal", "pneumonia"),
    images: int = 60,
    hospitals: int = 3,
    rounds: int = 4,
) -> Run:
    """A run with every figure measured and nothing refused."""
    details = _details(task, classes, images)
    figures: dict[str, Any] = dict.fromkeys(("auc", "accuracy", "balanced_accuracy"))
    if images:
        figures = dict(evaluate(details.logits, details.labels, task, details.decisions))
    metrics = {
        "schema": "fedward.metrics/1",
        "dataset": {
            "name": "pneumoniamnist",
            "source": "the file pneumoniamnist.npz",
            "sha256": "9f" * 32,
            "task": task,
            "classes": list(classes),
            "counts": {"train": 4708, "val": 524, "test": images},
        },
        "study": {
            "student": "ternary-cnn",
            "seed": 7,
            "epsilon": 3.0,
            "ewc": {"lambda": 0.5},
            "augment": False,
        },
        "rounds": [_round(number, hospitals) for number in range(1, rounds + 1)],
        "hospitals": [_hospital(number) for number in range(hospitals)],
        "release": {
            "bundle": "release",
            "digest": "ab12" * 16,
            "bundle_bytes": 41_234,
            "bytes": 17_345,
            "fp32_bytes": 236_112,
            **figures,
            "agreement": 0.9984,
            "latency_ms": 0.71,
            "fp32_latency_ms": 0.83,
        },
        "comparison": {
            "public_only": {"auc": 0.811, "accuracy": 0.742, "balanced_accuracy": 0.7},
            "one_hospital": {"auc": 0.862, "accuracy": 0.793, "balanced_accuracy": 0.76},
            "pooled": {"auc": 0.944, "accuracy": 0.876, "balanced_accuracy": 0.851},
        },
        "timing": {"train_seconds": 81.2, "overhead_seconds": 22.4},
        "environment": {"python": "3.11.2", "torch": "2.13.0"},
    }
    return Run(metrics, details)


def _details(task: str, classes: tuple[str, ...], images: int) -> ReportDetails:
    generator, k = np.random.default_rng(3), len(classes)
    if task == "multi-label":
        labels = (generator.random((images, k)) < 0.4).astype(np.int64)
        logits = generator.normal(size=(images, k)) + labels * 2 - 1
        decisions = (logits > 0).astype(np.int64)
    else:
        labels = np.arange(images, dtype=np.int64) % k
        logits = generator.normal(size=(images, k)) + 2 * np.eye(k)[labels]
        decisions = logits.argmax(axis=1)
    pixels = generator.integers(0, 256, (images, 28, 28, 1)).astype(np.uint8)
    return ReportDetails(logits.astype(np.float32), labels, pixels, decisions, classes, task)


def _round(number: int, hospitals: int) -> dict[str, Any]:
    return {
        "round": number,
        "auc": 0.6 + 0.07 * number,
        "accuracy": 0.5 + 0.06 * number,
        "balanced_accuracy": 0.5 + 0.05 * number,
        "uplink_bytes": 63_123 * hospitals,
        "downlink_bytes": 63_123 * hospitals,
        "seconds": 0.91,
        "epsilon": 0.7 * number,
        "replies": hospitals,
        "refusals": [],
    }


def _hospital(number: int) -> dict[str, Any]:
    return {
        "name": f"hospital-{number}",
        "num_examples": 588,
        "declared": 600,
        "epsilon": 2.7 + 0.01 * (number % 10),
        "delta": 1e-5,
        "unit": "image",
        "budget": 3.0,
        "auc": 0.9 + 0.01 * (number % 10),
    }


class Page(HTMLParser):
    """What a browser would find: elements, open and closed, and the text of each section."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = "header"
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.sections[self.section] = self.sections.get(self.section, "") + data + " "

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _page(run: Run) -> Page:
    return Page(render_report(run.metrics, run.details))


def _with(run: Run, **changes: Any) -> Run:
    """The run with fields of its metrics replaced: ``release__auc=None``, ``hospitals__auc=None`` for all."""
    metrics = copy.deepcopy(run.metrics)
    for path, value in changes.items():
        *parents, last = path.split("__")
        targets = [metrics]
        for parent in parents:
            targets = [
                item for t in targets for item in (t[parent] if isinstance(t[parent], list) else [t[parent]])
            ]
        for target in targets:
            target[last] = value
    return Run(metrics, run.details)


RUNS = {
    "binary": made_up_run(),
    "six classes": made_up_run("multi-class", ("a", "b", "c", "d", "e", "f")),
    "labels": made_up_run("multi-label", ("edema", "mass", "nodule")),
    "many hospitals": made_up_run(hospitals=60),
    "one hospital, one round": made_up_run(hospitals=1, rounds=1),
    "no rounds": made_up_run(rounds=0),
    "no test images": made_up_run(images=0),
    "one class": made_up_run(images=1),
}


@functools.cache
def _rendered(name: str) -> str:
    return render_report(RUNS[name].metrics, RUNS[name].details)


@functools.cache
def _parsed(name: str) -> Page:
    return Page(_rendered(name))


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_gives_a_whole_page(name: str) -> None:
    page = _parsed(name)
    assert tuple(section["id"] for section in page.all("section")) == SECTIONS
    assert page.open == []
    assert all(page.sections[section].strip() for section in SECTIONS)
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(page.sections.values()))


@pytest.mark.parametrize("name", RUNS)
def test_the_page_loads_and_runs_nothing(name: str) -> None:
    text, page = _rendered(name), _parsed(name)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not [key for key in attributes if key.startswith("on")]
        for key in {"src", "href", "xlink:href", "srcset", "data", "action"} & attributes.keys():
            assert (attributes[key] or "").startswith(("#", "data:image/png;base64,"))
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert any(
        meta.get("http-equiv") == "Content-Security-Policy" and "default-src 'none'" in meta["content"]
        for meta in page.all("meta")
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_page_can_be_read_without_seeing_it(name: str) -> None:
    page = _parsed(name)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    drawings = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(drawings) == len(page.all("svg"))
    assert all(drawing["aria-label"] for drawing in drawings)
    assert all(head["scope"] in ("row", "col") for head in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} == set(SECTIONS)


def test_other_peoples_text_cannot_become_markup() -> None:
    run = made_up_run(classes=(HOSTILE, HOSTILE + "2"))
    refusal = {"hospital": HOSTILE, "name": HOSTILE, "message": HOSTILE}
    run = _with(
        run,
        hospitals__name=HOSTILE,
        hospitals__unit=HOSTILE,
        rounds__refusals=[refusal],
        dataset__name=HOSTILE,
        dataset__source=HOSTILE,
        release__bundle=HOSTILE,
        release__digest=HOSTILE,
        study={HOSTILE: HOSTILE, "student": HOSTILE, "seed": HOSTILE, "list": [HOSTILE]},
        environment={HOSTILE: {HOSTILE: HOSTILE}},
    )
    text = render_report(run.metrics, run.details)
    page = Page(text)
    assert not page.all("script")
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert page.open == []
    assert "\u202e" not in text
    assert "\x00" not in text
    assert html.escape("<script>alert(") in text


def test_the_same_run_gives_the_same_bytes() -> None:
    again = made_up_run()
    first = _rendered("binary")
    assert render_report(again.metrics, again.details) == first


def test_the_first_line_says_what_was_trained_on_which_data_from_where() -> None:
    text = _rendered("binary")
    first = text[text.index("<body>") :]
    first = first[first.index("<h1>") : first.index("</h1>")]
    for words in ("ternary-cnn", "3 simulated hospitals", "pneumoniamnist", "the file pneumoniamnist.npz"):
        assert words in first
    assert text.index("<h1>") < text.index('class="notice"')


def test_a_simulation_says_that_its_noise_can_be_reproduced_and_protects_nobody() -> None:
    said = _parsed("binary").sections["header"]
    assert "protects nobody" in said
    assert "can be reproduced from its seed (7)" in said
    without = _page(_with(RUNS["binary"], hospitals__epsilon=None)).sections["header"]
    assert "no privacy noise was added" in without


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(2.9941, "2.995"), (2.72, "2.720"), (3.0, "3.000"), (0.0, "0.000")]
)
def test_an_epsilon_is_never_shown_as_less_than_it_is(epsilon: float, shown: str) -> None:
    page = _page(_with(RUNS["binary"], hospitals__epsilon=epsilon))
    for section in ("header", "privacy"):
        assert shown in page.sections[section]


def test_synthetic_data_is_said_loudly_and_only_then() -> None:
    assert "SYNTHETIC" not in _parsed("binary").sections["header"]
    for change in ({"dataset__name": "phantom"}, {"dataset__source": "synthetic images from seed 3"}):
        said = _page(_with(RUNS["binary"], **change)).sections["header"]
        assert said.index("SYNTHETIC DATA") < said.index("This is a simulation")


def test_the_key_figures_are_those_of_the_release() -> None:
    run = _with(RUNS["binary"], release__auc=0.921, release__accuracy=0.845, release__balanced_accuracy=0.8)
    said = _page(run).sections["header"]
    error = macro_auc_standard_error(run.details.logits, run.details.labels, "binary")
    for words in ("0.921", f"± {error:.3f}", "84.5%", "80.0%", "2.720", "per image", "17.3 kB", "13.6×"):  # noqa: RUF001
        assert words in said


@pytest.mark.parametrize(
    ("changes", "section", "sentence"),
    [
        (
            {"rounds__auc": None, "rounds__accuracy": None, "rounds__balanced_accuracy": None},
            "rounds",
            "no public reference data",
        ),
        ({"rounds": []}, "rounds", "No round was completed"),
        ({"rounds": []}, "traffic", "No round moved any data"),
        ({"hospitals__auc": None}, "hospitals", "No hospital has an AUC"),
        ({"hospitals__epsilon": None}, "privacy", "without differential privacy"),
        ({"release__latency_ms": None}, "release", "latency of one image was not measured"),
        ({"release__fp32_latency_ms": None}, "release", "latency of one image was not measured"),
        ({"comparison": None}, "comparison", "--compare"),
        ({"environment": {}}, "environment", "recorded nothing"),
    ],
)
def test_a_missing_figure_is_replaced_by_the_reason(
    changes: dict[str, Any], section: str, sentence: str
) -> None:
    page = _page(_with(RUNS["binary"], **changes))
    assert sentence in page.sections[section]
    whole = _parsed("binary")
    assert sentence not in whole.sections[section]


def test_every_optional_figure_may_be_missing_at_once() -> None:
    nothing = dict.fromkeys(
        [
            *(f"rounds__{key}" for key in ("auc", "accuracy", "balanced_accuracy", "epsilon")),
            *(f"hospitals__{key}" for key in ("epsilon", "delta", "budget", "auc")),
            *(f"release__{key}" for key in ("auc", "accuracy", "balanced_accuracy", "agreement")),
            *(f"release__{key}" for key in ("latency_ms", "fp32_latency_ms")),
            "comparison",
        ]
    )
    page = _page(_with(RUNS["binary"], **nothing, release__bytes=0, release__fp32_bytes=0))
    assert page.open == []
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(page.sections.values()))


def test_a_split_without_images_or_with_one_class_says_so() -> None:
    empty = _parsed("no test images")
    assert "The test split is empty" in empty.sections["confusion"]
    assert "No images were kept" in empty.sections["samples"]
    assert "There is no ROC curve" in _parsed("one class").sections["roc"]


def test_several_labels_have_an_auc_each_and_no_confusion_matrix() -> None:
    page = _parsed("labels")
    assert "There is no confusion matrix" in page.sections["confusion"]
    assert not [attributes for attributes in page.all("table") if attributes["class"] == "confusion"]
    for label in ("edema", "mass", "nodule"):
        assert label in page.sections["confusion"]
        assert f"{label}: AUC" in page.sections["roc"]


def test_the_confusion_matrix_has_truth_in_rows() -> None:
    run = made_up_run(images=10)
    labels = np.array([0] * 4 + [1] * 6)
    decisions = np.array([0, 0, 0, 1] + [1] * 6)
    details = dataclasses.replace(run.details, labels=labels, decisions=decisions)
    page = _page(Run(run.metrics, details))
    cells = re.findall(r"(\d+) +\d+\.\d%", page.sections["confusion"])
    assert cells[:4] == ["3", "1", "0", "6"]
    assert "sensitivity is 100.0%: 6 of 6 images of pneumonia" in page.sections["confusion"]
    assert "specificity is 75.0%: 3 of 4 images of normal" in page.sections["confusion"]


def test_an_undefined_hospital_stays_in_the_table() -> None:
    run = _with(RUNS["binary"])
    run.metrics["hospitals"][1]["auc"] = None
    said = _page(run).sections["hospitals"]
    assert "Undefined at 1 hospital" in said
    assert re.search(r"hospital-1\s+588\s+600\s+undefined", said)
    assert "over 2 hospitals: mean 0.910, standard deviation 0.014" in said


def test_an_overspent_budget_is_not_called_kept() -> None:
    said = _parsed("binary").sections["privacy"]
    assert "every hospital stayed within its budget" in said
    run = _with(RUNS["binary"])
    run.metrics["hospitals"][2]["epsilon"] = 3.5
    said = _page(run).sections["privacy"]
    assert "OVER BUDGET: hospital-2" in said
    assert "stayed within" not in said
    assert (
        "3 hospitals set no budget"
        in _page(_with(RUNS["binary"], hospitals__budget=None)).sections["privacy"]
    )


def test_a_hospital_without_privacy_is_named() -> None:
    run = _with(RUNS["binary"])
    run.metrics["hospitals"][0]["epsilon"] = None
    page = _page(run)
    assert (
        "Without an epsilon, since trained without differential privacy: hospital-0."
        in page.sections["privacy"]
    )
    assert "1 without privacy" in page.sections["header"]


def test_traffic_is_compared_with_one_fp32_model_a_reply() -> None:
    run = _with(RUNS["binary"])
    run.metrics["rounds"][0] |= {"replies": 2, "uplink_bytes": 2 * 63_123}
    said = _page(run).sections["traffic"]
    for words in ("694 kB (3.7", "2.60 MB", "757 kB (3.7", "2.83 MB"):  # 11 replies up, 12 models down
        assert words in said


def test_refusals_and_lost_replies_are_listed_by_round() -> None:
    run = _with(RUNS["binary"])
    refusal = {"hospital": "hospital-1", "name": "UpdateRefused", "message": "It holds NaN."}
    run.metrics["rounds"][1] |= {"replies": 2, "refusals": [refusal]}
    run.metrics["rounds"][3] |= {"replies": 1}
    said = " ".join(_page(run).sections["refusals"].split())
    assert "2 rounds of 4" in said
    assert "2 2 of 3 hospital-1 UpdateRefused It holds NaN." in said
    assert "4 1 of 3 2 hospitals no reply" in said
    assert "every one of the 3 hospitals was heard" in _parsed("binary").sections["refusals"]


def test_a_flood_of_refusals_does_not_flood_the_page() -> None:
    refusal = {"hospital": None, "name": "UpdateRefused", "message": "No."}
    page = _page(_with(RUNS["binary"], rounds__refusals=[refusal] * 500))
    assert page.sections["refusals"].count("UpdateRefused") == 200
    assert "1,800 further rows" in page.sections["refusals"]


def test_every_setting_is_shown() -> None:
    said = " ".join(_parsed("binary").sections["settings"].split())
    for row in ("student ternary-cnn", "seed 7", "ewc.lambda 0.5", "augment no", "dataset.sha256 9f9f"):
        assert row in said


def test_samples_show_right_and_wrong_images_with_their_true_class() -> None:
    run = RUNS["binary"]
    page = _page(run)
    right = run.details.decisions == run.details.labels
    assert 0 < right.sum() < len(right)
    for image in page.all("img"):
        [(index, said, truth)] = re.findall(r"^Test image (\d+): answered (\w+), shows (\w+)$", image["alt"])
        assert run.details.classes[run.details.decisions[int(index)]] == said
        assert run.details.classes[run.details.labels[int(index)]] == truth
        png = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert np.array_equal(np.array(png), run.details.images[int(index), :, :, 0])
    assert len(page.all("img")) == min(8, right.sum()) + min(8, (~right).sum())


def test_samples_may_be_the_first_images_only_and_in_colour() -> None:
    run = RUNS["six classes"]
    colour = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3)).astype(np.uint8)
    page = _page(Run(run.metrics, dataclasses.replace(run.details, images=colour)))
    assert len(page.all("img")) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros(3, np.int64)},
        {"decisions": np.zeros((60, 2), np.int64)},
        {"classes": ("one",)},
        {"task": "regression"},
        {"images": np.zeros((61, 28, 28, 1), np.uint8)},
        {"images": np.zeros((2, 28, 28, 4), np.uint8)},
        {"images": np.zeros((2, 28, 28, 1), np.float32)},
        {"logits": np.zeros(60, np.float32)},
    ],
)
def test_details_that_do_not_fit_together_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        dataclasses.replace(RUNS["binary"].details, **change)


def test_the_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    run, path = RUNS["binary"], tmp_path / "report.html"
    write_report(path, run.metrics, run.details)
    assert path.read_text(encoding="utf-8") == render_report(run.metrics, run.details)
    broken = _with(run, release__auc=float("nan"))
    with pytest.raises(ValueError, match=r"metrics\.release\.auc"):
        write_report(path, broken.metrics, broken.details)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputRefused):
        write_report(tmp_path / "absent" / "report.html", run.metrics, run.details)


def test_a_measurement_has_a_section_only_where_there_is_one_and_says_on_what() -> None:
    run = made_up_run()
    assert 'id="measurement"' not in render_report(run.metrics, run.details)
    figures: dict[str, Any] = {"auc": 0.8125, "accuracy": None, "balanced_accuracy": 0.75}
    measurement = {
        "on": HOSTILE,
        "hospitals": 3,
        "num_examples": 90,
        "noise_multipliers": {"metric": 5.0, "fisher": 2.0},
        "figures": figures,
        "standard_errors": {"auc": 0.0325, "accuracy": None, "balanced_accuracy": 0.05},
        "fisher": "fisher.npy",
        "uplink_bytes": 1,
        "downlink_bytes": 1,
        "refusals": [],
    }
    page = render_report({**run.metrics, "measurement": measurement}, run.details)
    for part in ('id="measurement"', "0.812", "0.033", "hidden by the noise", "fisher.npy", "flatter"):
        assert part in page, part
    assert "<script>" not in page
    page = render_report(
        {**run.metrics, "measurement": {**measurement, "figures": None, "standard_errors": None}}, run.details
    )
    assert "were not asked for" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "distilled", "recipe_note": ""}, "A public start."),
        ({"recipe": "from-scratch", "start": "x.npz", "recipe_note": ""}, "A public start."),
        (
            {"recipe": "from-scratch", "recipe_note": "the public images are <b>of cats</b>."},
            "&lt;b&gt;of cats",
        ),
    ],
)
def test_the_recipe_that_was_used_is_told(options: dict[str, str], said: str) -> None:
    told = report_header._recipe(options)
    assert len(told) == 1
    assert said in told[0]
    assert report_header._recipe({"recipe": "from-scratch", "trained": "head", "recipe_note": ""}) == []
