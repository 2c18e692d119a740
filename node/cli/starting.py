"""SIGINT and SIGTERM while a node starts: it ends at once, or where it next looks.

To raise in the handler is not enough. What is raised while a finalizer or a callback of the
garbage collector runs is printed as ignored, and lost; so may be what is raised within an
import. So the handler keeps in mind that it was called, and who waits looks there.

SIGINT is heard even by a process that was started to ignore it, as a shell without job control
starts what it puts in the background: the event loop, once it runs, hears it as well.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from node.cli.exits import DONE, INTERRUPTED

LOOK_SECONDS: Final = 0.25
"""The longest that a signal goes unnoticed in a wait."""


class Start:
    """The signals that came while a node starts. For the main thread."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._looping = False

    def check(self) -> None:
        """Raise what the first signal asks for: `KeyboardInterrupt`, or `SystemExit`."""
        match self._first:
            case None:
                return
            case signal.SIGINT:
                raise KeyboardInterrupt
            case _:
                sys.exit(DONE)

    def sleep(self, seconds: float) -> None:
        """Sleep, unless a signal comes or has come: raises then as `check`."""
        until = time.monotonic() + seconds
        self.check()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
            self.check()

    @contextmanager
    def leave_to_loop(self) -> Iterator[None]:
        """Let the event loop that runs within have a receiver of its own.

        A signal in the moment before it has, or after, is the end of the process: the journal is
        made for that, and the loop is not made to be interrupted.
        """
        self.check()
        self._looping = True
        try:
            yield
        finally:
            self._looping = False

    def heard(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal; a SIGINT after another signal ends the process here and now."""
        again, self._first = self._first is not None, self._first or number
        if number == signal.SIGINT and (again or self._looping):
            os._exit(INTERRUPTED)
        if self._looping:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.check()


@contextmanager
def interruptible_start() -> Iterator[Start]:
    """Let SIGINT and SIGTERM end a node in good order while it still waits for its chain."""
    start = Start()
    before = {
        number: signal.signal(number, start.heard) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield start
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
