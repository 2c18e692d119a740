"""An agent that trains adapters goes on at its own ranks, and says what of a merge is lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import trio

from node.agent import participant
from node.agent.learner import Learner
from node.agent.participant import LONGEST, Participant
from node.agent.progress import Progress
from node.agent.taking_part import Bought
from node.chronicle import AdapterFitted, PeerFault
from node.observe import Observer
from node.params.adapters import Adapter, cosine, fitted, merged
from node.params.architecture import layout
from node.params.encoding import encode_tensors, weights_root
from node.params.merges import unscaled
from node.params.store import BlobStore
from node.protocol.parameters import encoded_length
from node.protocol.types import ONE, Digest, Millionths, PeerId
from tests.params.test_adapters import BASE, MLP, OWN, SOLD

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


@pytest.mark.parametrize("sold", ["a merge", "one alone", "too long", "of no adapter"])
async def test_a_fused_adapter_of_a_round_is_taken_at_ones_own_ranks(
    sold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = OWN if sold == "one alone" else BOTH
    tensors = unscaled(adapter.architecture, adapter.tensors)
    data = encode_tensors(BASE.tensors if sold == "of no adapter" else tensors)
    observer, blobs = Observer(), BlobStore(tmp_path / "blobs")
    events = heard(observer)
    anything: Any = SimpleNamespace(
        observer=observer,
        blobs=blobs,
        network=None,
        account="0x0",
        book=SimpleNamespace(addresses_of=lambda _: ()),
        architecture=OWN.architecture,
        round_patience=0,
        peer_of=lambda _: PEER,
        current=PEER,
    )
    own, root = Digest(bytes(32)), BlobStore(tmp_path / "broker").put_bytes(data).root
    length = len(data)
    if sold == "too long":
        length = LONGEST * encoded_length(layout(OWN.architecture)) + 1
    bought = Bought(root=root, byte_length=length, performance=0.9)
    anything.audit = SimpleNamespace(models=lambda *_: (bought,))

    async def fetch(*_: Any, **__: Any) -> None:
        await trio.lowlevel.checkpoint()
        blobs.put_bytes(data)

    monkeypatch.setattr(participant, "fetch_blob", fetch)
    shell = Participant(
        station=anything, brokers=anything, trainer=anything, settings=anything,
        terms=anything, keeper=anything, meet=anything,
    )  # fmt: skip
    record = SimpleNamespace(reason="", broker="0x1", inputs=b"{}")
    part: Any = SimpleNamespace(
        record=record, wronged=False, state=SimpleNamespace(value="settled")
    )
    because, taken = await shell._adopted(part, own)
    if sold in {"too long", "of no adapter"}:
        assert (because, taken) == ("model-away", own)
        assert isinstance(events[-1], PeerFault)
        assert blobs.has(root) == (sold == "of no adapter")
        return
    assert because == "bought"
    found = Adapter(OWN.architecture, shell._load(taken))
    wanted, lost = fitted(adapter, OWN.lora)
    assert cosine(found, wanted) == pytest.approx(1, abs=1e-6)
    (told,) = events
    assert told.lost == pytest.approx(lost * ONE, abs=2)
    assert found.architecture != MLP
