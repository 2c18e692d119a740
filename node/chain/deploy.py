"""Putting the contracts of a market on a chain, at addresses that are known beforehand.

CREATE2 through the deterministic deployment proxy: an address follows from a salt and the
creation code, so a deployment may be repeated, and nobody can put anything else there.

- The registry of brokers and the court have a salt that is the same for all: whoever is on a
  chain shares them, a registry for each minimum bond. A bond is put up once for all markets.
- The escrow and the clearing house have the salt of their market, and its brokers and threshold
  are in their creation code. A devnet's salt is random: no two share an EIP-712 domain. The salt
  of an operator's market is the shared one, so that its addresses follow from its terms alone.

What lies at the addresses afterwards is compared with the artifacts, byte for byte.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eth_abi.abi import encode
from eth_hash.auto import keccak

from contracts import Artifact
from node.chain.check import (
    check_escrow,
    clearing_artifact,
    court_artifact,
    escrow_artifact,
    registry_artifact,
)
from node.chain.client import ChainClient
from node.chain.errors import TransactionRefusedError, WrongContractError
from node.chain.factory import FACTORY
from node.chain.reverts import UNKNOWN_REVERT, Revert
from node.chain.transactions import Wallet, send_and_wait
from node.protocol.clearing import DAY
from node.protocol.eip712 import Domain
from node.protocol.schema import checksummed, raw_address
from node.protocol.types import DIGEST_BYTES, Address, Digest, Wei

DEPLOY_GAS: Final = 8_000_000
"""The least limit of a deployment; unused gas is not paid for."""
DEPLOY_TIMEOUT: Final = 120.0
SHARED_SALT: Final = Digest(keccak(b"pm-node contracts 1"))

# What a creation costs: of EIP-2028, EIP-3860 and the Yellow Paper's appendix G, by byte and word.
_CALL_GAS: Final = 21_000
_BYTE_GAS: Final = (4, 16)
"""Of calldata: a zero, any other."""
_CREATE_GAS: Final = 32_000
_CODE_BYTE_GAS: Final = 200
_WORD_GAS: Final = 2 + 6
"""Of creation code: to be looked through, and hashed for its address."""
_CONSTRUCTION_GAS: Final = 20_000
_BROKER_GAS: Final = 35_000
"""The most that a constructor spends on a broker: asks the registry, writes down, seats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One contract of a market: of which artifact, and what puts it where."""

    artifact: Artifact
    salt: Digest
    creation: bytes
    brokers: int = 0
    """How many its constructor writes down."""

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def address(self) -> Address:
        return create2(self.salt, self.creation)

    @property
    def gas(self) -> int:
        """Return the most that its deployment uses, and little more than it does."""
        sent = self.salt + self.creation
        zeros = sent.count(0)
        words = -(-len(self.creation) // 32)
        return (
            _CALL_GAS
            + _BYTE_GAS[0] * zeros
            + _BYTE_GAS[1] * (len(sent) - zeros)
            + _CREATE_GAS
            + _CODE_BYTE_GAS * len(self.artifact.deployed_bytecode)
            + _WORD_GAS * words
            + _CONSTRUCTION_GAS
            + _BROKER_GAS * self.brokers
        )

    @property
    def gas_limit(self) -> int:
        """Return what its deployment may use: with many brokers it needs more than others."""
        return max(DEPLOY_GAS, self.gas)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketPlan:
    """What the contracts of a market are built with."""

    salt: Digest
    brokers: tuple[Address, ...]
    """Who may ever be a broker of this market."""
    threshold: int = 1
    """How many of them must sign a quote."""
    minimum_bond: Wei
    """The least that a broker puts up, in the registry of this chain."""
    minimum_challenge: int = DAY
    """The shortest time, in seconds, in which brokers can veto a root of a clearing round."""

    @property
    def court(self) -> Address:
        return self.court_part().address

    @property
    def registry(self) -> Address:
        return self.registry_part().address

    @property
    def escrow(self) -> Address:
        return self.escrow_part().address

    @property
    def clearing_house(self) -> Address:
        return self.clearing_house_part().address

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return all contracts of the market, each after those that its constructor asks."""
        return (
            self.court_part(),
            self.registry_part(),
            self.escrow_part(),
            self.clearing_house_part(),
        )

    @property
    def _ordered(self) -> list[Address]:
        return sorted(self.brokers, key=raw_address)  # as the constructors want them

    def court_part(self) -> Part:
        artifact = court_artifact()
        return Part(artifact=artifact, salt=SHARED_SALT, creation=artifact.bytecode)

    def registry_part(self) -> Part:
        artifact = registry_artifact()
        creation = artifact.bytecode + encode(("uint256",), (self.minimum_bond,))
        return Part(artifact=artifact, salt=SHARED_SALT, creation=creation)

    def escrow_part(self, artifact: Artifact | None = None) -> Part:
        found = artifact or escrow_artifact()
        arguments = encode(
            ("address", "address", "uint256", "address[]"),
            (self.registry, self.court, self.threshold, self._ordered),
        )
        return self._own(found, arguments)

    def clearing_house_part(self) -> Part:
        arguments = encode(
            ("address", "uint256", "uint256", "address[]"),
            (self.registry, self.minimum_challenge, self.threshold, self._ordered),
        )
        return self._own(clearing_artifact(), arguments)

    def _own(self, artifact: Artifact, arguments: bytes) -> Part:
        creation = artifact.bytecode + arguments
        return Part(artifact=artifact, salt=self.salt, creation=creation, brokers=len(self.brokers))


def create2(salt: Digest, creation: bytes) -> Address:
    """Return where CREATE2 puts a contract (EIP-1014, deployed by the proxy)."""
    return checksummed(keccak(b"\xff" + raw_address(FACTORY) + salt + keccak(creation))[12:])


def load_or_make_salt(path: Path) -> Digest:
    """Return the salt kept in `path`; the first time, make one and keep it (0600)."""
    try:
        return _read_salt(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(DIGEST_BYTES))
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(temporary, path)  # atomic, and the first of two processes wins
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return _read_salt(path)


def _read_salt(path: Path) -> Digest:
    text = path.read_text(encoding="ascii")
    try:
        salt = bytes.fromhex(text.strip())
    except ValueError:
        salt = b""
    if len(salt) != DIGEST_BYTES:
        raise WrongContractError(f"{path} does not hold a salt of {DIGEST_BYTES} bytes")
    return Digest(salt)


def deploy_market(
    client: ChainClient,
    private_key: bytes,
    plan: MarketPlan,
    *,
    artifact: Artifact | None = None,
    timeout: float = DEPLOY_TIMEOUT,
    save: Callable[[bytes], None] | None = None,
) -> Domain:
    """Deploy what is not there yet of registry, court and escrow; return the escrow's domain.

    `private_key` pays for gas alone. Raises `WrongContractError` if the chain has no
    deployment proxy or an address holds something else, `UnfundedAccountError`,
    `TransactionRefusedError`, and `ChainUnavailableError` if it is not mined in time.
    """
    escrow = plan.escrow_part(artifact)
    domain = Domain(chain_id=client.chain_id(), escrow=escrow.address)
    wallet = Wallet(private_key, domain.chain_id)
    for part in (plan.court_part(), plan.registry_part(), escrow):
        if not client.code(part.address):
            deploy_part(client, wallet, part, timeout=timeout, save=save)
    check_escrow(client, domain, plan.brokers, artifact=artifact)
    return domain


def deploy_part(
    client: ChainClient,
    wallet: Wallet,
    part: Part,
    *,
    timeout: float = DEPLOY_TIMEOUT,
    save: Callable[[bytes], None] | None = None,
) -> None:
    """Deploy one contract. Raises as `deploy_market`."""
    if not client.code(FACTORY):
        raise WrongContractError(f"chain {client.chain_id()} has no proxy at {FACTORY}")
    try:
        send_and_wait(
            client,
            wallet,
            FACTORY,
            part.salt + part.creation,
            Wei(0),
            gas=part.gas_limit,
            read_revert=lambda _: Revert(UNKNOWN_REVERT),
            timeout=timeout,
            save=save,
        )
    except TransactionRefusedError as error:
        if not client.code(part.address):  # else somebody else was first with it
            raise TransactionRefusedError("deployment failed", f"{part.name}: {error}") from error
