"""The broker's desk for calls: takes bids, has each call cleared once, holds quotes to its prices.

A bid is taken or refused at once, and what it came to is asked for until there is an answer: so
no number of bidders keeps others from being served. What a call gave is remembered in memory, as
trials are. A broker that was restarted in a call has forgotten both and says so (``unknown-bid``,
``not-in-the-call``): nobody has promised anything yet, and its buyers try and bid again.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from broker_node.calls.call import Attempt, Calls, Closed
from broker_node.calls.clearing import ClearedCall, Given, clear_call
from broker_node.negotiation import Tried
from broker_node.settings import BrokerSettings
from node.chain.errors import ChainUnavailableError
from node.chain.port import Escrow
from node.chronicle import CallCleared, OurFault
from node.params.architecture import parse_architecture, prefixes
from node.params.merges import require_whole
from node.protocol.call import check_budget_bid
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import (
    Allocated,
    AskAllocations,
    Noted,
    PlaceBid,
    QuoteRequest,
    StayOut,
    StreamMessage,
)
from node.protocol.types import Address, Digest, Instant, PeerId, Wei
from node.station.station import Answer, Question, Station

REMEMBERED: Final = 4_096
"""Bids whose answer is kept, and at least how many allocations may be quoted.

Of these all of a call are kept or none, however many it has."""


@dataclass
class _Round:
    """What the bids of one call wait for."""

    cleared: ClearedCall | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class _Bidder:
    account: Address
    peer: PeerId
    round: _Round = field(compare=False)


class CallDesk:
    """Calls of one broker; of one that bargains, nothing is asked of it and it does nothing."""

    def __init__(
        self,
        station: Station,
        escrow: Escrow,
        settings: BrokerSettings,
    ) -> None:
        self._station = station
        self._escrow = escrow
        self._open = settings.mechanism == "eeg"
        self._calls = Calls(settings.call_seconds)
        self._round = _Round()
        self._bids: OrderedDict[Digest, _Bidder] = OrderedDict()
        self._prices: dict[Digest, Wei] = {}
        """By trial, of what was allocated."""
        self._priced: deque[tuple[Digest, ...]] = deque()
        """The trials of `_prices` by call, the oldest call first."""
        self._accounts: OrderedDict[PeerId, Address] = OrderedDict()
        """Under which peers have submitted what was tried."""
        self._moved = trio.Event()

    def answers(self) -> Mapping[Question, Answer]:
        """The kinds of request that belong to calls."""
        if not self._open:
            return {}
        return {PlaceBid: self._bid, AskAllocations: self._ask_cleared, StayOut: self._stay_out}

    def tried(self, trial_id: Digest, tried: Tried) -> None:
        """Take note of a trial that its buyer is about to hear of.

        Raises `RemoteProtocolError` ``adapters-pairwise``, and as `Calls.tried`.
        """
        if self._open:
            require_whole(tried.offer.architecture, "a call")
        layers, capacity = _beginning(tried)
        if not self._open or not layers:
            return
        offer = tried.offer
        self._calls.tried(
            Attempt(
                trial_id=trial_id,
                buyer=tried.buyer.seller,
                seller=offer.seller,
                offer_digest=tried.offer_digest,
                layers=layers,
                capacity=capacity,
                gain=tried.trial.evaluation.gain,
                age=(offer.issued_at, offer.nonce),
            )
        )
        self._accounts[tried.buyer.peer_id] = tried.buyer.seller
        _trim(self._accounts)

    def price_of(self, question: QuoteRequest) -> Wei | None:
        """Return the price that a quote must have; None where prices are bargained.

        Raises `RemoteProtocolError`: ``not-allocated``, ``not-the-cleared-price``.
        """
        if not self._open:
            return None
        price = self._prices.get(question.trial_id)
        if price is None:
            raise RemoteProtocolError("not-allocated", question.trial_id.hex())
        if question.valuation != price:
            raise RemoteProtocolError("not-the-cleared-price", f"{question.valuation}, not {price}")
        return price

    async def run(self) -> None:
        """Close calls when it is time, and clear them. For ever."""
        while True:
            deadline = self._calls.deadline
            with trio.move_on_at(math.inf if deadline is None else deadline):
                await self._moved.wait()
            closed = self._calls.close(Instant(trio.current_time()))
            if closed is not None:
                round_, self._round = self._round, _Round()
                await self._clear(closed, round_)

    # ── what buyers ask ──

    async def _bid(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, PlaceBid)
        bid, station = question.bid, self._station
        name = digest(station.domain, bid)
        known = self._bids.get(name)
        if known is not None and known.peer == peer:  # its answer was lost
            return Noted()
        account = self._accounts.get(peer)
        if account is None:
            raise RemoteProtocolError("not-in-the-call", "nothing was tried for you", peer=peer)
        check_budget_bid(station.domain, bid, question.signature, account, peer=peer)
        try:
            held = await trio.to_thread.run_sync(self._escrow.balance, account)
        except ChainUnavailableError as error:
            raise RemoteProtocolError("chain-away", str(error), peer=peer) from error
        if bid.budget > held:
            raise RemoteProtocolError("budget-not-held", f"{bid.budget} of {held} wei", peer=peer)
        self._calls.bid(account, bid, Instant(trio.current_time()))
        self._bids[name] = _Bidder(account, peer, self._round)
        _trim(self._bids)
        self._ring()
        return Noted()

    async def _stay_out(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        account = self._accounts.get(peer)
        if account is not None:
            self._calls.stays_out(account)
            self._ring()
        return Noted()

    async def _ask_cleared(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, AskAllocations)
        bidder = self._bids.get(question.bid)
        if bidder is None or bidder.peer != peer:
            raise RemoteProtocolError("unknown-bid", question.bid.hex(), peer=peer)
        if bidder.round.failed:
            raise RemoteProtocolError("call-failed", "it has no exact outcome", peer=peer)
        cleared = bidder.round.cleared
        if cleared is None:
            return Noted()
        return Allocated(call=cleared.name, allocations=cleared.answer_to(bidder.account))

    # ── clearing ──

    async def _clear(self, closed: Closed, round_: _Round) -> None:
        begun = trio.current_time()
        try:
            cleared = await trio.to_thread.run_sync(clear_call, closed)
        except LocalProtocolError as error:  # of this call alone; the next one may be cleared
            self._station.observer.emit(OurFault(during="clear", reason=str(error)))
            round_.failed = True
            return
        self._keep_prices(cleared)
        self._station.observer.emit(_told(cleared, trio.current_time() - begun))
        round_.cleared = cleared

    def _keep_prices(self, cleared: ClearedCall) -> None:
        """Remember what may be quoted; forget the oldest calls where enough is kept without."""
        prices = {
            one.trial_id: one.allocation.price
            for one in cleared.given
            if one.trial_id is not None and one.allocation is not None
        }
        if not prices:
            return
        self._prices.update(prices)
        self._priced.append(tuple(prices))
        while len(self._prices) - len(self._priced[0]) >= REMEMBERED:
            for trial in self._priced.popleft():
                self._prices.pop(trial, None)

    def _ring(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


def _beginning(tried: Tried) -> tuple[int, int]:
    """Return how many layers are sold, and of how many; 0 of what is no beginning of them."""
    parts = prefixes(parse_architecture(tried.offer.architecture))
    if tried.offer.layers not in parts:
        return 0, len(parts)
    return parts.index(tried.offer.layers) + 1, len(parts)


def _trim(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > REMEMBERED:
        kept.popitem(last=False)


def _told(cleared: ClearedCall, seconds: float) -> CallCleared:
    certificate, outcome = cleared.certificate, cleared.outcome
    return CallCleared(
        call=cleared.name,
        mechanism="eeg",
        buyers=cleared.buyers,
        sellers=cleared.sellers,
        budgets={account: str(budget) for account, budget in cleared.budgets.items()},
        market=cleared.market,
        outcome={} if outcome is None else outcome.to_json(),
        valid=certificate is None or certificate.valid,
        given={
            buyer: tuple(_allotted(one) for one in cleared.given if one.buyer == buyer)
            for buyer in cleared.buyers
        },
        seconds=round(seconds, 4),
    )


def _allotted(one: Given) -> dict[str, object]:
    allocation = one.allocation
    return {
        "seller": one.seller,
        "share": one.share,
        "layers": one.layers,
        "offer": None if allocation is None else allocation.offer_digest,
        "price": "0" if allocation is None else str(allocation.price),
        "predicted": 0 if allocation is None else allocation.predicted,
    }
