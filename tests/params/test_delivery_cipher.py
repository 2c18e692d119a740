"""The cipher of a delivery against the RFCs, against a plain oracle, and around its edges."""

from __future__ import annotations

import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol import delivery
from node.protocol.delivery import Keystream
from node.protocol.errors import LocalProtocolError, RemoteProtocolError

KEY = bytes(range(32))
keys = st.binary(min_size=32, max_size=32)
QUARTERS = [
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
]  # fmt: skip


def oracle_block(key: bytes, last_words: bytes) -> bytes:
    """RFC 8439 §2.3 in plain integers; `last_words` are the words 12 to 15 of the state."""

    def turn(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF

    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + last_words))
    work = list(state)
    for _ in range(10):
        for a, b, c, d in QUARTERS:
            for x, y, z, by in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
                work[x] = (work[x] + work[y]) & 0xFFFFFFFF
                work[z] = turn(work[z] ^ work[x], by)
    return struct.pack("<16I", *((w + s) & 0xFFFFFFFF for w, s in zip(work, state, strict=True)))


def oracle_stream(key: bytes, first_block: int, blocks: int) -> bytes:
    return b"".join(
        oracle_block(key, struct.pack("<QQ", first_block + i, 0)) for i in range(blocks)
    )


def test_the_oracle_gives_the_block_of_rfc_8439_section_2_3_2() -> None:
    block = oracle_block(KEY, bytes.fromhex("01000000 00000009 0000004a 00000000"))
    assert block.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize(
    ("key", "block", "keystream"),
    [
        ("00" * 32, 0, ("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
                       "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586")),
        ("00" * 32, 1, ("9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
                       "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f")),
        ("00" * 31 + "01", 1, ("3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
                              "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0")),
        ("00ff" + "00" * 30, 2, ("72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
                                "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096")),
    ],
)  # fmt: skip
def test_the_keystream_has_the_blocks_of_rfc_8439_appendix_a_1(
    key: str, block: int, keystream: str
) -> None:
    assert Keystream(bytes.fromhex(key), block).apply(bytes(64)).hex() == keystream


def test_the_shared_secret_is_that_of_rfc_7748_section_6_1() -> None:
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert delivery.public_key(bob).hex() == (
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    )
    assert delivery.shared_secret(bob, alice).hex() == (
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    )


@given(keys, keys)
def test_both_sides_come_to_the_same_secret(buyer: bytes, seller: bytes) -> None:
    at_buyer = delivery.shared_secret(buyer, delivery.public_key(seller))
    assert at_buyer == delivery.shared_secret(seller, delivery.public_key(buyer))


@pytest.mark.parametrize(
    "public",
    [
        bytes(32),
        b"\1" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        b"",
        bytes(31),
        bytes(33),
    ],
)
def test_a_key_that_forces_the_secret_is_refused(public: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        delivery.shared_secret(KEY, public)
    assert refusal.value.reason == "bad-dh-key"


@given(keys, st.binary(max_size=3000), st.data())
def test_a_stream_in_any_chunks_is_the_same_stream(
    key: bytes, data: bytes, draw: st.DataObject
) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    stream = Keystream(key)
    pieces = [
        stream.apply(memoryview(data)[begin:end])
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)
    ]
    assert b"".join(pieces) == Keystream(key).apply(data)
    assert Keystream(key).apply(b"".join(pieces)) == data


@given(keys, st.integers(0, 30), st.integers(1, 1024))
def test_a_leaf_opens_alone_as_it_was_sealed_in_the_stream(
    key: bytes, index: int, length: int
) -> None:
    data = sha256(key).digest() * (index * 32) + b"\xa5" * length
    sealed = Keystream(key).apply(data)
    leaf = sealed[index * 1024 :]
    assert delivery.apply_to_leaf(key, index, leaf) == b"\xa5" * length
    assert leaf == delivery.apply_to_leaf(key, index, data[index * 1024 :])


def test_the_counter_of_a_far_leaf_reaches_into_the_next_word() -> None:
    index = (7 << 28) + 3  # past 1.75 TiB: 7 in word 13, 48 in word 12
    by_words = b"".join(oracle_block(KEY, struct.pack("<IIII", 48 + i, 7, 0, 0)) for i in range(16))
    assert delivery.apply_to_leaf(KEY, index, bytes(1024)) == by_words


@pytest.mark.parametrize("before", [0, 1, 2, 64, 65])
@pytest.mark.parametrize("turn", [1, 2, 2**31])
def test_a_stream_goes_on_past_each_256_gib(before: int, turn: int) -> None:
    first = turn * 2**32 - before
    want = oracle_stream(KEY, first, before + 3)
    whole = Keystream(KEY, first).apply(bytes(len(want)))
    assert whole == want
    stream = Keystream(KEY, first)
    assert b"".join(stream.apply(bytes(n)) for n in _pieces(len(want), 37)) == want
    stream = Keystream(KEY, first)
    assert b"".join(stream.apply(bytes(n)) for n in _pieces(len(want), 64)) == want


@given(keys, st.binary(max_size=3000), st.integers(0, 50), st.integers(1, 700))
def test_a_stream_into_a_buffer_of_ours_is_the_same_stream(
    key: bytes, data: bytes, before: int, size: int
) -> None:
    first = 2**32 - before
    stream, sealed = Keystream(key, first), bytearray(b"\xff" * len(data))
    for at in range(0, len(data), size):
        stream.apply_into(data[at : at + size], memoryview(sealed)[at : at + size])
    assert sealed == Keystream(key, first).apply(data)
    Keystream(key, first).apply_into(memoryview(sealed), sealed)
    assert sealed == data


@pytest.mark.parametrize("room", [0, 99, 101])
def test_a_buffer_of_another_length_is_our_own_mistake(room: int) -> None:
    with pytest.raises(LocalProtocolError):
        Keystream(KEY).apply_into(bytes(100), bytearray(room))


def _pieces(total: int, size: int) -> list[int]:
    return [min(size, total - at) for at in range(0, total, size)]


def test_the_keystream_has_an_end_and_never_starts_over() -> None:
    stream = Keystream(KEY, 2**64 - 1)
    assert stream.apply(bytes(64)) == oracle_stream(KEY, 2**64 - 1, 1)
    assert stream.apply(b"") == b""
    with pytest.raises(LocalProtocolError):
        stream.apply(b"x")
    with pytest.raises(LocalProtocolError):
        Keystream(KEY, 2**64)
    with pytest.raises(LocalProtocolError):
        Keystream(KEY, -1)


def test_keys_and_commitments_are_the_hashes_of_the_design() -> None:
    secret, dh, trade = b"s" * 32, b"d" * 32, b"t" * 32
    assert delivery.delivery_key(secret, dh, trade) == sha256(b"\2" + secret + dh + trade).digest()
    assert delivery.dh_commitment(dh, trade) == sha256(dh + trade).digest()
    assert delivery.secret_commitment(secret) == sha256(secret).digest()


@given(keys, keys, keys, st.integers(0, 95))
def test_the_key_depends_on_every_byte_of_all_three(a: bytes, b: bytes, c: bytes, at: int) -> None:
    parts = bytearray(a + b + c)
    parts[at] ^= 1
    other = bytes(parts)
    assert delivery.delivery_key(a, b, c) != delivery.delivery_key(
        other[:32], other[32:64], other[64:]
    )


def test_a_value_of_another_length_is_our_own_mistake() -> None:
    good, short = bytes(32), bytes(31)
    for call in (
        lambda: delivery.delivery_key(short, good, good),
        lambda: delivery.delivery_key(good, short, good),
        lambda: delivery.delivery_key(good, good, short),
        lambda: delivery.dh_commitment(short, good),
        lambda: delivery.dh_commitment(good, short),
        lambda: delivery.secret_commitment(short),
        lambda: delivery.public_key(short),
        lambda: delivery.shared_secret(short, good),
        lambda: Keystream(short),
    ):
        with pytest.raises(LocalProtocolError):
            call()
