"""`pm-node try` says which of its rows is what a market's broker would do unless told otherwise."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from broker_node.evaluate import methods
from broker_node.evaluate.methods import MARKET, PAPER
from node.cli import try_table
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


def test_where_the_default_was_not_tried_nothing_is_marked(pm_node: Command, models: Path) -> None:
    ran = pm_node(
        "try", *files(models), "--data", "digits", "--align", "identity", "--merge", "lerp"
    )
    assert ran.code == 0
    assert "○" not in ran.out
