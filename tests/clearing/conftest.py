"""No test of a round waits for ever: what should have happened by then has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.settlement.bounded import Test, bounded

HERE = Path(__file__).parent
LONGEST_SECONDS = 300


def run_bounded(test: Test, *, clock: object, instruments: list[Any]) -> None:
    trio.run(bounded(test, LONGEST_SECONDS), instruments=instruments)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("trio") is not None:
            item.add_marker(pytest.mark.trio(run=run_bounded), append=False)
