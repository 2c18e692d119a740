#!/usr/bin/env python3
"""Break every guard of the contracts in turn, and show which test fails.

    scripts/mutate_contracts.py                  all mutants
    scripts/mutate_contracts.py --jobs 2         two at a time
    scripts/mutate_contracts.py --only Batches   those of one source
    scripts/mutate_contracts.py --list           what would be broken

There are four kinds of mutants:

    removed      a `revert` or `require` that does nothing
    not called   a check in a function of its own (`_requireQuorum`, …) that is left out
    clause       one side of `||` that is always false, or of `&&` that is always true
    bound        `<` for `<=`, and so on: off by one

All are compiled at once. Each stands behind a switch, `block.prevrandao != 17`, and the tests run
on an EVM that answers 17: so a mutant costs the tests that it takes to catch it, and no more. Those
that name the error of the guard come first. A test counts only if it passes with all switches at
rest. What was seen is kept under build/mutants, by the hash of the code: a run that was cut short
goes on where it was, and comments can change.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "scripts"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from tests.contracts.guards import (  # noqa: E402  (the paths above come first)
    Mutant,
    Weaver,
    blanked,
    errors_by_check,
)

compiler: Final[Any] = importlib.import_module("compile_contracts")

TESTS: Final = ROOT / "tests" / "contracts"
KEPT: Final = ROOT / "build" / "mutants"
PROCESSOR_SECONDS: Final = 300
"""A mutant whose tests take longer counts as caught: they do not come to an end."""

LEFT_OUT: Final = re.compile(
    "test_(compiled|forge|mutants|replay|slither|storage|trees|.*gas|.*invariants)"
)
"""Tests of other things than a call, and those that would catch much, and say little."""

OF_GAS: Final = frozenset({"test_nobody_spares_a_broker_its_bond_by_sending_little_gas"})
"""Tests of just how much gas a call takes: the switches take some of their own."""

NEAR: Final = {
    "Batches": ("batches", "batch_consents", "batch_disputes", "batch_log"),
    "BrokerQuorum": ("quorum",),
    "BrokerRegistry": ("registry",),
    "ClearingHouse": ("clearing_house", "clearing_expiry", "clearing_claims"),
    "Credits": ("escrow_settlement", "tokens", "deposits"),
    "Delivery": ("dispute",),
    "Deposits": ("deposits",),
    "ParameterEscrow": ("escrow_fund", "escrow_settlement", "many", "tokens", "dispute"),
    "ParameterTree": ("parameter_tree", "dispute"),
    "Terms": ("escrow_fund",),
}
"""Whose tests come first, by source."""

NO_GAS: Final = "with too little gas to hash there is none left to say so, nor to go on"
EXPLAINED: Final = {
    (
        "BrokerQuorum",
        "bound",
        "start >= signatures.length",
    ): "the other clause refuses it: nothing is left behind the end",
    (
        "BrokerRegistry",
        "bound",
        "gasleft() <= GAS_TO_UNSEAT",
    ): "one gas more or less: what is asked for has thousands to spare",
    ("Delivery", "removed", "revert ParameterTree.HashingFailed()"): NO_GAS,
    ("ParameterTree", "removed", "revert HashingFailed()"): NO_GAS,
}
"""Why no test fails: by source, kind, and what is broken."""


class Caught(NamedTuple):
    """The test that fails, and what it said; no test if the mutant survives."""

    test: str
    words: str


# What there is to break


def sources() -> dict[str, str]:
    """Return our sources and those of the tests, by their names."""
    names = sorted({target.source for target in compiler.TARGETS})
    found = compiler.source_closure(names)
    return {name: text.decode() for name, text in found.items() if not name.startswith("@")}


def woven() -> tuple[list[Mutant], dict[str, str]]:
    """Return all mutants, and the sources with their switches."""
    ours = sources()
    weaver = Weaver(errors_by_check("\n".join(map(blanked, ours.values()))))
    made = {}
    for name, source in ours.items():
        made[name] = re.sub(r"\bpure\b", "view", blanked(source))
        if name.startswith("contracts/src/"):
            made[name] = weaver.weave(name, source)
    return weaver.mutants, made


def compile_woven(made: dict[str, str], folder: Path) -> None:
    """Compile the sources with their switches, and write the artifacts into a folder."""
    compiler.install()
    names = sorted({target.source for target in compiler.TARGETS})
    closure = {name: text.decode() for name, text in compiler.source_closure(names).items()}
    wanted = ["abi", "metadata", "evm.bytecode.object", "evm.deployedBytecode"]
    request = {
        "language": "Solidity",
        "sources": {name: {"content": text} for name, text in (closure | made).items()},
        "settings": {
            **compiler.SETTINGS,
            "optimizer": {"enabled": True, "runs": 1},  # smaller code: the switches take room
            "outputSelection": {name: {"*": wanted} for name in names},
        },
    }
    output = json.loads(compiler.run_solc(json.dumps(request), compiler.engines()[0]))
    if wrong := [e["formattedMessage"] for e in output.get("errors", []) if e["type"] != "Warning"]:
        raise compiler.CompilationError("\n".join(wrong))
    for target in compiler.TARGETS:
        artifact = compiler.artifact(target, output["contracts"][target.source][target.contract])
        (folder / f"{target.contract}.json").write_bytes(compiler.encode(artifact))


# Which tests there are


@cache
def tests() -> dict[str, str]:
    """Return the text of every test, by its id."""
    found = {}
    for path in sorted(TESTS.glob("test_*.py")):
        if LEFT_OUT.search(path.stem):
            continue
        text = path.read_text()
        for part in ast.parse(text).body:
            if not isinstance(part, ast.FunctionDef) or part.name in OF_GAS:
                continue
            if part.name.startswith("test_"):
                name = f"{path.relative_to(ROOT).as_posix()}::{part.name}"
                first = min([part.lineno, *(d.lineno for d in part.decorator_list)])
                found[name] = "\n".join(text.splitlines()[first - 1 : part.end_lineno])
    return found


def rounds(mutant: Mutant) -> list[list[str]]:
    """Return the tests that name the error, those of the contract first, and then all others."""
    near = [f"/test_{stem}.py" for stem in NEAR.get(Path(mutant.source).stem, ())]

    def distance(test: str) -> tuple[bool, int]:
        places = [i for i, end in enumerate(near) if test.split("::", maxsplit=1)[0].endswith(end)]
        return "@given" in tests()[test], min(places, default=len(near))

    named = [t for t, text in tests().items() if any(f'"{e}"' in text for e in mutant.errors)]
    rest = [test for test in tests() if test not in named]
    return [sorted(named, key=distance), sorted(rest, key=distance)]


def digest(*texts: str) -> str:
    """Return what results are kept by."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


# How they run


def play(folder: Path, switch: int, chosen: Sequence[str]) -> Caught | None:
    """Run tests with one switch on, or with none; return the first that fails.

    For a process of its own: it changes the EVM, and what artifacts are read.
    """
    import pytest  # noqa: PLC0415
    from eth.vm.forks.paris.state import ParisState  # noqa: PLC0415
    from eth.vm.forks.shanghai import computation as shanghai  # noqa: PLC0415
    from eth.vm.forks.spurious_dragon import computation  # noqa: PLC0415

    from contracts import artifact  # noqa: PLC0415

    plain = artifact.read_artifact

    def read(path: Path) -> artifact.Artifact:
        return plain(folder / path.name)

    class Watch:
        failure: Caught | None = None

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and self.failure is None:
                words = str(report.longrepr).strip().splitlines()[-1:]
                self.failure = Caught(report.nodeid, "".join(words))

    artifact.read_artifact = read
    for owner, name, value in (
        (ParisState, "mix_hash", property(lambda _: switch.to_bytes(32, "big"))),
        (computation, "EIP170_CODE_SIZE_LIMIT", 2**17),  # the switches take room
        (shanghai, "MAX_INITCODE_SIZE", 2**18),
    ):
        setattr(owner, name, value)
    os.chdir(ROOT)
    watch = Watch()
    options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-m", "not anvil"]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = pytest.main([*options, *chosen], plugins=[watch])
    if watch.failure is None and code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        raise SystemExit(f"pytest could not run {chosen[:3]}…: {code!r}")
    return watch.failure


def in_time(folder: Path, switch: int, chosen: Sequence[str]) -> Caught | None:
    """`play`, within so much processor time."""

    def over(*_: Any) -> None:
        raise TimeoutError(f"more than {PROCESSOR_SECONDS} s of processor time")

    signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    return play(folder, switch, chosen)


def catch(folder: Path, mutant: Mutant) -> tuple[Mutant, Caught | None]:
    """Run the tests until one catches the mutant."""
    for chosen in rounds(mutant):
        if chosen and (caught := in_time(folder, mutant.switch, chosen)):
            return mutant, caught
    return mutant, None


def ready() -> None:
    """Import once what every process needs."""
    for name in ("pytest", "contracts.stage", "contracts.batch", "node.protocol.delivery"):
        importlib.import_module(name)
    from hypothesis import Phase, settings  # noqa: PLC0415

    # The tests say how many examples; a failure need not be made small to be one.
    settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None)
    settings.load_profile("mutants")


class Results:
    """What is known of the mutants of these very sources."""

    def __init__(self, made: dict[str, str]) -> None:
        self.folder = KEPT / digest(*made.values())[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / "results.json"
        self._fates = json.loads(self._file.read_text()) if self._file.is_file() else {}
        if not (self.folder / "compiled").is_file():
            compile_woven(made, self.folder)
            (self.folder / "compiled").touch()

    def of(self, mutant: Mutant) -> Caught | bool | None:
        """Return what caught the mutant, None if nothing did, True if that is not known."""
        found = self._fates.get(str(mutant.switch))
        if found is None or found["tests"] != written(found["test"]):
            return True
        return None if found["test"] is None else Caught(found["test"], found["words"])

    def save(self, mutant: Mutant, caught: Caught | None) -> None:
        """Keep what became of a mutant."""
        test, words = caught or (None, "")
        self._fates[str(mutant.switch)] = {"test": test, "words": words, "tests": written(test)}
        self._file.write_text(json.dumps(self._fates, indent=1))


def written(test: str | None) -> str:
    """Return the digest of a test, or of all."""
    if test is None:
        return digest(*tests().values())
    return digest(tests().get(test.split("[")[0], ""))


def run(mutants: Sequence[Mutant], results: Results, jobs: int) -> None:
    """Run the tests of mutants, so many at a time, and save and print what caught each."""
    ready()
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for mutant, caught in pool.imap_unordered(partial(catch, results.folder), mutants):
            results.save(mutant, caught)
            print(row(mutant, caught), flush=True)


def failing_at_rest(found: Sequence[Caught | None], results: Results) -> Caught | None:
    """Return a test that caught a mutant, and fails without any; None if all is well."""
    chosen = sorted({caught.test.split("[")[0] for caught in found if caught is not None})
    ready()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        failing: Caught | None = pool.apply(play, (results.folder, 0, chosen))
    return failing


def row(mutant: Mutant, caught: Caught | None) -> str:
    """Return a line of the table."""
    fate = "SURVIVED"
    if caught is not None:
        fate = caught.test.removeprefix("tests/contracts/")
    elif mutant.name in EXPLAINED:
        fate = f"explained: {EXPLAINED[mutant.name]}"
    return f"{Path(mutant.source).name}:{mutant.line} | {mutant.kind} | {mutant.text} | {fate}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a mutant survives unexplained, or is explained and does not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1, help="how many mutants at a time")
    parser.add_argument("--only", default="", help="a part of the name of a source")
    parser.add_argument("--list", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    mutants, made = woven()
    chosen = [mutant for mutant in mutants if options.only in mutant.source]
    if options.list:
        for mutant in chosen:
            print(row(mutant, None).rpartition(" | ")[0])
        return 0
    results = Results(made)
    waiting = [mutant for mutant in chosen if results.of(mutant) is True]
    waiting.sort(key=lambda mutant: mutant.name in EXPLAINED)  # these run all tests there are
    run(waiting, results, options.jobs)
    fates = {mutant: results.of(mutant) for mutant in chosen}
    found = [caught if isinstance(caught, Caught) else None for caught in fates.values()]
    if failing := failing_at_rest(found, results):
        print(f"{failing.test} fails with all switches at rest: {failing.words}")
        return 1
    print("", *map(row, fates, found), sep="\n")
    survived = found.count(None)
    print(f"{len(found)} mutants, {len(found) - survived} caught, {survived} survived")
    wrong = [
        m for m, caught in zip(fates, found, strict=True) if (not caught) != (m.name in EXPLAINED)
    ]
    print(*(f"not as explained: {mutant.name}" for mutant in wrong), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
