"""A trade id alone does not say under which terms it was funded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import trio

from node.chain.port import Reveal
from node.chronicle import OtherTerms
from node.protocol.sale import Sale
from node.protocol.types import Digest, UnixTime, Wei
from tests.settlement.fake_chain import FakeChain
from tests.settlement.trades import START, Node, fund, quote_of, sale


@pytest.mark.parametrize(
    "changed",
    [
        {"receipt_hash": Digest(b"\x77" * 32)},
        {"fee": Wei(0)},
        {"reveal_by": UnixTime(START + 40)},
        {"secret_commitment": Digest(b"\x77" * 32)},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_no_secret_is_told_for_another_quote_of_the_same_trade_id(
    chain: FakeChain, buyer: Node, seller: Node, changed: dict[str, Any]
) -> None:
    # what a broker and a buyer could do together: sign and fund a second quote of one id
    ours = quote_of()
    theirs = dataclasses.replace(ours, **changed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seller.live)
        await seller.desk.running.wait()
        seller.desk.open(Sale(sale(ours)))
        await fund(buyer, theirs)
        while not seller.over():
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert chain.calls(Reveal) == []
    assert seller.state(ours) == "expired"
    assert seller.told(OtherTerms)
