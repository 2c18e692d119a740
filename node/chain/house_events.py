"""What a clearing house says happened: its logs as events.

Decoding is total: a log of another shape than the ABI's is a `ChainAnswerError`, whoever sent it.
Events that move no money (opened, vetoed, expired) are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from node.chain import answers
from node.chain.abi import decode_words, topic, types
from node.chain.check import clearing_artifact
from node.chain.client import ChainClient
from node.chain.errors import ChainAnswerError
from node.protocol.schema import checksummed, raw_address
from node.protocol.types import Address, Digest, Wei

BLOCKS_PER_QUERY: Final = 2_000
_MAX_LOGS: Final = 20_000
_MAX_TOPICS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyMoved:
    """Something of an account's came in, was credited, or went out."""

    what: str
    """``PaidIn``, ``Claimed``, ``Reclaimed`` or ``Withdrawn``."""
    round: Digest | None
    """None for what was withdrawn: a credit has no round any more."""
    account: Address
    amount: Wei
    block: int


_NAMES: Final = ("PaidIn", "Claimed", "Reclaimed", "Withdrawn")


@dataclass(frozen=True, slots=True)
class _Known:
    """An event of the ABI; its members as a log has them, the indexed ones first."""

    name: str
    members: tuple[str, ...]
    kinds: tuple[str, ...]
    indexed: int


def _known() -> dict[bytes, _Known]:
    entries = {e["name"]: e for e in clearing_artifact().abi if e["type"] == "event"}
    found = {}
    for name in _NAMES:
        inputs = sorted(entries[name]["inputs"], key=lambda member: not member["indexed"])
        indexed = sum(bool(member["indexed"]) for member in inputs)
        members = tuple(str(member["name"]) for member in inputs)
        found[topic(entries[name])] = _Known(name, members, types(inputs), indexed)
    return found


def money_moved(client: ChainClient, house: Address, first: int, last: int) -> list[MoneyMoved]:
    """Return the events of these blocks, both included, in their order.

    Raises `ChainUnavailableError`.
    """
    found = list(_read(client, house, first, last))
    found.sort(key=lambda one: one[0])
    return [event for _, event in found]


def _read(
    client: ChainClient, house: Address, first: int, last: int
) -> Iterator[tuple[tuple[int, int], MoneyMoved]]:
    known = _known()
    for start in range(first, last + 1, BLOCKS_PER_QUERY):
        end = min(start + BLOCKS_PER_QUERY - 1, last)
        query = {"fromBlock": hex(start), "toBlock": hex(end), "address": house}
        for log in answers.array(client.ask("eth_getLogs", query), "eth_getLogs", _MAX_LOGS):
            fields = answers.mapping(log, "a log")
            block = answers.quantity(fields.get("blockNumber"), "a log's block")
            index = answers.quantity(fields.get("logIndex"), "a log's index")
            where = answers.data(fields.get("address"), "a log's address")
            if where != raw_address(house) or not start <= block <= end:
                raise ChainAnswerError(f"asked for {house}, got a log that is not its")
            topics = answers.array(fields.get("topics"), "a log's topics", _MAX_TOPICS)
            words = [answers.digest(each, "a topic") for each in topics]
            event = known.get(words[0]) if words else None
            if event is not None:
                data = answers.data(fields.get("data"), "a log's data")
                yield (block, index), _event(event, words[1:], data, block)


def _event(known: _Known, words: list[Digest], data: bytes, block: int) -> MoneyMoved:
    if len(words) != known.indexed:
        raise ChainAnswerError(f"{known.name} came with {len(words)} topics")
    read = decode_words(known.kinds, b"".join(words) + data, known.name)
    values = dict(zip(known.members, read, strict=True))
    return MoneyMoved(
        what=known.name,
        round=Digest(values["round"]) if "round" in values else None,
        account=checksummed(bytes.fromhex(values["account"][2:])),
        amount=Wei(values["amount"]),
        block=block,
    )
