"""How strange the scales are in which a model's units came.

Multiplying what enters a ReLU unit by s > 0 and dividing what leaves it by s changes nothing that a
model computes, and there is as much freedom behind the gains of norms and inside of heads
(`broker_node.align.gauge`). Alignments that match units undo it; what merges weights as they stand
does not, and puts units of one scale into those of another.
"""

from __future__ import annotations

from typing import Final

import torch

from broker_node.align.gauge import balanced_scales
from broker_node.verify.stages import Verified
from node.params.architecture import permutation_spec
from node.protocol.errors import MarketError

UNITS: Final = 0.9
"""Of all units the share that the measure covers: single units that died may stand anywhere."""
STRANGE: Final = 2.0
"""Powers of two beyond the buyer's. Honest networks measure 0.3 to 1.6: of digits and MNIST by our
trainer after 4 to 40 epochs (up to 0.9), of digits by AdamW at rates of .001 to .05 with a decay of
0 to .3. Copies of the trainer's by factors of up to 2^±4 measure 4.1 to 4.9, those of which only a
quarter of the units was rescaled among them. Residual networks of digits measure 0.7, language
models of text 0.6, copies of either by 2^±4 3.6. Copies by 2^±2 measure 2.3 to 2.8 and may stay
unseen, as may fewer than one unit in ten."""


def scale_spread(model: Verified) -> float | None:
    """Return within which power of two `UNITS` of the units stand of the balanced scales.

    None for a model without units that can be rescaled, or whose symmetries cannot be read.
    """
    try:
        scales = balanced_scales(permutation_spec(model.architecture), model.tensors)
    except MarketError:
        return None
    if not scales:
        return None
    powers_U = torch.cat(list(scales.values())).log2().abs()
    return float(torch.quantile(powers_U, UNITS))
