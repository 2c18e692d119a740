"""Ether that no contract can refuse: a contract that destroys itself leaves it behind."""

from __future__ import annotations

import pytest
from eth_utils.hexadecimal import encode_hex

from contracts.stage import ZERO, Stage
from tests.contracts.conftest import Refused


def force(stage: Stage, account: str, amount: int) -> None:
    """Send an account ether without calling it: PUSH20 account SELFDESTRUCT."""
    code = b"\x73" + bytes.fromhex(account[2:]) + b"\xff"
    sender = stage.accounts["rival"]
    transaction = {"from": sender, "gas": 100_000, "value": amount, "data": encode_hex(code)}
    stage.chain.send_transaction(transaction)


# The opcode goes on sending what a contract has; EIP-6780 ended only the destruction of others.
@pytest.mark.filterwarnings("ignore:SELFDESTRUCT opcode:DeprecationWarning")
def test_ether_that_is_forced_in_belongs_to_nobody(stage: Stage, refused: Refused) -> None:
    house = stage.clearing_house()
    quote = stage.quote()
    stage.fund(quote)
    for contract in (stage.escrow, stage.registry, house):
        before = stage.balance(contract.address)
        force(stage, contract.address, 7)
        assert stage.balance(contract.address) == before + 7
        for account in (stage.accounts["rival"], contract.address):
            with refused("NothingOwed", ZERO, account.lower(), 0):
                stage.send("withdraw", ZERO, account, sender="rival", to=contract)
        with refused("NothingOwed", ZERO, stage.accounts["rival"].lower(), 0):
            stage.send("withdrawTo", ZERO, stage.accounts["rival"], 7, sender="rival", to=contract)
    with refused("WrongPayment", ZERO, 0, 7):
        stage.send("deposit", ZERO, stage.accounts["rival"], 7, sender="rival")
    stage.wait_until(quote.reveal_by + quote.grace + 1)
    stage.send("refund", quote, sender="rival")
    stage.send("withdraw", ZERO, quote.buyer, sender="rival")
    assert stage.balance(stage.escrow.address) == 7
