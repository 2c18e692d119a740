"""Whatever is done in whatever order, the money adds up.

A machine plays the market against the escrow and keeps books of its own. Before every call it
says what must come of it: success, or which custom error. After every call the books and the
chain are compared.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from contracts.artifact import read_artifact
from contracts.batch import secret_of
from contracts.stage import ZERO, Quote, RevertedError, Stage, State
from node.protocol import delivery, merkle
from tests.contracts.conftest import ARTIFACTS
from tests.contracts.deliveries import DH, Evidence, noise
from tests.contracts.rewinding import LEAN

PARTIES = ("buyer", "seller", "treasury", "rival")
TERMINAL = (State.PAID, State.REFUNDED, State.DISPUTED)
GOODS = 100
"""Bytes of each delivery: one short leaf."""

parties = st.sampled_from(PARTIES)
assets = st.sampled_from(("ether", "token"))
sums = st.integers(1, 1000)
durations = st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50))


class EscrowMachine(RuleBasedStateMachine):
    """A market of a few trades in all their states, and what everyone is owed."""

    quotes = Bundle("quotes")

    @initialize(target=quotes)
    def set_up(self) -> Quote:
        """Begin with a quote, and no trade, no credit, no money."""
        self.stage = Stage()
        self.token = self.stage.deploy(read_artifact(ARTIFACTS / "Token.json"))
        self.assets = {"ether": ZERO, "token": self.token.address}
        for party in PARTIES:
            account = self.stage.accounts[party]
            self.stage.send("mint", account, 2**128, sender=party, to=self.token)
            approved = (self.stage.escrow.address, 2**256 - 1)
            self.stage.send("approve", *approved, sender=party, to=self.token)
        self.states: dict[bytes, tuple[State, int]] = {}
        self.funded: dict[bytes, Quote] = {}
        self.secrets: dict[bytes, bytes] = {}
        self.good: dict[bytes, bool] = {}
        self.mined = True
        self.published: dict[bytes, bytes] = {}
        self.credits = {(a, party): 0 for a in self.assets.values() for party in PARTIES}
        self.open_books()
        return self.signed("buyer", "seller", "treasury", (1000, 10), (10, 20, 20))

    def open_books(self) -> None:
        """Begin whatever else there is to be written down."""

    @rule(
        target=quotes,
        buyer=parties,
        seller=parties,
        treasury=parties,
        money=st.tuples(sums, sums),
        times=durations,
        asset=assets,
        good=st.booleans(),
    )
    def agree(
        self,
        buyer: str,
        seller: str,
        treasury: str,
        money: tuple[int, int],
        times: tuple[int, int, int],
        asset: str,
        good: bool,
    ) -> Quote:
        """Make a quote; who is who may coincide."""
        return self.signed(buyer, seller, treasury, money, times, asset, good)

    @rule(
        target=quotes, buyer=parties, seller=parties, money=st.tuples(sums, sums), times=durations,
        sold=st.booleans(), asset=assets, good=st.booleans(),
    )  # fmt: skip
    def trade(
        self,
        buyer: str,
        seller: str,
        money: tuple[int, int],
        times: tuple[int, int, int],
        sold: bool,
        asset: str,
        good: bool,
    ) -> Quote:
        """Do at once what leads to a trade that waits for its end."""
        quote = self.signed(buyer, seller, "treasury", money, times, asset, good)
        self.fund(quote)
        for honest in (False, True) if sold else ():
            self.reveal(quote, seller, honest)
        return quote

    @rule(quote=quotes, sender=parties)
    def end(self, quote: Quote, sender: str) -> None:
        """Ask in the last second that is too early, and again in the next one."""
        for second in (0, 1):
            self.stage.wait_until(max(self.stage.now(), self.too_early(quote) + second))
            if self.state(quote)[0] is State.REVEALED:
                self.finalize(quote, sender)
            else:
                self.refund(quote, sender)

    @rule(quote=quotes)
    def fund(self, quote: Quote) -> None:
        """Fund as the buyer, in time or late, for the first time or again."""
        expected = None
        if self.state(quote)[0] is not State.NONE:
            expected = "WrongState"
        elif self.stage.now() > quote.fund_by:
            expected = "FundingClosed"
        arguments = (quote, self.stage.signature(quote))
        role = self.role(quote.buyer)
        value = quote.price if quote.asset == ZERO else 0
        if self.attempt(expected, "fund", *arguments, sender=role, value=value):
            self.enter(quote, State.FUNDED)
            self.funded[quote.trade_id] = quote

    @rule(quote=quotes, sender=parties, honest=st.booleans())
    def reveal(self, quote: Quote, sender: str, honest: bool) -> None:
        """Show the secret, or a guess."""
        secret = self.secrets[quote.trade_id] if honest else b"guess".ljust(32)
        expected = None
        if self.state(quote)[0] is not State.FUNDED:
            expected = "WrongState"
        elif not honest:
            expected = "WrongSecret"
        if self.attempt(expected, "reveal", quote, secret, sender=sender):
            self.enter(quote, State.REVEALED)
            self.published[quote.trade_id] = secret

    @rule(quote=quotes, sender=parties)
    def finalize(self, quote: Quote, sender: str) -> None:
        """Ask for the payment."""
        state, since = self.state(quote)
        expected = None
        if state is not State.REVEALED:
            expected = "WrongState"
        elif self.stage.now() <= since + quote.dispute_window:
            expected = "TooEarly"
        if self.attempt(expected, "finalize", quote, sender=sender):
            self.enter(quote, State.PAID)
            self.credit(quote.asset, quote.seller, quote.price - quote.fee)
            self.credit(quote.asset, quote.fee_recipient, quote.fee)

    @rule(quote=quotes, sender=parties)
    def refund(self, quote: Quote, sender: str) -> None:
        """Ask for the money back."""
        expected = None
        if self.state(quote)[0] is not State.FUNDED:
            expected = "WrongState"
        elif self.stage.now() <= quote.reveal_by + quote.grace:
            expected = "TooEarly"
        if self.attempt(expected, "refund", quote, sender=sender):
            self.enter(quote, State.REFUNDED)
            self.credit(quote.asset, quote.buyer, quote.price)

    @rule(quote=quotes, sender=parties)
    def dispute(self, quote: Quote, sender: str) -> None:
        """Show the one leaf of the goods, in time or late, bad or not."""
        state, since = self.state(quote)
        expected = None
        if state is not State.REVEALED:
            expected = "WrongState"
        elif self.stage.now() > since + quote.dispute_window:
            expected = "DisputeClosed"
        elif self.good[quote.trade_id]:
            expected = "GoodLeaf"
        if self.attempt(expected, "dispute", quote, self.evidence(quote), sender=sender):
            self.enter(quote, State.DISPUTED)
            self.credit(quote.asset, quote.buyer, quote.price)

    @precondition(lambda self: self.funded)
    @rule(data=st.data(), step=st.sampled_from(["reveal", "finalize", "refund"]), extra=sums)
    def cheat(self, data: st.DataObject, step: str, extra: int) -> None:
        """Try a step of a funded trade with a richer price: never accepted, in any state."""
        quote = self.funded[data.draw(st.sampled_from(sorted(self.funded)))]
        richer = quote._replace(price=quote.price + extra)
        needed = State.REVEALED if step == "finalize" else State.FUNDED
        expected = "WrongTerms" if self.state(quote)[0] is needed else "WrongState"
        secret = [self.secrets[quote.trade_id]] if step == "reveal" else []
        self.attempt(expected, step, richer, *secret, sender="rival")

    @precondition(lambda self: any(self.credits.values()))
    @rule(party=parties, sender=parties, asset=assets)
    def withdraw(self, party: str, sender: str, asset: str) -> None:
        """Have somebody paid what it is owed."""
        owed = (self.assets[asset], party)
        expected = None if self.credits[owed] else "NothingOwed"
        arguments = (owed[0], self.stage.accounts[party])
        if self.attempt(expected, "withdraw", *arguments, sender=sender):
            self.credits[owed] = 0

    @rule(seconds=st.sampled_from((400, 51, 1)))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.stage.wait_until(self.stage.now() + seconds)

    def signed(
        self,
        buyer: str,
        seller: str,
        treasury: str,
        money: tuple[int, int],
        times: tuple[int, int, int],
        asset: str = "ether",
        good: bool = True,
    ) -> Quote:
        """Return a quote of a trade id of its own, that can be funded now."""
        number = len(self.secrets).to_bytes(32)
        self.secrets[number] = secret_of(number)
        self.good[number] = good
        accounts, now = self.stage.accounts, self.stage.now()
        price, fee = money
        reveal_in, grace, window = times
        return self.stage.quote(
            trade_id=number,
            buyer=accounts[buyer],
            seller=accounts[seller],
            fee_recipient=accounts[treasury],
            asset=self.assets[asset],
            offer_root=merkle.root_of(noise(GOODS)),
            goods_root=merkle.root_of(self.goods(number)),
            leaf_count=1,
            byte_length=GOODS,
            dh_commitment=delivery.dh_commitment(DH, number),
            price=price,
            fee=min(fee, price),
            secret_commitment=hashlib.sha256(self.secrets[number]).digest(),
            fund_by=now + 300,
            reveal_by=now + 300 + reveal_in,
            grace=grace,
            dispute_window=window,
        )

    def goods(self, trade_id: bytes) -> bytes:
        """Return what the encryptor made of the offer."""
        if not self.good[trade_id]:
            return bytes(GOODS)
        key = delivery.delivery_key(self.secrets[trade_id], DH, trade_id)
        return delivery.apply_to_leaf(key, 0, noise(GOODS))

    def evidence(self, quote: Quote) -> Evidence:
        """Return what a buyer can show of the trade."""
        offered = merkle.leaf_hash(0, noise(GOODS))
        goods = self.goods(quote.trade_id)
        return Evidence(self.secrets[quote.trade_id], DH, 0, goods, (), offered, ())

    def credit(self, asset: str, account: str, amount: int) -> None:
        """Write down that an account is owed so much more."""
        self.credits[asset, self.role(account)] += amount

    def attempt(self, expected: str | None, function: str, *arguments: Any, **how: Any) -> bool:
        """Make a call that must end as expected; say whether it went through."""
        self.time = self.stage.now()
        outcome = None
        try:
            self.stage.send(function, *arguments, **how)
        except RevertedError as error:
            outcome = error.name
        assert outcome == expected, f"{function}: {outcome or 'done'}, not {expected or 'done'}"
        self.mined |= outcome is None
        return outcome is None

    def enter(self, quote: Quote, state: State) -> None:
        """Write down that the trade entered the state in the last call."""
        assert self.state(quote)[0] not in TERMINAL
        self.states[quote.trade_id] = (state, self.time)

    def state(self, quote: Quote) -> tuple[State, int]:
        """Return where the trade stands by our books, and since when."""
        return self.states.get(quote.trade_id, (State.NONE, 0))

    def too_early(self, quote: Quote) -> int:
        """Return the last second in which the trade cannot be ended."""
        state, since = self.state(quote)
        if state is State.REVEALED:
            return since + quote.dispute_window
        return quote.reveal_by + quote.grace

    def role(self, account: str) -> str:
        """Return whose account it is."""
        return next(role for role in PARTIES if self.stage.accounts[role] == account)

    @invariant()
    def the_books_and_the_chain_agree(self) -> None:
        """Nothing comes from nowhere or is lost; each trade ends once, and stays as it ended."""
        if not self.mined:
            return  # a refused call is not mined: there is nothing new to see
        self.mined = False
        for asset in self.assets.values():
            assert self.money(asset) == self.held(asset)
        for (asset, party), amount in self.credits.items():
            assert self.stage.view("credits", asset, self.stage.accounts[party]) == amount
        for trade_id in self.secrets:
            expected = self.states.get(trade_id, (State.NONE, 0))
            assert self.stage.trade(trade_id) == expected

    def held(self, asset: str) -> int:
        """Return what the escrow must hold: open trades and credits."""
        opened = (State.FUNDED, State.REVEALED)
        own = [quote for quote in self.funded.values() if quote.asset == asset]
        trades = sum(quote.price for quote in own if self.state(quote)[0] in opened)
        return trades + sum(amount for (a, _), amount in self.credits.items() if a == asset)

    def money(self, asset: str) -> int:
        """Return what the escrow does hold."""
        escrow = self.stage.escrow.address
        if asset == ZERO:
            return self.stage.balance(escrow)
        amount: int = self.stage.view("balanceOf", escrow, of=self.token)
        return amount

    @invariant()
    def a_paid_seller_has_published_the_secret(self) -> None:
        """What is published matches the commitment, and comes before the money."""
        for trade_id, (state, _) in self.states.items():
            revealed = state in (State.REVEALED, State.PAID, State.DISPUTED)
            assert revealed == (trade_id in self.published)
            if revealed:
                digest = hashlib.sha256(self.published[trade_id]).digest()
                assert digest == self.funded[trade_id].secret_commitment

    def teardown(self) -> None:
        """Every funded trade can be ended by a stranger, and then the escrow is empty."""
        for quote in self.funded.values():
            state, _ = self.state(quote)
            if state not in TERMINAL:
                step = "finalize" if state is State.REVEALED else "refund"
                self.stage.wait_until(max(self.stage.now(), self.too_early(quote) + 1))
                self.stage.send(step, quote, sender="stranger")
        for asset, party in self.credits:
            owed = (asset, self.stage.accounts[party])
            if self.stage.view("credits", *owed):
                self.stage.send("withdraw", *owed, sender="stranger")
            assert self.stage.view("credits", *owed) == 0
        for asset in self.assets.values():
            assert self.money(asset) == 0


TestEscrowMachine = EscrowMachine.TestCase
TestEscrowMachine.settings = settings(LEAN, max_examples=4, stateful_step_count=30)


class LongEscrowMachine(EscrowMachine):
    """The same for longer."""


TestLongEscrowMachine = pytest.mark.slow(LongEscrowMachine.TestCase)
TestLongEscrowMachine.settings = settings(LEAN, max_examples=40, stateful_step_count=50)
