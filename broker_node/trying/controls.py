"""What a merge is set against: what the buyer's model gains by itself, by the same rows.

`tuned`   its weights, fine-tuned on the half that chooses (`broker_node.evaluate.tuning`)
`scaled`  its own outputs, all multiplied by one number (`broker_node.evaluate.control`)

A gain that is not above these could be had without anybody else's model. Neither is ever chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_node.evaluate.control import MOST_ROWS, best_factor
from broker_node.evaluate.curve import outputs_of, wanted_of
from broker_node.evaluate.gain import Gain, paired_gain
from broker_node.evaluate.metrics import Metric
from broker_node.evaluate.tuning import tuned
from broker_node.trying.methods import Rows
from broker_node.trying.scoring import Score, score, score_scaled
from broker_node.verify.stages import Verified
from node.protocol.errors import MarketError
from node.protocol.types import Digest


@dataclass(frozen=True, slots=True)
class Control:
    """What the buyer's model comes to without a merge, and what that gains."""

    score: Score
    gain: Gain


def tuned_alone(
    buyer: Verified, choice: Rows, scored: Rows, own: Score, drawn: Digest, metric: Metric | None
) -> Control | None:
    """Return what the labels of the choice half alone are worth; None where none can be learnt."""
    try:
        found = tuned(
            buyer.architecture,
            buyer.tensors,
            choice.inputs_RF,
            choice.targets_R,
            seed=int.from_bytes(drawn[:8], "big"),
        )
        result = score(buyer.architecture, found.tensors, scored, metric)
        return Control(result, paired_gain(own.losses_R, result.losses_R))
    except MarketError:
        return None


def scaled_alone(
    buyer: Verified, choice: Rows, scored: Rows, own: Score, metric: Metric | None
) -> Control | None:
    """Return what one factor on all outputs is worth, found on the choice half.

    The factor of `own_gain` beside a broker's trial, and so its gain. None where losses are no
    sane numbers.
    """
    inputs_RF, targets_R = choice.inputs_RF[:MOST_ROWS], choice.targets_R[:MOST_ROWS]
    try:
        wanted = wanted_of(buyer.architecture, inputs_RF, targets_R)
        factor = best_factor(outputs_of(buyer.architecture, buyer.tensors, inputs_RF), wanted)
        result = score_scaled(buyer.architecture, buyer.tensors, factor, scored, metric)
        return Control(result, paired_gain(own.losses_R, result.losses_R))
    except MarketError:
        return None
