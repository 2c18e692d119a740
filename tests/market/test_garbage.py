"""A seller that encrypts garbage is proved to have, and is not paid; the buyer has its money back.

Beside the bad trade the same buyer makes an honest one, which must not notice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from node.agent import unsealing
from node.agent.progress import offers_bought
from node.agent.seller import Seller
from node.chain.port import DisputedEvent, EscrowState
from node.chronicle import OurFault, TradeChanged
from node.params.encoding import encode_tensors
from node.params.errors import StoreError
from node.params.store import BlobStore
from node.protocol import delivery, merkle
from node.protocol.dispute import proves_bad
from node.protocol.events import PurchaseEvent
from node.protocol.messages import PrepareGoods
from node.protocol.offer import Offer
from node.protocol.purchase import PurchaseRecord
from node.protocol.sale import Sale
from node.protocol.types import Digest
from node.settlement.trade import Trade
from tests.market.cheats import cheat, honest_trade, market_with
from tests.market.market import ETHER, Party, bought, eventually, weights


class Garbler(Seller):
    """Encrypts other weights than it offered, with the right key."""

    async def _encrypt(self, question: PrepareGoods, offer: Offer) -> Trade:
        blobs = self._station.blobs
        garbage = blobs.put_bytes(encode_tensors(weights("garbage")))
        trade = await super()._encrypt(question, offer)
        sale = trade.machine
        assert isinstance(sale, Sale)
        record = sale.record
        dh = delivery.shared_secret(record.private_key, record.buyer_key)
        key = delivery.delivery_key(record.secret, dh, record.trade_id)
        goods = blobs.encrypt(garbage.root, key)
        sale.record = dataclasses.replace(record, goods_root=goods.root)
        self._desk.changed(trade, record)
        return trade


async def test_garbage_that_was_paid_for_is_proved_and_the_money_comes_back(tmp_path: Path) -> None:
    shell = cheat(Garbler)
    async with market_with(tmp_path, shell, dispute_window_seconds=600) as market:
        buyer, seller = market["buyer"], market["cheat"]
        had = buyer.escrow.balance(buyer.account)
        await seller.offer()
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        other = await buyer.buy(market["honest"])
        for party, state in (
            (buyer, "refunded"),
            (seller, "disputed"),
            (market.broker, "disputed"),
        ):
            await party.reaches(name, state)
        assert trade.settled.is_set()
        assert buyer.states(name)[-4:] == ["revealed", "disputing", "credited", "refunded"]

        # the evidence: the first leaf of what the buyer paid for that opens to something else
        record = bought(trade)
        assert record.evidence is not None
        assert record.secret is not None
        quote, blobs, leaf = record.quote, buyer.station.blobs, record.evidence.index
        dh = delivery.shared_secret(record.private_key, record.seller_key)
        key = delivery.delivery_key(record.secret, dh, name)
        goods = blobs.read(quote.goods_root, 0, quote.byte_length)
        opened = merkle.leaf_hashes(delivery.Keystream(key).apply(goods))
        offered = blobs.hashes(quote.offer_root)
        assert merkle.root_of_hashes(offered, quote.byte_length) == quote.offer_root
        assert opened[: 32 * leaf] == offered[: 32 * leaf]
        assert opened[32 * leaf :][:32] != offered[32 * leaf :][:32]
        assert not blobs.has(quote.offer_root)
        assert not blobs.has(record.evaluation.merged_root)

        # which is why that offer is never bought again
        assert record.offer_digest in offers_bought(buyer.journal)

        # the money: the buyer has its price again, but for gas, and the seller has none of it
        (disputed,) = market.events(DisputedEvent)
        assert (disputed.trade_id, disputed.leaf, disputed.amount) == (name, leaf, quote.price)
        assert market.state(name) is EscrowState.DISPUTED
        assert seller.escrow.credit(seller.account) == 0
        assert seller.escrow.balance(seller.account) < 10 * ETHER
        paid = bought(other).quote.price
        gas = ETHER // 1_000
        assert had - paid - gas < buyer.escrow.balance(buyer.account) < had - paid

        # and the honest trade beside it goes on
        await market.see_paid(other, buyer, market["honest"])
        await market.all_over()
        ledger = await market.drawn_ledger()
        assert ledger.balances
        assert ledger.refunded == quote.price


async def test_a_buyer_that_restarts_in_a_dispute_goes_on_with_it(tmp_path: Path) -> None:
    shell = cheat(Garbler)
    async with market_with(tmp_path, shell, dispute_window_seconds=600) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        cut_off_while(buyer, "disputing")
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        await buyer.reaches(name, "disputing")
        await buyer.stop()
        await seller.stop()  # nothing more is needed of it
        for root in (bought(trade).quote.goods_root, bought(trade).quote.offer_root):
            BlobStore(buyer.home / "blobs").delete(root)  # and no file either
        assert market.state(name) is EscrowState.REVEALED
        buyer.line.cut = False
        await buyer.start()
        await buyer.reaches(name, "refunded")
        assert market.state(name) is EscrowState.DISPUTED
        await market.broker.reaches(name, "disputed")
        await honest_trade(market)


async def test_a_dispute_that_comes_too_late_leaves_the_buyer_its_proof(tmp_path: Path) -> None:
    shell = cheat(Garbler)
    async with market_with(tmp_path, shell, dispute_window_seconds=600) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        cut_off_while(buyer, "disputing")
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        await buyer.reaches(name, "disputing")
        market.skip(601)
        await seller.reaches(name, "paid")
        buyer.line.cut = False
        await buyer.reaches(name, "cheated")
        record = bought(trade)
        assert record.evidence is not None
        assert proves_bad(record.quote, record.evidence)
        assert not market.events(DisputedEvent)

        # which outlives every tidying up, as the goods do
        buyer.shell.session.forget_blobs()
        blobs, quote = buyer.station.blobs, record.quote
        assert blobs.has(quote.goods_root)
        assert len(blobs.hashes(quote.offer_root)) == 32 * quote.leaf_count
        kept = buyer.shell.desk.find(name, "buyer")
        assert bought(kept).evidence == record.evidence


async def test_goods_that_our_own_disk_spoilt_are_fetched_again_before_anybody_is_accused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leaf that our disk changed is the seller's no more: it would convict nobody."""
    decrypt, spoilt = unsealing.unseal, set[Digest]()

    def spoil_once(blobs: BlobStore, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        root = purchase.quote.goods_root
        if root not in spoilt:
            spoilt.add(root)
            path = blobs.path(root)
            data = bytearray(path.read_bytes())
            data[1] ^= 1
            path.chmod(0o600)
            path.write_bytes(data)
        return decrypt(blobs, purchase, secret)

    monkeypatch.setattr("node.agent.buyer.unseal", spoil_once)
    async with market_with(tmp_path, cheat(Garbler), dispute_window_seconds=600) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        bad = bought(await buyer.buy(seller))
        good = await buyer.buy(market["honest"])
        await buyer.reaches(bad.trade_id, "refunded")
        await market.see_paid(good, buyer, market["honest"])
        assert len(spoilt) == 2
        assert len(buyer.heard(OurFault)) == 2
        (disputed,) = market.events(DisputedEvent)
        assert disputed.trade_id == bad.trade_id


async def test_a_disk_that_has_no_room_for_the_weights_keeps_no_proof_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: BlobStore, *roots: object) -> None:
        raise StoreError("disk-full", "no space is left")

    monkeypatch.setattr(BlobStore, "decrypt_to", full)
    async with market_with(tmp_path, cheat(Garbler), dispute_window_seconds=600) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        bad = bought(await buyer.buy(seller))
        good = bought(await buyer.buy(market["honest"]))
        await buyer.reaches(bad.trade_id, "refunded")
        assert market.state(bad.trade_id) is EscrowState.DISPUTED
        await buyer.reaches(good.trade_id, "revealed")
        await eventually(lambda: len(buyer.heard(OurFault)) > 1, "a second look")
        assert buyer.states(good.trade_id)[-1] == "revealed"  # waits for room, and accuses nobody


def cut_off_while(party: Party, state: str) -> None:
    """Cut a party's line to the chain as soon as a trade is in a state, before it acts.

    Before the trade begins: a test that is late would cut when all is done.
    """

    def hear(record: Any) -> None:
        event = record.event
        if isinstance(event, TradeChanged) and event.state == state:
            party.line.cut = True

    party.station.observer.subscribe(hear)
