"""A run of the devnet: every arm with every seed, then the books, the report, the verdict.

    spec ─► folder ─► arms × seeds ─► records ─► report.json, report.html, plots
                      silo | play     (kept: a run that was interrupted goes on with them)

One chain serves the whole run, and each market has its own escrow on it. Ctrl-C ends the
market that is being played in order: nobody buys any more, what is open is settled, and the
report is of what was played. A second Ctrl-C ends the process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import trio

from node.chain.tester import DevelopmentChain
from node.devnet.arms import ARMS, Arm
from node.devnet.assemble import assemble
from node.devnet.errors import DevnetError
from node.devnet.logs import read_events
from node.devnet.play import BROKER, Listener, Play, agent_name
from node.devnet.processes import ProcessPlay
from node.devnet.record import MarketRecord, load_record, record_market, save_record
from node.devnet.report.document import Report
from node.devnet.report.files import write_report
from node.devnet.silo import play_silo
from node.devnet.spec import RunSpec

MARKER: Final = ".pm-node-run"
"""Marks a folder that a later run of the same name may replace; holds what was asked for."""
INTERRUPTED: Final = 130


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
    records: list[MarketRecord] = field(default_factory=list)
    interrupted: bool = False

    def run(self) -> Report:
        """Play, and write the report. Raises `MarketError` if it cannot begin or go on."""
        shared = self.spec.check()  # noqa: F841 (held, so that agents share one copy of the rows)
        self._prepare()
        begun, before = time.monotonic(), peak_megabytes()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # models are small, and agents train beside one another
        try:
            with DevelopmentChain(self.spec.folder / "chain") as chain:
                trio.run(self._play_all, chain)
        finally:
            torch.set_num_threads(threads)
        report = assemble(
            self.spec,
            self.records,
            interrupted=self.interrupted,
            seconds=time.monotonic() - begun,
            megabytes=(peak_megabytes(), before),
        )
        self._write_events()
        write_report(self.spec.folder, report)
        return report

    def _prepare(self) -> None:
        """Make the folder, in place of an earlier run and of nothing else; or go on with it."""
        folder, marker = self.spec.folder, self.spec.folder / MARKER
        asked = self.spec.document()
        if self.resume:
            try:
                known = json.loads(marker.read_text(encoding="ascii"))
            except (OSError, ValueError) as error:
                raise DevnetError(f"there is no run to resume in {folder}") from error
            if known != asked:
                changed = sorted(k for k in asked if known.get(k) != asked[k])
                raise DevnetError(
                    f"the run in {folder} was asked for with another {', '.join(changed)}; "
                    "resume it with the same options, or leave out --resume"
                )
            return
        if folder.exists() and any(folder.iterdir()) and not marker.exists():
            raise DevnetError(f"{folder} holds something else than a run; name another with --name")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        marker.write_text(json.dumps(asked) + "\n", encoding="ascii")

    # ── playing ──

    async def _play_all(self, chain: DevelopmentChain) -> None:
        stop = trio.Event()
        with interruptible(stop) as interrupted:
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
        finally:
            self.watcher.end(arm.name, seed)
        if record["complete"]:
            save_record(folder, record)
        return record

    async def _market(
        self, arm: Arm, seed: int, folder: Path, chain: DevelopmentChain, stop: trio.Event
    ) -> MarketRecord:
        listener = self._listener(arm.name, seed)
        play = (
            ProcessPlay(self.spec, arm, seed, folder, listener, stop)
            if self.spec.processes
            else Play(self.spec, arm, seed, folder, chain, listener, stop)
        )
        begun = time.monotonic()
        ended = await play.run()
        return record_market(
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
        )

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


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far."""
    scale = 1_024 if sys.platform != "darwin" else 1_048_576
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


@contextmanager
def interruptible(stop: trio.Event) -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT or SIGTERM set `stop`, and the second end the process.

    Yields a function that says whether there was one.
    """
    token = trio.lowlevel.current_trio_token()
    count = 0

    def ask(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            os._exit(INTERRUPTED)
        token.run_sync_soon(stop.set)

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
    market = [legs for arm, legs in report["legs"].items() if ARMS[arm].trades]
    if allow_no_trade or not market or any(legs["traded"] for legs in market):
        return ""
    lost = Counter[str]()
    for legs in market:
        lost.update(legs["lost"])
    causes = ", ".join(f"{count} to {cause}" for cause, count in lost.most_common() if count)
    return f"nobody traded ({causes}); say --allow-no-trade if that is as it should be"
