"""A cheap look at a merged model for what a merge should not bring; it finds, and never clears.

What it can see, on the broker's rows and against the models that were merged:

`not-finite`     a number that is none;
`spectral-norm`  a layer that stretches inputs more than any of the models did: arithmetic gone
                 wrong, or a term that was boosted to outlive the averaging;
`lone-unit`      a unit far stronger than the others of its layer, in canonical scales;
`dormant-unit`   a strong unit that none of the rows wakes: it answers to something else;
`class-drift`    a class that is answered much more, or less, often than by any of the models.

What it cannot see is most of what matters. A backdoor that was trained into weights of ordinary
size shows in none of these, as it shows in no clean accuracy; its trigger is not among the rows.
Nor does anything that hides in what no row exercises. The verdict is ``found`` or ``not found``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from broker_node.align.gauge import balanced_scales, without_dead_units
from broker_node.evaluate.affine import outputs_of_layers
from node.params.architecture import Architecture, apply, permutation_spec
from node.params.families.shapes import Shapes
from node.params.permutation import Axis, PermutationSpec, Role, Tensors, rescale
from node.protocol.errors import LocalProtocolError

CHECKS: Final = ("not-finite", "spectral-norm", "lone-unit", "dormant-unit", "class-drift")
MAX_STRETCH: Final = 1.5
"""Largest singular value of a layer, over the largest of the merged models'."""
MAX_STRENGTH: Final = 4.0
"""A unit's strength over the upper quartile of its layer's. Strength is the geometric mean of the
norms of the weights, biases aside, that enter a unit and that leave it."""
MAX_DORMANT: Final = 2.0
"""A unit's strength over its layer's median, if no row wakes it."""
MAX_DRIFT: Final = 0.1
"""Share of the rows, beside three standard errors of the largest that sampling has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """One thing that was found."""

    check: str
    """One of `CHECKS`."""
    where: str
    """A tensor, a unit of a group, or a class."""
    value: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What was looked for, and what was seen."""

    anomalies: tuple[Anomaly, ...]
    rows: int
    checks: tuple[str, ...] = CHECKS

    @property
    def verdict(self) -> str:
        """``found`` or ``not found``; there is no third."""
        return "found" if self.anomalies else "not found"


@torch.inference_mode()
def scan(
    architecture: Architecture,
    merged: Tensors,
    parents: Sequence[Tensors],
    inputs_RF: torch.Tensor,
) -> Scan:
    """Look at a merged model beside the whole models that it was made of, aligned or not.

    Raises `LocalProtocolError` if there are none, if tensors differ, if the rows do not fit, or
    for tensors that compute nothing.
    """
    if isinstance(architecture.model, Shapes):
        raise LocalProtocolError("tensors of the family `random` compute nothing to look at")
    shapes = {name: tensor.shape for name, tensor in merged.items()}
    if not parents or any({n: t.shape for n, t in p.items()} != shapes for p in parents):
        raise LocalProtocolError("a scan needs the whole models that were merged")
    width = architecture.model.input_width()
    if inputs_RF.ndim != 2 or inputs_RF.shape[1] != width or not len(inputs_RF):
        raise LocalProtocolError(f"{tuple(inputs_RF.shape)} rows, not of {width} features")
    found = [
        Anomaly(check="not-finite", where=name, value=math.inf, limit=0.0)
        for name, tensor in merged.items()
        if not bool(torch.isfinite(tensor).all())
    ]
    # nothing else can be computed of such a model
    if not found:
        found += _stretched(merged, parents)
        found += _units(architecture, merged, inputs_RF)
        found += _drifted(architecture, merged, parents, inputs_RF)
    return Scan(anomalies=tuple(found), rows=len(inputs_RF))


def _largest(tensor: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(tensor.double().flatten(1), ord=2))


def _stretched(merged: Tensors, parents: Sequence[Tensors]) -> list[Anomaly]:
    found = []
    for name, tensor in merged.items():
        if tensor.ndim < 2:
            continue
        limit = MAX_STRETCH * max(_largest(parent[name]) for parent in parents)
        value = _largest(tensor)
        if value > limit:
            found.append(Anomaly(check="spectral-norm", where=name, value=value, limit=limit))
    return found


def _units(architecture: Architecture, merged: Tensors, inputs_RF: torch.Tensor) -> list[Anomaly]:
    spec = permutation_spec(architecture)
    alive = without_dead_units(spec, {name: t.cpu().double() for name, t in merged.items()})
    canonical = rescale(spec, alive, balanced_scales(spec, alive))
    outputs = outputs_of_layers(architecture, canonical, inputs_RF.double())
    found = []
    for group in spec.groups:
        leaving_U = _norms(spec, canonical, group, Role.READS)
        for name in _written_by(spec, group):
            strengths_U = (canonical[name].flatten(1).norm(dim=1) * leaving_U).sqrt()
            quartile = float(strengths_U.quantile(0.75))
            asleep_U = torch.zeros(len(strengths_U), dtype=torch.bool)
            if name in outputs and group in spec.rescalings:
                asleep_U = (outputs[name] <= 0).all(0)
            for check, limit, suspect_U in (
                ("lone-unit", MAX_STRENGTH * quartile, torch.ones_like(asleep_U)),
                ("dormant-unit", MAX_DORMANT * float(strengths_U.median()), asleep_U),
            ):
                for unit in torch.nonzero(suspect_U & (strengths_U > limit)).flatten().tolist():
                    value = float(strengths_U[unit])
                    where = f"{group}[{unit}]"
                    found.append(Anomaly(check=check, where=where, value=value, limit=limit))
    return found


def _norms(spec: PermutationSpec, tensors: Tensors, group: str, role: Role) -> torch.Tensor:
    """Return the norm of all weights that each unit has in this role."""
    total_U = torch.zeros(spec.groups[group].size, dtype=torch.float64)
    for name, axes in spec.axes.items():
        for dimension, axis in enumerate(axes):
            if axis == Axis(group, role):
                total_U += tensors[name].movedim(dimension, 0).flatten(1).square().sum(1)
    return total_U.sqrt()


def _written_by(spec: PermutationSpec, group: str) -> list[str]:
    """Return the matrices and kernels whose outputs are the group's units."""
    return [
        name
        for name, axes in spec.axes.items()
        if len(axes) > 1 and axes[0] == Axis(group, Role.WRITES)
    ]


def _drifted(
    architecture: Architecture,
    merged: Tensors,
    parents: Sequence[Tensors],
    inputs_RF: torch.Tensor,
) -> list[Anomaly]:
    shares = []
    for side in (merged, *parents):
        outputs_RC = apply(architecture, side, inputs_RF).flatten(0, -2)
        if outputs_RC.shape[1] < 2:
            return []
        counts_C = torch.bincount(outputs_RC.argmax(1), minlength=outputs_RC.shape[1])
        shares.append(counts_C.double() / len(outputs_RC))
    allowed = MAX_DRIFT + 3 * math.sqrt(0.25 / len(inputs_RF))
    parents_PC = torch.stack(shares[1:])
    above_C = shares[0] - parents_PC.amax(0)
    below_C = parents_PC.amin(0) - shares[0]
    drift_C = torch.maximum(above_C, below_C)
    return [
        Anomaly(
            check="class-drift", where=f"class {label}", value=float(drift_C[label]), limit=allowed
        )
        for label in torch.nonzero(drift_C > allowed).flatten().tolist()
    ]
