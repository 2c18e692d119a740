"""A hundred agents of one task, round by round, without a network: the market of `dynamics`.

A round: everybody trains an epoch on its own rows, everybody's parameters are tried on
everybody else's, every seller names one ask, and each agent buys at most once. All trials are of
the parameters at the round's start.

Trials share their rows: the broker draws them once a round, and all pairs choose their α among
the same few values on the same rows and are scored on the same others, by the market's own
statistics. Agents start from one model, so that units correspond and none are aligned; the first
layer is affine in α, so that its products with the rows are taken once a model, not once a pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.validation import draw_rows
from broker_node.mechanisms.ask import market_ask
from broker_node.mechanisms.bayesian_ask import learned_ask
from broker_node.mechanisms.nash_many import nash_many
from broker_node.mechanisms.price import bargain
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.rows import Rows
from node.data.split import Dirichlet, Division
from node.params.recipe import interpolate
from node.protocol.fees import BASIS_POINTS
from node.protocol.types import ONE, Digest, Millionths, Wei
from node.roles.opening import PLAY_VALUE
from node.roles.shells import protocol_of
from node.training.mlp import MlpTrainer
from node.training.mlp import Settings as Learning
from scripts.reproduction.studies import Setting

Tensors = dict[str, torch.Tensor]
DATASET: Final = "mnist"
NASH_SHARE: Final = 0.5
FEE: Final = 200
"""Basis points of a price that are the broker's."""
ALPHAS: Final = tuple(Millionths(tenths * ONE // 10) for tenths in (1, 3, 5, 7, 9, 10))
"""What a trial chooses from, beside 0."""
FRESH_ROUNDS: Final = 2
"""Older receipts teach nothing: gains shrink as training goes on."""
LEAST_OWN: Final = 4
"""Own sales from which a seller learns by itself."""
LEAST_PUBLIC: Final = 10
"""Sales of anybody from which it learns where its own are too few."""


LEARNING: Final = Learning(hidden=(16,), learning_rate=0.1, batch_rows=32, scarce_percent=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a market is."""

    dataset: str = DATASET
    agents: int = 100
    rounds: int = 12
    choice_rows: int = 256
    score_rows: int = 512
    concentration: float = 0.3
    """Of the Dirichlet draw by which rows are dealt out: few classes an agent."""
    learning: Learning = LEARNING


USUAL: Final = Size()
QUICK: Final = Size(rounds=4, choice_rows=128, score_rows=256)


# ── trials ──


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """All trials of a round, [buyer, seller]; the diagonal is no trial: all zero."""

    alpha_NN: NDArray[np.int64]
    """Millionths; 0 is no purchase."""
    gain_NN: NDArray[np.int64]
    bound_NN: NDArray[np.int64]


def try_all(models: Sequence[Tensors], choice: Rows, score: Rows) -> Trials:
    """Return every pair's trial; the models are perceptrons with one hidden layer."""
    count = len(models)
    chosen, scored = _Probe(models, choice), _Probe(models, score)
    alpha_NN, gain_NN, bound_NN = (np.zeros((count, count), dtype=np.int64) for _ in range(3))
    for buyer in range(count):
        own_R = scored.own_losses(buyer)
        curves_AN = torch.stack(
            [chosen.own_losses(buyer).mean().expand(count)]
            + [chosen.losses(buyer, torch.full((count,), a / ONE)).mean(1) for a in ALPHAS]
        )
        best_N = [(Millionths(0), *ALPHAS)[int(place)] for place in curves_AN.argmin(0)]
        after_NR = scored.losses(buyer, torch.tensor([a / ONE for a in best_N]))
        for seller, alpha in enumerate(best_N):
            if seller == buyer or not alpha:
                continue
            found = paired_gain(own_R, after_NR[seller])
            alpha_NN[buyer, seller] = alpha
            gain_NN[buyer, seller], bound_NN[buyer, seller] = found.gain, found.bound
    return Trials(alpha_NN=alpha_NN, gain_NN=gain_NN, bound_NN=bound_NN)


class _Probe:
    """N models on the same R rows, H hidden units, C classes."""

    def __init__(self, models: Sequence[Tensors], rows: Rows) -> None:
        inputs_RF = torch.from_numpy(rows.inputs_RF.copy())
        self._labels_R = torch.from_numpy(rows.labels_R.copy())
        self._first_NHR = torch.stack(
            [
                functional.linear(inputs_RF, m["layers.0.weight"], m["layers.0.bias"]).T
                for m in models
            ]
        )
        self._weight_NCH = torch.stack([model["layers.1.weight"] for model in models])
        self._bias_NCX = torch.stack([model["layers.1.bias"] for model in models])[..., None]

    def own_losses(self, buyer: int) -> torch.Tensor:
        """Return losses_R of a model as it is, in float64."""
        return self._losses(slice(buyer, buyer + 1), buyer, torch.zeros(1))[0]

    def losses(self, buyer: int, alpha_N: torch.Tensor) -> torch.Tensor:
        """Return losses_NR of `buyer` merged with each model at its α, in float64."""
        return self._losses(slice(None), buyer, alpha_N)

    @torch.inference_mode()
    def _losses(self, others: slice, buyer: int, alpha_N: torch.Tensor) -> torch.Tensor:
        shares_NXX = alpha_N[:, None, None]
        first_NHR, weight_NCH, bias_NCX = (
            torch.lerp(parts[buyer], parts[others], shares_NXX)
            for parts in (self._first_NHR, self._weight_NCH, self._bias_NCX)
        )
        logits_NCR = torch.baddbmm(bias_NCX, weight_NCH, first_NHR.relu_())
        labels_NR = self._labels_R.expand(len(logits_NCR), -1)
        return functional.cross_entropy(logits_NCR, labels_NR, reduction="none").double()


# ── asks ──


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A sale, as everybody may read it."""

    round: int
    seller: int
    price: Wei
    ask: Wei
    """Public, as an offer's reserve is."""

    @property
    def valuation(self) -> float:
        """What the goods were worth to the buyer: Nash's price lies midway to the ask.

        (bid − p)(p·(1 − f) − ask) is largest at p = ½(bid + ask/(1 − f)).
        """
        return 2 * self.price - self.ask * BASIS_POINTS / (BASIS_POINTS - FEE)


def ask_of(seller: int, worth: Wei, receipts: Sequence[Receipt], round_: int) -> tuple[str, Wei]:
    """Return what a seller learned its ask from, and the ask, in what it receives.

    From the valuations behind its own sales of the last rounds, else behind everybody's, the
    best ask against them; with too few of either the market's default, from its own gain.
    """
    fresh = [one for one in receipts if one.round >= round_ - FRESH_ROUNDS]
    own = [one.valuation for one in fresh if one.seller == seller]
    for name, past, least in (
        ("own", own, LEAST_OWN),
        ("public", [one.valuation for one in fresh], LEAST_PUBLIC),
    ):
        if len(past) >= least:
            paid = learned_ask(np.array(past), cost=0.0, share=NASH_SHARE)
            return name, Wei(max(0, math.floor(paid)) * (BASIS_POINTS - FEE) // BASIS_POINTS)
    return "gain", market_ask(worth, [one.price for one in fresh], Wei(0), FEE)


# ── one round's trade ──


@dataclass(frozen=True, slots=True)
class Trade:
    buyer: int
    seller: int
    alpha: Millionths
    price: Wei
    ask: Wei
    value: Wei
    """What it is worth to the buyer."""


@dataclass
class Cleared:
    """What a round came to."""

    trades: list[Trade] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    """Cause → buyers that bought nothing."""
    best: Wei = Wei(0)
    """The sum over buyers of the most that any one trial of theirs is worth to them."""
    sure: Wei = Wei(0)
    """The same over trials that pass the gate."""

    @property
    def realised(self) -> Wei:
        return Wei(sum(trade.value for trade in self.trades))


def clear(trials: Trials, asks: Sequence[Wei], *, gated: bool) -> Cleared:
    """Let each agent buy where the Nash price leaves it most; `gated`: of sure gains alone."""
    found = Cleared()
    count = len(asks)
    for buyer in range(count):
        value_N = [value_of(Millionths(int(gain))) for gain in trials.gain_NN[buyer]]
        gains = [s for s in range(count) if s != buyer and value_N[s] > 0]
        sure = [s for s in gains if not gated or trials.bound_NN[buyer, s] > 0]
        found.best = Wei(found.best + max((value_N[s] for s in gains), default=0))
        found.sure = Wei(found.sure + max((value_N[s] for s in sure), default=0))
        because, trade = _purchase(value_N, sure, asks)
        if trade is None:
            because = because if sure else "bound" if gains else "gain"
            found.lost[because] = found.lost.get(because, 0) + 1
            continue
        seller, price = trade
        alpha = Millionths(int(trials.alpha_NN[buyer, seller]))
        found.trades.append(Trade(buyer, seller, alpha, price, asks[seller], value_N[seller]))
    return found


def _purchase(
    value_N: Sequence[Wei], sellers: Sequence[int], asks: Sequence[Wei]
) -> tuple[str, tuple[int, Wei] | None]:
    """Return why there is no purchase, or of whom and at what price in whole Wei."""
    if not sellers:
        return "", None
    bids = [float(value_N[s]) for s in sellers]
    wanted = [float(asks[s]) for s in sellers]
    deals = nash_many(wanted, 0.0, 0.0, bids, leg_b=False, fee=FEE / BASIS_POINTS)
    left = np.where(deals.leg_a_N, deals.utility_b_N, -1.0)
    for place in np.argsort(-left, kind="stable"):
        seller = sellers[int(place)]
        deal = bargain(value_N[seller], asks[seller], fee_basis_points=FEE)
        if deal is not None:
            return "", (seller, deal.price)
        if left[place] < 0:
            break
    return "ask", None


def value_of(gain: Millionths) -> Wei:
    """Return what a gain is worth: as on the floor, play money for the whole loss."""
    return Wei(max(0, PLAY_VALUE * gain // ONE))


# ── playing ──


def gini(values: Sequence[float]) -> float:
    """Return the Gini coefficient of values of at least 0: 0 where all are equal."""
    rising = np.sort(np.asarray(values, dtype=np.float64))
    total = float(rising.sum())
    if total <= 0:
        return 0.0
    count = len(rising)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float((weights * rising).sum() / (count * total))


@dataclass
class Crowd:
    """The agents and their data, with one seed."""

    size: Size
    setting: Setting
    seed: int

    def __post_init__(self) -> None:
        spec = self.setting.spec(self.size.dataset)
        dataset = load(self.size.dataset, spec.data, seed=self.seed)
        self.classes = dataset.classes
        held_out = clean_split(dataset, protocol=protocol_of(spec.config(self.seed)))
        self.validation = held_out.validation
        division = Division(
            dataset=dataset,
            agents=self.size.agents,
            seed=self.seed,
            rule=Dirichlet(concentration=self.size.concentration),
            least_rows=self.size.learning.batch_rows,
        )
        one_row = held_out.report.take(np.zeros(1, dtype=np.int64))
        self.trainers = [
            self._trainer(agent, division.rows_of(agent), one_row)
            for agent in range(self.size.agents)
        ]
        # one judge: a trainer's rows to report on are a copy of its own
        self.judge = self._trainer(self.size.agents, one_row, held_out.report)

    def _trainer(self, agent: int, rows: Rows, report: Rows) -> MlpTrainer:
        seed = int(np.random.SeedSequence([self.seed, 3, agent]).generate_state(1)[0])
        return MlpTrainer(
            rows=rows, report=report, classes=self.classes, settings=self.size.learning, seed=seed
        )

    def probes(self, round_: int) -> tuple[Rows, Rows]:
        """Return the rows that choose α and those that score, drawn for a round."""
        said = f"pm-node dynamics {self.seed} {round_}".encode()
        size, seed = self.size, Digest(hashlib.sha256(said).digest())
        drawn = draw_rows(
            seed, len(self.validation), choice=size.choice_rows, score=size.score_rows
        )
        score = self.validation.take(drawn.score)
        return (score if self.same_rows else self.validation.take(drawn.choice)), score

    @property
    def same_rows(self) -> bool:
        """Whether α is chosen where it is scored, and no bound is asked for."""
        return self.setting.protocol == "paper"

    def trained(self, held: Sequence[Tensors], epoch: int) -> list[Tensors]:
        pairs = zip(self.trainers, held, strict=True)
        return [trainer.train_epoch(own, epoch).parameters for trainer, own in pairs]

    def accuracies(self, held: Sequence[Tensors]) -> list[float]:
        """Return the percent of the rows to report on that each model gets right."""
        return [100 * self.judge.evaluate(own).accuracy for own in held]

    def play(self, told: Callable[[int], None] = lambda _: None) -> list[dict[str, Any]]:
        """Return what each round came to, as JSON."""
        common = self.judge.initial()
        held = [dict(common) for _ in self.trainers]
        alone = list(held)
        receipts: list[Receipt] = []
        rounds = []
        for round_ in range(1, self.size.rounds + 1):
            held, alone = self.trained(held, round_ - 1), self.trained(alone, round_ - 1)
            trials = try_all(held, *self.probes(round_))
            asked = [
                ask_of(seller, value_of(Millionths(int(own_N.max()))), receipts, round_)
                for seller, own_N in enumerate(trials.gain_NN)
            ]
            cleared = clear(trials, [ask for _, ask in asked], gated=not self.same_rows)
            offered = list(held)
            for trade in cleared.trades:
                own, sold = offered[trade.buyer], offered[trade.seller]
                held[trade.buyer] = interpolate(own, sold, trade.alpha)
                receipts.append(
                    Receipt(round=round_, seller=trade.seller, price=trade.price, ask=trade.ask)
                )
            rounds.append(told_of(cleared, asked, self.accuracies(held), self.accuracies(alone)))
            told(round_)
        return rounds


def told_of(
    cleared: Cleared,
    asked: Sequence[tuple[str, Wei]],
    accuracies: Sequence[float],
    alone: Sequence[float],
) -> dict[str, Any]:
    """Return a round as JSON; amounts are whole Wei, and shares of an empty whole are None."""
    prices = [trade.price for trade in cleared.trades]
    mean = float(np.mean(prices)) if prices else None
    sources: Mapping[str, int] = {
        name: sum(source == name for source, _ in asked) for name in ("own", "public", "gain")
    }
    return {
        "trades": len(prices),
        "sellers": len({trade.seller for trade in cleared.trades}),
        "volume": sum(prices),
        "price_mean": mean,
        "price_dispersion": float(np.std(prices)) / mean if mean else None,
        "price_quantiles": [float(np.quantile(prices, q)) for q in (0.1, 0.5, 0.9)]
        if prices
        else None,
        "ask_mean": float(np.mean([ask for _, ask in asked])),
        "asks_from": dict(sources),
        "lost": dict(cleared.lost),
        "realised": cleared.realised,
        "best": cleared.best,
        "efficiency": cleared.realised / cleared.best if cleared.best else None,
        "sure_share": cleared.sure / cleared.best if cleared.best else None,
        "accuracy": float(np.mean(accuracies)),
        "accuracy_alone": float(np.mean(alone)),
        "accuracy_ends": [min(accuracies), max(accuracies)],
        "gini": gini(accuracies),
        "gini_alone": gini(alone),
    }
