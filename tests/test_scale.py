"""The study `scale`: the aggregator apart is the aggregator, and what it is told to measure is what grows."""

import gc
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedward.client.app import app as client_app
from fedward.common.errors import EngineFailed
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.rounds import run_rounds
from fedward.server.study_folder import StudyFolder
from fedward.simulations.aggregator_apart import run_apart
from fedward.simulations.federation import InProcessGrid, run_in_process
from fedward.simulations.studies import scale
from fedward.simulations.studies.scale import make_light_federation, scale_study
from fedward.simulations.studies.scale_chart import write_chart


def _row(hospitals: int, above: int, peak: int = 400_000) -> dict[str, Any]:
    return {
        "key": {"hospitals": hospitals, "rounds": 2},
        "above_base_kb": above,
        "peak_kb": peak,
        "received_bytes": hospitals * 1000,
        "seconds_a_site": 0.05,
        "aggregator_cpu_seconds_a_site": 0.002,
    }


def test_an_aggregator_apart_gives_the_model_of_the_in_process_run(tmp_path: Path) -> None:
    study = scale_study(3, 2)
    apart, together = (make_light_federation(tmp_path / name, study) for name in ("apart", "together"))
    found = run_apart(apart)
    run_in_process(together.path, 3)
    np.testing.assert_array_equal(np.load(apart.final), np.load(together.final))
    assert found.peak_kb > found.base_kb > 50_000
    assert found.received > 2 * 3 * 57_954 * 4
    assert found.cpu_seconds > 0


def test_hospitals_that_are_gone_are_an_error_by_name(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    folder.create(scale_study(1, 1), None)  # without the hospital's own folder
    with pytest.raises(EngineFailed):
        run_apart(folder)


def test_no_question_and_no_reply_is_kept_while_others_are_waited_for(tmp_path: Path) -> None:
    """What would grow with the number of hospitals: counted whenever a reply of the round is pulled."""
    hospitals = 20
    folder = make_light_federation(tmp_path / "s", scale_study(hospitals, 1))
    grid = _Counting(hospitals, folder)
    run_rounds(grid, folder)
    assert grid.largest_push <= 16
    assert max(grid.alive) <= 6  # of 40: those in hand


class _Counting(InProcessGrid):
    """Counts the training messages, either way, that somebody else still holds."""

    def __init__(self, hospitals: int, folder: StudyFolder) -> None:
        super().__init__(client_app, hospitals, {STUDY_FOLDER: str(folder.path)})
        self.seen: list[weakref.ref[Any]] = []
        self.alive: list[int] = []
        self.largest_push = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        if pushed and pushed[0].metadata.message_type == "train":
            self.largest_push = max(self.largest_push, len(pushed))
            self.seen += [weakref.ref(message) for message in pushed]
        # As over a wire: a copy is delivered.
        ids = list(super().push_messages(pushed))
        self._pending |= {
            message_id: _copy(self._pending[message_id]) for message_id in ids if message_id in self._pending
        }
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if reply.metadata.message_type == "train":
                gc.collect()
                self.alive.append(sum(message() is not None for message in self.seen))
                self.seen.append(weakref.ref(reply))
            yield reply


def _copy(message: Message) -> Message:
    content, metadata = message.content, message.metadata
    copied = Message(content, metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl)
    copied.metadata.__dict__.update(metadata.__dict__)
    return copied


def test_targets_compare_a_thousand_with_ten() -> None:
    rows = [_row(10, 10_000), _row(300, 1), _row(1000, 11_980, 404_000)]
    above, whole, a_site = scale._targets(rows)
    assert (above.figure, above.is_met) == (1.198, True)
    assert (whole.figure, whole.is_met) == (1.01, True)
    assert (a_site.figure, a_site.is_met) == (2.0, True)
    assert not scale._targets([_row(10, 10_000), _row(1000, 12_100)])[0].is_met
    assert scale._targets([_row(3, 1), _row(10, 1)]) == []


def test_the_chart_is_one_file_that_names_its_lines(tmp_path: Path) -> None:
    path = write_chart(tmp_path / "scale.svg", [_row(3, 9_000), _row(1000, 10_000)])
    text = path.read_text()
    assert "1,000" in text
    assert "if kept" in text
