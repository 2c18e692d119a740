"""What an account signs is what a wallet shows and what the contract checks."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import stage
from node.protocol.bids import AskingPrice, Bid
from node.protocol.call import BudgetBid
from node.protocol.eip712 import Domain, camel, digest, struct_hash, type_string
from node.protocol.quote import Quote, check_signer, trade_id_of
from node.protocol.schema import checksummed, fields_of
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import Address, Digest
from tests.protocol import cast, strategies
from tests.protocol.strategies import SIGNED

TYPES: Final = {
    "Offer": (
        "Offer(address seller,string peerId,string[] addresses,string task,string architecture,"
        "uint64[] layers,bytes32 weightsRoot,uint64 leafCount,uint64 byteLength,uint256 reserve,"
        "uint64 issuedAt,uint64 expiresAt,uint64 nonce)"
    ),
    "Revocation": (
        "Revocation(address seller,string peerId,bytes32 offerDigest,uint64 issuedAt,"
        "uint64 expiresAt,uint64 nonce)"
    ),
    "BrokerNotice": (
        "BrokerNotice(address broker,string peerId,string[] addresses,string task,"
        "uint64 feeBasisPoints,bytes32 validationRoot,uint64 validationRows,bytes32 seed,"
        "uint64 issuedAt,uint64 expiresAt,uint64 nonce)"
    ),
    "Receipt": (
        "Receipt(address broker,string peerId,bytes32 tradeId,string task,address buyer,"
        "address seller,bytes32 offerDigest,bytes32 offerRoot,bytes32 noticeDigest,uint256 price,"
        "uint256 fee,bytes32 evaluationHash,uint64 issuedAt,uint64 expiresAt,uint64 nonce)"
    ),
    "Quote": (
        "Quote(bytes32 tradeId,address buyer,address seller,address encryptor,address asset,"
        "uint256 price,uint256 fee,address feeRecipient,bytes32 offerRoot,bytes32 goodsRoot,"
        "uint64 leafCount,uint64 byteLength,bytes32 secretCommitment,bytes32 dhCommitment,"
        "uint64 fundBy,uint64 revealBy,uint64 grace,uint64 disputeWindow,bytes32 receiptHash)"
    ),
    "Bid": "Bid(bytes32 tradeId,uint256 valuation,bytes32 buyerKey)",
    "AskingPrice": "AskingPrice(bytes32 tradeId,bytes32 offerDigest,uint256 ask)",
    "BudgetBid": "BudgetBid(bytes32[] trials,uint256 budget)",
}
"""Frozen: signatures made over these stay valid for as long as the protocol lives."""

WRITTEN_DOWN: Final = {
    "Offer": "b7391bf4ef8433314cf0c5bb6b2dc9797ca8737da277db25583b54a9d5f115d9",
    "Revocation": "83ad130c64ecb7c49f1e3df08be1deb1076c5ffeedc167c1e78d4d7374338246",
    "BrokerNotice": "09408cdd2674b6e9d2f318389d52b005e62454c58a9e2c7de368c07da2fb599a",
    "Receipt": "fa6fac14be9c820c6a066dacdb334650ca5141dc92a1efd69dcd680584778a1e",
    "Quote": "62a16e2e429fa78cfb98fb3035b08a3d63150244dfdfe6b339beb1f0bb52b0c6",
    "Bid": "e151360c639c3eb1f8598a32c66caadf1d795a571181c3dee9219bade77c1eba",
    "AskingPrice": "6ae7f33ee6a9dd0bd1ff95644123a7406047d399119d108bdeb45d548d7734b4",
    "BudgetBid": "062ffb23680ccc3f3fed2622e43262888db4ebce7908fa3a199f1c289d84a089",
}
"""Computed with eth_account 0.14; of `SAID`, in the market of `cast.DOMAIN`."""

SAID: Final[dict[str, Any]] = {
    "Offer": cast.offer(layers=(0, 1), addresses=("/ip4/127.0.0.1/tcp/4001", "/dns/é/tcp/1")),
    "Revocation": cast.revocation(cast.word("an offer")),
    "BrokerNotice": cast.NOTICE,
    "Receipt": cast.receipt(
        offer_digest=cast.word("an offer"), trade_id=cast.word("a trade"),
        notice_digest=cast.word("a notice"), evaluation_hash=cast.word("an evaluation"),
    ),
    "Quote": cast.quote(
        trade_id=cast.word("a trade"), receipt_hash=cast.word("a receipt"),
        dh_commitment=cast.word("a shared secret"),
    ),
    "Bid": Bid(
        trade_id=cast.word("a trade"), valuation=cast.VALUATION, buyer_key=cast.word("a key")
    ),
    "AskingPrice": AskingPrice(
        trade_id=cast.word("a trade"), offer_digest=cast.word("an offer"), ask=cast.ASK
    ),
    "BudgetBid": BudgetBid(
        trials=(cast.word("a trial"), cast.word("another")), budget=cast.VALUATION
    ),
}  # fmt: skip


def as_wallet_sees(domain: Domain, message: Any) -> Any:
    """Return eth_account's encoding of a message."""
    kinds = fields_of(type(message))
    return encode_typed_data(
        full_message={
            "types": {
                "EIP712Domain": [
                    {"name": "name", "type": "string"},
                    {"name": "version", "type": "string"},
                    {"name": "chainId", "type": "uint256"},
                    {"name": "verifyingContract", "type": "address"},
                ],
                # from the frozen type, not from the schema that is under test
                type(message).__name__: [
                    {"type": kind, "name": name}
                    for kind, name in re.findall(
                        r"([a-z0-9\[\]]+) (\w+)[,)]", TYPES[type(message).__name__]
                    )
                ],
            },
            "primaryType": type(message).__name__,
            "domain": {
                "name": "pm-node",
                "version": "1",
                "chainId": domain.chain_id,
                "verifyingContract": domain.escrow,
            },
            "message": {
                camel(name): list(value) if type(value) is tuple else value
                for name, value in ((name, getattr(message, name)) for name, _ in kinds)
            },
        }
    )


def wallet_digest(domain: Domain, message: Any) -> bytes:
    from eth_utils.crypto import keccak

    seen = as_wallet_sees(domain, message)
    return bytes(keccak(b"\x19" + seen.version + seen.header + seen.body))


@pytest.mark.parametrize("cls", SIGNED, ids=lambda c: c.__name__)
def test_the_type_that_is_signed_is_the_one_written_down(cls: type[Any]) -> None:
    assert type_string(cls) == TYPES[cls.__name__]


def test_everything_that_is_signed_has_a_type_written_down() -> None:
    assert {cls.__name__ for cls in SIGNED} == TYPES.keys() == SAID.keys() == WRITTEN_DOWN.keys()


@pytest.mark.parametrize("name", SAID)
def test_the_digest_is_the_one_written_down(name: str) -> None:
    assert digest(cast.DOMAIN, SAID[name]).hex() == WRITTEN_DOWN[name]


def test_the_separator_of_the_market_is_the_one_written_down() -> None:
    assert cast.DOMAIN.escrow == "0x744362dfbbcd0bA58443ca8C5318Fe695E6FB7fF"
    assert cast.DOMAIN.separator.hex() == (
        "39214339c19f82b29675367294ed302dd16aebeba4bedcb772cc26bb419d4401"
    )


@pytest.mark.parametrize("cls", SIGNED, ids=lambda c: c.__name__)
def test_a_wallet_computes_the_same_digest(cls: type[Any]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(message=strategies.messages(cls), domain=strategies.messages(Domain))
    def holds(message: Any, domain: Domain) -> None:
        assert digest(domain, message) == wallet_digest(domain, message)

    holds()


@pytest.mark.parametrize("name", SAID)
def test_a_signature_of_a_wallet_is_our_signature(name: str) -> None:
    seen = as_wallet_sees(cast.DOMAIN, SAID[name])
    theirs = bytes(Account.sign_message(seen, cast.SELLER.account_key).signature)
    assert theirs == sign_digest(cast.SELLER.account_key, digest(cast.DOMAIN, SAID[name]))


@pytest.mark.parametrize("name", SAID)
def test_every_field_is_under_the_signature(name: str) -> None:
    whole = SAID[name]
    digests = {digest(cast.DOMAIN, whole)}
    for field, kind in fields_of(type(whole)):
        value = getattr(whole, field)
        other = {
            "address": cast.STRANGER.account,
            "bytes32": cast.word("something else"),
            "string": "something else",
            "string[]": ("something", "else"),
            "uint64[]": (9,),
            "bytes32[]": (cast.word("something else"),),
        }.get(kind.solidity, value - 1 if type(value) is int and field != "issued_at" else None)
        other = value + 1 if field == "issued_at" else other
        digests.add(digest(cast.DOMAIN, dataclasses.replace(whole, **{field: other})))
    assert len(digests) == 1 + len(fields_of(type(whole)))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"addresses": ("ab", "c")}, {"addresses": ("a", "bc")}),
        ({"addresses": ("",)}, {"addresses": ()}),
        ({"addresses": ("a", "b")}, {"addresses": ("b", "a")}),
        ({"layers": (0,)}, {"layers": ()}),
        ({"task": "ab", "architecture": "c"}, {"task": "a", "architecture": "bc"}),
    ],
)
def test_two_messages_are_never_one_digest(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert struct_hash(cast.offer(**left)) != struct_hash(cast.offer(**right))


def test_two_kinds_of_one_shape_are_two_digests() -> None:
    @dataclasses.dataclass(frozen=True)
    class Other:
        chain_id: int
        escrow: Address

    assert struct_hash(cast.DOMAIN) != struct_hash(Other(31_337, cast.DOMAIN.escrow))


@pytest.mark.parametrize(
    "elsewhere",
    [
        Domain(chain_id=31_338, escrow=cast.DOMAIN.escrow),
        Domain(chain_id=31_337, escrow=cast.STRANGER.account),
        Domain(chain_id=0, escrow=cast.DOMAIN.escrow),
    ],
    ids=["chain", "escrow", "no chain"],
)
def test_a_digest_is_good_in_one_market_only(elsewhere: Domain) -> None:
    assert digest(elsewhere, cast.OFFER) != digest(cast.DOMAIN, cast.OFFER)


@pytest.mark.parametrize(
    ("snake", "name"),
    [("task", "task"), ("peer_id", "peerId"), ("fee_basis_points", "feeBasisPoints")],
)
def test_solidity_writes_names_its_own_way(snake: str, name: str) -> None:
    assert camel(snake) == name


# ── the contract ──


@pytest.fixture(scope="module")
def escrow() -> stage.Stage:
    """Return an escrow on a chain of its own."""
    return stage.Stage()


def market_of(escrow: stage.Stage) -> Domain:
    return Domain(
        chain_id=escrow.chain.backend.chain.chain_id, escrow=Address(escrow.escrow.address)
    )


def on_chain(quote: Quote) -> stage.Quote:
    """Return the terms as the contract takes them."""
    return stage.Quote(*(getattr(quote, name) for name, _ in fields_of(Quote)))


def test_the_fields_of_a_quote_are_those_of_the_contract() -> None:
    assert stage.Quote._fields == tuple(name for name, _ in fields_of(Quote))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_contract_computes_the_same_digest(escrow: stage.Stage, data: st.DataObject) -> None:
    quote = data.draw(strategies.messages(Quote))
    assert escrow.view("quoteDigest", on_chain(quote)) == digest(market_of(escrow), quote)


def test_the_contract_takes_the_brokers_signature(escrow: stage.Stage) -> None:
    now, cast_of = escrow.now(), escrow.accounts
    quote = cast.quote(
        buyer=cast_of["buyer"],
        seller=cast_of["seller"],
        encryptor=cast_of["seller"],
        fee_recipient=cast_of["broker"],
        fund_by=now + 60,
        reveal_by=now + 120,
    )
    broker = escrow.keys["broker"].to_bytes()
    signature = sign_digest(broker, digest(market_of(escrow), quote))
    check_signer(market_of(escrow), quote, signature, address_of(broker))
    escrow.send("fund", on_chain(quote), signature, sender="buyer", value=quote.price)
    assert escrow.trade(quote.trade_id)[0] is stage.State.FUNDED


@settings(max_examples=50, deadline=None)
@given(
    buyer=st.binary(min_size=20, max_size=20).map(checksummed),
    seller=st.binary(min_size=20, max_size=20).map(checksummed),
    offer=st.binary(min_size=32, max_size=32).map(Digest),
    nonce=st.binary(min_size=32, max_size=32).map(Digest),
)
def test_a_trades_id_is_the_hash_that_solidity_would_make(
    buyer: Address, seller: Address, offer: Digest, nonce: Digest
) -> None:
    from eth_abi.abi import encode
    from eth_utils.crypto import keccak

    words = encode(["address", "address", "bytes32", "bytes32"], [buyer, seller, offer, nonce])
    assert trade_id_of(buyer, seller, offer, nonce) == keccak(words)
