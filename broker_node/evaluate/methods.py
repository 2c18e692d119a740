"""How a trade is made of two models: which alignment, and which merge after the search for α.

`MARKET` is what a broker does unless it is told otherwise, and `PAPER` what Train 'n Trade does.
The market's alignment looks at rows, and its merge at layers: for what has neither, what is done
instead is told by its own name, in the signed method of the trial.

| what is sold                                          | instead of       | is done           |
|-------------------------------------------------------|------------------|-------------------|
| layers that do not begin at the input, or no units    | rows' alignments | `weight-matching` |
| adapters, whose units are the base's                  | any alignment    | `identity`        |
| a pair matched as it is numbered, or a linear model   | any merge        | `lerp`            |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from broker_node.align import activation_matching, identity, universe, weight_matching
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import Aligned
from broker_node.merge import lerp, unit_alpha
from broker_node.merge.registry import TRADED
from broker_node.verify.stages import Verified
from node.params.architecture import permutation_spec
from node.params.families.linear import Linear
from node.params.merges import is_adapter
from node.params.permutation import restrict
from node.protocol.errors import LocalProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An alignment and a merge, by name; raises `LocalProtocolError` for what no trade is of."""

    alignment: str
    merging: str

    def __post_init__(self) -> None:
        if self.alignment not in TRADED_ALIGNMENTS:
            raise LocalProtocolError(
                f"no alignment {self.alignment!r}; there are {list(TRADED_ALIGNMENTS)}"
            )
        if self.merging not in TRADED:
            raise LocalProtocolError(f"no merge {self.merging!r}; there are {list(TRADED)}")


ROWS: Final = frozenset({activation_matching.NAME, universe.NAME})
"""Alignments that look at rows."""
TRADED_ALIGNMENTS: Final = (
    identity.NAME,
    weight_matching.NAME,
    activation_matching.NAME,
    universe.NAME,
)
"""Those that have a recipe, which a buyer can follow."""
MARKET: Final = Method(alignment=universe.NAME, merging=unit_alpha.NAME)
PAPER: Final = Method(alignment=weight_matching.NAME, merging=lerp.NAME)


def alignment_for(alignment: str, seller: Verified) -> str:
    """Return the alignment that can be had of what is sold."""
    if is_adapter(seller.architecture):
        return identity.NAME
    if alignment not in ROWS:
        return alignment
    model = seller.architecture.model
    groups = restrict(permutation_spec(seller.architecture), seller.tensors).groups
    if not groups:
        return weight_matching.NAME
    row_RF = torch.zeros(1, model.input_width(), dtype=torch.float64)
    values = model.activations(
        {name: tensor.cpu().double() for name, tensor in seller.tensors.items()}, row_RF
    )
    return alignment if groups.keys() <= values.keys() else weight_matching.NAME


def merging_for(merging: str, aligned: Aligned) -> str:
    """Return the merge that can be had of a pair."""
    return _merging(merging, aligned.method, aligned.buyer)


def _merging(merging: str, alignment: str, model: Verified) -> str:
    linear = isinstance(model.architecture.model, Linear)
    return lerp.NAME if linear or alignment == identity.NAME else merging


def usual(seller: Verified) -> Method:
    """Return what a broker does with a model for sale unless told otherwise: `MARKET`, or less."""
    alignment = alignment_for(MARKET.alignment, seller)
    return Method(alignment=alignment, merging=_merging(MARKET.merging, alignment, seller))


def align(
    alignment: str,
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair, aligned by the method or what stands in for it; raises `AlignmentError`.

    `probe_RF` are unlabelled rows of the choice half; only methods that are of `ROWS` need them.
    """
    return ALIGNERS[alignment_for(alignment, seller)](buyer, seller, seed=seed, probe_RF=probe_RF)
