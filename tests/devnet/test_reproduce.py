"""The papers' studies on the floor: what is compared, how, and beside which figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from node.data.files import DataError
from node.devnet.arms import ARMS
from node.devnet.floor import Floor, FloorResult
from node.devnet.spec import RunSpec
from scripts import reproduce
from scripts.reproduction import playing, trade
from scripts.reproduction.findings import findings, first_at
from scripts.reproduction.shown import draw
from scripts.reproduction.studies import LAYERS, STUDIES, Case, Played, Setting, play

STUDY_NAMES = tuple(STUDIES)
EPOCHS = 4


def small(**changes: Any) -> RunSpec:
    spec = RunSpec(folder=Path("floor"), dataset="digits", rounds=1, priced=False, protocol="paper")
    return replace(spec, **changes)


def floor(arm: str, seed: int = 0, rounds: int = 1, **rule: Any) -> FloorResult:
    torch.set_num_threads(1)
    return Floor(small(rounds=rounds), ARMS[arm], seed, **rule).play()


def ended(name: str, seed: int, a: Sequence[float], b: Sequence[float]) -> Played:
    """Return a case with these figures after its epochs, and losses that mirror them."""
    curves = [list(enumerate(map(float, agent))) for agent in (a, b)]
    losses = [[(epoch, (100 - value) / 50) for epoch, value in curve] for curve in curves]
    return Played(name, seed, curves, losses, possible=4, traded=3, lost={"gain": 1})


def level(case: Case) -> Played:
    """Stand in for a game: better with each case and seed."""
    better = 5.0 * len(case.name) + case.seed
    a, b = ([10 + better + agent + epoch for epoch in range(EPOCHS)] for agent in range(2))
    played = ended(case.name, case.seed, a, b)
    return played if case.spec.metric == "accuracy" else replace(played, losses=[])


@pytest.fixture
def games(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Play no game in earnest; return which were asked for."""
    asked: list[tuple[str, int]] = []

    def note(case: Case) -> Played:
        asked.append((case.name, case.seed))
        return level(case)

    monkeypatch.setattr(playing, "play", note)
    monkeypatch.setattr(trade, "locate", lambda *_: None)
    monkeypatch.setattr(trade, "draw", lambda _: b"a picture")
    return asked


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., int]:
    return lambda *words: reproduce.main([*words, "--jobs", "1", "--folder", str(tmp_path)])


# ── what is compared ──


def test_every_study_plays_its_cases_seed_by_seed() -> None:
    cases = {name: study.cases(Setting(), range(2)) for name, study in STUDIES.items()}
    assert {name: len(made) for name, made in cases.items()} == {
        "table1": 8, "table2": 12, "linear": 4, "convergence": 4,
    }  # fmt: skip
    for made in cases.values():
        assert [case.seed for case in made] == sorted(case.seed for case in made)


def test_studies_of_what_is_not_sold_are_free_of_charge() -> None:
    priced = Setting(protocol="clean", priced=True)
    assert all(case.spec.priced for case in STUDIES["table1"].cases(priced, [0]))
    assert not any(case.spec.priced for case in STUDIES["convergence"].cases(Setting(), [0]))


def test_every_case_of_a_table_of_the_paper_stands_beside_its_figures() -> None:
    for name in ("table1", "table2"):
        cases = {case.name for case in STUDIES[name].cases(Setting(), [0])}
        assert cases == set(STUDIES[name].paper)
    assert STUDIES["table2"].paper["{3,4}"] == (66.28, 71.98)
    assert {name: sorted(chosen) for name, chosen in LAYERS.items()} == {
        "{3,4}": [3, 4], "{2,3,4}": [2, 3, 4], "{0,1,2}": [0, 1, 2], "{0,1}": [0, 1],
        "all layers": [],
    }  # fmt: skip


# ── how ──


def test_differences_are_taken_within_each_seed_and_stand_beside_the_papers() -> None:
    found = findings(
        STUDIES["table1"],
        ["out-of-market", "fedavg", "unaligned", "aligned"],
        [
            ended("aligned", 0, [90], [80]), ended("aligned", 1, [70], [60]),
            ended("out-of-market", 1, [60], [55]), ended("out-of-market", 0, [80], [75]),
            ended("out-of-market", 2, [1], [1]),
        ],
    )  # fmt: skip
    assert list(found["cases"]) == ["out-of-market", "aligned"]
    assert found["cases"]["aligned"]["paper"] == {"A": 86.96, "B": 86.96}
    a, b, both = found["differences"]
    assert (a["of"], a["against"], a["agent"], a["n"]) == ("aligned", "out-of-market", "A", 2)
    assert (a["mean"], a["low"], a["high"], a["paper"]) == (10, 10, 10, 18.46)
    assert (b["agent"], b["mean"], b["by_seed"]) == ("B", 5, {"0": 5, "1": 5})
    assert (both["agent"], both["mean"], both["paper"]) == ("all", 7.5, 16.225)


def test_of_losses_the_share_that_is_spared_is_compared() -> None:
    found = findings(
        STUDIES["linear"],
        ["out-of-market", "unaligned"],
        [ended("out-of-market", 0, [400], [200]), ended("unaligned", 0, [100], [150])],
    )
    spared = {d["agent"]: (d["mean"], d["paper"]) for d in found["differences"]}
    assert spared == {"A": (75, 42.84), "B": (25, 23.88), "all": (50, 33.36)}


def test_a_figure_that_is_not_finite_is_left_out_and_counted() -> None:
    found = findings(
        STUDIES["table1"],
        ["out-of-market", "fedavg"],
        [
            ended("out-of-market", 0, [60], [60]), ended("out-of-market", 1, [60], [60]),
            ended("fedavg", 0, [float("nan")], [70]), ended("fedavg", 1, [65], [70]),
        ],
    )  # fmt: skip
    a, b, both = found["differences"]
    assert [(d["mean"], d["n"]) for d in (a, b, both)] == [(5, 1), (10, 2), (7.5, 1)]
    json.dumps(found, allow_nan=False)


def test_epochs_until_a_target_are_those_after_which_it_is_first_reached() -> None:
    curve = [(0, 10.0), (1, 60.0), (2, 59.0), (3, 70.0)]
    assert [first_at(curve, target) for target in (10, 60, 65, 71)] == [1, 2, 4, None]


def test_epochs_spared_are_paired_and_say_what_was_censored() -> None:
    found = findings(
        STUDIES["convergence"],
        ["never trade", "always trade"],
        [
            ended("never trade", 0, [50, 50, 62], [50, 61, 85]),
            ended("never trade", 1, [50, 50, 50], [50, 61, 85]),
            ended("always trade", 0, [50, 65, 85], [50, 61, 75]),
            ended("always trade", 1, [65, 65, 85], [50, 61, 75]),
        ],
    )["epochs_to"]
    spared = {(d["target"], d["agent"]): d for d in found["differences"]}
    first = spared[60, "A"]  # 3 − 2 with seed 0; never (4) − 1 with seed 1
    assert (first["by_seed"], first["mean"], first["n"]) == ({"0": 1, "1": 3}, 2, 2)
    assert (first["censored"], first["reads"]) == (
        {"always trade": 0, "never trade": 1}, "at least",
    )  # fmt: skip
    assert (spared[60, "B"]["mean"], spared[60, "B"]["reads"]) == (0, "exactly")
    slower = spared[80, "B"]  # the market's B never reaches 80, the other does after 3
    assert (slower["mean"], slower["reads"]) == (-1, "at most")
    mean = next(
        row for row in found["cases"]
        if (row["target"], row["agent"], row["case"]) == (60, "all", "never trade")
    )  # fmt: skip
    assert (mean["by_seed"], mean["censored"]) == ({"0": 3, "1": 3}, 0)


# ── the command ──


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_a_study_is_saved_printed_and_drawn(
    name: str,
    games: list[tuple[str, int]],
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(name, "--seeds", "2", "--json") == 0
    saved = json.loads((tmp_path / f"{name}.json").read_text())
    assert json.loads(capsys.readouterr().out) == saved
    assert (saved["complete"], saved["seeds"]) == (True, [0, 1])
    case, seed = games[-1]
    assert saved["cases"][case]["by_seed"][str(seed)]["curves"]["B"][-1][0] == EPOCHS - 1
    assert saved["conditions"]["settings"][case]["dataset"] in {"mnist", "linear"}
    assert saved["conditions"]["version"]
    assert saved["machines"][0]["cores"] >= 1
    assert (tmp_path / f"{name}.png").read_bytes() == b"a picture"
    assert draw(saved).startswith(b"\x89PNG")
    assert command(name, "--seeds", "2") == 0
    printed = capsys.readouterr().out
    assert "Paired differences" in printed
    assert STUDIES[name].source.split(",", maxsplit=1)[0] in printed


def test_an_interrupted_study_prints_what_it_has_and_goes_on(
    games: list[tuple[str, int]],
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    patience = [3]

    def cut_short(case: Case) -> Played:
        if len(games) in patience:
            raise KeyboardInterrupt
        games.append((case.name, case.seed))
        return level(case)

    monkeypatch.setattr(playing, "play", cut_short)
    assert command("convergence", "--seeds", "3", "--json") == 130
    partial = json.loads(capsys.readouterr().out)
    assert (partial["complete"], partial["played"], partial["cases_in_all"]) == (False, 3, 6)
    assert {d["n"] for d in partial["differences"]} == {1}
    assert partial == json.loads((tmp_path / "convergence.json").read_text())
    patience.clear()
    assert command("convergence", "--seeds", "3", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert len(games) == len(set(games)) == 6
    assert command("convergence", "--seeds", "1", "--json", "--again") == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert len(games) == 12


@pytest.mark.parametrize("changed", ["code", "settings"])
def test_a_study_does_not_go_on_under_other_conditions(
    changed: str,
    games: list[tuple[str, int]],
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("table1", "--seeds", "1") == 0
    path = tmp_path / "table1.json"
    saved = json.loads(path.read_text())
    saved["conditions"][changed] = "other"
    path.write_text(json.dumps(saved))
    assert command("table1", "--seeds", "1") == 2
    assert "--again replaces it" in capsys.readouterr().err
    path.write_text("[]")
    assert command("table1", "--seeds", "1") == 2
    assert command("table1", "--seeds", "1", "--again") == 0
    assert len(games) == 8


def test_protocols_and_prices_are_saved_apart(
    games: list[tuple[str, int]], command: Callable[..., int], tmp_path: Path
) -> None:
    command("table1", "--seeds", "1")
    command("table1", "--seeds", "1", "--protocol", "clean", "--priced")
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "table1.json", "table1-clean-priced.json",
    }  # fmt: skip
    assert len(games) == 8


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["linear", "--priced"], "--priced means nothing to linear"),
        (["convergence", "--priced"], "--priced means nothing to convergence"),
        (["table1", "--jobs", "0"], "--jobs: 0 is not from 1"),
        (["table1", "--seeds", "0"], "--seeds: 0 is not from 1"),
        (["table1", "--seeds", "-2"], "--seeds: -2 is not from 1"),
        (["table1", "--first", "-1"], "--first: -1 is not from 0"),
        (["table3"], "invalid choice: 'table3'"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        reproduce.main(words)
    assert refused.value.code == 2
    assert named in capsys.readouterr().err


def test_a_data_folder_that_is_not_there_is_named_before_anything_is_played(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("table1", "--data-folder", "/nowhere") == 2
    assert "/nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ── what is played ──


def test_a_case_keeps_the_test_loss_behind_each_accuracy() -> None:
    played, found = play(Case("aligned", small(), "aligned", 0)), floor("aligned")
    assert played.curves == found.curves
    assert (played.possible, played.traded, played.lost) == (2, found.traded, found.lost)
    for number, held in enumerate(found.held):
        trainer = Floor(small(), ARMS["aligned"], 0)._trainer(number)
        epochs = [epoch for epoch, _ in played.losses[number]]
        assert epochs == [epoch for epoch, _ in found.curves[number]] == list(range(6))
        assert played.losses[number][-1][1] == pytest.approx(trainer.evaluate(held).loss, abs=1e-6)


@pytest.mark.slow
def test_cases_are_the_same_in_processes_of_their_own() -> None:
    cases = [Case(arm, small(), arm, 0) for arm in ("out-of-market", "aligned")]
    apart = {played.name: played for played in playing.run(cases, 2)}
    here = {case.name: play(case) for case in cases}
    for name, played in here.items():
        other = apart[name]
        assert isinstance(other, Played)
        assert (other.curves, other.losses) == (played.curves, played.losses)


def test_a_fault_in_a_case_is_named() -> None:
    lacking = small(dataset="mnist", data_folder=Path("/nowhere"))
    with pytest.raises(DataError, match="/nowhere"):
        next(playing.run([Case("x", lacking, "aligned", 0)], 2))


@pytest.mark.parametrize("sold", [{0}, {1, 2}])
def test_only_the_layers_that_are_traded_change_hands(sold: set[int]) -> None:
    alone = floor("out-of-market")
    part = floor("aligned", layers=frozenset(sold), always=True)
    assert part.traded == part.possible == 2
    for before, after in zip(alone.held, part.held, strict=True):
        changed = {
            int(name.split(".")[1]) for name in before if not torch.equal(before[name], after[name])
        }
        assert changed == sold


def test_an_agent_that_always_trades_buys_what_gains_nothing_too() -> None:
    alone, gated = floor("out-of-market", seed=1), floor("fedavg", seed=1)
    always = floor("fedavg", seed=1, always=True)
    assert gated.traded < gated.possible
    assert set(gated.lost) == {"gain"}
    assert (always.traded, always.lost) == (always.possible, {})
    kept = [
        all(torch.equal(before[name], after[name]) for name in before)
        for before, after in zip(alone.held, gated.held, strict=True)
    ]
    bought = [
        not any(torch.equal(before[name], after[name]) for name in before)
        for before, after in zip(alone.held, always.held, strict=True)
    ]
    assert sum(kept) == gated.lost["gain"]
    assert bought == [True, True]


def test_a_least_ratio_stands_in_for_the_gate() -> None:
    never = floor("aligned", least_ratio=100.0)
    assert (never.traded, never.lost) == (0, {"gain": never.possible})
    assert floor("aligned", least_ratio=1e-9).traded == never.possible
