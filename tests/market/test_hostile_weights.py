"""Weights that are not what they are said to be are refused by name, and not kept."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from node.agent.agent import Agent
from node.params.encoding import encode_tensors
from node.protocol import cbor
from node.protocol.errors import RemoteProtocolError
from node.protocol.parameters import TensorSpec, encode_header
from node.protocol.types import Digest
from tests.market.market import (
    open_market,
)
from tests.market.strangers import GOOD_BLOB, a_trade_goes_on, offer_of, pair, root_of

MESHSUB = "/meshsub/1.1.0"


# ── weights that are not what they are said to be ──


def header_of(*tensors: TensorSpec) -> bytes:
    return framed(encode_header(tensors))


def framed(header: bytes) -> bytes:
    return struct.pack(">I", len(header)) + header


def forged_header() -> bytes:
    """As ours, but for the shape: four exabytes in a file of a hundred bytes."""
    header = encode_header((NOISE,))
    shape, huge = cbor.encode([48, 64]), cbor.encode([2**31, 2**31])
    assert header.count(shape) == 1
    return framed(header.replace(shape, huge))


def floats(count: int, value: float = 1.0) -> bytes:
    return np.full(count, value, dtype="<f4").tobytes()


NOISE = TensorSpec("noise", "F32", (48, 64))
HOSTILE: dict[str, bytes] = {
    "another shape": encode_tensors({"noise": torch.zeros(48, 63)}),
    "another name": encode_tensors({"loise": torch.zeros(48, 64)}),
    "another type": encode_tensors({"noise": torch.zeros(48, 64, dtype=torch.float64)}),
    "one tensor too many": encode_tensors({"noise": torch.zeros(48, 64), "more": torch.zeros(4)}),
    "bytes left over": GOOD_BLOB + b"\0",
    "bytes missing": GOOD_BLOB[:-1],
    "not a number": header_of(NOISE) + floats(48 * 64, float("nan")),
    "infinite": header_of(NOISE) + floats(48 * 64, float("inf")),
    "a header of four gigabytes": b"\xff\xff\xff\xff" + GOOD_BLOB[4:],
    "a header that is no header": struct.pack(">I", 8)
    + b"\xa1\x00\x00\x00\x00\x00\x00\x00"
    + GOOD_BLOB,
    "a shape of no bytes": forged_header() + bytes(100),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system",
    "a safetensors file": struct.pack("<Q", 2) + b"{}" + bytes(100),
    "one byte": b"\0",
}


async def test_weights_that_are_not_what_the_offer_says_are_refused_and_not_kept(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await pair(market)
        hostile = await market.join("hostile", Agent)
        broker = market.broker
        reasons: dict[str, str] = {}
        async with a_trade_goes_on(market):
            for name, blob in HOSTILE.items():
                with pytest.raises(RemoteProtocolError) as caught:
                    await hostile.submit(offer_of(hostile, blob), blob)
                reasons[name] = caught.value.reason
        assert set(reasons) == set(HOSTILE)
        assert not {"internal-error", "refused", "timeout"} & set(reasons.values()), reasons
        assert reasons["not a number"] == reasons["infinite"] == "not-finite"
        roots = {root_of(blob) for blob in HOSTILE.values()}
        assert not roots & broker.station.blobs.roots()
        assert not list(broker.station.blobs.path(Digest(bytes(32))).parent.glob("*.part*"))

        # and the good ones of the same account are taken
        await hostile.submit(offer_of(hostile, GOOD_BLOB), GOOD_BLOB)
        assert root_of(GOOD_BLOB) in broker.station.blobs.roots()


async def test_other_bytes_than_were_promised_are_refused_by_the_broker(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        await pair(market)
        hostile = await market.join("hostile", Agent)
        promised = offer_of(hostile, GOOD_BLOB)
        other = bytearray(GOOD_BLOB)
        other[5_000] ^= 1
        root = root_of(GOOD_BLOB)
        async with a_trade_goes_on(market):
            # right hashes, a wrong leaf
            blobs = hostile.station.blobs
            hostile.station.blobs.put_bytes(GOOD_BLOB)
            path = blobs.path(root)
            path.write_bytes(bytes(other))
            hostile.station.served.add(root)
            for _ in range(2):
                with pytest.raises(RemoteProtocolError) as caught:
                    await hostile.submits(hostile.station.sign(promised)[1])
                assert caught.value.reason == "wrong-chunk"
            # weights that are not there at all
            path.unlink()
            with pytest.raises(RemoteProtocolError) as caught:
                await hostile.submits(hostile.station.sign(promised)[1])
            assert caught.value.reason == "unknown-weights"
            # and more than anybody takes
            huge = dataclasses.replace(
                promised, byte_length=2**60, leaf_count=2**50, nonce=promised.nonce + 1_000
            )
            with pytest.raises(RemoteProtocolError) as caught:
                await hostile.submits(hostile.station.sign(huge)[1])
            assert caught.value.reason == "too-large"
