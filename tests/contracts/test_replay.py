"""What was signed for one chain is worth nothing on another: seen on anvil, not on eth-tester."""

from __future__ import annotations

from typing import Any

import pytest
from eth_utils.hexadecimal import encode_hex

from contracts.stage import Quote, RevertedError, Stage, State
from tests.contracts.anvil import CHAIN_ID, AnvilChain, ChainRefusedError

pytestmark = pytest.mark.anvil


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return the same market, at the same addresses, on a chain with another id."""
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "new_chain", lambda: AnvilChain(CHAIN_ID + 1))
        return Stage()


def funding(stage: Stage, quote: Quote) -> dict[str, Any]:
    """Return the transaction that funds a trade, before it is signed."""
    return {
        "from": quote.buyer,
        "to": stage.escrow.address,
        "gas": 200_000,
        "value": quote.price,
        "data": encode_hex(stage.escrow.calldata("fund", (quote, stage.signature(quote)))),
    }


def test_the_other_market_differs_by_its_chain_alone(stage: Stage, elsewhere: Stage) -> None:
    assert stage.escrow.address == elsewhere.escrow.address
    quote = stage.quote()
    assert quote == elsewhere.quote()
    assert stage.view("quoteDigest", quote) != elsewhere.view("quoteDigest", quote)


def test_a_transaction_signed_here_is_refused_there(stage: Stage, elsewhere: Stage) -> None:
    quote = stage.quote()
    fund = encode_hex(stage.chain.signed(funding(stage, quote)))
    held = elsewhere.balance(quote.buyer)
    with pytest.raises(ChainRefusedError, match=r"(?i)chain id"):
        elsewhere.chain.send_raw_transaction(fund)
    assert elsewhere.trade(quote.trade_id) == (State.NONE, 0)
    assert elsewhere.balance(quote.buyer) == held
    stage.chain.send_raw_transaction(fund)
    assert stage.trade(quote.trade_id)[0] is State.FUNDED


def test_so_is_one_of_another_kind(stage: Stage, elsewhere: Stage) -> None:
    # EIP-2930. Of the kind before that (EIP-155) anvil does not compare the chain.
    quote, fees = stage.quote(), {"gasPrice": 10**10, "accessList": []}
    fund = encode_hex(stage.chain.signed(funding(stage, quote), fees=fees))
    with pytest.raises(ChainRefusedError, match=r"(?i)chain id"):
        elsewhere.chain.send_raw_transaction(fund)
    stage.chain.send_raw_transaction(fund)
    assert stage.trade(quote.trade_id)[0] is State.FUNDED


def test_a_mined_transaction_is_not_mined_again(stage: Stage) -> None:
    quote = stage.quote()
    fund = encode_hex(stage.chain.signed(funding(stage, quote)))
    stage.chain.send_raw_transaction(fund)
    with pytest.raises(ChainRefusedError, match=r"(?i)nonce"):
        stage.chain.send_raw_transaction(fund)
    assert stage.balance(stage.escrow.address) == quote.price


def test_a_brokers_signature_is_a_strangers_there(stage: Stage, elsewhere: Stage) -> None:
    quote = stage.quote()
    fund = funding(stage, quote)
    with pytest.raises(RevertedError) as caught:
        elsewhere.send("fund", quote, stage.signature(quote), sender="buyer", value=quote.price)
    assert caught.value.name == "NotSeated"
    # Whoever sends it nevertheless, with the buyer's own signature for that chain, moves nothing.
    again = elsewhere.chain.send_raw_transaction(encode_hex(elsewhere.chain.signed(fund)))
    assert elsewhere.chain.get_transaction_receipt(again)["status"] == 0
    assert elsewhere.trade(quote.trade_id) == (State.NONE, 0)
    assert elsewhere.balance(elsewhere.escrow.address) == 0
