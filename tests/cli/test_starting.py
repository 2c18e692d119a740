"""The signals of a node's start: none is lost, whatever runs when it comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import trio

from node.chain.errors import ChainUnavailableError
from node.cli import main
from node.cli.exits import DONE, FAILED, INTERRUPTED
from node.cli.starting import Start, interruptible_start
from node.observe import Observer
from node.roles.opening import _Patience

LONG = 60.0
ENDINGS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


class Aborted(BaseException):
    """Raised in place of the end of the process."""


@pytest.fixture
def aborts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes of the ends that were asked for, here and now."""
    codes: list[int] = []

    def abort(code: int) -> NoReturn:
        codes.append(code)
        raise Aborted

    monkeypatch.setattr(os, "_exit", abort)
    return codes


def aborts_at_interrupt() -> bool:
    try:
        signal.raise_signal(signal.SIGINT)
    except (Aborted, KeyboardInterrupt) as ending:
        return isinstance(ending, Aborted)
    return False


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Raise a signal where what its handler raises is lost."""
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.exc_type))

    class Losing:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            signal.raise_signal(self.number)

    def lose(number: int) -> None:
        before = len(lost)
        Losing(number)
        assert len(lost) == before + 1

    return lose


@pytest.mark.parametrize(("number", "ending"), ENDINGS)
def test_a_signal_that_a_finalizer_lost_ends_the_wait_for_a_chain(
    number: int, ending: type[BaseException], lose: Callable[[int], None]
) -> None:
    asked = 0

    def is_silent() -> None:
        nonlocal asked
        asked += 1
        assert asked == 1
        lose(number)
        raise ChainUnavailableError("silence")

    with interruptible_start() as start, pytest.raises(ending) as ended:
        _Patience(Observer(), start.sleep).ask(is_silent)
    assert getattr(ended.value, "code", DONE) == DONE


@pytest.mark.parametrize(("number", "ending"), ENDINGS)
def test_a_signal_ends_a_wait_at_once(number: int, ending: type[BaseException]) -> None:
    with interruptible_start() as start, pytest.raises(ending):
        threading.Timer(0.02, os.kill, (os.getpid(), number)).start()
        begun = time.monotonic()
        try:
            start.sleep(LONG)
        finally:
            assert time.monotonic() - begun < LONG / 2


def test_a_signal_that_is_lost_during_a_wait_ends_it_all_the_same(
    lose: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        assert not naps
        naps.append(seconds)
        lose(signal.SIGINT)

    with interruptible_start() as start, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(time, "sleep", nap)
        start.sleep(LONG)
    assert len(naps) == 1
    assert naps[0] < 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_aborts(
    first: int, lose: Callable[[int], None], aborts: list[int]
) -> None:
    with interruptible_start():
        lose(first)
        assert aborts_at_interrupt()
    assert aborts == [INTERRUPTED]


def test_a_second_sigterm_ends_as_the_first(lose: Callable[[int], None], aborts: list[int]) -> None:
    with interruptible_start():
        lose(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert not aborts


def test_an_interrupt_before_the_loop_has_a_receiver_aborts(aborts: list[int]) -> None:
    async def interrupted() -> bool:
        return aborts_at_interrupt()

    with interruptible_start() as start, start.leave_to_loop():
        assert trio.run(interrupted)
    assert aborts == [INTERRUPTED]


def test_a_signal_that_was_lost_lets_no_loop_begin(lose: Callable[[int], None]) -> None:
    with interruptible_start() as start:
        lose(signal.SIGTERM)
        with pytest.raises(SystemExit), start.leave_to_loop():
            raise AssertionError


@pytest.fixture
def deaf() -> Iterator[None]:
    """A process of a shell without job control, in its background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_start_in_the_background_of_a_script_is_interrupted_too(deaf: None) -> None:
    with interruptible_start(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_wait_that_nobody_interrupts_is_as_long_as_was_asked() -> None:
    begun = time.monotonic()
    Start().sleep(0.3)
    assert time.monotonic() - begun >= 0.3


# ── how the process ends ──


class Unread:
    """A pipe that nobody reads any more."""

    def flush(self) -> None:
        raise BrokenPipeError


def ends(code: int) -> Callable[[], int]:
    return lambda: code


@pytest.mark.parametrize(
    ("ending", "unread", "code"),
    [
        (ends(DONE), False, DONE),
        (ends(INTERRUPTED), False, INTERRUPTED),
        (ends(DONE), True, FAILED),
        (ends(INTERRUPTED), True, INTERRUPTED),
        (lambda: sys.exit(DONE), False, DONE),
        (lambda: sys.exit("a word"), False, FAILED),
    ],
)
def test_a_command_ends_with_its_code_once_all_that_it_said_is_out(
    ending: Callable[[], int],
    unread: bool,
    code: int,
    aborts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "run", ending)
    if unread:
        monkeypatch.setattr(sys, "stdout", Unread())
    with pytest.raises(Aborted):
        main.main()
    assert aborts == [code]
