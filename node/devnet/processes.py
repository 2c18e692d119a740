"""``pm-node devnet --processes``: chain, broker and agents, each a process of its own.

The same commands that an operator types, over loopback TCP; then the books are read: from
the chain the ledger, from each journal the trades, from each log the rounds.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from node.chain.errors import ChainUnavailableError
from node.chain.port import EscrowState
from node.chain.web3_escrow import open_escrow
from node.devnet.launch import DevnetError, Market, compose, running
from node.devnet.ledger import Ledger, read_ledger
from node.journal import Journal, JournalError
from node.protocol.eip712 import Domain
from node.protocol.types import Digest

RUNS: Final = Path("runs")
MARKER: Final = ".pm-node-run"
"""Marks a folder that a later run of the same name may replace."""
GRACE_SECONDS: Final = 60.0
"""After the last round, for the payments that are still in their dispute window."""
ROUND_SECONDS: Final = 60.0
"""How long a round may take before the run is given up."""
WINDOWS: Final = (
    *("--fund-seconds", "30", "--reveal-seconds", "60", "--grace-seconds", "10"),
    *("--dispute-window-seconds", "2", "--minimum-dispute-window", "1"),
)


def run_devnet(
    *,
    processes: bool,
    agents: int,
    rounds: int,
    epochs: int,
    dataset: str,
    seed: int,
    name: str | None,
    as_json: bool,
) -> int:
    """Play a market; returns the exit code. The report is in ``runs/<name>/report.json``."""
    if not processes:
        raise DevnetError("say --processes: each node runs as a process of its own")
    dataset = _available(dataset)
    folder = (RUNS / (name or f"{dataset}-{agents}-agents-seed-{seed}")).resolve()
    _clear(folder)
    trainer = "random" if dataset == "random" else "mlp"
    market = compose(
        folder,
        agents=agents,
        common=["--dataset", dataset, "--task", dataset, "--seed", str(seed)],
        broker=WINDOWS,
        agent=[
            *WINDOWS,
            *("--trainer", trainer, "--rounds", str(rounds), "--warmup-epochs", "0"),
            *("--epochs-per-round", str(epochs), "--round-patience-seconds", "20"),
        ],
    )
    begun = time.monotonic()
    interrupted = False
    with running(market):
        up = time.monotonic()
        try:
            _play(market, rounds, quiet=as_json)
            _settle(market)
        except KeyboardInterrupt:
            interrupted = True
        played = time.monotonic()
        ledger = _ledger(market)
        for node in (*market.agents, market.broker):
            node.stop()
        report = _report(market, ledger, dataset, seed)
    report["timings"] = {
        "start_s": round(up - begun, 2),
        "rounds_s": round(played - up, 2),
        "total_s": round(time.monotonic() - begun, 2),
    }
    report["interrupted"] = interrupted
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (the command's output)
    else:
        from node.devnet.table import print_report

        print_report(report, folder)
    return 0 if ledger.balances and not interrupted else 1


def _clear(folder: Path) -> None:
    """Make an empty folder for the run, in place of an earlier run and of nothing else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise DevnetError(f"{folder} holds something else than a run; name another with --name")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("a run of pm-node devnet; may be deleted\n", encoding="ascii")


def _available(dataset: str) -> str:
    """Return the data set, or digits where there is no MNIST; says so."""
    from node.data.datasets import load
    from node.data.folder import default_data_folder
    from node.data.idx import DataError

    if dataset != "mnist":
        return dataset
    try:
        load("mnist", default_data_folder())
    except DataError as error:
        print(f"no MNIST ({error}): going on with digits", file=sys.stderr)  # noqa: T201
        return "digits"
    return dataset


# ── playing ──


def _play(market: Market, rounds: int, *, quiet: bool) -> None:
    """Wait until every agent has played its rounds; tell each round as it ends."""
    told = dict.fromkeys((agent.name for agent in market.agents), 0)
    quiet_since = time.monotonic()
    while True:
        for agent in market.agents:
            for event in agent.events("round_played")[told[agent.name] :]:
                told[agent.name] += 1
                quiet_since = time.monotonic()
                if not quiet:
                    print(  # noqa: T201 (progress for a person)
                        f"{agent.name}  round {event['round']}/{rounds}  accuracy "
                        f"{100 * event['accuracy_before']:.2f}% → {100 * event['accuracy']:.2f}%"
                        f"  {event['because']}",
                        file=sys.stderr,
                        flush=True,
                    )
        if all(agent.events("rounds_played") for agent in market.agents):
            return
        for node in market.nodes:
            if not node.running:
                raise DevnetError(f"{node.name} ended by itself:\n{node.output()}")
        if time.monotonic() - quiet_since > ROUND_SECONDS:
            raise DevnetError(f"no round ended for {ROUND_SECONDS:.0f} s; see {market.folder}")
        time.sleep(0.2)


def _settle(market: Market) -> None:
    """Wait until no node has an open trade."""
    patience = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < patience:
        if not any(_open(node.home) for node in (*market.agents, market.broker)):
            return
        time.sleep(0.2)


def _open(home: Path) -> int:
    journal = Journal(home / "journal.db", read_only=True)
    try:
        return len(journal.trades(open_only=True))
    finally:
        journal.close()


# ── the books ──


def _ledger(market: Market) -> Ledger:
    address = market.address()
    domain = Domain(chain_id=address.chain_id, escrow=address.escrow)
    # a key of nobody's: the ledger only reads
    escrow = open_escrow(market.chain_url, secrets.token_bytes(32), domain)
    try:
        return read_ledger(escrow)
    except ChainUnavailableError as error:
        raise DevnetError(f"the ledger cannot be read: {error}") from error
    finally:
        escrow.close()


def _report(market: Market, ledger: Ledger, dataset: str, seed: int) -> dict[str, Any]:
    from node.settlement.history import trade_rows

    trades: list[dict[str, Any]] = []
    agents: list[dict[str, Any]] = []
    for node in market.agents:
        ready = node.events("node_ready")[-1]
        played = node.events("round_played")
        try:
            rows = trade_rows(node.home / "journal.db")
        except JournalError:
            rows = []
        bought = [row for row in rows if row["side"] == "buyer"]
        sold = [row for row in rows if row["side"] == "seller"]
        agents.append(
            {
                "name": node.name,
                "account": ready["account"],
                "peer_id": ready["peer_id"],
                "rounds": played,
                "accuracy": round(100 * played[-1]["accuracy"], 2) if played else None,
                "first_accuracy": round(100 * played[0]["accuracy_before"], 2) if played else None,
                "spent": str(_sum(bought, "complete")),
                "earned": str(_sum(sold, "paid")),
            }
        )
        for row in bought:
            on_chain = ledger.states.get(
                Digest(bytes.fromhex(row["trade_id"][2:])), EscrowState.NONE
            )
            trades.append({**row, "buyer": node.name, "on_chain": on_chain.name.lower()})
    sellers = {
        row["trade_id"]: (node.name, row)
        for node in market.agents
        for row in trade_rows(node.home / "journal.db")
        if row["side"] == "seller"
    }
    for trade in trades:
        if trade["trade_id"] in sellers:
            trade["seller"], row = sellers[trade["trade_id"]]
            trade["transactions"] = {**trade["transactions"], **row["transactions"]}
            trade["gas"] = {**trade["gas"], **row["gas"]}
    return {
        "dataset": dataset,
        "protocol": "clean",
        "priced": True,
        "seeds": [seed],
        "agents": agents,
        "trades": trades,
        "ledger": ledger.document(),
        "network": _network(market),
    }


def _sum(rows: list[Any], state: str) -> int:
    return sum(int(row["price"] or 0) for row in rows if row["state"] == state)


def _network(market: Market) -> dict[str, Any]:
    used = {
        node.name: node.events("network_used")[-1]
        for node in (*market.agents, market.broker)
        if node.events("network_used")
    }
    return {
        "transport": "tcp+noise+yamux",
        "bytes": sum(sum(u["bytes_out"].values()) for u in used.values()),
        "accepted": sum(u["accepted"] for u in used.values()),
        "by_node": {
            name: {k: u[k] for k in ("bytes_in", "bytes_out", "accepted", "ignored", "rejected")}
            for name, u in used.items()
        },
    }
