"""The broker's rows, what commits it to them, and which of them a trial uses.

Before it sees any weights the broker publishes a Merkle root over its rows. A row's digest is

    SHA-256(0x04 ‖ u64be index ‖ float32 LE features ‖ i64 LE class)        classification
    SHA-256(0x05 ‖ u64be index ‖ float32 LE features ‖ float32 LE value)    regression

and the root is that of `node.protocol.merkle` over the concatenated digests, 32 to a leaf.
The rows of a trial are drawn by a seed that the broker cannot choose: row i has the key
SHA-256(seed ‖ u64be i), and rows are taken in the order of their keys.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.data.datasets import Rows
from node.protocol.errors import LocalProtocolError
from node.protocol.merkle import root_of
from node.protocol.types import DIGEST_BYTES, Digest

MAX_ROWS: Final = 10_000_000
_ROW_PREFIX: Final = struct.Struct(">BQ")
_PREFIXES: Final = {torch.int64: (4, "<i8"), torch.float32: (5, "<f4")}
"""First byte of a row's digest, and how a target is packed, by the type of the targets."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidationSet:
    """R rows with their targets, and the commitment to them.

    Raises `LocalProtocolError` unless the inputs are finite float32 of R x F, the targets
    are R classes (int64, at least 0) or R values (float32, finite), and there are two rows
    or more.
    """

    inputs_RF: torch.Tensor = field(repr=False)
    targets_R: torch.Tensor = field(repr=False)
    root: Digest = field(init=False)

    def __post_init__(self) -> None:
        inputs_RF, targets_R = self.inputs_RF, self.targets_R
        if inputs_RF.ndim != 2 or targets_R.shape != inputs_RF.shape[:1]:
            raise LocalProtocolError(
                f"{tuple(inputs_RF.shape)} inputs with {tuple(targets_R.shape)} targets"
            )
        if inputs_RF.dtype != torch.float32 or targets_R.dtype not in _PREFIXES:
            raise LocalProtocolError(f"{inputs_RF.dtype} inputs with {targets_R.dtype} targets")
        if not 2 <= len(targets_R) <= MAX_ROWS:
            raise LocalProtocolError(f"{len(targets_R)} rows, allowed 2 … {MAX_ROWS}")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (inputs_RF, targets_R)):
            raise LocalProtocolError("validation rows must be finite")
        if targets_R.dtype == torch.int64 and int(targets_R.min()) < 0:
            raise LocalProtocolError("the classes of validation rows must be 0 or more")
        object.__setattr__(self, "root", root_of(self._digests()))

    @classmethod
    def of(cls, rows: Rows) -> ValidationSet:
        """Return the set of a data set's rows."""
        return cls(torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.targets_R.copy()))

    def __len__(self) -> int:
        return len(self.targets_R)

    def _digests(self) -> bytes:
        inputs = self.inputs_RF.cpu().numpy().astype("<f4")
        prefix, packed = _PREFIXES[self.targets_R.dtype]
        targets = self.targets_R.cpu().numpy().astype(packed)
        return b"".join(
            hashlib.sha256(
                _ROW_PREFIX.pack(prefix, index) + inputs[index].tobytes() + targets[index].tobytes()
            ).digest()
            for index in range(len(targets))
        )


def require_classes(validation: ValidationSet) -> None:
    """Raise `LocalProtocolError` for rows of one target: whatever answers that looks best."""
    first = validation.targets_R[0]
    if bool((validation.targets_R == first).all()):
        raise LocalProtocolError(
            f"one-class: all {len(validation)} validation rows have the target {first.item():g}, "
            "and whatever answers that would look best: bring rows of others too"
        )


@dataclass(frozen=True, slots=True, eq=False)
class DrawnRows:
    """Two lists of row indices, each in the order it was drawn; they share none, or all."""

    choice: NDArray[np.int64]
    """Where α is chosen."""
    score: NDArray[np.int64]
    """Where the gain is scored."""


def draw_rows(seed: Digest, total: int, *, choice: int, score: int) -> DrawnRows:
    """Draw `choice` and `score` different rows of `total`; the same everywhere for a seed.

    Where both are `total`, all rows are in both: α is chosen where it is scored, as in the
    papers' own experiments.

    Raises `LocalProtocolError` if the seed is not 32 bytes or the rows do not suffice.
    """
    if len(seed) != DIGEST_BYTES:
        raise LocalProtocolError(f"a seed has {DIGEST_BYTES} bytes, got {len(seed)}")
    shared = choice == score == total
    if choice < 1 or score < 1 or (choice + score > total and not shared):
        raise LocalProtocolError(f"cannot draw {choice} and {score} rows out of {total}")
    hasher = hashlib.sha256(seed)
    keys = []
    for index in range(total):
        keyed = hasher.copy()
        keyed.update(struct.pack(">Q", index))
        keys.append((keyed.digest(), index))
    keys.sort()
    order = np.array([index for _, index in keys[: choice + score]], dtype=np.int64)
    return DrawnRows(choice=order[:choice], score=order if shared else order[choice:])
