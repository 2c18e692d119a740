"""Whose model is whose: what comes up for sale is compared with what others have brought before.

A model that is offered is compared with those of the same architecture that the broker holds of
other accounts. If it is like one of them (`broker_node.verify.replicas`), the question is which of
the two was committed to first, and whether something that is proved explains the other one:

| the later one is …                                             | finding     |
|----------------------------------------------------------------|-------------|
| of an account that no purchase leads to or from (`kin`)        | replica     |
| the very bytes of what its account has bought, or merged       | bought      |
| kin, and nothing of its account's own can be compared any more | related     |
| kin, and about as near to a merge or model of its own (`RATIO`)| descends    |
| kin, and far nearer to the other than to anything of its own   | replica     |

The last two tell a model that was merged and trained on from a copy of what was bought. Of a
purchase that took all of the seller's (α = 1) the merge is the seller's model: a copy of that is
nothing else than what was paid for.

Who was first is what `broker_node.commitments` says: of those who have shown the bytes, whoever was
heard of first. Of a root that comes to the door, all live offers in the book are committed to, the
first heard first. Findings are in the journal. Models are held in memory alone, as ever:
after a restart they are compared as they come again.

The cost of an offer is bounded: of all models held at most `MAX_COMPARED` are matched with it,
those whose prints are nearest, and for each that it is like at most twice `MAX_OWN` more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
import trio

from broker_node.commitments import MAX_COMMITMENTS, Commitments, Owned, fact, owned
from broker_node.findings import LikenessExplained, NotCompared, ReplicaFound
from broker_node.kin import Bought, Kin
from broker_node.shelf import ModelShelf
from broker_node.verify.comparing import Comparer
from broker_node.verify.replicas import threshold_of
from broker_node.verify.stages import Verified
from node.journal import Journal
from node.params.encoding import weights_root
from node.params.merges import merge_bought
from node.params.recipe import Recipe
from node.protocol import cbor
from node.protocol.brokerage import Brokerage
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import Offer
from node.protocol.types import ONE, Address, Digest, Millionths
from node.settlement.trade import machine_of
from node.station.station import Station

REFUSED: Final = "replica"
MAX_COMPARED: Final = 4
"""Models of others that one offer is matched with: a tenth of a second each, of MNIST's."""
MAX_OWN: Final = 4
"""Merges, and models, of an account's own that a likeness is measured against, newest first."""
RATIO: Final = 4.0
"""How many times nearer the other may be, in 1 - score. Agents that buy of each other for rounds
come to be alike, and were measured up to twice as near to one another as to their own merges; a
copy with 1% of noise is 30 times nearer and more."""
ROUNDING: Final = 1e-5
"""Of a score."""
MAX_FOUND: Final = 1_024
_REPLICA: Final = "replica/"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A replica that nothing proved explains."""

    seller: Address
    root: Digest
    of_seller: Address
    of_root: Digest
    score: Millionths

    @property
    def detail(self) -> str:
        """What its seller is told."""
        return (
            f"like {self.of_root.hex()} of {self.of_seller}, which was committed to before: score "
            f"{self.score / ONE:.3f}; no receipt of ours explains it"
        )


class Provenance:
    """Compares what is offered, as `mode` says: one of `broker_node.settings.REPLICAS`."""

    def __init__(
        self,
        *,
        mode: str,
        station: Station,
        shelf: ModelShelf,
        probes_RF: torch.Tensor | None,
        compute: trio.CapacityLimiter,
    ) -> None:
        """Without rows, `probes_RF`, only the same bytes are found."""
        self._mode = mode
        self._station = station
        self._shelf = shelf
        self._comparer = Comparer(probes_RF)
        self._compute = compute
        self._turn = trio.Lock()
        self.kin = Kin(station.journal)
        self._committed = Commitments(station.journal, self._held)
        self._found: dict[Owned, Found | None] = {}
        """What was compared; None where nothing was found."""
        for found in replicas_in(station.journal):
            self._found[found.seller, found.root] = found

    def noted(self, offer: Offer, *, shown: bool = False) -> None:
        """Remember when an offer, or a base, was heard of, and whoever else offers those bytes.

        `shown`: the bytes came from the offer's own peer.
        """
        if self._mode == "ignore":
            return
        station, root = self._station, offer.weights_root
        now = station.clock()
        for name, one in station.book.offers(now):  # the first heard first
            if one.weights_root == root:
                self._committed.note((one.seller, root), station.book.heard_at(name) or now)
        heard = station.book.heard_at(digest(station.domain, offer)) or now
        self._committed.note((offer.seller, root), heard, shown=shown)

    def unshown(self, offer: Offer) -> bool:
        """Whether its account has yet to show bytes that it might have been the first to have."""
        if self._mode == "ignore" or not offer.for_sale:
            return False
        self.noted(offer)
        return self._committed.unshown((offer.seller, offer.weights_root))

    def committed(self, seller: Address, root: Digest) -> bool:
        """Whether an account is known to have said that it has these bytes."""
        return (seller, root) in self._committed

    async def judge(self, offer: Offer, model: Verified) -> None:
        """Compare what is for sale. Raises `RemoteProtocolError("replica")` for what is refused."""
        self.noted(offer)
        if self._mode == "ignore" or not offer.for_sale:
            return
        key = (offer.seller, offer.weights_root)
        async with self._turn:
            if key not in self._found:
                self._found[key] = None
                try:
                    await self._compare(key, model)
                except BaseException:  # cut off: it is compared when it is asked for again
                    del self._found[key]
                    raise
                while len(self._found) > MAX_COMMITMENTS:
                    innocent = (one for one, seen in self._found.items() if seen is None)
                    del self._found[next(innocent, next(iter(self._found)))]
        self.require(offer)

    def require(self, offer: Offer) -> None:
        """Raise `RemoteProtocolError("replica")` for what was found to be one, and is refused."""
        found = self._found.get((offer.seller, offer.weights_root))
        if found is not None and self._mode == "refuse" and offer.for_sale:
            raise RemoteProtocolError(REFUSED, found.detail, peer=offer.peer_id)

    # ── comparing ──

    async def _compare(self, key: Owned, model: Verified) -> None:
        owners: dict[Digest, list[Owned]] = {}
        for one in self._committed:
            if one[0] != key[0] and self._found.get(one) is None:  # a replica is nobody's
                owners.setdefault(one[1], []).append(one)
        for other in owners.get(key[1], ()):
            await self._conclude(key, other, model, model, 1.0)
        others = [
            held
            for held in self._shelf.models()
            if held.weights_root in owners and held.weights_root != key[1]
        ]
        scored = await self._threaded(
            lambda: [
                (other, score)
                for other in self._comparer.nearest(model, others, MAX_COMPARED)
                if (score := self._comparer.score(model, other)) is not None
                and score >= threshold_of(model.architecture)
            ]
        )
        if why := self._comparer.why_not(model):
            self._station.observer.emit(NotCompared(seller=key[0], root=key[1], reason=why))
        for other_model, score in scored:
            for other in owners[other_model.weights_root]:
                await self._conclude(key, other, model, other_model, score)

    async def _conclude(
        self, one: Owned, other: Owned, model: Verified, other_model: Verified, score: float
    ) -> None:
        """Find the later of two that are alike to be a replica, or what explains it."""
        first, later = sorted(
            ((one, model), (other, other_model)), key=lambda row: self._committed.place(row[0])
        )
        (seller, root), (of_seller, of_root) = later[0], first[0]
        if later[0] not in self._found or self._found[later[0]] is not None:
            return  # never up for sale, or found already
        why, own = await self._explained(later[0], later[1], of_seller, score)
        measured = Millionths(round(score * ONE))
        if why:
            self._station.observer.emit(
                LikenessExplained(
                    seller=seller, root=root, of_seller=of_seller, of_root=of_root,
                    score=measured, why=why, own=own)
            )  # fmt: skip
            return
        self._found[later[0]] = Found(
            seller=seller, root=root, of_seller=of_seller, of_root=of_root, score=measured
        )
        self._save(later[0])
        self._station.observer.emit(
            ReplicaFound(
                seller=seller, root=root, of_seller=of_seller, of_root=of_root,
                score=measured, own=own, refused=self._mode == "refuse",
            )
        )  # fmt: skip

    async def _explained(
        self, later: Owned, model: Verified, of_seller: Address, score: float
    ) -> tuple[str, Millionths | None]:
        """Return what explains a likeness, or nothing, and how near the nearest of its own is."""
        seller, root = later
        if not self.kin.related(seller, of_seller):
            return "", None
        bought = self.kin.purchases(seller)
        if any(root in (one.sold_root, one.merged_root) for one in bought):
            return "bought", None
        merges = [merge for one in bought[:MAX_OWN] if (merge := self._parts_of(one)) is not None]
        own = self._earlier(later)
        if (bought and self._parts_of(bought[0]) is None) or not (merges or own):
            return "related", None

        def nearest() -> float:
            models = [made for parts in merges if (made := _merged(*parts)) is not None]
            scores = [self._comparer.score(model, one) for one in (*models, *own)]
            return max((one for one in scores if one is not None), default=-1.0)

        own_score = await self._threaded(nearest)
        why = "descends" if 1 - own_score <= RATIO * (1 - score) + ROUNDING else ""
        return why, Millionths(round(own_score * ONE))

    def _parts_of(self, bought: Bought) -> tuple[Verified, Verified, Recipe, Digest] | None:
        """Return what a purchase was merged from, while all of it is held."""
        row = self._station.journal.trade(bought.trade_id, "broker")
        held = self._held()
        base, sold = held.get(bought.base_root), held.get(bought.sold_root)
        if row is None or row.pruned or base is None or sold is None:
            return None
        machine = machine_of(row)
        assert isinstance(machine, Brokerage)
        return base, sold, Recipe.decode(machine.record.deal.recipe), bought.merged_root

    def _earlier(self, later: Owned) -> list[Verified]:
        """Return models of the account's own from before, the newest first."""
        own = (one for one in self._committed if one[0] == later[0])
        before = (one for one in own if self._committed.place(one) < self._committed.place(later))
        held = self._held()
        newest = sorted(before, key=self._committed.place, reverse=True)
        return [held[root] for _, root in newest if root in held][:MAX_OWN]

    def _held(self) -> dict[Digest, Verified]:
        return {model.weights_root: model for model in self._shelf.models()}

    async def _threaded(self, compute: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(compute, limiter=self._compute)

    # ── the journal ──

    def _save(self, key: Owned) -> None:
        found = self._found[key]
        assert found is not None
        value: list[cbor.Value] = [found.of_seller, found.of_root, found.score]
        self._station.journal.remember(fact(_REPLICA, key), value)
        kept = [fact(_REPLICA, one) for one, seen in self._found.items() if seen is not None]
        known = self._station.journal.facts(_REPLICA)
        # what is not remembered here any more is older than what is
        oldest = [*sorted(set(known) - set(kept)), *(name for name in kept if name in known)]
        self._station.journal.forget(oldest[: max(0, len(known) - MAX_FOUND)])


def replicas_in(journal: Journal) -> list[Found]:
    """Return the replicas that a broker's journal has; what is no such line is left out."""
    read = []
    for name, value in journal.facts(_REPLICA).items():
        match value:
            case [str(of_seller), bytes(of_root), int(score)]:
                seller, root = owned(_REPLICA, name)
                read.append(
                    Found(
                        seller=seller,
                        root=root,
                        of_seller=Address(of_seller),
                        of_root=Digest(of_root),
                        score=Millionths(score),
                    )
                )
    return read


def _merged(base: Verified, sold: Verified, recipe: Recipe, root: Digest) -> Verified | None:
    """Return the merge that a receipt tells of; None if it comes out otherwise."""
    architecture, tensors = merge_bought(
        (base.architecture, base.tensors), (sold.architecture, sold.tensors), recipe
    )
    if weights_root(tensors) != root:
        return None
    return Verified(weights_root=root, architecture=architecture, tensors=tensors, base=base.base)
