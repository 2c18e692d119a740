"""What an agent swears of its rows: none that it trained on is, so far as it knows, its broker's.

A broker's rows are secret, and only their root is public: nobody can check this beforehand. It is
signed so that it can be held against its account where the rows are shown, or found out, later.
Where one holds both sides, as in an experiment, rows are compared instead (`node.data.clean`).
"""

from __future__ import annotations

from dataclasses import dataclass

from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import Message
from node.protocol.signing import recover, sign_digest
from node.protocol.types import Address, Digest, UnixTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation(Message):
    """The model under `weights_root` was trained on no row under `validation_root`."""

    seller: Address
    weights_root: Digest
    validation_root: Digest
    """Of the broker's rows, as its notice commits to them."""
    issued_at: UnixTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest(Message):
    """Agent → broker: what I swear of a model that I offer."""

    attestation: Attestation
    signature: bytes
    """Of the account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested(Message):
    """Broker → agent: it is kept."""

    digest: Digest


def attest(domain: Domain, attestation: Attestation, account_key: bytes) -> Attest:
    """Sign an attestation."""
    signature = sign_digest(account_key, digest(domain, attestation))
    return Attest(attestation=attestation, signature=signature)


def check_attest(domain: Domain, said: Attest, *, validation_root: Digest) -> Digest:
    """Return the digest of what was sworn.

    Raises `RemoteProtocolError`: ``other-rows`` if it is of other rows than `validation_root`,
    ``bad-signature`` unless its own account has signed it.
    """
    body = said.attestation
    if body.validation_root != validation_root:
        raise RemoteProtocolError("other-rows", body.validation_root.hex())
    name = digest(domain, body)
    if recover(name, said.signature) != body.seller:
        raise RemoteProtocolError("bad-signature", f"not of {body.seller}")
    return name
