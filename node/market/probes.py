"""Whether a module computes what the market would make of its tensors.

Parts and names alone do not tell: a layer may be applied twice, a class may have a `forward`
of its own. So the module is asked, on seeded rows, with the weights that it holds, and once
more with random ones: what it makes of a merge is known before any is bought. Trained weights
alone would hide much, for units that are dead on the probes compute whatever one likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from node.params.architecture import Architecture, apply

ROWS: Final = 16
SCALES: Final = (0.1, 1.0, 10.0)
"""Of the inputs: small ones show biases, large ones what saturates or is cut off."""
WIDE_SCALES: Final = (*SCALES, 1000.0)
TOLERANCE: Final = 1e-4
"""Of float32, against the largest output of the same scale. A slope of 0.01 below zero, that
of a leaky ReLU, is ten times as far off."""
COARSE_TOLERANCE: Final = 2e-2
"""Of 16 bits, and of devices, which may multiply in fewer."""
FULL_PRECISION: Final = frozenset({torch.float32, torch.float64})
SEED: Final = 2312_04740


def difference(
    module: nn.Module,
    architecture: Architecture,
    parameters: Mapping[str, tuple[str, torch.Tensor]],
) -> str:
    """Return how `module` differs from `architecture` as a function; "" if it does not.

    `parameters` are the module's by the architecture's names: its own name for each, and the
    parameter. The module is called in evaluation mode, without gradients, on rows of features;
    its mode and torch's generators are left as they were.
    """
    generator = torch.Generator().manual_seed(SEED)
    held = {
        name: parameter.detach().to("cpu", torch.float32)
        for name, (_, parameter) in parameters.items()
    }
    others = {name: _drawn(tensor.shape, generator) for name, tensor in held.items()}
    first = next(parameter for _, parameter in parameters.values())
    exact = first.device.type == "cpu" and all(
        parameter.dtype in FULL_PRECISION for _, parameter in parameters.values()
    )
    with _evaluating(module, first.device):
        if all(bool(tensor.isfinite().all()) for tensor in held.values()):
            inputs_RF = _inputs(architecture, SCALES, generator)
            ideal_RC = _ideal(architecture, held, inputs_RF)
            given_RF = inputs_RF.to(first.device, first.dtype)
            tolerance = TOLERANCE if exact else COARSE_TOLERANCE
            if told := _compare(module, None, given_RF, ideal_RC, tolerance):
                return told
        inputs_RF = _inputs(architecture, WIDE_SCALES, generator)
        ideal_RC = _ideal(architecture, others, inputs_RF)
        swapped = {own: others[name] for name, (own, _) in parameters.items()}
        if told := _compare(module, swapped, inputs_RF, ideal_RC, TOLERANCE):
            return f"with other weights, {told}"
    return ""


def _compare(
    module: nn.Module,
    swapped: dict[str, torch.Tensor] | None,
    inputs_RF: torch.Tensor,
    ideal_RC: torch.Tensor,
    tolerance: float,
) -> str:
    features = inputs_RF.shape[1]
    given_RF = inputs_RF.clone()  # a `forward` may write into what it is given
    try:
        if swapped is None:
            found = module(given_RF)
        else:
            found = torch.func.functional_call(module, swapped, (given_RF,))
    except Exception as error:  # noqa: BLE001 (the user's code, told to the user)
        return f"it fails on rows of {features} numbers: {type(error).__name__}: {error}"[:400]
    if not isinstance(found, torch.Tensor):
        return f"it returns {type(found).__name__}, not a tensor"
    if found.shape != ideal_RC.shape:
        return f"it returns {tuple(found.shape)}, not {tuple(ideal_RC.shape)}"
    off_S = _largest_of_each_scale(found.to("cpu", torch.float64) - ideal_RC)
    size_S = _largest_of_each_scale(ideal_RC)
    for off, size in zip(off_S.tolist(), size_S.tolist(), strict=True):
        if not off <= tolerance * size:  # a NaN is never within it
            return f"its outputs are {off:.2g} off, of up to {size:.2g}"
    return ""


def _largest_of_each_scale(values_RC: torch.Tensor) -> torch.Tensor:
    return values_RC.abs().view(-1, ROWS, values_RC.shape[1]).amax((1, 2))


def _ideal(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
) -> torch.Tensor:
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    return apply(architecture, wide, inputs_RF.double())


def _inputs(
    architecture: Architecture, scales: Sequence[float], generator: torch.Generator
) -> torch.Tensor:
    """Return `ROWS` rows of each scale, one scale after another."""
    features = architecture.model.input_width()
    return torch.cat([s * torch.randn(ROWS, features, generator=generator) for s in scales])


def _drawn(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return weights under which no layer fades (He et al. 2015), biases that are seen."""
    spread = (2 / shape[1]) ** 0.5 if len(shape) == 2 else 1.0
    return spread * torch.randn(shape, generator=generator)


@contextmanager
def _evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode of each part, at full precision; left as it was found."""
    modes = [(part, part.training) for part in module.modules()]
    devices = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices),
        torch.autocast(device.type, enabled=False),
        torch.autocast("cpu", enabled=False),
    ):
        try:
            for part, _ in modes:
                part.training = False
            yield
        finally:
            for part, training in modes:
                part.training = training
