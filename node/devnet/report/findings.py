"""What a run found, in sentences and sums that the page and the terminal share."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.report.document import (
    ALL_AGENTS,
    Arm,
    Difference,
    Report,
    Trade,
    finished_runs,
    market_arms,
)
from node.devnet.report.words import counted, legible, play_ether, signed

PAID: Final = "paid"
_DOING: Final = {"shapley": "Pooling models", "triplewin": "Buying models"}
"""What a market does that clears by rounds."""


class Verdict(NamedTuple):
    """Something that is well or is not, and the sentence that says so."""

    good: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTrading:
    """The trades of one arm, added up over its seeds; wei."""

    arm: str
    possible: int
    begun: int
    """Purchases that were opened, whatever became of them."""
    paid: int
    """Of these the amounts and means below are."""
    total: int
    median_price: int | None
    alpha: float | None
    """Mean."""
    gain: float | None
    """Mean; a fraction."""


def headline(report: Report) -> str:
    """Return the run in a sentence: what trade gained, what was paid, whether it adds up."""
    if "clearing" in report:
        return f"{_gain_words(report)}. {rounds_verdict(report).sentence}"
    return (
        f"{_gain_words(report)}. {trades_paid(report).sentence} {ledger_verdict(report).sentence}"
    )


def headline_difference(report: Report) -> Difference | None:
    """Return the market against training alone over all agents, of the last arm played."""
    for arm in reversed(market_arms(report)):
        for difference in report["differences"]:
            if (difference["of"], difference["against"], difference["agent"]) == (
                arm,
                OUT_OF_MARKET,
                ALL_AGENTS,
            ):
                return difference
    return None


def _gain_words(report: Report) -> str:
    found = headline_difference(report)
    if found is None:
        return "There is nothing yet to compare the market with training alone"
    mean, points = found["mean"], found["unit"] == "points"
    amount = f"{abs(mean):.1f} {'points' if points else '%'}"
    what = "test accuracy" if points else "test loss"
    if points:
        verb, than = ("raised", "over") if mean >= 0 else ("lowered", "against")
    else:
        verb, than = "cut" if mean >= 0 else "added to", "against"
    arm = legible(found["of"], 40)
    doing = _DOING.get(str(report["settings"].get("mechanism")), "Trading")
    return f"{doing} ({arm}) {verb} {what} by {amount} {than} training alone{_certainty(found)}"


def _certainty(found: Difference) -> str:
    seeds = counted(found["n"], "seed")
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return f" ({seeds}, so without an interval)"
    span = f" (95 % interval {signed(low, 1)} to {signed(high, 1)}, {seeds}"
    return f"{span}; that may be chance)" if low <= 0 <= high else f"{span})"


def trades_paid(report: Report) -> Verdict:
    """Return whether every trade of the run was paid on chain."""
    trades = report["trades"]
    paid = len(paid_trades(report))
    if not trades:
        return Verdict(good=True, sentence="No trade was made.")
    if paid == len(trades):
        every = "The one trade was" if paid == 1 else f"All {paid:,} trades were"
        return Verdict(good=True, sentence=f"{every} paid on chain.")
    return Verdict(
        good=False, sentence=f"{paid:,} of {counted(len(trades), 'trade')} were paid on chain."
    )


def ledger_verdict(report: Report) -> Verdict:
    """Return whether wei in = wei out with every trade over; the sums are checked again here."""
    ledger = report["ledger"]
    out = (ledger["paid_out"], ledger["fees"], ledger["refunded"], ledger["held"])
    adds_up = int(ledger["deposited"]) == sum(int(part) for part in out)
    if ledger["balances"] and adds_up:
        return Verdict(
            good=True,
            sentence=f"The ledger balances: {play_ether(ledger['deposited'])} play-ether in, "
            "as much out.",
        )
    faults = [
        counted(ledger["open_trades"], "open trade") if ledger["open_trades"] else "",
        *(
            f"{int(amount)} wei {name}"
            for name, amount in (
                ("held", ledger["held"]),
                ("credited", ledger["credited"]),
                ("stuck", ledger["stuck"]),
            )
            if int(amount)
        ),
        "" if adds_up else "its amounts do not add up",
    ]
    why = ", ".join(fault for fault in faults if fault) or "the run says so"
    return Verdict(good=False, sentence=f"The ledger DOES NOT BALANCE: {why}.")


def rounds_verdict(report: Report) -> Verdict:
    """Return whether every round of a clearing house paid out what it took in, and who gained."""
    markets = report.get("clearing", ())
    rounds = [one for market in markets for one in market["rounds"]]
    sold = sum(len(one["models"]) for one in rounds)
    taken = sum(int(market["ledger"]["paid_in"]) for market in markets)
    played = sum(bool(int(one["paid_in"])) for one in rounds)
    cleared = f"{counted(played, 'round')} cleared, {counted(sold, 'model')} sold"
    if played < len(rounds):
        cleared += f" (nobody paid into {len(rounds) - played:,} more)"
    unsettled = [
        f"{int(market['ledger'][name])} wei {word}"
        for market in markets
        for name, word in (("held", "held"), ("credited", "not drawn"), ("stuck", "stuck"))
        if int(market["ledger"][name])
    ]
    unequal = [one for one in rounds if int(one["sum"])]
    if unsettled or unequal or not all(market["ledger"]["balances"] for market in markets):
        why = ", ".join(unsettled) or f"{counted(len(unequal), 'round')} with a sum that is not 0"
        return Verdict(good=False, sentence=f"{cleared}; the pots DO NOT BALANCE: {why}.")
    nets = [int(party["net"]) for one in rounds for party in one["parties"]]
    gains = (
        f"; what a round left an agent is {play_ether(min(nets))} to {play_ether(max(nets))}"
        if nets
        else ""
    )
    return Verdict(
        good=True,
        sentence=f"{cleared}: {play_ether(taken)} play-ether in, as much out, Σ = 0 to the "
        f"wei{gains}.",
    )


def warnings(report: Report) -> list[str]:
    """Return what a reader must know before any figure; empty for a whole run."""
    said = [legible(note, 500) for note in report.get("notes", ())]
    if report["interrupted"] or not report["complete"]:
        said.insert(0, _how_far(report))
    moved = rounds_verdict(report) if "clearing" in report else trades_paid(report)
    verdicts = (ledger_verdict(report), moved)
    return said + [verdict.sentence for verdict in verdicts if not verdict.good]


def _how_far(report: Report) -> str:
    begun = "Interrupted" if report["interrupted"] else "Not complete"
    runs = len(report["seeds"]) * len(report["arms"])
    if not runs:
        return f"{begun}: nothing was played."
    return (
        f"{begun}: {finished_runs(report)} of {counted(runs, 'run')} (seed × arm) reached the last "
        "epoch. Every figure below covers only what was played; figures after the last epoch are "
        "of those alone."
    )


def trading_by_arm(report: Report) -> list[ArmTrading]:
    """Return each market arm's trades, added up."""
    return [_arm_trading(report, arm) for arm in market_arms(report)]


def _arm_trading(report: Report, arm: str) -> ArmTrading:
    begun = sum(trade["arm"] == arm for trade in report["trades"])
    trades = [trade for trade in paid_trades(report) if trade["arm"] == arm]
    prices = [int(trade["price"]) for trade in trades]
    legs = report["legs"].get(arm)
    return ArmTrading(
        arm=arm,
        possible=legs["possible"] if legs else begun,
        begun=begun,
        paid=len(trades),
        total=sum(prices),
        median_price=statistics.median_high(prices) if prices else None,
        alpha=mean_of(trade["alpha"] for trade in trades),
        gain=mean_of(trade["gain"] for trade in trades),
    )


def paid_trades(report: Report) -> list[Trade]:
    """Return the trades for which the seller was paid on chain."""
    return [trade for trade in report["trades"] if trade["on_chain"] == PAID]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is not None, or None."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def spread_over_seeds(arm: Arm, agent: str) -> float | None:
    """Return the sample standard deviation of an agent's last figure; None under two seeds."""
    there = [
        figure for agents in arm["by_seed"].values() if (figure := agents.get(agent)) is not None
    ]
    return statistics.stdev(there) if len(there) > 1 else None


def not_made(report: Report, arm: str) -> dict[str, int]:
    """Return cause → possible trades lost to it, the largest first, without zeros."""
    lost = report["legs"][arm]["lost"] if arm in report["legs"] else {}
    return {c: n for c, n in sorted(lost.items(), key=lambda item: -item[1]) if n}
