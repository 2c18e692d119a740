"""Agents of several strategies meet in a real market: what they say is what is signed and sold."""

from __future__ import annotations

from pathlib import Path

from broker_node.mechanisms.price import bargain
from node.agent.agent import Agent
from node.agent.strategies.lemon import Lemon, spoilt
from node.agent.strategies.replicator import Replicator
from node.agent.strategies.shading import Shading
from node.agent.strategies.truthful import Truthful
from node.agent.strategies.wash import TIMES, WashTrader
from node.chronicle import AskNamed, BidNamed, OtherGoodsOffered, TrialDone
from node.params.encoding import weights_root
from node.protocol.types import Millionths, Wei
from tests.market.market import ETHER, WINDOWS, architecture, bought, open_market, weights

GAIN = 100_000
"""What every trial of a drill finds, in millionths."""
WORTH = ETHER // 10


async def test_a_shaded_bid_meets_a_true_ask_and_both_are_in_the_logs(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller = await market.join("seller", Agent, strategy=Truthful())
        buyer = await market.join("buyer", Agent, strategy=Shading(Millionths(250_000)))
        name, offer = await seller.offer()
        trade = await buyer.buy(seller)
        await market.see_paid(trade, buyer, seller)
        (bid,), (ask,), (trial,) = (
            buyer.heard(BidNamed), seller.heard(AskNamed), buyer.heard(TrialDone)
        )  # fmt: skip
        assert (bid.worth, bid.bid, bid.most) == (WORTH, WORTH * 3 // 4, ETHER)
        assert (ask.ask, ask.cost, ask.offer_digest) == (offer.reserve, offer.reserve, name)
        assert trial.offer_digest == name
        quote = bought(trade).quote
        assert bid.trade_id == ask.trade_id == quote.trade_id
        deal = bargain(Wei(bid.bid), Wei(ask.ask), fee_basis_points=WINDOWS.fee_basis_points)
        assert deal is not None
        assert quote.price == deal.price


async def test_a_lemon_sells_spoilt_weights_and_buys_for_its_own(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        lemon = await market.join("lemon", Agent, strategy=Lemon())
        other = await market.join("other", Agent)
        await lemon.offer()
        own = weights("lemon")
        root = weights_root(own)
        shown = weights_root(spoilt(own, draw=root))
        assert lemon.shell.session.progress.root == root
        trade = await other.buy(lemon)
        await market.see_paid(trade, other, lemon)
        assert bought(trade).quote.offer_root == shown != root
        (told,) = lemon.heard(OtherGoodsOffered)
        assert (told.kind, told.offer_digest) == ("lemon", bought(trade).offer_digest)
        step = await lemon.shell.session.step()
        assert step.bought
        (purchase,) = [
            t.machine.record for t in lemon.shell.desk.open_trades() if t.side == "buyer"
        ] or [lemon.shell.session._giving().record]
        assert purchase.evaluation.base_root == root
        assert other.heard(OtherGoodsOffered) == []


async def test_a_replicator_offers_its_own_until_it_can_sell_what_it_bought(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        maker = await market.join("maker", Agent)
        replicator = await market.join("replicator", Agent, strategy=Replicator())
        third = await market.join("third", Agent)
        await maker.offer()
        _, first = await replicator.offer()
        assert first.weights_root == replicator.shell.session.progress.root
        step = await replicator.shell.session.step()
        assert step.bought
        adopted = await replicator.shell.session.adopt()
        assert weights_root(adopted) == weights_root(weights("maker"))  # in a drill α is 1
        _, second = await replicator.offer(weights("trained on"))
        own, copied = replicator.shell.session.progress.root, weights_root(weights("maker"))
        assert second.weights_root not in (own, copied, first.weights_root)
        (told,) = replicator.heard(OtherGoodsOffered)
        assert (told.kind, told.copied) == ("replica", step.trade_id)
        trade = await third.buy(replicator)
        await market.see_paid(trade, third, replicator)
        tensors = third.shell.session.load(architecture().text, bought(trade).quote.offer_root)
        apart = (tensors["noise"] - weights("maker")["noise"]).abs().max()
        assert 0 < apart < 0.1


async def test_wash_traders_find_each_other_among_others_and_overbid(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        honest = await market.join("honest", Agent)
        one = await market.join("one", Agent, strategy=WashTrader("ours"), offers_per_round=2)
        two = await market.join("two", Agent, strategy=WashTrader("ours"))
        for party in (two, honest, one):
            await party.offer()
        step = await one.shell.session.step()
        assert step.bought
        assert step.seller == two.peer_id
        (bid,) = one.heard(BidNamed)
        assert (bid.worth, bid.bid) == (WORTH, TIMES * WORTH)
        assert step.price is not None
        assert step.price > WORTH
        await market.see_paid(step.trade_id, one, two)


def test_every_trial_of_a_drill_is_worth_as_much() -> None:
    assert WORTH == ETHER * GAIN // 1_000_000
