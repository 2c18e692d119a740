"""Alignment methods by name.

`identity`             unit i is taken for unit i
`weight-matching`      by the weights, in canonical scales (Train 'n Trade's)
`activation-matching`  by what the units answer on unlabelled rows
`universe`             by activations and then weights, each model once for all pairs
`joint-matching`       weight matching of heads and blocks too; has no recipe
`least-squares`        activation matching, then every layer solved anew; has no recipe
`partial-matching`     activation matching of models whose hidden widths differ; has no recipe
`orthogonal`           language models: the stream rotated, heads and units matched; has no recipe
`learned-gauge`        from there by gradients of the merge's loss on the rows; has no recipe

All but `identity` and what matches weights need rows: unlabelled ones, of those that α is chosen
on. `joint-matching` can be told of a device; all others are the CPU's, as is whatever has a recipe:
brokers of a quorum hold one another's recipes to their own.
"""

from __future__ import annotations

from typing import Final

from broker_node.align import (
    activation_matching,
    identity,
    joint,
    learned_gauge,
    least_squares,
    orthogonal,
    partial,
    universe,
    weight_matching,
)
from broker_node.align.stages import Aligner

ALIGNERS: Final[dict[str, Aligner]] = {
    identity.NAME: identity.identity,
    weight_matching.NAME: weight_matching.weight_matching,
    activation_matching.NAME: activation_matching.activation_matching,
    universe.NAME: universe.universe,
    joint.NAME: joint.joint_matching,
    least_squares.NAME: least_squares.least_squares,
    partial.NAME: partial.partial_matching,
    orthogonal.NAME: orthogonal.orthogonal,
    learned_gauge.NAME: learned_gauge.learned_gauge,
}
