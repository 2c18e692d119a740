"""Opens the house of a market that clears by rounds, and says how either role plays them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker_node.clearing.audit import RoundAudit
from broker_node.clearing.rules import RULES
from node.agent.taking_part import ClearingTerms
from node.chain import answers
from node.chain.clearing import Web3ClearingHouse, open_clearing_house
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_part, load_or_make_salt
from node.chain.seats import take_seat
from node.chain.transactions import Wallet
from node.config.table import Config, ConfigError, Origin
from node.protocol.clearing import ClearingDomain
from node.protocol.types import NO_ADDRESS, Address
from node.roles.opening import PLAY_BOND, Opened

if TYPE_CHECKING:
    from broker_node.clearing.conduct import RoundSettings

HOUSE_FILE: Final = "clearing.house"
"""In a broker's data directory: its house, and a block of before the house, or of our first use."""
POST_SECONDS: Final = 1_800
"""From the last moment to pay to the last moment to post: subsets are measured meanwhile."""
CHALLENGE_OF_PLAY: Final = 1
"""The shortest challenge in a house of play money."""


def clears(config: Config) -> bool:
    """Whether the market of these settings clears by rounds."""
    return config.mechanism in RULES


def house_of_broker(opened: Opened) -> Web3ClearingHouse:
    """Open the broker's house; on play money, deploy one of its own and take the seat in it.

    Raises `ConfigError` where there is none, and `ChainError`.
    """
    config, key = opened.config, opened.keys.account
    client = ChainClient(opened.endpoint)
    try:
        chain_id, address = client.chain_id(), config.clearing_house
        since = answers.quantity(client.ask("eth_blockNumber"), "eth_blockNumber")
        if address == NO_ADDRESS:
            if not opened.play_money:
                raise ConfigError(
                    "clearing_house", "", Origin("default"), "name the clearing house of the market"
                )
            part = MarketPlan(
                salt=load_or_make_salt(opened.home.root / "house.salt"),
                brokers=(opened.keys.address,),
                minimum_bond=PLAY_BOND,
                minimum_challenge=CHALLENGE_OF_PLAY,
            ).clearing_house_part()
            if not client.code(part.address):
                deploy_part(client, Wallet(key, chain_id), part)
            address = part.address
        domain = ClearingDomain(chain_id=chain_id, clearing_house=address)
        bond = PLAY_BOND if config.bond is None and opened.play_money else config.bond
        take_seat(client, key, domain, bond=bond)
    finally:
        client.close()
    note_house(opened.home.root, address, since)
    return open_clearing_house(opened.endpoint, key, domain)


def note_house(folder: Path, address: Address, since: int) -> None:
    """Write down which house a broker clears in, and from which block on, if it is another."""
    path = folder / HOUSE_FILE
    if not path.exists() or noted_house(folder)[0] != address:
        path.write_text(f"{address} {since}\n", encoding="ascii")


def noted_house(folder: Path) -> tuple[Address, int]:
    """Return which house a broker clears in, and a block before which it moved nothing there.

    Raises `OSError`, and `ValueError` if the file says something else.
    """
    address, since = (folder / HOUSE_FILE).read_text(encoding="ascii").split()
    return Address(address), int(since)


def round_settings(config: Config) -> RoundSettings:
    """Return how a broker plays rounds."""
    # what measures models, and scipy with it: half a second of a start that an agent is spared
    from broker_node.clearing.conduct import RoundSettings

    return RoundSettings(
        mechanism=config.mechanism,
        unit=config.performance_value,
        entry=config.entry_fee,
        expected=config.agents,
        gather_seconds=config.gather_seconds,
        pay_seconds=config.pay_seconds,
        post_seconds=POST_SECONDS,
        challenge_seconds=config.challenge_seconds,
        producers=config.producers,
        serving_cost=config.serving_cost,
        margin=config.producer_margin,
        share=config.data_share,
    )


def clearing_terms(opened: Opened) -> ClearingTerms | None:
    """Return how an agent takes part in rounds; None for one that trades.

    Raises `ConfigError` for real money without a limit on what a round may cost.
    """
    config = opened.config
    if not clears(config):
        return None
    if config.most_due is None and not opened.play_money:
        raise ConfigError(
            "most_due", "", Origin("default"), "say the most to pay into a round in real money"
        )
    chain_id = opened.escrow.domain.chain_id

    def open_house(address: Address) -> Web3ClearingHouse:
        domain = ClearingDomain(chain_id=chain_id, clearing_house=address)
        return open_clearing_house(opened.endpoint, opened.keys.account, domain)

    return ClearingTerms(
        mechanism=config.mechanism,
        audit=RoundAudit(),
        open_house=open_house,
        cost=config.data_cost,
        reserve=config.model_reserve,
        most_due=config.most_due,
        least_challenge=CHALLENGE_OF_PLAY if opened.play_money else config.challenge_seconds,
    )
