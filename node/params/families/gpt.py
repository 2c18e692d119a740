"""Small decoder-only language models: causal attention and a perceptron in pre-norm blocks.

A row of inputs is `context` token ids, as numbers; the answer is logits of the next token behind
every one of them, logits_RTV. A row's target is the token after its last one, so that the row and
its target say what all T places should have answered (`Gpt.next_tokens`).

Attention is stored by heads: ``query``, ``key`` and ``value`` are heads x head units x width,
``out`` is width x heads x head units. Nothing has a bias, except `LayerNorm`. With root mean
square norms and a head of its own, what the model computes does not change when the residual
stream is rotated, once each norm's gain is folded into what reads it
(`broker_node.align.orthogonal`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from node.params.derivation.derive import derive
from node.params.families.base import ArchitectureError, read_fields, read_width
from node.params.families.modules import ModuleModel, check_size
from node.params.families.tokens import TokenRows
from node.params.permutation import PermutationSpec, Tensors
from node.params.symmetry import GaugeKind, SymmetrySpec, Units, plain_part, within

MAX_CONTEXT: Final = 1024
MAX_DEPTH: Final = 16
"""Symmetries are derived in a time that grows with it: of the order of a second a block."""
MAX_HEADS: Final = 64
MAX_VOCABULARY: Final = 2**16
MAX_ANSWERS: Final = 2**22
"""Of one row, over all places: what a few rows answer has to fit memory."""
NORMS: Final = ("layer", "rms")
EPSILON: Final = 1e-5
"""Under the root of a norm, the same in every precision."""
MAX_PLACES: Final = 8192
"""Places in text whose values `Gpt.activations` returns: those of the first rows."""

MAX_PAIRS: Final = 2**20


class _Attention(nn.Module):
    def __init__(self, model: Gpt) -> None:
        super().__init__()
        heads, units = model.heads, model.width // model.heads
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(heads, units, model.width) * model.width**-0.5)
            for _ in range(3)
        )
        spread = (2 * model.depth * model.width) ** -0.5
        self.out = nn.Parameter(torch.randn(model.width, heads, units) * spread)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        places = stream.shape[:2]
        queries, keys, values = (
            functional.linear(stream, weight.flatten(0, 1))
            .reshape(*places, *weight.shape[:2])
            .transpose(1, 2)
            for weight in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.out.flatten(1))


class _Block(nn.Module):
    def __init__(self, model: Gpt) -> None:
        super().__init__()
        self.norm1 = _norm(model)
        self.attention = _Attention(model)
        self.norm2 = _norm(model)
        self.up = nn.Linear(model.width, model.hidden, bias=False)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(model.hidden, model.width, bias=False)
        nn.init.normal_(self.up.weight, std=model.width**-0.5)
        nn.init.normal_(self.down.weight, std=(2 * model.depth * model.hidden) ** -0.5)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self.attention(self.norm1(stream))
        added: torch.Tensor = self.down(self.activation(self.up(self.norm2(stream))))
        return stream + added


class _Network(nn.Module):
    def __init__(self, model: Gpt) -> None:
        super().__init__()
        self.tokens = nn.Embedding(model.vocabulary, model.width)
        self.positions = nn.Embedding(model.context, model.width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=model.width**-0.5)
        self.blocks = nn.ModuleList(_Block(model) for _ in range(model.depth))
        self.norm = _norm(model)
        self.head = None if model.tied else nn.Linear(model.width, model.vocabulary, bias=False)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=model.width**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        stream = self.tokens(ids) + self.positions.weight
        for block in self.blocks:
            stream = block(stream)
        stream = self.norm(stream)
        head = self.tokens if self.head is None else self.head
        return functional.linear(stream, head.weight)


def _norm(model: Gpt) -> nn.Module:
    kind = nn.RMSNorm if model.norm == "rms" else nn.LayerNorm
    return kind(model.width, eps=EPSILON)


@dataclass(frozen=True, slots=True)
class Gpt(TokenRows, ModuleModel):
    """A language model of `depth` blocks over `vocabulary` tokens.

    Each block is a layer, with the embeddings before the first one and the head behind the last.
    """

    context: int
    """T, tokens in a row."""
    depth: int
    heads: int
    hidden: int
    """Units of a block's perceptron."""
    norm: str
    """``rms`` or ``layer``."""
    tied: bool
    """Whether the token embedding is the head as well."""
    vocabulary: int
    """V: tokens are 0 … V - 1."""
    width: int
    """Of the residual stream."""

    @classmethod
    def read(cls, config: Mapping[str, object]) -> Gpt:
        """Read the fields of this class, all of them; `ArchitectureError` for anything else."""
        context, depth, heads, hidden, norm, tied, vocabulary, width = read_fields(
            config, "context", "depth", "heads", "hidden", "norm", "tied", "vocabulary", "width"
        )
        if norm not in NORMS or not isinstance(norm, str):
            raise ArchitectureError(f"norm must be one of {', '.join(NORMS)}, got {norm!r:.40}")
        if not isinstance(tied, bool):
            raise ArchitectureError(f"tied must be true or false, got {tied!r:.40}")
        model = cls(
            context=_bounded(context, "context", MAX_CONTEXT),
            depth=_bounded(depth, "depth", MAX_DEPTH),
            heads=_bounded(heads, "heads", MAX_HEADS),
            hidden=read_width(hidden, "hidden"),
            norm=norm,
            tied=tied,
            vocabulary=_bounded(vocabulary, "vocabulary", MAX_VOCABULARY),
            width=read_width(width, "width"),
        )
        if model.width % model.heads:
            raise ArchitectureError(f"a width of {width} is not of {heads} equal heads")
        if model.context * model.vocabulary > MAX_ANSWERS:
            raise ArchitectureError(
                f"a row has {model.context * model.vocabulary} answers, of at most {MAX_ANSWERS}"
            )
        check_size(model)
        return model

    def config(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in sorted(self.__slots__)}

    def build(self) -> nn.Module:
        return _Network(self)

    def input_width(self) -> int:
        return self.context

    def output_width(self) -> int:
        return self.vocabulary

    def symmetries(self) -> SymmetrySpec:
        """Return all that the graph says, units inside of heads among it."""
        return derived_symmetries(self)

    def permutation_spec(self) -> PermutationSpec:
        """What the graph says, of whole units: the stream, heads as blocks, and hidden units.

        Units inside of a head, of which each head has an order of its own, stay as they are.
        """
        return _spec(self)

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values of the first `MAX_PLACES` places; nothing for some of the layers.

        Of the stream, those behind every block; of hidden units, those behind the activation; of
        a head how much each place heeds each other, which no change of basis inside alters.
        """
        if any(spec.name not in tensors for spec in self.layout()):
            return {}
        names = [
            f"blocks.{at}{part}"
            for at in range(self.depth)
            for part in ("", ".norm1", ".activation")
        ]
        values = self.values_of(tensors, inputs_RF[: max(2, MAX_PLACES // self.context)], names)
        stream = torch.cat([values[f"blocks.{at}"] for at in range(self.depth)])
        found = {("tokens.weight", 1): stream.flatten(0, 1)}
        for at in range(self.depth):
            name = f"blocks.{at}"
            found[f"{name}.up.weight", 0] = values[f"{name}.activation"].flatten(0, 1)
            weights = (tensors[f"{name}.attention.{part}"] for part in ("query", "key"))
            heeded = patterns(values[f"{name}.norm1"], *weights)
            found[f"{name}.attention.query", 0] = heeded.transpose(0, 1).flatten(1).T
        axes = _spec(self).axes
        return {
            axis.group: of_group
            for (name, dimension), of_group in found.items()
            if (axis := axes[name][dimension]) is not None
        }

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        names: list[list[str]] = [[] for _ in range(self.depth)]
        for spec in self.layout():
            first, _, rest = spec.name.partition(".")
            if first == "blocks":
                names[int(rest.partition(".")[0])].append(spec.name)
            else:
                names[0 if first in {"tokens", "positions"} else -1].append(spec.name)
        return tuple(tuple(each) for each in names)


def patterns(
    stream_RTD: torch.Tensor, query_HUD: torch.Tensor, key_HUD: torch.Tensor
) -> torch.Tensor:
    """Return how much each place heeds each other: rows x heads x places x places heeded.

    Of the first rows only, where all of them have more than `MAX_PAIRS` pairs of places.
    """
    stream_RTD = stream_RTD[: max(1, MAX_PAIRS // stream_RTD.shape[1] ** 2)]
    queries, keys = (
        torch.einsum("rtd,hud->rhtu", stream_RTD, weight) for weight in (query_HUD, key_HUD)
    )
    scores = queries @ keys.transpose(2, 3) * query_HUD.shape[1] ** -0.5
    later_TT = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    heeded: torch.Tensor = scores.masked_fill(later_TT, -torch.inf).softmax(-1)
    return heeded


def _bounded(value: object, what: str, most: int) -> int:
    found = read_width(value, what)
    if found > most:
        raise ArchitectureError(f"{what} must be 1 … {most}, got {found}")
    return found


@functools.lru_cache(maxsize=16)
def derived_symmetries(model: Gpt) -> SymmetrySpec:
    """Return all that the graph of the model says, units inside of heads among it.

    These have an axis of their own in every tensor, beside that of heads: what a graph says of two
    such axes is one order for all heads. That there is one for each head is said here.
    """
    with torch.device("meta"):
        module = model.build().eval()
        ids_RT = torch.zeros((2, model.context), dtype=torch.long)
    derived = derive(module, (ids_RT,))
    around = {}
    for at in range(model.depth):
        for part in ("query", "value"):
            heads, inside = derived.axes[f"blocks.{at}.attention.{part}"][:2]
            if isinstance(heads, Units) and isinstance(inside, Units):
                around[inside.group] = heads.group
    return within(derived, around)


@functools.lru_cache(maxsize=16)
def _spec(model: Gpt) -> PermutationSpec:
    derived = derived_symmetries(model)
    inside = {gauge.group for gauge in derived.gauges if gauge.kind is GaugeKind.LINEAR}
    return plain_part(derived, set(derived.groups) - inside, reads=derived.reads)
