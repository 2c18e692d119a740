"""What a broker found out, in words: the tables that page and terminal both show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from node.devnet.report.honesty import Honesty
from node.devnet.report.strategy_rows import Shown
from node.devnet.report.words import NONE, legible, percent

NOT_FOUND: Final = "not found"


def honesty_tables(found: Sequence[Honesty]) -> list[Shown]:
    """Return the tables that there is anything in."""
    shown = (
        Shown(
            "Replicas: models for sale that are like another agent's, unexplained by receipts",
            ["agent", "like one of", "arm", "seed", "outcome", "score"],
            5,
            [
                [
                    *(legible(row["seller"], 24), legible(row["of_seller"], 24)),
                    *(legible(one["arm"], 24), str(one["seed"])),
                    "refused" if row["refused"] else "reported",
                    f"{row['score']:.4f}",
                ]
                for one in found
                for row in one["replicas"]
            ],
        ),
        Shown(
            "Anomalies in the merges of trials",
            ["arm", "seed", "outcome", "merges"],
            3,
            [
                [legible(one["arm"], 24), str(one["seed"]), legible(outcome, 120), f"{times:,}"]
                for one in found
                if one["scanned"]
                for outcome, times in _outcomes(one).items()
            ],
        ),
        Shown(
            "Trials and their controls: mean gain, and what buyers gain without any purchase",
            ["arm", "seed", "trials", "gain", "scaled", "fine-tuned", "beyond"],
            2,
            [
                [
                    *(legible(one["arm"], 24), str(one["seed"]), f"{of['trials']:,}"),
                    *(percent(of["gain"]), percent(of["scale"])),
                    NONE if of["tuned"] is None else percent(of["tuned"]),
                    f"{of['beyond']:,}",
                ]
                for one in found
                if (of := one.get("controlled")) is not None
            ],
        ),
    )
    return [table for table in shown if table.rows]


def _outcomes(one: Honesty) -> dict[str, int]:
    quiet = one["scanned"] - sum(one["anomalies"].values())
    return {**({NOT_FOUND: quiet} if quiet else {}), **one["anomalies"]}
