"""A whole federation, as a person runs it: what it writes, what it measures, and that it can be repeated."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedward.client.registry import Registry
from fedward.client.state_folder import BUDGETS
from fedward.common.bundle import Bundle, read_bundle
from fedward.common.manifest import release_digest
from fedward.common.trust import load_trust
from fedward.simulations import comparison, prepare
from fedward.simulations.metrics_file import check_metrics
from fedward.simulations.partitions import make_hospitals
from fedward.simulations.prepare import reopen
from fedward.simulations.simulate import _tell_of_bytes

DATA = "phantom:train=60,val=30,test=40"
WEIGHTS = 62_178  # of the CNN on 28 x 28 grey: 288 + 64 + 18432 + 128 + 36864 + 128 + 64 * 49 * 2 + 2
NUMPY_HEADER = 128  # Flower sends an array as an npy file
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def simulate(fedward: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """simulate(*options) -> the folder of a finished run of three hospitals and two rounds."""

    def run(*options: object) -> Path:
        out: Path = tmp_path_factory.mktemp("run") / "out"
        done = fedward("simulate", "--dataset", DATA, "--hospitals", 3, "--rounds", 2, "--out", out, *options)
        assert done.code == 0, done.err
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_TEACHER_STEPS", 4)
        patch.setattr(comparison, "_PLAIN_STEPS", 4)
        yield run


@pytest.fixture(scope="module")
def finished(simulate: Command) -> Path:
    return Path(simulate())


def metrics_of(out: Path) -> dict[str, Any]:
    found = json.loads((out / "metrics.json").read_text())
    check_metrics(found)
    return dict(found)


def release_of(out: Path) -> Bundle:
    return read_bundle(out / "release", load_trust())


def test_a_run_leaves_a_report_metrics_and_a_release_that_verifies(finished: Path) -> None:
    metrics = metrics_of(finished)
    assert release_digest(release_of(finished).manifest) == metrics["release"]["digest"]
    page = (finished / "report.html").read_text()
    assert "synthetic phantoms, not patients" in page
    assert metrics["release"]["digest"] in page
    assert not [path for path in finished.rglob("*") if "draft" in path.name]


def test_a_person_reads_figures_on_standard_output_and_progress_on_standard_error(
    fedward: Command, tmp_path: Path
) -> None:
    out = tmp_path / "[bold]it's[/x]"
    arguments = ("simulate", "--dataset", DATA, "--hospitals", 3, "--rounds", 2, "--out", out)
    done = fedward(*arguments)
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines] == ["test", "privacy", "model", "report", "release"]
    assert lines[3] == f"report   {out}/report.html"
    assert re.search(r"epsilon 2\.9\d\d of 3 at most in any hospital, by image at delta 1e-05", lines[1])
    assert "protects nobody" in lines[1]
    assert "rounds" in done.err
    assert "3/3" in done.err
    # No bar is drawn over another where nobody watches: no escapes, no returns, each bar once.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.err + done.out)
    assert len(re.findall("^ *rounds", done.err, re.M)) == 1


def test_json_is_the_metrics_and_nothing_else(fedward: Command, finished: Path, tmp_path: Path) -> None:
    done = fedward("simulate", "--resume", "--out", finished, "--json")
    assert json.loads(done.out) == metrics_of(finished)
    done = fedward("simulate", "--resume", "--out", tmp_path / "none", "--json")
    assert json.loads(done.out)["error"] == "CheckpointRefused"


def test_a_seed_gives_one_release_and_another_seed_another(simulate: Command, finished: Path) -> None:
    first = metrics_of(finished)["release"]["digest"]
    assert metrics_of(simulate("--seed", 0))["release"]["digest"] == first
    assert metrics_of(simulate("--seed", 1))["release"]["digest"] != first


def test_epsilon_grows_by_the_rounds_up_to_the_budget(finished: Path) -> None:
    metrics = metrics_of(finished)
    spent = [row["epsilon"] for row in metrics["rounds"]]
    assert 0 < spent[0] < spent[1] <= 3.0
    for site in metrics["hospitals"]:
        assert (site["epsilon"], site["budget"], site["delta"], site["unit"]) == (
            spent[1],
            3.0,
            1e-5,
            "image",
        )
    sites = release_of(finished).manifest["privacy"]["sites"]
    assert [site["epsilon"] for site in sites] == [spent[1]] * 3


def _stored_replies(out: Path) -> Iterator[tuple[int, int, int]]:
    """(round, bytes of the header, bytes of the update) of each reply that a hospital keeps as it left."""
    for path in (out / "hospitals").glob("*/replies/*.reply"):
        _, header, update = path.read_bytes().split(b"\n", 2)
        yield json.loads(header)["round"], len(header), len(update)


INT8 = ("--uplink", "int8", "--downlink", "int8")


def test_bytes_are_what_the_codec_lays_out(simulate: Command) -> None:
    out = simulate(*INT8, "--schedule", "constant", "--learning-rate", 0.5)
    metrics, replies = metrics_of(out), list(_stored_replies(out))
    packed = 16 + 4 * 16 + WEIGHTS  # header, a step for each of 16 blocks, a byte a weight
    assert [size for _, _, size in replies] == [packed] * 6
    for row in metrics["rounds"]:
        texts = [header for server_round, header, _ in replies if server_round == row["round"]]
        assert row["uplink_bytes"] == 3 * (packed + NUMPY_HEADER) + sum(texts)
        assert all(100 < text < 400 for text in texts)


def test_the_model_goes_down_packed_with_the_settings_beside_it(simulate: Command) -> None:
    metrics = metrics_of(simulate(*INT8, "--schedule", "constant", "--learning-rate", 0.5))
    for row in metrics["rounds"]:
        request = {
            "codec": ["int8", "int8"], "learning_rate": 0.5, "round": row["round"],
            "study": metrics["study"]["name"], "settings": metrics["study"]["local"],
        }  # fmt: skip
        text = 3 * len(json.dumps(request, separators=(",", ":")))
        packed = 3 * (16 + 4 * 16 + WEIGHTS + NUMPY_HEADER)
        # Each hospital's own anchor, where it has one, is a hundred bytes or two.
        assert packed + text <= row["downlink_bytes"] <= packed + text + 3 * 200


def test_fp32_codecs_send_four_bytes_a_weight(simulate: Command) -> None:
    plain = metrics_of(simulate("--uplink", "fp32", "--downlink", "fp32"))["rounds"][0]
    packed = metrics_of(simulate(*INT8))["rounds"][0]
    more = 3 * (3 * WEIGHTS - 4 * 16)
    assert plain["uplink_bytes"] - packed["uplink_bytes"] == more
    assert plain["downlink_bytes"] - packed["downlink_bytes"] == more


def test_the_release_answers_as_the_student_does_and_is_small(finished: Path) -> None:
    release = metrics_of(finished)["release"]
    assert release["agreement"] >= 0.995
    assert abs(release["auc"] - release["torch_auc"]) <= 0.002
    assert release["fp32_bytes"] >= 12 * release["bytes"]
    files = [path.stat().st_size for path in (finished / "release").iterdir()]
    assert release["bundle_bytes"] == sum(files)
    assert release["bytes"] == (finished / "release" / "model.onnx.zst").stat().st_size


def test_hospitals_are_told_with_what_they_have_and_what_they_declared(simulate: Command) -> None:
    sites = metrics_of(simulate("--partition", "size:1.5"))["hospitals"]
    assert sum(site["num_examples"] for site in sites) == 60
    assert [site["declared"] for site in sites] == [-(-site["num_examples"] // 10) * 10 for site in sites]
    assert sites[0]["num_examples"] > 2 * sites[2]["num_examples"]


def test_a_hospital_without_both_classes_has_no_auc(simulate: Command) -> None:
    out = simulate("--partition", "dirichlet:0.05", "--seed", 4)
    run = reopen(out)
    shares = make_hospitals(run.dataset.test, "dirichlet:0.05", 3, 4)
    has_auc = [site["auc"] is not None for site in metrics_of(out)["hospitals"]]
    assert has_auc == [len(np.unique(share.labels)) == 2 for share in shares]
    assert not all(has_auc)


def test_more_hospitals_than_test_images_have_no_auc(simulate: Command) -> None:
    out = simulate("--dataset", "phantom:train=60,val=30,test=4", "--hospitals", 5)
    assert [site["auc"] for site in metrics_of(out)["hospitals"]] == [None] * 5


def test_without_privacy_the_release_says_so(simulate: Command) -> None:
    out = simulate("--epsilon", "none")
    metrics, privacy = metrics_of(out), release_of(out).manifest["privacy"]
    assert "without differential privacy" in privacy["statement"]
    assert [site["epsilon"] for site in privacy["sites"]] == [None] * 3
    assert [row["epsilon"] for row in metrics["rounds"]] == [None] * 2
    assert metrics["study"]["local"]["noise_multiplier"] == 0.0
    assert "without" in (out / "report.html").read_text().lower()


def test_without_reference_data_there_is_no_calibration_and_it_is_said(simulate: Command) -> None:
    out = simulate("--reference", "none")
    manifest = release_of(out).manifest
    assert manifest["calibration"]["temperature"] is None
    assert "no reference data" in manifest["calibration"]["note"]
    assert manifest["decision"]["prior"] == "training"
    assert [row["auc"] for row in metrics_of(out)["rounds"]] == [None] * 2
    assert not (out / "reference.npz").exists()


def six_classes(path: Path) -> Path:
    draws = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 60), ("val", 30), ("test", 40)):
        arrays[f"{split}_images"] = draws.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 6)[:, None]
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("data", "task", "classes", "channels"),
    [
        ("phantom-findings:train=60,val=30,test=40", "multi-label", 3, 1),
        ("phantom-colour:train=60,val=30,test=40", "binary", 2, 3),
        ("phantom-colour:train=60,val=30,test=40,classes=4", "multi-class", 4, 3),
        ("six.npz", "multi-class", 6, 1),
    ],
)
def test_every_task_runs_and_reports(
    simulate: Command, tmp_path: Path, data: str, task: str, classes: int, channels: int
) -> None:
    source = six_classes(tmp_path / data) if data.endswith(".npz") else data
    out = simulate("--dataset", source, "--decision", "calibrated")
    metrics, manifest = metrics_of(out), release_of(out).manifest
    assert (metrics["dataset"]["task"], len(metrics["dataset"]["classes"])) == (task, classes)
    assert manifest["preprocessing"]["channels"] == channels
    assert len(manifest["decision"]["thresholds"]) == (1 if task == "binary" else classes)
    assert all(name in (out / "report.html").read_text() for name in metrics["dataset"]["classes"])


@pytest.mark.parametrize(
    "student",
    ["int8-cnn", "fp32-cnn", "ternary-depthwise", "fp32-depthwise", "ternary-mobile", "ternary-vit-mq"],
)
def test_every_kind_of_student_runs(simulate: Command, student: str) -> None:
    out = simulate("--student", student)
    assert release_of(out).manifest["student"] == student
    assert metrics_of(out)["release"]["agreement"] >= 0.97


@pytest.mark.parametrize("partition", ["scanner", "dirichlet:0.5", "size"])
def test_every_partition_runs(simulate: Command, finished: Path, partition: str) -> None:
    metrics = metrics_of(simulate("--partition", partition))
    assert sum(site["num_examples"] for site in metrics["hospitals"]) == 60
    assert metrics["release"]["digest"] != metrics_of(finished)["release"]["digest"]


def test_local_steps_and_views_change_the_training_and_its_charge(simulate: Command, finished: Path) -> None:
    out = simulate("--local-steps", 2, "--views", 2, "--augmentation", "shift")
    charged = Registry(out / "hospitals" / "0" / BUDGETS).budget("records").mechanisms()
    assert [mechanism.steps for mechanism in charged] == [4]
    plain = metrics_of(finished)["study"]["local"]["noise_multiplier"]
    assert charged[0].noise_multiplier > plain  # twice the steps within the same budget


def test_a_teacher_from_the_reference_is_distilled(simulate: Command) -> None:
    # Four classes: with two, every gradient lies along one direction, and clipping leaves its sign alone.
    colour = ("--dataset", "phantom-colour:train=60,val=30,test=40,classes=4")
    plain = metrics_of(simulate(*colour))
    taught = metrics_of(simulate(*colour, "--teacher", "reference", "--distillation-alpha", 0.5))
    assert taught["study"]["local"]["distillation_alpha"] == 0.5
    more = taught["rounds"][0]["downlink_bytes"] - plain["rounds"][0]["downlink_bytes"]
    assert more > 3 * WEIGHTS  # the teacher travels too
    assert taught["release"]["digest"] != plain["release"]["digest"]


def test_calibrated_thresholds_come_from_half_a(simulate: Command) -> None:
    decision = release_of(simulate("--decision", "calibrated")).manifest["decision"]
    assert decision["source"] == "reference half A"
    assert decision["thresholds"] != [0.0]


def test_an_earlier_release_is_continued_with_ewc(simulate: Command, finished: Path) -> None:
    out = simulate("--continue-from", finished / "release", "--ewc-lambda", 0.3)
    earlier, later = release_of(finished).manifest, release_of(out).manifest
    assert (later["parent"], later["version"]) == (release_digest(earlier), 2)
    loose = simulate("--continue-from", finished / "release")
    other = simulate("--continue-from", finished / "release", "--ewc-lambda", 0.3, "--ewc-reference",
                     "phantom:seed=9,train=60,val=30,test=40")  # fmt: skip
    digests = [metrics_of(folder)["release"]["digest"] for folder in (out, loose, other)]
    assert len(set(digests)) == 3


def test_a_pruned_student_is_tuned_by_the_hospitals_and_released_narrower(
    simulate: Command, finished: Path
) -> None:
    out = simulate("--continue-from", finished / "release", "--prune", 0.5)
    local = metrics_of(out)["study"]["local"]
    assert sum(local["widths"]) == 80
    later = release_of(out).manifest
    assert (later["parent"], later["version"]) == (release_digest(release_of(finished).manifest), 2)
    before, after = metrics_of(finished), metrics_of(out)
    assert after["release"]["fp32_bytes"] < before["release"]["fp32_bytes"] / 2
    assert after["rounds"][0]["uplink_bytes"] < before["rounds"][0]["uplink_bytes"] / 2
    assert after["release"]["agreement"] >= 0.97
    with np.load(out / "fixed.npz") as fixed:
        assert not np.array_equal(fixed["start"], np.load(out / "final.npy"))
    again = simulate("--continue-from", out / "release")
    assert metrics_of(again)["study"]["local"]["widths"] == local["widths"]


def test_an_int8_release_is_brought_within_its_bytes_and_tuned_there(simulate: Command) -> None:
    whole = simulate("--student", "int8-cnn")
    most = metrics_of(whole)["release"]["bytes"] // 2
    out = simulate("--student", "int8-cnn", "--continue-from", whole / "release", "--model-bytes", most)
    release, local = metrics_of(out)["release"], metrics_of(out)["study"]["local"]
    assert set(local["bits"]) <= {2, 4, 8}
    assert release["bytes"] <= most
    assert release["agreement"] >= 0.97
    again = simulate("--student", "int8-cnn", "--continue-from", out / "release")
    assert metrics_of(again)["study"]["local"]["bits"] == local["bits"]


def test_a_model_above_its_bytes_is_told() -> None:
    heard = io.StringIO()
    for most, taken in ((None, 50), (50, 50), (1049, 1050)):
        _tell_of_bytes(most, taken, Console(file=heard, width=200))
    assert heard.getvalue().splitlines() == [
        "The model file takes 1,050 bytes, more than the 1,049 of --model-bytes: ask for fewer."
    ]


def test_a_strong_pull_holds_the_weights_that_the_earlier_task_needs(
    simulate: Command, finished: Path
) -> None:
    codecs = ("--uplink", "fp32", "--downlink", "fp32")
    out = simulate("--continue-from", finished / "release", "--ewc-lambda", 1e6, *codecs)
    with np.load(out / "fixed.npz") as fixed:
        moved, needed = np.abs(np.load(out / "final.npy") - fixed["start"]), fixed["fisher"] > 1e-3
        assert (fixed["anchor"] == fixed["start"]).all()
    assert needed.mean() > 0.1
    assert moved[needed].max() < 0.01 < moved[~needed].max()


def test_comparisons_are_measured_and_shown(simulate: Command) -> None:
    out = simulate("--compare")
    compared = metrics_of(out)["comparison"]
    assert set(compared) == {"public_only", "one_hospital", "pooled"}
    assert all(0 <= figures["accuracy"] <= 1 for figures in compared.values())
    assert "One hospital alone" in (out / "report.html").read_text()
    without = metrics_of(simulate("--compare", "--reference", "none"))["comparison"]
    assert without["public_only"] is None


def test_a_bundle_can_be_inspected_its_budget_read_and_an_image_asked(
    fedward: Command, finished: Path, tmp_path: Path
) -> None:
    inspected = fedward("bundle", "inspect", finished / "release")
    assert inspected.out.startswith("verified\n")
    budget = fedward("hospital", "budget", "--state", finished / "hospitals" / "0", "--json")
    (records,) = json.loads(budget.out)["datasets"]
    assert records["spent"] == metrics_of(finished)["hospitals"][0]["epsilon"]
    assert records["left"] < 0.01
    test = reopen(finished).dataset.test
    np.savez(tmp_path / "images.npz", images=test.images[:3])
    done = fedward("edge", "predict", finished / "release", tmp_path / "images.npz", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["images"]) == 3


def test_coded_updates_take_the_bits_of_their_name_and_give_the_same_release_again(
    simulate: Command,
) -> None:
    first, second = (metrics_of(simulate("--uplink-codec", "coded2")) for _ in range(2))
    assert first["release"]["digest"] == second["release"]["digest"]
    for row in first["rounds"]:
        assert row["replies"] == 3
        texts = 3 * (NUMPY_HEADER + 16 + 8 + 400)
        assert (
            1.8
            < 8 * (row["uplink_bytes"] - texts) / (3 * WEIGHTS)
            < row["uplink_bytes"] * 8 / (3 * WEIGHTS)
            < 2.2
        )


def test_models_as_differences_take_the_bits_of_their_name_and_give_the_same_release_again(
    simulate: Command,
) -> None:
    codecs = ("--uplink-codec", "coded3", "--downlink-codec", "diff3", "--rounds", 4)
    first, second = (metrics_of(simulate(*codecs)) for _ in range(2))
    assert first["release"]["digest"] == second["release"]["digest"]
    texts = 3 * (NUMPY_HEADER + 16 + 8 + 1500)
    for row in first["rounds"][1:]:
        assert row["replies"] == 3
        assert 2.8 < 8 * (row["downlink_bytes"] - texts) / (3 * WEIGHTS) < 3.0
