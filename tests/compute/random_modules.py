"""Random architectures: images, sequences and vectors, of parts put together at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "leaky": functional.leaky_relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}
Draw = Callable[[Any], Any]
activations = st.sampled_from(sorted(ACTIVATIONS))


class Act(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self.name](x)


class Residual(nn.Module):
    """x + f(x), or with a projection where the widths differ."""

    def __init__(self, inner: nn.Module, project: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.project = inner, project

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x if self.project is None else self.project(x)
        return short + self.inner(x)  # type: ignore[no-any-return]


class Dense(nn.Module):
    """x and f(x) side by side."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.inner(x)], dim=1)


class Gate(nn.Module):
    """Squeeze and excite, or for vectors: one linear map gated by another."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3)) if x.ndim == 4 else x
        gate = torch.sigmoid(self.up(functional.relu(self.down(pooled))))
        return x * (gate[:, :, None, None] if x.ndim == 4 else gate)


class Twice(nn.Module):
    """The same layers one after the other: their tensors serve twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.inner(x))  # type: ignore[no-any-return]


class Shuffle(nn.Module):
    """Channels of several groups interleaved."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, channels, *space = x.shape
        split = x.view(rows, self.groups, channels // self.groups, *space)
        return split.transpose(1, 2).reshape(rows, channels, *space)


def _norm(draw: Draw, channels: int) -> nn.Module:
    kind = draw(st.sampled_from(["none", "batch", "group", "layer", "instance"]))
    divisors = [g for g in (2, 3) if channels % g == 0 and channels > g] or [1]
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(draw(st.sampled_from(divisors)), channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


def _conv(draw: Draw, into: int, out: int) -> nn.Module:
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3, into) if into % g == out % g == 0]))
    kernel = draw(st.sampled_from([1, 3]))
    bias = draw(st.booleans())
    kind = nn.ConvTranspose2d if draw(st.integers(0, 7)) == 7 else nn.Conv2d
    return kind(into, out, kernel, padding=kernel // 2, groups=groups, bias=bias)


def _stage(draw: Draw, into: int) -> tuple[nn.Module, int]:
    out = draw(st.sampled_from([4, 6]))
    kind = draw(st.sampled_from(["plain", "residual", "dense", "gate", "shuffle", "pool"]))
    body = nn.Sequential(_conv(draw, into, out), _norm(draw, out), Act(draw(activations)))
    match kind:
        case "residual":
            inner = nn.Sequential(body, _conv(draw, out, into))
            return nn.Sequential(Residual(inner), Act(draw(activations))), into
        case "dense" if into <= 8:
            return Dense(body), into + out
        case "gate":
            return nn.Sequential(body, Gate(out, 3)), out
        case "shuffle":
            return nn.Sequential(body, Shuffle(2)), out
        case "pool":
            return nn.Sequential(body, nn.MaxPool2d(3, 1, 1)), out
    return body, out


@st.composite
def image_modules(draw: Draw) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    stages: list[nn.Module] = []
    channels = 4
    stride = draw(st.sampled_from([1, 1, 2]))
    stages.append(nn.Conv2d(3, channels, 3, stride, padding=1))
    for _ in range(draw(st.integers(1, 3))):
        stage, channels = _stage(draw, channels)
        stages.append(stage)
    if draw(st.booleans()):
        stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    else:
        stages += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3)]
    side = 4 * stride
    return nn.Sequential(*stages), (torch.randn(2, 3, side, side, generator=_generator()),)


@st.composite
def vector_modules(draw: Draw) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    stages: list[nn.Module] = []
    width = 5
    for _ in range(draw(st.integers(1, 4))):
        out = draw(st.sampled_from([4, 6]))
        norm = draw(st.sampled_from([nn.Identity, nn.LayerNorm, nn.BatchNorm1d]))
        act = draw(st.sampled_from(["act", "act", "act", "prelu", "glu"]))
        body = nn.Sequential(
            nn.Linear(width, 2 * out if act == "glu" else out, bias=draw(st.booleans())),
            norm(2 * out) if act == "glu" else norm(out),
            nn.GLU()
            if act == "glu"
            else nn.PReLU(out)
            if act == "prelu"
            else Act(draw(activations)),
        )
        match draw(st.sampled_from(["plain", "residual", "dense", "gate", "twice"])):
            case "twice":
                again = nn.Sequential(body, nn.Linear(out, width))
                stages.append(Twice(Residual(again) if draw(st.booleans()) else again))
            case "residual":
                project = None if draw(st.booleans()) else nn.Linear(width, width)
                stages.append(Residual(nn.Sequential(body, nn.Linear(out, width)), project))
            case "dense" if width <= 8:
                stages.append(Dense(body))
                width += out
            case "gate":
                stages += [body, Gate(out, 3)]
                width = out
            case _:
                stages.append(body)
                width = out
    return nn.Sequential(*stages, nn.Linear(width, 3)), (
        torch.randn(16, 5, generator=_generator()),
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    """Heads of queries that share fewer ones of keys and values; rotary, fused or neither."""

    def __init__(self, width: int, heads: int, shared: int, form: str, *, rotary: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.form, self.rotary = heads, shared, form, rotary
        self.size = 4
        self.width = heads * self.size
        self.narrow = heads // shared * self.size
        self.qkv = nn.Linear(width, self.width + 2 * self.narrow)
        self.out = nn.Linear(self.width, width)

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * angles.cos().to(x) + half * angles.sin().to(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        mixed = self.qkv(x)
        if self.form == "stacked" and self.shared == 1:
            parts = mixed.reshape(rows, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (
                part.view(rows, tokens, -1, self.size).transpose(1, 2)
                for part in mixed.split([self.width, self.narrow, self.narrow], dim=-1)
            )
        if self.rotary:
            q, k = self._turned(q), self._turned(k)
        if self.shared > 1:
            k, v = (side.repeat_interleave(self.shared, dim=1) for side in (k, v))
        if self.form == "written":
            scores = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)
            mixed = scores @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(rows, tokens, -1))  # type: ignore[no-any-return]


class Separate(nn.Module):
    """Attention of separate matrices, every token seeing all; queries and keys may be normed."""

    def __init__(self, width: int, heads: int, shared: int, *, normed: bool) -> None:
        super().__init__()
        self.shared, self.size = shared, 4
        self.q = nn.Linear(width, heads * self.size)
        self.k = nn.Linear(width, heads // shared * self.size, bias=False)
        self.v = nn.Linear(width, heads // shared * self.size)
        self.out = nn.Linear(heads * self.size, width)
        self.q_norm, self.k_norm = (
            RmsNorm(self.size) if normed else nn.Identity() for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        q, k, v = (side(x).view(rows, tokens, -1, self.size) for side in (self.q, self.k, self.v))
        q, k, v = (side.transpose(1, 2) for side in (self.q_norm(q), self.k_norm(k), v))
        k, v = (side.repeat_interleave(self.shared, dim=1) for side in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(rows, tokens, -1))  # type: ignore[no-any-return]


class SwiGlu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Embeddings, places, layers, and a head that may be the embedding."""

    def __init__(self, width: int, layers: nn.Module, *, tied: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Embedding(6, width)
        self.layers, self.norm = layers, nn.LayerNorm(width)
        self.head = nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.layers(x)))  # type: ignore[no-any-return]


class Patches(nn.Module):
    """An image cut into tokens, layers, and a head on one token of its own or on the mean."""

    def __init__(self, width: int, layers: nn.Module, *, own: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.own = nn.Parameter(torch.zeros(1, 1, width)) if own else None
        self.places = nn.Parameter(torch.zeros(1, 5 if own else 4, width))
        self.layers, self.norm, self.head = layers, nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.own is not None:
            x = torch.cat([self.own.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.layers(x + self.places))
        return self.head(x.mean(1) if self.own is None else x[:, 0])  # type: ignore[no-any-return]


HEADS = [(1, 1), (2, 1), (3, 1), (4, 2), (2, 2)]
"""Heads of queries, and how many of them share one of keys and values."""


def _layers(draw: Draw, width: int, *, causal: bool) -> nn.Module:
    layers: list[nn.Module] = []
    norm = draw(st.sampled_from([nn.LayerNorm, RmsNorm]))
    for _ in range(draw(st.integers(1, 2))):
        heads, shared = draw(st.sampled_from(HEADS))
        attention: nn.Module
        if causal and draw(st.booleans()):
            form = draw(st.sampled_from(["split", "stacked", "written"]))
            attention = Attention(width, heads, shared, form, rotary=draw(st.booleans()))
        else:
            attention = Separate(width, heads, shared, normed=draw(st.booleans()))
        inner = draw(st.sampled_from([5, 7]))
        mlp: nn.Module = SwiGlu(width, inner)
        if draw(st.booleans()):
            act = Act(draw(activations))
            mlp = nn.Sequential(nn.Linear(width, inner), act, nn.Linear(inner, width))
        for part in (attention, mlp):
            if draw(st.booleans()):
                layers.append(Residual(nn.Sequential(norm(width), part)))
            else:
                layers += [Residual(part), norm(width)]
    whole = nn.Sequential(*layers)
    return Twice(whole) if draw(st.integers(0, 4)) == 4 else whole


@st.composite
def sequence_modules(draw: Draw) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    width = draw(st.sampled_from([6, 8]))
    module = Tokens(width, _layers(draw, width, causal=True), tied=draw(st.booleans()))
    return module, (torch.arange(10).reshape(2, 5) % 11,)


@st.composite
def patch_modules(draw: Draw) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    width = draw(st.sampled_from([6, 8]))
    module = Patches(width, _layers(draw, width, causal=False), own=draw(st.booleans()))
    return module, (torch.randn(2, 3, 4, 4, generator=_generator()),)


class Foreign(nn.Module):
    """An operation that sees units in an order of its own, which no rule knows."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.name:
            case "sort":
                return x.sort(dim=1).values
            case "topk":
                return x * (x >= x.topk(2, 1).values[:, -1:])
            case "fft":
                return torch.fft.fft(x, dim=1).abs()  # type: ignore[no-any-return]
            case "maxout":
                return functional.adaptive_max_pool1d(x[:, None], x.shape[1])[:, 0]
        return x if x.sum() > 0 else -x


FOREIGN = ("sort", "topk", "fft", "maxout", "branch")


@st.composite
def foreign_modules(draw: Draw) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """One such operation among layers that are understood."""
    module, args = draw(vector_modules())
    assert isinstance(module, nn.Sequential)
    parts = list(module)
    parts.insert(draw(st.integers(1, len(parts) - 1)), Foreign(draw(st.sampled_from(FOREIGN))))
    return nn.Sequential(*parts), args


KINDS: dict[str, Any] = {
    "vectors": vector_modules(),
    "images": image_modules(),
    "sequences": sequence_modules(),
    "patches": patch_modules(),
}
modules = st.one_of(*KINDS.values())
