"""Whose signature it is: nobody else's passes, and no second form of one."""

from __future__ import annotations

import base58
import pytest
from coincurve import PrivateKey, PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from eth_account import Account
from eth_keys.datatypes import PrivateKey as OtherPrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PublicKey as PeerPublicKey
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID

from node.protocol.errors import RemoteProtocolError
from node.protocol.signing import (
    address_of,
    peer_id_of,
    peer_sign,
    peer_verify,
    public_key_of,
    recover,
    sign_digest,
)
from node.protocol.types import Digest, PeerId
from tests.protocol.cast import SELLER, STRANGER, word

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
FIELD = 2**256 - 2**32 - 977
GROUP = 2**252 + 27742317777372353535851937790883648493
"""The order of Ed25519's group."""
DIGEST = word("a digest")
GOOD = sign_digest(SELLER.account_key, DIGEST)
R, S, V = int.from_bytes(GOOD[:32], "big"), int.from_bytes(GOOD[32:64], "big"), GOOD[64]

keys = st.integers(1, ORDER - 1).map(lambda k: k.to_bytes(32, "big"))
words = st.binary(min_size=32, max_size=32).map(Digest)


def signature(r: int, s: int, v: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([v])


def somebody(digest: Digest, data: bytes) -> str:
    """Return who signed, or the reason for which nobody did; any other error is a fault."""
    try:
        return recover(digest, data)
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason == "bad-signature"
    return reason


def refused(data: bytes, digest: Digest = DIGEST) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        recover(digest, data)
    assert caught.value.reason == "bad-signature"


@settings(max_examples=60, deadline=None)
@given(key=keys, digest=words)
def test_a_signature_leads_back_to_its_account(key: bytes, digest: Digest) -> None:
    made = sign_digest(key, digest)
    assert recover(digest, made) == address_of(key)
    assert made[64] in {27, 28}
    assert int.from_bytes(made[32:64], "big") <= ORDER // 2
    assert sign_digest(key, digest) == made


@settings(max_examples=30, deadline=None)
@given(key=keys, digest=words)
def test_another_library_signs_the_same_and_names_the_same_account(
    key: bytes, digest: Digest
) -> None:
    assert bytes(Account.unsafe_sign_hash(digest, key).signature) == sign_digest(key, digest)
    assert str(OtherPrivateKey(key).public_key.to_checksum_address()) == address_of(key)


@settings(max_examples=200, deadline=None)
@given(digest=words, data=st.one_of(st.binary(max_size=70), st.binary(min_size=65, max_size=65)))
def test_every_byte_string_is_a_signature_of_somebody_or_is_refused(
    digest: Digest, data: bytes
) -> None:
    assert somebody(digest, data) != SELLER.account


@pytest.mark.parametrize("bit", range(0, 65 * 8, 7))
def test_one_bit_off_is_not_the_sellers_signature(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << bit % 8
    assert somebody(DIGEST, bytes(changed)) != SELLER.account


def test_another_digest_is_not_signed_by_it() -> None:
    assert recover(DIGEST, GOOD) == SELLER.account
    assert recover(word("another digest"), GOOD) != SELLER.account


def test_the_mirrored_signature_is_refused() -> None:
    twin = signature(R, ORDER - S, 55 - V)
    # it is good arithmetic: only its form is refused
    compact = twin[:64] + bytes([twin[64] - 27])
    made = PrivateKey(SELLER.account_key).public_key
    assert made.from_signature_and_message(compact, DIGEST, hasher=None) == made
    refused(twin)


def test_the_largest_s_is_half_the_order() -> None:
    recover(DIGEST, signature(R, ORDER // 2, V))
    refused(signature(R, ORDER // 2 + 1, V))


@pytest.mark.parametrize("v", [0, 1, 2, 3, 26, 29, 30, 31, 32, 35, 37, 128, 255])
def test_v_is_27_or_28(v: int) -> None:
    refused(signature(R, S, v))


def test_a_point_whose_x_is_over_the_order_has_no_v() -> None:
    # r = x - order is small: another library would say v = 29 or 30, the contract never does
    recovered = 0
    for r in range(1, 12):
        compact = signature(r, S, 2)
        try:
            PublicKey.from_signature_and_message(compact, DIGEST, hasher=None)
        except ValueError:
            continue
        recovered += 1
        for v in (29, 30):
            refused(signature(r, S, v))
    assert recovered


@pytest.mark.parametrize("length", [0, 1, 63, 64, 66, 130])
def test_a_signature_has_65_bytes(length: int) -> None:
    refused((GOOD * 2)[:length])


@pytest.mark.parametrize(
    ("r", "s"),
    [
        (0, 0),
        (0, S),
        (R, 0),
        (ORDER, S),
        (ORDER + 1, S),
        (ORDER - 1, 0),
        (FIELD, S),
        (FIELD - 1, S),
        (2**256 - 1, S),
        (R, ORDER),
        (R, ORDER - 1),
        (R, ORDER + 1),
        (R, 2**256 - 1),
        (5, S),  # the curve has no point with x = 5
        (0, ORDER),
        (ORDER, 0),
        (2**256 - 1, 2**256 - 1),
    ],
)
@pytest.mark.parametrize("v", [27, 28])
def test_numbers_out_of_range_or_off_the_curve_are_refused(r: int, s: int, v: int) -> None:
    refused(signature(r, s, v))


def test_a_signature_whose_key_would_be_the_point_at_infinity_is_refused() -> None:
    # choose R = k·G and s = z/k: then Q = r^-1 (s·R - z·G) = 0
    nonce = 7
    point = PrivateKey(nonce.to_bytes(32, "big")).public_key.format(compressed=True)
    z = int.from_bytes(DIGEST, "big")
    s = z * pow(nonce, -1, ORDER) % ORDER
    v = 27 + (point[0] & 1)
    if s > ORDER // 2:
        s, v = ORDER - s, 55 - v
    refused(signature(int.from_bytes(point[1:], "big"), s, v))


def test_the_account_of_a_key_is_the_one_written_down() -> None:
    # the first account of every Ethereum test chain
    key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
    assert address_of(bytes.fromhex(key)) == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


# ── peers ──

RAW = Ed25519PrivateKey.from_private_bytes(SELLER.peer_seed).public_key().public_bytes_raw()
PREFIX = bytes.fromhex("002408011220")


def name(raw: bytes) -> PeerId:
    return PeerId(base58.b58encode(raw).decode())


def refused_peer(peer: PeerId) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        public_key_of(peer)
    assert caught.value.reason == "bad-peer-id"
    with pytest.raises(RemoteProtocolError) as caught:
        peer_verify(peer, b"message", peer_sign(SELLER.peer_seed, b"message"))
    assert caught.value.reason == "bad-peer-id"


def refused_peer_signature(peer: PeerId, message: bytes, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        peer_verify(peer, message, data)
    assert caught.value.reason == "bad-peer-signature"


@settings(max_examples=40, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=100))
def test_a_peer_is_known_by_its_id_alone(seed: bytes, message: bytes) -> None:
    raw = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    peer = peer_id_of(raw)
    assert peer == str(ID.from_pubkey(PeerPublicKey.from_bytes(raw)))
    assert public_key_of(peer).public_bytes_raw() == raw
    peer_verify(peer, message, peer_sign(seed, message))


def test_the_id_of_a_key_is_the_one_written_down() -> None:
    # the key pair in libp2p's own specification of peer ids
    raw = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    seed = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
    assert Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() == raw
    assert peer_id_of(raw) == "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "1",
        "11",
        SELLER.peer_id[:-1],
        SELLER.peer_id[1:],
        SELLER.peer_id + "1",
        "1" + SELLER.peer_id,
        " " + SELLER.peer_id,
        SELLER.peer_id + "\n",
        SELLER.peer_id + "\0",
        SELLER.peer_id.lower(),
        SELLER.peer_id[:10] + "0" + SELLER.peer_id[11:],
        SELLER.peer_id[:10] + "é" + SELLER.peer_id[11:],
        "/p2p/" + SELLER.peer_id,
        name(RAW),
        name(PREFIX),
        name(PREFIX + RAW[:-1]),
        name(PREFIX + RAW + b"\0"),
        name(bytes.fromhex("002508011221") + RAW + b"\0"),
        name(bytes.fromhex("002508021221") + b"\2" + RAW),
        name(bytes.fromhex("002408021220") + RAW),
        name(bytes.fromhex("122008011220") + RAW),
        name(bytes.fromhex("00a40008011220") + RAW),
        str(ID.from_pubkey(create_new_key_pair(b"\x01" * 32).public_key)),
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "bafzaajaiaejca24q7uhr7adt3rtai4ixtn2r3q72kccwvwzg6wnfetwqyvrs5n2d",
        "k51qzi5uqu5dh9jhmfwpn3jvcfl8qmq3zrpwxs8p8l1vy9o4f2p7u2j4g5w7ar",
        "z" * 128,
    ],
)
def test_an_id_of_another_kind_or_length_names_nobody(peer: str) -> None:
    refused_peer(PeerId(peer))


@settings(max_examples=100, deadline=None)
@given(peer=st.text(max_size=64).map(PeerId))
def test_every_text_is_the_id_of_a_peer_or_is_refused(peer: PeerId) -> None:
    refused_peer(peer)


def test_a_peers_signature_is_good_for_one_message_of_one_peer() -> None:
    data = peer_sign(SELLER.peer_seed, b"message")
    peer_verify(SELLER.peer_id, b"message", data)
    refused_peer_signature(SELLER.peer_id, b"another", data)
    refused_peer_signature(SELLER.peer_id, b"", data)
    refused_peer_signature(STRANGER.peer_id, b"message", data)


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128])
def test_a_peers_signature_has_64_bytes(length: int) -> None:
    data = peer_sign(SELLER.peer_seed, b"message")
    refused_peer_signature(SELLER.peer_id, b"message", (data * 2)[:length])


def test_a_peers_signature_has_one_form() -> None:
    data = peer_sign(SELLER.peer_seed, b"message")
    s = int.from_bytes(data[32:], "little")
    for times in range(1, 15):
        again = s + times * GROUP
        if again < 2**256:
            changed = data[:32] + again.to_bytes(32, "little")
            refused_peer_signature(SELLER.peer_id, b"message", changed)
    for bit in (5, 6, 7):
        changed = data[:63] + bytes([data[63] ^ (1 << bit)])
        refused_peer_signature(SELLER.peer_id, b"message", changed)
    refused_peer_signature(
        SELLER.peer_id, b"message", data[:31] + bytes([data[31] ^ 0x80]) + data[32:]
    )
    refused_peer_signature(SELLER.peer_id, b"message", bytes(64))
    refused_peer_signature(SELLER.peer_id, b"message", b"\xff" * 64)


LOW_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


@pytest.mark.parametrize("key", LOW_ORDER)
def test_a_key_for_which_anybody_can_sign_names_nobody(key: str) -> None:
    refused_peer(peer_id_of(bytes.fromhex(key)))


def test_one_signature_would_be_good_for_every_message_of_such_a_key() -> None:
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(LOW_ORDER[0]))
    for message in (b"message", b"another"):
        key.verify(b"\x01" + bytes(63), message)
