"""*Train 'n Trade* (arXiv 2312.04740), played again: `reproduce.py table1`, `figure3` and so on.

`table1`, `table2`, `linear` and `convergence` compare cases; `figure3`, `figure4` and `figure5`
follow two agents through their rounds, `dynamics` a hundred.

Played on the floor of `node.devnet.floor`: the market's own training, trials and prices, with
nothing between the agents. `pm-node devnet` plays the same through nodes, contract and chain;
without prices the weights are the same to the bit.

Each table stands beside the paper's figures, with paired differences over the seeds and their
95% Student-t intervals, whatever their sign.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from node.data.datasets import locate
from scripts.reproduction.engine import (
    Json,
    answered,
    conditions_of,
    keep,
    note_machine,
    number,
    parser_of,
    save,
)
from scripts.reproduction.figure import FigurePlayed, FigureStudy, show_figure
from scripts.reproduction.figures import FIGURES
from scripts.reproduction.findings import findings, sources
from scripts.reproduction.playing import AnyCase, AnyPlayed, run
from scripts.reproduction.shown import draw, show
from scripts.reproduction.studies import STUDIES, Played, Setting, Study

MAX_JOBS: Final = 256
PLAYED_BY: Final = (
    *("broker_node", "node/data", "node/params", "node/training", "node/roles/opening.py"),
    *("node/config", "node/roles/shells.py", "node/protocol/evaluation.py"),
    *("node/devnet/arms.py", "node/devnet/floor.py", "node/devnet/record.py"),
    "node/devnet/spec.py",
    "scripts/reproduction/studies.py",
)
"""The code on which the figures depend, beside that of the study itself."""
LIBRARIES: Final = ("torch", "numpy", "scipy")

AnyStudy: TypeAlias = Study | FigureStudy
ALL: Final[dict[str, AnyStudy]] = {**STUDIES, **FIGURES}
"""By name on the command line."""


def places_of(study: AnyStudy) -> tuple[str, ...]:
    """Return where the code is that plays `study`."""
    return (*PLAYED_BY, *(study.modules if isinstance(study, FigureStudy) else ()))


@dataclass
class Record:
    """A study on the disk: written whole after each case."""

    name: str
    study: AnyStudy
    setting: Setting
    path: Path
    seeds: set[int]
    """Those asked for, and those of which anything is saved."""
    jobs: int
    played: dict[tuple[str, int], AnyPlayed] = field(default_factory=dict)
    machines: list[Json] = field(default_factory=list)
    conditions: Json = field(init=False)
    names: list[str] = field(init=False)
    """Of the cases, in the order of the tables."""

    def __post_init__(self) -> None:
        cases = self.cases()
        self.names = list(dict.fromkeys(case.name for case in cases))
        self.conditions = conditions_of(
            places_of(self.study),
            LIBRARIES,
            settings={case.name: case.settings() for case in cases},
            targets=list(self.study.targets),
        )

    def cases(self) -> Sequence[AnyCase]:
        """Return all that are asked for, seed by seed."""
        return self.study.cases(self.setting, sorted(self.seeds))

    def resume(self, saved: Json) -> None:
        self.machines = list(saved["machines"])
        for name in self.names:
            by_seed = saved["cases"].get(name, {"by_seed": {}})["by_seed"]
            for seed, case in by_seed.items():
                self.played[name, int(seed)] = self._read(name, int(seed), case)
                self.seeds.add(int(seed))

    def again(self, saved: Json) -> None:
        self.seeds |= {int(seed) for case in saved["cases"].values() for seed in case["by_seed"]}

    def _read(self, name: str, seed: int, saved: Mapping[str, Any]) -> AnyPlayed:
        played = FigurePlayed if isinstance(self.study, FigureStudy) else Played
        return played.of(name, seed, saved)

    def play(self) -> None:
        cases = self.cases()
        left = [case for case in cases if (case.name, case.seed) not in self.played]
        if len(left) < len(cases):
            print(f"{len(cases) - len(left)} of {len(cases)} cases are saved in {self.path}",
                  file=sys.stderr)  # fmt: skip
        with closing(run(left, self.jobs)) as playing:
            for count, case in enumerate(playing, 1):
                self.played[case.name, case.seed] = case
                note_machine(self.machines)
                save(self)
                ends = "  ".join(f"{figure:.2f}" for figure in case.last)
                print(
                    f"{count}/{len(left)}  seed {case.seed}  {case.name}  {ends}"
                    f"  {case.seconds:.0f} s",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def _findings(self, played: Sequence[AnyPlayed]) -> Json:
        if isinstance(self.study, FigureStudy):
            return self.study.document([one for one in played if isinstance(one, FigurePlayed)])
        return findings(self.study, self.names, [one for one in played if isinstance(one, Played)])

    def picture(self, found: Json) -> bytes:
        return self.study.panels(found) if isinstance(self.study, FigureStudy) else draw(found)

    def show(self, found: Json) -> None:
        if isinstance(self.study, FigureStudy):
            show_figure(self.study, found)
        else:
            show(found)

    def document(self) -> Json:
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


# ── the command ──


def _parser_of(name: str, study: AnyStudy) -> argparse.ArgumentParser:
    parser = parser_of(name, study.title, study.seeds)
    parser.add_argument(
        "--protocol",
        choices=("paper", "clean"),
        default=study.protocol,
        help=f"which rows ({study.protocol})",
    )
    parser.add_argument("--priced", action="store_true", help="with prices and fees")
    parser.add_argument(
        "--jobs", type=number(1, MAX_JOBS), default=2, help="cases at a time, each on one core (2)"
    )
    parser.add_argument("--quick", action="store_true", help="a small setting, saved apart")
    return parser


def main(name: str, arguments: Sequence[str]) -> int:
    """Return 0; 130 if it was interrupted; 2 if it cannot be played as asked."""
    study = ALL[name]
    parser = _parser_of(name, study)
    options = parser.parse_args(arguments)
    if options.priced and study.unpriced:
        parser.error(f"--priced means nothing to {name}: {study.unpriced}")
    if options.quick and not (isinstance(study, FigureStudy) and study.slow):
        parser.error(f"{name} has no small setting: take fewer --seeds")
    return answered(lambda: _main(name, study, options))


def _main(name: str, study: AnyStudy, options: argparse.Namespace) -> int:
    setting = Setting(
        protocol=options.protocol,
        priced=options.priced,
        data_folder=options.data_folder,
        quick=options.quick,
    )
    file_name = "-".join(
        [name]
        + [setting.protocol] * (setting.protocol != study.protocol)
        + ["priced"] * setting.priced
        + ["quick"] * setting.quick
    )
    record = Record(
        name=name,
        study=study,
        setting=setting,
        path=options.folder / f"{file_name}.json",
        seeds=set(range(options.first, options.first + options.seeds)),
        jobs=options.jobs,
    )
    for spec in {case.spec.dataset: case.spec for case in record.cases()}.values():
        locate(spec.dataset, spec.data)
    return keep(record, again=options.again, as_json=options.json)
