"""Activation matching: units that answer alike on the broker's rows are the same unit.

A unit of the buyer's meets the seller's whose values on unlabelled rows correlate most, all
units of a group at once: one linear assignment a group (Li et al. 2015; Ainsworth, Hayase and
Srinivasa 2022, §3.1). Groups have no say in one another's assignment, so the result is the
optimum, whatever the numbering; and a correlation does not see a unit's scale.

A unit that is constant on all rows correlates with nothing. Where there are such, the weights
that enter a unit decide between those that the rows leave equal: `TIE` of their cosine is
added, in the balanced gauge, group after group in the direction of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from broker_node.align.assignments import assign, assign_all
from broker_node.align.carrying import canonical, carried, sold_spec
from broker_node.align.matching import incoming_similarity
from broker_node.align.preservation import require_same_architecture
from broker_node.align.probing import all_standardised, probe_rows, unit_values
from broker_node.align.stages import Aligned
from broker_node.verify.stages import Verified
from node.params.permutation import PermutationSpec, Tensors

NAME: Final = "activation-matching"
TIE: Final = 1e-6
"""Weight of the cosine of weights, beside correlations of up to 1."""


def match_values(
    spec: PermutationSpec,
    ours: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    weights: tuple[Tensors, Tensors],
) -> dict[str, torch.Tensor]:
    """Return `perm_U` by group from standardised values_RU of both sides.

    `weights` are both models' tensors in one gauge, for units that the rows say nothing about.
    """
    similarities = {group: ours[group].T @ theirs[group] for group in spec.groups}
    undecided = {
        group
        for group in spec.groups
        if any(not bool(side[group].any(0).all()) for side in (ours, theirs))
    }
    found = assign_all({g: s for g, s in similarities.items() if g not in undecided})
    for group in spec.groups:
        if group in undecided:
            tie_UV = incoming_similarity(spec, *weights, group, found)
            largest = tie_UV.abs().max().clamp(min=torch.finfo(tie_UV.dtype).tiny)
            found[group] = assign(similarities[group] + TIE * tie_UV / largest)
    return {group: found[group] for group in spec.groups}


@torch.inference_mode()
def activation_matching(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair with the seller's units matched by their values on the rows.

    Raises `ArchitectureMismatchError`, and `AlignmentError` without usable rows, for layers
    that are not sold from the input on, or if the result is another function.
    """
    require_same_architecture(buyer, seller)
    rows_RF = probe_rows(buyer.architecture, probe_RF, NAME)
    spec = sold_spec(seller)
    ours, theirs = (
        all_standardised(unit_values(buyer.architecture, spec, model.tensors, rows_RF))
        for model in (buyer, seller)
    )
    gauges = canonical(spec, buyer.tensors), canonical(spec, seller.tensors)
    matched = match_values(spec, ours, theirs, (gauges[0].tensors, gauges[1].tensors))
    return carried(
        buyer,
        seller,
        permutations={group: perm_U.tolist() for group, perm_U in matched.items()},
        scales=(gauges[0].scales, gauges[1].scales),
        method=NAME,
        seed=seed,
    )
