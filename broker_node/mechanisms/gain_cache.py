"""The gain of every subset of parties, asked for once and kept on disk.

A gain function may train a model, so no answer is thrown away: each is a line of JSON,
flushed to the disk before it is used, under the digest of the market it belongs to (whatever
the gain depends on: data, recipe, seed, validation set) and the subset's bitmask.

A crash can leave half of a last line: it is cut off, and that subset is asked for again.
Anything else that is not as it was written is refused under its line's number: the checksum
finds damage, and the bounds find what could never have been written, but a line forged with
care is believed, so the file is this node's own, readable and writable by its owner alone.
One process has it open at a time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from broker_node.mechanisms.base import RefusedInputError
from node.protocol import bounded_json
from node.protocol.types import DIGEST_BYTES, Digest

Gain: TypeAlias = "Callable[[int], float]"
"""The performance, at least 0, of the model trained on the data of a subset (bit i = party i)."""

MAX_PARTIES: Final = 256
_MAX_LINE: Final = 512
_KEYS: Final = {"market", "subset", "performance", "check"}


class GainCache:
    """Performances of one market's subsets, in a file that may hold other markets' as well."""

    def __init__(self, path: Path, market: Digest, parties: int) -> None:
        """Open or make the file and read what it has.

        Raises `RefusedInputError` (field `cache`) for a file that cannot be opened or is in
        use, and for a line that is corrupt, naming the line.
        """
        if len(market) != DIGEST_BYTES:
            raise RefusedInputError("market", f"must have {DIGEST_BYTES} bytes, got {len(market)}")
        if not 1 <= parties <= MAX_PARTIES:
            raise RefusedInputError("parties", f"must be 1 … {MAX_PARTIES}, got {parties}")
        self._path, self._market, self._parties = path, market.hex(), parties
        self._known: dict[int, float] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RefusedInputError("cache", f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except OSError as error:
            os.close(self._file)
            raise RefusedInputError("cache", f"cannot use {path}: {error.strerror}") from error
        except RefusedInputError:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, subset: int) -> float | None:
        """Return the performance of a subset, or None if it was never found."""
        return self._known.get(subset)

    def put(self, subset: int, performance: float) -> None:
        """Write a performance; on disk when this returns."""
        line = (
            json.dumps(
                {
                    "market": self._market,
                    "subset": hex(subset),
                    "performance": performance,
                    "check": _check(self._market, hex(subset), performance),
                }
            ).encode()
            + b"\n"
        )
        try:
            end = os.lseek(self._file, 0, os.SEEK_END)
            if os.write(self._file, line) != len(line):
                os.ftruncate(self._file, end)  # half a line must not meet the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            raise RefusedInputError(
                "cache", f"cannot write {self._path}: {error.strerror}"
            ) from error
        self._known[subset] = performance

    def _read(self) -> None:
        whole = 0
        with os.fdopen(os.dup(self._file), "rb") as lines:
            for count in range(1, 1 << 62):
                line = lines.readline(_MAX_LINE + 1)
                if not line:
                    break
                if not line.endswith(b"\n"):
                    if len(line) > _MAX_LINE:
                        raise self._corrupt(count, f"has over {_MAX_LINE} bytes")
                    break  # what a crash left of the last line
                self._take(line, count)
                whole += len(line)
        os.ftruncate(self._file, whole)
        os.lseek(self._file, 0, os.SEEK_END)

    def _take(self, line: bytes, count: int) -> None:
        try:
            entry = bounded_json.loads(line)
        except ValueError as error:
            raise self._corrupt(count, "is no JSON") from error
        if not isinstance(entry, dict) or set(entry) != _KEYS:
            raise self._corrupt(count, f"must have the keys {', '.join(sorted(_KEYS))}")
        market, subset, performance = entry["market"], entry["subset"], entry["performance"]
        if not isinstance(market, str) or not isinstance(subset, str):
            raise self._corrupt(count, "must name its market and subset in hexadecimal")
        if type(performance) is not float or not (math.isfinite(performance) and performance >= 0):
            raise self._corrupt(count, f"has a performance of {performance!r:.40}")
        if entry["check"] != _check(market, subset, performance):
            raise self._corrupt(count, "does not match its checksum")
        if market != self._market:
            return
        try:
            mask = int(subset, 16)
        except ValueError as error:
            raise self._corrupt(count, f"has a subset {subset!r:.40}") from error
        if not 0 < mask < 1 << self._parties or hex(mask) != subset:
            raise self._corrupt(count, f"has a subset {subset!r:.40}")
        if self._known.setdefault(mask, performance) != performance:
            raise self._corrupt(count, f"gives subset {subset} another performance than before")

    def _corrupt(self, count: int, reason: str) -> RefusedInputError:
        return RefusedInputError("cache", f"line {count} of {self._path} {reason}")


def _check(market: str, subset: str, performance: float) -> str:
    written = f"{market} {subset} {performance!r}".encode()
    return hashlib.sha256(written).hexdigest()[:16]


class OnceGain:
    """A gain function that is called once a subset, and not for what the cache has."""

    def __init__(self, gain: Gain, cache: GainCache | None = None) -> None:
        self._gain = gain
        self._cache = cache
        self._known: dict[int, float] = {}
        self.calls = 0
        """How often the function itself was called."""

    def __call__(self, subset: int) -> float:
        """Return the performance of a subset.

        Raises `RefusedInputError` where the function answers anything but a finite number of
        at least 0; what it raises itself passes through, and what was found before is kept.
        """
        if subset in self._known:
            return self._known[subset]
        kept = self._cache.get(subset) if self._cache is not None else None
        if kept is None:
            self.calls += 1
            try:
                kept = float(self._gain(subset))
            except (TypeError, ValueError) as error:
                raise RefusedInputError(f"gain of subset {subset:#x}", "is no number") from error
            if not (math.isfinite(kept) and kept >= 0):
                raise RefusedInputError(f"gain of subset {subset:#x}", f"is {kept}")
            if self._cache is not None:
                self._cache.put(subset, kept)
        self._known[subset] = kept
        return kept

    def __len__(self) -> int:
        return len(self._known)
