"""A statement to the market with its two signatures: made, sent, read, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from node.protocol import cbor
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import STATEMENTS, Statement
from node.protocol.schema import from_map, to_map
from node.protocol.signing import (
    ACCOUNT_SIGNATURE_BYTES,
    PEER_SIGNATURE_BYTES,
    address_of,
    peer_id_of_seed,
    peer_sign,
    peer_verify,
    recover,
    sign_digest,
)
from node.protocol.types import Digest

MAX_STATEMENT_BYTES: Final = 16 * 1024
"""The largest message on gossip; py-libp2p silently drops much larger ones."""

S = TypeVar("S", bound=Statement, covariant=True)
B = TypeVar("B", bound=Statement)
_KIND_OF: Final = {cls: kind for kind, cls in STATEMENTS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed(Generic[S]):
    """A statement, its issuer's signature, and its peer's."""

    body: S
    account_signature: bytes
    peer_signature: bytes


def sign(domain: Domain, body: B, *, account_key: bytes, peer_seed: bytes) -> Signed[B]:
    """Sign `body` with both keys. Raises `LocalProtocolError` if either is not the one it names."""
    if address_of(account_key) != body.issuer:
        raise LocalProtocolError(f"{body.issuer} must sign, not {address_of(account_key)}")
    if peer_id_of_seed(peer_seed) != body.peer_id:
        raise LocalProtocolError(f"{body.peer_id} must sign, not {peer_id_of_seed(peer_seed)}")
    signed = digest(domain, body)
    return Signed(
        body=body,
        account_signature=sign_digest(account_key, signed),
        peer_signature=peer_sign(peer_seed, signed),
    )


def check(domain: Domain, signed: Signed[Statement]) -> Digest:
    """Return the digest of `signed.body`, once both signatures are seen to be good.

    Raises `RemoteProtocolError`: ``bad-signature`` for another account, chain or escrow,
    ``bad-peer-signature`` and ``bad-peer-id`` for the peer's.
    """
    expected = digest(domain, signed.body)
    signer = recover(expected, signed.account_signature)
    if signer != signed.body.issuer:
        raise RemoteProtocolError(
            "bad-signature", f"{signed.body.issuer} did not sign this for {domain.escrow}"
        )
    peer_verify(signed.body.peer_id, expected, signed.peer_signature)
    return expected


def encode(signed: Signed[Statement]) -> bytes:
    """Return the bytes that go on gossip. Raises `LocalProtocolError` over 16 KiB."""
    data = cbor.encode(to_value(signed))
    if len(data) > MAX_STATEMENT_BYTES:
        raise LocalProtocolError(f"{len(data)} bytes, a statement has {MAX_STATEMENT_BYTES}")
    return data


def decode(data: bytes) -> Signed[Statement]:
    """Return the statement in `data`; its signatures are not checked yet.

    Raises `RemoteProtocolError`: ``oversize``, ``malformed`` or ``unknown-kind``.
    """
    if len(data) > MAX_STATEMENT_BYTES:
        raise RemoteProtocolError("oversize", f"{len(data)} bytes over {MAX_STATEMENT_BYTES}")
    return from_value(cbor.decode(data))


def to_value(signed: Signed[Statement]) -> cbor.Value:
    """Return the statement as a CBOR value, for a message that carries it."""
    return [
        _KIND_OF[type(signed.body)],
        to_map(signed.body),
        signed.account_signature,
        signed.peer_signature,
    ]


def from_value(value: cbor.Value) -> Signed[Statement]:
    """Inverse of `to_value`, for values from a peer."""
    if type(value) is not list or len(value) != 4:
        raise RemoteProtocolError("malformed", "a statement has a kind, a body and 2 signatures")
    kind, body, account_signature, peer_signature = value
    if type(kind) is not str or kind not in STATEMENTS:
        raise RemoteProtocolError("unknown-kind", repr(kind)[:64])
    if type(account_signature) is not bytes or len(account_signature) != ACCOUNT_SIGNATURE_BYTES:
        raise RemoteProtocolError("bad-signature", "an account's signature has 65 bytes")
    if type(peer_signature) is not bytes or len(peer_signature) != PEER_SIGNATURE_BYTES:
        raise RemoteProtocolError("bad-peer-signature", "a peer's signature has 64 bytes")
    return Signed(
        body=from_map(STATEMENTS[kind], body),
        account_signature=account_signature,
        peer_signature=peer_signature,
    )
