"""An agent that trains adapters goes on at its own ranks, and says what of a merge is lost."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from node.agent.learner import Learner
from node.agent.participant import Participant
from node.agent.progress import Progress
from node.chronicle import AdapterFitted
from node.observe import Observer
from node.params.adapters import fitted, merged
from node.params.encoding import weights_root
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Digest, Millionths, PeerId
from tests.params.test_adapters import OWN, SOLD

BOTH = merged(OWN, SOLD, Millionths(400_000))
PEER = PeerId("12D3KooWbroker")


def heard(observer: Observer) -> list[Any]:
    events: list[Any] = []
    observer.subscribe(lambda told: events.append(told.event))
    return events


def test_a_learner_trains_on_from_a_merge_at_the_ranks_of_its_trainer() -> None:
    observer = Observer()
    events = heard(observer)
    loaded: list[str] = []

    def load(text: str, _: Digest) -> Mapping[str, torch.Tensor]:
        loaded.append(text)
        return BOTH.tensors if text == BOTH.architecture.text else OWN.tensors

    learner = Learner(
        session=cast("Any", SimpleNamespace(load=load)),
        trainer=cast("Any", SimpleNamespace(architecture=OWN.architecture)),
        settings=cast("Any", None),
        observer=observer,
    )
    root = Digest(bytes(32))
    after = learner._load(Progress(1, 5, root, False, (), BOTH.architecture.text))
    wanted, lost = fitted(BOTH, OWN.lora)
    assert weights_root(after) == weights_root(wanted.tensors)
    (told,) = events
    assert told == AdapterFitted(lost=Millionths(round(lost * ONE)))
    for text in (OWN.architecture.text, ""):
        assert learner._load(Progress(1, 5, root, False, (), text)) is OWN.tensors
    assert events == [told]
    assert loaded == [BOTH.architecture.text, *[OWN.architecture.text] * 2]


def test_an_agent_with_adapters_plays_no_rounds_of_a_clearing_house() -> None:
    anything: Any = SimpleNamespace(architecture=OWN.architecture)
    with pytest.raises(LocalProtocolError, match="a round takes no adapters: trade them pair by"):
        Participant(
            station=anything, brokers=anything, trainer=anything, settings=anything,
            terms=anything, keeper=anything, meet=anything,
        )  # fmt: skip
