"""Puts the records of a run together into its report."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.record import MarketRecord
from node.devnet.report.differences import differences
from node.devnet.report.document import Arm, Gas, LedgerRow, Legs, Network, Report
from node.devnet.spec import RunSpec


def assemble(
    spec: RunSpec,
    records: Sequence[MarketRecord],
    *,
    interrupted: bool,
    seconds: float,
    megabytes: tuple[float, float],
) -> Report:
    """Return the report of what was played, whether that is all of the run or a part.

    `megabytes`: the most memory that the process held, in all and before any node was opened.
    """
    arms = {name: _arm([r for r in records if r["arm"] == name]) for name in spec.arms}
    arms = {name: arm for name, arm in arms.items() if arm["curves"]}
    complete = len(records) == len(spec.arms) * len(spec.seeds) and all(
        record["complete"] for record in records
    )
    return Report(
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
        machine={**machine(), **_cost(spec, records, megabytes)},
        first_trade_epoch=spec.warmup_epochs,
        notes=_notes(spec),
    )


def _arm(records: Sequence[MarketRecord]) -> Arm:
    last = {
        str(record["seed"]): {
            agent: curve[-1][1] for agent, curve in record["curves"].items() if curve
        }
        for record in records
    }
    names = dict.fromkeys(agent for by_agent in last.values() for agent in by_agent)
    return Arm(
        accuracy={
            agent: statistics.fmean(by[agent] for by in last.values() if agent in by)
            for agent in names
        },
        by_seed={seed: dict(by_agent) for seed, by_agent in last.items() if by_agent},
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
    return {
        "total_s": round(seconds, 2),
        "by_arm": {arm: round(total, 2) for arm, total in by_arm.items()},
    }


def _cost(
    spec: RunSpec, records: Sequence[MarketRecord], megabytes: tuple[float, float]
) -> dict[str, Any]:
    """Return what an agent costs, where all of them share this process."""
    peak, before = megabytes
    seconds = sum(r["seconds"] for r in records if r["arm"] != OUT_OF_MARKET)
    rounds = spec.rounds * sum(r["arm"] != OUT_OF_MARKET for r in records)
    if spec.processes or not rounds:
        return {}
    return {
        "peak memory, MB": round(peak),
        "memory an agent, MB": round((peak - before) / spec.agents, 1),
        "seconds a round": round(seconds / rounds, 2),
        "seconds a round and agent": round(seconds / rounds / spec.agents, 3),
    }


def _notes(spec: RunSpec) -> list[str]:
    notes = []
    if not spec.priced:
        notes.append(
            "Trades had no price: each settled for one wei, the least that the escrow takes."
        )
    notes += [f"agent-{agent} went away after round {n}." for agent, n in spec.leaves.items()]
    if spec.dataset == "digits" and OUT_OF_MARKET in spec.arms:
        notes.append("Digits are small: figures of one seed are coarse.")
    return notes


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
