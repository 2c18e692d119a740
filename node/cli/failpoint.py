"""Stops a process dead at a named moment, so that a test may kill one there.

With ``PMNODE_FAILPOINT=<folder>`` a process looks for ``<folder>/armed`` at each event. The
file names a moment as ``<event>[,field=value…]``: ``trade_changed,side=buyer,state=fetching``
is the one between a promise in the journal and what follows from it, ``saved,step=fund``
the one between a transaction in the journal and its broadcast, ``sent,step=fund`` the one
between the broadcast and its receipt, ``asked,kind=Countersign`` and ``answered,kind=Deal``
the ones after the bytes of a question or an answer have left; a chain knows ``accepted`` and
``executed``. The process then renames the file to ``reached`` and freezes, all of it, until
that is gone. What has left is in the kernel's hands by then, and arrives all the same.
Without the variable nothing of this is in the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from node.observe import Record

VARIABLE: Final = "PMNODE_FAILPOINT"
_POLL_SECONDS: Final = 0.005


def failpoint(environ: Mapping[str, str]) -> Callable[[Record], None] | None:
    """Return the subscriber that the environment asks for, if it does."""
    if VARIABLE not in environ:
        return None
    folder = Path(environ[VARIABLE])

    def freeze(record: Record) -> None:
        hold(folder, record.name, {k: str(v) for k, v in record.fields().items()})

    return freeze


def hold(folder: Path, event: str, fields: Mapping[str, str]) -> None:
    """Freeze here if this is the moment that is armed, until the test lets go."""
    armed = folder / "armed"
    try:
        name, *conditions = armed.read_text(encoding="ascii").split(",")
    except FileNotFoundError:
        return
    wanted = dict(condition.split("=", 1) for condition in conditions)
    if name != event or any(fields.get(key) != value for key, value in wanted.items()):
        return
    reached = folder / "reached"
    armed.rename(reached)
    while reached.exists():
        time.sleep(_POLL_SECONDS)
