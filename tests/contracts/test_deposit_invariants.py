"""The money adds up with deposits and batches beside the single trades.

The machine of `test_escrow_invariants` goes on: what the escrow holds of each asset is open trades,
credits, deposits, and the trades of open batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from eth_keys.datatypes import PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from contracts.batch import Plan, plan, shown
from contracts.stage import ROLES, Quote
from tests.contracts.rewinding import LEAN
from tests.contracts.test_escrow_invariants import (
    PARTIES,
    EscrowMachine,
    assets,
    durations,
    parties,
    sums,
)

NOTICE = 30 * 86_400

sides = st.tuples(parties, parties, parties, st.tuples(sums, sums), durations, st.booleans())


@dataclass(kw_only=True)
class Locked:
    """A batch by our books."""

    plan: Plan
    since: int
    revealed: int = 0
    returned: int = 0
    closed: bool = False

    @property
    def everything(self) -> int:
        return (1 << self.plan.batch.legs) - 1

    def window_end(self) -> int:
        """Return the last second of the dispute window."""
        return self.since + self.plan.batch.dispute_window

    def open_money(self) -> int:
        """Return what is neither paid nor returned."""
        if self.closed:
            return 0
        quotes = enumerate(self.plan.quotes)
        return sum(quote.price for i, quote in quotes if not self.returned >> i & 1)


class DepositMachine(EscrowMachine):
    """The same market, whose parties also trade from deposits."""

    def open_books(self) -> None:
        """Begin without a deposit or a batch."""
        self.deposits = dict.fromkeys(self.accounts(), 0)
        self.notices: dict[tuple[str, str], tuple[int, int]] = {}
        self.batches: list[Locked] = []

    def accounts(self) -> list[tuple[str, str]]:
        """Return every asset with every party."""
        return [(asset, party) for asset in self.assets.values() for party in PARTIES]

    @rule(party=parties, asset=assets, amount=sums)
    def deposit(self, party: str, asset: str, amount: int) -> None:
        """Leave money for the next trades."""
        account = self.stage.accounts[party]
        value = amount if asset == "ether" else 0
        arguments = (self.assets[asset], account, amount)
        assert self.attempt(None, "deposit", *arguments, sender=party, value=value)
        self.deposits[self.assets[asset], party] += amount

    @rule(party=parties, asset=assets, amount=sums)
    def deposit_credits(self, party: str, asset: str, amount: int) -> None:
        """Leave what is owed for the next trades."""
        key = (self.assets[asset], party)
        expected = None if self.credits[key] >= amount else "NothingOwed"
        if self.attempt(expected, "depositCredits", key[0], amount, sender=party):
            self.credits[key] -= amount
            self.deposits[key] += amount

    @rule(party=parties, asset=assets, amount=sums)
    def give_notice(self, party: str, asset: str, amount: int) -> None:
        """Say how much of a deposit is taken back."""
        key = (self.assets[asset], party)
        has = self.all_of(key)
        expected = None if amount <= has else "DepositTooSmall"
        if self.attempt(expected, "giveDepositNotice", key[0], amount, sender=party):
            self.notices[key] = (amount, self.time + NOTICE)
            self.deposits[key] = has - amount

    def all_of(self, key: tuple[str, str]) -> int:
        """Return what an account can spend: its deposit, and what it gave notice of."""
        return self.deposits[key] + self.notices.get(key, (0, 0))[0]

    def spend(self, key: tuple[str, str], amount: int) -> None:
        """Take a price out of a deposit, and what is short out of what it gave notice of."""
        short = max(0, amount - self.deposits[key])
        self.deposits[key] -= amount - short
        if short:
            left, due = self.notices[key]
            self.notices[key] = (left - short, due)

    @rule(party=parties, asset=assets, patient=st.booleans())
    def release(self, party: str, asset: str, patient: bool) -> None:
        """Take a deposit back, in time or too early."""
        key = (self.assets[asset], party)
        amount, due = self.notices.get(key, (0, 0))
        if patient:
            self.stage.wait_until(max(self.stage.now(), due))
        expected = None if amount and self.stage.now() >= due else "NoticeNotDue"
        if self.attempt(expected, "releaseDeposit", key[0], sender=party):
            del self.notices[key]
            self.credits[key] += amount

    @rule(legs=st.lists(sides, min_size=1, max_size=3), asset=assets, paid=st.booleans())
    def lock(self, legs: list[Any], asset: str, paid: bool) -> None:
        """Lock a batch of new trades, whose buyers have the money or have it not."""
        quotes = []
        for buyer, seller, treasury, money, times, good in legs:
            quotes.append(self.signed(buyer, seller, treasury, money, times, asset, good))
            if paid:
                self.deposit(buyer, asset, quotes[-1].price)
        keys: dict[str, PrivateKey] = {}
        for role in ROLES:
            keys[self.stage.accounts[role]] = self.stage.keys[role]
        made = plan(self.stage, quotes, keys, nonce=len(self.secrets))
        needed: dict[tuple[str, str], int] = {}
        for quote in quotes:
            key = self.key_of(quote)
            needed[key] = needed.get(key, 0) + quote.price
        short = any(self.all_of(key) < amount for key, amount in needed.items())
        expected = "DepositTooSmall" if short else None
        signatures = self.stage.signatures(made.digest)
        arguments = (made.spendings, made.accounts, signatures)
        if self.attempt(expected, "lockBatch", *arguments, sender="rival"):
            for key, amount in needed.items():
                self.spend(key, amount)
            self.batches.append(Locked(plan=made, since=self.time))

    def key_of(self, quote: Quote) -> tuple[str, str]:
        """Return whose deposit in what asset pays for a trade."""
        return (quote.asset, self.role(quote.buyer))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), mask=st.integers(0, 7) | st.just(7))
    def reveal_some(self, data: st.DataObject, mask: int) -> None:
        """Publish secrets of a batch."""
        batch = data.draw(st.sampled_from(self.batches))
        mask &= batch.everything
        expected = None
        made = batch.plan.batch
        if batch.closed:
            expected = "UnknownBatch"
        elif self.stage.now() > made.closes_from + made.dispute_window:
            expected = "RevealsOver"
        elif mask | batch.revealed == batch.revealed:
            expected = "NothingNew"
        secrets = shown(batch.plan.quotes, mask)
        arguments = (batch.plan.batch, secrets, mask)
        if self.attempt(expected, "revealBatch", *arguments, sender="seller"):
            batch.revealed |= mask
            batch.since = self.time

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), sender=parties)
    def dispute_one(self, data: st.DataObject, sender: str) -> None:
        """Show the leaf of one trade of a batch."""
        batch = data.draw(st.sampled_from(self.batches))
        leg = data.draw(st.integers(0, batch.plan.batch.legs - 1))
        quote = batch.plan.quotes[leg]
        expected = None
        if batch.closed:
            expected = "UnknownBatch"
        elif not batch.revealed >> leg & 1:
            expected = "NotRevealed"
        elif batch.returned >> leg & 1:
            expected = "LegSettled"
        elif self.stage.now() > batch.window_end():
            expected = "DisputeClosed"
        elif self.good[quote.trade_id]:
            expected = "GoodLeaf"
        shown_ = (batch.plan.batch, batch.plan.digests, leg, quote, self.evidence(quote))
        if self.attempt(expected, "disputeLeg", *shown_, sender=sender):
            batch.returned |= 1 << leg
            self.credit(quote.asset, quote.buyer, quote.price)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), whole=st.booleans(), patient=st.booleans())
    def close(self, data: st.DataObject, whole: bool, patient: bool) -> None:
        """Ask for the end of a batch, all at once or leg by leg."""
        batch = data.draw(st.sampled_from(self.batches))
        made = batch.plan.batch
        complete = batch.revealed == batch.everything
        last = 0 if complete else made.closes_from
        if batch.revealed:
            last = max(last, batch.window_end())
        if patient:
            self.stage.wait_until(max(self.stage.now(), last + 1))
        expected = None
        if batch.closed:
            expected = "UnknownBatch"
        elif whole and (not complete or batch.returned):
            expected = "NotAllGood"
        elif self.stage.now() <= last:
            expected = "TooEarly"
        function = "closeBatch" if whole else "closeBatchByLeg"
        parts = (batch.plan.payouts,) if whole else (batch.plan.accounts, batch.plan.movements)
        if self.attempt(expected, function, made, *parts, sender="treasury"):
            if whole:
                self.settle_netted(batch)
            else:
                self.settle(batch)

    def settle_netted(self, batch: Locked) -> None:
        """Write down who got what against what it spent."""
        batch.closed = True
        asset = batch.plan.batch.asset
        for account, back, rest in batch.plan.payouts:
            if back:
                party = next(role for role, own in self.stage.accounts.items() if own == account)
                self.deposits[asset, party] += back
            self.credit(asset, account, rest)

    def settle(self, batch: Locked) -> None:
        """Write down who got what, trade by trade."""
        batch.closed = True
        for leg, quote in enumerate(batch.plan.quotes):
            if batch.returned >> leg & 1:
                continue
            if not batch.revealed >> leg & 1:
                self.deposits[self.key_of(quote)] += quote.price
                continue
            self.credit(quote.asset, quote.seller, quote.price - quote.fee)
            self.credit(quote.asset, quote.fee_recipient, quote.fee)

    def held(self, asset: str) -> int:
        """Return what the escrow must hold: open trades, credits, deposits and open batches."""
        deposits = sum(self.all_of(key) for key in self.deposits if key[0] == asset)
        own = [batch for batch in self.batches if batch.plan.batch.asset == asset]
        return super().held(asset) + deposits + sum(batch.open_money() for batch in own)

    @invariant()
    def deposits_and_batches_are_as_in_the_books(self) -> None:
        """What the views say is what was done."""
        for (asset, party), amount in self.deposits.items():
            account = self.stage.accounts[party]
            assert self.stage.view("deposits", asset, account) == amount
            leaving, _ = self.stage.view("noticeOf", asset, account)
            assert leaving == self.all_of((asset, party)) - amount
        for batch in self.batches:
            expected = (True, batch.since, batch.revealed, batch.returned)
            if batch.closed:
                expected = (False, 0, 0, 0)
            assert self.stage.view("batchOf", batch.plan.batch_id) == expected

    def teardown(self) -> None:
        """Every batch can be closed by a stranger, and all deposits taken back."""
        for batch in self.batches:
            if not batch.closed:
                last = max(batch.plan.batch.closes_from, batch.window_end())
                self.stage.wait_until(max(self.stage.now(), last + 1))
                made = (batch.plan.batch, batch.plan.accounts, batch.plan.movements)
                self.stage.send("closeBatchByLeg", *made, sender="stranger")
                self.settle(batch)
        leaving = {key: self.all_of(key) for key in self.deposits if self.all_of(key)}
        for (asset, party), amount in leaving.items():
            self.stage.send("giveDepositNotice", asset, amount, sender=party)
        self.stage.wait_until(self.stage.now() + NOTICE)
        for asset, party in leaving:
            self.stage.send("releaseDeposit", asset, sender=party)
        super().teardown()


TestDepositMachine = DepositMachine.TestCase
TestDepositMachine.settings = settings(LEAN, max_examples=3, stateful_step_count=30)


class LongDepositMachine(DepositMachine):
    """The same for longer."""


TestLongDepositMachine = pytest.mark.slow(LongDepositMachine.TestCase)
TestLongDepositMachine.settings = settings(LEAN, max_examples=40, stateful_step_count=50)
