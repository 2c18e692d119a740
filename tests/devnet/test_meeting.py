"""In an experiment everybody has offered before anybody buys, and whoever leaves is not missed."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.agent.session import STAGES
from node.devnet.meeting import Meeting, arrival, serve_meeting
from node.roles.meeting import LONGEST_LINE, MeetingLostError, meeting_at
from node.roles.ports import port_of

NAMES = ("a", "b", "c")


async def test_nobody_is_a_stage_ahead_of_anybody() -> None:
    meeting = Meeting(NAMES)
    at = dict.fromkeys(NAMES, 0)

    async def play(name: str, pause: float) -> None:
        for step in range(3 * len(STAGES)):
            await trio.sleep(pause)
            at[name] = step + 1
            others = await meeting.arrive(name, 1 + step // len(STAGES), STAGES[step % len(STAGES)])
            assert others == 2
            assert min(at.values()) >= step + 1

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(NAMES):
            nursery.start_soon(play, name, 0.001 * number)
    assert set(at.values()) == {3 * len(STAGES)}


async def test_whoever_leaves_is_waited_for_no_longer() -> None:
    meeting = Meeting(NAMES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meeting.arrive, "a", 3, "offered")
        nursery.start_soon(meeting.arrive, "b", 3, "offered")
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        meeting.leave("c")
        meeting.leave("c")
    assert await meeting.arrive("c", 1, "offered") == 2  # a stranger waits, and is not waited for


@given(rounds=st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_one_that_comes_back_in_an_earlier_round_is_waited_for(rounds: list[int]) -> None:
    """Agents of a run that was interrupted may have played different numbers of rounds."""

    async def play() -> None:
        meeting = Meeting(NAMES)
        met: list[tuple[int, str]] = []

        async def go_on(name: str, first: int) -> None:
            for round_ in range(first, 8):
                for stage in STAGES:
                    await meeting.arrive(name, round_, stage)
                    met.append((round_, name))
            meeting.leave(name)

        async with trio.open_nursery() as nursery:
            for name, first in zip(NAMES, rounds, strict=True):
                nursery.start_soon(go_on, name, first)
        behind = max(rounds)
        assert [r for r, _ in met if r < behind] == sorted(r for r, _ in met if r < behind)

    trio.run(play)


async def test_agents_of_other_processes_come_to_the_meeting_over_loopback() -> None:
    meeting = Meeting(NAMES)
    met: list[tuple[int, int, str]] = []

    async def play(address: str, number: int) -> None:
        meet = meeting_at(address, number)
        for round_ in (1, 2):
            for stage in STAGES:
                assert await meet(round_, stage) == 2
                met.append((round_, STAGES.index(stage), NAMES[number]))
        if number == 0:
            meeting.leave(NAMES[number])
        else:
            assert await meet(3, "offered") == 1

    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_meeting, meeting, NAMES)
        with trio.fail_after(30):
            async with trio.open_nursery() as agents:
                for number in range(len(NAMES)):
                    agents.start_soon(play, address, number)
        nursery.cancel_scope.cancel()
    assert met == sorted(met, key=lambda one: one[:2])
    assert len(met) == 2 * len(STAGES) * len(NAMES)


async def test_an_agent_whose_meeting_is_gone_says_so() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(MeetingLostError, match=f"/ip4/127.0.0.1/tcp/{port}"):
        await meeting_at(f"/ip4/127.0.0.1/tcp/{port}", 0)(1, "offered")


@pytest.mark.parametrize(
    "line",
    [b"", b"0 1", b"0 1 traded more", b"3 1 offered", b"-1 1 offered", b"0 x offered",
     b"0 1 bought", b"\xff 1 offered", b"0 1 offered" + b" " * LONGEST_LINE],
)  # fmt: skip
async def test_a_stranger_at_the_meeting_is_sent_away_and_holds_nobody_up(line: bytes) -> None:
    assert arrival(line, NAMES) is None
    meeting = Meeting(NAMES[:1])
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_meeting, meeting, NAMES[:1])
        with trio.fail_after(30):
            async with await trio.open_tcp_stream("127.0.0.1", port_of(address)) as stream:
                await stream.send_all(line + b"\n")
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
            assert await meeting_at(address, 0)(1, "offered") == 0
        nursery.cancel_scope.cancel()
