"""Rounds of a clearing house by the node's own adapter, from the opening to the last wei."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import pytest

from node.chain.clearing import Web3ClearingHouse, open_clearing_house
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_part
from node.chain.errors import (
    CallRefusedError,
    NotSeatedError,
    TransactionRefusedError,
    WrongContractError,
)
from node.chain.in_process import InProcessProvider
from node.chain.rounds import (
    Claim,
    Expire,
    HouseCall,
    Open,
    Pay,
    Post,
    PostedRoot,
    Reclaim,
    Veto,
    Withdraw,
)
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain
from node.chain.transactions import Wallet
from node.protocol.clearing import EXPIRY, Clearing, ClearingDomain, Opening, check_opening
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError
from node.protocol.quorum import join_signatures
from node.protocol.signing import address_of, sign_digest
from node.protocol.sum_tree import Payout, SumTree
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei
from tests.chain.market import ETHER, Clock

BROKERS = (b"\x11" * 32, b"\x12" * 32, b"\x13" * 32)
PAYERS = tuple(bytes([0x20 + n]) * 32 for n in range(5))
WHO = tuple(address_of(key) for key in PAYERS)
FEES = tuple(Wei(fee) for fee in (5 * ETHER + 1, 3 * ETHER, 7, ETHER, 2 * ETHER))
CHALLENGE = 600
PLAN = MarketPlan(
    salt=Digest(b"\x09" * 32),
    brokers=tuple(address_of(key) for key in BROKERS),
    threshold=2,
    minimum_bond=Wei(ETHER),
    minimum_challenge=CHALLENGE,
)
ROUND = Digest(hashlib.sha256(b"a round of a mechanism").digest())


@dataclass
class Table:
    """A clearing house in which three brokers sit, of whom two must sign, and five participants."""

    chain: DevelopmentChain
    clock: Clock
    client: ChainClient
    domain: ClearingDomain
    houses: dict[bytes, Web3ClearingHouse] = field(default_factory=dict)

    def by(self, key: bytes) -> Web3ClearingHouse:
        if key not in self.houses:
            provider = InProcessProvider(self.chain)
            self.houses[key] = open_clearing_house(provider, key, self.domain)
        return self.houses[key]

    def signed(self, message: Opening | Clearing, *keys: bytes) -> bytes:
        named = digest(self.domain, message)
        return join_signatures({address_of(key): sign_digest(key, named) for key in keys})

    def opening(self) -> Opening:
        now = UnixTime(self.clock.now)
        return Opening(
            round=ROUND,
            asset=NO_ADDRESS,
            pay_by=UnixTime(now + 100),
            post_by=UnixTime(now + 2_000),
            challenge_period=CHALLENGE,
        )

    def open(self) -> Opening:
        opening, house = self.opening(), self.by(BROKERS[0])
        check_opening(opening, opening.pay_by, house.terms.minimum_challenge)
        self.by(BROKERS[0]).open(opening, self.signed(opening, *BROKERS[:2]))
        return opening

    def collected(self) -> Opening:
        """Open a round, let all pay their fees in, and wait until a root can be posted."""
        opening = self.open()
        for key, fee in zip(PAYERS, FEES, strict=True):
            self.by(key).pay(ROUND, fee)
        self.clock.now = opening.pay_by + 1
        return opening

    def root(self, tree: SumTree, version: int) -> Clearing:
        return Clearing(
            round=ROUND,
            root=tree.root.hash,
            sum=tree.root.sum,
            leaves=len(tree.payouts),
            version=version,
        )

    def post(self, tree: SumTree, version: int, *keys: bytes) -> PostedRoot:
        signatures = self.signed(self.root(tree, version), *keys)
        posted = self.by(keys[0]).post(tree, signatures)
        assert posted is not None
        return posted

    def held(self) -> int:
        return int(self.client.ask("eth_getBalance", self.domain.clearing_house, "latest"), 16)

    def drawn(self, *accounts: Address) -> list[int]:
        """Return what each account draws."""
        house, amounts = self.by(BROKERS[0]), []
        for account in accounts:
            amounts.append(int(house.credit(NO_ADDRESS, account)))
            if amounts[-1]:
                house.withdraw(NO_ADDRESS, account)
        return amounts


@pytest.fixture
def table(chain: DevelopmentChain, clock: Clock) -> Table:
    client = ChainClient(InProcessProvider(chain))
    for key in (*BROKERS, *PAYERS):
        client.request_funds(address_of(key), Wei(10 * ETHER))
    wallet = Wallet(BROKERS[0], client.chain_id())
    for part in PLAN.parts:
        deploy_part(client, wallet, part)
    domain = ClearingDomain(chain_id=client.chain_id(), clearing_house=PLAN.clearing_house)
    for key in BROKERS:
        assert take_seat(client, key, domain, bond=Wei(ETHER)) == 3
        assert take_seat(client, key, domain, bond=Wei(ETHER)) == 0
    return Table(chain, clock, client, domain)


def tree_of(*amounts: int) -> SumTree:
    return SumTree(ROUND, list(zip(WHO, map(Wei, amounts), strict=False)))


def test_a_round_of_five_is_vetoed_replaced_claimed_and_drawn_to_the_last_wei(
    table: Table,
) -> None:
    table.collected()
    pot = sum(FEES)
    unfair = tree_of(pot, 0, 0, 0, 0)
    fair = tree_of(ETHER, 4 * ETHER + 3, 0, 5 * ETHER, pot - 10 * ETHER - 3)

    table.post(unfair, 0, *BROKERS[:2])
    table.by(BROKERS[2]).veto(ROUND)  # the one that did not sign
    assert table.by(PAYERS[0]).posted(unfair) is None
    posted = table.post(fair, 1, *BROKERS[1:])
    table.clock.now = posted.stands_from
    with pytest.raises(LocalProtocolError, match="is another, or none"):
        table.by(PAYERS[0]).claim_all(unfair)

    stranger = table.by(PAYERS[2])  # who gets nothing, and may claim for all
    stranger.claim(posted, 1, fair.payouts[1], fair.path(1))
    assert stranger.claim_all(fair) == 3
    assert stranger.claim_all(fair) == 0
    assert table.drawn(*WHO) == [payout.amount for payout in fair.payouts]
    assert table.held() == 0


def test_a_round_without_a_root_is_taken_back_by_all(table: Table) -> None:
    opening = table.collected()
    table.clock.now = opening.post_by + 1
    for account in WHO:
        table.by(BROKERS[1]).reclaim(ROUND, account)
        assert table.by(BROKERS[1]).paid_in(ROUND, account) == 0
    assert table.drawn(*WHO) == list(FEES)
    assert table.held() == 0


def test_every_wei_that_moves_is_told_by_an_event_of_its_block(table: Table) -> None:
    before = table.client.ask("eth_blockNumber")
    opening = table.collected()
    house = table.by(BROKERS[0])
    paid_at, _ = house.now()
    table.clock.now = opening.post_by + 1
    house.reclaim(ROUND, WHO[2])
    house.withdraw(NO_ADDRESS, WHO[2])
    last, _ = house.now()
    told = house.moved(int(before, 16), last)
    assert [(one.what, one.round, one.account, one.amount) for one in told] == [
        *(("PaidIn", ROUND, who, fee) for who, fee in zip(WHO, FEES, strict=True)),
        ("Reclaimed", ROUND, WHO[2], FEES[2]),
        ("Withdrawn", None, WHO[2], FEES[2]),
    ]
    assert house.moved(paid_at + 1, last) == told[len(FEES) :]
    assert house.moved(last + 1, last + 1) == []


def test_what_is_left_of_a_root_goes_back_after_half_a_year_to_the_last_wei(
    table: Table,
) -> None:
    table.collected()
    tree = tree_of(ETHER, sum(FEES) - ETHER - 1, 1)
    posted = table.post(tree, 0, *BROKERS[:2])
    house = table.by(PAYERS[4])
    table.clock.now = posted.stands_from
    assert house.claim_all(tree, (0,)) == 1
    found = house.round(ROUND)
    assert found is not None
    assert found.expires_at == posted.stands_from + EXPIRY
    table.clock.now = found.expires_at
    house.expire(ROUND)
    ended = house.round(ROUND)
    assert ended is not None
    assert (ended.posted_at, ended.taken, ended.pot) == (0, ETHER, sum(FEES))
    for account in WHO:
        house.reclaim(ROUND, account)
    back = table.drawn(*WHO)
    assert sum(back) == sum(FEES)  # with the ether that was claimed
    for paid, amount, claimed in zip(FEES, back, (ETHER, 0, 0, 0, 0), strict=True):
        share = paid * (sum(FEES) - ETHER) // sum(FEES)
        assert 0 <= amount - claimed - share <= len(WHO)
    assert table.held() == 0


def test_a_refusal_has_the_name_and_the_values_that_the_contract_said(table: Table) -> None:
    opening = table.collected()
    house, late = table.by(PAYERS[0]), table.clock.now
    with pytest.raises(CallRefusedError) as over:
        house.pay(ROUND, Wei(5))
    assert (over.value.reason, over.value.values) == (
        "CollectionOver", {"time": late, "payBy": opening.pay_by},
    )  # fmt: skip
    assert str(late) in str(over.value)
    with pytest.raises(CallRefusedError, match="NotSeated") as stranger:
        house.veto(ROUND)
    assert stranger.value.values == {"position": 0, "signer": WHO[0]}
    with pytest.raises(CallRefusedError) as nothing:
        house.expire(ROUND)
    assert nothing.value.values == {"round": ROUND}
    with pytest.raises(CallRefusedError) as again:
        house.open(opening, table.signed(opening, *BROKERS))
    assert again.value.reason == "RoundExists"
    with pytest.raises(CallRefusedError) as nobody:
        house.withdraw(NO_ADDRESS, WHO[0])
    assert nobody.value.values == {"asset": NO_ADDRESS, "account": WHO[0], "owed": 0}
    tree = tree_of(sum(FEES))
    with pytest.raises(CallRefusedError) as below:
        house.post(tree, table.signed(table.root(tree, 0), BROKERS[0]))
    assert (below.value.reason, below.value.values) == ("BelowQuorum", {"given": 1, "needed": 2})
    posted = table.post(tree, 0, *BROKERS[:2])
    with pytest.raises(CallRefusedError, match="RootDoesNotStand"):
        house.claim(posted, 0, tree.payouts[0], ())


def test_what_could_never_be_claimed_is_not_sent(table: Table) -> None:
    table.collected()
    house, blocks = table.by(PAYERS[0]), table.chain.evm.head.block_number
    tree = tree_of(sum(FEES) - 1, 1)
    posted = PostedRoot(
        round=ROUND,
        root=tree.root.hash,
        sum=tree.root.sum,
        leaves=2,
        asset=NO_ADDRESS,
        stands_from=UnixTime(table.clock.now),
    )
    with pytest.raises(LocalProtocolError, match="leaf 1 is not in root"):
        house.claim(posted, 1, Payout(WHO[1], Wei(2)), tree.path(1))
    itself = SumTree(ROUND, [(table.domain.clearing_house, Wei(sum(FEES)))])
    with pytest.raises(LocalProtocolError, match="itself"):
        house.post(itself, b"")
    with pytest.raises(LocalProtocolError, match="was not opened"):
        house.pay(Digest(bytes(32)), Wei(1))
    assert house.round(Digest(bytes(32))) is None
    assert house.posted(tree) is None
    assert table.chain.evm.head.block_number == blocks


def test_signing_is_the_same_each_time_and_sending_again_changes_nothing(table: Table) -> None:
    table.collected()
    posted = table.post(tree_of(sum(FEES)), 0, *BROKERS[:2])
    saved: list[bytes] = []
    provider = InProcessProvider(table.chain)
    broker = open_clearing_house(provider, BROKERS[2], table.domain, save=saved.append)
    nonce = table.client.nonce(broker.account)
    signed = broker.sign(Veto(ROUND), nonce)
    assert broker.outcome(signed.hash) is None
    broker.veto(ROUND)
    assert saved == [signed.raw]
    broker.broadcast(signed.raw)
    outcome = broker.outcome(signed.hash)
    assert outcome is not None
    assert outcome.succeeded
    assert table.client.nonce(broker.account) == nonce + 1
    assert posted.stands_from > table.clock.now


def test_the_fixed_gas_limits_leave_twice_what_a_call_takes(table: Table) -> None:
    def do(key: bytes, call: HouseCall) -> None:
        limit = table.by(key)._encode(call)[2]
        assert 2 * table.by(key).send(call).gas_used <= limit, type(call)

    opening = table.opening()
    do(BROKERS[0], Open(opening, table.signed(opening, *BROKERS)))
    do(PAYERS[0], Pay(ROUND, NO_ADDRESS, WHO[0], FEES[0]))
    table.clock.now = opening.pay_by + 1
    tree = tree_of(ETHER, FEES[0] - ETHER)
    for version in (0, 1):
        signatures = table.signed(table.root(tree, version), *BROKERS)
        do(PAYERS[1], Post(ROUND, tree.root, 2, signatures))
        if version == 0:
            do(BROKERS[2], Veto(ROUND))
    posted = table.by(PAYERS[1]).posted(tree)
    assert posted is not None
    table.clock.now = posted.stands_from
    do(PAYERS[1], Claim(posted, 0, tree.payouts[0], tree.path(0)))
    table.clock.now += EXPIRY
    do(PAYERS[1], Expire(ROUND))
    do(PAYERS[1], Reclaim(ROUND, WHO[0]))
    do(PAYERS[1], Withdraw(NO_ADDRESS, WHO[0]))


def test_the_largest_root_is_posted_replaced_and_ended_within_the_limits(table: Table) -> None:
    table.collected()
    wide = SumTree(ROUND, [(WHO[0], Wei(0))] * (2**15 - 1) + [(WHO[1], Wei(sum(FEES)))])
    table.post(wide, 0, *BROKERS)
    posted = table.post(wide, 1, *BROKERS)
    table.clock.now = posted.stands_from
    house = table.by(PAYERS[3])
    assert house.claim_all(wide, (2**15 - 1,)) == 1
    table.clock.now += EXPIRY
    house.expire(ROUND)
    ended = house.round(ROUND)
    assert ended is not None
    assert ended.taken == ended.pot == sum(FEES)


def test_a_claim_that_somebody_else_is_first_with_is_done(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.collected()
    tree = tree_of(sum(FEES) - 1, 1)
    posted = table.post(tree, 0, *BROKERS[:2])
    table.clock.now = posted.stands_from
    table.by(PAYERS[0]).claim(posted, 0, tree.payouts[0], tree.path(0))
    late = table.by(PAYERS[1])
    monkeypatch.setattr(late, "claimed", lambda *_: False)
    assert late.claim_all(tree) == 1


def test_a_house_of_another_chain_code_or_market_is_not_opened(table: Table) -> None:
    provider = InProcessProvider(table.chain)
    for wrong in (
        replace(table.domain, chain_id=1),
        replace(table.domain, clearing_house=PLAN.escrow),
        replace(table.domain, clearing_house=WHO[0]),
    ):
        with pytest.raises(WrongContractError):
            open_clearing_house(provider, PAYERS[0], wrong)
    terms = open_clearing_house(provider, PAYERS[0], table.domain).terms
    assert (terms.registry, terms.minimum_challenge, terms.threshold, terms.minimum_bond) == (
        PLAN.registry, CHALLENGE, 2, ETHER,
    )  # fmt: skip


def test_only_a_broker_of_the_house_takes_a_seat_in_it(table: Table) -> None:
    with pytest.raises(WrongContractError, match=r"clearing house at .* does not list broker"):
        take_seat(table.client, PAYERS[0], table.domain, bond=Wei(ETHER))
    other = replace(PLAN, salt=Digest(bytes(32)), brokers=(WHO[0],), threshold=1)
    deploy_part(
        table.client, Wallet(BROKERS[0], table.client.chain_id()), other.clearing_house_part()
    )
    domain = replace(table.domain, clearing_house=other.clearing_house)
    with pytest.raises(NotSeatedError, match="needs"):
        take_seat(table.client, PAYERS[0], domain, bond=None)


def test_a_refusal_without_a_name_is_told_as_it_is(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.collected()
    house = table.by(PAYERS[0])
    monkeypatch.setattr(house._reverts, "_errors", {})
    with pytest.raises(TransactionRefusedError) as unknown:
        house.expire(ROUND)
    assert not isinstance(unknown.value, CallRefusedError)
    assert unknown.value.reason.startswith("unknown 0x")
