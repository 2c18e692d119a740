"""Puts the records of a run together into its report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.play import agent_name
from node.devnet.record import MarketRecord
from node.devnet.report.differences import differences
from node.devnet.report.document import (
    Arm,
    Calls,
    Gas,
    LedgerRow,
    Legs,
    Network,
    Prediction,
    Report,
)
from node.devnet.report.findings import mean_of
from node.devnet.report.honesty import Split
from node.devnet.report.honesty_rows import honesty_tables
from node.devnet.report.strategies import together
from node.devnet.spec import RunSpec

GIT_SECONDS: Final = 10.0
_HEAD: Final = ("rev-parse", "--short=12", "HEAD")
_CHANGED: Final = ("status", "--porcelain", "--untracked-files=no")


def assemble(
    spec: RunSpec,
    records: Sequence[MarketRecord],
    *,
    interrupted: bool,
    seconds: float,
    megabytes: tuple[float, float],
) -> Report:
    """Return the report of what was played, whether that is all of the run or a part.

    `seconds`: what this process spent. `megabytes`: the most memory that it held, in all and
    before any node was opened.
    """
    arms = {
        name: _arm([r for r in records if r["arm"] == name], last=spec.epochs - 1)
        for name in spec.arms
    }
    arms = {name: arm for name, arm in arms.items() if arm["curves"]}
    calls = _calls(spec, records)
    played = [record["strategies"] for record in records if "strategies" in record]
    complete = len(records) == len(spec.arms) * len(spec.seeds) and all(
        record["complete"] for record in records
    )
    report = Report(
        name=spec.name,
        dataset=spec.dataset,
        protocol="paper" if spec.protocol == "paper" else "clean",
        priced=spec.priced,
        metric=spec.metric,
        seeds=list(spec.seeds),
        agents_count=spec.agents,
        epochs=spec.epochs,
        rounds=spec.rounds,
        complete=complete,
        interrupted=interrupted,
        arms=arms,
        differences=differences(arms, spec.metric),
        agents=[agent for record in records for agent in record["agents"]],
        trades=[trade for record in records for trade in record["trades"]],
        legs=_legs(records),
        ledger=_ledger(records),
        gas=_gas(records),
        network=_network(records),
        timings=_timings(records, seconds),
        machine=machine(),
        settings={**spec.document(), "code_version": code_version()},
        cost=_cost(spec, records, megabytes),
        first_trade_epoch=spec.warmup_epochs,
        notes=_notes(spec, records),
    )
    if calls is not None:
        report["calls"] = calls
    if spec.clears:
        report["clearing"] = [
            {"arm": r["arm"], "seed": r["seed"], **r["clearing"]}
            for r in records
            if "clearing" in r
        ]
    if played:
        report["strategies"] = together(played)
    found = [record["honesty"] for record in records if "honesty" in record]
    if honesty_tables(found):
        report["honesty"] = found
    return report


def _arm(records: Sequence[MarketRecord], *, last: int) -> Arm:
    """Return what was learnt: figures of epoch index `last`, None where it was not reached."""
    by_seed: dict[str, dict[str, float | None]] = {
        str(record["seed"]): {
            agent: curve[-1][1] if curve[-1][0] >= last else None
            for agent, curve in record["curves"].items()
            if curve
        }
        for record in records
    }
    names = dict.fromkeys(agent for by_agent in by_seed.values() for agent in by_agent)
    return Arm(
        accuracy={agent: mean_of(by.get(agent) for by in by_seed.values()) for agent in names},
        by_seed={seed: by_agent for seed, by_agent in by_seed.items() if by_agent},
        curves={
            str(record["seed"]): dict(record["curves"])
            for record in records
            if any(record["curves"].values())
        },
    )


def _legs(records: Sequence[MarketRecord]) -> dict[str, Legs]:
    found: dict[str, Legs] = {}
    for record in records:
        legs = record["legs"]
        if legs is None:
            continue
        before = found.get(record["arm"])
        lost = Counter(legs["lost"])
        if before is not None:
            lost.update(before["lost"])
        found[record["arm"]] = Legs(
            possible=legs["possible"] + (before["possible"] if before else 0),
            traded=legs["traded"] + (before["traded"] if before else 0),
            lost=dict(lost),
        )
    return found


def _ledger(records: Sequence[MarketRecord]) -> LedgerRow:
    """Add up every market's books; it balances if each of them does."""
    ledgers: list[dict[str, Any]] = [r["ledger"] for r in records if r["ledger"] is not None]

    def total(name: str) -> str:
        return str(sum(int(ledger[name]) for ledger in ledgers))

    return LedgerRow(
        deposited=total("deposited"),
        paid_out=total("paid_out"),
        fees=total("fees"),
        refunded=total("refunded"),
        credited=total("credited"),
        held=total("held"),
        stuck=total("stuck"),
        open_trades=sum(int(ledger["open_trades"]) for ledger in ledgers),
        balances=all(bool(ledger["balances"]) for ledger in ledgers),
    )


def _calls(spec: RunSpec, records: Sequence[MarketRecord]) -> Calls | None:
    """Return the calls of all markets, and how well gains were predicted in them."""
    if not any("calls" in record for record in records):
        return None
    calls = [call for record in records for call in record.get("calls", ())]
    fused = [one for record in records for one in record.get("fused", ())]
    measured = [
        (one["predicted"], one["realised"])
        for call in calls
        for one in call["given"]
        if one["realised"] is not None and one["on_chain"] == "paid"
    ]
    return Calls(
        mechanism=spec.mechanism,
        calls=calls,
        fused=fused,
        purchases_predicted=prediction_of(measured),
        rounds_predicted=prediction_of([(one["predicted"], one["realised"]) for one in fused]),
    )


def prediction_of(pairs: Sequence[tuple[float, float]]) -> Prediction:
    """Return how well the first figure of each pair has predicted the second."""
    if not pairs:
        return Prediction(count=0, mean_absolute_error=None, bias=None, r_squared=None)
    errors = [predicted - realised for predicted, realised in pairs]
    mean = sum(realised for _, realised in pairs) / len(pairs)
    spread = sum((realised - mean) ** 2 for _, realised in pairs)
    return Prediction(
        count=len(pairs),
        mean_absolute_error=round(sum(map(abs, errors)) / len(pairs), 6),
        bias=round(sum(errors) / len(pairs), 6),
        r_squared=round(1 - sum(e * e for e in errors) / spread, 4) if spread > 0 else None,
    )


def _gas(records: Sequence[MarketRecord]) -> dict[str, Gas]:
    steps = dict.fromkeys(step for record in records for step in record["gas"])
    found: dict[str, Gas] = {}
    for step in steps:
        each = [record["gas"][step] for record in records if step in record["gas"]]
        count, total = sum(g["count"] for g in each), sum(g["total"] for g in each)
        found[step] = Gas(count=count, total=total, mean=round(total / count, 1))
    return found


def _network(records: Sequence[MarketRecord]) -> Network:
    used = [record["network"] for record in records if record["network"] is not None]
    totals: dict[str, Counter[str]] = {
        key: Counter() for key in ("ignored", "rejected", "bytes_in", "bytes_out")
    }
    for each in used:
        for key, total in totals.items():
            total.update(each[key])
    return Network(
        transport=used[0]["transport"] if used else "none",
        offers_sent=sum(each["offers_sent"] for each in used),
        accepted=sum(each["accepted"] for each in used),
        bytes=sum(each["bytes"] for each in used),
        ignored=dict(totals["ignored"]),
        rejected=dict(totals["rejected"]),
        bytes_in=dict(totals["bytes_in"]),
        bytes_out=dict(totals["bytes_out"]),
    )


def _timings(
    records: Sequence[MarketRecord], seconds: float
) -> dict[str, float | Mapping[str, float]]:
    by_arm: Counter[str] = Counter()
    for record in records:
        by_arm[record["arm"]] += record["seconds"]  # type: ignore[assignment]
    earlier = sum(record["earlier_seconds"] for record in records)
    return {
        "total_s": round(seconds + earlier, 2),
        "by_arm": {arm: round(total, 2) for arm, total in by_arm.items()},
    }


def _cost(
    spec: RunSpec, records: Sequence[MarketRecord], megabytes: tuple[float, float]
) -> dict[str, float]:
    """Return what an agent costs, where all of them share this process.

    Memory is left out where another process has played a part of the run.
    """
    markets = [record for record in records if record["arm"] != OUT_OF_MARKET]
    rounds = sum(sum(record["rounds_played"].values()) for record in markets)
    if spec.processes or not rounds:
        return {}
    seconds = sum(record["seconds"] for record in markets) / rounds
    cost = {
        "seconds_a_round": round(seconds * spec.agents, 2),
        "seconds_a_round_and_agent": round(seconds, 3),
    }
    if not any(record["earlier_seconds"] for record in records):
        peak, before = megabytes
        cost["memory_an_agent_mb"] = round((peak - before) / spec.agents, 1)
        cost["peak_memory_mb"] = round(peak)
    return cost


def _notes(spec: RunSpec, records: Sequence[MarketRecord]) -> list[str]:
    notes = list(spec.notes)
    if not spec.priced:
        notes.append(
            "Trades had no price: each settled for one wei, the least that the escrow takes."
        )
    if spec.calls:
        notes.append(
            "Prices were made of all budgets in one call a round; what one agent bought in a round "
            "was funded in one transaction, and fused."
        )
    if spec.layers:
        layers = ", ".join(map(str, spec.layers))
        notes.append(f"Only layers {layers} of each model were offered and bought.")
    for agent, last in spec.leaves.items():
        name = agent_name(agent)
        if any(record["rounds_played"].get(name, 0) >= last for record in records):
            notes.append(f"{name} went away after round {last}.")
    notes += dict.fromkeys(_split_note(r["split"]) for r in records if "split" in r)
    if spec.dataset == "digits" and OUT_OF_MARKET in spec.arms:
        notes.append("Digits are small: figures of one seed are coarse.")
    return notes


def _split_note(split: Split) -> str:
    parts = ", ".join(f"{rows:,} {name}" for name, rows in split["rows"].items())
    dropped = split["dropped"]
    left = f" {dropped:,} to train on were also to test with, and left out." if dropped else ""
    return f"Clean split, by the hash of every row: {parts}; no row is in two parts.{left}"


def code_version() -> str:
    """Return the version of this code, with the commit where it runs from a checkout."""
    named = version("pm-node")
    head = _git(*_HEAD)
    if not head:
        return named
    return f"{named}+{head}" + (".changed" if _git(*_CHANGED) else "")


def _git(*words: str) -> str:
    """Return what git says of the checkout that this file is in; nothing if there is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        said = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def machine() -> dict[str, Any]:
    """Return what the timings depend on."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
