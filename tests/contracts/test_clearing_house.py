"""Money without goods: collected, posted as one root, taken back without one."""

from __future__ import annotations

import pytest

from contracts.clearing import Opening, clearing_hash
from contracts.stage import CHALLENGE, ZERO, Stage
from node.protocol.types import Wei
from tests.contracts.conftest import Deploy, Refused
from tests.contracts.rounds import DAY, EXPIRY, MAX, ROUND, House, split, tree_of
from tests.contracts.signers import signer_of


@pytest.fixture
def house() -> House:
    return House()


# A round as it should be


def test_a_house_signs_in_a_domain_of_its_own(house: House) -> None:
    """Else what brokers sign for an escrow might pass for a root, or the other way round."""
    _, name, version, chain_id, contract, salt, extensions = house.view("eip712Domain")
    assert (name, version, salt, extensions) == ("pm-node clearing", "1", bytes(32), ())
    assert chain_id == house.stage.chain.backend.chain.chain_id
    assert contract == house.contract.address.lower()


def test_a_round_tells_what_was_paid_in_and_what_was_posted(house: House) -> None:
    tree = split(house)
    assert house.view("paidIn", ROUND, house.account("rival")) == 6
    clearing = house.post(tree.root, 3)
    opening, known = house.opening, house.view("roundOf", ROUND)
    windows = (opening.asset, opening.pay_by, opening.post_by, opening.challenge_period)
    assert known[:4] == windows
    assert known[4:9] == (clearing.stands_from - 51, 3, 1, 10, 0)
    house.send("veto", ROUND, sender="third")
    assert house.view("roundOf", ROUND)[4:] == (0, 0, 1, 10, 0, bytes(32))


def test_a_round_is_paid_in_posted_and_claimed_to_the_last_wei(house: House) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    for index in range(3):
        assert not house.view("claimed", ROUND, index)
        house.claim(clearing, tree, index)
        assert house.view("claimed", ROUND, index)
    assert [house.credit(role) for role in ("buyer", "seller", "rival")] == [7, 3, 0]
    house.send("withdraw", ZERO, house.account("seller"))
    assert house.stage.balance(house.contract.address) == 7


def test_a_round_in_what_is_no_token_collects_nothing(refused: Refused) -> None:
    house = House("0x" + "11" * 20)
    house.open()
    with refused("NotAToken", house.opening.asset):
        house.send("pay", ROUND, house.account("buyer"), 5, sender="buyer")
    with refused("WrongPayment", ZERO, 5, 0):
        house.pay("buyer", 5)


def test_a_round_collects_a_real_token(deploy: Deploy, stage: Stage) -> None:
    money = deploy("Token")
    contract = stage.clearing_house()
    now = stage.now()
    opening = Opening(ROUND, money.address, now + 100, now + 200, CHALLENGE)
    digest = stage.digest(opening.struct_hash(), contract)
    stage.send("open", opening, stage.signatures(digest), sender="rival", to=contract)
    buyer = stage.accounts["buyer"]
    stage.send("mint", buyer, 5, sender="rival", to=money)
    stage.send("approve", contract.address, 5, sender="buyer", to=money)
    stage.send("pay", ROUND, buyer, 5, sender="buyer", to=contract)
    assert stage.view("balanceOf", contract.address, of=money) == 5
    stage.wait_until(opening.post_by + 1)
    stage.send("reclaim", ROUND, buyer, sender="rival", to=contract)
    stage.send("withdraw", money.address, buyer, sender="rival", to=contract)
    assert stage.view("balanceOf", buyer, of=money) == 5


# open


def test_a_round_is_opened_once(house: House, refused: Refused) -> None:
    house.open()
    with refused("RoundExists", ROUND):
        house.open()


def test_a_round_is_opened_by_a_quorum(house: House, refused: Refused) -> None:
    opening = house.opening
    digest = house.stage.digest(opening.struct_hash(), house.contract)
    with refused("BelowQuorum", 1, 2):
        house.send("open", opening, house.stage.signatures(digest, "broker"))
    later = opening._replace(post_by=opening.post_by + 1)
    signatures = house.stage.signatures(digest)
    changed = house.stage.digest(later.struct_hash(), house.contract)
    with refused("NotSeated", 0, signer_of(changed, signatures)):
        house.send("open", later, signatures)


def test_windows_are_in_order_and_bounded(house: House, refused: Refused) -> None:
    now = house.stage.now()
    month = 30 * DAY
    for pay_by, post_by, challenge in (
        (now - 1, now + 10, CHALLENGE),
        (now + month + 1, now + month + 2, CHALLENGE),
        (now + 10, now + 10, CHALLENGE),
        (now + 10, now + 10 + month + 1, CHALLENGE),
        (now + 10, now + 20, month + 1),
        (now + 10, now + 20, CHALLENGE - 1),
        (now + 10, now + 20, 0),
    ):
        with refused("BadWindows", pay_by, post_by, challenge):
            house.open(pay_by=pay_by, post_by=post_by, challenge_period=challenge)
    house.open(pay_by=now + month, post_by=now + 2 * month, challenge_period=month)
    now = house.stage.now()
    house.open(round=bytes(32), pay_by=now, post_by=now + 1, challenge_period=CHALLENGE)


def test_no_house_lets_a_root_stand_before_it_can_be_vetoed(refused: Refused) -> None:
    stage, month = Stage(), 30 * DAY
    for challenge in (0, month + 1):
        with refused("BadWindows", 0, 0, challenge):
            stage.market("ClearingHouse", challenge)
    for challenge in (1, month):
        house = stage.market("ClearingHouse", challenge)
        assert stage.view("minimumChallenge", of=house) == challenge


# pay


def test_a_round_collects_until_its_last_second(house: House, refused: Refused) -> None:
    house.open()
    house.stage.wait_until(house.opening.pay_by)
    house.pay("buyer", 1)
    house.stage.wait_until(house.opening.pay_by + 1)
    with refused("CollectionOver", house.opening.pay_by + 1, house.opening.pay_by):
        house.pay("buyer", 1)


def test_what_is_paid_comes_with_the_call(house: House, refused: Refused) -> None:
    house.open()
    buyer = house.account("buyer")
    for sent in (4, 6):
        with refused("WrongPayment", ZERO, sent, 5):
            house.send("pay", ROUND, buyer, 5, sender="buyer", value=sent)
    for nobody in (ZERO, house.contract.address.lower()):
        with refused("BadRecipient", nobody):
            house.send("pay", ROUND, nobody, 5, sender="buyer", value=5)


def test_a_pot_is_no_more_than_half_a_word(refused: Refused) -> None:
    """Of a token of which there is any amount: nothing runs over."""
    house = House.of_token()
    most = 2**128 - 1
    house.open()
    house.pay("buyer", 1)
    for amount in (most, MAX):
        with refused("PotTooLarge", 1, amount):
            house.send("pay", ROUND, house.account("rival"), amount, sender="rival")
    house.pay("rival", most - 1)
    with refused("PotTooLarge", most, 1):
        house.pay("buyer", 1)
    house.stage.wait_until(house.opening.pay_by + 1)
    tree = tree_of(house, ("seller", most - 9), ("third", 9))
    clearing = house.post(tree.root, 2)
    house.stage.wait_until(clearing.stands_from)
    house.claim(clearing, tree, 0)
    assert house.credit("seller") == most - 9
    house.stage.wait_until(clearing.stands_from + EXPIRY)
    house.send("expire", ROUND)
    house.reclaim("rival", "buyer")
    assert (house.credit("rival"), house.credit("buyer")) == (8, 1)


def test_a_round_that_was_not_opened_is_unknown(house: House, refused: Refused) -> None:
    for function, arguments in (
        ("pay", (house.account("buyer"), 0)),
        ("post", (bytes(32), 0, 1, b"")),
        ("veto", ()),
        ("expire", ()),
        ("reclaim", (house.account("buyer"),)),
    ):
        with refused("NoSuchRound", ROUND):
            house.send(function, ROUND, *arguments)


# post


def test_a_root_is_posted_when_nobody_can_pay_in_any_more(house: House, refused: Refused) -> None:
    house.open()
    house.pay("buyer", 10)
    tree = tree_of(house, ("seller", 10))
    pay_by, post_by = house.opening.pay_by, house.opening.post_by
    house.stage.wait_until(pay_by)
    with refused("NotPosting", pay_by, pay_by, post_by):
        house.post(tree.root, 1)
    house.stage.wait_until(post_by + 1)
    with refused("NotPosting", post_by + 1, pay_by, post_by):
        house.post(tree.root, 1)


def test_a_root_is_posted_in_the_last_second(house: House) -> None:
    tree = split(house)
    house.stage.wait_until(house.opening.post_by)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    house.claim(clearing, tree, 0)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_root_is_worth_the_pot(house: House, refused: Refused, difference: int) -> None:
    tree = split(house)
    with refused("SumIsNotThePot", 10 + difference, 10):
        house.post(tree.root._replace(sum=Wei(10 + difference)), 3)


def test_a_root_is_signed_by_a_quorum_as_it_is(house: House, refused: Refused) -> None:
    tree = split(house)
    struct = clearing_hash(ROUND, tree.root, 3, 0)
    digest = house.stage.digest(struct, house.contract)
    with refused("BelowQuorum", 1, 2):
        house.send("post", ROUND, *tree.root, 3, house.stage.signatures(digest, "third"))
    for leaves, version in ((4, 0), (3, 1)):
        other = clearing_hash(ROUND, tree.root, leaves, version)
        signatures = house.stage.signatures(house.stage.digest(other, house.contract))
        with refused("NotSeated", 0, signer_of(digest, signatures)):
            house.send("post", ROUND, *tree.root, 3, signatures)


def test_a_root_has_leaves_and_not_too_many(house: House, refused: Refused) -> None:
    tree = split(house)
    for count in (0, 2**15 + 1, 2**32 + 1, 2**64 - 1):
        with refused("BadLeafCount", count, 2**15):
            house.post(tree.root, count)
    first = house.post(tree.root, 2**15)
    second = house.post(tree.root, 3, version=1)
    house.stage.wait_until(max(first.stands_from, second.stands_from))
    with refused("NotTheClearing", ROUND):
        house.claim(first, tree, 0)
    house.claim(second, tree, 0)


# veto, replace


def test_one_broker_vetoes_a_root_while_it_can_be_challenged(
    house: House, refused: Refused
) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from - 1)
    house.send("veto", ROUND, sender="third")
    house.stage.wait_until(clearing.stands_from)
    with refused("NotTheClearing", ROUND):
        house.claim(clearing, tree, 0)
    again = house.post(tree.root, 3, version=1)
    house.stage.wait_until(again.stands_from)
    house.claim(again, tree, 0)


def test_nobody_vetoes_that_does_not_sit_here(house: House, refused: Refused) -> None:
    """Nor a broker that gave notice: it has its seat no more."""
    house.post(split(house).root, 3)
    house.stage.send("giveNotice", sender="third", to=house.stage.registry)
    for role in ("rival", "third"):
        with refused("NotSeated", 0, house.account(role).lower()):
            house.send("veto", ROUND, sender=role)


def test_without_a_root_there_is_nothing_to_veto(house: House, refused: Refused) -> None:
    tree = split(house)
    with refused("NothingPosted", ROUND):
        house.send("veto", ROUND, sender="third")
    house.post(tree.root, 3)
    house.send("veto", ROUND, sender="third")
    with refused("NothingPosted", ROUND):
        house.send("veto", ROUND, sender="second")


def test_a_root_that_stands_is_vetoed_no_more(house: House, refused: Refused) -> None:
    tree = split(house)
    clearing = house.post(tree.root, 3)
    house.stage.wait_until(clearing.stands_from)
    with refused("RootStands", clearing.stands_from, clearing.stands_from - 51):
        house.send("veto", ROUND, sender="third")
    house.claim(clearing, tree, 0)


def test_a_replaced_root_can_not_be_claimed_under(house: House, refused: Refused) -> None:
    wrong = split(house)
    first = house.post(wrong.root, 3)
    house.stage.wait_until(first.stands_from - 1)
    right = tree_of(house, ("buyer", 1), ("seller", 9))
    second = house.post(right.root, 2, version=1)
    house.stage.wait_until(second.stands_from)
    with refused("NotTheClearing", ROUND):
        house.claim(first, wrong, 0)
    house.claim(second, right, 1)
    assert house.credit("seller") == 9
    with refused("RootStands", house.stage.now(), second.stands_from - 51):
        house.post(wrong.root, 3, version=2)


def test_a_signature_for_a_root_is_good_once(house: House, refused: Refused) -> None:
    tree = split(house)
    house.post(tree.root, 3)
    house.send("veto", ROUND, sender="broker")
    first, second = (
        house.stage.digest(clearing_hash(ROUND, tree.root, 3, version), house.contract)
        for version in (0, 1)
    )
    with refused("NotSeated", 0, signer_of(second, house.stage.signatures(first))):
        house.post(tree.root, 3, version=1, signed=0)


# reclaim


def test_without_a_root_everybody_takes_back_what_they_paid(house: House) -> None:
    house.collected(("buyer", 4), ("rival", 6))
    house.stage.wait_until(house.opening.post_by + 1)
    for role in ("buyer", "rival"):
        house.send("reclaim", ROUND, house.account(role))
        assert house.view("paidIn", ROUND, house.account(role)) == 0
    assert (house.credit("buyer"), house.credit("rival")) == (4, 6)


def test_nobody_takes_back_early_or_twice(house: House, refused: Refused) -> None:
    house.collected(("buyer", 4), ("rival", 6))
    pay_by, post_by = house.opening.pay_by, house.opening.post_by
    buyer = house.account("buyer")
    house.stage.wait_until(post_by)
    with refused("NotPosting", post_by, pay_by, post_by):
        house.send("reclaim", ROUND, buyer)
    house.stage.wait_until(post_by + 1)
    house.send("reclaim", ROUND, buyer)
    for account in (buyer.lower(), house.account("seller").lower()):
        with refused("NothingToReclaim", ROUND, account):
            house.send("reclaim", ROUND, account)


def test_a_root_that_is_there_keeps_the_money_for_its_leaves(
    house: House, refused: Refused
) -> None:
    tree = split(house)
    house.stage.wait_until(house.opening.post_by)
    posted = house.post(tree.root, 3).stands_from - 51
    house.stage.wait_until(posted + 10)
    with refused("RootStands", posted + 10, posted):
        house.send("reclaim", ROUND, house.account("buyer"))
    house.send("veto", ROUND, sender="second")
    house.send("reclaim", ROUND, house.account("buyer"))
    assert house.credit("buyer") == 4
