"""Where each contract keeps what, and how large its code is, changes only by intent."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contracts import load_artifact

ROOT = Path(__file__).resolve().parents[2]
COMMITTED: dict[str, Any] = json.loads((ROOT / "contracts" / "layout.json").read_text())


@pytest.fixture(scope="module")
def parsed(compiler: ModuleType) -> dict[str, Any]:
    """Return what the compiler says of storage, with the code that is committed."""
    try:
        compiler.install()
    except compiler.MissingToolError as error:
        pytest.skip(f"nothing can be compiled here: {error}")
    names = [f"contracts/src/{name}.sol" for name in compiler.OURS]
    wanted = ["storageLayout", "transientStorageLayout"]  # these take no time: no code is made
    output: dict[str, Any] = compiler.compile_sources(names, compiler.engines()[0], wanted)
    for name in compiler.OURS:
        code = load_artifact(name).deployed_bytecode.hex()
        made = output["contracts"][f"contracts/src/{name}.sol"][name]
        made["evm"] = {"deployedBytecode": {"object": code}}
    return output


def test_the_layout_is_as_committed(compiler: ModuleType, parsed: dict[str, Any]) -> None:
    written = compiler.LAYOUT.read_bytes()
    assert compiler.layout(parsed) == written, "run scripts/compile_contracts.py, and look at it"


def test_a_variable_more_is_another_layout(compiler: ModuleType, parsed: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(parsed))
    escrow = changed["contracts"]["contracts/src/ParameterEscrow.sol"]["ParameterEscrow"]
    variables = escrow["storageLayout"]["storage"]
    variables.append(variables[-1] | {"slot": str(len(variables)), "label": "_more"})
    assert compiler.layout(changed) != compiler.LAYOUT.read_bytes()


def test_code_that_no_chain_takes_is_not_compiled(
    compiler: ModuleType, parsed: dict[str, Any]
) -> None:
    changed = json.loads(json.dumps(parsed))
    court = changed["contracts"]["contracts/src/DeliveryCourt.sol"]["DeliveryCourt"]
    court["evm"]["deployedBytecode"]["object"] = "00" * 24_577
    with pytest.raises(compiler.CompilationError, match="24577 bytes"):
        compiler.layout(changed)


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_the_code_is_as_large_as_is_said_and_may_be(name: str) -> None:
    size = len(load_artifact(name).deployed_bytecode)
    assert COMMITTED[name]["codeBytes"] == size <= 24_576
    assert COMMITTED[name]["codeBytesLeft"] == 24_576 - size


def test_the_layout_is_of_all_contracts(compiler: ModuleType) -> None:
    assert sorted(COMMITTED) == sorted(compiler.OURS)
