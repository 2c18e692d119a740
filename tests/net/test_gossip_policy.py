"""What gossip takes, passes over and bans for, without a network."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from node.net.counters import Counters
from node.net.gossip import Gossip, Heard, TokenBucket
from node.net.limits import Limits
from node.net.redial import FIRST_PAUSE_S, LAST_PAUSE_S, after_losing, jittered, pauses
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import PeerId
from node.protocol.verdict import Verdict, accept, ignore, reject

ALICE, BOB = PeerId("alice"), PeerId("bob")


class Node:
    def __init__(self, limits: Limits | None = None) -> None:
        self.counters = Counters()
        self.bans: list[tuple[PeerId, str]] = []
        self.faults: list[str] = []
        self.gossip = Gossip(
            limits or Limits(),
            self.counters,
            lambda peer, reason: self.bans.append((peer, reason)),
            lambda where, peer, error: self.faults.append(where),
        )

    def hear(self, data: bytes, sender: PeerId = ALICE) -> tuple[bool, bool]:
        return self.gossip.admit(sender, BOB, data, verify=lambda: None)


def always(verdict: Verdict) -> Node:
    node = Node()
    node.gossip.set_validator(lambda _, __: verdict)
    return node


async def test_an_accepted_message_is_relayed_and_handed_on_with_sender_and_origin() -> None:
    node = always(accept())
    assert node.hear(b"offer") == (True, True)
    assert node.gossip.channel.receive_nowait() == Heard(ALICE, b"offer", BOB)
    assert node.counters.gossip_accepted == 1


async def test_an_ignored_message_is_counted_and_blames_nobody() -> None:
    node = always(ignore("expired"))
    for _ in range(100):
        assert node.hear(b"offer") == (False, True)
    assert node.counters.gossip_ignored == {"expired": 100}
    assert not node.bans


async def test_too_many_rejected_messages_ban_whoever_handed_them_on() -> None:
    node = always(reject("bad-signature"))
    for _ in range(Limits().gossip_rejects):
        assert node.hear(b"offer") == (False, True)
    assert not node.bans
    node.hear(b"offer", BOB)
    node.hear(b"offer")
    assert node.bans == [(ALICE, "bad-signature")]


async def test_rejections_are_forgiven_with_time(autojump_clock: MockClock) -> None:
    node = always(reject("bad-signature"))
    for _ in range(5 * Limits().gossip_rejects):
        node.hear(b"offer")
        await trio.sleep(2 * Limits().gossip_reject_window_s / Limits().gossip_rejects)
    assert not node.bans


@pytest.mark.parametrize(("data", "reason"), [(bytes(16_385), "oversize"), (b"", "empty")])
async def test_size_is_judged_before_anything_else(data: bytes, reason: str) -> None:
    node = Node()
    node.gossip.set_validator(lambda _, __: pytest.fail("the validator sees no such message"))
    assert node.hear(data) == (False, False)
    assert node.counters.gossip_rejected == {reason: 1}


async def test_a_peer_that_sends_too_fast_is_passed_over_but_not_forgotten(
    autojump_clock: MockClock,
) -> None:
    node = Node(Limits(gossip_messages_per_s=2, gossip_burst=3))
    node.gossip.set_validator(lambda _, __: accept())
    taken = [node.hear(bytes([n])) for n in range(1, 6)]
    assert taken == [(True, True)] * 3 + [(False, False)] * 2
    assert node.hear(b"from another", BOB) == (True, True)
    await trio.sleep(1)
    assert [node.hear(b"later") for _ in range(3)] == [(True, True)] * 2 + [(False, False)]
    assert node.counters.gossip_ignored == {"rate": 3}
    assert not node.bans


async def test_a_forgery_is_rejected_and_its_id_is_not_remembered() -> None:
    def forged() -> None:
        raise RemoteProtocolError("bad-peer-signature")

    node = always(accept())
    assert node.gossip.admit(ALICE, BOB, b"offer", verify=forged) == (False, False)
    assert node.counters.gossip_rejected == {"bad-peer-signature": 1}


async def test_a_validator_may_raise_what_decoding_raises() -> None:
    def decode(_: PeerId, __: bytes) -> Verdict:
        raise RemoteProtocolError("bad-cbor")

    node = Node()
    node.gossip.set_validator(decode)
    assert node.hear(b"?") == (False, True)
    assert node.counters.gossip_rejected == {"bad-cbor": 1}


async def test_a_bug_in_the_validator_is_no_fault_of_the_peers() -> None:
    node = Node()
    node.gossip.set_validator(lambda _, __: accept(str(1 // 0)))
    for _ in range(100):
        node.hear(b"offer")
    assert node.faults == ["gossip-validator"] * 100
    assert node.counters.gossip_ignored == {"internal-error": 100}
    assert not node.bans


async def test_before_there_is_a_validator_everything_is_ignored_and_may_come_again() -> None:
    node = Node()
    assert node.hear(b"offer") == (False, False)
    assert node.counters.gossip_ignored == {"not-ready": 1}


async def test_what_nobody_reads_is_counted_and_still_relayed() -> None:
    node = Node(Limits(gossip_queue=2))
    node.gossip.set_validator(lambda _, __: accept())
    assert [node.hear(bytes([n])) for n in range(1, 4)] == [(True, True)] * 3
    assert node.counters.gossip_unread == 1


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 2, now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(0.1), bucket.take(0.1)] == [True, False]
    assert bucket.take(100.0)
    assert bucket.wait(100.0) == 0
    assert bucket.wait(100.0) == pytest.approx(0.1)


def test_redialling_begins_quickly_slows_down_and_is_never_in_step() -> None:
    assert pauses(0) == FIRST_PAUSE_S
    assert sum(pauses(n) for n in range(4)) < 2.5
    assert pauses(50) == LAST_PAUSE_S
    assert pauses(10**6) == LAST_PAUSE_S
    assert after_losing(5, lasted_s=60) == 0
    assert after_losing(5, lasted_s=0.1) == 6
    drawn = {jittered(1.0) for _ in range(50)}
    assert len(drawn) > 10
    assert all(0.5 <= pause <= 1.0 for pause in drawn)
