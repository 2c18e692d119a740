"""The node's sum tree is the contract's: it makes the same roots, and takes the same claims."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import clearing as solidity
from contracts.stage import ZERO, RevertedError
from node.protocol import clearing
from node.protocol.eip712 import digest, struct_hash
from node.protocol.errors import LocalProtocolError
from node.protocol.sum_tree import (
    MAX_LEAVES,
    MAX_POT,
    NOTHING,
    Node,
    Payout,
    SumTree,
    above,
    depth,
    is_in,
    leaf,
)
from node.protocol.types import Address, Digest, UnixTime, Wei
from tests.contracts.rounds import ROUND, House

ACCOUNTS = [Address(account) for account in sorted(House().stage.accounts.values())]
CHANGES = ("right", "index", "amount", "account", "sum", "hash", "longer")
digests = st.binary(min_size=32, max_size=32).map(Digest)
words = st.integers(0, 2**64 - 1)
payouts = st.lists(
    st.tuples(st.sampled_from(ACCOUNTS), st.integers(0, 10**18).map(Wei)), min_size=1, max_size=9
)


@given(payouts=payouts)
def test_every_payout_is_in_its_root_and_the_root_is_worth_them_all(
    payouts: list[tuple[Address, Wei]],
) -> None:
    tree = SumTree(ROUND, payouts)
    assert tree.root.sum == sum(amount for _, amount in payouts)
    for index, payout in enumerate(tree.payouts):
        path = tree.path(index)
        assert is_in(tree.root, len(payouts), ROUND, index, payout, path)
        richer = payout._replace(amount=Wei(payout.amount + 1))
        assert not is_in(tree.root, len(payouts), ROUND, index, richer, path)
        other = Digest(hashlib.sha256(ROUND).digest())
        assert not is_in(tree.root, len(payouts), other, index, payout, path)
    assert not is_in(tree.root, len(payouts), ROUND, len(payouts), tree.payouts[-1], tree.path(0))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payouts=payouts, data=st.data())
def test_the_contract_takes_a_claim_if_and_only_if_the_leaf_is_in_the_root(
    payouts: list[tuple[Address, Wei]], data: st.DataObject
) -> None:
    """Of claims that are right, or wrong in one thing."""
    house = House()
    tree = SumTree(ROUND, payouts)
    house.collected(("buyer", tree.root.sum))
    count = len(payouts)
    posted = house.post(tree.root, count)
    house.stage.wait_until(posted.stands_from)
    done: set[int] = set()
    for _ in range(8):
        index = data.draw(st.integers(0, count - 1), "index")
        payout, path = tree.payouts[index], list(tree.path(index))
        match data.draw(st.sampled_from(CHANGES)):
            case "index":
                index = data.draw(st.integers(0, count + 2), "another index")
            case "amount":
                payout = payout._replace(amount=data.draw(words.map(Wei)))
            case "account":
                payout = payout._replace(account=data.draw(st.sampled_from(ACCOUNTS)))
            case "sum" if path:
                at = data.draw(st.integers(0, len(path) - 1))
                path[at] = path[at]._replace(sum=Wei(data.draw(st.integers(0, 2**256 - 1))))
            case "hash" if path:
                at = data.draw(st.integers(0, len(path) - 1))
                path[at] = path[at]._replace(hash=data.draw(digests))
            case "longer":
                path.append(NOTHING)
        expected = is_in(tree.root, count, ROUND, index, payout, path)
        taken, refusal = True, ""
        try:
            house.send("claim", posted, index, *payout, path)
        except RevertedError as error:
            taken, refusal = False, error.name
        assert taken == (expected and index not in done)
        assert (refusal == "AlreadyClaimed") == (expected and index in done)
        done |= {index} if taken else set()


def test_a_path_whose_sums_run_over_is_in_no_root() -> None:
    most = Wei(2**256 - 1)
    leaves = [leaf(ROUND, 0, ACCOUNTS[0], Wei(13)), leaf(ROUND, 1, ACCOUNTS[0], most)]
    top = Node(above(*leaves).hash, Wei(12))
    for index in (0, 1):
        payout = Payout(ACCOUNTS[0], leaves[index].sum)
        assert not is_in(top, 2, ROUND, index, payout, [leaves[1 - index]])
    below = Payout(ACCOUNTS[0], Wei(-1))
    assert not is_in(top, 2, ROUND, 0, below, [leaves[1]])


@pytest.mark.parametrize(
    ("payouts", "message"),
    [
        ([], "1 to 32768 leaves, got 0"),
        ([(ACCOUNTS[0], Wei(0))] * (MAX_LEAVES + 1), "got 32769"),
        ([(ACCOUNTS[0], Wei(1)), (Address(ZERO), Wei(1))], "payout 1 is to the zero account"),
        ([(ACCOUNTS[0], Wei(-1))], "payout 0 is of -1"),
        ([(ACCOUNTS[0], Wei(MAX_POT)), (ACCOUNTS[1], Wei(1))], "a pot to"),
    ],
)
def test_payouts_that_cannot_be_posted_or_drawn_make_no_tree(
    payouts: list[tuple[Address, Wei]], message: str
) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        SumTree(ROUND, payouts)


def test_a_leaf_that_is_not_there_has_no_path() -> None:
    tree = SumTree(ROUND, [(ACCOUNTS[0], Wei(MAX_POT))])
    assert tree.path(0) == ()
    assert depth(1) == 0
    for index in (-1, 1):
        with pytest.raises(LocalProtocolError, match=f"no leaf {index} of 1"):
            tree.path(index)


# ── what brokers sign ──


@given(
    round_id=digests,
    asset=st.sampled_from(ACCOUNTS),
    windows=st.tuples(words, words, words),
    root=digests,
    amount=st.integers(0, MAX_POT),
    version=words,
)
def test_openings_and_roots_are_hashed_as_the_abi_says(
    round_id: Digest,
    asset: Address,
    windows: tuple[int, int, int],
    root: Digest,
    amount: int,
    version: int,
) -> None:
    pay_by, post_by, challenge = windows
    opening = clearing.Opening(
        round=round_id,
        asset=asset,
        pay_by=UnixTime(pay_by),
        post_by=UnixTime(post_by),
        challenge_period=challenge,
    )
    assert struct_hash(opening) == solidity.Opening(round_id, asset, *windows).struct_hash()
    posted = clearing.Clearing(
        round=round_id, root=root, sum=Wei(amount), leaves=7, version=version
    )
    top = Node(root, Wei(amount))
    assert struct_hash(posted) == solidity.clearing_hash(round_id, top, 7, version)


def test_the_domain_is_that_of_the_house() -> None:
    house = House()
    domain = clearing.ClearingDomain(
        chain_id=house.stage.chain.backend.chain.chain_id,
        clearing_house=Address(house.contract.address),
    )
    opening = house.opening
    signed: Any = clearing.Opening(
        round=ROUND,
        asset=Address(opening.asset),
        pay_by=UnixTime(opening.pay_by),
        post_by=UnixTime(opening.post_by),
        challenge_period=opening.challenge_period,
    )
    assert digest(domain, signed) == house.stage.digest(opening.struct_hash(), house.contract)


NOW = UnixTime(1_700_000_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"pay_by": NOW - 1}, "pay_by"),
        ({"pay_by": NOW + clearing.MAX_WINDOW + 1}, "pay_by"),
        ({"post_by": NOW + 10}, "post_by"),
        ({"post_by": NOW + 11 + clearing.MAX_WINDOW}, "post_by"),
        ({"challenge_period": 59}, "lasts 60 to"),
        ({"challenge_period": clearing.MAX_WINDOW + 1}, "lasts 60 to"),
    ],
)
def test_an_opening_that_no_house_takes_is_named_before_it_is_signed(
    change: dict[str, Any], message: str | None
) -> None:
    terms: dict[str, Any] = {
        "round": ROUND,
        "asset": Address(ZERO),
        "pay_by": NOW + 10,
        "post_by": NOW + 20,
        "challenge_period": 60,
    }
    opening = clearing.Opening(**(terms | change))
    if message is None:
        clearing.check_opening(opening, NOW, 60)
        return
    with pytest.raises(LocalProtocolError, match=message):
        clearing.check_opening(opening, NOW, 60)
