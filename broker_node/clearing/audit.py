"""What a participant computes by itself of a round: its due, the leaves of the root, its models."""

from __future__ import annotations

from collections.abc import Mapping

from broker_node.clearing.rules import asked_of, checked
from broker_node.clearing.terms import read
from broker_node.mechanisms.base import RefusedInputError
from node.agent.taking_part import Bought, ClearingTerms
from node.protocol.types import ONE, Address, Wei


class RoundAudit:
    """`node.agent.taking_part.Audit`, by the mechanisms of this version."""

    def due(self, inputs: bytes, account: Address, broker: Address, terms: ClearingTerms) -> Wei:
        """Return what an account is to pay.

        Raises `RefusedInputError` if it is no party, or is one by another cost or reserve than it
        said, or the round is another's, or not on.
        """
        document, asked = asked_of(inputs)
        if document.mechanism != terms.mechanism:
            raise RefusedInputError("mechanism", f"must be {terms.mechanism}")
        if document.broker != broker:
            raise RefusedInputError("broker", f"must be {broker}")
        if account not in document.parties:
            raise RefusedInputError("parties", f"lacks {account}")
        us = document.parties.index(account)
        if document.costs[us] != terms.cost:
            raise RefusedInputError("costs", f"must have ours, {terms.cost} wei")
        if document.reserves[us] != terms.reserve:
            raise RefusedInputError("reserves", f"must have ours, {terms.reserve} wei")
        if asked.off:
            raise RefusedInputError("inputs", f"there is no round: {asked.off}")
        return asked.dues[us]

    def payers(self, inputs: bytes) -> tuple[Address, ...]:
        document = read(inputs)
        return (*document.parties, *document.others)

    def leaves(
        self, invited: bytes, inputs: bytes, paid: Mapping[Address, Wei]
    ) -> tuple[tuple[Address, Wei], ...]:
        return checked(invited, inputs, paid)[1].payouts

    def models(self, inputs: bytes, account: Address) -> tuple[Bought, ...]:
        document = read(inputs)
        if account not in document.parties:
            return ()
        us = document.parties.index(account)
        own = document.performance(us, 1 << us)
        found = [
            Bought(root=bytes.fromhex(root), byte_length=length, performance=performance / ONE)
            for root, length, performance, buyers in document.models
            if us in buyers and performance / ONE > own
        ]
        return tuple(sorted(found, key=lambda model: -model.performance))
