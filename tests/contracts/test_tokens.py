"""Tokens of every kind: paid as ETH is, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from contracts.stage import SECRET, ZERO, Contract, Quote, RevertedError, Stage, State, sign
from tests.contracts.conftest import Deploy, Refused

MAX = 2**256 - 1
PERMIT = "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"


def token(stage: Stage, deploy: Deploy, kind: str, approved: int = MAX) -> Contract:
    """Return a token of which the buyer has 1,000 and lets the escrow take so much."""
    contract = deploy(kind)
    stage.send("mint", stage.accounts["buyer"], 1_000, sender="stranger", to=contract)
    stage.send("approve", stage.escrow.address, approved, sender="buyer", to=contract)
    return contract


def held(stage: Stage, of: Contract, account: str) -> int:
    amount: int = stage.view("balanceOf", account, of=of)
    return amount


def quoted(stage: Stage, of: Contract, **changes: Any) -> Quote:
    return stage.quote(**{"asset": of.address, "price": 100, "fee": 1} | changes)


@pytest.mark.parametrize("kind", ["Token", "NoReturnToken"])
def test_a_trade_settles_in_a_token(stage: Stage, deploy: Deploy, kind: str) -> None:
    money = token(stage, deploy, kind)
    quote = quoted(stage, money)
    stage.fund(quote)
    assert held(stage, money, stage.escrow.address) == 100
    outcome = stage.send("reveal", quote, SECRET, sender="seller")
    stage.wait_until(outcome.time + quote.dispute_window + 1)
    stage.send("finalize", quote, sender="stranger")
    for role, due in (("seller", 99), ("treasury", 1)):
        account = stage.accounts[role]
        assert stage.view("credits", money.address, account) == due
        assert stage.view("credits", ZERO, account) == 0
        stage.send("withdraw", money.address, account, sender="stranger")
        assert held(stage, money, account) == due
    assert held(stage, money, stage.escrow.address) == 0


def test_ether_beside_a_token_is_refused(stage: Stage, deploy: Deploy, refused: Refused) -> None:
    money = token(stage, deploy, "Token")
    quote = quoted(stage, money)
    with refused("WrongPayment", ZERO, 1, 0):
        stage.send("fund", quote, stage.signature(quote), sender="buyer", value=1)


def test_a_token_that_keeps_a_part_is_refused(
    stage: Stage, deploy: Deploy, refused: Refused
) -> None:
    money = token(stage, deploy, "FeeToken")
    with refused("WrongPayment", money.address.lower(), 99, 100):
        stage.fund(quoted(stage, money))
    with refused("WrongPayment", money.address.lower(), 198, 200):
        arguments = (money.address, stage.accounts["buyer"], 200)
        stage.send("deposit", *arguments, sender="buyer")


def test_a_token_that_takes_balances_away_harms_its_own_accounts_alone(
    stage: Stage, deploy: Deploy
) -> None:
    """Who trades in it bears it; what is held in ether and in other tokens stays whole."""
    money, other = token(stage, deploy, "RebasingToken"), token(stage, deploy, "Token")
    buyer = stage.accounts["buyer"]
    stage.send("deposit", ZERO, buyer, 100, sender="buyer", value=100)
    for asset in (money, other):
        stage.send("deposit", asset.address, buyer, 100, sender="buyer")
        stage.send("giveDepositNotice", asset.address, 100, sender="buyer")
    stage.send("rebase", stage.escrow.address, 40, sender="rival", to=money)
    stage.wait_until(stage.now() + 30 * 86_400)
    for asset in (money, other):
        stage.send("releaseDeposit", asset.address, sender="buyer")
    with pytest.raises(RevertedError) as refusal:
        stage.send("withdraw", money.address, buyer, sender="buyer")
    assert refusal.value.name == "ERC20InsufficientBalance"
    stage.send("withdrawTo", money.address, buyer, 40, sender="buyer")
    stage.send("withdraw", other.address, buyer, sender="buyer")
    assert held(stage, other, buyer) == 1_000
    assert stage.balance(stage.escrow.address) == 100


def test_a_token_that_shrinks_while_it_is_collected_is_refused(
    stage: Stage, deploy: Deploy, refused: Refused
) -> None:
    money = token(stage, deploy, "RebasingToken")
    stage.send("deposit", money.address, stage.accounts["buyer"], 7, sender="buyer")
    stage.send("emptyNext", stage.escrow.address, sender="rival", to=money)
    with refused("WrongPayment", money.address.lower(), 0, 100):
        stage.fund(quoted(stage, money))


def test_sums_that_no_word_holds_are_refused(
    stage: Stage, deploy: Deploy, refused: Refused
) -> None:
    """Only a token that takes back what it gave brings anybody so far."""
    money = deploy("RebasingToken")
    buyer, asset, half = stage.accounts["buyer"], money.address, 2**255
    stage.send("approve", stage.escrow.address, MAX, sender="buyer", to=money)
    pay = ("deposit", asset, buyer, half)
    quotes = [
        stage.quote(asset=asset, price=half, fee=0, trade_id=bytes([n]) * 32) for n in range(2)
    ]
    for quote in quotes:
        stage.send("mint", buyer, half, sender="rival", to=money)
        stage.fund(quote)
        stage.send("rebase", stage.escrow.address, 0, sender="rival", to=money)
    stage.send("mint", buyer, half, sender="rival", to=money)
    stage.send(*pay, sender="buyer")
    stage.send("rebase", stage.escrow.address, 0, sender="rival", to=money)
    stage.send("mint", buyer, half, sender="rival", to=money)
    with refused("SumTooLarge", asset.lower(), buyer.lower(), half, half):
        stage.send(*pay, sender="buyer")
    stage.send("deposit", asset, buyer, half - 1, sender="buyer")
    outcome = stage.send("revealMany", quotes, [SECRET] * 2, sender="seller")
    stage.wait_until(outcome.time + quotes[0].dispute_window + 1)
    stage.send("finalize", quotes[0], sender="stranger")
    with refused("SumTooLarge", asset.lower(), stage.accounts["seller"].lower(), half, half):
        stage.send("finalize", quotes[1], sender="stranger")


def test_an_asset_without_code_is_refused(stage: Stage, refused: Refused) -> None:
    nothing = "0x" + "11" * 20
    with refused("NotAToken", nothing):
        stage.fund(stage.quote(asset=nothing))
    with refused("NotAToken", nothing):
        quote = stage.quote(asset=nothing)
        stage.send("fundWithPermit", quote, stage.signature(quote), 0, 0, b"", b"", sender="buyer")


def test_a_token_that_was_not_approved_is_refused(stage: Stage, deploy: Deploy) -> None:
    money = token(stage, deploy, "NoReturnToken", approved=99)
    with pytest.raises(RevertedError):
        stage.fund(quoted(stage, money))


def calls(stage: Stage, money: Contract, function: str, *arguments: Any) -> None:
    """Let the token make a call in the midst of its next transfer."""
    data = stage.escrow.calldata(function, arguments)
    stage.send("callNext", stage.escrow.address, data, sender="rival", to=money)


def test_a_token_that_calls_back_cannot_pay_twice_with_one_transfer(
    stage: Stage, deploy: Deploy
) -> None:
    money = token(stage, deploy, "CallingToken")
    calls(stage, money, "deposit", money.address, stage.accounts["rival"], 100)
    stage.fund(quoted(stage, money))
    selector = next(k for k, e in stage.escrow.errors.items() if e["name"] == "Reentered")
    assert not stage.view("succeeded", of=money)
    assert stage.view("answer", of=money) == selector
    assert stage.view("deposits", money.address, stage.accounts["rival"]) == 0


def test_a_token_that_calls_back_cannot_withdraw_what_is_not_there(
    stage: Stage, deploy: Deploy
) -> None:
    """The rival draws its credits in the midst of a payment: the payment falls short."""
    money = token(stage, deploy, "CallingToken")
    rival = stage.accounts["rival"]
    quote = quoted(stage, money, seller=rival, fee=0)
    stage.fund(quote)
    outcome = stage.send("reveal", quote, SECRET, sender="seller")
    stage.wait_until(outcome.time + quote.dispute_window + 1)
    stage.send("finalize", quote, sender="stranger")
    calls(stage, money, "withdraw", money.address, rival)
    second = quoted(stage, money, trade_id=b"2" * 32)
    with pytest.raises(RevertedError) as refusal:
        stage.fund(second)
    assert refusal.value.name in {"WrongPayment", "unnamed"}
    assert stage.trade(second.trade_id)[0] is State.NONE
    assert held(stage, money, stage.escrow.address) == 100


# permit


def permit(stage: Stage, money: Contract, value: int) -> tuple[int, int, bytes, bytes]:
    """Return the buyer's signed approval: deadline, v, r, s."""
    deadline = stage.now() + 1_000
    owner, spender = stage.accounts["buyer"], stage.escrow.address
    nonce = stage.view("nonces", owner, of=money)
    kinds = ["bytes32", "address", "address", "uint256", "uint256", "uint256"]
    words = (keccak(text=PERMIT), owner, spender, value, nonce, deadline)
    signed = sign(stage.keys["buyer"], stage.digest(keccak(encode(kinds, words)), money))
    return deadline, signed[64], signed[:32], signed[32:64]


def test_a_signed_approval_funds_in_one_transaction(stage: Stage, deploy: Deploy) -> None:
    money = token(stage, deploy, "Token", approved=0)
    quote = quoted(stage, money)
    signed = permit(stage, money, quote.price)
    stage.send("fundWithPermit", quote, stage.signature(quote), *signed, sender="buyer")
    assert stage.trade(quote.trade_id)[0] is State.FUNDED


def test_a_permit_that_somebody_used_first_still_funds(stage: Stage, deploy: Deploy) -> None:
    money = token(stage, deploy, "Token", approved=0)
    quote = quoted(stage, money)
    signed = permit(stage, money, quote.price)
    arguments = (stage.accounts["buyer"], stage.escrow.address, quote.price, *signed)
    stage.send("permit", *arguments, sender="rival", to=money)
    stage.send("fundWithPermit", quote, stage.signature(quote), *signed, sender="buyer")
    assert held(stage, money, stage.escrow.address) == quote.price


def test_a_permit_for_too_little_is_refused(stage: Stage, deploy: Deploy) -> None:
    money = token(stage, deploy, "Token", approved=0)
    quote = quoted(stage, money)
    signed = permit(stage, money, quote.price - 1)
    with pytest.raises(RevertedError):
        stage.send("fundWithPermit", quote, stage.signature(quote), *signed, sender="buyer")


def test_ether_takes_no_permit(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    with refused("WrongPayment", ZERO, 0, quote.price):
        signed = (0, 27, bytes(32), bytes(32))
        stage.send("fundWithPermit", quote, stage.signature(quote), *signed, sender="buyer")
