"""The cipher of a delivery: who can open the goods, and when.

Buyer and encryptor each make an X25519 key for one trade; ``dh`` is what they share. The
encryptor draws a secret, and the payload key is

    key = SHA-256(0x02 ‖ secret ‖ dh ‖ trade id)

so that the secret, once it is public on chain, opens nothing for strangers, and a dispute
must show a ``dh`` that the quote committed to. The goods are the plaintext XOR ChaCha20
under that key, with a 64-bit little-endian block counter in words 12 and 13 of the state
and zeros in 14 and 15: up to 256 GiB it is RFC 8439 with an all-zero nonce. One key
encrypts one delivery, so the nonce has nothing to tell apart. Leaf *i* of 1 KiB starts at
block 16·i, and can be opened alone: the escrow contract does so in a dispute.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.merkle import LEAF_BYTES
from node.protocol.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES: Final = 64
BLOCKS_PER_LEAF: Final = LEAF_BYTES // BLOCK_BYTES
_COUNTER_BLOCKS: Final = 1 << 32
"""A cipher context runs over one 32-bit counter: 256 GiB. Then a new one takes over."""
_MAX_BLOCKS: Final = 1 << 64
_NONCE: Final = struct.Struct("<QQ")
_KEY_DOMAIN: Final = b"\x02"


def _require_32(**values: bytes) -> None:
    for name, value in values.items():
        if len(value) != DIGEST_BYTES:
            raise LocalProtocolError(f"{name} has {DIGEST_BYTES} bytes, got {len(value)}")


def dh_commitment(dh: bytes, trade_id: bytes) -> Digest:
    """SHA-256(dh ‖ trade id); the buyer recomputes it before it funds."""
    _require_32(dh=dh, trade_id=trade_id)
    return Digest(sha256(dh + trade_id).digest())


def secret_commitment(secret: bytes) -> Digest:
    """SHA-256(secret); the escrow compares it at the reveal."""
    _require_32(secret=secret)
    return Digest(sha256(secret).digest())


def delivery_key(secret: bytes, dh: bytes, trade_id: bytes) -> bytes:
    """SHA-256(0x02 ‖ secret ‖ dh ‖ trade id): the 32-byte key of one delivery."""
    _require_32(secret=secret, dh=dh, trade_id=trade_id)
    return sha256(_KEY_DOMAIN + secret + dh + trade_id).digest()


def public_key(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of 32 secret bytes."""
    _require_32(private=private)
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared_secret(private: bytes, public: bytes) -> bytes:
    """X25519 (RFC 7748) of our private and the other side's public key: ``dh``, 32 bytes.

    Raises `RemoteProtocolError("bad-dh-key")` for a key of another length, and for one of
    low order, whose shared secret would be zero whatever our own key is.
    """
    _require_32(private=private)
    if len(public) != DIGEST_BYTES:
        raise RemoteProtocolError("bad-dh-key", f"{len(public)} bytes")
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise RemoteProtocolError("bad-dh-key", f"of low order: {public.hex()}") from error


class Keystream:
    """ChaCha20 under one key from `first_block` on, XORed over a stream in chunks of any size.

    Encryption and decryption are the same. Raises `LocalProtocolError` past 2**64 blocks.
    """

    __slots__ = ("_context", "_key", "_left", "_next_block")

    def __init__(self, key: bytes, first_block: int = 0) -> None:
        _require_32(key=key)
        if not 0 <= first_block < _MAX_BLOCKS:
            raise LocalProtocolError(f"a block counter has 64 bits, got {first_block}")
        self._key = key
        self._next_block = first_block
        self._open()

    def _open(self) -> None:
        """Start a context, good until the low half of the counter is used up."""
        if self._next_block == _MAX_BLOCKS:
            raise LocalProtocolError("the keystream ends after 2**64 blocks")
        block = self._next_block
        self._context = _context(self._key, block)
        self._next_block = (block // _COUNTER_BLOCKS + 1) * _COUNTER_BLOCKS
        self._left = (self._next_block - block) * BLOCK_BYTES

    def apply(self, chunk: bytes | memoryview) -> bytes:
        """Return `chunk` XOR the next bytes of the keystream."""
        view = memoryview(chunk).cast("B")
        return b"".join([context.update(view[part]) for context, part in self._contexts(len(view))])

    def apply_into(self, chunk: bytes | memoryview, into: bytearray | memoryview) -> None:
        """Write `chunk` XOR the next bytes of the keystream into a buffer of the same length.

        Raises `LocalProtocolError` for one of another.
        """
        view, target = memoryview(chunk).cast("B"), memoryview(into).cast("B")
        if len(view) != len(target):
            raise LocalProtocolError(f"{len(view)} bytes into a buffer of {len(target)}")
        for context, part in self._contexts(len(view)):
            context.update_into(view[part], target[part])

    def _contexts(self, length: int) -> Iterator[tuple[CipherContext, slice]]:
        """The contexts for the next `length` bytes, each with the part of them that it is for."""
        begin = 0
        while length - begin > self._left:
            end = begin + self._left
            yield self._context, slice(begin, end)
            begin = end
            self._open()
        self._left -= length - begin
        yield self._context, slice(begin, length)


def _context(key: bytes, block: int) -> CipherContext:
    return Cipher(ChaCha20(key, _NONCE.pack(block, 0)), mode=None).encryptor()


def apply_to_leaf(key: bytes, index: int, data: bytes | memoryview) -> bytes:
    """Encrypt or decrypt leaf `index` alone, without the leaves before it."""
    return Keystream(key, index * BLOCKS_PER_LEAF).apply(data)
