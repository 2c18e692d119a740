"""Whatever brokers do in whatever order, each bond is where it belongs.

A machine plays brokers against their registry, and keeps books of its own. Before every call it
says what must come of it: success, or which custom error with which values. After every call the
books are compared with the chain; and what each event says is held against the rules by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from eth_utils.crypto import keccak
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

from contracts.stage import BOND, SECRET, ZERO, Outcome, Quote, RevertedError
from tests.contracts import bonds
from tests.contracts.bonds import BONDED, EXIT_DELAY, SEATED, Broker, Proof, Refusal, Sale
from tests.contracts.deliveries import deliver, flipped, noise
from tests.contracts.rewinding import LEAN


class RegistryMachine(RuleBasedStateMachine):
    """Brokers that come, serve, leave, and lose what they have up."""

    proofs = Bundle("proofs")
    sales = Bundle("sales")

    @initialize()
    def set_up(self) -> None:
        """Begin with three brokers that serve both markets, and one bond each."""
        self.stage, house = bonds.ready()
        self.places = {"escrow": self.stage.escrow, "house": house}
        self.markets = {name: place.address for name, place in self.places.items()}
        self.markets["rival"] = self.stage.accounts["rival"]
        self.books = {role: Broker() for role in BONDED}
        self.seats: set[tuple[str, str]] = set()
        for role in SEATED:
            self.books[role] = Broker(bond=BOND, markets=["escrow", "house"])
            self.seats |= {(role, "escrow"), (role, "house")}
        accounts = self.stage.accounts
        self.accounts = {role: accounts[role] for role in bonds.PARTIES} | {"dead": bonds.DEAD}
        self.credits = dict.fromkeys(self.accounts, 0)
        self.noticed: dict[str, int] = {}
        self.seen = {role: self.chain_says(role) for role in BONDED}
        self.own_doing: set[str] = set()
        self.trades = 0
        self.mined = True
        self.bond("second", 11)  # a tenth of it is odd: one of two parts is larger

    @rule(who=bonds.bonded, amount=st.sampled_from((0, 1, 19, BOND - 1, BOND, BOND + 11)))
    def bond(self, who: str, amount: int) -> None:
        """Put up a bond, or add to it."""
        book = self.books[who]
        has = book.bond + amount
        refusal: Refusal = None
        if book.slashed:
            refusal = ("WasSlashed", self.lower(who))
        elif book.leaves_at:
            refusal = ("HasGivenNotice", self.lower(who))
        elif has < BOND:
            refusal = ("BondTooSmall", has, BOND)
        if self.attempt(refusal, "bond", sender=who, value=amount):
            book.bond = has

    @rule(who=bonds.bonded, market=bonds.markets)
    def serve(self, who: str, market: str) -> None:
        """Name a market."""
        book = self.books[who]
        if self.attempt(self.cannot_serve(who), "serve", self.markets[market], sender=who):
            book.markets += [market] if market not in book.markets else []

    def cannot_serve(self, who: str) -> Refusal:
        """Return why a broker cannot serve, or give notice."""
        if not self.books[who].bond:
            return ("NoBond", self.lower(who))
        return ("HasGivenNotice", self.lower(who)) if self.books[who].leaves_at else None

    @rule(who=bonds.bonded, market=bonds.places, sender=bonds.parties)
    def seat(self, who: str, market: str, sender: str) -> None:
        """Have a broker seated that serves."""
        refusal: Refusal = None
        if who not in SEATED:
            refusal = ("NotABroker", self.lower(who))
        elif not self.serves(who, market):
            refusal = ("NotServing", self.lower(who))
        call = ("seat", self.accounts[who])
        if self.attempt(refusal, *call, sender=sender, to=self.places[market]):
            self.seats.add((who, market))

    @rule(who=bonds.bonded, market=bonds.places, sender=bonds.parties)
    def unseat(self, who: str, market: str, sender: str) -> None:
        """Try to have a broker unseated that the registry has not: it still serves."""
        sits = (who, market) in self.seats
        refusal = ("StillServing", self.lower(who)) if sits else None
        call = ("unseat", self.accounts[who])
        self.attempt(refusal, *call, sender=sender, to=self.places[market])

    @rule(who=bonds.bonded)
    def give_notice(self, who: str) -> None:
        """Say that one leaves: nothing takes it back."""
        if done := self.attempt(self.cannot_serve(who), "giveNotice", sender=who):
            self.books[who].leaves_at = done.time + EXIT_DELAY
            self.seats -= {(who, market) for market in self.places}

    @rule(who=bonds.bonded, patience=st.sampled_from((0, 0, EXIT_DELAY - 1, EXIT_DELAY)))
    def take_bond(self, who: str, patience: int) -> None:
        """Take a bond back, at some time after the notice."""
        book = self.books[who]
        refusal: Refusal = None
        if book.leaves_at:
            self.wait_until(book.leaves_at - EXIT_DELAY + patience)
        now = self.stage.now()
        if not book.leaves_at:
            refusal = ("NoNotice", self.lower(who))
        elif now < book.leaves_at:
            refusal = ("TooEarlyToLeave", now, book.leaves_at)
        if self.attempt(refusal, "takeBond", sender=who):
            self.own_doing.add(who)
            self.credits[who] += book.bond
            self.books[who] = Broker()

    @rule(party=st.sampled_from((*bonds.PARTIES, "dead")), sender=bonds.parties)
    def withdraw(self, party: str, sender: str) -> None:
        """Have somebody paid what it is owed."""
        owed = (ZERO, self.accounts[party])
        refusal = None if self.credits[party] else ("NothingOwed", ZERO, owed[1].lower(), 0)
        if self.attempt(refusal, "withdraw", *owed, sender=sender):
            self.credits[party] = 0

    @rule(seconds=st.sampled_from((1, bonds.DAY, 40 * bonds.DAY, EXIT_DELAY)))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.wait_until(self.stage.now() + seconds)

    @rule(
        target=proofs, who=bonds.bonded, forger=bonds.bonded, flaw=bonds.flaws,
        two_buyers=st.booleans(), batched=st.tuples(st.booleans(), st.booleans()),
        reporter=bonds.parties,
    )  # fmt: skip
    def equivocate(
        self,
        who: str,
        forger: str,
        flaw: str | None,
        two_buyers: bool,
        batched: tuple[bool, bool],
        reporter: str,
    ) -> Proof:
        """Sign two quotes of one trade, or what is not quite that, and show it."""
        first = self.quote(price=5)
        second = first._replace(price=6)
        if two_buyers:
            second = second._replace(buyer=self.accounts["rival"])
        if flaw == "same":
            second = first
        elif flaw == "ids":
            second = self.quote(price=6)
        elif flaw == "elsewhere":
            batched = (False, False)
        one = self.signed(first, forger if flaw == "first forged" else who, batched[0])
        other = self.signed(second, forger if flaw == "second forged" else who, batched[1])
        if flaw == "misplaced":
            other = self.signed(second, who, packed=True, place=1)
        digests = [self.stage.view("quoteDigest", quote) for quote in (first, second)]
        forged = flaw in ("first forged", "second forged") and forger != who
        refusal: Refusal = None
        if flaw in ("same", "ids"):
            refusal = ("NotAConflict", *digests)
        elif flaw == "misplaced":
            refusal = ("NotInBatch", digests[1], 1)
        elif forged or flaw == "elsewhere":
            refusal = ("NotSignedBy", self.lower(who))
        market = "house" if flaw == "elsewhere" else "escrow"
        victim = "dead" if two_buyers else "buyer"
        proof = Proof(broker=who, market=market, shown=(one, other), victim=victim, refusal=refusal)
        self.show(proof, reporter)
        return proof

    @rule(proof=proofs, reporter=bonds.parties, turned=st.booleans())
    def show(self, proof: Proof, reporter: str, turned: bool = False) -> None:
        """Prove an equivocation, for the first time or again, also in the other order."""
        refusal = proof.refusal
        turned = turned and refusal is None
        one, other = proof.shown[::-1] if turned else proof.shown
        if refusal is None and not self.books[proof.broker].bond:
            refusal = ("NoBond", self.lower(proof.broker))
        evidence = (self.markets[proof.market], self.accounts[proof.broker], one, other)
        done = self.attempt(refusal, "proveEquivocation", *evidence, sender=reporter)
        if done:
            self.slash(done, proof.broker, proof.victim, reporter)

    @rule(proof=proofs, other=bonds.bonded, reporter=bonds.parties)
    def accuse_another(self, proof: Proof, other: str, reporter: str) -> None:
        """Show what one broker signed as what another did."""
        if proof.refusal is not None or other == proof.broker:
            return
        evidence = (self.markets["escrow"], self.accounts[other], *proof.shown)
        refusal = ("NotSignedBy", self.lower(other))
        self.attempt(refusal, "proveEquivocation", *evidence, sender=reporter)

    def quote(self, **changes: Any) -> Quote:
        """Return terms of a trade of their own."""
        self.trades += 1
        number = hashlib.sha256(self.trades.to_bytes(8)).digest()
        return self.stage.quote(trade_id=number, fee=0, **changes)

    def signed(self, quote: Quote, role: str, packed: bool = False, place: int = 0) -> Any:
        """Return a quote as somebody signed it, by itself or as the first of a batch of two."""
        digest = self.stage.view("quoteDigest", quote)
        batch: Sequence[bytes] = ()
        if packed:
            batch = (digest, keccak(digest))
            kind = keccak(text="Batch(bytes32[] quotes)")
            digest = self.stage.digest(keccak(kind + keccak(b"".join(batch))))
        return (quote, batch, place, self.stage.signatures(digest, role))

    # Bad deliveries

    @precondition(lambda self: any(market == "escrow" for _, market in self.seats))
    @rule(target=sales, data=st.data(), good=st.booleans(), own=st.booleans(), wait=st.booleans())
    def sell(self, data: st.DataObject, good: bool, own: bool, wait: bool) -> Sale:
        """Fund and reveal a delivery of a broker's, under its own signature or another's."""
        signers = sorted(role for role, market in self.seats if market == "escrow")
        signer = data.draw(st.sampled_from(signers))
        encryptor = signer if own else data.draw(st.sampled_from(SEATED))
        terms = self.quote(encryptor=self.accounts[encryptor], price=7, dispute_window=bonds.WINDOW)
        spoil = (lambda goods: goods) if good else flipped(0)
        goods = deliver(self.stage, noise(100), spoil, **terms._asdict())
        signature = self.stage.signature(goods.quote, signer)
        escrow = self.stage.escrow
        self.attempt(None, "fund", goods.quote, signature, sender="buyer", value=7, to=escrow)
        shown = self.attempt(None, "reveal", goods.quote, SECRET, sender="seller", to=escrow)
        assert shown is not None
        sale = Sale(goods=goods, encryptor=encryptor, good=good, revealed_at=shown.time)
        sale.vouched = signer == encryptor
        if not wait:
            self.dispute(sale, data.draw(bonds.parties))
        return sale

    @rule(sale=sales, reporter=bonds.parties)
    def dispute(self, sale: Sale, reporter: str) -> None:
        """Prove a delivery to be bad: who vouched for it loses its bond, if it is up."""
        refusal: Refusal = None
        if sale.disputed:
            refusal = ("WrongState", sale.goods.quote.trade_id)
        elif self.stage.now() > sale.revealed_at + bonds.WINDOW:
            refusal = ("DisputeClosed",)
        elif sale.good:
            refusal = ("GoodLeaf",)
        shown = (sale.goods.quote, sale.goods.evidence(0))
        done = self.attempt(refusal, "dispute", *shown, sender=reporter, to=self.stage.escrow)
        if not done:
            return
        sale.disputed = True
        convicted = sale.vouched and "escrow" in self.books[sale.encryptor].markets
        assert [event.name for event in done.events].count("Slashed") == convicted
        if convicted:
            self.slash(done, sale.encryptor, "buyer", reporter)

    @rule(who=bonds.bonded, market=bonds.parties, victim=bonds.parties, reporter=bonds.parties)
    def convict(self, who: str, market: str, victim: str, reporter: str) -> None:
        """Convict a broker as a market that it named, or did not."""
        named = market == "rival" and "rival" in self.books[who].markets
        refusal = None if named else ("NotServedBy", self.lower(market), self.lower(who))
        accounts = [self.accounts[role] for role in (who, victim, reporter)]
        if done := self.attempt(refusal, "convict", *accounts, sender=market):
            self.slash(done, who, victim, reporter)

    def slash(self, done: Outcome, who: str, victim: str, reporter: str) -> None:
        """Write down that a bond was lost: a tenth goes out at most, and to the victim first."""
        (event,) = [event for event in done.events if event.name == "Slashed"]
        book, parts = self.books[who], event.fields
        assert [parts[name] for name in ("broker", "victim", "reporter")] == [
            self.accounts[role].lower() for role in (who, victim, reporter)
        ]
        assert 0 <= parts["toReporter"] <= parts["toVictim"]
        assert parts["toReporter"] + parts["toVictim"] == book.bond // 10
        assert parts["toReporter"] + parts["toVictim"] + parts["burnt"] == book.bond
        assert not book.slashed, "the same broker a second time"
        for role, part in ((victim, "toVictim"), (reporter, "toReporter"), ("dead", "burnt")):
            self.credits[role] += parts[part]
        self.own_doing.add(who)
        self.books[who] = Broker(slashed=True)
        self.seats -= {(who, market) for market in self.places}

    # Books

    def attempt(self, refusal: Refusal, function: str, *values: Any, **how: Any) -> Outcome | None:
        """Make a call that must end as expected; return what it did, if it went through."""
        how.setdefault("to", self.stage.registry)
        try:
            done = self.stage.send(function, *values, **how)
        except RevertedError as error:
            said = (error.name, *error.arguments)
            assert said[: len(refusal or ())] == refusal, f"{function}: {said}, not {refusal}"
            return None
        assert refusal is None, f"{function} was done, not {refusal}"
        self.mined = True
        for event in done.events:
            if event.name == "NoticeGiven":
                self.noticed[event.fields["broker"]] = done.time
            elif event.name == "Left":
                given = self.noticed.pop(event.fields["broker"])
                assert done.time >= given + EXIT_DELAY, "a bond left early"
        return done

    def wait_until(self, time: int) -> None:
        """Let time pass, if that is still to come."""
        self.stage.wait_until(max(self.stage.now(), time))

    def serves(self, who: str, market: str) -> bool:
        """Say whether a broker's signature counts in a market."""
        book = self.books[who]
        return market in book.markets and not book.leaves_at and book.bond >= BOND

    def lower(self, name: str) -> str:
        """Return an account, or the address of a market, as it is decoded."""
        return (self.markets | self.stage.accounts)[name].lower()

    def asked(self, function: str, *arguments: Any) -> Any:
        """Return what the registry answers."""
        return self.stage.view(function, *arguments, of=self.stage.registry)

    def chain_says(self, who: str) -> Any:
        """Return what a broker has up, when it may leave, and whom it serves."""
        return self.asked("brokerOf", self.stage.accounts[who])

    @invariant()
    def bonds_and_credits_are_all_there_is(self) -> None:
        """Nothing comes from nowhere or is lost; a bond falls by its broker's own doing alone."""
        if not self.mined:
            return  # a refused call is not mined: there is nothing new to see
        self.mined = False
        before, self.seen = self.seen, {who: self.chain_says(who) for who in BONDED}
        fell = {who for who, said in self.seen.items() if said[0] < before[who][0]}
        assert fell <= self.own_doing, "a bond fell by what others did"
        self.own_doing.clear()
        owed = {
            party: self.asked("credits", ZERO, account) for party, account in self.accounts.items()
        }
        up = sum(said[0] for said in self.seen.values())
        assert self.stage.balance(self.stage.registry.address) == up + sum(owed.values())
        assert owed == self.credits
        for who, book in self.books.items():
            named = tuple(self.lower(market) for market in book.markets)
            assert self.seen[who] == (book.bond, book.leaves_at, named)
            if self.seen[who] != before[who]:
                self.serves_as_in_the_books(who)

    def serves_as_in_the_books(self, who: str) -> None:
        """Compare whom a broker serves, answers to, and where it sits."""
        account, book = self.accounts[who], self.books[who]
        assert self.asked("wasSlashed", account) == book.slashed
        for name, market in self.markets.items():
            assert self.asked("serves", account, market) == self.serves(who, name)
            assert self.asked("answersTo", account, market) == (name in book.markets)
        for name, place in self.places.items():
            seat = 2 if (who, name) in self.seats else int(who in SEATED)
            assert self.stage.view("seatOf", account, of=place) == seat

    def teardown(self) -> None:
        """Every broker can leave with what it has up, and then the registry is empty."""
        left = {who: book for who, book in self.books.items() if book.bond}
        for who in BONDED:
            self.serves_as_in_the_books(who)
            self.convict(who, "seller", "buyer", "buyer")
            if who in left and not left[who].leaves_at:
                self.give_notice(who)
        for who in left:
            for patience in (EXIT_DELAY - 1, EXIT_DELAY):
                self.take_bond(who, patience)
        for party, amount in self.credits.items():
            if amount:
                self.withdraw(party, "buyer")
        assert self.stage.balance(self.stage.registry.address) == 0


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(LEAN, max_examples=4, stateful_step_count=20)


class LongRegistryMachine(RegistryMachine):
    """The same for longer."""


TestLongRegistryMachine = pytest.mark.slow(LongRegistryMachine.TestCase)
TestLongRegistryMachine.settings = settings(LEAN, max_examples=60, stateful_step_count=50)
