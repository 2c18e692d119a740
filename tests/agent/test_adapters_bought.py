"""An agent keeps its adapters out of calls, and no purchase of them keeps its round from an end."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from node.agent import merging
from node.agent.calling import require_pairwise
from node.agent.progress import Progress
from node.agent.session import Session
from node.chronicle import OurFault
from node.journal import Journal
from node.params.adapters import Adapter, lora_of, merged
from node.params.architecture import parse_architecture
from node.params.encoding import weights_root
from node.params.errors import ProfileError, StoreError
from node.params.merges import mean_of_merges
from node.params.recipe import NO_ALIGNMENT
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import PurchaseRecord, PurchaseState
from node.protocol.types import Millionths
from tests.agent.rounds import heard_by, purchase_on, save, session_on
from tests.params.test_adapters import MLP, OWN, SOLD, adapter_of

HALF = Millionths(500_000)


async def test_adapters_are_offered_in_no_call_and_the_agent_is_told_what_to_do(
    journal: Journal,
) -> None:
    session = session_on(journal)
    settings: Any = SimpleNamespace(mechanism="eeg", layers=())
    session._settings = settings
    with pytest.raises(LocalProtocolError, match=r"adapters-pairwise.*--mechanism nash"):
        await session.offer(OWN.architecture, OWN.tensors)
    assert session.progress is None
    require_pairwise(OWN.architecture.text, "nash")
    require_pairwise(MLP.text, "eeg")


def bought(journal: Journal, *sold: tuple[Adapter, int]) -> tuple[Session, list[PurchaseRecord]]:
    """Leave a round that has bought these adapters, of so much gain each, at a half."""
    session, records = session_on(journal), []
    root = session._keep(OWN.tensors).root
    for number, (adapter, gain) in enumerate(sold):
        both = merged(OWN, adapter, HALF)
        record = purchase_on(root, PurchaseState.DELIVERED, number + 1)
        evaluation = dataclasses.replace(
            record.evaluation,
            architecture=adapter.architecture.text,
            merged_root=session._keep(both.tensors).root,
            alpha=HALF,
            gain=Millionths(gain),
        )
        record = dataclasses.replace(
            record,
            recipe=NO_ALIGNMENT.with_alpha(HALF).encode(),
            quote=dataclasses.replace(record.quote, offer_root=session._keep(adapter.tensors).root),
            evaluation=evaluation,
            tried_on=OWN.architecture.text,
        )
        save(journal, record)
        records.append(record)
    session._remember(Progress(2, 7, root, True, (), OWN.architecture.text))
    return session_on(journal), records


WIDE = [adapter_of({"layers.0": [rank, 1]}, seed) for seed, rank in ((1, 700), (2, 900), (3, 300))]


async def test_of_purchases_past_the_largest_rank_those_that_fit_are_fused_best_first(
    journal: Journal,
) -> None:
    """700 and 300 fit beside our own 4; the 900 between them does not, and is named."""
    gains = (500_000, 400_000, 300_000)
    session, records = bought(journal, *zip(WIDE, gains, strict=True))
    events = heard_by(session)
    adopted = await session.adopt()
    given = [(each.architecture, each.tensors, HALF) for each in (WIDE[0], WIDE[2])]
    in_order = sorted(given, key=lambda one: weights_root(one[1]))
    architecture, wanted = mean_of_merges((OWN.architecture, OWN.tensors), in_order)
    assert weights_root(adopted) == weights_root(wanted)
    assert session.progress is not None
    assert session.progress.adapters == session.outcome_of == architecture.text
    ranks = {m.path: m.rank for m in lora_of(parse_architecture(session.outcome_of)).modules}
    assert ranks["layers.0"] == OWN.lora.modules[0].rank + 700 + 300
    (fault,) = [event for event in events if isinstance(event, OurFault)]
    assert records[1].trade_id.hex() in fault.reason
    assert "bad-architecture" in fault.reason
    assert not session_on(journal)._has_bought()  # also after a restart the round is over


async def test_where_only_one_fits_it_is_taken_as_it_was_measured(journal: Journal) -> None:
    session, records = bought(journal, (WIDE[0], 1_000), (WIDE[1], 2_000))
    adopted = await session.adopt()
    assert weights_root(adopted) == records[1].evaluation.merged_root
    assert session.progress is not None
    assert session.progress.root == records[1].evaluation.merged_root
    assert torch.equal(adopted["base_model.model.layers.0.lora_A.weight"][4:], next(
        tensor for name, tensor in WIDE[1].tensors.items() if "lora_A" in name
    ))  # fmt: skip


async def test_a_purchase_whose_goods_are_gone_is_left_out_of_what_is_fused(
    journal: Journal,
) -> None:
    session, records = bought(journal, (SOLD, 1_000), (WIDE[2], 2_000))
    events = heard_by(session)
    session._station.blobs.delete(records[0].quote.offer_root)
    adopted = await session.adopt()
    assert weights_root(adopted) == records[1].evaluation.merged_root
    (fault,) = [event for event in events if isinstance(event, OurFault)]
    assert records[0].trade_id.hex() in fault.reason


@pytest.mark.parametrize(
    "error", [ProfileError("unreadable", "of the test"), StoreError("disk-full", "of the test")]
)
async def test_a_disk_that_may_yet_do_it_costs_no_purchase(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    session, _ = bought(journal, (SOLD, 1_000), (WIDE[2], 2_000))
    events = heard_by(session)

    def away(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(merging, "mean_of_merges", away)
        with pytest.raises(type(error), match="of the test"):
            await session.adopt()
    assert not [event for event in events if isinstance(event, OurFault)]
    assert session._has_bought()
    adopted = await session.adopt()
    assert len(adopted["base_model.model.layers.0.lora_A.weight"]) == 4 + 3 + 300
