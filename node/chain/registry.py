"""The registry of brokers on web3: bonds, how they are left with and lost, and what it owes.

    bond ──► serve(market) ──► give notice ── 100 days ──► take bond ──► withdraw
      └────────┴───────────────────┴── two quotes of one trade, bad goods: slashed
                                                    └─ victim, reporter ──► withdraw

One account, one contract, one endpoint. Nothing is remembered here: what is left to do follows from
`standing`. Each call is tried on the endpoint first, so that what the contract would refuse is not
paid for; where that comes to light only in a block it is paid for, and has the same name. Either
way it is a `CallRefusedError`. All else that may be raised is as of `transactions.send_and_wait`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from node.chain.abi import Functions
from node.chain.check import escrow_artifact, registry_artifact
from node.chain.client import ChainClient, EndpointRefusedError
from node.chain.port import TransactionOutcome
from node.chain.reverts import Reverts
from node.chain.transactions import Wallet, send_and_wait
from node.protocol.equivocation import Equivocation, SignedQuote
from node.protocol.schema import checksummed
from node.protocol.types import NO_ADDRESS, Address, UnixTime, Wei

MINED_WITHIN: Final = 120.0

CALL_GAS: Final = 300_000
"""For each call, more than twice what it needs, where no list of markets is gone through."""
MARKET_GAS: Final = 75_000
"""For each market that is told of a notice: the registry wants 66,000 to be there, and sends 60,000
of it along. It is more than what is forgotten of a market when a bond is taken."""
PROOF_GAS: Final = 2_000_000
"""Sixteen markets, however few the culprit serves now: it could name more while the proof waits."""

_FUNCTIONS: Final = (
    "bond", "serve", "giveNotice", "takeBond", "proveEquivocation", "withdraw",
    "brokerOf", "wasSlashed", "credits", "MAX_MARKETS",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the registry knows of an account."""

    account: Address
    bond: Wei
    leaves_at: UnixTime | None
    """From when on the bond can be taken back; None before a notice."""
    slashed: bool
    """Whether it lost a bond: it is never a broker again."""
    markets: tuple[Address, ...]
    """Those that it serves, or did when it gave notice."""
    credit: Wei
    """What it can withdraw from the registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryCall:
    """One transaction, not signed yet."""

    name: str
    to: Address
    data: bytes
    gas: int
    """The most that it takes."""
    value: Wei = Wei(0)


class RegistryView:
    """What anyone can read."""

    def __init__(self, client: ChainClient, address: Address) -> None:
        """`address` is that of a registry of ours, as `check_escrow` returns it."""
        self._client = client
        self.address: Final = address
        artifact, market = registry_artifact(), escrow_artifact()
        self._functions = Functions(artifact.name, artifact.abi, _FUNCTIONS)
        self._market = Functions("BrokerQuorum", market.abi, ("unseat",))
        self._reverts = Reverts(market.abi, artifact.abi)

    def standing(self, account: Address) -> Standing:
        """Return what is known of an account."""
        bond, leaves_at, markets = self._ask("brokerOf", account)
        return Standing(
            account=account,
            bond=Wei(bond),
            leaves_at=UnixTime(leaves_at) if leaves_at else None,
            slashed=self._ask("wasSlashed", account)[0],
            markets=tuple(checksummed(bytes.fromhex(market[2:])) for market in markets),
            credit=self.credit(account),
        )

    def credit(self, account: Address, *, at: Address | None = None) -> Wei:
        """Return what `withdraw` would pay to an account, here or at a market."""
        return Wei(self._ask("credits", NO_ADDRESS, account, at=at)[0])

    def most_markets(self) -> int:
        """Return how many markets a broker can serve."""
        return int(self._ask("MAX_MARKETS")[0])

    # --- calls

    def put_up(self, amount: Wei) -> RegistryCall:
        """Put up a bond, or add to it."""
        return self._call("bond", value=amount)

    def serve(self, market: Address) -> RegistryCall:
        """Have the caller's signature count in a market that lists it."""
        return self._call("serve", market)

    def give_notice(self, standing: Standing) -> RegistryCall:
        """Serve no market any more; the bond stays up for the exit delay."""
        return self._call("giveNotice", gas=CALL_GAS + MARKET_GAS * len(standing.markets))

    def take_bond(self, standing: Standing) -> RegistryCall:
        """Have the bond credited, once its delay is over."""
        return self._call("takeBond", gas=CALL_GAS + MARKET_GAS * len(standing.markets))

    def prove_equivocation(self, market: Address, proof: Equivocation) -> RegistryCall:
        """Slash a broker for two quotes of one trade of a market."""
        quotes = (_members(proof.first), _members(proof.second))
        return self._call("proveEquivocation", market, proof.broker, *quotes, gas=PROOF_GAS)

    def unseat(self, market: Address, broker: Address) -> RegistryCall:
        """Tell a market of one that serves it no more, should the registry not have reached it."""
        data = self._market.call("unseat", broker)
        return RegistryCall(name="unseat", to=market, data=data, gas=CALL_GAS)

    def withdraw(self, account: Address, *, at: Address | None = None) -> RegistryCall:
        """Pay out an account's credit to that account: of the registry, or of a market."""
        return self._call("withdraw", NO_ADDRESS, account, to=at)

    def _call(
        self,
        name: str,
        *arguments: object,
        gas: int = CALL_GAS,
        value: Wei = Wei(0),
        to: Address | None = None,
    ) -> RegistryCall:
        data = self._functions.call(name, *arguments)
        return RegistryCall(name=name, to=to or self.address, data=data, gas=gas, value=value)

    def _ask(self, name: str, *arguments: object, at: Address | None = None) -> tuple[Any, ...]:
        asked = self._functions.call(name, *arguments)
        return self._functions.read_any(name, self._client.view(at or self.address, asked))


class Web3Registry(RegistryView):
    """A registry, and the account that sends."""

    def __init__(
        self,
        client: ChainClient,
        wallet: Wallet,
        address: Address,
        *,
        mined_within: float = MINED_WITHIN,
    ) -> None:
        super().__init__(client, address)
        self._wallet, self._mined_within = wallet, mined_within

    @property
    def account(self) -> Address:
        """The account that pays for transactions."""
        return self._wallet.address

    def send(self, call: RegistryCall) -> TransactionOutcome:
        """Try a call, then sign, send, and see it mined; see the module for what is raised."""
        self._try(call)
        return send_and_wait(
            self._client,
            self._wallet,
            call.to,
            call.data,
            call.value,
            gas=call.gas,
            read_revert=self._reverts.read,
            timeout=self._mined_within,
        )

    def _try(self, call: RegistryCall) -> None:
        asked = {
            "from": self.account,
            "to": call.to,
            "gas": hex(call.gas),
            "value": hex(call.value),
            "data": "0x" + call.data.hex(),
        }
        try:
            self._client.ask("eth_call", asked, "latest")
        except EndpointRefusedError as refusal:
            if refusal.data:  # anything else is for the transaction itself to find
                raise self._reverts.read(refusal.data).refusal() from refusal


def _members(signed: SignedQuote) -> tuple[object, ...]:
    """Return the values of the Solidity struct, of a quote that was signed by itself."""
    quote = tuple(getattr(signed.quote, field.name) for field in fields(signed.quote))
    return (quote, (), 0, signed.signature)
