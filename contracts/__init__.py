"""The settlement contracts: Solidity sources, what was compiled of them, and their gas."""

from __future__ import annotations

from contracts.artifact import Artifact, load_artifact

__all__ = ["Artifact", "load_artifact"]
