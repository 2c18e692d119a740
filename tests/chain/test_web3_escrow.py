"""The adapter against the development chain, in process and over loopback RPC."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from contracts.artifact import read_artifact
from node.chain.abi import Functions
from node.chain.check import registry_artifact
from node.chain.codec import BROKER_DISPUTE_GAS, GAS_LIMITS
from node.chain.deploy import Part, deploy_market, deploy_part
from node.chain.errors import (
    FeeTooHighError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
    WrongContractError,
)
from node.chain.port import (
    Call,
    Dispute,
    DisputedEvent,
    EscrowState,
    Fees,
    Finalize,
    Fund,
    FundedEvent,
    FundMany,
    PaidEvent,
    Refund,
    RefundedEvent,
    Reveal,
    RevealedEvent,
    Seat,
    Withdraw,
    WithdrawnEvent,
)
from node.chain.reverts import Revert
from node.chain.transactions import Wallet, send_and_wait
from node.chain.web3_escrow import Web3Escrow, open_escrow
from node.protocol import merkle
from node.protocol.dispute import Evidence, proves_bad
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import LocalProtocolError
from node.protocol.quote import Quote
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei
from tests.chain.market import BROKER, BUYER, ETHER, PLAN, SECRET, SELLER, Market, do
from tests.protocol.bad_goods import Goods, bad_goods

ARTIFACTS = Path(__file__).resolve().parents[1] / "contracts" / "artifacts"


def test_a_trade_is_funded_revealed_finalized_and_withdrawn(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, signature = market.quote()
    first = buyer.head().number + 1
    assert buyer.trade_state(quote.trade_id).state is EscrowState.NONE

    funded = do(buyer, Fund(quote, signature))
    assert funded.succeeded
    assert funded.revert is None
    state = seller.trade_state(quote.trade_id)
    assert (state.state, state.since) == (EscrowState.FUNDED, UnixTime(market.clock.now))

    assert do(seller, Reveal(quote, SECRET)).succeeded
    assert seller.trade_state(quote.trade_id).state is EscrowState.REVEALED
    market.clock.now += quote.dispute_window + 1
    assert do(seller, Finalize(quote)).succeeded
    assert buyer.trade_state(quote.trade_id).state is EscrowState.PAID

    account = seller.account
    due = Wei(quote.price - quote.fee)
    assert seller.credit(account) == due
    before = seller.balance(account)
    withdrawn = do(seller, Withdraw(account))
    assert seller.balance(account) == before + due - withdrawn.fee
    assert withdrawn.fee > 0
    assert seller.credit(account) == 0
    assert seller.credit(address_of(BROKER)) == quote.fee

    events = buyer.events(first, buyer.head().number)
    assert [type(event) for event in events] == [
        FundedEvent,
        RevealedEvent,
        PaidEvent,
        WithdrawnEvent,
    ]
    assert events[0] == FundedEvent(
        funded.block, events[0].transaction, quote.trade_id, quote.buyer, quote.seller, quote.price
    )
    revealed = events[1]
    assert isinstance(revealed, RevealedEvent)
    assert revealed.secret == SECRET
    assert events[2] == PaidEvent(
        events[2].block, events[2].transaction, quote.trade_id, due, quote.fee
    )
    assert events[3] == WithdrawnEvent(
        withdrawn.block, events[3].transaction, NO_ADDRESS, account, account, due
    )
    assert buyer.events(funded.block, funded.block) == events[:1]


def test_an_unrevealed_payment_goes_back_to_the_buyer(market: Market) -> None:
    buyer = market.escrow(BUYER)
    quote, signature = market.quote()
    do(buyer, Fund(quote, signature))
    market.clock.now = quote.reveal_by + quote.grace

    early = do(buyer, Refund(quote))
    assert (early.succeeded, early.revert) == (False, "TooEarly")
    market.clock.now += 1
    refunded = do(market.escrow(SELLER), Refund(quote))  # anyone may
    assert refunded.succeeded
    assert buyer.trade_state(quote.trade_id).state is EscrowState.REFUNDED
    assert buyer.credit(buyer.account) == quote.price
    assert do(buyer, Withdraw(buyer.account)).succeeded
    (event, _) = buyer.events(refunded.block, buyer.head().number)
    assert isinstance(event, RefundedEvent)
    assert event.amount == quote.price


def test_a_revert_comes_with_the_values_of_the_contracts_own_error(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, signature = market.quote()

    not_buyer = do(seller, Fund(quote, signature))
    assert not_buyer.revert == "NotBuyer"
    assert not_buyer.values == {"caller": seller.account, "buyer": buyer.account}
    do(buyer, Fund(quote, signature))
    wrong = do(seller, Reveal(quote, bytes(32)))
    assert wrong.revert == "WrongSecret"
    assert wrong.values == {
        "tradeId": quote.trade_id,
        "commitment": quote.secret_commitment,
        "digest": hashlib.sha256(bytes(32)).digest(),
    }


def test_a_revert_is_named_after_the_contracts_own_error(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, signature = market.quote()
    _, foreign = market.quote(escrow=address_of(SELLER))

    def why(escrow: Web3Escrow, call: Call) -> str | None:
        outcome = do(escrow, call)
        assert not outcome.succeeded
        return outcome.revert

    assert why(seller, Fund(quote, signature)) == "NotBuyer"
    assert why(buyer, Fund(quote, foreign)) == "NotSeated"
    assert why(seller, Reveal(quote, SECRET)) == "WrongState"
    assert do(buyer, Fund(quote, signature)).succeeded
    assert why(buyer, Fund(quote, signature)) == "WrongState"
    assert why(seller, Reveal(quote, bytes(32))) == "WrongSecret"
    changed = dataclasses.replace(quote, grace=0)
    assert why(seller, Reveal(changed, SECRET)) == "WrongTerms"
    assert why(seller, Withdraw(seller.account)) == "NothingOwed"
    market.clock.now = quote.fund_by + 1
    late, late_signature = quote, signature
    late = dataclasses.replace(quote, trade_id=Digest(b"\x01" * 32))
    assert why(buyer, Fund(late, late_signature)) == "FundingClosed"


def test_signing_is_the_same_each_time_and_sending_pays_once(market: Market) -> None:
    buyer = market.escrow(BUYER)
    quote, signature = market.quote()
    nonce = buyer.next_nonce()
    transaction = buyer.sign(Fund(quote, signature), nonce)
    assert buyer.sign(Fund(quote, signature), nonce) == transaction
    assert buyer.receipt(transaction.hash) is None

    before = buyer.balance(buyer.account)
    for _ in range(3):
        buyer.broadcast(transaction.raw)
    outcome = buyer.receipt(transaction.hash)
    assert outcome is not None
    assert before - buyer.balance(buyer.account) == quote.price + outcome.fee
    assert buyer.next_nonce() == nonce + 1


def test_a_used_nonce_an_empty_account_and_a_gap_have_their_own_errors(market: Market) -> None:
    buyer = market.escrow(BUYER)
    quote, signature = market.quote()
    nonce = buyer.next_nonce()
    do(buyer, Withdraw(buyer.account))  # reverts, and takes the nonce all the same
    with pytest.raises(NonceTooLowError):
        buyer.broadcast(buyer.sign(Fund(quote, signature), nonce).raw)
    with pytest.raises(TransactionRefusedError, match="nonce too high"):
        buyer.broadcast(buyer.sign(Fund(quote, signature), nonce + 5).raw)
    poor = market.escrow(b"\x09" * 32)
    with pytest.raises(UnfundedAccountError):
        poor.broadcast(poor.sign(Withdraw(poor.account), 0).raw)
    dear, dear_signature = market.quote(1, price=11 * ETHER)
    with pytest.raises(UnfundedAccountError):
        buyer.broadcast(buyer.sign(Fund(dear, dear_signature), nonce + 1).raw)


def test_fees_above_the_ceiling_are_never_signed(market: Market) -> None:
    escrow = open_escrow(market.endpoint, BUYER, market.domain, fee_ceiling=Wei(10))
    market.opened.append(escrow)
    with pytest.raises(FeeTooHighError):
        escrow.sign(Withdraw(escrow.account), 0)
    fees = Fees(max_fee=Wei(10), tip=Wei(1))
    assert escrow.sign(Withdraw(escrow.account), 0, fees).nonce == 0


def test_the_fixed_gas_limits_leave_twice_what_a_trade_takes(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, signature = market.quote()
    used: dict[type[Call], int] = {Fund: do(buyer, Fund(quote, signature)).gas_used}
    used[Reveal] = do(seller, Reveal(quote, SECRET)).gas_used
    market.clock.now += quote.dispute_window + 1
    used[Finalize] = do(seller, Finalize(quote)).gas_used
    used[Withdraw] = do(seller, Withdraw(seller.account)).gas_used
    other, other_signature = market.quote(1)
    do(buyer, Fund(other, other_signature))
    market.clock.now = other.reveal_by + other.grace + 1
    used[Refund] = do(buyer, Refund(other)).gas_used
    bad, evidence, bad_signature = tall_trade(market)
    do(buyer, Fund(bad, bad_signature))
    do(seller, Reveal(bad, SECRET))
    dispute = do(buyer, Dispute(bad, evidence))
    assert dispute.succeeded
    assert 3 * dispute.gas_used <= 2 * GAS_LIMITS[Dispute], dispute.gas_used
    for kind, gas in used.items():
        assert 2 * gas <= GAS_LIMITS[kind], (kind, gas)


def test_several_quotes_are_funded_in_one_transaction_or_none_is(market: Market) -> None:
    """Three take less gas than three times one would, and at most half of their limit."""
    buyer = market.escrow(BUYER)
    quotes = [market.quote(number) for number in range(4)]
    deposits = tuple(Fund(quote, signature) for quote, signature in quotes)
    alone = do(buyer, deposits[3])
    assert do(buyer, FundMany(deposits)).revert == "WrongState"
    assert [buyer.trade_state(q.trade_id).state for q, _ in quotes[:3]] == [EscrowState.NONE] * 3
    funded = do(buyer, FundMany(deposits[:3]))
    assert funded.succeeded
    told = buyer.events(funded.block, funded.block)
    assert [e.trade_id for e in told if isinstance(e, FundedEvent)] == [
        quote.trade_id for quote, _ in quotes[:3]
    ]
    assert buyer.balance(market.domain.escrow) == sum(quote.price for quote, _ in quotes)
    assert 10 * funded.gas_used <= 9 * 3 * alone.gas_used, (funded.gas_used, alone.gas_used)
    assert 2 * funded.gas_used <= 3 * GAS_LIMITS[FundMany], funded.gas_used


def test_another_chain_no_code_or_other_code_is_not_our_market(market: Market) -> None:
    def opens(domain: Domain, broker: Address | None = None) -> None:
        open_escrow(market.endpoint, BUYER, domain, broker=broker).close()

    chain_id, escrow = market.domain.chain_id, market.domain.escrow
    opens(market.domain)
    with pytest.raises(WrongContractError, match="chain's id"):
        opens(Domain(chain_id=chain_id + 1, escrow=escrow))
    with pytest.raises(WrongContractError, match="no code"):
        opens(Domain(chain_id=chain_id, escrow=address_of(SELLER)))
    factory = Address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
    with pytest.raises(WrongContractError, match="not that of ParameterEscrow"):
        opens(Domain(chain_id=chain_id, escrow=factory))
    with pytest.raises(WrongContractError, match="does not list broker"):
        opens(market.domain, address_of(SELLER))


def test_an_escrow_says_who_has_a_seat_in_it(market: Market) -> None:
    escrow = market.escrow(BUYER)
    assert escrow.seat(address_of(BROKER)) is Seat.TAKEN
    assert escrow.seat(address_of(SELLER)) is Seat.STRANGER


def test_an_escrow_that_wants_more_signatures_than_one_is_not_for_this_version(
    market: Market,
) -> None:
    both = (address_of(BROKER), address_of(SELLER))
    plan = dataclasses.replace(PLAN, brokers=both, threshold=2)
    domain = deploy_market(market.client, BROKER, plan)
    with pytest.raises(WrongContractError, match="wants 2 brokers"):
        open_escrow(market.endpoint, BUYER, domain)


def test_a_bad_leaf_is_disputed_and_the_price_goes_back(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, goods, signature = bad_trade(market)
    do(buyer, Fund(quote, signature))
    do(seller, Reveal(quote, SECRET))
    good = do(buyer, Dispute(quote, goods.show(2)))
    assert (good.succeeded, good.revert) == (False, "GoodLeaf")
    disputed = do(buyer, Dispute(quote, goods.show(1)))
    assert disputed.succeeded
    assert buyer.trade_state(quote.trade_id).state is EscrowState.DISPUTED
    assert buyer.credit(buyer.account) == quote.price
    (event,) = buyer.events(disputed.block, disputed.block)
    assert event == DisputedEvent(disputed.block, event.transaction, quote.trade_id, 1, quote.price)
    assert do(seller, Finalize(quote)).revert == "WrongState"


def test_an_account_that_cannot_pay_for_the_whole_limit_disputes_with_what_it_takes(
    market: Market,
) -> None:
    """At 3 gwei the fixed limit costs 1.2 finney, and nearly all of it comes back unused."""
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, goods, _ = bad_trade(market)
    left = 10**15
    quote = dataclasses.replace(quote, price=Wei(buyer.balance(buyer.account) - left))
    do(buyer, Fund(quote, sign_digest(BROKER, digest(market.domain, quote))))
    dispute, nonce = Dispute(quote, goods.show(1)), buyer.next_nonce()
    fees = Fees(max_fee=Wei(3 * 10**9), tip=Wei(10**9))
    with pytest.raises(TransactionRefusedError, match="WrongState"):
        buyer.sign(dispute, nonce, fees)
    do(seller, Reveal(quote, SECRET))
    limit = buyer.gas_limit(Dispute, quote.encryptor)
    assert buyer.balance(buyer.account) < limit * fees.max_fee
    signed = buyer.sign(dispute, nonce, fees)
    buyer.broadcast(signed.raw)
    outcome = buyer.receipt(signed.hash)
    assert outcome is not None
    assert outcome.succeeded, outcome
    gas = gas_of(market, signed.hash)
    assert 1.2 * outcome.gas_used < gas < 0.7 * limit, (gas, outcome.gas_used)
    assert buyer.credit(buyer.account) == quote.price


def test_an_account_that_can_pay_disputes_with_the_fixed_limit(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, goods, signature = bad_trade(market)
    do(buyer, Fund(quote, signature))
    do(seller, Reveal(quote, SECRET))
    signed = buyer.sign(Dispute(quote, goods.show(1)), buyer.next_nonce())
    buyer.broadcast(signed.raw)
    limits = [buyer.gas_limit(Dispute, address_of(key)) for key in (SELLER, BROKER)]
    assert limits == [GAS_LIMITS[Dispute], BROKER_DISPUTE_GAS]
    assert gas_of(market, signed.hash) == limits[0]


def gas_of(market: Market, transaction: Digest) -> int:
    """Return the limit that a transaction was signed with."""
    sent = market.client.ask("eth_getTransactionByHash", "0x" + transaction.hex())
    return int(sent["gas"], 16)


def test_what_the_court_refuses_has_the_courts_own_name(market: Market) -> None:
    buyer = market.escrow(BUYER)
    quote, goods, signature = bad_trade(market)
    do(buyer, Fund(quote, signature))
    do(buyer, Reveal(quote, SECRET))
    shown = goods.show(1)
    other = Digest(b"\x66" * 32)
    for changes, name in (
        ({"dh": other}, "WrongSharedSecret"),
        ({"secret": other}, "WrongSecret"),
        ({"index": 3}, "NoSuchLeaf"),
        ({"leaf": b""}, "WrongLeafLength"),
        ({"goods_path": ()}, "WrongPathLength"),
        ({"leaf": bytes(1_024)}, "NotInGoods"),
        ({"offered": other}, "NotInOffer"),
    ):
        evidence = dataclasses.replace(shown, **changes)
        assert not proves_bad(quote, evidence)
        assert do(buyer, Dispute(quote, evidence)).revert == name
    market.clock.now += quote.dispute_window + 1
    assert do(buyer, Dispute(quote, shown)).revert == "DisputeClosed"


def test_a_buyer_can_pay_for_the_slashing_of_a_broker_of_sixteen_markets(market: Market) -> None:
    deaf = read_artifact(ARTIFACTS / "DeafMarket.json")
    wallet = Wallet(BROKER, market.domain.chain_id)
    registry = Functions("BrokerRegistry", registry_artifact().abi, ("serve",))
    for number in range(15):  # and the escrow itself
        part = Part(artifact=deaf, salt=Digest(bytes([number]) * 32), creation=deaf.bytecode)
        deploy_part(market.client, wallet, part)
        send_and_wait(
            market.client, wallet, PLAN.registry, registry.call("serve", part.address), Wei(0),
            gas=300_000, read_revert=lambda _: Revert("unknown"), timeout=5.0,
        )  # fmt: skip
    buyer, broker = market.escrow(BUYER), market.escrow(BROKER)
    quote, evidence, signature = tall_trade(market, levels=20, encryptor=broker.account)
    do(buyer, Fund(quote, signature))
    do(broker, Reveal(quote, SECRET))
    disputed = do(buyer, Dispute(quote, evidence))
    assert disputed.succeeded, disputed
    assert 1_000_000 < disputed.gas_used < 0.9 * BROKER_DISPUTE_GAS
    assert buyer.seat(broker.account) is Seat.EMPTY


def tall_trade(
    market: Market, *, levels: int = 24, encryptor: Address | None = None
) -> tuple[Quote, Evidence, bytes]:
    """Return a bad leaf of goods of so many levels: nothing but its two paths is needed."""
    quote = market.quote(2)[0]
    if encryptor is not None:
        quote = dataclasses.replace(quote, encryptor=encryptor)
    size = merkle.LEAF_BYTES << levels
    leaves = merkle.leaf_count(size)
    path = tuple(Digest(hashlib.sha256(bytes([level])).digest()) for level in range(levels))
    leaf = hashlib.shake_128(b"goods").digest(1_024)
    offered = Digest(hashlib.sha256(b"another leaf").digest())
    tops = []
    for start in (merkle.leaf_hash(0, leaf), offered):
        node: bytes = start
        for sibling in path:
            node = hashlib.sha256(b"\x01" + node + sibling).digest()
        tops.append(merkle.bind_root(node, leaves, size))
    small = bad_goods(Digest(SECRET), quote.trade_id)
    quote = dataclasses.replace(
        small.terms(quote),
        goods_root=tops[0], offer_root=tops[1], leaf_count=leaves, byte_length=size,
    )  # fmt: skip
    evidence = Evidence(
        secret=Digest(SECRET), dh=small.dh, index=0, leaf=leaf,
        goods_path=path, offered=offered, offer_path=path,
    )  # fmt: skip
    return quote, evidence, sign_digest(BROKER, digest(market.domain, quote))


def bad_trade(market: Market) -> tuple[Quote, Goods, bytes]:
    """Return a quote for goods of which leaf 1 is bad, those goods, and the broker's signature."""
    quote = market.quote()[0]
    goods = bad_goods(Digest(SECRET), quote.trade_id)
    quote = goods.terms(quote)
    return quote, goods, sign_digest(BROKER, digest(market.domain, quote))


def test_a_negative_block_is_our_own_mistake(market: Market) -> None:
    with pytest.raises(LocalProtocolError):
        market.escrow(BUYER).events(-1, 5)
