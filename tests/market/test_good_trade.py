"""One honest market, end to end: real hosts, real contract, and a ledger that balances."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.lowlevel

from node.agent.agent import Agent
from node.chain.port import EscrowState, PaidEvent
from node.chronicle import RoundPlayed, RoundsPlayed
from node.protocol.messages import GOODS_PROTOCOL, PARAMS_PROTOCOL
from node.protocol.types import Millionths, Wei
from tests.market.market import ETHER, TASK, WINDOWS, Party, eventually, open_market


async def played_out(party: Party) -> None:
    await eventually(lambda: party.heard(RoundsPlayed), f"{party.name}'s rounds", 60)


async def told(party: Party) -> None:
    await eventually(lambda: party.station.book.receipts(TASK), f"the receipt at {party.name}")


async def test_a_learner_buys_what_another_offers_and_everybody_is_paid_to_the_wei(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.join("seller", Agent, rounds=1, min_gain=Millionths(1_000_001))
        buyer = await market.join("buyer", Agent, rounds=1)
        for party in (seller, buyer):
            await played_out(party)
        (played,) = buyer.heard(RoundPlayed)
        assert (played.bought, played.because) == (True, "bought")
        assert not seller.heard(RoundPlayed)[0].bought
        await market.all_over()

        (paid,) = market.events(PaidEvent)
        (row,) = buyer.journal.trades()
        assert (row.trade_id, row.state) == (paid.trade_id, "complete")
        assert seller.states(paid.trade_id)[-1] == "paid"
        assert market.broker.states(paid.trade_id)[-1] == "paid"
        assert market.state(paid.trade_id) is EscrowState.PAID

        # money: what came in went out, and every share is what the quote says
        ledger = await market.drawn_ledger()
        price = paid.to_seller + paid.fee
        assert ledger.balances
        assert (ledger.deposited, ledger.paid_out, ledger.fees) == (price, paid.to_seller, paid.fee)
        assert paid.fee == price * WINDOWS.fee_basis_points // 10_000
        assert 0 < price <= ETHER // 10
        for party, change in ((buyer, -price), (seller, paid.to_seller), (market.broker, paid.fee)):
            gas = sum(
                t.gas or 0 for name in (row.trade_id,) for t in party.journal.transactions(name)
            )
            assert gas > 0
            if party is not market.broker:  # which also paid for the deployment
                gone = 10 * ETHER + change - party.escrow.balance(party.account)
                assert 0 < gone < gas * 10**11

        # bytes: the goods came over libp2p, and so did what the broker measured
        size = seller.station.blobs.ref(next(iter(seller.station.served))).byte_length
        assert buyer.network.counters.bytes_in[GOODS_PROTOCOL] > size
        assert seller.network.counters.bytes_out[GOODS_PROTOCOL] > size
        assert market.broker.network.counters.bytes_in[PARAMS_PROTOCOL] > 2 * size

        # the receipt is price history for everyone
        for party in (buyer, seller, market.broker):
            await told(party)
            (receipt,) = party.station.book.receipts(TASK)
            assert (receipt.trade_id, receipt.price) == (paid.trade_id, price)


async def test_a_mutual_trade_is_two_trades(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        one, two = [await market.join(name, Agent, rounds=2) for name in ("one", "two")]
        for party in (one, two):
            await played_out(party)
        await market.all_over()
        ledger = await market.drawn_ledger()
        assert ledger.balances
        assert len(ledger.states) == len(market.events(PaidEvent)) >= 2
        assert {r.role for p in (one, two) for r in p.journal.trades()} == {"buyer", "seller"}


async def test_no_price_suits_both_and_nothing_is_promised(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.join("seller", Agent, reserve=Wei(ETHER))
        buyer = await market.join("buyer", Agent)
        await seller.offer()
        assert await buyer.buy_or_not(seller) is None
        assert not market.ledger().states
        assert not any(p.journal.trades() for p in market.parties.values())
        await trio.lowlevel.checkpoint()
