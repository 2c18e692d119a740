"""What agents swear of their rows: signed, kept by the broker, refused where it says nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker_node.findings import SplitAttested
from node.agent.agent import Agent
from node.params.encoding import weights_root
from node.protocol.attestation import Attestation, Attested, attest, check_attest
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Digest
from tests.market.market import Party, open_market, weights
from tests.protocol import cast

OTHER_ROWS = Digest(b"\x07" * 32)


def oath_of(party: Party) -> Attestation:
    notice = party.station.notice_of(party.market.broker.peer_id)
    assert notice is not None
    return Attestation(
        seller=party.account,
        weights_root=weights_root(weights(party.name)),
        validation_root=notice.validation_root,
        issued_at=party.market.clock(),
    )


async def test_an_agent_that_attests_is_heard_and_what_it_swore_is_kept(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        swears = await market.join("swears", Agent, attests=True)
        silent = await market.join("silent", Agent)
        await swears.offer()
        await silent.offer()
        (heard,) = market.broker.heard(SplitAttested)
        assert (heard.seller, heard.root) == (swears.account, oath_of(swears).weights_root)
        assert len(market.broker.journal.facts("oath/")) == 1
        assert swears.blamed("attest") == silent.blamed("attest") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"validation_root": OTHER_ROWS}, "other-rows"),
        ({"weights_root": Digest(b"\x08" * 32)}, "unknown-model"),
        ({"seller": cast.STRANGER.account}, "bad-signature"),
    ],
)
async def test_an_oath_that_says_nothing_of_ours_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    async with open_market(tmp_path) as market:
        agent = await market.join("agent", Agent)
        await agent.offer()
        said = attest(
            agent.station.domain, replace(oath_of(agent), **change), agent.keys.account
        )  # fmt: skip
        with pytest.raises(RemoteProtocolError) as told:
            await agent.station.ask(market.broker.peer_id, said, Attested, seconds=10)
        assert told.value.reason == reason
        assert market.broker.journal.facts("oath/") == {}


async def swear(by: Party, body: Attestation) -> Digest:
    said = attest(by.station.domain, body, by.keys.account)
    answer = await by.station.ask(by.market.broker.peer_id, said, Attested, seconds=10)
    return answer.digest


async def test_an_oath_is_kept_once_for_each_set_of_rows(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        agent = await market.join("agent", Agent)
        await agent.offer()
        await swear(agent, oath_of(agent))
        market.skip(1)
        await swear(agent, oath_of(agent))  # said again: the first one stands
        kept = market.broker.journal.facts("oath/")
        assert len(kept) == 1
        market.broker.shell.intake._appraiser.validation_root = OTHER_ROWS
        await swear(agent, replace(oath_of(agent), validation_root=OTHER_ROWS))
        now_kept = market.broker.journal.facts("oath/")
        assert len(now_kept) == 2
        assert kept.items() <= now_kept.items()


@pytest.mark.parametrize("replicas", ["report", "ignore"])
async def test_nobody_swears_of_a_model_that_it_has_not_offered(
    tmp_path: Path, replicas: str
) -> None:
    async with open_market(tmp_path, replicas=replicas) as market:
        seller = await market.join("seller", Agent)
        stranger = await market.join("stranger", Agent)
        await seller.offer()
        with pytest.raises(RemoteProtocolError) as told:
            await swear(stranger, replace(oath_of(seller), seller=stranger.account))
        assert told.value.reason == "not-offered"
        assert market.broker.journal.facts("oath/") == {}
        await swear(seller, oath_of(seller))
        assert len(market.broker.journal.facts("oath/")) == 1


async def test_of_too_many_oaths_the_oldest_goes_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_node.intake.MAX_OATHS", 3)
    async with open_market(tmp_path) as market:
        agent = await market.join("agent", Agent)
        journal, names = market.broker.journal, list[str]()
        journal.remember("oath/" + "ff" * 64, [b"of before", b"they were counted"])
        for number in range(6):
            model = weights(f"model {number}")
            await agent.offer(model)
            await swear(agent, replace(oath_of(agent), weights_root=weights_root(model)))
            (new,) = set(journal.facts("oath/")) - set(names) - {"oath/" + "ff" * 64}
            names.append(new)
            assert set(names[-3:]) <= set(journal.facts("oath/"))
            assert len(journal.facts("oath/")) <= 3


def test_no_field_of_an_oath_can_be_changed_under_its_signature() -> None:
    body = Attestation(
        seller=cast.SELLER.account,
        weights_root=cast.word("weights"),
        validation_root=cast.word("rows"),
        issued_at=cast.NOW,
    )
    said = attest(cast.DOMAIN, body, cast.SELLER.account_key)
    check_attest(cast.DOMAIN, said, validation_root=body.validation_root)
    for change in (
        {"seller": cast.BUYER.account},
        {"weights_root": cast.word("others")},
        {"validation_root": OTHER_ROWS},
        {"issued_at": cast.NOW + 1},
    ):
        changed = replace(body, **change)
        with pytest.raises(RemoteProtocolError, match="bad-signature"):
            check_attest(
                cast.DOMAIN, replace(said, attestation=changed),
                validation_root=changed.validation_root,
            )  # fmt: skip
