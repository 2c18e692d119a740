"""A call takes one bid of each who tried, closes once, and waits for nobody longer than it says."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from broker_node.calls.call import Attempt, Calls, CallState, Closed
from node.protocol.call import BudgetBid
from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import checksummed
from node.protocol.types import Address, Digest, Instant, Millionths, Wei

SECONDS = 10.0


def account(name: str) -> Address:
    return checksummed(hashlib.sha256(name.encode()).digest()[:20])


def attempt(buyer: str, number: int = 0, *, call: int = 0, seller: str = "seller") -> Attempt:
    trial = hashlib.sha256(f"{buyer} {seller} {number} {call}".encode()).digest()
    return Attempt(
        trial_id=Digest(trial),
        buyer=account(buyer),
        seller=account(seller),
        offer_digest=Digest(trial[::-1]),
        layers=number + 1,
        capacity=4,
        gain=Millionths(100_000),
        age=(0, number),
    )


def bid_on(*attempts: Attempt, budget: int = 100) -> BudgetBid:
    return BudgetBid(trials=tuple(one.trial_id for one in attempts), budget=Wei(budget))


def refused(calls: Calls, buyer: str, bid: BudgetBid, now: float = 0.0) -> str:
    before = (calls.state, calls.deadline)
    with pytest.raises(RemoteProtocolError) as caught:
        calls.bid(account(buyer), bid, Instant(now))
    assert (calls.state, calls.deadline) == before
    return caught.value.reason


def opened(*buyers: str) -> tuple[Calls, dict[str, Attempt]]:
    calls, tried = Calls(SECONDS), {buyer: attempt(buyer) for buyer in buyers}
    for one in tried.values():
        calls.tried(one)
    return calls, tried


def test_a_call_closes_as_soon_as_all_who_tried_have_bid() -> None:
    calls, tried = opened("a", "b")
    calls.bid(account("a"), bid_on(tried["a"]), Instant(1.0))
    assert calls.close(Instant(2.0)) is None
    calls.bid(account("b"), bid_on(tried["b"]), Instant(3.0))
    closed = calls.close(Instant(3.0))
    assert closed is not None
    assert {placed.buyer for placed in closed.placed} == {account("a"), account("b")}
    assert calls.close(Instant(99.0)) is None


def test_whoever_says_nothing_is_waited_for_until_the_deadline_and_then_left_out() -> None:
    calls, tried = opened("a", "silent")
    calls.bid(account("a"), bid_on(tried["a"]), Instant(1.0))
    assert calls.deadline == 1.0 + SECONDS
    assert calls.close(Instant(10.9)) is None
    closed = calls.close(Instant(11.0))
    assert closed is not None
    assert [placed.buyer for placed in closed.placed] == [account("a")]
    assert refused(calls, "silent", bid_on(tried["silent"]), 12.0) == "call-closed"


def test_whoever_stays_out_is_not_waited_for() -> None:
    calls, tried = opened("a", "b")
    calls.stays_out(account("b"))
    calls.bid(account("a"), bid_on(tried["a"]), Instant(0.0))
    assert calls.close(Instant(0.0)) is not None
    calls, tried = opened("a")
    calls.stays_out(account("a"))
    assert calls.state is CallState.QUIET
    assert refused(calls, "a", bid_on(tried["a"])) == "call-closed"


def test_who_has_stayed_out_and_tries_once_more_is_waited_for_again() -> None:
    calls, tried = opened("a", "b")
    calls.stays_out(account("b"))
    calls.tried(attempt("b", 1))
    calls.bid(account("a"), bid_on(tried["a"]), Instant(0.0))
    assert calls.close(Instant(1.0)) is None
    assert calls.close(Instant(SECONDS)) is not None


def test_bids_that_are_none_of_this_call_are_refused_by_name() -> None:
    calls, tried = opened("a", "b")
    assert refused(calls, "nobody", bid_on(attempt("nobody"))) == "not-in-the-call"
    assert refused(calls, "a", bid_on(tried["b"])) == "unknown-trial"
    calls.bid(account("a"), bid_on(tried["a"]), Instant(0.0))
    assert refused(calls, "a", bid_on(tried["a"], budget=101)) == "second-bid"
    calls.bid(account("a"), bid_on(tried["a"]), Instant(1.0))  # said again: nothing new
    calls.bid(account("b"), bid_on(tried["b"]), Instant(1.0))
    assert calls.close(Instant(1.0)) is not None
    assert refused(calls, "b", bid_on(tried["b"]), 2.0) == "call-closed"


def test_a_trial_of_a_call_that_is_over_brings_nobody_into_the_next() -> None:
    calls, tried = opened("a")
    calls.bid(account("a"), bid_on(tried["a"]), Instant(0.0))
    assert calls.close(Instant(0.0)) is not None
    calls.tried(tried["a"])
    assert calls.state is CallState.QUIET


def test_the_name_of_a_call_is_that_of_its_bids_in_whatever_order_they_came() -> None:
    names = set()
    for order in (("a", "b"), ("b", "a")):
        calls, tried = opened(*order)
        for buyer in order:
            calls.bid(account(buyer), bid_on(tried[buyer]), Instant(0.0))
        closed = calls.close(Instant(0.0))
        assert closed is not None
        names.add(closed.name)
    assert len(names) == 1


BUYERS = st.sampled_from(["a", "b", "c"])


class CallPlay(RuleBasedStateMachine):
    """Any order of trials, bids, refusals and time: a model of who is in the call beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls(SECONDS)
        self.now, self.number = 0.0, 0
        self.tried: dict[str, list[Attempt]] = {}
        self.bids: dict[str, BudgetBid] = {}
        self.out: set[str] = set()
        self.first_bid: float | None = None
        self.closed: list[Closed] = []

    def forget(self) -> None:
        self.tried, self.bids, self.out, self.first_bid = {}, {}, set(), None

    @rule(buyer=BUYERS, number=st.integers(0, 2))
    def try_(self, buyer: str, number: int) -> None:
        one = attempt(buyer, number, call=self.number)
        self.calls.tried(one)
        if one not in self.tried.setdefault(buyer, []):
            self.tried[buyer].append(one)
        self.out.discard(buyer)

    @rule(buyer=BUYERS, budget=st.integers(1, 3))
    def bid(self, buyer: str, budget: int) -> None:
        named = self.tried.get(buyer, [attempt(buyer, call=self.number)])
        bid = bid_on(*named, budget=budget)
        good = buyer in self.tried and self.bids.get(buyer, bid) == bid
        try:
            self.calls.bid(account(buyer), bid, Instant(self.now))
        except RemoteProtocolError as error:
            if good or error.reason not in {"not-in-the-call", "second-bid"}:
                raise
        else:
            assert good
            self.bids[buyer] = bid
            self.out.discard(buyer)
            self.first_bid = self.now if self.first_bid is None else self.first_bid

    @rule(buyer=BUYERS)
    def stay_out(self, buyer: str) -> None:
        self.calls.stays_out(account(buyer))
        if buyer in self.tried and buyer not in self.bids:
            self.out.add(buyer)
        if self.tried and not self.bids and self.out == self.tried.keys():
            self.number += 1
            self.forget()

    @rule(seconds=st.floats(0, 2 * SECONDS, allow_nan=False))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def close(self) -> None:
        due = self.first_bid is not None and (
            self.tried.keys() == self.bids.keys() | self.out or self.now >= self.first_bid + SECONDS
        )
        closed = self.calls.close(Instant(self.now))
        assert (closed is not None) == due
        if closed is not None:
            assert {p.buyer: p.bid for p in closed.placed} == {
                account(buyer): bid for buyer, bid in self.bids.items()
            }
            for placed in closed.placed:
                assert {one.trial_id for one in placed.wanted} == set(placed.bid.trials)
            self.closed.append(closed)
            self.number += 1
            self.forget()

    @precondition(lambda self: self.number > 0)
    @rule(buyer=BUYERS)
    def bid_late(self, buyer: str) -> None:
        before = attempt(buyer, call=self.number - 1)
        with pytest.raises(RemoteProtocolError) as caught:
            self.calls.bid(account(buyer), bid_on(before), Instant(self.now))
        assert caught.value.reason in {
            "call-closed", "not-in-the-call", "unknown-trial", "second-bid",
        }  # fmt: skip

    @invariant()
    def says_where_it_stands(self) -> None:
        expected = CallState.QUIET
        if self.tried:
            expected = CallState.BIDDING if self.bids else CallState.TRYING
        assert self.calls.state is expected
        assert (self.calls.deadline is None) == (self.first_bid is None)


CallPlay.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_order_of_trials_bids_and_time_is_taken_as_the_table_says = CallPlay.TestCase
