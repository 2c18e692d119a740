"""The experiments' command: what it lists, keeps and resumes, on experiments that are toys."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import reproduce
from scripts.reproduction import boundary, fusion, trade, triplewin, weight_market
from scripts.reproduction.engine import ROOT, ReproductionError, code_of
from scripts.reproduction.seeds import Compared, Experiment, Given, Grid, main_of, spread


@pytest.fixture
def played() -> list[int]:
    return []


@pytest.fixture
def experiment(played: list[int]) -> Experiment:
    def play(seed: int, given: Given) -> dict[str, Any]:
        played.append(seed)
        return {"figure": given.once["base"] + seed}

    return Experiment(
        name="toy",
        title="A toy",
        source="Nowhere",
        variants=("plain", "fancy"),
        seeds=3,
        settings=lambda variant: {"variant": variant},
        play=play,
        once=lambda _: {"base": 10},
        compare=lambda _, found: [
            Compared(
                where="1", what="figure", paper="about 11", values=[one["figure"] for one in found]
            )
        ],
        grids=lambda once, _: [Grid("Base", ["base"], [[str(once["base"])]])],
        draw=lambda _: b"a picture",
    )


@pytest.fixture
def command(experiment: Experiment, tmp_path: Path) -> Callable[..., int]:
    return lambda *words: main_of(experiment, [*words, "--folder", str(tmp_path)])


def test_every_seed_is_played_once_and_saved_with_its_picture(
    command: Callable[..., int],
    played: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command() == 0
    assert command("--seeds", "4") == 0
    assert played == [0, 1, 2, 3]
    saved = json.loads((tmp_path / "toy.json").read_bytes())
    assert saved["seeds"] == [0, 1, 2, 3]
    row = saved["compared"][0]
    assert (row["mean"], row["n"], row["paper"]) == (11.5, 4, "about 11")
    assert row["low"] < 11.5 < row["high"]
    assert (tmp_path / "toy.png").read_bytes() == b"a picture"
    assert "about 11" in capsys.readouterr().out


def test_an_interrupted_experiment_goes_on_where_it_was(
    experiment: Experiment, played: list[int], tmp_path: Path
) -> None:
    def interrupted(seed: int, given: Given) -> dict[str, Any]:
        if seed == 1:
            raise KeyboardInterrupt
        return experiment.play(seed, given)

    words = ["--folder", str(tmp_path)]
    assert main_of(replace(experiment, play=interrupted), words) == 130
    assert main_of(experiment, words) == 0
    assert played == [0, 1, 2]


def test_what_is_saved_of_other_settings_is_replaced_only_when_asked(
    experiment: Experiment, played: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seeds", "1", "--folder", str(tmp_path)]
    assert main_of(experiment, words) == 0
    other = replace(experiment, settings=lambda _: {"rows": 1})
    assert main_of(other, words) == 2
    assert "--again" in capsys.readouterr().err
    assert main_of(other, [*words, "--again"]) == 0
    assert played == [0, 0]


def test_a_file_that_is_no_experiment_is_not_overwritten(
    command: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "toy.json").write_text("[]")
    assert command() == 2
    assert (tmp_path / "toy.json").read_text() == "[]"


def test_played_anew_are_all_seeds_that_were_saved(
    experiment: Experiment, command: Callable[..., int], played: list[int], tmp_path: Path
) -> None:
    assert command("--seeds", "3") == 0
    assert command("--seeds", "1", "--again") == 0
    assert played == [0, 1, 2, 0, 1, 2]
    assert json.loads((tmp_path / "toy.json").read_bytes())["seeds"] == [0, 1, 2]


def test_two_processes_do_not_play_into_one_file(
    command: Callable[..., int],
    played: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (tmp_path / ".toy.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command() == 2
    assert "another process" in capsys.readouterr().err
    assert played == []


def test_a_variant_is_saved_beside_the_first(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--seeds", "1") == 0
    assert command("--seeds", "1", "--variant", "fancy") == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"toy.json", "toy-fancy.json"}


def test_a_figure_that_is_not_finite_is_left_out_and_counted() -> None:
    nan, inf = float("nan"), float("inf")
    row = Compared(where="1", what="x", paper="", values=[1.0, nan, 3.0, inf]).document()
    assert (row["mean"], row["n"]) == (2.0, 2)
    assert Compared(where="1", what="x", paper="", values=[nan]).document()["mean"] is None
    assert spread([-1.0]) == "−1.00"


# ── the command ──


def test_the_command_lists_what_can_be_played_by_paper(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for paper in reproduce.PAPERS:
        after = printed.index(paper.title)
        assert set(paper.modules) == set(paper.experiments)
        for name, what in paper.experiments.items():
            assert re.search(rf"^  {name} +{re.escape(what)}$", printed[after:], re.MULTILINE)


@pytest.mark.parametrize("name", sorted(reproduce.MODULES))
def test_every_experiment_that_is_listed_has_a_command_of_its_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--seeds", "1", name, "--help"])
    assert ended.value.code == 0
    assert f"usage: reproduce.py {name} " in capsys.readouterr().out


def test_every_experiment_is_listed() -> None:
    others = {module.EXPERIMENT.name for module in (boundary, weight_market, fusion, triplewin)}
    assert set(reproduce.MODULES) == {*trade.ALL, *others}


@pytest.mark.parametrize("words", [[], ["--seeds", "1"], ["table"]])
def test_a_command_without_an_experiment_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        reproduce.main(words)
    assert refused.value.code == 2


# ── the code that is hashed ──


def places() -> dict[str, tuple[str, ...]]:
    found = {name: trade.places_of(study) for name, study in trade.ALL.items()}
    others = (module.EXPERIMENT for module in (boundary, weight_market, fusion, triplewin))
    return {**found, **{one.name: one.played_by for one in others}}


@pytest.mark.parametrize("name", sorted(places()))
def test_the_code_of_an_experiment_is_there_and_its_module_that_plays_among_it(name: str) -> None:
    assert len(code_of(places()[name])) == 64
    own = [place for place in places()[name] if place.startswith("scripts/reproduction/")]
    assert own


def test_a_place_without_code_is_named_and_not_passed_over() -> None:
    for place in ("scripts/reproduction/gone.py", "node/gone", "docs"):
        with pytest.raises(ReproductionError, match=place):
            code_of([place])


def test_the_hash_tells_one_code_from_another() -> None:
    assert code_of(["scripts/reproduction/seeds.py"]) != code_of(["scripts/reproduction/linear.py"])


def test_no_module_of_the_experiments_is_too_long_to_read() -> None:
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in (ROOT / "scripts" / "reproduction").glob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
