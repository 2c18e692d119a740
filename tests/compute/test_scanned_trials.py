"""The look at a merge breaks no trial: adapters are looked at as models, and errors are named."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
import torch
import trio

from broker_node import trials
from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.findings import MergeScanned
from broker_node.scanning import Scanned, scan_of
from broker_node.trials import Trials
from broker_node.verify.stages import Verified
from node.chronicle import TrialDone
from node.observe import Event, Observer
from node.params.architecture import Architecture
from node.params.merges import merge_bought
from node.protocol.types import ONE, Digest, Millionths
from tests.params.learned_adapters import (
    PERCEPTRON,
    base_of,
    strangers,
    verified,
)
from tests.protocol import cast

NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)


class Desk:
    """Trials that are looked at, and what the log was told of them."""

    def __init__(self, appraiser: MarketAppraiser) -> None:
        self.events: list[Event] = []
        observer = Observer()
        observer.subscribe(lambda record: self.events.append(record.event))
        self.trials = Trials(appraiser, trio.CapacityLimiter(1), observer, most=8, scan=True)

    async def measures(self, pair: tuple[Verified, Verified]) -> Trial:
        name = Digest(hashlib.sha256(pair[1].weights_root).digest())
        return await self.trials.measure(name, *pair, "digits", NOTICE)


async def test_a_trial_of_adapters_is_looked_at_as_the_models_that_they_make(
    adapter_appraiser: MarketAppraiser, adapter_pair: tuple[Verified, Verified]
) -> None:
    desk = Desk(adapter_appraiser)
    await desk.measures(adapter_pair)
    (seen,) = [event for event in desk.events if isinstance(event, MergeScanned)]
    assert (seen.verdict, seen.found, seen.rows) == ("not found", (), 300)


def test_a_merge_of_adapters_that_went_wrong_is_found_out_on_its_base(
    adapter_trial: Trial,
    adapter_appraiser: MarketAppraiser,
    adapter_pair: tuple[Verified, Verified],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def boosted(*sides: Any) -> tuple[Architecture, dict[str, torch.Tensor]]:
        architecture, tensors = merge_bought(*sides)
        return architecture, {n: t if "lora_A" in n else 40 * t for n, t in tensors.items()}

    monkeypatch.setattr("broker_node.scanning.merge_bought", boosted)
    seen = scan_of(adapter_trial, *adapter_pair, adapter_appraiser.probes_RF)
    assert seen.verdict == "found"
    assert any(one.startswith("spectral-norm layers.0.weight") for one in seen.found)


@pytest.mark.parametrize("why", ["other-base", "no-base", "recipe"])
def test_a_merge_that_cannot_be_made_again_is_not_scanned_and_says_why(
    why: str,
    adapter_trial: Trial,
    adapter_appraiser: MarketAppraiser,
    adapter_pair: tuple[Verified, Verified],
) -> None:
    ours, theirs = adapter_pair
    asked = adapter_trial
    if why == "other-base":
        theirs = verified(strangers(PERCEPTRON), base_of(PERCEPTRON, seed=9))
    elif why == "no-base":
        ours = dataclasses.replace(ours, base=None)
    else:
        asked = dataclasses.replace(adapter_trial, recipe=b"\xff" * 5_000)
    seen = scan_of(asked, ours, theirs, adapter_appraiser.probes_RF)
    assert (seen.verdict, seen.rows) == ("not scanned", 0)
    assert 0 < len(seen.found[0]) <= 200


def test_an_error_that_nobody_thought_of_is_not_scanned(
    adapter_trial: Trial,
    adapter_appraiser: MarketAppraiser,
    adapter_pair: tuple[Verified, Verified],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("linalg.svd: the algorithm failed to converge")

    monkeypatch.setattr("broker_node.scanning.scan", breaks)
    seen = scan_of(adapter_trial, *adapter_pair, adapter_appraiser.probes_RF)
    assert (seen.verdict, seen.rows) == ("not scanned", 0)
    assert "converge" in seen.found[0]


async def test_a_look_that_is_cut_off_costs_no_measurement(
    adapter_appraiser: MarketAppraiser,
    adapter_pair: tuple[Verified, Verified],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk, scope = Desk(adapter_appraiser), trio.CancelScope()

    def cut(*_: object) -> Scanned:
        trio.from_thread.run_sync(scope.cancel)
        trio.from_thread.check_cancelled()
        raise AssertionError("went on")

    monkeypatch.setattr(trials, "scan_of", cut)
    with scope:
        await desk.measures(adapter_pair)
    assert scope.cancelled_caught
    assert len([event for event in desk.events if isinstance(event, TrialDone)]) == 1
    again = await desk.measures(adapter_pair)  # known: neither measured nor looked at
    assert 0 < again.evaluation.alpha < Millionths(ONE)
    assert len(desk.events) == 1
