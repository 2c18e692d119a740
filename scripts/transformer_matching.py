"""Deriving symmetries from a graph, and matching by them, against Git Re-Basin's algorithm.

`transformer768x12` is a decoder of GPT-2's shape (width 768, 12 layers, 12 heads, a vocabulary
of 4,096, so that the stream does not drown in the embedding) with random weights, and a permuted,
noisy copy of it; every head and every unit in a head has been renumbered, too. A narrower pair has
nothing in common: there no certificate holds, and every similarity is needed. The baseline is
weight matching as published: one group at a time in random order, the whole similarity,
an assignment solved by scipy every time, from the numbering as it comes, until a sweep gains
nothing, or ten have been made. Heads are a group to it, and so are the units of each head.
Both count in float32. Times are the processor's, on one thread: other work does not count.
"""

from __future__ import annotations

from time import process_time
from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional

from broker_node.align.symmetric_matching import match_symmetries
from node.params import blocks
from node.params.derivation.derive import derive
from node.params.permutation import Tensors
from node.params.symmetry import SymmetrySpec

WIDTH: Final = 768
LAYERS: Final = 12
HEADS: Final = 12
VOCABULARY: Final = 4096
TOKENS: Final = 16
AGAINST: Final = "Git Re-Basin's algorithm"
SWEEPS: Final = 10
"""At most; its authors' code has a hundred, and makes them all where groups gain by rounding."""
NOISE: Final = 0.5
"""Of the standard deviation of a tensor, as in `bench_align`."""


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = x.shape
        q, k, v = (
            part.view(rows, tokens, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(width, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        fed: torch.Tensor = self.down(functional.gelu(self.up(self.ln_2(x))))
        return x + fed


class Decoder(nn.Module):
    """A language model of GPT-2's shape, its embedding tied to its head."""

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(TOKENS, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(width)
        for tensor in self.parameters():
            if tensor.ndim > 1:
                nn.init.normal_(tensor, std=0.02)  # as GPT-2 is drawn

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.ln(x), self.tokens.weight)


def published_algorithm(
    spec: SymmetrySpec, ours: Tensors, theirs: Tensors, *, seed: int
) -> dict[str, torch.Tensor]:
    """Return the joint permutation of weight matching as published."""
    pairs = [
        (dims, a, b)
        for name in spec.axes
        for (dims, a), (_, b) in zip(
            blocks.blocks(spec, name, ours[name]),
            blocks.blocks(spec, name, theirs[name]),
            strict=True,
        )
    ]
    permutations = blocks.identity(spec)
    generator = np.random.Generator(np.random.Philox(seed))
    names = list(spec.groups)
    for _ in range(SWEEPS):
        gained = False
        for at in generator.permutation(len(names)):
            group = names[at]
            size = spec.groups[group].size
            perm = permutations[group].reshape(-1, size)
            similarity = torch.zeros(len(perm), size, size)
            for dims, a, b in pairs:
                for place, dim in enumerate(dims):
                    if dim.group != group:
                        continue
                    outer = blocks.around(spec, dims, place)
                    moved = blocks.permute_block(spec, dims, b, permutations, skip=(place,))
                    front = list(range(len(outer) + 1))
                    left, right = (
                        side.movedim([*outer, place], front).reshape(len(perm), size, -1)
                        for side in (a, moved)
                    )
                    similarity += left @ right.mT
            units = torch.arange(size)
            for instance, similarity_UV in enumerate(similarity):
                _, columns = linear_sum_assignment(similarity_UV.numpy(), maximize=True)
                candidate_U = torch.from_numpy(columns)
                before = float(similarity_UV[units, perm[instance]].sum(dtype=torch.float64))
                after = float(similarity_UV[units, candidate_U].sum(dtype=torch.float64))
                if after > before + 1e-6 * abs(before):
                    perm[instance] = candidate_U
                    gained = True
            permutations[group] = perm.reshape(permutations[group].shape)
        if not gained:
            break
    return permutations


def _objective(ours: Tensors, theirs: Tensors) -> float:
    return sum(float((t * theirs[name]).sum(dtype=torch.float64)) for name, t in ours.items())


def planted_pair(
    module: nn.Module, spec: SymmetrySpec
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a module's tensors, and a noisy copy in another order."""
    ours = {name: t.detach() for name, t in module.state_dict().items() if name in spec.axes}
    generator = torch.Generator().manual_seed(2)
    noisy = {
        name: t
        + NOISE * float(t.std() if t.numel() > 1 else 0) * torch.randn(t.shape, generator=generator)
        for name, t in ours.items()
    }
    return ours, blocks.permute(spec, noisy, blocks.random_permutation(spec, generator))


def _against_published(
    case: str, spec: SymmetrySpec, ours: Tensors, theirs: Tensors
) -> list[dict[str, Any]]:
    start = process_time()
    found = match_symmetries(spec, ours, theirs, seed=0)
    matching = process_time() - start
    start = process_time()
    published = published_algorithm(spec, ours, theirs, seed=0)
    baseline = process_time() - start
    attained = _objective(ours, blocks.permute(spec, theirs, published))
    return [
        {
            "case": f"{case} matching",
            "value": matching,
            "unit": "s",
            "against": AGAINST,
            "ratio": matching / baseline,
        },
        {
            "case": f"{case} objective",
            "value": found.objective,
            "unit": "1",
            "against": AGAINST,
            "ratio": found.objective / attained,
        },
    ]


def transformer_rows() -> list[dict[str, Any]]:
    """Measure now, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    inputs = torch.zeros(1, TOKENS, dtype=torch.long)
    derive(Decoder(8, 1, 2, 16), (inputs,))  # what is imported and compiled once
    module = Decoder(WIDTH, LAYERS, HEADS, VOCABULARY)
    start = process_time()
    spec = derive(module, (inputs,))
    derivation = process_time() - start
    measured = [{"case": "transformer768x12 derivation", "value": derivation, "unit": "s"}]
    measured += _against_published("transformer768x12", spec, *planted_pair(module, spec))
    narrow, stranger = (Decoder(192, 4, 6, 1024) for _ in range(2))
    spec = derive(narrow, (inputs,))
    pair = (
        {name: t.detach() for name, t in side.state_dict().items() if name in spec.axes}
        for side in (narrow, stranger)
    )
    return measured + _against_published("transformer192x4, unrelated", spec, *pair)
