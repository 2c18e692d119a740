"""Adapters merged by what they add to their base: sums of products, never of factors.

Factors have no order and no gauge, since (M·A, B·M⁻¹) is the same adapter for any invertible M.
Only ΔW = (α/r)·B·A is the adapter's own, and of the same base all ΔW stand in one numbering. A
weighted sum of them has factors too, whatever the ranks:

    w₁·ΔW₁ + w₂·ΔW₂ = [w₁s₁·B₁ | w₂s₂·B₂] · [A₁ ; A₂],   s = α/r

exact but for one float32 product an element of B, so that every machine arrives at the same bytes.
Ranks add. `truncated` brings them back by the singular value decomposition, which is the best that
can be done at a rank (Eckart and Young 1936), and says what it cost; its bytes are a machine's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import torch

from node.params.architecture import Architecture, layout, random_init
from node.params.encoding import layout_of, weights_root
from node.params.errors import ProfileError
from node.params.families.lora import Adapted, Lora, factor_names
from node.params.permutation import Tensors
from node.params.profile import check_values, require_layout
from node.protocol.errors import LocalProtocolError
from node.protocol.kinship import ADAPTERS
from node.protocol.types import ONE, Digest, Millionths

MAX_SOLD_RANK: Final = 256
"""Of a module in what is sold: ranks add, and one purchase must not fill the buyer's `MAX_RANK`."""
PAIRWISE: Final = "adapters-pairwise"
"""Why a call, or a round of a clearing house, takes no adapters: ranks of many may not add up."""
_NOTHING: Final = 1e-12
"""Singular values below this part of the largest are rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The model below: weights that adapters are bound to, with their root."""

    architecture: Architecture
    tensors: Tensors = field(repr=False)
    root: Digest

    @classmethod
    def of(cls, architecture: Architecture, tensors: Tensors) -> Self:
        """Take the root of `tensors`; raises `ProfileError` unless they are of `architecture`."""
        require_layout(layout_of(tensors), layout(architecture))
        return cls(architecture, tensors, weights_root(tensors))


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Factors with their architecture.

    Raises `ProfileError` unless they are of its layout, and finite.
    """

    architecture: Architecture
    tensors: Tensors = field(repr=False)

    def __post_init__(self) -> None:
        require_layout(layout_of(self.tensors), self.lora.layout())
        for name, tensor in self.tensors.items():
            check_values(name, tensor)

    @property
    def lora(self) -> Lora:
        """The family's view; `LocalProtocolError` for an architecture that is no adapter's."""
        return lora_of(self.architecture)

    def factors(self, module: Adapted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A_RI and B_OR of a module."""
        a, b = module.factors
        return self.tensors[a], self.tensors[b]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a truncation has cost, in Frobenius norms of ΔW."""

    norm: float
    """Of the sum before."""
    error: float
    """Of the difference, as the float32 factors have it."""
    least: float
    """Of the difference to the best of that rank: the tail of the singular values."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truncated:
    """An adapter at the ranks that were asked for, and what each module lost."""

    adapter: Adapter
    losses: Mapping[str, Loss]

    @property
    def relative_error(self) -> float:
        """Of all modules together, as part of the norm of what was to be written."""
        error = math.hypot(*(loss.error for loss in self.losses.values()))
        norm = math.hypot(*(loss.norm for loss in self.losses.values()))
        return error / norm if norm else 0.0


def lora_of(architecture: Architecture) -> Lora:
    """Return the adapters' configuration; `LocalProtocolError` if it is none."""
    if not isinstance(architecture.model, Lora):
        raise LocalProtocolError(f"`{architecture.name}` is no architecture of adapters")
    return architecture.model


def require_base(lora: Lora, architecture: Architecture, root: Digest) -> None:
    """Raise `ProfileError` ``wrong-base`` unless the adapters are of just these weights."""
    if lora.base.text != architecture.text:
        raise ProfileError(
            "wrong-base", f"of {lora.base.text[:120]}, not {architecture.text[:120]}"
        )
    if lora.root != root.hex():
        raise ProfileError("wrong-base", f"of the weights {lora.root}, not {root.hex()}")


def require_sellable(lora: Lora) -> None:
    """Raise `ProfileError` ``bad-rank`` for adapters of more ranks than are sold."""
    widest = max(lora.modules, key=lambda module: module.rank)
    if widest.rank > MAX_SOLD_RANK:
        raise ProfileError(
            "bad-rank", f"{widest.path[:120]}: {widest.rank}, sold are at most {MAX_SOLD_RANK}"
        )


def delta(adapter: Adapter, module: Adapted) -> torch.Tensor:
    """Return ΔW_OI = (α/r)·B·A in float64."""
    a_RI, b_OR = adapter.factors(module)
    product_OI: torch.Tensor = b_OR.double() @ a_RI.double()
    return product_OI * module.scale


def applied(adapter: Adapter, base: Base) -> dict[str, torch.Tensor]:
    """Return the whole model W + ΔW of the base's architecture, in float32.

    Raises `ProfileError`: ``wrong-base`` for the adapters of other weights, ``not-finite``.
    """
    require_base(adapter.lora, base.architecture, base.root)
    whole = dict(base.tensors)
    for module in adapter.lora.modules:
        name = f"{module.path}.weight"
        whole[name] = (whole[name].double() + delta(adapter, module)).float()
        check_values(name, whole[name])
    return whole


def weighted_sum(terms: Sequence[tuple[float, Adapter]]) -> Adapter:
    """Return the adapter whose ΔW is Σ wᵢ·ΔWᵢ: factors side by side, ranks added.

    Modules are those of all terms; a term of weight 0 is left out. Raises `ProfileError`
    (``wrong-base`` unless all are of one base, ``not-finite``), `ArchitectureError` past the
    largest rank or length of text, and `LocalProtocolError` if no term is left.
    """
    _require_one_base([adapter.lora for _, adapter in terms])
    terms = [(weight, adapter) for weight, adapter in terms if weight]
    if not terms:
        raise LocalProtocolError("no adapter has a weight")
    columns: dict[str, list[torch.Tensor]] = {}
    rows: dict[str, list[torch.Tensor]] = {}
    for weight, adapter in terms:
        for module in adapter.lora.modules:
            a_RI, b_OR = adapter.factors(module)
            # one rounding of the weight, then one an element: the same bytes everywhere
            rounded = torch.tensor(weight * module.scale, dtype=torch.float32).to(b_OR.device)
            columns.setdefault(module.path, []).append(b_OR * rounded)
            rows.setdefault(module.path, []).append(a_RI)
    tensors: dict[str, torch.Tensor] = {}
    for path, stacked in columns.items():
        a, b = factor_names(path)
        tensors |= {a: torch.cat(rows[path], 0), b: torch.cat(stacked, 1)}
    return Adapter(summed_architecture([adapter.lora for _, adapter in terms]), tensors)


def summed_architecture(terms: Sequence[Lora]) -> Architecture:
    """Return of what a weighted sum of adapters is: ranks added, and α = r, scales being in B.

    Raises `ArchitectureError` past the largest rank or length of text.
    """
    ranks: dict[str, int] = {}
    for lora in terms:
        for module in lora.modules:
            ranks[module.path] = ranks.get(module.path, 0) + module.rank
    return _with_modules(terms[0], [Adapted(path, rank, rank) for path, rank in ranks.items()])


def merged(own: Adapter, sold: Adapter, alpha: Millionths) -> Adapter:
    """Return the buyer's adapter after a purchase: (1 − α)·ΔW of its own and α·ΔW of the sold.

    Exactly its own at 0 and the sold at `ONE`. A whole model with the result is the interpolation
    of the two whole models. Raises as `weighted_sum`.
    """
    if type(alpha) is not int or not 0 <= alpha <= ONE:
        raise LocalProtocolError(f"alpha must be 0 … {ONE} millionths, got {alpha!r}")
    _require_one_base([own.lora, sold.lora])
    if alpha in (0, ONE):
        return sold if alpha else own
    return weighted_sum([((ONE - alpha) / ONE, own), (alpha / ONE, sold)])


def truncated(adapter: Adapter, ranks: Lora) -> Truncated:
    """Return the nearest adapter with the rank and α of each module that `ranks` has.

    Other modules stay as they are. A is orthogonal to itself by rows, and B by columns, with the
    singular values halved between them; where there are none, A is drawn as for a new adapter
    and B is zero, so that the module can still be trained at its whole rank.
    """
    wanted = {module.path: module for module in ranks.modules}
    modules, tensors, losses = [], dict(adapter.tensors), {}
    for module in adapter.lora.modules:
        target = wanted.get(module.path, module)
        modules.append(target)
        if module.path in wanted:
            a, b = module.factors
            tensors[a], tensors[b], losses[module.path] = _truncate(adapter, module, target)
    result = Adapter(_with_modules(adapter.lora, modules), tensors)
    return Truncated(adapter=result, losses=losses)


def fitted(adapter: Adapter, ranks: Lora) -> tuple[Adapter, float]:
    """Return the nearest adapter of the modules and ranks of `ranks`, and how much of ΔW is lost.

    The loss is a part of the norm of all that was added. Modules that `ranks` lacks are lost whole;
    those that the adapter lacks are as in a new one. Raises `ProfileError` ``wrong-base``.
    """
    _require_one_base([adapter.lora, ranks])
    wanted = {module.path for module in ranks.modules}
    found = truncated(adapter, ranks)
    architecture = _with_modules(ranks, ranks.modules)
    tensors = random_init(architecture, 0)
    lost, norms = [], []
    for module in adapter.lora.modules:
        a_RI, b_OR = adapter.factors(module)
        norms.append(_norm(a_RI.double(), b_OR.double() * module.scale))
        lost.append(found.losses[module.path].error if module.path in wanted else norms[-1])
        if module.path in wanted:
            tensors |= {name: found.adapter.tensors[name] for name in module.factors}
    whole = math.hypot(*norms)
    return Adapter(architecture, tensors), math.hypot(*lost) / whole if whole else 0.0


def inner(one: Adapter, other: Adapter) -> float:
    """Return Σ ⟨ΔW, ΔW'⟩ over the modules of both, by products of rank by rank."""
    found = {module.path: module for module in other.lora.modules}
    total = 0.0
    for module in one.lora.modules:
        if module.path in found:
            twin = found[module.path]
            (a, b), (c, d) = one.factors(module), other.factors(twin)
            a_RS = a.double() @ c.double().T
            b_RS = b.double().T @ d.double()
            total += float((a_RS * b_RS).sum()) * module.scale * twin.scale
    return total


def cosine(one: Adapter, other: Adapter) -> float:
    """Return the cosine of all that two adapters add: 1 for the same in any gauge and rank."""
    norms = inner(one, one) * inner(other, other)
    return inner(one, other) / math.sqrt(norms) if norms > 0 else 0.0


def _require_one_base(adapters: Sequence[Lora]) -> None:
    if len({(each.base.text, each.root) for each in adapters}) > 1:
        named = [f"{each.root} of {each.base.text[:60]}" for each in adapters]
        raise ProfileError("wrong-base", f"adapters of several: {named}"[:400])


def _with_modules(lora: Lora, modules: Sequence[Adapted]) -> Architecture:
    config = {**lora.config(), "modules": {each.path: [each.rank, each.alpha] for each in modules}}
    return Architecture(ADAPTERS, config)


def _truncate(
    adapter: Adapter, module: Adapted, target: Adapted
) -> tuple[torch.Tensor, torch.Tensor, Loss]:
    a_RI, b_OR = (factor.double() for factor in adapter.factors(module))
    left_OK, core_b = torch.linalg.qr(b_OR * module.scale)
    right_IK, core_a = torch.linalg.qr(a_RI.T)
    u, values, v = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)
    kept = min(target.rank, int((values > _NOTHING * values[0]).sum()))
    u_OK, v_KI = left_OK @ u[:, :kept], v[:kept] @ right_IK.T
    # the largest of each column is positive, whatever the library's sign
    signs = torch.sign(u_OK.gather(0, u_OK.abs().argmax(0, keepdim=True)))
    root = values[:kept].sqrt()
    new_a = torch.empty(target.rank, a_RI.shape[1])
    torch.nn.init.kaiming_uniform_(new_a, a=5**0.5, generator=torch.Generator().manual_seed(0))
    new_b = torch.zeros(b_OR.shape[0], target.rank)
    new_a[:kept] = (v_KI * (root * signs[0])[:, None]).float()
    new_b[:, :kept] = (u_OK * (root * signs[0]) / target.scale).float()
    differing_b = torch.cat((b_OR * module.scale, -new_b.double() * target.scale), 1)
    differing_a = torch.cat((a_RI, new_a.double()), 0)
    loss = Loss(
        norm=float(values.norm()),
        error=_norm(differing_a, differing_b),
        least=float(values[kept:].norm()),
    )
    return new_a, new_b, loss


def _norm(a_RI: torch.Tensor, b_OR: torch.Tensor) -> float:
    """Return ‖B·A‖, from factors alone and without the cancellation of inner products."""
    core_b, core_a = torch.linalg.qr(b_OR, "r")[1], torch.linalg.qr(a_RI.T, "r")[1]
    return float((core_b @ core_a.T).norm())
