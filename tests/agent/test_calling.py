"""A bid in a call depends on the broker that it is for, and on no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.agent.buyer import Tried
from node.agent.calling import Calling
from node.net.errors import PeerUnreachableError
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Allocated, AskAllocations, PlaceBid, StayOut
from node.protocol.types import Address, Millionths, PeerId, Wei
from tests.protocol import cast

OURS, OTHER = (cast.Party(name).peer_id for name in ("our broker", "another"))
GAIN = Millionths(200_000)
KAPPA = 1_000_000
FAULTS: dict[str, Callable[[PeerId], RemoteProtocolError]] = {
    "unreachable": lambda peer: PeerUnreachableError("nobody answers", peer=peer),
    "not-my-role": lambda peer: RemoteProtocolError("not-my-role", "", peer=peer),
}


def tried(broker: PeerId, seller: str, gain: int = GAIN) -> Tried:
    result: Any = SimpleNamespace(
        trial_id=cast.word(f"trial of {seller} {gain}"), gain=gain, bound=gain, alpha=1
    )
    return Tried(
        offer_digest=cast.word(f"offer of {seller} {gain}"),
        offer=cast.offer(cast.Party(seller)),
        base_digest=cast.word("base"),
        base_root=cast.word("base weights"),
        notice_digest=cast.word("notice"),
        notice=dataclasses.replace(cast.NOTICE, peer_id=broker),
        notice_signed=b"",
        result=result,
    )


class OneBuyer:
    """A buyer that can pay for anything, and brokers that give nothing; notes what is said."""

    def __init__(self, stay_out: Callable[[PeerId], object], budget: Wei | None = None) -> None:
        self.stay_out = stay_out
        self.bids: list[tuple[PeerId, Wei]] = []
        self.faults: list[tuple[str, str]] = []
        self.bid_at: float | None = None
        self.domain = cast.DOMAIN
        self.keys = SimpleNamespace(account=cast.BUYER.account_key)
        settings: Any = SimpleNamespace(
            call_budget=budget, value_of=lambda gain: Wei(KAPPA * gain // 1_000_000)
        )
        desk: Any = SimpleNamespace(gathering=SimpleNamespace(open=nullcontext))
        all_else: Any = self
        self.calling = Calling(all_else, all_else, desk, all_else, settings, self.report)

    def report(self, during: str, error: RemoteProtocolError) -> None:
        self.faults.append((during, error.reason))

    async def left(self, *_: Address) -> Wei:
        return Wei(10**18)

    async def ask(self, peer: PeerId, question: object, _: object) -> None:
        if isinstance(question, PlaceBid):
            self.bids.append((peer, question.bid.budget))
            self.bid_at = trio.current_time()
        if isinstance(question, StayOut):
            fault = self.stay_out(peer)
            if isinstance(fault, RemoteProtocolError):
                raise fault
            await trio.sleep(float(str(fault)))

    async def ask_either(self, peer: PeerId, question: object, *_: object) -> Allocated:
        assert isinstance(question, AskAllocations)
        return Allocated(call=cast.word("call"), allocations=())

    async def buy(self, *trials: Tried) -> str:
        async def again(_: object) -> Tried:
            raise AssertionError("nothing was forgotten")

        (step,) = await self.calling.buy(
            1, trials, objection=lambda _: "", opened=lambda *_: None, again=again
        )
        return step.because


@pytest.mark.parametrize("reason", FAULTS)
async def test_another_broker_that_fails_to_be_told_that_we_stay_out_ends_no_round(
    reason: str, autojump_clock: MockClock
) -> None:
    buyer = OneBuyer(FAULTS[reason])
    assert await buyer.buy(tried(OTHER, "one"), tried(OURS, "two")) == "outbid"
    assert [peer for peer, _ in buyer.bids] == [OURS]
    assert buyer.faults == [("stay-out", reason)]


async def test_a_bid_does_not_wait_for_another_broker_that_is_slow_to_hear_of_none(
    autojump_clock: MockClock,
) -> None:
    buyer = OneBuyer(lambda _: 9.0)
    begun = trio.current_time()
    await buyer.buy(tried(OTHER, "one"), tried(OURS, "two"))
    assert buyer.bid_at is not None
    assert buyer.bid_at - begun < 1


@pytest.mark.parametrize(("call_budget", "bid"), [(None, 500_000), (Wei(7), 7)])
async def test_a_bid_is_no_more_than_the_best_trial_of_each_seller_is_worth(
    call_budget: Wei | None, bid: int, autojump_clock: MockClock
) -> None:
    buyer = OneBuyer(lambda _: 0, call_budget)
    trials = [tried(OURS, "one"), tried(OURS, "one", 100_000), tried(OURS, "two", 300_000)]
    await buyer.buy(*trials)
    ((_, amount),) = buyer.bids
    assert amount == pytest.approx(bid, abs=1)
    assert amount <= bid


async def test_what_is_worth_nothing_is_not_bid_on(autojump_clock: MockClock) -> None:
    buyer = OneBuyer(lambda _: 0)
    assert await buyer.buy(tried(OURS, "one", 0)) == "outbid"
    assert not buyer.bids
