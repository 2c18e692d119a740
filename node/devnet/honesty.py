"""What the broker of one market found out about models, from its log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.devnet.logs import Told, read_events
from node.devnet.play import BROKER
from node.devnet.record import MarketRecord
from node.devnet.report.honesty import Controlled, Honesty, Replica
from node.protocol.types import ONE

READ: Final = ("replica_found", "likeness_explained", "merge_scanned", "trial_done")
FOUND: Final = "found"


def measure_honesty(record: MarketRecord, folder: Path) -> Honesty:
    """Return what the broker in `folder` has logged; agents by their names in the record."""
    told = read_events(folder / BROKER, READ)
    names = {str(row["account"]).lower(): row["name"] for row in record["agents"]}

    def name(account: object) -> str:
        return names.get(str(account).lower(), str(account))

    scans = [event for event in told if event["event"] == "merge_scanned"]
    anomalies = Counter(
        what if event["verdict"] == FOUND else str(event["verdict"])
        for event in scans
        if event["verdict"] != "not found"
        for what in [", ".join(sorted({str(one).split()[0] for one in event["found"]}))]
    )
    found = Honesty(
        arm=record["arm"],
        seed=record["seed"],
        replicas=[
            Replica(
                seller=name(event["seller"]),
                of_seller=name(event["of_seller"]),
                root=str(event["root"]),
                of_root=str(event["of_root"]),
                score=int(event["score"]) / ONE,
                refused=bool(event["refused"]),
            )
            for event in told
            if event["event"] == "replica_found"
        ],
        explained=sum(event["event"] == "likeness_explained" for event in told),
        scanned=len(scans),
        anomalies=dict(anomalies),
    )
    controlled = _controlled([event for event in told if event["event"] == "trial_done"])
    if controlled is not None:
        found["controlled"] = controlled
    return found


def _controlled(trials: Sequence[Told]) -> Controlled | None:
    measured = [trial for trial in trials if trial.get("control") is not None]
    if not measured:
        return None
    tuned = [int(trial["tuned"]) for trial in measured if trial.get("tuned") is not None]
    return Controlled(
        trials=len(measured),
        gain=sum(int(trial["gain"]) for trial in measured) / len(measured) / ONE,
        scale=sum(int(trial["control"]) for trial in measured) / len(measured) / ONE,
        tuned=sum(tuned) / len(tuned) / ONE if len(tuned) == len(measured) else None,
        beyond=sum(
            int(trial["gain"]) > max(int(trial["control"]), int(trial.get("tuned") or 0))
            for trial in measured
        ),
    )
