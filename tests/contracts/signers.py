"""Whom a signature recovers to, if it is taken for one over something else."""

from __future__ import annotations

from eth_keys.datatypes import Signature


def signer_of(digest: bytes, signatures: bytes, position: int = 0) -> str:
    """Return the account, in lower case, to which one of several signatures recovers."""
    signature = signatures[65 * position : 65 * position + 65]
    signed = Signature(signature[:64] + bytes([signature[64] - 27]))
    account: str = signed.recover_public_key_from_msg_hash(digest).to_checksum_address()
    return account.lower()
