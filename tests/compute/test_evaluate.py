from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.curve import LossCurve, row_losses
from broker_node.evaluate.evaluation import QUADRATIC_SEARCH, Evaluated, evaluate, replay
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.search import SCREEN, SEARCHES, _one_valley, halving_brent
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, random_init
from node.params.encoding import weights_root
from node.params.recipe import apply_recipe, interpolate
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.merkle import leaf_hash, root_of_hashes
from node.protocol.types import ONE, Digest, Millionths

SEED = Digest(hashlib.sha256(b"trial").digest())


def seed_of(number: int) -> Digest:
    return Digest(hashlib.sha256(number.to_bytes(8, "big")).digest())


@given(number=st.integers(0, 2**32), total=st.integers(2, 200), data=st.data())
def test_drawn_rows_are_rows_and_no_row_is_drawn_twice(
    number: int, total: int, data: st.DataObject
) -> None:
    choice = data.draw(st.integers(1, total - 1))
    score = data.draw(st.integers(1, total - choice))
    drawn = draw_rows(seed_of(number), total, choice=choice, score=score)
    together = np.concatenate([drawn.choice, drawn.score])
    assert (len(drawn.choice), len(drawn.score)) == (choice, score)
    assert len(set(together.tolist())) == choice + score
    assert set(together.tolist()) <= set(range(total))


def test_the_draw_is_the_one_that_is_written_down() -> None:
    def key(index: int) -> bytes:
        return hashlib.sha256(SEED + index.to_bytes(8, "big")).digest()

    order = sorted(range(50), key=key)
    drawn = draw_rows(SEED, 50, choice=7, score=9)
    assert drawn.choice.tolist() == order[:7]
    assert drawn.score.tolist() == order[7:16]
    assert draw_rows(seed_of(1), 50, choice=7, score=9).choice.tolist() != order[:7]


@pytest.mark.parametrize(("choice", "score"), [(0, 1), (1, 0), (30, 21), (-1, 5)])
def test_rows_that_are_not_there_cannot_be_drawn(choice: int, score: int) -> None:
    with pytest.raises(LocalProtocolError):
        draw_rows(SEED, 50, choice=choice, score=score)
    with pytest.raises(LocalProtocolError):
        draw_rows(Digest(b"short"), 50, choice=1, score=1)


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, generator=generator), torch.arange(count) % 2


def test_the_commitment_is_the_merkle_root_of_the_rows_digests() -> None:
    inputs_RF, labels_R = rows_of(40)
    digests = b"".join(
        hashlib.sha256(
            b"\x04"
            + i.to_bytes(8, "big")
            + inputs_RF[i].numpy().tobytes()
            + int(labels_R[i]).to_bytes(8, "little")
        ).digest()
        for i in range(40)
    )
    expected = leaf_hash(0, digests[:1024]) + leaf_hash(1, digests[1024:])
    assert ValidationSet(inputs_RF, labels_R).root == root_of_hashes(expected, 40 * 32)


@pytest.mark.parametrize("change", ["feature", "label", "order"])
def test_any_change_of_a_row_changes_the_commitment(change: str) -> None:
    inputs_RF, labels_R = rows_of(40)
    root = ValidationSet(inputs_RF, labels_R).root
    inputs_RF, labels_R = inputs_RF.clone(), labels_R.clone()
    if change == "feature":
        inputs_RF[39, 2] += 1e-3
    elif change == "label":
        labels_R[0] += 1
    else:
        inputs_RF, labels_R = inputs_RF.flip(0), labels_R.flip(0)
    assert ValidationSet(inputs_RF, labels_R).root != root


def test_rows_that_cannot_be_evaluated_are_refused() -> None:
    inputs_RF, labels_R = rows_of(4)
    for wrong in (
        (inputs_RF, labels_R[:3]),
        (inputs_RF.double(), labels_R),
        (inputs_RF, labels_R.int()),
        (inputs_RF[:1], labels_R[:1]),
        (inputs_RF / 0, labels_R),
        (inputs_RF, labels_R - 1),
    ):
        with pytest.raises(LocalProtocolError):
            ValidationSet(*wrong)


def test_asking_again_or_for_fewer_rows_costs_nothing(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ours, theirs = pair
    curve = LossCurve(
        ours.architecture,
        ours.tensors,
        theirs.tensors,
        validation.inputs_RF,
        validation.targets_R,
    )
    alpha = Millionths(300_000)
    curve.loss(alpha, 100)
    curve.loss(alpha, 50)
    assert curve.row_evaluations == 100
    loss = curve.loss(alpha, 150)
    assert curve.row_evaluations == 150
    merged = interpolate(ours.tensors, theirs.tensors, alpha)
    direct = row_losses(
        ours.architecture, merged, validation.inputs_RF[:150], validation.targets_R[:150]
    )
    assert loss == pytest.approx(float(direct.mean()), rel=1e-6)


class Parabola(LossCurve):
    """A curve with a known minimum, or with two."""

    def __init__(self, rows: int, *valleys: tuple[float, float]) -> None:
        self.rows = rows
        self.valleys = valleys
        self.noise = 0.0

    def __len__(self) -> int:
        return self.rows

    def measure(self, alphas: Sequence[Millionths], rows: int) -> None:
        pass

    def losses(self, alpha: Millionths, rows: int) -> torch.Tensor:
        assert 0 < rows <= self.rows
        depth = min(depth + (alpha / ONE - at) ** 2 for at, depth in self.valleys)
        noise_R = torch.randn(rows, generator=torch.Generator().manual_seed(alpha))
        return depth + self.noise * noise_R.double()


@given(at=st.floats(0, 1), rows=st.integers(1, 5000))
def test_the_search_finds_the_bottom_of_a_valley(at: float, rows: int) -> None:
    alpha = halving_brent(Parabola(rows, (at, 0.0)))
    assert alpha / ONE == pytest.approx(at, abs=0.02)


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_buying_nothing_and_buying_outright_are_found_exactly(at: float) -> None:
    assert halving_brent(Parabola(2500, (at, 0.0))) == round(at * ONE)


def test_the_deeper_of_two_valleys_wins() -> None:
    assert halving_brent(Parabola(2500, (0.2, 0.0), (0.8, 0.01))) / ONE == pytest.approx(
        0.2, abs=0.02
    )
    assert halving_brent(Parabola(2500, (0.2, 0.01), (0.8, 0.0))) / ONE == pytest.approx(
        0.8, abs=0.02
    )


def test_a_valley_is_told_from_another_through_the_noise_of_rows() -> None:
    curve = Parabola(20_000, (0.2, 0.01), (0.8, 0.0))
    curve.noise = 0.1
    assert halving_brent(curve) / ONE == pytest.approx(0.8, abs=0.1)


def test_the_search_loses_nothing_to_the_papers_grid(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    own, grid = (trial(pair, validation, search=name) for name in ("halving-brent", "paper-grid"))
    assert own.loss_after <= grid.loss_after * 1.01


def test_values_with_a_gap_between_them_are_not_one_valley() -> None:
    one = Parabola(100, (0.4, 0.0))
    assert _one_valley(one, SCREEN, 100)
    assert _one_valley(one, SCREEN[3:6], 100)
    assert not _one_valley(one, [SCREEN[3], SCREEN[5]], 100)
    assert not _one_valley(Parabola(100, (0.2, 0.0), (0.8, 0.0)), SCREEN, 100)


def test_the_papers_grid_stays_on_its_ten_values() -> None:
    assert SEARCHES["paper-grid"](Parabola(10, (0.33, 0.0))) == 350_000
    assert SEARCHES["paper-grid"](Parabola(10, (0.0, 0.0))) == 50_000


def test_the_gain_is_the_relative_drop_of_the_mean_loss() -> None:
    before = torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=torch.float64)
    gain = paired_gain(before, before * 0.75)
    assert gain.loss_before == 2_000_000_000
    assert gain.loss_after == 1_500_000_000
    assert gain.gain == 250_000
    # every row dropped by the same share, so nothing is uncertain about the ratio
    assert gain.bound == pytest.approx(250_000, abs=1)


def test_the_bound_covers_the_true_gain_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    trials, covered = 2000, 0
    for _ in range(trials):
        before = torch.rand(100, generator=generator, dtype=torch.float64) + 0.5
        noise = torch.randn(100, generator=generator, dtype=torch.float64) * 0.3
        covered += paired_gain(before, (before * 0.9 + noise).clamp(min=0)).bound <= 100_000
    assert 0.93 < covered / trials < 0.97


def test_harm_is_a_negative_gain_and_equality_is_none() -> None:
    losses = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert paired_gain(losses, losses * 2).gain == -1_000_000
    same = paired_gain(losses, losses)
    assert (same.gain, same.bound, same.z_score) == (0, 0, 0)
    zero = paired_gain(losses * 0, losses * 0)
    assert (zero.gain, zero.bound) == (0, 0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e300])
def test_losses_that_are_no_numbers_are_the_sellers_fault(poison: float) -> None:
    losses = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with pytest.raises(RemoteProtocolError):
        paired_gain(losses, losses * poison)


def test_one_row_has_no_bound() -> None:
    with pytest.raises(LocalProtocolError):
        paired_gain(torch.ones(1), torch.ones(1))


def trial(pair: tuple[Verified, Verified], validation: ValidationSet, **options: str) -> Evaluated:
    aligned = ALIGNERS["weight-matching"](*pair, seed=1)
    return evaluate(aligned, validation, seed=SEED, **options)  # type: ignore[arg-type]


def test_agents_that_lack_different_classes_gain_from_each_other(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    found = trial(pair, validation)
    assert 0 < found.alpha < ONE
    assert 0 < found.bound < found.gain
    assert found.z_score > 3 * ONE
    assert found.loss_after < found.loss_before
    expected = 1 - found.loss_after / found.loss_before
    assert found.gain / ONE == pytest.approx(expected, abs=2e-6)


def test_a_trial_is_the_same_for_the_same_inputs_on_any_number_of_threads(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    first = trial(pair, validation)
    torch.set_num_threads(2)
    second = trial(pair, validation)
    assert second.recipe == first.recipe
    assert second.merged_root == first.merged_root
    assert second.row_evaluations == first.row_evaluations
    assert second.loss_after == pytest.approx(first.loss_after, rel=1e-5)
    torch.set_num_threads(1)
    assert trial(pair, validation) == first


def test_the_buyer_gets_the_merged_root_that_was_measured(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ours, theirs = pair
    found = trial(pair, validation)
    merged = apply_recipe(ours.architecture, ours.tensors, theirs.tensors, found.recipe)
    assert weights_root(merged) == found.merged_root


@pytest.mark.parametrize("search", sorted(set(SEARCHES) - {QUADRATIC_SEARCH}))
def test_a_replay_finds_what_the_trial_found(
    pair: tuple[Verified, Verified], validation: ValidationSet, search: str
) -> None:
    ours, theirs = pair
    found = trial(pair, validation, search=search)
    root, gain = replay(
        ours.architecture,
        ours.tensors,
        theirs.tensors,
        found.recipe,
        validation,
        seed=SEED,
        choice_rows=found.choice_rows,
        score_rows=found.score_rows,
    )
    assert root == found.merged_root
    assert gain.loss_before == found.loss_before
    assert gain.loss_after == pytest.approx(found.loss_after, rel=1e-5)


def test_choosing_and_scoring_are_counted_together(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    grid = trial(pair, validation, search="paper-grid")
    assert (grid.choice_rows, grid.score_rows) == (150, 150)
    assert grid.row_evaluations == 10 * 150 + 2 * 150


def test_nothing_is_bought_from_a_seller_that_knows_nothing(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ours, _ = pair
    tensors = {name: tensor * 30 for name, tensor in random_init(ours.architecture, 99).items()}
    stranger = verify(
        Received(
            weights_root=weights_root(tensors), architecture=ours.architecture, tensors=tensors
        )
    )
    found = trial((ours, stranger), validation)
    assert found.bound <= 0 or found.gain < 20_000


def test_a_copy_of_the_buyers_own_model_is_worth_nothing(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ours, _ = pair
    found = trial((ours, ours), validation)
    assert abs(found.gain) < 100
    assert found.loss_after == pytest.approx(found.loss_before, rel=1e-4)


def test_what_computes_nothing_is_not_evaluated(validation: ValidationSet) -> None:
    noise = Architecture("random", {"shapes": {"a": [4]}})
    tensors = random_init(noise, 0)
    model = verify(
        Received(weights_root=weights_root(tensors), architecture=noise, tensors=tensors)
    )
    with pytest.raises(LocalProtocolError):
        trial((model, model), validation)


def test_an_unknown_search_is_named(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    with pytest.raises(LocalProtocolError, match="guess"):
        trial(pair, validation, search="guess")


@given(number=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_the_gain_does_not_hang_on_the_rows_that_were_drawn(
    pair: tuple[Verified, Verified], validation: ValidationSet, number: int
) -> None:
    aligned = ALIGNERS["weight-matching"](*pair, seed=1)
    found = evaluate(aligned, validation, seed=seed_of(number))
    assert found.bound > 0
