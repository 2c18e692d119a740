"""Wide residual networks for small images (Zagoruyko and Komodakis 2016, table 1).

Pre-activated blocks of two 3x3 convolutions in three stages of 16, 32 and 64 times `widen`
channels, the second and third at half the resolution. Normalisation is over all channels and places
of one image (`GroupNorm` of one group), as in the experiments of *Train 'n Trade*: a parameter set
then is parameters alone, without running figures of the data that it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from node.params.families.base import ArchitectureError, read_fields, read_width
from node.params.families.modules import ModuleModel, check_size
from node.params.permutation import (
    Axis,
    Group,
    PermutationSpec,
    Rescaling,
    Role,
    Tensors,
    named,
)

STAGES: Final = 3
FIRST_CHANNELS: Final = 16
MAX_SIDE: Final = 256
MAX_WIDEN: Final = 16
MAX_BLOCKS: Final = 12
"""Of a stage; a depth of 76."""


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(1, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        before = functional.relu(self.norm1(images))
        around = images if self.shortcut is None else self.shortcut(before)
        within = self.conv2(functional.relu(self.norm2(self.conv1(before))))
        summed: torch.Tensor = around + within
        return summed


class _Network(nn.Module):
    def __init__(self, model: ResNet) -> None:
        super().__init__()
        channels = FIRST_CHANNELS
        self.stem = nn.Conv2d(model.channels, channels, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        for stage in range(STAGES):
            outputs = (FIRST_CHANNELS << stage) * model.widen
            for block in range(model.blocks):
                blocks.append(_Block(channels, outputs, 2 if stage and not block else 1))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(1, channels)
        self.head = nn.Linear(channels, model.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = self.stem(images)
        for block in self.blocks:
            images = block(images)
        logits_RC: torch.Tensor = self.head(functional.relu(self.norm(images)).mean((2, 3)))
        return logits_RC


@dataclass(frozen=True, slots=True)
class ResNet(ModuleModel):
    """A wide residual network of depth 6·blocks + 4.

    Each block is a layer, with the stem before the first one and the head behind the last.
    """

    channels: int
    height: int
    width: int
    classes: int
    blocks: int
    """Of each stage."""
    widen: int

    @classmethod
    def read(cls, config: Mapping[str, object]) -> ResNet:
        """Read ``{"classes", "depth", "image": [channels, height, width], "widen"}``.

        Raises `ArchitectureError` for anything else.
        """
        classes, depth, image, widen = read_fields(config, "classes", "depth", "image", "widen")
        if not isinstance(image, list | tuple) or len(image) != STAGES:
            raise ArchitectureError("image must be [channels, height, width]")
        channels, height, width = (read_width(side, "every side of image") for side in image)
        if not max(channels, height, width) <= MAX_SIDE or min(height, width) < 1 << (STAGES - 1):
            raise ArchitectureError(f"image sides of {image}, of 4 … {MAX_SIDE}")
        depth, widen = read_width(depth, "depth"), read_width(widen, "widen")
        blocks, rest = divmod(depth - 4, 2 * STAGES)
        if rest or not 1 <= blocks <= MAX_BLOCKS:
            raise ArchitectureError(f"depth must be 6n + 4, n of 1 … {MAX_BLOCKS}, got {depth}")
        if widen > MAX_WIDEN:
            raise ArchitectureError(f"widen must be 1 … {MAX_WIDEN}, got {widen}")
        model = cls(channels, height, width, read_width(classes, "classes"), blocks, widen)
        check_size(model)
        return model

    def config(self) -> dict[str, object]:
        return {
            "classes": self.classes,
            "depth": 2 * STAGES * self.blocks + 4,
            "image": [self.channels, self.height, self.width],
            "widen": self.widen,
        }

    def build(self) -> nn.Module:
        return _Network(self)

    def rows(self, inputs_RF: torch.Tensor) -> torch.Tensor:
        return inputs_RF.reshape(-1, self.channels, self.height, self.width)

    def input_width(self) -> int:
        return self.channels * self.height * self.width

    def output_width(self) -> int:
        return self.classes

    def permutation_spec(self) -> PermutationSpec:
        """Channels that are added to one another are one group, as are those inside of a block.

        Equal to what `node.params.derivation` reads off the graph. No channel can be rescaled
        whole, since a norm over all of them would see it; but from the gain and the bias of a norm
        through ReLU to the kernels that read it, it can.
        """
        stem = self._stream(-1)
        axes: dict[str, tuple[Axis | None, ...]] = {
            "stem.weight": (_writes(stem), None, None, None)
        }
        groups = {stem: FIRST_CHANNELS}
        gains: list[Rescaling] = []
        for number in range(STAGES * self.blocks):
            before, after = self._stream(number - 1), self._stream(number)
            within, name = f"inner.{number}", f"blocks.{number}"
            outputs = (FIRST_CHANNELS << number // self.blocks) * self.widen
            groups[within] = outputs
            for norm, group in (("norm1", before), ("norm2", within)):
                axes[f"{name}.{norm}.weight"] = axes[f"{name}.{norm}.bias"] = (_writes(group),)
            around = ("conv1", "shortcut") if before != after else ("conv1",)
            gains += [
                _gain(before, f"{name}.norm1", *(f"{name}.{kernel}" for kernel in around)),
                _gain(within, f"{name}.norm2", f"{name}.conv2"),
            ]
            axes[f"{name}.conv1.weight"] = (_writes(within), _reads(before), None, None)
            axes[f"{name}.conv2.weight"] = (_writes(after), _reads(within), None, None)
            if before != after:
                groups[after] = outputs
                axes[f"{name}.shortcut.weight"] = (_writes(after), _reads(before), None, None)
        last = self._stream(STAGES * self.blocks - 1)
        axes["norm.weight"] = axes["norm.bias"] = (_writes(last),)
        axes |= {"head.weight": (None, _reads(last)), "head.bias": (None,)}
        return PermutationSpec(
            groups={name: Group(size=size) for name, size in groups.items()},
            axes=axes,
            rescalings=named([*gains, _gain(last, "norm", "head")]),
        )

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values before a norm, each place of each image a row; nothing for some of the layers."""
        if any(spec.name not in tensors for spec in self.layout()):
            return {}
        blocks = range(STAGES * self.blocks)
        groups = {f"blocks.{number}.conv1": f"inner.{number}" for number in blocks}
        groups |= {f"blocks.{number}": self._stream(number) for number in blocks}
        if self._stream(-1) != self._stream(0):
            groups["stem"] = self._stream(-1)
        values = self.values_of(tensors, inputs_RF, groups)
        # of a stream the last block's sum is taken, since later blocks write over earlier ones
        return {
            group: values[name].permute(0, 2, 3, 1).flatten(0, 2) for name, group in groups.items()
        }

    def _stream(self, number: int) -> str:
        """Return the group of the channels that come out of a block; of the stem at -1."""
        stage = number // self.blocks if number >= 0 else -1
        return "stream.stem" if stage < (0 if self.widen > 1 else 1) else f"stream.{stage}"

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        last = STAGES * self.blocks - 1
        names: list[list[str]] = [[] for _ in range(last + 1)]
        for spec in self.layout():
            first, _, rest = spec.name.partition(".")
            inner = int(rest.partition(".")[0]) if first == "blocks" else last
            names[0 if first == "stem" else inner].append(spec.name)
        return tuple(tuple(each) for each in names)


def _gain(group: str, norm: str, *readers: str) -> Rescaling:
    """Return what a norm's gain and bias, and the modules that read it, leave open."""
    return Rescaling(
        group=group,
        writes=frozenset({(f"{norm}.weight", 0), (f"{norm}.bias", 0)}),
        reads=frozenset((f"{reader}.weight", 1) for reader in readers),
    )


def _writes(group: str) -> Axis:
    return Axis(group, Role.WRITES)


def _reads(group: str) -> Axis:
    return Axis(group, Role.READS)
