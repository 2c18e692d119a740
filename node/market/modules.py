"""PyTorch modules as parameter sets of the market, and back.

What travels is an architecture by name and its tensors, never code. A module is read by what
it is made of: affine layers with ReLU between them are an ``mlp``, one affine layer is
``linear``. Anything else is refused by the name of the part that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import nn

from node.params.architecture import Architecture
from node.params.families.base import ArchitectureError

PASSED_OVER: Final = (nn.Flatten, nn.Identity, nn.Dropout)
"""Parts without parameters that leave the function of a trained model as it is."""


def architecture_of(module: nn.Module) -> Architecture:
    """Return what the market calls `module`. Raises `ArchitectureError` if it has no name."""
    layers = _layers(module)
    if len(layers) == 1:
        layer = layers[0]
        return Architecture("linear", {"inputs": layer.in_features, "outputs": layer.out_features})
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    return Architecture("mlp", {"widths": widths})


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the module's parameters under the market's names, float32 on the CPU.

    Raises `ArchitectureError` as `architecture_of`.
    """
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, parameter in _named(module)
    }


def load_into(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of the market into the module's parameters, in place.

    Raises `ArchitectureError` as `architecture_of`, or if names or shapes are not its own.
    """
    own = dict(_named(module))
    if own.keys() != tensors.keys():
        raise ArchitectureError(f"tensors {sorted(tensors)[:4]} are not those of this module")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ArchitectureError(
                f"{name} is {tuple(tensors[name].shape)}, the module's {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _named(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    layers = _layers(module)
    for number, layer in enumerate(layers):
        prefix = f"layers.{number}." if len(layers) > 1 else ""
        yield f"{prefix}weight", layer.weight
        yield f"{prefix}bias", layer.bias


def _layers(module: nn.Module) -> list[nn.Linear]:
    """Return the affine layers in order, seen to have ReLU between them and nothing else."""
    layers: list[nn.Linear] = []
    open_layer = False
    for name, part in _parts(module):
        match part:
            case nn.Linear():
                if open_layer:
                    raise ArchitectureError(f"{name}: two affine layers without ReLU between")
                if part.bias is None:
                    raise ArchitectureError(f"{name}: an affine layer without bias")
                if layers and layers[-1].out_features != part.in_features:
                    raise ArchitectureError(f"{name}: {part.in_features} inputs do not fit")
                layers.append(part)
                open_layer = True
            case nn.ReLU() if open_layer:
                open_layer = False
            case _ if isinstance(part, PASSED_OVER):
                continue
            case _:
                raise ArchitectureError(f"{name or 'the module'}: {type(part).__name__} is unknown")
    if not layers or not open_layer:
        raise ArchitectureError("the module must end in an affine layer")
    return layers


def _parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return the parts of nested `nn.Sequential`s in the order in which they are applied."""
    if not isinstance(module, nn.Sequential):
        yield name, module
        return
    for key, part in module.named_children():
        yield from _parts(part, f"{name}.{key}" if name else key)
