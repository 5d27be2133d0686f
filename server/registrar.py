"""Keeps SuperLink's list of nodes in step with the coordinator's list of sites.

A site's node is let in by SuperLink only while its key is registered there. After `enrol` and a renewal the
new key is registered within seconds; a key that ended, or whose site was revoked, is taken off. So the
gateway and SuperLink each refuse by themselves.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedward.common.errors import Refusal
from fedward.common.instants import utc_now
from fedward.common.logs import told
from fedward.server.control import Control
from fedward.server.sites import Sites

_LOOK_SECONDS, _AGAIN_SECONDS, _RECHECK_SECONDS = 1.0, 5.0, 3600.0
_log = logging.getLogger(__name__)


class Registrar:
    """Registers the nodes of a coordinator's sites."""

    def __init__(self, folder: Path, control: Control) -> None:
        """Prepare; nothing is asked yet."""
        self._folder, self._control = folder, control
        self._done: frozenset[bytes] | None = None
        self._said = ""
        self._next_look = self._next_check = 0.0

    def tick(self) -> None:
        """Look, at most once a second; a refusal is logged, and tried again."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        try:
            wanted = self._wanted()
            if wanted == self._done and now < self._next_check:
                return
            self._agree(wanted)
        except Refusal as refusal:
            self._say(refusal)
            self._next_look = now + _AGAIN_SECONDS if self._done is not None else self._next_look
            return
        self._done, self._next_check = wanted, now + _RECHECK_SECONDS
        self._said = ""

    def _say(self, refusal: Refusal) -> None:
        """Once, though it is tried each second while SuperLink starts."""
        if str(refusal) != self._said:
            _log.warning("the nodes' keys were not agreed with SuperLink", extra={"fields": told(refusal)})
        self._said = str(refusal)

    def _wanted(self) -> frozenset[bytes]:
        moment = utc_now()
        return frozenset(
            node.encode() for site in Sites(self._folder).active() for node in site.node_keys(moment)
        )

    def _agree(self, wanted: frozenset[bytes]) -> None:
        known = self._control.nodes()
        steps = [partial(self._control.register, key) for key in wanted - known.keys()]
        steps += [partial(self._control.unregister, known[key]) for key in known.keys() - wanted]
        refused = [refusal for step in steps if (refusal := _tried(step)) is not None]
        if refused:
            raise refused[0]


def _tried(step: Callable[[], None]) -> Refusal | None:
    """One key that SuperLink does not take must not keep the others out."""
    try:
        step()
    except Refusal as refusal:
        return refusal
    return None
