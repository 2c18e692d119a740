"""A step is paid for once, and surely: whatever dies, is cut off, or gets in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from node.chain.port import Fund, Reveal
from node.chronicle import (
    Saved,
    Sent,
    TransactionDelayed,
    TransactionMined,
)
from node.observe import Event
from node.protocol.events import Funded, Step
from node.protocol.quote import Quote
from node.protocol.sale import Sale, SaleState
from node.protocol.types import Address
from node.settlement.treasury import Ending
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeChain, down
from tests.settlement.trades import (
    BUYER,
    REVEAL_BY,
    DeathError,
    Node,
    fund,
    long_quote_of,
    quote_of,
    sale,
    secret_of,
    wall,
)

CALLS = ("trade_state", "next_nonce", "sign", "broadcast", "receipt")


def dies_at(kind: type[Event]) -> Callable[[Event], None]:
    def hook(event: Event) -> None:
        if isinstance(event, kind):
            raise DeathError(kind.__name__)

    return hook


async def die_while_funding(node: Node, quote: Quote, kind: type[Event]) -> None:
    node.on_event = dies_at(kind)
    with pytest.raises(DeathError):
        await fund(node, quote)
    node.on_event = lambda _: None
    node.journal.close()
    node.wake()


# ── the order of things ──


async def test_a_transaction_is_in_the_journal_before_it_is_sent(
    buyer: Node, chain: FakeChain
) -> None:
    quote, seen = quote_of(), []

    def look(name: str) -> None:
        if name == "broadcast":
            seen.extend(buyer.journal.transactions(quote.trade_id, "fund"))

    buyer.escrow.before = look
    assert await fund(buyer, quote) is Ending.DONE
    (row,) = seen
    (mined,) = chain.calls(Fund)
    assert (row.hash, row.raw, row.nonce) == (mined.hash, mined.raw, mined.nonce)
    (kept,) = buyer.journal.transactions(quote.trade_id)
    assert kept.succeeded is True
    assert kept.gas == 60_000
    assert [type(event) for event in buyer.heard] == [Saved, Sent, TransactionMined]


async def test_a_step_that_the_chain_shows_as_done_costs_nothing(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    assert await fund(buyer, quote) is Ending.DONE
    assert len(chain.history) == 1
    assert len(buyer.journal.transactions(quote.trade_id)) == 1


async def test_a_step_that_is_not_wanted_leaves_nothing_behind(
    buyer: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote, lambda: False) is Ending.UNWANTED
    assert not buyer.journal.transactions(quote.trade_id)
    assert not chain.published


async def test_steps_of_many_trades_take_turns_at_the_nonce(buyer: Node, chain: FakeChain) -> None:
    quotes = [quote_of(number) for number in range(5)]
    endings = []

    async def one(quote: Quote) -> None:
        endings.append(await fund(buyer, quote))

    async with trio.open_nursery() as nursery:
        for quote in quotes:
            nursery.start_soon(one, quote)
    assert endings == [Ending.DONE] * 5
    assert [t.nonce for t in chain.history] == [0, 1, 2, 3, 4]
    assert len(chain.published) == 5


# ── deaths ──


async def test_what_was_saved_and_never_sent_is_sent_as_it_was(
    buyer: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    await die_while_funding(buyer, quote, Saved)
    assert not chain.published
    (saved,) = buyer.journal.transactions(quote.trade_id)
    chain.base_fee += 3  # signing anew would give other bytes
    assert await fund(buyer, quote) is Ending.DONE
    assert [t.raw for t in chain.published] == [saved.raw]
    assert [t.raw for t in chain.history] == [saved.raw]


@pytest.mark.parametrize("mined", [True, False], ids=["mined meanwhile", "still in the pool"])
async def test_what_was_sent_before_a_death_is_not_sent_a_second_time(
    buyer: Node, chain: FakeChain, mined: bool
) -> None:
    quote = quote_of()
    await die_while_funding(buyer, quote, Sent)
    if mined:
        await trio.sleep(5)
    assert await fund(buyer, quote) is Ending.DONE
    assert len(chain.published) == 1
    assert len(chain.history) == 1
    (row,) = buyer.journal.transactions(quote.trade_id)
    assert row.succeeded is True


async def test_one_death_after_another_is_still_one_payment(buyer: Node, chain: FakeChain) -> None:
    quote = quote_of()
    for kind in (Saved, Sent, Sent, Sent):
        await die_while_funding(buyer, quote, kind)
    assert await fund(buyer, quote) is Ending.DONE
    assert len(chain.published) == len(chain.history) == 1
    assert len(buyer.journal.transactions(quote.trade_id)) == 1


async def test_two_steps_that_a_death_left_with_one_nonce_are_both_done(
    buyer: Node, chain: FakeChain
) -> None:
    """The first was saved and not sent, so the second was signed with the same nonce."""
    first, second = quote_of(1), quote_of(2)
    await die_while_funding(buyer, first, Saved)
    await die_while_funding(buyer, second, Saved)
    rows = [buyer.journal.transactions(quote.trade_id)[0] for quote in (first, second)]
    assert {row.nonce for row in rows} == {0}
    endings = []

    async def one(quote: Quote) -> None:
        endings.append(await fund(buyer, quote))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, second)
        nursery.start_soon(one, first)
    assert endings == [Ending.DONE] * 2
    assert [t.nonce for t in chain.history] == [0, 1]
    assert {t.call.quote for t in chain.calls(Fund, succeeded=True)} == {first, second}  # type: ignore[union-attr]


# ── nonces ──


async def test_a_nonce_that_somebody_took_costs_another_attempt_and_no_second_payment(
    buyer: Node, chain: FakeChain
) -> None:
    quote, other = quote_of(1), quote_of(2)
    await die_while_funding(buyer, quote, Saved)
    # the owner of the key pays for something else from another wallet
    elsewhere = buyer.escrow.sign(Fund(other, b""), 0)
    buyer.escrow.broadcast(elsewhere.raw)
    await trio.sleep(5)
    assert await fund(buyer, quote) is Ending.DONE
    first, second = buyer.journal.transactions(quote.trade_id, "fund")
    assert (first.nonce, first.succeeded) == (0, None)
    assert (second.nonce, second.succeeded) == (1, True)
    assert len(chain.calls(Fund)) == 2
    assert chain.balances[DOMAIN.escrow] == 2 * ETHER


async def test_a_nonce_that_is_taken_between_question_and_send_is_asked_for_again(
    buyer: Node, chain: FakeChain
) -> None:
    quote, other = quote_of(1), quote_of(2)
    chain.instant = True

    def intrude(name: str) -> None:
        if name == "sign":
            buyer.escrow.before = lambda _: None
            buyer.escrow.broadcast(buyer.escrow.sign(Fund(other, b""), 0).raw)

    buyer.escrow.before = intrude
    assert await fund(buyer, quote) is Ending.DONE
    assert [t.nonce for t in chain.history] == [0, 1]


async def test_an_endpoint_that_lags_behind_is_not_hammered(
    buyer: Node, chain: FakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote = long_quote_of()
    chain.nonces[BUYER] = 3
    asked: list[float] = []
    present = chain.next_nonce

    def lag(account: Address) -> int:
        asked.append(trio.current_time())
        return 2 if len(asked) < 20 else present(account)

    monkeypatch.setattr(chain, "next_nonce", lag)
    assert await fund(buyer, quote) is Ending.DONE
    assert asked[-1] - asked[0] > 60
    first, second = buyer.journal.transactions(quote.trade_id)
    assert (first.nonce, second.nonce) == (2, 3)


# ── the endpoint goes away ──


@pytest.mark.parametrize("lost", ["question", "answer"])
@pytest.mark.parametrize("call", CALLS)
async def test_an_endpoint_that_is_down_at_any_call_only_delays(
    buyer: Node, chain: FakeChain, call: str, lost: str
) -> None:
    quote = quote_of()
    failures = 3

    def cut(name: str) -> None:
        nonlocal failures
        if name == call and failures:
            failures -= 1
            down(name)

    if lost == "question":
        buyer.escrow.before = cut
    else:
        buyer.escrow.after = cut
    assert await fund(buyer, quote) is Ending.DONE
    assert failures == 0
    assert len(chain.calls(Fund)) == 1
    assert len(chain.published) == 1
    assert chain.balances[DOMAIN.escrow] == quote.price
    assert buyer.told(TransactionDelayed)


async def test_a_step_that_is_not_wanted_any_more_ends_though_the_chain_is_down(
    buyer: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    buyer.escrow.before = down
    ending = await fund(buyer, quote, lambda: wall() < quote.fund_by)
    assert ending is Ending.UNWANTED
    assert wall() <= quote.fund_by + 6


async def test_a_reveal_that_was_journalled_is_never_sent_after_reveal_by(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    """The endpoint was down from the signing until too late: the secret stays at home."""
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    machine = Sale(sale(quote))
    machine.receive(Funded(), wall())
    assert machine.state is SaleState.REVEALING

    def cut(name: str) -> None:
        if name == "broadcast" or "broadcast" in seller.escrow.asked:
            down(name)

    seller.escrow.before = cut
    endings = []

    async def reveal() -> None:
        endings.append(
            await seller.treasury.carry_out(
                quote.trade_id,
                Step.REVEAL,
                Reveal(quote, secret_of(0)),
                wanted=lambda: machine.may_send(Step.REVEAL, wall()),
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reveal)
        await trio.sleep(REVEAL_BY + 5)
        seller.escrow.before = lambda _: None
    assert endings == [Ending.UNWANTED]
    assert len(seller.journal.transactions(quote.trade_id, "reveal")) == 1
    assert not [t for t in chain.published if isinstance(t.call, Reveal)]


async def test_a_secret_is_held_back_if_time_runs_out_while_it_is_signed(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    late = False

    def slow(name: str) -> None:
        nonlocal late
        late = late or name == "sign"

    seller.escrow.after = slow
    ending = await seller.treasury.carry_out(
        quote.trade_id, Step.REVEAL, Reveal(quote, secret_of(0)), wanted=lambda: not late
    )
    assert ending is Ending.UNWANTED
    assert len(seller.journal.transactions(quote.trade_id, "reveal")) == 1
    assert not [t for t in chain.published if isinstance(t.call, Reveal)]
