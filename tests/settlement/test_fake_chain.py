"""The fake of the settlement's tests does what the real contract does, call by call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.chain.in_process import InProcessProvider
from node.chain.port import (
    Call,
    Dispute,
    EscrowEvent,
    EscrowState,
    Finalize,
    Fund,
    Refund,
    Reveal,
    Withdraw,
)
from node.chain.tester import DevelopmentChain
from node.protocol.eip712 import digest
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import Digest, UnixTime
from tests.chain.market import BROKER, BUYER, SECRET, SELLER, Clock, build
from tests.protocol.bad_goods import bad_goods
from tests.settlement.fake_chain import ETHER, FakeChain, FakeEscrow

KEYS = {"buyer": BUYER, "seller": SELLER, "broker": BROKER}
STEPS = (
    "fund",
    "fund by another",
    "reveal",
    "lie",
    "finalize",
    "refund",
    "dispute",
    "dispute a good leaf",
    "withdraw",
    "other terms",
)
_script = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from([0, 1, 25, 130])), min_size=1, max_size=10
)


@dataclass(frozen=True)
class Seen:
    """What a call came to, in words that both chains share."""

    succeeded: bool
    revert: str | None
    state: EscrowState
    since: int
    credits: tuple[int, ...]
    held: int
    events: tuple[str, ...]


def words(events: Sequence[EscrowEvent]) -> tuple[str, ...]:
    """Events without block and transaction, which are each chain's own."""
    told = []
    for event in events:
        amounts = [getattr(event, n, None) for n in ("price", "to_seller", "fee", "leaf", "amount")]
        told.append(f"{type(event).__name__} {amounts}")
    return tuple(told)


GOOD = [("fund", 1), ("other terms", 0), ("lie", 0), ("reveal", 130), ("finalize", 1)]
GOOD += [("finalize", 25), ("withdraw", 0), ("withdraw", 0)]
BAD = [("dispute", 0), ("fund", 1), ("dispute", 1), ("reveal", 1), ("dispute a good leaf", 1)]
BAD += [("dispute", 0), ("dispute", 1), ("finalize", 25), ("refund", 130), ("withdraw", 0)]
LATE = [("fund", 1), ("reveal", 1), ("dispute", 25), ("finalize", 0)]
SILENT = [("fund by another", 0), ("fund", 25), ("fund", 0), ("refund", 25), ("refund", 130)]
SILENT += [("reveal", 0), ("refund", 0)]


@settings(max_examples=4, deadline=None)
@example(script=GOOD)
@example(script=SILENT)
@example(script=BAD)
@example(script=LATE)
@example(script=[("fund", 130)])
@given(script=_script)
def test_the_fake_and_the_contract_agree_on_every_call(script: list[tuple[str, int]]) -> None:
    clock = Clock()
    with DevelopmentChain(clock=clock) as chain:
        real = build(chain, InProcessProvider(chain), clock)
        goods = bad_goods(Digest(SECRET), real.quote()[0].trade_id)
        quote = goods.terms(real.quote()[0])
        signature = sign_digest(BROKER, digest(real.domain, quote))
        fake = FakeChain(clock, instant=True, broker=address_of(BROKER))
        for key in KEYS.values():
            fake.balances[address_of(key)] = 10 * ETHER
        other = type(quote)(
            **{
                **{name: getattr(quote, name) for name in quote.__slots__},
                "receipt_hash": Digest(b"\x77" * 32),
            }
        )
        calls: dict[str, tuple[str, Call]] = {
            "fund": ("buyer", Fund(quote, signature)),
            "fund by another": ("seller", Fund(quote, signature)),
            "reveal": ("seller", Reveal(quote, SECRET)),
            "lie": ("seller", Reveal(quote, b"\x09" * 32)),
            "finalize": ("broker", Finalize(quote)),
            "refund": ("broker", Refund(quote)),
            "dispute": ("seller", Dispute(quote, goods.show(1))),
            "dispute a good leaf": ("buyer", Dispute(quote, goods.show(2))),
            "withdraw": ("broker", Withdraw(address_of(SELLER))),
            "other terms": ("seller", Reveal(other, SECRET)),
        }
        for step, seconds in script:
            clock.now = UnixTime(clock.now + seconds)
            who, call = calls[step]
            seen, seats = [], set()
            for escrow in (real.escrow(KEYS[who]), FakeEscrow(fake, address_of(KEYS[who]))):
                seats.add(tuple(escrow.seat(address_of(key)) for key in KEYS.values()))
                signed = escrow.sign(call, escrow.next_nonce())
                escrow.broadcast(signed.raw)
                outcome = escrow.receipt(signed.hash)
                assert outcome is not None
                standing = escrow.trade_state(quote.trade_id)
                seen.append(
                    Seen(
                        outcome.succeeded,
                        outcome.revert,
                        standing.state,
                        standing.since,
                        tuple(escrow.credit(address_of(key)) for key in KEYS.values()),
                        escrow.balance(escrow.domain.escrow),
                        words(escrow.events(outcome.block, outcome.block)),
                    )
                )
            assert seen[0] == seen[1], step
            assert len(seats) == 1
        assert fake.total == 30 * ETHER
