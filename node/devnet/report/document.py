"""The report of a run: the shape of ``report.json``, which every reader of it shares.

Amounts are wei as decimal strings, gains and α fractions, accuracies percent, losses mean
squared errors, times seconds. A figure that is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NotRequired, TypedDict, cast

from node.devnet.arms import ARMS, OUT_OF_MARKET
from node.devnet.report.honesty import Honesty
from node.devnet.report.strategies import Strategies

DOCUMENT: Final = "report.json"
PAGE: Final = "report.html"
PLOTS_FOLDER: Final = "plots"

Metric = Literal["accuracy", "loss"]

ALL_AGENTS: Final = "all"
CAUSES: Final = ("gain", "bound", "ask", "fee", "cash", "other")
"""Why a possible trade was not made, in the order in which the market asks.

Whatever is none of the others is counted as ``other``.
"""
STEPS: Final = ("fund", "reveal", "finalize", "refund", "withdraw")


class Arm(TypedDict):
    """What the agents learnt under one trade rule: percent, or mean squared test losses."""

    accuracy: Mapping[str, float | None]
    """By agent: after the last epoch, mean over the seeds in which it got so far; or null."""
    by_seed: Mapping[str, Mapping[str, float | None]]
    """By seed and agent: after the last epoch; null for one that did not get so far."""
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float | None]]]]
    """By seed and agent: (epoch, figure), epochs rising."""


class Difference(TypedDict):
    """One arm against another over the seeds that both played; above 0, `of` is better."""

    of: str
    against: str
    agent: str
    """A name, or `all`: the mean over agents in each seed."""
    mean: float
    low: float | None
    high: float | None
    """The 95% Student-t interval; null with fewer than two seeds."""
    n: int
    unit: Literal["points", "percent"]
    """Points of accuracy; or percent by which `of` has less loss than `against`."""


class AgentRow(TypedDict):
    """An agent in one arm and seed."""

    name: str
    account: str
    peer_id: str
    spent: str
    earned: str
    arm: str
    seed: int


class Trade(TypedDict):
    id: str
    arm: str
    seed: int
    round: int
    buyer: str
    seller: str
    price: str
    alpha: float | None
    gain: float | None
    bound: float | None
    """The lower confidence bound of the gain; null where the protocol has none."""
    state: str
    on_chain: str
    transactions: Mapping[str, str]
    gas: Mapping[str, int]


class Given(TypedDict):
    """One allocation of a call, and the trade that it became."""

    buyer: str
    seller: str
    share: float
    """Layers, as the mechanism divides them."""
    layers: int
    """Whole ones that were allotted."""
    price: str
    predicted: float
    realised: float | None
    """The gain of these layers by the deal's own measurement; null without a trade."""
    trade: str | None
    on_chain: str
    round: int
    """0 without a trade."""


class Fairness(TypedDict):
    """Indices of paper 003 §IV-A of one clearing, each of the buyer that fares worst."""

    envy_freeness: float
    """1 if nobody would rather have another's bundle at the same money; less if somebody would."""
    proportional_fairness: float
    """Utility over that of all there is, by the share of the budgets; fair from 1."""
    sharing_incentive: float
    """Utility over that of a share of everything by the budget; fair from 1."""


class CallRow(TypedDict):
    """One call; amounts are wei as decimal strings, gains fractions of the buyer's loss."""

    arm: str
    seed: int
    round: int
    call: str
    budgets: Mapping[str, str]
    """By agent that bid."""
    prices: Mapping[str, str]
    """By seller: of one of its layers, rounded down."""
    sold: Mapping[str, float]
    """By seller: layers that the mechanism has sold, of `capacity`."""
    capacity: Mapping[str, int]
    given: Sequence[Given]
    confirmed: bool
    """Whether `verify` confirms the outcome."""
    worst: float
    """The largest violation that it finds."""
    relative_gap: float | None
    paid: str
    """By buyers, of trades that were paid on chain; so much came to sellers and to the fee."""
    within_budgets: bool
    fairness: Fairness | None
    """Of what the mechanism divides, before it is rounded; null where nobody could gain."""


class Fused(TypedDict):
    """One round of one buyer: what was predicted for all it bought, and what its loss says."""

    arm: str
    seed: int
    round: int
    buyer: str
    sellers: int
    predicted: float
    realised: float


class Prediction(TypedDict):
    """How well gains were predicted."""

    count: int
    mean_absolute_error: float | None
    bias: float | None
    """Mean of predicted less realised."""
    r_squared: float | None
    """1 less the squared error over the variance of what was realised; null for fewer than two."""


class Calls(TypedDict):
    """The calls of a run in which prices were made of all budgets at once."""

    mechanism: str
    calls: Sequence[CallRow]
    fused: Sequence[Fused]
    purchases_predicted: Prediction
    """Of each purchase, against the measurement of the layers that were delivered."""
    rounds_predicted: Prediction
    """Of all purchases of a buyer's round, against its own loss on unseen rows."""


class Legs(TypedDict):
    """The possible purchases of one arm, one an agent a round, and what became of them."""

    possible: int
    traded: int
    lost: Mapping[str, int]


class LedgerRow(TypedDict):
    deposited: str
    paid_out: str
    fees: str
    refunded: str
    credited: str
    held: str
    stuck: str
    open_trades: int
    balances: bool


class Gas(TypedDict):
    count: int
    total: int
    mean: float


class Network(TypedDict):
    transport: str
    offers_sent: int
    accepted: int
    ignored: Mapping[str, int]
    rejected: Mapping[str, int]
    bytes: int
    bytes_in: Mapping[str, int]
    bytes_out: Mapping[str, int]


class Report(TypedDict):
    """All of one run. Keys may be added; none of these is left out."""

    name: str
    dataset: str
    protocol: Literal["clean", "paper"]
    priced: bool
    metric: Metric
    seeds: Sequence[int]
    agents_count: int
    epochs: int
    rounds: int
    complete: bool
    interrupted: bool
    arms: Mapping[str, Arm]
    differences: Sequence[Difference]
    agents: Sequence[AgentRow]
    trades: Sequence[Trade]
    legs: Mapping[str, Legs]
    ledger: LedgerRow
    gas: Mapping[str, Gas]
    network: Network
    timings: Mapping[str, float | Mapping[str, float | None] | None]
    """Seconds; `total_s` is the whole run."""
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    """What was asked for, and `code_version`, which played it."""
    cost: Mapping[str, float]
    """Of agents that share one process: `seconds_a_round`, `seconds_a_round_and_agent`,
    `memory_an_agent_mb`, `peak_memory_mb`; whatever of it this process could tell."""
    first_trade_epoch: NotRequired[int]
    """The epoch index at which the market opens; marked in the plots where it is told."""
    calls: NotRequired[Calls]
    """Where prices were made in calls."""
    clearing: NotRequired[Sequence[Mapping[str, Any]]]
    """Of each market that clears by rounds, what they came to (`node.devnet.clearings`)."""
    strategies: NotRequired[Strategies]
    honesty: NotRequired[Sequence[Honesty]]
    """By market; left out where there was nothing to tell."""
    """What each strategy came to, where the agents were given any."""
    notes: NotRequired[Sequence[str]]
    """Sentences about this run that a reader must see first (an agent that went away)."""


def as_written(report: Report) -> Report:
    """Return the report as its JSON will say it: keys are strings, what is not finite is null.

    Plots and pages read this, so that they and the file cannot differ.
    """
    return cast("Report", _plain(report))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def in_order(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the names, those of `known` first and in its order, the others as they came."""
    given = list(dict.fromkeys(names))
    return [name for name in known if name in given] + [n for n in given if n not in known]


def arms_of(report: Report) -> list[str]:
    """Return the arms that this run has anything of."""
    return in_order([*report["arms"], *report["legs"]], ARMS)


def market_arms(report: Report) -> list[str]:
    """Return the arms in which agents may trade."""
    return [arm for arm in arms_of(report) if arm != OUT_OF_MARKET]


def agent_names(report: Report) -> list[str]:
    """Return every agent that the report speaks of, in the order of its first mention."""
    names: dict[str, None] = {}
    for row in report["agents"]:
        names[row["name"]] = None
    for arm in report["arms"].values():
        names.update(dict.fromkeys(arm["accuracy"]))
        for agents in arm["curves"].values():
            names.update(dict.fromkeys(agents))
    for trade in report["trades"]:
        names.update({trade["buyer"]: None, trade["seller"]: None})
    return list(names)


def finished_runs(report: Report) -> int:
    """Return how many (arm, seed) pairs every agent trained to the last epoch."""
    last = report["epochs"] - 1
    return sum(
        bool(agents) and all(curve and curve[-1][0] >= last for curve in agents.values())
        for arm in report["arms"].values()
        for agents in arm["curves"].values()
    )
