"""The development chain: an EVM that outlives its process.

Play money, one machine, no consensus; but what it has answered stays true. A raw
transaction takes four steps, under one lock:

    checked ──► logged (fsync) ──► executed ──► answered
                   │                   │
               "accepted"          "executed"       what `on_transaction` is told

A process killed before *logged* has promised nothing. Killed later, the next process
replays the log and comes to the same head, by the same hashes, and the sender's rebroadcast
finds its transaction there. So nothing answered is lost, and nothing is executed twice.

As on a public chain, a transaction whose call reverts is mined with status 0 and costs gas;
only what could not be in a block (nonce, funds, signature, chain id) is refused. A nonce
above the next one is refused too: there is no pool.

Block time is `max(parent, now)`, and whoever looks at the head once it is `block_seconds`
old gets a new empty block: so the head's time follows the wall clock, and confirmations come
without traffic.
"""

from __future__ import annotations

import bisect
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final, Literal, Self

from eth.abc import BlockHeaderAPI
from eth_account import Account
from eth_hash.auto import keccak
from eth_typing import Address as RawAddress

from node.chain.chain_log import ChainLog, Kind, Record
from node.chain.errors import ChainError, ChainLogError, TransactionRefusedError
from node.chain.evm import Evm, Genesis, Log, Mined
from node.chain.factory import FACTORY, FACTORY_CODE
from node.chain.port import DEVELOPMENT_CHAIN_ID
from node.protocol.schema import raw_address
from node.protocol.types import Address, Digest, UnixTime, Wei

FAUCET_KEY: Final = keccak(b"pm-node development faucet")
FAUCET_SUPPLY: Final = Wei(10**33)
FAUCET_MOST: Final = Wei(10**24)
"""What one request may ask for: a million ether."""

LOG_NAME: Final = "chain.log"
_FORMAT: Final = 1

Stage = Literal["accepted", "executed"]
Observer = Callable[[Stage, bytes], None]


def wall_clock() -> UnixTime:
    """Return the time of day in whole seconds."""
    return UnixTime(time.time_ns() // 1_000_000_000)


class DevelopmentChain:
    """A chain for one machine; safe to use from any thread.

    Without a `directory` nothing is kept. `clock` and `on_transaction` are for tests: the
    latter is called under the lock, on the thread of whoever sent the transaction.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        clock: Callable[[], UnixTime] = wall_clock,
        block_seconds: int = 2,
        chain_id: int = DEVELOPMENT_CHAIN_ID,
        on_transaction: Observer | None = None,
    ) -> None:
        """Start a chain, or resume the one in `directory`.

        Raises `ChainLogError` if its log is damaged, in use, or of another chain id.
        """
        self.lock = threading.RLock()
        self._clock = clock
        self._block_seconds = block_seconds
        self._on_transaction = on_transaction
        self._mined: dict[bytes, Mined] = {}
        self._by_block: dict[int, Mined] = {}
        self._blocks_with_logs: list[int] = []
        self._log = ChainLog(directory / LOG_NAME) if directory is not None else None
        try:
            self._start(chain_id)
        except BaseException:
            self.close()
            raise

    def _start(self, chain_id: int) -> None:
        records = self._log.records if self._log is not None else ()
        if records:
            timestamp = _read_genesis(records[0], chain_id)
        else:
            timestamp = self._clock()
            self._append(_write_genesis(chain_id, timestamp))
        faucet = raw_address(self.faucet)
        self.evm = Evm(
            Genesis(
                chain_id=chain_id,
                timestamp=timestamp,
                balances={faucet: FAUCET_SUPPLY},
                codes={raw_address(FACTORY): FACTORY_CODE},
            )
        )
        for record in records[1:]:
            self._replay(record)

    def _replay(self, record: Record) -> None:
        if record.kind is Kind.EMPTY:
            self.evm.mine_empty(record.timestamp)
            return
        try:
            transaction = self.evm.decode(record.payload)
            self.evm.check(transaction, record.timestamp)
        except ChainError as error:
            raise ChainLogError(
                f"block {self.evm.head.block_number + 1} of the log cannot be replayed: {error}"
            ) from error
        try:
            mined = self.evm.mine(transaction, record.timestamp)
        except TransactionRefusedError:
            return  # refused the first time as well, after it had been logged
        self._index(mined)

    # --- writing

    def send_raw(self, raw: bytes) -> Digest:
        """Execute a raw transaction in a new block; one that is known already does nothing.

        Raises `NonceTooLowError`, `UnfundedAccountError` or `TransactionRefusedError`.
        """
        with self.lock:
            known = Digest(keccak(raw))
            if known in self._mined:
                return known
            transaction = self.evm.decode(raw)
            timestamp = self.next_timestamp()
            self.evm.check(transaction, timestamp)
            self._append(Record(Kind.TRANSACTION, timestamp, raw))
            self._tell("accepted", raw)
            self._index(self.evm.mine(transaction, timestamp))
            self._tell("executed", raw)
            return known

    def follow_clock(self) -> None:
        """Add an empty block if the head has grown old."""
        with self.lock:
            now = self._clock()
            if now - self.evm.head.timestamp >= self._block_seconds:
                # not durable: only a power cut loses it, and nothing was done in it
                self._append(Record(Kind.EMPTY, now, b""), durable=False)
                self.evm.mine_empty(now)

    def fund(self, account: Address, amount: Wei) -> Digest:
        """Send play money from the faucet.

        Raises `TransactionRefusedError` if the amount is 0 or above `FAUCET_MOST`.
        """
        if not 0 < amount <= FAUCET_MOST:
            raise TransactionRefusedError(
                "faucet", f"asked for {amount} wei, gives 1 to {FAUCET_MOST}"
            )
        with self.lock:
            header = self.evm.pending_header(self.next_timestamp())
            nonce = self.evm.state(self.evm.head).get_nonce(RawAddress(raw_address(self.faucet)))
            signed = Account.sign_transaction(
                {
                    "type": 2,
                    "chainId": self.evm.chain_id,
                    "nonce": nonce,
                    "to": account,
                    "value": amount,
                    "gas": 100_000,
                    "maxFeePerGas": header.base_fee_per_gas,
                    "maxPriorityFeePerGas": 0,
                },
                FAUCET_KEY,
            )
            return self.send_raw(bytes(signed.raw_transaction))

    def _append(self, record: Record, *, durable: bool = True) -> None:
        if self._log is not None:
            self._log.append(record, durable=durable)

    def _tell(self, stage: Stage, raw: bytes) -> None:
        if self._on_transaction is not None:
            self._on_transaction(stage, raw)

    def _index(self, mined: Mined) -> None:
        self._mined[mined.hash] = mined
        self._by_block[mined.header.block_number] = mined
        if mined.logs:
            self._blocks_with_logs.append(mined.header.block_number)

    # --- reading (hold `lock` where two answers must agree)

    @property
    def faucet(self) -> Address:
        """The account that `fund` pays from."""
        return Address(Account.from_key(FAUCET_KEY).address)

    def next_timestamp(self) -> UnixTime:
        """Return the time that a block mined now would have."""
        return UnixTime(max(self.evm.head.timestamp, self._clock()))

    def pending_header(self) -> BlockHeaderAPI:
        """Return the header that a block mined now would have."""
        return self.evm.pending_header(self.next_timestamp())

    def mined(self, transaction: bytes) -> Mined | None:
        """Return a transaction by its hash."""
        return self._mined.get(transaction)

    def mined_in(self, block: int) -> Mined | None:
        """Return the one transaction of a block."""
        return self._by_block.get(block)

    def logs(
        self, first: int, last: int, addresses: Collection[bytes] | None
    ) -> Iterator[tuple[Mined, int, Log]]:
        """Yield (transaction, index in its block, log) of these blocks, both included.

        Costs what is found, not what is searched.
        """
        at = bisect.bisect_left(self._blocks_with_logs, first)
        for number in self._blocks_with_logs[at:]:
            if number > last:
                return
            mined = self._by_block[number]
            for index, log in enumerate(mined.logs):
                if addresses is None or log.address in addresses:
                    yield mined, index, log

    # --- end

    def close(self) -> None:
        """Let go of the log. Idempotent."""
        with self.lock:
            if self._log is not None:
                self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fund_account(chain: DevelopmentChain, account: Address, amount: Wei) -> Digest:
    """Give an account play money on an in-process chain; `request_funds` does so over RPC."""
    return chain.fund(account, amount)


def _write_genesis(chain_id: int, timestamp: UnixTime) -> Record:
    payload = {"chain_id": chain_id, "format": _FORMAT}
    return Record(Kind.GENESIS, timestamp, json.dumps(payload, sort_keys=True).encode())


def _read_genesis(record: Record, chain_id: int) -> UnixTime:
    if record != _write_genesis(chain_id, record.timestamp):
        raise ChainLogError(
            f"the log begins with {record.payload[:200]!r}, not as a chain of id {chain_id}"
        )
    return record.timestamp
