"""No root keeps money for ever: it expires, and those who paid in take back what is left."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.stage import CHALLENGE
from node.protocol.sum_tree import Node
from node.protocol.types import Digest, Wei
from tests.contracts.conftest import Refused
from tests.contracts.rounds import DAY, EXPIRY, ROUND, House, split, tree_of


@pytest.fixture
def house() -> House:
    return House()


# expire


def test_half_a_year_after_a_root_stands_anybody_ends_it(house: House, refused: Refused) -> None:
    tree = split(house)
    with refused("NothingPosted", ROUND):
        house.send("expire", ROUND)
    clearing = house.post(tree.root, 3)
    ends = clearing.stands_from + EXPIRY
    house.stage.wait_until(ends - 1)
    with refused("NotExpired", ends - 1, ends):
        house.send("expire", ROUND)
    with refused("RootStands", ends - 1, clearing.stands_from - 51):
        house.send("reclaim", ROUND, house.account("buyer"))
    house.stage.wait_until(ends)
    (event,) = house.send("expire", ROUND).events
    assert event == ("Expired", {"round": ROUND, "claimed": 0, "rest": 10})
    for call in ("expire", "veto"):
        with refused("NothingPosted", ROUND):
            house.send(call, ROUND, sender="third")


def test_a_root_that_nobody_knows_the_leaves_of_keeps_no_money_for_ever(house: House) -> None:
    house.collected(("buyer", 4), ("rival", 6))
    random = Node(Digest(hashlib.sha256(b"no tree at all").digest()), Wei(10))
    clearing = house.post(random, 5)
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    house.reclaim("buyer", "rival")
    assert (house.credit("buyer"), house.credit("rival")) == (4, 6)


def test_a_leaf_can_be_claimed_until_its_root_is_ended_and_not_after(
    house: House, refused: Refused
) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.claim(clearing, tree, 0)
    (event,) = house.send("expire", ROUND).events
    assert event == ("Expired", {"round": ROUND, "claimed": 7, "rest": 3})
    for index in (0, 1):
        with refused("NotTheClearing", ROUND):
            house.claim(clearing, tree, index)
        assert not house.view("claimed", ROUND, index)
    assert house.view("roundOf", ROUND)[4:] == (0, 0, 1, 10, 7, bytes(32))


def test_no_root_comes_after_one_that_expired(house: House, refused: Refused) -> None:
    """However long its windows were."""
    month, now = 30 * DAY, house.stage.now()
    house.opening = house.opening._replace(
        pay_by=now + month, post_by=now + 2 * month, challenge_period=CHALLENGE
    )
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    with refused("NotPosting", house.stage.now(), now + month, now + 2 * month):
        house.post(tree.root, 3, version=1)


def test_a_root_of_several_words_expires_with_what_was_claimed_of_each(house: House) -> None:
    house.collected(("buyer", 600))
    tree = tree_of(house, *[("seller", 2)] * 300)
    clearing = house.post(tree.root, 300)
    house.stage.wait_until(clearing.stands_from)
    for index in (0, 126, 127, 253, 254, 299):
        house.claim(clearing, tree, index)
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    (event,) = house.send("expire", ROUND).events
    assert event.fields["claimed"] == 12
    house.reclaim("buyer")
    assert house.credit("buyer") == 588


# reclaim, of what nobody claimed


@pytest.mark.parametrize("order", list(itertools.permutations(("buyer", "rival", "third"))))
def test_what_nobody_claimed_goes_back_to_the_wei_in_any_order(
    house: House, order: tuple[str, str, str]
) -> None:
    paid = {"buyer": 3, "rival": 4, "third": 6}
    house.collected(*paid.items())
    tree = tree_of(house, ("seller", 5), ("second", 8))
    clearing = house.post(tree.root, 2)
    house.stage.wait_until(clearing.stands_from)
    house.claim(clearing, tree, 0)
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    house.reclaim(*order)
    back = {role: house.credit(role) for role in paid}
    assert sum(back.values()) == 8
    for role, amount in back.items():
        assert abs(amount - paid[role] * 8 / 13) < len(paid)
    assert back[order[0]] == paid[order[0]] * 8 // 13
    assert house.view("roundOf", ROUND)[7:9] == (0, 0)


def test_a_share_of_nothing_is_taken_back_as_nothing_and_the_last_has_the_wei(
    house: House, refused: Refused
) -> None:
    house.collected(("buyer", 1), ("rival", 1))
    tree = tree_of(house, ("seller", 1), ("second", 1))
    clearing = house.post(tree.root, 2)
    house.stage.wait_until(clearing.stands_from)
    house.claim(clearing, tree, 0)
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    house.reclaim("buyer", "rival")
    assert (house.credit("buyer"), house.credit("rival")) == (0, 1)
    with refused("NothingToReclaim", ROUND, house.account("buyer").lower()):
        house.reclaim("buyer")


amounts = st.integers(1, 9) | st.integers(1, 2**120)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    paid=st.tuples(amounts, amounts, amounts),
    shares=st.lists(st.integers(0, 2**64), min_size=2, max_size=5),
    claims=st.sets(st.integers(0, 4)),
    order=st.permutations(("buyer", "rival", "third")),
)
def test_what_is_claimed_and_taken_back_is_the_pot(
    paid: tuple[int, int, int], shares: list[int], claims: set[int], order: list[str]
) -> None:
    house = House.of_token()
    roles = ("buyer", "rival", "third")
    house.collected(*zip(roles, paid, strict=True))
    pot, left = sum(paid), sum(paid)
    payouts = []
    for share in shares:
        payouts.append(("seller", left * share >> 64))
        left -= payouts[-1][1]
    tree = tree_of(house, *payouts, ("seller", left))
    clearing = house.post(tree.root, len(tree.payouts))
    house.stage.wait_until(clearing.stands_from)
    for index in claims & set(range(len(tree.payouts))):
        house.claim(clearing, tree, index)
    claimed = house.credit("seller")
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    for done, role in enumerate(order, start=1):
        house.reclaim(role)
        back = sum(house.credit(one) for one in order[:done])
        assert claimed + back <= pot
        assert house.credit(role) <= paid[roles.index(role)]
    assert claimed + back == pot
