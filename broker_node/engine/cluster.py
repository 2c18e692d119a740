"""Ray behind a door: all that is known of its interface, and of its errors, is here.

Ray is imported when a cluster is asked for, never before, and is an extra: `pm-node[ray]`.

A cluster of our own listens on 127.0.0.1 alone, wants a token that is drawn anew each time, has
no dashboard, reports no usage, and keeps its sockets and logs in a folder of ours that goes with
it. Whoever can talk to a Ray cluster can have it run anything: one that is joined by its address
is its owner's to guard.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Final

from broker_node.engine.engine import EngineError

LOOPBACK: Final = "127.0.0.1"
ERROR: Final = 40
"""The least severe lines that Ray writes to our standard error."""
CONNECT_SECONDS: Final = 5.0
OURS: Final = {
    "RAY_AUTH_MODE": "token",
    # by its name for other systems; on any, without it, 127.0.0.1 is replaced by an outer address
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
NO_REPORTS: Final = {"RAY_USAGE_STATS_ENABLED": "0"}
LOST: Final = (
    "WorkerCrashedError",
    "NodeDiedError",
    "LocalRayletDiedError",
    "OutOfMemoryError",
    "ObjectLostError",
    "TaskUnschedulableError",
)
"""Ray's errors, by name, after which the same task may well succeed another time."""


class Cluster:
    """A running Ray cluster, and how tasks are run on it; made once for a process."""

    def __init__(self, address: str | None) -> None:
        """Join the cluster at `address`, or start one.

        Raises `EngineError` ``ray-missing`` or ``ray-away``.
        """
        os.environ.update(NO_REPORTS)
        self._folder: str | None = None
        if address is None:
            os.environ.update(OURS)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise EngineError(
                "ray-missing", f"`--engine ray` needs Ray: pip install 'pm-node[ray]' ({error})"
            ) from error
        self._options: dict[str, object] = {}
        self._joined = bool(self._ray.is_initialized())
        if not self._joined:
            self._join(address)
        resources = self._ray.cluster_resources()
        self.cpus = int(resources.get("CPU", 0))
        self.gpus = int(resources.get("GPU", 0))

    def _join(self, address: str | None) -> None:
        where: dict[str, object] = {"address": address}
        if address is None:
            # short, for the paths of sockets in it
            self._folder = tempfile.mkdtemp(prefix="pm-ray-")
            where = {
                "address": "local",
                "include_dashboard": False,
                "_node_ip_address": LOOPBACK,
                "_temp_dir": self._folder,
            }
        else:
            _require_open(address)
        try:
            self._ray.init(**where, log_to_driver=False, logging_level=ERROR)
        except SystemExit as error:  # what Ray does where the other side is not Ray
            self.close()
            raise EngineError("ray-away", f"{address}: no Ray cluster answers there") from error
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            self.close()
            raise EngineError(
                "ray-away", f"{address or 'a cluster of our own'}: {error}"
            ) from error

    def needs(self, *, cpus: int, gpus: int, retries: int) -> None:
        """Say what every task takes up, and how often it is tried again when its worker is lost."""
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries}

    def room(self, *, cpus: int, gpus: int) -> int:
        """Return how many tasks with these needs find room at once.

        Raises `EngineError` ``ray-away`` for none: such a task would wait for ever.
        """
        room = self.cpus // cpus
        if gpus:
            room = min(room, self.gpus // gpus)
        if room < 1:
            raise EngineError(
                "ray-away",
                f"a task needs {cpus} cores and {gpus} GPUs, of {self.cpus}, {self.gpus}",
            )
        return room

    def put(self, value: object) -> Any:
        """Return the reference of a value in the object store. Raises `EngineError`."""
        try:
            return self._ray.put(value)
        except self._ray.exceptions.RayError as error:
            raise EngineError("ray-away", f"the object store: {error}"[:400]) from error

    def run(self, function: Callable[..., object], *arguments: object) -> Any:
        """Run a function of a module as a task, and wait for what it returns.

        Raises `EngineError`, and what the function raised itself.
        """
        errors = self._ray.exceptions
        try:
            remote = self._ray.remote(function).options(**self._options)
            return self._ray.get(remote.remote(*arguments))
        except errors.RayTaskError as error:
            # a fault of the code, which is met as in process
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise EngineError("task-failed", str(error)[:400]) from error
        except errors.RayError as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            reason = "worker-lost" if kinds & set(LOST) else "ray-away"
            detail = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise EngineError(reason, detail[:400]) from error

    def close(self) -> None:
        """Leave the cluster; one that we started ends, and its folder goes."""
        if not self._joined:
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _require_open(address: str) -> None:
    """Raise `EngineError` ``ray-away`` unless something listens at host:port.

    Ray itself tries for minutes, and then ends the process.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise EngineError(
            "ray-away", f"{address!r} is no host:port that answers: {error}"
        ) from error


def take_signals_back() -> None:
    """Have signals handled as the interpreter was told to handle them; from its main thread.

    Ray takes SIGTERM for a crash in any process that joins a cluster: it prints a stack, and ends
    the process by SIGABRT three seconds later, whatever its own handler has begun.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)
