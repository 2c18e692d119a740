"""What an operator deploys: the same market from the same terms, and nothing twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from node.chain import answers, deployment
from node.chain.check import check_clearing_house
from node.chain.client import ChainClient
from node.chain.deploy import DEPLOY_GAS, MarketPlan, Part, deploy_market, deploy_part
from node.chain.deployment import (
    DeploymentFileError,
    check_market,
    describe,
    estimate,
    missing_parts,
    plan_of,
    read_deployments,
    require_funds,
    require_none_pending,
    write_deployment,
)
from node.chain.errors import ChainUnavailableError, UnfundedAccountError, WrongContractError
from node.chain.in_process import InProcessProvider
from node.chain.tester import DevelopmentChain, fund_account
from node.chain.transactions import Wallet
from node.protocol.clearing import ClearingDomain
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, Wei
from tests.chain.market import BROKER, ETHER, PLAN, SELLER

WHO = address_of(BROKER)
THREE = dataclasses.replace(
    PLAN,
    brokers=tuple(address_of(bytes([n]) * 32) for n in (9, 3, 17)),
    threshold=2,
    minimum_challenge=7,
)
CHAIN = 7
PARTS = {part.name: part for part in PLAN.parts}


class Altered(InProcessProvider):
    """An endpoint that changes what one method answers of one account."""

    method, where, answer = "", Address(""), ""

    def make_request(self, method: Any, params: Any) -> Any:
        if method == self.method and params[0] == self.where:
            return {"result": self.answer}
        return super().make_request(method, params)


@pytest.fixture
def client(chain: DevelopmentChain) -> ChainClient:
    fund_account(chain, WHO, Wei(4 * ETHER))
    return ChainClient(InProcessProvider(chain))


@pytest.fixture
def wallet(client: ChainClient) -> Wallet:
    return Wallet(BROKER, client.chain_id())


def deploy(client: ChainClient, wallet: Wallet, plan: MarketPlan = PLAN) -> list[str]:
    missing = missing_parts(client, plan)
    for part in missing:
        deploy_part(client, wallet, part)
    return [part.name for part in missing]


def altered(part: Part, code: bytes, at: int) -> str:
    changed = bytearray(code)
    changed[at] ^= 1
    return "0x" + changed.hex()


# ── the chain ──


def test_a_whole_market_is_deployed_once(client: ChainClient, wallet: Wallet) -> None:
    assert deploy(client, wallet) == [
        "DeliveryCourt", "BrokerRegistry", "ParameterEscrow", "ClearingHouse"
    ]  # fmt: skip
    assert deploy(client, wallet) == []
    terms = check_market(client, PLAN)
    assert (terms.registry, terms.court, terms.threshold) == (PLAN.registry, PLAN.court, 1)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_deployment_that_was_cut_off_is_continued(
    client: ChainClient, wallet: Wallet, left: int
) -> None:
    names = [part.name for part in PLAN.parts]
    for part in PLAN.parts[:-left]:
        deploy_part(client, wallet, part)
    with pytest.raises(WrongContractError, match="no code"):
        check_market(client, PLAN)
    assert deploy(client, wallet) == names[-left:]
    check_market(client, PLAN)


def test_what_a_node_deployed_for_itself_lacks_the_clearing_house_alone(
    client: ChainClient, wallet: Wallet
) -> None:
    deploy_market(client, BROKER, PLAN)
    assert deploy(client, wallet) == ["ClearingHouse"]
    check_market(client, PLAN)


@pytest.mark.parametrize("plan", [PLAN, THREE])
def test_a_deployment_costs_what_was_estimated_or_a_little_less(
    client: ChainClient, wallet: Wallet, plan: MarketPlan
) -> None:
    expected = estimate(client, wallet, plan.parts)
    held = answers.wei(client.ask("eth_getBalance", WHO, "latest"), "a balance")
    used = 0
    for part in plan.parts:
        deploy_part(client, wallet, part)
        block = client.ask("eth_getBlockByNumber", "latest", False)
        gas = answers.quantity(block["gasUsed"], "gas")
        assert 0.97 * part.gas < gas <= part.gas, part.name
        used += gas
    left = answers.wei(client.ask("eth_getBalance", WHO, "latest"), "a balance")
    assert used <= expected.gas
    assert held - left <= expected.cost == expected.gas * expected.price
    assert expected.cost < expected.least_balance


def test_a_market_of_very_many_brokers_can_be_deployed(client: ChainClient, wallet: Wallet) -> None:
    brokers = tuple(address_of(number.to_bytes(32, "big")) for number in range(1, 121))
    plan = dataclasses.replace(PLAN, brokers=brokers, threshold=61)
    assert plan.escrow_part().gas > DEPLOY_GAS
    expected = estimate(client, wallet, plan.parts[:3])
    assert expected.least_balance == expected.cost  # the escrow's limit is what it needs
    assert len(deploy(client, wallet, plan)) == len(plan.parts)
    assert missing_parts(client, plan) == []


def test_who_cannot_pay_for_it_all_does_not_begin(client: ChainClient, wallet: Wallet) -> None:
    require_funds(client, wallet, Wei(4 * ETHER))
    with pytest.raises(UnfundedAccountError, match=f"{WHO} holds {4 * ETHER} wei"):
        require_funds(client, wallet, Wei(4 * ETHER + 1))


def test_nothing_is_deployed_while_a_transaction_may_be_deploying_it(
    client: ChainClient, chain: DevelopmentChain, wallet: Wallet
) -> None:
    class Pooled(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_getTransactionCount" and params[1] == "pending":
                return {"result": "0x1"}
            return super().make_request(method, params)

    require_none_pending(client, wallet)
    with pytest.raises(ChainUnavailableError, match="not mined yet"):
        require_none_pending(ChainClient(Pooled(chain)), wallet)


@pytest.mark.parametrize("name", PARTS)
def test_other_code_at_an_address_of_the_market_is_found_before_anything_is_sent(
    chain: DevelopmentChain, client: ChainClient, name: str
) -> None:
    provider = Altered(chain)
    provider.method, provider.where = "eth_getCode", PARTS[name].address
    provider.answer = "0x6001"
    with pytest.raises(WrongContractError, match=f"{PARTS[name].address} is not that of {name}"):
        missing_parts(ChainClient(provider), PLAN)


@pytest.mark.parametrize("name", PARTS)
def test_a_changed_byte_or_constant_of_any_contract_is_found(
    client: ChainClient, chain: DevelopmentChain, wallet: Wallet, name: str
) -> None:
    deploy(client, wallet)
    part = PARTS[name]
    provider = Altered(chain)
    code, places = client.code(part.address), {start for start, _ in part.artifact.immutables}
    provider.method, provider.where = "eth_getCode", part.address
    for at in (0, len(code) // 2, len(code) - 1, *places, *(place + 31 for place in places)):
        provider.answer = altered(part, code, at)
        with pytest.raises(WrongContractError):
            check_market(ChainClient(provider), PLAN)
    provider.answer = "0x" + code.hex()
    check_market(ChainClient(provider), PLAN)


@pytest.mark.parametrize("name", ["ParameterEscrow", "ClearingHouse"])
def test_a_contract_that_does_not_list_a_broker_is_found(
    client: ChainClient, chain: DevelopmentChain, wallet: Wallet, name: str
) -> None:
    """As no code shows: who may be a broker is in the storage."""

    class Stranger(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            answer = super().make_request(method, params)
            asks_broker = method == "eth_call" and WHO[2:].lower() in params[0]["data"]
            if asks_broker and params[0]["to"] == PARTS[name].address:
                return {"result": "0x" + bytes(32).hex()}
            return answer

    deploy(client, wallet)
    with pytest.raises(WrongContractError, match="does not list"):
        check_market(ChainClient(Stranger(chain)), PLAN)


def test_a_market_of_other_terms_is_not_the_one_that_was_deployed(
    client: ChainClient, wallet: Wallet
) -> None:
    deploy(client, wallet)
    for other in (
        dataclasses.replace(PLAN, minimum_bond=Wei(7)),
        dataclasses.replace(PLAN, salt=Digest(b"\x08" * 32)),
        dataclasses.replace(PLAN, brokers=(WHO, address_of(SELLER))),
        dataclasses.replace(PLAN, minimum_challenge=7),
    ):
        with pytest.raises(WrongContractError, match="no code"):
            check_market(client, other)


@pytest.mark.parametrize(
    "told",
    [{"registry": WHO}, {"court": WHO}, {"threshold": 2}, {"minimum_bond": Wei(7)}],
)
def test_an_escrow_that_tells_other_terms_than_it_was_deployed_with_is_refused(
    client: ChainClient, wallet: Wallet, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    deploy(client, wallet)
    terms = dataclasses.replace(check_market(client, PLAN), **told)
    monkeypatch.setattr(deployment, "check_escrow", lambda *_: terms)
    with pytest.raises(WrongContractError, match="other terms"):
        check_market(client, PLAN)


@pytest.mark.parametrize("told", [{"registry": WHO}, {"threshold": 2}, {"minimum_challenge": 7}])
def test_a_clearing_house_that_tells_other_terms_than_it_was_deployed_with_is_refused(
    client: ChainClient, wallet: Wallet, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    deploy(client, wallet)
    domain = ClearingDomain(chain_id=client.chain_id(), clearing_house=PLAN.clearing_house)
    terms = dataclasses.replace(check_clearing_house(client, domain), **told)
    monkeypatch.setattr(deployment, "check_clearing_house", lambda *_: terms)
    with pytest.raises(WrongContractError, match=r"clearing house .* with other terms"):
        check_market(client, PLAN)


# ── the file ──


def test_a_file_keeps_every_market_of_its_chain_and_the_newest_last(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "7.json"
    assert read_deployments(path, CHAIN) == []
    old, new = describe(PLAN, "1"), describe(THREE, "2")
    assert write_deployment(path, CHAIN, old)
    assert write_deployment(path, CHAIN, new)
    assert not write_deployment(path, CHAIN, old)
    assert read_deployments(path, CHAIN) == [old, new]
    assert [plan_of(market) for market in (old, new)] == [PLAN, THREE]
    assert [one.name for one in path.parent.iterdir()] == ["7.json"]


def test_a_file_of_another_chain_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "7.json"
    write_deployment(path, CHAIN, describe(PLAN, "1"))
    before = path.read_bytes()
    with pytest.raises(WrongContractError, match="is of 7"):
        write_deployment(path, 8, describe(THREE, "1"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"salt": "0x00"},
        {"salt": 7},
        {"brokers": []},
        {"brokers": [WHO.lower()]},
        {"brokers": [WHO, WHO]},
        {"threshold": 2},
        {"threshold": 0},
        {"threshold": "1"},
        {"minimum_bond": "-1"},
        {"minimum_bond": str(2**256)},
        {"minimum_challenge": 0},
        {"minimum_challenge": 30 * 86_400 + 1},
        {"minimum_challenge": "7"},
        {"minimum_challenge": None},
        {"escrow": "0x00"},
        {"registry": None},
    ],
)
def test_a_market_that_cannot_be_is_not_read(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "7.json"
    markets = [{**describe(PLAN, "1"), **change}]
    path.write_text(json.dumps({"version": 1, "chain_id": CHAIN, "markets": markets}))
    with pytest.raises(DeploymentFileError, match="not a file of deployments"):
        read_deployments(path, CHAIN)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1, "chain_id": 7, "markets": [[]]}', "[" * 1_000, "\xff"]
)
def test_what_is_no_file_of_deployments_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "7.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DeploymentFileError, match="not a file of deployments"):
        read_deployments(path, CHAIN)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "7.json"
    path.write_text(json.dumps({"version": 2, "chain_id": CHAIN, "markets": []}))
    with pytest.raises(DeploymentFileError, match="version 2"):
        read_deployments(path, CHAIN)


def test_a_file_that_cannot_be_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    for path in (tmp_path, tmp_path / "in the way" / "7.json"):
        with pytest.raises(DeploymentFileError, match=str(tmp_path)):
            write_deployment(path, CHAIN, describe(PLAN, "1"))
