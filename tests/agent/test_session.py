"""A buyer that was restarted pays for nothing a second time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.agent.session import Session
from node.journal import Journal, TradeRow
from node.observe import Observer
from node.protocol import cbor
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.schema import to_map
from node.protocol.types import UnixTime
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from tests.protocol.cast import NOW, OFFER_DIGEST, purchase_record
from tests.settlement.fake_chain import FakeChain, FakeEscrow
from tests.settlement.trades import BUYER, Bench


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def clock() -> UnixTime:
    return NOW


def session_on(journal: Journal) -> Session:
    """Make a session anew from a journal."""
    escrow, observer = FakeEscrow(FakeChain(clock), BUYER), Observer()
    nobody: Any = None
    station: Any = SimpleNamespace(journal=journal)
    desk = TradeDesk(
        treasury=Treasury(escrow, journal, observer),
        watch=ChainWatch(escrow, journal, observer, confirmations=0),
        journal=journal,
        workshop=Bench(),
        observer=observer,
        clock=clock,
    )
    others: dict[str, Any] = dict.fromkeys(("buyer", "seller", "purse", "settings"))
    return Session(station=station, desk=desk, broker=nobody, **others)


@pytest.mark.parametrize("state", list(PurchaseState))
async def test_an_offer_that_was_bought_before_a_restart_is_not_tried_again(
    journal: Journal, state: PurchaseState
) -> None:
    record = purchase_record(state)
    assert session_on(journal)._tried == set()
    journal.save_trade(
        TradeRow(
            trade_id=record.trade_id,
            role="buyer",
            state=state.value,
            over=Purchase(record).over,
            record=cbor.encode(to_map(record)),
        )
    )
    nothing = state in {PurchaseState.ABANDONED, PurchaseState.REFUNDED}
    assert session_on(journal)._tried == (set() if nothing else {OFFER_DIGEST})
