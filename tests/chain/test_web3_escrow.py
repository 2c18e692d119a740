"""The adapter against the development chain, in process and over loopback RPC."""

from __future__ import annotations

import dataclasses

import pytest

from node.chain.codec import GAS_LIMITS
from node.chain.errors import (
    FeeTooHighError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
    WrongContractError,
)
from node.chain.port import (
    Call,
    EscrowState,
    Fees,
    Finalize,
    Fund,
    FundedEvent,
    PaidEvent,
    Refund,
    RefundedEvent,
    Reveal,
    RevealedEvent,
    Withdraw,
    WithdrawnEvent,
)
from node.chain.web3_escrow import Web3Escrow, open_escrow
from node.protocol.eip712 import Domain
from node.protocol.errors import LocalProtocolError
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, UnixTime, Wei
from tests.chain.market import BROKER, BUYER, ETHER, SECRET, SELLER, Market, do


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
    assert events[3] == WithdrawnEvent(withdrawn.block, events[3].transaction, account, due)
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


def test_a_revert_is_named_after_the_contracts_own_error(market: Market) -> None:
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, signature = market.quote()
    _, foreign = market.quote(escrow=address_of(SELLER))

    def why(escrow: Web3Escrow, call: Call) -> str | None:
        outcome = do(escrow, call)
        assert not outcome.succeeded
        return outcome.revert

    assert why(seller, Fund(quote, signature)) == "NotBuyer"
    assert why(buyer, Fund(quote, foreign)) == "BadSignature"
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
    for kind, gas in used.items():
        assert 2 * gas <= GAS_LIMITS[kind], (kind, gas)


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
    with pytest.raises(WrongContractError, match="does not trust broker"):
        opens(market.domain, address_of(SELLER))


def test_an_escrow_says_whose_quotes_it_takes(market: Market) -> None:
    for key in (BUYER, SELLER):
        assert market.escrow(key).broker == address_of(BROKER)


def test_a_negative_block_is_our_own_mistake(market: Market) -> None:
    with pytest.raises(LocalProtocolError):
        market.escrow(BUYER).events(-1, 5)
