"""Whether the escrow would take a quote on its brokers' signatures: counted before we sign or pay.

A quote of too few brokers, or of one without a seat, could never be funded: who countersigned it
would wait for nothing, and who sent a deposit would lose the gas.
"""

from __future__ import annotations

import trio

from node.chain.port import Escrow, Seat
from node.protocol.bargain import quorum_of
from node.protocol.errors import RemoteProtocolError
from node.protocol.quote import Quote


class Consent:
    """Counts the brokers that stand by a quote, as the escrow will."""

    def __init__(self, escrow: Escrow) -> None:
        self._escrow = escrow

    async def require(self, quote: Quote, signatures: bytes) -> None:
        """Return if as many brokers have signed as the escrow wants, and all of them sit now.

        Raises `RemoteProtocolError`: ``not-of-the-quorum``, or as `quorum_of`; and
        `ChainUnavailableError` if it cannot be known who sits.
        """
        escrow = self._escrow
        signers = quorum_of(escrow.domain, quote, signatures, threshold=escrow.threshold)
        for signer in signers:
            if await trio.to_thread.run_sync(escrow.seat, signer) is not Seat.TAKEN:
                raise RemoteProtocolError("not-of-the-quorum", f"{signer} has no seat")
