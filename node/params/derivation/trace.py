"""The graph of a module, by `torch.export`: one for all inputs of these shapes, or an error."""

from __future__ import annotations

import logging  # noqa: TID251  torch's own messages are held back; nothing is logged here
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from node.params.alone import ALONE
from node.params.derivation.errors import UnderivableError


@dataclass(frozen=True, slots=True)
class Traced:
    """A graph without side effects, and what its placeholders are."""

    graph: fx.Graph
    tensors: Mapping[str, str]
    """Placeholder → name of the parameter or persistent buffer, aliases resolved."""
    shapes: Mapping[str, torch.Size]
    """Of every tensor by name, aliases resolved; integers and what is never read among them."""
    ties: Mapping[str, str]
    """Alias → name: tensors in the same storage."""


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by all of their names."""
    return dict(module.state_dict(keep_vars=True))


def ties_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return alias → first name for tensors that are the same numbers in memory.

    Raises `UnderivableError` ``bad-module`` for tensors that share a part of their memory only.
    """
    first: dict[object, str] = {}
    whole: dict[object, object] = {}
    ties = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        if tensor.is_meta:
            memory: object = id(tensor)
        else:
            memory = tensor.untyped_storage().data_ptr(), str(tensor.device)
        key = memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        if whole.setdefault(memory, key) != key:
            raise UnderivableError(
                "bad-module", f"{name!r} shares a part of its memory with another tensor"
            )
        if key in first:
            ties[name] = first[key]
        else:
            first[key] = name
    return ties


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and batch statistics off for a while."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _silence() -> Iterator[None]:
    """Hold back what torch prints about a graph that it cannot trace: the error says it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def trace(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Traced:
    """Return the graph of `module` in evaluation mode on inputs of these shapes.

    Raises `UnderivableError`: ``untraceable`` where Python decides by data what is computed,
    ``mutation`` where the module changes its own tensors or its inputs, ``bad-module``.
    """
    tensors = tensors_of(module)
    if not tensors:
        raise UnderivableError("bad-module", "a module without tensors")
    ties = ties_of(tensors)
    # two threads that trace at once spoil each other's graph, or fail
    with ALONE, evaluating(module), torch.no_grad(), _silence():
        try:
            program = torch.export.export(module, tuple(args), dict(kwargs or {}), strict=False)
            program = program.run_decompositions({})
        except Exception as error:
            # a tracer runs the module's own code, and so raises whatever that does
            detail = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            raise UnderivableError(
                "untraceable",
                f"{detail}; no shape and no branch may depend on data",
            ) from error
    signature = program.graph_signature
    for changed in (signature.buffers_to_mutate, signature.user_inputs_to_mutate):
        if changed:
            raise UnderivableError("mutation", f"{next(iter(changed.values()))} is changed")
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    shown = {
        placeholder: ties.get(name, name) for placeholder, name in named.items() if name in tensors
    }
    return Traced(
        graph=program.graph_module.graph,
        tensors=shown,
        shapes={name: t.shape for name, t in tensors.items() if name not in ties},
        ties=ties,
    )
