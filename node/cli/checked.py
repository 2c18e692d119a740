"""What ``pm-node doctor`` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""
