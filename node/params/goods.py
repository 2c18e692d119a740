"""Goods are made of a blob: its root once more, the ciphertext, and the root of that.

All three come of one reading, a chunk at a time, so that memory does not grow with the blob.
Most of the time goes into hashing leaves, which hashlib does not do in a thread beside another,
for a leaf is so short that the interpreter's lock is held meanwhile. A second *process* does: it
makes the latter half of large goods. It is this module, run by itself. What it is to do, the
key too, it reads from a pipe, which nobody sees in a list of processes; it writes ciphertext
and leaf hashes into the same files, at their places, and answers with the nodes over its
leaves, a few bytes for each 4 MiB. If nothing good comes of it, for whatever reason, its half
is made again here: either the goods are whole, or the error is that of the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from node.params.disk import STREAM_BYTES, chunks_in_place, write_all, writing
from node.protocol import merkle, tree_hashing
from node.protocol.delivery import BLOCKS_PER_LEAF, Keystream
from node.protocol.errors import LocalProtocolError
from node.protocol.merkle import BATCH_LEAVES, LEAF_BYTES, TreeTop
from node.protocol.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO_PROCESSES_FROM: Final = (256 if tree_hashing.IN_C else 128) << 20
"""Bytes of a blob below which a second process is not worth its start."""
BATCH_BYTES: Final = BATCH_LEAVES * LEAF_BYTES
_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = ("-P", "-m", "node.params.goods")


class Made(NamedTuple):
    """The roots of what was read and of what was written."""

    offered: Digest
    goods: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of a blob from byte `begin`, the first of a batch of leaves, to byte `end`."""

    source: str
    goods: str
    hashes: str
    key: str
    begin: int
    end: int

    def make(self) -> tuple[TreeTop, TreeTop]:
        """Write ciphertext and leaf hashes; return the trees of plaintext and ciphertext.

        Raises `StoreError`: ``corrupt-blob`` for a source that is shorter.
        """
        offered, sold = TreeTop(), TreeTop()
        first = self.begin // LEAF_BYTES
        keystream = Keystream(bytes.fromhex(self.key), first * BLOCKS_PER_LEAF)
        room = memoryview(bytearray(STREAM_BYTES))
        at = self.begin
        with writing(Path(self.goods)) as goods, writing(Path(self.hashes)) as hashes:
            for chunk in chunks_in_place(Path(self.source), self.begin, self.end):
                ciphertext = room[: len(chunk)]
                keystream.apply_into(chunk, ciphertext)
                first = at // LEAF_BYTES
                of_plaintext, of_ciphertext = merkle.leaf_hashes_of_two(chunk, ciphertext, first)
                offered.update(of_plaintext)
                sold.update(of_ciphertext)
                write_all(goods, ciphertext, at)
                write_all(hashes, of_ciphertext, first * DIGEST_BYTES)
                at += len(chunk)
        return offered, sold

    def nodes(self) -> tuple[bytes, bytes]:
        """Do the same, and return the nodes over each batch of leaves."""
        offered, sold = self.make()
        return offered.batches(), sold.batches()


def make_goods(
    source: Path,
    goods: Path,
    hashes: Path,
    byte_length: int,
    key: bytes,
    *,
    processes: int | None = None,
) -> Made:
    """Encrypt the blob at `source` into `goods` and `hashes`, two files that are there.

    `processes` is 1 or 2; unless it is said, it is 2 for a large blob where there are two cores.
    Raises `StoreError`, and leaves it to the caller to compare the root that was offered.
    """
    whole = Stretch(
        source=str(source), goods=str(goods), hashes=str(hashes), key=key.hex(),
        begin=0, end=byte_length,
    )  # fmt: skip
    if processes is None:
        processes = 2 if byte_length >= TWO_PROCESSES_FROM and _cores() > 1 else 1
    if processes not in {1, 2}:
        raise LocalProtocolError(f"goods are made by 1 process or by 2, got {processes}")
    if processes == 1 or byte_length <= BATCH_BYTES:
        trees = whole.make()
        return Made(*(tree.root(byte_length) for tree in trees))
    batches = -(-byte_length // BATCH_BYTES)
    middle = (batches + 1) // 2 * BATCH_BYTES  # the start of a process costs the second one time
    former, latter = _part(whole, 0, middle), _part(whole, middle, byte_length)
    with second_process(latter) as second:
        ours = former.nodes()
        theirs = second.nodes() or latter.nodes()
    offered, sold = (a + b for a, b in zip(ours, theirs, strict=True))
    root_of = merkle.root_of_batches
    return Made(root_of(offered, byte_length), root_of(sold, byte_length))


def _part(whole: Stretch, begin: int, end: int) -> Stretch:
    return Stretch(**(asdict(whole) | {"begin": begin, "end": end}))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class Second:
    """A process that makes one stretch, or has failed to."""

    def __init__(self, stretch: Stretch, process: subprocess.Popen[bytes] | None) -> None:
        self._batches = -(-(stretch.end - stretch.begin) // BATCH_BYTES)
        self._process = process

    def nodes(self) -> tuple[bytes, bytes] | None:
        """Wait for it to end; return what `Stretch.nodes` does, or None if it came to nothing."""
        if self._process is None or self._process.stdout is None:
            return None
        answer = self._process.stdout.read()
        half = self._batches * DIGEST_BYTES
        if self._process.wait() != 0 or len(answer) != 2 * half:
            return None
        return answer[:half], answer[half:]


@contextmanager
def second_process(stretch: Stretch) -> Iterator[Second]:
    """Have another process make `stretch`; it is gone when the block is left, however it is."""
    path = os.pathsep.join(filter(None, (str(_CHECKOUT), os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.Popen(
            [sys.executable, *_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # so that closing a pipe that nobody reads has nothing left to write
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for whoever waits for the goods
        )
    except OSError:  # no room for another process
        yield Second(stretch, None)
        return
    with process:
        try:
            _tell(process.stdin, asdict(stretch))
            yield Second(stretch, process)
        finally:
            process.kill()


def _tell(pipe: IO[bytes] | None, message: dict[str, Any]) -> None:
    """Send what is to be done, and leave the pipe open: its end is that of this process."""
    if pipe is not None:
        with suppress(BrokenPipeError):
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()


def main() -> None:
    """Make the stretch that standard input tells of, unless it ends before; then answer."""
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        stretch = Stretch(**json.loads(pipe.readline()))
    Thread(target=_end_with_the_pipe, daemon=True).start()
    offered, sold = stretch.nodes()
    sys.stdout.buffer.write(offered + sold)
    sys.stdout.buffer.flush()


def _end_with_the_pipe() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
