"""The stream on the chain is the stream of the nodes, and that of the RFC."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.stage import Contract, Stage
from node.protocol.delivery import Keystream
from tests.contracts.conftest import Deploy

KEY = bytes(range(32))

# RFC 8439 §2.3.2 and §2.4.2 have nonces, which the key of one delivery does without. What they say
# of the block function is kept by Appendix A.1, vectors 1 and 2: a key and a nonce of zeros.
ZEROS = (
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)


@pytest.fixture
def libraries(deploy: Deploy) -> Contract:
    return deploy("Libraries")


def xored(stage: Stage, libraries: Contract, key: bytes, counter: int, data: bytes) -> Any:
    return stage.view("xored", key, counter, data, of=libraries)


def openssl(key: bytes, counter: int, data: bytes) -> bytes:
    """Return ChaCha20 by another implementation, which knows no counter past 32 bits."""
    low = ChaCha20(key, struct.pack("<QQ", counter, 0))
    return Cipher(low, mode=None).encryptor().update(data)


def test_the_stream_is_that_of_the_rfc(stage: Stage, libraries: Contract) -> None:
    assert xored(stage, libraries, bytes(32), 0, bytes(128)).hex() == ZEROS


def test_a_nonce_is_where_the_rfc_puts_its_first_word(stage: Stage, libraries: Contract) -> None:
    # The counter goes on into the first word of the nonce: word 13 of the state of §2.3.
    counter = (0x09000000 << 32) | 1
    nonce = struct.pack("<LLLL", 1, 0x09000000, 0, 0)
    expected = Cipher(ChaCha20(KEY, nonce), mode=None).encryptor().update(bytes(64))
    assert xored(stage, libraries, KEY, counter, bytes(64)) == expected


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.binary(min_size=32, max_size=32),
    counter=st.integers(0, 2**60),
    data=st.binary(max_size=300),
)
@example(key=b"\xff" * 32, counter=2**64 - 2, data=b"\xff" * 65)
def test_the_contract_and_openssl_make_the_same_stream_on_random_data(
    stage: Stage, libraries: Contract, key: bytes, counter: int, data: bytes
) -> None:
    if counter % 2**32 + len(data) // 64 + 1 < 2**32:
        assert xored(stage, libraries, key, counter, data) == openssl(key, counter, data)


@pytest.mark.parametrize("before", range(16))
def test_the_counter_goes_on_past_32_bits(stage: Stage, libraries: Contract, before: int) -> None:
    data = bytes(range(256)) * 4
    counter = 2**32 - before
    split = 64 * before
    expected = openssl(KEY, counter, data[:split]) if before else b""
    expected += openssl(KEY, 2**32, data[split:])
    assert xored(stage, libraries, KEY, counter, data) == expected
    assert Keystream(KEY, counter).apply(data) == expected
