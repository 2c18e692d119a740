"""What follows from the published inputs of a round, for whoever computes it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.clearing.audit import RoundAudit
from broker_node.clearing.broker import ClearingBroker
from broker_node.clearing.certificate import certified
from broker_node.clearing.gathering import Gathering, Joined
from broker_node.clearing.rules import RULES, asked_of, checked, leaves_of
from broker_node.clearing.shapley_round import ALONE
from broker_node.clearing.terms import Document, key_of, read
from broker_node.clearing.triplewin_round import DECLINED, INFEASIBLE, UNPAID
from broker_node.mechanisms.base import RefusedInputError
from node.agent.taking_part import ClearingTerms
from node.config import Config, ConfigError
from node.protocol.pooling import JoinRound
from node.protocol.signing import address_of
from node.protocol.types import ONE, Address, Digest, Wei
from node.roles.clearing import clearing_terms

ETHER = 10**18
ACCOUNTS = tuple(sorted((address_of(bytes([n + 1]) * 32) for n in range(16)), key=str.lower))
BROKER = address_of(b"\x77" * 32)
STRANGER = address_of(b"\x78" * 32)


def measured(gain: Callable[[int], float], count: int, *references: int) -> dict[Any, int]:
    """Measure every subset of `count` parties at each reference."""
    found = {key_of(r, s): round(gain(s) * ONE) for r in references for s in range(1, 1 << count)}
    return found | {(i, 1 << i): round(gain(1 << i) * ONE) for i in range(count)}


def covers(subset: int) -> float:
    """A gain that every further party adds a little to."""
    return 0.5 + 0.1 * subset.bit_count() + 0.01 * (subset & 1)


def shapley(count: int, gain: Callable[[int], float] = covers, **changes: Any) -> Document:
    document = Document(
        mechanism="shapley", unit=Wei(ETHER), entry=Wei(0), broker=BROKER,
        parties=ACCOUNTS[:count], costs=(Wei(1),) * count, reserves=(Wei(0),) * count,
        measured=measured(gain, count, count),
    )  # fmt: skip
    return dataclasses.replace(document, **changes)


def triplewin(count: int, gain: Callable[[int], float] = covers, **changes: Any) -> Document:
    producers = changes.pop("producers", (0,))
    document = shapley(
        count, mechanism="triplewin", costs=(Wei(10**15),) * count, producers=producers,
        serving_cost=Wei(10**15), margin=100_000, share=500_000,
        measured=measured(gain, count, *producers),
    )  # fmt: skip
    return dataclasses.replace(document, **changes)


def terms(**changes: Any) -> ClearingTerms:
    """What an agent asks for in a round of Shapley division."""
    unused: Any = None
    asked = ClearingTerms(
        mechanism="shapley", audit=RoundAudit(), open_house=unused, cost=Wei(1), reserve=Wei(0),
        most_due=None, least_challenge=0,
    )  # fmt: skip
    return dataclasses.replace(asked, **changes)


def dues_of(document: Document) -> dict[Address, Wei]:
    _, asked = asked_of(document.encode())
    return dict(zip(document.parties, asked.dues, strict=True))


def settled(document: Document, paid: dict[Address, Wei]) -> dict[Address, int]:
    got = dict.fromkeys(paid, 0)
    for account, amount in leaves_of(document, document.performance, paid).payouts:
        got[account] = got.get(account, 0) + amount
    return got


def test_a_fee_is_what_is_missing_from_a_perfect_model_rounded_up() -> None:
    document = shapley(2, lambda s: 0.123457 * s.bit_count(), unit=Wei(10**6 + 1))
    assert list(dues_of(document).values()) == [876544, 876544]


@given(
    figures=st.lists(st.integers(0, ONE), min_size=7, max_size=7),
    entry=st.integers(0, 10**17),
    payers=st.sets(st.integers(0, 2)),
)
def test_every_wei_paid_in_comes_out_whatever_was_measured(
    figures: list[int], entry: int, payers: set[int]
) -> None:
    document = shapley(3, lambda s: figures[s - 1] / ONE, entry=Wei(entry))
    dues = dues_of(document)
    paid = {ACCOUNTS[i]: Wei(dues[ACCOUNTS[i]] + i) for i in payers}
    got = settled(document, paid)
    assert sum(got.values()) == sum(paid.values())
    assert all(amount >= 0 for amount in got.values())


def test_who_lifts_the_others_is_paid_and_who_is_lifted_pays() -> None:
    document = shapley(3, lambda s: 0.9 if s & 1 else 0.5)
    dues = dues_of(document)
    got = settled(document, dues)
    net = [got[account] - dues[account] for account in document.parties]
    assert net[0] > 0 > net[1] == net[2]


def test_whom_pooling_hurts_is_paid_for_it_and_named() -> None:
    document = shapley(3, lambda s: {1: 0.9, 2: 0.4, 4: 0.4}.get(s, 0.8))
    leaves = leaves_of(document, document.performance, dues_of(document))
    assert leaves.settled.figures["hurt"] == [0]
    assert int(leaves.settled.figures["owed"][0]) < 0
    assert certified(document, leaves.settled.figures)


def test_where_pooling_loses_all_but_the_entry_comes_back_and_nothing_is_sold() -> None:
    document = shapley(3, lambda s: 0.9 - 0.01 * (s.bit_count() - 1), entry=Wei(5))
    dues = dues_of(document)
    leaves = leaves_of(document, document.performance, dues)
    assert (leaves.settled.sold, leaves.settled.reason) == ((), "pooling-gains-nothing")
    assert settled(document, dues) == {**{a: due - 5 for a, due in dues.items()}, BROKER: 15}


@pytest.mark.parametrize("paid", [Wei(0), Wei(1)])
def test_who_pays_too_little_is_not_in_the_game_and_has_it_back(paid: Wei) -> None:
    document = shapley(3)
    dues = dues_of(document)
    short, *others = document.parties
    leaves = leaves_of(document, document.performance, {**dues, short: paid, STRANGER: Wei(9)})
    assert leaves.settled.sold[0].buyers == (1, 2)
    payouts = dict(leaves.payouts)
    assert payouts.get(short, Wei(0)) == paid
    assert payouts[STRANGER] == 9
    alone = leaves_of(shapley(3), shapley(3).performance, {others[0]: dues[others[0]]})
    assert (alone.settled.reason, alone.payouts) == (ALONE, ((others[0], dues[others[0]]),))


def test_more_parties_than_can_be_exact_are_sampled_alike_by_all() -> None:
    count = 13
    asked: dict[tuple[int, int], int] = {}

    def measure(reference: int, parties: int) -> float:
        found = min(0.99, 0.4 + 0.04 * parties.bit_count())
        asked[key_of(reference, parties)] = round(found * ONE)
        return round(found * ONE) / ONE

    bare = shapley(count, measured={(i, 1 << i): 440_000 for i in range(count)})
    paid = dues_of(bare)
    by_broker = leaves_of(bare, measure, paid)
    told = dataclasses.replace(bare, measured={**bare.measured, **asked})
    told = dataclasses.replace(
        told, models=(("00" * 32, 1, round(0.92 * ONE), tuple(range(count))),)
    )
    assert len(asked) < 1_100
    assert checked(bare.encode(), told.encode(), paid)[1].payouts == by_broker.payouts


def test_sellers_and_producers_get_what_the_buyers_pay() -> None:
    document = triplewin(4, producers=(0, 2))
    dues = dues_of(document)
    leaves = leaves_of(document, document.performance, dues)
    assert len(leaves.settled.sold) == 2
    got = settled(document, dues)
    assert sum(got.values()) == sum(dues.values())
    assert all(got[account] >= 2 * 10**15 for account in document.parties)  # each use pays κ_D
    assert certified(document, leaves.settled.figures)


def test_prices_that_drive_each_other_up_are_no_prices_and_no_round() -> None:
    document = triplewin(3, lambda s: 0.3 + 0.3 * (s.bit_count() - 1), share=1_000_000)
    _, asked = asked_of(document.encode())
    assert (asked.off, set(asked.dues)) == (INFEASIBLE, {0})
    assert asked.figures["loop_gain"][0] >= 1
    assert certified(document, asked.figures)


def test_a_model_of_which_one_buyer_does_not_pay_is_sold_to_nobody() -> None:
    document = triplewin(3)
    dues = dues_of(document)
    paid = {document.parties[1]: dues[document.parties[1]]}
    leaves = leaves_of(document, document.performance, paid)
    assert (leaves.settled.sold, leaves.settled.reason) == ((), UNPAID)
    assert leaves.payouts == tuple(paid.items())


def test_a_seller_that_lowers_a_model_gets_its_cost_and_is_named() -> None:
    document = triplewin(3, lambda s: 0.5 + 0.2 * (s >> 1 & 1) - 0.1 * (s >> 2 & 1))
    _, asked = asked_of(document.encode())
    assert asked.figures["hurt"] == [[2]]
    assert np.isclose(asked.figures["p_data"][2][0], 0.001)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parties", list(reversed(ACCOUNTS[:3]))),
        ("parties", []),
        ("parties", ["0x12"] * 3),
        ("unit", "-1"),
        ("unit", 5),
        ("unit", "9" * 80),
        ("performance", [[0, 0, 1]]),
        ("performance", [[0, 8, 1]]),
        ("performance", [[3, 1, 1]]),
        ("performance", [[0, 1, ONE + 1]]),
        ("performance", [[0, 1, 1], [0, 1, 2]]),
        ("producers", [3]),
        ("producers", [0, 0]),
        ("models", [{"root": "zz", "bytes": 1, "performance": 1, "buyers": []}]),
        ("costs", ["1"]),
        ("margin", 0.5),
        ("broker", None),
    ],
)
def test_a_document_that_no_broker_of_ours_would_write_is_refused(field: str, value: Any) -> None:
    found = json.loads(shapley(3).encode())
    found[field] = value
    with pytest.raises(RefusedInputError) as refused:
        read(json.dumps(found).encode())
    assert refused.value.field == field


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedInputError):
        read(data)


def test_a_document_is_read_as_it_was_written() -> None:
    document = triplewin(3, others=(STRANGER,), models=(("ab" * 32, 9, 7, (0, 2)),))
    assert read(document.encode()) == document


def published(document: Document, paid: dict[Address, Wei]) -> Document:
    (sold,) = leaves_of(document, document.performance, paid).settled.sold
    value = round(document.performance(sold.reference, sold.parties) * ONE)
    return dataclasses.replace(document, models=(("00" * 32, 1, value, sold.buyers),))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"unit": Wei(7)}, "terms"),
        ({"entry": Wei(7)}, "terms"),
        ({"measured": {**shapley(3).measured, (0, 1): 1}}, "performance"),
        ({"models": ()}, "models"),
        ({"models": (("00" * 32, 1, 1, (0, 1, 2)),)}, "models"),
        ({"others": (STRANGER,)}, "others"),
    ],
)
def test_a_broker_is_held_to_what_it_said_in_its_invitation(
    change: dict[str, Any], field: str
) -> None:
    document = shapley(3)
    paid = dues_of(document)
    good = published(document, paid)
    assert checked(document.encode(), good.encode(), paid)[1].payouts
    with pytest.raises(RefusedInputError) as refused:
        checked(document.encode(), dataclasses.replace(good, **change).encode(), paid)
    assert refused.value.field == field


def test_an_agent_takes_the_terms_of_its_own_broker_and_mechanism_alone() -> None:
    document, audit = shapley(3), RoundAudit()
    us = document.parties[1]
    inputs = document.encode()
    assert audit.due(inputs, us, BROKER, terms()) == dues_of(document)[us]
    for account, broker, mechanism in (
        (STRANGER, BROKER, "shapley"), (us, STRANGER, "shapley"), (us, BROKER, "triplewin"),
    ):  # fmt: skip
        with pytest.raises(RefusedInputError):
            audit.due(inputs, account, broker, terms(mechanism=mechanism))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("costs", {"costs": (Wei(10**15), Wei(10**14), Wei(10**15))}),
        ("reserves", {"reserves": (Wei(0), Wei(0), Wei(0))}),
        ("reserves", {"reserves": (Wei(0), Wei(10 * ETHER), Wei(0))}),
    ],
)
def test_an_invitation_is_of_the_cost_and_the_reserve_that_an_agent_asked_by(
    field: str, said: dict[str, Any]
) -> None:
    ours = terms(mechanism="triplewin", cost=Wei(10**15), reserve=Wei(9 * ETHER))
    document = triplewin(3, reserves=(Wei(0), ours.reserve, Wei(0)))
    us, audit = document.parties[1], RoundAudit()
    assert audit.due(document.encode(), us, BROKER, ours) == dues_of(document)[us]
    forged = dataclasses.replace(document, **said)
    assert not asked_of(forged.encode())[1].off
    with pytest.raises(RefusedInputError) as refused:
        audit.due(forged.encode(), us, BROKER, ours)
    assert refused.value.field == field


def test_with_real_money_an_agent_says_the_most_that_it_pays_into_a_round() -> None:
    def opened(*, play_money: bool, **changes: Any) -> Any:
        domain = SimpleNamespace(chain_id=1)
        return SimpleNamespace(
            config=Config(mechanism="shapley", **changes), play_money=play_money,
            escrow=SimpleNamespace(domain=domain),
        )  # fmt: skip

    with pytest.raises(ConfigError) as refused:
        clearing_terms(opened(play_money=False))
    assert refused.value.key == "most_due"
    limited = clearing_terms(opened(play_money=False, most_due=Wei(7)))
    assert limited is not None
    assert limited.most_due == 7
    played = clearing_terms(opened(play_money=True))
    assert played is not None
    assert played.most_due is None


def test_a_model_is_taken_only_where_it_does_better_than_ones_own() -> None:
    document = shapley(3, lambda s: {1: 0.9, 2: 0.4, 4: 0.4}.get(s, 0.8))
    told = published(document, dues_of(document)).encode()
    better = [bool(RoundAudit().models(told, account)) for account in document.parties]
    assert better == [False, True, True]


LEAST = 10**15 + 11 * 10**14
"""The serving, and the party's own data with the producer's margin."""


@pytest.mark.parametrize(
    ("cost", "reserve", "field"),
    [
        (0, 0, "costs"),
        (ETHER + 1, 0, "costs"),
        (2**256 - 1, 0, "costs"),
        (10**15, 1, "reserves"),
        (10**15, LEAST - 1, "reserves"),
        (10**15, LEAST, None),
        (10**15, 0, None),
        (1, 0, None),
        (ETHER, 0, None),
    ],
)
def test_whose_terms_no_round_could_have_is_refused_by_the_field(
    cost: int, reserve: int, field: str | None
) -> None:
    terms = triplewin(1, costs=(Wei(cost),), reserves=(Wei(reserve),), measured={})
    RULES["shapley"].admit(terms)  # where neither matters
    if field is None:
        RULES["triplewin"].admit(terms)
        return
    with pytest.raises(RefusedInputError) as refused:
        RULES["triplewin"].admit(terms)
    assert refused.value.field == field


def test_of_buyers_that_decline_the_one_farthest_from_the_price_is_named() -> None:
    reserves = tuple(map(Wei, (0, LEAST + 1, LEAST, 0)))
    _, asked = asked_of(triplewin(4, reserves=reserves).encode())
    assert (asked.off, asked.stopped_by) == (DECLINED, 2)
    _, asked = asked_of(triplewin(4).encode())
    assert (asked.off, asked.stopped_by) == ("", None)


async def test_a_round_has_no_more_agents_than_its_mechanism_clears() -> None:
    most = RULES["triplewin"].most_parties
    gathering = Gathering(expected=64, seconds=1e9, most=most)
    agents = [joined(account) for account in ACCOUNTS]
    assert [gathering.add(one) for one in agents] == [n < most for n in range(len(agents))]
    assert await gathering.complete() == agents[:most]
    assert gathering.add(agents[most])  # for the next round
    document = triplewin(most, lambda s: 0.5 + 0.01 * s.bit_count())
    _, asked = asked_of(document.encode())
    assert not asked.off


def test_a_model_of_another_architecture_is_left_out_of_the_round() -> None:
    agents = [joined(account) for account in ACCOUNTS[:3]]
    models: list[Any] = [
        SimpleNamespace(architecture=SimpleNamespace(text=text)) for text in ("mlp", "odd", "mlp")
    ]
    off: list[tuple[list[Joined], str]] = []
    broker: Any = SimpleNamespace(_off=lambda who, why, _: off.append((who, why)))
    there = ClearingBroker._alike(broker, agents, models)
    assert there == ([agents[0], agents[2]], [models[0], models[2]])
    assert off == [([agents[1]], "architecture-mismatch")]


def joined(account: Address) -> Joined:
    offer: Any = SimpleNamespace(seller=account)
    asked = JoinRound(base_digest=Digest(bytes(32)), cost=Wei(1), reserve=Wei(0))
    return Joined(base_digest=asked.base_digest, offer=offer, statement=b"", asked=asked)
