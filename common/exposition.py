"""Figures for a monitoring system: Prometheus' text format 0.0.4, on loopback, for whoever scrapes it.

Written by hand, since it is a page of text: a supervisor that stays up for months loads nothing for it.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple

from fedward.common.errors import Refusal, SettingRefused
from fedward.common.flower_tools import LOOPBACK

PATH = "/metrics"
_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = 10.0  # for a caller that sends nothing
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A figure's name, what it says, and by what it is told apart.

    Attributes:
        name: with its unit, as Prometheus asks for it; a counter's ends in ``_total``.
        kind: a counter only grows while the process lives.
        labels: names of the labels.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One figure."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


def exposed(samples: Iterable[Sample]) -> bytes:
    """The page: each metric once, with all its samples.

    Raises:
        ValueError: a sample has other labels than its metric, or the same ones twice.
    """
    found: dict[Metric, dict[tuple[str, ...], float]] = {}
    for metric, labels, value in samples:
        values = found.setdefault(metric, {})
        if len(labels) != len(metric.labels) or labels in values:
            raise ValueError(f"{metric.name} has wrong labels, or the same ones twice")
        values[labels] = value
    lines: list[str] = []
    for metric, values in found.items():
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [
            f"{metric.name}{_labels(metric, labels)} {_number(value)}" for labels, value in values.items()
        ]
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")


def _labels(metric: Metric, values: Sequence[str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(metric.labels, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value)) if value != int(value) else str(int(value))


@contextmanager
def metrics_served(port: int | None, collect: Callable[[], Iterable[Sample]]) -> Iterator[None]:
    """Serve the page on loopback while the block runs; without a port, nothing.

    Args:
        port: of loopback; None is off.
        collect: the samples, asked for at each scrape by one caller at a time.

    Raises:
        SettingRefused: the port is taken, or is none.
    """
    if port is None:
        yield
        return
    server = _server(port, collect)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Errors of a scrape, a caller that hung up among them: a line without the error's text."""
        _log.exception("a scrape failed")


def _server(port: int, collect: Callable[[], Iterable[Sample]]) -> ThreadingHTTPServer:
    turn = threading.Lock()

    class Page(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version, sys_version = "fedward", ""

        def do_GET(self) -> None:
            if self.path != PATH:
                self.send_error(404, "the figures are at /metrics")
                return
            try:
                with turn:
                    page = exposed(collect())
            except (Refusal, OSError, ValueError) as error:
                _log.warning("the metrics cannot be told", exc_info=error)
                self.send_error(503, "the figures cannot be read; see the log")
                return
            self.send_response(200)
            self.send_header("Content-Type", _TYPE)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line each."""

    try:
        return _Server((LOOPBACK, port), Page)
    except (OSError, OverflowError) as error:
        raise SettingRefused(
            f"Nothing can listen on port {port} of {LOOPBACK} for --metrics-port: name a free one."
        ) from error
