"""The logs of a clearing house: read whole, in order, and believed only in the ABI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from node.chain.abi import topic
from node.chain.check import clearing_artifact
from node.chain.client import ChainClient
from node.chain.errors import ChainAnswerError
from node.chain.house_events import BLOCKS_PER_QUERY, MoneyMoved, money_moved
from node.protocol.types import Address, Digest, Wei

HOUSE = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
OTHER = Address("0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF")
WHO = Address("0x6813Eb9362372EEF6200f3b1dbC3f819671cBA69")
ROUND = b"\x07" * 32
TOPICS = {e["name"]: topic(e) for e in clearing_artifact().abi if e["type"] == "event"}
ACCOUNT = bytes(12) + bytes.fromhex(WHO[2:])


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def paid_in(block: int, amount: int, *, index: int = 0, **changed: Any) -> dict[str, object]:
    return {
        "address": HOUSE.lower(),
        "blockNumber": hex(block),
        "logIndex": hex(index),
        "topics": [hexed(TOPICS["PaidIn"]), hexed(ROUND), hexed(ACCOUNT)],
        "data": hexed(word(amount)),
        **changed,
    }


@dataclass
class Client:
    """An endpoint that says what it likes."""

    logs: list[dict[str, object]]
    asked: list[tuple[int, int]] = field(default_factory=list)
    honest: bool = True
    """Whether it gives the logs of the blocks that it is asked for alone."""

    def ask(self, method: str, query: Mapping[str, str]) -> Any:
        assert (method, query["address"]) == ("eth_getLogs", HOUSE)
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        self.asked.append((first, last))
        if not self.honest:
            return self.logs
        return [log for log in self.logs if first <= int(str(log["blockNumber"]), 16) <= last]


def read(*logs: dict[str, object], first: int = 0, last: int = 10) -> list[MoneyMoved]:
    return money_moved(cast("ChainClient", Client(list(logs), honest=False)), HOUSE, first, last)


def test_what_moved_is_told_in_the_order_of_the_chain() -> None:
    found = read(paid_in(5, 2, index=3), paid_in(5, 1), paid_in(4, 9, index=7))
    assert [(one.block, one.amount) for one in found] == [(4, 9), (5, 1), (5, 2)]
    assert found[0] == MoneyMoved(
        what="PaidIn", round=Digest(ROUND), account=WHO, amount=Wei(9), block=4
    )


def test_a_claim_has_its_amount_and_not_its_leaf() -> None:
    (entry,) = (e for e in clearing_artifact().abi if e.get("name") == "Claimed")
    indexed = {"round": ROUND, "account": ACCOUNT, "index": word(3)}
    topics = [TOPICS["Claimed"], *(indexed[m["name"]] for m in entry["inputs"] if m["indexed"])]
    plain = {**indexed, "amount": word(44)}
    data = b"".join(plain[m["name"]] for m in entry["inputs"] if not m["indexed"])
    (one,) = read(paid_in(5, 0, topics=[hexed(each) for each in topics], data=hexed(data)))
    assert (one.what, one.account, one.amount) == ("Claimed", WHO, 44)


def test_a_draw_has_no_round_any_more() -> None:
    (entry,) = (e for e in clearing_artifact().abi if e.get("name") == "Withdrawn")
    members = {"asset": bytes(32), "account": ACCOUNT, "amount": word(8)}
    members["recipient"] = bytes(12) + bytes.fromhex(OTHER[2:])
    topics = [TOPICS["Withdrawn"], *(members[m["name"]] for m in entry["inputs"] if m["indexed"])]
    data = b"".join(members[m["name"]] for m in entry["inputs"] if not m["indexed"])
    (one,) = read(paid_in(5, 0, topics=[hexed(each) for each in topics], data=hexed(data)))
    assert (one.what, one.round, one.account, one.amount) == ("Withdrawn", None, WHO, 8)


def test_events_that_move_no_money_are_passed_over() -> None:
    assert read(paid_in(5, 1, topics=[hexed(TOPICS["Vetoed"]), hexed(ROUND)])) == []
    assert read(paid_in(5, 1, topics=[])) == []


def test_a_long_history_is_asked_for_in_pieces_that_leave_no_block_out() -> None:
    last = 2 * BLOCKS_PER_QUERY + 3
    client = Client([paid_in(block, block) for block in (0, BLOCKS_PER_QUERY, last)])
    found = money_moved(cast("ChainClient", client), HOUSE, 0, last)
    assert [one.amount for one in found] == [0, BLOCKS_PER_QUERY, last]
    assert client.asked[0][0] == 0
    assert client.asked[-1][1] == last
    for (_, end), (start, _) in zip(client.asked, client.asked[1:], strict=False):
        assert start == end + 1
    assert all(end - start < BLOCKS_PER_QUERY for start, end in client.asked)


def test_nothing_before_the_first_block_is_asked_for() -> None:
    client = Client([])
    assert money_moved(cast("ChainClient", client), HOUSE, 7, 9) == []
    assert client.asked == [(7, 9)]


@pytest.mark.parametrize(
    "lie",
    [
        {"address": OTHER},
        {"blockNumber": "0xb"},
        {"topics": [hexed(TOPICS["PaidIn"]), hexed(ROUND)]},
        {"topics": [hexed(TOPICS["PaidIn"]), hexed(ROUND), hexed(b"\xff" * 32)]},
        {"topics": "0x"},
        {"topics": [hexed(TOPICS["PaidIn"])] * 5},
        {"data": "0x"},
        {"data": hexed(word(1) + b"\x00")},
        {"data": "zz"},
        {"blockNumber": -1},
        {"logIndex": None},
    ],
    ids=lambda lie: str(lie)[:40],
)
def test_a_log_of_another_shape_is_the_endpoints_fault(lie: dict[str, Any]) -> None:
    with pytest.raises(ChainAnswerError):
        read(paid_in(5, 1, **lie))


def test_logs_that_are_no_list_are_the_endpoints_fault() -> None:
    client = Client({"0": paid_in(5, 1)}, honest=False)  # type: ignore[arg-type]
    with pytest.raises(ChainAnswerError):
        money_moved(cast("ChainClient", client), HOUSE, 0, 10)
