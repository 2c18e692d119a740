"""Whose fault a refusal is, where we ask one party for the sake of another.

Whoever asked us passes us over for what it takes for a failure of ours (`FAILING`): a seller that
answered with one of those reasons could make buyers shun honest brokers. What we pass on of a
party's refusals is therefore never one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from node.net.errors import PASSING
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import FAILING, SELLER_UNREACHABLE
from node.protocol.types import PeerId

TAKEN_FOR_OURS: Final = PASSING | FAILING | {"unknown-offer"}
"""What a seller is at fault for, and whoever asked us would take for a fault of ours."""


@contextmanager
def of_seller(seller: PeerId, *, all_of_it: bool = False) -> Iterator[None]:
    """Turn a seller's refusals that would be taken for ours into ``seller-unreachable``.

    `all_of_it`: whatever it says, for a peer that cannot tell the seller's words from ours.
    """
    try:
        yield
    except RemoteProtocolError as error:
        if all_of_it or error.reason in TAKEN_FOR_OURS:
            said = f"{error.reason}: {error.detail}" if error.detail else error.reason
            raise RemoteProtocolError(SELLER_UNREACHABLE, said[:200], peer=seller) from error
        raise
