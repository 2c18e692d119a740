"""With chain and escrow named, those who signed a receipt must be brokers of that escrow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker_node.appraisal import DrillAppraiser
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market
from node.chain.deployment import describe, write_deployment
from node.chain.rpc_server import ChainServer
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain, fund_account
from node.cli.main import run
from node.cli.receipt_file import write
from node.cli.verify import FITTED
from node.params.encoding import save_safetensors, weights_root
from node.protocol.eip712 import Domain, digest
from node.protocol.signing import peer_id_of_seed
from node.protocol.types import Digest, Wei
from tests.market.market import architecture, weights
from tests.protocol import cast
from tests.quorum.brokers import account_of, key_of
from tests.quorum.test_receipts_replayed import PEER_SEED, signed_by_broker

SEATED = (0, 1)
UNSEATED = 2
"""One of the escrow's brokers that has put up no bond."""


@dataclass
class Place:
    """A market on a chain, whose weights and receipts lie in a folder."""

    folder: Path
    url: str
    domain: Domain
    plan: MarketPlan

    def told(self, signers: tuple[int, ...], *words: str) -> tuple[int, Any]:
        """Verify a receipt that these brokers have signed."""
        notice = dataclasses.replace(
            cast.notice(),
            broker=account_of(0),
            peer_id=peer_id_of_seed(PEER_SEED),
            task="drill",
            validation_root=DrillAppraiser.validation_root,
            validation_rows=0,
        )
        named = (digest(self.domain, notice), notice)
        trial = DrillAppraiser().measure(model("base"), model("sold"), task="drill", notice=named)
        file = signed_by_broker(
            trial.evaluation, trial.recipe, notice, domain=self.domain, signers=signers
        )
        path = self.folder / "receipt.json"
        path.write_text(write(file))
        code = run(
            [
                *("verify", str(path), "--json", "--dataset", "random"),
                *("--base", str(self.folder / "base.safetensors")),
                *("--sold", str(self.folder / "sold.safetensors")),
                *("--data-dir", str(self.folder / "node"), *words),
            ]
        )
        return code, file


def model(name: str) -> Verified:
    tensors = weights(name)
    received = Received(
        weights_root=weights_root(tensors), architecture=architecture(), tensors=tensors
    )
    return verify(received)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("seats")
    for name in ("base", "sold"):
        save_safetensors(weights(name), folder / f"{name}.safetensors")
    with DevelopmentChain() as chain, ChainServer(chain) as server:
        for number in range(3):
            fund_account(chain, account_of(number), Wei(10**19))
        plan = MarketPlan(
            salt=Digest(bytes(32)),
            brokers=tuple(account_of(number) for number in range(3)),
            threshold=2,
            minimum_bond=Wei(1),
        )
        client = ChainClient(server.url)
        domain = deploy_market(client, key_of(0), plan)
        for number in SEATED:
            take_seat(client, key_of(number), domain, bond=Wei(1))
        client.close()
        yield Place(folder, server.url, domain, plan)


def test_signers_with_seats_are_enough_where_they_are_as_many_as_must_sign(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = place.told(SEATED, "--chain", place.url, "--escrow", place.domain.escrow)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    told = json.loads(captured.out)
    assert (told["threshold"], told["not_checked"]) == (2, [FITTED])


@pytest.mark.parametrize("signers", [(0,), (0, UNSEATED), (0, 7), (0, 1, 7)])
def test_too_few_signers_or_one_without_a_seat_fail_by_name(
    place: Place, capsys: pytest.CaptureFixture[str], signers: tuple[int, ...]
) -> None:
    code, _ = place.told(signers, "--chain", place.url, "--escrow", place.domain.escrow)
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, "")
    assert "signers is said to be" in captured.err


def test_what_was_not_checked_is_said_where_no_chain_is_named(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ((), ("--chain", place.url), ("--escrow", place.domain.escrow)):
        assert place.told((0, 7), *words)[0] == 0
        told = json.loads(capsys.readouterr().out)
        assert told["threshold"] is None
        assert "--chain and --escrow" in told["not_checked"][1]


def test_a_receipt_of_another_escrow_is_told_by_that(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    other = account_of(9)
    for words in ((), ("--chain", place.url)):
        assert place.told(SEATED, "--escrow", other, *words)[0] == 1
        assert f"escrow is said to be {place.domain.escrow}, and is {other}" in (
            capsys.readouterr().err
        )


def test_an_escrow_that_the_data_directory_deployed_is_meant_where_none_is_named(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    chain_id = place.domain.chain_id
    path = place.folder / "node" / "deployments" / f"{chain_id}.json"
    other = dataclasses.replace(place.plan, salt=Digest(bytes([1] * 32)))
    try:
        write_deployment(path, chain_id, describe(other, "test"))
        assert place.told(SEATED, "--chain", place.url)[0] == 1
        assert f"escrow is said to be {place.domain.escrow}, and is {other.escrow}" in (
            capsys.readouterr().err
        )
        for plan in (place.plan, dataclasses.replace(place.plan, salt=Digest(bytes([2] * 32)))):
            write_deployment(path, chain_id, describe(plan, "test"))
            assert place.told(SEATED, "--chain", place.url)[0] == 0
            assert json.loads(capsys.readouterr().out)["threshold"] == 2
    finally:
        path.unlink()
