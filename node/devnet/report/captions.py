"""What is said of each plot: under it (how it is read), and in place of it (what it shows).

An empty plot says itself why it is empty, and has no caption.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.report.document import (
    ALL_AGENTS,
    Report,
    agent_names,
    arms_of,
)
from node.devnet.report.findings import mean_of, not_made, paid_trades, trading_by_arm
from node.devnet.report.words import (
    cause_words,
    counted,
    figure,
    legible,
    metric_words,
    percent,
    play_ether,
    signed,
)

NO_TRADE: Final = "No trade was paid."
PANELS: Final = 4
"""Up to so many agents have a panel each in the learning plot."""


def band_words(report: Report) -> str:
    """Return what the shaded band of the learning plot is."""
    if len(report["seeds"]) > 1:
        what = "least to greatest of the seeds"
    elif len(agent_names(report)) > PANELS:
        what = "least to greatest of the agents"
    else:
        return "one seed, so no band"
    return f"line: mean; band: {what}"


def learning(report: Report) -> str:
    if not agent_names(report):
        return ""
    whose = "the mean over all agents" if len(agent_names(report)) > PANELS else "each agent"
    what = metric_words(report["metric"]).capitalize()
    said = [f"{what} by epoch of {whose}; {band_words(report)}."]
    if OUT_OF_MARKET in report["arms"]:
        said.append("Dashed: training alone.")
    if not report["complete"]:
        said.append("Dotted, to a cross: a seed that was cut short.")
    return " ".join(said)


def learning_alt(report: Report) -> str:
    ends = []
    for arm in arms_of(report):
        if arm in report["arms"]:
            mean = mean_of(report["arms"][arm]["accuracy"].values())
            if mean is None:
                continue
            ends.append(f"{legible(arm, 40)} {figure(mean, report['metric'])}")
    if not ends:
        return "No agent reached the last epoch."
    return f"Lines of {metric_words(report['metric'])} by epoch. At the end: {', '.join(ends)}."


def differences(report: Report) -> str:
    if not report["differences"]:
        return ""
    return (
        "Paired over seeds: both arms of a seed start from the same weights and see the same "
        "batches. Bars: 95 % Student-t interval of the mean"
        + (", which needs two seeds or more." if len(report["seeds"]) < 2 else ".")
    )


def differences_alt(report: Report) -> str:
    rows = [
        f"{legible(row['of'], 40)} against {legible(row['against'], 40)} {signed(row['mean'])}"
        + (f" ({signed(row['low'])} to {signed(row['high'])})" if row["low"] is not None else "")
        for row in report["differences"]
        if row["agent"] == ALL_AGENTS
    ]
    return f"Differences over all agents: {'; '.join(rows)}." if rows else "No two arms to compare."


def lost(report: Report) -> str:
    if not any(legs["possible"] for legs in report["legs"].values()):
        return ""
    return (
        "A possible trade is one agent in one round. It is lost where the offers gain nothing, "
        "where the gain is not sure, to the seller's ask, to the broker's fee, or for want of cash."
    )


def lost_alt(report: Report) -> str:
    said = []
    for row in trading_by_arm(report):
        causes = [f"{n:,} {cause_words(c)}" for c, n in not_made(report, row.arm).items()]
        lost_to = f"; lost: {', '.join(causes)}" if causes else ""
        traded = report["legs"][row.arm]["traded"] if row.arm in report["legs"] else row.paid
        said.append(f"{legible(row.arm, 40)}: {traded:,} of {row.possible:,} traded{lost_to}")
    return legible(". ".join(said) + ".", 900) if said else "No trade was possible."


def matrix(report: Report) -> str:
    if not paid_trades(report):
        return ""
    what = (
        "total price" if any(int(t["price"]) for t in paid_trades(report)) else "number of trades"
    )
    return f"Rows buy from columns; the colour is the {what} over all rounds and seeds."


def matrix_alt(report: Report) -> str:
    pairs = Counter((trade["buyer"], trade["seller"]) for trade in paid_trades(report))
    paid: Counter[tuple[str, str]] = Counter()
    for trade in paid_trades(report):
        paid[trade["buyer"], trade["seller"]] += int(trade["price"])
    rows = [
        f"{legible(buyer, 40)} from {legible(seller, 40)} {counted(pairs[buyer, seller], 'trade')}"
        f" for {play_ether(paid[buyer, seller])} play-ether"
        for (buyer, seller), _ in pairs.most_common(6)
    ]
    return f"Matrix of buyers and sellers. Most: {'; '.join(rows)}." if rows else NO_TRADE


def price(report: Report) -> str:
    if not any(int(trade["price"]) for trade in paid_trades(report)):
        return ""
    return "One dot a trade, fee included; the line is the median of each round."


def price_alt(report: Report) -> str:
    rows = [
        f"{legible(row.arm, 40)} median {play_ether(row.median_price)} play-ether"
        for row in trading_by_arm(report)
        if row.median_price is not None
    ]
    return f"Prices by round: {'; '.join(rows)}." if rows else NO_TRADE


def gain(report: Report) -> str:
    if not paid_trades(report):
        return ""
    if report["protocol"] == "paper":
        return (
            "Each trade's gain, the part of the buyer's loss that it removes, measured on the "
            "whole test set as the paper does; any gain above 0 buys."
        )
    return (
        "Each trade's gain, the part of the buyer's loss that it removes, with a stroke down to "
        "its lower bound; only a bound above 0 buys."
    )


def gain_alt(report: Report) -> str:
    rows = [
        f"{legible(row.arm, 40)} mean {percent(row.gain)}"
        for row in trading_by_arm(report)
        if row.gain is not None
    ]
    return f"Gains by round: {'; '.join(rows)}." if rows else NO_TRADE


def alpha(report: Report) -> str:
    if not paid_trades(report):
        return ""
    return (
        "The weight of the seller's parameters in what the buyer takes. One dot a trade; the line "
        "is the mean of each round."
    )


def alpha_alt(report: Report) -> str:
    rows = [
        f"{legible(row.arm, 40)} mean {row.alpha:.2f}"
        for row in trading_by_arm(report)
        if row.alpha is not None
    ]
    return f"α by round: {'; '.join(rows)}." if rows else NO_TRADE


def gas(report: Report) -> str:
    if not report["gas"]:
        return ""
    total = sum(row["total"] for row in report["gas"].values())
    begun = len(report["trades"])
    each = f", {total // begun:,} a trade" if begun else ""
    return f"{total:,} gas in all{each}. Strokes: least to greatest seen, where they differ."


def gas_alt(report: Report) -> str:
    rows = [
        f"{legible(step, 40)} {row['mean']:,.0f} × {row['count']:,}"
        for step, row in report["gas"].items()
    ]
    return f"Mean gas by step: {'; '.join(rows)}." if rows else "No transaction."
