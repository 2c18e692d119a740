"""Activation matching of any `torch.nn.Module` by derived symmetries, and BatchNorm's reset.

Values are caught behind the layers whose outputs are the units of one group
(`node.params.unit_values`). A residual stream is written by several, and what they say of it is
added up. Groups in blocks (heads, and the units inside of them) come out of no layer by themselves;
they are refused by name, and `symmetric_matching` matches them by weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from broker_node.align.assignments import assign_all
from broker_node.align.probing import MAX_ROWS
from broker_node.align.stages import AlignmentError
from node.params.families.own_facts import told
from node.params.permutation import Tensors
from node.params.symmetry import SymmetrySpec, Units
from node.params.unit_values import catching, standardised, thinned

Captured: TypeAlias = dict[str, list[torch.Tensor]]
"""By group: standardised values_RU, one for each layer that writes it, in their order."""


@torch.inference_mode()
def captured(
    module: nn.Module, spec: SymmetrySpec, tensors: Tensors, inputs: tuple[Any, ...]
) -> Captured:
    """Return what the units of each group answer to `inputs` with these tensors, in eval mode.

    Raises `AlignmentError` for a movable group that no layer's outputs are, for values that are not
    finite, and for whatever the module itself raises.
    """
    found: Captured = {}

    def group_of(tensor: str, axis: int) -> str | None:
        tensor = spec.ties.get(tensor, tensor)
        layout = spec.axes[tensor][axis] if tensor in spec.axes else None
        return layout.group if isinstance(layout, Units) else None

    def keep(group: str, values_NU: torch.Tensor) -> None:
        if not bool(torch.isfinite(values_NU).all()):
            raise AlignmentError(f"values of {group} are not finite on the rows")
        kept_RU = thinned(values_NU, MAX_ROWS).cpu().double()
        found.setdefault(group, []).append(standardised(kept_RU))

    was = module.training
    try:
        module.eval()
        with _named("it is matched on"), catching(module, group_of, keep):
            torch.func.functional_call(module, dict(tensors), inputs)
    finally:
        module.train(was)
    lacking = [name for name, group in spec.groups.items() if group.movable and name not in found]
    if lacking:
        raise AlignmentError(f"no layer's outputs are the units of {', '.join(lacking)[:200]}")
    return found


def match_modules(
    module: nn.Module,
    spec: SymmetrySpec,
    ours: Tensors,
    theirs: Tensors,
    inputs: tuple[Any, ...],
) -> dict[str, torch.Tensor]:
    """Return `perm_U` by group: unit u of ours meets unit ``perm_U[u]`` of theirs.

    Raises as `captured`, and `AlignmentError` for a module whose way through its layers is another
    with the other tensors.
    """
    sides = [captured(module, spec, tensors, inputs) for tensors in (ours, theirs)]
    ways = [
        {group: [values_RU.shape for values_RU in of_group] for group, of_group in side.items()}
        for side in sides
    ]
    if ways[0] != ways[1]:
        raise AlignmentError("the module takes another way through its layers with other tensors")
    similarities = {
        group: torch.stack([a.T @ b for a, b in zip(of_group, sides[1][group], strict=True)]).sum(0)
        for group, of_group in sides[0].items()
    }
    return assign_all(similarities)


def reset_normalisation(
    module: nn.Module, tensors: Tensors, batches: Iterable[tuple[Any, ...]]
) -> dict[str, torch.Tensor]:
    """Return the tensors with BatchNorm's running statistics taken anew from unlabelled rows.

    A merge of two models keeps neither's statistics: its units vary less than those of either,
    and what normalises them must be measured on the merge itself (Jordan et al. 2022, REPAIR).
    Nothing but those buffers changes; a merge that was reset has no recipe. The module is the
    caller's to lose: it is left with what was found (not every module can be copied). Raises
    `AlignmentError` without BatchNorm, without rows, and for whatever the module itself raises.
    """
    norms = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    if not norms:
        raise AlignmentError("there is no normalisation with running statistics to reset")
    module.load_state_dict(dict(tensors))
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # of all batches alike
        layer.train()
    counted = 0
    with torch.no_grad():
        for inputs in batches:
            with _named("it is reset on"):
                module(*inputs)
            counted += 1
    if counted == 0:
        raise AlignmentError("normalisation is reset on rows, and there are none")
    return _detached(module.state_dict())


@contextmanager
def _named(which: str) -> Iterator[None]:
    """Raise what an operator's own module does, which may be anything, as `AlignmentError`."""
    try:
        yield
    except (AlignmentError, torch.OutOfMemoryError):
        raise  # what `catching` hands on; of a device: a smaller batch may do
    except Exception as error:
        raise AlignmentError(f"the module fails on the rows {which}: {told(error)}") from error


def _detached(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
