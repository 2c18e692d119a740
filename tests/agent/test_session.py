"""A buyer pays for one thing a round, loses nothing that it bought, and nothing by a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio

from node.agent.agent import Agent
from node.agent.progress import Progress
from node.agent.session import Session
from node.chronicle import LegEnded, RoundPlayed, RoundsPlayed, TradeChanged
from node.journal import Journal, TradeRow
from node.observe import Observer
from node.protocol import cbor
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.schema import to_map
from node.protocol.types import Digest, Millionths, UnixTime
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from tests.market.market import (
    Market,
    Party,
    architecture,
    eventually,
    open_market,
    weights,
)
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
    station: Any = SimpleNamespace(journal=journal, observer=observer)
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


# ── one step on each offer, and no offer over what was bought ──


async def rival(market: Market, **settings: Any) -> Party:
    """Have somebody join whose offer is worth buying, and who buys nothing."""
    nothing = Millionths(1_000_001)
    return await market.join("seller", Agent, rounds=1, min_gain=nothing, **settings)


async def test_what_a_step_bought_is_adopted_before_anything_else_is_offered(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await rival(market)
        buyer = await market.join("buyer", Agent)
        session: Session = buyer.shell.session
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert step.bought
        with pytest.raises(LocalProtocolError, match="adopt first"):
            await session.offer(architecture(), weights("trained on"))
        with pytest.raises(LocalProtocolError, match="offer first"):
            await session.step()
        merged = await session.adopt()
        assert not all(torch.equal(merged[n], own) for n, own in weights("buyer").items())
        await session.offer(architecture(), merged)
        assert len(buyer.journal.trades(role="buyer")) == 1


async def test_an_offer_has_one_step_and_a_round_that_bought_nothing_may_offer_again(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        alone = await market.join("buyer", Agent, round_patience=0.1)
        session: Session = alone.shell.session
        for name in ("first", "second"):
            await session.offer(architecture(), weights(name))
            assert (await session.step()).because == "no-offer"
            with pytest.raises(LocalProtocolError, match="offer first"):
                await session.step()
        kept = await session.adopt()
        assert all(torch.equal(kept[n], own) for n, own in weights("second").items())
        with pytest.raises(LocalProtocolError, match="no round to end"):
            await session.adopt()


# ── a round that a restart cut off ──


async def test_a_purchase_that_a_restart_cut_off_ends_its_round_as_any_other(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await rival(market)
        buyer = await market.join("buyer", Agent, rounds=1)
        await eventually(lambda: buyer.heard(TradeChanged), "the purchase")
        await buyer.stop()
        assert not buyer.heard(LegEnded)
        await buyer.start()
        await eventually(lambda: buyer.heard(RoundsPlayed), "the buyer's round")
        (trade,) = buyer.journal.trades(role="buyer")
        (leg,), (played,) = buyer.heard(LegEnded), buyer.heard(RoundPlayed)
        assert (leg.round, leg.because, leg.trade_id) == (1, "bought", trade.trade_id)
        assert leg.seller == market["seller"].peer_id
        assert None not in (leg.price, leg.alpha, leg.gain, leg.bound)
        assert (played.round, played.epoch, played.bought) == (1, 1, True)
        assert buyer.shell.session.progress.round == 1


async def test_a_round_that_ended_but_was_not_noted_is_told_of_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path) as market:
        await rival(market)

        async def never(_: Session) -> None:
            await trio.sleep_forever()

        with monkeypatch.context() as patched:
            patched.setattr(Session, "adopt", never)
            buyer = await market.join("buyer", Agent, rounds=1)
            await eventually(lambda: buyer.heard(RoundPlayed), "the round")
            await buyer.stop()
        await buyer.start()
        await eventually(lambda: buyer.heard(RoundsPlayed), "the buyer's last round")
        before, after = buyer.heard(RoundPlayed)
        assert before == after
        assert buyer.heard(LegEnded)[0] == buyer.heard(LegEnded)[1]


async def test_a_round_whose_purchase_came_to_nothing_before_a_restart_is_played_again(
    journal: Journal,
) -> None:
    record = purchase_record(PurchaseState.ABANDONED)
    journal.save_trade(
        TradeRow(
            trade_id=record.trade_id, role="buyer", state="abandoned", over=True,
            record=cbor.encode(to_map(record)),
        )
    )  # fmt: skip
    session = session_on(journal)
    events: list[Any] = []
    session._station.observer.subscribe(lambda told: events.append(told.event))
    session._remember(Progress(2, 7, record.evaluation.base_root, True, record.trade_id))
    assert session_on(journal).progress == session.progress
    assert await session.take_up() is None
    (leg,) = events
    assert (leg.round, leg.because, leg.trade_id) == (3, "abandoned", record.trade_id)
    assert session.progress is not None
    assert session.progress.offered


def test_a_journal_of_before_purchases_were_noted_is_read(journal: Journal) -> None:
    journal.remember("progress", [3, 8, bytes(32), True])
    assert session_on(journal).progress == Progress(3, 8, Digest(bytes(32)), True)
