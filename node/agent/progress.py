"""Where an agent's rounds stand, and what its purchases of a round came to, by its journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.chronicle import LegEnded
from node.journal import Journal
from node.protocol import cbor
from node.protocol.kinship import is_adapter
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.types import Digest, Millionths, PeerId, Wei
from node.settlement.trade import machine_of

CAME_TO_NOTHING: Final = frozenset({PurchaseState.ABANDONED, PurchaseState.REFUNDED})
GAVE_WEIGHTS: Final = frozenset({PurchaseState.DELIVERED, PurchaseState.COMPLETE})
FACT: Final = "progress"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an agent stands."""

    round: int
    """Rounds that are over."""
    epoch: int
    """Epochs of training that are in `root`."""
    root: Digest
    offered: bool
    """Whether `root` is what this round offers; its trade may be under way."""
    earlier: tuple[Digest, ...] = ()
    """Purchases that rounds before have made on the same weights; any other on them is of this
    round, noted or not: a process may be killed as soon as the trade is in the journal."""
    adapters: str = ""
    """The architecture of `root` where it is adapters, whose ranks a purchase changes."""

    def ended(self, architecture: str, root: Digest) -> Progress:
        """Return where the agent stands once this round is over, with such weights."""
        adapters = adapters_of(architecture)
        return Progress(self.round + 1, self.epoch, root, offered=False, adapters=adapters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one round of trading came to. Amounts are wei, fractions millionths."""

    round: int
    """1 for the first."""
    bought: bool
    because: str
    """``bought``, or why not: ``no-offer``, ``gain``, ``bound``, ``ask``, ``fee``, ``cash``, or
    the reason of whatever went wrong."""
    trade_id: Digest | None = None
    seller: PeerId | None = None
    price: Wei | None = None
    alpha: Millionths | None = None
    gain: Millionths | None = None
    bound: Millionths | None = None


def adapters_of(architecture: str) -> str:
    """Return what `Progress.adapters` says of weights of this architecture."""
    return architecture if is_adapter(architecture) else ""


def recall(journal: Journal) -> Progress | None:
    """Return where the agent of this journal stands; None before its first offer."""
    match journal.recall(FACT):
        case [int(played), int(epoch), bytes(root), bool(offered), *more]:
            earlier: tuple[Digest, ...] = ()
            adapters = more.pop() if more and isinstance(more[-1], str) else ""
            match more:
                case [list(names)]:
                    earlier = tuple(Digest(name) for name in names if isinstance(name, bytes))
                case [bytes(opened)] if opened:  # the round's own, as older journals have it
                    made = made_on(journal, Digest(root))
                    earlier = tuple(name for name in made if name != opened)
            return Progress(played, epoch, Digest(root), offered, earlier, str(adapters))
        case _:
            return None


def remember(journal: Journal, progress: Progress) -> None:
    """Journal where the agent stands."""
    fact: list[cbor.Value] = [progress.round, progress.epoch, progress.root, progress.offered]
    if progress.earlier:
        fact.append(list(progress.earlier))
    if progress.adapters:
        fact.append(progress.adapters)
    journal.remember(FACT, fact)


def purchases(journal: Journal) -> list[Purchase]:
    """Return every purchase, in the order in which they were opened."""
    machines = (machine_of(row) for row in journal.trades(role="buyer"))
    return [machine for machine in machines if isinstance(machine, Purchase)]


def made_on(journal: Journal, root: Digest) -> tuple[Digest, ...]:
    """Return the purchases that were tried on these weights of ours."""
    return tuple(
        purchase.record.trade_id
        for purchase in purchases(journal)
        if purchase.record.evaluation.base_root == root
    )


def under_way(journal: Journal, progress: Progress | None) -> list[Purchase]:
    """Return what the round that is not over has opened, ended or not."""
    if progress is None or not progress.offered:
        return []
    return [
        purchase
        for purchase in purchases(journal)
        if purchase.record.evaluation.base_root == progress.root
        and purchase.record.trade_id not in progress.earlier
    ]


def roots_kept(journal: Journal, progress: Progress | None) -> set[Digest]:
    """Return the blobs that stay for good, or while the agent stands where it does."""
    kept = set() if progress is None else {progress.root}
    for purchase in purchases(journal):
        record = purchase.record
        kept |= {record.quote.offer_root, record.evaluation.merged_root}
        if purchase.state is PurchaseState.CHEATED:
            kept.add(record.quote.goods_root)  # the proof
    return kept


def offers_bought(journal: Journal) -> set[Digest]:
    """Return the offers that were bought or are being bought: none is paid for twice.

    Nor is one of which a leaf was bad, although its price came back.
    """
    return {
        purchase.record.offer_digest
        for purchase in purchases(journal)
        if purchase.state not in CAME_TO_NOTHING or purchase.record.evidence is not None
    }


def step_of(purchase: Purchase, number: int, *, bought: bool) -> Step:
    """Return what round `number` came to by a purchase that is settled."""
    record = purchase.record
    measured = record.evaluation
    return Step(
        round=number,
        bought=bought,
        because="bought" if bought else purchase.state.value,
        trade_id=record.trade_id,
        seller=record.seller_peer,
        price=record.quote.price,
        alpha=measured.alpha,
        gain=measured.gain,
        bound=measured.bound,
    )


def told(step: Step) -> LegEnded:
    """Return what the log says of a step."""
    return LegEnded(
        round=step.round,
        because=step.because,
        trade_id=step.trade_id,
        seller=step.seller,
        price=step.price,
        alpha=step.alpha,
        gain=step.gain,
        bound=step.bound,
    )
