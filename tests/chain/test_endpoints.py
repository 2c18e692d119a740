"""Endpoints that are down, slow, wrong or hostile: only named errors come out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from eth_abi.abi import encode
from eth_tester import EthereumTester
from eth_tester.exceptions import TransactionFailed
from eth_utils.crypto import keccak
from eth_utils.hexadecimal import encode_hex
from hypothesis import given, settings
from hypothesis import strategies as st
from web3 import EthereumTesterProvider, HTTPProvider, Web3
from web3.exceptions import Web3Exception
from web3.providers import BaseProvider

from contracts import load_artifact
from node.chain.check import escrow_artifact
from node.chain.client import MAX_ANSWER, ChainClient
from node.chain.codec import EscrowCodec
from node.chain.errors import (
    CallRefusedError,
    ChainAnswerError,
    ChainError,
    ChainUnavailableError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.in_process import InProcessProvider
from node.chain.port import EscrowState, Fees, Fund, Reveal, Withdraw
from node.chain.rpc_server import ChainServer
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain
from node.chain.transactions import Wallet
from node.chain.web3_escrow import Web3Escrow, open_escrow
from node.protocol.eip712 import Domain
from node.protocol.errors import LocalProtocolError
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, Wei
from tests.chain.market import BROKER, BUYER, SECRET, SELLER, Clock, Market, build, do

DOMAIN = Domain(chain_id=1, escrow=address_of(SELLER))
FEES = Fees(max_fee=Wei(100), tip=Wei(1))
ANYTHING = Digest(b"\x11" * 32)


class Scripted(BaseProvider):
    """Answers each method from a table: a JSON-RPC answer, or an exception to raise."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers = answers

    def make_request(self, method: Any, params: Any) -> Any:
        answer = self.answers[method]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def escrow_on(provider: BaseProvider | str, timeout: float = 0.3) -> Web3Escrow:
    """Return an escrow that has not looked at the chain."""
    client = ChainClient(provider, timeout)
    codec = EscrowCodec(escrow_artifact().abi)
    return Web3Escrow(client, Wallet(BUYER, 1), DOMAIN, codec, 1)


def result(value: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 1, "result": value}


def refusal(message: str, data: object = None, code: int = -32000) -> dict[str, object]:
    error: dict[str, object] = {"code": code, "message": message}
    return {"jsonrpc": "2.0", "id": 1, "error": error | ({} if data is None else {"data": data})}


@contextlib.contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection at a time with `talk`, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()
    talking: list[socket.socket] = []

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                talking[:] = [connection]
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        for one in (listener, *talking):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def http(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body


# --- the transport


def test_a_closed_port_is_an_unavailable_chain() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with pytest.raises(ChainUnavailableError, match="refused"):
        escrow_on(f"http://127.0.0.1:{port}").head()
    with pytest.raises(ChainUnavailableError):
        open_escrow(f"http://127.0.0.1:{port}", BUYER, DOMAIN)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", http(b'{"a', length=50)])
def test_an_endpoint_that_falls_silent_is_given_up_at_the_timeout(said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(said)
        while connection.recv(4096):
            continue

    with listening(talk) as url:
        begun = time.monotonic()
        with pytest.raises(ChainUnavailableError):
            escrow_on(url, timeout=0.2).head()
        assert time.monotonic() - begun < 2


def test_an_endpoint_that_trickles_meets_the_same_deadline() -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(http(b"", length=10_000))
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.02)

    with listening(talk) as url:
        begun = time.monotonic()
        with pytest.raises(ChainUnavailableError, match="no whole answer"):
            escrow_on(url, timeout=0.2).head()
        assert time.monotonic() - begun < 1


def test_an_endless_answer_is_cut_off() -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(http(b"", length=10 * MAX_ANSWER))
        while True:
            connection.sendall(bytes(1 << 20))

    with listening(talk) as url, pytest.raises(ChainAnswerError, match="more than"):
        escrow_on(url, timeout=5.0).head()


@pytest.mark.parametrize(
    "said",
    [
        http(b"<html>502</html>", "502 Bad Gateway"),
        http(b"", "301 Moved"),
        http(b"\xff\xfe"),
        http(b"[" * 100_000),
        http(b"9" * 10_000),
        http(b"{}"),
        http(b"null"),
        http(b'"ok"'),
        http(b'{"result": true}'),
        http(b'{"error": "no"}'),
        http(b'{"error": {"code": [], "message": 5, "data": {"data": 7}}}'),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"",
    ],
)
def test_an_answer_that_is_none_is_named_so(said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with listening(talk) as url, pytest.raises(ChainUnavailableError):
        escrow_on(url, timeout=5.0).head()


def test_an_endpoint_that_comes_back_is_used_again(chain: DevelopmentChain, clock: Clock) -> None:
    with ChainServer(chain) as server:
        market = build(chain, server.url, clock)
        escrow = market.escrow(BUYER)
        head = escrow.head()
    with pytest.raises(ChainUnavailableError):
        escrow.head()
    with ChainServer(chain, port=server.port):
        assert escrow.head() == head
        escrow.close()
        market.client.close()


def test_an_endpoint_is_an_http_url() -> None:
    for url in ("ftp://localhost", "localhost:8545", "http://", "file:///etc/passwd"):
        with pytest.raises(LocalProtocolError, match="http or https"):
            ChainClient(url)


# --- hostile answers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80)
    | st.sampled_from(["0x", "0x0", "0x1", "0xzz", "0x" + "f" * 64, "0x" + "11" * 32, "-0x1"])
    | st.integers(0, 2**256).map(hex),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["number", "timestamp", "blockNumber", "logIndex", "address", "topics", "data",
             "transactionHash", "status", "gasUsed", "effectiveGasPrice", "baseFeePerGas",
             "code", "message", "from", "to", "value", "gas", "input"]
        ), inner, max_size=8),
    max_leaves=12,
)  # fmt: skip
ANSWER = st.one_of(
    JSON,
    JSON.map(result),
    st.fixed_dictionaries({"error": JSON}),
    st.builds(refusal, st.text(), JSON),
)


class Fuzzed(BaseProvider):
    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self._draw = draw

    def make_request(self, method: Any, params: Any) -> Any:
        return self._draw()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_an_endpoint_answers_only_named_errors_come_out(data: st.DataObject) -> None:
    escrow = escrow_on(Fuzzed(lambda: data.draw(ANSWER)))
    calls: list[Callable[[], object]] = [
        escrow.head,
        lambda: escrow.trade_state(ANYTHING),
        lambda: escrow.credit(escrow.account),
        lambda: escrow.balance(escrow.account),
        escrow.next_nonce,
        lambda: escrow.events(0, 5_000),
        lambda: escrow.sign(Withdraw(escrow.account), 0),
        lambda: escrow.broadcast(b"\x02"),
        lambda: escrow.receipt(ANYTHING),
        lambda: open_escrow(Fuzzed(lambda: data.draw(ANSWER)), BUYER, DOMAIN),
    ]
    try:
        data.draw(st.sampled_from(calls))()
    except ChainError:
        return


def test_a_receipt_or_an_event_that_was_not_asked_for_is_refused(
    chain: DevelopmentChain, clock: Clock
) -> None:
    market = build(chain, InProcessProvider(chain), clock)
    buyer = market.escrow(BUYER)
    quote, signature = market.quote()
    funded = do(buyer, Fund(quote, signature))
    honest = InProcessProvider(chain)
    block = hex(funded.block)
    logs = market.client.ask("eth_getLogs", {"fromBlock": block, "toBlock": block})

    class Lying(BaseProvider):
        def make_request(self, method: Any, params: Any) -> Any:
            answers = {"eth_getLogs": result(lie), "eth_getTransactionReceipt": result(receipt)}
            return answers.get(method) or honest.make_request(method, params)

    lies = {
        "address": address_of(SELLER),
        "blockNumber": hex(funded.block + 5),
        "topics": logs[0]["topics"][:3],
        "data": logs[0]["data"] + "00",
        "logIndex": -1,
        "transactionHash": "0x00",
    }
    receipt: Any = None
    lie = logs
    escrow = open_escrow(Lying(), BUYER, market.domain)
    assert len(escrow.events(0, funded.block)) == 1
    for name, value in lies.items():
        lie = [logs[0] | {name: value}]
        with pytest.raises(ChainAnswerError):
            escrow.events(0, funded.block)
    topics, last = logs[0]["topics"][:3], logs[0]["topics"][3][2:]
    lie = [logs[0] | {"topics": topics, "data": "0x" + last + logs[0]["data"][2:]}]
    with pytest.raises(ChainAnswerError, match="topics"):
        escrow.events(0, funded.block)
    receipt = market.client.ask("eth_getTransactionReceipt", logs[0]["transactionHash"])
    assert escrow.receipt(Digest(bytes.fromhex(receipt["transactionHash"][2:]))) is not None
    with pytest.raises(ChainAnswerError, match="got another"):
        escrow.receipt(ANYTHING)


# --- what endpoints say when they refuse

WRONG_STATE = encode_hex(
    keccak(text="WrongState(bytes32,uint8)")[:4] + encode(["bytes32", "uint8"], [b"\7" * 32, 3])
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (refusal("nonce too low: next nonce 4, tx nonce 3"), NonceTooLowError),
        (refusal("insufficient funds for gas * price + value: balance 0"), UnfundedAccountError),
        (refusal("Sender does not have enough balance to cover"), UnfundedAccountError),
        (refusal("txpool is full"), ChainUnavailableError),
        (refusal("Too Many Requests", code=429), ChainUnavailableError),
        (refusal("transaction underpriced"), TransactionRefusedError),
        (TransactionFailed(f"execution reverted: {bytes.fromhex(WRONG_STATE[2:])!r}"),
         CallRefusedError),
        (OSError("network is unreachable"), ChainUnavailableError),
        (requests.ConnectionError("down"), ChainUnavailableError),
        (json.JSONDecodeError("Expecting value", "", 0), ChainAnswerError),
        (Web3Exception("odd"), TransactionRefusedError),
    ],
)  # fmt: skip
def test_each_refusal_has_its_name(said: Any, expected: type[ChainError]) -> None:
    escrow = escrow_on(
        Scripted(eth_sendRawTransaction=said, eth_getTransactionReceipt=result(None))
    )
    with pytest.raises(expected) as caught:
        escrow.broadcast(b"\x02")
    assert type(caught.value) in (expected, *ChainUnavailableError.__subclasses__())


@pytest.mark.parametrize(
    "said",
    [
        refusal("execution reverted", WRONG_STATE, 3),
        refusal("execution reverted", "Reverted " + WRONG_STATE),
        refusal("VM Exception", {"data": WRONG_STATE}),
        refusal(f"execution reverted: {bytes.fromhex(WRONG_STATE[2:])!r}"),
        TransactionFailed(f"execution reverted: {bytes.fromhex(WRONG_STATE[2:])!r}"),
    ],
)
def test_a_chain_that_refuses_a_revert_at_once_gives_the_same_name(said: Any) -> None:
    escrow = escrow_on(Scripted(eth_sendRawTransaction=said))
    with pytest.raises(CallRefusedError) as caught:
        escrow.broadcast(b"\x02")
    assert caught.value.reason == "WrongState"
    assert caught.value.values == {"tradeId": b"\7" * 32, "state": 3}
    assert caught.value.detail == f"tradeId = 0x{32 * '07'}, state = 3"


@pytest.mark.parametrize(
    "said", [refusal("already known"), refusal("ALREADY_EXISTS: already known")]
)
def test_a_transaction_that_is_there_already_is_fine(said: Any) -> None:
    escrow_on(Scripted(eth_sendRawTransaction=said)).broadcast(b"\x02")


def test_a_mined_transaction_is_fine_although_its_nonce_is_too_low() -> None:
    mined = Scripted(
        eth_sendRawTransaction=refusal("nonce too low"), eth_getTransactionReceipt=result({})
    )
    escrow_on(mined).broadcast(b"\x02")


# --- other people's providers


def test_web3s_own_http_provider_serves_as_well(chain: DevelopmentChain, clock: Clock) -> None:
    with ChainServer(chain) as server:
        session = requests.Session()
        provider = HTTPProvider(server.url, session=session, exception_retry_configuration=None)
        market = build(chain, provider, clock)
        quote, signature = market.quote()
        assert do(market.escrow(BUYER), Fund(quote, signature)).succeeded
        assert Web3(provider).eth.get_block("latest")["number"] == chain.evm.head.block_number
        session.close()


def test_eth_testers_own_provider_serves_as_well() -> None:
    provider = EthereumTesterProvider(EthereumTester())
    web3 = Web3(provider)

    def deploy(name: str, types: tuple[str, ...] = (), *values: object) -> str:
        data = load_artifact(name).bytecode + encode(types, values)
        sent = web3.eth.send_transaction({"data": data, "gas": 8_000_000})
        address = web3.eth.get_transaction_receipt(sent)["contractAddress"]
        assert address is not None
        return address

    registry, court = deploy("BrokerRegistry", ("uint256",), 1), deploy("DeliveryCourt")
    address = deploy(
        "ParameterEscrow",
        ("address", "address", "uint256", "address[]"),
        *(registry, court, 1, [address_of(BROKER)]),
    )
    for key in (BUYER, SELLER, BROKER):
        web3.eth.send_transaction({"to": address_of(key), "value": web3.to_wei(10, "ether")})
    clock = Clock()
    clock.now = web3.eth.get_block("latest")["timestamp"]
    domain = Domain(chain_id=web3.eth.chain_id, escrow=Address(address))
    market = Market(None, provider, clock, ChainClient(provider), domain)  # type: ignore[arg-type]
    assert take_seat(market.client, BROKER, domain, bond=Wei(1)) == 3
    buyer, seller = market.escrow(BUYER), market.escrow(SELLER)
    quote, signature = market.quote()

    assert do(buyer, Fund(quote, signature)).succeeded
    assert do(seller, Reveal(quote, SECRET)).succeeded
    assert buyer.trade_state(quote.trade_id).state is EscrowState.REVEALED
    assert len(buyer.events(0, buyer.head().number)) == 2
    again = do(seller, Reveal(dataclasses.replace(quote, grace=1), SECRET))
    assert (again.succeeded, again.revert) == (False, "WrongState")
    poor = market.escrow(b"\x09" * 32)
    with pytest.raises(UnfundedAccountError):
        poor.broadcast(poor.sign(Withdraw(poor.account), 0).raw)
    with pytest.raises(NonceTooLowError):
        buyer.broadcast(buyer.sign(Withdraw(buyer.account), 0).raw)
