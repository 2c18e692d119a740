"""Reports as a run would write them, made up from a seed; the other report tests read these."""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections import Counter, defaultdict
from typing import Any, get_type_hints

import numpy as np
import pytest

from node.devnet.arms import PAPER_ARMS
from node.devnet.report.differences import differences
from node.devnet.report.document import (
    CAUSES,
    STEPS,
    AgentRow,
    Arm,
    Legs,
    Metric,
    Report,
    Trade,
    as_written,
)
from node.devnet.report.findings import mean_of

HOSTILE = (
    '<script>alert("x")</script>',
    "a'\"><img src=x onerror=alert(1)>&amp;",
    "$\\frac{1}{$ \x1b[31mred\x1b[0m [bold]rich[/]",
    "_\u202egnp.exe \N{GRINNING FACE} 市場 \ud800\x00" + "long" * 30,
)
GAS = {"fund": 58_588, "reveal": 37_550, "finalize": 79_762, "withdraw": 30_317}
LEVELS = {"out-of-market": 72.0, "fedavg": 84.8, "unaligned": 86.9, "aligned": 88.3}


def word(rng: np.random.Generator, size: int) -> str:
    return "0x" + rng.bytes(size).hex()


def make_report(
    *,
    agents: int = 2,
    seeds: int = 3,
    arms: tuple[str, ...] = PAPER_ARMS,
    epochs: int = 50,
    metric: Metric = "accuracy",
    names: tuple[str, ...] | None = None,
    priced: bool = True,
    trades_kept: int | None = None,
    cut_at: tuple[int, str, int] | None = None,
) -> Report:
    """Make a report; `cut_at` (seed, arm, epoch) is where an interrupt ended it."""
    rng = np.random.default_rng(5)
    people = names or tuple("AB" if agents == 2 else (f"agent-{i}" for i in range(agents)))
    first_trade = 5 if epochs > 5 else 0
    rounds = epochs - first_trade
    curves: dict[str, dict[str, dict[str, list[tuple[int, float | None]]]]] = defaultdict(dict)
    trades: list[Trade] = []
    possible: Counter[str] = Counter()
    lost: dict[str, Counter[str]] = {arm: Counter() for arm in arms if arm != "out-of-market"}
    over = False
    for seed in range(seeds):
        for arm in arms:
            if over:
                break
            last = epochs
            if cut_at is not None and (seed, arm) == cut_at[:2]:
                last, over = cut_at[2], True
            levels = rng.normal(0, 2.4 if arm == "out-of-market" else 1.4, len(people))
            curves[arm][str(seed)] = {
                person: [
                    (epoch, point(rng, arm, epoch, float(levels[place]), metric))
                    for epoch in range(last)
                ]
                for place, person in enumerate(people)
            }
            if arm == "out-of-market":
                continue
            for turn in range(1, rounds + 1):
                for buyer in people:
                    possible[arm] += 1
                    if turn + first_trade > last:
                        continue
                    trade = one_trade(rng, arm, seed, turn, buyer, people, priced=priced)
                    if isinstance(trade, str):
                        lost[arm][trade] += 1
                    else:
                        trades.append(trade)
    if trades_kept is not None:
        for trade in trades[trades_kept:]:
            lost[trade["arm"]]["gain"] += 1
        trades = trades[:trades_kept]
    made = Counter(trade["arm"] for trade in trades)
    documents = {arm: arm_document(by_seed, epochs) for arm, by_seed in curves.items()}
    paid = sum(int(trade["price"]) for trade in trades)
    fees = sum(int(trade["price"]) * 2 // 100 for trade in trades)
    return Report(
        name=f"mnist-{len(people)}-agents",
        dataset="linear" if metric == "loss" else "mnist",
        protocol="clean",
        priced=priced,
        metric=metric,
        seeds=list(range(seeds)),
        agents_count=len(people),
        epochs=epochs,
        rounds=rounds,
        complete=cut_at is None,
        interrupted=cut_at is not None,
        arms=documents,
        differences=differences(documents, metric),
        agents=agent_rows(rng, documents, trades),
        trades=trades,
        legs={
            arm: Legs(possible=possible[arm], traded=made[arm], lost=dict(lost[arm]))
            for arm in lost
            if possible[arm]
        },
        ledger={
            "deposited": str(paid),
            "paid_out": str(paid - fees),
            "fees": str(fees),
            "refunded": "0",
            "credited": "0",
            "held": "0",
            "stuck": "0",
            "open_trades": 0,
            "balances": True,
        },
        gas={
            step: {
                "count": len(trades),
                "total": sum(trade["gas"][step] for trade in trades),
                "mean": statistics.fmean(trade["gas"][step] for trade in trades),
            }
            for step in GAS
            if trades
        },
        network={
            "transport": "tcp+noise+yamux",
            "offers_sent": possible.total(),
            "accepted": 3 * possible.total(),
            "ignored": {"already-seen": 41, "stale": 2} if trades else {},
            "rejected": {names[0]: 1} if names else {},
            "bytes": 210_441_330,
            "bytes_in": {"/pm/chunks/1": 105_000_000, "gossipsub": 402_330},
            "bytes_out": {"/pm/chunks/1": 104_600_000, "gossipsub": 439_000},
        },
        timings={
            "total_s": 171.3,
            "setup_s": 4.2,
            "arms": {arm: 20.0 + 11 * place for place, arm in enumerate(arms)},
        },
        machine={
            "cpu": "Some CPU @ 2.10GHz",
            "cores": 2,
            "python": "3.11.2",
            "torch": "2.13.0",
        },
        settings={
            "dataset": "mnist",
            "fee_basis_points": 200,
            "leaves": {"1": 3},
            "arms": list(arms),
            "budget": None,
            "code_version": "0.1.0+0123abc",
        },
        cost={
            "seconds_a_round": 1.46,
            "seconds_a_round_and_agent": 0.73,
            "memory_an_agent_mb": 61.2,
            "peak_memory_mb": 380,
        },
        first_trade_epoch=first_trade,
    )


def point(
    rng: np.random.Generator, arm: str, epoch: int, level: float, metric: Metric
) -> float | None:
    market = arm != "out-of-market"
    if metric == "loss":
        rate, floor = (0.05, 0.6) if market else (0.03, 1.1)
        return float(60 * math.exp(-rate * epoch) + floor + 0.1 * abs(level) + rng.uniform(0, 0.1))
    top = LEVELS.get(arm, 80.0) + level
    speed = 0.13 if market and epoch > 5 else 0.07
    rise = 1 - math.exp(-speed * (epoch + 1))
    return float(np.clip(11 + (top - 11) * rise + rng.normal(0, 0.7), 0, 100))


def one_trade(
    rng: np.random.Generator,
    arm: str,
    seed: int,
    turn: int,
    buyer: str,
    people: tuple[str, ...],
    *,
    priced: bool,
) -> Trade | str:
    if rng.random() < {"fedavg": 0.3, "unaligned": 0.12}.get(arm, 0.04):
        return str(rng.choice(CAUSES, p=(0.45, 0.2, 0.2, 0.05, 0.05, 0.05)))
    sellers = [person for person in people if person != buyer]
    seller = sellers[int(rng.integers(len(sellers)))]
    gain = float(0.4 * math.exp(-0.07 * turn) * rng.uniform(0.5, 1.4))
    return Trade(
        id=word(rng, 32),
        arm=arm,
        seed=seed,
        round=turn,
        buyer=buyer,
        seller=seller,
        price=str(int(gain * 5 * 10**17) + 7) if priced else "0",
        alpha=0.5 if arm == "fedavg" else float(np.clip(rng.normal(0.45, 0.08), 0, 1)),
        gain=gain,
        bound=gain * float(rng.uniform(0.5, 0.9)),
        state="complete",
        on_chain="paid",
        transactions={step: word(rng, 32) for step in STEPS if step in GAS},
        gas={step: gas - int(rng.integers(0, 40)) for step, gas in GAS.items()},
    )


def arm_document(by_seed: dict[str, dict[str, list[tuple[int, float | None]]]], epochs: int) -> Arm:
    last = {
        seed: {
            name: curve[-1][1] if curve and curve[-1][0] == epochs - 1 else None
            for name, curve in agents.items()
        }
        for seed, agents in by_seed.items()
    }
    return Arm(
        accuracy={
            name: mean_of(agents[name] for agents in last.values())
            for name in next(iter(last.values()), {})
        },
        by_seed=last,
        curves=by_seed,
    )


def agent_rows(
    rng: np.random.Generator, arms: dict[str, Arm], trades: list[Trade]
) -> list[AgentRow]:
    spent: Counter[tuple[str, int, str]] = Counter()
    earned: Counter[tuple[str, int, str]] = Counter()
    for trade in trades:
        price = int(trade["price"])
        spent[trade["arm"], trade["seed"], trade["buyer"]] += price
        earned[trade["arm"], trade["seed"], trade["seller"]] += price - price * 2 // 100
    return [
        AgentRow(
            name=name,
            account=word(rng, 20),
            peer_id="12D3KooW" + rng.bytes(22).hex(),
            spent=str(spent[arm, int(seed), name]),
            earned=str(earned[arm, int(seed), name]),
            arm=arm,
            seed=int(seed),
        )
        for arm, document in arms.items()
        for seed, agents in document["by_seed"].items()
        for name in agents
    ]


def empty_report() -> Report:
    """Return the report of a run that was ended before anything happened."""
    report = make_report(seeds=1, epochs=1, trades_kept=0, cut_at=(0, "out-of-market", 0))
    report["arms"] = {}
    report["agents"] = []
    report["legs"] = {}
    report["gas"] = {}
    report["differences"] = []
    return report


def hostile_report(agents: int = 4) -> Report:
    """Return a report whose every piece of text tries to be something else."""
    report = make_report(agents=agents, seeds=1, epochs=12, names=HOSTILE[:agents])
    bad = HOSTILE[0]
    report["name"] = HOSTILE[1]
    report["dataset"] = bad
    report["notes"] = [HOSTILE[3], HOSTILE[2]]
    report["machine"] = {HOSTILE[1]: HOSTILE[2], "cpu": bad}
    report["settings"] = {HOSTILE[2]: bad, bad: [HOSTILE[1]], "leaves": {HOSTILE[3]: HOSTILE[1]}}
    report["cost"] = {bad: 1.0}
    report["timings"] = {bad: 1.0, HOSTILE[1]: {bad: 2.0}}
    report["gas"] = {**report["gas"], HOSTILE[2]: {"count": 1, "total": 9, "mean": 9.0}}
    report["network"]["transport"] = bad
    report["network"]["ignored"] = {HOSTILE[1]: 2}
    report["network"]["bytes_in"] = {HOSTILE[3]: 2}
    for trade in report["trades"]:
        trade["state"], trade["on_chain"], trade["id"] = HOSTILE[1], bad, HOSTILE[2]
        trade["transactions"] = {bad: HOSTILE[1]}
    for row in report["agents"]:
        row["account"], row["peer_id"] = bad, HOSTILE[3]
    legs = report["legs"]["aligned"]
    report["legs"] = {**report["legs"], "aligned": {**legs, "lost": {HOSTILE[2]: 7}}}
    report["arms"] = {**report["arms"], bad: copy.deepcopy(report["arms"]["aligned"])}
    report["differences"] = differences(report["arms"], "accuracy")
    return report


SAMPLES: dict[str, Any] = {
    "four-arms": make_report,
    "default": lambda: make_report(seeds=1, arms=("out-of-market", "aligned")),
    "four-agents": lambda: make_report(agents=4, seeds=2),
    "sixteen": lambda: make_report(agents=16, seeds=1, epochs=25),
    "thirty-two": lambda: make_report(agents=32, seeds=2, epochs=12),
    "no-trade": lambda: make_report(seeds=2, trades_kept=0),
    "one-trade": lambda: make_report(seeds=1, trades_kept=1),
    "free": lambda: make_report(seeds=3, priced=False),
    "interrupted": lambda: make_report(seeds=3, cut_at=(1, "unaligned", 22)),
    "linear": lambda: make_report(seeds=3, metric="loss", arms=("out-of-market", "unaligned")),
    "hostile": hostile_report,
    "empty": empty_report,
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_has_every_key_of_the_document_and_is_strict_json(sample: str) -> None:
    report = SAMPLES[sample]()
    of_some = {"first_trade_epoch", "notes", "strategies", "calls", "clearing", "honesty"}
    wanted = set(get_type_hints(Report)) - of_some
    assert wanted <= report.keys()
    written = as_written(report)
    assert json.loads(json.dumps(written, allow_nan=False)) == written


def test_what_is_not_finite_is_null_and_keys_are_strings() -> None:
    report = make_report(seeds=1, epochs=6)
    report["machine"] = {1: math.nan, "deep": [math.inf, (2.5, None)]}  # type: ignore[dict-item]  # a hasty producer
    assert as_written(report)["machine"] == {"1": None, "deep": [None, [2.5, None]]}
