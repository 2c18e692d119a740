"""How an agent in a process of its own comes to the meeting of an experiment.

Over loopback TCP, a connection for each arrival: a line ``<agent> <round> <stage>`` is
answered by the number of others in a line, once they are there too.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from node.agent.session import Meet
from node.protocol.errors import MarketError
from node.roles.ports import port_of

LONGEST_LINE: Final = 64


class MeetingLostError(MarketError):
    """The experiment's meeting is gone, and with it the rounds of its agents."""


def meeting_at(address: str, agent: int) -> Meet:
    """Return what takes the agent of this number to the meeting at a multiaddress.

    It raises `MeetingLostError` if nobody answers there any more.
    """
    host, port = address.split("/")[2], port_of(address)

    async def meet(round_: int, stage: str) -> int:
        said = b""
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(f"{agent} {round_} {stage}\n".encode("ascii"))
                said = await read_line(stream)
        if not said.isdigit():
            raise MeetingLostError(f"nobody answers at the meeting {address}")
        return int(said)

    return meet


async def read_line(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the line that a stream begins with; nothing if it ends before, or is too long.

    Raises `trio.BrokenResourceError` if the other side breaks off.
    """
    line = b""
    while len(line) <= LONGEST_LINE:
        data = await stream.receive_some(LONGEST_LINE)
        line += data
        if b"\n" in line:
            return line.partition(b"\n")[0]
        if not data:
            break
    return b""
