"""A web3 provider for a development chain of this very process."""

from __future__ import annotations

from typing import Any, cast

from web3.providers import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from node.chain.rpc_methods import RpcMethods
from node.chain.tester import DevelopmentChain


class InProcessProvider(BaseProvider):
    """The same methods and the same answers as over HTTP, without the wire."""

    def __init__(self, chain: DevelopmentChain) -> None:
        super().__init__()
        self._methods = RpcMethods(chain)

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Answer as the server would."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        return cast(RPCResponse, self._methods.answer(request))

    def is_connected(self, show_traceback: bool = False) -> bool:
        """It is always there."""
        return True
