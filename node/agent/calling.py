"""Buys in a call market: bids a budget, takes what the call gives, has each of it quoted.

    trials ─► budget bid ─► (all others' bids) ─► allocations ─► a quote each ─► goods ─► paid

Each allocation becomes an ordinary trade of its own, at the price of the call: quoted, journalled
and funded one by one, as every transaction of an account is, so that a restart ends each of them
as any other. What a broker answers is checked before anything is asked for: no more than the
budget for all together, and only what was bid on. No other broker knows of the call, so there is
none to fall back on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

import trio

from node.agent.buyer import Buyer, NoPrice, Tried
from node.agent.progress import Step
from node.agent.settings import AgentSettings
from node.chain.errors import ChainUnavailableError
from node.protocol.call import Allocation, BudgetBid, check_allocations
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import (
    MAX_CALL_SECONDS,
    Allocated,
    AskAllocations,
    Noted,
    PlaceBid,
    StayOut,
)
from node.protocol.signing import sign_digest
from node.protocol.types import Digest, PeerId, Wei
from node.settlement.desk import TradeDesk
from node.settlement.purse import Purse
from node.settlement.trade import Trade
from node.station.station import Station

FIRST_POLL_SECONDS: Final = 0.1
LONGEST_POLL_SECONDS: Final = 1.0
BOUGHT: Final = "bought"
OUTBID: Final = "outbid"
"""Why nothing was bought: the budgets of others have left no whole layer for ours."""


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
    ) -> list[Step]:
        """Bid on every trial without an `objection`; see all that it gives to its end.

        Returns what each purchase of round `number` came to, or of the best trial why there was
        none: last what was bought, and of that what had the most gain. `opened` is told of each
        trade as soon as it is in the journal. No `RemoteProtocolError` leaves this.
        """
        best = max(trials, key=lambda one: (not objection(one), one.result.bound, one.result.gain))
        wanted = [one for one in trials if not objection(one)]
        try:
            given = await self._allotted(trials, wanted)
        except RemoteProtocolError as error:
            self._report("call", error)
            return [step_of(number, best, error.reason)]
        except ChainUnavailableError:
            return [step_of(number, best, "chain-away")]
        if not given:
            because = objection(best) or OUTBID
            return [step_of(number, best, because)]
        steps: list[Step] = []
        trades: list[tuple[Tried, Trade]] = []
        for tried, price in given:
            answer = await self._quoted(tried, price)
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
        """Bid, and return what was given, once it was seen to be an answer to the bid."""
        sellers = {one.offer.seller for one in wanted}
        left = min([await self._purse.left(seller) for seller in sellers], default=Wei(0))
        most = self._settings.call_budget
        budget = left if most is None else Wei(min(most, left))
        broker = wanted[-1].notice.peer_id if wanted and budget else None
        for peer in {one.notice.peer_id for one in trials} - {broker}:
            await self._station.ask(peer, StayOut(), Noted)
        if broker is None:
            return []
        by_offer = {one.offer_digest: one for one in wanted if one.notice.peer_id == broker}
        bid = BudgetBid(
            trials=tuple(one.result.trial_id for one in by_offer.values()), budget=budget
        )
        allocations = await self._cleared(broker, bid)
        check_allocations(allocations, bid_on=by_offer.keys(), budget=budget, peer=broker)
        return [(by_offer[one.offer_digest], one.price) for one in allocations]

    async def _cleared(self, broker: PeerId, bid: BudgetBid) -> tuple[Allocation, ...]:
        """Place the bid, and wait until its call is over."""
        station = self._station
        name = digest(station.domain, bid)
        signature = sign_digest(station.keys.account, name)
        await station.ask(broker, PlaceBid(bid=bid, signature=signature), Noted)
        patience = trio.current_time() + MAX_CALL_SECONDS
        pause = FIRST_POLL_SECONDS
        while trio.current_time() < patience:
            await trio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
            answer = await station.ask_either(broker, AskAllocations(bid=name), Allocated, Noted)
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
