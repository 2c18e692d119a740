"""Running models on a device: the losses of a trial, several α at once.

A device is given the weights of each model once for a trial, and its rows once (`residents`); what
is merged of them is merged there. What it computes is float32 without shortcuts (no TF32,
deterministic convolutions), so that losses agree with the CPU's within `LOSS_TOLERANCE`. A merge
is products and sums of float32, each rounded by itself, on any device; what is handed out is made
on the CPU all the same, with a root that is equal on every machine. Several α are one forward pass
of stacked weights (`torch.func.vmap`, which turns the layers into batched products).

A device that runs out of memory is asked again for fewer models at once, then for fewer rows, and
at last the CPU computes; that and the like is told in `fallbacks`. Apple's has no float64, and is
only asked to run models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import torch

from broker_node.evaluate.curve import (
    EVERY,
    ON_CPU,
    Between,
    Model,
    Runner,
    losses_of,
    wanted_of,
)
from broker_node.evaluate.residents import Residence, sent
from node.params.architecture import Architecture, apply
from node.params.device_memory import is_out_of_memory
from node.params.families.base import ArchitectureError
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Millionths

T = TypeVar("T")

DEVICES: Final = ("cpu", "cuda", "mps", "auto")
ROWS_AT_ONCE: Final = 8_192
MODELS_AT_ONCE: Final = 16
LEAST_ROWS: Final = 16
"""A batch that is smaller would not help: what does not fit is the model."""


def device_of(name: str) -> torch.device:
    """Return the device of one of `DEVICES`. Raises `LocalProtocolError` for one that is not here.

    ``auto`` is the first of cuda, mps and cpu that there is.
    """
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if name == "auto":
        name = next((kind for kind, is_there in there.items() if is_there()), "cpu")
    if name not in DEVICES:
        raise LocalProtocolError(f"no device {name!r}; there are {', '.join(DEVICES)}")
    if name in there and not there[name]():
        raise LocalProtocolError(f"device = {name}: PyTorch {torch.__version__} sees none here")
    return torch.device(name)


def runner_on(name: str) -> Runner:
    """Return what runs the models of one trial. Raises `LocalProtocolError` as `device_of`."""
    device = device_of(name)
    return ON_CPU if device.type == "cpu" else OnDevice(device)


def fetches_by_itself(name: str) -> bool:
    """Whether models for one of `DEVICES` are best read into locked memory: CUDA, where it is."""
    return name in {"cuda", "auto"} and torch.cuda.is_available()


class OnDevice:
    """Runs models on one device, for one trial."""

    def __init__(
        self,
        device: torch.device,
        *,
        rows_at_once: int = ROWS_AT_ONCE,
        models_at_once: int = MODELS_AT_ONCE,
    ) -> None:
        self._place: Residence | None = Residence(device)
        self._name = str(device)
        self._rows = rows_at_once
        self._models = models_at_once
        self._batches = True
        self._narrow = False
        """Whether rows are sent part by part, since all of them at once were too many."""
        self._wanted: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._fallbacks: dict[str, str] = {}

    def fallbacks(self) -> tuple[str, ...]:
        return tuple(self._fallbacks.values())

    # ── what a trial asks for ──

    def outputs(
        self, architecture: Architecture, model: Model, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        def compute(place: Residence) -> torch.Tensor:
            weights = _made(place, model)
            parts = [
                apply(architecture, weights, part_RF).cpu().double()
                for (part_RF,) in self._parts(place, EVERY, inputs_RF)
            ]
            return torch.cat(parts)

        return self._tried(compute, lambda: ON_CPU.outputs(architecture, _here(model), inputs_RF))

    def losses(
        self,
        architecture: Architecture,
        model: Model,
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        rows: slice = EVERY,
    ) -> torch.Tensor:
        wanted = self._wanted_of(architecture, inputs_RF, targets_R)

        def compute(place: Residence) -> torch.Tensor:
            weights = _made(place, model)
            return torch.cat(
                [
                    _losses(apply(architecture, weights, part_RF), part_R)
                    for part_RF, part_R in self._parts(place, rows, inputs_RF, wanted)
                ]
            )

        return self._tried(
            compute, lambda: ON_CPU.losses(architecture, _here(model), inputs_RF, targets_R, rows)
        )

    def along(
        self,
        architecture: Architecture,
        ends: tuple[Tensors, Tensors],
        alphas: Sequence[Millionths],
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        rows: slice = EVERY,
    ) -> torch.Tensor | None:
        wanted = self._wanted_of(architecture, inputs_RF, targets_R)

        def compute(place: Residence) -> torch.Tensor:
            base, other = (place.weights(end) for end in ends)
            found = []
            for at in range(0, len(alphas), self._models):
                stacked = _stacked(base, other, alphas[at : at + self._models])
                parts = self._parts(place, rows, inputs_RF, wanted)
                found.append(
                    torch.cat([self._together(architecture, stacked, *part) for part in parts], 1)
                )
            return torch.cat(found)

        def one_by_one() -> torch.Tensor:
            merges = (_here(Between(*ends, alpha)) for alpha in alphas)
            return torch.stack(
                [ON_CPU.losses(architecture, each, inputs_RF, targets_R, rows) for each in merges]
            )

        return self._tried(compute, one_by_one)

    def elsewhere(self, what: str, compute: Callable[[Residence], T], here: Callable[[], T]) -> T:
        for _ in range(2):  # once more with nothing beside it on the device
            if self._place is None or self._place.device.type == "mps":
                return here()
            try:
                _be_exact(self._place.device)
                return compute(self._place)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._place.clear()
        self._fallbacks[what] = f"out-of-memory: {self._name} is too small, {what} is the cpu's"
        return here()

    # ── how it is run ──

    def _wanted_of(
        self, architecture: Architecture, inputs_RF: torch.Tensor, targets_R: torch.Tensor
    ) -> torch.Tensor:
        """Return `wanted_of`, the same tensor for the same rows: it is sent once, too."""
        for inputs, targets, wanted in self._wanted:
            if inputs is inputs_RF and targets is targets_R:
                return wanted
        wanted = wanted_of(architecture, inputs_RF, targets_R)
        self._wanted = [*self._wanted[-1:], (inputs_RF, targets_R, wanted)]
        return wanted

    def _parts(
        self, place: Residence, rows: slice, *sides: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the rows on the device, so many at a time, of inputs or of inputs and targets."""
        there = not self._narrow and place.holds(*sides)
        if there:
            sides = place.rows(*sides)
        begin, end, _ = rows.indices(len(sides[0]))
        split = [torch.split(side.narrow(0, begin, end - begin), self._rows) for side in sides]
        for parts in zip(*split, strict=True):
            yield parts if there else tuple(sent(part, place.device) for part in parts)

    def _together(
        self,
        architecture: Architecture,
        stacked: dict[str, torch.Tensor],
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
    ) -> torch.Tensor:
        """Return losses_AR of A stacked models."""
        count = len(next(iter(stacked.values())))

        def run(tensors: Tensors) -> torch.Tensor:
            return apply(architecture, tensors, inputs_RF)

        if self._batches and count > 1:
            try:
                outputs = torch.func.vmap(run)(stacked)
                return torch.stack([_losses(each, targets_R) for each in outputs])
            except (RuntimeError, ArchitectureError) as error:  # the latter of one's own modules
                if is_out_of_memory(error):
                    raise
                self._batches = False
                said = str(error).partition("\n")[0][:200]
                self._fallbacks["no-batching"] = (
                    f"no-batching: one model at a time on {self._name} ({said})"
                )
        each_model = ({name: side[at] for name, side in stacked.items()} for at in range(count))
        return torch.stack([_losses(run(tensors), targets_R) for tensors in each_model])

    def _tried(self, compute: Callable[[Residence], T], on_cpu: Callable[[], T]) -> T:
        while self._place is not None:
            try:
                _be_exact(self._place.device)
                with torch.inference_mode():
                    return compute(self._place)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # only here has the error let go of what the failed attempt held
            self._give_way(self._place)
        return on_cpu()

    def _give_way(self, place: Residence) -> None:
        place.clear()
        if self._models > 1:
            self._models //= 2
        elif self._rows > LEAST_ROWS:
            self._rows, self._narrow = max(LEAST_ROWS, self._rows // 2), True
        else:
            self._place = None
        said = (
            f"{self._name} is too small, the cpu evaluates"
            if self._place is None
            else f"at most {self._models} models and {self._rows} rows at once on {self._name}"
        )
        self._fallbacks["out-of-memory"] = f"out-of-memory: {said}"


def _here(model: Model) -> Model:
    """Return a model on the CPU, where all are but those that somebody stacked on the device."""
    if not isinstance(model, Between):
        return {name: tensor.cpu() for name, tensor in model.items()}
    base, other = ({n: t.cpu() for n, t in side.items()} for side in (model.base, model.other))
    return Between(base, other, model.alpha, model.shares)


def _made(place: Residence, model: Model) -> dict[str, torch.Tensor]:
    """Return a model on the device; a merge is made there, of what lies there."""
    if not isinstance(model, Between):
        return place.weights(model)
    base, other = place.weights(model.base), place.weights(model.other)
    if model.shares or model.alpha in {0, ONE}:
        return interpolate(base, other, model.alpha, shares=model.shares)
    return {name: side[0] for name, side in _stacked(base, other, [model.alpha]).items()}


def _losses(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    if outputs_RO.device.type == "mps":  # it has no float64
        outputs_RO, targets_R = outputs_RO.cpu(), targets_R.cpu()
    return losses_of(outputs_RO.double(), targets_R)


def _stacked(
    base: Tensors, other: Tensors, alphas: Sequence[Millionths]
) -> dict[str, torch.Tensor]:
    """Return `interpolate(base, other, alpha)` for A values of α, each tensor as A of them."""
    device = next(iter(base.values())).device
    keep_A, take_A = (
        torch.tensor(shares, dtype=torch.float32, device=device)
        for shares in ([(ONE - alpha) / ONE for alpha in alphas], [a / ONE for a in alphas])
    )
    stacked = {}
    for name, tensor in base.items():
        along = (-1, *(1,) * tensor.ndim)
        stacked[name] = (
            tensor * keep_A.view(along) + other[name] * take_A.view(along)
            if name in other
            else tensor.expand(len(alphas), *tensor.shape)
        )
    return stacked


def _be_exact(device: torch.device) -> None:
    """Have float32 computed as such, by algorithms that give the same sums every time.

    Of the whole process, and for good: threads share these settings, and one that put them back
    would change the figures of another.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
