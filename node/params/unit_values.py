"""What the units of a module answer, caught behind the layers that they come out of.

Linear, convolutional, normalising and embedding layers answer with the units of one group, each
place of an image or a sequence a row of its own. A residual stream is written by several of them.
Groups in blocks (heads, and the units inside of them) come out of no layer by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

GroupOf: TypeAlias = Callable[[str, int], str | None]
"""A tensor's name and an axis of it → the group that the axis runs over, if it is one."""
Keep: TypeAlias = Callable[[str, torch.Tensor], None]
"""Is handed a group, and values_NU of its units at N rows and places."""
CHANNELS_SECOND: Final = (_ConvNd, _BatchNorm, nn.GroupNorm)
CHANNELS_LAST: Final = (nn.Linear, nn.LayerNorm, nn.Embedding)
CONSTANT: Final = 1e-9
"""Of the largest value of a unit: a standard deviation below is rounding, and the unit constant."""


def standardised(values_RU: torch.Tensor) -> torch.Tensor:
    """Return each unit's values less their mean and of norm 1; zeros for a constant unit."""
    centred_RU = values_RU - values_RU.mean(0)
    norms_U = centred_RU.norm(dim=0)
    alive_U = norms_U > CONSTANT * len(values_RU) ** 0.5 * values_RU.abs().amax(0)
    return torch.where(alive_U, centred_RU / norms_U.where(alive_U, torch.ones_like(norms_U)), 0.0)


def thinned(values_NU: torch.Tensor, most: int) -> torch.Tensor:
    """Return `most` of the rows at most, evenly spread."""
    return values_NU[:: -(-len(values_NU) // max(1, most))]


@contextmanager
def catching(module: nn.Module, group_of: GroupOf, keep: Keep) -> Iterator[None]:
    """While it lasts, hand `keep` what every layer whose outputs are units answers."""
    hooks = []
    for name, layer in module.named_modules():
        if not isinstance(layer, (*CHANNELS_SECOND, *CHANNELS_LAST)):
            continue
        tensor = f"{name}.weight" if name else "weight"
        group = group_of(tensor, 1 if isinstance(layer, nn.Embedding) else 0)
        if group is None:
            continue
        channel = 1 if isinstance(layer, CHANNELS_SECOND) else -1

        def catch(
            _layer: nn.Module, _inputs: object, output: torch.Tensor,
            group: str = group, channel: int = channel,
        ) -> None:  # fmt: skip
            keep(group, output.detach().movedim(channel, -1).flatten(0, -2))

        hooks.append(layer.register_forward_hook(catch))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
