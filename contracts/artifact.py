"""What the compiler made of a contract, as it is committed under `contracts/artifacts`.

The files are written by `scripts/compile_contracts.py` alone, and a test recompiles the sources
and compares every byte: to read an artifact is to trust the sources beside it, nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

DIRECTORY: Final = Path(__file__).resolve().parent / "artifacts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    """The creation code, to which the encoded constructor arguments are appended."""
    deployed_bytecode: bytes
    """The code as it lies on the chain, with zeros where `immutables` are."""
    immutables: tuple[tuple[int, int], ...]
    """(start, length) of each place in the deployed code that the constructor fills in."""
    compiler: str
    settings: dict[str, Any]
    sources: dict[str, str]
    """SHA-256, in hex, of each source by its name."""

    def is_code_of(self, code: bytes) -> bool:
        """Say whether `code`, read from a chain, is this contract, whatever its immutables are."""
        if len(code) != len(self.deployed_bytecode):
            return False
        masked = bytearray(code)
        for start, length in self.immutables:
            masked[start : start + length] = bytes(length)
        return bytes(masked) == self.deployed_bytecode


def read_artifact(path: Path) -> Artifact:
    """Read an artifact from a file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Artifact(
        name=fields["name"],
        abi=fields["abi"],
        bytecode=bytes.fromhex(fields["bytecode"]),
        deployed_bytecode=bytes.fromhex(fields["deployedBytecode"]),
        immutables=tuple((start, length) for start, length in fields["immutables"]),
        compiler=fields["compiler"],
        settings=fields["settings"],
        sources=fields["sources"],
    )


@cache
def load_artifact(name: str) -> Artifact:
    """Return one of our own artifacts, such as ``ParameterEscrow``.

    Raises `FileNotFoundError` for a name that is not a contract of ours.
    """
    return read_artifact(DIRECTORY / f"{name}.json")
