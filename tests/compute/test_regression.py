from __future__ import annotations

import hashlib
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker_node.align.registry import ALIGNERS
from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.curve import LossCurve, row_losses
from broker_node.evaluate.evaluation import QUADRATIC_SEARCH, Evaluated, evaluate, replay
from broker_node.evaluate.search import exact_quadratic
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.files import DataError
from node.data.linear import load_linear
from node.data.rows import Dataset, Rows
from node.data.split import endowment, split_test
from node.params.architecture import Architecture, random_init
from node.params.encoding import weights_root
from node.params.recipe import apply_recipe
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.merkle import leaf_hash, root_of_hashes
from node.protocol.types import ONE, Digest
from node.training.linear import LinearTrainer, linear_trainer
from node.training.mlp import mlp_trainer
from node.training.registry import build_trainer
from node.training.trainer import Task
from tests.data.small import NOWHERE

FEATURES = 60
SEED = Digest(hashlib.sha256(b"trial").digest())


def study_of(seed: int, features: int, held: tuple[int, int], tested: int) -> Dataset:
    """Return the linear study at another size."""
    generator = np.random.Generator(np.random.Philox(seed))
    truth_F = generator.standard_normal(features)

    def rows(count: int, variance: float) -> Rows:
        inputs_RF = generator.standard_normal((count, features))
        values_R = inputs_RF @ truth_F + variance**0.5 * generator.standard_normal(count)
        return Rows(inputs_RF=inputs_RF.astype(np.float32), targets_R=values_R.astype(np.float32))

    parts = [rows(held[0], 0.0), rows(held[1], 0.5)]
    train = Rows(
        inputs_RF=np.concatenate([part.inputs_RF for part in parts]),
        targets_R=np.concatenate([part.values_R for part in parts]),
    )
    test = rows(tested, 0.0)
    return Dataset(name="linear", train=train, test=test, classes=0, holdings=held)


def model(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def trial(buyer: Verified, seller: Verified, rows: ValidationSet, *, shared: bool) -> Evaluated:
    aligned = ALIGNERS["weight-matching"](buyer, seller, seed=1)
    number = len(rows) if shared else None
    return evaluate(
        aligned,
        rows,
        seed=SEED,
        choice_rows=number,
        score_rows=number,
        search=QUADRATIC_SEARCH,
    )


def improvements(study: Dataset, rounds: int = 100) -> list[float]:
    """Return by how much, in percent, trading every round lowers each agent's test loss."""
    held = split_test(study, protocol="paper")
    validation = ValidationSet.of(held.validation)
    trainers = [
        LinearTrainer(rows=endowment(study, agent, 2, seed=0), report=held.report)
        for agent in (0, 1)
    ]
    alone = [trainer.initial() for trainer in trainers]
    traded = [trainer.initial() for trainer in trainers]
    for epoch in range(rounds):
        alone, traded = (
            [
                trainer.train_epoch(tensors, epoch).parameters
                for trainer, tensors in zip(trainers, both, strict=True)
            ]
            for both in (alone, traded)
        )
        models = [model(trainers[0].architecture, tensors) for tensors in traded]
        for agent, (buyer, seller) in enumerate((models, models[::-1])):
            found = trial(buyer, seller, validation, shared=True)
            if found.gain > 0:
                traded[agent] = apply_recipe(
                    buyer.architecture, buyer.tensors, seller.tensors, found.recipe
                )
    return [
        100 * (1 - trainer.evaluate(after).loss / trainer.evaluate(before).loss)
        for trainer, before, after in zip(trainers, alone, traded, strict=True)
    ]


def test_trading_lowers_both_losses_as_in_the_paper_at_a_tenth_of_its_size() -> None:
    measured = [improvements(study_of(seed, 100, (50, 80), 1_000)) for seed in range(6)]
    ours, theirs = (statistics.mean(column) for column in zip(*measured, strict=True))
    assert ours == pytest.approx(42.84, abs=10)
    assert theirs == pytest.approx(23.88, abs=10)


@pytest.mark.slow
def test_trading_lowers_both_losses_as_the_paper_says() -> None:
    measured = [improvements(load_linear(seed)) for seed in range(4)]
    ours, theirs = (statistics.mean(column) for column in zip(*measured, strict=True))
    assert ours == pytest.approx(42.84, abs=5)
    assert theirs == pytest.approx(23.88, abs=5)


@pytest.fixture(scope="module")
def study() -> Dataset:
    return study_of(1, FEATURES, (30, 40), 400)


def trained(study: Dataset, agent: int, epochs: int) -> Verified:
    trainer = LinearTrainer(
        rows=endowment(study, agent, 2, seed=0), report=study.test, learning_rate=0.05
    )
    tensors = trainer.initial()
    for epoch in range(epochs):
        tensors = trainer.train_epoch(tensors, epoch).parameters
    return model(trainer.architecture, tensors)


def test_an_epoch_is_one_step_of_the_papers_gradient(study: Dataset) -> None:
    rows = endowment(study, 1, 2, seed=0)
    trainer = LinearTrainer(rows=rows, report=study.test)
    inputs_RF, values_R = rows.inputs_RF.astype(np.float64), rows.values_R.astype(np.float64)
    expected_F = np.zeros(FEATURES)
    tensors = trainer.initial()
    assert not any(bool(tensor.any()) for tensor in tensors.values())
    for epoch in range(3):
        residuals_R = inputs_RF @ expected_F - values_R
        step = trainer.train_epoch(tensors, epoch)
        assert step.loss == pytest.approx(np.square(residuals_R).mean())
        expected_F -= 0.01 * inputs_RF.T @ residuals_R / len(rows)
        tensors = step.parameters
        np.testing.assert_allclose(tensors["weight"][0].numpy(), expected_F, atol=1e-5)
        assert not bool(tensors["bias"].any())
    errors_R = study.test.inputs_RF @ expected_F - study.test.values_R
    score = trainer.evaluate(tensors)
    assert score.loss == pytest.approx(np.square(errors_R).mean(), rel=1e-5)
    assert score.accuracy == 0
    with pytest.raises(LocalProtocolError):
        trainer.train_epoch(tensors, -1)


def test_trainers_refuse_what_they_cannot_learn() -> None:
    for name, dataset in (("linear", "digits"), ("mlp", "linear")):
        task = Task(dataset=dataset, data_folder=NOWHERE, agent=0, agents=2, seed=1)
        with pytest.raises(DataError, match=f"the trainer `{name}`.*{dataset} has"):
            build_trainer(name, task)
    crowd = Task(dataset="linear", data_folder=NOWHERE, agent=0, agents=3, seed=1)
    with pytest.raises(DataError, match="made for 2 agents"):
        linear_trainer(crowd)
    with pytest.raises(DataError, match="take the endowment `dirichlet`"):
        mlp_trainer(Task(dataset="digits", data_folder=NOWHERE, agent=0, agents=16, seed=1))


def test_the_loss_of_a_row_is_its_squared_error(study: Dataset) -> None:
    ours = trained(study, 0, 20)
    rows = ValidationSet.of(study.test)
    losses_R = row_losses(ours.architecture, ours.tensors, rows.inputs_RF, rows.targets_R)
    weight_F = ours.tensors["weight"][0].double().numpy()
    expected_R = np.square(study.test.inputs_RF @ weight_F - study.test.values_R)
    np.testing.assert_allclose(losses_R.numpy(), expected_R, rtol=1e-3, atol=1e-6)
    wide = Architecture("linear", {"inputs": FEATURES, "outputs": 2})
    with pytest.raises(LocalProtocolError, match="2 outputs for one value"):
        row_losses(wide, random_init(wide, 0), rows.inputs_RF, rows.targets_R)


@given(seed=st.integers(0, 1000), distance=st.floats(0.01, 10))
def test_the_line_search_finds_the_very_bottom(seed: int, distance: float) -> None:
    generator = np.random.Generator(np.random.Philox(seed))
    inputs_RF = generator.standard_normal((200, 5))
    ours_F, theirs_F, truth_F = generator.standard_normal((3, 5))
    ours_F, theirs_F = truth_F + distance * ours_F, truth_F + distance * theirs_F
    architecture = Architecture("linear", {"inputs": 5, "outputs": 1})
    base, sold = (
        {"weight": torch.from_numpy(weight_F).float()[None], "bias": torch.zeros(1)}
        for weight_F in (ours_F, theirs_F)
    )
    values_R = inputs_RF @ truth_F
    curve = LossCurve(
        architecture,
        base,
        sold,
        torch.from_numpy(inputs_RF).float(),
        torch.from_numpy(values_R).float(),
    )
    residuals_R = inputs_RF @ ours_F - values_R
    change_R = inputs_RF @ (theirs_F - ours_F)
    exact = -float(residuals_R @ change_R) / float(change_R @ change_R)
    assert exact_quadratic(curve) / ONE == pytest.approx(min(1, max(0, exact)), abs=1e-3)
    assert curve.row_evaluations == 3 * 200


def test_of_two_equal_models_nothing_is_bought(study: Dataset) -> None:
    ours = trained(study, 0, 5)
    found = trial(ours, ours, ValidationSet.of(study.test), shared=False)
    assert (found.alpha, found.gain) == (0, 0)


def test_both_agents_arrive_at_the_same_point_of_the_line(study: Dataset) -> None:
    ours, theirs = (trained(study, agent, 40) for agent in (0, 1))
    rows = ValidationSet.of(study.test)
    buying, selling = (trial(*pair, rows, shared=True) for pair in ((ours, theirs), (theirs, ours)))
    assert 0 < buying.alpha < ONE
    assert buying.alpha + selling.alpha == pytest.approx(ONE, abs=100)
    assert (buying.choice_rows, buying.score_rows) == (400, 400)
    assert buying.gain > 0
    assert selling.loss_after == pytest.approx(buying.loss_after, rel=1e-5)
    root, gain = replay(
        ours.architecture,
        ours.tensors,
        theirs.tensors,
        buying.recipe,
        rows,
        seed=SEED,
        choice_rows=400,
        score_rows=400,
    )
    assert root == buying.merged_root
    assert gain.gain == buying.gain


def test_the_commitment_to_values_is_the_one_that_is_written_down() -> None:
    inputs_RF = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    values_R = torch.linspace(-1, 1, 40)
    digests = b"".join(
        hashlib.sha256(
            b"\x05"
            + i.to_bytes(8, "big")
            + inputs_RF[i].numpy().tobytes()
            + values_R[i].numpy().tobytes()
        ).digest()
        for i in range(40)
    )
    expected = leaf_hash(0, digests[:1024]) + leaf_hash(1, digests[1024:])
    root = ValidationSet(inputs_RF, values_R).root
    assert root == root_of_hashes(expected, 40 * 32)
    values_R[7] += 1e-6
    assert ValidationSet(inputs_RF, values_R).root != root
    values_R[7] = float("nan")
    with pytest.raises(LocalProtocolError, match="finite"):
        ValidationSet(inputs_RF, values_R)


def test_classes_and_values_of_the_same_bytes_are_different_commitments() -> None:
    # the class takes as many bytes as one more feature and a value
    inputs_RF, labels_R = torch.ones(4, 2), torch.arange(4)
    halves = torch.from_numpy(labels_R.numpy().view(np.float32).reshape(4, 2).copy())
    classes = ValidationSet(inputs_RF, labels_R)
    values = ValidationSet(torch.cat((inputs_RF, halves[:, :1]), dim=1), halves[:, 1])
    assert classes.root != values.root


def test_the_exact_search_is_refused_where_it_is_not_exact(
    study: Dataset, validation: ValidationSet
) -> None:
    with pytest.raises(LocalProtocolError, match="rows have classes"):
        MarketAppraiser(validation, classes=10, search=QUADRATIC_SEARCH)
    deep = Architecture("mlp", {"widths": [FEATURES, 4, 1]})
    ours, theirs = (model(deep, random_init(deep, seed)) for seed in (1, 2))
    with pytest.raises(RemoteProtocolError, match="wrong-architecture"):
        trial(ours, theirs, ValidationSet.of(study.test), shared=False)
