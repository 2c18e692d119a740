"""In an experiment everybody has offered before anybody buys, and whoever leaves is not missed."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.devnet.meeting import STAGES, Meeting

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
    assert meeting.members == {"a", "b"}
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
