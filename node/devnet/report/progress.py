"""A run as it goes: one line a seed and arm on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import sys
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from node.devnet.report.document import Metric
from node.devnet.report.words import NONE, counted, figure, legible, play_ether

FEW_AGENTS: Final = 4
"""More are told as mean, least and greatest."""
PLAIN_LINES: Final = 5
"""So many lines a run, about, where nothing can be redrawn."""
MARGIN_LINES: Final = 4
"""Lines of the terminal that are left to others."""


@dataclass
class _Run:
    arm: str
    seed: int
    epochs: int
    latest: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Agent → (epoch, figure)."""
    trades: int = 0
    price: int | None = None
    ended: bool = False
    told: int = 0
    """Passes that were told in plain lines."""

    @property
    def passes(self) -> int:
        """Epochs that every agent heard of so far has behind it."""
        return min((epoch + 1 for epoch, _ in self.latest.values()), default=0)


class Progress:
    """Shows how far each (seed, arm) is; a context manager. Any thread may call it.

    Epochs are indices (from 0); figures are percent, or losses if `metric` says so; prices
    are wei. What ends by an exception stays on the screen as far as it came.
    """

    def __init__(self, *, metric: Metric = "accuracy", console: Console | None = None) -> None:
        self._metric = metric
        self._console = console or Console(stderr=True)
        self._lock = threading.RLock()
        self._runs: dict[tuple[str, int], _Run] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        # not the console's own opinion: FORCE_COLOR makes it take a pipe for a terminal
        if self._console.file.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self.render,
                console=self._console,
                refresh_per_second=2,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, arm: str, seed: int, epochs: int) -> None:
        """An arm of a seed begins, or begins again."""
        with self._lock:
            self._runs[arm, seed] = _Run(arm, seed, epochs)
            self._say(self._runs[arm, seed])

    def epoch(self, arm: str, seed: int, agent: str, epoch: int, metric: float) -> None:
        """An agent finished the epoch of this index with this figure."""
        with self._lock:
            run = self._run(arm, seed)
            run.latest[agent] = (epoch, metric)
            step = max(1, run.epochs // PLAIN_LINES)
            if run.passes >= run.told + step and run.passes < run.epochs:
                run.told = run.passes - run.passes % step
                self._say(run)

    def trade(self, arm: str, seed: int, buyer: str, seller: str, price: int) -> None:
        """A trade was made at this price (wei)."""
        with self._lock:
            run = self._run(arm, seed)
            run.trades += 1
            run.price = price

    def end(self, arm: str, seed: int) -> None:
        """An arm of a seed is over."""
        with self._lock:
            run = self._run(arm, seed)
            run.ended = True
            self._say(run)

    def _run(self, arm: str, seed: int) -> _Run:
        return self._runs.setdefault((arm, seed), _Run(arm, seed, 0))

    # ── what is shown ──

    def render(self) -> Group:
        """Return the lines that fit: every run that is under way, and the last that ended."""
        with self._lock:
            runs = list(self._runs.values())
            room = max(3, self._console.size.height - MARGIN_LINES)
            under_way = [run for run in runs if not run.ended][:room]
            ended = [run for run in runs if run.ended]
            kept = ended[-(room - len(under_way)) :] if len(under_way) < room else []
            grid = Table.grid(padding=(0, 2))
            for place in range(6):
                grid.add_column(no_wrap=True, justify="right" if place in {2, 4} else "left")
            for run in (*kept, *under_way):
                style = "dim" if run.ended else ""
                grid.add_row(*(Text(cell, style=style) for cell in self._cells(run)))
            before = len(ended) - len(kept)
            return Group(*([Text(f"{before} done before", style="dim")] if before else []), grid)

    def _say(self, run: _Run) -> None:
        if self._live is None:
            line = "  ".join(cell for cell in self._cells(run) if cell)
            line += "  done" if run.ended else ""
            self._console.print(Text(line), soft_wrap=True)

    def _cells(self, run: _Run) -> tuple[str, ...]:
        return (
            f"seed {run.seed}",
            legible(run.arm, 24),
            f"epoch {min(run.passes, run.epochs) if run.epochs else run.passes}/{run.epochs}",
            self._figures(run),
            counted(run.trades, "trade"),
            "" if run.price is None else f"last {play_ether(run.price)} play-ether",
        )

    def _figures(self, run: _Run) -> str:
        if not run.latest:
            return NONE
        unit = "%" if self._metric == "accuracy" else ""
        if len(run.latest) <= FEW_AGENTS:
            return "  ".join(
                f"{legible(agent, 12)} {figure(value, self._metric)}{unit}"
                for agent, (_, value) in run.latest.items()
            )
        values = [value for _, value in run.latest.values()]
        mean, low, high = statistics.fmean(values), min(values), max(values)
        words = [figure(value, self._metric) + unit for value in (mean, low, high)]
        return f"{len(values)} agents {words[0]} ({words[1]} to {words[2]})"
