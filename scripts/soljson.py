#!/usr/bin/env python3
"""The pinned compiler behind the command line of `solc`, for programs that start a compiler.

soljson.py --version
soljson.py --standard-json < request > answer      other options are passed over
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import compile_contracts  # noqa: E402  (the path above comes first)

SAMPLE: Final = ROOT / "contracts" / "artifacts" / "ParameterEscrow.json"
"""Says which compiler it was, to the commit."""


def write_command(folder: Path) -> Path:
    """Write an executable that is `solc` to whoever starts it, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "solc"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    command.chmod(0o755)
    return command


def main() -> int:
    """Answer as `solc` would."""
    if "--version" in sys.argv:
        version = json.loads(SAMPLE.read_text(encoding="utf-8"))["compiler"].removeprefix("solc ")
        print(f"solc, the solidity compiler commandline interface\nVersion: {version}")
        return 0
    if "--standard-json" not in sys.argv:
        print("only --standard-json and --version are known", file=sys.stderr)
        return 1
    print(compile_contracts.run_solc(sys.stdin.read(), compile_contracts.engines()[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
