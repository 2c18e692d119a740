"""What the units of a model answer on unlabelled rows, and how alike two models' units are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from broker_node.align.stages import AlignmentError
from node.params.architecture import Architecture
from node.params.families.shapes import Shapes
from node.params.permutation import PermutationSpec, Tensors
from node.params.unit_values import standardised

MAX_ROWS: Final = 4096
"""Rows that are looked at, the first ones: a bound on time and memory."""


def probe_rows(
    architecture: Architecture, probe_RF: torch.Tensor | None, method: str
) -> torch.Tensor:
    """Return the rows that a method looks at, float64 on the CPU.

    Raises `AlignmentError` without rows, for rows that are not of the architecture or not
    finite, and for an architecture that computes nothing.
    """
    if isinstance(architecture.model, Shapes):
        raise AlignmentError(f"`{method}` is for models, and these tensors compute nothing")
    if probe_RF is None:
        raise AlignmentError(f"`{method}` needs unlabelled rows, and was given none")
    width = architecture.model.input_width()
    if probe_RF.ndim != 2 or probe_RF.shape[1] != width or len(probe_RF) < 2:
        raise AlignmentError(
            f"`{method}` needs 2 or more rows of {width} features, got {tuple(probe_RF.shape)}"
        )
    rows_RF = probe_RF[:MAX_ROWS].detach().cpu().double()
    if not bool(torch.isfinite(rows_RF).all()):
        raise AlignmentError(f"`{method}` was given rows that are not finite")
    return rows_RF


def unit_values(
    architecture: Architecture, spec: PermutationSpec, tensors: Tensors, rows_RF: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return values_RU of every group of `spec`, in its order.

    Raises `AlignmentError` where what is sold does not begin at the input, so that there are
    units which no row reaches, and where values overflow.
    """
    found = architecture.model.activations(
        {name: tensor.cpu().double() for name, tensor in tensors.items()}, rows_RF
    )
    unreached = [group for group in spec.groups if group not in found]
    if unreached:
        raise AlignmentError(
            f"no row reaches {', '.join(unreached)[:200]}: layers must be sold from the input on"
        )
    for group in spec.groups:
        if not bool(torch.isfinite(found[group]).all()):
            raise AlignmentError(f"values of {group} are not finite on the rows")
    return {group: found[group] for group in spec.groups}


def all_standardised(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `standardised` of every group."""
    return {group: standardised(values_RU) for group, values_RU in values.items()}
