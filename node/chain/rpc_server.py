"""The development chain as a process of its own: JSON-RPC over HTTP on loopback.

Threads of the standard library, one a connection, kept alive. Nagle's algorithm is off and
answers are written at once: with either wrong a call costs 40 ms. Sizes, connections and
idle time are bounded; malformed input gets a JSON-RPC error. There is no password, so it
binds loopback unless told otherwise, and it refuses what a web page could send.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from node.chain.rpc_methods import INVALID_REQUEST, PARSE_ERROR, RpcMethods, error_answer
from node.chain.tester import DevelopmentChain, Observer, wall_clock
from node.protocol import bounded_json
from node.protocol.errors import LocalProtocolError
from node.protocol.types import UnixTime

MAX_BODY: Final = 1 << 20
MAX_CONNECTIONS: Final = 512
IDLE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "pm-node-development-chain"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = IDLE_SECONDS
    server: _Server

    def do_POST(self) -> None:
        """Answer one JSON-RPC request or batch."""
        if "Origin" in self.headers:  # a web page has no business here
            self._send(HTTPStatus.FORBIDDEN, error_answer(None, INVALID_REQUEST, "no browsers"))
            return
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self.close_connection = True
            answer = error_answer(None, INVALID_REQUEST, "Content-Length is required")
            self._send(HTTPStatus.LENGTH_REQUIRED, answer)
            return
        if len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
            self.close_connection = True
            answer = error_answer(None, INVALID_REQUEST, f"at most {MAX_BODY} bytes")
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, answer)
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return
        try:
            request = bounded_json.loads(body)
        except ValueError as error:
            detail = str(error)[:200]
            self._send(HTTPStatus.OK, error_answer(None, PARSE_ERROR, f"not JSON: {detail}"))
            return
        self._send(HTTPStatus.OK, self.server.methods.answer(request))

    def _send(self, status: HTTPStatus, answer: object) -> None:
        body = b"" if answer is None else json.dumps(answer, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has gone away
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Say nothing: calls are not events."""


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can end them."""

    request_queue_size = 128
    daemon_threads = False
    block_on_close = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], methods: RpcMethods, family: int) -> None:
        self.methods = methods
        self.address_family = family
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            accepted = len(self._open) < MAX_CONNECTIONS
            if accepted:
                self._open.add(request)
        if accepted:
            super().process_request(request, client_address)
        else:
            super().shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        with self._guard:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # it has just ended by itself
                    continue


class ChainServer:
    """A chain served from a thread of this process; a context manager.

    `url` is known from construction on, also for port 0.
    """

    def __init__(
        self,
        chain: DevelopmentChain,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        allow_remote: bool = False,
    ) -> None:
        """Bind.

        Raises `LocalProtocolError` for an address that is not loopback, unless
        `allow_remote`, and `OSError` if the port is taken.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        family, address = found[0], str(found[4][0])
        if not allow_remote and not ipaddress.ip_address(address).is_loopback:
            raise LocalProtocolError(
                f"the development chain has no password: refusing to listen on {host}"
            )
        self._server = _Server((address, port), RpcMethods(chain), family)
        self.port = int(self._server.server_address[1])
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="chain-rpc"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()


def serve_chain(
    directory: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    stop: threading.Event,
    ready: Callable[[str], None] | None = None,
    allow_remote: bool = False,
    clock: Callable[[], UnixTime] = wall_clock,
    block_seconds: int = 2,
    on_transaction: Observer | None = None,
) -> None:
    """Serve the chain kept in `directory` until `stop` is set; `ready` is told the URL.

    Raises `ChainLogError` if the log is damaged or in use, `LocalProtocolError` for an
    address that is not loopback, and `OSError` if the port is taken.
    """
    with (
        DevelopmentChain(
            directory, clock=clock, block_seconds=block_seconds, on_transaction=on_transaction
        ) as chain,
        ChainServer(chain, host, port, allow_remote=allow_remote) as server,
    ):
        if ready is not None:
            ready(server.url)
        stop.wait()
