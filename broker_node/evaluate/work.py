"""How much a forward pass computes, told from a description: no model is built or run for it."""

from __future__ import annotations

import math

from node.params.architecture import Architecture
from node.params.families.base import TokenModel
from node.params.families.resnet import ResNet


def multiplications(architecture: Architecture) -> int:
    """Return about how many multiplications one row takes, at most.

    Each weight is used once, in a residual network once for every pixel, in a language model once
    for every token. A module of an operator's own is taken for one that uses each weight once.
    """
    model = architecture.model
    weights = sum(math.prod(spec.shape) for spec in model.layout())
    if isinstance(model, ResNet):
        return weights * model.height * model.width
    return weights * model.input_width() if isinstance(model, TokenModel) else weights
