"""CREATE2: an address that nobody else has, known before there is anything at it."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from contracts import load_artifact
from node.chain.abi import Functions
from node.chain.check import check_escrow, escrow_artifact
from node.chain.client import ChainClient
from node.chain.deploy import deploy_market, load_or_make_salt
from node.chain.errors import (
    ChainUnavailableError,
    NotSeatedError,
    TransactionRefusedError,
    UnfundedAccountError,
    WrongContractError,
)
from node.chain.in_process import InProcessProvider
from node.chain.reverts import Revert
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain, fund_account
from node.chain.transactions import Wallet, send_and_wait
from node.protocol.eip712 import Domain
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, Wei
from tests.chain.market import BOND, BROKER, ETHER, PLAN, SELLER

WHO = address_of(BROKER)


@pytest.fixture
def client(chain: DevelopmentChain) -> ChainClient:
    fund_account(chain, WHO, Wei(4 * ETHER))
    return ChainClient(InProcessProvider(chain))


def test_the_addresses_are_known_beforehand_and_deploying_twice_is_once(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    saved: list[bytes] = []
    domain = deploy_market(client, BROKER, PLAN, save=saved.append)
    assert domain == Domain(chain_id=chain.evm.chain_id, escrow=PLAN.escrow)
    blocks = chain.evm.head.block_number
    assert deploy_market(client, BROKER, PLAN, save=saved.append) == domain
    assert chain.evm.head.block_number == blocks
    assert len(saved) == 3


def test_another_salt_broker_threshold_or_bond_is_another_market(client: ChainClient) -> None:
    both = (WHO, address_of(SELLER))
    plans = (
        PLAN,
        dataclasses.replace(PLAN, salt=Digest(b"\x08" * 32)),
        dataclasses.replace(PLAN, brokers=both[1:]),
        dataclasses.replace(PLAN, brokers=both),
        dataclasses.replace(PLAN, brokers=both, threshold=2),
        dataclasses.replace(PLAN, minimum_bond=Wei(7)),
    )
    domains = [deploy_market(client, BROKER, plan) for plan in plans]
    assert len({domain.escrow for domain in domains}) == len(plans)
    assert PLAN.escrow != dataclasses.replace(PLAN, minimum_bond=Wei(7)).escrow
    terms = [check_escrow(client, domain) for domain in domains]
    assert [each.threshold for each in terms] == [1, 1, 1, 1, 2, 1]
    assert [each.minimum_bond for each in terms] == [BOND] * 5 + [7]


def test_the_order_in_which_brokers_are_named_is_no_other_market() -> None:
    both = (WHO, address_of(SELLER))
    one, other = (dataclasses.replace(PLAN, brokers=named) for named in (both, both[::-1]))
    assert one.escrow == other.escrow


def test_all_markets_of_a_chain_share_the_registry_and_the_court(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    saved: list[bytes] = []
    deploy_market(client, BROKER, PLAN)
    other = dataclasses.replace(PLAN, salt=Digest(b"\x08" * 32), brokers=(address_of(SELLER),))
    deploy_market(client, BROKER, other, save=saved.append)
    assert len(saved) == 1
    assert (other.registry, other.court) == (PLAN.registry, PLAN.court)


def test_two_devnets_share_no_address(tmp_path: Path) -> None:
    salts = {load_or_make_salt(tmp_path / name) for name in ("one", "two")}
    assert len({dataclasses.replace(PLAN, salt=salt).escrow for salt in salts}) == 2


def test_a_salt_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "salt"
    found: list[Digest] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_or_make_salt(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {load_or_make_salt(path)}
    assert [one.name for one in path.parent.iterdir()] == ["salt"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("abc")
    with pytest.raises(WrongContractError, match="salt"):
        load_or_make_salt(path)


def test_code_that_differs_by_a_byte_or_a_constant_is_refused(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    domain = deploy_market(client, BROKER, PLAN)
    artifacts = {
        domain.escrow: escrow_artifact(),
        PLAN.registry: load_artifact("BrokerRegistry"),
        PLAN.court: load_artifact("DeliveryCourt"),
    }

    class Altered(InProcessProvider):
        where: Address = domain.escrow
        at: tuple[int, ...] = ()

        def make_request(self, method: Any, params: Any) -> Any:
            answer = super().make_request(method, params)
            if method != "eth_getCode" or params[0] != self.where:
                return answer
            changed = bytearray.fromhex(answer["result"][2:])
            for at in self.at:
                changed[at] ^= 1
            return {"result": "0x" + changed.hex()}

    provider = Altered(chain)
    altered = ChainClient(provider)
    for where, artifact in artifacts.items():
        provider.where, code = where, client.code(where)
        places = {start for start, _ in artifact.immutables}
        assert bool(places) is (where != PLAN.court)
        for at in (0, len(code) // 2, len(code) - 1, *places, *(place + 31 for place in places)):
            provider.at = (at,)
            with pytest.raises(WrongContractError):
                check_escrow(altered, domain, (WHO,))
    provider.at, provider.where = (), domain.escrow
    for broker in (WHO, address_of(SELLER)):
        word = bytes.fromhex(broker[2:]).rjust(32, b"\0")
        code = client.code(domain.escrow)
        assert word not in {code[start : start + 32] for start, _ in escrow_artifact().immutables}
    with pytest.raises(WrongContractError, match="does not list broker"):
        check_escrow(altered, domain, (address_of(SELLER),))
    assert check_escrow(client, domain, (WHO,)).seated == frozenset()
    artifact = escrow_artifact()
    longer = dataclasses.replace(artifact, deployed_bytecode=artifact.deployed_bytecode + b"\0")
    with pytest.raises(WrongContractError):
        check_escrow(client, domain, artifact=longer)


def test_an_escrow_beside_another_registry_than_ours_is_refused(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    """One that seats whom it likes, say: the word in the code is an address like any other."""
    domain = deploy_market(client, BROKER, PLAN)

    class Bare(InProcessProvider):
        where = ""
        code = "0x"

        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_getCode" and params[0] == self.where:
                return {"result": self.code}
            return super().make_request(method, params)

    provider = Bare(chain)
    for where in (PLAN.registry, PLAN.court):
        provider.where = where
        for code, reason in (("0x", "no code"), ("0x6001", "not that of")):
            provider.code = code
            with pytest.raises(WrongContractError, match=reason):
                check_escrow(ChainClient(provider), domain)


def test_a_deployment_that_cannot_be_is_named(client: ChainClient, chain: DevelopmentChain) -> None:
    with pytest.raises(UnfundedAccountError):
        deploy_market(client, SELLER, PLAN)
    broken = dataclasses.replace(escrow_artifact(), bytecode=b"\xfe")
    with pytest.raises(TransactionRefusedError, match="deployment failed"):
        deploy_market(client, BROKER, PLAN, artifact=broken)
    unquorate = dataclasses.replace(PLAN, threshold=2)
    with pytest.raises(TransactionRefusedError, match="deployment failed"):
        deploy_market(client, BROKER, unquorate)

    class Forgetful(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_getTransactionReceipt":
                return {"result": None}
            return super().make_request(method, params)

    other = dataclasses.replace(PLAN, salt=Digest(b"\x09" * 32))
    with pytest.raises(ChainUnavailableError, match="not mined within"):
        deploy_market(ChainClient(Forgetful(chain)), BROKER, other, timeout=0.0)

    class Bare(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_getCode":
                return {"result": "0x"}
            return super().make_request(method, params)

    with pytest.raises(WrongContractError, match="no proxy"):
        deploy_market(ChainClient(Bare(chain)), BROKER, PLAN)


# ── the broker's seat ──


def test_a_broker_takes_its_seat_once(client: ChainClient, chain: DevelopmentChain) -> None:
    domain = deploy_market(client, BROKER, PLAN)
    assert take_seat(client, BROKER, domain, bond=BOND) == 3
    assert check_escrow(client, domain, (WHO,)).seated == {WHO}
    blocks = chain.evm.head.block_number
    assert take_seat(client, BROKER, domain, bond=BOND) == 0
    assert take_seat(client, BROKER, domain, bond=None) == 0
    assert chain.evm.head.block_number == blocks


def test_a_broker_that_died_on_its_way_to_the_seat_goes_on_from_there(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    class Dying(InProcessProvider):
        left = 0

        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_sendRawTransaction":
                if not self.left:
                    raise ConnectionRefusedError(method)
                self.left -= 1
            return super().make_request(method, params)

    domain = deploy_market(client, BROKER, PLAN)
    provider = Dying(chain)
    nonce = client.nonce(WHO)
    for step in range(3):
        provider.left = 1
        if step < 2:
            with pytest.raises(ChainUnavailableError):
                take_seat(ChainClient(provider), BROKER, domain, bond=BOND)
        else:
            assert take_seat(ChainClient(provider), BROKER, domain, bond=BOND) == 1
        assert client.nonce(WHO) == nonce + step + 1
    assert check_escrow(client, domain, (WHO,)).seated == {WHO}


def test_one_bond_is_up_for_every_market_of_a_broker(client: ChainClient) -> None:
    first = deploy_market(client, BROKER, PLAN)
    second = deploy_market(client, BROKER, dataclasses.replace(PLAN, salt=Digest(b"\x08" * 32)))
    assert take_seat(client, BROKER, first, bond=BOND) == 3
    assert take_seat(client, BROKER, second, bond=BOND) == 2
    assert take_seat(client, BROKER, second, bond=Wei(BOND + 5)) == 1
    assert take_seat(client, BROKER, first, bond=BOND) == 0


def test_no_bond_is_put_up_that_nobody_named(client: ChainClient) -> None:
    domain = deploy_market(client, BROKER, PLAN)
    nonce = client.nonce(WHO)
    with pytest.raises(NotSeatedError, match="--bond"):
        take_seat(client, BROKER, domain, bond=None)
    assert client.nonce(WHO) == nonce


def test_no_more_is_put_up_than_was_named(client: ChainClient) -> None:
    domain = deploy_market(client, BROKER, PLAN)
    nonce = client.nonce(WHO)
    with pytest.raises(NotSeatedError, match=f"needs {BOND}"):
        take_seat(client, BROKER, domain, bond=Wei(BOND - 1))
    assert client.nonce(WHO) == nonce
    assert take_seat(client, BROKER, domain, bond=BOND) == 3
    assert take_seat(client, BROKER, domain, bond=Wei(1)) == 0


def test_a_bond_that_may_be_on_its_way_is_not_put_up_twice(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    class Pooled(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            answer = super().make_request(method, params)
            if method == "eth_getTransactionCount" and params[1] == "pending":
                return {"result": hex(int(answer["result"], 16) + 1)}
            return answer

    domain = deploy_market(client, BROKER, PLAN)
    nonce = client.nonce(WHO)
    with pytest.raises(ChainUnavailableError, match="no second bond"):
        take_seat(ChainClient(Pooled(chain)), BROKER, domain, bond=BOND)
    assert client.nonce(WHO) == nonce


def test_whom_the_escrow_does_not_list_puts_up_nothing(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    domain = deploy_market(client, BROKER, PLAN)
    fund_account(chain, address_of(SELLER), Wei(2 * ETHER))
    with pytest.raises(WrongContractError, match="does not list broker"):
        take_seat(client, SELLER, domain, bond=BOND)
    assert client.nonce(address_of(SELLER)) == 0


def test_a_broker_that_gave_notice_is_told_so(client: ChainClient) -> None:
    domain = deploy_market(client, BROKER, PLAN)
    take_seat(client, BROKER, domain, bond=BOND)
    registry = load_artifact("BrokerRegistry")
    notice = Functions("BrokerRegistry", registry.abi, ("giveNotice",)).call("giveNotice")
    wallet = Wallet(BROKER, domain.chain_id)
    send_and_wait(
        client, wallet, PLAN.registry, notice, Wei(0),
        gas=200_000, read_revert=lambda _: Revert(""), timeout=5.0,
    )  # fmt: skip
    assert check_escrow(client, domain, (WHO,)).seated == frozenset()
    with pytest.raises(NotSeatedError, match="gave notice"):
        take_seat(client, BROKER, domain, bond=BOND)
