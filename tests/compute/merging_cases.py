"""Small pairs, rows and models to merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import Aligned
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.merge.registry import MERGERS, ONE_SELLER
from broker_node.merge.stages import Merged, Rows
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, part_of, random_init
from node.params.encoding import weights_root
from node.protocol.types import ONE, Digest

SMALL = Architecture("mlp", {"widths": [6, 8, 5, 3]})
LINEAR = Architecture("linear", {"inputs": 4, "outputs": 3})
VALUES = Architecture("linear", {"inputs": 4, "outputs": 1})
SEED = Digest(bytes(range(32)))


def model(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], layers: tuple[int, ...] = ()
) -> Verified:
    part = part_of(architecture, tensors, layers)
    received = Received(
        weights_root=weights_root(part), architecture=architecture, tensors=part, layers=layers
    )
    return verify(received)


def started(architecture: Architecture, seed: int) -> Verified:
    return model(architecture, random_init(architecture, seed))


def matched(buyer: Verified, seller: Verified, method: str = "identity") -> Aligned:
    return ALIGNERS[method](buyer, seller, seed=0)


def rows_for(architecture: Architecture, count: int = 60, seed: int = 1) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs_RF = torch.randn(count, architecture.model.input_width(), generator=generator)
    return Rows(inputs_RF, torch.arange(count) % 3)


def run(
    method: str, aligned: Sequence[Aligned], rows: Rows, base: Verified | None = None
) -> Merged:
    return MERGERS[method](aligned, rows, seed=0, base=base)


def tensors_of(merged: Merged) -> Mapping[str, torch.Tensor]:
    assert merged.tensors is not None
    return merged.tensors


def share_of(merged: Merged, name: str) -> float:
    share = merged.detail[name]
    assert isinstance(share, int)
    return share / ONE


def small_case(method: str) -> tuple[list[Aligned], Rows, Verified]:
    """Return as many pairs as the method takes, rows and a base, all untrained."""
    buyer = started(SMALL, 1)
    sellers = [started(SMALL, 2)] if method in ONE_SELLER else [started(SMALL, n) for n in (2, 3)]
    return [matched(buyer, seller) for seller in sellers], rows_for(SMALL), started(SMALL, 9)


def digits_rows(validation: ValidationSet) -> tuple[Rows, Rows]:
    drawn = draw_rows(SEED, len(validation), choice=150, score=150)
    choice, scored = (
        Rows(validation.inputs_RF[indices], validation.targets_R[indices])
        for indices in (torch.from_numpy(drawn.choice), torch.from_numpy(drawn.score))
    )
    return choice, scored


def linear_values(*weights: float) -> Verified:
    return model(VALUES, {"weight": torch.tensor([list(weights)]).float(), "bias": torch.zeros(1)})
