"""One endpoint, synchronous, any web3 provider; the place where foreign exceptions end.

| raised by                              | becomes                                          |
|----------------------------------------|--------------------------------------------------|
| no connection                          | `ChainUnavailableError`                          |
| sockets, urllib3, requests, timeouts   | `AnswerLostError`: it may have arrived           |
| bad JSON, an answer that is no answer  | `ChainAnswerError`                               |
| a JSON-RPC error object, web3, eth-tester | `EndpointRefusedError`, which the adapter names    |

`HttpProvider` bounds what web3's own does not: the whole time of a call (an endpoint that
sends a byte a second is as bad as one that sends nothing) and the size of an answer. It
retries nothing: the callers' loops do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import requests
import urllib3
from eth_utils.exceptions import ValidationError as EvmValidationError
from web3 import Web3
from web3.exceptions import Web3Exception
from web3.providers import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from node.chain import answers
from node.chain.errors import AnswerLostError, ChainAnswerError, ChainUnavailableError
from node.chain.port import DEVELOPMENT_CHAIN_ID, DEVELOPMENT_CLIENT
from node.chain.reverts import revert_data
from node.protocol import bounded_json
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Address, Digest, Wei

DEFAULT_TIMEOUT: Final = 10.0
MAX_ANSWER: Final = 16 << 20
_CHUNK: Final = 1 << 16
_POOL: Final = 32

_UNREACHABLE: Final = (OSError, urllib3.exceptions.HTTPError, requests.RequestException)
_NO_CONNECTION: Final = (
    ConnectionRefusedError,
    requests.ConnectTimeout,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
)
_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError)


class EndpointRefusedError(ChainUnavailableError):
    """The endpoint answered with an error; where nobody knows better, nothing is known."""

    def __init__(self, message: str, data: bytes | None = None) -> None:
        super().__init__(f"the endpoint refused: {message[:300]}")
        self.message = message
        self.data = data
        """What a reverted call said, where the endpoint passes it on."""


def _never_left(error: BaseException) -> bool:
    """Whether no connection was made, so that nothing of the question can have arrived."""
    seen: set[int] = set()
    found: object = error
    while isinstance(found, BaseException) and id(found) not in seen:
        if isinstance(found, _NO_CONNECTION):
            return True
        seen.add(id(found))
        inner = [part for part in found.args if isinstance(part, BaseException)]
        found = getattr(found, "reason", None) or found.__cause__ or (inner[0] if inner else None)
    return False


class HttpProvider(BaseProvider):
    """JSON-RPC over HTTP with a deadline and a cap; safe to use from any thread."""

    def __init__(self, url: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Raises `LocalProtocolError` unless the URL is http or https."""
        super().__init__()
        parsed = urllib3.util.parse_url(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise LocalProtocolError(f"a chain endpoint is an http or https URL, got {url!r}")
        self._url = url
        self._timeout = timeout
        self._pool = urllib3.PoolManager(maxsize=_POOL, retries=False)
        headers = {"Content-Type": "application/json"}
        if parsed.auth:
            headers |= urllib3.util.make_headers(basic_auth=parsed.auth)
        self._headers = headers

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Return whatever JSON the endpoint answered."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        deadline = time.monotonic() + self._timeout
        response = self._pool.request(
            "POST",
            self._url,
            body=json.dumps(request).encode(),
            headers=self._headers,
            timeout=urllib3.Timeout(total=self._timeout),
            preload_content=False,
            redirect=False,
        )
        try:
            body = bytearray()
            # read1: what has arrived, so that a trickle meets the deadline too
            while chunk := response.read1(_CHUNK, decode_content=False):
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise ValueError(f"an answer of more than {MAX_ANSWER} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole answer within {self._timeout} s")
        except BaseException:
            response.close()  # half an answer is left on it: not for the next call
            raise
        response.release_conn()
        return cast(RPCResponse, bounded_json.loads(bytes(body)))

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Say whether the endpoint answers at all."""
        try:
            return "result" in self.make_request(RPCEndpoint("eth_chainId"), [])
        except (*_UNREACHABLE, *_MALFORMED):
            return False

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.clear()


Endpoint = str | BaseProvider
"""A URL, or any web3 provider; `in_process.InProcessProvider` for a chain of this process."""


class ChainClient:
    """Asks one endpoint; safe to use from any thread if its provider is."""

    def __init__(self, endpoint: Endpoint, timeout: float = DEFAULT_TIMEOUT) -> None:
        """`timeout` bounds each call, for an endpoint given by URL."""
        provider = HttpProvider(endpoint, timeout) if isinstance(endpoint, str) else endpoint
        self.provider = provider
        # no middleware of web3's own: answers are read by `answers`, as they come
        self._web3 = Web3(provider, middleware=[])

    def ask(self, method: str, *params: object) -> Any:
        """Return a method's result, of whatever shape.

        Raises `ChainUnavailableError`, of which an `EndpointRefusedError` is the endpoint's own
        error answer and a `ChainAnswerError` is nonsense.
        """
        call = self.provider.request_func(self._web3, self._web3.middleware_onion)
        try:
            response = call(RPCEndpoint(method), params)
        except _refusing() as error:
            message = str(error)
            raise EndpointRefusedError(message, revert_data(message)) from error
        except _UNREACHABLE as error:
            kind = ChainUnavailableError if _never_left(error) else AnswerLostError
            raise kind(f"{method}: {_brief(error)}") from error
        except _MALFORMED as error:
            raise ChainAnswerError(f"{method}: {_brief(error)}") from error
        return _result(response, method)

    def chain_id(self) -> int:
        """Return the chain's id."""
        return answers.quantity(self.ask("eth_chainId"), "eth_chainId")

    def code(self, account: Address) -> bytes:
        """Return the code at an address, empty where there is none."""
        return answers.data(self.ask("eth_getCode", account, "latest"), "eth_getCode")

    def view(self, contract: Address, data: bytes) -> bytes:
        """Return what a contract answers to a call that changes nothing."""
        call = {"to": contract, "data": "0x" + data.hex()}
        return answers.data(self.ask("eth_call", call, "latest"), "eth_call")

    def nonce(self, account: Address) -> int:
        """Return the account's next nonce, pending transactions counted."""
        answer = self.ask("eth_getTransactionCount", account, "pending")
        return answers.quantity(answer, "eth_getTransactionCount")

    def request_funds(self, account: Address, amount: Wei) -> Digest:
        """Ask a development chain's faucet; returns the transaction."""
        return answers.digest(self.ask("pmnode_faucet", account, hex(amount)), "pmnode_faucet")

    def close(self) -> None:
        """Close idle connections, where there are any."""
        if isinstance(self.provider, HttpProvider):
            self.provider.close()


def _refusing() -> tuple[type[Exception], ...]:
    """Return what providers raise for an error answer.

    eth-tester is not imported for this: it brings an EVM with it, which a node on a remote
    chain does not need. Where nobody has imported it, nobody raises its errors.
    """
    tester: Any = sys.modules.get("eth_tester.exceptions")
    if tester is None:
        return (EvmValidationError, Web3Exception)
    return (
        EvmValidationError, Web3Exception, tester.TransactionFailed, tester.ValidationError,
    )  # fmt: skip


def is_development_chain(client: ChainClient) -> bool:
    """Return whether this is `pm-node chain`, whose money is nobody's.

    Its chain id is asked for as well: what is signed for it is worth nothing elsewhere, so an
    endpoint that only says it were one cannot have real money moved carelessly. Raises
    `ChainUnavailableError` while that cannot be known.
    """
    if client.chain_id() != DEVELOPMENT_CHAIN_ID:
        return False
    try:
        return str(client.ask("web3_clientVersion")).startswith(DEVELOPMENT_CLIENT)
    except EndpointRefusedError:
        return False


def _result(response: object, method: str) -> Any:
    if not isinstance(response, Mapping):
        raise ChainAnswerError(f"{method}: the endpoint answered {repr(response)[:80]}")
    error = response.get("error")
    if error is not None:
        raise _refusal(error)
    if "result" not in response:
        raise ChainAnswerError(f"{method}: neither a result nor an error")
    return response["result"]


def _refusal(error: object) -> EndpointRefusedError:
    """Read a JSON-RPC error object, or whatever is in its place."""
    if not isinstance(error, Mapping):
        return EndpointRefusedError(repr(error)[:300])
    message = str(error.get("message", ""))[:1_000]
    for candidate in _data_candidates(error.get("data")):
        try:
            return EndpointRefusedError(message, answers.data(candidate, "error data"))
        except ChainAnswerError:
            continue
    return EndpointRefusedError(message, revert_data(message))


def _data_candidates(data: object) -> Sequence[object]:
    """Return where endpoints put revert data: plain, in ``data``, or after ``Reverted ``."""
    if isinstance(data, str):
        return (data, data.removeprefix("Reverted "))
    return (data.get("data"),) if isinstance(data, Mapping) else ()


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
