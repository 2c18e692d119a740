"""What was bid and asked for every possible trade of a market, by the logs of its nodes.

Neither side tells the other what it knows: the buyer's log has what a trade is worth to it, the
seller's what it would cost. Only who reads both can say what was lost by what they said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from node.devnet.logs import Told
from node.devnet.report.document import Trade
from node.protocol.types import Wei

READ: Final = (
    *("bid_named", "ask_named", "trial_done", "other_goods_offered"),
    "statement_published",
)
"""Events that this is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One bid that met an ask, whatever came of it. Amounts are wei."""

    trade_id: str
    offer_digest: str
    buyer: str
    seller: str
    worth: Wei
    """κ·Δ: what the trade is worth to the buyer."""
    most: Wei
    """What the buyer's cash and budget allowed."""
    bid: Wei
    """What its strategy said; the broker was told the lower of this and `most`."""
    ask: Wei
    cost: Wei
    fee_basis_points: int
    own_gain_value: Wei | None = None
    prices: tuple[Wei, ...] = ()
    """What the seller knew of past trades, and which these were (`receipts`)."""
    receipts: tuple[str, ...] = ()
    paid: Wei | None = None
    """The price, if the chain has seen it paid."""

    @property
    def valuation(self) -> Wei:
        """What the broker was told that the buyer bids."""
        return Wei(min(self.bid, self.most))


def read_legs(told: Mapping[str, Sequence[Told]], trades: Sequence[Trade]) -> list[Leg]:
    """Return the legs in the logs `told`, by agent, of which `trades` came; in order of the bids.

    A bid that reached no seller is no leg.
    """
    asks: dict[str, tuple[str, Told]] = {
        str(event["trade_id"]): (agent, event)
        for agent, events in told.items()
        for event in events
        if event["event"] == "ask_named"
    }
    paid = {trade["id"]: Wei(int(trade["price"])) for trade in trades if is_paid(trade)}
    found: list[Leg] = []
    for buyer, events in told.items():
        for bid in events:
            name = str(bid.get("trade_id"))
            if bid["event"] != "bid_named" or name not in asks:
                continue
            seller, ask = asks[name]
            found.append(
                Leg(
                    trade_id=name,
                    offer_digest=str(ask["offer_digest"]),
                    buyer=buyer,
                    seller=seller,
                    worth=_wei(bid["worth"]),
                    most=_wei(bid["most"]),
                    bid=_wei(bid["bid"]),
                    ask=_wei(ask["ask"]),
                    cost=_wei(ask["cost"]),
                    fee_basis_points=int(ask["fee_basis_points"]),
                    own_gain_value=_wei_if_any(ask["own_gain_value"]),
                    prices=tuple(map(_wei, ask["prices"])),
                    receipts=tuple(map(str, ask["receipts"])),
                    paid=paid.get(name),
                )
            )
    return found


def is_paid(trade: Trade) -> bool:
    """Whether the chain has seen a trade paid."""
    return trade["on_chain"] == "paid"


def _wei(value: Any) -> Wei:
    return Wei(int(value))  # large amounts are logged as text


def _wei_if_any(value: Any) -> Wei | None:
    return None if value is None else _wei(value)
