"""Two agents' models of any architecture, never merged: for benchmarks of unlike pairs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.rows import Dataset, Rows
from node.data.split import Division, ScarceClasses
from node.params.architecture import Architecture, apply, layout, random_init
from node.params.encoding import decode_file, encode_tensors, weights_root
from node.protocol.errors import MarketError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a model is trained: Adam, its rate falling to 0 on a line."""

    epochs: int
    batch: int
    learning_rate: float
    rows: int = 0
    """Of the agent's own, the first ones of a shuffle; 0 for all."""


def verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    """Return the tensors as a model that may be computed with; raises as `verify`."""
    root = weights_root(tensors)
    return verify(Received(weights_root=root, architecture=architecture, tensors=tensors))


def fitted(
    architecture: Architecture, tensors: dict[str, torch.Tensor], rows: Rows, fit: Fit, *, seed: int
) -> dict[str, torch.Tensor]:
    """Return the model after training on the rows; the same for the same seed."""
    names = list(tensors)
    current = [tensors[name].clone().requires_grad_() for name in names]
    optimizer = torch.optim.Adam(current, lr=fit.learning_rate)
    inputs_RF = torch.from_numpy(rows.inputs_RF.copy())
    labels_R = torch.from_numpy(rows.labels_R.copy())
    generator = torch.Generator().manual_seed(seed)
    if fit.rows:
        kept_R = torch.randperm(len(labels_R), generator=generator)[: fit.rows]
        inputs_RF, labels_R = inputs_RF[kept_R], labels_R[kept_R]
    steps = fit.epochs * -(-len(labels_R) // fit.batch)
    for epoch in range(fit.epochs):
        order_R = torch.randperm(len(labels_R), generator=generator)
        for at, batch_R in enumerate(torch.split(order_R, fit.batch)):
            done = (epoch * -(-len(labels_R) // fit.batch) + at) / steps
            optimizer.param_groups[0]["lr"] = fit.learning_rate * (1 - done)
            named = dict(zip(names, current, strict=True))
            logits_RC = apply(architecture, named, inputs_RF[batch_R])
            loss = functional.cross_entropy(logits_RC, labels_R[batch_R])
            for tensor, gradient in zip(current, torch.autograd.grad(loss, current), strict=True):
                tensor.grad = gradient
            optimizer.step()
    return {name: tensor.detach() for name, tensor in zip(names, current, strict=True)}


def silo(
    architecture: Architecture,
    dataset: Dataset,
    fit: Fit,
    *,
    percent: int,
    agent: int,
    seed: int,
    kept: Path,
) -> Verified:
    """Return one agent's model: of all rows of five classes, and `percent` of the rest.

    It is kept in the folder `kept`, under a name that all of its settings are in; a file there
    that is damaged is trained anew.
    """
    said = f"{architecture.text} {fit} {dataset.name} {percent}% agent {agent} seed {seed}"
    path = kept / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.tensors"
    try:
        return verified(architecture, decode_file(path, layout(architecture)))
    except (MarketError, OSError):
        path.unlink(missing_ok=True)
    division = Division(dataset=dataset, agents=2, seed=seed, rule=ScarceClasses(percent=percent))
    own = int(np.random.SeedSequence([seed, 3, agent]).generate_state(1)[0])
    start = random_init(architecture, own)
    tensors = fitted(architecture, start, division.rows_of(agent), fit, seed=own)
    kept.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_tensors(tensors))
    return verified(architecture, decode_file(path, layout(architecture)))
