"""Putting the escrow on a chain at an address that nobody else's market has.

CREATE2 through the deterministic deployment proxy: the address follows from a random salt
and the creation code (which holds the broker), so it is known before the deployment, the
deployment may be repeated, and no two devnets share an EIP-712 domain. What lies at the
address afterwards is compared with the artifact, byte for byte.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from eth_abi.abi import encode
from eth_hash.auto import keccak

from contracts import Artifact, load_artifact
from node.chain import answers
from node.chain.client import ChainClient
from node.chain.codec import UNKNOWN_REVERT
from node.chain.errors import ChainUnavailableError, TransactionRefusedError, WrongContractError
from node.chain.factory import FACTORY
from node.chain.transactions import Wallet, broadcast
from node.protocol.eip712 import DOMAIN_NAME, DOMAIN_VERSION, Domain
from node.protocol.schema import checksummed, raw_address
from node.protocol.types import ADDRESS_BYTES, DIGEST_BYTES, Address, Digest, Wei

DEPLOY_GAS: Final = 4_000_000
DEPLOY_TIMEOUT: Final = 120.0
_POLL_SECONDS: Final = 0.5


def escrow_artifact() -> Artifact:
    """Return the compiled escrow that this version speaks to."""
    return load_artifact("ParameterEscrow")


def creation_code(broker: Address, artifact: Artifact | None = None) -> bytes:
    """Return the escrow's init code for one broker."""
    found = artifact or escrow_artifact()
    return found.bytecode + encode(("address",), (broker,))


def escrow_address(salt: Digest, broker: Address, artifact: Artifact | None = None) -> Address:
    """Return where CREATE2 puts the escrow (EIP-1014, deployed by the proxy)."""
    code_hash = keccak(creation_code(broker, artifact))
    return checksummed(keccak(b"\xff" + raw_address(FACTORY) + salt + code_hash)[12:])


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


def deploy_escrow(
    client: ChainClient,
    private_key: bytes,
    broker: Address,
    salt: Digest,
    *,
    artifact: Artifact | None = None,
    timeout: float = DEPLOY_TIMEOUT,
    save: Callable[[bytes], None] | None = None,
) -> Domain:
    """Deploy the escrow, unless it is there already; return its domain.

    `private_key` pays for gas alone. Raises `WrongContractError` if the chain has no
    deployment proxy or the address holds something else, `UnfundedAccountError`,
    `TransactionRefusedError`, and `ChainUnavailableError` if it is not mined in time.
    """
    found = artifact or escrow_artifact()
    domain = Domain(chain_id=client.chain_id(), escrow=escrow_address(salt, broker, found))
    if not client.code(domain.escrow):
        if not client.code(FACTORY):
            raise WrongContractError(f"chain {domain.chain_id} has no proxy at {FACTORY}")
        wallet = Wallet(private_key, domain.chain_id)
        transaction = wallet.sign(
            FACTORY,
            salt + creation_code(broker, found),
            Wei(0),
            gas=DEPLOY_GAS,
            nonce=client.nonce(wallet.address),
            fees=wallet.fees(client),
        )
        if save is not None:
            save(transaction.raw)
        broadcast(client, transaction.raw, lambda _: UNKNOWN_REVERT)
        _wait(client, transaction.hash, timeout)
    check_escrow(client, domain, broker, artifact=found)
    return domain


def _wait(client: ChainClient, transaction: Digest, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        receipt = client.ask("eth_getTransactionReceipt", "0x" + transaction.hex())
        if receipt is not None:
            status = answers.mapping(receipt, "a receipt").get("status")
            if answers.quantity(status, "status", 1) == 0:
                raise TransactionRefusedError("deployment failed")
            return
        if time.monotonic() > deadline:
            raise ChainUnavailableError(f"the deployment was not mined within {timeout} s")
        time.sleep(_POLL_SECONDS)


def check_escrow(
    client: ChainClient,
    domain: Domain,
    broker: Address | None = None,
    *,
    artifact: Artifact | None = None,
) -> Address:
    """Check that `domain` is our escrow, for `broker` where one is given; return its broker.

    The code must be the artifact's, byte for byte, and each place that the constructor
    fills in must hold one of the values that it could have put there for this domain and
    broker. Raises `WrongContractError`.
    """
    chain_id = client.chain_id()
    if chain_id != domain.chain_id:
        raise WrongContractError(f"the chain's id is {chain_id}, not {domain.chain_id}")
    code = client.code(domain.escrow)
    if not code:
        raise WrongContractError(f"there is no code at {domain.escrow} on chain {chain_id}")
    found = artifact or escrow_artifact()
    if not found.is_code_of(code):
        raise WrongContractError(f"the code at {domain.escrow} is not that of {found.name}")
    words = {code[start : start + length] for start, length in found.immutables}
    unknown = words - _constructed_words(domain)
    expected = set() if broker is None else {_word(raw_address(broker))}
    if broker is not None and unknown != expected:
        raise WrongContractError(f"the escrow at {domain.escrow} does not trust broker {broker}")
    trusted = unknown.pop() if len(unknown) == 1 else b""
    if not trusted or trusted != _word(trusted[-ADDRESS_BYTES:]):
        raise WrongContractError(f"the escrow at {domain.escrow} was built for another domain")
    return checksummed(trusted[-ADDRESS_BYTES:])


def _constructed_words(domain: Domain) -> set[bytes]:
    """Return what the EIP712 base of the contract writes into the code."""
    name, version = DOMAIN_NAME.encode(), DOMAIN_VERSION.encode()
    return {
        _word(domain.chain_id.to_bytes(DIGEST_BYTES, "big")),
        _word(raw_address(domain.escrow)),
        domain.separator,
        keccak(name),
        keccak(version),
        _short_string(name),
        _short_string(version),
    }


def _word(value: bytes) -> bytes:
    return value.rjust(DIGEST_BYTES, b"\0")


def _short_string(text: bytes) -> bytes:
    """OpenZeppelin's ShortString: 31 bytes of text and their count."""
    return text.ljust(DIGEST_BYTES - 1, b"\0") + bytes([len(text)])
