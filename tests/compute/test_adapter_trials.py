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
from node.data.datasets import load_digits
from node.data.split import split_test
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
    FOLDER,
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


@pytest.fixture(scope="module")
def base() -> Base:
    torch.set_num_threads(1)
    return base_of(PERCEPTRON)


@pytest.fixture(scope="module")
def rows() -> ValidationSet:
    return ValidationSet.of(split_test(load_digits(FOLDER)).validation)


@pytest.fixture(scope="module")
def appraiser(base: Base, rows: ValidationSet) -> MarketAppraiser:
    return MarketAppraiser(rows, classes=10, base=base, control=True)


def offer_of(adapter: Adapter) -> Offer:
    length = encoded_length(layout(adapter.architecture))
    return cast.offer(
        architecture=adapter.architecture.text,
        weights_root=weights_root(adapter.tensors),
        byte_length=length,
        leaf_count=merkle.leaf_count(length),
    )


@pytest.fixture(scope="module")
def trial(appraiser: MarketAppraiser, base: Base) -> Trial:
    ours, theirs = (verified(each(PERCEPTRON), base) for each in (buyers, sellers))
    return appraiser.measure(ours, theirs, task="digits", notice=NOTICE)


# ---------------------------------------------------------------- measured, and measured again


def test_a_trial_measures_what_the_merged_adapter_does_on_its_base(
    trial: Trial, base: Base, rows: ValidationSet
) -> None:
    found, ours, theirs = trial.evaluation, buyers(PERCEPTRON), sellers(PERCEPTRON)
    both = merged(ours, theirs, found.alpha)
    assert (found.base_root, found.sold_root, found.merged_root) == tuple(
        weights_root(each.tensors) for each in (ours, theirs, both)
    )
    assert found.architecture == theirs.architecture.text
    drawn = draw_rows(found.seed, len(rows), choice=found.choice_rows, score=found.score_rows)
    scored_R = torch.from_numpy(drawn.score)
    losses = [
        float(
            row_losses(
                base.architecture,
                applied(each, base),
                rows.inputs_RF[scored_R],
                rows.targets_R[scored_R],
            ).mean()
        )
        for each in (ours, both)
    ]
    assert found.loss_before / 1e9 == pytest.approx(losses[0], rel=1e-6)
    assert found.loss_after / 1e9 == pytest.approx(losses[1], rel=1e-6)
    assert found.gain > 500_000
    # a factor on the outputs of half-taught adapters gains much; a merge with the other half more
    assert trial.control is not None
    assert 0 <= trial.control < found.gain


def test_whoever_holds_both_adapters_and_the_base_measures_the_same(
    trial: Trial, appraiser: MarketAppraiser, base: Base
) -> None:
    ours, theirs = (verified(each(PERCEPTRON), base) for each in (buyers, sellers))
    figure = appraiser.replay(trial.evaluation, trial.recipe, ours, theirs)
    said = trial.evaluation
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
            appraiser.replay(said, trial.recipe, left, right)
        assert refused.value.reason == reason
    other = base_of(PERCEPTRON, seed=9)
    for left, right in (
        (verified(strangers(PERCEPTRON), other), theirs),
        (ours, verified(strangers(PERCEPTRON), other)),
    ):
        with pytest.raises(RemoteProtocolError):
            appraiser.replay(said, trial.recipe, left, right)


# ---------------------------------------------------------------- let in, or not


def test_a_blob_is_let_in_with_the_base_that_it_runs_on(
    appraiser: MarketAppraiser, base: Base, tmp_path: Path
) -> None:
    ours = buyers(PERCEPTRON)
    path = tmp_path / "blob"
    path.write_bytes(encode_tensors(ours.tensors))
    model = appraiser.admit(path, offer_of(ours))
    assert model.base is base
    assert computes(model)
    assert computing(model)[0] == base.architecture
    assert whole(model).weights_root == weights_root(applied(ours, base))
    # tensors of another adapter, and of the base itself, under this offer
    for tensors in (sellers(PERCEPTRON).tensors, base.tensors):
        path.write_bytes(encode_tensors(tensors))
        with pytest.raises(RemoteProtocolError):
            appraiser.admit(path, offer_of(ours))


def test_an_adapter_that_overflows_its_base_is_not_let_in(base: Base) -> None:
    """Each factor is sane by itself; their product, at the largest scale, is not."""
    modules = {f"layers.{place}": [1, MAX_ALPHA] for place in range(3)}
    loud = adapter_of(base, modules, rows_of(range(10), 300), 0, seed=1)
    loud = Adapter(
        loud.architecture, {n: torch.full(t.shape, 9e5) for n, t in loud.tensors.items()}
    )
    verified(loud, None)
    with pytest.raises(RemoteProtocolError) as refused:
        verified(loud, base)
    assert refused.value.reason == "overflows"
    wild = Adapter(loud.architecture, {n: t * 1e9 for n, t in loud.tensors.items()})
    with pytest.raises(RemoteProtocolError) as refused:
        verified(wild, base)
    assert refused.value.reason == "bad-magnitude"


def test_adapters_without_their_base_compute_nothing(base: Base, rows: ValidationSet) -> None:
    alone = verified(buyers(PERCEPTRON), None)
    assert not computes(alone)
    with pytest.raises(LocalProtocolError, match="base"):
        computing(alone)
    with pytest.raises(RemoteProtocolError, match="wrong-base"):
        verified(strangers(PERCEPTRON), base)


def test_whatever_a_broker_aligns_by_adapters_are_left_as_they_are(base: Base) -> None:
    ours, theirs = (verified(each(PERCEPTRON), base) for each in (buyers, sellers))
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
    base: Base, rows: ValidationSet
) -> None:
    parties = [verified(each(PERCEPTRON), base) for each in (buyers, sellers)]
    for models in (parties, parties[:1], [*map(whole, parties), parties[0]]):
        with pytest.raises(RemoteProtocolError) as refused:
            Measuring(models, rows, rows=(300, 300), seed=Digest(bytes(32)), method="identity")
        assert refused.value.reason == "adapters-pairwise"
        assert "pair by pair" in refused.value.detail
    measuring = Measuring(
        [whole(each) for each in parties],
        rows,
        rows=(300, 300),
        seed=Digest(bytes(32)),
        method="identity",
    )
    alone = [measuring.performance(0, 1 << place) for place in range(2)]
    assert measuring.performance(0, 3) > max(alone) + 0.1


def test_the_share_is_of_the_sold_and_not_of_the_buyers(trial: Trial) -> None:
    assert 0 < trial.evaluation.alpha < ONE
    assert merged(buyers(PERCEPTRON), sellers(PERCEPTRON), Millionths(0)) is buyers(PERCEPTRON)


# ---------------------------------------------------------------- what a node is told of its base


def test_a_broker_takes_its_base_from_a_file_or_a_folder_and_roots_it(
    base: Base, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_safetensors(base.tensors, file)
    for path in (file, tmp_path):
        config = load(flags={"dataset": "digits", "adapter_base": str(path)}).config
        held = adapter_base(config)
        assert held is not None
        assert (held.root, held.architecture) == (base.root, base.architecture)
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
    appraiser: MarketAppraiser, base: Base
) -> None:
    trials = Trials(appraiser, trio.CapacityLimiter(1), Observer(), most=8)
    ours, theirs = buyers(PERCEPTRON), verified(sellers(PERCEPTRON), base)
    found = [
        await trials.measure(cast.word(str(number)), mine, theirs, "digits", NOTICE)
        for number, mine in enumerate(verified(each, base) for each in (ours, louder(ours), ours))
    ]
    assert found[0] is found[2]
    assert found[0].evaluation.base_root == found[1].evaluation.base_root
    assert found[0].evaluation.loss_before != found[1].evaluation.loss_before


def test_whoever_checks_a_receipt_names_folders_of_adapters(base: Base, tmp_path: Path) -> None:
    sold = sellers(PERCEPTRON)
    write_adapter(sold, tmp_path / "b")
    architecture, tensors = weights_of(tmp_path / "b", buyers(PERCEPTRON).architecture, base)
    model = model_of(
        architecture, tensors, root=weights_root(sold.tensors), field="sold_root", base=base
    )
    assert (model.architecture, model.base) == (sold.architecture, base)
    with pytest.raises(click.UsageError, match="--adapter-base"):
        weights_of(tmp_path / "b", architecture, None)
    with pytest.raises(RemoteProtocolError, match="wrong-base"):
        weights_of(tmp_path / "b", architecture, base_of(PERCEPTRON, seed=9))


def test_adapters_are_merged_by_a_share_and_by_nothing_that_a_whole_model_could_be(
    base: Base, rows: ValidationSet
) -> None:
    ours, theirs = (verified(each(PERCEPTRON), base) for each in (buyers, sellers))
    aligned = align("universe", ours, theirs, seed=0)
    found = evaluate(whole_pair(aligned), rows, seed=Digest(bytes(32)))
    assert as_traded(aligned, found).sold_root == theirs.weights_root
    units = Recipe(permutations={"hidden.0": tuple(range(32))}, scales={}, alpha=found.alpha)
    with pytest.raises(LocalProtocolError, match="one share"):
        as_traded(aligned, dataclasses.replace(found, recipe=units))
