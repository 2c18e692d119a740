"""The part of a report that says what its broker found out about models and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class Split(TypedDict):
    """Rows that were found to be apart, by what they are for, and how many had to go for it."""

    rows: Mapping[str, int]
    dropped: int


class Replica(TypedDict):
    """A model for sale that was like another agent's, which nothing that is proved explains."""

    seller: str
    of_seller: str
    root: str
    of_root: str
    score: float
    refused: bool


class Controlled(TypedDict):
    """The trials of which a control was measured: means, as fractions of the buyers' losses."""

    trials: int
    gain: float
    scale: float
    """What the buyers' outputs gain, all multiplied by one factor."""
    tuned: float | None
    """What the buyers' models gain by fine-tuning on the broker's labels."""
    beyond: int
    """Trials that gained more than every control of theirs."""


class Honesty(TypedDict):
    """One market."""

    arm: str
    seed: int
    replicas: Sequence[Replica]
    explained: int
    """Likenesses that receipts explain, where the log was told of them."""
    scanned: int
    """Merges that were looked at."""
    anomalies: Mapping[str, int]
    """By what was found, how often; empty where nothing was, which is not to say safe."""
    controlled: NotRequired[Controlled]
