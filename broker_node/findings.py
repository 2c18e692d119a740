"""What a broker finds out about models, as events beside those of `node.chronicle`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from node.observe import Event, Level
from node.protocol.types import Address, Digest, Millionths


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFound(Event):
    """What is for sale is like what another account committed to; nothing proved explains it."""

    level: ClassVar[Level] = Level.WARNING
    seller: Address
    root: Digest
    of_seller: Address
    """Who committed to the other one, earlier."""
    of_root: Digest
    score: Millionths
    own: Millionths | None = None
    """How near the nearest of the account's own is, where that was measured."""
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LikenessExplained(Event):
    """What is for sale is like what another account committed to, and receipts say why."""

    level: ClassVar[Level] = Level.DEBUG
    seller: Address
    root: Digest
    of_seller: Address
    of_root: Digest
    score: Millionths
    why: str
    """``bought``, ``descends`` or ``related`` (`broker_node.provenance`)."""
    own: Millionths | None = None
    """How near the nearest of the account's own is, where that was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeScanned(Event):
    """What the merge of a trial was looked at for; it is never said to be safe."""

    trial_id: Digest
    verdict: str
    """``found`` or ``not found``; ``not scanned`` of models that compute nothing."""
    found: tuple[str, ...]
    """What was found, and where."""
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitAttested(Event):
    """An account has sworn that a model of its was trained on none of our rows."""

    seller: Address
    root: Digest
    validation_root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared(Event):
    """What is for sale cannot be compared with anything but bytes."""

    level: ClassVar[Level] = Level.DEBUG
    seller: Address
    root: Digest
    reason: str
    """As of `broker_node.verify.replicas.ReplicaError`: ``constant``, ``no-hidden-units`` …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedOtherwise(Event):
    """A result is right, and was not come by as it was meant to be: `reason` says how."""

    level: ClassVar[Level] = Level.WARNING
    during: str
    reason: str
