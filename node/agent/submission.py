"""Telling the broker what it is to fetch and try: our own offers, and those of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import trio

from node.agent.brokers import Brokers, fails
from node.net.errors import PASSING
from node.params.disk import BlobRef
from node.protocol.attestation import Attestation, Attested, attest
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import SELLER_UNREACHABLE, Submit, Submitted
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.types import Digest
from node.station.station import Station

SUBMIT_SECONDS: Final = 60.0
FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 5.0
UNREACHED_SECONDS: Final = 30.0
"""How long we ask again while the broker answers that it cannot fetch from us."""
Report = Callable[[str, RemoteProtocolError], None]


class Submission:
    """Submits statements to the broker of the round. What goes wrong is reported, not raised."""

    def __init__(self, station: Station, brokers: Brokers, report: Report) -> None:
        self._station = station
        self._brokers = brokers
        self._report = report

    async def of_ours(self, data: bytes) -> None:
        """Have a broker fetch and verify our own offer; keep trying while they are all away.

        That it cannot fetch from us is no matter of its own: then `UNREACHED_SECONDS` are all.
        The market is not kept waiting for so long (`node.station.holding`).
        """
        told, pause, unreached_since = "", FIRST_RETRY_SECONDS, None
        while (error := await self._submit(data)) is not None:
            if error.reason != told:
                self._report("submit", error)
            told = error.reason
            if error.reason == SELLER_UNREACHABLE:
                now = trio.current_time()
                unreached_since = now if unreached_since is None else unreached_since
                if now + pause - unreached_since > UNREACHED_SECONDS:
                    return
            elif fails(error) and await self._brokers.pass_over(error):
                told = ""
                continue
            elif error.reason not in PASSING:
                return
            else:
                self._brokers.begin_round()
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    async def of_base(self, offer: Offer, whole: BlobRef) -> tuple[Digest, Offer]:
        """Have the broker try offers on the whole of a model of which we offer some layers.

        Signed like the offer, at a reserve that nobody can pay, and said to the broker alone:
        it is neither journalled, which would have it gossiped, nor published. Our own book
        keeps it, for a broker that forgets. Returns its digest and what was signed.
        """
        station = self._station
        base = dataclasses.replace(
            offer,
            layers=(),
            weights_root=whole.root,
            leaf_count=whole.leaf_count,
            byte_length=whole.byte_length,
            reserve=NOT_FOR_SALE,
            nonce=station.journal.next_nonce(),
        )
        data = station.seal(base)
        station.book.receive(data, station.clock())
        station.served.add(whole.root)
        await self.of_ours(data)
        return digest(station.domain, base), base

    async def of_oath(self, root: Digest) -> None:
        """Swear to the broker that a model was trained on none of its rows, once.

        A broker that knows no such message, or does not answer, has the model without it.
        """
        station, broker = self._station, self._brokers.current
        notice = station.notice_of(broker)
        if notice is None:
            return
        body = Attestation(
            seller=station.account,
            weights_root=root,
            validation_root=notice.validation_root,
            issued_at=station.clock(),
        )
        said = attest(station.domain, body, station.keys.account)
        try:
            await station.ask(broker, said, Attested, seconds=SUBMIT_SECONDS)
        except RemoteProtocolError as error:
            self._report("attest", error)

    async def of_another(self, data: bytes) -> None:
        """Tell the broker of somebody else's offer, once: whether it can be had is not ours."""
        error = await self._submit(data)
        if error is not None:
            self._report("submit", error)

    async def _submit(self, data: bytes) -> RemoteProtocolError | None:
        try:
            await self._station.ask(
                self._brokers.current, Submit(statement=data), Submitted, seconds=SUBMIT_SECONDS
            )
        except RemoteProtocolError as error:
            return error
        return None
