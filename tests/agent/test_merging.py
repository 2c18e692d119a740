"""What was bought survives a disk that spoils it, as long as it can be made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from node.agent import merging
from node.agent.progress import Progress
from node.chronicle import OurFault
from node.journal import Journal
from node.params.encoding import decode_file
from node.params.errors import ProfileError, StoreError
from node.params.recipe import NO_ALIGNMENT, apply_recipe
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.types import Millionths
from node.settlement.trade import Trade
from tests.agent.rounds import delivered_round, heard_by, purchase_on, session_on
from tests.market.market import architecture, weights


def is_merged(tensors: Mapping[str, torch.Tensor]) -> bool:
    recipe = NO_ALIGNMENT.with_alpha(Millionths(250_000))
    merged = apply_recipe(architecture(), weights("offered"), weights("sold"), recipe)
    return all(torch.equal(tensors[name], tensor) for name, tensor in merged.items())


def no_number(data: bytes) -> bytes:
    return data[:-4] + b"\xff" * 4


SPOILS = [lambda data: data[:-1], lambda data: bytes(len(data)), no_number]


@pytest.mark.parametrize("spoil", SPOILS, ids=["cut short", "zeros", "a NaN"])
async def test_a_merge_that_the_disk_has_spoilt_is_made_again(
    journal: Journal, spoil: Callable[[bytes], bytes]
) -> None:
    root = delivered_round(journal).evaluation.merged_root
    session = session_on(journal)
    blobs = session._station.blobs
    path = blobs.path(root)
    path.write_bytes(spoil(path.read_bytes()))
    assert is_merged(await session.adopt())
    assert session.progress == Progress(3, 7, root, False)
    blobs.verify(root)


@pytest.mark.parametrize("input_spoilt", ["sold", "sold and gone", "base"])
async def test_a_merge_that_is_lost_for_good_is_told_of_and_the_agent_goes_on(
    journal: Journal, input_spoilt: str
) -> None:
    record = delivered_round(journal)
    session = session_on(journal)
    blobs, events = session._station.blobs, heard_by(session)
    with_it = record.evaluation.base_root if input_spoilt == "base" else record.quote.offer_root
    for root in (record.evaluation.merged_root, with_it):
        path = blobs.path(root)
        path.write_bytes(no_number(path.read_bytes()))
    if input_spoilt == "sold and gone":
        blobs.delete(with_it)
    if input_spoilt == "base":
        with pytest.raises(ProfileError, match="not-finite"):
            await session.adopt()
    else:
        kept = await session.adopt()
        assert all(torch.equal(kept[n], tensor) for n, tensor in weights("offered").items())
        assert session.progress == Progress(3, 7, record.evaluation.base_root, False)
    (fault,) = [event for event in events if isinstance(event, OurFault)]
    assert record.trade_id.hex() in fault.reason
    assert "not-finite" in fault.reason
    for again in (session, session_on(journal)):
        assert again._trades == []
        assert not again._has_bought()  # anything may be offered


@pytest.mark.parametrize("reason", ["disk-full", "disk"])
async def test_a_merge_that_a_full_disk_does_not_take_may_be_had_later(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    root = delivered_round(journal).evaluation.merged_root
    session = session_on(journal)
    blobs = session._station.blobs

    def refused(*_: object) -> None:
        raise StoreError(reason, "of the test")

    path = blobs.path(root)
    path.write_bytes(no_number(path.read_bytes()))
    with monkeypatch.context() as patched:
        patched.setattr(blobs, "put_bytes", refused)
        with pytest.raises(StoreError, match=reason):
            await session.adopt()
    assert path.exists()
    assert session._has_bought()
    assert is_merged(await session.adopt())


async def test_a_merge_that_cannot_be_read_at_this_moment_is_not_given_up(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = delivered_round(journal)
    session = session_on(journal)
    blobs = session._station.blobs
    blobs.delete(record.quote.offer_root)

    def unreadable(*_: object) -> None:
        raise ProfileError("unreadable", "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(merging, "decode_file", unreadable)
        with pytest.raises(ProfileError, match="unreadable"):
            await session.adopt()
    assert is_merged(await session.adopt())


async def test_what_was_bought_is_read_once_and_only_then_may_its_round_end(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = delivered_round(journal).evaluation.merged_root
    session, decode, paths = session_on(journal), decode_file, []

    def counted(path: Path, *more: Any) -> dict[str, torch.Tensor]:
        paths.append(path)
        return decode(path, *more)

    monkeypatch.setattr(merging, "decode_file", counted)
    with pytest.raises(LocalProtocolError, match="no round to end"):
        session.end()
    tensors, merged = await session.outcome()
    session.end()
    assert merged
    assert is_merged(tensors)
    assert paths == [session._station.blobs.path(root)]
    assert session.progress == Progress(3, 7, root, False)
    with pytest.raises(LocalProtocolError, match="no round to end"):
        session.end()


async def test_a_round_does_not_end_while_its_purchase_is_under_way(journal: Journal) -> None:
    session = session_on(journal)
    root = session._keep(weights("offered")).root
    session._remember(Progress(2, 7, root, True))
    record = purchase_on(root, PurchaseState.FUNDED, 1)
    session.architecture = architecture().text
    session._trades = [Trade(Purchase(record))]
    with pytest.raises(LocalProtocolError, match="outcome first"):
        session.end()
    assert session.progress == Progress(2, 7, root, True)
