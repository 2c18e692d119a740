"""Adapters that have learned digits, each a part of them, on a small base."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from broker_node.evaluate.curve import row_losses
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.datasets import load_digits
from node.data.rows import Rows
from node.data.split import split_test
from node.params.adapters import Adapter, Base, applied, lora_of
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import weights_root

FOLDER = Path("/nowhere")
PERCEPTRON = (64, 32, 16, 10)
ONE_LAYER = (64, 10)
Tensors = dict[str, torch.Tensor]
Modules = dict[str, list[int]]


def trained(
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    rows: Rows,
    steps: int,
    base: Base | None = None,
) -> Tensors:
    """Gradient descent on all rows; of adapters alone, if there is a base below."""
    inputs_RF = torch.from_numpy(rows.inputs_RF.copy())
    labels_R = torch.from_numpy(rows.labels_R.copy())
    moving = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    for _ in range(steps):
        runs, whole = architecture, dict(moving)
        if base is not None:
            runs, whole = base.architecture, dict(base.tensors)
            for module in lora_of(architecture).modules:
                a, b = (moving[name] for name in module.factors)
                name = f"{module.path}.weight"
                whole[name] = whole[name] + module.scale * b @ a
        loss = functional.cross_entropy(apply(runs, whole, inputs_RF), labels_R)
        gradients = torch.autograd.grad(loss, list(moving.values()))
        with torch.no_grad():
            for tensor, gradient in zip(moving.values(), gradients, strict=True):
                tensor -= 0.2 * gradient
    return {name: tensor.detach() for name, tensor in moving.items()}


def rows_of(classes: range, upto: int) -> Rows:
    """The first rows to learn from that are of these classes."""
    learnt = load_digits(FOLDER).train
    return learnt.take(np.flatnonzero(np.isin(learnt.labels_R, list(classes)))[:upto])


@functools.cache
def base_of(widths: tuple[int, ...], seed: int = 0) -> Base:
    architecture = Architecture("mlp", {"widths": list(widths)})
    start = random_init(architecture, seed)
    return Base.of(architecture, trained(architecture, start, rows_of(range(10), 300), 40))


def adapter_of(base: Base, modules: Modules, rows: Rows, steps: int, seed: int) -> Adapter:
    below = {"config": base.architecture.config, "name": base.architecture.name}
    config = {"base": below, "modules": modules, "root": base.root.hex()}
    architecture = Architecture("lora", config)
    start = random_init(architecture, seed)
    return Adapter(architecture, trained(architecture, start, rows, steps, base))


MODULES: dict[tuple[int, ...], tuple[Modules, Modules]] = {
    PERCEPTRON: (
        {"layers.0": [4, 8], "layers.1": [4, 4]},
        {"layers.0": [8, 8], "layers.1": [8, 16], "layers.2": [8, 8]},
    ),
    ONE_LAYER: ({"layers.0": [4, 8]}, {"layers.0": [8, 8]}),
}
"""Of a buyer and of a seller, by the widths of their base."""


@functools.cache
def buyers(widths: tuple[int, ...]) -> Adapter:
    """Has seen half of the digits."""
    return adapter_of(base_of(widths), MODULES[widths][0], rows_of(range(5), 600), 60, seed=1)


@functools.cache
def sellers(widths: tuple[int, ...]) -> Adapter:
    """Has seen the other half."""
    return adapter_of(base_of(widths), MODULES[widths][1], rows_of(range(5, 10), 1_100), 60, seed=2)


@functools.cache
def strangers(widths: tuple[int, ...]) -> Adapter:
    """Of a base of the same shapes and other weights."""
    elsewhere = base_of(widths, seed=9)
    return adapter_of(elsewhere, MODULES[widths][1], rows_of(range(10), 600), 20, seed=3)


def loss_of(adapter: Adapter, base: Base) -> float:
    """On rows that no party has seen, neither to learn from nor to score by."""
    report = split_test(load_digits(FOLDER)).report
    inputs_RF = torch.from_numpy(report.inputs_RF.copy())
    labels_R = torch.from_numpy(report.labels_R.copy())
    return float(row_losses(base.architecture, applied(adapter, base), inputs_RF, labels_R).mean())


def verified(adapter: Adapter, base: Base | None) -> Verified:
    return verify(
        Received(
            weights_root=weights_root(adapter.tensors),
            architecture=adapter.architecture,
            tensors=adapter.tensors,
            base=base,
        )
    )


def louder(adapter: Adapter) -> Adapter:
    """The same factors, under twice the α."""
    modules = {each.path: [each.rank, 2 * each.alpha] for each in adapter.lora.modules}
    config = {**adapter.architecture.config, "modules": modules}
    return Adapter(Architecture("lora", config), adapter.tensors)
