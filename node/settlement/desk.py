"""The trade desk: every open trade of a node, its machine, its journal row, its effects.

The one pump between the machines (`node.protocol.purchase`, `sale`, `brokerage`) and the
world. For each event: the machine takes it, the journal is written, and only then do the
effects begin, each in a task of its own. After a crash `run` makes the machines again from
the journal, and each is asked what its state still owes the world.
"""

from __future__ import annotations

import contextlib
from typing import Final, assert_never

import trio

from node.chain.errors import ChainUnavailableError
from node.chain.port import (
    Block,
    Call,
    Dispute,
    DisputedEvent,
    EscrowEvent,
    Finalize,
    Fund,
    FundedEvent,
    PaidEvent,
    Refund,
    RefundedEvent,
    Reveal,
    RevealedEvent,
    Withdraw,
    WithdrawnEvent,
)
from node.chronicle import OtherTerms, OurFault, TradeChanged
from node.clock import Clock
from node.journal import Journal, JournalError, TradeRow
from node.observe import Observer
from node.protocol import cbor
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, MarketError
from node.protocol.events import (
    Deliver,
    Disputed,
    Effect,
    FetchGoods,
    Funded,
    GoodsRefused,
    Paid,
    PublishReceipt,
    PurchaseEvent,
    Refunded,
    Revealed,
    SaleEvent,
    SecretSent,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.purchase import Purchase, PurchaseRecord
from node.protocol.sale import SaleRecord
from node.protocol.schema import to_map
from node.protocol.types import Digest
from node.settlement.gathering import Gathering
from node.settlement.reconcile import Doubts, View, agrees, gives_up
from node.settlement.trade import Machine, Record, Trade, machine_of
from node.settlement.treasury import Ending, Treasury
from node.settlement.watch import ChainWatch
from node.settlement.workshop import Unpacking, Workshop

EXPIRY_SECONDS: Final = 0.5
RECONCILE_SECONDS: Final = 30.0
NO_TRADE: Final = Digest(bytes(32))
"""Under this name the journal keeps withdrawals that no open trade asks for."""
TradeEvent = PurchaseEvent | SaleEvent


class TradeDesk:
    """All trades of one node. Make it, `run` it in the node's nursery, then open trades."""

    def __init__(
        self,
        *,
        treasury: Treasury,
        watch: ChainWatch,
        journal: Journal,
        workshop: Workshop,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._treasury = treasury
        self._domain = treasury.escrow.domain
        self._watch = watch
        self._journal = journal
        self._workshop = workshop
        self._unpacking = Unpacking(treasury, workshop, observer)
        self._observer = observer
        self._clock = clock
        self._trades: dict[tuple[Digest, str], Trade] = {}
        self._nursery: trio.Nursery | None = None
        self._doubts = Doubts(watch.rewind)
        self.gathering: Final = Gathering(self.open_trades, clock)
        self.running = trio.Event()
        """Set once every open trade of the journal goes on, and new ones may be opened.

        A node that never heard from its chain waits for that: an event below the block from
        which it is told would be missed, a deposit of its own among them.
        """

    @property
    def turn(self) -> trio.Lock:
        """Held while a transaction of the account is on its way."""
        return self._treasury.turn

    async def run(self) -> None:
        """Resume every open trade of the journal, then follow the chain for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for row in self._journal.trades(open_only=True):
                trade = Trade(machine_of(row))
                self._trades[row.trade_id, row.role] = trade
                before = trade.machine.record
                self._after(trade, trade.machine.resume(self._clock()), before)
            nursery.start_soon(self._expire_for_ever)
            nursery.start_soon(self._reconcile_for_ever)
            nursery.start_soon(self._watch.run, self._tell, self._tick, self._glimpse)
            await self._watch.anchored.wait()
            self.running.set()
            await trio.sleep_forever()

    # ── what the rest of the node asks ──

    def open(self, machine: Machine) -> Trade:
        """Journal a new trade, then begin its effects.

        Raises `LocalProtocolError` if it is known, or the desk is not running yet.
        """
        if not self.running.is_set():
            raise LocalProtocolError("the desk is not running: the chain was not heard yet")
        trade = Trade(machine)
        key = (machine.record.trade_id, trade.side)
        if key in self._trades or self._journal.trade(*key) is not None:
            raise LocalProtocolError(f"trade {key[0].hex()[:16]} is known already as {key[1]}")
        self._trades[key] = trade
        self._after(trade, machine.resume(self._clock()), None)
        return trade

    def find(self, trade_id: Digest, side: str) -> Trade | None:
        """Return an open trade, or one that ended, as the journal has it."""
        trade = self._trades.get((trade_id, side))
        if trade is None:
            row = self._journal.trade(trade_id, side)
            trade = None if row is None or row.pruned else Trade(machine_of(row))
        return trade

    def open_trades(self) -> list[Trade]:
        """Return every trade that is not over."""
        return list(self._trades.values())

    def changed(self, trade: Trade, before: Record) -> None:
        """Journal a change that the caller made to a machine by one of its own methods."""
        self._after(trade, [], before)

    # ── the pump ──

    def _take(self, trade: Trade, event: TradeEvent) -> None:
        before = trade.machine.record
        effects = trade.machine.receive(event, self._clock())  # type: ignore[arg-type]
        self._after(trade, effects, before)

    def _after(self, trade: Trade, effects: list[Effect], before: Record | None) -> None:
        """Save, then send."""
        machine = trade.machine
        state = machine.state.value
        if before is not machine.record:
            self._save(trade)
        if before is None or before.state != state:
            quote = trade.quote
            self._observer.emit(
                TradeChanged(
                    trade_id=machine.record.trade_id,
                    side=trade.side,
                    state=state,
                    price=quote.price if quote else 0,  # type: ignore[arg-type]
                    note=machine.record.note,
                )
            )
        if machine.settled:
            trade.settled.set()
        if machine.over:
            self._trades.pop((machine.record.trade_id, trade.side), None)
        for effect in effects:
            if self._nursery is None:
                raise LocalProtocolError("the desk is not running")
            self._nursery.start_soon(self._perform, trade, effect)

    def _save(self, trade: Trade) -> None:
        """Journal a trade. A node that cannot must stop, whoever asked: it could promise twice."""
        try:
            self._write(trade)
        except JournalError as error:
            if self._nursery is not None:
                self._nursery.start_soon(_stop_for, error)
            raise

    def _write(self, trade: Trade) -> None:
        machine = trade.machine
        self._journal.save_trade(
            TradeRow(
                trade_id=machine.record.trade_id,
                role=trade.side,
                state=machine.state.value,
                over=machine.over,
                record=cbor.encode(to_map(machine.record)),
            )
        )

    async def _perform(self, trade: Trade, effect: Effect) -> None:
        machine = trade.machine
        match effect:
            case FetchGoods():
                assert isinstance(machine, Purchase)
                self._take(trade, await self._fetch_goods(machine.record))
            case Deliver(secret):
                opened = await self._unpacking.deliver(trade, secret)
                assert opened is not None
                self._take(trade, opened)
            case PublishReceipt(receipt):
                await self._workshop.publish_receipt(receipt)
            case Transact(step):
                ending = await self._treasury.carry_out(
                    machine.record.trade_id,
                    step,
                    self._call(trade, step),
                    wanted=lambda: machine.may_send(step, self._clock()),
                    sent=lambda: self._sent(trade, step),
                    gather=lambda: self.gathering.wait(trade, step),
                )
                if step is Step.WITHDRAW and ending is Ending.DONE:
                    self._take(trade, Withdrawn())
            case _:
                assert_never(effect)

    def _sent(self, trade: Trade, step: Step) -> None:
        if step is Step.REVEAL:
            self._take(trade, SecretSent())

    async def _fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        try:
            return await self._workshop.fetch_goods(purchase)
        except JournalError:
            raise
        except MarketError as error:  # a full disk, say; nothing was paid yet
            self._observer.emit(OurFault(during="fetch-goods", reason=str(error)))
            return GoodsRefused(f"by a fault of our own: {error}")

    def _call(self, trade: Trade, step: Step) -> Call:
        record, quote = trade.machine.record, trade.quote
        if step is Step.WITHDRAW:
            return Withdraw(self._treasury.escrow.account)
        if quote is None:
            raise LocalProtocolError(f"{record.trade_id.hex()[:16]} has no quote to {step.value}")
        match step:
            case Step.FUND:
                assert isinstance(record, PurchaseRecord)
                return Fund(quote, record.broker_signature)
            case Step.REVEAL:
                assert isinstance(record, SaleRecord)
                return Reveal(quote, record.secret)
            case Step.FINALIZE:
                return Finalize(quote)
            case Step.REFUND:
                return Refund(quote)
            case Step.DISPUTE:
                assert isinstance(record, PurchaseRecord)
                assert record.evidence is not None
                return Dispute(quote, record.evidence)
            case _:
                assert_never(step)

    # ── the chain ──

    async def _tell(self, event: EscrowEvent) -> None:
        if isinstance(event, WithdrawnEvent):
            return
        trades = [t for (i, _), t in list(self._trades.items()) if i == event.trade_id]
        if trades:
            terms = await self._treasury.ask(lambda escrow: escrow.terms(event.trade_id))
            trades = [trade for trade in trades if self._is_of(trade, terms)]
        if not trades:
            return
        told: TradeEvent
        match event:
            case FundedEvent():
                told = Funded()
            case RevealedEvent():
                trade_id = event.trade_id
                since = await self._treasury.ask(lambda escrow: escrow.trade_state(trade_id).since)
                told = Revealed(Digest(event.secret), since)
            case PaidEvent():
                told = Paid()
            case RefundedEvent():
                told = Refunded()
            case DisputedEvent():
                told = Disputed()
            case _:
                assert_never(event)
        for trade in trades:
            self._take(trade, told)

    async def _glimpse(self, event: EscrowEvent) -> None:
        """Have goods opened whose secret is seen, and not deep yet: see `workshop`."""
        if not isinstance(event, RevealedEvent) or self._nursery is None:
            return
        trade = self._trades.get((event.trade_id, "buyer"))
        quote = None if trade is None else trade.quote
        if trade is None or quote is None or not self._unpacking.may_dispute(trade, event):
            return
        terms = await self._treasury.ask(lambda escrow: escrow.terms(event.trade_id))
        if terms == digest(self._domain, quote)[: len(terms)]:
            trade.glimpsed = True
            self._nursery.start_soon(self._unpacking.dispute_early, trade, Digest(event.secret))

    def _is_of(self, trade: Trade, terms: bytes) -> bool:
        """Whether what was funded is this very quote: a trade id alone does not say so.

        Buyer and broker could sign and fund a second quote of the same id. A secret that is
        told for it would be public, and the transaction that tells it would revert unpaid.
        """
        quote = trade.quote
        if quote is not None and terms == digest(self._domain, quote)[: len(terms)]:
            return True
        self._observer.emit(OtherTerms(trade_id=trade.machine.record.trade_id, side=trade.side))
        return False

    async def _tick(self, block: Block) -> None:
        self._doubts.told_until = block.time
        for trade in list(self._trades.values()):
            if gives_up(trade.machine, block.time):
                view = await self._view(trade)
                if view is View.MISSED:
                    self._doubts.tell_again(trio.current_time())
                if view is not View.AGREES:
                    continue  # this trade alone: the others' clock goes on
            self._take(trade, Tick(block.time))

    async def _view(self, trade: Trade) -> View:
        """Hold what a machine believes against the chain; a trade of other terms is not ours."""
        trade_id = trade.machine.record.trade_id
        on_chain = await self._treasury.ask(lambda escrow: escrow.trade_state(trade_id))
        if agrees(trade.machine, on_chain.state):
            return View.AGREES
        terms = await self._treasury.ask(lambda escrow: escrow.terms(trade_id))
        if not self._is_of(trade, terms):
            return View.AGREES
        return self._doubts.about(on_chain.since)

    async def _reconcile_for_ever(self) -> None:
        """Now and then hold every trade against the chain; twice wrong is no coincidence."""
        doubtful: set[Digest] = set()
        while True:
            await trio.sleep(RECONCILE_SECONDS)
            with contextlib.suppress(ChainUnavailableError):
                wrong = {
                    trade.machine.record.trade_id
                    for trade in list(self._trades.values())
                    if await self._view(trade) is View.MISSED
                }
                if wrong & doubtful:
                    self._doubts.tell_again(trio.current_time())
                if not wrong:
                    self._doubts.settle()
                doubtful = wrong - doubtful
                if not self._trades:
                    await self._collect()

    async def _collect(self) -> None:
        """Draw what is owed for trades that ended here before the other side acted."""
        account = self._treasury.escrow.account
        if await self._treasury.ask(lambda escrow: escrow.credit(account)):
            call = Withdraw(account)
            await self._treasury.carry_out(
                NO_TRADE, Step.WITHDRAW, call, wanted=lambda: not self._trades
            )

    async def _expire_for_ever(self) -> None:
        while True:
            await trio.sleep(EXPIRY_SECONDS)
            for trade in list(self._trades.values()):
                before = trade.machine.record
                self._after(trade, trade.machine.expire(self._clock()), before)


async def _stop_for(error: JournalError) -> None:
    raise error
