"""A gauge of language models learned on rows: the half-and-half merge should tell them best.

`orthogonal` brings weights together, and what is merged is a function. Here its gauge goes on
from there by gradient descent in the loss of the merge on the broker's rows: the rotation of the
stream, and an invertible map inside of every head (the continuous part of Theus et al. 2025). Every
step stays a change of basis, so that the sold model computes what it did, and nothing of the merge
is fitted but how it is lined up. A row of tokens says itself what follows its tokens, so no label
is needed; the token behind its last is not looked at.

There is no recipe, as of `orthogonal`.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch.nn import functional

from broker_node.align.orthogonal import Gauge, Sides, gauge_of, moved, product, sides_of
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.verify.stages import Verified
from node.params.permutation import Tensors

NAME: Final = "learned-gauge"
STEPS: Final = 150
BATCH_PLACES: Final = 1024
"""Places of text in a step."""
LEARNING_RATE: Final = 1e-2
LAST_RATE: Final = 0.05


@torch.inference_mode(mode=False)
@torch.enable_grad()
def learned(sides: Sides, start: Gauge, *, seed: int, steps: int = STEPS) -> Gauge:
    """Return the gauge at the end of descent; raises `AlignmentError` if it diverges."""
    model = sides.model
    ours, theirs = (
        {name: tensor.float() for name, tensor in side.items()}
        for side in (sides.ours, sides.theirs)
    )
    fixed = start.to(torch.float32)
    skew_DD = torch.zeros(model.width, model.width, requires_grad=True)
    maps = [torch.zeros_like(each, requires_grad=True) for each in fixed.inner_QK + fixed.inner_VO]
    optimizer = torch.optim.Adam([skew_DD, *maps], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, LAST_RATE, total_iters=steps)
    generator = torch.Generator().manual_seed(seed)
    rows_RF = sides.rows_RF
    count = max(1, BATCH_PLACES // model.context)

    def gauge() -> Gauge:
        turn_DD = torch.linalg.matrix_exp(skew_DD - skew_DD.T)
        inner = [
            each + change @ each
            for each, change in zip(fixed.inner_QK + fixed.inner_VO, maps, strict=True)
        ]
        return dataclasses.replace(
            fixed,
            stream_DD=fixed.stream_DD @ turn_DD,
            inner_QK=inner[: model.depth],
            inner_VO=inner[model.depth :],
        )

    for _ in range(steps):
        batch_RF = rows_RF[torch.randint(len(rows_RF), (count,), generator=generator)]
        there = moved(model, theirs, gauge())
        merged = {name: (ours[name] + there[name]) / 2 for name in ours}
        loss = inner_loss(sides, merged, batch_RF)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = gauge()
    parts = [found.stream_DD, *found.inner_QK, *found.inner_VO]
    if not all(bool(torch.isfinite(each).all()) for each in parts):
        raise AlignmentError(f"`{NAME}` found nothing finite")
    return found.to(torch.float64)


def inner_loss(sides: Sides, tensors: Tensors, rows_RF: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of every token of the rows but the first, given those before it."""
    logits_RTV = sides.model.forward(tensors, rows_RF)[:, :-1]
    return functional.cross_entropy(logits_RTV.flatten(0, 1), rows_RF[:, 1:].long().flatten())


def learned_gauge(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair in the learned gauge; raises as `orthogonal`, and where it diverges."""
    sides = sides_of(buyer, seller, probe_RF, NAME)
    if sides.model.context < 2:
        raise AlignmentError(f"`{NAME}` needs rows of 2 tokens or more")
    with torch.no_grad():
        start = gauge_of(sides)
    gauge = learned(sides, start, seed=seed)
    return product(buyer, seller, sides, gauge, method=NAME, seed=seed)
