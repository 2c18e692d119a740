"""The escrow port on web3: one account, one contract, one endpoint.

Stateless but for its key and its endpoint, and as safe to share between threads as the
provider is (ours are). Each answer is checked against the question: a receipt for another
hash, an event of another contract or outside of the range is a `ChainAnswerError`.

A call that reverts may come to light in two ways, and both end in the same name: a chain
that simulates refuses it in `broadcast` (`TransactionRefusedError("WrongState")`); others,
the development chain among them, mine it with status 0, and `receipt` finds the name by
calling again on the state and at the time of the block it was mined in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from contracts import Artifact
from node.chain import answers, transactions
from node.chain.client import DEFAULT_TIMEOUT, ChainClient, Endpoint, EndpointRefusedError
from node.chain.codec import GAS_LIMITS, UNKNOWN_REVERT, EscrowCodec
from node.chain.deploy import check_escrow, escrow_artifact
from node.chain.errors import ChainAnswerError
from node.chain.port import (
    Block,
    Call,
    EscrowEvent,
    Fees,
    SignedTransaction,
    TradeState,
    TransactionOutcome,
)
from node.chain.transactions import DEFAULT_FEE_CEILING, Wallet
from node.protocol.eip712 import Domain
from node.protocol.errors import LocalProtocolError
from node.protocol.schema import raw_address
from node.protocol.types import Address, Digest, Wei

BLOCKS_PER_QUERY: Final = 2_000
"""Public endpoints refuse wider ranges."""
_MAX_LOGS: Final = 20_000
_MAX_TOPICS: Final = 4


def open_escrow(
    endpoint: Endpoint,
    private_key: bytes,
    domain: Domain,
    *,
    broker: Address | None = None,
    artifact: Artifact | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    fee_ceiling: Wei = DEFAULT_FEE_CEILING,
) -> Web3Escrow:
    """Open one account's view of the escrow, after a look at what is there.

    `endpoint` is a URL or a web3 provider, such as `InProcessProvider(chain)`. Raises
    `WrongContractError` if the chain or the code is another than expected (or trusts
    another broker, where one is given), `ChainUnavailableError` if that cannot be known.
    """
    found = artifact or escrow_artifact()
    client = ChainClient(endpoint, timeout)
    try:
        trusted = check_escrow(client, domain, broker, artifact=found)
    except BaseException:
        client.close()
        raise
    wallet = Wallet(private_key, domain.chain_id, fee_ceiling)
    return Web3Escrow(client, wallet, domain, EscrowCodec(found.abi), trusted)


class Web3Escrow:
    """`node.chain.port.Escrow`; made by `open_escrow`."""

    def __init__(
        self,
        client: ChainClient,
        wallet: Wallet,
        domain: Domain,
        codec: EscrowCodec,
        broker: Address,
    ) -> None:
        self._client = client
        self._wallet = wallet
        self._domain = domain
        self._codec = codec
        self._broker = broker
        self._contract = raw_address(domain.escrow)

    @property
    def domain(self) -> Domain:
        return self._domain

    @property
    def account(self) -> Address:
        return self._wallet.address

    @property
    def broker(self) -> Address:
        return self._broker

    # --- reading

    def head(self) -> Block:
        block = self._ask_mapping("eth_getBlockByNumber", "latest", False)
        return Block(
            answers.quantity(block.get("number"), "a block's number"),
            answers.time(block.get("timestamp"), "a block's timestamp"),
        )

    def trade_state(self, trade_id: Digest) -> TradeState:
        return self._codec.decode_trade(self._view(self._codec.trade_of(trade_id)))

    def terms(self, trade_id: Digest) -> bytes:
        return self._codec.decode_terms(self._view(self._codec.terms_of(trade_id)))

    def credit(self, account: Address) -> Wei:
        return self._codec.decode_wei(self._view(self._codec.credits(account)))

    def balance(self, account: Address, *, block: int | None = None) -> Wei:
        at = "latest" if block is None else hex(block)
        return answers.wei(self._client.ask("eth_getBalance", account, at), "eth_getBalance")

    def next_nonce(self) -> int:
        return self._client.nonce(self.account)

    def events(self, first_block: int, last_block: int) -> list[EscrowEvent]:
        if first_block < 0:
            raise LocalProtocolError(f"blocks are counted from 0, got {first_block}")
        found: list[EscrowEvent] = []
        for first in range(first_block, last_block + 1, BLOCKS_PER_QUERY):
            last = min(first + BLOCKS_PER_QUERY - 1, last_block)
            query = {
                "fromBlock": hex(first), "toBlock": hex(last), "address": self._domain.escrow,
            }  # fmt: skip
            logs = answers.array(self._client.ask("eth_getLogs", query), "eth_getLogs", _MAX_LOGS)
            placed = [self._event(log, first, last) for log in logs]
            placed.sort(key=lambda one: one[0])
            found += [event for _, event in placed if event is not None]
        return found

    def _event(
        self, log: object, first: int, last: int
    ) -> tuple[tuple[int, int], EscrowEvent | None]:
        fields = answers.mapping(log, "a log")
        block = answers.quantity(fields.get("blockNumber"), "a log's block")
        index = answers.quantity(fields.get("logIndex"), "a log's index")
        address = answers.data(fields.get("address"), "a log's address")
        if address != self._contract or not first <= block <= last:
            raise ChainAnswerError(f"asked for {self._domain.escrow}, got a log that is not its")
        topics = answers.array(fields.get("topics"), "a log's topics", _MAX_TOPICS)
        event = self._codec.decode_event(
            [answers.digest(topic, "a topic") for topic in topics],
            answers.data(fields.get("data"), "a log's data"),
            block,
            answers.digest(fields.get("transactionHash"), "a log's transaction"),
        )
        return (block, index), event

    # --- writing

    def sign(self, call: Call, nonce: int, fees: Fees | None = None) -> SignedTransaction:
        data, value = self._codec.encode(call)
        return self._wallet.sign(
            self._domain.escrow,
            data,
            value,
            gas=GAS_LIMITS[type(call)],
            nonce=nonce,
            fees=fees if fees is not None else self._wallet.fees(self._client),
        )

    def broadcast(self, raw: bytes) -> None:
        transactions.broadcast(self._client, raw, self._codec.name_revert)

    def receipt(self, transaction: Digest) -> TransactionOutcome | None:
        answer = self._client.ask("eth_getTransactionReceipt", "0x" + transaction.hex())
        if answer is None:
            return None
        fields = answers.mapping(answer, "a receipt")
        if answers.digest(fields.get("transactionHash"), "a receipt's hash") != transaction:
            raise ChainAnswerError(f"asked for receipt {transaction.hex()}, got another")
        block = answers.quantity(fields.get("blockNumber"), "a receipt's block")
        gas_used = answers.quantity(fields.get("gasUsed"), "gasUsed")
        price = answers.wei(fields.get("effectiveGasPrice"), "effectiveGasPrice")
        succeeded = answers.quantity(fields.get("status"), "a receipt's status", 1) == 1
        return TransactionOutcome(
            succeeded=succeeded,
            block=block,
            gas_used=gas_used,
            revert=None if succeeded else self._why_reverted(transaction, block),
            fee=Wei(gas_used * price),
        )

    def _why_reverted(self, transaction: Digest, block: int) -> str:
        fields = self._ask_mapping("eth_getTransactionByHash", "0x" + transaction.hex())
        call = {
            "from": fields.get("from"),
            "to": fields.get("to"),
            "gas": hex(answers.quantity(fields.get("gas"), "gas")),
            "value": hex(answers.wei(fields.get("value"), "value")),
            "data": "0x" + answers.data(fields.get("input"), "input").hex(),
        }
        try:
            self._client.ask("eth_call", call, hex(block))
        except EndpointRefusedError as refusal:
            if refusal.data is not None:
                return self._codec.name_revert(refusal.data)
            return refusal.message[:200] or UNKNOWN_REVERT
        return UNKNOWN_REVERT

    # --- asking

    def _ask_mapping(self, method: str, *params: object) -> Mapping[str, Any]:
        return answers.mapping(self._client.ask(method, *params), method)

    def _view(self, data: bytes) -> bytes:
        call = {"to": self._domain.escrow, "data": "0x" + data.hex()}
        return answers.data(self._client.ask("eth_call", call, "latest"), "eth_call")

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()
