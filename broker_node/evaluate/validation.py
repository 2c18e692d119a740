"""The broker's labelled rows, what commits it to them, and which of them a trial uses.

Before it sees any weights the broker publishes a Merkle root over its rows. A row's digest is

    SHA-256(0x04 ‖ u64be index ‖ float32 LE features ‖ i64 LE label)

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


@dataclass(frozen=True, slots=True, eq=False)
class ValidationSet:
    """R labelled rows and the commitment to them.

    Raises `LocalProtocolError` unless the inputs are finite float32 of R x F, the labels
    are R int64 of at least 0, and there are two rows or more.
    """

    inputs_RF: torch.Tensor = field(repr=False)
    labels_R: torch.Tensor = field(repr=False)
    root: Digest = field(init=False)

    def __post_init__(self) -> None:
        inputs_RF, labels_R = self.inputs_RF, self.labels_R
        if inputs_RF.ndim != 2 or labels_R.shape != inputs_RF.shape[:1]:
            raise LocalProtocolError(
                f"{tuple(inputs_RF.shape)} inputs with {tuple(labels_R.shape)} labels"
            )
        if inputs_RF.dtype != torch.float32 or labels_R.dtype != torch.int64:
            raise LocalProtocolError(f"{inputs_RF.dtype} inputs with {labels_R.dtype} labels")
        if not 2 <= len(labels_R) <= MAX_ROWS:
            raise LocalProtocolError(f"{len(labels_R)} rows, allowed 2 … {MAX_ROWS}")
        if not bool(torch.isfinite(inputs_RF).all()) or int(labels_R.min()) < 0:
            raise LocalProtocolError("validation rows must be finite, and their labels 0 or more")
        object.__setattr__(self, "root", root_of(self._digests()))

    @classmethod
    def of(cls, rows: Rows) -> ValidationSet:
        """Return the set of a data set's rows."""
        return cls(torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy()))

    def __len__(self) -> int:
        return len(self.labels_R)

    def _digests(self) -> bytes:
        inputs = self.inputs_RF.cpu().numpy().astype("<f4")
        labels = self.labels_R.cpu().numpy().astype("<i8")
        return b"".join(
            row_digest(index, inputs[index].tobytes(), labels[index].tobytes())
            for index in range(len(labels))
        )


def row_digest(index: int, features: bytes, label: bytes) -> bytes:
    """Return the digest of one row: float32 LE features, i64 LE label."""
    return hashlib.sha256(_ROW_PREFIX.pack(4, index) + features + label).digest()


@dataclass(frozen=True, slots=True, eq=False)
class DrawnRows:
    """Two lists of row indices that share none, each in the order it was drawn."""

    choice: NDArray[np.int64]
    """Where α is chosen."""
    score: NDArray[np.int64]
    """Where the gain is scored."""


def draw_rows(seed: Digest, total: int, *, choice: int, score: int) -> DrawnRows:
    """Draw `choice` and `score` different rows of `total`; the same everywhere for a seed.

    Raises `LocalProtocolError` if the seed is not 32 bytes or the rows do not suffice.
    """
    if len(seed) != DIGEST_BYTES:
        raise LocalProtocolError(f"a seed has {DIGEST_BYTES} bytes, got {len(seed)}")
    if choice < 1 or score < 1 or choice + score > total:
        raise LocalProtocolError(f"cannot draw {choice} and {score} rows out of {total}")
    hasher = hashlib.sha256(seed)
    keys = []
    for index in range(total):
        keyed = hasher.copy()
        keyed.update(struct.pack(">Q", index))
        keys.append((keyed.digest(), index))
    keys.sort()
    order = np.array([index for _, index in keys[: choice + score]], dtype=np.int64)
    return DrawnRows(choice=order[:choice], score=order[choice:])
