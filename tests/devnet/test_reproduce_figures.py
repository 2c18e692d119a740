"""The papers' figures on the floor: what is noted, priced and cleared, on cases that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.evaluation import Evaluated
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.validation import ValidationSet
from broker_node.mechanisms.gain_bounds import gain_range
from broker_node.mechanisms.price import bargain
from broker_node.verify.stages import Verified
from node.data.files import DataError
from node.data.linear import HOLDINGS, load_linear, true_parameters
from node.data.rows import Rows
from node.devnet.arms import ARMS
from node.devnet.floor import Floor
from node.params.architecture import Architecture, random_init
from node.params.recipe import interpolate
from node.protocol.types import ONE, Digest, Millionths, Wei
from node.roles.opening import PLAY_VALUE
from node.training.mlp import Settings as Learning
from scripts import reproduce
from scripts.reproduction import crowd, figure3, figure4, playing, trade
from scripts.reproduction.crowd import (
    ALPHAS,
    FEE,
    Crowd,
    Receipt,
    Size,
    Trials,
    ask_of,
    clear,
    gini,
)
from scripts.reproduction.dynamics import efficiency, moves
from scripts.reproduction.figure import (
    FigureCase,
    FigurePlayed,
    every,
    over_seeds,
    series_over_seeds,
)
from scripts.reproduction.figure3 import catches_up, lead, spared, takes_the_lead
from scripts.reproduction.figure4 import RelatedTasks
from scripts.reproduction.figure5 import asks, gains, prices, printed_bound, short_of
from scripts.reproduction.figures import FIGURES
from scripts.reproduction.linear import LinearMarket, play_linear
from scripts.reproduction.studies import AGENTS, Setting

CLEAN = Setting(protocol="clean")
ROUNDS = 6


def log_of(
    losses: Sequence[float] = (8, 4, 2, 1, 1, 1), before: Sequence[float] = (4, 4, 4, 4, 4, 4)
) -> dict[str, Any]:
    """Return an agent's log: it buys in every round but the first, at α = ¾."""
    return {
        "alone": [16.0, 8.0, 6.0, 5.0, 4.0, 2.0],
        "market": [float(loss) for loss in losses],
        "alpha": [0.75] * ROUNDS,
        "before": [float(error) for error in before],
        "after": [error / 2 for error in before],
        "bought": [False] + [True] * (ROUNDS - 1),
    }


def round_of(number: int) -> dict[str, Any]:
    return {
        "trades": 2, "sellers": 1, "volume": 6 * 10**18, "price_mean": number * 10**18,
        "price_dispersion": 0.5, "price_quantiles": [1.0, 2.0, 3.0], "ask_mean": 1e18,
        "asks_from": {"own": 1, "public": 1, "gain": 1}, "lost": {"ask": 1},
        "realised": number, "best": 4, "efficiency": number / 4, "sure_share": 1.0,
        "accuracy": 70.0, "accuracy_alone": 60.0, "accuracy_ends": [50.0, 90.0],
        "gini": 0.1, "gini_alone": 0.2,
    }  # fmt: skip


def stand_in(case: FigureCase) -> FigurePlayed:
    """Stand in for a game: another error of A's with each seed."""
    figures: dict[str, Any] = {agent: log_of() for agent in AGENTS}
    figures["A"]["before"] = [4.0 + case.seed] * ROUNDS
    if case.name == "figure4":
        at = {"cosine": 0.9, "alone": [4.0, 4.0], "market": [1.0, 2.0], "bought": [3, 4]}
        figures = {"sweep": [{**at, "distance": 0.0}, {**at, "distance": 9.0}]}
    if case.name == "dynamics":
        figures = {"rounds": [round_of(1), round_of(2), round_of(3)]}
    return FigurePlayed(case.name, case.seed, figures, case.study.last(figures), 1.5)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(playing, "play_figure", stand_in)
    monkeypatch.setattr(trade, "locate", lambda *_: None)
    return lambda *words: reproduce.main([*words, "--jobs", "1", "--folder", str(tmp_path)])


# ── the command ──


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_saved_printed_and_drawn_and_goes_on(
    name: str,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(name, "--seeds", "1", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["complete"], first["seeds"], first["protocol"]) == (True, [0], "clean")
    assert command(name, "--seeds", "2") == 0
    captured = capsys.readouterr()
    assert "1 of 2 cases are saved" in captured.err
    assert "Beside the paper:" in captured.out
    saved = json.loads((tmp_path / f"{name}.json").read_text())
    assert list(saved["cases"][name]["by_seed"]) == ["0", "1"]
    assert saved["conditions"]["settings"][name]["ours"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_small_setting_and_another_protocol_are_saved_apart(
    command: Callable[..., int], tmp_path: Path
) -> None:
    command("dynamics", "--seeds", "1", "--quick")
    command("dynamics", "--seeds", "1", "--protocol", "paper")
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "dynamics-quick.json", "dynamics-paper.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["figure3", "--priced"], "--priced means nothing to figure3"),
        (["figure5", "--priced"], "--priced means nothing to figure5"),
        (["figure3", "--quick"], "figure3 has no small setting"),
        (["table1", "--quick"], "table1 has no small setting"),
    ],
)
def test_what_a_figure_does_not_have_is_refused_by_name(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        reproduce.main(words)
    assert refused.value.code == 2
    assert named in capsys.readouterr().err


def test_a_figure_reaches_the_processes_that_play_its_seeds() -> None:
    lacking = Setting(protocol="clean", data_folder=Path("/nowhere"))
    cases = FIGURES["dynamics"].cases(lacking, range(2))
    with pytest.raises(DataError, match="/nowhere"):
        list(playing.run(cases, 2))


def test_a_figure_that_some_seeds_lack_is_averaged_over_the_others() -> None:
    by_seed: dict[int, dict[str, Any]] = {
        0: {"x": 1.0, "s": [1, None]},
        1: {"x": None, "s": [3, None]},
        2: {"x": 3.0, "s": [5, 2]},
    }
    found = over_seeds(by_seed, lambda one, name: one[name], "x")
    assert (found["mean"], found["n"]) == (2, 2)
    series = series_over_seeds(by_seed, lambda one: one["s"])
    assert [(point["mean"], point["n"]) for point in series] == [(3, 3), (2, 1)]
    assert every(100, 3) == [0, 50, 99]


# ── Figure 3 ──


def test_b_leads_from_the_round_after_which_it_is_never_behind() -> None:
    one = {"A": log_of(before=[1, 3, 1, 4, 3, 2]), "B": log_of(before=[2, 2, 2, 2, 2, 1])}
    assert lead(one) == [0.5, 1.5, 0.5, 2, 1.5, 2]
    assert takes_the_lead(lead(one)) == 4
    assert takes_the_lead([2, 3]) == 1
    assert takes_the_lead([2, 1]) is None
    assert [figure3.b_leads(one, half) for half in (0, 1)] == [100 / 3, 100]
    assert [figure3.purchases(one, "A", half) for half in (0, 1)] == [2, 3]


def test_what_the_market_spares_is_of_the_last_loss_alone() -> None:
    one = {"A": log_of()}
    assert spared(one, "A") == 50
    assert catches_up(one, "A") == 3
    assert catches_up({"A": log_of(losses=[9] * ROUNDS)}, "A") is None


def test_a_watched_linear_market_plays_as_any_floor_where_the_truth_is_not_known() -> None:
    torch.set_num_threads(1)
    spec = CLEAN.spec("linear", warmup_epochs=0, rounds=2)
    plain = Floor(spec, ARMS["unaligned"], 3, least_ratio=1.0).play()
    watched = LinearMarket(spec, ARMS["unaligned"], 3, least_ratio=1.0, truth_known=False)
    assert watched.play().curves == plain.curves
    assert sum(one.bought for tried in watched.tried for one in tried) == plain.traded


def test_where_the_truth_is_known_whatever_is_nearer_to_it_is_bought() -> None:
    torch.set_num_threads(1)
    log = play_linear(CLEAN, 0, rounds=3)
    for agent in AGENTS:
        tried = [log[agent][name] for name in ("before", "after", "bought", "market")]
        for before, after, bought, market in zip(*tried, strict=True):
            assert bought == (after < before)
            # inputs are standard normal, tests without noise: the loss estimates the error
            assert market == pytest.approx(after if bought else before, rel=0.05)
    assert any(log[agent]["bought"][0] for agent in AGENTS)
    assert log["A"]["before"][0] > log["A"]["before"][-1]


def test_an_error_is_the_squared_distance_from_the_true_parameters() -> None:
    market = LinearMarket(CLEAN.spec("linear"), ARMS["unaligned"], 5)
    zero = {"weight": torch.zeros(1, 1000)}
    truth_F = true_parameters(5)
    assert market.error(0, zero) == pytest.approx(float(np.square(truth_F).sum()))
    rows = load_linear(5).train
    exact_R = rows.inputs_RF[: HOLDINGS[0]].astype(np.float64) @ truth_F
    np.testing.assert_allclose(rows.values_R[: HOLDINGS[0]], exact_R, rtol=1e-5, atol=1e-4)


# ── Figure 4 ──


def test_related_tasks_are_as_far_apart_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure4, "TEST_ROWS", 40)
    tasks = RelatedTasks(CLEAN.spec("linear"), ARMS["unaligned"], 1, distance=7.0)
    a_F, b_F = (tasks.truth_of(number) for number in (0, 1))
    assert np.linalg.norm(a_F - b_F) == pytest.approx(7, abs=1e-2)
    assert np.array_equal(a_F, true_parameters(1))
    for number, truth_F in enumerate((a_F, b_F)):
        rows = tasks.rows_of(number)
        assert len(rows.train) == HOLDINGS[number]
        exact_R = rows.test.inputs_RF.astype(np.float64) @ truth_F
        np.testing.assert_allclose(rows.test.values_R, exact_R, rtol=1e-5, atol=1e-3)


def test_a_trial_is_scored_on_rows_of_its_buyers_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure4, "TEST_ROWS", 40)
    roots: dict[int, Digest] = {}

    class Seen(RelatedTasks):
        def _trial(self, base: Verified, sold: Verified, validation: ValidationSet) -> Evaluated:
            found = super()._trial(base, sold, validation)
            roots[self.buyer(base.weights_root)] = found.validation_root
            return found

    spec = CLEAN.spec("linear", warmup_epochs=0, rounds=1)
    market = Seen(spec, ARMS["unaligned"], 1, distance=45.0)
    market.play()
    assert [roots[number] for number in (0, 1)] == [one.root for one in market._validations]
    assert roots[0] != roots[1]


# ── Figure 5 ──


def test_a_price_is_midway_and_stays_where_nothing_is_traded() -> None:
    bids, wanted = [4.0, 4.0, 2.0, 3.0, 5.0], [9.0, 2.0, 3.0, 1.0, 5.0]
    assert prices(bids, wanted, [True, True, True, False, True]) == [None, 3, 3, 3, 5]


def test_the_bound_never_asks_for_more_than_the_buyers_gain() -> None:
    generator = np.random.default_rng(4)
    for _ in range(200):
        own_F, theirs_F = generator.standard_normal((2, 3))
        alpha, beta = generator.uniform(0.05, 0.95, 2)
        merged_F = (1 - alpha) * own_F + alpha * theirs_F
        other_F = (1 - beta) * theirs_F + beta * own_F
        delta = float(own_F @ own_F / (merged_F @ merged_F))
        gain = float(theirs_F @ theirs_F / (other_F @ other_F))
        lower = gain_range(alpha, beta, delta)[0]
        assert lower <= gain * (1 + 1e-9)
        assert printed_bound(alpha, beta, delta) <= lower * (1 + 1e-9)
    assert printed_bound(0.0, 1.0, 1.0) == 0  # who buys nothing learns nothing


def test_a_seller_learns_only_from_what_was_bought() -> None:
    one = {"A": log_of(), "B": log_of()}
    assert gains(one, "A") == [2] * ROUNDS
    found = asks(one, "A", "B")
    assert found["optimal"] == [2] * ROUNDS
    bound = gain_range(0.75, 0.75, 2.0)[0]
    # four of five purchases are seen before the last round; all were worth 2
    assert found["learned"] == [pytest.approx(bound)] * 5 + [2]
    priced = {"prices": {"A": {"bound": [None, 1.5, 1.5], "optimal": [None, 2.0, 2.0]}}}
    assert short_of(priced, "A", "bound") == 25


# ── a hundred agents ──


def rows_of(count: int, seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    return Rows(
        inputs_RF=generator.standard_normal((count, 5)).astype(np.float32),
        targets_R=generator.integers(0, 3, count),
    )


def test_shared_trials_are_those_that_a_broker_makes_of_each_pair() -> None:
    architecture = Architecture("mlp", {"widths": [5, 4, 3]})
    models = [random_init(architecture, seed) for seed in range(4)]
    choice, score = rows_of(60, 1), rows_of(50, 2)
    found = crowd.try_all(models, choice, score)

    def losses(buyer: int, seller: int, alpha: Millionths, rows: Rows) -> torch.Tensor:
        merged = interpolate(models[buyer], models[seller], alpha)
        return row_losses(
            architecture, merged, torch.tensor(rows.inputs_RF), torch.tensor(rows.labels_R)
        )

    grid = (Millionths(0), *ALPHAS)
    for buyer in range(4):
        for seller in range(4):
            best = min(grid, key=lambda a: float(losses(buyer, seller, a, choice).mean()))
            best = Millionths(0) if seller == buyer else best
            assert found.alpha_NN[buyer, seller] == best
            gain = paired_gain(
                losses(buyer, seller, Millionths(0), score), losses(buyer, seller, best, score)
            )
            assert found.gain_NN[buyer, seller] == pytest.approx(gain.gain, abs=3)
            assert found.bound_NN[buyer, seller] == pytest.approx(gain.bound, abs=3)
    assert (found.gain_NN != 0).any()


def trials_of(gain: Sequence[Sequence[int]], bound: Sequence[Sequence[int]]) -> Trials:
    gain_NN, bound_NN = (np.array(rows, dtype=np.int64) for rows in (gain, bound))
    return Trials(alpha_NN=np.full_like(gain_NN, ONE // 2), gain_NN=gain_NN, bound_NN=bound_NN)


def worth(gain: int) -> int:
    return PLAY_VALUE * gain // ONE


def test_each_agent_buys_once_where_the_price_leaves_it_most() -> None:
    trials = trials_of(
        [[0, 400_000, 500_000], [100_000, 0, -9], [300_000, 0, 0]],
        [[0, 1, 1], [-1, 0, -9], [1, 0, 0]],
    )
    dear = [Wei(worth(350_000)), Wei(worth(50_000)), Wei(worth(400_000))]
    found = clear(trials, dear, gated=True)
    # agent 0 gains most of 2, whose ask leaves it less than that of 1
    (trade,) = found.trades
    assert (trade.buyer, trade.seller, trade.value) == (0, 1, worth(400_000))
    deal = bargain(trade.value, dear[1], fee_basis_points=FEE)
    assert deal is not None
    assert trade.price == deal.price
    assert found.lost == {"bound": 1, "ask": 1}
    assert found.best == worth(500_000) + worth(100_000) + worth(300_000)
    assert found.sure == worth(500_000) + worth(300_000)
    assert found.realised / found.best == pytest.approx(4 / 9)
    free = clear(trials, [Wei(0)] * 3, gated=False)
    assert (free.realised, free.lost) == (free.best, {})


def test_nothing_to_gain_is_no_loss_of_efficiency() -> None:
    found = clear(trials_of([[0, -5], [0, 0]], [[0, 0], [0, 0]]), [Wei(0)] * 2, gated=True)
    assert (found.best, found.trades, found.lost) == (0, [], {"gain": 2})
    told = crowd.told_of(found, [("gain", Wei(0))] * 2, [50, 50], [50, 40])
    assert (told["efficiency"], told["price_mean"], told["volume"]) == (None, None, 0)


@pytest.mark.parametrize(("bid", "ask"), [(10**18, 10**17), (7 * 10**17, 0), (10**15, 9 * 10**14)])
def test_a_receipt_tells_what_the_goods_were_worth(bid: int, ask: int) -> None:
    deal = bargain(Wei(bid), Wei(ask), fee_basis_points=FEE)
    assert deal is not None
    receipt = Receipt(round=1, seller=0, price=deal.price, ask=Wei(ask))
    assert receipt.valuation == pytest.approx(bid, rel=1e-9)


def test_a_seller_asks_by_its_own_sales_then_by_everybodys_then_by_its_gain() -> None:
    def sale(seller: int, price: int, round_: int = 5) -> Receipt:
        return Receipt(round=round_, seller=seller, price=Wei(price), ask=Wei(0))

    others = [sale(1, 50) for _ in range(9)]
    mine = [sale(0, 100) for _ in range(4)]
    kept = (10_000 - FEE) / 10_000
    assert ask_of(0, Wei(900), [], 6)[0] == "gain"
    assert ask_of(0, Wei(900), others, 6)[0] == "gain"
    assert ask_of(0, Wei(900), [*others, sale(1, 50)], 6) == ("public", math.floor(100 * kept))
    assert ask_of(0, Wei(900), [*others, *mine], 6) == ("own", math.floor(200 * kept))
    assert ask_of(0, Wei(900), [*others, *mine], 8)[0] == "gain"  # too long ago


def test_gini_is_none_of_equals_and_nearly_all_of_one() -> None:
    assert gini([3, 3, 3]) == 0
    assert gini([0, 0, 0, 8]) == 0.75
    assert gini([1, 3]) == 0.25
    assert gini([0, 0]) == 0


def test_rounds_come_to_one_efficiency_and_prices_move_from_one_to_the_next() -> None:
    one = {"rounds": [round_of(1), round_of(2), {**round_of(3), "price_mean": None}]}
    assert efficiency(one) == 0.5
    assert moves(one) == [None, 100, None]


def test_a_small_crowd_trades_and_learns() -> None:
    torch.set_num_threads(1)
    size = Size(
        dataset="digits", agents=5, rounds=2, choice_rows=60, score_rows=100, concentration=1.0,
        learning=Learning(hidden=(8,), learning_rate=0.1, batch_rows=16, scarce_percent=10),
    )  # fmt: skip
    first, last = Crowd(size, CLEAN, 0).play()
    assert first["trades"] + sum(first["lost"].values()) == 5
    assert first["trades"] > 0
    assert first["realised"] <= first["best"]
    assert 0 < first["efficiency"] <= 1
    assert last["accuracy"] > last["accuracy_alone"]
    assert Crowd(size, CLEAN, 0).play() == [first, last]
    choice, score = Crowd(size, CLEAN, 0).probes(1)
    seen = {tuple(row) for row in choice.inputs_RF.tolist()}
    assert not seen & {tuple(row) for row in score.inputs_RF.tolist()}
    same = Crowd(size, Setting(protocol="paper"), 0).probes(1)
    assert same[0] is same[1]
