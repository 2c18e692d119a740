"""Addresses are text in a few known forms; anything else is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.net.addresses import parse_peer_address, parse_transport, reachable
from node.protocol.errors import LocalProtocolError
from node.protocol.signing import peer_id_of

PEER = peer_id_of(bytes(range(32)))


@pytest.mark.parametrize(
    "transport",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip6/::1/tcp/4001",
        "/dns4/broker.example/tcp/443",
        "/dns/broker/tcp/65535",
    ],
)
def test_an_address_is_read_and_written_back(transport: str) -> None:
    address = parse_peer_address(f"{transport}/p2p/{PEER}")
    assert (address.transport, address.peer) == (transport, PEER)
    assert str(address) == f"{transport}/p2p/{PEER}"
    assert parse_transport(transport) == (transport, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/udp/4001/quic-v1",
        "/ip4/127.0.0.1/tcp/4001/ws",
        "/ip4/256.0.0.1/tcp/4001",
        "/ip4/::1/tcp/4001",
        "/ip6/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/65536",
        "/dns4/-/tcp/1",
        f"/ip4/127.0.0.1/tcp/1/p2p/{PEER[:-1]}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}1",
        "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}/p2p-circuit",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        parse_transport(text)


def test_an_address_to_dial_names_its_peer() -> None:
    with pytest.raises(LocalProtocolError, match="/p2p/"):
        parse_peer_address("/ip4/127.0.0.1/tcp/4001")


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        transport, _ = parse_transport(text)
    except LocalProtocolError:
        return
    assert text.startswith(transport)


def test_a_wildcard_is_spelt_out_with_loopback_last() -> None:
    found = reachable("/ip4/0.0.0.0/tcp/4001")
    assert found[-1] == "/ip4/127.0.0.1/tcp/4001"
    assert "/ip4/0.0.0.0/tcp/4001" not in found
    assert reachable("/ip4/10.1.2.3/tcp/4001") == ("/ip4/10.1.2.3/tcp/4001",)
