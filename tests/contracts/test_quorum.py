"""Who must sign, and what does not pass for so many signatures."""

from __future__ import annotations

import pytest
from eth_utils.hexadecimal import encode_hex

from contracts import load_artifact
from contracts.artifact import read_artifact
from contracts.stage import ETHER, ZERO, Quote, Stage, State, sign
from tests.contracts.conftest import ARTIFACTS, Refused
from tests.contracts.signers import signer_of

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
BROKERS = ("broker", "second", "third")


@pytest.fixture
def market() -> Stage:
    """Return an escrow in which two of three brokers must sign."""
    return Stage(BROKERS, threshold=2)


def fund(stage: Stage, quote: Quote, signatures: bytes) -> None:
    stage.send("fund", quote, signatures, sender="buyer", value=quote.price)


@pytest.mark.parametrize(
    "signers", [("broker", "second"), ("second", "third"), ("broker", "third"), BROKERS]
)
def test_any_two_of_three_are_a_quorum(market: Stage, signers: tuple[str, ...]) -> None:
    quote = market.quote()
    fund(market, quote, market.signature(quote, *signers))


@pytest.mark.parametrize("given", [0, 1])
def test_fewer_signatures_than_a_quorum_are_refused(
    market: Stage, refused: Refused, given: int
) -> None:
    quote = market.quote()
    with refused("BelowQuorum", given, 2):
        fund(market, quote, market.signature(quote, "broker")[: 65 * given])


def test_one_broker_cannot_sign_twice(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    broker = market.accounts["broker"].lower()
    with refused("SignersUnsorted", broker, broker):
        fund(market, quote, market.signature(quote, "broker") * 2)


def test_signers_out_of_order_are_refused(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    low, high = market.by_address(["broker", "second"])
    with refused("SignersUnsorted", market.accounts[high].lower(), market.accounts[low].lower()):
        fund(market, quote, market.signature(quote, high) + market.signature(quote, low))


def test_the_twin_of_a_signature_with_a_high_s_is_refused(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    good = market.signature(quote, "broker", "second")
    last = good[65:]
    high = (CURVE_ORDER - int.from_bytes(last[32:64])).to_bytes(32)
    with refused("BadSignature", 1):
        fund(market, quote, good[:65] + last[:32] + high + bytes([55 - last[64]]))


def test_a_stranger_in_a_quorum_is_refused(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    signers = market.by_address(["broker", "rival"])
    with refused("NotSeated", signers.index("rival"), market.accounts["rival"].lower()):
        fund(market, quote, market.signature(quote, *signers))


def test_a_quorum_for_another_escrow_is_none_here(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    twin = market.market("ParameterEscrow", market.court.address)
    for role in BROKERS:
        market.seat(role, twin)
    theirs = market.signatures(market.view("quoteDigest", quote, of=twin))
    with refused("NotSeated", 0, signer_of(market.view("quoteDigest", quote), theirs)):
        fund(market, quote, theirs)
    market.send("fund", quote, theirs, sender="buyer", value=quote.price, to=twin)


def test_a_quorum_on_another_chain_is_none_here(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    here = market.chain.backend.chain.chain_id
    digest = digest_on(market, quote, here + 1)
    assert digest_on(market, quote, here) == market.view("quoteDigest", quote)
    theirs = market.signatures(digest)
    with refused("NotSeated", 0, signer_of(market.view("quoteDigest", quote), theirs)):
        fund(market, quote, theirs)


def digest_on(stage: Stage, quote: Quote, chain_id: int) -> bytes:
    """Return what is signed of a quote for the escrow's address on a chain of that id."""
    from node.protocol.eip712 import Domain, digest
    from node.protocol.quote import Quote as MarketQuote
    from node.protocol.types import Address

    domain = Domain(chain_id=chain_id, escrow=Address(stage.escrow.address))
    return digest(domain, MarketQuote(**quote._asdict()))


# Contracts that sign (ERC-1271)


def contract_signature(wallet: str, signature: bytes, start: int = 65) -> bytes:
    """Return what stands for the signature of a contract, and behind it its own signature."""
    address = bytes(12) + bytes.fromhex(wallet[2:])
    return address + start.to_bytes(32) + b"\0" + len(signature).to_bytes(32) + signature


@pytest.fixture
def wallet_market() -> tuple[Stage, str]:
    """Return a market whose one broker is a contract, owned by the rival."""
    stage = Stage()
    wallet = stage.deploy(read_artifact(ARTIFACTS / "Wallet.json"), stage.accounts["rival"])
    stage.escrow = stage.deploy(
        load_artifact("ParameterEscrow"),
        stage.registry.address, stage.court.address, 1, [wallet.address],
    )  # fmt: skip
    for function, arguments, value in (("bond", (), ETHER), ("serve", (stage.escrow.address,), 0)):
        data = stage.registry.calldata(function, arguments)
        call = (stage.registry.address, data)
        stage.send("act", *call, sender="rival", value=value, to=wallet)
    stage.send("seat", wallet.address, sender="stranger")
    return stage, wallet.address


def test_a_broker_may_be_a_contract(wallet_market: tuple[Stage, str]) -> None:
    stage, wallet = wallet_market
    quote = stage.quote()
    fund(stage, quote, contract_signature(wallet, stage.signature(quote, "rival")))


def test_a_contract_that_does_not_accept_the_signature_is_refused(
    wallet_market: tuple[Stage, str], refused: Refused
) -> None:
    stage, wallet = wallet_market
    quote = stage.quote()
    for signature in (stage.signature(quote, "broker"), b""):
        with refused("BadSignature", 0):
            fund(stage, quote, contract_signature(wallet, signature))


def test_a_contract_may_accept_a_signature_of_no_bytes(stage: Stage) -> None:
    """A wallet without an owner does, and nothing lies behind the length then."""
    one = bytes.fromhex("69600160005260206000f3600052600a6016f3")  # answers 1, whatever it is asked
    sender = stage.accounts["rival"]
    sent = stage.chain.send_transaction({"from": sender, "gas": 100_000, "data": encode_hex(one)})
    registry = stage.chain.get_transaction_receipt(sent)["contract_address"]
    wallet = stage.deploy(read_artifact(ARTIFACTS / "Wallet.json"), ZERO).address
    parts = (registry, stage.court.address, 1, [wallet])
    stage.escrow = stage.deploy(load_artifact("ParameterEscrow"), *parts)
    quote = stage.quote()
    fund(stage, quote, contract_signature(wallet, b""))
    assert stage.trade(quote.trade_id)[0] is State.FUNDED


@pytest.mark.parametrize("start", [66, 162, 163, 2**256 - 1])
def test_a_contract_signature_that_lies_elsewhere_is_refused(
    wallet_market: tuple[Stage, str], refused: Refused, start: int
) -> None:
    stage, wallet = wallet_market
    quote = stage.quote()
    with refused("BadSignature", 0):
        fund(stage, quote, contract_signature(wallet, stage.signature(quote, "rival"), start))


def test_no_contract_of_a_stranger_is_asked(
    wallet_market: tuple[Stage, str], refused: Refused
) -> None:
    stage, _ = wallet_market
    deaf = stage.deploy(read_artifact(ARTIFACTS / "DeafMarket.json"))
    quote = stage.quote()
    with refused("NotSeated", 0, deaf.address.lower()):
        fund(stage, quote, contract_signature(deaf.address, b"any"))


# Seats


@pytest.mark.parametrize("threshold", [0, 2])
def test_a_quorum_of_nobody_or_of_too_many_is_refused(
    stage: Stage, refused: Refused, threshold: int
) -> None:
    with refused("BadQuorum", threshold, 1):
        stage.threshold = threshold
        stage.market("ParameterEscrow", stage.court.address)


def test_all_brokers_can_be_the_quorum(refused: Refused) -> None:
    stage = Stage(BROKERS, threshold=3)
    quote = stage.quote()
    with refused("BelowQuorum", 2, 3):
        fund(stage, quote, stage.signature(quote, "broker", "second"))
    fund(stage, quote, stage.signature(quote, *BROKERS))


def test_brokers_are_listed_in_order_and_once(stage: Stage, refused: Refused) -> None:
    low, high = stage.by_address(["broker", "rival"])
    for brokers in ([high, low], [low, low]):
        stage.brokers = brokers
        before, after = (stage.accounts[role].lower() for role in brokers)
        with refused("SignersUnsorted", before, after):
            stage.market("ParameterEscrow", stage.court.address)
    with refused("SignersUnsorted", ZERO, ZERO):
        stage.deploy(
            load_artifact("ClearingHouse"), stage.registry.address, 1, 1, [ZERO],
        )  # fmt: skip


def test_only_a_listed_broker_that_serves_sits(stage: Stage, refused: Refused) -> None:
    rival, broker = stage.accounts["rival"], stage.accounts["broker"]
    with refused("NotABroker", rival.lower()):
        stage.send("seat", rival, sender="rival")
    twin = stage.market("ParameterEscrow", stage.court.address)
    with refused("NotServing", broker.lower()):
        stage.send("seat", broker, sender="broker", to=twin)
    assert stage.view("seatOf", broker, of=twin) == 1
    stage.seat("broker", twin)
    assert stage.view("seatOf", broker, of=twin) == 2


def test_anyone_seats_a_broker_and_a_seat_is_taken_once(stage: Stage) -> None:
    broker = stage.accounts["broker"]
    twin = stage.market("ParameterEscrow", stage.court.address)
    stage.send("serve", twin.address, sender="broker", to=stage.registry)
    (event,) = stage.send("seat", broker, sender="rival", to=twin).events
    assert event == ("Seated", {"broker": broker.lower()})
    assert stage.send("seat", broker, sender="rival", to=twin).events == ()
    assert stage.view("seatOf", broker, of=twin) == 2


def test_nobody_unseats_a_broker_that_serves(stage: Stage, refused: Refused) -> None:
    broker = stage.accounts["broker"]
    for role in ("rival", "broker"):
        with refused("StillServing", broker.lower()):
            stage.send("unseat", broker, sender=role)
    assert stage.view("seatOf", broker) == 2


def test_a_broker_that_gave_notice_sits_no_more(stage: Stage) -> None:
    broker = stage.accounts["broker"]
    events = stage.send("giveNotice", sender="broker", to=stage.registry).events
    assert events[-1] == ("Unseated", {"broker": broker.lower()})
    assert stage.view("seatOf", broker) == 1


def test_nobody_is_unseated_twice(stage: Stage) -> None:
    """Nor a stranger at all, who would be one that may sit then."""
    broker, rival = stage.accounts["broker"], stage.accounts["rival"]
    stage.send("giveNotice", sender="broker", to=stage.registry)
    for account, seat in ((broker, 1), (rival, 0)):
        assert stage.send("unseat", account, sender="rival").events == ()
        assert stage.view("seatOf", account) == seat


def test_a_signature_below_its_key_is_no_signature(market: Stage, refused: Refused) -> None:
    quote = market.quote()
    good = market.signature(quote, "broker", "second")
    nobody = sign(market.keys["rival"], bytes(32))[:64] + b"\x1d"
    with refused("BadSignature", 0):
        fund(market, quote, nobody + good[65:])
