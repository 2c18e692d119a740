"""What is found out about a module of an operator's own by building, running and tracing it.

Each is found once in a process. What is wrong with a module is said by its function's name, and by
the tensor's where it is one's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from node.params.alone import ALONE, drawing
from node.params.derivation.check import derive_checked
from node.params.derivation.errors import UnderivableError
from node.params.derivation.trace import ties_of
from node.params.families.base import MAX_TENSORS, ArchitectureError, check_parameter_count
from node.params.permutation import PermutationSpec, restrict
from node.params.symmetry import SymmetrySpec, plain_groups
from node.protocol.errors import LocalProtocolError
from node.protocol.parameters import Layout, TensorSpec, make_layout

if TYPE_CHECKING:
    from node.params.families.own import OwnModule

SEED: Final = 0
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


def told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _example(model: OwnModule) -> torch.Tensor:
    """Return two rows of the module's own shape, the same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    if model.vocabulary:
        return torch.randint(model.vocabulary, (2, *model.input), generator=generator)
    return torch.randn((2, *model.input), generator=generator)


@functools.lru_cache(maxsize=256)
def facts_of(model: OwnModule) -> Facts:
    """Return what a module is, by building and running it. Raises `ArchitectureError`."""
    module = model.seeded().eval()
    _require_initialised(model, module)
    before = {name: held.detach().clone() for name, held in model.state_of(module).items()}
    rows = _example(model)
    try:
        with drawing(SEED), torch.no_grad():
            answer = module(rows)
    except Exception as error:  # an operator's own module may raise anything
        raise model.fault(f"fails on rows of {list(model.input)}", error) from error
    _require_untouched(model, before, model.state_of(module))
    outputs = _outputs(model, answer)
    state = model.state_of(module)
    try:
        ties = ties_of(state)
        layout = make_layout(
            TensorSpec(name, "F32", tuple(tensor.shape))
            for name, tensor in state.items()
            if name not in ties and (tensor.is_floating_point() or tensor.is_complex())
        )
    except LocalProtocolError as error:
        raise model.fault("has tensors that cannot be traded", error) from error
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


def _require_initialised(model: OwnModule, module: nn.Module) -> None:
    for name, tensor in model.state_of(module).items():
        if is_lazy(tensor):
            raise ArchitectureError(
                f"{name} of {model.factory} has no shape before a row was seen: build it of layers "
                "that are told their widths, nn.Linear in the place of nn.LazyLinear"
            )


def _require_untouched(
    model: OwnModule, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> None:
    """Raise `ArchitectureError` if a run in evaluation mode made other tensors of the state."""
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after or not _same(before[name], after[name]):
            raise ArchitectureError(
                f"{model.factory} writes {name} as it answers, and so would change weights that "
                "were verified: write nothing of its state in evaluation mode"
            )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


@functools.lru_cache(maxsize=256)
def _derived(model: OwnModule) -> SymmetrySpec | str:
    """Return the symmetries of what is traded, or why its graph says none.

    Raises `ArchitectureError` ``no-symmetries`` for whatever else keeps them from being had, which
    another try may find gone.
    """
    module = model.seeded().eval()
    try:
        spec = derive_checked(module, (_example(model),))
    except UnderivableError as error:
        return str(error)
    except Exception as error:  # an operator's own module runs, and may raise anything
        raise _no_symmetries(model, told(error)) from error
    names = {spec.name for spec in model.layout()}
    return replace(spec, axes={name: axes for name, axes in spec.axes.items() if name in names})


def _no_symmetries(model: OwnModule, why: str) -> ArchitectureError:
    return ArchitectureError(
        f"only --align identity can be had: the graph of {model.factory} is not understood, {why}",
        reason="no-symmetries",
    )


def symmetries_of(model: OwnModule) -> SymmetrySpec:
    """Return all that the graph says. Raises `ArchitectureError` ``no-symmetries``."""
    with ALONE:  # who asks meanwhile waits for the answer, and does not derive it too
        found = _derived(model)
    if isinstance(found, str):
        raise _no_symmetries(model, found)
    return found


@functools.lru_cache(maxsize=256)
def plain_symmetries_of(model: OwnModule) -> PermutationSpec:
    """Return those of its groups that are laid out plainly; raises as `symmetries_of`."""
    spec = plain_groups(symmetries_of(model))
    return replace(restrict(spec, spec.axes), statistics=facts_of(model).statistics)
