"""What goes into a merge, and what comes out of it.

A merge takes pairs that were aligned with one buyer's model, and the half of the broker's rows on
which choices are made. The half on which gains are scored it never sees; that is for
`broker_node.merge.scoring`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch

from broker_node.align.stages import Aligned
from broker_node.verify.stages import Verified
from node.params.permutation import Tensors
from node.params.recipe import Recipe
from node.protocol.errors import MarketError
from node.protocol.types import Millionths

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class MergeError(MarketError):
    """A merge that cannot be made, or not be trusted.

    `reason` is stable: ``no-sellers``, ``several-sellers``, ``duplicate-seller``, ``no-base``,
    ``mismatch``, ``not-finite``, ``no-rows``, ``one-class-rows``, ``wrong-rows``,
    ``computes-nothing``, ``no-chain``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows with their targets: the choice half, or the scored half.

    Raises `MergeError` ``wrong-rows`` unless the inputs are float32 of R x F and the targets R
    classes (int64) or R values (float32); ``no-rows`` for fewer than 2, ``not-finite`` for NaN or
    infinities, and ``one-class-rows`` where all targets are the same: whatever answers that one
    thing would look best on them.
    """

    inputs_RF: torch.Tensor = field(repr=False)
    targets_R: torch.Tensor = field(repr=False)

    def __post_init__(self) -> None:
        inputs_RF, targets_R = self.inputs_RF, self.targets_R
        if inputs_RF.ndim != 2 or targets_R.shape != inputs_RF.shape[:1]:
            raise MergeError(
                "wrong-rows",
                f"{tuple(inputs_RF.shape)} inputs with {tuple(targets_R.shape)} targets",
            )
        if inputs_RF.dtype != torch.float32 or targets_R.dtype not in {torch.int64, torch.float32}:
            raise MergeError("wrong-rows", f"{inputs_RF.dtype} with {targets_R.dtype} targets")
        if len(targets_R) < 2:
            raise MergeError("no-rows", f"{len(targets_R)}, at least 2 are needed")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (inputs_RF, targets_R)):
            raise MergeError("not-finite", "rows must be finite")
        if not targets_R.is_floating_point() and int(targets_R.min()) < 0:
            raise MergeError("wrong-rows", f"a class of {int(targets_R.min())}")
        if bool((targets_R == targets_R[0]).all()):
            raise MergeError("one-class-rows", f"all {len(targets_R)} are {targets_R[0].item():g}")

    def __len__(self) -> int:
        return len(self.targets_R)

    @property
    def classes(self) -> bool:
        """Whether the targets are classes, and not values."""
        return not self.targets_R.is_floating_point()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """The outcome of one method: a model of the buyer's architecture, or an ensemble."""

    method: str
    tensors: Mapping[str, torch.Tensor] | None = field(repr=False)
    """The whole model in float32, the buyer's own tensors where nothing is sold; None for an
    ensemble, which is the buyer's model and the sold ones side by side."""
    recipe: Recipe | None = field(repr=False)
    """What makes `tensors` of the buyer's and one sold model, to the byte; None where no recipe
    does."""
    detail: Mapping[str, Json]
    """What was chosen, for people and reports; shares in millionths."""
    row_evaluations: int
    """Forward passes of one row that it cost; the gradient of one row is counted as two more."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a trade's merge says beside α: a share for each row of some sold tensors."""

    shares: Mapping[str, tuple[Millionths, ...]] = field(default_factory=dict)
    """By tensor; none where α for all is as good."""
    row_evaluations: int = 0


class Fit(Protocol):
    """How a trade's merge goes on from the α of the line; deterministic in its arguments."""

    def __call__(self, buyer: Verified, sold: Tensors, rows: Rows, alpha: Millionths) -> Fitted:
        """Return shares of the rows of T(sold), found on the choice half alone."""


class Merger(Protocol):
    """A merge method: deterministic in its arguments; results are float32."""

    def __call__(
        self,
        aligned: Sequence[Aligned],
        rows: Rows,
        *,
        seed: int,
        base: Verified | None = None,
    ) -> Merged:
        """Merge the sold models into the buyer's; raises `MergeError`.

        `base` is the model that all of them were tuned from, numbered as the buyer's. Methods that
        work on differences from it refuse to do without (``no-base``); the others ignore it.
        """
