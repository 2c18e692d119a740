"""A fresh stage for each test, and the words in which refusals are asserted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contracts.stage import RevertedError, Stage

ROOT = Path(__file__).resolve().parents[2]

Refused = Callable[..., AbstractContextManager[None]]


@contextmanager
def refusal(name: str, *arguments: Any) -> Iterator[None]:
    """Expect the escrow's error of that name, with exactly those values."""
    with pytest.raises(RevertedError) as caught:
        yield
    assert (caught.value.name, caught.value.arguments) == (name, arguments)


@pytest.fixture
def refused() -> Refused:
    """Return the context manager that expects a custom error by name and values."""
    return refusal


@pytest.fixture
def stage() -> Stage:
    """Return an escrow on a chain of its own."""
    return Stage()


def script(name: str) -> ModuleType:
    """Return a program of the folder `scripts`, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compiler() -> ModuleType:
    """Return `scripts/compile_contracts.py`."""
    return script("compile_contracts")


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    """Return `scripts/bench_gas.py`."""
    return script("bench_gas")
