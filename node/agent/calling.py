"""Buys in a call market: bids a budget, takes what the call gives, has each of it quoted.

    trials ─► budget bid ─► (all others' bids) ─► allocations ─► a quote each ─► goods ─► paid

Each allocation becomes an ordinary trade of its own, at the price of the call: quoted and
journalled by itself, so that a restart ends each of them as any other; the deposits of all whose
goods are here are made in one transaction (`node.settlement.gathering`). A bid promises no more
than can be funded: of each seller at most one offer is given, and the gas of a deposit and of a
dispute is kept back for each. Nor does it promise more than all of it is worth to the buyer: κ·Δ
of the best trial of each seller. What a broker answers is checked before anything is asked for: no
more than the budget for all together, only what was bid on, of each seller once. A clearing knows
no κ, and prices layers by a line through all trials of a seller: what it gives at over κ·Δ of that
very trial is no fault, and is not bought (`OVER_WORTH`); the rest of the answer is.

A broker that is away is asked again for `AWAY_SECONDS`. One that was restarted has forgotten the
call, and says so: nothing was promised yet, so what is wanted is tried once more, and bid on in
the next call, at most `MOST_BIDS` times a round.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import trio

from node.agent.buyer import Buyer, NoPrice, Tried
from node.agent.progress import Step
from node.agent.settings import AgentSettings
from node.chain.errors import ChainUnavailableError
from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.params.merges import require_whole
from node.protocol.call import Allocation, BudgetBid, check_allocations
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import (
    MAX_CALL_SECONDS,
    Allocated,
    AskAllocations,
    Noted,
    PlaceBid,
    StayOut,
)
from node.protocol.offer import Offer
from node.protocol.signing import sign_digest
from node.protocol.types import Address, Digest, PeerId, Wei
from node.settlement.desk import TradeDesk
from node.settlement.purse import Purse
from node.settlement.trade import Trade
from node.station.station import Station

FIRST_POLL_SECONDS: Final = 0.1
LONGEST_POLL_SECONDS: Final = 1.0
AWAY_SECONDS: Final = 20.0
"""How long a broker may be away that knows of our bid, or is to take it."""
AWAY: Final = frozenset({"truncated", "stream-reset", "busy", "no-notice", "chain-away"})
"""What a broker says, or does, that is not open, or is cut off, for a moment."""
FORGOTTEN: Final = frozenset({"unknown-bid", "unknown-trial", "not-in-the-call"})
"""What a broker says of a call that it does not remember."""
MOST_BIDS: Final = 3
BOUGHT: Final = "bought"
OUTBID: Final = "outbid"
"""Why nothing was bought: the budgets of others have left no whole layer for ours."""
OVER_WORTH: Final = "over-worth"
"""Why something was not bought that a call gave: its price is over what its gain is worth."""
CLEARING_ERROR: Final = 1_000_000
"""One part in so many of the worth is not bid, more than a clearing errs: where all that is bid on
is given for the whole budget, no price comes out over its worth by an error alone."""
T = TypeVar("T")
Again = Callable[[tuple[Digest, Offer]], Awaitable[Tried]]
"""Has an offer tried once more. Raises `RemoteProtocolError`."""


class Calling:
    """The calls of one agent."""

    def __init__(
        self,
        station: Station,
        buyer: Buyer,
        desk: TradeDesk,
        purse: Purse,
        settings: AgentSettings,
        report: Callable[[str, RemoteProtocolError], None],
    ) -> None:
        self._station = station
        self._buyer = buyer
        self._desk = desk
        self._purse = purse
        self._settings = settings
        self._report = report

    async def buy(
        self,
        number: int,
        trials: Sequence[Tried],
        *,
        objection: Callable[[Tried], str],
        opened: Callable[[Tried, Trade], None],
        again: Again,
    ) -> list[Step]:
        """Bid on every trial without an `objection`; see all that it gives to its end.

        Returns what each purchase of round `number` came to, or of the best trial why there was
        none: last what was bought, and of that what had the most gain. `opened` is told of each
        trade as soon as it is in the journal. No `RemoteProtocolError` leaves this.
        """
        given: list[tuple[Tried, Wei]] = []
        for bids_left in reversed(range(MOST_BIDS)):
            best = max(trials, key=lambda t: (not objection(t), t.result.bound, t.result.gain))
            try:
                given = await self._allotted(trials, [t for t in trials if not objection(t)])
                break
            except RemoteProtocolError as error:
                self._report("call", error)
                anew = await self._tried_again(trials, again) if error.reason in FORGOTTEN else []
                if not anew or not bids_left:
                    return [step_of(number, best, error.reason)]
                trials = anew
            except ChainUnavailableError:
                return [step_of(number, best, "chain-away")]
        if not given:
            because = objection(best) or OUTBID
            return [step_of(number, best, because)]
        steps: list[Step] = []
        trades: list[tuple[Tried, Trade]] = []
        with self._desk.gathering.open():
            for tried, price in given:
                dear = price > self._settings.value_of(tried.result.gain)
                answer = OVER_WORTH if dear else await self._quoted(tried, price)
                if isinstance(answer, Trade):
                    opened(tried, answer)
                    trades.append((tried, answer))
                else:
                    steps.append(step_of(number, tried, answer))
        for tried, trade in trades:
            await trade.settled.wait()
            steps.append(step_of(number, tried, trade.machine.state.value, trade))
        return steps

    async def _allotted(
        self, trials: Sequence[Tried], wanted: Sequence[Tried]
    ) -> list[tuple[Tried, Wei]]:
        """Bid, and return what was given, once it was seen to be an answer to the bid.

        Beside it, whoever else has tried something for us is told not to wait for a bid.
        """
        payable, left = await self._payable(wanted)
        broker = payable[-1].notice.peer_id if payable else None
        by_offer = {one.offer_digest: one for one in payable if one.notice.peer_id == broker}
        budget = self._budget(by_offer.values(), left)
        given: list[tuple[Tried, Wei]] = []
        failed: RemoteProtocolError | ChainUnavailableError | None = None
        async with trio.open_nursery() as nursery:
            bidding = broker if budget else None
            for peer in {one.notice.peer_id for one in trials} - {bidding}:
                nursery.start_soon(self._stay_out, peer)
            if bidding is not None:
                try:
                    given = await self._bid(bidding, by_offer, budget)
                except (RemoteProtocolError, ChainUnavailableError) as error:
                    failed = error  # raised outside, where no nursery makes a group of it
        if failed is not None:
            raise failed
        return given

    def _budget(self, bid_on: Collection[Tried], left: Wei) -> Wei:
        """Return what to bid: no more than is `left`, is set, or than it is worth; 0 for nothing.

        Of a seller at most one offer is given, so that only its best trial counts.
        """
        best: dict[Address, Wei] = {}
        for one in bid_on:
            value = self._settings.value_of(one.result.gain)
            best[one.offer.seller] = max(value, best.get(one.offer.seller, Wei(0)))
        worth = sum(best.values())
        most = self._settings.call_budget
        amounts = [left, worth - worth // CLEARING_ERROR, *([] if most is None else [most])]
        return Wei(min(amounts))

    async def _stay_out(self, broker: PeerId) -> None:
        """Tell a broker that we bid elsewhere or not at all; no round ends with its failing."""
        try:
            await self._station.ask(broker, StayOut(), Noted)
        except RemoteProtocolError as error:
            self._report("stay-out", error)

    async def _bid(
        self, broker: PeerId, by_offer: Mapping[Digest, Tried], budget: Wei
    ) -> list[tuple[Tried, Wei]]:
        bid = BudgetBid(
            trials=tuple(one.result.trial_id for one in by_offer.values()), budget=budget
        )
        allocations = await self._cleared(broker, bid)
        sellers = {name: one.offer.seller for name, one in by_offer.items()}
        check_allocations(allocations, bid_on=sellers, budget=budget, peer=broker)
        return [(by_offer[one.offer_digest], one.price) for one in allocations]

    async def _payable(self, wanted: Sequence[Tried]) -> tuple[list[Tried], Wei]:
        """Return what can be bid on, and the most for all of it together.

        Where the account lacks the gas for all sellers, those of the least gain are left out.
        """
        best: dict[Address, int] = {}
        for one in wanted:
            best[one.offer.seller] = max(one.result.gain, best.get(one.offer.seller, 0))
        sellers, left = sorted(best, key=lambda seller: (-best[seller], seller)), Wei(0)
        while sellers and not (left := await self._purse.left(*sellers)):
            sellers.pop()
        return [one for one in wanted if one.offer.seller in sellers], left

    async def _tried_again(self, trials: Sequence[Tried], again: Again) -> list[Tried]:
        """Have the same offers tried by a broker that has forgotten them; those that it can try."""
        anew = []
        for one in trials:
            asked = functools.partial(again, (one.offer_digest, one.offer))
            try:
                anew.append(await self._insist(asked))
            except RemoteProtocolError as error:
                self._report("trial", error)
                if _away(error):
                    return []
        return anew

    async def _insist(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask a broker that may be away for a moment, until it answers."""
        patience = trio.current_time() + AWAY_SECONDS
        while True:
            try:
                return await question()
            except RemoteProtocolError as error:
                if not _away(error) or trio.current_time() > patience:
                    raise
            await trio.sleep(LONGEST_POLL_SECONDS)

    async def _cleared(self, broker: PeerId, bid: BudgetBid) -> tuple[Allocation, ...]:
        """Place the bid, and wait until its call is over."""
        station = self._station
        name = digest(station.domain, bid)
        signature = sign_digest(station.keys.account, name)
        placed = PlaceBid(bid=bid, signature=signature)
        await self._insist(lambda: station.ask(broker, placed, Noted))
        patience = trio.current_time() + MAX_CALL_SECONDS
        pause = FIRST_POLL_SECONDS
        while trio.current_time() < patience:
            await trio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
            answer = await self._insist(
                lambda: station.ask_either(broker, AskAllocations(bid=name), Allocated, Noted)
            )
            if isinstance(answer, Allocated):
                return answer.allocations
        raise RemoteProtocolError("call-too-long", f"{MAX_CALL_SECONDS} s", peer=broker)

    async def _quoted(self, tried: Tried, price: Wei) -> Trade | str:
        """Have one allocation quoted at its price; returns the purchase, or why there is none."""
        try:
            if await self._purse.left(tried.offer.seller) < price:
                return "cash"
            answer = await self._buyer.buy(tried, self._desk, most=price, price=price)
        except RemoteProtocolError as error:
            self._report("buy", error)
            return error.reason
        except ChainUnavailableError:
            return "chain-away"
        return answer.reason if isinstance(answer, NoPrice) else answer


def _away(error: RemoteProtocolError) -> bool:
    """Whether the broker did not answer, or may soon; what it answers of a seller is its word."""
    return isinstance(error, PeerUnreachableError | PeerTimeoutError) or error.reason in AWAY


def require_pairwise(architecture: str, mechanism: str) -> None:
    """Raise `LocalProtocolError` for adapters that would be offered to a call market."""
    if mechanism == "eeg":
        try:
            require_whole(architecture, "a call")
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from error


def step_of(number: int, tried: Tried, because: str, trade: Trade | None = None) -> Step:
    """Return what a trial came to in round `number`: a purchase, or the reason why there is none.

    Whether weights were given (`BOUGHT`) is for whoever has the store to say.
    """
    found = tried.result
    quote = None if trade is None else trade.quote
    return Step(
        round=number,
        bought=because == BOUGHT,
        because=because,
        trade_id=None if trade is None else trade.machine.record.trade_id,
        seller=tried.offer.peer_id,
        price=None if quote is None else quote.price,
        alpha=found.alpha,
        gain=found.gain,
        bound=found.bound,
    )


def in_order_of_gain(steps: Sequence[Step], given: Collection[Digest]) -> list[Step]:
    """Return the steps with what was `given` marked as bought: that last, the most gain last."""
    marked = [
        replace(one, bought=True, because=BOUGHT) if one.trade_id in given else one for one in steps
    ]
    return sorted(marked, key=lambda one: (one.bought, one.gain or 0))
