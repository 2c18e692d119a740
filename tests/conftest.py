"""The options that the tests take."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contracts be tested on another chain than eth-tester."""
    parser.addoption("--anvil", action="store_true", help="play tests/contracts on anvil")


LONGEST_FIRST = (
    "tests/crash/test_deaths.py",
    "tests/devnet/test_run.py",
    "tests/devnet/test_quorum_processes.py",
    "tests/devnet/test_devnet_processes.py",
    "tests/devnet/test_market_api.py",
    "tests/devnet/test_devnet_ends.py",
    "tests/devnet/test_leaving.py",
    "tests/quorum/test_quorum_market.py",
    "tests/contracts/test_deposit_invariants.py",
    "tests/contracts/test_registry_machine.py",
    "tests/cli/test_roles.py",
    "tests/chain/test_web3_escrow.py",
    "tests/chain/test_clearing.py",
    "tests/devnet/",
    "tests/market/",
    "tests/contracts/",
    "tests/quorum/",
    "tests/chain/",
    "tests/net/",
    "tests/clearing/",
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
