"""Where the agents of an experiment wait for one another, so that all trade in one round.

Agents of a real market keep no common clock. An experiment wants one: in each round every
agent has offered before any has trials, all know what their trials came to before any bids
(a seller's ask is made of its own), and all have bought before any trains on, as in the
papers' loops. Whoever goes away is waited for no longer. Whoever was cut off in a round comes to
its stages again, also if it has bought already: others may not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import trio

from node.agent.session import STAGES
from node.roles.meeting import read_line

LOOPBACK: Final = "127.0.0.1"


class Meeting:
    """Holds each member at a stage of a round until all that are present have come so far."""

    def __init__(self, members: Iterable[str]) -> None:
        self._at: dict[str, tuple[int, int]] = dict.fromkeys(members, (0, 0))
        self._moved = trio.Event()

    async def arrive(self, member: str, round_: int, stage: str) -> int:
        """Wait until every member is at this stage of this round, or further.

        Returns how many there are besides this one.
        """
        here = (round_, STAGES.index(stage))
        if member in self._at:
            self._at[member] = here
            self._tell()
        while any(place < here for place in self._at.values()):
            await self._moved.wait()
        return len(self._at) - (member in self._at)

    def leave(self, member: str) -> None:
        """Wait for a member no longer."""
        if self._at.pop(member, None) is not None:
            self._tell()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


async def serve_meeting(meeting: Meeting, names: Sequence[str], *, task_status: Any) -> None:
    """Let agents in processes of their own come to a meeting (`node.roles.meeting`).

    `names` are by the agent's number. Starts with the multiaddress; on loopback alone.
    """

    async def answer(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                asked = arrival(await read_line(stream), names)
                if asked is not None:
                    others = await meeting.arrive(*asked)
                    await stream.send_all(f"{others}\n".encode("ascii"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it is gone, and its process is what tells why

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, answer, listeners)
        task_status.started(f"/ip4/{LOOPBACK}/tcp/{port}")


def arrival(line: bytes, names: Sequence[str]) -> tuple[str, int, str] | None:
    """Read ``<agent> <round> <stage>``; None for what is no member's arrival."""
    match line.decode("ascii", errors="replace").split(" "):
        case [agent, round_, stage] if agent.isdecimal() and round_.isdecimal():
            known = int(agent) < len(names) and stage in STAGES
            return (names[int(agent)], int(round_), stage) if known else None
        case _:
            return None
