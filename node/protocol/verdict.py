"""What a node thinks of one message from gossip: its own verdict, with the reason counted.

py-libp2p knows only yes and no. *Ignore* is for what is no fault of whoever passed it on
(late, repeated, too many); *reject* is for what an honest peer would never have relayed.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Judgement(enum.Enum):
    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


class Verdict(NamedTuple):
    """A judgement and its reason: a short, stable, hyphenated word."""

    judgement: Judgement
    reason: str

    @property
    def accepted(self) -> bool:
        return self.judgement is Judgement.ACCEPT


def accept(reason: str = "good") -> Verdict:
    return Verdict(Judgement.ACCEPT, reason)


def ignore(reason: str) -> Verdict:
    return Verdict(Judgement.IGNORE, reason)


def reject(reason: str) -> Verdict:
    return Verdict(Judgement.REJECT, reason)
