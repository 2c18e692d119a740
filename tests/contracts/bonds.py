"""Brokers and what there is to prove of them, as a machine keeps books of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from contracts.stage import Contract, Stage
from tests.contracts.deliveries import Delivery
from tests.contracts.rewinding import Rewinding

DAY = 86_400
EXIT_DELAY = 100 * DAY
WINDOW = 30 * DAY
SEATED = ("broker", "second", "third")
"""Who may sit in the markets. A rival can put up a bond too, and sits nowhere."""
BONDED = (*SEATED, "rival")
PARTIES = (*BONDED, "buyer", "seller")
DEAD = "0x" + "00" * 18 + "dead"

Refusal = tuple[Any, ...] | None
"""The error that a call must end with, and the first of its values; None if it must go through."""
bonded = st.sampled_from(BONDED)
parties = st.sampled_from(PARTIES)
markets = st.sampled_from(("escrow", "house", "rival"))
"""Two that are, and an account that a broker can name for one."""
flaws = st.sampled_from(
    (*[None] * 6, "same", "ids", "first forged", "second forged", "elsewhere", "misplaced")
)
places = st.sampled_from(("escrow", "house"))


@dataclass(kw_only=True)
class Broker:
    """A broker by our books."""

    bond: int = 0
    leaves_at: int = 0
    markets: list[str] = field(default_factory=list)
    slashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Two quotes that are shown as a broker's, and what there is to say of them."""

    broker: str
    market: str
    shown: tuple[Any, Any]
    victim: str
    refusal: Refusal


@dataclass(kw_only=True)
class Sale:
    """A delivery that was paid for and revealed."""

    goods: Delivery
    encryptor: str
    good: bool
    revealed_at: int
    vouched: bool = False
    disputed: bool = False


def deploy() -> tuple[Stage, tuple[Stage, Contract]]:
    """Return a market of three brokers, and a clearing house of theirs."""
    stage = Stage(SEATED)
    return stage, (stage, stage.clearing_house())


ready = Rewinding(deploy)
