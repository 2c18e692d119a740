"""A merge weight for each unit: how much of the sold unit the buyer's own one takes up.

Two models that were aligned have units which do the same for both, and others that only one of
them has learnt. A row of a layer's weights, with the bias of that row, is what one unit writes;
each such unit gets a share of its own, between the buyer's (0) and the sold one (1). Shares start
at the α of the straight line and follow the gradient of the loss on three quarters of the rows
that choose: `STEPS` steps of Adam (Kingma and Ba 2015) on batches in the rows' own order, with a
rate that falls to 0. The last quarter, which had no gradient, stops the fit and decides: what it
finds best of a few looks along the way is kept, and the line where nothing beats it. So on that
quarter the answer is never worse than the line; what it is worth, the rows that score say.

Shares are whole millionths, in the recipe, so that whoever bought merges to the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import MAX_PLACES, row_losses, training_loss, wanted_of
from broker_node.evaluate.search import halving_brent
from broker_node.merge.pairs import curve_between, merged_model, require_one
from broker_node.merge.stages import Fitted, Merged, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import apply
from node.params.permutation import Tensors
from node.params.recipe import MAX_SHARES, interpolate
from node.protocol.types import ONE, Millionths

NAME: Final = "unit-alpha"
STEPS: Final = 40
CHECKED: Final = 8
"""Steps between two looks at the rows that decide."""
BATCH: Final = 256
RATE: Final = 0.1
FEWEST_ROWS: Final = 64
"""Below that there is nothing to fit a few hundred shares on."""
DECIDING: Final = 4
"""One row in so many decides."""
GRADIENT: Final = 3
"""Forward passes that a row's gradient costs, its own included."""

Shares = Mapping[str, tuple[Millionths, ...]]


def modules_of(tensors: Tensors) -> dict[str, tuple[str, ...]]:
    """Return the names of what has rows by module (``block.0``), if it is of as many rows.

    The weights and the bias of a unit share one weight; a module whose tensors are of several
    heights is taken apart.
    """
    modules: dict[str, list[str]] = {}
    for name in sorted(tensors):
        if tensors[name].ndim:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    found = {}
    for module, names in modules.items():
        if len({len(tensors[name]) for name in names}) == 1:
            found[module] = tuple(names)
        else:
            found |= {name: (name,) for name in names}
    return found


def unit_shares(buyer: Verified, sold: Tensors, rows: Rows, alpha: Millionths) -> Fitted:
    """Return a share for each unit of what is sold, started at α; none where the line is better.

    `sold` is T(sold). Deterministic up to the rounding of float32 sums. Nothing is fitted at
    α = 0, which is no trade, on fewer than `FEWEST_ROWS` rows, or for more than `MAX_SHARES` rows.
    """
    modules = modules_of(sold)
    heights = {module: len(sold[names[0]]) for module, names in modules.items()}
    many = sum(heights[module] * len(names) for module, names in modules.items())
    if alpha == 0 or len(rows) < FEWEST_ROWS or not modules or many > MAX_SHARES:
        return Fitted()
    fitting = len(rows) - len(rows) // DECIDING
    wanted = wanted_of(buyer.architecture, rows.inputs_RF, rows.targets_R)
    fit = rows.inputs_RF[:fitting], wanted[:fitting]
    batch = BATCH if wanted.ndim == 1 else min(BATCH, max(1, MAX_PLACES // wanted.shape[1]))
    decide = rows.inputs_RF[fitting:], rows.targets_R[fitting:]

    def deciding_loss(shares: Shares) -> float:
        merged = interpolate(buyer.tensors, sold, alpha, shares=shares)
        return float(row_losses(buyer.architecture, merged, *decide).mean())

    best: Shares = {}
    least = deciding_loss(best)
    cost = len(decide[1])
    with torch.inference_mode(False), torch.enable_grad():
        path = _Descent(buyer, sold, modules, alpha / ONE)
        for step in range(STEPS):
            taken = path.step(*_batch(*fit, step, batch), rate=RATE * (1 - step / STEPS))
            cost += GRADIENT * min(batch, fitting)
            if not taken:
                break
            if (step + 1) % CHECKED == 0:
                shares = path.shares()
                loss = deciding_loss(shares)
                cost += len(decide[1])
                if loss < least:
                    best, least = shares, loss
    return Fitted(best, cost)


def _batch(
    inputs_RF: torch.Tensor, targets_R: torch.Tensor, step: int, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step's rows, round and round in their order, which was drawn already."""
    count = len(targets_R)
    if count <= batch:
        return inputs_RF, targets_R
    index_R = (torch.arange(batch, device=targets_R.device) + step * batch) % count
    return inputs_RF[index_R], targets_R[index_R]


class _Descent:
    """Shares on their way; one vector a module, kept within 0 … 1."""

    def __init__(
        self, buyer: Verified, sold: Tensors, modules: Mapping[str, Sequence[str]], start: float
    ) -> None:
        self._architecture = buyer.architecture
        self._modules = modules
        # tensors made under `inference_mode` have no part in a gradient; their copies do
        self._own = {name: tensor.clone() for name, tensor in buyer.tensors.items()}
        self._way = {
            name: sold[name].clone() - self._own[name]
            for names in modules.values()
            for name in names
        }
        rest = {name: tensor for name, tensor in sold.items() if name not in self._way}
        self._own |= interpolate(
            {name: self._own[name] for name in rest}, rest, Millionths(round(start * ONE))
        )
        self._shares = {
            module: torch.full(
                (len(sold[names[0]]),), start, device=sold[names[0]].device, requires_grad=True
            )
            for module, names in modules.items()
        }
        self._adam = torch.optim.Adam(self._shares.values(), lr=RATE)

    def step(self, inputs_RF: torch.Tensor, targets_R: torch.Tensor, *, rate: float) -> bool:
        """Take one step; False, and none, where the loss or its gradient is no sane number."""
        merged = dict(self._own)
        for module, names in self._modules.items():
            for name in names:
                along = (-1, *[1] * (self._own[name].ndim - 1))
                share = self._shares[module].reshape(along)
                merged[name] = self._own[name] + self._way[name] * share
        outputs_RO = apply(self._architecture, merged, inputs_RF)
        loss = training_loss(outputs_RO, targets_R)
        gradients = torch.autograd.grad(loss, list(self._shares.values()), materialize_grads=True)
        if not all(bool(torch.isfinite(each).all()) for each in (loss, *gradients)):
            return False
        for share, gradient in zip(self._shares.values(), gradients, strict=True):
            share.grad = gradient
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        with torch.no_grad():
            for share in self._shares.values():
                share.clamp_(0.0, 1.0)
        return True

    def shares(self) -> dict[str, tuple[Millionths, ...]]:
        """Return where they are, in whole millionths."""
        found: dict[str, tuple[Millionths, ...]] = {}
        for module, names in self._modules.items():
            units = (self._shares[module].detach().double() * ONE).round().long().tolist()
            found |= {name: tuple(Millionths(unit) for unit in units) for name in names}
        return found


def unit_alpha(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the line's merge with each unit's share moved on its own; raises `MergeError`."""
    pair = require_one(aligned, rows)
    buyer = pair.buyer
    curve = curve_between(buyer, buyer.tensors, pair.transformed, rows)
    alpha = halving_brent(curve)
    found = unit_shares(buyer, pair.transformed, rows, alpha)
    recipe = (
        None if pair.recipe is None else pair.recipe.with_alpha(alpha).with_shares(found.shares)
    )
    each = [share for shares_R in found.shares.values() for share in shares_R]
    return merged_model(
        NAME,
        buyer,
        interpolate(buyer.tensors, pair.transformed, alpha, shares=found.shares),
        recipe=recipe,
        detail={
            "alpha": alpha,
            "units": len(each),
            "mean_share": math.floor(sum(each) / len(each)) if each else alpha,
        },
        row_evaluations=curve.row_evaluations + found.row_evaluations,
    )
