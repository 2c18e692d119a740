"""A bad leaf is always proved, an honest encryptor never convicted, and only in time."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.stage import ETHER, SECRET, ZERO, Outcome, RevertedError, Stage, State
from node.protocol import delivery, merkle
from tests.contracts.conftest import Refused
from tests.contracts.deliveries import DH, Delivery, Evidence, deliver, flipped, noise

many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.binary(min_size=32, max_size=32)


def judge(stage: Stage, made: Delivery, evidence: Evidence) -> None:
    """Ask the court alone."""
    stage.view("requireBad", made.quote, evidence, of=stage.court)


def revealed(stage: Stage, made: Delivery) -> Outcome:
    """Fund the trade and publish its secret."""
    stage.fund(made.quote)
    return stage.send("reveal", made.quote, SECRET, sender="seller")


# What is bad, and what is not


@many
@given(size=st.integers(1, 5000), data=st.data())
def test_a_corrupted_leaf_is_always_provable_and_no_other(
    stage: Stage, size: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, size - 1))
    made = deliver(stage, noise(size), flipped(at))
    bad = at // merkle.LEAF_BYTES
    for index in range(made.quote.leaf_count):
        if index == bad:
            judge(stage, made, made.evidence(index))
            continue
        with pytest.raises(RevertedError) as refusal:
            judge(stage, made, made.evidence(index))
        assert refusal.value.name == "GoodLeaf"
        assert refusal.value.arguments == (made.quote.trade_id, index)


@many
@given(size=st.integers(1, 5000), goods=st.binary(min_size=1, max_size=64))
def test_goods_that_are_something_else_altogether_are_provable_at_every_leaf(
    stage: Stage, size: int, goods: bytes
) -> None:
    made = deliver(stage, noise(size), lambda _: (goods * size)[:size])
    for index in range(made.quote.leaf_count):
        judge(stage, made, made.evidence(index))


@many
@given(size=st.integers(1, 4000), data=st.data())
def test_no_evidence_convicts_an_honest_encryptor(
    stage: Stage, size: int, data: st.DataObject
) -> None:
    made = deliver(stage, noise(size))
    honest = made.evidence(data.draw(st.integers(0, made.quote.leaf_count - 1)))
    paths = st.lists(words | st.sampled_from(honest.goods_path or (bytes(32),)), max_size=4)
    forged = honest
    for field, values in data.draw(
        st.dictionaries(st.sampled_from(Evidence._fields), st.just(None), max_size=3)
    ).items():
        assert values is None
        strategies: dict[str, st.SearchStrategy[Any]] = {
            "secret": words,
            "dh": words,
            "place": st.integers(0, 9),
            "leaf": st.binary(max_size=80) | st.just(honest.leaf[:-1]) | st.just(noise(1024)),
            "goods_path": paths,
            "offered": words | st.just(merkle.leaf_hash(honest.place, honest.leaf)),
            "offer_path": paths,
        }
        forged = forged._replace(**{field: data.draw(strategies[field])})
    with pytest.raises(RevertedError) as refusal:
        judge(stage, made, forged)
    assert refusal.value.name in {
        "GoodLeaf", "NoSuchLeaf", "NotInGoods", "NotInOffer", "WrongLeafLength",
        "WrongPathLength", "WrongSecret", "WrongSharedSecret",
    }  # fmt: skip


# The conditions, one by one


def test_an_index_past_the_leaves_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(3000))
    for index in (3, 4, 4 + 1, 2**64 - 1):  # the padding, and the first leaves plus 2^depth
        with refused("NoSuchLeaf", index, 3):
            judge(stage, made, made.evidence(1)._replace(place=index))


@pytest.mark.parametrize("field", ["goods_path", "offer_path"])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_path_of_another_length_is_refused(
    stage: Stage, refused: Refused, field: str, length: int
) -> None:
    made = deliver(stage, noise(3000), flipped(0))
    path = (*made.evidence(0).goods_path, bytes(32))[:length]
    with refused("WrongPathLength", length, 2):
        judge(stage, made, made.evidence(0, **{field: path}))


def test_a_leaf_of_another_length_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(3000))
    for index, length in ((0, 1024), (2, 952)):
        leaf = made.evidence(index).leaf
        for wrong in (b"", leaf[:-1], leaf + b"\0"):
            with refused("WrongLeafLength", index, len(wrong), length):
                judge(stage, made, made.evidence(index, leaf=wrong))


def test_an_inner_node_cannot_be_shown_as_a_leaf(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(4096))
    hashes = merkle.leaf_hashes(made.goods)
    node = b"\x01" + hashes[:64]
    with refused("WrongLeafLength", 0, 65, 1024):
        judge(stage, made, made.evidence(0, leaf=node, goods_path=made.evidence(0).goods_path[1:]))


def test_the_same_secrets_make_another_key_for_another_trade(stage: Stage) -> None:
    keys = {delivery.delivery_key(SECRET, DH, bytes([i]) * 32) for i in range(2)}
    assert len(keys) == 2
    first = deliver(stage, noise(1024), trade_id=b"1" * 32)
    again = deliver(stage, noise(1024), lambda _: first.goods, trade_id=b"2" * 32)
    judge(stage, again, again.evidence(0))


@pytest.mark.parametrize("index", [2**28 - 1, 2**28, 2**28 + 5, 2**54 - 1])
def test_leaves_past_256_gib_open_as_well(stage: Stage, refused: Refused, index: int) -> None:
    quote = stage.quote()
    key = delivery.delivery_key(SECRET, DH, quote.trade_id)
    size, plain = 2**64 - 1024, noise(1024)
    path = tuple(hashlib.sha256(bytes([level])).digest() for level in range(54))

    def root(leaf: bytes) -> bytes:
        for level, beside in enumerate(path):
            pair = beside + leaf if index >> level & 1 else leaf + beside
            leaf = hashlib.sha256(b"\x01" + pair).digest()
        return merkle.bind_root(leaf, merkle.leaf_count(size), size)

    if index == merkle.leaf_count(size):
        index -= 1
    goods = delivery.apply_to_leaf(key, index, plain)
    offered = merkle.leaf_hash(index, plain)
    quote = quote._replace(
        offer_root=root(offered),
        goods_root=root(merkle.leaf_hash(index, goods)),
        leaf_count=merkle.leaf_count(size),
        byte_length=size,
        dh_commitment=delivery.dh_commitment(DH, quote.trade_id),
    )
    shown = Evidence(SECRET, DH, index, goods, path, offered, path)
    with refused("GoodLeaf", quote.trade_id, index):
        stage.view("requireBad", quote, shown, of=stage.court)


def test_no_amount_of_gas_convicts_an_honest_encryptor(stage: Stage) -> None:
    made = deliver(stage, noise(2048))
    revealed(stage, made)
    for gas in range(60_000, 260_000, 4_000):
        with pytest.raises(RevertedError):
            stage.send("dispute", made.quote, made.evidence(1), sender="buyer", gas=gas)


def test_a_tree_whose_last_node_is_doubled_is_another_tree(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(3072))
    hashes = merkle.leaf_hashes(made.goods)
    doubled = merkle.proof(hashes + hashes[64:], 2)
    leaf = made.evidence(2).leaf
    node = hashlib.sha256(b"\x01" + hashes[64:] * 2).digest()
    top = hashlib.sha256(b"\x01" + doubled[1] + node).digest()
    with refused("NotInGoods", 2, merkle.bind_root(top, 3, 3072), made.quote.goods_root):
        judge(stage, made, made.evidence(2, leaf=leaf, goods_path=doubled))


def test_another_shared_secret_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(1024))
    other, trade_id = bytes(32), made.quote.trade_id
    commitments = (made.quote.dh_commitment, delivery.dh_commitment(other, trade_id))
    with refused("WrongSharedSecret", trade_id, *commitments):
        judge(stage, made, made.evidence(0, dh=other))


def test_another_secret_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(1024))
    digest = hashlib.sha256(bytes(32)).digest()
    with refused("WrongSecret", made.quote.trade_id, made.quote.secret_commitment, digest):
        judge(stage, made, made.evidence(0, secret=bytes(32)))


def test_a_leaf_shown_at_another_index_is_refused(stage: Stage, refused: Refused) -> None:
    """Neither a good leaf of the goods nor a hash of the offer passes for its neighbour."""
    made = deliver(stage, noise(2048))
    quote, first, second = made.quote, made.evidence(0), made.evidence(1)

    def root(left: bytes, right: bytes) -> bytes:
        return merkle.bind_root(hashlib.sha256(b"\x01" + left + right).digest(), 2, 2048)

    moved = root(first.goods_path[0], merkle.leaf_hash(1, first.leaf))
    with refused("NotInGoods", 1, moved, quote.goods_root):
        judge(stage, made, first._replace(place=1))
    moved = root(first.offer_path[0], first.offered)
    with refused("NotInOffer", 1, moved, quote.offer_root):
        judge(stage, made, second._replace(offered=first.offered, offer_path=first.offer_path))


def test_a_leaf_that_was_not_offered_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(1024))
    with refused("NotInOffer", 0, merkle.bind_root(bytes(32), 1, 1024), made.quote.offer_root):
        judge(stage, made, made.evidence(0, offered=bytes(32)))


def test_a_leaf_count_that_no_bytes_have_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(1024))
    quote = made.quote._replace(leaf_count=2)
    with refused("WrongLeafCount", 2, 1024):
        stage.view("requireBad", quote, made.evidence(0), of=stage.court)


# The step


def test_a_proof_gives_the_buyer_its_price_back(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(3000), flipped(2500))
    revealed(stage, made)
    outcome = stage.send("dispute", made.quote, made.evidence(2), sender="stranger")
    quote = made.quote
    assert stage.trade(quote.trade_id) == (State.DISPUTED, outcome.time)
    (event,) = outcome.events
    fields = {"tradeId": quote.trade_id, "index": 2, "amount": quote.price}
    assert event == ("Disputed", fields)
    assert stage.view("credits", ZERO, quote.buyer) == quote.price
    assert stage.view("credits", ZERO, quote.seller) == 0
    stage.wait_until(outcome.time + 1_000_000)
    for step in ("finalize", "refund"):
        with refused("WrongState", quote.trade_id, State.DISPUTED):
            stage.send(step, quote, sender="seller")
    with refused("WrongState", quote.trade_id, State.DISPUTED):
        stage.send("dispute", quote, made.evidence(2), sender="buyer")


@pytest.mark.parametrize("window", [0, 1, 900])
def test_a_dispute_is_heard_until_the_last_second_of_its_window(
    stage: Stage, refused: Refused, window: int
) -> None:
    made = deliver(stage, noise(1024), flipped(0), dispute_window=window, trade_id=b"a" * 32)
    until = revealed(stage, made).time + window
    stage.wait_until(until + 1)
    with refused("DisputeClosed", until + 1, until):
        stage.send("dispute", made.quote, made.evidence(0), sender="buyer")
    stage.send("finalize", made.quote, sender="seller")
    if window:
        made = deliver(stage, noise(1024), flipped(0), dispute_window=window, trade_id=b"b" * 32)
        until = revealed(stage, made).time + window
        stage.wait_until(until)
        with refused("TooEarly", until, until + 1):
            stage.send("finalize", made.quote, sender="seller")
        stage.send("dispute", made.quote, made.evidence(0), sender="buyer")


def test_a_dispute_needs_a_revealed_trade_and_its_own_terms(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(1024), flipped(0))
    trade_id = made.quote.trade_id
    with refused("WrongState", trade_id, State.NONE):
        stage.send("dispute", made.quote, made.evidence(0), sender="buyer")
    stage.fund(made.quote)
    with refused("WrongState", trade_id, State.FUNDED):
        stage.send("dispute", made.quote, made.evidence(0), sender="buyer")
    stage.send("reveal", made.quote, SECRET, sender="seller")
    richer = made.quote._replace(price=made.quote.price + 1)
    terms = [stage.view("quoteDigest", quote)[:26] for quote in (made.quote, richer)]
    with refused("WrongTerms", trade_id, *terms):
        stage.send("dispute", richer, made.evidence(0), sender="buyer")


def test_the_dispute_of_a_good_leaf_is_refused(stage: Stage, refused: Refused) -> None:
    made = deliver(stage, noise(1024))
    revealed(stage, made)
    with refused("GoodLeaf", made.quote.trade_id, 0):
        stage.send("dispute", made.quote, made.evidence(0), sender="buyer")


def test_a_broker_that_encrypted_badly_loses_its_bond(stage: Stage, refused: Refused) -> None:
    broker = stage.accounts["broker"]
    made = deliver(stage, noise(1024), flipped(0), encryptor=broker)
    other = stage.quote(trade_id=b"o" * 32)
    signature = stage.signature(other)
    revealed(stage, made)
    outcome = stage.send("dispute", made.quote, made.evidence(0), sender="rival")
    names = [event.name for event in outcome.events]
    assert names == ["Disputed", "Slashed", "Unseated"]
    slashed = outcome.events[1].fields
    assert slashed["victim"] == made.quote.buyer.lower()
    assert slashed["toVictim"] == slashed["toReporter"] == ETHER // 20
    assert slashed["burnt"] == ETHER - ETHER // 10
    with refused("NotSeated", 0, broker.lower()):
        stage.send("fund", other, signature, sender="buyer", value=other.price)


def test_only_a_broker_that_signed_the_quote_loses_its_bond_for_it() -> None:
    """A quorum could name a broker as the encryptor of garbage that it never saw."""
    stage = Stage(("broker", "second", "third"), threshold=2)
    for number, (role, loses) in enumerate(
        {"third": False, "rival": False, "second": True}.items()
    ):
        encryptor, trade_id = stage.accounts[role], bytes([number + 1]) * 32
        made = deliver(stage, noise(1024), flipped(0), encryptor=encryptor, trade_id=trade_id)
        signatures = stage.signature(made.quote, "broker", "second")
        stage.send("fund", made.quote, signatures, sender="buyer", value=made.quote.price)
        assert stage.trade(trade_id)[0] is State.FUNDED
        stage.send("reveal", made.quote, SECRET, sender="seller")
        assert stage.trade(trade_id)[0] is State.REVEALED
        outcome = stage.send("dispute", made.quote, made.evidence(0), sender="buyer")
        assert stage.trade(trade_id)[0] is State.DISPUTED
        lost = [event.fields["broker"] for event in outcome.events if event.name == "Slashed"]
        assert lost == ([encryptor.lower()] if loses else [])
        assert stage.view("wasSlashed", encryptor, of=stage.registry) is loses


def test_a_bond_that_is_gone_does_not_keep_the_buyer_from_its_money(stage: Stage) -> None:
    broker = stage.accounts["broker"]
    bad = [
        deliver(stage, noise(1024), flipped(0), encryptor=broker, trade_id=bytes([i]) * 32)
        for i in (1, 2)
    ]
    for made in bad:
        revealed(stage, made)
    for made in bad:
        stage.send("dispute", made.quote, made.evidence(0), sender="buyer")
        assert stage.trade(made.quote.trade_id)[0] is State.DISPUTED


def test_nobody_spares_a_broker_its_bond_by_sending_little_gas(stage: Stage) -> None:
    made = deliver(stage, noise(1024), flipped(0), encryptor=stage.accounts["broker"])
    revealed(stage, made)
    refusals = set()
    for gas in range(150_000, 520_000, 5_000):
        try:
            outcome = stage.send("dispute", made.quote, made.evidence(0), sender="rival", gas=gas)
        except RevertedError as error:
            refusals.add(error.name)
            continue
        names = [event.name for event in outcome.events]
        assert names == ["Disputed", "Slashed", "Unseated"]
        break
    else:
        pytest.fail("the dispute never went through")
    assert refusals == {"unnamed", "TooLittleGas"}
