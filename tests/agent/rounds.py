"""Rounds as a restart finds them: a session on a journal, without market or network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.agent.progress import Progress
from node.agent.session import Session
from node.journal import Journal, TradeRow
from node.observe import Observer
from node.params.recipe import NO_ALIGNMENT, apply_recipe
from node.params.store import BlobStore
from node.protocol import cbor
from node.protocol.purchase import Purchase, PurchaseRecord, PurchaseState
from node.protocol.schema import to_map
from node.protocol.types import Digest, Millionths, UnixTime
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from tests.market.market import architecture, weights
from tests.protocol.cast import NOW, purchase_record
from tests.settlement.fake_chain import FakeChain, FakeEscrow
from tests.settlement.trades import BUYER, Bench


def clock() -> UnixTime:
    return NOW


def session_on(journal: Journal) -> Session:
    """Make a session anew from a journal."""
    escrow, observer = FakeEscrow(FakeChain(clock), BUYER), Observer()
    nobody: Any = None
    (_, _, path), *_ = journal._db.execute("PRAGMA database_list")
    station: Any = SimpleNamespace(
        journal=journal,
        observer=observer,
        blobs=BlobStore(Path(path).with_name("blobs")),
        forget_blobs=lambda _: None,
    )
    desk = TradeDesk(
        treasury=Treasury(escrow, journal, observer),
        watch=ChainWatch(escrow, journal, observer, confirmations=0),
        journal=journal,
        workshop=Bench(),
        observer=observer,
        clock=clock,
    )
    others: dict[str, Any] = dict.fromkeys(("buyer", "seller", "purse", "settings"))
    return Session(station=station, desk=desk, brokers=nobody, **others)


def save(journal: Journal, record: PurchaseRecord) -> None:
    journal.save_trade(
        TradeRow(
            trade_id=record.trade_id,
            role="buyer",
            state=record.state,
            over=Purchase(record).over,
            record=cbor.encode(to_map(record)),
        )
    )


def purchase_on(root: Digest, state: PurchaseState, number: int) -> PurchaseRecord:
    """A purchase that was tried on these weights of the market's one architecture."""
    record = purchase_record(state)
    return dataclasses.replace(
        record,
        quote=dataclasses.replace(record.quote, trade_id=Digest(bytes([number]) * 32)),
        evaluation=dataclasses.replace(
            record.evaluation, base_root=root, architecture=architecture().text
        ),
    )


def heard_by(session: Session) -> list[Any]:
    events: list[Any] = []
    session._station.observer.subscribe(lambda told: events.append(told.event))
    return events


def delivered_round(journal: Journal) -> PurchaseRecord:
    """Leave a round that has bought and is not over, with all its blobs in the store."""
    session, recipe = session_on(journal), NO_ALIGNMENT.with_alpha(Millionths(250_000))
    base, sold = weights("offered"), weights("sold")
    merged = apply_recipe(architecture(), base, sold, recipe)
    roots = [session._keep(tensors).root for tensors in (base, sold, merged)]
    record = purchase_on(roots[0], PurchaseState.DELIVERED, 1)
    record = dataclasses.replace(
        record,
        recipe=recipe.encode(),
        quote=dataclasses.replace(record.quote, offer_root=roots[1]),
        evaluation=dataclasses.replace(record.evaluation, merged_root=roots[2]),
    )
    session._remember(Progress(2, 7, roots[0], True))
    save(journal, record)
    return record
