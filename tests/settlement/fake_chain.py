"""A chain in memory that is as strict as the real one, and an endpoint that can be cut.

`FakeChain` keeps the escrow's rules, nonces, fees and balances; its blocks follow a clock that
it is given, and what was broadcast waits in a pool until a block takes it.
`test_fake_chain.py` plays the same calls to it and to the real contract. `FakeEscrow` is one
account's view of it: the port that the shells are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from node.chain.codec import BROKER_DISPUTE_GAS, GAS_LIMITS, fixed_gas
from node.chain.errors import (
    ChainUnavailableError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.port import (
    Block,
    Call,
    Dispute,
    DisputedEvent,
    EscrowEvent,
    EscrowState,
    Fees,
    Finalize,
    Fund,
    FundedEvent,
    FundMany,
    PaidEvent,
    Refund,
    RefundedEvent,
    Reveal,
    RevealedEvent,
    Seat,
    SignedTransaction,
    TradeState,
    TransactionOutcome,
    Withdraw,
    WithdrawnEvent,
)
from node.protocol import merkle
from node.protocol.dispute import proves_bad
from node.protocol.eip712 import Domain, digest
from node.protocol.quote import Quote
from node.protocol.signing import address_of
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei

T = TypeVar("T")
ETHER = 10**18
GAS = 60_000
TERMS_BYTES = 26
DOMAIN = Domain(chain_id=31_337, escrow=Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))


class RevertError(Exception):
    """The contract will not do it; `values` is what its error says."""

    def __init__(self, name: str, **values: object) -> None:
        super().__init__(name)
        self.values = values or None


@dataclass(frozen=True)
class Transaction:
    sender: Address
    call: Call
    nonce: int
    max_fee: int
    gas: int
    """The limit; what is used is `GAS`."""

    @property
    def raw(self) -> bytes:
        return repr(self).encode()

    @property
    def hash(self) -> Digest:
        return Digest(hashlib.sha256(self.raw).digest())


@dataclass
class Deal:
    """What the escrow keeps of a trade."""

    state: EscrowState
    since: UnixTime
    terms: Digest


@dataclass
class FakeChain:
    """Blocks, a pool, and the escrow. `instant`: each transaction gets a block at once."""

    clock: Callable[[], UnixTime]
    block_seconds: int = 2
    instant: bool = False
    simulates: bool = False
    """Whether a call that would revert is refused when it is broadcast, or mined and paid for."""
    broker: Address = address_of(bytes([3]) * 32)
    """Whose quotes the contract takes; no signature is checked here."""
    threshold: int = 1
    base_fee: int = 10
    paused: bool = False
    """Whether blocks leave the pool alone."""
    blocks: list[Block] = field(default_factory=list)
    events: list[EscrowEvent] = field(default_factory=list)
    balances: dict[Address, int] = field(default_factory=dict)
    nonces: dict[Address, int] = field(default_factory=dict)
    credits: dict[Address, int] = field(default_factory=dict)
    deals: dict[Digest, Deal] = field(default_factory=dict)
    pool: dict[tuple[Address, int], Transaction] = field(default_factory=dict)
    mined: dict[Digest, TransactionOutcome] = field(default_factory=dict)
    history: list[Transaction] = field(default_factory=list)
    """Everything that was mined, in order."""
    published: list[Transaction] = field(default_factory=list)
    """Everything that anybody could have read in the pool."""
    known: dict[bytes, Transaction] = field(default_factory=dict)
    """Signed bytes, decoded."""

    def __post_init__(self) -> None:
        self.blocks.append(Block(0, self.clock()))

    # ── blocks ──

    def advance(self) -> None:
        """Mine every block that is due by now."""
        now = self.clock()
        while now - self.blocks[-1].time >= self.block_seconds:
            self.mine(UnixTime(self.blocks[-1].time + self.block_seconds))

    def mine(self, time: UnixTime | None = None) -> None:
        """Mine one block of whatever is executable."""
        at = time if time is not None else UnixTime(max(self.blocks[-1].time, self.clock()))
        self.blocks.append(Block(self.blocks[-1].number + 1, at))
        if self.paused:
            return
        for key in sorted(self.pool, key=lambda key: key[1]):
            sender, nonce = key
            due = nonce == self.nonces.get(sender, 0)
            if due and self.pool[key].max_fee >= self.base_fee:
                self._execute(self.pool.pop(key), at)

    def _execute(self, transaction: Transaction, now: UnixTime) -> None:
        self.nonces[transaction.sender] = transaction.nonce + 1
        self.balances[transaction.sender] -= GAS * self.base_fee
        number, revert, values = self.blocks[-1].number, None, None
        try:
            self._call(transaction, now, number)
        except RevertError as error:
            revert, values = str(error), error.values
        self.history.append(transaction)
        self.mined[transaction.hash] = TransactionOutcome(
            succeeded=revert is None,
            block=number,
            gas_used=GAS,
            revert=revert,
            values=values,
            fee=Wei(GAS * self.base_fee),
        )

    # ── the contract ──

    def _call(self, transaction: Transaction, now: UnixTime, block: int) -> None:
        for event in self._effects(transaction, now, block):
            self.events.append(event)

    def _effects(self, transaction: Transaction, now: int, block: int) -> list[EscrowEvent]:
        sender, call, hash_ = transaction.sender, transaction.call, transaction.hash
        if isinstance(call, Withdraw):
            amount = self.credits.pop(call.account, 0)
            if amount == 0:
                raise RevertError("NothingOwed")
            self.balances[call.account] = self.balances.get(call.account, 0) + amount
            self.balances[DOMAIN.escrow] -= amount
            return [
                WithdrawnEvent(block, hash_, NO_ADDRESS, call.account, call.account, Wei(amount))
            ]
        if isinstance(call, Fund | FundMany):
            quotes = [one.quote for one in deposits(call)]
            for at, quote in enumerate(quotes):  # all of them, or none
                self._check_deposit(quote, sender, now)
                if quote.trade_id in {other.trade_id for other in quotes[:at]}:
                    raise RevertError("WrongState")
            return [self._deposit(quote, now, block, hash_) for quote in quotes]
        quote = call.quote
        name = quote.trade_id
        deal = self.deals.get(name)
        late = isinstance(call, Finalize | Dispute)
        expected = EscrowState.REVEALED if late else EscrowState.FUNDED
        if deal is None or deal.state is not expected:
            raise RevertError("WrongState")
        if deal.terms != digest(DOMAIN, quote):
            raise RevertError("WrongTerms")
        match call:
            case Reveal(_, secret):
                if hashlib.sha256(secret).digest() != quote.secret_commitment:
                    raise RevertError("WrongSecret")
                deal.state, deal.since = EscrowState.REVEALED, UnixTime(now)
                return [RevealedEvent(block, hash_, name, secret)]
            case Finalize():
                if now <= deal.since + quote.dispute_window:
                    raise RevertError("TooEarly")
                deal.state, deal.since = EscrowState.PAID, UnixTime(now)
                to_seller = Wei(quote.price - quote.fee)
                self._owe(quote.seller, to_seller)
                self._owe(quote.fee_recipient, quote.fee)
                return [PaidEvent(block, hash_, name, to_seller, quote.fee)]
            case Dispute(_, evidence):
                if now > deal.since + quote.dispute_window:
                    raise RevertError("DisputeClosed")
                if not proves_bad(quote, evidence):
                    raise RevertError("GoodLeaf")
                deal.state, deal.since = EscrowState.DISPUTED, UnixTime(now)
                self._owe(quote.buyer, quote.price)
                return [DisputedEvent(block, hash_, name, evidence.index, quote.price)]
            case Refund():
                if now <= quote.refund_from:
                    raise RevertError("TooEarly")
                deal.state, deal.since = EscrowState.REFUNDED, UnixTime(now)
                self._owe(quote.buyer, quote.price)
                return [RefundedEvent(block, hash_, name, quote.price)]
        raise AssertionError(call)

    def _check_deposit(self, quote: Quote, sender: Address, now: int) -> None:
        if quote.trade_id in self.deals:
            raise RevertError("WrongState")
        if sender != quote.buyer:
            raise RevertError("NotBuyer")
        if now > quote.fund_by:
            raise RevertError("FundingClosed", time=now, fundBy=quote.fund_by)
        if quote.leaf_count != merkle.leaf_count(quote.byte_length):
            raise RevertError("WrongLeafCount")

    def _deposit(self, quote: Quote, now: int, block: int, hash_: Digest) -> FundedEvent:
        name, escrow = quote.trade_id, DOMAIN.escrow
        self.balances[quote.buyer] -= quote.price
        self.balances[escrow] = self.balances.get(escrow, 0) + quote.price
        self.deals[name] = Deal(EscrowState.FUNDED, UnixTime(now), digest(DOMAIN, quote))
        return FundedEvent(block, hash_, name, quote.buyer, quote.seller, quote.price)

    def _owe(self, account: Address, amount: int) -> None:
        if amount:
            self.credits[account] = self.credits.get(account, 0) + amount

    # ── the pool ──

    def receive(self, raw: bytes) -> None:
        """Take a transaction in, as a node does that keeps a pool."""
        transaction = self.known[raw]
        key = transaction.sender, transaction.nonce
        if transaction.hash in self.mined or self.pool.get(key) == transaction:
            return
        if transaction.nonce < self.nonces.get(transaction.sender, 0):
            raise NonceTooLowError(f"nonce too low: {transaction.nonce}")
        value = sum(one.quote.price for one in deposits(transaction.call))
        cost = value + transaction.gas * transaction.max_fee
        if self.balances.get(transaction.sender, 0) < cost:
            raise UnfundedAccountError(f"insufficient funds: needs {cost}")
        held = self.pool.get(key)
        if held is not None and transaction.max_fee * 10 < held.max_fee * 11:
            raise TransactionRefusedError("replacement transaction underpriced")
        if self.simulates:
            self._simulate(transaction)
        self.pool[key] = transaction
        self.published.append(transaction)
        if self.instant:
            self.mine()

    def _simulate(self, transaction: Transaction) -> None:
        trial = FakeChain(self.clock)
        trial.balances, trial.credits = dict(self.balances), dict(self.credits)
        trial.deals = {i: Deal(d.state, d.since, d.terms) for i, d in self.deals.items()}
        try:
            trial._call(transaction, self.clock(), 0)
        except RevertError as error:
            raise TransactionRefusedError(str(error)) from error

    def next_nonce(self, account: Address) -> int:
        """The first nonce that is neither mined nor in the pool."""
        nonce = self.nonces.get(account, 0)
        while (account, nonce) in self.pool:
            nonce += 1
        return nonce

    @property
    def total(self) -> int:
        """Every wei there is, with what was burnt for gas."""
        return sum(self.balances.values()) + sum(o.fee for o in self.mined.values())

    def calls(self, kind: type[Call], *, succeeded: bool | None = None) -> list[Transaction]:
        """Mined transactions of one kind."""
        return [
            t
            for t in self.history
            if isinstance(t.call, kind)
            and (succeeded is None or self.mined[t.hash].succeeded is succeeded)
        ]


def deposits(call: Call) -> tuple[Fund, ...]:
    """The deposits that a call makes, if it makes any."""
    if isinstance(call, FundMany):
        return call.deposits
    return (call,) if isinstance(call, Fund) else ()


Hook = Callable[[str], None]


class FakeEscrow:
    """`node.chain.port.Escrow` on a `FakeChain`, over a line that a test may cut.

    `before` and `after` are called with the name of each call, and may raise: after means
    that the call has been carried out and only its answer was lost.
    """

    def __init__(self, chain: FakeChain, account: Address) -> None:
        self.chain = chain
        self._account = account
        self.before: Hook = lambda _: None
        self.after: Hook = lambda _: None
        self.asked: list[str] = []

    @property
    def domain(self) -> Domain:
        return DOMAIN

    @property
    def account(self) -> Address:
        return self._account

    @property
    def threshold(self) -> int:
        return self.chain.threshold

    def seat(self, account: Address) -> Seat:
        self._begin("seat")
        return self._end("seat", Seat.TAKEN if account == self.chain.broker else Seat.STRANGER)

    def head(self) -> Block:
        self._begin("head")
        return self._end("head", self.chain.blocks[-1])

    def trade_state(self, trade_id: Digest) -> TradeState:
        self._begin("trade_state")
        deal = self.chain.deals.get(trade_id)
        state = TradeState(EscrowState.NONE, UnixTime(0))
        return self._end("trade_state", TradeState(deal.state, deal.since) if deal else state)

    def terms(self, trade_id: Digest) -> bytes:
        self._begin("terms")
        deal = self.chain.deals.get(trade_id)
        return self._end("terms", deal.terms[:TERMS_BYTES] if deal else bytes(TERMS_BYTES))

    def credit(self, account: Address) -> Wei:
        self._begin("credit")
        return self._end("credit", Wei(self.chain.credits.get(account, 0)))

    def balance(self, account: Address, *, block: int | None = None) -> Wei:
        self._begin("balance")
        return self._end("balance", Wei(self.chain.balances.get(account, 0)))

    def next_nonce(self) -> int:
        self._begin("next_nonce")
        return self._end("next_nonce", self.chain.next_nonce(self._account))

    def events(self, first_block: int, last_block: int) -> list[EscrowEvent]:
        self._begin("events")
        found = [e for e in self.chain.events if first_block <= e.block <= last_block]
        return self._end("events", found)

    def fees(self) -> Fees:
        self._begin("fees")
        return self._end("fees", Fees(max_fee=Wei(2 * self.chain.base_fee), tip=Wei(0)))

    def gas_limit(self, kind: type[Call], encryptor: Address) -> int:
        self._begin("gas_limit")
        return self._end("gas_limit", self._limit(kind, encryptor))

    def _limit(self, kind: type[Call], encryptor: Address) -> int:
        by_broker = kind is Dispute and encryptor == self.chain.broker
        return BROKER_DISPUTE_GAS if by_broker else GAS_LIMITS[kind]

    def sign(self, call: Call, nonce: int, fees: Fees | None = None) -> SignedTransaction:
        self._begin("sign")
        most = fees.max_fee if fees is not None else 2 * self.chain.base_fee
        gas = fixed_gas(call)
        if isinstance(call, Dispute):
            gas = self._limit(Dispute, call.quote.encryptor)
            if self.chain.balances.get(self._account, 0) < gas * most:
                gas = GAS * 3 // 2
        transaction = Transaction(self._account, call, nonce, most, gas)
        self.chain.known[transaction.raw] = transaction
        return self._end("sign", SignedTransaction(transaction.hash, transaction.raw, nonce))

    def broadcast(self, raw: bytes) -> None:
        self._begin("broadcast")
        self.chain.receive(raw)
        self._end("broadcast", None)

    def receipt(self, transaction: Digest) -> TransactionOutcome | None:
        self._begin("receipt")
        return self._end("receipt", self.chain.mined.get(transaction))

    def _begin(self, name: str) -> None:
        self.asked.append(name)
        self.before(name)
        self.chain.advance()

    def _end(self, name: str, answer: T) -> T:
        self.after(name)
        return answer


def down(name: str) -> None:
    """A hook: the endpoint does not answer."""
    raise ChainUnavailableError(f"{name}: connection refused")
