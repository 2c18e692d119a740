"""Every setting of a node, in one table: the fields of `Config`.

A value comes from a flag, else a ``PMNODE_*`` variable, else the TOML file, else the
default; `load` keeps which, for ``config show --origin``. Flags, documentation and the
file that ``init`` writes are all generated from the table. Whatever is misspelt, of the
wrong kind or out of bounds is an error that names the key, the value, where it came from
and what would be right: a node never starts on settings that it half understood.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.config.setting import PREFIX, ConfigError, Origin, Setting
from node.config.setting import setting as _setting
from node.protocol.types import NO_ADDRESS, Address, Millionths, Wei

__all__ = [
    "DAY", "ETHER", "GWEI", "PREFIX", "RESERVED_VARIABLES", "SETTINGS", "Config", "ConfigError",
    "Origin", "Setting",
]  # fmt: skip

RESERVED_VARIABLES: Final = frozenset(
    {"PMNODE_STATE", "PMNODE_CONFIG", "PMNODE_DATA", "PMNODE_FAILPOINT"}
)
"""Variables of ours that are not settings: where things lie, read elsewhere."""

GWEI: Final = 10**9
ETHER: Final = 10**18
DAY: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one node. Amounts are wei, times whole seconds, fractions millionths."""

    # Who and where
    role: str = _setting("text", "agent", "what this node does", choices=("agent", "broker"))
    data_dir: Path | None = _setting(
        "path", None, "keys, journal and blobs (default: by role, under the user's data folder)"
    )
    password_file: Path | None = _setting(
        "path", None, "file with the keystore's password (default: standard input)"
    )
    trade_retention_days: int = _setting(
        "integer", 90, "how long the journal keeps a trade that ended", low=7, high=36_500
    )
    log_level: str = _setting(
        "text", "info", "least severe events shown", choices=("debug", "info", "warning", "error")
    )

    # Network
    listen: str = _setting("multiaddr", "/ip4/127.0.0.1/tcp/0", "address to listen on")
    bootstrap: tuple[str, ...] = _setting(
        "peers", (), "brokers to join by, or of our quorum (default: the one of this machine)"
    )
    brokers: tuple[Address, ...] = _setting(
        "addresses",
        (),
        "accounts of trusted brokers (default: those joined)",
    )

    # Chain
    chain: str = _setting(
        "url", "", "JSON-RPC of the chain (default: the broker's; a broker serves play money)"
    )
    escrow: Address = _setting(
        "address",
        NO_ADDRESS,
        "the escrow contract (default: the one that the data directory began in, else the newest "
        "in its deployments/<chain id>.json, else the broker's)",
    )
    quorum: tuple[int, int] = _setting(
        "quorum", (1, 1), "how many brokers sign a quote, of how many (as the escrow wants it)"
    )
    bond: Wei | None = _setting(
        "wei",
        None,
        "what a broker puts up under its signature, in wei (default: on play money one ether)",
        low=1,
    )
    confirmations: int | None = _setting(
        "integer",
        None,
        "blocks on a payment before the key is revealed (default: 12, and 0 on play money)",
        low=0,
        high=10_000,
    )

    # Training
    task: str = _setting("text", "mnist", "what is learnt; nodes of one task can trade")
    trainer: str = _setting("text", "mlp", "how a model is built and trained")
    architecture: Path | None = _setting(
        "path", None, "JSON file of {name, config} of the model that the trainer `module` trains"
    )
    modules: tuple[str, ...] = _setting(
        "factories", (), "models of one's own, which others' texts may name: MODULE:FUNCTION that "
        "builds it, the shape of a row, perhaps tokens=N and keywords as JSON, such as mine:build "
        "1,8,8. The working directory counts; imported and run, unconfined (default: none)",
    )  # fmt: skip
    dataset: str = _setting("text", "mnist", "where examples come from")
    data_folder: Path | None = _setting("path", None, "folder of data files of one's own")
    agent: int = _setting("integer", 0, "which share of the examples is ours", low=0, high=10_000)
    agents: int = _setting("integer", 2, "among how many they are shared", low=1, high=10_000)
    rounds: int = _setting("integer", 15, "rounds to play", low=1, high=1_000_000)
    epochs_per_round: int = _setting("integer", 1, "epochs between trades", low=0, high=10_000)
    warmup_epochs: int = _setting("integer", 5, "epochs before the first", low=0, high=10_000)
    protocol: str = _setting(
        "text", "clean", "which rows choose, score and report", choices=("clean", "paper")
    )
    endowment: str = _setting(
        "text", "paper", "who holds which rows", choices=("paper", "dirichlet")
    )
    concentration: Millionths = _setting(
        "fraction", Millionths(500_000), "of the Dirichlet endowment", low=1_000, high=10**9
    )  # fmt: skip
    layers: tuple[int, ...] = _setting(
        "layers", (), "layers of the model that are offered (default: all)"
    )
    offers_per_round: int = _setting(
        "integer", 1, "new offers of others that a round waits for", low=1, high=10_000
    )
    trials_per_round: int = _setting(
        "integer", 32, "most offers that a round tries", low=1, high=10_000
    )
    seed: int = _setting("integer", 0, "of data splits, weights and batches", low=0, high=2**63 - 1)

    # Evaluation
    alignment: str | None = _setting(
        "text", None, "how units are matched before a merge (default: universe; weight-matching "
        "under the paper's protocol)",
        choices=("identity", "weight-matching", "activation-matching", "universe"),
    )  # fmt: skip
    merging: str | None = _setting(
        "text", None, "who has a share of its own in a merge: nothing, each layer, or each unit "
        "(default: unit-alpha; lerp under the paper's protocol)",
        choices=("lerp", "layer-alpha", "unit-alpha"),
    )  # fmt: skip
    alpha_search: str = _setting(
        "text", "halving-brent", "how the share of a merge is chosen",
        choices=("halving-brent", "paper-grid", "half", "exact-quadratic"),
    )  # fmt: skip
    adapter_base: Path | None = _setting(
        "path", None, "safetensors file, or folder with one, of the model whose adapters a broker "
        "takes (default: it takes none)",
    )  # fmt: skip

    device: str = _setting(
        "text", "cpu", "what a broker evaluates on; merged bytes are the CPU's on any",
        choices=("cpu", "cuda", "mps", "auto"),
    )  # fmt: skip
    engine: str = _setting(
        "text", "local", "where a broker computes: in its process, or on a Ray cluster",
        choices=("local", "ray"),
    )  # fmt: skip
    engine_workers: int = _setting(
        "integer", 1, "trials that the engine `local` computes at once", low=1, high=1_024
    )
    ray_address: str | None = _setting(
        "text", None, "a running Ray cluster (default: one of our own, on loopback)"
    )

    # Prices
    pricing: str = _setting(
        "text", "bargain", "whether trades have a price", choices=("bargain", "free")
    )
    mechanism: str = _setting(
        "text", "nash",
        "how prices are made: by each pair, of all budgets in one call, or in a clearing house",
        choices=("nash", "eeg", "shapley", "triplewin"),
    )  # fmt: skip
    call_budget: Wei | None = _setting(
        "wei",
        None,
        "most to bid in one call of an eeg market, in wei (default: what may be spent); "
        "no more is ever bid than the gains are worth",
        low=1,
    )
    call_seconds: int = _setting(
        "integer", 30, "how long after its first bid a call waits for others", low=1, high=600
    )
    budget: Wei | None = _setting(
        "wei", None, "most to spend on purchases in all (default: what the account holds)", low=0
    )
    value_per_unit_gain: Wei | None = _setting(
        "wei",
        None,
        "what the removal of one's whole loss would be worth, in wei (on play money: one ether)",
        low=0,
    )
    reserve: Wei = _setting("wei", Wei(0), "lowest price to sell at, in wei", low=0)
    attest: str = _setting(
        "text", "none", "what an agent swears to its broker of each model that it offers: that it "
        "was trained on none of the broker's rows (clean-split)", choices=("none", "clean-split"),
    )  # fmt: skip
    min_gain: Millionths = _setting(
        "fraction", Millionths(0), "relative gain below which nothing is bought", low=0,
        high=1_000_000,
    )  # fmt: skip
    strategy: str = _setting(
        "text", "usual", "how an agent bids, asks and offers: usual, truthful, history, shading, "
        "wash-trader, replicator, lemon, or package.module:factory",
    )  # fmt: skip
    shading: Millionths = _setting(
        "fraction", Millionths(200_000), "how far the strategy `shading` is from the truth", low=0,
        high=999_999,
    )  # fmt: skip
    owner: str | None = _setting("text", None, "what one wash-trader's accounts share in secret")
    disclosure: str = _setting(
        "text", "full", "what a broker tells a buyer of its trials before it has a deal",
        choices=("full", "rounded", "none"),
    )  # fmt: skip
    control: str = _setting(
        "text", "tune", "what a broker logs beside a gain: what the buyer's own model gains by "
        "one factor on its outputs (scale), and by fine-tuning on the broker's labels too (tune)",
        choices=("none", "scale", "tune"),
    )  # fmt: skip
    replicas: str = _setting(
        "text", "report", "what a broker does with a model for sale that is like another account's "
        "and no receipt explains", choices=("refuse", "report", "ignore"),
    )  # fmt: skip
    scan: str = _setting(
        "text", "none", "what a broker looks at for what a merge should not bring: the merge of "
        "each trial (merges)", choices=("none", "merges"),
    )  # fmt: skip
    fee_bps: int = _setting("integer", 200, "broker's fee in 1/100 of a percent", low=0, high=1_000)

    # Rounds of a clearing house
    clearing_house: Address = _setting(
        "address",
        NO_ADDRESS,
        "the clearing house of a broker (default: on play money, one of its own)",
    )
    performance_value: Wei = _setting(
        "wei", Wei(ETHER), "what an accuracy of 1 is worth in a broker's rounds, in wei", low=1
    )
    entry_fee: Wei = _setting(
        "wei", Wei(0), "part of the fee of a round that is never given back, in wei", low=0
    )
    gather_seconds: int = _setting(
        "integer", 60, "how long a round waits for agents, after the first", low=1, high=DAY
    )
    pay_seconds: int = _setting("integer", 300, "to pay into a round", low=4, high=30 * DAY)
    challenge_seconds: int = _setting(
        "integer", DAY, "to look at a root before it stands", low=1, high=30 * DAY
    )
    most_due: Wei | None = _setting(
        "wei",
        None,
        "the most that an agent pays into a round (default: on play money no limit; real money "
        "needs one)",
        low=0,
    )
    producers: int = _setting(
        "integer", 1, "how many of the agents make a model to sell (triplewin)", low=1, high=64
    )
    data_cost: Wei = _setting(
        "wei", Wei(10**15), "what a use of one's parameters costs, in wei (triplewin)", low=1
    )
    model_reserve: Wei = _setting(
        "wei", Wei(0), "the most to pay for a model, in wei; 0 is no limit (triplewin)", low=0
    )
    serving_cost: Wei = _setting(
        "wei", Wei(10**15), "what serving a model to a buyer costs, in wei (triplewin)", low=1
    )
    producer_margin: Millionths = _setting(
        "fraction", Millionths(100_000), "of producers, on what data costs them (triplewin)",
        low=0, high=10**9,
    )  # fmt: skip
    data_share: Millionths = _setting(
        "fraction", Millionths(500_000), "of a payment that counts towards the data (triplewin)",
        low=0, high=10**9,
    )  # fmt: skip

    # Deadlines
    offer_ttl_seconds: int = _setting("integer", 600, "an offer stands for", low=1, high=DAY)
    round_patience_seconds: int = _setting(
        "integer", 120, "how long a round waits for somebody else's new offer", low=1, high=DAY
    )
    fund_seconds: int = _setting("integer", 60, "from quote to payment", low=1, high=30 * DAY)
    reveal_seconds: int = _setting("integer", 900, "from payment to key", low=1, high=30 * DAY)
    grace_seconds: int = _setting(
        "integer", 300, "from there until a refund may be called for", low=0, high=30 * DAY
    )
    dispute_window_seconds: int | None = _setting(
        "integer",
        None,
        "from key to final payment, in a broker's quotes (default: 60 on play money, else 15 for "
        "each confirmation and 8 blocks more)",
        low=0,
        high=30 * DAY,
    )
    minimum_dispute_window: int = _setting(
        "integer",
        30,
        "shortest such window that a buyer accepts, in seconds (on real money at least 15 for each "
        "confirmation and 8 blocks more)",
        low=0,
        high=30 * DAY,
    )

    # Experiments
    trial_seed: str | None = _setting(
        "digest", None, "draws the rows of a broker's trials (default: drawn once for its journal)"
    )
    meeting: str | None = _setting(
        "multiaddr", None, "where agents of an experiment wait for one another (default: nowhere)"
    )


def _table() -> dict[str, Setting]:
    return {
        field.name: Setting(name=field.name, default=field.default, **field.metadata)
        for field in dataclasses.fields(Config)
    }


SETTINGS: Final[Mapping[str, Setting]] = _table()
"""The table, in the order of `Config`."""
