"""Running models on a device: the losses of a trial, several α at once.

A device is given the weights once for a trial and rows in batches. What it computes is float32
without shortcuts (no TF32, deterministic convolutions), so that losses agree with the CPU's within
`LOSS_TOLERANCE`. Merges on a device only choose α: the merged model is made on the CPU, in
float32, with a root that is equal on every machine. Several α are one forward pass of stacked
weights (`torch.func.vmap`, which turns the layers into batched products).

A device that runs out of memory is asked again for fewer models at once, then for fewer rows, and
at last the CPU computes; that and the like is told in `fallbacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import torch

from broker_node.evaluate.curve import ON_CPU, Runner, losses_of, wanted_of
from node.params.architecture import Architecture, apply
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


class OnDevice:
    """Runs models on one device, for one trial."""

    def __init__(
        self,
        device: torch.device,
        *,
        rows_at_once: int = ROWS_AT_ONCE,
        models_at_once: int = MODELS_AT_ONCE,
    ) -> None:
        self._device: torch.device | None = device
        self._name = str(device)
        self._rows = rows_at_once
        self._models = models_at_once
        self._batches = True
        self._moved: list[tuple[Tensors, dict[str, torch.Tensor]]] = []
        self._fallbacks: dict[str, str] = {}

    def fallbacks(self) -> tuple[str, ...]:
        return tuple(f"{what}: {said}" for what, said in self._fallbacks.items())

    # ── what a trial asks for ──

    def outputs(
        self, architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        def compute(device: torch.device) -> torch.Tensor:
            weights = self._on(device, tensors)
            parts = [
                apply(architecture, weights, part_RF.to(device)).cpu().double()
                for part_RF in torch.split(inputs_RF, self._rows)
            ]
            return torch.cat(parts)

        return self._tried(compute, lambda: ON_CPU.outputs(architecture, tensors, inputs_RF))

    def losses(
        self,
        architecture: Architecture,
        tensors: Tensors,
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
    ) -> torch.Tensor:
        wanted = wanted_of(architecture, inputs_RF, targets_R)

        def compute(device: torch.device) -> torch.Tensor:
            weights = self._on(device, tensors)
            return torch.cat(
                [
                    _losses(apply(architecture, weights, part_RF), part_R)
                    for part_RF, part_R in self._parts(device, inputs_RF, wanted)
                ]
            )

        return self._tried(
            compute, lambda: ON_CPU.losses(architecture, tensors, inputs_RF, targets_R)
        )

    def along(
        self,
        architecture: Architecture,
        ends: tuple[Tensors, Tensors],
        alphas: Sequence[Millionths],
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
    ) -> torch.Tensor | None:
        wanted = wanted_of(architecture, inputs_RF, targets_R)

        def compute(device: torch.device) -> torch.Tensor:
            base, other = (self._on(device, end) for end in ends)
            found = []
            for at in range(0, len(alphas), self._models):
                stacked = _stacked(base, other, alphas[at : at + self._models])
                parts = self._parts(device, inputs_RF, wanted)
                found.append(
                    torch.cat([self._together(architecture, stacked, *part) for part in parts], 1)
                )
            return torch.cat(found)

        def one_by_one() -> torch.Tensor:
            return torch.stack(
                [
                    ON_CPU.losses(architecture, interpolate(*ends, alpha), inputs_RF, targets_R)
                    for alpha in alphas
                ]
            )

        return self._tried(compute, one_by_one)

    # ── how it is run ──

    def _parts(
        self, device: torch.device, inputs_RF: torch.Tensor, targets_R: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        sides = (torch.split(inputs_RF, self._rows), torch.split(targets_R, self._rows))
        for part_RF, part_R in zip(*sides, strict=True):
            yield part_RF.to(device), part_R.to(device)

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
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._batches = False
                said = str(error).partition("\n")[0][:200]
                self._fallbacks["no-batching"] = f"one model at a time on {self._name} ({said})"
        each_model = ({name: side[at] for name, side in stacked.items()} for at in range(count))
        return torch.stack([_losses(run(tensors), targets_R) for tensors in each_model])

    def _on(self, device: torch.device, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Return tensors on the device, sent there once for as long as they are in use."""
        for known, moved in self._moved:
            if known is tensors:
                return moved
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        self._moved = [*self._moved[-1:], (tensors, moved)]
        return moved

    def _tried(self, compute: Callable[[torch.device], T], on_cpu: Callable[[], T]) -> T:
        while self._device is not None:
            try:
                _be_exact(self._device)
                with torch.inference_mode():
                    return compute(self._device)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # only here has the error let go of what the failed attempt held
            self._give_way(self._device)
        return on_cpu()

    def _give_way(self, device: torch.device) -> None:
        self._moved.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if self._models > 1:
            self._models //= 2
        elif self._rows > LEAST_ROWS:
            self._rows = max(LEAST_ROWS, self._rows // 2)
        else:
            self._device = None
        self._fallbacks["out-of-memory"] = (
            f"{self._name} is too small, the cpu evaluates"
            if self._device is None
            else f"at most {self._models} models and {self._rows} rows at once on {self._name}"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory; Apple's, and the libraries of CUDA, say so in words."""
    said = str(error)
    named = "out of memory" in said or "ALLOC_FAILED" in said
    return named or isinstance(error, torch.OutOfMemoryError)


def _losses(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    if outputs_RO.device.type == "mps":  # it has no float64
        outputs_RO, targets_R = outputs_RO.cpu(), targets_R.cpu()
    return losses_of(outputs_RO.double(), targets_R)


def _stacked(
    base: Tensors, other: Tensors, alphas: Sequence[Millionths]
) -> dict[str, torch.Tensor]:
    """Return `interpolate(base, other, alpha)` for A values of α, each tensor as A of them."""
    stacked = {}
    for name, tensor in base.items():
        if name not in other:
            stacked[name] = tensor.expand(len(alphas), *tensor.shape)
            continue
        shape = (-1, *(1,) * tensor.ndim)
        keep, take = (
            torch.tensor(shares, dtype=torch.float32, device=tensor.device).view(shape)
            for shares in ([(ONE - alpha) / ONE for alpha in alphas], [a / ONE for a in alphas])
        )
        stacked[name] = tensor * keep + other[name] * take
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
