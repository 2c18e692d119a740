"""How long one alignment takes, against Algorithm 1 as it is printed.

Pairs are a trained-size network and a permuted, rescaled, noisy copy of it. The baseline is
the same coordinate descent written down literally: the whole model permuted anew for every
similarity, an assignment solved by scipy every time, started once from the numbering.
Both work on the same canonical scales; `objective` is what each attains. Then the same for
language models, by symmetries read off their graph (`transformer_matching`): two minutes,
which --quick leaves out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from broker_node.align.gauge import balanced_scales
from broker_node.align.matching import match_units
from broker_node.align.weight_matching import weight_matching
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, permutation_spec, random_init
from node.params.encoding import weights_root
from node.params.permutation import PermutationSpec, Tensors, permute, rescale
from scripts.transformer_matching import transformer_rows

NETWORKS: Final = {
    "784-32-32-32-16-10": [784, 32, 32, 32, 16, 10],
    "784-512-512-512-10": [784, 512, 512, 512, 10],
}
NOISE: Final = 0.5
"""Of the standard deviation of a tensor: far enough for several sweeps."""
REPEATS: Final = 7


def _verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def _pair(widths: list[int]) -> tuple[Verified, Verified]:
    architecture = Architecture("mlp", {"widths": widths})
    spec = permutation_spec(architecture)
    ours = random_init(architecture, 1)
    generator = torch.Generator().manual_seed(2)
    noisy = {
        name: tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in ours.items()
    }
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: torch.exp2(4 * torch.rand(group.size, generator=generator) - 2)
        for name, group in spec.groups.items()
    }
    theirs = rescale(spec, permute(spec, noisy, permutations), scales)
    return _verified(architecture, ours), _verified(architecture, theirs)


def _canonical(spec: PermutationSpec, model: Verified) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.double() for name, tensor in model.tensors.items()}
    return rescale(spec, tensors, balanced_scales(spec, tensors))


def _objective(ours: Tensors, theirs: Tensors) -> float:
    return sum(float((tensor * theirs[name]).sum()) for name, tensor in ours.items())


def printed_algorithm(spec: PermutationSpec, ours: Tensors, theirs: Tensors) -> float:
    """Return the objective that Algorithm 1 attains, computed literally."""
    permutations = {name: list(range(group.size)) for name, group in spec.groups.items()}
    generator = np.random.Generator(np.random.Philox(0))
    gained = True
    while gained:
        gained = False
        for index in generator.permutation(len(spec.groups)):
            group = list(spec.groups)[index]
            size = spec.groups[group].size
            others = {name: p for name, p in permutations.items() if name != group}
            moved = permute(spec, theirs, others)
            similarity_UV = torch.zeros(size, size, dtype=torch.float64)
            for name, axes in spec.axes.items():
                for dimension, axis in enumerate(axes):
                    if axis is not None and axis.group == group:
                        ours_UF = ours[name].movedim(dimension, 0).reshape(size, -1)
                        theirs_VF = moved[name].movedim(dimension, 0).reshape(size, -1)
                        similarity_UV += ours_UF @ theirs_VF.T
            _, columns = linear_sum_assignment(similarity_UV.numpy(), maximize=True)
            before = float(similarity_UV[range(size), permutations[group]].sum())
            after = float(similarity_UV[range(size), columns].sum())
            if after > before + 1e-12 * abs(before):
                permutations[group] = columns.tolist()
                gained = True
    return _objective(ours, permute(spec, theirs, permutations))


def _milliseconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return 1e3 * statistics.median(times)


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure now, on one thread; perceptrons alone if `quick`."""
    torch.set_num_threads(1)
    measured: list[dict[str, Any]] = []
    for label, widths in NETWORKS.items():
        ours, theirs = _pair(widths)
        spec = permutation_spec(ours.architecture)
        canonical = _canonical(spec, ours), _canonical(spec, theirs)
        whole = _milliseconds(lambda: weight_matching(ours, theirs, seed=0))  # noqa: B023
        matching = _milliseconds(lambda: match_units(spec, *canonical, seed=0))  # noqa: B023
        printed = _milliseconds(lambda: printed_algorithm(spec, *canonical))  # noqa: B023
        objective = match_units(spec, *canonical, seed=0).objective
        attained = printed_algorithm(spec, *canonical)
        measured += [
            {
                "case": f"{label} alignment, scales and checks included",
                "value": whole,
                "unit": "ms",
            },
            {
                "case": f"{label} matching",
                "value": matching,
                "unit": "ms",
                "against": "Algorithm 1 as printed",
                "ratio": matching / printed,
            },
            {
                "case": f"{label} objective",
                "value": objective,
                "unit": "1",
                "against": "Algorithm 1 as printed",
                "ratio": objective / attained,
            },
        ]
    return measured if quick else measured + transformer_rows()
