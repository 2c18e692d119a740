"""What of a user's modules can be sold is what can be shown to be a function of the market."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from node.market import Architecture, architecture_of, load_into, tensors_of
from node.market.modules import checked_tensors
from node.params.architecture import apply, random_init
from node.params.errors import ProfileError
from node.params.families.base import ArchitectureError

MLP = Architecture("mlp", {"widths": [6, 5, 3]})


class Net(nn.Module):
    """A model as users write them: layers, and a `forward` of its own."""

    def __init__(
        self, activation: Callable[[torch.Tensor], torch.Tensor] = functional.relu
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(5, 3)
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows_RF = inputs.view(inputs.shape[0], -1)
        result: torch.Tensor = self.out(self.dropout(self.activation(self.hidden(rows_RF))))
        return result


class Drawing(Net):
    """Draws random numbers that it does not use."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        return super().forward(inputs)


class OwnForward(nn.Sequential):
    """Looks like an MLP, and is none."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for part in self:
            inputs = part(inputs)
        return inputs.softmax(dim=-1)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(inputs - self.get_buffer("mean"))
        return result


class Aliased(nn.Module):
    """Holds its layers under two names each, and applies each once."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 5), nn.Linear(5, 3)
        self.net = nn.Sequential(self.hidden, nn.ReLU(), self.out)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net(inputs)
        return result


class Thresholded(nn.Module):
    """ReLU below a level that no usual input reaches, and cut off there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(functional.hardtanh(self.first(inputs), 0.0, 500.0))
        return result


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), activation or nn.ReLU(), nn.Linear(5, 3))


def one_layer_twice() -> nn.Module:
    layer, relu = nn.Linear(8, 8), nn.ReLU()
    return nn.Sequential(layer, relu, layer, relu, nn.Linear(8, 3))


def one_weight_twice() -> nn.Module:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module[2].weight = module[0].weight
    return module


def hooked() -> nn.Module:
    module = mlp()
    module[1].register_forward_hook(lambda _part, _inputs, output: output * 2)
    return module


def dead() -> nn.Module:
    """Not an MLP, though with the weights that it starts from nobody can tell."""
    module = mlp(nn.Tanh())
    nn.init.zeros_(module.get_parameter("0.weight"))
    nn.init.zeros_(module.get_parameter("0.bias"))
    return module


def pruned() -> nn.Module:
    module = nn.Linear(6, 3)
    prune.random_unstructured(module, "weight", 0.5)  # type: ignore[no-untyped-call]
    return module


def reversed_layers() -> nn.Module:
    module = nn.Module()
    module.second, module.first = nn.Linear(5, 3), nn.Linear(6, 5)
    return module


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "with ReLU between"),
        (mlp(nn.Tanh()), "1 is Tanh"),
        (mlp(nn.LeakyReLU()), "1 is LeakyReLU"),
        (mlp(nn.ReLU6()), "1 is ReLU6"),
        (Net(torch.tanh), "does not compute"),
        (Thresholded(), "does not compute"),
        (dead(), "1 is Tanh"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "does not compute"),
        (OwnForward(nn.Linear(4, 3)), "does not compute"),
        (one_layer_twice(), "2 is 0 again"),
        (one_weight_twice(), "2.weight is shared with 0.weight"),
        (hooked(), "1 has hooks"),
        (parametrizations.weight_norm(nn.Linear(4, 2)), "the module: its weights are parametrized"),
        (pruned(), "bias, weight_orig"),
        (Normalised(), "mean: a buffer"),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), "1.weight: a parameter of LayerNorm"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(5, 2)), "2: 5 inputs do not fit"),
        (reversed_layers(), "first: 6 inputs do not fit the 3 outputs of second"),
        (nn.Linear(4, 2, bias=False), "without bias"),
        (nn.Linear(4, 2, dtype=torch.complex64), "complex64"),
        (nn.Linear(4, 2, device="meta"), "weight: no numbers"),
        (nn.LazyLinear(2), "weight: no numbers"),
        (nn.Conv2d(1, 1, 3), "weight: a parameter of Conv2d"),
        (nn.Sequential(), "holds no affine layers"),
    ],
)
def test_a_function_that_is_no_mlp_is_refused_by_name_and_the_way_out_is_told(
    module: nn.Module, told: str
) -> None:
    for asked in (architecture_of, tensors_of, lambda module: load_into(module, {})):
        with pytest.raises(ArchitectureError) as refused:
            asked(module)
        assert told in str(refused.value)
        assert "offer(tensors, architecture=...)" in str(refused.value)


@pytest.mark.parametrize(
    "module",
    [
        mlp(),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        Net(),
        Net(nn.ReLU()),
        Aliased(),
        Net().double(),
        Net().to(torch.bfloat16),
        Net().to(torch.float16),
    ],
)
def test_a_module_of_ones_own_is_sold_as_the_mlp_that_it_computes(module: nn.Module) -> None:
    assert architecture_of(module) == MLP
    inputs_RF = torch.randn(7, 6)
    computed_RC = apply(MLP, tensors_of(module), inputs_RF)
    dtype = next(module.parameters()).dtype
    with torch.no_grad():
        own_RC = module.eval()(inputs_RF.to(dtype)).float()
    tolerance = 1e-5 if dtype in {torch.float32, torch.float64} else 3e-2
    assert torch.allclose(own_RC, computed_RC, rtol=tolerance, atol=tolerance)


def test_one_activation_may_serve_several_layers() -> None:
    relu = nn.ReLU()
    module = nn.Sequential(nn.Linear(6, 5), relu, nn.Linear(5, 5), relu, nn.Linear(5, 3))
    assert architecture_of(module).config == {"widths": [6, 5, 5, 3]}
    assert architecture_of(nn.Linear(6, 3)).text == (
        '{"config":{"inputs":6,"outputs":3},"name":"linear"}'
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_loaded_is_what_the_module_computes_from_then_on(dtype: torch.dtype) -> None:
    module = Net().to(dtype)
    parameters = dict(module.named_parameters())
    given = random_init(MLP, 3)
    load_into(module, given)
    for name, parameter in module.named_parameters():
        assert parameter is parameters[name]
        assert parameter.dtype == dtype
        assert parameter.requires_grad
    inputs_RF = torch.randn(7, 6)
    with torch.no_grad():
        computed_RC = module.eval()(inputs_RF.to(dtype)).float()
    tolerance = 1e-5 if dtype != torch.bfloat16 else 3e-2
    assert torch.allclose(computed_RC, apply(MLP, given, inputs_RF), rtol=tolerance, atol=tolerance)


def test_weights_that_the_module_cannot_keep_are_not_half_loaded() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module[2].weight.data = module[0].weight.data
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    given = random_init(architecture_of(module), 1)
    with pytest.raises(ArchitectureError, match=r"0\.weight does not keep"):
        load_into(module, given)
    half = Net().half()
    held = half.out.bias.detach().clone()
    wide = tensors_of(half) | {"layers.1.weight": torch.full((3, 5), 1e6)}
    with pytest.raises(ProfileError, match="not-finite"):
        load_into(half, wide)
    assert torch.equal(half.out.bias, held)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    with pytest.raises(ArchitectureError, match="not those"):
        load_into(nn.Linear(6, 3), tensors_of(Net()))
    with pytest.raises(ArchitectureError, match="is \\(2, 2\\), the module's"):
        load_into(nn.Linear(6, 3), {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})


def test_weights_of_a_model_that_has_diverged_can_be_replaced_and_not_offered() -> None:
    module = Net()
    with torch.no_grad():
        module.out.bias.fill_(torch.nan)
    with pytest.raises(ProfileError, match="not-finite"):
        checked_tensors(tensors_of(module), MLP)
    given = random_init(MLP, 2)
    load_into(module, given)
    assert torch.equal(module.out.bias, given["layers.1.bias"])


def test_a_look_at_a_module_leaves_no_trace() -> None:
    module = Drawing()
    module.hidden.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module(torch.randn(2, 6)).sum().backward()
    gradient = module.out.weight.grad
    state = torch.get_rng_state()
    architecture_of(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == [True, False, True, True]
    assert module.out.weight.grad is gradient
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"weight": torch.zeros(3, 6)}, "TensorSpec"),
        ({"bias": torch.zeros(3)}, "1 tensors, where there are 2"),
        ({"bias": torch.zeros(3), "weight": torch.zeros(6, 3)}, "TensorSpec"),
        ({"bias": torch.zeros(3), "weight": torch.zeros(3, 6, dtype=torch.int64)}, "int64"),
    ],
)
def test_tensors_that_are_not_of_the_architecture_are_not_offered(
    tensors: dict[str, torch.Tensor], told: str
) -> None:
    with pytest.raises(ArchitectureError, match=told):
        checked_tensors(tensors, Architecture("linear", {"inputs": 6, "outputs": 3}))
