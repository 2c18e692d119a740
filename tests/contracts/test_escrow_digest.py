"""One digest of a quote: in the contract, in eth_account, and written down."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from eth_abi.abi import decode
from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from contracts.stage import Quote, Stage, type_of
from node.protocol.eip712 import Domain, digest
from node.protocol.quote import Quote as MarketQuote
from node.protocol.signing import sign_digest
from node.protocol.types import Address

SOURCES = Path(__file__).resolve().parents[2] / "contracts" / "src"

WORDS = {
    "bytes32": st.binary(min_size=32, max_size=32),
    "address": st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex()),
    "uint256": st.integers(0, 2**256 - 1),
    "uint64": st.integers(0, 2**64 - 1),
}

TYPE = (
    "Quote(bytes32 tradeId,address buyer,address seller,address encryptor,address asset,"
    "uint256 price,uint256 fee,address feeRecipient,bytes32 offerRoot,bytes32 goodsRoot,"
    "uint64 leafCount,uint64 byteLength,bytes32 secretCommitment,bytes32 dhCommitment,"
    "uint64 fundBy,uint64 revealBy,uint64 grace,uint64 disputeWindow,bytes32 receiptHash)"
)
FIELDS = [tuple(field.split(" ")) for field in TYPE[6:-1].split(",")]

quotes = st.tuples(*(WORDS[kind] for kind, _ in FIELDS)).map(lambda words: Quote(*words))


def typed_data(stage: Stage, quote: Quote) -> dict[str, Any]:
    """Return the quote as a wallet is shown it."""
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Quote": [{"name": name, "type": kind} for kind, name in FIELDS],
        },
        "primaryType": "Quote",
        "domain": {
            "name": "pm-node",
            "version": "1",
            "chainId": stage.chain.backend.chain.chain_id,
            "verifyingContract": stage.escrow.address,
        },
        "message": {name: value for (_, name), value in zip(FIELDS, quote, strict=True)},
    }


def eip712_digest(message: SignableMessage) -> bytes:
    """Return what is signed: keccak256(0x19 ‖ version ‖ domain ‖ struct)."""
    return bytes(keccak(b"\x19" + message.version + message.header + message.body))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(quote=quotes)
def test_the_contract_and_a_wallet_agree_on_the_digest_of_any_quote(
    stage: Stage, quote: Quote
) -> None:
    message = encode_typed_data(full_message=typed_data(stage, quote))
    assert stage.view("quoteDigest", quote) == eip712_digest(message)


def market_quote(quote: Quote) -> MarketQuote:
    """Return the same terms in the market's own words."""
    words: dict[str, Any] = quote._asdict()
    for name, value in words.items():
        if isinstance(value, str):
            words[name] = to_checksum_address(value)
    return MarketQuote(**words)


def market_domain(stage: Stage) -> Domain:
    """Return the domain of this escrow, as the nodes speak of it."""
    chain_id = stage.chain.backend.chain.chain_id
    return Domain(chain_id=chain_id, escrow=Address(stage.escrow.address))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(quote=quotes)
def test_the_contract_and_the_nodes_agree_on_the_digest_of_any_quote(
    stage: Stage, quote: Quote
) -> None:
    assume(quote.fund_by != quote.reveal_by)
    fee, price = sorted((quote.fee, quote.price))
    fund_by, reveal_by = sorted((quote.fund_by, quote.reveal_by))
    quote = quote._replace(fee=fee, price=price, fund_by=fund_by, reveal_by=reveal_by)
    assert stage.view("quoteDigest", quote) == digest(market_domain(stage), market_quote(quote))


def test_what_a_node_signs_the_escrow_accepts(stage: Stage) -> None:
    quote = stage.quote()
    signed = digest(market_domain(stage), market_quote(quote))
    signature = sign_digest(stage.keys["broker"].to_bytes(), signed)
    stage.send("fund", quote, signature, sender="buyer", value=quote.price)


def test_a_wallet_can_sign_as_the_broker(stage: Stage) -> None:
    quote = stage.quote()
    message = encode_typed_data(full_message=typed_data(stage, quote))
    signed = Account.sign_message(message, stage.keys["broker"])
    stage.send("fund", quote, bytes(signed.signature), sender="buyer", value=quote.price)


def test_the_digest_is_the_one_written_down(stage: Stage) -> None:
    words = b"".join(i.to_bytes(32) for i in range(1, 20))
    quote = Quote(*decode([kind for kind, _ in FIELDS], words))
    assert stage.escrow.address == "0x30918730C8c09335855D1c6679558e615a0d00C1"
    assert stage.chain.backend.chain.chain_id == 131277322940537
    assert (
        stage.view("quoteDigest", quote).hex()
        == "916f90a8ccbdd686464413f018b62bd6d2220992dbeedffcca628a55fa96d7ae"
    )


def test_the_type_that_is_signed_is_the_struct_that_is_passed(stage: Stage) -> None:
    hashed = "d6b32ccbb1616de9b191098095b02467a71bf8fb589dfff66faa3c9c349270ed"
    assert keccak(text=TYPE).hex() == hashed
    (parameter,) = stage.escrow.functions["quoteDigest"]["inputs"]
    passed = [(part["type"], part["name"]) for part in parameter["components"]]
    assert passed == FIELDS


def test_every_error_and_event_says_what_it_means() -> None:
    for source in SOURCES.rglob("*.sol"):
        lines = source.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.match(r" +(error|event) ", line):
                assert before.lstrip().startswith("///"), f"{source.name}: {line.strip()}"


def test_structs_are_written_out_in_signatures() -> None:
    inner = {"type": "uint64", "name": "x"}
    pair = {"type": "tuple[2]", "name": "y", "components": [inner, inner]}
    assert type_of(pair) == "(uint64,uint64)[2]"
