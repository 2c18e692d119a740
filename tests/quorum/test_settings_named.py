"""Whoever is refused a recipe hears which setting differs; what was computed otherwise is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from broker_node.appraisal import Remeasured, Trial
from broker_node.evaluate.evaluation import apart
from broker_node.findings import ComputedOtherwise
from broker_node.verify.stages import Verified
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice
from node.protocol.quorum import RECIPE_TOLERANCE
from node.protocol.types import Digest
from tests.quorum.chamber import open_room
from tests.quorum.liar import Liar, refused
from tests.quorum.test_recipes_compared import Finding

PAPER = "weight-matching+halving-brent"
MARKET = "universe+halving-brent+unit-alpha"
SAID = "out-of-memory: cuda is too small, the cpu evaluates"


class By(Finding):
    """Finds by a method, so many millionths off, on a device that is too small to replay."""

    def __init__(self, method: str, off: int) -> None:
        super().__init__(off)
        self._method = method

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        trial = super().measure(base, sold, task=task, notice=notice)
        said = dataclasses.replace(trial.evaluation, method=self._method)
        return dataclasses.replace(trial, evaluation=said)

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        again = super().replay(subject, recipe, base, sold)
        return dataclasses.replace(again, fallbacks=(SAID,))


@pytest.mark.parametrize(
    ("ours", "named"),
    [
        (PAPER, "both were found by weight-matching+halving-brent"),
        ("universe+halving-brent", "alignment = weight-matching, ours universe"),
        ("weight-matching+halving-brent+unit-alpha", "merging = lerp, ours unit-alpha"),
        ("weight-matching+grid", "alpha_search = halving-brent, ours grid"),
        (MARKET, "alignment = weight-matching, ours universe; merging = lerp, ours unit-alpha"),
        ("drill", f"method = {PAPER}, ours drill"),
    ],
)
async def test_a_refused_recipe_says_which_setting_is_another(
    tmp_path: Path, ours: str, named: str
) -> None:
    far = 2 * RECIPE_TOLERANCE
    with open_room(
        tmp_path, first=lambda: By(PAPER, 0), second=lambda: By(ours, far)
    ) as room:  # fmt: skip
        error = await refused("recipe-differs", Liar(room).replay())
        assert named in error.detail
        assert ("need the same settings" in error.detail) == (ours != PAPER)


def test_settings_are_read_off_what_is_signed() -> None:
    assert apart(MARKET, MARKET) == {}
    assert apart(PAPER, f"{PAPER}+lerp") == {}, "a line is not named"
    assert apart("identity+grid", PAPER) == {
        "alignment": ("identity", "weight-matching"),
        "alpha_search": ("grid", "halving-brent"),
    }
    assert apart("drill", "drill") == {}
    assert apart("a+b+c+d", PAPER) == {"method": ("a+b+c+d", PAPER)}


async def test_what_a_member_replayed_otherwise_is_in_its_log(tmp_path: Path) -> None:
    with open_room(tmp_path, second=lambda: By("drill", 0)) as room:
        told: list[ComputedOtherwise] = []
        room["second"].station.observer.subscribe(
            lambda record: (
                told.append(record.event) if isinstance(record.event, ComputedOtherwise) else None
            )
        )
        await Liar(room).replay()
        assert [(one.during, one.reason) for one in told] == [("replay", SAID)]
