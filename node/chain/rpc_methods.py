"""The development chain in Ethereum's JSON-RPC: what web3 and ethers ask of a node.

`RpcMethods.answer` is total: any Python value that JSON can hold gives a JSON-RPC 2.0
answer. Answers have the shapes of the execution-apis specification, quantities as shortest
hex, so that the same bytes serve the in-process provider and the HTTP server. One method is
our own: ``pmnode_faucet(address, wei)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from eth.abc import BlockHeaderAPI
from eth.exceptions import PyEVMError
from eth_typing import Address as RawAddress
from eth_utils.exceptions import ValidationError

from node.chain.errors import ChainError, NonceTooLowError, UnfundedAccountError
from node.chain.evm import GAS_LIMIT, MAX_RAW_BYTES, Message, Mined, Reverted, base_fee_of
from node.chain.port import DEVELOPMENT_CLIENT
from node.chain.rpc_shapes import block_json, hexed, log_json, quantity, receipt_json, tx_json
from node.chain.tester import DevelopmentChain
from node.protocol.schema import checksummed
from node.protocol.types import Wei

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
SERVER_ERROR: Final = -32000
LIMIT_EXCEEDED: Final = -32005
EXECUTION_REVERTED: Final = 3

MAX_BATCH: Final = 100
MAX_LOGS: Final = 10_000
_MAX_TOPICS: Final = 4
_MAX_FEE_HISTORY: Final = 1_024
_TIP: Final = 10**9
_MAX_QUANTITY: Final = 2 + 64
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]+")
_DATA: Final = re.compile(r"0x([0-9a-fA-F]{2})*")


class RpcError(Exception):
    """A JSON-RPC error object on its way out."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


Params = Sequence[Any]


class RpcMethods:
    """Answers JSON-RPC requests from one chain; safe to use from any thread."""

    def __init__(self, chain: DevelopmentChain) -> None:
        self._chain = chain
        self._methods: Mapping[str, Callable[[Params], Any]] = {
            "web3_clientVersion": lambda _: DEVELOPMENT_CLIENT + "1",
            "net_version": lambda _: str(chain.evm.chain_id),
            "net_listening": lambda _: True,
            "eth_chainId": lambda _: quantity(chain.evm.chain_id),
            "eth_syncing": lambda _: False,
            "eth_accounts": lambda _: [],
            "eth_blockNumber": self._block_number,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBalance": self._balance,
            "eth_getTransactionCount": self._nonce,
            "eth_getCode": self._code,
            "eth_getStorageAt": self._storage,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_gasPrice": lambda _: quantity(self._base_fee() + _TIP),
            "eth_maxPriorityFeePerGas": lambda _: quantity(_TIP),
            "eth_feeHistory": self._fee_history,
            "eth_sendRawTransaction": self._send_raw,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getLogs": self._logs,
            "pmnode_faucet": self._faucet,
        }

    # --- JSON-RPC 2.0

    def answer(self, request: object) -> dict[str, Any] | list[dict[str, Any]] | None:
        """Answer one request or a batch; None where only notifications came."""
        if not isinstance(request, list):
            return self._answer_one(request)
        if not 0 < len(request) <= MAX_BATCH:
            return error_answer(None, INVALID_REQUEST, f"a batch holds 1 to {MAX_BATCH} requests")
        answers = [answer for one in request if (answer := self._answer_one(one)) is not None]
        return answers or None

    def _answer_one(self, request: object) -> dict[str, Any] | None:
        if not isinstance(request, dict):
            return error_answer(None, INVALID_REQUEST, "a request is an object")
        identity = request.get("id")
        method, params = request.get("method"), request.get("params", [])
        if isinstance(identity, bool) or not isinstance(identity, int | float | str | None):
            return error_answer(None, INVALID_REQUEST, "an id is a number, a string or null")
        if request.get("jsonrpc") != "2.0" or not isinstance(method, str):
            return error_answer(identity, INVALID_REQUEST, "not a JSON-RPC 2.0 request")
        if not isinstance(params, list):
            answer = error_answer(identity, INVALID_PARAMS, "params is an array")
        else:
            answer = self._result(identity, method, params)
        return answer if "id" in request else None

    def _result(self, identity: object, method: str, params: Params) -> dict[str, Any]:
        try:
            return {"jsonrpc": "2.0", "id": identity, "result": self.call(method, params)}
        except RpcError as error:
            return error_answer(identity, error.code, error.message, error.data)

    def call(self, method: str, params: Params) -> Any:
        """Return one method's result. Raises `RpcError`."""
        handler = self._methods.get(method)
        if handler is None:
            raise RpcError(METHOD_NOT_FOUND, f"the method {method[:64]} does not exist")
        try:
            with self._chain.lock:
                return handler(params)
        except Reverted as error:
            if error.data:
                message = "execution reverted"
            else:
                message = f"execution failed: {error}"
            raise RpcError(EXECUTION_REVERTED, message, hexed(error.data)) from error
        except (NonceTooLowError, UnfundedAccountError, ChainError) as error:
            raise RpcError(SERVER_ERROR, str(error)) from error
        except (PyEVMError, ValidationError) as error:
            raise RpcError(INTERNAL_ERROR, f"{type(error).__name__}: {error}") from error

    # --- blocks

    def _block_number(self, _: Params) -> str:
        self._chain.follow_clock()
        return quantity(self._chain.evm.head.block_number)

    def _block_by_number(self, params: Params) -> dict[str, Any] | None:
        tag = _at(params, 0)
        if tag == "latest":
            self._chain.follow_clock()
        header = self._header_or_none(tag)
        return None if header is None else self._block(header, params, pending=tag == "pending")

    def _block_by_hash(self, params: Params) -> dict[str, Any] | None:
        header = self._chain.evm.header_by_hash(_digest(_at(params, 0)))
        return None if header is None else self._block(header, params)

    def _block(
        self, header: BlockHeaderAPI, params: Params, *, pending: bool = False
    ) -> dict[str, Any]:
        full = len(params) > 1 and params[1] is True
        mined = None if pending else self._chain.mined_in(header.block_number)
        return block_json(header, mined, full=full, pending=pending)

    def _header_or_none(self, tag: object) -> BlockHeaderAPI | None:
        evm = self._chain.evm
        match tag:
            case "latest" | "safe" | "finalized" | None:
                return evm.head
            case "earliest":
                return evm.header(0)
            case "pending":
                return self._chain.pending_header()
            case {"blockHash": block_hash}:
                return evm.header_by_hash(_digest(block_hash))
            case {"blockNumber": number}:
                return evm.header(_number(number))
            case _:
                return evm.header(_number(tag))

    def _header(self, params: Params, at: int) -> BlockHeaderAPI:
        tag = params[at] if len(params) > at else "latest"
        header = self._header_or_none(tag)
        if header is None:
            raise RpcError(SERVER_ERROR, f"block {tag} not found")
        return header

    # --- state

    def _balance(self, params: Params) -> str:
        state = self._chain.evm.state(self._header(params, 1))
        return quantity(state.get_balance(_account(_at(params, 0))))

    def _nonce(self, params: Params) -> str:
        state = self._chain.evm.state(self._header(params, 1))
        return quantity(state.get_nonce(_account(_at(params, 0))))

    def _code(self, params: Params) -> str:
        state = self._chain.evm.state(self._header(params, 1))
        return hexed(state.get_code(_account(_at(params, 0))))

    def _storage(self, params: Params) -> str:
        state = self._chain.evm.state(self._header(params, 2))
        slot = _number(_at(params, 1))
        return hexed(state.get_storage(_account(_at(params, 0)), slot).to_bytes(32, "big"))

    def _call(self, params: Params) -> str:
        message = _message(_at(params, 0))
        return hexed(self._chain.evm.simulate(message, self._header(params, 1)))

    def _estimate(self, params: Params) -> str:
        message = _message(_at(params, 0))
        return quantity(self._chain.evm.estimate_gas(message, self._chain.pending_header()))

    def _base_fee(self) -> int:
        return base_fee_of(self._chain.pending_header())

    def _fee_history(self, params: Params) -> dict[str, Any]:
        count = params[0] if type(_at(params, 0)) is int else _number(params[0])
        newest = self._header(params, 1)
        percentiles = params[2] if len(params) > 2 else None
        if percentiles is not None and not isinstance(percentiles, list):
            raise RpcError(INVALID_PARAMS, "reward percentiles are an array")
        last = min(newest.block_number, self._chain.evm.head.block_number)
        count = max(0, min(count, last + 1, _MAX_FEE_HISTORY))
        headers = [
            header
            for number in range(last + 1 - count, last + 1)
            if (header := self._chain.evm.header(number)) is not None
        ]
        fees = [base_fee_of(header) for header in headers] + [self._base_fee()]
        history: dict[str, Any] = {
            "oldestBlock": quantity(last + 1 - count),
            "baseFeePerGas": [quantity(fee) for fee in fees],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        if percentiles:
            history["reward"] = [[quantity(_TIP)] * len(percentiles)] * len(headers)
        return history

    # --- transactions

    def _send_raw(self, params: Params) -> str:
        return hexed(self._chain.send_raw(_data(_at(params, 0), MAX_RAW_BYTES)))

    def _transaction(self, params: Params) -> dict[str, Any] | None:
        mined = self._mined(params)
        return None if mined is None else tx_json(mined)

    def _receipt(self, params: Params) -> dict[str, Any] | None:
        mined = self._mined(params)
        return None if mined is None else receipt_json(mined)

    def _mined(self, params: Params) -> Mined | None:
        return self._chain.mined(_digest(_at(params, 0)))

    def _logs(self, params: Params) -> list[dict[str, Any]]:
        query = _at(params, 0)
        if not isinstance(query, dict):
            raise RpcError(INVALID_PARAMS, "a filter is an object")
        if "blockHash" in query:
            header = self._chain.evm.header_by_hash(_digest(query["blockHash"]))
            if header is None:
                raise RpcError(SERVER_ERROR, "unknown block")
            first = last = int(header.block_number)
        else:
            first, last = (self._edge(query.get(key)) for key in ("fromBlock", "toBlock"))
        addresses = _addresses(query.get("address"))
        wanted = _topics(query.get("topics"))
        found = [
            log_json(mined, index, log)
            for mined, index, log in self._chain.logs(first, last, addresses)
            if _matches(log.topics, wanted)
        ]
        if len(found) > MAX_LOGS:
            raise RpcError(LIMIT_EXCEEDED, f"the filter matches more than {MAX_LOGS} logs")
        return found

    def _edge(self, tag: object) -> int:
        """Return a block number of a range, which may lie beyond the head."""
        header = self._header_or_none(tag)
        return _number(tag) if header is None else int(header.block_number)

    def _faucet(self, params: Params) -> str:
        account = checksummed(bytes(_account(_at(params, 0))))
        return hexed(self._chain.fund(account, Wei(_number(_at(params, 1)))))


def error_answer(
    identity: object, code: int, message: str, data: str | None = None
) -> dict[str, Any]:
    """Return a JSON-RPC 2.0 error answer."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": identity, "error": error}


# --- parameters: each raises `RpcError(INVALID_PARAMS)` for a value of another shape


def _at(params: Params, index: int) -> Any:
    if len(params) <= index:
        raise RpcError(INVALID_PARAMS, f"missing value for required argument {index}")
    return params[index]


def _number(value: object) -> int:
    if not isinstance(value, str) or len(value) > _MAX_QUANTITY or not _QUANTITY.fullmatch(value):
        raise RpcError(INVALID_PARAMS, f"expected a hex quantity, got {str(value)[:80]}")
    return int(value, 16)


def _data(value: object, most: int) -> bytes:
    if not isinstance(value, str) or len(value) > 2 + 2 * most or not _DATA.fullmatch(value):
        raise RpcError(INVALID_PARAMS, f"expected at most {most} bytes of hex data")
    return bytes.fromhex(value[2:])


def _exactly(value: object, length: int) -> bytes:
    data = _data(value, length)
    if len(data) != length:
        raise RpcError(INVALID_PARAMS, f"expected {length} bytes, got {len(data)}")
    return data


def _digest(value: object) -> bytes:
    return _exactly(value, 32)


def _account(value: object) -> RawAddress:
    return RawAddress(_exactly(value, 20))


def _message(value: object) -> Message:
    if not isinstance(value, dict):
        raise RpcError(INVALID_PARAMS, "a call is an object")
    sender, to = value.get("from"), value.get("to")
    data = value.get("input", value.get("data"))
    return Message(
        sender=bytes(20) if sender is None else bytes(_account(sender)),
        to=b"" if to is None else bytes(_account(to)),
        data=b"" if data is None else _data(data, MAX_RAW_BYTES),
        value=0 if value.get("value") is None else _number(value["value"]),
        gas=GAS_LIMIT if value.get("gas") is None else min(_number(value["gas"]), GAS_LIMIT),
    )


def _addresses(value: object) -> frozenset[bytes] | None:
    if value is None:
        return None
    many = value if isinstance(value, list) else [value]
    return frozenset(bytes(_account(one)) for one in many)


Wanted = tuple[frozenset[bytes] | None, ...]


def _topics(value: object) -> Wanted:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_TOPICS:
        raise RpcError(INVALID_PARAMS, f"topics are an array of at most {_MAX_TOPICS}")
    return tuple(
        None
        if one is None
        else frozenset(_digest(topic) for topic in (one if isinstance(one, list) else [one]))
        for one in value
    )


def _matches(topics: tuple[bytes, ...], wanted: Wanted) -> bool:
    if len(topics) < len(wanted):
        return False
    return all(
        choice is None or topic in choice for topic, choice in zip(topics, wanted, strict=False)
    )
