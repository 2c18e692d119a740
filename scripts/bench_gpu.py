"""What a device does of a broker's work, set against what the device can do at most.

Peaks first, measured here: a copy within the device, products of square matrices, and copies to
it. Then matching of the pair `transformer768x12` (`transformer_matching`; similarities of weights
in bfloat16 on the device, assignments on the CPU), with the shares that products, assignments and
transfers have of its time, and against Git Re-Basin's algorithm on the CPU; and the screen of a
trial (11 values of α of an MLP on 8,192 rows) in stacked passes, against one pass for each α,
against `torch.compile`, and against the CPU; and a whole trial of that MLP. Times are the wall's,
the best of three, the device waited for. In the row of shares the device is waited for after every
step, which costs some.

Without a CUDA device there is one row, which says that it was skipped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final
from unittest import mock

import torch
from scipy.optimize import linear_sum_assignment

from broker_node.align import similarity, symmetric_matching
from broker_node.align.symmetric_matching import match_symmetries
from broker_node.align.weight_matching import weight_matching
from broker_node.evaluate.curve import ON_CPU, Runner
from broker_node.evaluate.device import OnDevice
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.search import SCREEN
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge import unit_alpha
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params import blocks
from node.params.architecture import Architecture, apply, random_init
from node.params.derivation.derive import derive
from node.params.encoding import weights_root
from node.params.recipe import interpolate
from node.protocol.types import Digest
from scripts.transformer_matching import TOKENS, Decoder, planted_pair, published_algorithm

REPEATS: Final = 3
CPU: Final = "the CPU"
PEAK: Final = "the device's measured rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the work is."""

    square: int = 8_192
    copied: int = 2**30
    """Bytes."""
    decoder: tuple[int, int, int, int] = (768, 12, 12, 4_096)
    """Width, layers, heads, vocabulary."""
    widths: tuple[int, ...] = (784, 512, 512, 512, 10)
    rows: int = 8_192
    compiles: bool = True


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the least wall time of some runs, the first of which does not count."""
    work()
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        start = perf_counter()
        work()
        _wait(device)
        best = min(best, perf_counter() - start)
    return best


def _row(case: str, value: float, unit: str, against: str | None = None, than: float = 0) -> Any:
    ratio = value / than if against and than else None
    return {"case": case, "value": value, "unit": unit, "against": against, "ratio": ratio}


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the device can do at most, in units a second."""

    bandwidth: float
    """Bytes read and written."""
    transfer: float
    """Bytes from pageable memory."""
    locked: float
    """Bytes from page-locked memory; of the CPU, which has none, as from any."""
    float32: float
    """Operations of products."""
    bfloat16: float


def peaks(device: torch.device, sizes: Sizes) -> Peaks:
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _seconds(device, lambda: target.copy_(source))
    # written to: pages that never were are all one page, which a cache holds
    outside = torch.full((sizes.copied // 4,), 1, dtype=torch.uint8)
    sent = _seconds(device, lambda: target[: len(outside)].copy_(outside))
    if device.type == "cuda":
        outside = outside.pin_memory()
    fetched = _seconds(
        device, lambda: target[: len(outside)].copy_(outside, non_blocking=outside.is_pinned())
    )
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.randn(sizes.square, sizes.square, device=device).to(dtype)
        seconds = _seconds(device, partial(torch.mm, square, square, out=square.clone()))
        rates[dtype] = 2 * sizes.square**3 / seconds
    return Peaks(
        bandwidth=2 * len(source) / copy,
        transfer=len(outside) / sent,
        locked=len(outside) / fetched,
        float32=rates[torch.float32],
        bfloat16=rates[torch.bfloat16],
    )


@dataclass(slots=True)
class Clock:
    """Seconds by kind of work, and operations of the products among it."""

    device: torch.device
    products: float = 0.0
    assignments: float = 0.0
    transfers: float = 0.0
    operations: int = 0

    def timed(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            _wait(self.device)
            start = perf_counter()
            found = work(*arguments, **named)
            _wait(self.device)
            setattr(self, kind, getattr(self, kind) + perf_counter() - start)
            if kind == "products":
                _, ours_UF, theirs_VF = arguments
                self.operations += 2 * ours_UF.numel() * len(theirs_VF)
            return found

        return run


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Clock]:
    """Time the parts of a matching."""
    clock = Clock(device)
    with (
        mock.patch.object(
            similarity, "add_products_", clock.timed("products", similarity.add_products_)
        ),
        mock.patch.object(
            similarity,
            "linear_sum_assignment",
            clock.timed("assignments", linear_sum_assignment),
        ),
        mock.patch.object(
            symmetric_matching, "sent", clock.timed("transfers", symmetric_matching.sent)
        ),
        mock.patch.object(
            symmetric_matching, "each", lambda work, items, _: list(map(work, items))
        ),
    ):
        yield clock


def matching(device: torch.device, sizes: Sizes, peak: Peaks) -> Iterator[dict[str, Any]]:
    torch.manual_seed(1)
    width, layers, heads, vocabulary = sizes.decoder
    module = Decoder(width, layers, heads, vocabulary)
    spec = derive(module, (torch.zeros(1, TOKENS, dtype=torch.long),))
    ours, theirs = planted_pair(module, spec)
    case = f"transformer{width}x{layers}"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _seconds(device, lambda: match_symmetries(spec, ours, theirs, seed=0, device=device))
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device) / 1e9
        both = 2 * sum(tensor.nbytes for tensor in ours.values()) / 1e9
        yield _row(f"{case} memory of the device, at most", held, "GB", "both models", both)
    found = match_symmetries(spec, ours, theirs, seed=0, device=device)
    start = perf_counter()
    here = match_symmetries(spec, ours, theirs, seed=0)
    on_cpu = perf_counter() - start
    start = perf_counter()
    published = published_algorithm(spec, ours, theirs, seed=0)
    baseline = perf_counter() - start
    moved = blocks.permute(spec, theirs, published)
    attained = sum(float((ours[name] * moved[name]).sum(dtype=torch.float64)) for name in ours)
    algorithm = "Git Re-Basin's algorithm, CPU"
    yield _row(f"{case} matching", seconds, "s", algorithm, baseline)
    yield _row(f"{case} matching", seconds, "s", CPU, on_cpu)
    yield _row(f"{case} objective", found.objective, "1", algorithm, attained)
    yield _row(f"{case} objective", found.objective, "1", CPU, here.objective)
    with watched(device) as clock:
        start = perf_counter()
        match_symmetries(spec, ours, theirs, seed=0, device=device)
        _wait(device)
        whole = perf_counter() - start
    yield _row(f"{case} products (GEMM), share of the time", clock.products / whole, "1")
    yield _row(f"{case} assignments, share of the time", clock.assignments / whole, "1")
    yield _row(f"{case} transfers, share of the time", clock.transfers / whole, "1")
    rate = clock.operations / max(clock.products, 1e-9)
    yield _row(f"{case} products in bfloat16", rate / 1e12, "TFLOP/s", PEAK, peak.bfloat16 / 1e12)


def screen(device: torch.device, sizes: Sizes, peak: Peaks) -> Iterator[dict[str, Any]]:
    architecture = Architecture("mlp", {"widths": list(sizes.widths)})
    ends = (random_init(architecture, 1), random_init(architecture, 2))
    generator = torch.Generator().manual_seed(3)
    inputs_RF = torch.randn(sizes.rows, sizes.widths[0], generator=generator)
    targets_R = torch.randint(sizes.widths[-1], (sizes.rows,), generator=generator)
    layers = zip(sizes.widths[:-1], sizes.widths[1:], strict=True)
    operations = 2 * len(SCREEN) * sizes.rows * sum(a * b for a, b in layers)

    def stacked(models: int) -> torch.Tensor | None:
        runner = OnDevice(device, models_at_once=models)
        return runner.along(architecture, ends, SCREEN, inputs_RF, targets_R)

    together = _seconds(device, lambda: stacked(len(SCREEN)))
    singly = _seconds(device, lambda: stacked(1))
    on_cpu = _seconds(
        device,
        lambda: [
            ON_CPU.losses(architecture, interpolate(*ends, alpha), inputs_RF, targets_R)
            for alpha in SCREEN
        ],
    )
    case = f"screen of 11 α, {sizes.rows} rows"
    yield _row(f"{case}, stacked", together, "s", "one model at a time", singly)
    yield _row(f"{case}, stacked", together, "s", CPU, on_cpu)
    rate = operations / together / 1e12
    yield _row(f"{case}, whole", rate, "TFLOP/s", PEAK, peak.float32 / 1e12)
    moved = [{name: t.to(device) for name, t in end.items()} for end in ends]
    there_RF = inputs_RF.to(device)
    sent = _seconds(
        device,
        lambda: [inputs_RF.to(device), *(t.to(device) for end in ends for t in end.values())],
    )
    yield _row(f"{case}, transfers, share of the time", sent / together, "1")
    nbytes = inputs_RF.nbytes + sum(t.nbytes for end in ends for t in end.values())
    yield _row(f"{case}, transfers", nbytes / sent / 1e9, "GB/s", PEAK, peak.transfer / 1e9)
    with torch.inference_mode():
        merging = _seconds(device, lambda: interpolate(moved[0], moved[1], SCREEN[3]))
        touched = 3 * sum(t.nbytes for t in moved[0].values())
        rate = touched / merging / 1e9
        yield _row("one merge in float32", rate, "GB/s", PEAK, peak.bandwidth / 1e9)

        def run(tensors: dict[str, torch.Tensor], rows_RF: torch.Tensor) -> torch.Tensor:
            return apply(architecture, tensors, rows_RF)

        eager = _seconds(device, lambda: run(moved[0], there_RF))
        if not sizes.compiles:
            return
        try:
            compiled = torch.compile(run)
            seconds = _seconds(device, lambda: compiled(moved[0], there_RF))
        except RuntimeError as error:  # no compiler here: the row says so
            yield _row(f"torch.compile: skipped, {type(error).__name__}", 0, "s")
        else:
            yield _row("one forward pass, torch.compile", seconds, "s", "eager", eager)


def trial(device: torch.device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Time a trial from the aligned pair to the gain, shares of units and all."""
    architecture = Architecture("mlp", {"widths": list(sizes.widths)})
    pair = [_verified(architecture, seed) for seed in (1, 2)]
    generator = torch.Generator().manual_seed(3)
    rows = ValidationSet(
        torch.randn(sizes.rows, sizes.widths[0], generator=generator),
        torch.randint(sizes.widths[-1], (sizes.rows,), generator=generator),
    )
    aligned = weight_matching(pair[0], pair[1], seed=0)

    def run(runner: Runner) -> object:
        seed = Digest(bytes(32))
        return evaluate(aligned, rows, seed=seed, merging=unit_alpha.NAME, runner=runner)

    there = _seconds(device, lambda: run(OnDevice(device)))
    here = _seconds(device, lambda: run(ON_CPU))
    yield _row(f"a trial by unit-alpha, {sizes.rows} rows", there, "s", CPU, here)


def _verified(architecture: Architecture, seed: int) -> Verified:
    tensors = random_init(architecture, seed)
    root = weights_root(tensors)
    return verify(Received(weights_root=root, architecture=architecture, tensors=tensors))


def measured(device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    """Return all rows of a device."""
    peak = peaks(device, sizes)
    return [
        _row("copy within the device", peak.bandwidth / 1e9, "GB/s"),
        _row("copy to the device, pageable", peak.transfer / 1e9, "GB/s"),
        _row("copy to the device, page-locked", peak.locked / 1e9, "GB/s"),
        _row("products in float32", peak.float32 / 1e12, "TFLOP/s"),
        _row("products in bfloat16", peak.bfloat16 / 1e12, "TFLOP/s"),
        *matching(device, sizes, peak),
        *screen(device, sizes, peak),
        *trial(device, sizes),
    ]


def rows() -> list[dict[str, Any]]:
    """Measure now, on the CUDA device that there is."""
    if not torch.cuda.is_available():
        said = f"skipped: PyTorch {torch.__version__} sees no CUDA device"
        return [{"case": said, "value": 0, "unit": "rows"}]
    device = torch.device("cuda")
    name = {"case": torch.cuda.get_device_name(device), "value": 1, "unit": "device"}
    return [name, *measured(device, Sizes())]
