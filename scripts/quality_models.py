"""Two agents' models that were never merged: what the benchmark of merge quality starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

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

ARCHITECTURE: Final = Architecture("mlp", {"widths": [784, 256, 256, 256, 256, 10]})
EPOCHS: Final = 10
BATCH: Final = 256
LEARNING_RATE: Final = 1e-3
SETTINGS: Final = f"{ARCHITECTURE.text} adam {LEARNING_RATE:g} batch {BATCH} epochs {EPOCHS}"


def verified(
    tensors: dict[str, torch.Tensor], architecture: Architecture = ARCHITECTURE
) -> Verified:
    """Return the tensors as a model that may be computed with; raises as `verify`."""
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def fitted(
    tensors: dict[str, torch.Tensor],
    rows: Rows,
    *,
    seed: int,
    architecture: Architecture = ARCHITECTURE,
    epochs: int = EPOCHS,
) -> dict[str, torch.Tensor]:
    """Return the model after so many epochs of Adam on the rows; the same for the same seed."""
    names = list(tensors)
    current = [tensors[name].clone().requires_grad_() for name in names]
    optimizer = torch.optim.Adam(current, lr=LEARNING_RATE)
    inputs_RF = torch.from_numpy(rows.inputs_RF.copy())
    labels_R = torch.from_numpy(rows.labels_R.copy())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order_R = torch.randperm(len(labels_R), generator=generator)
        for batch_R in torch.split(order_R, BATCH):
            logits_RC = apply(
                architecture, dict(zip(names, current, strict=True)), inputs_RF[batch_R]
            )
            loss = functional.cross_entropy(logits_RC, labels_R[batch_R])
            gradients = torch.autograd.grad(loss, current)
            for tensor, gradient in zip(current, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
    return {name: tensor.detach() for name, tensor in zip(names, current, strict=True)}


def silo(dataset: Dataset, percent: int, agent: int, seed: int, kept: Path) -> Verified:
    """Return one agent's model: trained on all rows of five classes, and `percent` of the rest.

    It is kept in the folder `kept`, under a name that all of its settings are in; a file there
    that is damaged is trained anew.
    """
    said = f"{SETTINGS} {dataset.name} {percent}% agent {agent} seed {seed}"
    path = kept / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.tensors"
    try:
        return verified(decode_file(path, layout(ARCHITECTURE)))
    except (MarketError, OSError):
        path.unlink(missing_ok=True)
    division = Division(dataset=dataset, agents=2, seed=seed, rule=ScarceClasses(percent=percent))
    own = int(np.random.SeedSequence([seed, 3, agent]).generate_state(1)[0])
    tensors = fitted(random_init(ARCHITECTURE, own), division.rows_of(agent), seed=own)
    kept.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_tensors(tensors))
    return verified(decode_file(path, layout(ARCHITECTURE)))
