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
from node.chain.check import check_escrow, escrow_artifact, escrow_codec
from node.chain.client import DEFAULT_TIMEOUT, ChainClient, Endpoint, EndpointRefusedError
from node.chain.codec import BROKER_DISPUTE_GAS, GAS_LIMITS, EscrowCodec, fixed_gas
from node.chain.errors import ChainAnswerError, WrongContractError
from node.chain.port import (
    Block,
    Call,
    Dispute,
    EscrowEvent,
    Fees,
    Seat,
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
    quorum: int | None = 1,
    artifact: Artifact | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    fee_ceiling: Wei = DEFAULT_FEE_CEILING,
) -> Web3Escrow:
    """Open one account's view of the escrow, after a look at what is there.

    `endpoint` is a URL or a web3 provider, such as `InProcessProvider(chain)`. Raises
    `WrongContractError` if the chain or the code is another than expected, does not list the
    broker (where one is given) or wants the signatures of another number of brokers than
    `quorum` (None: of any number), and `ChainUnavailableError` if that cannot be known.
    """
    found = artifact or escrow_artifact()
    client = ChainClient(endpoint, timeout)
    try:
        listed = () if broker is None else (broker,)
        terms = check_escrow(client, domain, listed, artifact=found)
        if quorum not in (None, terms.threshold):
            raise WrongContractError(
                f"the escrow at {domain.escrow} wants {terms.threshold} brokers to sign a quote, "
                f"and not {quorum}: say with --quorum how many of how many"
            )
    except BaseException:
        client.close()
        raise
    wallet = Wallet(private_key, domain.chain_id, fee_ceiling)
    return Web3Escrow(client, wallet, domain, escrow_codec(found), terms.threshold)


class Web3Escrow:
    """`node.chain.port.Escrow`; made by `open_escrow`."""

    def __init__(
        self,
        client: ChainClient,
        wallet: Wallet,
        domain: Domain,
        codec: EscrowCodec,
        threshold: int,
    ) -> None:
        self._client = client
        self._wallet = wallet
        self._domain = domain
        self._codec = codec
        self._threshold = threshold
        self._contract = raw_address(domain.escrow)

    @property
    def domain(self) -> Domain:
        return self._domain

    @property
    def account(self) -> Address:
        return self._wallet.address

    @property
    def threshold(self) -> int:
        return self._threshold

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

    def seat(self, account: Address) -> Seat:
        return self._codec.decode_seat(self._view(self._codec.seat_of(account)))

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
        paid = fees if fees is not None else self.fees()
        gas = fixed_gas(call)
        if isinstance(call, Dispute):
            gas = self._dispute_gas(call, data, paid)
        return self._wallet.sign(self._domain.escrow, data, value, gas=gas, nonce=nonce, fees=paid)

    def fees(self) -> Fees:
        return self._wallet.fees(self._client)

    def gas_limit(self, kind: type[Call], encryptor: Address) -> int:
        # who may be a broker here is fixed for good: the same call gets the same limit each time
        if kind is Dispute and self.seat(encryptor) is not Seat.STRANGER:
            return BROKER_DISPUTE_GAS
        return GAS_LIMITS[kind]

    def _dispute_gas(self, call: Dispute, data: bytes, fees: Fees) -> int:
        """Return the fixed limit, or where that is too dear what the chain measures and a quarter.

        The limit is for the largest goods and the most slashings; most disputes take far less.
        """
        limit = self.gas_limit(Dispute, call.quote.encryptor)
        if self.balance(self.account) >= limit * fees.max_fee:
            return limit
        asked = {
            "from": self.account, "to": self._domain.escrow, "data": "0x" + data.hex(),
            "gas": hex(limit),
        }  # fmt: skip
        try:
            answer = self._client.ask("eth_estimateGas", asked)
        except EndpointRefusedError as refusal:
            if refusal.data:
                raise self._codec.reverts.read(refusal.data).refusal() from refusal
            return limit  # an endpoint that does not measure: the account may be given money yet
        measured = answers.quantity(answer, "eth_estimateGas")
        return min(limit, measured + measured // 4)

    def broadcast(self, raw: bytes) -> None:
        transactions.broadcast(self._client, raw, self._codec.reverts.read)

    def receipt(self, transaction: Digest) -> TransactionOutcome | None:
        return transactions.outcome(self._client, transaction, self._codec.reverts.read)

    # --- asking

    def _ask_mapping(self, method: str, *params: object) -> Mapping[str, Any]:
        return answers.mapping(self._client.ask(method, *params), method)

    def _view(self, data: bytes) -> bytes:
        return self._client.view(self._domain.escrow, data)

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()
