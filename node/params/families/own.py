"""Modules of an operator's own, of any architecture whose graph can be read.

A text names the function that builds the module, and the shape of what the module takes:

    {"factory": "mine.models:build", "input": [3, 32, 32], "options": {"width": 64}}

`options` are keywords of the function, and left out where there are none. With `tokens`, the number
of different tokens, a row is a sequence of ids, `input` its length, and the module answers logits
of the next token at every place; without, it takes rows of the shape `input` and answers logits_RC.

What the function is, both sides have to agree on beforehand: a text carries its name alone, and is
understood by those whose operators have named it too (`node.params.families.factories`). Tensors
are the floating-point ones of the module's state, running statistics among them; integers and what
is not in its state are as the function makes them, under one seed for all. Symmetries are derived
from the graph, once they are asked for, and borne out by outputs.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from node.params.derivation.check import derive_checked
from node.params.derivation.errors import UnderivableError
from node.params.derivation.trace import ties_of
from node.params.families.base import (
    MAX_TENSORS,
    ArchitectureError,
    check_parameter_count,
    read_width,
)
from node.params.families.factories import allowed, is_name, options_text
from node.params.families.modules import ModuleModel, skeleton
from node.params.families.tokens import TokenRows
from node.params.permutation import PermutationSpec, Tensors, restrict
from node.params.symmetry import SymmetrySpec, plain_groups
from node.params.unit_values import catching, standardised, thinned
from node.protocol.errors import LocalProtocolError
from node.protocol.parameters import Layout, TensorSpec, make_layout

NAME: Final = "module"
MAX_SIDES: Final = 6
MAX_FEATURES: Final = 2**20
MAX_VOCABULARY: Final = 2**18
MAX_ANSWERS: Final = 2**22
"""Of one row: what a few rows answer has to fit memory."""
BATCH: Final = 256
"""Rows whose units' values are held at once."""
MAX_PLACES: Final = 4096
"""Rows, and places in them, of which a unit's values are returned, for each layer."""
_REQUIRED: Final = {"factory", "input"}
_SEED: Final = 0
"""Of what a module holds beside its tensors: the same on every side."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a module once it was built and run."""

    layout: Layout
    outputs: int
    ties: Mapping[str, str]
    """Other names of a tensor in the module's state → its name in the layout."""
    beside: frozenset[str]
    """Of the module's state, what is not in the layout: integers, and other names."""
    statistics: frozenset[str]
    """Of the layout, what batch normalisation keeps of data."""


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

        That is ``unknown-architecture`` for a function that the operator has not named, and
        ``bad-architecture`` for all else.
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
        said = options_text(options)
        allowed(factory, said)
        model = cls(factory, shape, said)
        if "tokens" in config:
            vocabulary = read_width(config["tokens"], "tokens")
            if vocabulary > MAX_VOCABULARY or len(shape) != 1:
                raise ArchitectureError(
                    f"tokens must be at most {MAX_VOCABULARY}, and input their number in a row"
                )
            model = OwnTokens(factory, shape, said, vocabulary)
        facts_of(model)
        return model

    def config(self) -> dict[str, object]:
        said: dict[str, object] = {"factory": self.factory, "input": list(self.input)}
        options = json.loads(self.options)
        said |= {"options": options} if options else {}
        return said | ({"tokens": self.vocabulary} if self.vocabulary else {})

    # ── the module ──

    def build(self) -> nn.Module:
        """Return the module in float32 as its function makes it. Raises `ArchitectureError`."""
        make = allowed(self.factory, self.options)
        try:
            module = make(**json.loads(self.options))
        except Exception as error:  # an operator's own function may raise anything
            raise self._fault("cannot build", error) from error
        if not isinstance(module, nn.Module):
            raise ArchitectureError(f"{self.factory} gave a {type(module).__name__}, no nn.Module")
        return module.float()

    def empty(self) -> nn.Module:
        module = self._seeded(_SEED).eval()
        owned = {id(tensor): name for name, tensor in self._state(module).items()}
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
        module = self._seeded(_SEED).eval()
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
        state = self._state(module)
        return {spec.name: state[spec.name].detach().clone() for spec in self.layout()}

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        return self.tensors_of(self._seeded(seed))

    def _seeded(self, seed: int) -> nn.Module:
        # whatever asks first: a module is kept, and has gradients at times
        with torch.random.fork_rng(devices=[]), torch.inference_mode(mode=False):
            torch.manual_seed(seed)
            return self.build()

    @staticmethod
    def _state(module: nn.Module) -> dict[str, torch.Tensor]:
        state = module.state_dict(keep_vars=True)
        return {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}

    def _fault(self, what: str, error: Exception) -> ArchitectureError:
        return ArchitectureError(f"{self.factory} {what}: {_told(error)}")

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
        except torch.OutOfMemoryError:
            raise  # of a device: a smaller batch may do
        except Exception as error:  # an operator's own module may raise anything
            what = f"fails on rows of {list(self.input)} in {like.dtype}"
            raise self._fault(what, error) from error
        return logits

    def run(self, module: nn.Module, inputs_RF: torch.Tensor) -> torch.Tensor:
        """Return what a module of its own weights answers to R rows. Raises `ArchitectureError`."""
        try:
            logits_RC: torch.Tensor = module(self.rows(inputs_RF))
        except Exception as error:  # an operator's own module may raise anything
            what = f"fails on {len(inputs_RF)} rows of {list(self.input)}"
            raise self._fault(what, error) from error
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
        found = _derived(self)
        if isinstance(found, str):
            raise ArchitectureError(
                f"only --align identity can be had: the graph of {self.factory} is not "
                f"understood, {found}",
                reason="no-symmetries",
            )
        return found

    def permutation_spec(self) -> PermutationSpec:
        """Return those of its groups that are laid out plainly; raises as `symmetries`."""
        return _plain(self)


class OwnTokens(TokenRows, OwnModule):
    """A module of sequences of tokens that answers with logits of the next one at every place."""

    __slots__ = ()


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _example(model: OwnModule) -> torch.Tensor:
    """Return two rows of the module's own shape, the same at every call."""
    generator = torch.Generator().manual_seed(_SEED)
    if isinstance(model, OwnTokens):
        return model.rows(model.random_rows(2, generator))
    return torch.randn((2, *model.input), generator=generator)


@functools.lru_cache(maxsize=256)
def facts_of(model: OwnModule) -> Facts:
    """Return what a module is, by building and running it. Raises `ArchitectureError`."""
    module = model._seeded(_SEED).eval()  # noqa: SLF001  the other half of the class
    rows = _example(model)
    try:
        with torch.no_grad():
            answer = module(rows)  # a lazy module has its tensors from then on
    except Exception as error:  # an operator's own module may raise anything
        raise model._fault(f"fails on rows of {list(model.input)}", error) from error  # noqa: SLF001
    outputs = _outputs(model, answer)
    state = model._state(module)  # noqa: SLF001
    try:
        ties = ties_of(state)
        layout = make_layout(
            TensorSpec(name, "F32", tuple(tensor.shape))
            for name, tensor in state.items()
            if name not in ties and (tensor.is_floating_point() or tensor.is_complex())
        )
    except LocalProtocolError as error:
        raise model._fault("has tensors that cannot be traded", error) from error  # noqa: SLF001
    strange = [spec.name for spec in layout if not state[spec.name].is_floating_point()]
    if strange or len(layout) > MAX_TENSORS:
        what = f"{strange[0]}, which is complex" if strange else f"over {MAX_TENSORS}"
        raise ArchitectureError(f"{model.factory} has tensors that cannot be traded: {what}")
    check_parameter_count(sum(math.prod(spec.shape) for spec in layout))
    exact = {spec.name: state[spec.name].detach().double() for spec in layout}
    with torch.no_grad():  # alignments are checked in float64
        model.answers(module, exact, rows.double() if rows.is_floating_point() else rows)
    norms = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
    running = {f"{n}.{kept}".lstrip(".") for n in norms for kept in ("running_mean", "running_var")}
    return Facts(
        layout=layout,
        outputs=outputs,
        ties=ties,
        beside=frozenset(state) - {spec.name for spec in layout},
        statistics=frozenset(spec.name for spec in layout if spec.name in running),
    )


def _outputs(model: OwnModule, answer: object) -> int:
    """Return how many numbers an answer has. Raises `ArchitectureError` for no logits."""
    rows, vocabulary = ((2, *model.input), model.vocabulary) if model.vocabulary else ((2,), 0)
    wanted = f"[rows, {model.input[0]}, {vocabulary}]" if vocabulary else "[rows, classes]"
    if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
        kind = answer.dtype if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ArchitectureError(f"{model.factory} answers {kind}, and not logits {wanted}")
    right = answer.shape[:-1] == rows and answer.ndim > 1 and answer.shape[-1] > 0
    if not right or (vocabulary and answer.shape[-1] != vocabulary):
        raise ArchitectureError(
            f"{model.factory} answers 2 rows of {list(model.input)} with {list(answer.shape)}, and "
            f"not with logits {wanted}"
        )
    return int(answer.shape[-1])


@functools.lru_cache(maxsize=32)
def _derived(model: OwnModule) -> SymmetrySpec | str:
    """Return the symmetries of what is traded, or why there are none."""
    module = model._seeded(_SEED).eval()  # noqa: SLF001
    try:
        spec = derive_checked(module, (_example(model),))
    except UnderivableError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  an operator's own module runs, and may raise anything
        return _told(error)
    names = {spec.name for spec in model.layout()}
    return replace(spec, axes={name: axes for name, axes in spec.axes.items() if name in names})


@functools.lru_cache(maxsize=32)
def _plain(model: OwnModule) -> PermutationSpec:
    spec = plain_groups(model.symmetries())
    return replace(restrict(spec, spec.axes), statistics=facts_of(model).statistics)
