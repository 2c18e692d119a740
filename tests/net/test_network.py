"""Two and three hosts on loopback: connecting, asking, gossiping, banning, leaving."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from node.net.errors import (
    CannotListenError,
    PeerBannedError,
    PeerTimeoutError,
    PeerUnreachableError,
)
from node.net.host import open_host
from node.net.limits import Limits
from node.net.streams import MessageStream
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.signing import peer_id_of
from node.protocol.types import PeerId
from node.protocol.verdict import accept, ignore, reject

LISTEN = "/ip4/127.0.0.1/tcp/0"
ECHO = "/test/echo/1"


async def echo(_: PeerId, payload: bytes) -> bytes:
    return payload


# ------------------------------------------------------------------------------ connecting


async def test_two_hosts_know_each_other_by_the_ids_of_their_keys(open_hosts: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        assert b.connected() == {a.peer_id}
        assert a.peer_id.startswith("12D3Koo")
        (address,) = a.addresses()
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{a.peer_id}")
        assert await b.connect(address) == a.peer_id
        assert len(b.connected()) == 1


async def test_the_same_key_has_the_same_id(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        first = a.peer_id
    async with open_hosts("a") as (a,):
        assert a.peer_id == first


async def test_a_connected_peer_told_us_where_it_listens(open_hosts: Any, eventually: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        await eventually(lambda: a.addresses_of(b.peer_id) == b.addresses())
        assert a.addresses_of(peer_id_of(b"k" * 32)) == ()


async def test_nobody_there_is_unreachable_and_names_the_peer(open_hosts: Any) -> None:
    nobody = peer_id_of(b"n" * 32)
    async with open_hosts("a") as (a,):
        with pytest.raises(PeerUnreachableError) as caught:
            await a.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{nobody}")
        assert (caught.value.reason, caught.value.peer) == ("unreachable", nobody)
        with pytest.raises(PeerUnreachableError):
            await a.request(nobody, ECHO, b"", deadline_s=5)


JUNK = ("", "junk", "/ip4/999.1.1.1/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1")


async def test_what_a_peer_calls_its_address_and_is_none_is_passed_over(open_hosts: Any) -> None:
    async with open_hosts("a", "b", connect=False) as (a, b):
        a.handle_requests(ECHO, echo)
        another = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_of(b'n' * 32)}"
        with pytest.raises(PeerUnreachableError) as caught:
            await b.request(a.peer_id, ECHO, b"?", deadline_s=5, addresses=(*JUNK, another))
        assert "no IP address" in caught.value.detail
        told = (*JUNK, another, b.addresses()[0], *a.addresses())
        assert await b.request(a.peer_id, ECHO, b"?", deadline_s=5, addresses=told) == b"?"


async def test_another_peer_at_the_address_is_refused(open_hosts: Any) -> None:
    async with open_hosts("a", "b", connect=False) as (a, b):
        claimed = peer_id_of(b"n" * 32)
        address = a.addresses()[0].replace(a.peer_id, claimed)
        with pytest.raises(RemoteProtocolError) as caught:
            await b.connect(address)
        assert (caught.value.reason, caught.value.peer) == ("wrong-peer", claimed)
        assert not b.connected()


async def test_a_host_that_accepts_and_says_nothing_is_given_up(open_hosts: Any) -> None:
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = silent[0].socket.getsockname()[1]
    async with open_hosts("a", limits=Limits(dial_s=0.2)) as (a,):
        with trio.fail_after(5), pytest.raises(PeerTimeoutError):
            await a.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of(b'n' * 32)}")
    await silent[0].aclose()


async def test_a_host_does_not_dial_itself_or_what_is_no_address(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        for address in (a.addresses()[0], "localhost:4001", "/ip4/127.0.0.1/tcp/1"):
            with pytest.raises(LocalProtocolError):
                await a.connect(address)


async def test_many_dials_at_once_make_one_connection(open_hosts: Any) -> None:
    async with open_hosts("a", "b", connect=False) as (a, b):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(b.connect, a.addresses()[0])
        assert b.counters.connections_opened == 1


async def test_bootstrap_peers_are_dialled_and_redialled(open_hosts: Any, eventually: Any) -> None:
    async with open_hosts("a") as (a,):
        async with open_host(b"b" * 32, bootstrap=a.addresses()) as b:
            await eventually(lambda: b.connected() == {a.peer_id})
            await a.disconnect(b.peer_id)
            await eventually(lambda: b.counters.connections_opened == 2 and b.connected())
        await eventually(lambda: not a.connected())


async def test_keeping_connected_waits_for_a_peer_that_is_not_there_yet(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a") as (a,):
        (address,) = a.addresses()
    async with open_hosts("b") as (b,), trio.open_nursery() as nursery:
        nursery.start_soon(b.keep_connected, address)
        await trio.sleep(0.1)
        port = address.split("/")[4]
        async with open_host(a_seed(), f"/ip4/127.0.0.1/tcp/{port}"):
            await eventually(lambda: b.connected() == {a.peer_id})
        nursery.cancel_scope.cancel()


def a_seed() -> bytes:
    import hashlib

    return hashlib.sha256(b"a").digest()


async def test_a_banned_peer_is_disconnected_and_stays_out(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        await a.ban(b.peer_id)
        assert a.banned() == {b.peer_id}
        await eventually(lambda: not b.connected())
        with pytest.raises(RemoteProtocolError):
            await b.request(a.peer_id, ECHO, b"", deadline_s=2, addresses=a.addresses())
        assert not a.connected()
        assert a.counters.refused["banned"] >= 1
        with pytest.raises(PeerBannedError):
            await a.connect(b.addresses()[0])


async def test_no_more_connections_than_allowed(open_hosts: Any) -> None:
    full = open_hosts("a", limits=Limits(max_connections=1))
    async with full as (a,), open_hosts("b", "c", connect=False) as (b, c):
        await b.connect(a.addresses()[0])
        with pytest.raises(RemoteProtocolError):
            await c.connect(a.addresses()[0])
            await c.request(a.peer_id, ECHO, b"", deadline_s=2)
        assert a.connected() == {b.peer_id}


# ---------------------------------------------------------------------------------- asking


@pytest.mark.parametrize("size", [0, 1, 65_508, 256 * 1024])
async def test_a_request_is_answered_whatever_its_size(open_hosts: Any, size: int) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert await b.request(a.peer_id, ECHO, payload, deadline_s=10) == payload
        assert b.counters.bytes_out[ECHO] == size + 4
        assert b.counters.bytes_in[ECHO] == size + 5
        assert a.counters.requests_served == {ECHO: 1}


async def test_a_request_dials_if_it_has_to(open_hosts: Any) -> None:
    async with open_hosts("a", "b", connect=False) as (a, b):
        a.handle_requests(ECHO, echo)
        answer = await b.request(a.peer_id, ECHO, b"hi", deadline_s=5, addresses=a.addresses())
        assert answer == b"hi"
        with pytest.raises(PeerUnreachableError, match="is not an address of"):
            await b.request(peer_id_of(b"n" * 32), ECHO, b"", deadline_s=5, addresses=a.addresses())


async def test_many_requests_at_once_are_all_answered(open_hosts: Any) -> None:
    limits = Limits(requests_per_peer=64)
    async with open_hosts("a", "b", limits=limits) as (a, b):
        a.handle_requests(ECHO, echo)
        answers: list[bytes] = []

        async def one(number: int) -> None:
            answers.append(await b.request(a.peer_id, ECHO, bytes([number]), deadline_s=20))

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, number)
        assert sorted(answers) == [bytes([number]) for number in range(30)]


async def test_a_protocol_that_the_peer_does_not_speak_is_named(open_hosts: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        with pytest.raises(RemoteProtocolError) as caught:
            await b.request(a.peer_id, "/test/nothing/1", b"", deadline_s=5)
        assert (caught.value.reason, caught.value.peer) == ("unsupported-protocol", a.peer_id)


async def test_a_handler_that_does_not_answer_is_given_up_at_the_deadline(
    open_hosts: Any,
) -> None:
    async def sleep(_: PeerId, __: bytes) -> bytes:
        await trio.sleep(3600)
        return b""

    async with open_hosts("a", "b") as (a, b):
        a.handle_requests("/test/sleep/1", sleep)
        a.handle_requests(ECHO, echo)
        before = trio.current_time()
        with pytest.raises(PeerTimeoutError) as caught:
            await b.request(a.peer_id, "/test/sleep/1", b"", deadline_s=0.3)
        assert trio.current_time() - before < 2
        assert caught.value.peer == a.peer_id
        assert await b.request(a.peer_id, ECHO, b"x", deadline_s=5) == b"x"


async def test_a_peer_that_ends_in_the_middle_of_its_answer_is_truncated(open_hosts: Any) -> None:
    async def half(_: PeerId, stream: MessageStream) -> None:
        await stream.receive(deadline_s=5)
        await stream.send_bytes(b"\0\0\0\x10only half", deadline_s=5)
        await stream.finish_sending(deadline_s=5)

    async with open_hosts("a", "b") as (a, b):
        a.handle("/test/half/1", half)
        with pytest.raises(RemoteProtocolError) as caught:
            await b.request(a.peer_id, "/test/half/1", b"", deadline_s=5)
        assert (caught.value.reason, caught.value.peer) == ("truncated", a.peer_id)


async def test_an_error_of_the_handler_reaches_the_asker_by_name(open_hosts: Any) -> None:
    async def refuse(_: PeerId, __: bytes) -> bytes:
        raise RemoteProtocolError("no-such-offer", "0xbeef")

    async with open_hosts("a", "b") as (a, b):
        a.handle_requests("/test/refuse/1", refuse)
        with pytest.raises(RemoteProtocolError) as caught:
            await b.request(a.peer_id, "/test/refuse/1", b"", deadline_s=5)
        error = caught.value
        assert (error.reason, error.detail, error.peer) == ("no-such-offer", "0xbeef", a.peer_id)


async def test_a_bug_of_the_handler_is_reported_and_the_host_goes_on(
    open_hosts: Any,
) -> None:
    async def explode(_: PeerId, __: bytes) -> bytes:
        raise ExceptionGroup("several", [KeyError("one"), ValueError("two")])

    heard: list[str] = []
    watched = open_host(b"a" * 32, LISTEN, on_fault=lambda where, peer, error: heard.append(where))
    async with watched as a, open_hosts("b") as (b,):
        await b.connect(a.addresses()[0])
        a.handle_requests("/test/explode/1", explode)
        a.handle_requests(ECHO, echo)
        with pytest.raises(RemoteProtocolError, match="internal-error"):
            await b.request(a.peer_id, "/test/explode/1", b"", deadline_s=5)
        assert await b.request(a.peer_id, ECHO, b"x", deadline_s=5) == b"x"
    assert heard == ["request /test/explode/1"]


async def test_an_unexpected_exception_of_the_library_ends_one_request_only(
    open_hosts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        with monkeypatch.context() as patch:
            patch.setattr(b._wire._swarm, "new_stream", None)
            with pytest.raises(PeerUnreachableError):
                await b.request(a.peer_id, ECHO, b"x", deadline_s=5)
        assert b.counters.faults == {"open-stream": 1}
        assert await b.request(a.peer_id, ECHO, b"x", deadline_s=5) == b"x"


# ------------------------------------------------------------------------------- gossiping


async def test_two_peers_hear_each_other_as_soon_as_they_are_connected(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        await eventually(lambda: a.gossiping_with() and b.gossiping_with())
        await a.publish(b"from a")
        await b.publish(b"from b")
        with trio.fail_after(1):
            assert await b.gossip().receive() == (a.peer_id, b"from a", a.peer_id)
            assert await a.gossip().receive() == (b.peer_id, b"from b", b.peer_id)


async def test_a_message_is_relayed_and_keeps_its_origin(open_hosts: Any, eventually: Any) -> None:
    async with open_hosts("hub", "a", "b") as (hub, a, b):
        await eventually(lambda: len(hub.gossiping_with()) == 2 and a.gossiping_with())
        await a.publish(b"far")
        with trio.fail_after(5):
            heard = await b.gossip().receive()
        assert heard == (hub.peer_id, b"far", a.peer_id)
        assert a.gossip().statistics().current_buffer_used == 0


async def test_what_is_not_accepted_is_not_relayed(open_hosts: Any, eventually: Any) -> None:
    async with open_hosts("hub", "a", "b") as (hub, a, b):
        hub.set_gossip_validator(
            lambda _, data: {b"ignore": ignore("old"), b"reject": reject("bad")}.get(data, accept())
        )
        await eventually(lambda: len(hub.gossiping_with()) == 2 and a.gossiping_with())
        for data in (b"ignore", b"reject", b"accept"):
            await a.publish(data)
        with trio.fail_after(5):
            assert (await b.gossip().receive()).data == b"accept"
        assert hub.counters.gossip_ignored == {"old": 1}
        assert hub.counters.gossip_rejected == {"bad": 1}
        assert (hub.counters.gossip_accepted, a.counters.gossip_published) == (1, 3)
        assert a.counters.bytes_out["gossip"] > 0
        assert hub.counters.bytes_in["gossip"] > 0


async def test_a_peer_that_comes_later_hears_what_is_published_then(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, _), open_hosts("late") as (late,):
        await eventually(a.gossiping_with)
        await a.publish(b"early")
        await late.connect(a.addresses()[0])
        await eventually(lambda: late.peer_id in a.gossiping_with())
        await a.publish(b"now")
        with trio.fail_after(2):
            while (await late.gossip().receive()).data != b"now":
                pass


async def test_whoever_sends_rubbish_is_banned_and_disconnected(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b", limits=Limits(gossip_rejects=3)) as (a, b):
        a.set_gossip_validator(lambda _, __: reject("bad-schema"))
        await eventually(lambda: a.peer_id in b.gossiping_with())
        for number in range(5):
            await b.publish(bytes([number]))
        await eventually(lambda: a.banned() == {b.peer_id} and not a.connected())
        assert a.counters.refused["banned-for-bad-schema"] == 1


# --------------------------------------------------------------------------------- leaving


async def test_leaving_is_quick_even_with_work_in_progress(open_hosts: Any) -> None:
    async def sleep(_: PeerId, __: bytes) -> bytes:
        await trio.sleep(3600)
        return b""

    async with open_hosts("a", "b", "c") as (a, b, c):
        a.handle_requests("/test/sleep/1", sleep)
        async with trio.open_nursery() as nursery:
            for peer in (b, c):
                nursery.start_soon(ask_and_forget, peer, a.peer_id)
                nursery.start_soon(peer.keep_connected, a.addresses()[0])
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        before = trio.current_time()
    assert trio.current_time() - before < 3


async def ask_and_forget(asker: Any, peer: PeerId) -> None:
    await asker.request(peer, "/test/sleep/1", b"", deadline_s=60)


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_host(b"a" * 32, LISTEN):
            raise ZeroDivisionError


async def test_cancelling_the_block_closes_the_host() -> None:
    with trio.move_on_after(0.2) as scope:
        async with open_host(b"a" * 32, LISTEN) as network:
            (address,) = network.addresses()
            await trio.sleep(3600)
    assert scope.cancelled_caught
    port = int(address.split("/")[4])
    async with open_host(b"b" * 32, f"/ip4/127.0.0.1/tcp/{port}"):
        pass


async def test_a_host_needs_a_key_and_an_address_it_can_have() -> None:
    with pytest.raises(LocalProtocolError):
        async with open_host(b"short", LISTEN):
            pass
    with pytest.raises(LocalProtocolError):
        async with open_host(b"a" * 32, bootstrap=["nowhere"]):
            pass
    with pytest.raises(CannotListenError):
        async with open_host(b"a" * 32, "/ip4/203.0.113.1/tcp/4001"):
            pass
