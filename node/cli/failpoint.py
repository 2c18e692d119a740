"""Stops a process dead at a named moment, so that a test may kill one there.

``PMNODE_FAILPOINT=<folder>:<event>[,field=value…]`` freezes the whole process at the first
such event: it leaves ``<folder>/reached`` and goes on once there is ``<folder>/go``. Events
are those of `node.chronicle`; ``trade_changed,side=buyer,state=funding`` is the moment
between the journal's commit and the first effect, ``sent,step=fund`` the one between a
transaction and its receipt. Without the variable nothing of this is in the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from node.observe import Record
from node.protocol.errors import LocalProtocolError

VARIABLE: Final = "PMNODE_FAILPOINT"
_POLL_SECONDS: Final = 0.01


def failpoint(environ: Mapping[str, str]) -> Callable[[Record], None] | None:
    """Return the subscriber that the environment asks for, if it does."""
    text = environ.get(VARIABLE)
    if not text:
        return None
    folder, colon, what = text.partition(":")
    if not colon or not what:
        raise LocalProtocolError(f"{VARIABLE} is <folder>:<event>[,field=value], got {text!r}")
    event, *conditions = what.split(",")
    wanted = dict(condition.split("=", 1) for condition in conditions)

    def freeze(record: Record) -> None:
        if record.name != event:
            return
        fields = record.fields()
        if all(str(fields.get(name)) == value for name, value in wanted.items()):
            hold(Path(folder), os.getpid())

    return freeze


def hold(folder: Path, pid: int) -> None:
    """Freeze here, once, until the test says to go on."""
    reached = folder / "reached"
    if reached.exists():
        return
    reached.write_text(str(pid), encoding="ascii")
    while not (folder / "go").exists():
        time.sleep(_POLL_SECONDS)
