"""A module of one's own becomes a model of the market by a name that its operator allowed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.params.architecture import (
    Architecture,
    apply,
    layout,
    parse_architecture,
    permutation_spec,
    random_init,
)
from node.params.derivation.derive import derive
from node.params.families import factories, own_facts
from node.params.families.base import ArchitectureError, TokenModel
from node.params.families.factories import FactoryError, allow_said, read_entry
from node.params.families.gpt import derived_symmetries
from node.params.families.own import OwnModule, prepare
from node.params.families.own_facts import facts_of
from node.params.permutation import PermutationSpec, permute
from node.params.symmetry import GaugeKind, plain_groups
from tests.params import own_modules as mine
from tests.params.own_modules import FEATURES, IMAGE, own


@pytest.fixture(autouse=True)
def told_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "_allowed", {})


SMALL = {"classes": 10, "depth": 10, "image": IMAGE, "widen": 1}


def model_of(architecture: Architecture) -> OwnModule:
    assert isinstance(architecture.model, OwnModule)
    return architecture.model


# ---------------------------------------------------------------------- names and texts


def test_a_module_is_known_by_a_text_that_every_peer_writes_alike() -> None:
    first = own(mine.residual, *IMAGE, options={"width": 6})
    again = Architecture("module", dict(sorted(first.config.items(), reverse=True)))
    assert first.text == again.text
    assert parse_architecture(first.text) == first
    assert json.loads(first.text)["config"]["options"] == {"width": 6}
    assert first != own(mine.residual, *IMAGE)


def test_a_function_that_the_operator_has_not_named_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap_of_a_peer.py").write_text("raise SystemExit('sprung')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("trap_of_a_peer:build", "os:system", f"{mine.__name__}:residual"):
        text = json.dumps(
            {"config": {"factory": name, "input": [4]}, "name": "module"},
            separators=(",", ":"),
            sort_keys=True,
        )
        with pytest.raises(ArchitectureError) as refused:
            parse_architecture(text)
        assert refused.value.reason == "unknown-architecture"
    assert "trap_of_a_peer" not in sys.modules


@pytest.mark.parametrize(
    "said",
    [
        {"options": {"width": 17}},
        {"options": {"width": True}},
        {"options": {"width": 16, "weights": "http://x"}},
        {"options": None},
        {"input": [1 << 20]},
        {"input": [8, 8]},
        {"input": [1, FEATURES]},
        {"tokens": 1 << 18},
    ],
    ids=str,
)
def test_no_stranger_chooses_what_a_function_is_called_with_nor_on_what_it_runs(
    said: dict[str, object],
) -> None:
    known = own(mine.spied, FEATURES, options={"width": 16})
    config = {
        name: value for name, value in (dict(known.config) | said).items() if value is not None
    }
    text = json.dumps({"config": config, "name": "module"}, separators=(",", ":"), sort_keys=True)
    mine.built.clear()
    with pytest.raises(ArchitectureError, match=r"known is `.*:spied 64 \{.width.:16\}`, and not"):
        parse_architecture(text)
    assert not mine.built
    assert parse_architecture(known.text) == known


@pytest.mark.parametrize(
    "config",
    [
        {"input": [4]},
        {"factory": "a:b"},
        {"factory": "a:b", "input": [4], "code": "print()"},
        {"factory": "a.b", "input": [4]},
        {"factory": "a:b;c", "input": [4]},
        {"factory": "a:__import__('os')", "input": [4]},
        {"factory": "../a:b", "input": [4]},
        {"factory": 3, "input": [4]},
        {"factory": "a:b", "input": []},
        {"factory": "a:b", "input": [0]},
        {"factory": "a:b", "input": [1 << 20, 2]},
        {"factory": "a:b", "input": [True]},
        {"factory": "a:b", "input": [1] * 7},
        {"factory": "a:b", "input": [4], "options": {}},
        {"factory": "a:b", "input": [4], "options": {"x": [1]}},
        {"factory": "a:b", "input": [4], "options": {"x": "y" * 2000}},
        {"factory": "a:b", "input": [4], "options": {str(at): 1 for at in range(65)}},
        {"factory": "a:b", "input": [4], "options": 4},
    ],
    ids=lambda config: str(config)[:60],
)
def test_a_hostile_text_is_refused_by_name(config: dict[str, object]) -> None:
    with pytest.raises(ArchitectureError) as refused:
        Architecture("module", config)
    assert refused.value.reason == "bad-architecture"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(
    config=st.fixed_dictionaries(
        {"factory": json_values | st.just("a:b"), "input": json_values | st.just([4])},
        optional={"options": json_values, "tokens": json_values},
    )
)
def test_whatever_a_text_says_is_a_refusal_and_no_crash(config: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError):
        Architecture("module", config)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("nowhere_to_be_found:f 4", "ModuleNotFoundError"),
        (f"{mine.__name__}:nothing 4", "AttributeError"),
        (f"{mine.__name__}:SIDE 4", "is a int, and no function"),
        ("no colon", "write MODULE:FUNCTION"),
        (f'{mine.__name__}:residual 1,8,8 {{"width": 0.5}}', "integer, text or boolean"),
        (f"{mine.__name__}:residual [1]", "write MODULE:FUNCTION"),
        (f"{mine.__name__}:residual", "and the shape of a row, such as"),
        (f"{mine.__name__}:residual 1,8,", "and the shape of a row, such as"),
        (f"{mine.__name__}:residual 64 tokens=many", "and the shape of a row, such as"),
        (f"{mine.__name__}:residual {{", "not JSON"),
    ],
)
def test_an_operator_is_told_what_is_wrong_with_a_name(said: str, told: str) -> None:
    with pytest.raises(FactoryError, match=told):
        allow_said([said])


def test_one_function_named_under_two_shapes_is_two_architectures() -> None:
    small, large = own(mine.residual, 1, 8, 8), own(mine.residual, 1, 12, 12)
    prepare()
    for architecture, side in ((small, 8), (large, 12)):
        assert parse_architecture(architecture.text) == architecture
        rows_RF = torch.zeros(2, side * side)
        assert apply(architecture, random_init(architecture, 0), rows_RF).shape == (2, 10)
        assert permutation_spec(architecture).groups
    assert small.text != large.text
    assert layout(small) == layout(large)  # the same weights fit both, and neither is the other
    other = small.text.replace("[1,8,8]", "[1,9,9]")
    with pytest.raises(
        ArchitectureError, match=r"known is `.*:residual 1,12,12`, `.* 1,8,8`"
    ) as no:
        parse_architecture(other)
    assert no.value.reason == "unknown-architecture"


def test_what_one_process_was_told_another_of_the_same_operator_can_be_told() -> None:
    name = mine.name_of(mine.residual)
    said = [f'{name} 1,8,8 {{"width":6}}', f"{name} 1,8,8", f"{name} 128 tokens=9"]
    allow_said([said[0].replace("8,8", "8 ,  8"), *said[1:]])
    told = factories.entries()
    assert told[0] == mine.entry_of(mine.residual, *IMAGE, options={"width": 6})
    assert list(map(str, told)) == said
    factories._allowed.clear()
    allow_said(map(str, told))
    assert factories.entries() == told


@given(
    sides=st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=6),
    tokens=st.integers(0, 10**9 - 1),
    options=st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers(0, 99)),
)
def test_an_entry_is_read_back_from_its_text(
    sides: list[int], tokens: int, options: dict[str, object]
) -> None:
    entry = mine.entry_of(mine.residual, *sides, options=options, tokens=tokens)
    assert read_entry(str(entry)) == entry


# ------------------------------------------------------------------- what is no good


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (mine.failing, "cannot build: RuntimeError: the disk is full"),
        (mine.no_module, "gave a int, no nn.Module"),
        (mine.transposing, r"answers 2 rows of \[64\] with \[10, 2\], and not with logits"),
        (mine.answering_pairs, r"answers tuple, and not logits \[rows, classes\]"),
        (mine.stumbling, r"fails on rows of \[64\]: IndexError"),
        (mine.of_one_precision, "in torch.float64: RuntimeError"),
        (mine.complex_weights, "phase, which is complex"),
        (mine.lazy, r"1.weight of .*:lazy has no shape .* nn.Linear in the place of nn.LazyLinear"),
        (mine.counting_in_a_buffer, "writes asked as it answers"),
        (mine.counting_in_a_parameter, "writes asked as it answers"),
        (mine.making_a_buffer, "writes later as it answers"),
    ],
)
def test_a_module_that_is_no_good_is_named_with_what_it_raised(
    factory: Callable[..., object], told: str
) -> None:
    with pytest.raises(ArchitectureError, match=told) as refused:
        own(factory, FEATURES)
    assert refused.value.reason == "bad-architecture"


def test_rows_of_another_shape_than_the_module_takes_are_named() -> None:
    with pytest.raises(ArchitectureError, match=r"fails on rows of \[3, 8, 8\]"):
        own(mine.residual, 3, 8, 8)
    with pytest.raises(ArchitectureError, match="cannot build: TypeError"):
        own(mine.residual, *IMAGE, options={"depth": 3})


# ------------------------------------------------------------------------ what it is


def test_running_statistics_are_tensors_of_the_model_and_counters_are_not() -> None:
    architecture = own(mine.residual, *IMAGE)
    names = {spec.name for spec in layout(architecture)}
    assert {"stem.1.running_mean", "stem.1.running_var"} <= names
    assert not any("num_batches" in name for name in names)
    assert facts_of(model_of(architecture)).statistics == {n for n in names if "running" in n}
    assert set(random_init(architecture, 0)) == names


def test_a_model_computes_what_its_module_does_with_the_same_tensors() -> None:
    for factory, sides in ((mine.residual, IMAGE), (mine.transformer, IMAGE)):
        architecture = own(factory, *sides)
        tensors = random_init(architecture, 3)
        rows = torch.randn(9, FEATURES)
        module = model_of(architecture).module_with(tensors)
        with torch.no_grad():
            expected = module(rows.reshape(-1, *sides))
            assert torch.allclose(apply(architecture, tensors, rows), expected, atol=1e-6)
        assert all(
            torch.equal(tensor, tensors[name])
            for name, tensor in model_of(architecture).tensors_of(module).items()
        )


def test_tied_weights_are_one_tensor_and_what_is_drawn_is_the_same_for_all() -> None:
    architecture = own(mine.next_token, 6, tokens=11)
    assert "head.weight" not in {spec.name for spec in layout(architecture)}
    assert isinstance(architecture.model, TokenModel)
    tensors = random_init(architecture, 0)
    ids = torch.randint(11, (4, 6)).float()
    first = apply(architecture, tensors, ids)
    assert first.shape == (4, 6, 11)
    with ThreadPoolExecutor(1) as pool:  # a thread of its own has a module of its own
        assert torch.equal(pool.submit(apply, architecture, tensors, ids).result(), first)
    assert [group.size for group in permutation_spec(architecture).groups.values()] == [12, 18]


def test_what_is_not_in_a_modules_state_goes_where_its_tensors_are_and_has_gradients() -> None:
    architecture = own(mine.turning, FEATURES)
    assert {spec.name for spec in layout(architecture)} == {"layer.bias", "layer.weight"}
    rows = torch.randn(3, FEATURES)
    with torch.inference_mode():  # asked for first where nothing has a gradient
        tensors = random_init(architecture, 0)
        single = apply(architecture, tensors, rows).clone()
        double = apply(architecture, {n: t.double() for n, t in tensors.items()}, rows.double())
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-5)
    learnt = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    rows = rows.requires_grad_()
    apply(architecture, learnt, rows).sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None


def test_threads_that_run_one_model_at_once_do_not_mix_weights_up() -> None:
    architecture = own(mine.perceptron, FEATURES)
    rows = torch.randn(64, FEATURES)
    sides = [random_init(architecture, seed) for seed in range(4)]
    alone = [apply(architecture, side, rows) for side in sides]

    def asked(at: int) -> bool:
        return all(torch.equal(apply(architecture, sides[at], rows), alone[at]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(asked, range(4)))


def test_threads_that_build_models_at_once_draw_what_they_would_alone() -> None:
    ours, theirs = own(mine.turning, FEATURES), Architecture("resnet", SMALL)

    def drawn(at: int) -> list[torch.Tensor]:
        known = model_of(ours).module_with(random_init(ours, at))
        return [
            *known.state_dict().values(), known.get_buffer("turn"),
            *random_init(theirs, at).values(),
        ]  # fmt: skip

    alone = [drawn(at) for at in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            for at, found in enumerate(pool.map(drawn, range(3))):
                assert all(torch.equal(a, b) for a, b in zip(alone[at], found, strict=True))


# ------------------------------------------------------------------------- symmetries


def test_symmetries_that_threads_ask_for_at_once_are_derived_for_each() -> None:
    models = [
        model_of(own(mine.perceptron, FEATURES, options={"hidden": 17 + at})) for at in range(6)
    ]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(OwnModule.symmetries, models))
    assert [{group.size for group in each.groups.values()} for each in found] == [
        {17 + at, 16} for at in range(6)
    ]


def test_graphs_that_threads_trace_at_once_are_each_its_own() -> None:
    modules = [mine.perceptron(17 + at).eval() for at in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda module: derive(module, (torch.zeros(2, FEATURES),)), modules))
    assert [{group.size for group in each.groups.values()} for each in found] == [
        {17 + at, 16} for at in range(6)
    ]


def test_what_an_operator_names_is_looked_at_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths, name = (25, 26), mine.name_of(mine.perceptron)
    for hidden in widths:
        factories.allow(mine.entry_of(mine.perceptron, FEATURES, options={"hidden": hidden}))
    factories.allow(mine.entry_of(mine.sorting, FEATURES))  # its graph cannot be read
    prepare()
    monkeypatch.setattr(own_facts, "derive_checked", lambda *_: 1 // 0)
    for hidden in widths:
        config = {"factory": name, "input": [FEATURES], "options": {"hidden": hidden}}
        spec = permutation_spec(Architecture("module", config))
        assert {group.size for group in spec.groups.values()} == {hidden, 16}
    factories.allow(mine.entry_of(mine.residual, 3, 8, 8))
    with pytest.raises(ArchitectureError, match=r"fails on rows of \[3, 8, 8\]"):
        prepare()


def test_what_went_wrong_once_as_symmetries_were_asked_for_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(own(mine.perceptron, FEATURES, options={"hidden": 23}))
    with monkeypatch.context() as patched:
        patched.setattr(own_facts, "derive_checked", lambda *_: 1 // 0)
        with pytest.raises(ArchitectureError, match=r"no-symmetries.*ZeroDivisionError"):
            model.symmetries()
    assert {group.size for group in model.symmetries().groups.values()} == {23, 16}


def agrees(by_hand: PermutationSpec, plain: PermutationSpec) -> set[str]:
    """Return the plain groups that the hand-made specification has not; roles and all agree."""
    names: dict[str, str] = {}
    for tensor, axes in by_hand.axes.items():
        for ours, theirs in zip(axes, plain.axes[tensor], strict=True):
            if ours is not None:
                assert theirs is not None, tensor
                assert names.setdefault(ours.group, theirs.group) == theirs.group
                assert ours.role is theirs.role, tensor
                assert by_hand.groups[ours.group] == plain.groups[theirs.group]
    assert len(names) == len(by_hand.groups) > 0
    return set(plain.groups) - set(names.values())


def test_plain_groups_and_their_roles_are_those_of_the_perceptron_and_the_residual_network() -> (
    None
):
    class Relu(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(n, n - 1) for n in (7, 6, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return self.layers[-1](x)  # type: ignore[no-any-return]

    by_hand = permutation_spec(Architecture("mlp", {"widths": [7, 6, 5, 4]}))
    assert not agrees(by_hand, plain_groups(derive(Relu(), (torch.zeros(2, 7),))))
    network: Any = Architecture("resnet", SMALL)
    derived = derive(network.model.build().eval(), (torch.zeros(2, *IMAGE),))
    assert not agrees(permutation_spec(network), plain_groups(derived))


@pytest.mark.parametrize("tied", [False, True])
def test_plain_groups_of_a_language_model_are_its_own(tied: bool) -> None:
    architecture: Any = Architecture(
        "gpt",
        {"context": 6, "depth": 1, "heads": 2, "hidden": 12, "norm": "rms", "tied": tied,
         "vocabulary": 11, "width": 8},
    )  # fmt: skip
    derived = derived_symmetries(architecture.model)
    assert permutation_spec(architecture) == plain_groups(derived)
    # in the insides of heads any basis is as good: a numbering says nothing
    inside = {gauge.group for gauge in derived.gauges if gauge.kind is GaugeKind.LINEAR}
    assert {derived.groups[name].within for name in inside} == {("blocks.0.attention.query/0",)}


@pytest.mark.parametrize(
    ("factory", "sides", "sizes"),
    [
        (mine.perceptron, [FEATURES], {20: False, 16: True}),
        (mine.residual, IMAGE, {8: False, 12: False}),
        (mine.transformer, IMAGE, {16: False, 24: True}),
    ],
)
def test_renumbered_units_of_a_module_compute_the_same(
    factory: Callable[..., object], sides: list[int], sizes: dict[int, bool]
) -> None:
    architecture = own(factory, *sides)
    spec = permutation_spec(architecture)
    assert {group.size: name in spec.rescalings for name, group in spec.groups.items()} == sizes
    tensors = {name: t.double() for name, t in random_init(architecture, 0).items()}
    order = {name: torch.randperm(group.size).tolist() for name, group in spec.groups.items()}
    moved = permute(spec, tensors, order)
    rows = torch.randn(5, FEATURES, dtype=torch.float64)
    before, after = (apply(architecture, side, rows) for side in (tensors, moved))
    assert float((before - after).abs().max()) < 1e-9
    assert not all(torch.equal(tensors[name], moved[name]) for name in tensors)
    values = model_of(architecture).activations(tensors, rows)
    again = model_of(architecture).activations(moved, rows)
    for group, units in order.items():
        assert torch.allclose(values[group][:, units], again[group], atol=1e-9)


def test_a_graph_that_cannot_be_read_is_named_with_its_operation() -> None:
    with pytest.raises(ArchitectureError, match=r"--align identity .*aten.sort") as refused:
        permutation_spec(own(mine.sorting, FEATURES))
    assert refused.value.reason == "no-symmetries"
