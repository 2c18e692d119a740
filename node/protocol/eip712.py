"""EIP-712: what a chain or a court may need to check is signed as typed data.

The type string and the struct hash follow from a message's fields (`schema`), so that the
wire and the signature can never disagree. Digests are equal in Python, Solidity and every
wallet; `tests/protocol/test_eip712.py` checks against eth-account and the contract.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final, Protocol

from eth_hash.auto import keccak

from node.protocol.schema import Message, fields_of, raw_address
from node.protocol.types import Address, Digest

DOMAIN_NAME: Final = "pm-node"
DOMAIN_VERSION: Final = "1"
_DOMAIN_TYPE: Final = keccak(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain(Message):
    """The one market that a signature is good for: a chain and the escrow on it."""

    chain_id: int
    escrow: Address

    @property
    def separator(self) -> bytes:
        """EIP-712's domain separator."""
        return domain_separator(DOMAIN_NAME, DOMAIN_VERSION, self.chain_id, self.escrow)


class SigningDomain(Protocol):
    """Where a signature is good: `Domain`, or that of another contract of the market."""

    @property
    def separator(self) -> bytes:
        """EIP-712's domain separator."""
        ...


@functools.cache
def domain_separator(name: str, version: str, chain_id: int, contract: Address) -> bytes:
    """Return EIP-712's domain separator of a contract."""
    return keccak(
        _DOMAIN_TYPE
        + keccak(name.encode())
        + keccak(version.encode())
        + chain_id.to_bytes(32, "big")
        + bytes(12)
        + raw_address(contract)
    )


def camel(name: str) -> str:
    """Return `offer_root` as `offerRoot`."""
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def type_string(cls: type[Any]) -> str:
    """Return EIP-712's encodeType of a message, such as ``Quote(bytes32 tradeId,…)``."""
    members = ",".join(f"{kind.solidity} {camel(name)}" for name, kind in fields_of(cls))
    return f"{cls.__name__}({members})"


_TYPE_HASHES: Final[dict[type[Any], bytes]] = {}


def _type_hash(cls: type[Any]) -> bytes:
    if cls not in _TYPE_HASHES:
        _TYPE_HASHES[cls] = keccak(type_string(cls).encode())
    return _TYPE_HASHES[cls]


def struct_hash(message: Any) -> Digest:
    """Return EIP-712's hashStruct."""
    words = (kind.to_word(getattr(message, name)) for name, kind in fields_of(type(message)))
    return Digest(keccak(_type_hash(type(message)) + b"".join(words)))


def digest(domain: SigningDomain, message: Any) -> Digest:
    """Return the 32 bytes that an account signs for `message` in this market."""
    return Digest(keccak(b"\x19\x01" + domain.separator + struct_hash(message)))
