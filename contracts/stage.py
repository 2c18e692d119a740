"""The settlement contracts on a fresh chain inside this process, and a cast whose keys are known.

What the gas table is measured on, and the tests are played on. Everything is fixed: keys, the
time of the genesis block, the order of blocks; so gas comes out the same on every machine. It
speaks to eth-tester directly, without web3, and stands apart from the node's chain adapter.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple

from eth_abi.abi import decode, encode
from eth_account import Account
from eth_keys.datatypes import PrivateKey
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.hexadecimal import decode_hex, encode_hex

from contracts.artifact import Artifact, load_artifact

GENESIS_TIME: Final = 4_000_000_000
"""Ahead of any real clock, so that py-evm counts block times up from it and reads no clock."""

GAS: Final = 16_000_000
"""Gas limit of every transaction here, except deployments."""

ETHER: Final = 10**18
ZERO: Final = "0x" + "00" * 20
SECRET: Final = hashlib.sha256(b"the secret of the delivery").digest()
BOND: Final = ETHER
CHALLENGE: Final = 50
"""The least challenge of a clearing house, in seconds."""
ROLES: Final = ("broker", "buyer", "seller", "treasury", "stranger", "rival", "second", "third")
DOMAIN: Final = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


class State(IntEnum):
    """Where a trade stands, in the order of the Solidity enum."""

    NONE = 0
    FUNDED = 1
    REVEALED = 2
    PAID = 3
    REFUNDED = 4
    DISPUTED = 5


class Quote(NamedTuple):
    """The terms of a trade, in the order of the Solidity struct."""

    trade_id: bytes
    buyer: str
    seller: str
    encryptor: str
    asset: str
    price: int
    fee: int
    fee_recipient: str
    offer_root: bytes
    goods_root: bytes
    leaf_count: int
    byte_length: int
    secret_commitment: bytes
    dh_commitment: bytes
    fund_by: int
    reveal_by: int
    grace: int
    dispute_window: int
    receipt_hash: bytes


class Event(NamedTuple):
    """One log entry of a contract of ours, decoded."""

    name: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a transaction that succeeded did."""

    gas: int
    time: int
    data: bytes
    events: tuple[Event, ...]


class RevertedError(Exception):
    """A contract refused a call, with a custom error."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        super().__init__(name, arguments)
        self.name = name
        self.arguments = arguments


def signature_of(entry: dict[str, Any]) -> str:
    """Return ``name(type,…)`` of an entry of an ABI, with structs written out."""
    name: str = entry["name"]
    return name + type_of({"type": "tuple", "components": entry["inputs"]})


def type_of(parameter: dict[str, Any]) -> str:
    """Return the canonical type of an ABI parameter."""
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    inside = ",".join(type_of(component) for component in parameter["components"])
    return f"({inside}){kind[5:]}"


class Contract:
    """A deployed contract and what its ABI says about calls, errors and events."""

    def __init__(self, artifact: Artifact, address: str) -> None:
        self.artifact = artifact
        self.address = address
        of_kind: dict[str, list[dict[str, Any]]] = {"function": [], "error": [], "event": []}
        for entry in artifact.abi:
            of_kind.get(entry["type"], []).append(entry)
        self.functions = {entry["name"]: entry for entry in of_kind["function"]}
        self.errors = {keccak(text=signature_of(e))[:4]: e for e in of_kind["error"]}
        self.events = {keccak(text=signature_of(e)): e for e in of_kind["event"]}

    def calldata(self, function: str, arguments: tuple[Any, ...]) -> bytes:
        """Return the selector and the encoded arguments."""
        entry = self.functions[function]
        types = [type_of(parameter) for parameter in entry["inputs"]]
        return bytes(keccak(text=signature_of(entry))[:4]) + encode(types, arguments)

    def result(self, function: str, data: bytes) -> tuple[Any, ...]:
        """Return the decoded outputs of a call."""
        types = [type_of(parameter) for parameter in self.functions[function]["outputs"]]
        return tuple(decode(types, data))

    def event(self, log: dict[str, Any]) -> Event:
        """Return the event in a log entry."""
        topics = [decode_hex(topic) for topic in log["topics"]]
        entry = self.events[topics[0]]
        fields: dict[str, Any] = {}
        indexed = [p for p in entry["inputs"] if p["indexed"]]
        for parameter, topic in zip(indexed, topics[1:], strict=True):
            (fields[parameter["name"]],) = decode([type_of(parameter)], topic)
        plain = [p for p in entry["inputs"] if not p["indexed"]]
        values = decode([type_of(p) for p in plain], decode_hex(log["data"]))
        fields |= {p["name"]: value for p, value in zip(plain, values, strict=True)}
        return Event(entry["name"], fields)


def tester() -> Any:
    """Return a chain in this process."""
    genesis = PyEVMBackend.generate_genesis_params({"timestamp": GENESIS_TIME})
    return EthereumTester(PyEVMBackend(genesis_parameters=genesis))


class Stage:
    """A chain, a market of brokers on it, and the accounts of everyone in a trade.

    The brokers are roles; all of them are bonded, serve the escrow and sit.
    """

    new_chain: ClassVar[Callable[[], Any]] = tester
    """What the chain is. Another one has the functions of `EthereumTester` that are called here."""

    def __init__(self, brokers: Sequence[str] = ("broker",), threshold: int = 1) -> None:
        self.chain = type(self).new_chain()
        self.keys = {role: PrivateKey((i + 1).to_bytes(32)) for i, role in enumerate(ROLES)}
        self.accounts = {role: k.public_key.to_checksum_address() for role, k in self.keys.items()}
        self.brokers, self.threshold = self.by_address(brokers), threshold
        self._errors: dict[bytes, dict[str, Any]] = {}
        self._heard: dict[str, Contract] = {}
        self.registry = self._hear(self.deploy(load_artifact("BrokerRegistry"), BOND))
        self.court = self.deploy(load_artifact("DeliveryCourt"))
        self.escrow = self.market("ParameterEscrow", self.court.address)
        for role in brokers:
            self.send("bond", sender=role, value=BOND, to=self.registry)
            self.seat(role, self.escrow)

    def by_address(self, roles: Sequence[str]) -> list[str]:
        """Return the roles in the order in which contracts want their accounts."""
        return sorted(roles, key=lambda role: int(self.accounts[role], 16))

    def market(self, name: str, *others: str | int) -> Contract:
        """Deploy a market of these brokers, in which none of them sits yet."""
        brokers = [self.accounts[role] for role in self.brokers]
        arguments = (self.registry.address, *others, self.threshold, brokers)
        return self._hear(self.deploy(load_artifact(name), *arguments))

    def seat(self, role: str, market: Contract) -> None:
        """Let a bonded broker serve a market, and sit there."""
        self.send("serve", market.address, sender=role, to=self.registry)
        self.send("seat", self.accounts[role], sender=role, to=market)

    def clearing_house(self) -> Contract:
        """Deploy a clearing house in which all brokers sit."""
        house = self.market("ClearingHouse", CHALLENGE)
        for role in self.brokers:
            self.seat(role, house)
        return house

    def _hear(self, contract: Contract) -> Contract:
        self._heard[contract.address] = contract
        return contract

    def deploy(self, artifact: Artifact, *arguments: Any) -> Contract:
        """Deploy a contract from the stranger's account. Raises `RevertedError`."""
        self._errors |= Contract(artifact, ZERO).errors
        constructor = [entry for entry in artifact.abi if entry["type"] == "constructor"]
        types = [type_of(p) for entry in constructor for p in entry["inputs"]]
        code = artifact.bytecode + encode(types, arguments)
        deployer = self.accounts["stranger"]
        transaction = {"from": deployer, "gas": 8_000_000, "data": encode_hex(code)}
        self._call(transaction)
        receipt = self._mine(transaction)
        return Contract(artifact, to_checksum_address(receipt["contract_address"]))

    def now(self) -> int:
        """Return the time that the next block will carry."""
        return int(self.chain.get_block_by_number("pending")["timestamp"])

    def wait_until(self, time: int) -> None:
        """Let the next block be at `time`."""
        self.chain.time_travel(time)

    def balance(self, account: str) -> int:
        """Return the ETH that an account holds, in wei."""
        return int(self.chain.get_balance(account))

    def view(self, function: str, *arguments: Any, of: Contract | None = None) -> Any:
        """Ask the escrow, or another contract; several outputs come as a tuple."""
        contract = self.escrow if of is None else of
        data = self._call(self._transaction(contract, function, arguments, "stranger", 0))
        outputs = contract.result(function, data)
        return outputs[0] if len(outputs) == 1 else outputs

    def trade(self, trade_id: bytes) -> tuple[State, int]:
        """Return the state of a trade and the time at which it was entered."""
        state, since = self.view("tradeOf", trade_id)
        return State(state), since

    def send(
        self,
        function: str,
        *arguments: Any,
        sender: str,
        value: int = 0,
        to: Contract | None = None,
        gas: int = GAS,
    ) -> Outcome:
        """Mine a transaction of the role `sender` to the escrow, or to another contract.

        Raises `RevertedError` with the error of whichever contract refused; nothing is mined then.
        """
        contract = self.escrow if to is None else to
        transaction = self._transaction(contract, function, arguments, sender, value) | {"gas": gas}
        self._call(transaction)
        time = self.now()
        receipt = self._mine(transaction)
        logs = [log for log in receipt["logs"] if log["address"] in self._heard]
        return Outcome(
            gas=receipt["gas_used"],
            time=time,
            data=decode_hex(transaction["data"]),
            events=tuple(self._heard[log["address"]].event(log) for log in logs),
        )

    def _transaction(
        self, contract: Contract, function: str, arguments: tuple[Any, ...], role: str, value: int
    ) -> dict[str, Any]:
        data = contract.calldata(function, arguments)
        return {
            "from": self.accounts[role],
            "to": contract.address,
            "gas": GAS,
            "value": value,
            "data": encode_hex(data),
        }

    def _call(self, transaction: dict[str, Any]) -> bytes:
        try:
            return bytes(decode_hex(self.chain.call(transaction, "pending")))
        except TransactionFailed as failure:
            raise self._error(revert_data(failure)) from None

    def _error(self, data: bytes) -> RevertedError:
        """Return the custom error in the data of a revert, or ``unnamed`` with the data."""
        if data[:4] not in self._errors:
            return RevertedError("unnamed", (data,))
        entry = self._errors[data[:4]]
        types = [type_of(parameter) for parameter in entry["inputs"]]
        return RevertedError(entry["name"], tuple(decode(types, data[4:])))

    def _mine(self, transaction: dict[str, Any]) -> dict[str, Any]:
        receipt = self.chain.get_transaction_receipt(self.chain.send_transaction(transaction))
        if receipt["status"] != 1:
            raise AssertionError("the transaction failed, though its call had succeeded")
        return dict(receipt)

    def quote(self, **changes: Any) -> Quote:
        """Return terms that can be funded now, with what a test wants to be different."""
        now = self.now()
        sold = Quote(
            trade_id=keccak(text="trade"),
            buyer=self.accounts["buyer"],
            seller=self.accounts["seller"],
            encryptor=self.accounts["seller"],
            asset=ZERO,
            price=3 * ETHER // 10,
            fee=3 * ETHER // 1000,
            fee_recipient=self.accounts["treasury"],
            offer_root=keccak(text="offer root"),
            goods_root=keccak(text="goods root"),
            leaf_count=1025,
            byte_length=1_048_577,
            secret_commitment=hashlib.sha256(SECRET).digest(),
            dh_commitment=keccak(text="dh commitment"),
            fund_by=now + 600,
            reveal_by=now + 1200,
            grace=300,
            dispute_window=900,
            receipt_hash=keccak(text="receipt"),
        )
        return sold._replace(**changes)

    def digest(self, struct: bytes, of: Contract | None = None) -> bytes:
        """Return what is signed of an EIP-712 struct hash in the domain of a contract."""
        _, name, version, chain, contract, _, _ = self.view("eip712Domain", of=of)
        kinds = ["bytes32"] * 3 + ["uint256", "address"]
        words = (keccak(text=DOMAIN), keccak(text=name), keccak(text=version), chain, contract)
        return bytes(keccak(b"\x19\x01" + keccak(encode(kinds, words)) + struct))

    def signatures(self, digest: bytes, *roles: str) -> bytes:
        """Return the signatures, r ‖ s ‖ v, of these roles, or of a quorum, in the right order."""
        signers = self.by_address(roles or self.brokers[: self.threshold])
        return b"".join(sign(self.keys[role], digest) for role in signers)

    def signature(self, quote: Quote, *roles: str) -> bytes:
        """Return the signatures of these roles, or of a quorum, over the quote."""
        return self.signatures(self.view("quoteDigest", quote), *roles)

    def fund(self, quote: Quote) -> Outcome:
        """Fund a trade as its buyer ought to, in ETH or in a token that it approved."""
        value = quote.price if quote.asset == ZERO else 0
        return self.send("fund", quote, self.signature(quote), sender="buyer", value=value)


def sign(key: PrivateKey, digest: bytes) -> bytes:
    """Return a signature, r ‖ s ‖ v."""
    return bytes(Account.unsafe_sign_hash(digest, key).signature)


def revert_data(failure: TransactionFailed) -> bytes:
    """Return the bytes in eth-tester's words ``execution reverted: b'…'``."""
    written = str(failure.args[0]).removeprefix("execution reverted: ")
    try:
        data = ast.literal_eval(written)
    except (SyntaxError, ValueError):
        return b""  # in words: no data came with it, or the gas ran out
    if isinstance(data, tuple):
        return b""  # words and a number: too little gas to write a slot (EIP-2200)
    if not isinstance(data, bytes):
        raise AssertionError(f"no revert data in {failure.args[0]!r}")
    return data
