"""Alignment methods by name."""

from __future__ import annotations

from typing import Final

from broker_node.align.identity import identity
from broker_node.align.stages import Aligner
from broker_node.align.weight_matching import weight_matching

ALIGNERS: Final[dict[str, Aligner]] = {
    "identity": identity,
    "weight-matching": weight_matching,
}
