#!/usr/bin/env python3
"""The papers' experiments, played again: `scripts/reproduce.py STUDY`.

`table1`, `table2`, `linear` and `convergence` compare cases; `figure3`, `figure4` and `figure5`
follow two agents through their rounds, `dynamics` a hundred.

Played on the floor of `node.devnet.floor`: the market's own training, trials and prices, with
nothing between the agents. `pm-node devnet` plays the same through nodes, contract and chain;
without prices the weights are the same to the bit.

Each table stands beside the paper's figures (*Train 'n Trade*, arXiv 2312.04740), with paired
differences over the seeds and their 95% Student-t intervals, whatever their sign.

A study is saved in ``runs/reproduce`` after each case, as JSON and, at its end, as a picture. The
same command goes on where it was interrupted, and plays only what is missing if seeds are added.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from node.data.datasets import locate  # noqa: E402  (the path above comes first)
from node.protocol.errors import MarketError  # noqa: E402
from scripts.bench import machine  # noqa: E402
from scripts.reproduce_figure import (  # noqa: E402
    FigureCase,
    FigurePlayed,
    FigureStudy,
    play_figure,
    show_figure,
)
from scripts.reproduce_figures import FIGURES  # noqa: E402
from scripts.reproduce_findings import findings, sources  # noqa: E402
from scripts.reproduce_shown import draw, show  # noqa: E402
from scripts.reproduce_studies import STUDIES, Case, Played, Setting, Study, play  # noqa: E402

FOLDER: Final = ROOT / "runs" / "reproduce"
MAX_JOBS: Final = 256
MAX_SEEDS: Final = 1_000
INTERRUPTED: Final = 130
"""The exit status of a program that Ctrl-C ended."""
PLAYED_BY: Final = (
    *("broker_node", "node/data", "node/params", "node/training", "node/roles/opening.py"),
    *("node/config", "node/roles/shells.py", "node/protocol/evaluation.py"),
    *("node/devnet/arms.py", "node/devnet/floor.py", "node/devnet/record.py"),
    "node/devnet/spec.py",
    "scripts/reproduce_studies.py",
)
"""The code on which the figures depend, beside that of the study itself."""
LIBRARIES: Final = ("torch", "numpy", "scipy")


AnyStudy = Study | FigureStudy
AnyCase = Case | FigureCase
AnyPlayed = Played | FigurePlayed
ALL: Final[dict[str, AnyStudy]] = {**STUDIES, **FIGURES}
"""By name on the command line."""


class ReproduceError(MarketError):
    """A study cannot be played, or not be saved where it should be."""


# ── what is saved ──


def conditions(study: AnyStudy, cases: Sequence[AnyCase]) -> dict[str, Any]:
    """Return all on which figures depend but the seed: under equal ones a study goes on."""
    return {
        "settings": {case.name: case.settings() for case in cases},
        "targets": list(study.targets),
        "version": metadata.version("pm-node"),
        "code": _code(study),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


def _code(study: AnyStudy) -> str:
    """Return the SHA-256 of the modules that play."""
    found = hashlib.sha256()
    own = study.modules if isinstance(study, FigureStudy) else ()
    for place in (*PLAYED_BY, *own):
        path = ROOT / place
        for module in [path] if path.suffix else sorted(path.rglob("*.py")):
            content = module.read_bytes()
            found.update(f"{module.relative_to(ROOT).as_posix()} {len(content)}\n".encode())
            found.update(content)
    return found.hexdigest()


@dataclass
class Record:
    """A study on the disk: written whole after each case."""

    name: str
    study: AnyStudy
    setting: Setting
    path: Path
    conditions: Mapping[str, Any]
    names: list[str]
    """Of the cases, in the order of the tables."""
    seeds: set[int]
    """Those asked for, and those of which anything is saved."""
    played: dict[tuple[str, int], AnyPlayed] = field(default_factory=dict)
    machines: list[dict[str, Any]] = field(default_factory=list)

    def resume(self) -> None:
        """Take over what is saved. Raises `ReproduceError` if it is of another study."""
        if not self.path.exists():
            return
        try:
            saved = json.loads(self.path.read_bytes())
            same = saved["conditions"] == json.loads(json.dumps(self.conditions))
            if same:
                self.machines = list(saved["machines"])
                for name in self.names:
                    by_seed = saved["cases"].get(name, {"by_seed": {}})["by_seed"]
                    for seed, case in by_seed.items():
                        self.played[name, int(seed)] = self._read(name, int(seed), case)
                        self.seeds.add(int(seed))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReproduceError(
                f"{self.path} is no study that can be read ({error!r}); --again replaces it"
            ) from error
        if not same:
            raise ReproduceError(
                f"{self.path} is of other settings, code or libraries; --again replaces it"
            )

    def _read(self, name: str, seed: int, saved: Mapping[str, Any]) -> AnyPlayed:
        played = FigurePlayed if isinstance(self.study, FigureStudy) else Played
        return played.of(name, seed, saved)

    def _findings(self, played: Sequence[AnyPlayed]) -> dict[str, Any]:
        if isinstance(self.study, FigureStudy):
            return self.study.document([one for one in played if isinstance(one, FigurePlayed)])
        return findings(self.study, self.names, [one for one in played if isinstance(one, Played)])

    def picture(self, found: Mapping[str, Any]) -> bytes:
        """Return what was found as PNG."""
        if isinstance(self.study, FigureStudy):
            return self.study.panels(dict(found))
        return draw(found)

    def show(self, found: Mapping[str, Any]) -> None:
        """Print what was found on stdout."""
        if isinstance(self.study, FigureStudy):
            show_figure(self.study, dict(found))
        else:
            show(found)

    def document(self) -> dict[str, Any]:
        """Return the study as it stands."""
        order = [(name, seed) for name in self.names for seed in sorted(self.seeds)]
        played = [self.played[key] for key in order if key in self.played]
        return {
            "study": self.name,
            "title": self.study.title,
            "paper": sources(self.study),
            "protocol": self.setting.protocol,
            "priced": self.setting.priced,
            "quick": self.setting.quick,
            "seeds": sorted(self.seeds),
            "complete": len(played) == len(order),
            "played": len(played),
            "cases_in_all": len(order),
            "targets": list(self.study.targets),
            **self._findings(played),
            "conditions": self.conditions,
            "machines": self.machines,
        }

    def add(self, case: AnyPlayed) -> None:
        """Keep one case, on the disk too. Raises `OSError`."""
        self.played[case.name, case.seed] = case
        here = machine()
        if here not in self.machines:
            self.machines.append(here)
        text = json.dumps(self.document(), indent=1, allow_nan=False)
        _write(self.path, f"{text}\n".encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file so that an interruption leaves the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a study. Raises `ReproduceError` if another process does."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReproduceError(f"another process is playing {path}") from None
        yield


# ── playing ──


def _play(case: AnyCase) -> AnyPlayed:
    return play_figure(case) if isinstance(case, FigureCase) else play(case)


def run(cases: Sequence[AnyCase], jobs: int) -> Generator[AnyPlayed]:
    """Play `cases`, up to `jobs` at a time, and give each as it ends.

    Raises `MarketError` if one cannot be played, or its process ends without an answer.
    """
    if jobs == 1 or len(cases) <= 1:
        yield from map(_play, cases)
        return
    others = multiprocessing.active_children()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process alone
    try:
        pool = ProcessPoolExecutor(
            min(jobs, len(cases)), mp_context=multiprocessing.get_context("spawn")
        )
        playing = [pool.submit(_play, case) for case in cases]
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for future in as_completed(playing):
            yield future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise ReproduceError("a process ended in the middle of a case: out of memory?") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()


def reproduce(record: Record, cases: Sequence[AnyCase], jobs: int) -> bool:
    """Play what `record` lacks of `cases`; return whether it was played to its end."""
    left = [case for case in cases if (case.name, case.seed) not in record.played]
    if len(left) < len(cases):
        print(f"{len(cases) - len(left)} of {len(cases)} cases are saved in {record.path}",
              file=sys.stderr)  # fmt: skip
    try:
        with closing(run(left, jobs)) as playing:
            for number, case in enumerate(playing, 1):
                record.add(case)
                ends = "  ".join(f"{figure:.2f}" for figure in case.last)
                print(
                    f"{number}/{len(left)}  seed {case.seed}  {case.name}  {ends}"
                    f"  {case.seconds:.0f} s",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    except KeyboardInterrupt:
        return False
    return True


def saved_seeds(path: Path) -> set[int]:
    """Return the seeds of which anything is saved, whatever code played them."""
    try:
        cases = json.loads(path.read_bytes())["cases"].values()
        return {int(seed) for case in cases for seed in case["by_seed"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


# ── the command ──


def _number(least: int, most: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
        return value

    return number


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=sorted(ALL))
    parser.add_argument(
        "--seeds",
        type=_number(1, MAX_SEEDS),
        help="how many (10; of linear 12, of figure4 5, of dynamics 3)",
    )
    parser.add_argument("--first", type=_number(0, 2**31 - 1), default=0, help="the first seed (0)")
    parser.add_argument(
        "--protocol", choices=("paper", "clean"), help="which rows (tables: paper; figures: clean)"
    )
    parser.add_argument("--priced", action="store_true", help="with prices and fees")
    parser.add_argument(
        "--jobs", type=_number(1, MAX_JOBS), default=2, help="cases at a time, each on one core (2)"
    )
    parser.add_argument("--data-folder", type=Path, help="where the files of data sets are")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where to save (runs/reproduce)"
    )
    parser.add_argument("--quick", action="store_true", help="a small setting, saved apart")
    parser.add_argument("--again", action="store_true", help="play anew what is saved")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 130 if it was interrupted; 2 if it cannot be played as asked."""
    parser = parser_of()
    options = parser.parse_args(arguments)
    study = ALL[options.study]
    if options.priced and study.unpriced:
        parser.error(f"--priced means nothing to {options.study}: {study.unpriced}")
    if options.quick and not (isinstance(study, FigureStudy) and study.slow):
        parser.error(f"{options.study} has no small setting: take fewer --seeds")
    seeds = range(options.first, options.first + (options.seeds or study.seeds))
    setting = Setting(
        protocol=options.protocol or study.protocol,
        priced=options.priced,
        data_folder=options.data_folder,
        quick=options.quick,
    )
    try:
        return _main(options, study, setting, seeds)
    except (MarketError, OSError) as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return 2


def _main(
    options: argparse.Namespace, study: AnyStudy, setting: Setting, seeds: Sequence[int]
) -> int:
    cases: Sequence[AnyCase] = study.cases(setting, seeds)
    for spec in {case.spec.dataset: case.spec for case in cases}.values():
        locate(spec.dataset, spec.data)
    name = "-".join(
        [options.study]
        + [setting.protocol] * (setting.protocol != study.protocol)
        + ["priced"] * setting.priced
        + ["quick"] * setting.quick
    )
    record = Record(
        name=options.study,
        study=study,
        setting=setting,
        path=options.folder / f"{name}.json",
        conditions=conditions(study, cases),
        names=list(dict.fromkeys(case.name for case in cases)),
        seeds=set(seeds),
    )
    record.path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(record.path):
        if options.again:
            record.seeds |= saved_seeds(record.path)
        else:
            record.resume()
        ended = reproduce(record, study.cases(setting, sorted(record.seeds)), options.jobs)
        found = record.document()
        if found["played"]:
            _write(record.path.with_suffix(".png"), record.picture(found))
    if options.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        record.show(found)
    print(
        f"saved in {record.path}" if ended
        else f"interrupted; the same command goes on from {record.path}",
        file=sys.stderr,
    )  # fmt: skip
    return 0 if ended else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
