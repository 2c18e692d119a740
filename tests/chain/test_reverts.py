"""Whatever one of the contracts refuses reaches its caller by name, with all that it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from eth_abi.abi import encode
from web3.providers import BaseProvider

from contracts import Artifact
from node.chain.abi import AbiEntry, selector, types
from node.chain.check import (
    HouseTerms,
    clearing_artifact,
    court_artifact,
    escrow_artifact,
    escrow_codec,
    registry_artifact,
)
from node.chain.clearing import Web3ClearingHouse
from node.chain.client import ChainClient
from node.chain.errors import CallRefusedError
from node.chain.registry import Web3Registry
from node.chain.rounds import Withdraw
from node.chain.transactions import Wallet, send_and_wait
from node.chain.web3_escrow import Web3Escrow
from node.protocol.clearing import ClearingDomain
from node.protocol.eip712 import Domain
from node.protocol.schema import checksummed
from node.protocol.types import Address, Wei

CHAIN_ID = 1
PLACE = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
KEY = b"\x01" * 32


class Refusing(BaseProvider):
    """An endpoint whose contract refuses: at once, or in a block."""

    def __init__(self, data: bytes, *, mines: bool) -> None:
        self.data, self.mines = data, mines
        self.sent: dict[str, Any] = {}

    def make_request(self, method: Any, params: Any) -> Any:
        refusal = {"code": 3, "message": "execution reverted", "data": "0x" + self.data.hex()}
        match method:
            case "eth_getBlockByNumber":
                return {"result": {"baseFeePerGas": "0x1"}}
            case "eth_getTransactionByHash":
                place = {"from": PLACE, "to": PLACE, "gas": "0x1", "value": "0x0", "input": "0x"}
                return {"result": place}
            case "eth_getTransactionReceipt":
                return {
                    "result": {
                        "transactionHash": params[0],
                        "blockNumber": "0x1",
                        "gasUsed": "0x1",
                        "effectiveGasPrice": "0x1",
                        "status": "0x0",
                    }
                }
            case "eth_sendRawTransaction" | "eth_call" if method == "eth_call" or not self.mines:
                return {"error": refusal}
        return {"result": "0x1"}


def by_escrow(client: ChainClient, wallet: Wallet) -> None:
    domain, codec = Domain(chain_id=CHAIN_ID, escrow=PLACE), escrow_codec(escrow_artifact())
    escrow = Web3Escrow(client, wallet, domain, codec, 1)
    escrow.broadcast(b"\x02")


def by_house(client: ChainClient, wallet: Wallet) -> None:
    terms = HouseTerms(
        registry=PLACE,
        minimum_challenge=1,
        threshold=1,
        minimum_bond=Wei(1),
        seated=frozenset(),
    )
    domain = ClearingDomain(chain_id=CHAIN_ID, clearing_house=PLACE)
    Web3ClearingHouse(client, wallet, domain, terms, 5.0, None).send(Withdraw(PLACE, PLACE))


def by_registry(client: ChainClient, wallet: Wallet) -> None:
    registry = Web3Registry(client, wallet, PLACE)
    registry.send(registry.withdraw(PLACE))


def by_seat(client: ChainClient, wallet: Wallet) -> None:
    read = escrow_codec(escrow_artifact()).reverts.read
    send_and_wait(client, wallet, PLACE, b"", Wei(0), gas=1, read_revert=read, timeout=5.0)


Caller = Callable[[ChainClient, Wallet], None]
CALLERS: tuple[tuple[Caller, bool, Sequence[Artifact]], ...] = (
    (by_escrow, False, (escrow_artifact(), court_artifact(), registry_artifact())),
    (by_seat, True, (escrow_artifact(), court_artifact(), registry_artifact())),
    (by_house, False, (clearing_artifact(), registry_artifact())),
    (by_house, True, (clearing_artifact(), registry_artifact())),
    (by_registry, False, (registry_artifact(), escrow_artifact())),
)


def errors() -> list[Any]:
    """Every error of the contracts, for each who hears of it, and how."""
    return [
        pytest.param(
            caller, mines, entry,
            id=f"{caller.__name__}-{'mined' if mines else 'refused'}-{found.name}-{entry['name']}",
        )
        for caller, mines, artifacts in CALLERS
        for found in artifacts
        for entry in found.abi
        if entry["type"] == "error"
    ]  # fmt: skip


def value_of(kind: str, place: int) -> object:
    """Return a value of a type that no other place has."""
    if kind == "address":
        return checksummed(bytes([0xA0 + place] * 20))
    if kind.startswith("bytes"):
        return bytes([0xB0 + place] * int(kind.removeprefix("bytes") or "5"))
    if kind == "string":
        return f"text {place}"
    assert kind.startswith("uint")
    return 2 ** int(kind.removeprefix("uint")) - 1 - place


def test_each_of_the_four_contracts_has_errors_to_be_told() -> None:
    told = {error.values[2]["name"] for error in errors()}
    assert {"WasSlashed", "WrongState", "TooManyMarkets", "BelowQuorum", "AlreadyClaimed"} <= told
    assert len(told) > 60


@pytest.mark.parametrize(("caller", "mines", "entry"), errors())
def test_every_error_reaches_its_caller_with_its_values(
    caller: Caller, mines: bool, entry: AbiEntry
) -> None:
    kinds = types(entry["inputs"])
    names = [member["name"] for member in entry["inputs"]]
    values = [value_of(kind, place) for place, kind in enumerate(kinds)]
    client = ChainClient(Refusing(selector(entry) + encode(kinds, values), mines=mines))
    with pytest.raises(CallRefusedError) as refusal:
        caller(client, Wallet(KEY, CHAIN_ID))
    assert refusal.value.reason == entry["name"]
    assert refusal.value.values == dict(zip(names, values, strict=True))
    assert len(refusal.value.values) == len(kinds)
    assert all(str(name) in str(refusal.value) for name in names)
