"""Putting weights of ours on offer: signed, submitted to the broker, and gossiped then."""

from __future__ import annotations

from node.agent import progress as journalled
from node.agent.merging import read_tensors
from node.agent.progress import GAVE_WEIGHTS
from node.agent.settings import AgentSettings
from node.agent.strategies.base import Goods, Stock
from node.agent.submission import Submission
from node.chronicle import OtherGoodsOffered
from node.params.architecture import Architecture, part_of, prefixes
from node.params.disk import BlobRef
from node.params.encoding import encode_tensors
from node.params.permutation import Tensors
from node.protocol.offer import Offer
from node.protocol.types import Digest, UnixTime
from node.station.station import Station


class Offering:
    """Offers what one agent sells: its whole model, some layers of it, or its strategy's goods."""

    def __init__(self, station: Station, settings: AgentSettings, submission: Submission) -> None:
        self._station = station
        self._settings = settings
        self._submission = submission

    async def put(
        self, architecture: Architecture, root: Digest
    ) -> tuple[Digest, tuple[Digest, Offer]]:
        """Offer the model under `root`, which is in the store; in a call, its beginnings too.

        Returns the digest of our offer, and what others are to be tried on.
        """
        whole = self._station.blobs.ref(root)
        other = self._settings.strategy.goods(self._stock(architecture, root))
        parts = self.parts(architecture)
        for layers in () if parts is None else parts[:-1]:
            await self._put(architecture, whole, layers, other)
        name, offer = await self._put(architecture, whole, self._settings.layers, other)
        if offer.weights_root == whole.root:
            return name, (name, offer)
        return name, await self._submission.of_base(offer, whole)

    def parts(self, architecture: Architecture) -> tuple[tuple[int, ...], ...] | None:
        """Return the sets of layers that each seller offers in a call; None without calls."""
        return prefixes(architecture) if self._settings.mechanism == "eeg" else None

    async def _put(
        self,
        architecture: Architecture,
        whole: BlobRef,
        layers: tuple[int, ...],
        other: Goods | None,
    ) -> tuple[Digest, Offer]:
        held = self._held(architecture, whole, layers, other)
        now = self._station.clock()
        offer = Offer(
            seller=self._station.account,
            peer_id=self._station.peer_id,
            addresses=self._station.network.addresses(),
            task=self._station.task,
            architecture=architecture.text,
            layers=layers,
            weights_root=held.root,
            leaf_count=held.leaf_count,
            byte_length=held.byte_length,
            reserve=self._settings.strategy.reserve(self._settings.reserve, self._station.account),
            issued_at=now,
            expires_at=UnixTime(now + self._settings.offer_seconds),
            nonce=self._station.journal.next_nonce(),
        )
        self._station.served.add(held.root)
        name, data = self._station.sign(offer)
        if other is not None:
            told = OtherGoodsOffered(offer_digest=name, kind=other.kind, copied=other.copied)
            self._station.observer.emit(told)
        # whoever reads the root in gossip could be heard with it by the broker before us
        self._station.take_in((data,))
        async with self._station.held_back.holding(held.root, data):
            await self._submission.of_ours(data)
        if self._settings.attests:
            await self._submission.of_oath(offer.weights_root)
        return name, offer

    def _stock(self, architecture: Architecture, root: Digest) -> Stock:
        def tensors(of: Digest) -> Tensors:
            return read_tensors(self._station.blobs, architecture.text, of)

        def bought() -> tuple[Digest, Tensors] | None:
            for purchase in reversed(journalled.purchases(self._station.journal)):
                record = purchase.record
                if (
                    purchase.state in GAVE_WEIGHTS
                    and record.evaluation.architecture == architecture.text
                    and not record.layers
                    and self._station.blobs.has(record.quote.offer_root)
                ):
                    return record.quote.trade_id, tensors(record.quote.offer_root)
            return None

        return Stock(architecture=architecture, root=root, own=lambda: tensors(root), bought=bought)

    def _held(
        self,
        architecture: Architecture,
        whole: BlobRef,
        layers: tuple[int, ...],
        other: Goods | None,
    ) -> BlobRef:
        """Return what is sold: the model of ours, some layers as their own blob, or other goods."""
        blobs = self._station.blobs
        if other is not None:
            return blobs.put_bytes(encode_tensors(part_of(architecture, other.tensors, layers)))
        if not layers:
            return whole
        tensors = read_tensors(blobs, architecture.text, whole.root)
        return blobs.put_bytes(encode_tensors(part_of(architecture, tensors, layers)))
