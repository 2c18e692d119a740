"""The brokers that an agent joined by: one is asked, and the next where that one fails.

    round begins ─► the first that was not passed over lately ─► fails ─► the next ─► fails ─► …
                    (else the one that was first passed over)

A broker fails that is away, breaks off, or says that it cannot serve now (`fails`); what it says
of an offer or of a price is its word, and no other is asked for a better one. Who failed is passed
over for `PASSED_OVER_SECONDS`, and is asked first again in the round that begins after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio

from node.chain.errors import ChainUnavailableError, WrongContractError
from node.chain.port import Escrow, Seat
from node.chronicle import BrokerPassedOver, PeerFault
from node.net.addresses import parse_peer_address
from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.protocol import envelope
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import FAILING, Book, Introduce, Introduced, ListBook, StreamMessage
from node.protocol.offer import BrokerNotice
from node.protocol.types import PeerId
from node.station.station import Station

LIST_SECONDS: Final = 20.0
RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 30.0
PASSED_OVER_SECONDS: Final = 60.0


def fails(error: RemoteProtocolError) -> bool:
    """Whether a broker has failed us.

    That somebody is unreachable is its own failure only where it is we who did not reach it: what
    a broker *answers* so is of a seller.
    """
    return isinstance(error, PeerUnreachableError | PeerTimeoutError) or error.reason in FAILING


class Brokers:
    """The brokers of one agent, in the order in which they were named."""

    def __init__(
        self,
        station: Station,
        escrow: Escrow,
        addresses: Iterable[str],
        *,
        owes: Callable[[], bool] = lambda: False,
    ) -> None:
        """`owes`: whether trades are open, which are seen to their end whoever the brokers are."""
        self._station = station
        self._escrow = escrow
        self._owes = owes
        self.peers = tuple(dict.fromkeys(parse_peer_address(each).peer for each in addresses))
        self.current: PeerId = self.peers[0]
        """Who is asked now."""
        self.shunned: frozenset[PeerId] = frozenset()
        """Who is asked only where there is nobody else."""
        self._passed: dict[PeerId, float] = {}
        """Until when a broker is passed over."""
        self._failed: set[PeerId] = set()
        """Who has failed in this round."""
        self._strangers: set[PeerId] = set()
        """Whose terms are of an account without a seat; told once."""

    # ── whom to ask ──

    def begin_round(self) -> None:
        """Come back to the first broker whose time has passed."""
        self._failed.clear()
        now = trio.current_time()
        self.current = self._first(now)

    async def pass_over(self, error: RemoteProtocolError) -> bool:
        """Ask the next broker in this round, and say so; False if there is none that can be asked.

        Then the one that is passed over for the shortest is asked again, if anybody is.
        """
        failed = self.current
        while True:
            now = trio.current_time()
            self._passed[self.current] = now + PASSED_OVER_SECONDS
            self._failed.add(self.current)
            at = self.peers.index(self.current)
            following = (*self.peers[at + 1 :], *self.peers[:at])
            ready = [
                peer
                for peer in following
                if peer not in self._failed | self.shunned and self._passed.get(peer, now) <= now
            ]
            if not ready:
                self.current = self._first(now)
                return False
            self.current = ready[0]
            if self._station.notice_of(self.current) is not None or await self._greet(self.current):
                break
        self._station.observer.emit(
            BrokerPassedOver(peer=failed, reason=error.reason, instead=self.current)
        )
        return True

    def _first(self, now: float) -> PeerId:
        """Return the first that is not passed over, else who will be the first not to be."""
        trusted = [peer for peer in self.peers if peer not in self.shunned] or self.peers
        return min(trusted, key=lambda peer: max(self._passed.get(peer, now), now))

    # ── their terms ──

    async def join(self) -> None:
        """Ask one after the other what is on offer, until one has said its own terms too.

        Raises `WrongContractError` if the terms of each are of an account without a seat in the
        escrow: nothing that they sign could be paid for. Open trades are seen to their end before.
        """
        while True:
            for peer in self.peers:
                if await self._greet(peer):
                    self.current = peer
                    return
            if len(self._strangers) == len(self.peers) and not self._owes():
                raise WrongContractError(self._why_stranger(self.peers[0]))
            await trio.sleep(RETRY_SECONDS)

    async def keep_up(self) -> None:
        """Learn the terms of the others too, however late they come; then all may fetch from us."""
        async with trio.open_nursery() as nursery:
            for peer in self.peers:
                nursery.start_soon(self._greet_until_known, peer)

    async def introduce(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        """Take the terms of another broker of the quorum, if we joined by it too."""
        assert isinstance(question, Introduce)
        signed = envelope.decode(question.notice)
        envelope.check(self._station.domain, signed)
        if isinstance(signed.body, BrokerNotice) and signed.body.peer_id == peer:
            await self._seat([signed.body])
            self._station.take_in((question.notice,))
        if self._station.notice_of(peer) is None:
            raise RemoteProtocolError("not-our-broker", peer, peer=peer)
        return Introduced()

    async def _greet_until_known(self, peer: PeerId) -> None:
        pause = RETRY_SECONDS
        while self._station.notice_of(peer) is None and not await self._greet(peer, quiet=True):
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    async def _greet(self, peer: PeerId, *, quiet: bool = False) -> bool:
        """Ask a broker for the book; returns whether we have its terms now."""
        station = self._station
        statements: tuple[bytes, ...] = ()
        try:
            book = await station.ask(peer, ListBook(), Book, seconds=LIST_SECONDS)
            statements = book.statements
        except RemoteProtocolError as error:
            if not quiet:
                self._fault(peer, "list-book", error.reason, error.detail)
        try:
            # first whose terms count: for those there is room in the book, however full it is
            await self._seat(notices_in(statements))
            if statements:
                station.take_in(statements)
            heard = self._heard_of(peer)
            if heard is not None and station.notice_of(peer) is None:
                await self._seat([heard])  # it came by gossip
        except ChainUnavailableError:
            return False
        if station.notice_of(peer) is not None:
            self._strangers.discard(peer)
            return True
        if heard is not None and peer not in self._strangers:
            self._strangers.add(peer)
            if len(self.peers) > 1 or self._owes():
                self._fault(peer, "join", "not-the-escrows-broker", self._why_stranger(peer))
        return False

    async def _seat(self, notices: Iterable[BrokerNotice]) -> None:
        """Take the terms of those brokers that we joined by and that sit in the escrow."""
        for peer, account in {(notice.peer_id, notice.broker): None for notice in notices}:
            if not self._station.has_joined(peer):
                continue
            if await trio.to_thread.run_sync(self._escrow.seat, account) is Seat.TAKEN:
                self._station.settled_by(peer, account)

    def _heard_of(self, peer: PeerId) -> BrokerNotice | None:
        """Return the terms of a broker, whether or not its account has a seat."""
        station = self._station
        found = station.book.notice_of(peer, station.task, station.clock())
        return None if found is None else found[1]

    def _why_stranger(self, peer: PeerId) -> str:
        heard, station = self._heard_of(peer), self._station
        account = "another account" if heard is None else heard.broker
        return (
            f"broker {peer} signs as {account}, which has no seat in the escrow "
            f"{station.domain.escrow} on chain {station.domain.chain_id}: its quotes could not be "
            "paid; name a broker of this escrow with --bootstrap, or the escrow of this broker "
            "with --escrow"
        )

    def _fault(self, peer: PeerId, during: str, reason: str, detail: str) -> None:
        self._station.observer.emit(
            PeerFault(peer=peer, during=during, reason=reason, detail=detail)
        )


def notices_in(statements: Iterable[bytes]) -> Iterator[BrokerNotice]:
    """Yield the terms of brokers among statements of which none was judged yet."""
    for data in statements:
        try:
            body = envelope.decode(data).body
        except RemoteProtocolError:
            continue  # the book will say what is wrong with it
        if isinstance(body, BrokerNotice):
            yield body
