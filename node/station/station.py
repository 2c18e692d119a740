"""A node's place in the market: speaks and listens for one peer and one account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import trio

from node.chronicle import (
    Answered,
    Asked,
    OurFault,
    PeerFault,
    Sent,
    StatementJudged,
    StatementPublished,
)
from node.clock import Clock
from node.journal import Journal
from node.net.host import Network
from node.net.serving import BlobServer, ByteQuota, ServedPart
from node.net.streams import Reply
from node.observe import Observer
from node.params.store import BlobStore
from node.protocol import envelope, messages
from node.protocol.book import OfferBook, body_of
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import (
    BROKER_PROTOCOL,
    AskRequest,
    Countersign,
    Deal,
    PrepareGoods,
    StreamMessage,
)
from node.protocol.offer import BrokerNotice, Offer, Receipt, Statement
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, PeerId
from node.protocol.verdict import Verdict, accept
from node.station.holding import HeldBack

M = TypeVar("M", bound=StreamMessage)
N = TypeVar("N", bound=StreamMessage)
Answer = Callable[[PeerId, StreamMessage], Awaitable[StreamMessage]]
Question = type[StreamMessage]

REPUBLISH_SECONDS: Final = 15.0
"""Gossip has no memory: what is still good is said again for those who came later."""
MAX_TOLD_FIRST: Final = 4_096
"""Statements that are remembered to be no news, should gossip bring them later."""
PRUNE_SECONDS: Final = 86_400.0
TRADE_RETENTION_SECONDS: Final = 90 * 86_400
REQUEST_SECONDS: Final = 20.0
FREE_BYTES_PER_PEER: Final = 16 * 1024**3
FREE_BYTES: Final = 64 * 1024**3
"""What may be downloaded in an hour before anything is paid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A node's two secrets."""

    account: bytes = field(repr=False)
    peer: bytes = field(repr=False)

    @property
    def address(self) -> Address:
        """The account's address."""
        return address_of(self.account)


class Station:
    """Everything that both roles do with the market besides their own business."""

    def __init__(
        self,
        *,
        keys: Keys,
        domain: Domain,
        network: Network,
        journal: Journal,
        blobs: BlobStore,
        observer: Observer,
        clock: Clock,
        trusted_brokers: frozenset[Address],
        task: str,
        trade_retention: int = TRADE_RETENTION_SECONDS,
    ) -> None:
        self.keys = keys
        self.domain = domain
        self.network = network
        self.journal = journal
        self.blobs = blobs
        self.observer = observer
        self.clock = clock
        self.task = task
        self.book = OfferBook(domain, trusted_brokers, frozenset({keys.address}))
        self._brokers: frozenset[PeerId] = frozenset()
        self._seated: dict[PeerId, Address] = {}
        """Accounts under which brokers that we joined by sit in the escrow."""
        self._trade_retention = trade_retention
        self._making = 0
        self.held_back = HeldBack(self.publish)
        self._told_us_first: dict[bytes, None] = {}
        self.served: set[Digest] = set()
        """Roots of weights that brokers may fetch from us."""
        self.heard = trio.Event()
        """Set, and replaced by a new one, whenever the book takes in a statement."""

    @property
    def account(self) -> Address:
        """The account that answers for this node on chain."""
        return self.keys.address

    @property
    def peer_id(self) -> PeerId:
        """Who this node is on the network."""
        return self.network.peer_id

    def listen(self, answers: Mapping[Question, Answer]) -> None:
        """Judge gossip by the book, and answer these kinds of request."""
        self.network.set_gossip_validator(self._judge)
        self.network.handle_requests(BROKER_PROTOCOL, self._answer_with(answers))

    def serve(self, protocol: str, authorise: Callable[[PeerId, bytes, str], ServedPart]) -> None:
        """Serve blobs to whom `authorise` allows, so many bytes an hour for nothing."""
        quota = ByteQuota(per_peer=FREE_BYTES_PER_PEER, total=FREE_BYTES)
        self.network.handle(protocol, BlobServer(authorise, quota=quota).serve)

    async def run(self) -> None:
        """Take in our own statements again, then keep the market told of them. For ever."""
        for data in self.journal.statements(self.clock()):
            self.book.receive(data, self.clock())
        self.served |= self._offered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._prune_for_ever)
            nursery.start_soon(self._republish_for_ever)
            nursery.start_soon(self._drain_gossip)
            nursery.start_soon(self.held_back.run)

    # ── saying ──

    def sign(self, body: Statement) -> tuple[Digest, bytes]:
        """Sign and journal a statement. Returns its digest, and its bytes to publish or send."""
        data = self.seal(body)
        self.keep(data)
        return digest(self.domain, body), data

    def seal(self, body: Statement) -> bytes:
        """Sign a statement that is not to be published yet."""
        signed = envelope.sign(
            self.domain, body, account_key=self.keys.account, peer_seed=self.keys.peer
        )
        return envelope.encode(signed)

    def keep(self, data: bytes) -> None:
        """Journal a statement of ours, so that it is said again for as long as it is good."""
        body = body_of(data)
        self.journal.save_statement(digest(self.domain, body), body.expires_at, data)

    async def publish(self, data: bytes) -> None:
        """Say a signed statement to the market, ourselves included."""
        self.book.receive(data, self.clock())
        self._ring()
        listeners = self.network.gossiping_with()
        await self.network.publish(data)
        await self.network.flush()
        body = body_of(data)
        if isinstance(body, Receipt) and listeners:
            self.observer.emit(Sent(trade_id=body.trade_id, step="publish-receipt"))
        self.observer.emit(
            StatementPublished(kind=type(body).__name__.lower(), digest=digest(self.domain, body))
        )

    def offer_in(self, data: bytes) -> tuple[Digest, Offer]:
        """Return the offer in bytes that the book has accepted, and its digest."""
        body = body_of(data)
        if not isinstance(body, Offer):
            raise RemoteProtocolError("not-an-offer", type(body).__name__)
        return digest(self.domain, body), body

    def own_notice(self) -> tuple[Digest, BrokerNotice] | None:
        """Return our newest live notice, if we are a broker that has given one."""
        return self.book.notice_of(self.peer_id, self.task, self.clock())

    def own_offer(self, name: Digest) -> Offer | None:
        """Return a live offer of ours, also one from before a restart."""
        offer = self.book.offer(name, self.clock())
        return offer if offer is not None and offer.seller == self.account else None

    def joins(self, brokers: Collection[PeerId]) -> None:
        """Name the brokers that we joined by; only they may ask us for anything.

        Their terms are none before the account that signs them is `settled_by`.
        """
        self._brokers = frozenset(brokers)

    def settled_by(self, broker: PeerId, account: Address) -> None:
        """Take the terms of a broker that we joined by, under an account that has a seat.

        Terms of another account are no terms: the escrow would not take its quotes.
        """
        self._seated[broker] = account
        self.book.favoured |= {account}

    def has_joined(self, broker: PeerId) -> bool:
        """Whether we joined by this broker."""
        return broker in self._brokers

    @contextmanager
    def making_blobs(self) -> Iterator[None]:
        """Blobs are being made that nothing names yet: none is to be deleted meanwhile."""
        self._making += 1
        try:
            yield
        finally:
            self._making -= 1

    def forget_blobs(self, kept: set[Digest]) -> None:
        """Delete every blob but these, those in the making, and those of live offers of ours.

        Likewise what is left of downloads that nobody goes on with.
        """
        if self._making:
            return
        kept |= self._offered()
        for root in self.blobs.roots() - kept:
            self.blobs.delete(root)
        self.blobs.delete_leftovers(kept)
        self.served &= kept

    def _offered(self) -> set[Digest]:
        bodies = (body_of(data) for data in self.journal.statements(self.clock()))
        return {body.weights_root for body in bodies if isinstance(body, Offer)}

    def notice_with_digest(self, broker: PeerId) -> tuple[Digest, BrokerNotice] | None:
        """Return the newest live notice of a broker that we joined by, for our task."""
        account = self._seated.get(broker)
        if broker not in self._brokers or account is None:
            return None
        return self.book.notice_of(broker, self.task, self.clock(), account=account)

    def notice_of(self, broker: PeerId) -> BrokerNotice | None:
        """Return the terms of a broker that we joined by."""
        found = self.notice_with_digest(broker)
        return None if found is None else found[1]

    # ── asking ──

    async def ask(
        self,
        peer: PeerId,
        question: StreamMessage,
        answer: type[M],
        *,
        seconds: float = REQUEST_SECONDS,
    ) -> M:
        """Ask a peer, and return its answer of the kind that was expected.

        Raises `RemoteProtocolError` for refusals, silence past the deadline, and nonsense.
        """
        return cast(M, await self._ask(peer, question, (answer,), seconds))

    async def ask_either(
        self,
        peer: PeerId,
        question: StreamMessage,
        one: type[M],
        other: type[N],
        *,
        seconds: float = REQUEST_SECONDS,
    ) -> M | N:
        """As `ask`, where two kinds of answer are good."""
        return cast("M | N", await self._ask(peer, question, (one, other), seconds))

    async def _ask(
        self,
        peer: PeerId,
        question: StreamMessage,
        answers: tuple[type[Any], ...],
        seconds: float,
    ) -> StreamMessage:
        data = await self.network.request(
            peer,
            BROKER_PROTOCOL,
            messages.encode(question),
            deadline_s=seconds,
            addresses=self.book.addresses_of(peer),
            sent=lambda: self.observer.emit(
                Asked(peer=peer, kind=type(question).__name__, trade_id=trade_of(question))
            ),
        )
        try:
            message = messages.decode(data)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(error.reason, error.detail, peer=peer) from error
        if not isinstance(message, answers):
            raise RemoteProtocolError("unexpected-answer", type(message).__name__, peer=peer)
        return cast(StreamMessage, message)

    # ── answering ──

    def _answer_with(
        self, answers: Mapping[Question, Answer]
    ) -> Callable[[PeerId, bytes], Awaitable[Reply]]:
        async def answer(peer: PeerId, payload: bytes) -> Reply:
            question = messages.decode(payload)
            handler = answers.get(type(question))
            if handler is None:
                raise RemoteProtocolError("not-my-role", type(question).__name__, peer=peer)
            try:
                given = await handler(peer, question)
                event = Answered(
                    peer=peer, kind=type(given).__name__, trade_id=trade_of(given, question)
                )
                return Reply(messages.encode(given), sent=lambda: self.observer.emit(event))
            except RemoteProtocolError as error:
                self.observer.emit(
                    PeerFault(
                        peer=error.peer or peer,
                        during=type(question).__name__,
                        reason=error.reason,
                        detail=error.detail,
                    )
                )
                raise
            except LocalProtocolError as error:
                self.observer.emit(OurFault(during=type(question).__name__, reason=str(error)))
                raise

        return answer

    def _judge(self, sender: PeerId, data: bytes) -> Verdict:
        verdict = self.book.receive(data, self.clock())
        if data in self._told_us_first:
            del self._told_us_first[data]
            verdict = accept() if verdict.reason == "duplicate" else verdict
        self.observer.emit(
            StatementJudged(sender=sender, verdict=verdict.judgement.value, reason=verdict.reason)
        )
        if verdict.accepted:
            self._ring()
        return verdict

    def told_first(self, data: bytes) -> None:
        """Pass this on when it comes by gossip: it is no news then, its issuer told us first."""
        self._told_us_first[data] = None
        if len(self._told_us_first) > MAX_TOLD_FIRST:
            del self._told_us_first[next(iter(self._told_us_first))]

    def take_in(self, statements: tuple[bytes, ...]) -> None:
        """Judge statements that a broker listed, as if they had come by gossip."""
        for data in statements:
            self.book.receive(data, self.clock())
        self._ring()

    def _ring(self) -> None:
        self.heard.set()
        self.heard = trio.Event()

    async def _drain_gossip(self) -> None:
        # the validator has kept what was good in the book already; the channel must not fill
        async for _ in self.network.gossip():
            pass

    async def _prune_for_ever(self) -> None:
        while True:
            self.journal.prune(self.clock(), trade_seconds=self._trade_retention)
            await trio.sleep(PRUNE_SECONDS)

    async def _republish_for_ever(self) -> None:
        while True:
            for data in self.journal.statements(self.clock()):
                if data not in self.held_back:
                    await self.network.publish(data)
            await trio.sleep(REPUBLISH_SECONDS)


def trade_of(*spoken: StreamMessage) -> Digest | None:
    """Return the trade that the first of these messages names which names one."""
    for message in spoken:
        match message:
            case AskRequest() | PrepareGoods():
                return message.trade_id
            case Countersign() | Deal():
                return message.quote.trade_id
            case _:
                continue
    return None
