"""Well-known architectures, narrow, and their symmetries written down by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from node.params.symmetry import (
    Fixed,
    Gauge,
    GaugeKind,
    Layout,
    Place,
    Product,
    SymmetrySpec,
    UnitGroup,
    Units,
)

VGG16 = (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M")
"""Channels of each convolution, in units of the first one's."""


class Vgg(nn.Module):
    """VGG16: thirteen convolutions, three linear layers, on images of 32 x 32 or 64 x 64."""

    def __init__(self, width: int, hidden: int, classes: int, side: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        channels = 3
        for step in VGG16:
            if isinstance(step, int):
                self.convs.append(nn.Conv2d(channels, step * width, 3, padding=1))
                channels = step * width
        self.places = (side // 32) ** 2
        self.fcs = nn.ModuleList(
            [
                nn.Linear(channels * self.places, hidden),
                nn.Linear(hidden, hidden),
                nn.Linear(hidden, classes),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convs = iter(self.convs)
        for step in VGG16:
            x = functional.max_pool2d(x, 2) if step == "M" else functional.relu_(next(convs)(x))
        x = functional.dropout(functional.relu(self.fcs[0](x.flatten(1))), training=self.training)
        return self.fcs[2](functional.relu(self.fcs[1](x)))  # type: ignore[no-any-return]


def vgg_spec(module: Vgg) -> SymmetrySpec:
    """Every convolution's channels, and every hidden layer's units, with their ReLU scales."""
    layers = [f"convs.{i}" for i in range(13)] + [f"fcs.{i}" for i in range(3)]
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    groups: dict[str, UnitGroup] = {}
    axes: dict[str, tuple[Layout, ...]] = {}
    gauges = []
    for at, layer in enumerate(layers):
        shape = shapes[f"{layer}.weight"]
        out: Layout = Fixed(shape[0])
        if at < len(layers) - 1:
            groups[layer] = UnitGroup(shape[0])
            out = Units(layer)
            gauges.append(
                Gauge(
                    layer,
                    GaugeKind.POSITIVE,
                    (Place(f"{layer}.weight", 0, 0), Place(f"{layer}.bias", 0, 0)),
                    (Place(f"{layers[at + 1]}.weight", 1, 0),),
                )
            )
        into: Layout = Units(layers[at - 1]) if at else Fixed(3)
        if layer == "fcs.0" and module.places > 1:
            into = Product((into, Fixed(module.places)))
        axes[f"{layer}.weight"] = (out, into, *(Fixed(size) for size in shape[2:]))
        axes[f"{layer}.bias"] = (out,)
    return SymmetrySpec(groups=groups, axes=axes, gauges=tuple(gauges))


class Block(nn.Module):
    """A residual block of convolutions with batch normalisation; three are a bottleneck."""

    def __init__(
        self, into: int, inner: int, out: int, kernels: Sequence[int], stride: int
    ) -> None:
        super().__init__()
        widths = [into, *([inner] * (len(kernels) - 1)), out]
        strided = 1 if len(kernels) == 3 else 0
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, stride if at == strided else 1, padding=k // 2, bias=False)
            for at, (a, b, k) in enumerate(zip(widths, widths[1:], kernels, strict=False))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.short = self.short_norm = None
        if into != out or stride != 1:
            self.short = nn.Conv2d(into, out, 1, stride, bias=False)
            self.short_norm = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for at, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if at < len(self.convs) - 1:
                y = functional.relu(y)
        if self.short is not None and self.short_norm is not None:
            x = self.short_norm(self.short(x))
        y += x
        return functional.relu(y, inplace=True)


class ResNet(nn.Module):
    """`stages` of blocks; the first block of every later stage halves the image."""

    def __init__(
        self, stages: Sequence[int], width: int, kernels: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        expansion = 4 if len(kernels) == 3 else 1
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        channels = width
        for stage, count in enumerate(stages):
            inner = width * 2**stage
            for at in range(count):
                stride = 2 if at == 0 and stage > 0 else 1
                self.blocks.append(Block(channels, inner, inner * expansion, kernels, stride))
                channels = inner * expansion
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def resnet20(width: int = 2) -> ResNet:
    return ResNet((3, 3, 3), width, (3, 3), 5)


def resnet50(width: int = 1) -> ResNet:
    return ResNet((3, 4, 6, 3), width, (1, 3, 1), 5)


def resnet_spec(module: ResNet) -> SymmetrySpec:
    """One group for every stream of a stage, one for every normalisation inside of a block."""
    groups: dict[str, UnitGroup] = {}
    axes: dict[str, tuple[Layout, ...]] = {}
    writes: dict[str, list[Place]] = {}
    reads: dict[str, list[Place]] = {}

    def conv(name: str, into: str | None, out: str, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Conv2d)
        groups[out] = UnitGroup(layer.out_channels)
        if into is not None:
            reads.setdefault(into, []).append(Place(f"{name}.weight", 1, 0))
        axes[f"{name}.weight"] = (
            Units(out),
            Fixed(layer.in_channels) if into is None else Units(into),
            *(Fixed(size) for size in layer.kernel_size),
        )

    def norm(name: str, over: str) -> None:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            axes[f"{name}.{tensor}"] = (Units(over),)
        axes[f"{name}.num_batches_tracked"] = ()
        writes.setdefault(over, []).extend(
            Place(f"{name}.{tensor}", 0, 0) for tensor in ("weight", "bias")
        )

    stream = "stream.stem"
    conv("stem", None, stream, module.stem)
    norm("stem_norm", stream)
    for at, block in enumerate(module.blocks):
        assert isinstance(block, Block)
        after = stream if block.short is None else f"stream.{at}"
        last = stream
        for i, layer in enumerate(block.convs):
            out = after if i == len(block.convs) - 1 else f"inner.{at}.{i}"
            conv(f"blocks.{at}.convs.{i}", last, out, layer)
            norm(f"blocks.{at}.norms.{i}", out)
            last = out
        if block.short is not None:
            conv(f"blocks.{at}.short", stream, after, block.short)
            norm(f"blocks.{at}.short_norm", after)
        stream = after
    axes["head.weight"] = (Fixed(module.head.out_features), Units(stream))
    axes["head.bias"] = (Fixed(module.head.out_features),)
    reads.setdefault(stream, []).append(Place("head.weight", 1, 0))
    gauges = tuple(
        Gauge(group, GaugeKind.POSITIVE, tuple(writes[group]), tuple(reads[group]))
        for group in groups
    )
    return SymmetrySpec(groups=groups, axes=axes, gauges=gauges)
