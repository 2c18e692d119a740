"""CREATE2: an address that nobody else has, known before there is anything at it."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from node.chain.client import ChainClient
from node.chain.deploy import (
    check_escrow,
    creation_code,
    deploy_escrow,
    escrow_address,
    escrow_artifact,
    load_or_make_salt,
)
from node.chain.errors import (
    ChainUnavailableError,
    TransactionRefusedError,
    UnfundedAccountError,
    WrongContractError,
)
from node.chain.in_process import InProcessProvider
from node.chain.tester import DevelopmentChain, fund_account
from node.protocol.eip712 import Domain
from node.protocol.signing import address_of
from node.protocol.types import Digest, Wei
from tests.chain.market import BROKER, ETHER, SALT, SELLER

WHO = address_of(BROKER)


@pytest.fixture
def client(chain: DevelopmentChain) -> ChainClient:
    fund_account(chain, WHO, Wei(ETHER))
    return ChainClient(InProcessProvider(chain))


def test_the_address_is_known_beforehand_and_deploying_twice_is_once(
    client: ChainClient, chain: DevelopmentChain
) -> None:
    saved: list[bytes] = []
    domain = deploy_escrow(client, BROKER, WHO, SALT, save=saved.append)
    assert domain == Domain(chain_id=chain.evm.chain_id, escrow=escrow_address(SALT, WHO))
    blocks = chain.evm.head.block_number
    assert deploy_escrow(client, BROKER, WHO, SALT, save=saved.append) == domain
    assert chain.evm.head.block_number == blocks
    assert len(saved) == 1


def test_another_salt_or_broker_is_another_market(client: ChainClient) -> None:
    domains = {
        deploy_escrow(client, BROKER, broker, salt).escrow
        for broker in (WHO, address_of(SELLER))
        for salt in (SALT, Digest(b"\x08" * 32))
    }
    assert len(domains) == 4


def test_two_devnets_share_no_address(tmp_path: Path) -> None:
    salts = {load_or_make_salt(tmp_path / name) for name in ("one", "two")}
    assert len({escrow_address(salt, WHO) for salt in salts}) == 2


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
    domain = deploy_escrow(client, BROKER, WHO, SALT)
    artifact = escrow_artifact()
    code = client.code(domain.escrow)
    places = {start for start, _ in artifact.immutables}
    word = bytes.fromhex(WHO[2:]).rjust(32, b"\0")
    brokers = [at for at in places if code[at : at + 32] == word]
    assert brokers

    class Altered(InProcessProvider):
        at: tuple[int, ...] = ()

        def make_request(self, method: Any, params: Any) -> Any:
            if method != "eth_getCode":
                return super().make_request(method, params)
            changed = bytearray(code)
            for at in self.at:
                changed[at] ^= 1
            return {"result": "0x" + changed.hex()}

    provider = Altered(chain)
    altered = ChainClient(provider)
    for at in (0, len(code) // 2, len(code) - 1, *places, *(place + 31 for place in places)):
        provider.at = (at,)
        with pytest.raises(WrongContractError):
            check_escrow(altered, domain, WHO)
    provider.at = tuple(brokers)  # not an address any more
    with pytest.raises(WrongContractError, match="another domain"):
        check_escrow(altered, domain)
    provider.at = tuple(at + 31 for at in brokers)
    with pytest.raises(WrongContractError, match="does not trust"):
        check_escrow(altered, domain, WHO)
    assert check_escrow(altered, domain) != WHO
    assert check_escrow(client, domain) == WHO
    assert check_escrow(client, domain, WHO) == WHO
    longer = dataclasses.replace(artifact, deployed_bytecode=artifact.deployed_bytecode + b"\0")
    with pytest.raises(WrongContractError):
        check_escrow(client, domain, artifact=longer)


def test_a_deployment_that_cannot_be_is_named(client: ChainClient, chain: DevelopmentChain) -> None:
    with pytest.raises(UnfundedAccountError):
        deploy_escrow(client, SELLER, WHO, SALT)
    broken = dataclasses.replace(escrow_artifact(), bytecode=b"\xfe")
    with pytest.raises(TransactionRefusedError, match="deployment failed"):
        deploy_escrow(client, BROKER, WHO, SALT, artifact=broken)

    class Forgetful(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_getTransactionReceipt":
                return {"result": None}
            return super().make_request(method, params)

    with pytest.raises(ChainUnavailableError, match="not mined within"):
        deploy_escrow(ChainClient(Forgetful(chain)), BROKER, WHO, SALT, timeout=0.0)

    class Bare(InProcessProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            if method == "eth_getCode":
                return {"result": "0x"}
            return super().make_request(method, params)

    with pytest.raises(WrongContractError, match="no proxy"):
        deploy_escrow(ChainClient(Bare(chain)), BROKER, WHO, SALT)


def test_creation_code_ends_in_the_broker() -> None:
    assert creation_code(WHO).endswith(bytes.fromhex(WHO[2:]))
