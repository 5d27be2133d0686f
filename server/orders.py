"""What is wanted of the coordinator's studies: a small file each, which `fedward coordinator up` obeys.

``orders/<digest of the folder's path>.json``: ``{folder, wanted, number}``; a new number is a new order.
``reports/<the same>.json``: ``{state, said, run}``, written by the process that obeys.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedward.common.errors import CheckpointRefused
from fedward.common.files import canonical_json, make_folder, parse_canonical, read_bounded, write_atomically

WAITING, RUNNING, FINISHED, STOPPED, REFUSED = "waiting", "running", "finished", "stopped", "refused"
_LIMIT = 1 << 16


@dataclass(frozen=True)
class Order:
    """What is wanted of one study.

    Attributes:
        folder: the study's, absolute.
        wanted: whether it shall run.
        number: of the order, so that the same wish a second time is seen.
    """

    folder: str
    wanted: bool
    number: int


@dataclass(frozen=True)
class Report:
    """What became of it.

    Attributes:
        state: waiting, running, finished, stopped or refused.
        said: a refusal's name and sentence, or empty.
        run: Flower's run id, or 0.
        number: of the order that it is about.
    """

    state: str
    said: str = ""
    run: int = 0
    number: int = 0


class Orders:
    """The orders and reports of one coordinator's state folder."""

    def __init__(self, state: Path) -> None:
        """Keep them in `state`.

        Raises:
            OutputRefused: it cannot be made.
        """
        self._orders, self._reports = state / "orders", state / "reports"
        for folder in (state, self._orders, self._reports):
            make_folder(folder, 0o700)

    def give(self, folder: Path, wanted: bool) -> Order:
        """Order that a study shall run, or not.

        Raises:
            OutputRefused: it cannot be written.
        """
        path = folder.resolve()
        name = _name(path)
        before = self._read(self._orders / name, Order)
        number = 1 if before is None else before.number + 1
        order = Order(os.fspath(path), wanted, number)
        write_atomically(self._orders / name, canonical_json(asdict(order)), 0o600)
        return order

    def all(self) -> list[Order]:
        """Every order.

        Raises:
            CheckpointRefused: a file is damaged.
        """
        found = (self._read(path, Order) for path in sorted(self._orders.glob("*.json")))
        return [order for order in found if order is not None]

    def report(self, order: Order, report: Report) -> None:
        """Write what became of an order, where it is news.

        Raises:
            OutputRefused: it cannot be written.
        """
        if report != self.report_of(order):
            write_atomically(self._reports / _name(Path(order.folder)), canonical_json(asdict(report)), 0o600)

    def report_of(self, order: Order) -> Report:
        """What became of an order; waiting, where nobody has obeyed it yet."""
        found = self._read(self._reports / _name(Path(order.folder)), Report)
        return Report(WAITING) if found is None or found.number != order.number else found

    def _read(self, path: Path, kind: type[Any]) -> Any:
        if not path.exists():
            return None
        try:
            return kind(**parse_canonical(read_bounded(path, _LIMIT)))
        except (TypeError, ValueError) as error:
            raise CheckpointRefused(f"{path} is damaged; remove it, and start the study again.") from error


def _name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16] + ".json"
