"""A broker's seed is the first that it names; its peers measure by no other.

The seed draws the rows of each trial. A broker that knows both weights could publish one notice
after another until the rows flatter its friend: every notice is sound, and only whoever remembers
the first sees what is done. So each broker keeps, in its journal, one seed of each other broker for
each task and set of rows.

An honest broker that lost its journal draws another seed and is refused, with the old one in the
detail. It is no secret, for it stood in every notice: given as ``trial_seed``, the broker goes on
as before, and its peers have nothing to do.
"""

from __future__ import annotations

from node.journal import Journal
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import BrokerNotice


def pin_seed(journal: Journal, notice: BrokerNotice) -> None:
    """Remember this broker's seed, or raise `RemoteProtocolError("seed-changed")` for another."""
    name = f"seed of {notice.broker} {notice.task} {notice.validation_root.hex()}"
    known = journal.recall(name)
    if known is None:
        journal.remember(name, notice.seed)
    elif known != notice.seed:
        first = known.hex() if isinstance(known, bytes) else repr(known)
        raise RemoteProtocolError(
            "seed-changed",
            f"{notice.broker} draws rows by 0x{notice.seed.hex()}, and first did by 0x{first}; "
            f"one that lost its journal sets trial_seed = 0x{first}",
            peer=notice.peer_id,
        )
