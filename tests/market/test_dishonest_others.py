"""Brokers and buyers that cheat or vanish, and a chain that is away for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio

from broker_node.negotiation import Negotiator, Tried
from broker_node.service import Broker
from node.agent.agent import Agent
from node.chain.port import Call, EscrowState, Reveal
from node.protocol.book import body_of
from node.protocol.brokerage import BrokerageRecord
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.events import Step
from node.protocol.messages import Deal, GoodsPrepared, QuoteRequest, StreamMessage, TrialResult
from node.protocol.offer import Receipt
from node.protocol.quote import Quote
from node.protocol.signing import sign_digest
from node.protocol.types import Address, Digest, PeerId, Wei
from node.settlement.treasury import Ending, Treasury
from tests.market.cheats import cheat
from tests.market.market import Market, Party, eventually, open_market, seed_of

ELSEWHERE: dict[str, Callable[[Domain], Domain]] = {
    "another chain": lambda d: Domain(chain_id=d.chain_id + 1, escrow=d.escrow),
    "another contract": lambda d: Domain(
        chain_id=d.chain_id, escrow=Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
    ),
}


async def pair(market: Market) -> tuple[Party, Party]:
    seller, buyer = await market.join("seller", Agent), await market.join("buyer", Agent)
    await seller.offer()
    return seller, buyer


async def complete(market: Market, buyer: Party, seller: Party, **how: Any) -> Digest:
    """An honest trade, to the end."""
    return await market.see_paid(await buyer.buy(seller, **how), buyer, seller)


class CrookedNegotiator(Negotiator):
    """Changes a quote, or signs it for somewhere else, when it is told to."""

    change: Callable[[Quote], Quote] | None = None
    elsewhere: Callable[[Domain], Domain] | None = None

    def _propose(
        self,
        tried: Tried,
        question: QuoteRequest,
        trade_id: Digest,
        price: Wei,
        fee: Wei,
        goods: GoodsPrepared,
    ) -> BrokerageRecord:
        record = super()._propose(tried, question, trade_id, price, fee, goods)
        quote, sealed = record.deal.quote, record.deal.receipt
        domain = self._station.domain
        receipt = body_of(sealed)
        assert isinstance(receipt, Receipt)
        if self.change is not None:
            quote = self.change(quote)
            if (quote.price, quote.fee) != (receipt.price, receipt.fee):  # a lie with a receipt
                receipt = dataclasses.replace(receipt, price=quote.price, fee=quote.fee)
                sealed = self._station.seal(receipt)
                quote = dataclasses.replace(quote, receipt_hash=digest(domain, receipt))
        if self.elsewhere is not None:
            domain = self.elsewhere(domain)
        signature = sign_digest(self._station.keys.account, digest(domain, quote))
        deal = dataclasses.replace(
            record.deal, quote=quote, broker_signature=signature, receipt=sealed
        )
        return dataclasses.replace(record, deal=deal)


class Crooked(Broker):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.crook = CrookedNegotiator(self.station, self.desk, arguments["settings"])
        self._negotiator = self.crook


async def test_a_quote_for_elsewhere_is_not_countersigned(tmp_path: Path) -> None:
    async with open_market(tmp_path, Crooked) as market:
        seller, buyer = await pair(market)
        base = await buyer.offer()
        for elsewhere in ELSEWHERE.values():
            market.broker.shell.crook.elsewhere = elsewhere
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(seller, base)
            assert caught.value.reason == "wrong-signer"
        assert seller.blamed("Countersign") == ["wrong-signer"] * 2
        assert not buyer.journal.trades()
        market.broker.shell.crook.elsewhere = None
        await complete(market, buyer, seller, base=base)


CROOKED: dict[str, tuple[Callable[[Quote], Quote], str]] = {
    "less than the ask": (
        lambda q: dataclasses.replace(q, price=Wei(q.price // 100), fee=Wei(0)),
        "price-below-ask",
    ),
    "a higher fee": (lambda q: dataclasses.replace(q, fee=Wei(q.price // 2)), "fee-too-high"),
    "somebody else's key": (
        lambda q: dataclasses.replace(q, secret_commitment=Digest(b"\x01" * 32)),
        "wrong-commitment",
    ),
    "other goods": (
        lambda q: dataclasses.replace(q, goods_root=Digest(b"\x01" * 32)),
        "wrong-goods-root",
    ),
    "no time to reveal": (
        lambda q: dataclasses.replace(q, reveal_by=q.fund_by + 1),  # type: ignore[arg-type]
        "too-short-to-reveal",
    ),
    "money pending for years": (
        lambda q: dataclasses.replace(q, dispute_window=10**8),
        "dispute-window-too-long",
    ),
    "another receipt": (
        lambda q: dataclasses.replace(q, receipt_hash=Digest(b"\x01" * 32)),
        "wrong-receipt",
    ),
}


async def test_a_seller_signs_nothing_that_it_did_not_prepare(tmp_path: Path) -> None:
    async with open_market(tmp_path, Crooked) as market:
        seller, buyer = await pair(market)
        base = await buyer.offer()
        for name, (change, reason) in CROOKED.items():
            market.broker.shell.crook.change = change
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(seller, base)
            assert caught.value.reason == reason, name
        assert not buyer.journal.trades()
        assert {row.state for row in seller.journal.trades()} == {"prepared"}
        market.broker.shell.crook.change = None
        await complete(market, buyer, seller, base=base)


class Colluding(Broker):
    """Broker and seller sign what they like: the test holds both their keys."""

    change: Callable[[Deal], Deal] | None = None
    elsewhere: Callable[[Domain], Domain] = staticmethod(lambda domain: domain)

    async def _quote(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        answer = await super()._quote(peer, question)
        if self.change is None or not isinstance(answer, Deal):
            return answer
        deal = self.change(answer)
        name = digest(self.elsewhere(self.station.domain), deal.quote)
        return dataclasses.replace(
            deal,
            broker_signature=sign_digest(self.station.keys.account, name),
            seller_signature=sign_digest(seed_of("account of seller"), name),
        )


def quoting(**changes: Any) -> Callable[[Deal], Deal]:
    return lambda deal: dataclasses.replace(deal, quote=dataclasses.replace(deal.quote, **changes))


async def test_a_buyer_binds_itself_to_nothing_that_it_did_not_want(tmp_path: Path) -> None:
    """Though broker and seller have both signed it, for this chain or for another."""
    other = Digest(b"\x01" * 32)
    collusions: list[tuple[Callable[[Deal], Deal], str]] = [
        (quoting(price=Wei(10**18)), "price-above-valuation"),
        (quoting(offer_root=other), "wrong-offer-root"),
        (quoting(trade_id=other), "wrong-trade-id"),
        (quoting(dispute_window=0), "dispute-window-too-short"),
        (quoting(dh_commitment=other), "wrong-dh-commitment"),
        (quoting(fund_by=1), "too-late"),
        (quoting(grace=10**8), "money-locked-too-long"),
        (lambda deal: dataclasses.replace(deal, recipe=b"\xa0"), "wrong-recipe"),
        (
            lambda deal: dataclasses.replace(
                deal, evaluation=dataclasses.replace(deal.evaluation, merged_root=other)
            ),
            "wrong-evaluation",
        ),
    ]
    async with open_market(tmp_path, Colluding) as market:
        seller, buyer = await pair(market)
        base = await buyer.offer()
        for change, reason in collusions:
            market.broker.shell.change = change
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(seller, base)
            assert caught.value.reason == reason
        market.broker.shell.change = lambda deal: deal
        for elsewhere in ELSEWHERE.values():
            market.broker.shell.elsewhere = elsewhere
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(seller, base)
            assert caught.value.reason == "wrong-signer"
        assert not buyer.journal.trades()
        assert not market.ledger().states
        market.broker.shell.change = None
        await complete(market, buyer, seller, base=base)


class Boaster(Broker):
    """Tells of gains that there cannot be, so that buyers bid all that they have."""

    boast: Mapping[str, Any] = MappingProxyType({})

    async def _try(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        answer = await super()._try(peer, question)
        assert isinstance(answer, TrialResult)
        return dataclasses.replace(answer, **self.boast)


async def test_a_gain_that_cannot_be_is_not_bid_for(tmp_path: Path) -> None:
    async with open_market(tmp_path, Boaster) as market:
        seller, buyer = await pair(market)
        base = await buyer.offer()
        for boast in ({"gain": 1_000_001}, {"bound": 2**62}, {"alpha": -1}, {"alpha": 1_000_001}):
            market.broker.shell.boast = boast
            with pytest.raises(RemoteProtocolError, match="impossible-trial"):
                await buyer.buy(seller, base)
        market.broker.shell.boast = {"gain": 200_000}  # what was measured is a half of that
        with pytest.raises(RemoteProtocolError, match="wrong-evaluation"):
            await buyer.buy(seller, base)
        market.broker.shell.boast = {}
        await complete(market, buyer, seller, base=base)


class Miser(Treasury):
    """Never pays."""

    async def carry_out(self, trade_id: Digest, step: Step, call: Call, **words: Any) -> Ending:
        if step is Step.FUND:
            await trio.sleep_forever()
        return await super().carry_out(trade_id, step, call, **words)


async def test_a_buyer_that_never_pays_learns_nothing(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller, buyer = await pair(market)
        miser = await market.join("miser", cheat(treasury=Miser))
        trade = await miser.buy(seller)
        name = trade.machine.record.trade_id
        await miser.reaches(name, "funding")
        await complete(market, buyer, seller)
        market.skip(61)
        await seller.reaches(name, "expired")
        await market.broker.reaches(name, "expired")
        await miser.reaches(name, "abandoned")
        assert market.state(name) is EscrowState.NONE
        assert not seller.journal.transactions(name)
        sent = [raw for raw in raw_transactions(market) if secret_of(seller, name) in raw]
        assert not sent
        await market.all_over()
        assert (await market.drawn_ledger()).balances


def secret_of(seller: Party, trade_id: Digest) -> bytes:
    trade = seller.shell.desk.find(trade_id, "seller")
    secret: bytes = trade.machine.record.secret
    return secret


def raw_transactions(market: Market) -> list[bytes]:
    """All that was ever sent to the chain: what the whole world can read."""
    head = market.broker.escrow.head().number
    mined = [market.chain.mined_in(number) for number in range(head + 1)]
    return [one.transaction.encode() for one in mined if one is not None]


async def test_the_secret_of_a_paid_trade_is_public_and_opens_nothing_by_itself(
    tmp_path: Path,
) -> None:
    """The control of the test above: there the secret would have been found."""
    async with open_market(tmp_path) as market:
        seller, buyer = await pair(market)
        name = await complete(market, buyer, seller)
        assert [raw for raw in raw_transactions(market) if secret_of(seller, name) in raw]
        assert Reveal.__name__.lower() in {t.step for t in seller.journal.transactions(name)}


# ── away for a while ──


class Vanishing(Broker):
    """Hangs once all is agreed on, and before the buyer is told, when it is told to."""

    hung: trio.Event | None = None

    async def _quote(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        answer = await super()._quote(peer, question)
        if self.hung is not None:
            self.hung.set()
            await trio.sleep_forever()
        return answer


async def test_a_broker_that_vanishes_stops_nothing_but_its_own_negotiation(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, Vanishing, dispute_window_seconds=3) as market:
        seller, buyer = await pair(market)
        broker = market.broker
        running = await buyer.buy(seller)
        broker.shell.hung = trio.Event()
        reasons: list[str] = []

        async def bargain() -> None:
            try:
                await buyer.buy(seller)
            except RemoteProtocolError as error:
                reasons.append(error.reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bargain)
            await broker.shell.hung.wait()
            await broker.stop()
        assert reasons[0] in {"unreachable", "truncated", "stream-reset", "timeout"}
        assert len(buyer.journal.trades()) == 1

        # what was agreed on before goes on without it, through to the payment
        name = running.machine.record.trade_id
        await market.see_paid(name, buyer, seller)

        # and the next round works when it is back, its own fee and all
        terms = broker.station.own_notice()
        await broker.start()
        await broker.reaches(name, "paid")
        assert broker.station.own_notice() == terms  # or buyers that missed its news refuse deals
        await eventually(lambda: market.hears(buyer) and market.hears(seller), "gossip again")
        await seller.offer()
        await complete(market, buyer, seller)
        market.skip(61)
        await market.all_over()
        assert (await market.drawn_ledger()).balances


async def noticed(away: Party) -> None:
    await eventually(lambda: away.line.refused > 1, f"{away.name} noticed")


async def test_an_endpoint_that_is_away_for_a_while_only_delays(tmp_path: Path) -> None:
    """First the buyer's, as it would pay; then the seller's, as it would reveal; the broker's."""
    async with open_market(tmp_path) as market:
        seller, buyer = await pair(market)
        broker = market.broker
        trade = await buyer.buy(seller, await buyer.offer())
        name = trade.machine.record.trade_id
        for away, state in ((buyer, "funded"), (seller, "revealed"), (broker, "paid")):
            away.line.cut = True
            if away is seller:
                buyer.line.cut = False
            await noticed(away)
            await trio.sleep(0.5)
            assert state not in away.states(name)
        seller.line.cut = False
        broker.line.cut = False  # `see_paid` asks by it
        await market.see_paid(name, buyer, seller)
        await broker.reaches(name, "paid")
        assert (await market.drawn_ledger()).balances
        for away in (buyer, seller, broker):
            told = [type(event).__name__ for event in away.events]
            assert ("ChainAway" in told, "ChainBack" in told) == (True, True), away.name
