"""Is one model a copy of another, under whatever disguise changes little of what it computes?

Both are brought to canonical scales, signs and bases of heads, and their units matched. Then two
cosines are taken, and their mean is the score:

`weights`      of all weights, tensor by tensor (`broker_node.align.bases`). A copy that is tuned
               stays near; but whatever the rows never touch (the borders of images) keeps its
               initial values for ever, and likens two models that only started from the same ones.
`activations`  of what enters each activation when both run on the same rows, every unit's mean over
               the rows taken off; the mean over the layers that write hidden units. It sees through
               noise, which is spread over directions that rows do not have, and forgets a start
               that training has left behind. The last layer does not count: whoever learned the
               same task answers alike.

Of adapters, which sit on the same base, there is one cosine: that of all that they add to it. It
sees no gauge, no rank and no scale of factors.

A `Lineage` is what receipts prove: a model that came from another by trades, or that shares an
ancestor with it, is alike for a good reason and is not called a replica. Models are said to be
alike, never to be stolen: which of two came first is for whoever holds their commitments.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch

from broker_node.align.bases import balanced, likeness_of_weights, with_bases
from broker_node.align.gauge import balanced_scales, without_dead_units
from broker_node.align.matching import match_units, sweeps_of
from broker_node.align.symmetric_matching import match_symmetries
from broker_node.evaluate.affine import outputs_of_layers
from broker_node.verify.stages import Verified
from node.params import blocks
from node.params.adapters import Adapter, cosine, inner
from node.params.architecture import Architecture, layout, permutation_spec, random_init
from node.params.families.base import ArchitectureError, GraphModel
from node.params.families.shapes import Shapes
from node.params.merges import is_adapter
from node.params.permutation import PermutationSpec, Role, Tensors, permute, rescale, restrict
from node.params.symmetry import SymmetrySpec, of_permutation_spec
from node.protocol.errors import MarketError
from node.protocol.kinship import kin
from node.protocol.types import Digest

THRESHOLD: Final = 0.69
"""Score from which two models are called replicas; chosen by `scripts/bench.py replicas`."""

ADAPTER_THRESHOLD: Final = 0.8
"""Score from which two adapters are. On digits those that learned by themselves from one base had
0.37 … 0.79, the most at a rank near the full one; a copy tuned for 150 steps more had 0.83."""

FLAT: Final = 1e-9
"""Of a layer's size: what differs less from row to row is rounding."""

Lineage: TypeAlias = Collection[tuple[Digest, Digest]]
"""Pairs of roots (what went in, what came out), one for each model that a merge was made of."""


class ReplicaError(MarketError):
    """Two models that cannot be compared.

    `reason` is stable: ``mismatch`` (architectures, or no layer in common), ``no-hidden-units``,
    ``wrong-rows``, ``constant`` (a model that answers every row alike).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike two models are once scales and the order of units are out of the way."""

    activations: float
    """Mean over hidden layers, -1 … 1; of adapters, the cosine of what they add."""
    layers: tuple[float, ...]
    """By hidden layer, in the order they run."""
    weights: float
    """Cosine of all weights that both have."""

    @property
    def score(self) -> float:
        """What is judged: the mean of both cosines."""
        return (self.activations + self.weights) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A pair of models, by their places in what was given."""

    first: int
    second: int
    likeness: Likeness
    alike: bool
    """Whether the score reaches the threshold."""
    related: bool
    """Whether the lineage explains it."""

    @property
    def replica(self) -> bool:
        """Whether they are alike and nothing that is proved explains it."""
        return self.alike and not self.related


def likeness(one: Verified, other: Verified, rows_RF: torch.Tensor) -> Likeness:
    """Return how alike two models, or the layers that both are sold with, are on the rows.

    Symmetric up to the choice between assignments of equal worth. Layers before those that are
    sold get the same arbitrary weights on both sides. Raises `ReplicaError`.
    """
    if kin(one.architecture.text) != kin(other.architecture.text):
        raise ReplicaError(
            "mismatch", f"{one.architecture.text[:80]} and {other.architecture.text[:80]}"
        )
    if is_adapter(one.architecture):
        return _of_adapters(one, other)
    architecture = one.architecture
    shared = sorted(set(one.tensors) & set(other.tensors))
    if not shared:
        raise ReplicaError("mismatch", "no layer is in both")
    if isinstance(architecture.model, Shapes):
        raise ReplicaError("no-hidden-units", "tensors that compute nothing")
    _require_rows(architecture, rows_RF)
    spec = restrict(_symmetries(architecture), shared)
    hidden = _hidden_layers(spec)
    if not hidden:
        raise ReplicaError("no-hidden-units", "models that learned the same are the same")
    whole = _all_symmetries(architecture, spec)
    ours, theirs = (
        balanced(spec, whole, _alive(spec, model), signs=True)[0] for model in (one, other)
    )
    theirs = _matched(architecture, spec, whole, ours, theirs)
    missing = {
        name: tensor.double()
        for name, tensor in random_init(architecture, 0).items()
        if name not in spec.axes
    }
    sides = [
        outputs_of_layers(architecture, {**missing, **side}, rows_RF.double())
        for side in (ours, theirs)
    ]
    layers = tuple(
        _cosine(*(_centred(side[name]) for side in sides)) for name in sides[0] if name in hidden
    )
    if not layers:
        raise ReplicaError("no-hidden-units", "no affine layer writes hidden units")
    weights = likeness_of_weights(whole, ours, theirs, skip=spec.statistics)
    return Likeness(activations=sum(layers) / len(layers), layers=layers, weights=weights)


@torch.inference_mode()
def outputs_of_hidden(model: Verified, rows_RF: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what enters each activation of one model in canonical scales, means over rows off.

    By hidden layer, N x U in float64; of what is sold in layers as `likeness` runs it. Raises
    `ReplicaError`.
    """
    architecture = model.architecture
    if isinstance(architecture.model, Shapes) or is_adapter(architecture):
        raise ReplicaError("no-hidden-units", "tensors that compute nothing by themselves")
    _require_rows(architecture, rows_RF)
    spec = restrict(_symmetries(architecture), model.tensors)
    hidden = _hidden_layers(spec)
    missing = {
        name: tensor.double()
        for name, tensor in random_init(architecture, 0).items()
        if name not in spec.axes
    }
    outputs = outputs_of_layers(
        architecture, {**missing, **_canonical(spec, model)}, rows_RF.double()
    )
    found = {name: _centred(outputs[name]) for name in outputs if name in hidden}
    if not found:
        raise ReplicaError("no-hidden-units", "no affine layer writes hidden units")
    return found


def threshold_of(architecture: Architecture) -> float:
    """Return the score from which two models of such an architecture are called replicas."""
    return ADAPTER_THRESHOLD if is_adapter(architecture) else THRESHOLD


def find_replicas(
    models: Sequence[Verified],
    rows_RF: torch.Tensor,
    *,
    lineage: Lineage = (),
    threshold: float | None = None,
) -> tuple[Finding, ...]:
    """Return a finding for every pair; raises `ReplicaError` for one that cannot be compared.

    `threshold`: None for `THRESHOLD`, or `ADAPTER_THRESHOLD`, whichever is for such models.
    """
    ancestors = {model.weights_root: _ancestors(lineage, model.weights_root) for model in models}
    found = []
    for first, second in itertools.combinations(range(len(models)), 2):
        one, other = models[first], models[second]
        alike = likeness(one, other, rows_RF)
        least = threshold_of(one.architecture)
        found.append(
            Finding(
                first=first,
                second=second,
                likeness=alike,
                alike=alike.score >= (least if threshold is None else threshold),
                related=bool(ancestors[one.weights_root] & ancestors[other.weights_root])
                and one.weights_root != other.weights_root,
            )
        )
    return tuple(found)


def _of_adapters(one: Verified, other: Verified) -> Likeness:
    ours, theirs = (Adapter(model.architecture, model.tensors) for model in (one, other))
    if not (inner(ours, ours) > 0 and inner(theirs, theirs) > 0):
        raise ReplicaError("constant", "one of the adapters adds nothing")
    found = cosine(ours, theirs)
    return Likeness(activations=found, layers=(), weights=found)


def _ancestors(lineage: Lineage, root: Digest) -> set[Digest]:
    """Return a root and all that the lineage says it was made of; loops end."""
    parents: dict[Digest, set[Digest]] = {}
    for parent, child in lineage:
        parents.setdefault(child, set()).add(parent)
    known, due = {root}, [root]
    while due:
        new = parents.get(due.pop(), set()) - known
        known |= new
        due += new
    return known


def _symmetries(architecture: Architecture) -> PermutationSpec:
    """Return which units may be matched. Raises `ReplicaError` where nobody can read them."""
    try:
        return permutation_spec(architecture)
    except ArchitectureError as error:
        raise ReplicaError("no-hidden-units", error.detail) from error


def _all_symmetries(architecture: Architecture, spec: PermutationSpec) -> SymmetrySpec:
    """Return what is known of the tensors of `spec`, beyond what recipes can say."""
    if not isinstance(architecture.model, GraphModel):
        shapes = {of.name: torch.empty(of.shape, device="meta") for of in layout(architecture)}
        return of_permutation_spec(spec, shapes)
    known = architecture.model.symmetries()
    return replace(
        known,
        axes={name: axes for name, axes in known.axes.items() if name in spec.axes},
        gauges=tuple(
            gauge
            for gauge in known.gauges
            if all(place.tensor in spec.axes for place in (*gauge.writes, *gauge.reads))
        ),
    )


def _matched(
    architecture: Architecture,
    spec: PermutationSpec,
    whole: SymmetrySpec,
    ours: Tensors,
    theirs: Tensors,
) -> dict[str, torch.Tensor]:
    """Return their tensors with units renumbered to ours: in blocks, too, of a whole model.

    What stands in a settled basis needs no numbering.
    """
    settled_ones = {gauge.group for gauge in with_bases(whole)}
    plain = set(whole.groups) - settled_ones <= set(spec.groups)
    if plain or len(spec.axes) < len(layout(architecture)):
        return permute(spec, theirs, match_units(spec, ours, theirs, seed=0).permutations)
    learnt = {name: axes for name, axes in whole.axes.items() if name not in spec.statistics}
    found = match_symmetries(
        replace(whole, axes=learnt), ours, theirs, seed=0, sweeps=sweeps_of(spec)
    )
    return blocks.permute(whole, theirs, found.permutations)


def _require_rows(architecture: Architecture, rows_RF: torch.Tensor) -> None:
    width = architecture.model.input_width()
    if rows_RF.ndim != 2 or rows_RF.shape[1] != width or len(rows_RF) < 2:
        raise ReplicaError("wrong-rows", f"{tuple(rows_RF.shape)}, not 2 or more of {width}")
    if not bool(torch.isfinite(rows_RF).all()):
        raise ReplicaError("wrong-rows", "not finite")


def _hidden_layers(spec: PermutationSpec) -> set[str]:
    """Return the matrices and kernels whose outputs are hidden units."""
    return {
        name
        for name, axes in spec.axes.items()
        if len(axes) > 1 and axes[0] is not None and axes[0].role is Role.WRITES
    }


def _alive(spec: PermutationSpec, model: Verified) -> dict[str, torch.Tensor]:
    return without_dead_units(
        spec, {name: model.tensors[name].cpu().double() for name in spec.axes}
    )


def _canonical(spec: PermutationSpec, model: Verified) -> dict[str, torch.Tensor]:
    alive = _alive(spec, model)
    return rescale(spec, alive, balanced_scales(spec, alive))


def _centred(outputs_NU: torch.Tensor) -> torch.Tensor:
    centred_NU = outputs_NU - outputs_NU.mean(0)
    if float(centred_NU.norm()) <= FLAT * float(outputs_NU.norm()):
        raise ReplicaError("constant", "a layer of one model answers every row alike")
    return centred_NU


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one * other).sum()) / float(one.norm() * other.norm())
