"""A market that clears by rounds, in one process: real hosts, the real house, models trained here.

As `tests.market.market`, of which it is made: only time may be moved by hand.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from broker_node.appraisal import MarketAppraiser
from broker_node.clearing.audit import RoundAudit
from broker_node.clearing.broker import ClearingBroker
from broker_node.clearing.conduct import RoundSettings
from broker_node.evaluate.validation import ValidationSet
from broker_node.service import Broker
from node.agent.agent import Agent
from node.agent.taking_part import ClearingTerms
from node.chain.clearing import Web3ClearingHouse, open_clearing_house
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market, deploy_part
from node.chain.in_process import InProcessProvider
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain, fund_account
from node.chain.transactions import Wallet
from node.chronicle import ClearingChanged, ClearingOff, RoundPlayed
from node.data.datasets import load
from node.data.folder import default_data_folder
from node.data.split import split_test
from node.devnet.pots import Books, read_books
from node.protocol.clearing import ClearingDomain
from node.protocol.participation import Participation, ParticipationRecord
from node.protocol.pooling import Cleared
from node.protocol.signing import address_of
from node.protocol.sum_tree import SumTree
from node.protocol.types import Address, Digest, Wei
from node.settlement import rounds
from node.training.registry import build_trainer
from node.training.trainer import Task
from tests.market.market import ETHER, WINDOWS, Clock, Market, Party, eventually, seed_of

PAY, CHALLENGE = 600, 600
UNIT = Wei(ETHER)
SEED = Digest(seed_of("rows of a round"))
SECONDS = 150.0
TERMS = ("cost", "reserve", "most_due")
"""Of the settings of an agent, those of its `ClearingTerms`."""
ROUNDS = RoundSettings(
    mechanism="shapley",
    unit=UNIT,
    entry=Wei(0),
    expected=3,
    gather_seconds=120,
    pay_seconds=PAY,
    post_seconds=6_000,
    challenge_seconds=CHALLENGE,
    producers=1,
    serving_cost=Wei(10**15),
    margin=100_000,
    share=500_000,
)


class RoundParty(Party):
    """A broker that clears by rounds, or an agent that takes part in them."""

    market: RoundMarket

    def _make(self) -> Broker | Agent:
        common: dict[str, Any] = {
            "station": self.station, "escrow": self.escrow, "confirmations": 0,
        }  # fmt: skip
        if issubclass(self.shell_class, ClearingBroker):
            dataset = load("digits", default_data_folder(), seed=0)
            return self.shell_class(
                appraiser=MarketAppraiser(
                    ValidationSet.of(split_test(dataset, protocol="clean").validation),
                    classes=dataset.outputs,
                ),
                settings=replace(WINDOWS, trial_seed=SEED),
                house=self.house(),
                rounds=self.market.rounds,
                cache=self.home / "measured",
                **common,
            )
        number = self.market.number_of(self) - 1
        terms = ClearingTerms(
            mechanism=self.market.rounds.mechanism,
            audit=RoundAudit(),
            open_house=self.house,
            cost=self.settings.get("cost", Wei(10**15)),
            reserve=self.settings.get("reserve", Wei(0)),
            most_due=self.settings.get("most_due"),
            least_challenge=CHALLENGE,
        )
        own = {name: value for name, value in self.settings.items() if name not in TERMS}
        settings = replace(self.agent_settings(), warmup_epochs=7, epochs_per_round=0, rounds=1)
        return Agent(
            trainer=build_trainer(
                "mlp",
                Task(
                    dataset="digits", data_folder=default_data_folder(), agent=number, agents=3,
                    seed=0,
                ),
            ),
            settings=replace(settings, round_patience=60, **own),
            clearing=terms,
            **common,
        )  # fmt: skip

    def agent_settings(self) -> Any:
        kept, self.settings = self.settings, {}
        try:
            return super().agent_settings()
        finally:
            self.settings = kept

    def house(self, address: Address | None = None) -> Web3ClearingHouse:
        domain = self.market.house
        if address is not None:
            domain = replace(domain, clearing_house=address)
        return open_clearing_house(self.line, self.keys.account, domain)

    # ── what a test asks of it ──

    @property
    def part(self) -> ParticipationRecord | None:
        found = rounds.recall(self.station.journal, rounds.JOINED, ParticipationRecord)
        return next(iter(found.values()), None)

    @property
    def states_of_round(self) -> list[str]:
        """What its round went through, each state once where it follows itself."""
        told = [event.state for event in self.heard(ClearingChanged)]
        return [state for at, state in enumerate(told) if not at or told[at - 1] != state]

    async def comes_to(self, *states: str) -> None:
        await eventually(
            lambda: set(states) & set(self.states_of_round), f"{self.name} {states}", SECONDS
        )

    async def has_played(self) -> RoundPlayed:
        await eventually(lambda: self.heard(RoundPlayed), f"{self.name}'s round", SECONDS)
        return self.heard(RoundPlayed)[-1]

    async def stays_out(self) -> ClearingOff:
        await eventually(lambda: self.heard(ClearingOff), f"{self.name} out", SECONDS)
        return self.heard(ClearingOff)[-1]


@dataclass
class RoundMarket(Market):
    """A market with a clearing house."""

    house: ClearingDomain = field(kw_only=True)
    rounds: RoundSettings = ROUNDS

    async def join(self, name: str, shell: Any, **settings: Any) -> Party:
        party = self.parties[name] = RoundParty(self, name, shell, **settings)
        fund_account(self.chain, party.account, Wei(10 * ETHER))
        await party.start()
        return party

    async def agents(self, **settings: dict[str, Any]) -> list[RoundParty]:
        """Let three agents join; `settings` by name."""
        found = []
        for number in range(3):
            name = f"agent-{number}"
            found.append(await self.join(name, Agent, **settings.get(name.replace("-", "_"), {})))
        return found  # type: ignore[return-value]

    @property
    def convener(self) -> RoundParty:
        return self.parties["broker"]  # type: ignore[return-value]

    def books(self) -> Books:
        return read_books(self.convener.house())

    async def to_the_root(self, *parties: RoundParty) -> None:
        """Have these pay, and see the root posted."""
        for party in parties:
            await party.comes_to("waiting")
        self.skip(PAY + 1)
        await self.convener.comes_to("challenged")

    async def to_the_end(self, *parties: RoundParty) -> None:
        """Have these judge the root, and see it stand and paid out."""
        for party in parties:
            await party.comes_to("agreed", "objecting")
        self.skip(CHALLENGE + 1)
        for party in parties:
            await party.has_played()


def part_of(party: RoundParty) -> Participation:
    assert party.part is not None
    return Participation(party.part)


def has_forged(market: RoundMarket, victims: int) -> None:
    """Have the broker keep a half of what is due to all, and all that is to the last `victims`."""
    conduct = market.convener.shell._conduct
    honest = conduct.tree_to_post

    def greedy(record: object) -> SumTree:
        tree = honest(record)
        spared = tree.payouts[: len(tree.payouts) - victims]
        kept = [(account, Wei(amount // 2)) for account, amount in spared]
        taken = tree.root.sum - sum(amount for _, amount in kept)
        return SumTree(tree.round_id, [*kept, (market.broker.account, Wei(taken))])

    def listed(name: Digest) -> Cleared:
        told: Cleared = published(name)
        leaves = greedy(conduct._rounds[name].record).payouts
        return replace(
            told,
            accounts=tuple(account for account, _ in leaves),
            amounts=tuple(amount for _, amount in leaves),
        )

    published = conduct.cleared
    conduct.tree_to_post, conduct.cleared = greedy, listed


@asynccontextmanager
async def open_rounds(folder: Path, **changes: Any) -> AsyncIterator[RoundMarket]:
    """Open a market with its broker and house; agents `join`."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        chain = stack.enter_context(DevelopmentChain(clock=clock, block_seconds=1))
        client = ChainClient(InProcessProvider(chain))
        key = seed_of("account of broker")
        fund_account(chain, address_of(key), Wei(5 * ETHER))
        plan = MarketPlan(
            salt=Digest(secrets.token_bytes(32)),
            brokers=(address_of(key),),
            minimum_bond=Wei(ETHER),
            minimum_challenge=CHALLENGE,
        )
        domain = await trio.to_thread.run_sync(lambda: deploy_market(client, key, plan))
        deploy_part(client, Wallet(key, domain.chain_id), plan.clearing_house_part())
        house = ClearingDomain(chain_id=domain.chain_id, clearing_house=plan.clearing_house)
        for market in (domain, house):
            take_seat(client, key, market, bond=Wei(ETHER))
        nursery = await stack.enter_async_context(trio.open_nursery())
        opened = RoundMarket(
            folder, nursery, clock, chain, client, domain, house=house,
            rounds=replace(ROUNDS, **changes),
        )  # fmt: skip
        await opened.join("broker", ClearingBroker)
        yield opened
        opened.check_healthy()
        nursery.cancel_scope.cancel()
