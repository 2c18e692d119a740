"""Where a node keeps its things, and how the nodes of one machine find each other.

The data directory belongs to one process at a time: `RunLock` is an advisory lock of the
operating system, so that it is let go however the process ends, and names its holder.

A running broker leaves an address file in the state directory. The broker keeps that very
file locked while it runs, which tells a living broker from the file of a killed one
without trusting process ids, which are used again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from node.protocol import bounded_json
from node.protocol.errors import MarketError
from node.protocol.types import Address

PRIVATE_DIRECTORY: Final = 0o700
MAX_ADDRESS_FILE_BYTES: Final = 64 * 1024
ADDRESS_FILE: Final = "broker.json"
ADDRESS_FILE_VERSION: Final = 1

NoBroker = Literal["absent", "stale", "malformed", "exposed"]


class HomeError(MarketError):
    """A directory of ours cannot be used; the message says what to do."""


class AlreadyRunningError(HomeError):
    """Another process holds this data directory."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{directory} is in use by {holder}; stop it, or give this node its own --data-dir"
        )
        self.directory = directory
        self.pid = pid


class BrokerNotFoundError(HomeError):
    """No broker of this machine can be used; `reason` says why."""

    def __init__(self, reason: NoBroker, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


# ------------------------------------------------------------------- the data directory


@dataclass(frozen=True, slots=True)
class Home:
    """The data directory of one node."""

    root: Path

    @property
    def config(self) -> Path:
        """Return the path of the settings, TOML."""
        return self.root / "config.toml"

    @property
    def keystore(self) -> Path:
        """Return the folder of the accounts, version 3 keystores."""
        return self.root / "keystore"

    @property
    def peer_key(self) -> Path:
        """Return the path of the libp2p key."""
        return self.root / "peer.key"

    @property
    def journal(self) -> Path:
        """Return the path of the journal of trades, SQLite."""
        return self.root / "journal.db"

    @property
    def blobs(self) -> Path:
        """Return the folder of parameter sets and ciphertexts, by root."""
        return self.root / "blobs"

    @property
    def logs(self) -> Path:
        """Return the folder of JSON-lines logs."""
        return self.root / "logs"

    @property
    def run_lock(self) -> Path:
        """Return the path of the lock of the process that runs here."""
        return self.root / "run.lock"

    def prepare(self) -> Self:
        """Create what is missing, for this user alone.

        Raises `HomeError` if a directory cannot be made, or is one that others may write:
        whoever can replace a key file owns the node.
        """
        for folder in (self.root, self.keystore, self.blobs, self.logs):
            _private_directory(folder)
        return self

    def lock(self) -> RunLock:
        """Return the lock of this directory, not yet taken."""
        return RunLock(self.run_lock)


def default_data_dir(role: str, environ: Mapping[str, str]) -> Path:
    """Return the data directory of `role` for a user who names none."""
    base = environ.get("XDG_DATA_HOME", "")
    root = Path(base) if Path(base).is_absolute() else _user_home(environ) / ".local/share"
    return root / "pm-node" / role


class RunLock:
    """Holds a data directory for one process; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock; raises `AlreadyRunningError` with the pid that has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0)
            os.close(descriptor)
            pid = int(holder) if holder.strip().isdigit() else None
            raise AlreadyRunningError(self._path.parent, pid) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go. The file stays: unlinking it would let two processes lock two files."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


# ------------------------------------------------------------- the broker of this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """What a node needs to join the market of a broker on this machine."""

    multiaddrs: tuple[str, ...]
    """Where it listens, each ending in /p2p/ and its peer id."""
    chain: str
    """The URL of its chain's JSON-RPC."""
    chain_id: int
    escrow: Address
    account: Address
    """The account that signs its quotes."""
    pid: int


def state_directory(environ: Mapping[str, str]) -> Path:
    """Return where running nodes of this user leave word of themselves.

    ``$PMNODE_STATE``, else ``$XDG_RUNTIME_DIR/pm-node``, else ``~/.local/state/pm-node``.
    """
    if chosen := environ.get("PMNODE_STATE"):
        return Path(chosen)
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute():
        return Path(runtime) / "pm-node"
    return _user_home(environ) / ".local/state/pm-node"


@contextlib.contextmanager
def announced_broker(state: Path, address: BrokerAddress) -> Iterator[Path]:
    """Leave the address file of a broker for as long as the block runs.

    The file appears whole, replaces that of an earlier broker, and is removed at the end
    unless a later broker has replaced it.
    """
    _private_directory(state)
    path = state / ADDRESS_FILE
    partial = state / f".{ADDRESS_FILE}.{secrets.token_hex(8)}"
    document = json.dumps({"version": ADDRESS_FILE_VERSION, **asdict(address)}, indent=2) + "\n"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with os.fdopen(os.dup(descriptor), "w") as file:
            file.write(document)
        partial.replace(path)
        try:
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    path.unlink()
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def find_broker(state: Path) -> BrokerAddress:
    """Return the broker that runs on this machine for this user.

    Raises `BrokerNotFoundError`: ``absent`` without a file, ``stale`` if its broker is no
    longer running, ``exposed`` if others could have written it, ``malformed`` otherwise.
    """
    path = state / ADDRESS_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise BrokerNotFoundError("absent", f"there is no {path}") from error
    except OSError as error:
        raise BrokerNotFoundError("malformed", f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise BrokerNotFoundError("exposed", f"others may write {path}")
        address = _parse_address(file.read(MAX_ADDRESS_FILE_BYTES + 1), path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return address
    raise BrokerNotFoundError("stale", f"{path} was left by process {address.pid}, which is gone")


def _parse_address(data: bytes, path: Path) -> BrokerAddress:
    def malformed(detail: str) -> BrokerNotFoundError:
        return BrokerNotFoundError("malformed", f"{path}: {detail}")

    if len(data) > MAX_ADDRESS_FILE_BYTES:
        raise malformed("too long")
    try:
        parsed = bounded_json.loads(data)
    except ValueError as error:
        raise malformed("not JSON") from error
    if not isinstance(parsed, dict):
        raise malformed("not a JSON object")
    expected = {"version", *(field.name for field in fields(BrokerAddress))}
    if parsed.keys() != expected:
        raise malformed(f"keys {sorted(parsed)}, expected {sorted(expected)}")
    if parsed.pop("version") != ADDRESS_FILE_VERSION:
        raise malformed("another version")
    multiaddrs = parsed.pop("multiaddrs")
    if not isinstance(multiaddrs, list) or not multiaddrs:
        raise malformed("no multiaddrs")
    texts = [*multiaddrs, parsed["chain"], parsed["escrow"], parsed["account"]]
    numbers = [parsed["chain_id"], parsed["pid"]]
    if not all(type(text) is str and text for text in texts):
        raise malformed("an address is not text")
    if not all(type(number) is int and number > 0 for number in numbers):
        raise malformed("chain_id and pid are positive integers")
    return BrokerAddress(multiaddrs=tuple(multiaddrs), **parsed)


# ------------------------------------------------------------------------------ folders


def _user_home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    return Path(home) if Path(home).is_absolute() else Path.home()


def _private_directory(folder: Path) -> None:
    try:
        folder.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise HomeError(f"{folder} is in the way: it is not a directory") from error
        raise HomeError(f"cannot make {folder}: {error.strerror}") from error
    if status.st_uid != os.geteuid():
        raise HomeError(f"{folder} belongs to user {status.st_uid}, not to you")
    if status.st_mode & 0o022:
        raise HomeError(f"others may write {folder}; run chmod go-w on it")
