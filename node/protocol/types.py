"""The market's words: money, time, identities, digests.

Each is a `NewType`, so that a seconds-on-chain never meets a seconds-on-my-clock and an
amount of money is never a float. Nothing here knows how a value is stored or sent.
"""

from __future__ import annotations

from typing import Final, NewType

Wei = NewType("Wei", int)
"""The smallest unit of the settlement asset. Never a float, never ether."""

UnixTime = NewType("UnixTime", int)
"""Whole seconds since 1970; travels on the wire and on chain."""

Instant = NewType("Instant", float)
"""Seconds on the process's own monotonic clock; never leaves the process."""

Digest = NewType("Digest", bytes)
"""Exactly 32 bytes: a SHA-256 or keccak-256 value."""

Address = NewType("Address", str)
"""An Ethereum account, EIP-55 checksummed, with its 0x."""

PeerId = NewType("PeerId", str)
"""A libp2p peer, base58 (``12D3Koo…`` for Ed25519 keys)."""

Millionths = NewType("Millionths", int)
"""A fraction in whole millionths: how α and relative gains leave floating point."""

DIGEST_BYTES: Final = 32
ADDRESS_BYTES: Final = 20
UINT64_MAX: Final = 2**64 - 1
UINT256_MAX: Final = 2**256 - 1
ONE: Final = 1_000_000
"""One, in `Millionths`."""

NO_ADDRESS: Final = Address("0x" + "00" * ADDRESS_BYTES)
"""The zero address: as a quote's asset it means ETH."""
