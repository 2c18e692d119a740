"""The JSON-RPC front: what clients of other make may send, and what it answers."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from web3 import HTTPProvider, Web3
from web3.types import TxParams

from node.chain import rpc_server
from node.chain.client import HttpProvider
from node.chain.rpc_methods import MAX_BATCH, RpcMethods
from node.chain.rpc_server import MAX_BODY, ChainServer, serve_chain
from node.chain.tester import DevelopmentChain
from node.protocol import bounded_json
from node.protocol.errors import LocalProtocolError
from node.protocol.signing import address_of
from tests.chain.market import BUYER, ETHER, SELLER, Clock

METHODS = (
    "web3_clientVersion", "net_version", "eth_chainId", "eth_blockNumber", "eth_syncing",
    "eth_getBlockByNumber", "eth_getBlockByHash", "eth_getBalance", "eth_getTransactionCount",
    "eth_getCode", "eth_getStorageAt", "eth_call", "eth_estimateGas", "eth_gasPrice",
    "eth_maxPriorityFeePerGas", "eth_feeHistory", "eth_sendRawTransaction", "eth_accounts",
    "eth_getTransactionByHash", "eth_getTransactionReceipt", "eth_getLogs", "pmnode_faucet",
)  # fmt: skip


@pytest.fixture
def server(chain: DevelopmentChain) -> Iterator[ChainServer]:
    with ChainServer(chain) as server:
        yield server


def post(server: ChainServer, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def code(answer: bytes) -> int:
    return int(json.loads(answer)["error"]["code"])


# --- as web3 uses it


def test_web3_can_send_call_estimate_and_search(server: ChainServer, clock: Clock) -> None:
    with_session = HTTPProvider(server.url, exception_retry_configuration=None)
    web3 = Web3(with_session)
    account = Account.from_key(BUYER)
    web3.manager.request_blocking("pmnode_faucet", [account.address, hex(ETHER)])  # type: ignore[arg-type]
    assert web3.eth.chain_id == int(web3.net.version)
    assert web3.eth.get_balance(account.address) == ETHER
    assert web3.eth.fee_history(2, "latest", [50])["baseFeePerGas"]
    assert web3.eth.gas_price > 0
    assert web3.is_connected()

    # init code that stores 1, logs topic 2, and leaves one byte of code
    code = bytes.fromhex("600160005560026000600 0a1600160 00f3".replace(" ", ""))
    transaction: TxParams = {
        "from": account.address, "data": code, "chainId": web3.eth.chain_id,
        "nonce": web3.eth.get_transaction_count(account.address), "value": web3.to_wei(0, "wei"),
        "maxFeePerGas": web3.eth.gas_price, "maxPriorityFeePerGas": web3.eth.max_priority_fee,
    }  # fmt: skip
    gas = web3.eth.estimate_gas(transaction)
    del transaction["from"]
    signed = account.sign_transaction(transaction | {"gas": gas})
    sent = web3.eth.send_raw_transaction(signed.raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(sent, timeout=5)
    assert receipt["status"] == 1
    assert gas * 0.9 < receipt["gasUsed"] <= gas
    assert web3.eth.get_transaction(sent)["from"] == account.address
    address = receipt["contractAddress"]
    assert address is not None
    assert web3.eth.get_code(address) == b"\0"
    assert web3.eth.get_storage_at(address, 0)[-1] == 1

    block = web3.eth.get_block(receipt["blockNumber"], True)
    assert web3.eth.get_block(block["hash"])["number"] == block["number"]
    everywhere: Any = {"fromBlock": 0, "toBlock": "latest"}
    two = "0x" + "00" * 31 + "02"
    for narrowing, expected in (
        ({}, 1),
        ({"address": address}, 1),
        ({"address": [account.address]}, 0),
        ({"topics": [two]}, 1),
        ({"topics": [None]}, 1),
        ({"topics": [[two, "0x" + "00" * 32]]}, 1),
        ({"topics": ["0x" + "00" * 32]}, 0),
        ({"topics": [two, two]}, 0),
        ({"toBlock": receipt["blockNumber"] - 1}, 0),
    ):
        assert len(web3.eth.get_logs(everywhere | narrowing)) == expected
    assert len(web3.eth.get_logs({"blockHash": block["hash"]})) == 1
    with_session._request_session_manager.session_cache.clear()


def test_a_call_sees_the_past_where_it_is_asked_to(server: ChainServer, chain: Any) -> None:
    ask = RpcMethods(chain).call
    buyer = address_of(BUYER)
    for _ in range(2):
        ask("pmnode_faucet", [buyer, "0x5"])
    assert ask("eth_getBalance", [buyer, "0x1"]) == "0x5"
    assert ask("eth_getBalance", [buyer, "latest"]) == "0xa"
    assert ask("eth_getBalance", [buyer, "earliest"]) == "0x0"
    assert ask("eth_getBlockByNumber", ["0x99", False]) is None
    assert ask("eth_getTransactionReceipt", ["0x" + "11" * 32]) is None


# --- as a stranger uses it


def test_malformed_requests_get_json_rpc_errors(server: ChainServer) -> None:
    def ask(body: bytes) -> int:
        status, answer = post(server, body)
        assert status == 200
        return code(answer)

    assert ask(b"") == -32700
    assert ask(b"{") == -32700
    assert ask(b"\xff\xfe") == -32700
    assert ask(b"[" * 200_000) == -32700
    assert ask(('["\u2200",' + "[" * 200_000).encode("utf-16-le")) == -32700
    assert ask(b"5") == -32600
    assert ask(b"[]") == -32600
    assert ask(b"[" + b"1," * MAX_BATCH + b"1]") == -32600
    assert ask(b'{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}') == -32600
    assert ask(b'{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}') == -32600
    assert ask(b'{"jsonrpc":"2.0","id":1,"method":"eth_sign","params":[]}') == -32601
    assert ask(b'{"jsonrpc":"2.0","id":1,"method":"eth_call","params":{}}') == -32602
    assert ask(b'{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":[]}') == -32602


def test_a_batch_is_answered_in_order_and_a_notification_not_at_all(server: ChainServer) -> None:
    one = {"jsonrpc": "2.0", "method": "eth_chainId"}
    _, answer = post(server, json.dumps([one | {"id": 7}, one, one | {"id": "x"}, 3]).encode())
    assert [part["id"] for part in json.loads(answer)] == [7, "x", None]
    assert post(server, json.dumps(one).encode()) == (200, b"")


def test_what_is_too_big_or_comes_from_a_web_page_is_turned_away(server: ChainServer) -> None:
    request = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'
    assert post(server, request)[0] == 200
    assert post(server, request, Origin="https://example.com")[0] == 403
    for length in (str(MAX_BODY + 1), "9" * 5_000, "-1", "x"):
        assert post(server, request, **{"Content-Length": length})[0] in (411, 413)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/")
    assert connection.getresponse().status == 501
    connection.close()
    with socket.create_connection(("127.0.0.1", server.port)) as rude:
        rude.sendall(b"\x16\x03\x01\x00garbage\r\n\r\n")
        assert b"400" in rude.recv(4096)
    assert post(server, request)[0] == 200


def test_too_many_connections_are_closed_and_room_is_made_again(
    chain: DevelopmentChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_server, "MAX_CONNECTIONS", 2)
    request = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'
    with ChainServer(chain) as server:
        address = ("127.0.0.1", server.port)
        with (
            socket.create_connection(address),
            socket.create_connection(address),
            socket.create_connection(address) as third,
        ):
            third.settimeout(5)
            assert third.recv(1) == b""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                assert post(server, request)[0] == 200
                break
            except (http.client.HTTPException, OSError):
                continue
        else:
            raise AssertionError("no room was made")


PARAMETER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=70)
    | st.integers(-1, 2**256).map(hex)
    | st.sampled_from(["latest", "pending", "earliest", "safe", "0x", "0x1_0", "0x 1", "0x\u0663"])
    | st.binary(max_size=33).map(lambda value: "0x" + value.hex())
    | st.just(address_of(BUYER)) | st.just("0x" + "22" * 32),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["from", "to", "data", "input", "value", "gas", "fromBlock", "toBlock",
                         "address", "topics", "blockHash", "blockNumber"]), inner, max_size=5),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from(METHODS), params=st.lists(PARAMETER, max_size=3))
def test_any_parameters_get_an_answer(method: str, params: list[object]) -> None:
    answer = METHODS_OF_A_CHAIN.answer(
        {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    )
    assert isinstance(answer, dict)
    assert ("result" in answer) != ("error" in answer)
    json.dumps(answer, allow_nan=False)


@settings(deadline=None)
@given(PARAMETER)
def test_any_request_gets_an_answer(request: object) -> None:
    METHODS_OF_A_CHAIN.answer(request)


METHODS_OF_A_CHAIN = RpcMethods(DevelopmentChain(clock=Clock()))


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_bounded_json_reads_what_json_reads(value: object) -> None:
    assert bounded_json.loads(json.dumps(value).encode()) == value
    assert bounded_json.loads(json.dumps(["[" * 100, '\\"[', value]).encode())[2] == value


# --- as an operator uses it


def test_it_binds_loopback_unless_told_otherwise(chain: DevelopmentChain) -> None:
    with pytest.raises(LocalProtocolError, match="no password"):
        ChainServer(chain, "0.0.0.0")
    ChainServer(chain, "localhost")._server.server_close()
    ChainServer(chain, "0.0.0.0", allow_remote=True)._server.server_close()


def test_it_serves_a_directory_until_it_is_stopped(tmp_path: Path) -> None:
    stop, urls = threading.Event(), list[str]()
    for expected in ("0x5", "0xa"):
        started = threading.Event()

        def ready(url: str, started: threading.Event = started) -> None:
            urls.append(url)
            started.set()

        stop.clear()
        thread = threading.Thread(
            target=serve_chain, args=(tmp_path,), kwargs={"stop": stop, "ready": ready}
        )
        thread.start()
        assert started.wait(5)
        provider = HttpProvider(urls[-1], timeout=5)
        ask: Any = provider.make_request
        ask("pmnode_faucet", [address_of(SELLER), "0x5"])
        assert ask("eth_getBalance", [address_of(SELLER)])["result"] == expected
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
        provider.close()


def test_a_call_over_loopback_takes_milliseconds_not_forty(server: ChainServer) -> None:
    provider = HttpProvider(server.url, timeout=5)
    ask: Any = provider.make_request
    ask("eth_chainId", [])
    quickest = 1.0
    for _ in range(20):
        begun = time.monotonic()
        ask("eth_chainId", [])
        quickest = min(quickest, time.monotonic() - begun)
    assert quickest < 0.02
    provider.close()
