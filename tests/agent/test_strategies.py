"""What each strategy says: of its bids, its asks, its goods, and of whom it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.history_ask import history_ask
from node.agent.strategies.base import Asked, Stock, Strategy, Usual
from node.agent.strategies.history import History
from node.agent.strategies.lemon import Lemon
from node.agent.strategies.registry import (
    DISHONEST,
    STRATEGIES,
    StrategyError,
    StrategyFacts,
    build_strategy,
)
from node.agent.strategies.replicator import Replicator
from node.agent.strategies.shading import Shading
from node.agent.strategies.truthful import Truthful
from node.agent.strategies.wash import MARK_BITS, TIMES, WashTrader
from node.config.table import Config
from node.devnet import defaults
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import weights_root
from node.protocol.errors import LocalProtocolError
from node.protocol.fees import fee_of
from node.protocol.types import UINT256_MAX, Digest, Millionths, Wei
from node.roles.shells import _strategy, strategy_of
from tests.protocol.cast import BUYER, OFFER, SELLER

wei = st.integers(0, 2**128).map(Wei)
prices = st.lists(wei, max_size=16).map(tuple)
asked = st.builds(
    Asked,
    usual=wei,
    own_gain_value=st.none() | wei,
    prices=prices,
    cost=wei,
    fee_basis_points=st.integers(0, 1_000),
)
MODEL = Architecture("mlp", {"widths": [5, 8, 6, 3]})
TRADE = Digest(b"t" * 32)
FACTS = StrategyFacts(learned=history_ask, shading=Millionths(200_000), owner="ours")


def stock(*, bought: bool = True, root: bytes = b"r" * 32) -> Stock:
    return Stock(
        architecture=MODEL,
        root=Digest(root),
        own=lambda: random_init(MODEL, 1),
        bought=lambda: (TRADE, random_init(MODEL, 2)) if bought else None,
    )


def rows() -> torch.Tensor:
    return torch.randn(64, 5, generator=torch.Generator().manual_seed(3))


def logits(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return apply(MODEL, tensors, rows())


# ── honest ones ──


@given(worth=wei, seen=asked)
def test_the_usual_agent_bids_its_value_asks_by_its_policy_and_offers_what_it_trained(
    worth: Wei, seen: Asked
) -> None:
    usual = Usual()
    assert usual.bid(worth, OFFER) == worth
    assert usual.ask(seen) == seen.usual
    assert usual.reserve(worth, SELLER.account) == worth
    assert not usual.favours(OFFER)
    assert usual.goods(stock()) is None


@given(worth=wei, seen=asked)
def test_the_truthful_bid_is_the_value_and_the_truthful_ask_is_the_cost(
    worth: Wei, seen: Asked
) -> None:
    assert Truthful().bid(worth, OFFER) == worth
    assert Truthful().ask(seen) == seen.cost


@given(seen=asked)
def test_who_learns_of_history_asks_for_a_price_that_was_paid_or_for_its_cost(seen: Asked) -> None:
    ask = History(history_ask).ask(seen)
    received = [p - fee_of(p, seen.fee_basis_points) for p in seen.prices]
    if not seen.prices:
        assert ask == seen.usual
    else:
        assert ask in [*received, seen.cost]
        assert ask >= seen.cost


def test_who_learns_of_history_asks_what_would_have_earned_the_most() -> None:
    """Of 10, 100 and 100, less nothing: an ask of 100 sells twice; the top √3 is no candidate."""
    seen = Asked(
        usual=Wei(7), own_gain_value=None, cost=Wei(0), fee_basis_points=0,
        prices=(Wei(100), Wei(10), Wei(100)),
    )  # fmt: skip
    assert History(history_ask).ask(seen) == 100
    assert History(history_ask).ask(replace(seen, prices=(Wei(100),))) == 100
    # the one dear trade is not believed to come again
    assert History(history_ask).ask(replace(seen, prices=(Wei(10), Wei(10), Wei(10**6)))) == 10


@pytest.mark.parametrize(
    ("receipts", "cost", "fee"), [([-1], 0, 0), ([1], -1, 0), ([1], 0, -1), ([1], 0, 10_000)]
)
def test_no_price_is_learned_of_amounts_that_are_none(
    receipts: list[int], cost: int, fee: int
) -> None:
    with pytest.raises(LocalProtocolError):
        history_ask(None, [Wei(price) for price in receipts], Wei(cost), fee)


@given(worth=wei, seen=asked, share=st.integers(0, 999_999))
def test_who_shades_bids_below_its_value_and_asks_above_the_usual(
    worth: Wei, seen: Asked, share: int
) -> None:
    shading = Shading(Millionths(share))
    assert shading.bid(worth, OFFER) == worth * (1_000_000 - share) // 1_000_000 <= worth
    assert shading.ask(seen) == seen.usual * (1_000_000 + share) // 1_000_000 >= seen.usual


@pytest.mark.parametrize("share", [-1, 1_000_000])
def test_nobody_shades_all_of_its_value(share: int) -> None:
    with pytest.raises(LocalProtocolError, match="shading"):
        Shading(Millionths(share))


# ── wash-traders ──


@given(reserve=st.integers(0, UINT256_MAX >> 1).map(Wei))
def test_accounts_of_one_owner_know_each_other_by_their_reserves_and_nobody_else_does(
    reserve: Wei,
) -> None:
    ours, same, other = WashTrader("ours"), WashTrader("ours"), WashTrader("another's")
    marked = ours.reserve(reserve, SELLER.account)
    assert reserve <= marked < reserve + (2 << MARK_BITS)
    offer = replace(OFFER, reserve=marked)
    assert same.favours(offer)
    assert not other.favours(offer)
    # another account that says the same reserve is no accomplice
    assert not same.favours(replace(offer, seller=BUYER.account))


@given(worth=wei)
def test_a_wash_trader_overbids_its_accomplice_alone(worth: Wei) -> None:
    trader = WashTrader("ours")
    accomplice = replace(OFFER, reserve=trader.reserve(Wei(0), SELLER.account))
    assert trader.bid(worth, accomplice) == TIMES * worth
    assert trader.bid(worth, OFFER) == worth
    assert not trader.favours(OFFER)


def test_a_wash_trader_without_a_word_knows_nobody() -> None:
    with pytest.raises(LocalProtocolError, match="--owner"):
        WashTrader("")


# ── goods that are not one's own, or worth nothing ──


def test_a_replica_computes_what_was_bought_and_is_other_bytes() -> None:
    goods = Replicator().goods(stock())
    assert goods is not None
    assert (goods.kind, goods.copied) == ("replica", TRADE)
    bought = random_init(MODEL, 2)
    assert weights_root(goods.tensors) != weights_root(bought)
    # not near it unit by unit either
    for name, tensor in bought.items():
        if "weight" in name:
            assert (goods.tensors[name] - tensor).norm() > 0.5 * tensor.norm(), name
    # its units have other numbers, whatever their scale
    first = "layers.0.weight"
    same = torch.cosine_similarity(goods.tensors[first], bought[first], dim=1)
    assert same.min() < 0.9
    apart = (logits(goods.tensors) - logits(bought)).std()
    assert 0 < apart < 0.05 * logits(bought).std()


def test_a_replicator_that_has_bought_nothing_offers_its_own() -> None:
    assert Replicator().goods(stock(bought=False)) is None


def test_a_lemon_has_the_elements_of_its_model_and_none_of_its_function() -> None:
    goods = Lemon().goods(stock())
    assert goods is not None
    assert (goods.kind, goods.copied) == ("lemon", None)
    own = random_init(MODEL, 1)
    assert goods.tensors.keys() == own.keys()
    for name, tensor in own.items():
        shown = goods.tensors[name]
        assert (shown.shape, shown.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(shown.flatten().sort().values, tensor.flatten().sort().values)
    assert (logits(goods.tensors) - logits(own)).std() > 0.5 * logits(own).std()


@given(seen=asked)
def test_a_lemon_takes_what_it_can_get_and_a_replicator_what_is_usual(seen: Asked) -> None:
    assert Lemon().ask(seen) == seen.cost
    assert Replicator().ask(seen) == seen.usual


@pytest.mark.parametrize("strategy", [Replicator(), Lemon()])
def test_what_is_offered_again_after_a_restart_is_the_same_to_the_bit(strategy: Strategy) -> None:
    first, again, other = (strategy.goods(stock(root=r * 32)) for r in (b"r", b"r", b"s"))
    assert first is not None
    assert again is not None
    assert other is not None
    assert weights_root(first.tensors) == weights_root(again.tensors)
    assert weights_root(first.tensors) != weights_root(other.tensors)


def test_what_has_no_symmetries_is_copied_with_noise_alone() -> None:
    shapes = Architecture("random", {"shapes": {"noise": [6, 7]}})
    bought = random_init(shapes, 5)
    goods = Replicator().goods(
        replace(stock(), architecture=shapes, bought=lambda: (TRADE, bought))
    )
    assert goods is not None
    apart = (goods.tensors["noise"] - bought["noise"]).abs().max()
    assert 0 < apart < 0.1


# ── the registry ──


class Own(Usual):
    """An operator's own."""

    def __init__(self, facts: StrategyFacts) -> None:
        self.facts = facts


def test_every_strategy_of_the_table_is_there_and_no_other() -> None:
    assert tuple(STRATEGIES) == defaults.STRATEGIES
    assert Config().strategy == defaults.USUAL_STRATEGY
    assert Config().shading == defaults.USUAL_SHADING
    assert set(STRATEGIES) > DISHONEST
    for name in STRATEGIES:
        assert build_strategy(name, FACTS) is not None


def test_a_strategy_of_an_operators_own_is_named_by_module_and_factory() -> None:
    own = build_strategy(f"{__name__}:Own", FACTS)
    assert isinstance(own, Usual)
    assert type(own).__name__ == "Own"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("honest", "no strategy 'honest'; built in are usual, truthful"),
        ("", "no strategy ''"),
        (":x", "no strategy"),
        ("nowhere.at.all:x", "cannot load"),
        ("node.agent.strategies.base:Nothing", "cannot load"),
    ],
)
def test_a_strategy_that_is_not_there_is_refused_by_name(name: str, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        build_strategy(name, FACTS)


@pytest.mark.parametrize("name", sorted(DISHONEST))
def test_a_dishonest_strategy_is_played_with_play_money_alone(name: str) -> None:
    config = Config(strategy=name, owner="ours")
    assert _strategy(config, play_money=True) is not None
    with pytest.raises(StrategyError, match="play money"):
        _strategy(config, play_money=False)


def test_where_nothing_has_a_price_there_is_no_strategy() -> None:
    with pytest.raises(StrategyError, match="pricing free"):
        _strategy(Config(strategy="shading", pricing="free"), play_money=True)
    assert _strategy(Config(pricing="free"), play_money=False).bid(Wei(1), OFFER) == 1


def test_a_wash_trader_is_told_whom_it_knows_by_its_settings() -> None:
    assert isinstance(strategy_of(Config(strategy="wash-trader", owner="ours")), WashTrader)
    with pytest.raises(LocalProtocolError, match="--owner"):
        strategy_of(Config(strategy="wash-trader"))
