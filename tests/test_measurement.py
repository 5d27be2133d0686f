"""One record moves a measurement by at most its sensitivity, whatever the record and the model."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.client import measuring
from fedward.client.dp_sgd import clip_below
from fedward.client.measuring import exact_sums, measure
from fedward.common import per_sample
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.measurement import (
    FISHER,
    FISHER_GRID,
    METRIC,
    cells_of,
    channel_of_weights,
    measured_sizes,
    measurement_round,
    measurements,
    noise_deviations,
    sensitivities,
)
from fedward.common.metric_cells import BINS, MetricCells
from fedward.common.models import build_student, flatten, initialise, unflatten
from fedward.common.per_sample import PerSampleGradients
from fedward.common.privacy import Mechanism
from fedward.common.randomness import KeyedGenerator

LocalMaker = Callable[..., LocalSettings]
TASKS = {"binary": 2, "multi-class": 3, "multi-label": 3}
NAMES = ("a", "b", "c")
WILD = (0.0, -1.0, 2.5, 1e30, -1e30, math.inf, -math.inf, math.nan)


def _records(task: str, count: int, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    classes = TASKS[task]
    shape = (count, classes) if task == "multi-label" else (count,)
    labels = rng.integers(0, 2 if task == "multi-label" else classes, shape)
    return Split(rng.integers(0, 256, (count, 16, 16, 1), np.uint8), labels.astype(np.int64))


def _latents(local: LocalSettings, times: float = 1.0) -> torch.Tensor:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(0))
    parts = [parameter.detach() for parameter in model.parameters()]
    parts[-2] = (parts[-2].double() * times).clamp(-3e38, 3e38).float()
    return flatten(parts)


def _asked(make_local: LocalMaker, task: str = "binary", **changes: object) -> LocalSettings:
    asked = {"metric_noise_multiplier": 6.0, "fisher_noise_multiplier": 7.0}
    return make_local(task=task, classes=NAMES[: TASKS[task]], **{**asked, **changes})


# What is public


def test_a_measurement_is_one_full_mechanism_of_each_kind_that_is_asked_for(make_local: LocalMaker) -> None:
    assert measurements(make_local()) == {}
    assert measurements(make_local(fisher_noise_multiplier=7.0)) == {FISHER: Mechanism(7.0, 1.0, 1)}
    assert measurements(_asked(make_local)) == {
        METRIC: Mechanism(6.0, 1.0, 1),
        FISHER: Mechanism(7.0, 1.0, 1),
    }
    assert measurement_round(make_local(rounds=9)) == 10


@pytest.mark.parametrize(("task", "cells", "a_record"), [("binary", 4 + 2 * BINS, 2),
    ("multi-class", 9 + 6 * BINS, 4), ("multi-label", 12 + 6 * BINS, 6)])  # fmt: skip
def test_the_cells_are_public(task: str, cells: int, a_record: int) -> None:
    found = MetricCells(task, TASKS[task])
    assert (found.count, found.a_record) == (cells, a_record)


@pytest.mark.parametrize("student", ["fp32-cnn", "ternary-depthwise", "ternary-vit", "int8-vit-mq"])
def test_every_weight_belongs_to_one_channel_with_the_bias_or_scale_behind_it(
    student: str, make_local: LocalMaker
) -> None:
    local = make_local(student=student, fisher_noise_multiplier=1.0)
    channel, parameters = channel_of_weights(local.spec), list(build_student(local.spec).parameters())
    assert len(channel) == sum(parameter.numel() for parameter in parameters)
    count = sum(len(parameter) for parameter in parameters if parameter.dim() > 1)
    assert sorted(set(channel.tolist())) == list(range(count))
    assert measured_sizes(local) == {FISHER: count}
    by_channel = unflatten(torch.from_numpy(channel), parameters)
    for before, after in itertools.pairwise(by_channel):
        if after.dim() == 1:  # a value for each channel, or for each channel's positions
            channels = before.unique()
            assert torch.equal(after, channels.repeat_interleave(len(after) // len(channels)))
        else:
            assert all(len(row.unique()) == 1 for row in after)


def test_the_noise_is_its_multiplier_times_the_sensitivity(make_local: LocalMaker) -> None:
    local = _asked(make_local, "multi-class")
    assert noise_deviations(local) == {METRIC: 6.0 * 2.0, FISHER: 7.0 * 2.0**20}
    assert sensitivities(local) == {METRIC: 2.0, FISHER: 2.0**20}


# Sensitivity


@settings(max_examples=60, deadline=None)
@given(data=st.data(), task=st.sampled_from(sorted(TASKS)))
def test_a_record_adds_one_in_exactly_its_number_of_cells(data: st.DataObject, task: str) -> None:
    """Whatever it is and whatever the model says of it, NaN and infinity included."""
    cells = MetricCells(task, TASKS[task])
    value = st.sampled_from(WILD) | st.floats(width=32)
    logits = data.draw(st.lists(value, min_size=cells.classes, max_size=cells.classes))
    label = data.draw(
        st.lists(st.integers(0, 1), min_size=cells.classes, max_size=cells.classes)
        if task == "multi-label"
        else st.integers(0, cells.classes - 1)
    )
    with np.errstate(over="ignore"):
        counts = cells.counts(cells.places(np.array([logits], np.float32), np.array([label], np.int64)))
    assert counts.shape == (cells.count,)
    assert sorted(set(counts)) == [0, 1]
    assert int(counts.sum()) == cells.a_record == round(float(np.linalg.norm(counts)) ** 2)


def test_the_counts_are_those_of_the_decisions() -> None:
    cells = MetricCells("binary", 2)
    logits = np.array([[0, 9], [0, 9], [9, 0], [0, 0]], np.float32)
    tables, histograms = cells.split(cells.counts(cells.places(logits, np.array([1, 0, 0, 1]))))
    assert tables.tolist() == [[[1, 1], [1, 1]]]
    assert (int(histograms[0, 0, -1]), int(histograms[0, 1, -1])) == (1, 1)
    assert (int(histograms[0, 0, 0]), int(histograms[0, 1, BINS // 2])) == (1, 1)


@pytest.mark.parametrize("times", [1.0, 1e10, 1e45])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_one_record_moves_the_exact_sums_by_at_most_their_sensitivity(
    task: str, times: float, make_local: LocalMaker
) -> None:
    local = _asked(make_local, task, max_grad_norm=0.5)
    latents, bounds = _latents(local, times), sensitivities(local)
    for count in (1, 2, measuring.PHYSICAL_ROWS + 1):
        records = _records(task, count, seed=count)
        for out in {0, count - 1}:
            fewer = Split(np.delete(records.images, out, axis=0), np.delete(records.labels, out, axis=0))
            sums, others = exact_sums(local, latents, records), exact_sums(local, latents, fewer)
            for kind, bound in bounds.items():
                moved = float(np.linalg.norm((sums[kind] - others[kind]).astype(np.float64)))
                assert moved <= bound, (kind, count, out)
                assert moved > 0 or kind == FISHER


@pytest.mark.parametrize("student", ["fp32-cnn", "ternary-depthwise"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_sums_are_those_of_records_measured_one_by_one(
    student: str, task: str, make_local: LocalMaker
) -> None:
    """Exactly: no record's company changes a bit of its part."""
    local = _asked(make_local, task, student=student)
    records, latents = _records(task, 12), _latents(local)
    whole = exact_sums(local, latents, records)
    parts = [
        exact_sums(local, latents, Split(records.images[i : i + 1], records.labels[i : i + 1]))
        for i in range(12)
    ]
    for kind, values in whole.items():
        assert np.array_equal(values, np.sum([part[kind] for part in parts], axis=0))


def test_a_batch_in_several_parts_is_summed_without_its_blanks(
    make_local: LocalMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = make_local(fisher_noise_multiplier=1.0)
    weights = sum(parameter.numel() for parameter in build_student(local.spec).parameters())
    monkeypatch.setattr(per_sample, "PART_BYTES", 4 * weights * 16)  # a quarter of the public shape
    records, latents = _records("binary", 20), _latents(local)
    parts = [
        exact_sums(local, latents, Split(records.images[i : i + 1], records.labels[i : i + 1]))[FISHER]
        for i in range(20)
    ]
    assert np.array_equal(exact_sums(local, latents, records)[FISHER], np.sum(parts, axis=0))
    monkeypatch.setattr(measuring, "blanks_zeroed", lambda parts, units: parts)
    assert not np.array_equal(exact_sums(local, latents, records)[FISHER], np.sum(parts, axis=0))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([1e-40, 1e-3, 1.0, 7.0, 1e19, 3e38]), min_size=6, max_size=6),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=6, max_size=6),
)
def test_squares_by_channel_of_a_clipped_gradient_are_no_longer_than_the_clip_squared(
    values: list[float], signs: list[float]
) -> None:
    gradient = torch.tensor(values) * torch.tensor(signs)
    parts = [gradient[:4].view(1, 2, 2), gradient[4:].view(1, 2)]
    clipped = measuring._clipped(parts, clip_below(0.5))
    steps = measuring._steps(clipped, [range(2), range(2)], FISHER_GRID * 0.25)
    assert float(steps.double().norm()) <= 2.0**20
    assert bool((steps >= 0).all())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(wrong: float) -> None:
    parts = [torch.tensor([[[1.0, wrong]], [[0.1, 0.1]]])]
    steps = measuring._steps(measuring._clipped(parts, clip_below(1.0)), [range(1)], FISHER_GRID)
    assert steps[0].tolist() == [0]
    assert steps[1].tolist() == [int(0.02 * 2**20)]


def test_the_fisher_is_that_of_a_loop_over_records(make_local: LocalMaker) -> None:
    local = make_local(fisher_noise_multiplier=1.0, max_grad_norm=50.0)  # no clip in effect
    records, latents = _records("binary", 5), _latents(local)
    found = exact_sums(local, latents, records)[FISHER] * 50.0**2 / 2**20
    model = build_student(local.spec)
    torch.nn.utils.vector_to_parameters(latents, model.parameters())
    channel, total = channel_of_weights(local.spec), np.zeros(len(found))
    for image, label in zip(records.images, records.labels, strict=True):
        model.zero_grad()
        inputs = torch.from_numpy(image[None].transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1.0
        torch.nn.functional.cross_entropy(model(inputs), torch.tensor([label])).backward()
        gradient = flatten([p.grad for p in model.parameters() if p.grad is not None])
        total += np.bincount(channel, weights=gradient.square().numpy())
    assert np.allclose(found, total, rtol=1e-3, atol=len(records.images) * 50.0**2 / 2**20)


# The mechanism


def test_noise_is_added_in_whole_numbers_to_every_cell_and_channel(make_local: LocalMaker) -> None:
    local, records = _asked(make_local, "multi-class"), _records("multi-class", 12)
    latents = _latents(local)
    noised = measure(local, latents, records, 20, KeyedGenerator.from_seed(1))
    again = measure(local, latents, records, 20, KeyedGenerator.from_seed(1))
    other = measure(local, latents, records, 20, KeyedGenerator.from_seed(2))
    exact = exact_sums(local, latents, records)
    assert set(noised) == {METRIC, FISHER}
    for kind, deviation in noise_deviations(local).items():
        assert noised[kind].dtype == np.int64
        assert np.array_equal(noised[kind], again[kind])
        noise = (noised[kind] - exact[kind]) / deviation
        assert 0.8 < float(noise.std()) < 1.2
        assert not np.array_equal(noised[kind], other[kind])


def test_the_two_parts_have_noise_of_their_own(make_local: LocalMaker) -> None:
    local, records = _asked(make_local), _records("binary", 12)
    noised = measure(local, _latents(local), records, 20, KeyedGenerator.from_seed(1))
    exact, deviations = exact_sums(local, _latents(local), records), noise_deviations(local)
    first = {kind: ((noised[kind] - exact[kind]) / deviations[kind])[:30] for kind in exact}
    assert not np.allclose(first[METRIC], first[FISHER], atol=0.1)


def test_records_beyond_the_declared_count_take_no_part(make_local: LocalMaker) -> None:
    local, latents = _asked(make_local), _latents(_asked(make_local))
    many, few = _records("binary", 30), _records("binary", 30)
    few = Split(few.images[:10], few.labels[:10])
    both = [measure(local, latents, r, 10, KeyedGenerator.from_seed(1)) for r in (many, few)]
    assert all(np.array_equal(both[0][kind], both[1][kind]) for kind in both[0])


def test_every_pass_has_the_one_public_shape(make_local: LocalMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    in_parts = PerSampleGradients.in_parts

    def watched(self: PerSampleGradients, images: torch.Tensor, *args: object) -> object:
        seen.add(len(images))
        return in_parts(self, images, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PerSampleGradients, "in_parts", watched)
    local = _asked(make_local)
    for count in (0, 1, measuring.PHYSICAL_ROWS + 3):
        sums = exact_sums(local, _latents(local), _records("binary", count))
        assert int(sums[METRIC].sum()) == count * cells_of(local).a_record
    assert seen == {measuring.PHYSICAL_ROWS}
