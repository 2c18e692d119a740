"""The options that the tests take."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contracts be tested on another chain than eth-tester."""
    parser.addoption("--anvil", action="store_true", help="play tests/contracts on anvil")
