#!/usr/bin/env python3
"""Run slither over the contracts; every finding is explained, or it is a fault.

    scripts/slither_contracts.py            the findings that nobody explained, if there are any
    scripts/slither_contracts.py --all      each finding, with what slither.toml says of it

A finding is known by its check and the function or variable that it is about, not by a line.
An explanation of a finding that is no more is a fault too, and so is any line in which slither
says ERROR: it goes on after one, and then finds nothing.

Slither has an environment of its own under build/, made from contracts/slither-requirements.txt.
It sees syntax trees that the pinned compiler made, not the code, which takes long to make and
which it does not look at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import compile_contracts, soljson  # noqa: E402  (the path above comes first)

REQUIREMENTS: Final = ROOT / "contracts" / "slither-requirements.txt"
EXPLAINED: Final = ROOT / "contracts" / "slither.toml"
HOME: Final = ROOT / "build" / "slither"
TREE: Final = ROOT / "build" / "slither-tree"

ANALYZED: Final = re.compile(r"analyzed \((\d+) contracts with (\d+) detectors\)")


class SlitherError(Exception):
    """Slither did not look at all contracts: what it found, or did not, says nothing."""


class Finding(NamedTuple):
    """One thing that slither says, by what does not change when lines move."""

    check: str
    where: str


def install() -> Path:
    """Make slither's environment, unless it is there, and return its program.

    Raises `MissingToolError` where pip cannot get it.
    """
    stamp = HOME / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    program = HOME / "bin" / "slither"
    if program.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return program
    venv.create(HOME, clear=True, with_pip=True)
    command: list[str | Path] = [
        HOME / "bin" / "python",
        "-m",
        "pip",
        "install",
        "-qq",
        "--disable-pip-version-check",
    ]
    run = subprocess.run(
        [*command, "-r", REQUIREMENTS], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise compile_contracts.MissingToolError(f"no slither: {run.stderr.strip()[-2000:]}")
    stamp.write_text(wanted)
    return program


def parse() -> Path:
    """Have the sources parsed, and lay out what slither reads; return its folder."""
    compile_contracts.install()
    names = [f"contracts/src/{name}.sol" for name in compile_contracts.OURS]
    sources = compile_contracts.source_closure(names)
    wanted = {"*": {"*": ["abi", "userdoc", "devdoc"], "": ["ast"]}}
    request = {
        "language": "Solidity",
        "sources": {name: {"content": data.decode()} for name, data in sources.items()},
        "settings": {**compile_contracts.SETTINGS, "outputSelection": wanted},
    }
    engine = compile_contracts.engines()[0]
    answer = json.loads(compile_contracts.run_solc(json.dumps(request), engine))
    for made in (made for file in answer["contracts"].values() for made in file.values()):
        none = {"object": "", "sourceMap": ""}
        made["evm"] = {"bytecode": none, "deployedBytecode": none, "methodIdentifiers": {}}
    shutil.rmtree(TREE, ignore_errors=True)
    (TREE / "contracts").mkdir(parents=True)
    (TREE / "contracts" / "src").symlink_to(compile_contracts.PACKAGE / "src")
    (TREE / "@openzeppelin").symlink_to(compile_contracts.MODULES / "@openzeppelin")
    (TREE / "request.json").write_text(json.dumps(request))
    (TREE / "answer.json").write_text(json.dumps(answer))
    compiler = TREE / "solc"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'*--version*) exec "{sys.executable}" "{soljson.__file__}" --version ;;\n'
        f'*) cat > /dev/null; exec cat "{TREE / "answer.json"}" ;;\nesac\n'
    )
    compiler.chmod(0o755)
    return TREE


def run_slither(program: Path, tree: Path) -> dict[Finding, str]:
    """Return what slither finds in our own sources, with its words. Raises `SlitherError`."""
    report = tree / "report.json"
    options = ["--compile-force-framework", "Solc-json", "--solc", str(tree / "solc")]
    options += ["--exclude-dependencies", "--filter-paths", "@openzeppelin", "--fail-none"]
    run = subprocess.run(
        [program, "request.json", *options, "--json", report.name],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    said = run.stdout + run.stderr
    wrong = [line for line in said.splitlines() if "ERROR:" in line or "Traceback" in line]
    if run.returncode != 0 or wrong or not report.is_file():
        raise SlitherError(
            "\n".join([f"slither ended with {run.returncode}", *wrong, said[-3000:]])
        )
    return findings(json.loads(report.read_text(encoding="utf-8")), said)


def findings(report: dict[str, Any], said: str) -> dict[Finding, str]:
    """Return the findings of a report by what they are about. Raises `SlitherError`."""
    seen = ANALYZED.search(said)
    if not report["success"] or seen is None or int(seen[1]) < len(compile_contracts.OURS):
        raise SlitherError(
            f"slither did not look at the contracts: {report['error']}\n{said[-3000:]}"
        )
    print(f"slither looked at {seen[1]} contracts for {seen[2]} kinds of findings")
    found: dict[Finding, str] = {}
    for result in report["results"].get("detectors", []):
        where = place(result["elements"][0]) if result["elements"] else ""
        words = result["description"].strip()
        known = found.get(Finding(result["check"], where))
        found[Finding(result["check"], where)] = words if known is None else f"{known}\n{words}"
    return found


def place(element: dict[str, Any]) -> str:
    """Return ``Contract.function(types)``, or what else it is that an element lies in."""
    fields = element.get("type_specific_fields", {})
    parent = fields.get("parent")
    if element["type"] == "node":
        return place(parent)
    name = str(fields.get("signature", element["name"]))
    if parent is not None and parent["type"] in {"contract", "function"}:
        return f"{place(parent)}.{name}"
    return name


def explanations() -> dict[Finding, str]:
    """Return why each finding that we know of is no fault."""
    table = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    return {
        Finding(check, where): why
        for check, places in table.items()
        for where, why in places.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is explained, 1 if not, 2 if slither could not be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="also what is explained")
    options = parser.parse_args(arguments)
    try:
        found = run_slither(install(), parse())
    except compile_contracts.MissingToolError as error:
        print(f"slither was not run: {error}", file=sys.stderr)
        return 2
    except SlitherError as error:
        print(error, file=sys.stderr)
        return 1
    explained = explanations()
    for finding in sorted(found):
        why = explained.get(finding)
        if why is None:
            print(f"not explained: {finding.check}: {finding.where}\n{found[finding]}\n")
        elif options.all:
            print(f"{finding.check}: {finding.where}\n  {why}")
    for finding in sorted(explained.keys() - found.keys()):
        print(f"explained, and not found any more: {finding.check}: {finding.where}")
    print(f"{len(found)} findings, {len(found.keys() & explained.keys())} of them explained")
    return int(found.keys() != explained.keys())


if __name__ == "__main__":
    raise SystemExit(main())
