"""Whatever happens between them, the buyer has weights or money, the seller money or its key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from node.protocol.brokerage import Brokerage, BrokerageState
from node.protocol.events import Step
from node.protocol.purchase import FUND_MARGIN, Purchase, PurchaseState
from node.protocol.sale import Sale, SaleState
from tests.protocol import cast
from tests.protocol.trade_play import SELLERS_SKEW, START_MONEY, EscrowModel, Phase, Shell

WHO = st.sampled_from(["buyer", "seller", "broker"])
SECONDS = st.one_of(
    st.integers(0, 5),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from([cast.FUND_BY, cast.REVEAL_BY, cast.REVEAL_BY + cast.GRACE]).flatmap(
        lambda deadline: st.integers(deadline - cast.NOW - 3, deadline - cast.NOW + 3)
    ),
    st.just(cast.DISPUTE_WINDOW + 1),
)


class TradePlay(RuleBasedStateMachine):
    """One trade from preparation to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.deal = cast.good_deal()
        self.chain = EscrowModel(self.deal.quote)
        self.seller = Shell("seller", Sale(cast.sale_record()), self.chain)
        self.broker = Shell("broker", Brokerage(cast.brokerage_record()), self.chain)
        self.buyer: Shell[Purchase] | None = None
        self.honest = self.seller_stays = True
        self.careless = False

    @initialize(
        honest=st.sampled_from([True, True, True, False]),
        seller_stays=st.sampled_from([True, True, False]),
        helped=st.booleans(),
        rounds=st.integers(0, 9),
        pauses=st.dictionaries(st.integers(1, 8), st.sampled_from([20, 120, 700]), max_size=2),
        away=st.dictionaries(WHO, st.integers(1, 6), max_size=2),
        idle=st.dictionaries(WHO, st.integers(1, 6), max_size=2),
    )
    def begin(
        self,
        honest: bool,
        seller_stays: bool,
        helped: bool,
        rounds: int,
        pauses: dict[int, int],
        away: dict[str, int],
        idle: dict[str, int],
    ) -> None:
        """Go some way along the trade, so that trouble starts anywhere in it.

        Who is `away` from a round on hears later all at once what was done meanwhile; who is
        `idle` hears it, and does nothing about it.
        """
        self.honest, self.seller_stays = honest, seller_stays
        self.chain.goods_are_good = honest
        if rounds:
            self.countersign(broker_hears=True, buyer_hears=True)
        for number in range(rounds):
            for who in ("buyer", "seller", "broker"):
                if number < min(away.get(who, rounds), idle.get(who, rounds)):
                    self.go_on(who)
                elif number < away.get(who, rounds):
                    self.listen(who, 100, remembers=True)
            if helped:
                self.a_stranger_helps_itself(Step.FINALIZE)
                self.a_stranger_helps_itself(Step.REFUND)
            self.chain.advance(pauses.get(number, 5))

    def shell(self, name: str) -> Shell[Any] | None:
        found: dict[str, Shell[Any] | None] = {
            "buyer": self.buyer, "seller": self.seller, "broker": self.broker
        }  # fmt: skip
        return found[name]

    # ── what the parties do ──

    @precondition(lambda self: self.buyer is None and self.seller.up)
    @rule(broker_hears=st.booleans(), buyer_hears=st.booleans())
    def countersign(self, broker_hears: bool, buyer_hears: bool) -> None:
        seller, deal = self.seller, self.deal
        if seller.machine.state is SaleState.PREPARED:
            if seller.now >= deal.quote.fund_by - FUND_MARGIN:
                return
            seller.take(
                lambda m: m.countersign(
                    deal.quote,
                    broker_signature=deal.broker_signature,
                    signature=deal.seller_signature,
                    receipt=deal.receipt,
                )
            )
        if seller.machine.record.quote is None or not (broker_hears and self.broker.up):
            return
        self.broker.take(lambda m: m.countersigned(deal.seller_signature))
        if buyer_hears and self.chain.time < deal.quote.fund_by - FUND_MARGIN:
            self.buyer = Shell("buyer", Purchase(cast.purchase_record()), self.chain)

    @rule(who=WHO, number=st.integers(0, 3), goods_come=st.sampled_from([True, True, True, False]))
    def act(self, who: str, number: int, goods_come: bool) -> None:
        shell = self.shell(who)
        if shell is not None and shell.up and shell.to_do:
            shell.perform(number, goods_come=goods_come)

    @rule(who=WHO, blocks=st.integers(1, 4), remembers=st.booleans())
    def listen(self, who: str, blocks: int, remembers: bool) -> None:
        shell = self.shell(who)
        if shell is not None and shell.up:
            shell.listen(blocks, remembers=remembers)

    @rule(who=WHO)
    def go_on(self, who: str) -> None:
        shell = self.shell(who)
        if shell is not None and shell.up:
            shell.listen(len(self.chain.blocks), remembers=True)
            for _ in range(3):
                if shell.to_do:
                    shell.perform(0)

    @rule(who=WHO)
    def look_at_the_clock(self, who: str) -> None:
        shell = self.shell(who)
        if shell is not None and shell.up:
            shell.take(lambda m: m.expire(shell.now))

    # ── what happens to them ──

    @rule(who=WHO)
    def crash(self, who: str) -> None:
        shell = self.shell(who)
        if shell is not None and shell.up:
            shell.crash()

    @rule(who=WHO)
    def restart(self, who: str) -> None:
        shell = self.shell(who)
        if shell is not None:
            shell.restart()

    @rule(seconds=st.integers(-SELLERS_SKEW, SELLERS_SKEW))
    def the_sellers_clock_is_set(self, seconds: int) -> None:
        self.seller.skew = seconds

    @precondition(lambda self: self.buyer is not None)
    @rule(seconds=st.integers(-100_000, 100_000))
    def the_buyers_clock_is_set(self, seconds: int) -> None:
        assert self.buyer is not None
        self.buyer.skew = seconds

    @rule(seconds=SECONDS, waiting=st.sets(st.sampled_from(Step)))
    def time_passes(self, seconds: int, waiting: set[Step]) -> None:
        self.chain.advance(seconds, waits=lambda p: p.step in waiting)

    @rule(step=st.sampled_from([Step.FINALIZE, Step.REFUND]))
    def a_stranger_helps_itself(self, step: Step) -> None:
        if self.chain.may(step, "stranger"):
            self.chain.broadcast(step, "stranger")

    @precondition(lambda self: self.chain.may(Step.DISPUTE, "seller"))
    @rule()
    def a_cheat_repents(self) -> None:
        self.chain.broadcast(Step.DISPUTE, "seller")

    @precondition(lambda self: self.chain.may(Step.REVEAL, "seller"))
    @rule()
    def a_careless_seller_reveals_by_hand(self) -> None:
        self.careless = True
        self.chain.broadcast(Step.REVEAL, "stranger")

    @rule(who=WHO)
    def a_stranger_withdraws_for(self, who: str) -> None:
        self.chain.broadcast(Step.WITHDRAW, who)

    # ── what holds throughout ──

    @invariant()
    def no_money_appears_or_is_lost(self) -> None:
        chain = self.chain
        assert chain.wallets.total() + chain.credits.total() + chain.locked == START_MONEY
        assert chain.locked == (
            chain.quote.price if chain.phase in {Phase.FUNDED, Phase.REVEALED} else 0
        )

    @invariant()
    def a_key_that_was_shown_is_paid_for(self) -> None:
        if not self.careless:
            assert not (self.chain.secret_seen and self.chain.phase in {Phase.NONE, Phase.REFUNDED})
        if self.chain.phase in {Phase.REVEALED, Phase.PAID, Phase.DISPUTED}:
            assert self.chain.secret_seen
        if self.chain.phase is Phase.DISPUTED:
            assert not self.honest

    @invariant()
    def what_the_buyer_believes_is_so(self) -> None:
        if self.buyer is None:
            assert self.chain.phase is Phase.NONE
            return
        phase, state = self.chain.phase, self.buyer.machine.state
        match state:
            case PurchaseState.ABANDONED | PurchaseState.FETCHING:
                assert phase is Phase.NONE
            case PurchaseState.FUNDED | PurchaseState.REFUNDING:
                assert phase is not Phase.NONE
            case PurchaseState.REVEALED | PurchaseState.DISPUTING:
                assert phase in {Phase.REVEALED, Phase.PAID, Phase.DISPUTED}
            case PurchaseState.DELIVERED:
                assert phase in {Phase.REVEALED, Phase.PAID}
            case PurchaseState.CHEATED:
                assert phase in {Phase.REVEALED, Phase.PAID}
                assert self.chain.time > self.chain.since + self.chain.quote.dispute_window or (
                    phase is Phase.PAID
                )
            case PurchaseState.COMPLETE:
                assert phase is Phase.PAID
            case PurchaseState.CREDITED | PurchaseState.REFUNDED:
                assert phase in {Phase.REFUNDED, Phase.DISPUTED}
        if state in {PurchaseState.DISPUTING, PurchaseState.CHEATED}:
            assert not self.honest
        if state is PurchaseState.REFUNDED:
            assert self.chain.wallets["buyer"] == START_MONEY

    @invariant()
    def what_the_seller_believes_is_so(self) -> None:
        phase = self.chain.phase
        match self.seller.machine.state:
            case SaleState.PREPARED:
                assert phase is Phase.NONE
            case SaleState.EXPIRED:
                assert phase is Phase.NONE
                assert not self.chain.secret_seen
            case SaleState.REVEALING | SaleState.WITHHELD:
                assert phase is not Phase.NONE
            case SaleState.REVEALED | SaleState.FINALIZING:
                assert phase in {Phase.REVEALED, Phase.PAID, Phase.DISPUTED}
            case SaleState.CREDITED | SaleState.PAID:
                assert phase is Phase.PAID
            case SaleState.REFUNDED:
                assert phase is Phase.REFUNDED
            case SaleState.DISPUTED:
                assert phase is Phase.DISPUTED

    @invariant()
    def a_receipt_is_published_for_a_paid_trade_only(self) -> None:
        if self.broker.machine.state in {BrokerageState.CREDITED, BrokerageState.PAID}:
            assert self.chain.phase is Phase.PAID

    # ── how it ends ──

    def teardown(self) -> None:
        """Everyone comes back, hears all, and does what is owed; then nothing is open.

        A seller that stays away for ever keeps its own money waiting, but not the buyer's.
        """
        shells: list[Shell[Any]] = [self.broker]
        if self.seller_stays:
            shells.append(self.seller)
        if self.buyer is not None:
            shells.append(self.buyer)
        for shell in shells:
            shell.skew = 0
            shell.restart()
        for _ in range(8):
            for shell in shells:
                shell.listen(len(self.chain.blocks), remembers=True)
                self.look_at_the_clock(shell.name)
                for _ in range(len(shell.to_do)):
                    shell.perform(0)
                shell.listen(len(self.chain.blocks), remembers=True)
            self.chain.advance(400)
            self.no_money_appears_or_is_lost()
            self.a_key_that_was_shown_is_paid_for()
            self.what_the_buyer_believes_is_so()
            self.what_the_seller_believes_is_so()
        chain = self.chain
        if not self.seller_stays and chain.phase is Phase.REVEALED:
            assert self.buyer is not None
            assert self.buyer.machine.settled
            return
        for shell in shells:
            assert shell.machine.over, f"{shell.name} is {shell.machine.state} for ever"
            assert shell.machine.settled
            assert shell.to_do == []
        assert chain.locked == 0
        if chain.phase is Phase.PAID:
            assert self.buyer is not None
            paid = chain.wallets["seller"] + chain.credits["seller"]
            assert paid == chain.quote.price - chain.quote.fee
            assert self.seller_stays <= (chain.credits["seller"] == 0)
            assert chain.wallets["broker"] == chain.quote.fee
            assert self.broker.published >= 1
            assert self.buyer.machine.state is (
                PurchaseState.COMPLETE if self.honest else PurchaseState.CHEATED
            )
        else:
            assert chain.phase in {Phase.NONE, Phase.REFUNDED, Phase.DISPUTED}
            assert chain.wallets["buyer"] == START_MONEY
            assert self.broker.published == 0


def test_whatever_happens_the_buyer_has_weights_or_money_and_the_seller_money_or_its_key() -> None:
    run_state_machine_as_test(
        TradePlay, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )


@pytest.mark.parametrize("seller_stays", [True, False], ids=["returns", "gone"])
@pytest.mark.parametrize("helped", [True, False], ids=["helped", "alone"])
@pytest.mark.parametrize("how", ["away", "idle"])
@pytest.mark.parametrize("who", [None, "buyer", "seller", "broker"])
def test_no_absence_and_no_delay_costs_anybody_else(
    who: str | None, how: str, helped: bool, seller_stays: bool
) -> None:
    """Every round from which one party does nothing, with every round that lasts long."""
    ends = set()
    for since in range(1, 6 if who else 2):
        for paused in range(8):
            for seconds in (120, 700):
                play = TradePlay()
                play.begin(
                    honest=True,
                    seller_stays=seller_stays,
                    helped=helped,
                    rounds=8,
                    pauses={paused: seconds},
                    away={who: since} if who and how == "away" else {},
                    idle={who: since} if who and how == "idle" else {},
                )
                play.teardown()
                ends.add(play.chain.phase)
    assert Phase.PAID in ends
    assert (Phase.REFUNDED in ends) >= (who == "seller")


@pytest.mark.parametrize("helped", [True, False], ids=["helped", "alone"])
@pytest.mark.parametrize("how", ["away", "idle"])
@pytest.mark.parametrize("who", [None, "seller", "broker"])
def test_bad_goods_are_paid_for_by_nobody_whatever_the_others_do(
    who: str | None, how: str, helped: bool
) -> None:
    """A buyer that is there within the window has its money back."""
    ends = set()
    for since in range(1, 6 if who else 2):
        play = TradePlay()
        play.begin(
            honest=False,
            seller_stays=True,
            helped=helped,
            rounds=9,
            pauses={},
            away={who: since} if who and how == "away" else {},
            idle={who: since} if who and how == "idle" else {},
        )
        for _ in range(12):  # whoever was away is back, and nobody waits for long
            for each in ("buyer", "seller", "broker"):
                play.go_on(each)
            play.chain.advance(5)
        play.teardown()
        ends.add(play.chain.phase)
    assert Phase.DISPUTED in ends
    assert ends <= {Phase.DISPUTED, Phase.REFUNDED, Phase.NONE}


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_buyer_that_dies_while_it_disputes_goes_on_with_it(gone: int) -> None:
    play = accusing_trade()
    buyer = play.buyer
    assert buyer is not None
    for _ in range(gone):
        buyer.perform(0)
    play.crash("buyer")
    play.time_passes(5, set())
    play.restart("buyer")
    for _ in range(3):
        play.go_on("buyer")
        play.time_passes(5, set())
    assert buyer.machine.state is PurchaseState.REFUNDED
    play.teardown()
    assert play.chain.phase is Phase.DISPUTED


@pytest.mark.parametrize("finalized", [True, False])
def test_a_buyer_that_comes_back_too_late_keeps_the_proof_and_sends_nothing(
    finalized: bool,
) -> None:
    play = accusing_trade()
    buyer = play.buyer
    assert buyer is not None
    play.crash("buyer")
    play.time_passes(cast.DISPUTE_WINDOW + 1, set())
    if finalized:
        play.a_stranger_helps_itself(Step.FINALIZE)
        play.time_passes(1, set())
    play.restart("buyer")
    play.listen("buyer", 100, remembers=True)
    assert buyer.machine.state is PurchaseState.CHEATED
    assert buyer.machine.record.evidence == cast.EVIDENCE
    assert buyer.machine.record.paid is finalized
    play.go_on("buyer")
    assert not [sent for sent in play.chain.pool if sent.step is Step.DISPUTE]


def accusing_trade() -> TradePlay:
    """Return a trade whose buyer has found a bad leaf, and not said so yet."""
    play = TradePlay()
    play.begin(honest=False, seller_stays=True, helped=False, rounds=0, pauses={}, away={}, idle={})
    play.countersign(broker_hears=True, buyer_hears=True)
    for _ in range(20):
        assert play.buyer is not None
        if play.buyer.machine.state is PurchaseState.DISPUTING:
            return play
        for who in ("buyer", "seller", "broker"):
            play.listen(who, 10, remembers=True)
            play.act(who, 0, goods_come=True)
        play.time_passes(1, set())
    raise AssertionError("no bad leaf was found")


def funded_trade() -> TradePlay:
    """Return a trade whose money is in the escrow, and whose seller has not heard of it."""
    play = TradePlay()
    play.begin(
        honest=True,
        seller_stays=True,
        helped=False,
        rounds=3,
        pauses={},
        away={"seller": 1},
        idle={},
    )
    assert play.chain.phase is Phase.FUNDED
    return play


def states(play: TradePlay) -> tuple[PurchaseState | None, SaleState]:
    """Return where buyer and seller are."""
    buying = None if play.buyer is None else play.buyer.machine.state
    return buying, play.seller.machine.state


def test_a_reveal_that_comes_before_the_refund_is_good_news_however_late() -> None:
    play = funded_trade()
    play.time_passes(700, set())
    play.listen("buyer", 100, remembers=True)
    assert states(play)[0] is PurchaseState.REFUNDING
    play.a_careless_seller_reveals_by_hand()
    play.time_passes(0, set())
    play.go_on("buyer")
    play.go_on("seller")
    assert states(play) == (PurchaseState.DELIVERED, SaleState.REVEALED)
    play.teardown()


def test_a_seller_that_is_slow_to_act_keeps_its_key_and_the_buyer_its_money() -> None:
    play = funded_trade()
    play.listen("seller", 100, remembers=True)
    assert states(play)[1] is SaleState.REVEALING
    play.time_passes(cast.REVEAL_BY - play.chain.time, set())
    play.act("seller", 0, goods_come=True)
    assert not play.chain.secret_seen
    play.teardown()
    assert play.chain.phase is Phase.REFUNDED


def test_with_nothing_in_the_way_the_trade_is_paid_and_delivered() -> None:
    play = TradePlay()
    play.countersign(broker_hears=True, buyer_hears=True)
    for _ in range(12):
        for who in ("buyer", "seller", "broker"):
            play.listen(who, 10, remembers=True)
            for _ in range(3):
                play.act(who, 0, goods_come=True)
        play.time_passes(20, set())
    assert play.buyer is not None
    assert play.buyer.machine.state is PurchaseState.COMPLETE
    assert play.seller.machine.state is SaleState.PAID
    assert play.broker.machine.state is BrokerageState.PAID
    play.teardown()
