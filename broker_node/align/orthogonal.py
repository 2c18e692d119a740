"""Orthogonal alignment of language models: all that leaves their function as it is, not only order.

What a `Gpt` with root mean square norms computes does not change when its residual stream is
rotated (Ashkboos et al. 2024, SliceGPT, §3.1), once the gain of each norm is folded into what reads
it; nor by any invertible map between queries and keys, or values and outputs, of a head; nor by
the order of heads and of hidden units. Permutations alone miss most of that, and leave a barrier
that rotations take down (Theus et al. 2025, Generalized Linear Mode Connectivity for
Transformers).

The order of the units comes from what they answer on unlabelled rows, and then all parts are
brought nearer to the buyer's weights in turn: the stream and the insides of heads by orthogonal
Procrustes problems, heads by what they do to the stream in either model, whatever their basis,
hidden units by assignment. The buyer's own basis and gains are kept.

A rotation is no permutation, so there is no recipe: the merge is a product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from broker_node.align.assignments import assign
from broker_node.align.bases import nearest_rotation
from broker_node.align.preservation import require_same_architecture, require_same_function
from broker_node.align.probing import probe_rows
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.verify.stages import Verified
from node.params.families.gpt import MAX_PLACES, Gpt, patterns
from node.params.permutation import Tensors
from node.params.unit_values import standardised

NAME: Final = "orthogonal"
SWEEPS: Final = 30
TOLERANCE: Final = 1e-6
"""Relative rise of the objective in a sweep, below which there is no other."""
MIN_GAIN: Final = 1e-3
"""Of a norm's largest gain: what is folded out of the buyer's weights is divided by it."""
PARTS: Final = ("query", "key", "value", "out")


@dataclass(slots=True, eq=False)
class Gauge:
    """A change of basis of one model, exact for any values of these."""

    stream_DD: torch.Tensor
    """Orthogonal: a row of the stream is multiplied by it."""
    heads: list[torch.Tensor]
    """By block: head h of the result is head ``heads_H[h]``."""
    inner_QK: list[torch.Tensor]
    """By block, invertible: what the queries of each new head are multiplied by, HUU."""
    inner_VO: list[torch.Tensor]
    """By block, invertible: likewise its values."""
    hidden: list[torch.Tensor]
    """By block: hidden unit m of the result is unit ``hidden_M[m]``."""

    @classmethod
    def identity(cls, model: Gpt) -> Gauge:
        """Return the gauge that changes nothing."""
        units = model.width // model.heads
        eye_HUU = torch.eye(units, dtype=torch.float64).repeat(model.heads, 1, 1)
        blocks = range(model.depth)
        return cls(
            stream_DD=torch.eye(model.width, dtype=torch.float64),
            heads=[torch.arange(model.heads) for _ in blocks],
            inner_QK=[eye_HUU.clone() for _ in blocks],
            inner_VO=[eye_HUU.clone() for _ in blocks],
            hidden=[torch.arange(model.hidden) for _ in blocks],
        )

    def to(self, dtype: torch.dtype) -> Gauge:
        """Return the gauge with maps of this precision, the rotation made orthogonal in it."""
        return Gauge(
            stream_DD=nearest_rotation(self.stream_DD.double()).to(dtype),
            heads=self.heads,
            inner_QK=[each.to(dtype) for each in self.inner_QK],
            inner_VO=[each.to(dtype) for each in self.inner_VO],
            hidden=self.hidden,
        )


def _norms(model: Gpt) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every norm's gain, with the tensors that read what it scales."""
    for at in range(model.depth):
        name = f"blocks.{at}"
        parts = tuple(f"{name}.attention.{part}" for part in ("query", "key", "value"))
        yield f"{name}.norm1.weight", parts
        yield f"{name}.norm2.weight", (f"{name}.up.weight",)
    yield "norm.weight", ("head.weight",)


def folded(model: Gpt, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the same function in float64 with every gain 1."""
    found = {name: tensor.cpu().double() for name, tensor in tensors.items()}
    for gain, readers in _norms(model):
        for reader in readers:
            found[reader] = found[reader] * found[gain]
        found[gain] = torch.ones_like(found[gain])
    return found


def unfolded(model: Gpt, tensors: Tensors, gains: Tensors) -> dict[str, torch.Tensor]:
    """Return the same function as `tensors`, which are folded, with the gains of another model.

    Raises `AlignmentError` where one of those is next to nothing.
    """
    found = dict(tensors)
    for gain, readers in _norms(model):
        wanted_D = gains[gain].cpu().double()
        if float(wanted_D.abs().min()) < MIN_GAIN * float(wanted_D.abs().max()):
            raise AlignmentError(f"{gain} is next to 0 in a place: nothing can be folded out of it")
        for reader in readers:
            found[reader] = found[reader] / wanted_D
        found[gain] = wanted_D
    return found


def _by_head(tensors: Tensors, at: int, part: str) -> torch.Tensor:
    """Return a block's queries, keys, values or outputs as heads x head units x stream."""
    tensor = tensors[f"blocks.{at}.attention.{part}"]
    return tensor.permute(1, 2, 0) if part == "out" else tensor


def moved(model: Gpt, tensors: Tensors, gauge: Gauge) -> dict[str, torch.Tensor]:
    """Return folded tensors in another gauge: the same function. Differentiable."""
    turn_DD = gauge.stream_DD
    found = dict(tensors)
    for name in ("tokens.weight", "positions.weight", "head.weight"):
        found[name] = tensors[name] @ turn_DD
    for at in range(model.depth):
        name = f"blocks.{at}"
        heads_H, hidden_M = gauge.heads[at], gauge.hidden[at]
        for inner_HUU, left, right in (
            (gauge.inner_QK[at], "query", "key"),
            (gauge.inner_VO[at], "value", "out"),
        ):
            back_HUU = torch.linalg.inv(inner_HUU).mT
            for part, change_HUU in ((left, inner_HUU), (right, back_HUU)):
                tensor = _by_head(tensors, at, part)[heads_H]
                found[f"{name}.attention.{part}"] = change_HUU @ tensor @ turn_DD
        out = f"{name}.attention.out"
        found[out] = found[out].permute(2, 0, 1)
        found[f"{name}.up.weight"] = tensors[f"{name}.up.weight"][hidden_M] @ turn_DD
        found[f"{name}.down.weight"] = turn_DD.T @ tensors[f"{name}.down.weight"][:, hidden_M]
    return found


def _by_stream(model: Gpt, tensors: Tensors) -> torch.Tensor:
    """Return all tensors as lines that are read or written along the stream, lines_ND."""
    lines = [tensors[name] for name in ("tokens.weight", "positions.weight", "head.weight")]
    for at in range(model.depth):
        name = f"blocks.{at}"
        lines += [_by_head(tensors, at, part).flatten(0, 1) for part in PARTS]
        lines += [tensors[f"{name}.up.weight"], tensors[f"{name}.down.weight"].T]
    return torch.cat(lines)


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """What a model answers on rows."""

    stream_ND: torch.Tensor
    """As norms leave it, behind the embeddings and every block."""
    heeded: list[torch.Tensor]
    """By block, standardised attention patterns, values_NH."""
    hidden: list[torch.Tensor]
    """By block, standardised values_NM."""


def _values(model: Gpt, tensors: Tensors, rows_RF: torch.Tensor) -> _Values:
    """Return what folded tensors answer; every place of every row is a line."""
    names = [
        f"blocks.{at}.{part}"
        for at in range(model.depth)
        for part in ("norm1", "norm2", "activation")
    ]
    values = model.values_of(tensors, rows_RF, [*names, "norm"])
    if not all(bool(torch.isfinite(each).all()) for each in values.values()):
        raise AlignmentError("values are not finite on the rows")
    norms = [name for name in values if "norm" in name]
    heeded, hidden = [], []
    for at in range(model.depth):
        name = f"blocks.{at}"
        weights = (tensors[f"{name}.attention.{part}"] for part in ("query", "key"))
        found = patterns(values[f"{name}.norm1"], *weights)
        heeded.append(standardised(found.transpose(0, 1).flatten(1).T))
        hidden.append(standardised(values[f"{name}.activation"].flatten(0, 1)))
    stream_ND = torch.cat([values[name].flatten(0, 1) for name in norms])
    return _Values(stream_ND=stream_ND, heeded=heeded, hidden=hidden)


def by_values(model: Gpt, ours: _Values, theirs: _Values) -> Gauge:
    """Return the gauge in which units of the same answers meet; insides of heads are left."""
    gauge = Gauge.identity(model)
    gauge.stream_DD = nearest_rotation(theirs.stream_ND.T @ ours.stream_ND)
    gauge.heads = [assign(a.T @ b) for a, b in zip(ours.heeded, theirs.heeded, strict=True)]
    gauge.hidden = [assign(a.T @ b) for a, b in zip(ours.hidden, theirs.hidden, strict=True)]
    return gauge


def _circuits(tensors: Tensors, at: int) -> torch.Tensor:
    """Return what each head does to the stream, whatever its own basis, of norm 1: lines_HF."""
    query, key, value, out = (_by_head(tensors, at, part) for part in PARTS)
    heeds_HDD = query.mT @ key
    moves_HDD = value.mT @ out
    parts = [each.flatten(1) for each in (heeds_HDD, moves_HDD)]
    return torch.cat([each / each.norm(dim=1, keepdim=True).clamp(min=1e-30) for each in parts], 1)


def by_weights(model: Gpt, ours: Tensors, theirs: Tensors, start: Gauge) -> Gauge:
    """Return the end of an ascent in Σ⟨ours, moved theirs⟩ over the parts of the gauge in turn."""
    gauge = start
    ours_ND = _by_stream(model, ours)
    before = -torch.inf
    for _ in range(SWEEPS):
        _match_insides(model, ours, theirs, gauge)
        unturned = dataclasses.replace(gauge, stream_DD=torch.eye(model.width, dtype=torch.float64))
        lines_ND = _by_stream(model, moved(model, theirs, unturned))
        gauge.stream_DD = nearest_rotation(lines_ND.T @ ours_ND)
        after = float((ours_ND * (lines_ND @ gauge.stream_DD)).sum())
        if after <= before + TOLERANCE * abs(before):
            break
        before = after
    return gauge


def _match_insides(model: Gpt, ours: Tensors, theirs: Tensors, gauge: Gauge) -> None:
    """Match heads, their insides, and hidden units by weights, in the stream as it is turned."""
    turned = moved(
        model, theirs, dataclasses.replace(Gauge.identity(model), stream_DD=gauge.stream_DD)
    )
    for at in range(model.depth):
        name = f"blocks.{at}"
        gauge.heads[at] = assign(_circuits(ours, at) @ _circuits(turned, at).T)
        query, key, value, out = (
            _by_head(ours, at, part) @ _by_head(turned, at, part)[gauge.heads[at]].mT
            for part in PARTS
        )
        gauge.inner_QK[at] = nearest_rotation(query + key)
        gauge.inner_VO[at] = nearest_rotation(value + out)
        up, down = (f"{name}.{part}.weight" for part in ("up", "down"))
        gauge.hidden[at] = assign(ours[up] @ turned[up].T + ours[down].T @ turned[down])


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """Two language models that share all of `Gauge`, folded, and rows to look at."""

    model: Gpt
    ours: dict[str, torch.Tensor]
    theirs: dict[str, torch.Tensor]
    rows_RF: torch.Tensor


def sides_of(
    buyer: Verified, seller: Verified, probe_RF: torch.Tensor | None, method: str
) -> Sides:
    """Return a pair as a method looks at it; raises as `orthogonal`."""
    require_same_architecture(buyer, seller)
    model = buyer.architecture.model
    if not isinstance(model, Gpt) or model.norm != "rms" or model.tied:
        raise AlignmentError(f"`{method}` is for `gpt` with norm rms and a head of its own")
    if seller.layers:
        raise AlignmentError(f"`{method}` turns all layers at once, and some are not sold")
    rows_RF = probe_rows(buyer.architecture, probe_RF, method)
    ours, theirs = (folded(model, side.tensors) for side in (buyer, seller))
    return Sides(model, ours, theirs, rows_RF)


def gauge_of(sides: Sides) -> Gauge:
    """Return the gauge by values on the rows and then by weights."""
    model = sides.model
    rows_RF = sides.rows_RF[: max(2, MAX_PLACES // model.context)]
    values = [_values(model, side, rows_RF) for side in (sides.ours, sides.theirs)]
    return by_weights(model, sides.ours, sides.theirs, by_values(model, *values))


def product(
    buyer: Verified, seller: Verified, sides: Sides, gauge: Gauge, *, method: str, seed: int
) -> Aligned:
    """Return the pair with the sold model in `gauge`; raises `AlignmentError` as `orthogonal`."""
    found = unfolded(sides.model, moved(sides.model, sides.theirs, gauge), buyer.tensors)
    transformed = {
        name: found[name].to(tensor).contiguous() for name, tensor in seller.tensors.items()
    }
    require_same_function(buyer.architecture, seller.tensors, transformed)
    return Aligned(
        buyer=buyer,
        seller=seller,
        method=method,
        recipe=None,
        transformed=transformed,
        seed=seed,
    )


@torch.inference_mode()
def orthogonal(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair with the seller's stream rotated, and its heads and units matched.

    Raises `ArchitectureMismatchError`, and `AlignmentError` for an architecture that has no such
    freedom, for layers of a model, without usable rows, or if the result is another function.
    """
    sides = sides_of(buyer, seller, probe_RF, NAME)
    return product(buyer, seller, sides, gauge_of(sides), method=NAME, seed=seed)
