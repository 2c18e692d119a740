"""``pm-node chain``: the development chain as a process of its own."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eth_hash.auto import keccak

from contracts import load_artifact
from node.chain.rpc_server import serve_chain
from node.chain.tester import Observer, Stage
from node.cli.failpoint import VARIABLE, hold
from node.home import HomeError
from node.net.errors import CannotListenError


def run_chain(
    directory: Path, host: str, port: int, environ: Mapping[str, str], *, json_output: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT. Raises `MarketError` if it cannot."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HomeError(f"cannot make {directory}: {error.strerror}") from error
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def ready(url: str) -> None:
        told = f"development chain at {url}: the money is play money"
        print(json.dumps({"url": url}) if json_output else told, flush=True)  # noqa: T201

    try:
        serve_chain(
            directory, host, port, stop=stop, ready=ready, on_transaction=_failpoint(environ)
        )
    except OSError as error:
        raise CannotListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; name a free --port"
        ) from error


def _failpoint(environ: Mapping[str, str]) -> Observer | None:
    """Tell the crash tests which function of the escrow is at which stage."""
    if VARIABLE not in environ:
        return None
    folder, selectors = Path(environ[VARIABLE]), _selectors()

    def freeze(stage: Stage, raw: bytes) -> None:
        for selector, name in selectors.items():
            if selector in raw:
                hold(folder, stage, {"step": name})

    return freeze


def _selectors() -> dict[bytes, str]:
    """Return the four bytes that a call of each function begins with."""
    return {
        keccak(f"{entry['name']}({','.join(map(_canonical, entry['inputs']))})".encode())[:4]: str(
            entry["name"]
        )
        for entry in load_artifact("ParameterEscrow").abi
        if entry.get("type") == "function"
    }


def _canonical(item: Mapping[str, Any]) -> str:
    kind = str(item["type"])
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(map(_canonical, item["components"])) + ")" + kind.removeprefix("tuple")
