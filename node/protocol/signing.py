"""Two keys, two signatures: secp256k1 for the account, Ed25519 for the peer.

An account signs digests (65 bytes r‖s‖v, s low, v 27 or 28, as Solidity's ECDSA wants
them). A peer's public key is read out of its id, so that a message needs no key beside it
and a truncated or padded id cannot name anybody.
"""

from __future__ import annotations

import functools
from typing import Final

import base58
import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from eth_hash.auto import keccak

from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import checksummed
from node.protocol.types import Address, Digest, PeerId

ACCOUNT_SIGNATURE_BYTES: Final = 65
PEER_SIGNATURE_BYTES: Final = 64
_SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
# identity multihash (0x00, 36 bytes) of the protobuf key {type: Ed25519, data: 32 bytes}
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
_FIELD: Final = 2**255 - 19
_Y_OF_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_LOW_ORDER: Final = frozenset({0, 1, _FIELD - 1, _Y_OF_ORDER_8, _FIELD - _Y_OF_ORDER_8})
"""The y of the eight points for which one signature is good for every message."""


@functools.lru_cache(maxsize=64)
def address_of(private_key: bytes) -> Address:
    """Return the account of a 32-byte secp256k1 key."""
    return _address(coincurve.PrivateKey(private_key).public_key)


def _address(key: coincurve.PublicKey) -> Address:
    return checksummed(keccak(key.format(compressed=False)[1:])[12:])


def sign_digest(private_key: bytes, digest: Digest) -> bytes:
    """Sign 32 bytes with an account's key; RFC 6979, so the same each time."""
    signature = coincurve.PrivateKey(private_key).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([signature[64] + 27])


def recover(digest: Digest, signature: bytes) -> Address:
    """Return the account that signed `digest`.

    Raises `RemoteProtocolError("bad-signature")` for a wrong length, a high s (malleable),
    another v than 27 and 28, or a point that is not on the curve.
    """
    if len(signature) != ACCOUNT_SIGNATURE_BYTES or signature[64] not in (27, 28):
        raise RemoteProtocolError("bad-signature", "an account signs 65 bytes with v 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _SECP256K1_ORDER // 2:
        raise RemoteProtocolError("bad-signature", "s is in the upper half of the order")
    compact = signature[:64] + bytes([signature[64] - 27])
    try:
        key = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    except ValueError as error:
        raise RemoteProtocolError("bad-signature", str(error)) from error
    return _address(key)


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the libp2p id of a 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


@functools.lru_cache(maxsize=64)
def peer_id_of_seed(seed: bytes) -> PeerId:
    """Return the libp2p id of the peer with this 32-byte seed."""
    return peer_id_of(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


@functools.lru_cache(maxsize=4_096)
def public_key_of(peer: PeerId) -> Ed25519PublicKey:
    """Return the Ed25519 key inside a peer id.

    Raises `RemoteProtocolError("bad-peer-id")` for any id of another kind or length, and for
    a key of low order: whoever likes can sign for it.
    """
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise RemoteProtocolError("bad-peer-id", f"{peer[:64]!r} is not base58") from error
    key = raw[len(_PEER_ID_PREFIX) :]
    if raw[: len(_PEER_ID_PREFIX)] != _PEER_ID_PREFIX or len(key) != 32:
        raise RemoteProtocolError("bad-peer-id", f"{peer[:64]!r} is not an Ed25519 peer id")
    if peer_id_of(key) != peer:
        raise RemoteProtocolError("bad-peer-id", f"{peer[:64]!r} is not in its shortest form")
    if (int.from_bytes(key, "little") & (2**255 - 1)) % _FIELD in _LOW_ORDER:
        raise RemoteProtocolError("bad-peer-id", f"{peer[:64]!r} is a key of low order")
    return Ed25519PublicKey.from_public_bytes(key)


def peer_sign(seed: bytes, message: bytes) -> bytes:
    """Sign with the 32-byte seed of a peer's key."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def peer_verify(peer: PeerId, message: bytes, signature: bytes) -> None:
    """Raise `RemoteProtocolError("bad-peer-signature")` unless `peer` signed `message`."""
    key = public_key_of(peer)
    if len(signature) != PEER_SIGNATURE_BYTES:
        raise RemoteProtocolError("bad-peer-signature", f"{len(signature)} bytes, not 64")
    try:
        key.verify(signature, message)
    except InvalidSignature as error:
        raise RemoteProtocolError("bad-peer-signature", f"not by {peer}") from error
