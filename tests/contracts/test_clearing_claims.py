"""A root that stands is claimed leaf by leaf, and no leaf of another tree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.stage import ZERO, RevertedError, Stage
from node.protocol.sum_tree import NOTHING, Node, above, leaf
from node.protocol.types import Address, Digest, Wei
from tests.contracts.conftest import Refused
from tests.contracts.rewinding import Rewinding
from tests.contracts.rounds import EXPIRY, MAX, ROUND, House, split, tree_of


def new_house() -> tuple[Stage, House]:
    house = House()
    return house.stage, house


rewound = Rewinding(new_house)


@pytest.fixture
def house() -> House:
    return House()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 127, 128, 300])
def test_any_number_of_leaves_can_be_claimed(house: House, refused: Refused, count: int) -> None:
    house.collected(("buyer", count))
    tree = tree_of(house, *[("seller", 1)] * count)
    clearing = house.post(tree.root, count)
    house.stage.wait_until(clearing.stands_from)
    for index in {0, count // 2, 126 % count, 127 % count, count - 1}:
        house.claim(clearing, tree, index)
    beyond = tree_of(house, *[("seller", 1)] * (count + 1))
    # Of which there is no word of bits, or one that has room.
    name = ("NotTheClearing", ROUND) if count % 127 == 0 else ("NoSuchLeaf", count, count)
    with refused(*name):
        house.claim(clearing, beyond, count)


def test_a_claim_waits_for_the_challenge_to_end(house: House, refused: Refused) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    last = clearing.stands_from - 1
    house.stage.wait_until(last)
    with refused("RootDoesNotStand", last, last + 1):
        house.claim(clearing, tree, 0)
    sooner = clearing._replace(stands_from=last)
    with refused("NotTheClearing", ROUND):
        house.claim(sooner, tree, 0)
    house.stage.wait_until(last + 1)
    house.claim(clearing, tree, 0)


def test_a_leaf_is_claimed_once(house: House, refused: Refused) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    house.claim(clearing, tree, 1)
    with refused("AlreadyClaimed", ROUND, 1):
        house.claim(clearing, tree, 1)


def test_a_leaf_that_is_not_in_the_root_is_refused(house: House, refused: Refused) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    account, path = tree.payouts[0].account, tree.path(0)
    top = above(above(leaf(ROUND, 0, account, Wei(8)), path[0]), path[1])
    with refused("NotInRoot", *top, *tree.root):
        house.send("claim", clearing, 0, account, 8, path)
    with refused("NoSuchLeaf", 3, 3):
        house.send("claim", clearing, 3, ZERO, 0, tree.path(2))
    richer = path[0]._replace(sum=Wei(MAX))
    top = node_of(node_of(leaf(ROUND, 0, account, Wei(7)), richer), path[1])
    with refused("NotInRoot", *top, *tree.root):
        house.send("claim", clearing, 0, account, 7, (richer, path[1]))


def test_a_leaf_claimed_at_another_index_is_refused(house: House, refused: Refused) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    account, path = tree.payouts[0].account, tree.path(0)
    for index in (1, 2):
        first, second = path
        moved = leaf(ROUND, index, account, Wei(7))
        below = above(first, moved) if index & 1 else above(moved, first)
        top = above(second, below) if index & 2 else above(below, second)
        with refused("NotInRoot", *top, *tree.root):
            house.send("claim", clearing, index, account, 7, path)


def test_a_leaf_of_nobody_can_not_be_claimed_and_its_money_comes_back(
    house: House, refused: Refused
) -> None:
    """Signed by mistake: credited to the zero account, or to the house, it would be lost."""
    house.collected(("buyer", 4), ("rival", 6))
    nobody, itself = Address(ZERO), Address(house.contract.address)
    seller = Address(house.account("seller"))
    amounts = ((nobody, Wei(2)), (itself, Wei(3)), (seller, Wei(5)))
    leaves = [leaf(ROUND, i, account, amount) for i, (account, amount) in enumerate(amounts)]
    below = above(leaves[0], leaves[1]), above(leaves[2], NOTHING)
    clearing = house.post(above(*below), 3)
    house.stage.wait_until(clearing.stands_from)
    for index, account in enumerate((nobody, itself)):
        with refused("BadRecipient", account.lower()):
            path = (leaves[index ^ 1], below[1])
            house.send("claim", clearing, index, *amounts[index], path)
    house.send("claim", clearing, 2, *amounts[2], (NOTHING, below[0]))
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    house.reclaim("buyer", "rival")
    assert [house.credit(role) for role in ("seller", "buyer", "rival")] == [5, 2, 3]


def test_a_path_of_another_length_is_refused(house: House, refused: Refused) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    account, path = tree.payouts[0].account, tree.path(0)
    for wrong in (path[:1], (*path, NOTHING), ()):
        with refused("WrongPathLength", len(wrong), 2):
            house.send("claim", clearing, 0, account, 7, wrong)


@pytest.mark.parametrize("shares", [(7, 8), (MAX, 13), (13, MAX)])
def test_leaves_that_come_to_more_than_the_pot_are_refused(
    house: House, refused: Refused, shares: tuple[int, int]
) -> None:
    """Signed all the same: the sum is a lie, or ran over to the pot."""
    house.collected(("buyer", 12))
    seller = Address(house.account("seller"))
    leaves = [leaf(ROUND, i, seller, Wei(share)) for i, share in enumerate(shares)]
    clearing = house.post(Node(above(*leaves).hash, Wei(12)), 2)
    house.stage.wait_until(clearing.stands_from)
    for index, share in enumerate(shares):
        with refused("NotInRoot", clearing.root, sum(shares) % 2**256, clearing.root, 12):
            beside = [leaves[index ^ 1]]
            house.send("claim", clearing, index, house.account("seller"), share, beside)


amounts = st.integers(0, 12) | st.sampled_from((MAX, MAX - 3, 2**255))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    leaves=st.lists(amounts, min_size=1, max_size=6),
    sums=st.lists(amounts, min_size=8, max_size=8),
    claims=st.permutations(range(6)),
)
def test_no_claims_are_worth_more_than_the_pot_whatever_was_signed(
    leaves: Sequence[int], sums: Sequence[int], claims: Sequence[int]
) -> None:
    """The quorum signs a tree whose inner sums are whatever it likes."""
    house = rewound()
    house.collected(("buyer", 12))
    other, seller = 0, Address(house.account("seller"))
    levels = [[leaf(ROUND, i, seller, Wei(a)) for i, a in enumerate(leaves)]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        if len(below) % 2:
            below.append(Node(Digest(bytes(32)), Wei(sums[other])))
        pairs = zip(below[::2], below[1::2], strict=True)
        levels.append([])
        for left, right in pairs:
            other += 1
            honest = node_of(left, right)
            lies = sums[other % 8] if sums[0] % 2 else honest.sum
            levels[-1].append(honest._replace(sum=Wei(lies)))
    top = levels[-1][0]._replace(sum=Wei(12))
    clearing = house.post(top, len(leaves))
    house.stage.wait_until(clearing.stands_from)
    for index in claims:
        if index >= len(leaves):
            continue
        path = [level[index >> height ^ 1] for height, level in enumerate(levels[:-1])]
        try:
            arguments = (index, house.account("seller"), leaves[index], path)
            house.send("claim", clearing, *arguments)
        except RevertedError as error:
            assert error.name == "NotInRoot"  # noqa: PT017  (most trees here have no valid leaf)
    assert house.credit("seller") <= 12


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, 12), max_size=5), data=st.data())
def test_all_claims_in_any_order_are_worth_the_pot(cuts: list[int], data: st.DataObject) -> None:
    """Under an honest root: to the wei, and not a leaf sooner."""
    house = rewound()
    house.collected(("buyer", 12))
    ends = sorted(cuts)
    shares = [b - a for a, b in zip([0, *ends], [*ends, 12], strict=True)]
    tree = tree_of(house, *[("seller", share) for share in shares])
    clearing = house.post(tree.root, len(shares))
    house.stage.wait_until(clearing.stands_from)
    left = 12
    for index in data.draw(st.permutations(range(len(shares)))):
        assert house.credit("seller") == 12 - left
        house.claim(clearing, tree, index)
        left -= shares[index]
    assert left == 0
    assert house.credit("seller") == 12
    house.send("withdraw", ZERO, house.account("seller"))
    assert house.stage.balance(house.contract.address) == 0


def node_of(left: Node, right: Node) -> Node:
    """Return a node over two whose sums may run over."""
    return Node(above(left, right).hash, Wei((left.sum + right.sum) % 2**256))
