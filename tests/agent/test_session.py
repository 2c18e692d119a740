"""A buyer pays for one thing a round, loses nothing that it bought, and nothing by a restart."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import trio

from node.agent import progress as journalled
from node.agent.agent import Agent
from node.agent.progress import Progress
from node.agent.session import Session
from node.chronicle import LegEnded, RoundPlayed, RoundsPlayed, TradeChanged
from node.devnet.meeting import Meeting
from node.journal import Journal, JournalError
from node.params.encoding import encode_tensors
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.types import Digest, Millionths
from tests.agent.rounds import (
    delivered_round,
    heard_by,
    purchase_on,
    save,
    session_on,
)
from tests.market.market import (
    Market,
    Party,
    architecture,
    eventually,
    open_market,
    weights,
)
from tests.protocol.cast import OFFER_DIGEST, purchase_record


@pytest.mark.parametrize("state", list(PurchaseState))
async def test_an_offer_that_was_bought_before_a_restart_is_not_tried_again(
    journal: Journal, state: PurchaseState
) -> None:
    record = purchase_record(state)
    assert session_on(journal)._tried == set()
    save(journal, record)
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


async def test_a_model_without_the_layers_that_are_sold_is_refused_before_it_is_remembered(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        buyer = await market.join("buyer", Driven, layers=(0,))
        session: Session = buyer.shell.session
        with pytest.raises(ArchitectureError, match="sold whole"):
            await session.offer(architecture(), weights("buyer"))
        assert session.progress is None
        assert journalled.recall(buyer.journal) is None


async def test_nothing_is_tried_on_an_older_offer_once_another_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> int:
        raise JournalError("the disk is full")

    async with open_market(tmp_path) as market:
        buyer = await market.join("buyer", Driven, round_patience=0.1)
        session: Session = buyer.shell.session
        await session.offer(architecture(), weights("first"))
        with monkeypatch.context() as patched:
            patched.setattr(buyer.journal, "next_nonce", breaks)
            with pytest.raises(JournalError):
                await session.offer(architecture(), weights("second"))
        with pytest.raises(LocalProtocolError, match="offer first"):
            await session.step()
        with pytest.raises(LocalProtocolError, match="no round to end"):
            await session.adopt()
        await session.offer(architecture())  # what was remembered
        assert (await session.step()).because == "no-offer"
        kept = await session.adopt()
        assert all(torch.equal(kept[n], own) for n, own in weights("second").items())


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

        async def never(*_: Any) -> None:
            await trio.sleep_forever()

        with monkeypatch.context() as patched:
            # cut off before it is noted, and nothing comes after
            patched.setattr(Session, "end", lambda _: patched.setattr(Session, "offer", never))
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
    save(journal, record)
    session = session_on(journal)
    events: list[Any] = []
    session._station.observer.subscribe(lambda told: events.append(told.event))
    session._remember(Progress(2, 7, record.evaluation.base_root, True))
    assert session_on(journal).progress == session.progress
    assert await session.take_up() is None
    (leg,) = events
    assert (leg.round, leg.because, leg.trade_id) == (3, "abandoned", record.trade_id)
    assert session.progress is not None
    assert session.progress.offered


async def test_of_a_round_that_was_cut_off_twice_the_later_purchase_is_found(
    journal: Journal,
) -> None:
    """One came to nothing; the process was killed as soon as the other was in the journal."""
    session = session_on(journal)
    root = session._station.blobs.put_bytes(encode_tensors(weights("offered"))).root
    merged = session._station.blobs.put_bytes(encode_tensors(weights("merged"))).root
    session._remember(Progress(2, 7, root, True))
    save(journal, purchase_on(root, PurchaseState.ABANDONED, 1))
    assert await session.take_up() is None
    delivered = purchase_on(root, PurchaseState.DELIVERED, 2)
    measured = dataclasses.replace(delivered.evaluation, merged_root=merged)
    save(journal, dataclasses.replace(delivered, evaluation=measured))
    step = await session_on(journal).take_up()
    assert step is not None
    assert (step.round, step.trade_id) == (3, delivered.trade_id)
    adopted = await session_on(journal).adopt()
    assert all(torch.equal(adopted[n], tensor) for n, tensor in weights("merged").items())


async def test_one_process_tells_once_what_a_purchase_came_to(journal: Journal) -> None:
    delivered_round(journal)
    session = session_on(journal)
    events = heard_by(session)
    steps = [await session.take_up() for _ in range(2)]
    assert steps[0] == steps[1] is not None
    assert [type(event) for event in events] == [LegEnded]
    restarted = session_on(journal)
    events = heard_by(restarted)
    await restarted.take_up()
    assert [type(event) for event in events] == [LegEnded]


async def test_what_a_step_has_told_is_not_told_again_by_whoever_takes_its_round_up(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await rival(market)
        buyer = await market.join("buyer", Driven)
        session: Session = buyer.shell.session
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert await session.take_up() == step
        assert len(buyer.heard(LegEnded)) == 1


async def test_a_round_whose_purchase_came_to_nothing_ends_with_what_it_offered(
    journal: Journal,
) -> None:
    session = session_on(journal)
    root = session._station.blobs.put_bytes(encode_tensors(weights("offered"))).root
    session._remember(Progress(2, 7, root, True))
    save(journal, purchase_on(root, PurchaseState.REFUNDED, 1))
    kept = await session.adopt()
    assert all(torch.equal(kept[n], tensor) for n, tensor in weights("offered").items())
    assert session.progress == Progress(3, 7, root, False)


@pytest.mark.parametrize(
    ("more", "earlier"),
    [([], ()), ([b""], ()), ([bytes([2]) * 32], (Digest(bytes([1]) * 32),))],
    ids=["before purchases were noted", "no purchase", "a purchase"],
)
def test_what_older_journals_say_of_a_round_is_read(
    more: list[bytes], earlier: tuple[Digest, ...], journal: Journal
) -> None:
    root = Digest(bytes(32))
    for number in (1, 2):
        save(journal, purchase_on(root, PurchaseState.COMPLETE, number))
    journal.remember("progress", [3, 8, root, True, *more])
    assert session_on(journal).progress == Progress(3, 8, root, True, earlier)


# ── a loop of one's own, after a restart ──


class Driven(Agent):
    """An agent whose rounds are those of whoever holds its session."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "trainer": None})


async def test_nothing_is_offered_over_what_a_step_bought_that_a_restart_cut_off(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await rival(market)
        buyer = await market.join("buyer", Driven)
        await buyer.shell.session.offer(architecture(), weights("buyer"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(buyer.shell.session.step)
            await eventually(lambda: buyer.heard(TradeChanged), "the purchase")
            nursery.cancel_scope.cancel()
        await buyer.stop()
        await buyer.start()
        session: Session = buyer.shell.session
        for _ in range(2):
            with pytest.raises(LocalProtocolError, match="adopt first"):
                await session.offer(architecture(), weights("trained anew"))
        merged = await session.adopt()
        (trade,) = session._desk.open_trades()
        assert isinstance(trade.machine, Purchase)
        assert session.progress is not None
        assert session.progress.root == trade.machine.record.evaluation.merged_root
        assert session.progress.round == 1
        assert not all(torch.equal(merged[n], own) for n, own in weights("buyer").items())
        await session.offer(architecture(), merged)


async def test_what_an_earlier_round_bought_on_the_same_weights_is_not_this_rounds(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await rival(market)
        buyer = await market.join("buyer", Driven, round_patience=1)
        session: Session = buyer.shell.session
        for bought in (True, False):  # the loop refuses the merge, and offers what it had
            await session.offer(architecture(), weights("buyer"))
            assert (await session.step()).bought is bought
            if bought:
                await session.adopt()
        told = len(buyer.heard(LegEnded))
        await buyer.stop()
        await buyer.start()
        session = buyer.shell.session
        assert await session.take_up() is None
        assert len(buyer.heard(LegEnded)) == told
        await session.offer(architecture(), weights("trained on"))


# ── rounds that agents meet in ──


async def test_who_had_bought_when_a_round_was_cut_off_is_there_for_whoever_had_not(
    tmp_path: Path,
) -> None:
    names = ("early", "late")
    room = [Meeting(names)]
    cut_off = [True]

    async def never(*_: Any, **__: Any) -> Any:
        await trio.sleep_forever()

    class Meets(Agent):
        def __init__(self, name: str, **settings: Any) -> None:
            super().__init__(**settings, meet=functools.partial(room[0].arrive, name))
            if name == "late" and cut_off:
                self.buyer.buy = never  # type: ignore[method-assign]

    async with open_market(tmp_path) as market:
        for name in names:
            init = functools.partialmethod(Meets.__init__, name)
            await market.join(name, type(name, (Meets,), {"__init__": init}), rounds=2)
        early, late = (market[name] for name in names)
        await eventually(
            lambda: any(e.state == "delivered" for e in early.heard(TradeChanged)), "a delivery"
        )
        offered = early.shell.session.progress.root
        for party in (early, late):
            await party.stop()
        assert not early.heard(RoundPlayed)
        cut_off.clear()
        room[0] = Meeting(names)
        for party in (early, late):
            await party.start()
        await eventually(lambda: late.heard(RoundsPlayed), "the last round", seconds=60)
        purchases = journalled.purchases(late.journal)
        assert [p.record.evaluation.sold_root == offered for p in purchases] == [True, False]
        assert [played.round for played in early.heard(RoundPlayed)][:1] == [1]
