"""The calls of a run, as tables of the page and as lines at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from node.devnet.report.document import CallRow, Calls, Fairness, Prediction, Report
from node.devnet.report.markup import (
    EMPTY,
    Html,
    escaped,
    folded,
    joined,
    number,
    short,
    table,
    text,
)
from node.devnet.report.words import NONE, counted, legible, percent, play_ether

OPEN_ROWS: Final = 40
MOST_ROWS: Final = 1_000
"""Of one table of a page; all are in the JSON."""


def summary(report: Report) -> list[str]:
    """Return what there is to say of a run's calls, in sentences; nothing without calls."""
    calls = report.get("calls")
    if calls is None:
        return []
    rows = calls["calls"]
    confirmed = sum(call["confirmed"] for call in rows)
    kept = sum(call["within_budgets"] for call in rows)
    shares = sum(one["share"] for call in rows for one in call["given"])
    paid_for = [one for call in rows for one in call["given"] if one["trade"] is not None]
    layers = sum(one["layers"] for one in paid_for if one["on_chain"] == "paid")
    paid = play_ether(sum(int(call["paid"]) for call in rows))
    budget = play_ether(sum(int(wei) for call in rows for wei in call["budgets"].values()))
    name, cleared = legible(calls["mechanism"], 20), counted(len(rows), "call")
    said = (
        f"{name}: {cleared} cleared; `verify` confirms {confirmed} of {len(rows)} certificates; "
        f"every budget is kept in {kept}. Of {shares:.1f} layers that were sold {layers} whole "
        f"ones were delivered, for {paid} play-ether of {budget} bid."
    )
    fair = [call["fairness"] for call in rows if call["fairness"] is not None]
    by_purchase, by_round = calls["purchases_predicted"], calls["rounds_predicted"]
    of_rounds = "a round's purchases, against the buyer's loss on unseen rows once they were fused"
    return [
        said,
        *([_fair(fair)] if fair else []),
        f"Gain predicted for a purchase, against its measurement: {_predicted(by_purchase)}",
        f"Gain predicted for {of_rounds}: {_predicted(by_round)}",
    ]


def _fair(found: Sequence[Fairness]) -> str:
    envy = min(one["envy_freeness"] for one in found)
    proportional = min(one["proportional_fairness"] for one in found)
    sharing = min(one["sharing_incentive"] for one in found)
    return (
        "Fairness as the mechanism divides, to whom it is least fair in any call: "
        f"envy-freeness {envy:.3f} (1 is free of envy), proportional fairness {proportional:.3f} "
        f"and sharing incentive {sharing:.3f} (both hold from 1)."
    )


def _predicted(found: Prediction) -> str:
    squared = NONE if found["r_squared"] is None else f"{found['r_squared']:.3f}".replace("-", "−")
    return (
        f"mean absolute error {percent(found['mean_absolute_error'])}, "
        f"bias {percent(found['bias'])}, R² {squared}, of {found['count']:,}."
    )


def tables(report: Report) -> Html:
    """Return prices, allocations and their certificates, call by call."""
    calls = report.get("calls")
    if calls is None:
        return EMPTY
    said = joined(text("p", line) for line in summary(report))
    return joined([said, _calls(calls), _allocations(calls)])


def _calls(calls: Calls) -> Html:
    headings = ["arm", "seed", "round", "bid", "paid", "price of a layer, by seller"]
    headings += ["sold of layers", "budgets kept", "certificate"]
    headings += ["envy-free", "proportional", "sharing"]
    shown = calls["calls"][:MOST_ROWS]
    whole = table(
        "Every call, amounts in play-ether; sold as the mechanism divides",
        headings,
        [_call(call) for call in shown],
        numeric="-nnnn----nnn",
    )
    return folded(f"The {len(shown):,} calls", whole, opened=len(shown) <= OPEN_ROWS, wide=True)


def _call(call: CallRow) -> list[Html]:
    prices = ", ".join(f"{name} {play_ether(wei)}" for name, wei in call["prices"].items())
    sold = ", ".join(
        f"{name} {share:.2f} of {call['capacity'].get(name, 0)}"
        for name, share in call["sold"].items()
    )
    fair = call["fairness"]
    indices = (
        (None, None, None)
        if fair is None
        else (
            fair["envy_freeness"],
            fair["proportional_fairness"],
            fair["sharing_incentive"],
        )
    )
    found = "confirmed" if call["confirmed"] else "not confirmed"
    return [
        escaped(call["arm"], 40),
        number(call["seed"]),
        number(call["round"]),
        number(play_ether(sum(map(int, call["budgets"].values())))),
        number(play_ether(call["paid"])),
        escaped(prices, 600),
        escaped(sold, 600),
        escaped("yes" if call["within_budgets"] else "no"),
        escaped(f"{found}, worst {call['worst']:.1e}"),
        *(number(NONE if index is None else f"{index:.3f}") for index in indices),
    ]


def _allocations(calls: Calls) -> Html:
    rows = [(call, one) for call in calls["calls"] for one in call["given"]][:MOST_ROWS]
    if not rows:
        return text("p", "No call has allotted anything.")
    headings = ["buyer", "seller", "arm", "seed", "round", "share", "layers", "price"]
    headings += ["gain predicted", "measured", "on chain", "trade"]
    cells = [
        [
            escaped(one["buyer"], 40),
            escaped(one["seller"], 40),
            escaped(call["arm"], 40),
            number(call["seed"]),
            number(call["round"]),
            number(f"{one['share']:.3f}"),
            number(one["layers"]),
            number(play_ether(one["price"])),
            number(percent(one["predicted"])),
            number(percent(one["realised"])),
            escaped(one["on_chain"], 20),
            short(one["trade"], 11) if one["trade"] else escaped(NONE),
        ]
        for call, one in rows
    ]
    whole = table(
        "Every allocation, and the trade it became", headings, cells, numeric="---nnnnnnn--"
    )
    return folded(f"The {len(rows):,} allocations", whole, opened=len(rows) <= OPEN_ROWS, wide=True)
