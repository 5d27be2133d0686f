"""The page of metrics: Prometheus' text format, whatever a label holds, on loopback and nowhere else."""

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import CheckpointRefused, SettingRefused
from fedward.common.exposition import Metric, Sample, exposed, metrics_served
from fedward.common.flower_tools import free_port

FREE = Metric("disk_free_bytes", "gauge", "Free.")
LOST = Metric("lost_total", "counter", "Lost.", ("study", "reason"))
LINE = re.compile(r'lost_total\{study="((?:[^"\\\n]|\\.)*)",reason="((?:[^"\\\n]|\\.)*)"\} (\S+)')


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text)


def _get(port: int, path: str = "/metrics") -> "tuple[int, str, str]":
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read().decode()


def test_the_page_is_prometheus_text_format() -> None:
    samples = [Sample(LOST, ("a", "x"), 2), Sample(FREE, (), 0.5), Sample(LOST, ('b"\\\n', "y"), 1e12)]
    assert exposed(samples).decode() == (
        "# HELP lost_total Lost.\n# TYPE lost_total counter\n"
        'lost_total{study="a",reason="x"} 2\n'
        'lost_total{study="b\\"\\\\\\n",reason="y"} 1000000000000\n'
        "# HELP disk_free_bytes Free.\n# TYPE disk_free_bytes gauge\ndisk_free_bytes 0.5\n"
    )
    assert exposed([Sample(FREE, (), float("inf"))]).endswith(b"disk_free_bytes +Inf\n")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(st.tuples(TEXT, TEXT), st.floats(allow_nan=False), max_size=5))
def test_whatever_a_label_holds_can_be_read_back(found: dict[tuple[str, str], float]) -> None:
    page = exposed(Sample(LOST, labels, value) for labels, value in found.items()).decode()
    lines = [line for line in page.split("\n") if line and not line.startswith("#")]
    read = {}
    for line in lines:
        match = LINE.fullmatch(line)
        assert match is not None
        read[_unescaped(match[1]), _unescaped(match[2])] = float(match[3])
    assert read == found


@pytest.mark.parametrize("labels", [("a",), ("a", "b", "c")])
def test_labels_that_are_not_the_metrics_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="lost_total"):
        exposed([Sample(LOST, labels, 1)])


def test_one_figure_is_never_told_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        exposed([Sample(FREE, (), 1), Sample(FREE, (), 2)])


def test_the_page_is_served_anew_at_each_scrape_and_nothing_else_is() -> None:
    port, values = free_port(), iter([1.0, 2.0])
    with metrics_served(port, lambda: [Sample(FREE, (), next(values))]):
        status, kind, page = _get(port)
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert page.endswith("disk_free_bytes 1\n")
        assert _get(port)[2].endswith("disk_free_bytes 2\n")
        for path in ("/", "/metrics/", "/metrics?x", "/../etc/passwd"):
            assert _get(port, path)[0] == 404
    with pytest.raises(urllib.error.URLError):
        _get(port)


def test_what_cannot_be_read_is_an_error_without_its_text() -> None:
    def broken() -> Iterator[Sample]:
        yield Sample(FREE, (), 1)
        raise CheckpointRefused("/secret/folder is damaged")

    port = free_port()
    with metrics_served(port, broken):
        status, _, page = _get(port)
    assert status == 503
    assert "secret" not in page


def test_a_port_that_is_taken_is_refused_and_without_one_nothing_listens() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SettingRefused, match="free one"),
        metrics_served(taken.getsockname()[1], list),
    ):
        pass
    with metrics_served(None, lambda: pytest.fail("nobody asks")):
        pass


def test_it_listens_on_loopback_alone() -> None:
    port = free_port()
    with metrics_served(port, list):
        listening = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        ]
    assert listening == [f"0100007F:{port:04X}"]
