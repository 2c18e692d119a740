"""A run of the devnet in this process, by the function that the installed script calls.

A process of its own spends most of a short run on its imports.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from node.cli.main import run


def played(folder: Path, *words: str) -> dict[str, Any]:
    """Play a run to its end, and return its report."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["devnet", *words, "--name", str(folder), "--json"])
    assert code == 0, err.getvalue()[-2_000:]
    report: dict[str, Any] = json.loads(out.getvalue())
    assert report == json.loads((folder / "report.json").read_text())
    return report
