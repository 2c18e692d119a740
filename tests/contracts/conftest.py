"""A fresh stage for each test, and the words in which refusals are asserted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contracts.artifact import read_artifact
from contracts.stage import Contract, RevertedError, Stage
from tests.contracts import anvil

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = Path(__file__).resolve().parent / "artifacts"

Refused = Callable[..., AbstractContextManager[None]]
Deploy = Callable[..., Contract]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Pass over what eth-tester cannot see, unless the chain is anvil."""
    if item.get_closest_marker("anvil") and not item.config.getoption("--anvil", default=False):
        pytest.skip("eth-tester does not see it: run with --anvil")


@pytest.fixture(scope="session", autouse=True)
def chains(request: pytest.FixtureRequest) -> Iterator[None]:
    """Play on anvil, if that was asked for, and on eth-tester otherwise."""
    if not request.config.getoption("--anvil", default=False):
        yield
        return
    if not anvil.PROGRAM.is_file():
        script("compile_contracts").npm_ci(anvil.PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "new_chain", anvil.AnvilChain)
        yield
    anvil.end_all()


@contextmanager
def refusal(name: str, *arguments: Any) -> Iterator[None]:
    """Expect the custom error of that name, with exactly those values."""
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


@pytest.fixture
def deploy(stage: Stage) -> Deploy:
    """Return what puts one of the contracts under `sources` on the stage."""
    return lambda name, *arguments: stage.deploy(
        read_artifact(ARTIFACTS / f"{name}.json"), *arguments
    )


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
