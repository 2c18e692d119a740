"""``pm-node chain``: the development chain as a process of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from eth_hash.auto import keccak

from contracts import load_artifact
from node.chain.errors import ChainUnavailableError
from node.chain.rpc_server import serve_chain
from node.chain.tester import Stage
from node.cli.failpoint import VARIABLE, hold
from node.protocol.errors import LocalProtocolError

SECRET_STAGES: Final = ("accepted", "executed")


def run_chain(directory: Path, host: str, port: int, environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT. Raises `MarketError` if it cannot."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def ready(url: str) -> None:
        print(f"development chain at {url}: the money is play money", flush=True)  # noqa: T201

    try:
        serve_chain(
            directory, host, port, stop=stop, ready=ready, on_transaction=_failpoint(environ)
        )
    except OSError as error:
        raise ChainUnavailableError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _failpoint(environ: Mapping[str, str]):  # type: ignore[no-untyped-def]
    """``<folder>:<stage>,step=<function>``: freeze while such a transaction is at that stage."""
    text = environ.get(VARIABLE)
    if not text:
        return None
    folder, _, what = text.partition(":")
    stage, _, condition = what.partition(",step=")
    if stage not in SECRET_STAGES or not condition:
        raise LocalProtocolError(f"{VARIABLE} of a chain is <folder>:<stage>,step=<function>")
    wanted = _selector(condition)

    def freeze(at: Stage, raw: bytes) -> None:
        if at == stage and wanted in raw:
            hold(Path(folder), os.getpid())

    return freeze


def _selector(function: str) -> bytes:
    """Return the four bytes that a call of `function` begins with."""

    def canonical(item: dict[str, object]) -> str:
        kind = str(item["type"])
        if not kind.startswith("tuple"):
            return kind
        components = item["components"]
        assert isinstance(components, list)
        return "(" + ",".join(canonical(part) for part in components) + ")" + kind[5:]

    for entry in load_artifact("ParameterEscrow").abi:
        if entry.get("type") == "function" and entry.get("name") == function:
            signature = f"{function}({','.join(canonical(i) for i in entry['inputs'])})"
            return keccak(signature.encode())[:4]
    raise LocalProtocolError(f"the escrow has no function {function!r}")
