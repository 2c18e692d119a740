"""Measures what each strategy of a market came to, from what its nodes left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from broker_node.mechanisms.ask import market_ask
from broker_node.mechanisms.price import bargain
from node.agent.strategies.base import Asked, Strategy
from node.agent.strategies.registry import STRATEGIES, WASH_TRADER
from node.config.table import Config
from node.devnet.haggling import READ, Leg, read_legs
from node.devnet.logs import Told, read_events
from node.devnet.play import BROKER, agent_name
from node.devnet.record import MarketRecord
from node.devnet.regret import revenue, said_by
from node.devnet.report.strategies import (
    Balance,
    OtherGoods,
    Strategies,
    StrategyRow,
    TriedGoods,
    Washing,
)
from node.devnet.spec import RunSpec
from node.protocol.fees import fee_of
from node.protocol.types import ONE, Wei
from node.roles.shells import strategy_of

OWN: Final = "own"
"""Goods that are what was trained."""


def measure_strategies(spec: RunSpec, record: MarketRecord, folder: Path) -> Strategies:
    """Return what the strategies of one market came to: its record, and the logs in `folder`."""
    arm, seed = record["arm"], record["seed"]
    names = {agent_name(number): name for number, name in enumerate(spec.strategies)}
    told = {agent: read_events(folder / agent, READ) for agent in names}
    legs = read_legs(told, record["trades"])
    played = {
        agent_name(number): strategy_of(spec.strategic(Config(), seed, number))
        for number, name in enumerate(spec.strategies)
        if name in STRATEGIES
    }
    return Strategies(
        agents=[_row(arm, seed, agent, name, legs) for agent, name in names.items()],
        goods=other_goods(arm, seed, told, legs),
        tried=tried_goods(arm, seed, told, read_events(folder / BROKER, ("trial_done",))),
        washing=washing(arm, seed, names, played, legs),
        balance=[_balance(record)],
    )


def _row(arm: str, seed: int, agent: str, strategy: str, legs: Sequence[Leg]) -> StrategyRow:
    said = said_by(agent, legs)
    return StrategyRow(
        arm=arm,
        seed=seed,
        agent=agent,
        strategy=strategy,
        bids=said.bids,
        bought=said.bought,
        asks=said.asks,
        sold=said.sold,
        fell_through=said.fell_through,
        regret_buying=str(said.regret_buying),
        regret_selling=str(said.regret_selling),
        revenue=str(said.revenue),
        optimum=str(said.optimum),
    )


def _balance(record: MarketRecord) -> Balance:
    paid = sum(int(row["spent"]) for row in record["agents"])
    received = sum(int(row["earned"]) for row in record["agents"])
    fees = 0 if record["ledger"] is None else int(str(record["ledger"]["fees"]))
    return Balance(
        arm=record["arm"],
        seed=record["seed"],
        paid=str(paid),
        received=str(received),
        fees=str(fees),
        surplus=str(paid - received - fees),
    )


# ── other goods than were trained ──


def other_goods(
    arm: str, seed: int, told: Mapping[str, Sequence[Told]], legs: Sequence[Leg]
) -> list[OtherGoods]:
    """Return what became of the lemons and replicas of each agent that had any."""
    trials: dict[str, list[Told]] = {}
    for events in told.values():
        for event in _of(events, "trial_done"):
            trials.setdefault(str(event.get("offer_digest")), []).append(event)
    makers = {leg.trade_id: leg.seller for leg in legs}
    found: list[OtherGoods] = []
    for agent, events in told.items():
        offered = _of(events, "other_goods_offered")
        for kind in dict.fromkeys(str(event["kind"]) for event in offered):
            copied = {str(e["offer_digest"]): e["copied"] for e in offered if e["kind"] == kind}
            tried = [trial for name in copied for trial in trials.get(name, ())]
            gaining = [t for t in tried if int(t["gain"]) > 0 and int(t["alpha"]) > 0]
            bids = [leg for leg in legs if leg.offer_digest in copied]
            sold = [leg for leg in bids if leg.paid is not None]
            found.append(
                OtherGoods(
                    arm=arm,
                    seed=seed,
                    agent=agent,
                    kind=kind,
                    offers=len(copied),
                    trials=len(tried),
                    gaining=len(gaining),
                    sure=sum(int(trial["bound"]) > 0 for trial in gaining),
                    bids=len(bids),
                    sold=len(sold),
                    to_its_maker=sum(
                        makers.get(str(copied[leg.offer_digest])) == leg.buyer for leg in sold
                    ),
                    revenue=str(sum(map(revenue, sold))),
                )
            )
    return found


def tried_goods(
    arm: str, seed: int, told: Mapping[str, Sequence[Told]], measured: Sequence[Told]
) -> list[TriedGoods]:
    """Return what trials of each agent's goods showed, by kind; `measured` is the broker's log.

    Who tries hears of the gain and whose offer it is, the broker alone of the control.
    """
    offered: dict[str, tuple[str, str]] = {}
    for agent, events in told.items():
        for event in _of(events, "statement_published"):
            if event["kind"] == "offer":
                offered[str(event["digest"])] = (agent, OWN)
        for event in _of(events, "other_goods_offered"):
            offered[str(event["offer_digest"])] = (agent, str(event["kind"]))
    controls = {
        str(event["trial_id"]): int(control)
        for event in measured
        if (control := event.get("control")) is not None
    }
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for events in told.values():
        for trial in _of(events, "trial_done"):
            control = controls.get(str(trial["trial_id"]))
            goods = offered.get(str(trial["offer_digest"]))
            if control is not None and goods is not None:
                found.setdefault(goods, []).append((int(trial["gain"]), control))
    return [
        TriedGoods(
            arm=arm,
            seed=seed,
            agent=agent,
            kind=kind,
            trials=len(trials),
            gain=sum(gain for gain, _ in trials) / len(trials) / ONE,
            control=sum(control for _, control in trials) / len(trials) / ONE,
            beyond=sum(gain > control for gain, control in trials),
        )
        for agent, kind in dict.fromkeys(offered.values())
        if (trials := found.get((agent, kind)))
    ]


def _of(events: Sequence[Told], name: str) -> list[Told]:
    return [event for event in events if event["event"] == name]


# ── wash trades ──


def washing(
    arm: str,
    seed: int,
    names: Mapping[str, str],
    played: Mapping[str, Strategy],
    legs: Sequence[Leg],
) -> list[Washing]:
    """Return what the wash-traders paid, and what their receipts did to the asks of others.

    `names` and `played` are strategies by agent, those of `played` built-in. An ask is reckoned
    once more by the same strategy, without these receipts among those that it had in view.
    """
    owned = {agent for agent, name in names.items() if name == WASH_TRADER}
    if not owned:
        return []
    made = [leg for leg in legs if {leg.buyer, leg.seller} <= owned and leg.paid is not None]
    fake = {leg.trade_id for leg in made}
    shown = [
        leg
        for leg in legs
        if leg.seller in played and leg.seller not in owned and fake & set(leg.receipts)
    ]
    without = [ask_again(played[leg.seller], leg, lambda name: name not in fake) for leg in shown]
    return [
        Washing(
            arm=arm,
            seed=seed,
            trades=len(made),
            paid=str(sum(leg.paid or 0 for leg in made)),
            fees=str(sum(fee_of(leg.paid or Wei(0), leg.fee_basis_points) for leg in made)),
            asks=len(shown),
            asked=str(sum(leg.ask for leg in shown)),
            without=str(sum(without)),
            lost=sum(
                _deals(leg, lower) and not _deals(leg, leg.ask)
                for leg, lower in zip(shown, without, strict=True)
            ),
        )
    ]


def ask_again(strategy: Strategy, leg: Leg, seen: Callable[[str], bool]) -> Wei:
    """Return what the seller of a leg would ask of the receipts for which `seen` is true alone."""
    prices = tuple(
        price for price, name in zip(leg.prices, leg.receipts, strict=True) if seen(name)
    )
    asked = Asked(
        usual=market_ask(leg.own_gain_value, prices, leg.cost, leg.fee_basis_points),
        own_gain_value=leg.own_gain_value,
        prices=prices,
        cost=leg.cost,
        fee_basis_points=leg.fee_basis_points,
    )
    return Wei(max(strategy.ask(asked), leg.cost))


def _deals(leg: Leg, ask: Wei) -> bool:
    return bargain(leg.valuation, ask, fee_basis_points=leg.fee_basis_points) is not None
