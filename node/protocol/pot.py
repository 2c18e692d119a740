"""What a node sees of a round of a clearing house when it looks at the chain.

The machines of a round (`participation`, `convening`) are told by what the chain shows and not by
what happened: each look is a whole answer, so that nothing is missed by a node that was away, and
a look may be repeated. All times are the chain's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.protocol.types import DIGEST_BYTES, Digest, UnixTime, Wei

NO_ROOT: Final = Digest(bytes(DIGEST_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look at a round."""

    now: UnixTime
    """Of the newest block."""
    opened: bool = True
    """Whether the round is there; if not, all below is nothing."""
    pot: Wei = Wei(0)
    paid: Wei = Wei(0)
    """By our own account, and not taken back."""
    root: Digest = NO_ROOT
    """The hash of the clearing that is posted, by which the contract knows it."""
    version: int = 0
    """How many roots were posted."""
    stands_from: UnixTime = UnixTime(0)
    """From when on what is posted can be claimed under."""
    expires_at: UnixTime = UnixTime(0)
    """From when on anybody can end what is posted."""
    claimed: bool = False
    """Whether our leaf was claimed."""
    credit: Wei = Wei(0)
    """What we may draw."""

    @property
    def posted(self) -> bool:
        return self.root != NO_ROOT

    @property
    def stands(self) -> bool:
        """Whether what is posted can be replaced no more."""
        return self.posted and self.now >= self.stands_from
