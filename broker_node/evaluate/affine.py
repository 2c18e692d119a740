"""A model's affine layers, seen while it runs: no architecture is known by name.

A layer is a call of `torch.nn.functional.linear`, or of `conv2d` in one group with numbers for its
padding, whose weight is one of the model's tensors. A tensor that serves in several calls is no
layer of its own and is left out, as are grouped convolutions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from node.params.architecture import Architecture, apply

BATCH: Final = 512
"""Rows at a time: what enters every layer is held for these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineUse:
    """An affine layer by the names of its tensors."""

    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    use: AffineUse
    entering: Callable[[], torch.Tensor] = field(repr=False)
    """Returns inputs_NF, one line for each row and place."""
    leaving_NO: torch.Tensor = field(repr=False)


class _Watch(TorchFunctionMode):
    """Notes every affine layer that runs under it."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self.calls: list[_Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func is functional.linear:
            self._linear(result, *args, **given)
        elif func is torch.conv2d:
            self._conv2d(result, *args, **given)
        return result

    def _note(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        entering: Callable[[], torch.Tensor],
        leaving_NO: torch.Tensor,
    ) -> None:
        name = self._names.get(id(weight))
        bias_name = None if bias is None else self._names.get(id(bias))
        if name is not None and (bias is None) == (bias_name is None):
            use = AffineUse(weight=name, bias=bias_name)
            self.calls.append(_Call(use=use, entering=entering, leaving_NO=leaving_NO))

    def _linear(
        self,
        result: torch.Tensor,
        input: torch.Tensor,  # noqa: A002  the name that torch gives it
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        self._note(
            weight,
            bias,
            lambda: input.reshape(-1, input.shape[-1]),
            result.reshape(-1, result.shape[-1]),
        )

    def _conv2d(
        self,
        result: torch.Tensor,
        input: torch.Tensor,  # noqa: A002
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        if groups != 1 or isinstance(padding, str) or input.ndim != 4:
            return

        def patches() -> torch.Tensor:
            patches_NFL = functional.unfold(
                input, weight.shape[2:], dilation=dilation, padding=padding, stride=stride
            )
            return patches_NFL.transpose(1, 2).flatten(0, 1)

        self._note(weight, bias, patches, result.movedim(1, -1).flatten(0, -2))

    def layers(self) -> list[_Call]:
        """Return the calls of tensors that served once, in the order they ran."""
        times = Counter(call.use.weight for call in self.calls)
        return [call for call in self.calls if times[call.use.weight] == 1]


@torch.inference_mode()
def grams(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
) -> dict[AffineUse, torch.Tensor]:
    """Return XᵀX / R of every affine layer in the order they run, in float64.

    X are the inputs, one line for each of R rows and, in a convolution, each place. A layer with a
    bias has a column of ones behind its inputs.
    """
    found: dict[AffineUse, torch.Tensor] = {}
    for batch_RF in torch.split(inputs_RF, BATCH):
        watch = _Watch(tensors)
        with watch:
            apply(architecture, tensors, batch_RF)
        for call in watch.layers():
            columns_NF = call.entering().double()
            if call.use.bias is not None:
                columns_NF = functional.pad(columns_NF, (0, 1), value=1.0)
            gram_FF = columns_NF.T @ columns_NF / len(inputs_RF)
            found[call.use] = found[call.use] + gram_FF if call.use in found else gram_FF
    return found


@torch.inference_mode()
def outputs_of_layers(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what leaves every affine layer, as outputs_NO by the name of its weight."""
    watch = _Watch(tensors)
    with watch:
        apply(architecture, tensors, inputs_RF)
    return {call.use.weight: call.leaving_NO for call in watch.layers()}
