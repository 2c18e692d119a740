"""Blocks, transactions, receipts and logs as JSON: the shapes of Ethereum's execution-apis."""

from __future__ import annotations

from typing import Any

from node.chain.evm import Log, Mined, max_fee_of, tip_of, type_of
from node.protocol.schema import checksummed

_HEADER_BYTES = 640  # what an RLP header of this fork takes; clients only show it


def quantity(value: int) -> str:
    """Return a number as shortest hex."""
    return hex(value)


def hexed(value: bytes) -> str:
    """Return bytes as hex."""
    return "0x" + value.hex()


def block_json(header: Any, mined: Mined | None, *, full: bool, pending: bool) -> dict[str, Any]:
    """Return a block (py-evm's type knows no fork's fields); `pending` ones have no hash."""
    transactions: list[Any] = []
    if mined is not None:
        transactions = [tx_json(mined) if full else hexed(mined.hash)]
    return {
        "number": quantity(header.block_number),
        "hash": None if pending else hexed(header.hash),
        "parentHash": hexed(header.parent_hash),
        "nonce": hexed(header.nonce),
        "sha3Uncles": hexed(header.uncles_hash),
        "logsBloom": _bloom(header.bloom),
        "transactionsRoot": hexed(header.transaction_root),
        "stateRoot": hexed(header.state_root),
        "receiptsRoot": hexed(header.receipt_root),
        "miner": checksummed(header.coinbase),
        "difficulty": quantity(header.difficulty),
        "totalDifficulty": quantity(0),
        "extraData": hexed(header.extra_data),
        "mixHash": hexed(header.mix_hash),
        "size": quantity(_HEADER_BYTES + sum(len(t.transaction.data) for t in _some(mined))),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "baseFeePerGas": quantity(header.base_fee_per_gas),
        "withdrawals": [],
        "withdrawalsRoot": hexed(header.withdrawals_root),
        "blobGasUsed": quantity(header.blob_gas_used),
        "excessBlobGas": quantity(header.excess_blob_gas),
        "parentBeaconBlockRoot": hexed(header.parent_beacon_block_root),
        "requestsHash": hexed(header.requests_hash),
        "transactions": transactions,
        "uncles": [],
    }


def tx_json(mined: Mined) -> dict[str, Any]:
    """Return a mined transaction."""
    transaction: Any = mined.transaction  # the fields differ by type
    kind = type_of(transaction)
    shape: dict[str, Any] = {
        **_place(mined),
        "type": quantity(kind),
        "hash": hexed(mined.hash),
        "nonce": quantity(transaction.nonce),
        "from": checksummed(transaction.sender),
        "to": checksummed(transaction.to) if transaction.to else None,
        "value": quantity(transaction.value),
        "gas": quantity(transaction.gas),
        "gasPrice": quantity(mined.gas_price),
        "input": hexed(transaction.data),
        "chainId": quantity(transaction.chain_id),
        "r": quantity(transaction.r),
        "s": quantity(transaction.s),
    }
    if kind == 0:
        return shape | {"v": quantity(transaction.v)}
    parity = quantity(transaction.y_parity)
    shape |= {
        "v": parity,
        "yParity": parity,
        "accessList": [
            {
                "address": checksummed(address),
                "storageKeys": [hexed(slot.to_bytes(32, "big")) for slot in slots],
            }
            for address, slots in transaction.access_list
        ],
    }
    if kind == 1:
        return shape
    return shape | {
        "maxFeePerGas": quantity(max_fee_of(transaction)),
        "maxPriorityFeePerGas": quantity(tip_of(transaction)),
    }


def receipt_json(mined: Mined) -> dict[str, Any]:
    """Return what became of a transaction."""
    transaction: Any = mined.transaction
    return {
        **_place(mined),
        "transactionHash": hexed(mined.hash),
        "type": quantity(type_of(transaction)),
        "status": quantity(int(mined.succeeded)),
        "from": checksummed(transaction.sender),
        "to": checksummed(transaction.to) if transaction.to else None,
        "contractAddress": checksummed(mined.created) if mined.created else None,
        "gasUsed": quantity(mined.gas_used),
        "cumulativeGasUsed": quantity(mined.gas_used),
        "effectiveGasPrice": quantity(mined.gas_price),
        "logsBloom": _bloom(mined.bloom),
        "logs": [log_json(mined, index, log) for index, log in enumerate(mined.logs)],
    }


def log_json(mined: Mined, index: int, log: Log) -> dict[str, Any]:
    """Return one log."""
    return {
        **_place(mined),
        "transactionHash": hexed(mined.hash),
        "address": checksummed(log.address),
        "topics": [hexed(topic) for topic in log.topics],
        "data": hexed(log.data),
        "logIndex": quantity(index),
        "removed": False,
    }


def _place(mined: Mined) -> dict[str, Any]:
    """Return where a transaction is: alone in its block, so always the first."""
    return {
        "blockHash": hexed(mined.header.hash),
        "blockNumber": quantity(mined.header.block_number),
        "transactionIndex": quantity(0),
    }


def _bloom(value: int) -> str:
    return hexed(value.to_bytes(256, "big"))


def _some(mined: Mined | None) -> tuple[Mined, ...]:
    return () if mined is None else (mined,)
