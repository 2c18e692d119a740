"""A broker of a quorum signs one quote for a trade id, and no other ever.

Two are evidence against it, and cost it its bond. Its peers ask it to sign trades of which it
has no row in its journal, so each signature has a fact there, which is written before it leaves.

A fact may go once nothing can be signed for its trade id: that follows from an offer, which lives
for a day at most, and of an offer that is over no new quote is signed. It stays until the trade is
over as well, and so the journal holds the signatures of some weeks, and not of all time.
"""

from __future__ import annotations

from typing import Final

from node.protocol import cbor
from node.protocol.bargain import MAX_GRACE, MAX_REVEAL_SECONDS
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.quote import Quote
from node.protocol.signing import sign_digest
from node.protocol.types import UnixTime
from node.station.station import Station

LONGEST_DISPUTE: Final = 30 * 86_400
"""The longest dispute window of a quote that the escrow takes."""
LONGEST_TRADE: Final = MAX_REVEAL_SECONDS + MAX_GRACE + LONGEST_DISPUTE
"""Seconds from the last moment to fund to the last at which a dispute can be heard."""
PRUNE_SECONDS: Final = 3_600
SIGNED: Final = "quote-signed "


class Pen:
    """Signs quotes as this broker's account."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._pruned: UnixTime | None = None

    def has_signed(self, quote: Quote) -> bool:
        """Whether we have signed a quote for its trade id, this one or another."""
        return self._station.journal.recall(_fact(quote)) is not None

    def sign(self, quote: Quote, *, offer_expires: UnixTime) -> bytes:
        """Return our signature; the same for the same quote, which is of an offer that ends then.

        Raises `RemoteProtocolError`: ``trade-id-used`` if we have signed another for its trade id,
        ``expired`` for a new one of an offer that is over.
        """
        station, kept = self._station, _fact(quote)
        name = digest(station.domain, quote)
        known = station.journal.recall(kept)
        if known is None:
            now = station.clock()
            if offer_expires <= now:  # what was signed for it may be forgotten
                raise RemoteProtocolError("expired", f"the offer, at {offer_expires}")
            if station.journal.trade(quote.trade_id, "broker") is not None:
                raise RemoteProtocolError("trade-id-used", quote.trade_id.hex())
            until = max(offer_expires, quote.fund_by + LONGEST_TRADE)
            station.journal.remember(kept, [name, until])
            self._prune(now)
        elif _said(known)[0] != name:
            raise RemoteProtocolError("trade-id-used", quote.trade_id.hex())
        return sign_digest(station.keys.account, name)

    def _prune(self, now: UnixTime) -> None:
        """Forget, once an hour, what was signed for trades that are over."""
        if self._pruned is not None and self._pruned <= now < self._pruned + PRUNE_SECONDS:
            return
        self._pruned = now
        journal = self._station.journal
        over = []
        for fact, known in journal.facts(SIGNED).items():
            until = _said(known)[1]
            if isinstance(until, int) and until < now:
                over.append(fact)
        journal.forget(over)


def _said(known: cbor.Value) -> tuple[cbor.Value, cbor.Value]:
    """Return what was signed, and until when that is remembered; None for always."""
    if isinstance(known, list) and len(known) == 2:
        return known[0], known[1]
    return known, None  # as it was written before facts had an end


def _fact(quote: Quote) -> str:
    return SIGNED + quote.trade_id.hex()
