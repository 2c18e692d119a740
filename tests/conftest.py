"""The options that the tests take."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contracts be tested on another chain than eth-tester."""
    parser.addoption("--anvil", action="store_true", help="play tests/contracts on anvil")


LONGEST_FIRST = (
    "tests/crash/test_deaths.py",
    "tests/devnet/test_run.py",
    "tests/devnet/test_devnet_processes.py",
    "tests/devnet/test_leaving.py",
    "tests/contracts/test_deposit_invariants.py",
    "tests/quorum/test_quorum_market.py",
    "tests/devnet/test_market_api.py",
    "tests/devnet/test_devnet_ends.py",
    "tests/market/",
    "tests/devnet/",
    "tests/contracts/",
)
"""Where a process that gets one of them last would work on alone for a minute or more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that the processes end together; the rest as it was."""

    def rank(item: pytest.Item) -> int:
        return next(
            (place for place, name in enumerate(LONGEST_FIRST) if item.nodeid.startswith(name)),
            len(LONGEST_FIRST),
        )

    items.sort(key=rank)
