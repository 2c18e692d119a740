"""Brokers of a quorum in one room: real leads, members, stations and journals; a line is a call.

What crosses a line is encoded and decoded as on a stream, and an error comes back as its reason.
A restart keeps the journal, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from broker_node.appraisal import Appraiser, DrillAppraiser, Trial
from broker_node.bases import Bases
from broker_node.mechanisms.price import bargain
from broker_node.quorum.bench import Bench
from broker_node.quorum.lead import Lead
from broker_node.quorum.member import Models
from broker_node.verify.stages import Received, Verified
from node.chain.errors import ChainUnavailableError
from node.chain.port import Seat
from node.chronicle import PeerFault
from node.journal import Journal
from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.observe import Observer
from node.params.encoding import encode_tensors, weights_root
from node.params.store import BlobStore
from node.protocol import merkle, messages
from node.protocol.bids import AskingPrice, Bid, BidAndAsk
from node.protocol.eip712 import digest
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.messages import Introduced
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.quorum import case_of
from node.protocol.quote import Quote, trade_id_of
from node.protocol.types import Address, Digest, PeerId, UnixTime, Wei
from node.station.station import Keys, Station
from tests.market.market import WINDOWS, architecture, weights
from tests.protocol.cast import BUYER, DOMAIN, NOW, SELLER, Party, seal, signature, word
from tests.protocol.cast import notice as noticed
from tests.protocol.cast import offer as offered
from tests.protocol.cast import quote as quoted
from tests.protocol.cast import receipt as billed

TASK = "drill"
NAMES = ("first", "second", "third")
VALUATION, ASK = Wei(10**15), Wei(10**14)


def drill_model(name: str) -> Verified:
    tensors = weights(name)
    return cast(
        Verified,
        Received(weights_root=weights_root(tensors), architecture=architecture(), tensors=tensors),
    )


class Escrow:
    """Who sits, as the chain says."""

    def __init__(self, seated: set[Address]) -> None:
        self.seated = seated
        self.away = False
        self.asked = 0

    def seat(self, account: Address) -> Seat:
        self.asked += 1
        if self.away:
            raise ChainUnavailableError("the chain is away")
        return Seat.TAKEN if account in self.seated else Seat.STRANGER


Handler = Callable[[PeerId, bytes], Awaitable[Any]]


@dataclass
class Wires:
    """Who answers, and what a test does to a question on its way."""

    handlers: dict[PeerId, Handler] = field(default_factory=dict)
    asked: list[tuple[PeerId, str]] = field(default_factory=list)
    before: Callable[[PeerId, Any], Awaitable[None]] | None = None
    introduce: Callable[[PeerId], Awaitable[None]] | None = None
    """What an owner of weights says to a broker that asks for them; None for yes."""

    def times(self, peer: PeerId, kind: type) -> int:
        return self.asked.count((peer, kind.__name__))


class Line:
    """As much of a host as a station needs."""

    def __init__(self, wires: Wires, party: Party) -> None:
        self._wires = wires
        self.peer_id = party.peer_id

    def set_gossip_validator(self, _: object) -> None:
        pass

    def handle_requests(self, _: str, handler: Handler) -> None:
        self._wires.handlers[self.peer_id] = handler

    async def request(
        self,
        peer: PeerId,
        protocol: str,
        payload: bytes,
        *,
        deadline_s: float,
        addresses: object = (),
        sent: Callable[[], None] | None = None,
    ) -> bytes:
        wires = self._wires
        with trio.move_on_after(deadline_s):
            question = messages.decode(payload)
            wires.asked.append((peer, type(question).__name__))
            if isinstance(question, messages.Introduce):
                if wires.introduce is not None:
                    await wires.introduce(peer)
                return messages.encode(Introduced())
            if wires.before is not None:
                await wires.before(peer, question)
            if peer not in wires.handlers:
                raise PeerUnreachableError(peer=peer)
            try:
                reply = await wires.handlers[peer](self.peer_id, payload)
            except RemoteProtocolError as error:
                raise RemoteProtocolError(error.reason, error.detail, peer=peer) from error
            except MarketError as error:
                raise RemoteProtocolError("refused", str(error), peer=peer) from error
            return cast(bytes, reply.payload)
        raise PeerTimeoutError(peer=peer)


class Room:
    """Three brokers with seats, two of whom sign; a buyer and a seller; and what they trade."""

    def __init__(self, folder: Path, appraisers: Mapping[str, Callable[[], Appraiser]]) -> None:
        self.folder = folder
        self.now = NOW
        self.wires = Wires()
        self.escrow = Escrow({Party(name).account for name in NAMES})
        self.models = {m.weights_root: m for m in map(drill_model, ("base", "sold", "other"))}
        self.appraisers = {name: appraisers.get(name, DrillAppraiser)() for name in NAMES}
        self.notices: dict[str, bytes] = {}
        self.brokers: dict[str, Broker] = {}
        for name in NAMES:
            self.brokers[name] = Broker(self, name)

    def __getitem__(self, name: str) -> Broker:
        return self.brokers[name]

    def model(self, name: str) -> Verified:
        return self.models[drill_model(name).weights_root]

    def restart(self, name: str) -> Broker:
        self.stop(name)
        self.brokers[name] = Broker(self, name)
        return self.brokers[name]

    def stop(self, name: str) -> None:
        self.brokers[name].journal.close()
        self.wires.handlers.pop(Party(name).peer_id, None)

    def statement(
        self, by: Party, model: Verified | None = None, name: str = "sold", **changes: Any
    ) -> bytes:
        """What is offered of a model, as it is signed."""
        held = model or self.model(name)
        blob = encode_tensors(dict(held.tensors))
        said: dict[str, Any] = {
            "task": TASK,
            "architecture": held.architecture.text,
            "weights_root": held.weights_root,
            "leaf_count": merkle.leaf_count(len(blob)),
            "byte_length": len(blob),
        }
        return seal(offered(by, **(said | changes)), by)


class Broker:
    """One broker's half of the quorum."""

    def __init__(self, room: Room, name: str) -> None:
        self.room, self.name, self.party = room, name, Party(name)
        home = room.folder / name
        home.mkdir(exist_ok=True)
        self.journal = Journal(home / "journal.db")
        self.faults: list[PeerFault] = []
        observer = Observer()
        observer.subscribe(self._hear)
        self.appraiser = room.appraisers[name]
        self.station = Station(
            keys=Keys(account=self.party.account_key, peer=self.party.peer_seed),
            domain=DOMAIN,
            network=cast(Any, Line(room.wires, self.party)),
            journal=self.journal,
            blobs=BlobStore(home / "blobs"),
            observer=observer,
            clock=lambda: room.now,
            trusted_brokers=frozenset(),
            task=TASK,
        )
        self.bases = Bases(self.station.book, TASK)
        models = Models(take_in=self._take_in, held=self._held, model=self._model)
        settings = dataclasses.replace(WINDOWS, quorum=(2, 3))
        self.bench = Bench(
            self.station,
            cast(Any, room.escrow),
            self.appraiser,
            models,
            settings,
            trio.CapacityLimiter(1),
        )
        self.station.listen(self.bench.answers())
        # after a restart the old terms hold
        self.notice_data = room.notices.get(name) or self.give_notice()
        room.notices[name] = self.notice_data
        self.station.take_in((self.notice_data,))
        for other in room.brokers.values():
            self.station.take_in((other.notice_data,))
            other.station.take_in((self.notice_data,))

    def give_notice(self, **changes: Any) -> bytes:
        said: dict[str, Any] = {
            "broker": self.party.account,
            "peer_id": self.party.peer_id,
            "task": TASK,
            "fee_basis_points": WINDOWS.fee_basis_points,
            "validation_root": self.appraiser.validation_root,
            "validation_rows": self.appraiser.validation_rows,
            "seed": word(f"the seed of {self.name}"),
            "issued_at": self.room.now,
            "expires_at": UnixTime(self.room.now + 3_600),
            "nonce": self.journal.next_nonce(),
        }
        return seal(noticed(self.party, **(said | changes)), self.party)

    def _hear(self, record: Any) -> None:
        if isinstance(record.event, PeerFault):
            self.faults.append(record.event)

    def _take_in(self, data: bytes) -> tuple[Digest, Offer]:
        name, offer = self.station.offer_in(data)
        verdict = self.station.book.receive(data, self.room.now)
        if not verdict.accepted and verdict.reason != "duplicate":
            raise RemoteProtocolError(verdict.reason, "submitted statement")
        return name, offer

    def _held(self, offer: Offer) -> Verified | None:
        return None

    async def _model(self, offer: Offer) -> Verified:
        return self.room.models[offer.weights_root]

    # ── what a broker does, in the words of its service ──

    @property
    def lead(self) -> Lead:
        assert self.bench.lead is not None
        return self.bench.lead

    def notice(self) -> tuple[Digest, BrokerNotice]:
        given = self.station.own_notice()
        assert given is not None
        return given

    def measure(self, base: bytes, offer: bytes) -> Trial:
        ours, theirs = self._take_in(base)[1], self._take_in(offer)[1]
        models = self.room.models
        return self.appraiser.measure(
            models[ours.weights_root],
            models[theirs.weights_root],
            task=TASK,
            notice=self.notice(),
        )

    async def agree(self, base: bytes, offer: bytes, trial: Trial | None = None) -> Trial:
        trial = trial or self.measure(base, offer)
        names = (self._take_in(base)[0], self._take_in(offer)[0])
        return await self.bench.agree(trial, self.bases, self.notice()[0], *names)

    async def sign(
        self, base: bytes, offer: bytes, trial: Trial, *, nonce: str = "nonce"
    ) -> tuple[Quote, bytes]:
        """Have a quote of this trial signed by the quorum; returns it with the signatures."""
        sale = Sale(self, base, offer, trial, word(nonce))
        return sale.quote, await self.lead.cosign(
            sale.case, trial, sale.quote, sale.receipt, sale.bids()
        )

    async def trade(self, base: bytes, offer: bytes, *, nonce: str = "nonce") -> bytes:
        """All of it, as an honest lead does it; returns the signatures."""
        trial = await self.agree(base, offer)
        return (await self.sign(base, offer, trial, nonce=nonce))[1]


class Sale:
    """What an honest lead would have signed of one trial; a test says what is another."""

    def __init__(
        self,
        lead: Broker,
        base: bytes,
        offer: bytes,
        trial: Trial,
        nonce: Digest,
        *,
        valuation: Wei = VALUATION,
        ask: Wei = ASK,
        quote: Mapping[str, Any] | None = None,
        bill: Mapping[str, Any] | None = None,
    ) -> None:
        self.nonce = nonce
        base_digest, ours = lead._take_in(base)
        offer_digest, theirs = lead._take_in(offer)
        self.offer_digest = offer_digest
        self.case = case_of(trial.evaluation, base_digest, offer_digest)
        notice_digest, notice = lead.notice()
        self.trade_id = trade_id_of(ours.seller, theirs.seller, offer_digest, nonce)
        self.valuation, self.ask = valuation, ask
        price = bargain(valuation, ask, fee_basis_points=notice.fee_basis_points)
        assert price is not None
        both: dict[str, Any] = {
            "trade_id": self.trade_id,
            "buyer": ours.seller,
            "seller": theirs.seller,
            "offer_root": theirs.weights_root,
            "price": price.price,
            "fee": price.fee,
        }
        both |= {name: value for name, value in (quote or {}).items() if name in both}
        said = both | {
            "offer_digest": offer_digest,
            "notice_digest": notice_digest,
            "evaluation_hash": trial.evaluation.hash,
            "task": TASK,
        }
        receipt = billed(lead.party, **(said | dict(bill or {})))
        self.receipt = seal(receipt, lead.party)
        self.quote: Quote = quoted(
            **(
                both
                | {
                    "encryptor": theirs.seller,
                    "fee_recipient": lead.party.account,
                    "leaf_count": theirs.leaf_count,
                    "byte_length": theirs.byte_length,
                    "receipt_hash": digest(DOMAIN, receipt),
                }
                | dict(quote or {})
            )
        )

    def bids(
        self,
        *,
        buyer: Party = BUYER,
        seller: Party = SELLER,
        trade_id: Digest | None = None,
        offer_digest: Digest | None = None,
    ) -> BidAndAsk:
        """Bid and ask, signed by whoever a test says."""
        name = trade_id or self.trade_id
        bid = Bid(trade_id=name, valuation=self.valuation, buyer_key=word("a key"))
        asking = AskingPrice(
            trade_id=name, offer_digest=offer_digest or self.offer_digest, ask=self.ask
        )
        return BidAndAsk(
            buyer_nonce=self.nonce,
            bid=bid,
            bid_signature=signature(bid, buyer),
            asking=asking,
            ask_signature=signature(asking, seller),
        )


@contextmanager
def open_room(folder: Path, **appraisers: Callable[[], Appraiser]) -> Iterator[Room]:
    """Open a room; a broker that is named measures with what it is given."""
    room = Room(folder, appraisers)
    try:
        yield room
    finally:
        for broker in room.brokers.values():
            broker.journal.close()
