"""A buyer of adapters takes no deal over another base, and remembers of which ranks its own are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.journal import TradeRow
from node.protocol import cbor, delivery
from node.protocol.bargain import accept_deal
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.kinship import kin, require_kin
from node.protocol.purchase import Purchase, PurchaseRecord
from node.protocol.quote import trade_id_of
from node.protocol.schema import from_map, to_map
from node.settlement.trade import machine_of
from tests.protocol import cast
from tests.protocol.cast import DOMAIN, NOW, PATIENCE, WANTED


def text(root: str = "a", rank: int = 4) -> str:
    return (
        '{"config":{"base":{"config":{"widths":[4,2]},"name":"mlp"},'
        f'"modules":{{"layers.0":[{rank},8]}},"root":"{root * 64}"}},"name":"lora"}}'
    )


def deal_over(sold: str, tried_on: str) -> PurchaseRecord:
    """A deal in which everything is consistently of the adapter that is sold."""
    offer = cast.offer(architecture=sold)
    name = digest(DOMAIN, offer)
    trade_id = trade_id_of(cast.BUYER.account, cast.SELLER.account, name, cast.BUYER_NONCE)
    changed: dict[str, Any] = {"trade_id": trade_id, "offer_digest": name}
    measured = dataclasses.replace(cast.EVALUATION, architecture=sold)
    bill = cast.receipt(evaluation_hash=measured.hash, **changed)
    dh = delivery.dh_commitment(
        delivery.shared_secret(cast.BUYER_PRIVATE, cast.SELLER_KEY), trade_id
    )
    deal = cast.deal(
        evaluation_changes={"architecture": sold},
        receipt_changes=changed,
        quote_changes={
            "trade_id": trade_id,
            "dh_commitment": dh,
            "receipt_hash": digest(DOMAIN, bill),
        },
    )
    wanted = dataclasses.replace(WANTED, offer=offer, offer_digest=name, tried_on=tried_on)
    return accept_deal(DOMAIN, wanted, deal, PATIENCE, NOW)


@pytest.mark.parametrize("tried_on", [text(rank=8), text(), ""], ids=["rank 8", "rank 4", "unsaid"])
def test_adapters_of_one_base_are_dealt_in_at_any_ranks(tried_on: str) -> None:
    record = deal_over(text(), tried_on)
    assert record.evaluation.architecture == text()
    assert record.own_architecture == (tried_on or text())
    again = from_map(PurchaseRecord, cbor.decode(cbor.encode(to_map(record))))
    assert again == record


@pytest.mark.parametrize(
    ("tried_on", "reason"),
    [(text("b"), "wrong-base"), (cast.ARCHITECTURE, "architecture-mismatch")],
)
def test_a_deal_over_another_base_begins_no_purchase(tried_on: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        deal_over(text(), tried_on)
    assert refused.value.reason == reason


def test_a_record_of_an_older_version_is_of_one_architecture() -> None:
    record = cast.purchase_record()
    old = to_map(record)
    assert isinstance(old, dict)
    del old["tried_on"]
    row = TradeRow(
        trade_id=record.trade_id, role="buyer", state=record.state, over=False,
        record=cbor.encode(old),
    )  # fmt: skip
    machine = machine_of(row)
    assert isinstance(machine, Purchase)
    assert machine.record.own_architecture == cast.ARCHITECTURE


def test_kinship_is_told_in_short_with_the_root_at_its_end() -> None:
    long = text().replace("[4,2]", str([4] * 400).replace(" ", ""))
    assert kin(long) != long
    with pytest.raises(RemoteProtocolError) as refused:
        require_kin(text(), long)
    assert len(refused.value.detail) < 520
    assert "a" * 64 in refused.value.detail
