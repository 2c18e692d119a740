"""Ray behind a door: all that is known of its interface, and of its errors, is here.

Ray is imported when a cluster is asked for, never before, and is an extra: `pm-node[ray]`.

A cluster of our own listens on 127.0.0.1 alone, wants a token that is drawn anew each time, has
no dashboard, reports no usage, and keeps its sockets and logs in a folder of ours that goes with
it. Whoever can talk to a Ray cluster can have it run anything: one that is joined by its address
is its owner's to guard.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from broker_node.engine.engine import EngineError

LOOPBACK: Final = "127.0.0.1"
ERROR: Final = 40
"""The least severe lines that Ray writes to our standard error."""
QUIET: Final[dict[str, Any]] = {"log_to_driver": False, "logging_level": ERROR}
CONNECT_SECONDS: Final = 5.0
OURS: Final = {
    "RAY_AUTH_MODE": "token",
    # by its name for other systems; on any, without it, 127.0.0.1 is replaced by an outer address
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
NO_REPORTS: Final = {"RAY_USAGE_STATS_ENABLED": "0"}
STARTS: Final = 3
"""How often a cluster of our own is started before it is given up.

On a busy machine Ray's processes miss the thirty seconds that they allow one another; a fresh start
in a new folder often succeeds. A fault that stays costs as many failures, and has an end.
"""
KILLED_SECONDS: Final = 5.0
"""How long processes that were killed are waited for."""
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
        """Join the cluster at `address`, or start one, which stays until `close`.

        Raises `EngineError` ``ray-missing`` or ``ray-away``, for whatever reason Ray did not
        start; nothing of a failed start is left running, and no folder.
        """
        os.environ.update(NO_REPORTS)
        self._own: _OwnCluster | None = None
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
        try:
            if not self._joined:
                self._start() if address is None else self._join(address)
            resources = self._ray.cluster_resources()
        except Exception as error:
            self.close()
            take_signals_back()
            if isinstance(error, EngineError):
                raise
            raise EngineError("ray-away", f"{address or 'our own'}: {_line(error)}") from error
        self.cpus = int(resources.get("CPU", 0))
        self.gpus = int(resources.get("GPU", 0))

    def _join(self, address: str) -> None:
        _require_open(address)
        try:
            self._ray.init(address=address, **QUIET)
        except SystemExit as error:  # what Ray does where the other side is not Ray
            raise EngineError("ray-away", f"{address}: no Ray cluster answers there") from error

    def _start(self) -> None:
        """Start a cluster of our own, afresh where a start fails, up to `STARTS` times."""
        for _ in range(STARTS):
            self._own = _OwnCluster(self._ray)
            failure = self._own.start()
            if failure is None:
                return
            self.close()
        raise EngineError(
            "ray-away",
            f"Ray did not start here in {STARTS} tries, the last of which said {_line(failure)}; "
            "start again when the machine is less busy, join a cluster that runs by "
            "`--ray-address`, or compute in this process by `--engine local`",
        ) from failure

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
            raise EngineError(reason, _line(error)) from error

    def close(self) -> None:
        """Leave the cluster; one that we started ends, and its folder goes."""
        if self._own is not None:
            self._own.end()
            self._own = None
        elif not self._joined:
            self._ray.shutdown()


class _OwnCluster:
    """A cluster of our own: its folder, and the thread that starts it and stays.

    The kernel kills what Ray has started when the *thread* that started it ends, whether or not
    the process goes on; a thread lent by a pool ends when it is idle. So this one waits until the
    cluster is to end. With it goes what a failed start has left, of which Ray itself knows no more.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._psutil: Any = importlib.import_module("psutil")  # which comes with Ray
        # short, for the paths of sockets in it
        self._folder = Path(tempfile.mkdtemp(prefix="pm-ray-"))
        self._failure: BaseException | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._stay, name="ray", daemon=True)

    def start(self) -> BaseException | None:
        """Return once it runs, or what Ray raised instead; either way `end` is for the caller."""
        self._thread.start()
        self._started.wait()
        return self._failure

    def _stay(self) -> None:
        try:
            self._ray.init(
                address="local",
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(self._folder),
                **QUIET,
            )
        except (Exception, SystemExit) as error:  # noqa: BLE001 (Ray raises `Exception` itself)
            self._failure = error
        self._started.set()
        self._ended.wait()

    def end(self) -> None:
        """Have Ray end its processes, then end what is left of them; the folder goes."""
        theirs = self._processes()
        with contextlib.suppress(Exception):  # of half a cluster, which is ended here as well
            self._ray.shutdown()
        self._ended.set()
        self._thread.join()
        for process in theirs:
            with contextlib.suppress(self._psutil.Error):
                process.kill()
        self._psutil.wait_procs(theirs, timeout=KILLED_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[Any]:
        """Return what runs in our folder: Ray's processes, and those that these have started.

        These are not ours to the kernel, and one that has just been started outlives its raylet by
        long enough to make a folder again that was removed.
        """
        found = []
        for child in self._psutil.Process().children():
            with contextlib.suppress(self._psutil.Error):
                if any(str(self._folder) in word for word in child.cmdline()):
                    found += [child, *child.children(recursive=True)]
        return found


def _line(error: BaseException | None) -> str:
    """Return the kind of a foreign error, and the first line of what it says."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}"[:400]


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
