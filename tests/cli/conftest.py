"""One call of `pm-node` as a user makes it: its exit code, and what it said on which stream."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.chain.rpc_server import ChainServer
from node.chain.tester import DevelopmentChain
from node.cli.main import run

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, code: int, *fragments: str) -> None:
        """Check that it ended so, with one line that has all `fragments`, and no output."""
        assert self.code == code, (self.code, self.err)
        assert self.err.startswith("pm-node: ")
        assert len(self.err.splitlines()) == 1
        assert self.out == ""
        for fragment in fragments:
            assert fragment in self.err


Command = Callable[..., Ran]


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without settings, brokers or files."""
    for name in [name for name in os.environ if name.startswith(("PMNODE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PMNODE_STATE", str(tmp_path / "state"))


@pytest.fixture
def pm_node(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, by the function that the installed script calls."""

    def command(*words: str | Path, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    return private_file(tmp_path / "password", PASSWORD + "\n")


@pytest.fixture(scope="session")
def chain_url() -> Iterator[str]:
    """A development chain over JSON-RPC, in this process."""
    with DevelopmentChain() as chain, ChainServer(chain) as server:
        yield server.url


def private_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path
