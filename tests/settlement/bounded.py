"""No test waits for ever: what should have happened by then has not, and it says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

Test = Callable[[], Awaitable[None]]


def bounded(test: Test, seconds: float) -> Test:
    """Return a test that fails once `seconds` have passed on its clock."""

    async def run() -> None:
        with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
            try:
                await test()
            except BaseException:
                if scope.cancel_called:
                    raise AssertionError(f"not done within {seconds} s") from None
                raise
            return
        raise AssertionError(f"not done within {seconds} s")

    return run
