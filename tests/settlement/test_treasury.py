"""A step is paid for once, and surely: whatever dies, is cut off, or gets in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from node.chain.errors import ChainUnavailableError
from node.chain.port import EscrowState, Finalize, Fund, Refund, Reveal, Withdraw
from node.chronicle import (
    Saved,
    Sent,
    TransactionDelayed,
    TransactionMined,
    TransactionRefused,
)
from node.observe import Event
from node.protocol.events import Funded, Step
from node.protocol.quote import Quote
from node.protocol.sale import Sale, SaleState
from node.protocol.types import Address
from node.settlement.treasury import MINING_PATIENCE, Ending
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeChain, down
from tests.settlement.trades import (
    BUYER,
    REVEAL_BY,
    SELLER,
    DeathError,
    Node,
    long_quote_of,
    quote_of,
    sale,
    secret_of,
    wall,
)

CALLS = ("trade_state", "next_nonce", "sign", "broadcast", "receipt")


def always() -> bool:
    return True


def dies_at(kind: type[Event]) -> Callable[[Event], None]:
    def hook(event: Event) -> None:
        if isinstance(event, kind):
            raise DeathError(kind.__name__)

    return hook


async def fund(node: Node, quote: Quote, wanted: Callable[[], bool] = always) -> Ending:
    return await node.treasury.carry_out(
        quote.trade_id, Step.FUND, Fund(quote, b"b" * 65), wanted=wanted
    )


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


# ── money ──


async def test_an_account_without_money_waits_for_it(buyer: Node, chain: FakeChain) -> None:
    quote = quote_of()
    chain.balances[BUYER] = 5

    async def send_money() -> None:
        await trio.sleep(7)
        chain.balances[BUYER] = 2 * ETHER

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_money)
        assert await fund(buyer, quote) is Ending.DONE
    assert len(buyer.journal.transactions(quote.trade_id)) == 1
    reasons = {event.reason for event in buyer.told(TransactionDelayed)}  # type: ignore[attr-defined]
    assert reasons
    assert all("insufficient funds" in reason for reason in reasons)


async def test_one_poor_trade_does_not_stop_the_account(buyer: Node, chain: FakeChain) -> None:
    dear, cheap = quote_of(1, price=50 * ETHER), quote_of(2)
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fund, buyer, dear, lambda: wall() < dear.fund_by)
            await trio.sleep(1)
            assert await fund(buyer, cheap) is Ending.DONE
    assert [t.call.quote for t in chain.calls(Fund)] == [cheap]  # type: ignore[union-attr]


# ── refusals and reverts ──


async def test_a_payment_that_reverts_is_not_tried_again(buyer: Node, chain: FakeChain) -> None:
    quote = quote_of()
    await trio.sleep(40)  # past fund_by
    assert await fund(buyer, quote) is Ending.REVERTED
    (row,) = buyer.journal.transactions(quote.trade_id)
    assert row.succeeded is False
    assert len(chain.history) == 1
    assert chain.balances.get(DOMAIN.escrow, 0) == 0


async def test_a_payment_that_the_endpoint_refuses_is_not_paid_for(
    buyer: Node, chain: FakeChain
) -> None:
    chain.simulates = True
    quote = quote_of()
    await trio.sleep(40)
    assert await fund(buyer, quote) is Ending.REVERTED
    assert not chain.history
    (refused,) = buyer.told(TransactionRefused)
    assert "FundingClosed" in refused.reason  # type: ignore[attr-defined]


@pytest.mark.parametrize("simulates", [True, False], ids=["refused", "reverted"])
async def test_a_refund_that_is_too_early_is_tried_until_it_is_done(
    buyer: Node, chain: FakeChain, simulates: bool
) -> None:
    chain.simulates = simulates
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    await trio.sleep(quote.refund_from - wall() - 8)
    ending = await buyer.treasury.carry_out(
        quote.trade_id, Step.REFUND, Refund(quote), wanted=always
    )
    assert ending is Ending.DONE
    assert chain.deals[quote.trade_id].state is EscrowState.REFUNDED
    assert chain.credits[BUYER] == quote.price
    assert wall() > quote.refund_from
    assert len(chain.calls(Refund, succeeded=True)) == 1
    reverted = chain.calls(Refund, succeeded=False)
    assert not reverted if simulates else reverted


async def test_a_refund_ends_when_a_late_reveal_wins(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    chain.simulates = True

    async def reveal_late() -> None:
        await trio.sleep(REVEAL_BY + 5)
        signed = seller.escrow.sign(Reveal(quote, secret_of(0)), 0)
        seller.escrow.broadcast(signed.raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reveal_late)
        ending = await buyer.treasury.carry_out(
            quote.trade_id, Step.REFUND, Refund(quote), wanted=always
        )
    assert ending is Ending.UNWANTED
    assert chain.deals[quote.trade_id].state is EscrowState.REVEALED
    assert not chain.calls(Refund, succeeded=True)


async def test_what_anybody_may_do_is_done_when_somebody_else_did_it(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    reveal = Reveal(quote, secret_of(0))
    assert await seller.treasury.carry_out(
        quote.trade_id, Step.REVEAL, reveal, wanted=always
    ) is Ending.DONE  # fmt: skip
    await trio.sleep(10)
    endings = []

    async def finalize(node: Node) -> None:
        endings.append(
            await node.treasury.carry_out(
                quote.trade_id, Step.FINALIZE, Finalize(quote), wanted=always
            )
        )

    chain.simulates = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finalize, buyer)
        nursery.start_soon(finalize, seller)
    assert endings == [Ending.DONE, Ending.DONE]
    assert len(chain.calls(Finalize, succeeded=True)) == 1
    assert chain.credits[SELLER] == quote.price - quote.fee


async def test_one_withdrawal_serves_every_trade_that_asks_for_one(
    seller: Node, chain: FakeChain
) -> None:
    chain.credits[SELLER] = 700
    chain.balances[DOMAIN.escrow] = 700
    endings = []

    async def withdraw(number: int) -> None:
        endings.append(
            await seller.treasury.carry_out(
                quote_of(number).trade_id, Step.WITHDRAW, Withdraw(SELLER), wanted=always
            )
        )

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(withdraw, number)
    assert endings == [Ending.DONE] * 3
    assert len(chain.calls(Withdraw)) == 1


# ── stuck ──


async def test_a_stuck_transaction_is_signed_again_at_its_own_nonce_for_the_present_fees(
    buyer: Node, chain: FakeChain
) -> None:
    quote = long_quote_of()

    async def fees_rise() -> None:
        await trio.sleep(0.5)
        chain.base_fee = 50

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fees_rise)
        ending = await fund(buyer, quote)
    assert ending is Ending.DONE
    first, second = buyer.journal.transactions(quote.trade_id)
    assert first.nonce == second.nonce == 0
    assert first.raw != second.raw
    assert [t.raw for t in chain.history] == [second.raw]


async def test_a_stuck_transaction_is_waited_for_while_fees_are_what_they_were(
    buyer: Node, chain: FakeChain
) -> None:
    quote = long_quote_of()
    chain.paused = True

    async def go_on() -> None:
        await trio.sleep(3.5 * MINING_PATIENCE)
        chain.paused = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        assert await fund(buyer, quote) is Ending.DONE
    assert len(chain.history) == 1
    assert len(chain.published) == 1


async def test_a_stuck_transaction_that_is_mined_after_all_is_seen_at_once(
    buyer: Node, chain: FakeChain
) -> None:
    """Signed again, but the blocks took the first one."""
    quote = long_quote_of()
    chain.paused = True

    async def go_on() -> None:
        await trio.sleep(0.5)
        chain.base_fee = 12  # a little dearer: not enough to replace what waits
        await trio.sleep(MINING_PATIENCE + 5)
        chain.paused = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        begun = trio.current_time()
        assert await fund(buyer, quote) is Ending.DONE
    assert trio.current_time() - begun < MINING_PATIENCE + 15
    assert len(chain.history) == 1


async def test_no_secret_is_signed_again_for_a_trade_that_is_over(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    chain.paused = True
    wanted = True

    async def give_up() -> None:
        nonlocal wanted
        await trio.sleep(MINING_PATIENCE - 1)
        wanted = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        ending = await seller.treasury.carry_out(
            quote.trade_id, Step.REVEAL, Reveal(quote, secret_of(0)), wanted=lambda: wanted
        )
    assert ending is Ending.UNWANTED
    assert len(seller.journal.transactions(quote.trade_id)) == 1


async def test_the_port_of_the_fake_raises_what_its_hooks_raise(buyer: Node) -> None:
    buyer.escrow.before = down
    with pytest.raises(ChainUnavailableError):
        buyer.escrow.head()
