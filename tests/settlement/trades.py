"""What the settlement's tests share: trades to settle, and nodes that can die and come back."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from node.chain.port import Fund
from node.journal import Journal
from node.observe import Event, Observer
from node.observe.observer import Record
from node.params.errors import StoreError
from node.protocol.brokerage import BrokerageRecord, BrokerageState
from node.protocol.dispute import Evidence
from node.protocol.evaluation import Evaluation
from node.protocol.events import BadGoods, Delivered, GoodsVerified, PurchaseEvent, Step
from node.protocol.messages import Deal
from node.protocol.purchase import PurchaseRecord, PurchaseState
from node.protocol.quote import Quote, trade_id_of
from node.protocol.sale import SaleRecord, SaleState
from node.protocol.signing import address_of
from node.protocol.types import NO_ADDRESS, Address, Digest, Millionths, PeerId, UnixTime, Wei
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Ending, Treasury
from node.settlement.watch import ChainWatch
from tests.protocol.bad_goods import Goods, bad_goods
from tests.settlement.fake_chain import ETHER, FakeChain, FakeEscrow

START = 1_700_000_000
BUYER, SELLER, BROKER = (address_of(bytes([n]) * 32) for n in (1, 2, 3))
OFFER = Digest(bytes(32))
FUND_BY, REVEAL_BY, GRACE, DISPUTE_WINDOW = 30, 60, 10, 5


def wall() -> UnixTime:
    """The wall clock of a test: trio's own, so that it jumps with it."""
    return UnixTime(START + int(trio.current_time() - _began()))


def _began() -> float:
    return _BEGAN.get()


_BEGAN = trio.lowlevel.RunVar[float]("began")


def begin() -> None:
    """Let the wall clock of this test start now."""
    _BEGAN.set(trio.current_time())


def secret_of(number: int) -> Digest:
    return Digest(bytes([number + 100]) * 32)


def goods_of(number: int = 0) -> Goods:
    """Goods of which leaf 1 is bad; a bench that says nothing of it takes them to be good."""
    return bad_goods(secret_of(number), trade_id_of(BUYER, SELLER, OFFER, nonce_of(number)))


def nonce_of(number: int) -> Digest:
    return Digest(bytes([number]) * 32)


@functools.cache
def quote_of(number: int = 0, *, price: int = ETHER, fee: int = ETHER // 100) -> Quote:
    terms = Quote(
        trade_id=trade_id_of(BUYER, SELLER, OFFER, nonce_of(number)),
        buyer=BUYER,
        seller=SELLER,
        encryptor=SELLER,
        asset=NO_ADDRESS,
        price=Wei(price),
        fee=Wei(fee),
        fee_recipient=BROKER,
        offer_root=Digest(b"\x0a" * 32),
        goods_root=Digest(b"\x0b" * 32),
        leaf_count=1,
        byte_length=1_024,
        secret_commitment=Digest(hashlib.sha256(secret_of(number)).digest()),
        dh_commitment=Digest(b"\x0c" * 32),
        fund_by=UnixTime(START + FUND_BY),
        reveal_by=UnixTime(START + REVEAL_BY),
        grace=GRACE,
        dispute_window=DISPUTE_WINDOW,
        receipt_hash=Digest(b"\x0d" * 32),
    )
    return goods_of(number).terms(terms)


def long_quote_of(number: int = 0, *, price: int = ETHER) -> Quote:
    """A trade that can be funded for a day."""
    return dataclasses.replace(
        quote_of(number, price=price, fee=1),
        fund_by=UnixTime(START + 86_400),
        reveal_by=UnixTime(START + 2 * 86_400),
    )


EVALUATION = Evaluation(
    task="test", architecture="{}", method="none", base_root=Digest(b"\x01" * 32),
    sold_root=Digest(b"\x0a" * 32), merged_root=Digest(b"\x02" * 32),
    recipe_hash=Digest(b"\x03" * 32), alpha=Millionths(1), notice_digest=Digest(b"\x04" * 32),
    validation_root=Digest(b"\x05" * 32), seed=Digest(b"\x06" * 32), choice_rows=1, score_rows=1,
    loss_before=2, loss_after=1, gain=Millionths(500_000), bound=Millionths(400_000),
    code_version="test",
)  # fmt: skip


def purchase(quote: Quote) -> PurchaseRecord:
    return PurchaseRecord(
        state=PurchaseState.FETCHING.value, note="", quote=quote, broker_signature=b"b" * 65,
        seller_signature=b"s" * 65, offer_digest=Digest(bytes(32)), seller_peer=PeerId("seller"),
        seller_addresses=(), seller_key=Digest(b"\x21" * 32), private_key=Digest(b"\x22" * 32),
        evaluation=EVALUATION, recipe=b"recipe", receipt=b"receipt", secret=None, paid=False,
    )  # fmt: skip


def sale(quote: Quote, number: int = 0) -> SaleRecord:
    return SaleRecord(
        state=SaleState.COUNTERSIGNED.value, note="", trade_id=quote.trade_id,
        offer_digest=Digest(bytes(32)), offer_root=quote.offer_root, buyer=quote.buyer,
        buyer_key=Digest(b"\x23" * 32), ask=Wei(1), private_key=Digest(b"\x24" * 32),
        secret=secret_of(number), goods_root=quote.goods_root, leaf_count=1, byte_length=1_024,
        prepared_until=UnixTime(START + FUND_BY), quote=quote, broker_signature=b"b" * 65,
        signature=b"s" * 65, receipt=b"receipt", revealed_at=UnixTime(0),
    )  # fmt: skip


def brokerage(quote: Quote) -> BrokerageRecord:
    return BrokerageRecord(
        state=BrokerageState.QUOTED.value,
        note="",
        deal=Deal(
            quote=quote, broker_signature=b"b" * 65, seller_signature=b"s" * 65,
            seller_key=Digest(b"\x21" * 32), receipt=b"receipt", evaluation=EVALUATION,
            recipe=b"recipe",
        ),
    )  # fmt: skip


class DeathError(Exception):
    """The process ends here."""


@dataclass
class Bench:
    """The workshop of a test: goods arrive and open, after so many seconds."""

    fetching: float = 0.5
    delivering: float = 0.5
    evidence: Evidence | None = None
    """Of bad goods."""
    full: int = 0
    """How often the disk is full."""
    published: list[bytes] = field(default_factory=list)
    delivered: list[bytes] = field(default_factory=list)

    async def fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        await trio.sleep(self.fetching)
        self._write()
        return GoodsVerified()

    async def deliver(self, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        await trio.sleep(self.delivering)
        self._write()
        self.delivered.append(secret)
        return Delivered() if self.evidence is None else BadGoods(self.evidence)

    def _write(self) -> None:
        if self.full:
            self.full -= 1
            raise StoreError("disk-full", "no space is left")

    async def publish_receipt(self, receipt: bytes) -> None:
        self.published.append(receipt)


class Node:
    """One node of a settlement. What it knows after a death is its journal."""

    def __init__(
        self, folder: Path, chain: FakeChain, account: Address, *, confirmations: int = 0
    ) -> None:
        self.path = folder / f"{account}.db"
        self.escrow = FakeEscrow(chain, account)
        self.bench = Bench()
        self.confirmations = confirmations
        self.heard: list[Event] = []
        self.on_event: Callable[[Event], None] = lambda _: None
        self.deaths = 0
        self.wake()

    def wake(self) -> None:
        """Make everything anew from the journal, as a process that starts does."""
        self.journal = Journal(self.path)
        observer = Observer()
        observer.subscribe(self._hear)
        self.treasury = Treasury(self.escrow, self.journal, observer)
        self.watch = ChainWatch(
            self.escrow, self.journal, observer, confirmations=self.confirmations
        )
        self.desk = TradeDesk(
            treasury=self.treasury,
            watch=self.watch,
            journal=self.journal,
            workshop=self.bench,
            observer=observer,
            clock=wall,
        )

    def _hear(self, record: Record) -> None:
        self.heard.append(record.event)
        self.on_event(record.event)

    def told(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.heard if isinstance(event, kind)]

    def state(self, quote: Quote) -> str | None:
        side = {BUYER: "buyer", SELLER: "seller", BROKER: "broker"}[self.escrow.account]
        row = self.journal.trade(quote.trade_id, side)
        return None if row is None else row.state

    def over(self) -> bool:
        return not self.journal.trades(open_only=True)

    async def live(self) -> None:
        """Run for ever; each time it dies it is made anew from its journal."""
        while True:
            try:
                await self.desk.run()
            except* DeathError:
                self.deaths += 1
                self.journal.close()
                self.wake()


@contextmanager
def only_died() -> Iterator[None]:
    """Swallow deaths, and nothing else."""
    try:
        yield
    except* DeathError:
        pass


def always() -> bool:
    return True


async def fund(node: Node, quote: Quote, wanted: Callable[[], bool] = always) -> Ending:
    return await node.treasury.carry_out(
        quote.trade_id, Step.FUND, Fund(quote, b"b" * 65), wanted=wanted
    )
