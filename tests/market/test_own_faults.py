"""Faults of our own disk and of our own haste: nothing that was paid for is lost by them."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from node.agent import unsealing
from node.agent.agent import Agent
from node.chain.errors import UnfundedAccountError
from node.chain.port import EscrowState
from node.chronicle import OurFault, TradeChanged, TransactionDelayed
from node.params.disk import BlobRef
from node.params.store import BlobStore
from node.protocol.errors import RemoteProtocolError
from node.protocol.events import PurchaseEvent
from node.protocol.messages import Ask, AskRequest, GoodsPrepared, PrepareGoods
from node.protocol.purchase import PurchaseRecord
from node.protocol.quote import trade_id_of
from node.protocol.types import Digest
from node.settlement.purse import Purse
from tests.market.market import bought, open_market


async def test_nothing_is_paid_by_a_buyer_that_could_not_pay_for_a_dispute_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fees rose since its bid, say; it may find the money until there is no time to fund."""

    async def poor(self: Purse, purchase: PurchaseRecord) -> None:
        await trio.lowlevel.checkpoint()
        raise UnfundedAccountError("the account holds 1 wei")

    async with open_market(tmp_path, fund_seconds=6) as market:
        seller = await market.join("seller", Agent)
        buyer = await market.join("buyer", Agent)
        await seller.offer()
        monkeypatch.setattr(Purse, "require", poor)
        name = (await buyer.buy(seller)).machine.record.trade_id
        await buyer.reaches(name, "abandoned")
        given_up = next(e for e in buyer.heard(TradeChanged) if e.state == "abandoned")
        assert "the account holds 1 wei" in given_up.note
        (delayed,) = buyer.heard(TransactionDelayed)
        assert (delayed.trade_id, delayed.step) == (name, "fund")
        assert market.state(name) is EscrowState.NONE
        assert not buyer.journal.transactions(name)


@pytest.mark.parametrize("part", ["data", "all"])
async def test_goods_that_our_disk_spoils_after_the_payment_are_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    decrypt, spoilt = unsealing.unseal, set[Digest]()

    def spoil_once(blobs: BlobStore, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        root = purchase.quote.goods_root
        if root not in spoilt:
            spoilt.add(root)
            if part == "all":
                blobs.delete(root)
            else:
                path = blobs.path(root)
                data = bytearray(path.read_bytes())
                data[5_000] ^= 1
                path.chmod(0o600)
                path.write_bytes(data)
        return decrypt(blobs, purchase, secret)

    monkeypatch.setattr("node.agent.buyer.unseal", spoil_once)
    async with open_market(tmp_path) as market:
        seller = await market.join("seller", Agent)
        buyer = await market.join("buyer", Agent)
        await seller.offer()
        trade = await buyer.buy(seller)
        await market.see_paid(trade, buyer, seller)
        assert spoilt == {bought(trade).quote.goods_root}
        assert [fault.during for fault in buyer.heard(OurFault)] == ["deliver"]
        assert buyer.station.blobs.has(bought(trade).evaluation.merged_root)


async def test_requests_at_one_time_get_no_more_goods_encrypted_than_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypt = BlobStore.encrypt

    def slowly(self: BlobStore, root: Digest, key: bytes) -> BlobRef:
        time.sleep(0.3)
        return encrypt(self, root, key)

    monkeypatch.setattr(BlobStore, "encrypt", slowly)
    async with open_market(tmp_path) as market:
        agent = await market.join("seller", Agent, max_unfunded_sales_a_buyer=2)
        name, _ = await agent.offer()
        broker, seller, answers = market.broker, agent.peer_id, list[Any]()

        async def prepare() -> None:
            nonce = Digest(secrets.token_bytes(32))
            trade_id = trade_id_of(broker.account, agent.account, name, nonce)
            asked = AskRequest(trade_id=trade_id, offer_digest=name, fee_basis_points=0)
            await broker.station.ask(seller, asked, Ask, seconds=10)
            wanted = PrepareGoods(
                trade_id=trade_id,
                offer_digest=name,
                buyer=broker.account,
                buyer_nonce=nonce,
                buyer_key=Digest(secrets.token_bytes(32)),
            )
            try:
                answers.append(await broker.station.ask(seller, wanted, GoodsPrepared, seconds=10))
            except RemoteProtocolError as error:
                answers.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(prepare)
        assert answers.count("too-many-unfunded-trades") == 3
        assert len(agent.journal.trades(open_only=True)) == 2
