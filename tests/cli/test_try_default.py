"""`pm-node try` says which of its rows is what a market's broker would do unless told otherwise."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from broker_node.evaluate import methods
from broker_node.evaluate.methods import MARKET, PAPER
from node.cli import try_table
from node.params.architecture import Architecture, random_init
from node.params.encoding import save_safetensors
from tests.cli.conftest import Command
from tests.cli.test_try import files, models, trained  # fixtures too

__all__ = ["models", "trained"]


def usual(found: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["align"], row["merge"]) for row in found if row["usual"]]


def test_the_markets_default_is_marked_and_shown_wherever_it_stands(
    pm_node: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [("--align", name) for name in (MARKET.alignment, "least-squares", PAPER.alignment)]
    told += [("--merge", name) for name in (MARKET.merging, "lerp")]
    out = models / "out"
    asked = ("try", *files(models), "--data", "digits", *itertools.chain(*told))
    ran = pm_node(*asked, "--json", "--out", out)
    assert usual(ran.json["methods"]) == [(MARKET.alignment, MARKET.merging)]
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "what a market's broker does with B by default, universe, unit-alpha" in card
    monkeypatch.setattr(try_table, "MAX_SHOWN", 1)
    ran = pm_node(*asked)
    (row,) = (line for line in ran.out.splitlines() if "○" in line and "default" not in line)
    assert MARKET.merging in row
    assert "○ what a market's broker" in " ".join(ran.out.split())
    monkeypatch.setattr(methods, "MARKET", PAPER)  # it is read, and not written down again
    ran = pm_node(*asked, "--json")
    assert usual(ran.json["methods"]) == [(PAPER.alignment, PAPER.merging)]


def test_the_default_is_measured_where_other_alignments_served_the_seller_better(
    pm_node: Command, models: Path
) -> None:
    merges = ("--merge", MARKET.merging, "--merge", "lerp")
    ran = pm_node("try", *files(models, "ac"), "--data", "digits", *merges, "--json")
    lines = [row for row in ran.json["methods"] if row["merge"] == "lerp"]
    own = [row["choice_loss"] for row in lines if row["align"] == MARKET.alignment]
    # else it would have been measured as one of the best
    recipes = [row for row in lines if row["align"] in ("weight-matching", "activation-matching")]
    assert min(row["choice_loss"] for row in recipes) < min(own)
    assert usual(ran.json["methods"]) == [(MARKET.alignment, MARKET.merging)]


def test_the_default_is_told_where_another_method_made_the_same_model(
    pm_node: Command, tmp_path: Path
) -> None:
    net = Architecture("linear", {"inputs": 64, "outputs": 10})
    for seed, name in enumerate("ab"):
        save_safetensors(random_init(net, seed), tmp_path / f"{name}.safetensors")
    ran = pm_node("try", *files(tmp_path), "--data", "digits", "--json")
    (done,) = [row for row in ran.json["methods"] if row["usual"]]
    same = [row for row in ran.json["methods"] if row["merge"] == "lerp" and not row["usual"]]
    assert done["merge"] == "lerp"
    assert done["loss"] in [row["loss"] for row in same]


def test_where_the_default_was_not_tried_nothing_is_marked(pm_node: Command, models: Path) -> None:
    ran = pm_node(
        "try", *files(models), "--data", "digits", "--align", "identity", "--merge", "lerp"
    )
    assert ran.code == 0
    assert "○" not in ran.out
