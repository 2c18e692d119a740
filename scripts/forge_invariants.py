#!/usr/bin/env python3
"""Play the market and the clearing house at random by forge, and hold them to their invariants.

    scripts/forge_invariants.py                     128,000 calls to each of the two
    scripts/forge_invariants.py --calls 12800       fewer
    scripts/forge_invariants.py --seed 7            others

What is called, and what must come of it, is in tests/contracts/forge. forge comes by `npm ci` in
tests/contracts; the compiler that it starts is ours (scripts/soljson.py).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import compile_contracts, soljson  # noqa: E402  (the path above comes first)

PACKAGE: Final = ROOT / "tests" / "contracts"
FORGE: Final = PACKAGE / "node_modules" / "@foundry-rs" / "forge-linux-amd64" / "bin" / "forge"
BUILD: Final = ROOT / "build" / "forge"
DEPTH: Final = 128
"""Calls from one fresh market; then everybody leaves it, and another one begins."""

PLAYED: Final = {"invariant_market", "invariant_clearing"}
PASSED: Final = re.compile(
    r"^\[PASS\] (\w+)\(\) \(runs: (\d+), calls: (\d+), reverts: (\d+)\)", re.MULTILINE
)


def install() -> None:
    """Bring forge, compiler and library here, unless they are. Raises `MissingToolError`."""
    compile_contracts.install()
    if not FORGE.is_file():
        compile_contracts.npm_ci(PACKAGE)
    if not FORGE.is_file():
        raise compile_contracts.MissingToolError("forge is not locked for this platform")
    if not compile_contracts.engines():
        raise compile_contracts.MissingToolError("neither node nor mini-racer is there")


def play(calls: int, seed: int) -> tuple[int, str]:
    """Run forge; return its exit status, and all that it said, which is shown too."""
    environment = os.environ | {
        "FOUNDRY_CONFIG": str(PACKAGE / "forge" / "foundry.toml"),
        "FOUNDRY_SOLC": str(soljson.write_command(BUILD)),
        "FOUNDRY_INVARIANT_RUNS": str(-(-calls // DEPTH)),
        "FOUNDRY_INVARIANT_DEPTH": str(DEPTH),
        "NO_COLOR": "1",
    }
    command = [str(FORGE), "test", "--root", str(ROOT), "--fuzz-seed", hex(seed)]
    lines = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return run.returncode, "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all invariants hold, 1 if not, 2 if forge could not be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=128_000, help="to each of the two")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of calls")
    options = parser.parse_args(arguments)
    try:
        install()
    except compile_contracts.MissingToolError as error:
        print(f"forge was not run: {error}", file=sys.stderr)
        return 2
    status, said = play(options.calls, options.seed)
    held = {found[1]: int(found[3]) for found in PASSED.finditer(said)}
    missing = PLAYED - {name for name, calls in held.items() if calls >= options.calls}
    for name in sorted(missing):
        print(f"not held, or not for {options.calls:,} calls: {name}")
    if status == 0 and not missing:
        print("held: " + ", ".join(f"{name} for {held[name]:,} calls" for name in sorted(PLAYED)))
    return int(status != 0 or bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
