"""No test of a market waits for ever: what should have happened by then has not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

HERE = Path(__file__).parent
LONGEST_SECONDS = 60


def run_bounded(
    test: Callable[[], Awaitable[None]], *, clock: object, instruments: list[Any]
) -> None:
    async def bounded() -> None:
        with trio.fail_after(LONGEST_SECONDS):
            await test()

    trio.run(bounded, instruments=instruments)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("trio") is not None:
            item.add_marker(pytest.mark.trio(run=run_bounded), append=False)
