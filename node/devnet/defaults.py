"""What a run plays where nothing else is asked for; light to import, for the command's help."""

from __future__ import annotations

from typing import Final

from node.devnet.arms import OUT_OF_MARKET

DRILL: Final = "random"
"""The data set without rows: random tensors, for settlement alone."""
STUDY: Final = "linear"
"""The data set of the linear study: values to predict, two agents."""
DATASETS: Final = ("mnist", "fashion", "digits", STUDY, "cifar10", "tiny-imagenet", DRILL)
LEAST_AGENTS: Final = 2
MAX_AGENTS: Final = 64
MAX_SEED: Final = 2**32
USUAL_AGENTS: Final = 2
USUAL_ARMS: Final = (OUT_OF_MARKET, "aligned")
DRILL_ARMS: Final = ("aligned",)
"""With no rows there is nothing that another arm could do otherwise."""
USUAL_WARMUP: Final = 5
"""Epochs before the market opens (Train 'n Trade's configuration)."""
USUAL_ROUNDS: Final = 45
"""With the epochs before, the fifty of Train 'n Trade's configuration."""
QUICK_ROUNDS: Final = 8
STUDY_ROUNDS: Final = 100
DRILL_ROUNDS: Final = 5
USUAL_EPOCHS_PER_ROUND: Final = 1
USUAL_FEE_BASIS_POINTS: Final = 200
USUAL_MECHANISM: Final = "nash"
CALL_MECHANISM: Final = "eeg"
"""That which clears the budgets of a round in one call."""
ROUND_MECHANISMS: Final = ("shapley", "triplewin")
"""Those that clear by rounds of a clearing house."""
MECHANISMS: Final = (USUAL_MECHANISM, CALL_MECHANISM, *ROUND_MECHANISMS)
CALL_BUDGET: Final = 2 * 10**16
"""Wei: the middle of what agents bid in a call, each its own amount."""
MOST_EXACT: Final = 12
"""Agents of which every subset is measured."""
USUAL_CONCENTRATION: Final = 500_000
"""Millionths."""
USUAL_SHADING: Final = 200_000
"""Millionths."""
USUAL_REPLICAS: Final = "report"
"""What the broker does with a model that is like another account's."""
USUAL_STRATEGY: Final = "usual"
STRATEGIES: Final = (
    USUAL_STRATEGY,
    *("truthful", "history", "shading", "wash-trader", "replicator", "lemon"),
)
"""Those of `node.agent.strategies.registry`, which takes a second to import."""


def arms_of(dataset: str) -> tuple[str, ...]:
    """Return the arms that are played on a data set, where none are named."""
    return DRILL_ARMS if dataset == DRILL else USUAL_ARMS


def rounds_of(dataset: str) -> int:
    """Return how many rounds a data set has."""
    return {STUDY: STUDY_ROUNDS, DRILL: DRILL_ROUNDS}.get(dataset, USUAL_ROUNDS)


def warmup_of(dataset: str) -> int:
    """Return how many epochs agents train alone before the first round."""
    return 0 if dataset in (STUDY, DRILL) else USUAL_WARMUP
