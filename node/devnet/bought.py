"""What an agent has bought, by its own journal: the measurement that each purchase was made on.

Events tell it too, but a process that is interrupted tells nothing of the round it was in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.agent import progress as journalled
from node.agent.progress import GAVE_WEIGHTS
from node.journal import Journal
from node.protocol.types import Digest, Millionths, PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """One purchase, whatever became of it."""

    seller: PeerId
    offer: Digest
    alpha: Millionths
    gain: Millionths
    bound: Millionths
    delivered: bool
    open_round: int | None
    """The round that opened it, if that is not over."""


def read_bought(path: Path) -> dict[Digest, Bought]:
    """Return the purchases in the journal at `path` by trade. Raises `JournalError`."""
    journal = Journal(path, read_only=True)
    try:
        at = journalled.recall(journal)
        under_way = journalled.under_way(journal, at)
        rounds = {p.record.trade_id: at.round + 1 for p in under_way if at is not None}
        return {
            purchase.record.trade_id: Bought(
                seller=purchase.record.seller_peer,
                offer=purchase.record.offer_digest,
                alpha=purchase.record.evaluation.alpha,
                gain=purchase.record.evaluation.gain,
                bound=purchase.record.evaluation.bound,
                delivered=purchase.state in GAVE_WEIGHTS,
                open_round=rounds.get(purchase.record.trade_id),
            )
            for purchase in journalled.purchases(journal)
        }
    finally:
        journal.close()
