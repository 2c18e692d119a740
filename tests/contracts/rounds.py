"""A clearing house with one round in it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from contracts.artifact import read_artifact
from contracts.clearing import Clearing, Opening, clearing_hash
from contracts.stage import ZERO, Contract, Outcome, Stage
from node.protocol.sum_tree import Node, SumTree
from node.protocol.types import Address, Digest, Wei

ROUND = Digest(hashlib.sha256(b"round 1").digest())
TOKEN = Path(__file__).resolve().parent / "artifacts" / "Token.json"
DAY = 86_400
EXPIRY = 180 * DAY
MAX = 2**256 - 1


def trio_of_brokers() -> Stage:
    """Return a market of three brokers, of whom two must sign."""
    return Stage(("broker", "second", "third"), threshold=2)


class House:
    """A clearing house in which two of three brokers are a quorum, and one round of it."""

    def __init__(self, asset: str = ZERO, stage: Stage | None = None) -> None:
        self.stage = stage or trio_of_brokers()
        self.token: Contract | None = None
        self.contract: Contract = self.stage.clearing_house()
        now = self.stage.now()
        self.opening = Opening(ROUND, asset, now + 100, now + 1_000, 50)

    @classmethod
    def of_token(cls) -> House:
        """Return a house with a round in a token that anybody mints."""
        stage = trio_of_brokers()
        token = stage.deploy(read_artifact(TOKEN))
        house = cls(token.address, stage)
        house.token = token
        return house

    def send(
        self, function: str, *arguments: Any, sender: str = "stranger", value: int = 0
    ) -> Outcome:
        return self.stage.send(function, *arguments, sender=sender, value=value, to=self.contract)

    def view(self, function: str, *arguments: Any) -> Any:
        return self.stage.view(function, *arguments, of=self.contract)

    def account(self, role: str) -> str:
        return self.stage.accounts[role]

    def open(self, **changes: Any) -> Outcome:
        opening = self.opening._replace(**changes)
        digest = self.stage.digest(opening.struct_hash(), self.contract)
        return self.send("open", opening, self.stage.signatures(digest))

    def pay(self, role: str, amount: int) -> Outcome:
        value = amount
        if self.token is not None:
            self.stage.send("mint", self.account(role), amount, sender=role, to=self.token)
            spender = self.contract.address
            self.stage.send("approve", spender, amount, sender=role, to=self.token)
            value = 0
        return self.send("pay", ROUND, self.account(role), amount, sender=role, value=value)

    def post(self, top: Node, leaves: int, version: int = 0, signed: int | None = None) -> Clearing:
        struct = clearing_hash(ROUND, top, leaves, version if signed is None else signed)
        signatures = self.stage.signatures(self.stage.digest(struct, self.contract))
        outcome = self.send("post", ROUND, *top, leaves, signatures)
        stands_from = outcome.time + self.opening.challenge_period + 1
        return Clearing(ROUND, *top, leaves, self.opening.asset, stands_from)

    def claim(self, clearing: Clearing, tree: SumTree, index: int) -> Outcome:
        return self.send("claim", clearing, index, *tree.payouts[index], tree.path(index))

    def reclaim(self, *roles: str) -> None:
        for role in roles:
            self.send("reclaim", ROUND, self.account(role))

    def credit(self, role: str) -> int:
        amount: int = self.view("credits", self.opening.asset, self.account(role))
        return amount

    def collected(self, *paid: tuple[str, int]) -> None:
        """Open the round, collect, and wait until a root can be posted."""
        self.open()
        for role, amount in paid:
            self.pay(role, amount)
        self.stage.wait_until(self.opening.pay_by + 1)


def tree_of(house: House, *payouts: tuple[str, int]) -> SumTree:
    return SumTree(ROUND, [(Address(house.account(role)), Wei(amount)) for role, amount in payouts])


def split(house: House) -> SumTree:
    """Collect 10 and return how three accounts share them."""
    house.collected(("buyer", 4), ("rival", 6))
    return tree_of(house, ("buyer", 7), ("seller", 3), ("rival", 0))
