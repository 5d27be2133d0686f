"""Heads of this site's budget ledgers as tokens that others keep and only this site can make or read.

    <place: 48 hex>:<hash of the entry: 64 hex>:<mac: 64 hex>

A coordinator keeps the token of each reply and brings it back; a release carries the last ones. A ledger that
does not contain an entry which a token names is an older copy, and `Budget.require_anchor` stops all work. So
a coordinator must not be able to make one up: the mac is HMAC-SHA256 (RFC 2104) under a key that is derived
from the site's own secret. Nor may a token tell anything: how many entries a ledger has would tell of other
studies, and a ledger's name would join studies that know a hospital by different names. So the place, which
is the ledger's random name and the entry's number, travels under a pad of the same secret; the hash is one of
a chain that begins with a random name.
"""

import hashlib
import hmac

from fedward.client.budget import Budget
from fedward.client.registry import Registry
from fedward.common.chain import Head
from fedward.common.errors import LedgerRefused, RequestRefused

_PURPOSE = b"fedward ledger anchor "
_NAME_BYTES, _NUMBER_BYTES = 16, 8
_PLACE_BYTES = _NAME_BYTES + _NUMBER_BYTES


class Anchors:
    """Makes and reads a site's tokens."""

    def __init__(self, registry: Registry) -> None:
        """Derive the keys from the site's secret."""
        self._registry = registry
        self._mac_key, self._pad_key = (
            registry.identity.subkey(_PURPOSE + part) for part in (b"mac", b"pad")
        )

    def token(self, ledger_id: str, head: Head) -> str:
        """The token of an entry of the ledger `ledger_id` (32 hex digits)."""
        place = bytes.fromhex(ledger_id) + head.seq.to_bytes(_NUMBER_BYTES, "big")
        body = f"{self._padded(place, head.hash).hex()}:{head.hash}"
        return f"{body}:{self._mac(body)}"

    def opened(self, token: str) -> tuple[str, Head]:
        """The ledger's name and the entry that a token stands for.

        Raises:
            RequestRefused: this site did not make it; it tells nothing of the ledger, so nothing is stopped.
        """
        body, _, mac = token.rpartition(":")
        padded, _, entry_hash = body.partition(":")
        if not hmac.compare_digest(self._mac(body).encode(), mac.encode("utf-8", "replace")):
            raise RequestRefused(
                "The anchor is none that this hospital made: send back, unchanged, the one of its last reply."
            )
        place = self._padded(bytes.fromhex(padded), entry_hash)
        return place[:_NAME_BYTES].hex(), Head(int.from_bytes(place[_NAME_BYTES:], "big"), entry_hash)

    def is_own(self, token: object) -> bool:
        """Whether this site made the token."""
        try:
            self.opened(str(token))
        except RequestRefused:
            return False
        return True

    def require(self, token: str, default: Budget | None = None) -> Head:
        """Refuse to work on a ledger that lacks the entry of a token that came back.

        Args:
            token: as a request or a release carried it.
            default: answers for a ledger that is gone altogether.

        Raises:
            RequestRefused: the token is forged.
            LedgerRefused: the entry is missing; the budget is suspended until `recover`.
        """
        ledger_id, head = self.opened(token)
        self._budget(ledger_id, default).require_anchor(head)
        return head

    def budget(self, token: str) -> Budget:
        """The budget that a token speaks of.

        Raises:
            RequestRefused: the token is forged.
            LedgerRefused: its ledger is gone, and which of several stands in for it is not known.
        """
        return self._budget(self.opened(token)[0], None)

    def _budget(self, ledger_id: str, default: Budget | None) -> Budget:
        budgets = self._registry.budgets()
        found = next((budget for budget in budgets if budget.ledger.id == ledger_id), default)
        if found is None and len(budgets) == 1:
            return budgets[0]
        if found is None:
            raise LedgerRefused("The anchor names a ledger that is not here: put back its newest copy.")
        return found

    def _mac(self, body: str) -> str:
        return hmac.digest(self._mac_key, body.encode("utf-8", "replace"), hashlib.sha256).hex()

    def _padded(self, place: bytes, entry_hash: str) -> bytes:
        """`place` under the pad of this entry, or out of it again; no two entries share a pad."""
        pad = hmac.digest(self._pad_key, entry_hash.encode(), hashlib.sha256)[:_PLACE_BYTES]
        return bytes(a ^ b for a, b in zip(place, pad, strict=True))
