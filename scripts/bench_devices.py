"""What a device would change of a broker's work, as far as it can be seen without one.

Transfers: what one trial of two perceptrons (784-512-512-512-10, 2,500 rows that choose and 2,500
that score) sends to a device, the CPU standing for it. Recipes: the gain of weight matching by the
trade's own method in float64, and by similarities of weights in bfloat16, of perceptrons
64-256-256-256-10 that learned the digits 0-4 and 5-9; beside what brokers of a quorum allow between
their recipes. `torch.compile`: one forward pass, against the eager one, with what compiling takes
until the first answer, and after how many passes that is earned back; on one thread, without what
an earlier run has left behind, best of several in turns. A trial makes some tens of passes, of
several numbers of rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from broker_node.align.carrying import canonical, carried, sold_spec
from broker_node.align.stages import Aligned
from broker_node.align.symmetric_matching import match_symmetries
from broker_node.align.weight_matching import weight_matching
from broker_node.evaluate.device import OnDevice
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.search import SCREEN
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge import lerp, unit_alpha
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.clean import clean_split
from node.data.datasets import load_digits
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import weights_root
from node.params.families.base import TokenModel
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.params.symmetry import of_permutation_spec
from node.protocol.quorum import RECIPE_TOLERANCE
from node.protocol.types import ONE, Digest

SEED: Final = Digest(bytes(32))
PAIRS: Final = 10
EPOCHS: Final = 12
TURNS: Final = 7
PERCEPTRON: Final = Architecture("mlp", {"widths": [784, 512, 512, 512, 10]})
WIDE: Final = Architecture("mlp", {"widths": [64, 256, 256, 256, 10]})
COMPILED: Final[tuple[tuple[str, Architecture, tuple[int, ...]], ...]] = (
    ("mlp 784-512-512-512-10", PERCEPTRON, (256, 2_500)),
    (
        "resnet, depth 10",
        Architecture("resnet", {"classes": 10, "depth": 10, "image": [1, 28, 28], "widen": 1}),
        (64, 256),
    ),
    (
        "gpt, 2 layers of 64",
        Architecture(
            "gpt",
            {
                "context": 64,
                "depth": 2,
                "heads": 4,
                "hidden": 256,
                "norm": "rms",
                "tied": False,
                "vocabulary": 128,
                "width": 64,
            },
        ),
        (16, 64),
    ),
)

Pass = Callable[[Tensors, torch.Tensor], torch.Tensor]


def row(case: str, value: float, unit: str, against: str | None = None, than: float = 0) -> Any:
    ratio = value / than if against and than else None
    return {"case": case, "value": value, "unit": unit, "against": against, "ratio": ratio}


def verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    root = weights_root(tensors)
    return verify(Received(weights_root=root, architecture=architecture, tensors=tensors))


class Sent(TorchFunctionMode):
    """Counts what is asked to be on a device, by the memory that it lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[int, int] = {}
        self.bytes = 0

    def __torch_function__(
        self, func: Callable[..., Any], _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            memory = args[0].data_ptr()
            self.times[memory] = self.times.get(memory, 0) + 1
            self.bytes += args[0].nbytes
        return func(*args, **named)


def transfers(merging: str) -> Iterator[dict[str, Any]]:
    ours, theirs = (verified(PERCEPTRON, random_init(PERCEPTRON, seed)) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    rows = ValidationSet(
        torch.randn(5_000, 784, generator=generator),
        torch.randint(10, (5_000,), generator=generator),
    )
    aligned = weight_matching(ours, theirs, seed=0)
    with Sent() as sent:
        evaluate(aligned, rows, seed=SEED, merging=merging, runner=OnDevice(torch.device("cpu")))
    models = sum(t.nbytes for side in (ours, theirs) for t in side.tensors.values())
    least = models + rows.inputs_RF.nbytes + rows.targets_R.nbytes
    weights = [t for side in (ours.tensors, aligned.transformed) for t in side.values()]
    most = max(sent.times.get(tensor.data_ptr(), 0) for tensor in weights)
    yield row(f"a trial by {merging}: times that a model is sent, at most", most, "times")
    yield row(f"a trial by {merging}: sent in all", sent.bytes / 1e6, "MB", "2 models, all rows",
              least / 1e6)  # fmt: skip


def learned(seed: int, classes: list[int]) -> Verified:
    rows = load_digits(Path("/nowhere")).train
    inputs_RF, targets_R = (
        torch.from_numpy(each.copy()) for each in (rows.inputs_RF, rows.targets_R)
    )
    generator = torch.Generator().manual_seed(seed)
    known = torch.isin(targets_R, torch.tensor(classes))
    known |= torch.rand(len(targets_R), generator=generator) < 0.1
    inputs_RF, targets_R = inputs_RF[known], targets_R[known]
    tensors = {n: t.clone().requires_grad_() for n, t in random_init(WIDE, seed).items()}
    adam = torch.optim.Adam(tensors.values(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(targets_R), generator=generator), 64):
            adam.zero_grad()
            outputs = apply(WIDE, tensors, inputs_RF[batch])
            functional.cross_entropy(outputs, targets_R[batch]).backward()  # type: ignore[no-untyped-call]
            adam.step()
    return verified(WIDE, {name: tensor.detach().clone() for name, tensor in tensors.items()})


def in_sixteen_bits(buyer: Verified, seller: Verified) -> Aligned:
    """Return the pair as a device would match it."""
    spec = sold_spec(seller)
    ours, theirs = canonical(spec, buyer.tensors), canonical(spec, seller.tensors)
    found = match_symmetries(
        of_permutation_spec(spec, seller.tensors),
        ours.tensors,
        theirs.tensors,
        seed=0,
        device=torch.device("cpu"),
    )
    return carried(
        buyer,
        seller,
        permutations={name: tuple(units.tolist()) for name, units in found.permutations.items()},
        scales=(ours.scales, theirs.scales),
        method="weight-matching",
        seed=0,
    )


def recipes(pairs: int = PAIRS) -> Iterator[dict[str, Any]]:
    validation = ValidationSet.of(clean_split(load_digits(Path("/nowhere"))).validation)
    apart = []
    for seed in range(pairs):
        pair = learned(2 * seed, [0, 1, 2, 3, 4]), learned(2 * seed + 1, [5, 6, 7, 8, 9])
        gains = [
            evaluate(aligned, validation, seed=Digest(bytes([seed]) * 32)).gain
            for aligned in (weight_matching(*pair, seed=0), in_sixteen_bits(*pair))
        ]
        apart.append(abs(gains[0] - gains[1]) / ONE)
    allowed = RECIPE_TOLERANCE / ONE
    case = f"{pairs} pairs, weight matching in bfloat16"
    yield row(f"{case}: gain apart, at most", max(apart), "1", "what a quorum allows", allowed)
    yield row(f"{case}: pairs further apart than that", sum(a > allowed for a in apart), "pairs")


def compiling(
    case: str, architecture: Architecture, counts: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    def one(tensors: Tensors, rows_RF: torch.Tensor) -> torch.Tensor:
        return apply(architecture, tensors, rows_RF)

    def stack(tensors: Tensors, rows_RF: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(lambda each: apply(architecture, each, rows_RF))(dict(tensors))

    ends = random_init(architecture, 1), random_init(architecture, 2)
    merged = [interpolate(*ends, alpha) for alpha in SCREEN]
    stacked = {name: torch.stack([each[name] for each in merged]) for name in ends[0]}
    sides: tuple[tuple[str, Pass, Tensors], ...] = (("one", one, ends[0]), ("11", stack, stacked))
    generator = torch.Generator().manual_seed(0)
    model = architecture.model
    for models, eager, tensors in sides:
        torch.compiler.reset()
        compiled = torch.compile(eager)
        for count in counts:
            rows_RF = (
                model.random_rows(count, generator).float()
                if isinstance(model, TokenModel)
                else torch.randn(count, model.input_width(), generator=generator)
            )
            said = f"{case}, {models} at once, {count} rows"
            try:
                start = perf_counter()
                compiled(tensors, rows_RF)
                first = perf_counter() - start
            except RuntimeError as error:  # no compiler here: the row says so
                yield row(f"{said}: skipped, {type(error).__name__}", 0, "s")
                break
            before, after = _in_turns([partial(run, tensors, rows_RF) for run in (eager, compiled)])
            yield row(f"{said}, compiled", after * 1e3, "ms", "eager", before * 1e3)
            yield row(f"{said}, until the first answer", first, "s")
            saved = before - after
            if saved > 0:
                yield row(f"{said}, earned back after", first / saved, "passes")
            else:
                yield row(f"{said}, never earned back", 0, "passes")


def _in_turns(works: list[Callable[[], object]]) -> list[float]:
    best = [float("inf")] * len(works)
    for _ in range(TURNS):
        for at, work in enumerate(works):
            start = perf_counter()
            work()
            best[at] = min(best[at], perf_counter() - start)
    return best


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure now; `quick` compiles nothing."""
    torch.set_num_threads(1)
    found = [*transfers(lerp.NAME), *transfers(unit_alpha.NAME)]
    found += recipes(2 if quick else PAIRS)
    if quick:
        return found
    was = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            for case in COMPILED:
                found += compiling(*case)
        finally:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            if was is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = was
    return found
