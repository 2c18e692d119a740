"""Adapters are measured as the models that they make, replayed, and told from copies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
import torch
import trio

from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import ArchitectureMismatchError
from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.clearing.measuring import Measuring
from broker_node.evaluate.adapters import as_traded, whole_pair
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.methods import align
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.quorum.receipts import model_of
from broker_node.trials import Trials
from broker_node.trying.errors import TryError
from broker_node.verify.computing import computes, computing, whole
from broker_node.verify.stages import Verified
from node.cli.verify import weights_of
from node.config.loading import load
from node.observe import Observer
from node.params.adapters import (
    Adapter,
    Base,
    applied,
    merged,
)
from node.params.architecture import layout
from node.params.encoding import encode_tensors, save_safetensors, weights_root
from node.params.families.lora import MAX_ALPHA
from node.params.peft import write_adapter
from node.params.recipe import Recipe
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import Offer
from node.protocol.parameters import encoded_length
from node.protocol.types import ONE, Digest, Millionths
from node.roles.shells import _appraiser, adapter_base
from tests.params.learned_adapters import (
    PERCEPTRON,
    adapter_of,
    base_of,
    buyers,
    louder,
    rows_of,
    sellers,
    strangers,
    verified,
)
from tests.protocol import cast

NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)


def offer_of(adapter: Adapter) -> Offer:
    length = encoded_length(layout(adapter.architecture))
    return cast.offer(
        architecture=adapter.architecture.text,
        weights_root=weights_root(adapter.tensors),
        byte_length=length,
        leaf_count=merkle.leaf_count(length),
    )


# ---------------------------------------------------------------- measured, and measured again


def test_a_trial_measures_what_the_merged_adapter_does_on_its_base(
    adapter_trial: Trial, perceptron_base: Base, validation: ValidationSet
) -> None:
    found, ours, theirs = adapter_trial.evaluation, buyers(PERCEPTRON), sellers(PERCEPTRON)
    both = merged(ours, theirs, found.alpha)
    assert (found.base_root, found.sold_root, found.merged_root) == tuple(
        weights_root(each.tensors) for each in (ours, theirs, both)
    )
    assert found.architecture == theirs.architecture.text
    drawn = draw_rows(found.seed, len(validation), choice=found.choice_rows, score=found.score_rows)
    scored_R = torch.from_numpy(drawn.score)
    losses = [
        float(
            row_losses(
                perceptron_base.architecture,
                applied(each, perceptron_base),
                validation.inputs_RF[scored_R],
                validation.targets_R[scored_R],
            ).mean()
        )
        for each in (ours, both)
    ]
    assert found.loss_before / 1e9 == pytest.approx(losses[0], rel=1e-6)
    assert found.loss_after / 1e9 == pytest.approx(losses[1], rel=1e-6)
    assert found.gain > 500_000
    # a factor on the outputs of half-taught adapters gains much; a merge with the other half more
    assert adapter_trial.control is not None
    assert 0 <= adapter_trial.control < found.gain


def test_whoever_holds_both_adapters_and_the_base_measures_the_same(
    adapter_trial: Trial,
    adapter_appraiser: MarketAppraiser,
    adapter_pair: tuple[Verified, Verified],
) -> None:
    ours, theirs = adapter_pair
    figure = adapter_appraiser.replay(
        adapter_trial.evaluation, adapter_trial.recipe, ours, theirs
    ).figure
    said = adapter_trial.evaluation
    assert (figure.loss_before, figure.loss_after, figure.gain, figure.bound) == (
        said.loss_before,
        said.loss_after,
        said.gain,
        said.bound,
    )
    scaled = louder(buyers(PERCEPTRON))
    turned = dataclasses.replace(
        ours, architecture=scaled.architecture
    )  # the same factors, said to count for more
    cases: dict[str, tuple[Verified, Verified]] = {
        "merged-root": (turned, theirs),
        "base-root": (theirs, theirs),
        "architecture": (ours, ours),
    }
    for reason, (left, right) in cases.items():
        with pytest.raises(RemoteProtocolError) as refused:
            adapter_appraiser.replay(said, adapter_trial.recipe, left, right)
        assert refused.value.reason == reason
    other = base_of(PERCEPTRON, seed=9)
    for left, right in (
        (verified(strangers(PERCEPTRON), other), theirs),
        (ours, verified(strangers(PERCEPTRON), other)),
    ):
        with pytest.raises(RemoteProtocolError):
            adapter_appraiser.replay(said, adapter_trial.recipe, left, right)


# ---------------------------------------------------------------- let in, or not


def test_a_blob_is_let_in_with_the_base_that_it_runs_on(
    adapter_appraiser: MarketAppraiser, perceptron_base: Base, tmp_path: Path
) -> None:
    ours = buyers(PERCEPTRON)
    path = tmp_path / "blob"
    path.write_bytes(encode_tensors(ours.tensors))
    model = adapter_appraiser.admit(path, offer_of(ours))
    assert model.base is perceptron_base
    assert computes(model)
    assert computing(model)[0] == perceptron_base.architecture
    assert whole(model).weights_root == weights_root(applied(ours, perceptron_base))
    # tensors of another adapter, and of the base itself, under this offer
    for tensors in (sellers(PERCEPTRON).tensors, perceptron_base.tensors):
        path.write_bytes(encode_tensors(tensors))
        with pytest.raises(RemoteProtocolError):
            adapter_appraiser.admit(path, offer_of(ours))


def test_an_adapter_that_overflows_its_base_is_not_let_in(perceptron_base: Base) -> None:
    """Each factor is sane by itself; their product, at the largest scale, is not."""
    modules = {f"layers.{place}": [1, MAX_ALPHA] for place in range(3)}
    loud = adapter_of(perceptron_base, modules, rows_of(range(10), 300), 0, seed=1)
    loud = Adapter(
        loud.architecture, {n: torch.full(t.shape, 9e5) for n, t in loud.tensors.items()}
    )
    for base in (None, perceptron_base):
        with pytest.raises(RemoteProtocolError) as refused:
            verified(loud, base)
        assert refused.value.reason == "bad-magnitude"
        assert "α/r" in refused.value.detail
    wild = Adapter(loud.architecture, {n: t * 1e9 for n, t in loud.tensors.items()})
    with pytest.raises(RemoteProtocolError) as refused:
        verified(wild, perceptron_base)
    assert refused.value.reason == "bad-magnitude"


def test_adapters_without_their_base_compute_nothing(
    perceptron_base: Base, validation: ValidationSet
) -> None:
    alone = verified(buyers(PERCEPTRON), None)
    assert not computes(alone)
    with pytest.raises(LocalProtocolError, match="base"):
        computing(alone)
    with pytest.raises(RemoteProtocolError, match="wrong-base"):
        verified(strangers(PERCEPTRON), perceptron_base)


def test_whatever_a_broker_aligns_by_adapters_are_left_as_they_are(
    adapter_pair: tuple[Verified, Verified],
) -> None:
    ours, theirs = adapter_pair
    for method in ALIGNERS:
        aligned = align(method, ours, theirs, seed=0)
        assert aligned.method == "identity"
        assert aligned.transformed is theirs.tensors
    elsewhere = base_of(PERCEPTRON, seed=9)
    stranger = verified(strangers(PERCEPTRON), elsewhere)
    model = whole(ours)
    for other in (stranger, model):
        with pytest.raises(ArchitectureMismatchError):
            align("weight-matching", ours, other, seed=0)
        with pytest.raises(ArchitectureMismatchError):
            align("weight-matching", other, ours, seed=0)


# ---------------------------------------------------------------- rounds of a clearing house


def test_a_round_measures_no_adapters_whose_ranks_would_add(
    perceptron_base: Base, validation: ValidationSet
) -> None:
    parties = [verified(each(PERCEPTRON), perceptron_base) for each in (buyers, sellers)]
    for models in (parties, parties[:1], [*map(whole, parties), parties[0]]):
        with pytest.raises(RemoteProtocolError) as refused:
            Measuring(
                models, validation, rows=(300, 300), seed=Digest(bytes(32)), method="identity"
            )
        assert refused.value.reason == "adapters-pairwise"
        assert "pair by pair" in refused.value.detail
    measuring = Measuring(
        [whole(each) for each in parties],
        validation,
        rows=(300, 300),
        seed=Digest(bytes(32)),
        method="identity",
    )
    alone = [measuring.performance(0, 1 << place) for place in range(2)]
    assert measuring.performance(0, 3) > max(alone) + 0.1


def test_the_share_is_of_the_sold_and_not_of_the_buyers(adapter_trial: Trial) -> None:
    assert 0 < adapter_trial.evaluation.alpha < ONE
    assert merged(buyers(PERCEPTRON), sellers(PERCEPTRON), Millionths(0)) is buyers(PERCEPTRON)


# ---------------------------------------------------------------- what a node is told of its base


def test_a_broker_takes_its_base_from_a_file_or_a_folder_and_roots_it(
    perceptron_base: Base, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_safetensors(perceptron_base.tensors, file)
    for path in (file, tmp_path):
        config = load(flags={"dataset": "digits", "adapter_base": str(path)}).config
        held = adapter_base(config)
        assert held is not None
        assert (held.root, held.architecture) == (
            perceptron_base.root,
            perceptron_base.architecture,
        )
        _appraiser(config).screen(offer_of(buyers(PERCEPTRON)))
    plain = load(flags={"dataset": "digits"}).config
    assert adapter_base(plain) is None
    with pytest.raises(RemoteProtocolError, match="wrong-base"):
        _appraiser(plain).screen(offer_of(buyers(PERCEPTRON)))
    sold = buyers(PERCEPTRON)
    save_safetensors(sold.tensors, file, {"pm-node.architecture": sold.architecture.text})
    for bad in (file, tmp_path / "nowhere"):
        with pytest.raises(TryError, match=str(bad)):
            adapter_base(load(flags={"adapter_base": str(bad)}).config)


async def test_adapters_of_one_root_and_two_scales_are_two_trials(
    adapter_appraiser: MarketAppraiser, perceptron_base: Base
) -> None:
    trials = Trials(adapter_appraiser, trio.CapacityLimiter(1), Observer(), most=8)
    ours, theirs = buyers(PERCEPTRON), verified(sellers(PERCEPTRON), perceptron_base)
    found = [
        await trials.measure(cast.word(str(number)), mine, theirs, "digits", NOTICE)
        for number, mine in enumerate(
            verified(each, perceptron_base) for each in (ours, louder(ours), ours)
        )
    ]
    assert found[0] is found[2]
    assert found[0].evaluation.base_root == found[1].evaluation.base_root
    assert found[0].evaluation.loss_before != found[1].evaluation.loss_before


def test_whoever_checks_a_receipt_names_folders_of_adapters(
    perceptron_base: Base, tmp_path: Path
) -> None:
    sold = sellers(PERCEPTRON)
    write_adapter(sold, tmp_path / "b")
    architecture, tensors = weights_of(
        tmp_path / "b", buyers(PERCEPTRON).architecture, perceptron_base
    )
    model = model_of(
        architecture,
        tensors,
        root=weights_root(sold.tensors),
        field="sold_root",
        base=perceptron_base,
    )
    assert (model.architecture, model.base) == (sold.architecture, perceptron_base)
    with pytest.raises(click.UsageError, match="--adapter-base"):
        weights_of(tmp_path / "b", architecture, None)
    with pytest.raises(RemoteProtocolError, match="wrong-base"):
        weights_of(tmp_path / "b", architecture, base_of(PERCEPTRON, seed=9))


def test_adapters_are_merged_by_a_share_and_by_nothing_that_a_whole_model_could_be(
    adapter_pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ours, theirs = adapter_pair
    aligned = align("universe", ours, theirs, seed=0)
    found = evaluate(whole_pair(aligned), validation, seed=Digest(bytes(32)))
    assert as_traded(aligned, found).sold_root == theirs.weights_root
    units = Recipe(permutations={"hidden.0": tuple(range(32))}, scales={}, alpha=found.alpha)
    with pytest.raises(LocalProtocolError, match="one share"):
        as_traded(aligned, dataclasses.replace(found, recipe=units))
