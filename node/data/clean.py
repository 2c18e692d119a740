"""Whether rows that must be apart are apart: trained on, the broker's, and those reported on.

A row is known by BLAKE2b-128 of its features, float32 little-endian with no minus zero; its label
does not count, so that a row with another label is the same row. What is compared is bytes: a copy
with a pixel changed is another row.

MNIST, Fashion-MNIST and scikit-learn's digits have no row twice, neither among those to train on,
nor among those to test with, nor in both (measured). Of data in a folder of a user's own that is
not known: rows to train on that are also rows to test with are left out of the former as the set is
loaded, and counted (`Dataset.dropped`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.data.split import HeldOut, SplitProtocol, split_test

DIGEST_BYTES: Final = 16
AT_ONCE: Final = 4_096
"""Rows that are copied at a time."""


class OverlapError(DataError):
    """Rows that must be apart are not: ``rows-overlap``."""

    reason: Final = "rows-overlap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How many rows each part has, and that no two share one."""

    rows: Mapping[str, int]


def digests(rows: Rows) -> list[bytes]:
    """Return the digest of each row's features, in order."""
    return row_digests(rows.inputs_RF)


def row_digests(inputs_RF: NDArray[np.float32]) -> list[bytes]:
    """Return the digest of each row, in order."""
    found: list[bytes] = []
    for first in range(0, len(inputs_RF), AT_ONCE):
        block_RF = inputs_RF[first : first + AT_ONCE].astype("<f4") + np.float32(0)
        found += [hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in block_RF]
    return found


def require_apart(parts: Mapping[str, Rows]) -> Parts:
    """Return the sizes of the parts. Raises `OverlapError` with the counts of each shared pair."""
    known = {name: digests(rows) for name, rows in parts.items()}
    shared = []
    for one, other in itertools.combinations(known, 2):
        common = set(known[one]) & set(known[other])
        if common:
            counts = [sum(row in common for row in known[name]) for name in (one, other)]
            shared.append(
                f"{counts[0]:,} of {len(known[one]):,} rows {one} are among the "
                f"{len(known[other]):,} {other}"
            )
    if shared:
        raise OverlapError(
            f"{OverlapError.reason}: {'; '.join(shared)}: whoever trains on a row is flattered by "
            "it; take the shared rows out of one side"
        )
    return Parts(rows={name: len(rows) for name, rows in known.items()})


def without(train: Rows, test: Rows) -> tuple[Rows, int]:
    """Return the rows to train on that are no rows to test with, and how many were dropped.

    The very same rows where there are none. Raises `OverlapError` if nothing is left.
    """
    tested = set(digests(test))
    kept = np.array([row not in tested for row in digests(train)])
    dropped = len(kept) - int(kept.sum())
    if not dropped:
        return train, 0
    if dropped == len(kept):
        raise OverlapError(
            f"{OverlapError.reason}: all {dropped:,} rows to train on are rows to test with"
        )
    return train.take(np.flatnonzero(kept).astype(np.int64)), dropped


def require_clean(dataset: Dataset, protocol: SplitProtocol = "clean") -> Parts:
    """Return the sizes of what must be apart in an experiment. Raises `OverlapError`.

    Under the protocol `paper` the broker's rows and those reported on are the same by intent.
    """
    held_out = split_test(dataset, protocol=protocol)
    if protocol == "paper":
        return require_apart({"to train on": dataset.train, "to test with": dataset.test})
    return require_apart(
        {
            "to train on": dataset.train,
            "of the broker": held_out.validation,
            "reported on": held_out.report,
        }
    )


def clean_split(dataset: Dataset, *, protocol: SplitProtocol = "clean") -> HeldOut:
    """Return what `split_test` does, of rows that are apart as `require_clean` wants them.

    The way in for whatever trains and evaluates on the rows of one data set. Raises
    `OverlapError`.
    """
    require_clean(dataset, protocol)
    return split_test(dataset, protocol=protocol)
