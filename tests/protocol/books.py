"""What the tests of the book share: messages that are good, and the words to judge them by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from node.protocol import book, cbor
from node.protocol.book import OfferBook
from node.protocol.types import UnixTime
from node.protocol.verdict import Judgement, Verdict
from tests.protocol import cast, tables
from tests.protocol.cast import BROKER, NOW, SELLER, seal

OFFER = seal(cast.OFFER, SELLER)
NOTICE = seal(cast.NOTICE, BROKER)
RECEIPT = seal(cast.receipt(), BROKER)
TAKEN_BACK = seal(cast.revocation(cast.OFFER_DIGEST), SELLER)
GOOD = Verdict(Judgement.ACCEPT, "good")
VERDICTS = {reason: verdict for _, reason, verdict in tables.rows(book)}


def later(seconds: int) -> UnixTime:
    """Return a moment after (or before) the issue of all that is said."""
    return UnixTime(NOW + seconds)


def rewritten(data: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """Return a message with its CBOR value changed and its signatures kept."""
    value = cbor.decode(data)
    assert isinstance(value, list)
    change(value)
    return cbor.encode(value)


def says(ours: OfferBook, data: bytes, now: UnixTime = NOW) -> str:
    """Return the reason, having seen that it is under the verdict that the table gives it."""
    verdict = ours.receive(data, now)
    assert verdict.judgement.value == VERDICTS[verdict.reason]
    return verdict.reason


def remembered(ours: OfferBook) -> int:
    """Return how many things the book holds, in all of its tables."""
    held = (getattr(ours, field.name) for field in dataclasses.fields(ours))
    return sum(len(table) for table in held if isinstance(table, dict) and table is not ours.counts)
