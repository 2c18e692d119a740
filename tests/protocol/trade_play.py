"""Three parties' machines, their shells in miniature, and the escrow they settle by.

The shell keeps the node's order: the journal first, then effects; a crash loses what was
under way, and the journal tells the machine again. The chain is the contract's own rules in
a page. What may happen here is what may happen: any delay, any crash, blocks told late or
twice, transactions that wait in the pool, strangers who finalize and refund, clocks that
are wrong. What is assumed is written down in `LANDING` and `SELLERS_SKEW`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from node.protocol import cbor, delivery
from node.protocol.brokerage import Brokerage
from node.protocol.events import (
    BadGoods,
    Deliver,
    Delivered,
    Disputed,
    Effect,
    FetchGoods,
    Funded,
    GoodsRefused,
    GoodsVerified,
    Paid,
    PublishReceipt,
    Refunded,
    Revealed,
    SecretSent,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.purchase import Purchase
from node.protocol.quote import Quote
from node.protocol.sale import REVEAL_MARGIN, Sale, SaleState
from node.protocol.schema import from_map, to_map
from node.protocol.types import UnixTime
from tests.protocol import cast

LANDING: Final = 60
"""What is broadcast is in a block within so many seconds."""
SELLERS_SKEW: Final = 60
"""The seller's clock is wrong by no more than this; with `LANDING` well under the grace."""
START_MONEY: Final = 10 * cast.PRICE

M = TypeVar("M", Purchase, Sale, Brokerage)
Told = Funded | Revealed | Paid | Refunded | Disputed


class Phase(enum.Enum):
    NONE = 0
    FUNDED = 1
    REVEALED = 2
    PAID = 3
    REFUNDED = 4
    DISPUTED = 5


@dataclasses.dataclass(frozen=True)
class Block:
    time: UnixTime
    events: tuple[Told, ...]


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A transaction that was broadcast, and is in no block yet."""

    step: Step
    account: str
    since: int


class EscrowModel:
    """One trade under the contract's rules."""

    def __init__(self, quote: Quote) -> None:
        self.quote = quote
        self.time: int = cast.NOW
        self.phase = Phase.NONE
        self.since = 0
        self.locked = 0
        self.credits: Counter[str] = Counter()
        self.wallets: Counter[str] = Counter({"buyer": START_MONEY})
        self.blocks: list[Block] = []
        self.pool: list[Pooled] = []
        self.secret_seen = False
        self.goods_are_good = True
        """What the court would find; only the buyer and the seller could show it."""

    def broadcast(self, step: Step, account: str) -> None:
        """Send, unless it is on its way."""
        self.secret_seen |= step is Step.REVEAL
        if (step, account) not in {(p.step, p.account) for p in self.pool}:
            self.pool.append(Pooled(step, account, self.time))

    def advance(self, seconds: int, *, waits: Callable[[Pooled], bool] = lambda _: False) -> None:
        """Let time pass and mine; what `waits` stays in the pool while it is allowed to."""
        target = self.time + seconds
        while self.pool and (due := min(p.since for p in self.pool) + LANDING) < target:
            self._mine(max(self.time, due), list(self.pool))
        self._mine(target, [p for p in self.pool if not waits(p)])

    def _mine(self, time: int, chosen: list[Pooled]) -> None:
        self.time = time
        # the worst order for the seller: whoever refunds is first in the block
        chosen.sort(key=lambda p: p.step is not Step.REFUND)
        events = [event for p in chosen if (event := self._execute(p)) is not None]
        self.pool = [p for p in self.pool if p not in chosen]
        self.blocks.append(Block(UnixTime(time), tuple(events)))

    def may(self, step: Step, account: str) -> bool:
        """Whether the transaction would succeed in a block now."""
        quote = self.quote
        match step:
            case Step.FUND:
                return (
                    self.phase is Phase.NONE
                    and self.time <= quote.fund_by
                    and self.wallets[account] >= quote.price
                )
            case Step.REVEAL:
                return self.phase is Phase.FUNDED
            case Step.FINALIZE:
                return (
                    self.phase is Phase.REVEALED and self.time > self.since + quote.dispute_window
                )
            case Step.REFUND:
                return self.phase is Phase.FUNDED and self.time > quote.reveal_by + quote.grace
            case Step.DISPUTE:
                return (
                    self.phase is Phase.REVEALED
                    and self.time <= self.since + quote.dispute_window
                    and not self.goods_are_good
                    and account in {"buyer", "seller"}
                )
            case Step.WITHDRAW:
                return self.credits[account] > 0

    def _execute(self, sent: Pooled) -> Told | None:
        if not self.may(sent.step, sent.account):
            return None
        quote = self.quote
        match sent.step:
            case Step.FUND:
                self.wallets[sent.account] -= quote.price
                self.locked += quote.price
                return self._enter(Phase.FUNDED, Funded())
            case Step.REVEAL:
                return self._enter(Phase.REVEALED, Revealed(cast.SECRET, UnixTime(self.time)))
            case Step.FINALIZE:
                self.locked -= quote.price
                self.credits["seller"] += quote.price - quote.fee
                self.credits["broker"] += quote.fee
                return self._enter(Phase.PAID, Paid())
            case Step.REFUND:
                self.locked -= quote.price
                self.credits["buyer"] += quote.price
                return self._enter(Phase.REFUNDED, Refunded())
            case Step.DISPUTE:
                self.locked -= quote.price
                self.credits["buyer"] += quote.price
                return self._enter(Phase.DISPUTED, Disputed())
            case Step.WITHDRAW:
                self.wallets[sent.account] += self.credits.pop(sent.account)
                return None

    def _enter(self, phase: Phase, event: Told) -> Told:
        self.phase, self.since = phase, self.time
        return event


_DONE: Final = {
    Step.FUND: set(Phase) - {Phase.NONE},
    Step.REVEAL: {Phase.REVEALED, Phase.PAID, Phase.REFUNDED, Phase.DISPUTED},
    Step.FINALIZE: {Phase.PAID, Phase.REFUNDED, Phase.DISPUTED},
    Step.REFUND: {Phase.REFUNDED, Phase.REVEALED, Phase.PAID, Phase.DISPUTED},
    Step.DISPUTE: {Phase.PAID, Phase.REFUNDED, Phase.DISPUTED},
}
"""Where there is nothing left to do for a step."""


class Shell(Generic[M]):
    """One party: its machine, its journal, what it has yet to do, and what it was told."""

    def __init__(self, name: str, machine: M, chain: EscrowModel) -> None:
        self.name = name
        self.machine: M = machine
        self.chain = chain
        self.skew = 0
        self.up = True
        self.to_do: list[Effect] = []
        self.told = self.watermark = len(chain.blocks)
        self.published = 0
        self._journal = b""
        self._save()
        self.to_do = list(machine.resume(self.now))

    @property
    def now(self) -> UnixTime:
        return UnixTime(self.chain.time + self.skew)

    def _save(self) -> None:
        self._journal = cbor.encode(to_map(self.machine.record))

    def take(self, act: Callable[[M], list[Effect] | None]) -> None:
        """Save, then send."""
        before = self.machine.record
        effects = act(self.machine)
        if self.machine.record is not before:
            self._save()
        self.to_do += effects or []

    def crash(self) -> None:
        self.up = False

    def restart(self) -> None:
        """Make the machine again from the journal; blocks since the watermark are told again."""
        record = from_map(type(self.machine.record), cbor.decode(self._journal))
        make = type(self.machine)
        self.up = True
        self.told = self.watermark
        self.to_do = []
        self.machine = make(record)
        self.take(lambda m: m.resume(self.now))
        # asking again, or crashing at once, owes the same
        assert self.machine.resume(self.now) == self.to_do
        again = from_map(type(record), cbor.decode(self._journal))
        assert make(again).resume(self.now) == self.to_do

    def listen(self, blocks: int, *, remembers: bool) -> None:
        """Hear the next blocks; perhaps die before the watermark is written."""
        heard = self.chain.blocks[self.told : self.told + blocks]
        for block in heard:
            for event in block.events:
                self._tell(event)
        self.told += len(heard)
        if remembers:
            self.watermark = self.told
        if heard:
            self._tell(Tick(heard[-1].time))

    def _tell(self, event: Any) -> None:
        self.take(lambda machine: machine.receive(event, self.now))

    def perform(self, number: int, *, goods_come: bool = True) -> None:
        """Carry out one of the effects that wait.

        A receipt comes first: a shell journals it before it awaits anything.
        """
        receipts = [n for n, e in enumerate(self.to_do) if isinstance(e, PublishReceipt)]
        effect = self.to_do.pop(receipts[0] if receipts else number % len(self.to_do))
        match effect:
            case FetchGoods():
                self._tell(GoodsVerified() if goods_come else GoodsRefused("unreachable"))
            case Deliver(secret):
                assert delivery.secret_commitment(secret) == self.chain.quote.secret_commitment
                good = self.chain.goods_are_good
                self._tell(Delivered() if good else BadGoods(cast.EVIDENCE))
            case PublishReceipt():
                assert self.chain.phase is Phase.PAID
                self.published += 1
            case Transact(step):
                self._transact(effect, step)

    def _transact(self, effect: Effect, step: Step) -> None:
        chain = self.chain
        if step is Step.WITHDRAW:
            if chain.credits[self.name] == 0:
                self._tell(Withdrawn())
                return
        elif chain.phase in _DONE[step]:
            return
        if not self.machine.may_send(step, self.now):
            return
        if step is Step.REVEAL:
            self._secret_may_leave()
        if chain.may(step, self.name):
            chain.broadcast(step, self.name)
            if step is Step.REVEAL:
                self._tell(SecretSent())
        elif step in {Step.FUND, Step.DISPUTE}:
            return  # refused, and no later block would take it
        self.to_do.append(effect)  # until it is seen to be done

    def _secret_may_leave(self) -> None:
        machine, quote = self.machine, self.chain.quote
        assert isinstance(machine, Sale)
        assert machine.state is SaleState.REVEALING
        assert self.chain.phase is Phase.FUNDED
        in_time = max(self.now, machine.chain_time) <= quote.reveal_by - REVEAL_MARGIN
        assert in_time or (machine.record.told and self.chain.secret_seen)
