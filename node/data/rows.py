"""Rows of features, each with what a model should answer: a class, or a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError

Kind = Literal["classification", "regression"]
CLASSES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """R rows with their targets; the arrays are read-only.

    Raises `DataError` unless the inputs are float32 of R x F, and the targets are R classes
    (int64) or R values (float32).
    """

    inputs_RF: NDArray[np.float32] = field(repr=False)
    targets_R: NDArray[np.int64] | NDArray[np.float32] = field(repr=False)

    def __post_init__(self) -> None:
        if self.inputs_RF.ndim != 2 or self.targets_R.shape != (len(self.inputs_RF),):
            raise DataError(f"{self.inputs_RF.shape} inputs with {self.targets_R.shape} targets")
        if self.inputs_RF.dtype != np.float32 or self.targets_R.dtype not in {
            np.dtype(np.int64),
            np.dtype(np.float32),
        }:
            raise DataError(f"{self.inputs_RF.dtype} inputs with {self.targets_R.dtype} targets")
        self.inputs_RF.setflags(write=False)
        self.targets_R.setflags(write=False)

    def __len__(self) -> int:
        return len(self.targets_R)

    @property
    def kind(self) -> Kind:
        """What the targets are: classes or values."""
        return "classification" if self.targets_R.dtype == np.int64 else "regression"

    @property
    def labels_R(self) -> NDArray[np.int64]:
        """The classes of the rows. Raises `DataError` where the targets are values."""
        if self.kind != "classification":
            raise DataError("these rows have values to predict, no classes")
        return self.targets_R.astype(np.int64, copy=False)

    @property
    def values_R(self) -> NDArray[np.float32]:
        """The values of the rows. Raises `DataError` where the targets are classes."""
        if self.kind != "regression":
            raise DataError("these rows have classes, no values to predict")
        return self.targets_R.astype(np.float32, copy=False)

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """Return the rows at `indices`, in that order."""
        return Rows(inputs_RF=self.inputs_RF[indices], targets_R=self.targets_R[indices])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Dataset:
    """A task's rows to train on and rows to test with.

    Raises `DataError` if the two parts do not match, or a label is no class.
    """

    name: str
    train: Rows
    test: Rows
    classes: int = CLASSES
    """C, the number of classes; 0 where the targets are values."""
    holdings: tuple[int, ...] = ()
    """How many of the rows to train on are whose, in order, where they were drawn for
    particular agents; empty where an endowment deals them out."""
    dropped: int = 0
    """Rows to train on that were left out because they are rows to test with (`clean`)."""

    def __post_init__(self) -> None:
        features = {part.inputs_RF.shape[1] for part in (self.train, self.test)}
        if len(features) != 1 or self.train.kind != self.test.kind:
            raise DataError(f"{self.name}: rows to train on and to test with do not match")
        if (self.kind == "classification") != (self.classes > 0):
            raise DataError(f"{self.name}: {self.classes} classes of a {self.kind}")
        if self.holdings and sum(self.holdings) != len(self.train):
            raise DataError(f"{self.name}: holdings {self.holdings} of {len(self.train)} rows")
        for part in (self.train, self.test):
            if len(part) == 0:
                raise DataError(f"{self.name}: there are no rows")
            if part.kind == "classification":
                low, high = int(part.labels_R.min()), int(part.labels_R.max())
                if low < 0 or high >= self.classes:
                    raise DataError(
                        f"{self.name}: labels {low} … {high}, expected 0 … {self.classes - 1}"
                    )

    @property
    def kind(self) -> Kind:
        """What is to be predicted: classes or values."""
        return self.train.kind

    @property
    def features(self) -> int:
        """F, the number of features in a row."""
        return int(self.train.inputs_RF.shape[1])

    @property
    def outputs(self) -> int:
        """How many numbers a model of this data answers: one a class, or the one value."""
        return max(self.classes, 1)
