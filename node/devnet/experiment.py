"""A run of the devnet: every arm with every seed, then the books, the report, the verdict.

    spec ─► folder ─► arms × seeds ─► records ─► report.json, report.html, plots
                      silo | play     (kept: a run that was interrupted goes on with them)

One chain serves the whole run, and each market has its own escrow on it. Ctrl-C ends the
market that is being played in order: nobody buys any more, what is open is settled, and the
report is of what was played. A second Ctrl-C ends the process, and those that it has started.
A run that fails leaves a report too, of the markets before.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import trio

from node.chain.tester import DevelopmentChain
from node.data.clean import require_clean
from node.data.rows import Dataset
from node.devnet.arms import ARMS, Arm
from node.devnet.assemble import assemble
from node.devnet.folder import run_folder
from node.devnet.honesty import measure_honesty
from node.devnet.logs import read_events
from node.devnet.play import BROKER, Listener, Play, agent_name, silence_limit
from node.devnet.processes import ProcessPlay
from node.devnet.record import MarketRecord, load_record, record_market, save_record
from node.devnet.report.clearing import clearing_fault, nobody_paid
from node.devnet.report.document import Report
from node.devnet.report.files import write_report
from node.devnet.report.honesty import Split
from node.devnet.silo import play_silo
from node.devnet.spec import RunSpec
from node.devnet.strategic import measure_strategies
from node.roles.shells import protocol_of

INTERRUPTED: Final = 130
SETTLING: Final = "pm-node: settling what is open; Ctrl-C again abandons it"


class Watcher(Protocol):
    """Whoever shows a run to people while it lasts."""

    def start(self, arm: str, seed: int, epochs: int) -> None: ...
    def epoch(self, arm: str, seed: int, agent: str, epoch: int, metric: float) -> None: ...
    def trade(self, arm: str, seed: int, buyer: str, seller: str, price: int) -> None: ...
    def end(self, arm: str, seed: int) -> None: ...


@dataclass
class Experiment:
    """One run under one folder."""

    spec: RunSpec
    watcher: Watcher
    resume: bool = False
    force: bool = False
    """Take the place of whatever run there is."""
    records: list[MarketRecord] = field(default_factory=list)
    interrupted: bool = False
    _rows: Dataset | None = None
    """Of the seed that is played: held, so that its agents share one copy."""
    _processes: ProcessPlay | None = None
    """The market that is played, if its nodes are processes."""
    _begun: float = 0.0
    _before: float = 0.0
    """Megabytes that this process held before any node was opened."""

    def run(self) -> Report:
        """Play, and write the report. Raises `MarketError` if it cannot begin or go on."""
        self.spec.check()
        asked = self.spec.document()
        with run_folder(self.spec.folder, asked, resume=self.resume, force=self.force):
            return self._run()

    def _run(self) -> Report:
        self._begun, self._before = time.monotonic(), peak_megabytes()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # models are small, and agents train beside one another
        try:
            with DevelopmentChain(self.spec.folder / "chain") as chain:
                trio.run(self._play_all, chain)
        except BaseException as fault:
            with suppress(OSError):  # the fault is what is to be told
                self._report(f"The run failed; this is what had been played: {_told(fault)}.")
            raise
        finally:
            torch.set_num_threads(threads)
        return self._report()

    def _report(self, *notes: str) -> Report:
        """Write the report of what was played so far."""
        report = assemble(
            self.spec,
            self.records,
            interrupted=self.interrupted,
            seconds=time.monotonic() - self._begun,
            megabytes=(peak_megabytes(), self._before),
        )
        report["notes"] = [*report["notes"], *notes]
        self._write_events()
        write_report(self.spec.folder, report)
        return report

    # ── playing ──

    async def _play_all(self, chain: DevelopmentChain) -> None:
        stop = trio.Event()
        with interruptible(stop, self._abandon) as interrupted:
            for seed in self.spec.seeds:
                for name in self.spec.arms:
                    if stop.is_set():
                        break
                    self.records.append(await self._play(ARMS[name], seed, chain, stop))
            self.interrupted = interrupted()

    async def _play(
        self, arm: Arm, seed: int, chain: DevelopmentChain, stop: trio.Event
    ) -> MarketRecord:
        folder = self.spec.folder / "markets" / f"{arm.name}-seed-{seed}"
        known = load_record(folder)
        if known is not None:
            return known
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = await trio.to_thread.run_sync(self.spec.rows, seed)
        self.watcher.start(arm.name, seed, self.spec.epochs)
        try:
            if arm.trades:
                record = await self._market(arm, seed, folder, chain, stop)
            else:
                record = await play_silo(
                    self.spec,
                    seed,
                    stop,
                    lambda agent, epoch, figure: self.watcher.epoch(
                        arm.name, seed, agent, epoch, figure
                    ),
                )
            if self._rows is not None:
                parts = require_clean(self._rows, protocol_of(self.spec.config(seed)))
                record["split"] = Split(rows=dict(parts.rows), dropped=self._rows.dropped)
        finally:
            self.watcher.end(arm.name, seed)
        gc.collect()  # a market that is over is a ring of objects, which holds all its rows
        ledger = record["ledger"]
        clearing = record.get("clearing")
        settled = clearing is None or clearing["ledger"]["balances"]
        if record["complete"] and settled and (ledger is None or ledger["balances"]):
            save_record(folder, record)  # what did not settle is gone on with
        return record

    async def _market(
        self, arm: Arm, seed: int, folder: Path, chain: DevelopmentChain, stop: trio.Event
    ) -> MarketRecord:
        listener = self._listener(arm.name, seed)
        silence = silence_limit(self.spec.agents, self._rows)
        begun = time.monotonic()
        if self.spec.processes:
            self._processes = ProcessPlay(self.spec, arm, seed, folder, listener, stop, silence)
            ended = await self._processes.run()
        else:
            ended = await Play(self.spec, arm, seed, folder, chain, listener, stop, silence).run()
        record = record_market(
            folder=folder,
            agents=[agent_name(number) for number in range(self.spec.agents)],
            brokers=[BROKER],
            arm=arm.name,
            seed=seed,
            metric=self.spec.metric,
            ledger=ended.ledger,
            complete=ended.complete,
            seconds=time.monotonic() - begun,
            rounds=self.spec.rounds,
            leaves=self.spec.leaves,
        )
        if ended.clearing is not None:
            record["clearing"] = ended.clearing
            record["legs"] = None  # nobody could buy: rounds clear all at once
        record["honesty"] = measure_honesty(record, folder)
        if self.spec.strategies:
            record["strategies"] = measure_strategies(self.spec, record, folder)
        return record

    def _abandon(self) -> None:
        if self._processes is not None:
            self._processes.abandon()

    def _listener(self, arm: str, seed: int) -> Listener:
        metric = self.spec.metric
        scale = 100.0 if metric == "accuracy" else 1.0

        names: dict[str, str] = {}

        def hear(node: str, event: Mapping[str, Any]) -> None:
            match event["event"]:
                case "node_ready":
                    names[str(event["peer_id"])] = node
                case "leg_ended":
                    if event["because"] == "bought":
                        seller = names.get(str(event["seller"]), "")
                        self.watcher.trade(arm, seed, node, seller, int(event["price"]))
                case _:
                    figure = scale * float(event[metric])
                    self.watcher.epoch(arm, seed, node, int(event["epoch"]) - 1, figure)

        return hear

    def _write_events(self) -> None:
        """Put the logs of all nodes into one file, in the order of time within each market."""
        with (self.spec.folder / "events.jsonl").open("w", encoding="utf-8") as file:
            for folder in sorted((self.spec.folder / "markets").glob("*")):
                events = [e for home in sorted(folder.glob("*")) for e in read_events(home)]
                for event in sorted(events, key=lambda event: str(event.get("time"))):
                    file.write(json.dumps({"market": folder.name, **event}) + "\n")


def _told(fault: BaseException) -> str:
    """Return what went wrong, on a line."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    told = " ".join(str(fault).split()) or type(fault).__name__
    return told.rstrip(".")


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far."""
    scale = 1_024 if sys.platform != "darwin" else 1_048_576
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


@contextmanager
def interruptible(
    stop: trio.Event, abandon: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT or SIGTERM set `stop`, and the second end the process.

    Before that it calls `abandon`, in the signal handler. Yields a function that says whether
    there was a first.
    """
    token = trio.lowlevel.current_trio_token()
    count = 0

    def ask(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            abandon()
            os._exit(INTERRUPTED)
        token.run_sync_soon(settle)

    def settle() -> None:
        stop.set()
        with suppress(OSError):
            print(SETTLING, file=sys.stderr, flush=True)  # noqa: T201 (it may take minutes)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def verdict(report: Report, *, allow_no_trade: bool = False) -> str:
    """Return why a run that was played to its end is no success, or nothing."""
    if not report["ledger"]["balances"]:
        return "the ledger does not balance"
    fault = clearing_fault(report)
    if fault:
        return fault
    if nobody_paid(report) and not allow_no_trade:
        return "nobody paid into any round; say --allow-no-trade if that is as it should be"
    market = [legs for arm, legs in report["legs"].items() if ARMS[arm].trades]
    if allow_no_trade or not market or any(legs["traded"] for legs in market):
        return ""
    lost = Counter[str]()
    for legs in market:
        lost.update(legs["lost"])
    causes = ", ".join(f"{count} to {cause}" for cause, count in lost.most_common() if count)
    return f"nobody traded ({causes}); say --allow-no-trade if that is as it should be"
