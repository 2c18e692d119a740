"""Anvil in the place of eth-tester: the same chain to a `Stage`, in a process of its own.

It has the few functions of `EthereumTester` that the stage and its tests call, and answers in
the same words. Chain id, accounts and times are those of eth-tester too, so that whatever is
signed, and the gas that it costs, is the same on both.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import weakref
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from eth_account import Account
from eth_keys.datatypes import PrivateKey
from eth_tester.exceptions import TransactionFailed
from eth_utils.address import to_checksum_address
from eth_utils.hexadecimal import decode_hex, encode_hex

from contracts.stage import GENESIS_TIME, ROLES

PACKAGE: Final = Path(__file__).parent
PROGRAM: Final = PACKAGE / "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
CHAIN_ID: Final = 131277322940537
"""That of eth-tester."""

LEASH: Final = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""It ends with this process, however that ends."""

KEYS: Final = [PrivateKey((place + 1).to_bytes(32)) for place in range(len(ROLES))]
BY_ACCOUNT: Final = {key.public_key.to_checksum_address(): key for key in KEYS}
MONEY: Final = 10**24
FEES: Final = {"maxFeePerGas": 10**10, "maxPriorityFeePerGas": 10**9}
PATIENCE: Final = 60
"""Seconds within which it answers."""

REVERTED: Final = 3
"""What stands in a JSON-RPC error for a call that a contract refused."""

WITHOUT_DATA: Final = ("evm error", "out of gas", "intrinsic gas too")
"""How it begins to say that a call failed by itself, mostly for want of gas."""


class ChainRefusedError(Exception):
    """The chain refused a transaction by itself: no contract was asked."""


class AnvilProcess:
    """One anvil on loopback, and a connection to it."""

    def __init__(self, chain_id: int) -> None:
        options: dict[str, object] = {
            "--hardfork": "prague",
            "--host": "127.0.0.1",
            "--port": 0,
            "--timestamp": GENESIS_TIME,
            "--chain-id": chain_id,
            "--accounts": 1,  # not those of the stage, which get their money below
        }
        command = [
            str(PROGRAM),
            "--no-mining",
            *(str(word) for option in options.items() for word in option),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._connection = HTTPConnection("127.0.0.1", self._port(), timeout=PATIENCE)
        self.ask("anvil_setLoggingEnabled", False)  # nobody reads on
        for account in BY_ACCOUNT:
            self.ask("anvil_setBalance", account, hex(MONEY))
        self._genesis = self.ask("evm_snapshot")

    def _port(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Listening on "):
                return int(line.rsplit(":", 1)[1])
        raise ChainRefusedError(f"anvil ended ({self._process.wait()}) before it listened")

    def ask(self, method: str, *parameters: Any) -> Any:
        """Return what a method answers. Raises `TransactionFailed`, `ChainRefusedError`."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/", json.dumps(body).encode(), headers)
        answer = json.loads(self._connection.getresponse().read())
        if "error" not in answer:
            return answer["result"]
        error = answer["error"]
        if error["code"] == REVERTED:
            raise TransactionFailed(f"execution reverted: {decode_hex(error.get('data', '0x'))!r}")
        if error["message"].lower().startswith(WITHOUT_DATA):
            raise TransactionFailed(error["message"])
        raise ChainRefusedError(error["message"])

    def rewind(self) -> None:
        """Go back to the first block."""
        assert self.ask("evm_revert", self._genesis)
        self._genesis = self.ask("evm_snapshot")

    def end(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()


class AnvilChain:
    """What a stage knows of a chain. Each has an anvil to itself, for as long as it lives."""

    processes: Final[list[AnvilProcess]] = []
    idle: Final[dict[int, list[AnvilProcess]]] = {}
    """Processes whose chain is gone, by chain id; the next chain begins anew on one of them."""

    def __init__(self, chain_id: int = CHAIN_ID) -> None:
        idle = self.idle.setdefault(chain_id, [])
        if not idle:
            idle.append(AnvilProcess(chain_id))
            self.processes.append(idle[-1])
        self._process = idle.pop()
        weakref.finalize(self, idle.append, self._process)
        self._process.rewind()
        self._next = GENESIS_TIME + 1
        self.backend = SimpleNamespace(chain=SimpleNamespace(chain_id=chain_id))

    def get_block_by_number(self, number: str) -> dict[str, int]:
        """Return of the pending block the time that it will carry."""
        assert number == "pending"
        return {"timestamp": self._next}

    def time_travel(self, to_timestamp: int) -> None:
        """Let the next block be at this time."""
        if to_timestamp < self._next:
            raise ChainRefusedError(f"{to_timestamp} is past: the next block is at {self._next}")
        self._next = to_timestamp

    def take_snapshot(self) -> tuple[str, int]:
        """Return what the chain can be brought back by, once."""
        return self._process.ask("evm_snapshot"), self._next

    def revert_to_snapshot(self, snapshot: tuple[str, int]) -> None:
        """Go back to where the snapshot was taken."""
        taken, self._next = snapshot
        assert self._process.ask("evm_revert", taken)

    def get_balance(self, account: str) -> int:
        """Return the ETH of an account, in wei."""
        return int(self._process.ask("eth_getBalance", account, "latest"), 16)

    def get_code(self, account: str) -> str:
        """Return the code at an address, in hex."""
        return str(self._process.ask("eth_getCode", account, "latest"))

    def call(self, transaction: dict[str, Any], block: str) -> str:
        """Return what a call would answer in the next block. Raises `TransactionFailed`."""
        sent = {k: hex(v) if isinstance(v, int) else v for k, v in transaction.items()}
        return str(self._process.ask("eth_call", sent, block, None, {"time": hex(self._next)}))

    def send_transaction(self, transaction: dict[str, Any]) -> str:
        """Sign a transaction with the key of its sender, mine it, and return its hash."""
        return self.send_raw_transaction(encode_hex(self.signed(transaction)))

    def signed(self, transaction: dict[str, Any], fees: Mapping[str, Any] = FEES) -> bytes:
        """Return a transaction as its sender signs it: of EIP-1559, or as the fees say."""
        fields = dict(transaction)
        sender = fields.pop("from")
        fields["nonce"] = int(self._process.ask("eth_getTransactionCount", sender, "latest"), 16)
        fields |= {"chainId": self.backend.chain.chain_id, "value": fields.get("value", 0)}
        signed = Account.sign_transaction(fields | dict(fees), BY_ACCOUNT[sender])
        return bytes(signed.raw_transaction)

    def send_raw_transaction(self, raw: str) -> str:
        """Mine a signed transaction and return its hash. Raises `ChainRefusedError`."""
        mined = str(self._process.ask("eth_sendRawTransaction", raw))
        self._process.ask("evm_setNextBlockTimestamp", hex(self._next))
        self._process.ask("evm_mine")  # by itself it would mine a little after it has answered
        self._next += 1
        return mined

    def get_transaction_receipt(self, mined: str) -> dict[str, Any]:
        """Return of a receipt what a stage reads there."""
        receipt = self._process.ask("eth_getTransactionReceipt", mined)
        return {
            "status": int(receipt["status"], 16),
            "gas_used": int(receipt["gasUsed"], 16),
            "contract_address": receipt["contractAddress"],
            "logs": [
                log | {"address": to_checksum_address(log["address"])} for log in receipt["logs"]
            ],
        }


def end_all() -> None:
    """End all processes, and with them the chains that are left."""
    AnvilChain.idle.clear()
    while AnvilChain.processes:
        AnvilChain.processes.pop().end()
