"""Figures and foreign text as a reader sees them, the same on a page, a plot and a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from typing import Final, NamedTuple

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.report.document import Metric

ETHER: Final = 10**18
NONE: Final = "–"

ARM_WORDS: Final = {
    OUT_OF_MARKET: "everybody trains alone",
    "fedavg": "half of each weight is bought (α = ½), if it gains",
    "unaligned": "α chosen, units left in their order",
    "aligned": "α chosen, units matched to the buyer's first",
    "universe": "units matched by a universe, a share chosen for each",
}
CAUSE_WORDS: Final = {
    "gain": "no gain",
    "bound": "gain not sure",
    "ask": "ask too high",
    "fee": "fee too high",
    "cash": "no cash",
    "other": "other",
}


def legible(text: object, limit: int = 200) -> str:
    """Return foreign text as one line of at most `limit` characters that steers nothing.

    Control, format (bidirectional) and unassigned characters and lone surrogates become the
    replacement character; what is too long loses its middle.
    """
    cleaned = "".join(
        "\N{REPLACEMENT CHARACTER}" if _steers(character) else character
        for character in " ".join(str(text).split())
    )
    return shortened(cleaned, limit)


def _steers(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in {"Zl", "Zp"}


def shortened(text: str, limit: int) -> str:
    """Return the text, or its two ends about an ellipsis if it is longer than `limit`."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return text[:head] + "…" + text[len(text) - (limit - head - 1) :]


# ── money ──


class Unit(NamedTuple):
    """A unit of money for an axis."""

    wei: int
    name: str


def unit_for(amounts: Iterable[int]) -> Unit:
    """Return the unit in which the largest of `amounts` (wei) reads well."""
    largest = max(amounts, default=0)
    if largest >= ETHER // 1_000 or largest == 0:
        return Unit(ETHER, "play-ether")
    return Unit(10**9, "play-gwei") if largest >= 10**6 else Unit(1, "wei")


def play_ether(wei: str | int) -> str:
    """Return an amount in play-ether to six decimals; for reading, never for reckoning."""
    amount = int(wei)
    if 0 < abs(amount) < ETHER // 1_000_000:
        return "under 0.000001" if amount > 0 else "over −0.000001"
    return f"{Decimal(amount) / ETHER:.6f}".replace("-", "−")


# ── figures ──


def figure(value: float | None, metric: Metric) -> str:
    """Return an accuracy (percent) to two decimals, or a loss to three digits."""
    if value is None:
        return NONE
    return f"{value:.2f}" if metric == "accuracy" else f"{value:.3g}"


def three_digits(value: float) -> str:
    """Return an amount to three digits, as a plain number where it is neither huge nor tiny."""
    if not value:
        return "0"
    if not 0.001 <= abs(value) < 1_000_000:
        return f"{value:.2e}"
    places = next(
        (p for p, least in ((0, 100), (1, 10), (2, 1), (3, 0.1)) if abs(value) >= least), 4
    )
    return f"{value:,.{places}f}"


def metric_words(metric: Metric) -> str:
    return "test accuracy (%)" if metric == "accuracy" else "mean squared test loss"


def signed(value: float | None, places: int = 2) -> str:
    """Return a difference with its sign, with a true minus."""
    if value is None:
        return NONE
    return f"{value:+.{places}f}".replace("-", "−")


def percent(fraction: float | None, places: int = 2) -> str:
    """Return a fraction as percent."""
    return NONE if fraction is None else f"{100 * fraction:.{places}f} %".replace("-", "−")


def alpha_text(alpha: float | None) -> str:
    return NONE if alpha is None else f"{alpha:.3f}"


def counted(count: int, noun: str) -> str:
    """Return `1 trade`, `2 trades`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a time for a person: 41.3 s, 2 min 05 s, 1 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """Return bytes in the decimal unit that fits."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1_000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1_000
    return f"{amount:.2f} GB"


def arm_words(arm: str) -> str:
    """Return what an arm's rule is, or nothing for one that is not known here."""
    return ARM_WORDS.get(arm, "")


def cause_words(cause: str) -> str:
    return CAUSE_WORDS.get(cause, cause)
