"""The machine inside eth-tester, driven block by block.

eth-tester's own front is made for one test in one process: random block hashes, linear
searches, whole-history log filters. What a chain of several processes needs is the py-evm
below it, at the same version and fork, so that gas is eth-tester's gas. Two departures,
both for the sake of deadlines that are counted in seconds:

- one transaction is one block, and a block may have its parent's timestamp: a hundred
  transactions in one second must not carry the chain's clock minutes into the future;
- an empty block is cheap (no execution), so that the clock can follow the wall.

Given the same genesis and the same (raw transaction, timestamp) pairs, every header hash
is the same: that is what makes replay of a log a restart. Nothing here locks or writes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from eth.abc import BlockHeaderAPI, ComputationAPI, SignedTransactionAPI, StateAPI
from eth.chains.base import MiningChain
from eth.constants import (
    BLANK_ROOT_HASH,
    POST_MERGE_DIFFICULTY,
    POST_MERGE_MIX_HASH,
    POST_MERGE_NONCE,
    ZERO_ADDRESS,
)
from eth.db import get_db_backend
from eth.exceptions import HeaderNotFound, PyEVMError, UnrecognizedTransactionType
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_hash.auto import keccak
from eth_typing import Address as RawAddress
from eth_typing import BlockNumber, Hash32
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]

from node.chain.errors import NonceTooLowError, TransactionRefusedError, UnfundedAccountError
from node.protocol.types import Digest, UnixTime, Wei

GAS_LIMIT: Final = 30_000_000
MAX_RAW_BYTES: Final = 128 * 1024
_SUPPORTED_TYPES: Final = frozenset({0, 1, 2})


class _DevelopmentVM(PragueVM):
    """Prague, except that a block may be as old as its parent."""

    @classmethod
    def validate_header(cls, header: BlockHeaderAPI, parent_header: BlockHeaderAPI) -> None:
        if header.timestamp == parent_header.timestamp:
            header = header.copy(timestamp=header.timestamp + 1)
        super().validate_header(header, parent_header)


@dataclass(frozen=True, slots=True)
class Genesis:
    """Everything that the first block depends on."""

    chain_id: int
    timestamp: UnixTime
    balances: dict[bytes, Wei]
    codes: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Log:
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction that is in the chain, alone in its block."""

    transaction: SignedTransactionAPI
    header: BlockHeaderAPI
    succeeded: bool
    gas_used: int
    gas_price: Wei
    """What each unit cost: base fee and tip."""
    bloom: int
    logs: tuple[Log, ...]
    created: bytes | None
    """Address of the contract, where the transaction was a creation."""

    @property
    def hash(self) -> Digest:
        return Digest(bytes(self.transaction.hash))


@dataclass(frozen=True, slots=True)
class Message:
    """A call to simulate."""

    sender: bytes
    to: bytes
    data: bytes
    value: int
    gas: int


class Reverted(Exception):  # noqa: N818 - a simulated call's outcome, not a failure of ours
    """A simulated call failed; `data` is what the contract said."""

    def __init__(self, data: bytes, reason: str) -> None:
        super().__init__(reason)
        self.data = data


class Evm:
    """A chain in memory, from its genesis. Not thread-safe."""

    def __init__(self, genesis: Genesis) -> None:
        self.chain_id = genesis.chain_id
        chain_class = type(
            "DevelopmentChain",
            (MiningChain,),
            {
                "chain_id": genesis.chain_id,
                "vm_configuration": ((BlockNumber(0), _DevelopmentVM),),
                "create_header_from_parent": _constant_gas_limit,
            },
        )
        parameters = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": GAS_LIMIT,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "receipt_root": BLANK_ROOT_HASH,
            "timestamp": genesis.timestamp,
            "transaction_root": BLANK_ROOT_HASH,
        }
        accounts = {
            address: {
                "balance": genesis.balances.get(address, 0),
                "code": genesis.codes.get(address, b""),
                "nonce": 0,
                "storage": {},
            }
            for address in sorted({*genesis.balances, *genesis.codes})
        }
        self._chain: Any = chain_class.from_genesis(get_db_backend(), parameters, accounts)  # type: ignore[attr-defined]
        self.head: BlockHeaderAPI = self._chain.get_canonical_head()

    # --- reading

    def header(self, number: int) -> BlockHeaderAPI | None:
        """Return a mined block's header."""
        if not 0 <= number <= self.head.block_number:
            return None
        if number == self.head.block_number:
            return self.head
        found: BlockHeaderAPI = self._chain.get_canonical_block_header_by_number(
            BlockNumber(number)
        )
        return found

    def header_by_hash(self, block_hash: bytes) -> BlockHeaderAPI | None:
        """Return a mined block's header."""
        try:
            found: BlockHeaderAPI = self._chain.get_block_header_by_hash(Hash32(block_hash))
        except HeaderNotFound:
            return None
        return found

    def state(self, header: BlockHeaderAPI) -> StateAPI:
        """Return the state after `header`'s block, to read from."""
        state: StateAPI = self._chain.get_vm(at_header=header).state
        return state

    def pending_header(self, timestamp: UnixTime) -> BlockHeaderAPI:
        """Return the header that the next block would have."""
        header: BlockHeaderAPI = self._chain.header.copy(timestamp=timestamp)
        return header

    def simulate(self, message: Message, header: BlockHeaderAPI) -> bytes:
        """Run a call, free of gas costs, in the time and state of `header`; keep nothing.

        Raises `Reverted`, or `UnfundedAccountError` if the sender has not the value.
        """
        state = self._free_state(header)
        computation = self._apply(state, self._spoof(state, message))
        return bytes(computation.output)

    def estimate_gas(self, message: Message, header: BlockHeaderAPI) -> int:
        """Return a gas limit with which the call succeeds, a 64th above the least at most.

        Looked for upwards from what it uses: each try runs the call, and most need little more
        (a 64th is held back in each call of another contract). Raises as `simulate`.
        """
        state = self._free_state(header)

        def run(gas: int) -> int:
            snapshot = state.snapshot()  # each is good for one return
            spoof = self._spoof(state, dataclasses.replace(message, gas=gas))
            try:
                return int(spoof.intrinsic_gas + self._apply(state, spoof).get_gas_used())
            finally:
                state.revert(snapshot)

        def succeeds(gas: int) -> bool:
            try:
                run(gas)
            except (Reverted, TransactionRefusedError):
                return False
            return True

        used = run(message.gas)
        low, high, margin = used - 1, min(used, message.gas), used // 32
        while not succeeds(high) and high < message.gas:
            low, high, margin = high, min(used + margin, message.gas), 2 * margin
        while high - low > used // 64:
            middle = (low + high) // 2
            low, high = (low, middle) if succeeds(middle) else (middle, high)
        return high

    def _free_state(self, header: BlockHeaderAPI) -> StateAPI:
        return self.state(header.copy(base_fee_per_gas=0))

    def _spoof(self, state: StateAPI, message: Message) -> Any:
        builder = self._chain.get_vm().get_transaction_builder()
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            self.chain_id,
            state.get_nonce(RawAddress(message.sender)),
            0,
            0,
            message.gas,
            message.to,
            message.value,
            message.data,
            (),
        )
        return SpoofTransaction(unsigned, from_=message.sender)

    def _apply(self, state: StateAPI, transaction: Any) -> ComputationAPI:
        try:
            computation = state.apply_transaction(transaction)
        except ValidationError as error:
            if state.get_balance(transaction.sender) < transaction.value:
                raise UnfundedAccountError("insufficient funds for transfer") from error
            raise TransactionRefusedError(str(error)) from error
        if computation.is_error:
            raise Reverted(bytes(computation.output), type(computation.error).__name__)
        return computation

    # --- writing

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """Read a raw transaction, and check all that does not depend on the state.

        Raises `TransactionRefusedError`.
        """
        if not 0 < len(raw) <= MAX_RAW_BYTES:
            raise TransactionRefusedError("invalid transaction", f"{len(raw)} bytes")
        builder = self._chain.get_vm().get_transaction_builder()
        try:
            transaction: SignedTransactionAPI = builder.decode(raw)
            transaction.validate()
            transaction.check_signature_validity()
        except (
            RLPException,
            UnrecognizedTransactionType,
            ValidationError,
            PyEVMError,
            NotImplementedError,
        ) as error:
            raise TransactionRefusedError("invalid transaction", str(error)) from error
        if transaction.hash != keccak(raw):
            raise TransactionRefusedError("invalid transaction", "its encoding is not canonical")
        if type_of(transaction) not in _SUPPORTED_TYPES:
            raise TransactionRefusedError("transaction type not supported")
        if transaction.chain_id != self.chain_id:
            raise TransactionRefusedError(
                "invalid chain id for signer", f"have {transaction.chain_id} want {self.chain_id}"
            )
        return transaction

    def check(self, transaction: SignedTransactionAPI, timestamp: UnixTime) -> None:
        """Check that the next block can hold the transaction; change nothing.

        Raises `NonceTooLowError`, `UnfundedAccountError` or `TransactionRefusedError`.
        """
        header = self.pending_header(timestamp)
        vm = self._chain.get_vm(header)
        nonce = vm.state.get_nonce(transaction.sender)
        if transaction.nonce != nonce:
            detail = f"next nonce {nonce}, tx nonce {transaction.nonce}"
            if transaction.nonce < nonce:
                raise NonceTooLowError(f"nonce too low: {detail}")
            raise TransactionRefusedError("nonce too high", detail)
        cost = transaction.value + transaction.gas * max_fee_of(transaction)
        balance = vm.state.get_balance(transaction.sender)
        if balance < cost:
            raise UnfundedAccountError(
                f"insufficient funds for gas * price + value: have {balance} want {cost}"
            )
        if transaction.gas < transaction.intrinsic_gas:
            raise TransactionRefusedError(
                "intrinsic gas too low", f"{transaction.gas} of {transaction.intrinsic_gas}"
            )
        executor = vm.state.get_transaction_executor()
        try:
            vm.validate_transaction_against_header(header, transaction)
            executor.validate_transaction(transaction)
        except ValidationError as error:
            raise TransactionRefusedError(str(error)) from error

    def mine(self, transaction: SignedTransactionAPI, timestamp: UnixTime) -> Mined:
        """Execute a checked transaction in a block of its own.

        Raises `TransactionRefusedError`, and changes nothing, where `check` was too kind.
        """
        self._chain.header = self.pending_header(timestamp)
        try:
            result, receipts, computations = self._chain.mine_all((transaction,))
        except (ValidationError, PyEVMError) as error:
            raise TransactionRefusedError("invalid transaction", str(error)) from error
        self.head = result.imported_block.header
        (receipt,), (computation,) = receipts, computations
        base_fee = base_fee_of(self.head)
        return Mined(
            transaction=transaction,
            header=self.head,
            succeeded=not computation.is_error,
            gas_used=receipt.gas_used,
            gas_price=Wei(min(max_fee_of(transaction), base_fee + tip_of(transaction))),
            bloom=receipt.bloom,
            logs=tuple(
                Log(bytes(log.address), tuple(t.to_bytes(32, "big") for t in log.topics), log.data)
                for log in receipt.logs
            ),
            created=None if transaction.to else bytes(computation.msg.storage_address),
        )

    def mine_empty(self, timestamp: UnixTime) -> None:
        """Add a block without transactions; no system contract is deployed, so nothing runs."""
        block = self._chain.get_vm(self.pending_header(timestamp)).get_block()
        self._chain.chaindb.persist_block(block)
        self.head = block.header
        self._chain.header = self._chain.create_header_from_parent(block.header)


def type_of(transaction: SignedTransactionAPI) -> int:
    """Return the EIP-2718 type, 0 for a legacy transaction."""
    return int(getattr(transaction, "type_id", None) or 0)


def base_fee_of(header: BlockHeaderAPI) -> int:
    """Return what the chain burns for a unit of gas in this block."""
    return header.base_fee_per_gas or 0


def max_fee_of(transaction: SignedTransactionAPI) -> int:
    """Return the most that the sender pays for a unit of gas."""
    return int(transaction.max_fee_per_gas)


def tip_of(transaction: SignedTransactionAPI) -> int:
    """Return what the sender offers above the base fee for a unit of gas."""
    return int(transaction.max_priority_fee_per_gas)


def _constant_gas_limit(
    chain: Any, parent_header: BlockHeaderAPI, **parameters: Any
) -> BlockHeaderAPI:
    parameters["gas_limit"] = parent_header.gas_limit
    return MiningChain.create_header_from_parent(chain, parent_header, **parameters)
