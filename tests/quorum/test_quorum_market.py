"""Three brokers, two of whom sign, over real hosts and the real contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_node.appraisal import DrillAppraiser
from broker_node.mechanisms.price import bargain
from broker_node.quorum.receipts import check_signed
from node.agent.agent import Agent
from node.agent.brokers import fails
from node.agent.buyer import NoPrice
from node.chain.port import EscrowState
from node.cli.receipt_file import of_trade
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import SELLER_UNREACHABLE
from node.protocol.quorum import signers_of
from node.protocol.schema import raw_address
from node.protocol.types import ONE, Wei
from node.settlement.trade import Trade
from tests.market.market import ETHER, TASK, WINDOWS, Market, bought, eventually
from tests.quorum.quorum_market import (
    BROKERS,
    Measured,
    OtherRows,
    agreed_gain,
    broker_with,
    join_all,
    lead_figures,
    open_quorum,
)
from tests.quorum.test_median import most_moved

NOISE = 3
"""Millionths by which honest brokers of these tests differ."""


def signers(market: Market, trade: Trade) -> set[str]:
    """Names of the brokers that signed a trade."""
    record = bought(trade)
    found = signers_of(digest(market.domain, record.quote), record.broker_signature)
    assert list(found) == sorted(found, key=raw_address)
    return {name for name in BROKERS if market[name].account in found}


def price_at(market: Market, trade: Trade, gain: int) -> int:
    """What this trade would have cost at another gain: same ask, same mechanism."""
    record = bought(trade)
    ask = market["seller"].shell.seller._asks[record.trade_id, record.offer_digest]
    value = Wei(ETHER * gain // ONE)
    found = bargain(value, ask, fee_basis_points=WINDOWS.fee_basis_points)
    assert found is not None
    return found.price


async def test_two_of_three_brokers_sign_and_the_trade_is_paid(tmp_path: Path) -> None:
    async with open_quorum(tmp_path) as market:
        seller, buyer = [await join_all(market, name) for name in ("seller", "buyer")]
        await seller.offer()
        trade = await buyer.buy(seller)
        by = signers(market, trade)
        assert len(by) == 2
        assert "broker" in by
        await market.see_paid(trade, buyer, seller)
        ledger = await market.drawn_ledger()
        assert ledger.balances
        assert ledger.fees == bought(trade).quote.fee
        assert lead_figures(market) == [DrillAppraiser.GAIN] * 3
        # what was measured can be shown to others
        buyer.journal.remember("market", [market.domain.chain_id, market.domain.escrow])
        (row,) = buyer.journal.trades()
        file = of_trade(buyer.journal, row)
        check_signed(file)
        assert len(file.signers) == 2


async def test_a_broker_that_says_ten_times_the_gain_moves_the_price_by_no_more_than_noise(
    tmp_path: Path,
) -> None:
    shells = {
        "second": broker_with(Measured(times=10)),
        "third": broker_with(Measured(off=NOISE)),
    }
    async with open_quorum(tmp_path, shells) as market:
        seller, buyer = [await join_all(market, name) for name in ("seller", "buyer")]
        await seller.offer()
        trade = await buyer.buy(seller)
        honest = DrillAppraiser.GAIN
        assert lead_figures(market) == [honest, honest + NOISE, 10 * honest]
        assert honest <= agreed_gain(market) <= honest + NOISE
        assert signers(market, trade) == {"broker", "third"}  # the liar agrees with nobody
        moved = abs(bought(trade).quote.price - price_at(market, trade, honest))
        assert moved <= most_moved(NOISE)
        assert price_at(market, trade, 10 * honest) > 5 * bought(trade).quote.price
        await market.see_paid(trade, buyer, seller)
        assert (await market.drawn_ledger()).balances


async def test_one_broker_down_two_still_sign_and_two_down_there_is_no_deal(
    tmp_path: Path,
) -> None:
    async with open_quorum(tmp_path) as market:
        seller, buyer = [await join_all(market, name) for name in ("seller", "buyer")]
        await seller.offer()
        await market["third"].stop()
        trade = await buyer.buy(seller)
        assert signers(market, trade) == {"broker", "second"}
        await market.see_paid(trade, buyer, seller)
        before = await market.drawn_ledger()

        # tried while there was a quorum, and quoted when there is none any more
        await market["second"].stop()
        ours = await buyer._base()
        tried = await buyer.shell.session._try(ours, buyer.sees(seller))
        answer = await buyer.shell.buyer.buy(tried, buyer.shell.desk, most=ETHER)
        assert answer == NoPrice("below-quorum")
        # tried anew, for the broker has forgotten what its quorum said
        with pytest.raises(RemoteProtocolError) as caught:
            await buyer.shell.session._try(ours, buyer.sees(seller))
        assert caught.value.reason == "below-quorum"
        assert "1 of 2 brokers" in caught.value.detail

        after = await market.drawn_ledger()
        assert (after.deposited, after.paid_out) == (before.deposited, before.paid_out)
        assert after.balances
        assert [row.state for row in buyer.journal.trades()] == ["complete"]
        assert market.state(trade) is EscrowState.PAID


async def test_a_broker_with_other_rows_refuses_by_name_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    async with open_quorum(tmp_path, {"second": broker_with(OtherRows())}) as market:
        seller, buyer = [await join_all(market, name) for name in ("seller", "buyer")]
        await seller.offer()
        trade = await buyer.buy(seller)
        assert signers(market, trade) == {"broker", "third"}
        assert market.broker.blamed("Replay") == ["another-validation-set"]


async def test_an_agent_shows_its_weights_to_no_broker_that_it_did_not_join_by(
    tmp_path: Path,
) -> None:
    async with open_quorum(tmp_path) as market:
        seller = await market.join("seller", Agent)
        buyer = await join_all(market, "buyer")
        await seller.offer()
        with pytest.raises(RemoteProtocolError) as caught:
            await buyer.buy(seller)
        # it is the seller that keeps its weights back: no broker is passed over for it
        assert caught.value.reason == SELLER_UNREACHABLE
        assert set(market.broker.blamed("Replay")) == {SELLER_UNREACHABLE}
        assert not fails(caught.value)


async def test_brokers_that_are_restarted_between_trial_and_quote_sign_all_the_same(
    tmp_path: Path,
) -> None:
    async with open_quorum(tmp_path) as market:
        seller, buyer = [await join_all(market, name) for name in ("seller", "buyer")]
        await seller.offer()
        ours = await buyer._base()
        await eventually(lambda: buyer.sees(seller), "the offer")
        tried = await buyer.shell.session._try(ours, buyer.sees(seller))
        await market["third"].stop()
        await restarted(market, "second")  # it has forgotten what it agreed to
        trade = await buyer.shell.buyer.buy(tried, buyer.shell.desk, most=ETHER)
        assert signers(market, trade) == {"broker", "second"}
        await market.see_paid(trade, buyer, seller)

        await restarted(market, "broker")  # which knows of no trial any more
        again = await buyer.buy(seller, ours)
        assert signers(market, again) == {"broker", "second"}
        await market.see_paid(again, buyer, seller)
        assert (await market.drawn_ledger()).balances


async def restarted(market: Market, name: str) -> None:
    """Have a broker begin again, and wait until lead and second know of each other."""
    party = market[name]
    await party.stop()
    await party.start()
    lead, second = market.broker, market["second"]

    def know_each_other() -> bool:
        return (
            second.peer_id in lead.network.connected()
            and lead.peer_id in second.network.connected()
            and lead.station.book.notice_of(second.peer_id, TASK, market.clock()) is not None
        )

    await eventually(know_each_other, f"{name} again", 30)


async def test_brokers_know_each_others_seeds_before_there_is_anything_to_try(
    tmp_path: Path,
) -> None:
    async with open_quorum(tmp_path) as market:
        root = DrillAppraiser.validation_root.hex()
        lead = market.broker
        for name in BROKERS[1:]:
            (_, said) = market[name].station.own_notice() or pytest.fail("no notice")
            fact = f"seed of {said.broker} {TASK} {root}"
            await eventually(lambda fact=fact: lead.journal.recall(fact), f"the seed of {name}")  # type: ignore[misc]
            assert lead.journal.recall(fact) == said.seed
