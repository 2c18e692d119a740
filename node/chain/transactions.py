"""Signing and sending one account's transactions, and naming what went wrong with them.

What endpoints say when they refuse, and what we call it (lower case, first match):

| said by geth, reth, anvil, hardhat, this project | becomes                             |
|--------------------------------------------------|-------------------------------------|
| already known, known transaction, ...            | nothing: it is there                |
| nonce too low, nonce has already been used, ...  | nothing if it was mined itself,     |
|                                                  | else `NonceTooLowError`             |
| insufficient funds, not enough balance, ...      | `UnfundedAccountError`              |
| revert data                                      | `TransactionRefusedError`, its name |
| txpool is full, rate limit, ...                  | `ChainUnavailableError`             |
| anything else about a raw transaction            | `TransactionRefusedError(message)`  |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from eth_account import Account
from eth_hash.auto import keccak

from node.chain import answers
from node.chain.client import ChainClient, EndpointRefusedError
from node.chain.errors import (
    ChainAnswerError,
    ChainUnavailableError,
    FeeTooHighError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.port import Fees, SignedTransaction, TransactionOutcome
from node.chain.reverts import UNKNOWN_REVERT, Revert
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, Wei

_POLL_SECONDS: Final = 0.5
DEFAULT_FEE_CEILING: Final = Wei(1_000 * 10**9)
"""1,000 gwei for a unit of gas: above what any network asks, below what a thief would."""

_KNOWN: Final = ("already known", "known transaction", "already imported")
_TOO_LOW: Final = ("nonce too low", "nonce has already been used", "invalid transaction nonce")
_UNFUNDED: Final = ("insufficient funds", "enough balance", "enough funds", "cannot afford")
_LATER: Final = (
    "txpool is full", "too many requests", "rate limit", "timeout", "limit exceeded",
    "internal error", "server error", "header not found", "does not exist", "not available",
)  # fmt: skip


class Wallet:
    """An account's key, and the chain id that it signs for."""

    def __init__(
        self, private_key: bytes, chain_id: int, fee_ceiling: Wei = DEFAULT_FEE_CEILING
    ) -> None:
        self.address: Address = address_of(private_key)
        self._key = private_key
        self._chain_id = chain_id
        self._fee_ceiling = fee_ceiling

    def fees(self, client: ChainClient) -> Fees:
        """Return the chain's present fees, with room for the base fee to double.

        Raises `FeeTooHighError` if that is above the ceiling: who believes an endpoint's
        fee pays it.
        """
        block = answers.mapping(client.ask("eth_getBlockByNumber", "latest", False), "a block")
        base = answers.wei(block.get("baseFeePerGas"), "baseFeePerGas")
        tip = answers.wei(client.ask("eth_maxPriorityFeePerGas"), "eth_maxPriorityFeePerGas")
        most = 2 * base + tip
        if most > self._fee_ceiling:
            raise FeeTooHighError(
                f"the endpoint asks {most} wei for a unit of gas; we pay {self._fee_ceiling}"
            )
        return Fees(max_fee=Wei(most), tip=tip)

    def sign(
        self, to: Address, data: bytes, value: Wei, *, gas: int, nonce: int, fees: Fees
    ) -> SignedTransaction:
        """Sign; the same arguments give the same bytes (RFC 6979)."""
        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": self._chain_id,
                "nonce": nonce,
                "to": to,
                "value": value,
                "data": data,
                "gas": gas,
                "maxFeePerGas": fees.max_fee,
                "maxPriorityFeePerGas": fees.tip,
            },
            self._key,
        )
        return SignedTransaction(Digest(bytes(signed.hash)), bytes(signed.raw_transaction), nonce)


def broadcast(client: ChainClient, raw: bytes, read_revert: Callable[[bytes], Revert]) -> None:
    """Hand a raw transaction to the endpoint; once it is there, again is fine.

    Raises `NonceTooLowError`, `UnfundedAccountError`, `TransactionRefusedError`, or
    `ChainUnavailableError`, after which it may or may not have arrived: repeat it.
    """
    try:
        client.ask("eth_sendRawTransaction", "0x" + raw.hex())
    except EndpointRefusedError as refusal:
        said = refusal.message.lower()
        if _any(_KNOWN, said):
            return
        if _any(_TOO_LOW, said):
            if client.ask("eth_getTransactionReceipt", "0x" + keccak(raw).hex()) is not None:
                return
            raise NonceTooLowError(refusal.message) from refusal
        if _any(_UNFUNDED, said):
            raise UnfundedAccountError(refusal.message) from refusal
        if refusal.data:
            raise read_revert(refusal.data).refusal() from refusal
        if _any(_LATER, said):
            raise ChainUnavailableError(refusal.message) from refusal
        raise TransactionRefusedError(refusal.message) from refusal


def _any(phrases: tuple[str, ...], said: str) -> bool:
    return any(phrase in said for phrase in phrases)


def outcome(
    client: ChainClient,
    transaction: Digest,
    read_revert: Callable[[bytes], Revert],
) -> TransactionOutcome | None:
    """Return how a transaction ended, None while it has not been mined.

    A call that reverted is made again, for what the contract says to it.
    """
    answer = client.ask("eth_getTransactionReceipt", "0x" + transaction.hex())
    if answer is None:
        return None
    fields = answers.mapping(answer, "a receipt")
    if answers.digest(fields.get("transactionHash"), "a receipt's hash") != transaction:
        raise ChainAnswerError(f"asked for receipt {transaction.hex()}, got another")
    block = answers.quantity(fields.get("blockNumber"), "a receipt's block")
    gas_used = answers.quantity(fields.get("gasUsed"), "gasUsed")
    price = answers.wei(fields.get("effectiveGasPrice"), "effectiveGasPrice")
    succeeded = answers.quantity(fields.get("status"), "a receipt's status", 1) == 1
    why = None if succeeded else _why(client, transaction, block, read_revert)
    return TransactionOutcome(
        succeeded=succeeded,
        block=block,
        gas_used=gas_used,
        revert=None if why is None else why.name,
        values=None if why is None else why.values,
        fee=Wei(gas_used * price),
    )


def _why(
    client: ChainClient, transaction: Digest, block: int, read_revert: Callable[[bytes], Revert]
) -> Revert:
    """Make a call again on the state and at the time of the block that it was mined in."""
    asked = client.ask("eth_getTransactionByHash", "0x" + transaction.hex())
    fields = answers.mapping(asked, "a transaction")
    call = {
        "from": fields.get("from"),
        "to": fields.get("to"),
        "gas": hex(answers.quantity(fields.get("gas"), "gas")),
        "value": hex(answers.wei(fields.get("value"), "value")),
        "data": "0x" + answers.data(fields.get("input"), "input").hex(),
    }
    try:
        client.ask("eth_call", call, hex(block))
    except EndpointRefusedError as refusal:
        if refusal.data is not None:
            return read_revert(refusal.data)
        return Revert(refusal.message[:200] or UNKNOWN_REVERT)
    return Revert(UNKNOWN_REVERT)


def send_and_wait(
    client: ChainClient,
    wallet: Wallet,
    to: Address,
    data: bytes,
    value: Wei,
    *,
    gas: int,
    read_revert: Callable[[bytes], Revert],
    timeout: float,
    save: Callable[[bytes], None] | None = None,
) -> TransactionOutcome:
    """Sign, send, and see it mined, for what is done once as a node starts or a command is typed.

    What was sent is not remembered: a caller asks the chain first what is left to do. Raises
    as `broadcast`, `CallRefusedError` or `TransactionRefusedError` if it reverts in a block, and
    `ChainUnavailableError` if it is not mined within `timeout` seconds.
    """
    nonce = client.nonce(wallet.address)
    signed = wallet.sign(to, data, value, gas=gas, nonce=nonce, fees=wallet.fees(client))
    if save is not None:
        save(signed.raw)
    broadcast(client, signed.raw, read_revert)
    deadline = time.monotonic() + timeout
    while (mined := outcome(client, signed.hash, read_revert)) is None:
        if time.monotonic() > deadline:
            raise ChainUnavailableError(f"a call of {to} was not mined within {timeout} s")
        time.sleep(_POLL_SECONDS)
    if mined.revert is None:
        return mined
    if mined.values is None:  # without values: what was sent, to be looked up by
        raise TransactionRefusedError(mined.revert, f"0x{signed.hash.hex()} to {to}")
    raise Revert(mined.revert, mined.values).refusal()
