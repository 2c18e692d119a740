"""Tasks that are moved apart, and where trade between them stops paying."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker_node.evaluate.evaluation import Evaluated
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.data.datasets import load
from node.data.rows import Rows
from node.devnet.arms import ARMS
from node.devnet.floor import Floor
from node.devnet.spec import RunSpec
from node.protocol.types import ONE
from scripts import reproduce
from scripts.reproduction import boundary, unrelated
from scripts.reproduction.seeds import Given
from scripts.reproduction.unrelated import QUICK, Agent, Move, Size, alone, market, moves

GIVEN = Given(variant=QUICK, data_folder=Path("nowhere"), folder=Path("nowhere"))
"""The digits need no folder."""
TINY = Size(
    dataset="digits", rotations=(0, 180), permuted=(0, 100), warmup_epochs=1, rounds=2,
    epochs_per_round=2,
)  # fmt: skip


def trial(gain: float, lemon: float = 0.0, shrunk: float = 0.0) -> dict[str, Any]:
    """Return one trial; whatever spares over 5% does so surely."""
    percents = {"gain": gain, "lemon": lemon, "shrunk": shrunk}
    return {
        "alpha": 0.5,
        **{name: {"percent": value, "sure": value > 5} for name, value in percents.items()},
    }


def place(rotation: int = 0, permuted: int = 0, *, gains: float = 10.0, worth: float = 0.0) -> Any:
    """Return a place of the dials where A's and B's first trials differ from their second."""
    return {
        "rotation": rotation,
        "permuted": permuted,
        "alone": [60.0, 70.0],
        "market": [60.0 + worth, 70.0 + worth],
        "trials": [
            [trial(gains, lemon=4, shrunk=2), trial(0)],
            [trial(gains + 2, lemon=4, shrunk=8), trial(0)],
        ],
    }


# ── a task that is moved ──


def test_images_are_turned_about_their_middle_on_the_darkest_value() -> None:
    images_RF = load("digits", Path("nowhere")).test.inputs_RF[:5]
    squares_RHW = images_RF.reshape(5, 8, 8)
    quarter = unrelated.turned(images_RF, 90).reshape(5, 8, 8)
    assert quarter == pytest.approx(np.rot90(squares_RHW, axes=(1, 2)), abs=1e-5)
    half = unrelated.turned(images_RF, 180).reshape(5, 8, 8)
    assert half == pytest.approx(squares_RHW[:, ::-1, ::-1], abs=1e-5)
    eighth = unrelated.turned(np.ones_like(images_RF) - images_RF, 45).reshape(5, 8, 8)
    assert eighth[:, 0, 0] == pytest.approx(float((1 - images_RF).min()))
    slight = unrelated.turned(images_RF, 20)
    assert images_RF.min() <= slight.min() <= slight.max() <= images_RF.max()


@pytest.mark.parametrize(("percent", "of_another_meaning"), [(0, 0), (20, 2), (50, 5), (100, 10)])
def test_as_many_classes_as_are_asked_for_change_their_meaning(
    percent: int, of_another_meaning: int
) -> None:
    labels_C = unrelated.meanings(percent, 3)
    assert sorted(labels_C) == list(range(10))
    assert (labels_C != np.arange(10)).sum() == of_another_meaning
    changed = set(np.flatnonzero(labels_C != np.arange(10)))
    assert changed <= set(np.flatnonzero(unrelated.meanings(100, 3) != np.arange(10)))


def test_classes_of_another_meaning_are_the_seeds() -> None:
    assert (unrelated.meanings(50, 0) == unrelated.meanings(50, 0)).all()
    assert (unrelated.meanings(50, 0) != unrelated.meanings(50, 1)).any()


def test_a_dial_moves_images_or_meanings_and_nothing_else() -> None:
    rows: Rows = load("digits", Path("nowhere")).test
    renamed = unrelated.moved(rows, Move(permuted=100), 0)
    assert (renamed.inputs_RF == rows.inputs_RF).all()
    assert (renamed.labels_R != rows.labels_R).all()
    tilted = unrelated.moved(rows, Move(rotation=30), 0)
    assert (tilted.labels_R == rows.labels_R).all()
    assert (tilted.inputs_RF != rows.inputs_RF).any()
    assert unrelated.moved(rows, Move(), 0) is rows


@pytest.mark.parametrize("size", unrelated.SIZES.values(), ids=list(unrelated.SIZES))
def test_every_dial_begins_where_the_tasks_are_one_and_both_share_that_place(size: Size) -> None:
    assert size.rotations[0] == size.permuted[0] == 0
    assert list(size.rotations) == sorted(size.rotations)
    assert list(size.permuted) == sorted(size.permuted)
    assert [move for move in moves(size) if move == Move()] == [Move()]
    assert len(moves(size)) == len(size.rotations) + len(size.permuted) - 1


# ── trade ──


@dataclass
class Watched(Floor):
    """A floor that keeps the gain of every trial."""

    seen: list[float] = field(default_factory=list)
    """In percent, by round and buyer."""

    def _trial(self, base: Verified, sold: Verified, validation: ValidationSet) -> Evaluated:
        found = super()._trial(base, sold, validation)
        self.seen.append(100 * found.gain / ONE)
        return found


def pair(move: Move, size: Size = TINY) -> tuple[list[Agent], list[unrelated.Alone]]:
    torch.set_num_threads(1)
    dataset = load("digits", Path("nowhere"))
    agents = [Agent(dataset, number, 0, GIVEN, one) for number, one in enumerate((Move(), move))]
    return agents, [alone(agent, size) for agent in agents]


def test_where_the_tasks_are_one_trials_and_purchases_are_those_of_the_floor() -> None:
    size = replace(TINY, warmup_epochs=4, rounds=3)
    agents, stayed = pair(Move(), size)
    found = market(agents, [one.warm for one in stayed], size, 0)
    spec = RunSpec(
        folder=Path("floor"),
        dataset="digits",
        warmup_epochs=2,  # the floor trains a round's epochs before its trade, not after it
        rounds=3,
        epochs_per_round=2,
        priced=False,
    )
    floor = Watched(spec, ARMS["aligned"], 0)
    result = floor.play()
    by_round = [trials[number] for number in range(3) for trials in found["trials"]]
    assert [one["gain"]["percent"] for one in by_round] == floor.seen
    assert sum(one["gain"]["sure"] for one in by_round) == result.traded > 0


def test_who_stays_alone_trains_as_long_as_who_trades() -> None:
    _, stayed = pair(Move())
    spec = RunSpec(
        folder=Path("floor"),
        dataset="digits",
        warmup_epochs=TINY.warmup_epochs,
        rounds=TINY.rounds,
        epochs_per_round=TINY.epochs_per_round,
        priced=False,
    )
    out = Floor(spec, ARMS["out-of-market"], 0).play()
    ends = [curve[-1][1] for curve in out.curves]
    assert [one.accuracy for one in stayed] == pytest.approx(ends, abs=0.01)


def test_trials_are_made_on_rows_of_the_buyers_task() -> None:
    (a, b), _ = pair(Move(permuted=100))
    assert (a.validation.inputs_RF == b.validation.inputs_RF).all()
    assert (a.validation.targets_R != b.validation.targets_R).all()
    assert (a.trainer._report_labels_R != b.trainer._report_labels_R).all()


def test_who_is_too_sure_of_itself_gains_by_weights_of_zero_and_that_is_no_surplus() -> None:
    (a, b), (stayed, other) = pair(Move(permuted=100))
    sure = {name: 6 * own for name, own in stayed.warm.items()}
    found = market((a, b), (sure, other.warm), replace(TINY, rounds=1), 0)
    (first,), _ = found["trials"]
    assert first["shrunk"]["sure"]
    assert first["shrunk"]["percent"] > 20
    at = {"trials": [[first], [first]]}
    assert boundary.surplus(at) <= first["gain"]["percent"] - first["shrunk"]["percent"]


def test_nobody_buys_what_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrelated, "sure", lambda _: False)
    agents, stayed = pair(Move())
    found = market(agents, [one.warm for one in stayed], TINY, 0)
    assert found["market"] == [one.accuracy for one in stayed]


# ── what is found ──


def test_a_place_is_the_mean_of_both_agents_trials() -> None:
    at = place(gains=10, worth=3)
    assert boundary.gain(at, rounds=1) == 11
    assert boundary.gain(at) == 5.5
    assert boundary.gain(at, "lemon", 1) == 4
    assert boundary.surplus(at, 1) == ((10 - 4) + (12 - 8)) / 2
    assert boundary.bought(at) == 50
    assert boundary.bought(at, "shrunk", 1) == 50
    assert boundary.ahead(at) == 3


def test_the_boundary_is_the_first_value_whose_interval_is_not_over_zero() -> None:
    worths = {0: (8, 9, 10), 30: (2, 3, 4), 60: (-3, 1, 4), 90: (5, 6, 7), 180: (-9, -8, -7)}
    played = [
        {
            "sweep": [
                *(place(value, worth=worth[seed]) for value, worth in worths.items()),
                place(permuted=100, worth=5 + seed),
            ]
        }
        for seed in range(3)
    ]
    turned = boundary.along(played, "rotation")
    assert list(turned) == list(worths)
    assert boundary.boundary(turned, boundary.ahead) == 60
    renamed = boundary.along(played, "permuted")
    assert list(renamed) == [0, 100]
    assert boundary.boundary(renamed, boundary.ahead) is None
    assert boundary.boundary({0: turned[180]}, boundary.ahead) == 0  # below zero as well
    ends = [row for row in boundary.compare({}, played) if row.paper]
    assert [row.where.split(": ")[1] for row in ends] == ["0°", "180°", "100%"]
    assert [list(row.values) for row in ends] == [[8, 9, 10], [-9, -8, -7], [5, 6, 7]]
    assert boundary.grids({}, played)[-1].rows[-1] == [
        "accuracy over alone, at the end", "60°", "over 100%",
    ]  # fmt: skip


def test_one_seed_has_no_boundary() -> None:
    played = [{"sweep": [place(worth=-5), place(90, worth=-5), place(permuted=100)]}]
    assert boundary.boundary(boundary.along(played, "rotation"), boundary.ahead) is None
    assert boundary.grids({}, played)[-1].rows[-1][1:] == ["–", "–"]


# ── the command ──


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setitem(unrelated.SIZES, QUICK, TINY)
    words = ["--variant", QUICK, "--folder", str(tmp_path)]
    return lambda *more: reproduce.main(["boundary", *words, *more])


def test_it_is_saved_printed_and_drawn_and_goes_on_after_an_interrupt(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    played: list[int] = []

    def cut_short(seed: int, given: Given) -> dict[str, Any]:
        if seed == 1 and not played.count(1):
            played.append(seed)
            raise KeyboardInterrupt
        played.append(seed)
        return unrelated.play(seed, given)

    monkeypatch.setattr(boundary, "EXPERIMENT", replace(boundary.EXPERIMENT, play=cut_short))
    assert command("--seeds", "2") == 130
    assert "Boundary" in capsys.readouterr().out
    assert command("--seeds", "2", "--json") == 0
    assert played == [0, 1, 1]
    saved = json.loads((tmp_path / "boundary-quick.json").read_text())
    assert json.loads(capsys.readouterr().out) == saved
    assert saved["seeds"] == [0, 1]
    for one in saved["by_seed"].values():
        assert [(at["rotation"], at["permuted"]) for at in one["sweep"]] == [
            (0, 0), (180, 0), (0, 100),
        ]  # fmt: skip
        assert {len(trials) for at in one["sweep"] for trials in at["trials"]} == {2}
    assert (tmp_path / "boundary-quick.png").read_bytes().startswith(b"\x89PNG")


def test_data_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-folder", "/nowhere", "--folder", str(tmp_path)]
    assert reproduce.main(["boundary", *words]) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "boundary.json").exists()
