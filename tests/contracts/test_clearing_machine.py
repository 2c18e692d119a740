"""Whatever happens in whatever rounds, each pot is paid out once, and no more than it.

A machine plays rounds of a clearing house, and keeps books of its own. Before every call it says
what must come of it: success, or which custom error with which values. After every call the books
are compared with the chain; and what the events say is added up by itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (  # fmt: skip
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from contracts.clearing import Clearing, Opening, clearing_hash
from contracts.stage import CHALLENGE, ZERO, Outcome, RevertedError
from node.protocol.sum_tree import NOTHING
from node.protocol.types import Address, Wei
from tests.contracts import pots
from tests.contracts.pots import BROKERS, PAYERS, Leaf, Pot, Refusal, Root, ready
from tests.contracts.rewinding import LEAN


class ClearingMachine(RuleBasedStateMachine):
    """Rounds in all their states, and what everyone is owed of them."""

    rounds = Bundle("rounds")

    @initialize(target=rounds, cuts=pots.cuts, flaw=pots.lies, waits=st.booleans())
    def set_up(self, cuts: list[int], flaw: str, waits: bool) -> MultipleResults[Pot]:
        """Begin with a round that has a root, and one that collects."""
        self.house, self.token = ready()
        self.stage = self.house.stage
        self.assets = {"ether": ZERO, "token": self.token.address}
        self.house_itself = self.house.contract.address
        self.credits = {(asset, role): 0 for asset in self.assets.values() for role in PAYERS}
        self.pots: list[Pot] = []
        self.leaves_claimed: set[tuple[bytes, int]] = set()
        self.paid_out: Counter[bytes] = Counter()
        self.touched: Pot | None = None
        self.mined = True
        posted = self.collected("token", (700, 300, 0), (10, 60, 0))
        for wrong, by in (("sum", "quorum"), ("right", "one"), (flaw, "quorum")):
            self.post(posted, cuts, 0, wrong, by)
        if waits:
            self.wait_until(posted.stands_from())
        return multiple(posted, self.opened("ether", (100, 200, 0)))

    def opened(self, asset: str, times: tuple[int, int, int]) -> Pot:
        """Open a round as it should be."""
        pot = self.proposed(asset, times)
        signatures = pots.signatures(self.house, pot.opening.struct_hash(), "quorum")[0]
        assert self.attempt(None, "open", pot.opening, signatures)
        self.pots.append(pot)
        return pot

    def proposed(self, asset: str, times: tuple[int, int, int]) -> Pot:
        """Return a round of its own name."""
        collect, post, more = times
        pay_by = self.stage.now() + collect
        name = hashlib.sha256(len(self.pots).to_bytes(8)).digest()
        challenge = CHALLENGE + more
        return Pot(opening=Opening(name, self.assets[asset], pay_by, pay_by + post, challenge))

    @precondition(lambda self: len(self.pots) < 4)
    @rule(
        target=rounds, asset=pots.assets, times=pots.times,
        shares=st.tuples(pots.amounts, pots.amounts, pots.amounts),
    )  # fmt: skip
    def collect(self, asset: str, shares: tuple[int, int, int], times: tuple[int, int, int]) -> Pot:
        """Do at once what leads to a round that waits for its root."""
        return self.collected(asset, shares, times)

    def collected(
        self, asset: str, shares: tuple[int, int, int], times: tuple[int, int, int]
    ) -> Pot:
        """Open a round, have everybody pay into it, and wait until a root can be posted."""
        pot = self.opened(asset, times)
        for role, amount in zip(PAYERS, shares, strict=True):
            self.pay(pot, role, role, amount, 0)
        self.wait_until(pot.opening.pay_by + 1)
        return pot

    @precondition(lambda self: len(self.pots) < 4)
    @rule(
        target=rounds, data=st.data(), asset=pots.assets, share=pots.amounts, flaw=pots.lies,
        before=st.sampled_from((0, 0, 125)), then=st.sampled_from(("post", "wait", "claim")),
    )  # fmt: skip
    def collect_and_post(
        self, data: st.DataObject, asset: str, share: int, flaw: str, before: int, then: str
    ) -> Pot:
        """Do at once what leads to a root that a quorum signed, right or not."""
        pot = self.collected(asset, (share, 1 + share // 3, 7), (10, 60, 0))
        self.post(pot, data.draw(pots.cuts), before, flaw, "quorum")
        if then != "post":
            self.wait_until(pot.stands_from())
        if then == "claim":
            self.claim_all(pot, data)
        return pot

    @rule(pot=rounds, by=pots.signed_by, again=st.booleans(), wrong=st.integers(0, 3))
    def open_badly(self, pot: Pot, by: str, again: bool, wrong: int) -> None:
        """Open what was opened, with windows out of order, or without a quorum."""
        opening = self.proposed("ether", (10, 20, 0)).opening
        now = self.stage.now()
        opening = (
            opening,
            opening._replace(pay_by=now - 1),
            opening._replace(post_by=opening.pay_by),
            opening._replace(challenge_period=CHALLENGE - 1),
        )[wrong]
        if again:
            opening = opening._replace(round=pot.id)
        signatures, refusal = pots.signatures(self.house, opening.struct_hash(), by)
        if again:
            refusal = ("RoundExists", pot.id)
        elif wrong:
            refusal = ("BadWindows", *opening[2:])
        if refusal is not None:
            self.attempt(refusal, "open", opening, signatures)

    @rule(
        pot=rounds, payer=pots.payers, account=st.sampled_from((*PAYERS, "house")),
        amount=pots.amounts, more=st.sampled_from((0, 0, 0, 1)),
    )  # fmt: skip
    def pay(self, pot: Pot, payer: str, account: str, amount: int, more: int) -> None:
        """Pay in for an account, in time or late, with the money or with more than it."""
        opening, now = pot.opening, self.stage.now()
        due = amount if opening.asset == ZERO else 0
        refusal: Refusal = None
        if now > opening.pay_by:
            refusal = ("CollectionOver", now, opening.pay_by)
        elif more:
            refusal = ("WrongPayment", ZERO, due + more, due)
        elif account == "house":
            refusal = ("BadRecipient", self.house_itself.lower())
        to = self.house_itself if account == "house" else self.house.account(account)
        call = ("pay", pot.id, to, amount)
        if self.attempt(refusal, *call, sender=payer, value=due + more, of=pot):
            pot.pot += amount
            pot.paid[account] += amount

    @rule(
        pot=rounds, cuts=pots.cuts, before=st.sampled_from((0, 0, 125)), flaw=pots.roots,
        by=pots.signed_by,
    )  # fmt: skip
    def post(self, pot: Pot, cuts: list[int], before: int, flaw: str, by: str) -> None:
        """Post a root over shares of the pot, for the first time or in the place of another."""
        accounts = [self.house.account(role) for role in PAYERS]
        if flaw == "lost":
            accounts[0] = self.house_itself
        made = pot.shared(accounts, cuts, before, hidden=3 * (flaw in pots.RICHER))
        if flaw == "inflated":
            made.inflate(pot.pot)
        top, leaves = made.top, len(made.payouts)
        if flaw == "sum":
            top = top._replace(sum=Wei(pot.pot + 1))
        leaves = {"no leaves": 0, "too many": 2**15 + 1}.get(flaw, leaves)
        version = len(pot.roots)
        struct = clearing_hash(pot.id, top, leaves, version + (flaw == "stale"))
        signatures, refusal = pots.signatures(self.house, struct, by)
        if flaw == "stale" and by != "one":
            refusal = ("NotSeated", 0)
        refusal = pot.refusal_of_post(top.sum, leaves, self.stage.now()) or refusal
        call = ("post", pot.id, *top, leaves, signatures)
        if done := self.attempt(refusal, *call, of=pot):
            pot.root, pot.posted_at = made, done.time
            pot.roots.append(made)
            stands_from = pot.stands_from()
            made.clearing = Clearing(pot.id, *top, leaves, pot.opening.asset, stands_from)

    @rule(pot=rounds, sender=st.sampled_from((*BROKERS, "rival")))
    def veto(self, pot: Pot, sender: str) -> None:
        """Take a root back, as a broker or as nobody."""
        now = self.stage.now()
        refusal: Refusal = None
        if sender == "rival":
            refusal = ("NotSeated", 0, self.house.account("rival").lower())
        elif pot.root is None:
            refusal = ("NothingPosted", pot.id)
        elif pot.stands(now):
            refusal = ("RootStands", now, pot.posted_at)
        if self.attempt(refusal, "veto", pot.id, sender=sender, of=pot):
            pot.root = None

    @rule(pot=rounds, data=st.data(), flaw=pots.claims)
    def claim(self, pot: Pot, data: st.DataObject, flaw: str) -> None:
        """Claim a leaf of a root that was ever posted, or what is no leaf."""
        if pot.roots:
            root = data.draw(st.sampled_from(pot.roots))
            index = data.draw(st.integers(0, len(root.payouts) - 1))
            self.claim_leaf(pot, root, index, flaw)

    def claim_leaf(self, pot: Pot, root: Root, index: int, flaw: str = "right") -> None:
        """Claim a leaf, or what is made of it."""
        clearing, now = root.clearing, self.stage.now()
        assert clearing is not None
        payout, path = root.payouts[index], root.path(index)
        if flaw == "amount":
            payout = payout._replace(amount=Wei(payout.amount + 1))
        elif flaw == "account":
            payout = payout._replace(account=Address(self.house.account("third")))
        elif flaw == "place":
            index ^= 1
        elif flaw == "beyond":
            index = len(root.payouts)
        elif flaw in ("short", "long"):
            path = (*path, NOTHING) if flaw == "long" or not path else path[:-1]
        elif flaw == "sooner":
            clearing = clearing._replace(stands_from=clearing.stands_from - 1)
        leaf = Leaf(index, payout, path)
        refusal = pot.refusal_of_claim(root, clearing, leaf, now, self.house_itself)
        if self.attempt(refusal, "claim", clearing, index, *payout, path, of=pot):
            root.claimed.add(index)
            pot.claimed += payout.amount
            self.credit(pot, payout.account, payout.amount)

    @rule(pot=rounds, data=st.data())
    def claim_all(self, pot: Pot, data: st.DataObject) -> None:
        """Claim all leaves that are worth something, in any order, and each again: no more."""
        root = pot.root
        if root is None:
            return
        self.claim_worth(pot, root, data.draw(st.permutations(root.worth())))

    def claim_worth(self, pot: Pot, root: Root, order: list[int]) -> None:
        """Claim these leaves, each twice."""
        self.wait_until(pot.stands_from())
        for index in order:
            self.claim_leaf(pot, root, index)
            self.claim_leaf(pot, root, index)
        if root.claimed.issuperset(root.worth()):
            assert pot.claimed == self.paid_out[pot.id] == pot.pot

    @rule(pot=rounds, patience=st.sampled_from((None, 0, 1)))
    def expire(self, pot: Pot, patience: int | None) -> None:
        """End a root: now, in the last second that is too early, or in the next one."""
        if patience is not None and pot.root is not None:
            self.wait_until(pot.expires_at() - 1 + patience)
        now = self.stage.now()
        refusal: Refusal = None
        if pot.root is None:
            refusal = ("NothingPosted", pot.id)
        elif now < pot.expires_at():
            refusal = ("NotExpired", now, pot.expires_at())
        if done := self.attempt(refusal, "expire", pot.id, of=pot):
            pot.root, pot.expired = None, True
            assert done.events[0].fields["claimed"] == pot.claimed
            assert done.events[0].fields["rest"] == pot.rest()

    @rule(pot=rounds, account=pots.payers)
    def reclaim(self, pot: Pot, account: str) -> None:
        """Give an account back its share of what is left: all that it paid, if no root came."""
        opening, now = pot.opening, self.stage.now()
        refusal: Refusal = None
        paid, everybody = pot.paid[account], sum(pot.paid.values())
        if now <= opening.post_by:
            refusal = ("NotPosting", now, opening.pay_by, opening.post_by)
        elif pot.root is not None:
            refusal = ("RootStands", now, pot.posted_at)
        elif not paid:
            refusal = ("NothingToReclaim", pot.id, self.house.account(account).lower())
        if self.attempt(refusal, "reclaim", pot.id, self.house.account(account), of=pot):
            share = paid * pot.rest() // everybody
            assert pot.expired or share == paid
            pot.paid[account] = 0
            pot.reclaimed += share
            self.credit(pot, self.house.account(account), share)

    @rule(asset=pots.assets, role=pots.payers, sender=pots.payers)
    def withdraw(self, asset: str, role: str, sender: str) -> None:
        """Have somebody paid what it is owed."""
        key = (self.assets[asset], role)
        refusal = None if self.credits[key] else ("NothingOwed", key[0].lower())
        call = ("withdraw", key[0], self.house.account(role))
        if self.attempt(refusal, *call, sender=sender):
            self.credits[key] = 0

    @rule(pot=rounds, data=st.data(), more=st.sampled_from((0, 1)))
    def wait(self, pot: Pot, data: st.DataObject, more: int) -> None:
        """Wait for the last second of something, or for the next one."""
        self.wait_until(data.draw(st.sampled_from(pot.edges())) + more)

    # Books

    def attempt(
        self, refusal: Refusal, function: str, *arguments: Any, of: Pot | None = None, **how: Any
    ) -> Outcome | None:
        """Make a call that must end as expected; return what it did, if it went through."""
        try:
            done = self.house.send(function, *arguments, **how)
        except RevertedError as error:
            said = (error.name, *error.arguments)
            assert said[: len(refusal or ())] == refusal, f"{function}: {said}, not {refusal}"
            return None
        assert refusal is None, f"{function} was done, not {refusal}"
        self.mined, self.touched = True, of or self.touched
        for event in done.events:
            if event.name == "Claimed":
                claimed = (event.fields["round"], event.fields["index"])
                assert claimed not in self.leaves_claimed, "a leaf was claimed twice"
                self.leaves_claimed.add(claimed)
            if event.name in ("Claimed", "Reclaimed"):
                self.paid_out[event.fields["round"]] += event.fields["amount"]
        return done

    def credit(self, pot: Pot, account: str, amount: int) -> None:
        """Write down that an account is owed so much more."""
        role = next(role for role in PAYERS if self.house.account(role) == account)
        self.credits[pot.opening.asset, role] += amount

    def wait_until(self, time: int) -> None:
        """Let time pass, if that is still to come."""
        self.stage.wait_until(max(self.stage.now(), time))

    def held(self, asset: str) -> int:
        """Return what the house holds."""
        if asset == ZERO:
            return self.stage.balance(self.house_itself)
        amount: int = self.stage.view("balanceOf", self.house_itself, of=self.token)
        return amount

    @invariant()
    def pots_and_credits_are_all_there_is(self) -> None:
        """Nothing comes from nowhere or is lost, and no round pays out more than its pot."""
        if not self.mined:
            return  # a refused call is not mined: there is nothing new to see
        self.mined = False
        owed = Counter[str]()
        for (asset, role), amount in self.credits.items():
            said = self.house.view("credits", asset, self.house.account(role))
            assert said == amount
            owed[asset] += said
        for asset in self.assets.values():
            rests = [pot.rest() for pot in self.pots if pot.opening.asset == asset]
            assert self.held(asset) == sum(rests) + owed[asset]
        for pot in self.pots:
            assert 0 <= self.paid_out[pot.id] == pot.claimed + pot.reclaimed <= pot.pot
        if self.touched is not None:
            self.as_in_the_books(self.touched)
            self.touched = None

    def as_in_the_books(self, pot: Pot) -> None:
        """Compare all that is known of a round."""
        assert self.house.view("roundOf", pot.id)[:9] == pot.known()
        for role, paid in pot.paid.items():
            assert self.house.view("paidIn", pot.id, self.house.account(role)) == paid
        if pot.root is not None:
            for index in pot.root.worth():
                claimed = index in pot.root.claimed
                assert self.house.view("claimed", pot.id, index) == claimed

    def teardown(self) -> None:
        """Anybody can end every round, and then all of each pot is paid out."""
        for number, pot in enumerate(self.pots):
            self.as_in_the_books(pot)
            self.wait_until(pot.opening.post_by + 1)
            if pot.root is not None:
                self.claim_worth(pot, pot.root, pot.root.worth() if number % 2 else [0])
                for patience in (0, 1):
                    self.expire(pot, patience)
                self.claim_leaf(pot, pot.roots[-1], len(pot.roots[-1].payouts) - 1)
            for role, paid in pot.paid.items():
                for _ in range(2 if paid else 0):
                    self.reclaim(pot, role)
            assert pot.rest() == 0
            assert self.paid_out[pot.id] == pot.pot
        for name, asset in self.assets.items():
            for role in PAYERS:
                if self.credits[asset, role]:
                    self.withdraw(name, role, "buyer")
        assert [self.held(asset) for asset in self.assets.values()] == [0, 0]


TestClearingMachine = ClearingMachine.TestCase
TestClearingMachine.settings = settings(LEAN, max_examples=5, stateful_step_count=20)


class LongClearingMachine(ClearingMachine):
    """The same for longer."""


TestLongClearingMachine = pytest.mark.slow(LongClearingMachine.TestCase)
TestLongClearingMachine.settings = settings(LEAN, max_examples=60, stateful_step_count=50)
