"""What strategies came to, in words: the tables that page and terminal both show."""

from __future__ import annotations

from typing import Final, NamedTuple

from node.devnet.report.document import Report
from node.devnet.report.words import legible, percent, play_ether

FORMULAS: Final = (
    "Regret: what a true bid (the value) or a true ask (the cost) would have brought besides, at "
    "what the other side said of the same trade; under 0, the agent did better than by the truth. "
    "Optimum: what the best asks in hindsight would have brought. What is on offer, what others "
    "say and later rounds are held fixed. Control: what the buyer's own model gains with its "
    "outputs all multiplied by the best factor, which is to be had without a purchase; weights "
    "that know nothing can gain as much."
)

SAID: Final = ("bought", "regret", "sold", "regret", "revenue", "of optimum")
GOODS: Final = ("offers", "trials", "gain", "sure", "bids", "sold", "to maker", "revenue")
TRIED: Final = ("trials", "gain", "control", "beyond")
WASHED: Final = (
    *("trades", "paid", "fees"),
    *("asks", "asked", "without", "lost"),
)


class Shown(NamedTuple):
    """One table; the first `left` columns are words, the others figures."""

    title: str
    headings: list[str]
    left: int
    rows: list[list[str]]


def strategy_tables(report: Report) -> list[Shown]:
    """Return the tables that there is anything in; none for a run without strategies."""
    found = report.get("strategies")
    if found is None:
        return []
    arms, seeds = ({row[name] for row in found["balance"]} for name in ("arm", "seed"))
    market = ["arm"] * (len(arms) > 1) + ["seed"] * (len(seeds) > 1)

    def place(row: dict[str, object]) -> list[str]:
        return [legible(row[name], 24) for name in market]

    shown = (
        Shown(
            "Strategies: regret of true bids and true asks, in play-ether",
            ["agent", "strategy", *market, *SAID],
            2 + len(market),
            [
                [
                    legible(row["agent"], 24),
                    legible(row["strategy"], 40),
                    *place({**row}),
                    f"{row['bought']:,}/{row['bids']:,}",
                    play_ether(row["regret_buying"]),
                    f"{row['sold']:,}/{row['asks']:,}",
                    play_ether(row["regret_selling"]),
                    play_ether(row["revenue"]),
                    play_ether(row["optimum"]),
                ]
                for row in found["agents"]
            ],
        ),
        Shown(
            "Other goods than were trained, revenue in play-ether",
            ["agent", "goods", *market, *GOODS],
            2 + len(market),
            [
                [
                    legible(row["agent"], 24),
                    legible(row["kind"], 24),
                    *place({**row}),
                    *(f"{row['offers']:,}", f"{row['trials']:,}", f"{row['gaining']:,}"),
                    *(f"{row['sure']:,}", f"{row['bids']:,}", f"{row['sold']:,}"),
                    f"{row['to_its_maker']:,}",
                    play_ether(row["revenue"]),
                ]
                for row in found["goods"]
            ],
        ),
        Shown(
            "Trials of what each offered: gain, and control",
            ["agent", "goods", *market, *TRIED],
            2 + len(market),
            [
                [
                    legible(row["agent"], 24),
                    legible(row["kind"], 24),
                    *place({**row}),
                    f"{row['trials']:,}",
                    percent(row["gain"]),
                    percent(row["control"]),
                    f"{row['beyond']:,}",
                ]
                for row in found["tried"]
            ],
        ),
        Shown(
            "Wash trades; asks that saw them, and without them, in play-ether",
            [*market, *WASHED],
            len(market),
            [
                [
                    *place({**row}),
                    f"{row['trades']:,}",
                    play_ether(row["paid"]),
                    play_ether(row["fees"]),
                    f"{row['asks']:,}",
                    play_ether(row["asked"]),
                    play_ether(row["without"]),
                    f"{row['lost']:,}",
                ]
                for row in found["washing"]
            ],
        ),
        Shown(
            "Budget balance, in wei: paid − received − fees",
            [*market, "paid", "received", "fees", "surplus"],
            len(market),
            [
                [*place({**row}), row["paid"], row["received"], row["fees"], row["surplus"]]
                for row in found["balance"]
            ],
        ),
    )
    return [table for table in shown if table.rows]
