"""Modules of an operator's own, of any architecture whose graph can be read.

A text names the function that builds the module, and the shape of what the module takes:

    {"factory": "mine.models:build", "input": [3, 32, 32], "options": {"width": 64}}

`options` are keywords of the function, and left out where there are none. With `tokens`, the number
of different tokens, a row is a sequence of ids, `input` its length, and the module answers logits
of the next token at every place; without, it takes rows of the shape `input` and answers logits_RC.

What the function is, both sides have to agree on beforehand: a text carries its name alone, and is
understood by those whose operators have named it too, of this very shape and with these options
(`node.params.families.factories`); before that nothing is built. Tensors
are the floating-point ones of the module's state, running statistics among them; integers and what
is not in its state are as the function makes them, under one seed for all. Symmetries are derived
from the graph, once they are asked for, and borne out by outputs.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from node.params.alone import drawing
from node.params.device_memory import is_out_of_memory
from node.params.families.base import ArchitectureError, read_width
from node.params.families.factories import Entry, allowed, entries, is_name, options_text
from node.params.families.modules import ModuleModel, skeleton
from node.params.families.own_facts import (
    SEED,
    facts_of,
    plain_symmetries_of,
    symmetries_of,
    told,
)
from node.params.families.tokens import TokenRows
from node.params.permutation import PermutationSpec, Tensors
from node.params.symmetry import SymmetrySpec
from node.params.unit_values import catching, standardised, thinned
from node.protocol.parameters import Layout

NAME: Final = "module"
MAX_SIDES: Final = 6
MAX_FEATURES: Final = 2**20
MAX_VOCABULARY: Final = 2**18
BATCH: Final = 256
"""Rows whose units' values are held at once."""
MAX_PLACES: Final = 4096
"""Rows, and places in them, of which a unit's values are returned, for each layer."""
_REQUIRED: Final = {"factory", "input"}


@dataclass(frozen=True, slots=True)
class OwnModule(ModuleModel):
    """A module that an operator's own function builds; sold whole."""

    factory: str
    input: tuple[int, ...]
    options: str
    """Canonical JSON."""
    vocabulary: int = 0

    @classmethod
    def read(cls, config: Mapping[str, object]) -> OwnModule:
        """Read the fields above. Raises `ArchitectureError`.

        That is ``unknown-architecture`` for what the operator has not named just so, and
        ``bad-architecture`` for all else.
        """
        entry = cls.read_entry(config)
        allowed(entry)
        kind = OwnTokens if entry.vocabulary else OwnModule
        model = kind(entry.name, entry.input, entry.options, entry.vocabulary)
        facts_of(model)
        return model

    @staticmethod
    def read_entry(config: Mapping[str, object]) -> Entry:
        """Return what an operator has to allow; nothing is built.

        Raises `ArchitectureError` ``bad-architecture``.
        """
        strange = set(config) - _REQUIRED - {"options", "tokens"}
        if strange or not set(config) >= _REQUIRED:
            raise ArchitectureError(
                f"expected factory and input, perhaps options and tokens, got {sorted(config)}"[
                    :300
                ]
            )
        factory, sides, options = config["factory"], config["input"], config.get("options", {})
        if not isinstance(factory, str) or not is_name(factory):
            raise ArchitectureError(f"factory must be MODULE:FUNCTION, got {factory!r:.100}")
        if not isinstance(sides, list | tuple) or not 1 <= len(sides) <= MAX_SIDES:
            raise ArchitectureError(f"input must be a list of 1 … {MAX_SIDES} sides")
        shape = tuple(read_width(side, "every side of input") for side in sides)
        if math.prod(shape) > MAX_FEATURES:
            raise ArchitectureError(f"{math.prod(shape)} features, of at most {MAX_FEATURES}")
        if not isinstance(options, Mapping) or ("options" in config and not options):
            raise ArchitectureError("options must be an object of one option or more")
        vocabulary = read_width(config["tokens"], "tokens") if "tokens" in config else 0
        if vocabulary > MAX_VOCABULARY or (vocabulary and len(shape) != 1):
            raise ArchitectureError(
                f"tokens must be at most {MAX_VOCABULARY}, and input their number in a row"
            )
        return Entry(factory, shape, vocabulary, options_text(options))

    def entry(self) -> Entry:
        """Return what the operator has allowed."""
        return Entry(self.factory, self.input, self.vocabulary, self.options)

    def config(self) -> dict[str, object]:
        said: dict[str, object] = {"factory": self.factory, "input": list(self.input)}
        options = json.loads(self.options)
        said |= {"options": options} if options else {}
        return said | ({"tokens": self.vocabulary} if self.vocabulary else {})

    # ── the module ──

    def build(self) -> nn.Module:
        """Return the module in float32 as its function makes it. Raises `ArchitectureError`."""
        make = allowed(self.entry())
        try:
            module = make(**json.loads(self.options))
            module = module.float() if isinstance(module, nn.Module) else module
        except Exception as error:  # an operator's own function may raise anything
            raise self.fault("cannot build", error) from error
        if not isinstance(module, nn.Module):
            raise ArchitectureError(f"{self.factory} gave a {type(module).__name__}, no nn.Module")
        return module

    def empty(self) -> nn.Module:
        module = self.seeded().eval()
        owned = {id(tensor): name for name, tensor in self.state_of(module).items()}
        hollow: dict[int, torch.Tensor] = {}
        for part in module.modules():
            for held in (part._parameters, part._buffers):  # noqa: SLF001  there is no other way
                for name, tensor in held.items():
                    if tensor is not None and id(tensor) in owned and tensor.is_floating_point():
                        empty = tensor.detach().to("meta")
                        made = nn.Parameter(empty) if held is part._parameters else empty  # noqa: SLF001
                        held[name] = hollow.setdefault(id(tensor), made)  # type: ignore[assignment]
        return module

    def module_with(self, tensors: Tensors) -> nn.Module:
        """Return a module of its own that holds copies of these tensors, in evaluation mode."""
        module = self.seeded().eval()
        ties = facts_of(self).ties
        held = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        given = {name: ties.get(name, name) for name in held}
        whole = {
            name: tensors[own] if own in tensors else held[name] for name, own in given.items()
        }
        module.load_state_dict(whole)
        return module

    def tensors_of(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return copies of a module's tensors, by the names of the layout."""
        state = self.state_of(module)
        return {spec.name: state[spec.name].detach().clone() for spec in self.layout()}

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        return self.tensors_of(self.seeded(seed))

    def seeded(self, seed: int = SEED) -> nn.Module:
        """Return the module as its function makes it under a seed. Raises `ArchitectureError`."""
        # whatever asks first: a module is kept, and has gradients at times
        with drawing(seed), torch.inference_mode(mode=False):
            return self.build()

    @staticmethod
    def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
        state = module.state_dict(keep_vars=True)
        return {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}

    def fault(self, what: str, error: Exception) -> ArchitectureError:
        return ArchitectureError(f"{self.factory} {what}: {told(error)}")

    # ── what it computes ──

    def layout(self) -> Layout:
        return facts_of(self).layout

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        return ()

    def input_width(self) -> int:
        return math.prod(self.input)

    def output_width(self) -> int:
        return facts_of(self).outputs

    def rows(self, inputs_RF: torch.Tensor) -> torch.Tensor:
        return inputs_RF.reshape(-1, *self.input)

    def forward(self, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        return self.answers(skeleton(self), tensors, self.rows(inputs_RF))

    def answers(self, module: nn.Module, tensors: Tensors, rows: torch.Tensor) -> torch.Tensor:
        """Return what the module answers with these tensors. Raises `ArchitectureError`.

        What it holds beside goes where the tensors are, in their precision.
        """
        like = next(iter(tensors.values()))
        given = dict(tensors)
        for name, buffer in module.named_buffers():
            if name in given:
                given[name] = given[name].detach()  # running statistics follow no gradient
            elif not buffer.is_meta:
                place = like if buffer.is_floating_point() else like.device
                given[name] = buffer.to(place)
        try:
            logits: torch.Tensor = torch.func.functional_call(module, given, (rows,))
        except Exception as error:  # an operator's own module may raise anything
            if is_out_of_memory(error):
                raise  # of a device: a smaller batch may do
            what = f"fails on rows of {list(self.input)} in {like.dtype}"
            raise self.fault(what, error) from error
        return logits

    def run(self, module: nn.Module, inputs_RF: torch.Tensor) -> torch.Tensor:
        """Return what a module of its own weights answers to R rows. Raises `ArchitectureError`."""
        try:
            logits_RC: torch.Tensor = module(self.rows(inputs_RF))
        except Exception as error:  # an operator's own module may raise anything
            what = f"fails on {len(inputs_RF)} rows of {list(self.input)}"
            raise self.fault(what, error) from error
        return logits_RC

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values behind the layers that write a group, standardised layer by layer if several do.

        Each place is a row; of the first rows and places, evenly spread, `MAX_PLACES` a layer.
        """
        if any(spec.name not in tensors for spec in self.layout()):
            return {}
        axes, ties = self.permutation_spec().axes, facts_of(self).ties
        batches = torch.split(inputs_RF, BATCH)
        found: dict[str, list[list[torch.Tensor]]] = {}
        kept: dict[str, list[torch.Tensor]] = {}

        def group_of(tensor: str, axis: int) -> str | None:
            of_tensor = axes.get(ties.get(tensor, tensor))
            own = of_tensor[axis] if of_tensor else None
            return own.group if own else None

        def keep(group: str, values_NU: torch.Tensor) -> None:
            kept.setdefault(group, []).append(thinned(values_NU, MAX_PLACES // len(batches)))

        module = skeleton(self)
        with catching(module, group_of, keep):
            for batch_RF in batches:
                kept.clear()
                self.answers(module, tensors, self.rows(batch_RF))
                for group, layers in kept.items():
                    found.setdefault(group, []).append(layers)
        values = {}
        for group, of_batches in found.items():
            layers = [torch.cat(each) for each in zip(*of_batches, strict=True)]
            if len(layers) > 1:
                layers = [standardised(each) for each in layers]
            values[group] = torch.cat(layers)
        return values

    # ── symmetries ──

    def symmetries(self) -> SymmetrySpec:
        """Return all that the graph says. Raises `ArchitectureError` ``no-symmetries``."""
        return symmetries_of(self)

    def permutation_spec(self) -> PermutationSpec:
        """Return those of its groups that are laid out plainly; raises as `symmetries`."""
        return plain_symmetries_of(self)


class OwnTokens(TokenRows, OwnModule):
    """A module of sequences of tokens that answers with logits of the next one at every place."""

    __slots__ = ()


def prepare() -> None:
    """Build, run and trace what the operator of this process has allowed: each once, and now.

    While a graph is traced, what other threads compute differs in its last bits, so that a node
    does it before it measures anything. A graph that cannot be read is no fault here. Raises
    `ArchitectureError` for a module that is no good.
    """
    for entry in entries():
        tokens = {"tokens": entry.vocabulary} if entry.vocabulary else {}
        options = json.loads(entry.options)
        said = {"factory": entry.name, "input": list(entry.input), **tokens}
        model = OwnModule.read(said | ({"options": options} if options else {}))
        with contextlib.suppress(ArchitectureError):
            model.permutation_spec()
