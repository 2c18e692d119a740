"""Files that know of no market are read for what they are, and merged by what the rows say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker_node.align.stages import AlignmentError
from broker_node.evaluate.metrics import Batch, Model
from broker_node.evaluate.validation import ValidationSet
from broker_node.trying.errors import TryError
from broker_node.trying.making import share_of
from broker_node.trying.methods import CHAIN, ENSEMBLE, LERP, OUTRIGHT, Rows, aligners, mergers
from broker_node.trying.reading import METADATA_KEY, admitted, parse_flag, read_checkpoint, shown
from broker_node.trying.scoring import score, score_ensemble
from broker_node.trying.stack import layers_of, ordered
from broker_node.trying.trial import Trial, run_trial, split, split_seed
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, permutation_spec, random_init
from node.params.encoding import weights_root
from node.params.families.base import MAX_TENSORS
from node.params.permutation import permute, rescale
from node.params.recipe import NO_ALIGNMENT, apply_recipe
from node.protocol.types import ONE, Digest, Millionths

Pair = tuple[Verified, Verified]
BOTH = ("identity", "weight-matching")
PLAIN = (LERP, OUTRIGHT)


def saved(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata or None
    )
    return path


def stack(names: list[str], widths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dictionary with layers of these names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in zip(names, itertools.pairwise(widths), strict=True):
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator)
        tensors[f"{name}.bias"] = torch.randn(outputs, generator=generator)
    return tensors


def tried(buyer: Verified, sellers: list[Verified], validation: ValidationSet) -> Trial:
    return run_trial(
        buyer, sellers, validation, seed=0, aligners=aligners(BOTH), mergers=mergers(PLAIN)
    )


@pytest.mark.parametrize(
    "names",
    [
        ["fc1", "fc2", "fc3"],
        ["0", "2", "4"],
        ["layers.0", "layers.1", "layers.2"],
        ["net.8", "net.9", "net.10"],
        ["module.encoder", "module.middle", "module.classifier"],
        ["_orig_mod.features.0", "_orig_mod.features.3", "_orig_mod.head"],
    ],
)
def test_common_names_of_layers_are_one_model(tmp_path: Path, names: list[str]) -> None:
    tensors = stack(names, [6, 5, 4, 3])
    read = read_checkpoint(saved(tmp_path / "m.safetensors", tensors))
    assert shown(read.model.architecture) == "mlp 6-5-4-3"
    for at, name in enumerate(names):
        assert torch.equal(read.model.tensors[f"layers.{at}.weight"], tensors[f"{name}.weight"])
    assert set(read.named(read.model.tensors)) == set(tensors)
    assert read.inferred
    assert not read.notes


def test_one_layer_is_linear(tmp_path: Path) -> None:
    for name in ("classifier", ""):
        tensors = stack(["x"], [6, 3])
        held = {(key.removeprefix("x.") if not name else key): t for key, t in tensors.items()}
        read = read_checkpoint(saved(tmp_path / "m.safetensors", held))
        assert shown(read.model.architecture) == "linear 6-3"
        assert set(read.named(read.model.tensors)) == set(held)


@given(
    widths=st.lists(st.integers(1, 3), min_size=3, max_size=6),
    shuffled=st.randoms(use_true_random=False),
)
def test_layers_with_numbers_come_in_their_order_however_they_lie(
    widths: list[int], shuffled: object
) -> None:
    tensors = stack([f"block.{2 * at}" for at in range(len(widths) - 1)], widths)
    names = list(tensors)
    shuffled.shuffle(names)  # type: ignore[attr-defined]
    found = ordered(layers_of({name: tuple(tensors[name].shape) for name in names}))
    assert [layer.name for layer in found] == [f"block.{2 * at}" for at in range(len(widths) - 1)]


def test_an_order_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    tensors = stack(["first", "middle", "last"], [4, 4, 4, 4])
    path = saved(tmp_path / "m.safetensors", tensors)
    with pytest.raises(TryError, match="several orders of the layers; say which with --order"):
        read_checkpoint(path)
    read = read_checkpoint(path, order=("first", "middle", "last"))
    assert torch.equal(read.model.tensors["layers.2.bias"], tensors["last.bias"])
    with pytest.raises(TryError, match="must name each of"):
        read_checkpoint(path, order=("first", "last"))
    other = saved(tmp_path / "o.safetensors", stack(["first", "last"], [4, 5, 6]))
    with pytest.raises(TryError, match="last gives 6 and first takes 4"):
        read_checkpoint(other, order=("last", "first"))


def test_a_great_many_equal_layers_end_in_a_question_and_not_in_a_search(tmp_path: Path) -> None:
    names = [chr(ord("a") + at % 26) * (1 + at // 26) for at in range(200)]
    path = saved(tmp_path / "m.safetensors", stack(names, [2] * 201))
    with pytest.raises(TryError, match="--order"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conv1.weight": torch.zeros(6, 1, 5, 5), "conv1.bias": torch.zeros(6)}, "convolution"),
        ({"bn.weight": torch.zeros(6), "bn.bias": torch.zeros(6)}, "normalisation"),
        ({"embed": torch.zeros(6, 5)}, "embed (6x5) is neither"),
        ({"fc.weight": torch.zeros(6, 5)}, "has no fc.bias"),
        ({"fc.bias": torch.zeros(6)}, "fc.bias stands without"),
        ({"fc.weight": torch.zeros(6, 5), "fc.bias": torch.zeros(5)}, "does not fit"),
        ({**stack(["a"], [6, 5]), **stack(["b"], [4, 3])}, "make no chain: a 6→5, b 4→3"),
    ],
)
def test_what_is_no_stack_is_refused_with_the_families_and_the_closest(
    tmp_path: Path, tensors: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(TryError) as refused:
        read_checkpoint(saved(tmp_path / "m.safetensors", tensors))
    assert str(tmp_path / "m.safetensors") in str(refused.value)
    for fragment in (said, "--architecture", "mlp, linear", "the closest is mlp"):
        assert fragment in str(refused.value)


def test_half_precision_is_converted_and_that_is_said(tmp_path: Path) -> None:
    tensors = stack(["a.0", "a.1"], [6, 5, 3])
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F64")):
        held = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        read = read_checkpoint(saved(tmp_path / "m.safetensors", held))
        assert f"converted from {name} to F32" in read.notes[0]
        assert torch.equal(read.model.tensors["layers.0.bias"], held["a.0.bias"].float())
    whole = {key: tensor.to(torch.int32) for key, tensor in tensors.items()}
    with pytest.raises(TryError, match="I32; weights must be floats"):
        read_checkpoint(saved(tmp_path / "m.safetensors", whole))


def test_hostile_files_are_refused_by_the_name_of_the_fault(tmp_path: Path) -> None:
    for value, fault in ((float("nan"), "not-finite"), (float("inf"), "not-finite"), (1e7, "magn")):
        tensors = stack(["a.0", "a.1"], [6, 5, 3])
        tensors["a.1.bias"][1] = value
        with pytest.raises(TryError, match=fault):
            read_checkpoint(saved(tmp_path / "m.safetensors", tensors))
    (tmp_path / "junk.safetensors").write_bytes(b"\x80\x04junk")
    for name in ("junk.safetensors", "absent.safetensors", "."):
        with pytest.raises(TryError, match="cannot be used"):
            read_checkpoint(tmp_path / name)
    many = {f"t{at}": torch.zeros(1) for at in range(MAX_TENSORS + 1)}
    with pytest.raises(TryError, match="too-many-tensors"):
        read_checkpoint(saved(tmp_path / "m.safetensors", many))


def test_metadata_of_ours_says_the_architecture_and_a_lie_there_is_refused(tmp_path: Path) -> None:
    tensors = stack(["x", "y"], [4, 4, 4])
    text = Architecture("mlp", {"widths": [4, 4, 4]}).text
    own = {f"layers.{at}.{k}": tensors[f"{n}.{k}"] for at, n in enumerate("xy") for k in
           ("weight", "bias")}  # fmt: skip
    read = read_checkpoint(saved(tmp_path / "m.safetensors", own, **{METADATA_KEY: text}))
    assert not read.inferred
    for lie in (
        Architecture("mlp", {"widths": [4, 4, 4, 4]}).text,
        Architecture("random", {"shapes": {"x": [1]}}).text,
        "{}",
        '{"config":{},"name":"resnet9000"}',
    ):
        with pytest.raises(TryError):
            read_checkpoint(saved(tmp_path / "m.safetensors", own, **{METADATA_KEY: lie}))


def test_an_architecture_is_named_by_widths_or_by_a_file(tmp_path: Path) -> None:
    assert parse_flag("mlp:784-256-10").config == {"widths": [784, 256, 10]}
    assert parse_flag("linear:64-10").config == {"inputs": 64, "outputs": 10}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "mlp", "config": {"widths": [3, 2]}}))
    assert parse_flag(str(path)).config == {"widths": [3, 2]}
    for bad in ("mlp", "mlp:", "mlp:3", "mlp:a-b", "mlp:3--2", "linear:1-2-3", "vit:3-2", "mlp:0-1",
                "mlp:9999999999999-1", "random:1-2", "\0", "absent.json"):  # fmt: skip
        with pytest.raises(TryError, match="mlp, linear"):
            parse_flag(bad)
    for text in ("", "[]", "{", '{"name": "mlp"}', '{"name": 1, "config": {}}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(TryError, match=r"JSON|must be"):
            parse_flag(str(path))


def test_the_halves_share_no_row_and_are_drawn_by_seed_and_rows(validation: ValidationSet) -> None:
    choice, scored = split(validation, split_seed(0, validation.root))
    both = torch.cat((choice.inputs_RF, scored.inputs_RF))
    assert len(both) == len(validation)
    assert len(torch.unique(both, dim=0)) == len(torch.unique(validation.inputs_RF, dim=0))
    assert split_seed(0, validation.root) != split_seed(1, validation.root)
    assert split_seed(0, validation.root) != split_seed(0, Digest(bytes(32)))


def test_rows_of_one_class_are_refused_and_so_are_too_few(validation: ValidationSet) -> None:
    inputs_RF = validation.inputs_RF
    one = ValidationSet(inputs_RF[:40], torch.full((40,), 3))
    with pytest.raises(TryError, match="one-class: all 40 rows have the target 3"):
        split(one, split_seed(0, one.root))
    few = ValidationSet(inputs_RF[:4], torch.arange(4))
    with pytest.raises(TryError, match="4 rows, at least 8"):
        split(few, split_seed(0, few.root))


def test_the_best_is_chosen_by_the_rows_that_choose_and_scored_by_the_others(
    pair: Pair, validation: ValidationSet
) -> None:
    buyer, seller = pair
    found = tried(buyer, [seller], validation)
    assert [(each.align, each.merge) for each in found.candidates] == [
        *((name, LERP) for name in BOTH),
        (found.candidates[2].align, OUTRIGHT),
    ]
    assert found.best == min(range(3), key=lambda at: found.candidates[at].choice_loss)
    assert found.best is not None
    best = found.candidates[found.best]
    assert best.tensors is not None
    assert best.score is not None
    assert best.gain is not None
    choice, scored = split(validation, found.seed)
    assert best.choice_loss == score(buyer.architecture, best.tensors, choice).loss
    again = score(buyer.architecture, best.tensors, scored)
    assert torch.equal(best.score.losses_R, again.losses_R)
    relative = 1 - again.loss / found.buyer.loss
    assert best.gain.gain == pytest.approx(relative * ONE, abs=1)
    assert best.gain.bound < best.gain.gain
    assert best.score.perplexity == pytest.approx(torch.tensor(again.loss).exp().item())


def test_the_same_seed_gives_the_same_trial(pair: Pair, validation: ValidationSet) -> None:
    first, second = (tried(pair[0], [pair[1]], validation) for _ in range(2))
    for ours, theirs in zip(first.candidates, second.candidates, strict=True):
        assert ours.tensors is not None
        assert theirs.tensors is not None
        assert weights_root(dict(ours.tensors)) == weights_root(dict(theirs.tensors))
        assert ours.gain == theirs.gain
    assert first.curves == second.curves


def test_a_curve_has_the_screen_and_the_share_that_was_chosen(
    pair: Pair, validation: ValidationSet
) -> None:
    found = tried(pair[0], [pair[1]], validation)
    for curve, candidate in zip(found.curves, found.candidates, strict=False):
        assert [point.alpha for point in curve.points if point.chosen] == [candidate.alpha]
        assert {0, ONE // 2, ONE} <= {point.alpha for point in curve.points}
        assert curve.points[0].score_loss == found.buyer.loss


def test_a_renumbered_and_rescaled_copy_is_said_to_be_the_buyers_own(
    pair: Pair, validation: ValidationSet
) -> None:
    buyer, seller = pair
    spec = permutation_spec(buyer.architecture)
    generator = torch.Generator().manual_seed(1)
    orders = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: torch.rand(group.size, generator=generator) + 0.5
        for name, group in spec.groups.items()
    }
    copy = admitted(buyer.architecture, rescale(spec, permute(spec, buyer.tensors, orders), scales))
    found = tried(buyer, [copy, seller, buyer], validation)
    assert found.replicas.keys() == {0, 2}
    assert found.replicas[2] == 0
    assert {each.sellers for each in found.candidates} == {(1,)}
    alone = tried(buyer, [copy], validation)
    assert alone.best is None
    assert alone.candidates == ()
    assert alone.ensemble is None
    assert tried(buyer, [seller], validation).replicas == {}


def test_a_seller_named_twice_is_tried_once(pair: Pair, validation: ValidationSet) -> None:
    buyer, seller = pair
    found = tried(buyer, [seller, seller], validation)
    assert found.repeated == {1: 0}
    assert {each.sellers for each in found.candidates} == {(0,)}


def test_of_several_sellers_the_next_is_merged_into_what_the_last_made(
    pair: Pair, validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_node.trying.making.best_alpha", lambda _: Millionths(300_000))
    buyer, seller = pair
    third = admitted(
        buyer.architecture,
        {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in seller.tensors.items()},
    )
    sellers = [seller, third]
    found = tried(buyer, sellers, validation)
    (chain,) = [each for each in found.candidates if each.merge == CHAIN]
    assert chain.steps is not None
    assert {step.seller for step in chain.steps} == {0, 1}
    assert chain.alpha == 510_000
    tensors = buyer.tensors
    for step in chain.steps:
        tensors = apply_recipe(
            buyer.architecture, tensors, sellers[step.seller].tensors, step.recipe
        )
    assert chain.tensors is not None
    assert weights_root(dict(tensors)) == weights_root(dict(chain.tensors))
    assert chain.alpha == share_of([step.recipe for step in chain.steps])


def test_the_share_of_merges_in_turn_is_what_is_not_the_buyers() -> None:
    recipes = [NO_ALIGNMENT.with_alpha(Millionths(share)) for share in (500_000, 500_000)]
    assert share_of(recipes) == 750_000
    assert share_of(recipes[:1]) == 500_000
    assert share_of([]) == 0
    assert share_of([NO_ALIGNMENT.with_alpha(Millionths(ONE)), recipes[0]]) == ONE


def test_an_ensemble_answers_the_mean_of_probabilities(
    pair: Pair, validation: ValidationSet
) -> None:
    buyer, seller = pair
    rows = Rows(validation.inputs_RF, validation.targets_R)
    alone = score(buyer.architecture, buyer.tensors, rows)
    twice = score_ensemble(buyer.architecture, [buyer.tensors, buyer.tensors], rows)
    assert torch.allclose(alone.losses_R, twice.losses_R)
    assert alone.accuracy == twice.accuracy
    both = score_ensemble(buyer.architecture, [buyer.tensors, seller.tensors], rows)
    assert both.loss < max(alone.loss, score(buyer.architecture, seller.tensors, rows).loss)


def test_values_are_scored_by_squared_error_and_have_no_accuracy() -> None:
    architecture = Architecture("linear", {"inputs": 4, "outputs": 1})
    generator = torch.Generator().manual_seed(0)
    inputs_RF = torch.randn(60, 4, generator=generator)
    validation = ValidationSet(inputs_RF, inputs_RF.sum(1))
    buyer, seller = (admitted(architecture, random_init(architecture, seed)) for seed in (1, 2))
    found = tried(buyer, [seller], validation)
    assert found.buyer.accuracy is None
    assert found.buyer.perplexity is None
    assert found.ensemble is not None
    lerp = found.candidates[0]
    assert lerp.alpha is not None
    assert 0 <= lerp.alpha <= ONE
    assert lerp.choice_loss <= min(point.choice_loss for point in found.curves[0].points) + 1e-9


def test_a_method_that_refuses_is_kept_with_its_reason_and_stops_no_other(
    pair: Pair, validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise AlignmentError("outputs differ by 3")

    monkeypatch.setitem(
        __import__("broker_node.trying.methods", fromlist=["ALIGNERS"]).ALIGNERS,
        "identity",
        refuses,
    )
    found = tried(pair[0], [pair[1]], validation)
    refused = found.candidates[0]
    assert (refused.align, refused.refused) == ("identity", "outputs differ by 3")
    assert refused.tensors is None
    assert found.best in {1, 2}


def test_methods_are_those_of_the_registries_and_others_are_refused_by_name() -> None:
    assert set(BOTH) <= set(aligners())
    assert {LERP, OUTRIGHT} <= set(mergers())
    assert ENSEMBLE not in mergers()
    assert list(mergers(["outright"])) == ["outright"]
    with pytest.raises(TryError, match="--align 'telepathy': there are identity"):
        aligners(["telepathy"])
    with pytest.raises(TryError, match="--merge 'soup': there are lerp"):
        mergers(["soup"])


def test_a_metric_that_gives_no_number_is_refused(pair: Pair, validation: ValidationSet) -> None:
    rows = Rows(validation.inputs_RF, validation.targets_R)
    buyer = pair[0]

    def accuracy(model: Model, batch: Batch) -> torch.Tensor:
        return (model(batch[0]).argmax(1) == batch[1]).double().mean()

    found = score(buyer.architecture, buyer.tensors, rows, accuracy)
    assert found.metric == found.accuracy
    for strange in (None, "0.5", True, torch.zeros(2)):
        with pytest.raises(TryError, match="--metric must return one number"):
            score(buyer.architecture, buyer.tensors, rows, lambda *_, held=strange: held)
