"""``pm-node status``: how a node is doing, from its data directory alone.

Works beside a running node and when none runs; asks neither chain nor network, takes no
password and changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.exits import DONE, FAILED
from node.cli.invocation import Invocation, on_node
from node.protocol.errors import MarketError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from node.config.loading import Loaded
    from node.home import Home

TAIL_BYTES: Final = 256 * 1024
EVENTS: Final = 5
_STAMP: Final = ("time", "level", "event", "node")


@click.command()
@click.option(
    "--events",
    "count",
    default=EVENTS,
    show_default=True,
    type=click.IntRange(0, 1000),
    help="how many of the last events to print",
)
@on_node
def status(node: Invocation, count: int) -> int:
    """Say how a node is doing, from its data directory; works beside a running node."""
    loaded = node.load()
    told = status_of(node.existing_home(loaded.config), loaded, count)
    if node.json_output:
        click.echo(json.dumps(told, indent=2))
    else:
        _print(told)
    return FAILED if told["faults"] else DONE


def status_of(home: Home, loaded: Loaded, events: int) -> dict[str, Any]:
    """Return all that the directory tells. What cannot be read is among its ``faults``."""
    log = newest_log(home.logs)
    told: dict[str, Any] = {
        "data_dir": str(home.root),
        "role": log.stem if log else loaded.config.role,
        "running": False,
        "pid": None,
        "account": None,
        "peer_id": None,
        "progress": None,
        "open_trades": 0,
        "trades": {},
        "events": last_events(log, events) if log else [],
        "faults": [],
    }
    for part in (_process, _identity, _journal):
        try:
            told.update(part(home, loaded))
        except MarketError as error:
            told["faults"].append(" ".join(str(error).split()))
    return told


def holder(lock: Path) -> tuple[bool, int | None]:
    """Return whether a process holds the run lock, and its pid where it has said so.

    The lock of a process that ended well is empty, and is not even tried: trying it might
    keep another process from starting at that very moment.
    """
    try:
        with lock.open("rb") as file:
            said = file.read(32)
            if not said.strip():
                return False, None
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True, int(said) if said.strip().isdigit() else None
    except FileNotFoundError:
        pass
    return False, None


def newest_log(logs: Path) -> Path | None:
    """Return the log that was last written to; its name is the role that wrote it."""
    found = sorted(logs.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def last_events(log: Path, count: int) -> list[dict[str, Any]]:
    """Return the last `count` events, oldest first; a line cut short by a crash is no event."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).splitlines()
    events: list[dict[str, Any]] = []
    for line in reversed(lines):
        if len(events) == count:
            break
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    return events[::-1]


# ── the parts ──


def _process(home: Home, _loaded: Loaded) -> Mapping[str, Any]:
    running, pid = holder(home.run_lock)
    return {"running": running, "pid": pid}


def _identity(home: Home, _loaded: Loaded) -> Mapping[str, Any]:
    from node.identity import list_accounts, load_peer_key

    accounts = list_accounts(home.keystore)
    return {
        "account": accounts[0] if len(accounts) == 1 else None,
        "peer_id": load_peer_key(home.peer_key).peer_id if home.peer_key.exists() else None,
    }


def _journal(home: Home, loaded: Loaded) -> Mapping[str, Any]:
    if not home.journal.exists():
        return {}
    from node.journal import Journal

    journal = Journal(home.journal, read_only=True)
    try:
        rows = journal.trades()
        progress = journal.recall("progress")
        replicas = len(journal.facts("replica/"))
    finally:
        journal.close()
    sides: dict[str, Counter[str]] = {}
    for row in rows:
        sides.setdefault(row.role, Counter())[row.state] += 1
    told: dict[str, Any] = {
        "trades": {side: dict(sorted(states.items())) for side, states in sorted(sides.items())},
        "open_trades": sum(not row.over for row in rows),
    }
    if replicas:
        told["replicas"] = replicas
    said = loaded.origins["rounds"].kind != "default"  # else the node may know better
    match progress:
        case [int(played), int(epoch), bytes(), bool(trained), *_]:
            told["progress"] = {
                "round": played,
                "rounds": loaded.config.rounds if said else None,
                "epoch": epoch,
                "trained": trained,
            }
    return told


# ── for a person ──


def _print(told: Mapping[str, Any]) -> None:
    from node.observe.plain import shown

    process = f"runs, process {told['pid'] or 'unknown'}" if told["running"] else "does not run"
    lines = [
        ("node", f"{told['role']} in {told['data_dir']}: {process}"),
        ("account", told["account"] or "none yet"),
        ("peer id", told["peer_id"] or "none yet"),
    ]
    if progress := told["progress"]:
        of = f" of {progress['rounds']}" if progress["rounds"] else ""
        lines.append(("progress", f"round {progress['round']}{of}, epoch {progress['epoch']}"))
    for side, states in told["trades"].items():
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        lines.append((f"as {side}", counts))
    lines.append(("trades", f"{told['open_trades']} open"))
    if found := told.get("replicas"):
        lines.append(("replicas", f"{found} models for sale are like another account's"))
    lines += [("fault", fault) for fault in told["faults"]]
    for name, value in lines:
        click.echo(f"{name:10} {value}")
    for event in told["events"]:
        fields = [f"{k}={shown(v)}" for k, v in event.items() if k not in _STAMP]
        stamp = [shown(event.get(name, "?")) for name in ("time", "level", "event")]
        click.echo(" ".join((*stamp, *fields)))
