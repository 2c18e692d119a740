"""The development chain: memory, time, and what it takes and refuses."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from node.chain.errors import (
    ChainLogError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.factory import FACTORY
from node.chain.in_process import InProcessProvider
from node.chain.port import Finalize, Fund, Reveal, Withdraw
from node.chain.rpc_methods import RpcMethods
from node.chain.tester import LOG_NAME, DevelopmentChain, fund_account
from node.protocol.signing import address_of
from node.protocol.types import Address, Wei
from tests.chain.market import BUYER, ETHER, SECRET, SELLER, Clock, build, do

STRANGER = address_of(b"\x44" * 32)


def raw(nonce: int = 0, key: bytes = BUYER, **changes: Any) -> bytes:
    fields = {
        "type": 2,
        "chainId": 131277322940537,
        "nonce": nonce,
        "to": STRANGER,
        "value": 1,
        "gas": 21_000,
        "maxFeePerGas": 2 * 10**9,
        "maxPriorityFeePerGas": 0,
        **changes,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    return bytes(Account.sign_transaction(fields, key).raw_transaction)


def ask(chain: DevelopmentChain, method: str, *params: object) -> Any:
    return RpcMethods(chain).call(method, params)


def picture(chain: DevelopmentChain) -> dict[str, Any]:
    """Return all that a client could see, without touching the clock."""
    number = chain.evm.head.block_number
    accounts = [address_of(key) for key in (BUYER, SELLER)] + [chain.faucet, STRANGER]
    blocks = [ask(chain, "eth_getBlockByNumber", hex(at), True) for at in range(number + 1)]
    hashes = [transaction["hash"] for block in blocks for transaction in block["transactions"]]
    return {
        "blocks": blocks,
        "balances": [ask(chain, "eth_getBalance", account) for account in accounts],
        "nonces": [ask(chain, "eth_getTransactionCount", account) for account in accounts],
        "receipts": [ask(chain, "eth_getTransactionReceipt", one) for one in hashes],
        "logs": ask(chain, "eth_getLogs", {"fromBlock": "0x0", "toBlock": hex(number)}),
    }


def test_a_restart_from_the_log_gives_the_same_chain(tmp_path: Path, clock: Clock) -> None:
    with DevelopmentChain(tmp_path, clock=clock) as chain:
        market = build(chain, InProcessProvider(chain), clock)
        buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
        quote, signature = market.quote()
        do(buyer, Fund(quote, signature))
        do(seller, Reveal(quote, SECRET))
        do(buyer, Withdraw(buyer.account))  # reverts
        clock.now += 100
        do(seller, Finalize(quote))
        clock.now += 2
        chain.follow_clock()
        before = picture(chain)
    clock.now += 50
    with DevelopmentChain(tmp_path, clock=clock) as again:
        assert picture(again) == before
        assert before["receipts"][-2]["status"] == "0x0"
        # deploying again finds the escrow there
        seller = build(again, InProcessProvider(again), clock).escrow(SELLER)
        assert do(seller, Withdraw(seller.account)).succeeded


def test_a_torn_last_record_is_as_if_it_had_never_been_sent(tmp_path: Path, clock: Clock) -> None:
    first = raw(0)
    with DevelopmentChain(tmp_path, clock=clock) as chain:
        chain.fund(address_of(BUYER), Wei(ETHER))
        chain.send_raw(first)
        before = picture(chain)
        chain.send_raw(raw(1))
    path = tmp_path / LOG_NAME
    path.write_bytes(path.read_bytes()[:-7])
    with DevelopmentChain(tmp_path, clock=clock) as again:
        assert picture(again) == before
        again.send_raw(first)  # known: changes nothing
        assert picture(again) == before
        again.send_raw(raw(1))
        assert again.evm.head.block_number == 3


def test_another_chain_id_or_a_damaged_log_is_refused(tmp_path: Path, clock: Clock) -> None:
    with DevelopmentChain(tmp_path, clock=clock) as chain:
        chain.fund(STRANGER, Wei(1))
        chain.fund(STRANGER, Wei(2))
    with pytest.raises(ChainLogError, match="chain of id 5"):
        DevelopmentChain(tmp_path, clock=clock, chain_id=5)
    path = tmp_path / LOG_NAME
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChainLogError, match="damaged"):
        DevelopmentChain(tmp_path, clock=clock)


def test_two_processes_cannot_serve_one_directory(tmp_path: Path) -> None:
    with DevelopmentChain(tmp_path), pytest.raises(ChainLogError, match="in use"):
        DevelopmentChain(tmp_path)


def test_two_chains_of_one_history_are_equal_to_the_hash(clock: Clock) -> None:
    heads = []
    for _ in range(2):
        with DevelopmentChain(clock=clock) as chain:
            build(chain, InProcessProvider(chain), clock)
            heads.append(bytes(chain.evm.head.hash))
    assert heads[0] == heads[1]


def test_the_observer_hears_of_each_transaction_when_logged_and_when_done(
    tmp_path: Path,
) -> None:
    heard: list[tuple[str, bytes, int]] = []

    def note(stage: str, sent: bytes) -> None:
        heard.append((stage, sent, (tmp_path / LOG_NAME).read_bytes().count(sent)))

    with DevelopmentChain(tmp_path, on_transaction=note) as chain:
        chain.fund(STRANGER, Wei(1))
        (accepted, executed) = heard
        assert accepted == ("accepted", accepted[1], 1)
        assert executed == ("executed", accepted[1], 1)


# --- time


def test_the_head_follows_the_wall_clock_for_whoever_looks(
    chain: DevelopmentChain, clock: Clock
) -> None:
    clock.now += 1
    assert ask(chain, "eth_blockNumber") == "0x0"
    clock.now += 1
    assert ask(chain, "eth_getBlockByNumber", "latest", False)["timestamp"] == hex(clock.now)
    assert ask(chain, "eth_blockNumber") == "0x1"
    clock.now += 3_600
    assert ask(chain, "eth_blockNumber") == "0x2"
    assert ask(chain, "eth_getBlockByNumber", "pending", False)["number"] == "0x3"


def test_many_transactions_in_one_second_do_not_push_the_clock_ahead(
    chain: DevelopmentChain, clock: Clock
) -> None:
    for amount in range(1, 11):
        chain.fund(STRANGER, Wei(amount))
    assert chain.evm.head.timestamp == clock.now
    clock.now -= 60  # somebody set the clock back
    chain.fund(STRANGER, Wei(1))
    assert chain.evm.head.timestamp == clock.now + 60


# --- what it takes, what it refuses


def test_it_takes_each_kind_of_transaction_that_wallets_make(chain: DevelopmentChain) -> None:
    chain.fund(address_of(BUYER), Wei(ETHER))
    legacy = raw(0, type=None, maxFeePerGas=None, maxPriorityFeePerGas=None, gasPrice=2 * 10**9)
    access = raw(
        1, type=1, maxFeePerGas=None, maxPriorityFeePerGas=None, gasPrice=2 * 10**9,
        accessList=[{"address": STRANGER, "storageKeys": ["0x" + "00" * 32]}], gas=50_000,
    )  # fmt: skip
    creation = raw(2, to=b"", data=bytes.fromhex("600160015500"), gas=100_000)
    for kind, sent in enumerate((legacy, access, creation)):
        found = ask(chain, "eth_getTransactionByHash", "0x" + chain.send_raw(sent).hex())
        assert found["type"] == hex(kind)
        assert found["from"] == address_of(BUYER)
    receipt = ask(chain, "eth_getTransactionReceipt", found["hash"])
    assert receipt["to"] is None
    assert ask(chain, "eth_getStorageAt", receipt["contractAddress"], "0x1") == (
        "0x" + "00" * 31 + "01"
    )


def test_what_could_not_be_in_a_block_is_refused_and_not_logged(
    tmp_path: Path, clock: Clock
) -> None:
    with DevelopmentChain(tmp_path, clock=clock) as chain:
        chain.fund(address_of(BUYER), Wei(ETHER))
        chain.send_raw(raw(0))
        logged = (tmp_path / LOG_NAME).read_bytes()
        head = chain.evm.head
        with pytest.raises(NonceTooLowError):
            chain.send_raw(raw(0, value=2))
        with pytest.raises(UnfundedAccountError):
            chain.send_raw(raw(1, value=ETHER))
        refusals = {
            "nonce too high": raw(2),
            "invalid chain id": raw(1, chainId=5),
            "intrinsic gas": raw(1, gas=20_999),
            "lower than block's base fee": raw(1, maxFeePerGas=1),
            "gas limit": raw(1, gas=10**8, maxFeePerGas=10**9 - 1),
            "invalid transaction": raw(1)[:-1],
            "not canonical|invalid transaction": raw(1) + b"\0",
            "0 bytes": b"",
            "type not supported|invalid transaction": b"\x03" + raw(1)[1:],
        }
        for reason, sent in refusals.items():
            with pytest.raises(TransactionRefusedError, match=reason):
                chain.send_raw(sent)
        for amount in (0, 10**24 + 1):
            with pytest.raises(TransactionRefusedError, match="faucet"):
                chain.fund(STRANGER, Wei(amount))
        assert chain.evm.head == head
        assert (tmp_path / LOG_NAME).read_bytes() == logged


def test_a_transaction_that_fails_after_it_was_logged_fails_again_at_restart(
    tmp_path: Path, clock: Clock
) -> None:
    with DevelopmentChain(tmp_path, clock=clock) as chain:
        chain.fund(address_of(BUYER), Wei(ETHER))
        too_much_code = raw(0, to=b"", data=bytes(60_000), gas=3_000_000)
        with pytest.raises(TransactionRefusedError, match="EIP-3860"):
            chain.send_raw(too_much_code)
        assert too_much_code in (tmp_path / LOG_NAME).read_bytes()
        chain.send_raw(raw(0))
        before = picture(chain)
    with DevelopmentChain(tmp_path, clock=clock) as again:
        assert picture(again) == before


def test_threads_may_use_it_at_once(chain: DevelopmentChain) -> None:
    def give() -> None:
        for _ in range(5):
            fund_account(chain, STRANGER, Wei(1))
            ask(chain, "eth_getBalance", STRANGER)

    threads = [threading.Thread(target=give) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(ask(chain, "eth_getBalance", STRANGER), 16) == 30


def test_the_factory_of_public_chains_is_there(chain: DevelopmentChain) -> None:
    assert Address(FACTORY) == "0x4e59b44847b379578588920cA78FbF26c0B4956C"
    assert len(ask(chain, "eth_getCode", FACTORY)) == 2 + 2 * 69
