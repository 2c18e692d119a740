"""Alignment methods by name."""

from __future__ import annotations

from typing import Final

from broker_node.align import identity, weight_matching
from broker_node.align.stages import Aligner

ALIGNERS: Final[dict[str, Aligner]] = {
    identity.NAME: identity.identity,
    weight_matching.NAME: weight_matching.weight_matching,
}
