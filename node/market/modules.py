"""PyTorch modules as parameter sets of the market, and back.

What travels is an architecture by name and its tensors, never code. A module is an ``mlp``
(``linear`` with one layer) if its parameters are, in their order, those of `nn.Linear` layers
of which each takes what the one before it gives, and if it computes what such layers with
ReLU between them compute (`node.market.probes`). So an `nn.Sequential` will do, and a class
with a `forward` of its own. Anything else is refused by the name of what does not fit; its
tensors can still be offered by themselves, under an architecture that is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from node.market.probes import difference
from node.params.architecture import Architecture, layout
from node.params.encoding import layout_of
from node.params.families.base import ArchitectureError
from node.params.profile import check_values

WITHOUT_EFFECT: Final = (nn.Linear, nn.ReLU, nn.Flatten, nn.Identity, nn.Dropout, nn.Sequential)
"""Parts that are not named as what makes a function another; `Dropout` is off in use."""
WAY_OUT: Final = "offer(tensors, architecture=...) takes tensors under a named architecture"
HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")


class Reading(NamedTuple):
    """A module as the market sees it."""

    architecture: Architecture
    parameters: dict[str, tuple[str, torch.Tensor]]
    """By the market's names: the module's own name for each, and the parameter."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of the parameters, float32 on the CPU."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, (_, parameter) in self.parameters.items()
        }

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors into the parameters in place; dtypes and devices stay the module's.

        Raises `ArchitectureError` if names or shapes are not its own, or if the parameters do
        not hold them afterwards, and `ProfileError` for what is not finite in the module's
        dtype; the parameters are then what they were.
        """
        own = self.parameters
        if own.keys() != tensors.keys():
            raise ArchitectureError(f"tensors {sorted(tensors)[:4]} are not those of this module")
        for name, (_, parameter) in own.items():
            if parameter.shape != tensors[name].shape:
                raise ArchitectureError(
                    f"{name} is {tuple(tensors[name].shape)}, the module's {tuple(parameter.shape)}"
                )
        converted = {name: tensors[name].to(parameter) for name, (_, parameter) in own.items()}
        for name, tensor in converted.items():
            check_values(name, tensor)
        before = {name: parameter.detach().clone() for name, (_, parameter) in own.items()}
        with torch.no_grad():
            for name, (_, parameter) in own.items():
                parameter.copy_(converted[name])
            for name, (inner, parameter) in own.items():
                if not torch.equal(parameter, converted[name]):
                    for other, (_, changed) in own.items():
                        changed.copy_(before[other])
                    raise _refused(f"{inner} does not keep what is written: it shares memory")


def architecture_of(module: nn.Module) -> Architecture:
    """Return what the market calls `module`. Raises `ArchitectureError` if it has no name."""
    return read(module).architecture


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the module's parameters under the market's names, float32 on the CPU.

    Raises `ArchitectureError` as `architecture_of`.
    """
    return read(module).tensors()


def load_into(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of the market into the module's parameters, in place.

    Dtypes and devices stay the module's. Raises `ArchitectureError` as `architecture_of`, or if
    names or shapes are not its own, or if the parameters do not hold them afterwards.
    """
    read(module).write(tensors)


def read(module: nn.Module) -> Reading:
    """Return `module` as the market sees it. Raises `ArchitectureError`."""
    layers = _layers(module)
    if not layers:
        raise _refused("the module holds no affine layers")
    inputs = layers[0][1].weight.shape[1]
    outputs = [layer.weight.shape[0] for _, layer in layers]
    if len(layers) == 1:
        architecture = Architecture("linear", {"inputs": inputs, "outputs": outputs[0]})
    else:
        architecture = Architecture("mlp", {"widths": [inputs, *outputs]})
    parameters: dict[str, tuple[str, torch.Tensor]] = {}
    for number, (path, layer) in enumerate(layers):
        prefix = f"layers.{number}." if len(layers) > 1 else ""
        parameters[f"{prefix}weight"] = _join(path, "weight"), layer.weight
        parameters[f"{prefix}bias"] = _join(path, "bias"), layer.bias
    if told := difference(module, architecture, parameters):
        odd = ", ".join(_odd_parts(module))
        raise _refused(
            f"the module does not compute what affine layers of widths {[inputs, *outputs]} with "
            f"ReLU between them do{f' ({odd})' if odd else ''}: {told}"
        )
    return Reading(architecture, parameters)


def checked_tensors(
    tensors: Mapping[str, torch.Tensor], architecture: Architecture
) -> dict[str, torch.Tensor]:
    """Return copies of `tensors` as they are offered: float32 on the CPU.

    Raises `ArchitectureError` if they are not those of `architecture`, and `ProfileError` for a
    NaN or an infinity.
    """
    copies: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ArchitectureError(f"{name} is {tensor.dtype}, which is no floating-point dtype")
        copies[name] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    found, expected = layout_of(copies), layout(architecture)
    for ours, theirs in zip(found, expected, strict=False):
        if ours != theirs:
            raise ArchitectureError(f"got {ours}, where {architecture.name} has {theirs}")
    if len(found) != len(expected):
        raise ArchitectureError(f"{len(found)} tensors, where there are {len(expected)}")
    for name, tensor in copies.items():
        check_values(name, tensor)
    return copies


def _layers(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the affine layers in the order of their parameters, seen to hold all there are."""
    layers: list[tuple[str, nn.Linear]] = []
    seen: dict[int, str] = {}
    for path, part in module.named_modules():
        if is_parametrized(part):
            raise _refused(f"{_called(path)}: its weights are parametrized, and computed anew")
        own = dict(part.named_parameters(recurse=False))
        for name, parameter in own.items():
            full = _join(path, name)
            if not isinstance(part, nn.Linear):
                raise _refused(f"{full}: a parameter of {type(part).__name__}")
            if id(parameter) in seen:
                raise _refused(f"{full} is shared with {seen[id(parameter)]}")
            seen[id(parameter)] = full
            if is_lazy(parameter) or parameter.is_meta or not parameter.is_floating_point():
                raise _refused(f"{full}: no numbers that could be sold, but {parameter.dtype}")
        if own:
            assert isinstance(part, nn.Linear)
            _check_layer(path, part, own)
            if layers and layers[-1][1].weight.shape[0] != part.weight.shape[1]:
                raise _refused(
                    f"{_called(path)}: {part.weight.shape[1]} inputs do not fit the "
                    f"{layers[-1][1].weight.shape[0]} outputs of {layers[-1][0]}"
                )
            layers.append((path, part))
    for name, _ in module.named_buffers():
        raise _refused(f"{name}: a buffer, which would not be sold with the parameters")
    return layers


def _check_layer(path: str, layer: nn.Linear, own: Mapping[str, nn.Parameter]) -> None:
    if own.keys() == {"weight"}:
        raise _refused(f"{_called(path)}: an affine layer without bias")
    if own.keys() != {"weight", "bias"}:
        raise _refused(f"{_called(path)}: an affine layer of the parameters {', '.join(own)}")
    shapes = tuple(layer.weight.shape), tuple(layer.bias.shape)
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise _refused(f"{_called(path)}: an affine layer of the shapes {shapes}")


def _odd_parts(module: nn.Module) -> Iterator[str]:
    """Say what may make the module's function another, as far as its parts show it."""
    first: dict[int, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if id(part) in first and isinstance(part, nn.Linear):
            yield f"{path} is {first[id(part)]} again"
        if id(part) not in first:
            if path and type(part) not in WITHOUT_EFFECT and next(part.children(), None) is None:
                yield f"{path} is {type(part).__name__}"
            if any(vars(part).get(hooks) for hooks in HOOKS):
                yield f"{_called(path)} has hooks"
        first.setdefault(id(part), path)


def _refused(detail: str) -> ArchitectureError:
    return ArchitectureError(f"{detail}; {WAY_OUT}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _called(path: str) -> str:
    return path or "the module"
