"""Modules whose symmetries are not understood: a named error, and what is to blame."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from node.params.derivation.derive import derive
from node.params.derivation.errors import UnderivableError


class Module(nn.Module):
    """A linear layer, and whatever is done with what comes of it."""

    def __init__(self, then: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.table = nn.Embedding(6, 6)
        self.register_buffer("seen", torch.zeros(6))
        self.then = then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(self, torch.relu(self.first(x)))


def branching(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return m.last(y) if y.sum() > 0 else m.last(-y)  # type: ignore[operator, no-any-return]


def looping(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    for _ in range(int(y.sum())):
        y = y + 1
    return m.last(y)  # type: ignore[operator, no-any-return]


def conditional(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    y = torch.cond(y.sum() > 0, lambda z: z + 1, lambda z: z - 1, (y,))
    return m.last(y)  # type: ignore[operator, no-any-return]


def of_data_shape(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return m.last(y)[y.sum(1).nonzero()[:, 0]]  # type: ignore[operator, no-any-return]


def masked(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return y[y > 0].sum()


def looked_up(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return m.table((y.sum(1) > 0).long())  # type: ignore[operator, no-any-return]


def picked(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    return m.last(y).gather(1, (y[:, :2] > 0).long())  # type: ignore[operator, no-any-return]


def counting(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    m.seen.add_(y.mean(0))  # type: ignore[operator]
    return m.last(y)  # type: ignore[operator, no-any-return]


def failing(m: nn.Module, y: torch.Tensor) -> torch.Tensor:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("then", "reason", "blamed"),
    [
        (branching, "untraceable", ""),
        (looping, "untraceable", ""),
        (conditional, "unknown-operation", "cond"),
        (of_data_shape, "unknown-operation", "nonzero"),
        (masked, "unknown-operation", "index"),
        (looked_up, "data-dependent-index", "aten.embedding"),
        (picked, "data-dependent-index", "aten.gather"),
        (counting, "mutation", "seen"),
        (failing, "untraceable", "KeyError"),
        (lambda m, y: m.table(y.argmax(1)), "unknown-operation", "aten.argmax"),
        (lambda m, y: m.last(torch.sort(y)[0]), "unknown-operation", "aten.sort"),
        (lambda m, y: m.last(torch.topk(y, 6)[0]), "unknown-operation", "aten.topk"),
        (lambda m, y: m.last(torch.fft.fft(y).real), "unknown-operation", "fft"),
        (lambda m, y: m.last(torch.linalg.qr(y)[0] @ y), "unknown-operation", "qr"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    then: Callable[[nn.Module, torch.Tensor], torch.Tensor], reason: str, blamed: str
) -> None:
    module = Module(then)
    with pytest.raises(UnderivableError) as error:
        derive(module, (torch.ones(2, 4),))
    assert reason in error.value.reason
    assert blamed in str(error.value)
    assert module.training
    assert "\n" not in str(error.value)


def test_a_recurrent_network_is_refused_by_name() -> None:
    with pytest.raises(UnderivableError) as error:
        derive(nn.LSTM(4, 5), (torch.zeros(3, 2, 4),))
    assert "lstm" in str(error.value)


def test_a_module_without_tensors_has_none_to_permute() -> None:
    with pytest.raises(UnderivableError) as error:
        derive(nn.ReLU(), (torch.zeros(3),))
    assert error.value.reason == "bad-module"


def test_tensors_that_share_a_part_of_their_memory_are_refused() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.bias.data = first.weight.data[0]
    with pytest.raises(UnderivableError) as error:
        derive(nn.Sequential(first, second), (torch.zeros(2, 4),))
    assert error.value.reason == "bad-module"


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnderivableError) as error:
        derive(nn.Linear(4, 3), (torch.zeros(2, 5),))
    assert error.value.reason == "untraceable"


def test_an_operation_that_needs_an_order_pins_it() -> None:
    """A running sum over hidden units, a table over them, a fixed vector added to them."""

    class Pinned(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.first, self.last, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x))
            match self.how:
                case "cumsum":
                    y = y.cumsum(1)
                case "constant":
                    y = y + torch.arange(6.0)
                case "index":
                    y = y[:, torch.tensor([5, 4, 3, 2, 1, 0])]
                case "flip":
                    y = y.flip(1)
                case "output":
                    return torch.cat([y, self.last(y)], 1)
            return self.last(y)  # type: ignore[no-any-return]

    assert len(derive(Pinned("none"), (torch.zeros(2, 4),)).groups) == 1
    for how in ("cumsum", "constant", "index", "flip", "output"):
        assert not derive(Pinned(how), (torch.zeros(2, 4),)).groups, how


def test_halves_of_a_layer_that_are_used_apart_are_groups_apart() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.last(functional.gelu(y[:, :3]) + torch.tanh(y[:, 3:]))  # type: ignore[no-any-return]

    spec = derive(Halves(), (torch.zeros(2, 4),))
    assert [group.size for group in spec.groups.values()] == [3]
