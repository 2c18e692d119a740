"""A broker's bond, from the notice to the money; and what becomes of it by a second quote."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from node.chain.deploy import deploy_market
from node.chain.errors import (
    CallRefusedError,
    NotSeatedError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.port import Seat
from node.chain.registry import CALL_GAS, RegistryCall, Web3Registry
from node.chain.reverts import Revert
from node.chain.seats import take_seat
from node.chain.transactions import Wallet, send_and_wait
from node.protocol.eip712 import digest
from node.protocol.equivocation import Equivocation, equivocations
from node.protocol.errors import RemoteProtocolError
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import Address, Wei
from tests.chain.market import BOND, BROKER, BUYER, PLAN, SELLER, START, Market

WHO, VICTIM, REPORTER = address_of(BROKER), address_of(BUYER), address_of(SELLER)
EXIT_DELAY = 100 * 86_400
Proof = Callable[[], Equivocation]


def registry_of(market: Market, key: bytes) -> Web3Registry:
    return Web3Registry(market.client, Wallet(key, market.domain.chain_id), PLAN.registry)


def proof_of(market: Market) -> Equivocation:
    """What the broker can be shown to have signed: two prices of one trade."""
    first, signature = market.quote()
    second, other = market.quote(price=2 * first.price)
    (proof,) = equivocations(market.domain, first, signature, second, other)
    return proof


def balance(market: Market, account: Address) -> int:
    return int(market.client.ask("eth_getBalance", account, "latest"), 16)


def slash(market: Market) -> None:
    registry = registry_of(market, SELLER)
    registry.send(registry.prove_equivocation(market.domain.escrow, proof_of(market)))


# ── leaving ──


def test_a_broker_leaves_with_its_bond_a_hundred_days_after_its_notice(market: Market) -> None:
    registry = registry_of(market, BROKER)
    before = registry.standing(WHO)
    assert (before.bond, before.leaves_at, before.credit) == (BOND, None, 0)
    assert before.markets == (market.domain.escrow,)
    registry.send(registry.give_notice(before))
    leaving = registry.standing(WHO)
    assert leaving.leaves_at == START + EXIT_DELAY
    assert market.escrow(BROKER).seat(WHO) is Seat.EMPTY
    with pytest.raises(CallRefusedError) as refusal:
        registry.send(registry.take_bond(leaving))
    assert refusal.value.reason == "TooEarlyToLeave"
    assert refusal.value.values["leavesAt"] == leaving.leaves_at
    market.clock.now += EXIT_DELAY
    market.escrow(BROKER).head()  # a chain whose clock has moved has a new block
    registry.send(registry.take_bond(leaving))
    assert registry.standing(WHO).bond == 0
    assert registry.credit(WHO) == BOND
    held = balance(market, WHO)
    paid = registry.send(registry.withdraw(WHO)).fee
    assert balance(market, WHO) == held + BOND - paid
    assert balance(market, PLAN.registry) == 0


def test_what_the_contract_would_refuse_is_not_paid_for(market: Market) -> None:
    registry = registry_of(market, SELLER)
    nobody, held = registry.standing(REPORTER), balance(market, REPORTER)
    for call, reason in (
        (registry.put_up(Wei(BOND - 1)), "BondTooSmall"),
        (registry.serve(market.domain.escrow), "NoBond"),
        (registry.give_notice(nobody), "NoBond"),
        (registry.take_bond(nobody), "NoNotice"),
        (registry.withdraw(REPORTER), "NothingOwed"),
        (registry.unseat(market.domain.escrow, WHO), "StillServing"),
    ):
        with pytest.raises(CallRefusedError, match=reason):
            registry.send(call)
    assert balance(market, REPORTER) == held
    assert market.client.nonce(REPORTER) == 0
    poor = registry_of(market, b"\x09" * 32)
    with pytest.raises(UnfundedAccountError):
        poor.send(poor.unseat(market.domain.escrow, VICTIM))  # nothing to do, and not for nothing
    assert registry.send(registry.unseat(market.domain.escrow, VICTIM)).succeeded


def test_a_broker_of_sixteen_markets_can_leave_all_the_same(market: Market) -> None:
    registry = registry_of(market, BROKER)
    escrow_and_others = (Address("0x" + f"{n:040x}") for n in range(100, 115))
    for other in escrow_and_others:
        registry.send(registry.serve(other))
    found = registry.standing(WHO)
    assert len(found.markets) == registry.most_markets() == 16
    notice = registry.give_notice(found)
    assert registry.send(notice).gas_used * 2 < notice.gas
    market.clock.now += EXIT_DELAY
    market.escrow(BROKER).head()
    taken = registry.take_bond(found)
    assert registry.send(taken).gas_used * 2 < taken.gas


def test_a_broker_of_sixteen_markets_is_told_why_it_takes_no_seat_in_another(
    market: Market,
) -> None:
    registry = registry_of(market, BUYER)
    market.client.request_funds(VICTIM, Wei(10 * BOND))
    registry.send(registry.put_up(BOND))
    for number in range(16):
        registry.send(registry.serve(Address("0x" + f"{100 + number:040x}")))
    plan = dataclasses.replace(PLAN, brokers=(VICTIM,))

    domain = deploy_market(market.client, BROKER, plan)
    nonce = market.client.nonce(VICTIM)
    with pytest.raises(NotSeatedError, match="16 markets"):
        take_seat(market.client, BUYER, domain, bond=BOND)
    assert market.client.nonce(VICTIM) == nonce


# ── two quotes of one trade ──


def test_two_quotes_of_one_trade_slash_their_broker_and_pay_buyer_and_reporter(
    market: Market,
) -> None:
    slash(market)
    registry = registry_of(market, SELLER)
    culprit = registry.standing(WHO)
    assert (culprit.bond, culprit.slashed, culprit.markets) == (0, True, ())
    assert market.escrow(BROKER).seat(WHO) is Seat.EMPTY
    assert registry.credit(VICTIM) == registry.credit(REPORTER) == BOND // 20
    held = balance(market, VICTIM)
    registry.send(registry.withdraw(VICTIM))
    assert balance(market, VICTIM) == held + BOND // 20
    with pytest.raises(CallRefusedError) as again:
        slash(market)
    assert (again.value.reason, again.value.values) == ("NoBond", {"broker": WHO})


def test_a_signature_that_is_not_the_brokers_slashes_nobody(market: Market) -> None:
    registry, proof = registry_of(market, SELLER), proof_of(market)
    forged = dataclasses.replace(
        proof.second,
        signature=sign_digest(SELLER, digest(market.domain, proof.second.quote)),
    )
    changed = dataclasses.replace(proof, second=forged)
    with pytest.raises(CallRefusedError) as refusal:
        registry.send(registry.prove_equivocation(market.domain.escrow, changed))
    assert refusal.value.reason == "NotSignedBy"
    assert refusal.value.values["broker"] == WHO
    same = dataclasses.replace(proof, second=proof.first)
    with pytest.raises(CallRefusedError, match="NotAConflict"):
        registry.send(registry.prove_equivocation(market.domain.escrow, same))
    assert registry.standing(WHO).bond == BOND


def test_what_is_no_conflict_is_found_before_a_chain_is_asked(market: Market) -> None:
    domain = market.domain
    first, signature = market.quote()
    other, of_other = market.quote(number=1)
    dearer, of_dearer = market.quote(price=2 * first.price)
    by_seller = sign_digest(SELLER, digest(domain, dearer))
    for second, signed, said in (
        (other, of_other, "the second of 0x"),
        (first, signature, "both are the quote"),
        (dearer, by_seller, "nobody signed both"),
        (dearer, signature, "nobody signed both"),
    ):
        with pytest.raises(RemoteProtocolError, match=said) as refused:
            equivocations(domain, first, signature, second, signed)
        assert refused.value.reason == "no-conflict"
    (proof,) = equivocations(domain, first, signature, dearer, of_dearer)
    assert (proof.broker, proof.victim) == (WHO, VICTIM)
    two = dataclasses.replace(dearer, buyer=REPORTER)
    signed = sign_digest(BROKER, digest(domain, two))
    (proof,) = equivocations(domain, first, signature, two, signed)
    assert proof.victim is None


# ── a way to the seat that is shut ──


def test_a_slashed_broker_is_told_so_and_pays_nothing(market: Market) -> None:
    slash(market)
    held, nonce = balance(market, WHO), market.client.nonce(WHO)
    for bond in (BOND, None):
        with pytest.raises(NotSeatedError, match=f"{WHO} in the registry .* slashed"):
            take_seat(market.client, BROKER, market.domain, bond=bond)
    assert (balance(market, WHO), market.client.nonce(WHO)) == (held, nonce)


def test_a_call_that_reverts_in_a_block_has_the_contracts_own_name_and_values(
    market: Market,
) -> None:
    """As where the chain changed since it was asked, or its endpoint tries nothing."""
    slash(market)
    registry = registry_of(market, BROKER)

    def mined(call: RegistryCall, read: Callable[[bytes], Revert]) -> None:
        wallet = Wallet(BROKER, market.domain.chain_id)
        send_and_wait(
            *(market.client, wallet, call.to, call.data, call.value),
            gas=call.gas,
            read_revert=read,
            timeout=5.0,
        )

    nonce = market.client.nonce(WHO)
    with pytest.raises(CallRefusedError) as refusal:
        mined(registry.put_up(BOND), registry._reverts.read)
    assert (refusal.value.reason, refusal.value.values) == ("WasSlashed", {"broker": WHO})
    with pytest.raises(CallRefusedError) as refusal:
        mined(registry.serve(market.domain.escrow), registry._reverts.read)
    assert (refusal.value.reason, refusal.value.values) == ("NoBond", {"broker": WHO})
    with pytest.raises(TransactionRefusedError, match="unknown: 0x") as unknown:
        mined(registry.put_up(BOND), lambda _: Revert("unknown"))
    assert not isinstance(unknown.value, CallRefusedError)
    assert market.client.nonce(WHO) == nonce + 3
    no_code = RegistryCall(name="bond", to=VICTIM, data=b"", gas=CALL_GAS)
    mined(no_code, registry._reverts.read)
