"""One step of one trade that is to be carried out on chain, and what the chain says of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from node.chain.port import Call, EscrowState
from node.protocol.events import Step
from node.protocol.types import Digest

NEEDED_IN: Final = {
    Step.FUND: EscrowState.NONE,
    Step.REVEAL: EscrowState.FUNDED,
    Step.FINALIZE: EscrowState.REVEALED,
    Step.REFUND: EscrowState.FUNDED,
    Step.DISPUTE: EscrowState.REVEALED,
}
DONE_IN: Final = {
    Step.FUND: frozenset(EscrowState) - {EscrowState.NONE},
    Step.REVEAL: {EscrowState.REVEALED, EscrowState.PAID, EscrowState.DISPUTED},
    Step.FINALIZE: {EscrowState.PAID},
    Step.REFUND: {EscrowState.REFUNDED},
    Step.DISPUTE: {EscrowState.DISPUTED},
}
PATIENT: Final = frozenset({Step.FINALIZE, Step.REFUND, Step.DISPUTE, Step.WITHDRAW})
"""Steps that are tried again until they are done, or are not wanted any more."""
URGENT: Final = frozenset({Step.REVEAL, Step.DISPUTE})
"""Steps with a deadline after which money is lost: they have the first turn."""


@dataclass(frozen=True, slots=True)
class Errand:
    """One step of one trade, and what its caller says of it."""

    trade_id: Digest
    step: Step
    call: Call
    wanted: Callable[[], bool]
    sent: Callable[[], None]
