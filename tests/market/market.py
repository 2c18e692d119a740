"""A whole market in one process: real hosts on loopback, the real contract, the real shells.

Only time may be moved by hand: `Market.skip` sets the wall clock of the chain and of every
party forward alike, so that deadlines need not be waited for.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import trio
from web3.types import RPCEndpoint, RPCResponse

from broker_node.appraisal import DrillAppraiser
from broker_node.mechanisms.ask import market_ask
from broker_node.service import Broker
from broker_node.settings import BrokerSettings
from node.agent.agent import Agent
from node.agent.buyer import NoPrice
from node.agent.settings import AgentSettings
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market
from node.chain.in_process import InProcessProvider
from node.chain.port import EscrowEvent, EscrowState
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain, fund_account, wall_clock
from node.chain.web3_escrow import Web3Escrow, open_escrow
from node.chronicle import NodeReady, PeerFault, TradeChanged
from node.devnet.ledger import Ledger, read_ledger
from node.journal import Journal
from node.net.host import Network, open_host
from node.observe import Event, Observer
from node.params.architecture import Architecture
from node.params.store import BlobStore
from node.protocol.bargain import Patience
from node.protocol.eip712 import Domain
from node.protocol.offer import Offer
from node.protocol.purchase import Purchase, PurchaseRecord
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, Millionths, PeerId, UnixTime, Wei
from node.settlement.trade import Trade
from node.station.station import Keys, Station
from node.training.noise import NoiseTrainer

E = TypeVar("E", bound=Event)
TaskStatus = Any
"""`trio.TaskStatus`, for which there are no types here."""
ETHER = 10**18
TASK = "drill"
SHAPES = {"noise": (48, 64)}
"""12 KiB of weights: a dozen leaves."""
LISTEN = "/ip4/127.0.0.1/tcp/0"
WINDOWS = BrokerSettings(
    fee_basis_points=250,
    fund_seconds=60,
    reveal_seconds=60,
    grace_seconds=10,
    dispute_window_seconds=1,
)


class Clock:
    """The wall clock of everybody, which a test may set forward."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> UnixTime:
        return UnixTime(wall_clock() + self.ahead)


class Line(InProcessProvider):
    """One party's endpoint: the real methods, over a line that may be cut."""

    def __init__(self, chain: DevelopmentChain) -> None:
        super().__init__(chain)
        self.cut = False
        self.refused = 0

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        if self.cut:
            self.refused += 1
            raise ConnectionRefusedError(f"{method}: the line is cut")
        return super().make_request(method, params)


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Party:
    """One node of the market. It may be stopped and started again on its own data."""

    def __init__(
        self, market: Market, name: str, shell: type[Broker | Agent], **settings: Any
    ) -> None:
        self.market = market
        self.name = name
        self.shell_class = shell
        self.settings = settings
        self.home = market.folder / name
        self.home.mkdir()
        self.keys = Keys(account=seed_of(f"account of {name}"), peer=seed_of(f"peer {name}"))
        self.line = Line(market.chain)
        self.listen = LISTEN
        self.events: list[Event] = []
        self.faults: list[str] = []
        self.station: Station
        self.network: Network
        self.shell: Any
        """A `Broker` or an `Agent`, or a dishonest one."""
        self.escrow: Web3Escrow
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    # ── life ──

    async def start(self) -> None:
        """Run until stopped; returns once it serves."""
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        await self.market.nursery.start(self._live)

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    async def _live(self, *, task_status: TaskStatus) -> None:
        ready = trio.Event()

        def hear(record: Any) -> None:
            self.events.append(record.event)
            if isinstance(record.event, NodeReady):
                ready.set()

        def fault(where: str, peer: PeerId | None, error: Exception) -> None:
            self.faults.append(f"{where}: {error!r}")

        observer = Observer()
        observer.subscribe(hear)
        journal = Journal(self.home / "journal.db")
        try:
            with self._scope:
                async with open_host(self.keys.peer, self.listen, on_fault=fault) as network:
                    self.network = network
                    self.listen = network.addresses()[0].split("/p2p/")[0]
                    self.escrow = open_escrow(
                        self.line, self.keys.account, self.market.domain, quorum=None
                    )
                    self.station = Station(
                        keys=self.keys,
                        domain=self.market.domain,
                        network=network,
                        journal=journal,
                        blobs=BlobStore(self.home / "blobs"),
                        observer=observer,
                        clock=self.market.clock,
                        trusted_brokers=frozenset(),
                        task=TASK,
                    )
                    self.shell = self._make()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.shell.run)
                        await ready.wait()
                        if isinstance(self.shell, Agent):
                            with trio.move_on_after(5):  # a broker may be away, or another's
                                await self.shell.joined.wait()
                        task_status.started()
        finally:
            journal.close()
            self._stopped.set()

    def _make(self) -> Broker | Agent:
        common: dict[str, Any] = {
            "station": self.station,
            "escrow": self.escrow,
            "confirmations": 0,
        }
        if issubclass(self.shell_class, Broker):
            settings = replace(WINDOWS, **self.settings)
            return self.shell_class(appraiser=DrillAppraiser(), settings=settings, **common)
        return self.shell_class(
            trainer=NoiseTrainer(seed=1, agent=self.market.number_of(self), shapes=SHAPES),
            settings=self.agent_settings(),
            **common,
        )

    def agent_settings(self) -> AgentSettings:
        settings = AgentSettings(
            brokers=(self.market.broker.network.addresses()[0],),
            rounds=0,
            warmup_epochs=0,
            epochs_per_round=1,
            offer_seconds=3_600,
            round_patience=20,
            reserve=Wei(ETHER // 1_000),
            value_per_unit_gain=Wei(ETHER),
            min_gain=Millionths(1),
            patience=Patience(
                least_dispute_window=1, longest_dispute_window=3_600, least_reveal_seconds=5
            ),
            ask=market_ask,
        )
        return replace(settings, **self.settings)

    # ── what a test asks of it ──

    @property
    def account(self) -> Address:
        return self.keys.address

    @property
    def peer_id(self) -> PeerId:
        return self.network.peer_id

    @property
    def journal(self) -> Journal:
        return self.station.journal

    def heard(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def blamed(self, during: str = "") -> list[str]:
        """Reasons of the faults that it found in its peers."""
        return [f.reason for f in self.heard(PeerFault) if during in f.during]

    def states(self, trade_id: Digest) -> list[str]:
        """What its trade went through."""
        return [e.state for e in self.heard(TradeChanged) if e.trade_id == trade_id]

    async def reaches(self, trade_id: Digest, state: str) -> None:
        await eventually(lambda: state in self.states(trade_id), f"{self.name} {state}")

    async def offer(self, tensors: dict[str, torch.Tensor] | None = None) -> tuple[Digest, Offer]:
        """Offer weights as the learner does: signed, gossiped, submitted."""
        chosen = tensors or weights(self.name)
        name = await self.shell.session.offer(architecture(), chosen)
        offer = self.station.own_offer(name)
        assert offer is not None
        return name, offer

    def serves(self, blob: bytes) -> Digest:
        """Hold a blob, and give it to whoever asks. Returns its root."""
        root = self.station.blobs.put_bytes(blob).root
        self.station.served.add(root)
        return root

    async def submits(self, statement: bytes) -> None:
        """Submit an offer as it was signed. Raises what the broker answers."""
        from node.protocol.messages import Submit, Submitted

        broker = self.market.broker.peer_id
        await self.station.ask(broker, Submit(statement=statement), Submitted, seconds=10)

    async def submit(self, offer: Offer, blob: bytes) -> None:
        """Sign an offer, serve `blob` for it, and submit it. Raises what the broker answers."""
        self.serves(blob)
        await self.submits(self.station.sign(offer)[1])

    async def buy(self, seller: Party, base: tuple[Digest, Offer] | None = None) -> Trade:
        """Try the seller's newest offer on ours and buy it, as the learner does."""
        trade = await self.buy_or_not(seller, base)
        assert trade is not None
        return trade

    async def buy_or_not(
        self, seller: Party, base: tuple[Digest, Offer] | None = None
    ) -> Trade | None:
        ours = base or await self._base()
        await eventually(lambda: self.sees(seller), f"{seller.name}'s offer")
        tried = await self.shell.session._try(ours, self.sees(seller))
        trade: Trade | NoPrice = await self.shell.buyer.buy(tried, self.shell.desk, most=ETHER)
        return None if isinstance(trade, NoPrice) else trade

    async def _base(self) -> tuple[Digest, Offer]:
        """What this agent has on offer: the same for several purchases at one time."""
        progress = self.shell.session.progress
        if progress is not None and progress.offered:
            own = self.station.book.latest_of_each_seller(TASK, self.market.clock())
            for name, offer in own:
                if offer.seller == self.account and offer.weights_root == progress.root:
                    return name, offer
        return await self.offer()

    def sees(self, seller: Party) -> tuple[Digest, Offer] | None:
        """The newest offer of `seller` in our book."""
        for name, offer in self.station.book.latest_of_each_seller(TASK, self.market.clock()):
            if offer.seller == seller.account:
                return name, offer
        return None


@dataclass
class Market:
    """A chain, an escrow, a broker and agents."""

    folder: Path
    nursery: trio.Nursery
    clock: Clock
    chain: DevelopmentChain
    client: ChainClient
    domain: Domain
    parties: dict[str, Party] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Party:
        return self.parties[name]

    @property
    def broker(self) -> Party:
        return self.parties["broker"]

    def number_of(self, party: Party) -> int:
        return list(self.parties).index(party.name)

    def skip(self, seconds: int) -> None:
        """Let everybody's wall clock be so much later."""
        self.clock.ahead += seconds

    async def join(self, name: str, shell: type[Broker | Agent], **settings: Any) -> Party:
        """Open an account with play money, and start a party of that name."""
        party = self.parties[name] = Party(self, name, shell, **settings)
        fund_account(self.chain, party.account, Wei(10 * ETHER))
        await party.start()
        if party is not self.broker:
            await eventually(lambda: self.hears(party), f"gossip between {name} and the broker")
        return party

    def hears(self, party: Party) -> bool:
        broker = self.broker
        return (
            broker.peer_id in party.network.gossiping_with()
            and party.peer_id in broker.network.gossiping_with()
        )

    # ── what the chain says ──

    def ledger(self) -> Ledger:
        return read_ledger(self.broker.escrow)

    async def drawn_ledger(self) -> Ledger:
        """The ledger once everybody has drawn what it is owed, for which nobody else waits."""
        await eventually(lambda: self.ledger().credited == 0, "everything drawn")
        return self.ledger()

    def state(self, trade: Trade | Digest) -> EscrowState:
        name = trade if isinstance(trade, bytes) else trade.machine.record.trade_id
        return self.broker.escrow.trade_state(Digest(name)).state

    def events(self, kind: type[EscrowEvent]) -> list[Any]:
        escrow = self.broker.escrow
        return [e for e in escrow.events(0, escrow.head().number) if isinstance(e, kind)]

    async def see_paid(self, trade: Trade | Digest, buyer: Party, seller: Party) -> Digest:
        """See a trade to its end on both sides, without waiting for the dispute window."""
        name = trade if isinstance(trade, bytes) else trade.machine.record.trade_id
        opened = {"delivered", "complete"}
        await eventually(lambda: opened & set(buyer.states(name)), f"{buyer.name} delivered")
        window = WINDOWS.dispute_window_seconds
        self.skip((bought(trade).quote.dispute_window if isinstance(trade, Trade) else window) + 1)
        await buyer.reaches(name, "complete")
        await seller.reaches(name, "paid")
        assert self.state(name) is EscrowState.PAID
        return name

    async def all_over(self) -> None:
        """Wait until nobody has an open trade."""
        await eventually(
            lambda: not any(p.journal.trades(open_only=True) for p in self.parties.values()),
            "the end of every trade",
        )

    def check_healthy(self) -> None:
        """No task boundary caught a bug of ours."""
        assert {p.name: p.faults for p in self.parties.values() if p.faults} == {}


def bought(trade: Trade) -> PurchaseRecord:
    """What a buyer's trade is about."""
    machine = trade.machine
    assert isinstance(machine, Purchase)
    return machine.record


async def eventually(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.02)
        return
    raise AssertionError(f"not within {seconds} s: {what}")


def weights(name: str) -> dict[str, torch.Tensor]:
    """Random tensors of the market's one architecture."""
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(seed_of(name)[:8], "big")))
    return {
        tensor: torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        for tensor, shape in SHAPES.items()
    }


def architecture() -> Architecture:
    return Architecture("random", {"shapes": {n: list(s) for n, s in SHAPES.items()}})


@asynccontextmanager
async def open_market(
    folder: Path, broker: type[Broker] = Broker, **broker_settings: Any
) -> AsyncIterator[Market]:
    """Open a market with its broker; agents `join`."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        chain = stack.enter_context(DevelopmentChain(clock=clock, block_seconds=1))
        client = ChainClient(InProcessProvider(chain))
        key = seed_of("account of broker")
        fund_account(chain, address_of(key), Wei(2 * ETHER))
        plan = MarketPlan(
            salt=Digest(secrets.token_bytes(32)),
            brokers=(address_of(key),),
            minimum_bond=Wei(ETHER),
        )
        domain = await trio.to_thread.run_sync(lambda: deploy_market(client, key, plan))
        await trio.to_thread.run_sync(lambda: take_seat(client, key, domain, bond=Wei(ETHER)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        market = Market(folder, nursery, clock, chain, client, domain)
        await market.join("broker", broker, **broker_settings)
        yield market
        market.check_healthy()
        nursery.cancel_scope.cancel()
