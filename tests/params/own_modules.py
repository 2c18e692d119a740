"""Modules such as operators have, and functions that build them; some of these are no good."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from node.params.architecture import Architecture
from node.params.families.factories import Entry, allow, options_text

SIDE = 8
FEATURES = SIDE * SIDE
CLASSES = 10
IMAGE = [1, SIDE, SIDE]


def perceptron(hidden: int = 20) -> nn.Module:
    """Hyperbolic tangents, then ReLU: no family of the market."""
    return nn.Sequential(
        nn.Linear(FEATURES, hidden),
        nn.Tanh(),
        nn.Linear(hidden, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


class Residual(nn.Module):
    """Convolutions with batch normalisation, around one of which the stream goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.within = nn.Sequential(
            nn.Conv2d(width, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = torch.relu(self.stem(images))
        images = torch.relu(images + self.within(images))
        answer: torch.Tensor = self.head(images.mean((2, 3)))
        return answer


def residual(width: int = 8) -> nn.Module:
    return Residual(width)


class Patches(nn.Module):
    """A vision transformer of one layer, of PyTorch's own parts: queries, keys, values in one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 5, 16))
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        stream = torch.cat((self.first.expand(len(images), -1, -1), patches), 1) + self.places
        answer: torch.Tensor = self.head(self.layer(stream)[:, 0])
        return answer


def transformer() -> nn.Module:
    return Patches()


class Heads(nn.Module):
    """Attention whose heads have an axis of their own, over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(SIDE, 16)
        self.query, self.key, self.value = (nn.Parameter(torch.randn(3, 4, 16)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(16, 3, 4) / 4)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = torch.relu(self.into(images[:, 0]))
        queries, keys, values = (
            torch.einsum("btd,hud->bhtu", stream, weight)
            for weight in (self.query, self.key, self.value)
        )
        mixed = (queries @ keys.transpose(2, 3) / 4).softmax(-1) @ values
        stream = stream + torch.einsum("bhtu,dhu->btd", mixed, self.out)
        answer: torch.Tensor = self.head(stream.mean(1))
        return answer


def heads() -> nn.Module:
    return Heads()


class Sorting(nn.Module):
    """Sorts its units by value, of which no rule knows what it does to their order."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(FEATURES, 20), nn.Linear(20, CLASSES)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.out(torch.sort(self.into(rows))[0])
        return answer


def sorting() -> nn.Module:
    return Sorting()


class NextToken(nn.Module):
    """Tokens in, logits of the next one out, by the same matrix; drawn angles beside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 12)
        self.up, self.down = nn.Linear(12, 18), nn.Linear(18, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.tokens.weight
        self.drawn: torch.Tensor
        self.register_buffer("drawn", torch.randn(6, 1), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        stream = self.tokens(ids)
        stream = stream + self.down(torch.relu(self.up(stream))) * self.drawn
        answer: torch.Tensor = self.head(stream)
        return answer


def next_token() -> nn.Module:
    return NextToken()


class Turning(nn.Module):
    """Turns its rows by a matrix that is not in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.turn: torch.Tensor
        turn = torch.linalg.qr(torch.randn(FEATURES, FEATURES)).Q
        self.register_buffer("turn", turn, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layer(rows @ self.turn)
        return answer


def turning() -> nn.Module:
    return Turning()


def failing() -> nn.Module:
    raise RuntimeError("the disk\nis full")


def no_module() -> object:
    return 3


class _Answering(nn.Module):
    def __init__(self, answer: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(FEATURES, CLASSES), answer

    def forward(self, rows: torch.Tensor) -> object:
        return self.answer(self.layer(rows))


def transposing() -> nn.Module:
    return _Answering(lambda logits: logits.T)


def answering_pairs() -> nn.Module:
    return _Answering(lambda logits: (logits, logits))


def stumbling() -> nn.Module:
    return _Answering(lambda logits: logits[:, 99])


def of_one_precision() -> nn.Module:
    return _Answering(lambda logits: logits @ torch.eye(CLASSES))


def complex_weights() -> nn.Module:
    module = nn.Linear(FEATURES, CLASSES)
    module.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    return module


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 9), nn.LazyLinear(CLASSES))


class Counting(nn.Module):
    """Answers by how often it was asked, which it writes where its weights are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.kind, self.asked = kind, nn.Parameter(torch.zeros(1))
        if kind == "buffer":
            del self.asked
            self.register_buffer("asked", torch.zeros(1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if self.kind == "made":
                self.register_buffer("later", torch.zeros(1))
            else:
                self.asked.add_(1)
        answer: torch.Tensor = self.layer(rows) * self.asked
        return answer


def counting_in_a_buffer() -> nn.Module:
    return Counting("buffer")


def counting_in_a_parameter() -> nn.Module:
    return Counting("parameter")


def making_a_buffer() -> nn.Module:
    return Counting("made")


def of_old_weight_norm() -> nn.Module:
    """With a tensor that is no leaf: `copy.deepcopy` cannot have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        conv = nn.utils.weight_norm(nn.Conv2d(1, 6, 3, padding=1))
    return nn.Sequential(
        conv, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, CLASSES),
    )  # fmt: skip


class Fussy(nn.Module):
    """Answers in evaluation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.norm.training:
            raise IndexError("not\nin training")
        answer: torch.Tensor = self.layer(self.norm(rows))
        return answer


def fussy() -> nn.Module:
    return Fussy()


built: list[int] = []
"""A mark for each time that `spied` was called."""


def spied(width: int = 16) -> nn.Module:
    built.append(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, width), nn.Linear(width, CLASSES))


def name_of(factory: Callable[..., object]) -> str:
    return f"{__name__}:{factory.__name__}"


def entry_of(
    factory: Callable[..., object],
    *sides: int,
    options: dict[str, object] | None = None,
    tokens: int = 0,
) -> Entry:
    """What allows that a function of this file is called."""
    return Entry(name_of(factory), sides, tokens, options_text(options or {}))


def own(factory: Callable[..., object], *sides: int, **more: Any) -> Architecture:
    """What a function of this file builds, once it is allowed."""
    allow(entry_of(factory, *sides, **more))
    return Architecture("module", {"factory": name_of(factory), "input": list(sides), **more})
