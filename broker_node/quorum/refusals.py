"""Why a lead has no quorum, in words for whoever asked it."""

from __future__ import annotations

from collections.abc import Mapping

from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import SELLER_UNREACHABLE
from node.protocol.quorum import below_quorum
from node.protocol.types import Address, PeerId


def reasons_of(peers: Mapping[PeerId, Address], why: Mapping[PeerId, str]) -> list[str]:
    """Return what each peer said, named by its account."""
    return [f"{peers[peer][:10]} {reason}" for peer, reason in why.items()]


def unsealed(
    found: int, needed: int, peers: Mapping[PeerId, Address], why: Mapping[PeerId, str]
) -> RemoteProtocolError:
    """Return why too few have sealed: that is not ours where they could not have the models."""
    error = too_few(found, needed, reasons_of(peers, why))
    without = list(why.values()).count(SELLER_UNREACHABLE)
    if found + without < needed:
        return error
    return RemoteProtocolError(SELLER_UNREACHABLE, error.detail)


def too_few(found: int, needed: int, why: list[str]) -> RemoteProtocolError:
    """Return ``below-quorum`` with what each peer said."""
    error = below_quorum(found, needed)
    return RemoteProtocolError(error.reason, "; ".join([error.detail, *sorted(why)]))
