"""How a broker comes by models: takes statements in, fetches what they name, keeps what is good.

statement ─► screened ─► book, or bases ─► fetched once ─► verified ─► shelf
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from broker_node.appraisal import Appraiser
from broker_node.bases import Bases
from broker_node.blame import of_seller
from broker_node.findings import SplitAttested
from broker_node.provenance import Provenance
from broker_node.settings import BrokerSettings
from broker_node.shelf import ModelShelf
from broker_node.verify.stages import Verified
from node.net.transfer import BlobSink, CheckingSink, Source, fetch_blob
from node.protocol import cbor
from node.protocol.attestation import Attest, check_attest
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.messages import PARAMS_PROTOCOL, SELLER_UNREACHABLE
from node.protocol.offer import Offer
from node.protocol.schema import to_map
from node.protocol.types import Address, Digest, PeerId
from node.station.station import Station
from node.station.turns import Turns

MAX_OATHS: Final = 4_096
"""What agents have sworn of their models, kept."""
MAX_UNFINISHED: Final = 16
"""Downloads that were cut off and may still be resumed."""


class Intake:
    """The models of one broker, from a signed statement to verified tensors."""

    def __init__(
        self,
        station: Station,
        appraiser: Appraiser,
        settings: BrokerSettings,
        turns: Turns,
        compute: trio.CapacityLimiter,
    ) -> None:
        self._station = station
        self._appraiser = appraiser
        self._settings = settings
        self._turns = turns
        self._compute = compute
        self._shelf = ModelShelf(settings.max_models_held, settings.max_models_bytes)
        self.provenance: Final = Provenance(
            mode=settings.replicas,
            station=station,
            shelf=self._shelf,
            probes_RF=appraiser.probes_RF,
            compute=compute,
        )
        self._unfinished: OrderedDict[Digest, None] = OrderedDict()
        """Roots on the disk in part, of which no model is on the shelf, oldest first."""
        self.bases = Bases(station.book, station.task)

    def take_in(self, statement: bytes) -> tuple[Digest, Offer]:
        """Return an offer or a base, once it is in the book, or among the bases."""
        name, offer = self._station.offer_in(statement)
        self.screen(offer)
        book = self._station.book if offer.for_sale else self.bases
        verdict = book.receive(statement, self._station.clock())
        if not verdict.accepted and verdict.reason != "duplicate":
            raise RemoteProtocolError(verdict.reason, "submitted statement")
        if verdict.accepted and offer.for_sale:
            self._station.told_first(statement)
        return name, offer

    def attested(self, said: Attest, peer: PeerId) -> Digest:
        """Keep what an agent swears of a model that we hold of it, and return its digest.

        Raises `RemoteProtocolError`: as `check_attest`, ``unknown-model`` for one that we do not
        hold, ``not-offered`` for one that its account has not offered, or submitted, here.
        """
        body = said.attestation
        name = check_attest(
            self._station.domain, said, validation_root=self._appraiser.validation_root
        )
        if self._shelf.get(body.weights_root) is None:
            raise RemoteProtocolError("unknown-model", body.weights_root.hex(), peer=peer)
        if not self._is_of(body.seller, body.weights_root):
            raise RemoteProtocolError("not-offered", body.weights_root.hex(), peer=peer)
        self._keep_oath(said)
        self._station.observer.emit(
            SplitAttested(
                seller=body.seller, root=body.weights_root, validation_root=body.validation_root
            )
        )
        return name

    def _is_of(self, seller: Address, root: Digest) -> bool:
        """Whether an account has said to us, or to the market, that a model is its own."""
        offers = self._station.book.offers(self._station.clock())
        return self.provenance.committed(seller, root) or any(
            (one.seller, one.weights_root) == (seller, root) for _, one in offers
        )

    def _keep_oath(self, said: Attest) -> None:
        """Keep the first for each account, model and root of rows; the oldest go."""
        journal, body = self._station.journal, said.attestation
        key = f"oath/{body.validation_root.hex()}/{body.weights_root.hex()}/{body.seller}"
        if journal.recall(key) is not None:
            return
        turns = {name: _turn_of(value) for name, value in journal.facts("oath/").items()}
        oldest = sorted(turns, key=lambda name: turns[name])
        journal.forget(oldest[: max(0, len(oldest) - MAX_OATHS + 1)])
        turn = 1 + max(turns.values(), default=0)
        journal.remember(key, [turn, cbor.encode(to_map(body)), said.signature])

    async def model(self, offer: Offer) -> Verified:
        """Return the verified model of an offer, fetched if need be, that may be sold as its own.

        Raises `RemoteProtocolError("replica")` for one that may not (`Provenance`).
        """
        self.provenance.require(offer)
        model = await self.verified(offer)
        async with self._turns.of((offer.seller, offer.weights_root)):
            if self.provenance.unshown(offer):
                await self._shows(offer)
        await self.provenance.judge(offer, model)
        return model

    async def verified(self, offer: Offer) -> Verified:
        """Return the verified model of an offer, fetched from its seller if need be."""
        held = self.held(offer)
        if held is not None:
            return held
        self.screen(offer)
        async with self._turns.of(offer.weights_root):
            return self.held(offer) or await self._fetch(offer)

    def screen(self, offer: Offer) -> None:
        """Raise `RemoteProtocolError` for what is not worth fetching, or a place."""
        if offer.byte_length > self._settings.max_model_bytes:
            raise RemoteProtocolError("too-large", f"{offer.byte_length} bytes", peer=offer.peer_id)
        self._appraiser.screen(offer)

    def held(self, offer: Offer) -> Verified | None:
        model = self._shelf.get(offer.weights_root)
        sold = (offer.architecture, offer.layers)
        return model if model and (model.architecture.text, model.layers) == sold else None

    async def _fetch(self, offer: Offer) -> Verified:
        root = offer.weights_root
        self._unfinished.pop(root, None)
        try:
            shown = await self._download(offer)
            model = await trio.to_thread.run_sync(
                self._appraiser.admit,
                self._station.blobs.path(root),
                offer,
                limiter=self._compute,
            )
        except RemoteProtocolError as error:
            self._let_go(root, resumable=error.reason == SELLER_UNREACHABLE)
            raise
        except MarketError:
            self._let_go(root, resumable=False)
            raise
        except BaseException:
            self._let_go(root, resumable=True)
            raise
        for forgotten in self._shelf.put(model):
            self._station.blobs.delete(forgotten)
        self.provenance.noted(offer, shown=shown)  # before others can name what is held now
        return model

    async def _download(self, offer: Offer) -> bool:
        """Return whether all bytes came from the seller, and none were here already.

        Raises ``seller-unreachable`` for what may pass: it is the seller's, and not ours.
        """
        blobs, root = self._station.blobs, offer.weights_root
        if blobs.has(root):
            return False
        arrived_before = False

        def resumed(hashes: bytes) -> BlobSink:
            nonlocal arrived_before
            sink = blobs.writer(root, offer.byte_length, hashes)
            missing = sum(length for _, length in sink.missing())
            arrived_before = missing < offer.byte_length  # perhaps of another seller
            return sink

        with of_seller(offer.peer_id):
            await self._fetch_into(offer, resumed)
        return not arrived_before

    async def _shows(self, offer: Offer) -> None:
        """Have a seller show that it has the bytes of a model that came from elsewhere, or raise.

        All of them are fetched again, checked and not kept. The hashes of the leaves would not do:
        whoever names a trade, paid or not, is given them, and so could pass them on as its own.
        """
        with of_seller(offer.peer_id):
            await self._fetch_into(offer, lambda hashes: CheckingSink(offer.byte_length, hashes))
        self.provenance.noted(offer, shown=True)

    async def _fetch_into(self, offer: Offer, open_sink: Callable[[bytes], BlobSink]) -> None:
        await fetch_blob(
            self._station.network,
            self._source(offer),
            open_sink,
            root=offer.weights_root,
            byte_length=offer.byte_length,
        )

    def _source(self, offer: Offer) -> Source:
        return Source(
            peer=offer.peer_id,
            protocol=PARAMS_PROTOCOL,
            name=offer.weights_root,
            addresses=(*self._station.book.addresses_of(offer.peer_id), *offer.addresses),
        )

    def _let_go(self, root: Digest, *, resumable: bool) -> None:
        """Delete what is on the disk of a blob that did not get to the shelf, or keep it a while.

        One that is on the shelf is good, and was offered as something else.
        """
        blobs = self._station.blobs
        if self._shelf.get(root) is not None:
            return
        if not resumable:
            blobs.delete(root)
            return
        self._unfinished[root] = None
        while len(self._unfinished) > MAX_UNFINISHED:
            oldest, _ = self._unfinished.popitem(last=False)
            blobs.delete(oldest)


def _turn_of(oath: cbor.Value) -> int:
    """Return which oath it was; 0 of those from before they were counted."""
    match oath:
        case [int(turn), bytes(), bytes()]:
            return turn
    return 0
