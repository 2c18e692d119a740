"""Putting weights of ours on offer: signed, gossiped, and submitted to the broker."""

from __future__ import annotations

from node.agent.merging import read_tensors
from node.agent.settings import AgentSettings
from node.agent.submission import Submission
from node.params.architecture import Architecture, part_of, prefixes
from node.params.disk import BlobRef
from node.params.encoding import encode_tensors
from node.protocol.offer import Offer
from node.protocol.types import Digest, UnixTime
from node.station.station import Station


class Offering:
    """Offers what one agent sells: its whole model, or some layers of it."""

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
        parts = self.parts(architecture)
        for layers in () if parts is None else parts[:-1]:
            await self._put(architecture, whole, layers)
        name, offer = await self._put(architecture, whole, self._settings.layers)
        base = await self._submission.of_base(offer, whole) if offer.layers else (name, offer)
        return name, base

    def parts(self, architecture: Architecture) -> tuple[tuple[int, ...], ...] | None:
        """Return the sets of layers that each seller offers in a call; None without calls."""
        return prefixes(architecture) if self._settings.mechanism == "eeg" else None

    async def _put(
        self, architecture: Architecture, whole: BlobRef, layers: tuple[int, ...]
    ) -> tuple[Digest, Offer]:
        held = self._part_of(architecture, whole, layers)
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
            reserve=self._settings.reserve,
            issued_at=now,
            expires_at=UnixTime(now + self._settings.offer_seconds),
            nonce=self._station.journal.next_nonce(),
        )
        self._station.served.add(held.root)
        name, data = self._station.sign(offer)
        await self._station.publish(data)
        await self._submission.of_ours(data)
        return name, offer

    def _part_of(
        self, architecture: Architecture, whole: BlobRef, layers: tuple[int, ...]
    ) -> BlobRef:
        """Return what is sold of a model of ours: all of it, or some layers as their own blob."""
        if not layers:
            return whole
        blobs = self._station.blobs
        tensors = read_tensors(blobs, architecture.text, whole.root)
        part = part_of(architecture, tensors, layers)
        return blobs.put_bytes(encode_tensors(part))
