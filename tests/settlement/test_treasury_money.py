"""Empty accounts, refusals, reverts, and transactions that get stuck."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
import trio

from node.chain.codec import GAS_LIMITS
from node.chain.errors import ChainUnavailableError
from node.chain.port import Dispute, EscrowState, Finalize, Fund, Refund, Reveal, Withdraw
from node.chronicle import (
    TransactionDelayed,
    TransactionMined,
    TransactionRefused,
)
from node.observe.observer import Record
from node.protocol.eip712 import digest
from node.protocol.events import Step
from node.protocol.quote import Quote
from node.settlement.treasury import MINING_PATIENCE, REOFFER_SECONDS, YIELD_SECONDS, Ending
from tests.settlement.fake_chain import DOMAIN, ETHER, Deal, FakeChain, FakeEscrow, down
from tests.settlement.trades import (
    BUYER,
    REVEAL_BY,
    SELLER,
    Node,
    always,
    fund,
    goods_of,
    long_quote_of,
    quote_of,
    secret_of,
    wall,
)

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


async def test_the_operator_is_told_what_the_contract_said_to_a_call_that_reverted(
    buyer: Node, chain: FakeChain
) -> None:
    """On a chain that does not simulate there is no refusal that would say it."""
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    await trio.sleep(40)
    other = quote_of(1)
    assert await fund(buyer, other) is Ending.REVERTED
    well, ill = buyer.told(TransactionMined)
    assert (well.revert, well.values) == (None, None)  # type: ignore[attr-defined]
    assert ill.revert == "FundingClosed"  # type: ignore[attr-defined]
    said = ill.values  # type: ignore[attr-defined]
    assert said["fundBy"] == other.fund_by < said["time"]
    line = json.loads(json.dumps(Record(datetime.fromtimestamp(0, UTC), ill, {}).document()))
    assert (line["revert"], line["values"]) == ("FundingClosed", dict(said))


@pytest.mark.parametrize("step", [Step.REVEAL, Step.DISPUTE])
async def test_what_has_a_deadline_is_signed_anew_when_fees_fall_to_what_the_account_can_pay(
    seller: Node, chain: FakeChain, step: Step
) -> None:
    quote = quote_of()
    state = EscrowState.FUNDED if step is Step.REVEAL else EscrowState.REVEALED
    chain.deals[quote.trade_id] = Deal(state, wall(), digest(DOMAIN, quote))
    call = Reveal(quote, secret_of(0))
    chain.balances[SELLER], chain.base_fee = 25 * GAS_LIMITS[Reveal], 50

    async def fees_fall() -> None:
        await trio.sleep(2)
        chain.base_fee = 10

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fees_fall)
        ending = await seller.treasury.carry_out(
            quote.trade_id,
            step,
            call if step is Step.REVEAL else Dispute(quote, goods_of().show(1)),
            wanted=lambda: wall() < quote.reveal_by,
        )
    assert ending is Ending.DONE
    dear, cheap = seller.journal.transactions(quote.trade_id)
    assert dear.nonce == cheap.nonce
    assert [t.raw for t in chain.history] == [cheap.raw]
    assert seller.told(TransactionDelayed)


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


async def reveal_while(
    seller: Node, quote: Quote, wanted: Callable[[], bool], meanwhile: Callable[[], Awaitable[None]]
) -> Ending:
    left = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meanwhile)
        return await seller.treasury.carry_out(
            quote.trade_id,
            Step.REVEAL,
            Reveal(quote, secret_of(0)),
            wanted=lambda: left.is_set() or wanted(),
            sent=left.set,
        )


async def test_a_secret_that_has_left_is_pursued_though_its_time_is_over(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    """It is public: what is left to do is to have it paid for, while nobody has refunded."""
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE

    async def fees_rise() -> None:
        await trio.sleep(0.5)
        chain.base_fee = 50

    def in_time() -> bool:
        return wall() <= quote.reveal_by - 1

    assert await reveal_while(seller, quote, in_time, fees_rise) is Ending.DONE
    first, second = seller.journal.transactions(quote.trade_id)
    assert first.nonce == second.nonce
    assert [t.raw for t in chain.calls(Reveal)] == [second.raw]
    assert wall() > quote.reveal_by


async def test_a_secret_that_has_left_is_given_up_once_the_buyer_has_its_money_back(
    buyer: Node, seller: Node, chain: FakeChain
) -> None:
    quote = quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    # enough for the present fee, and not for the next
    chain.balances[SELLER] = 30 * GAS_LIMITS[Reveal]

    async def fees_rise() -> None:
        await trio.sleep(0.5)
        chain.base_fee = 50
        await trio.sleep(quote.refund_from - wall() + 3)
        wallet = FakeEscrow(chain, BUYER)
        wallet.broadcast(wallet.sign(Refund(quote), wallet.next_nonce()).raw)

    assert await reveal_while(seller, quote, lambda: True, fees_rise) is Ending.UNWANTED
    assert chain.deals[quote.trade_id].state is EscrowState.REFUNDED
    assert not chain.calls(Reveal)


async def test_what_the_pool_lost_is_offered_again_when_a_later_nonce_waits_for_it(
    buyer: Node, chain: FakeChain
) -> None:
    """Or a reveal behind a deposit that was dropped would wait for the deposit's next turn."""
    deposit, sold = long_quote_of(1), quote_of(2)
    chain.deals[sold.trade_id] = Deal(EscrowState.FUNDED, wall(), digest(DOMAIN, sold))
    chain.paused = True

    async def drop_the_deposit() -> None:
        while len(chain.pool) < 2:
            await trio.sleep(0.1)
        del chain.pool[BUYER, 0]
        chain.paused = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fund, buyer, deposit)
        await trio.sleep(1)
        nursery.start_soon(drop_the_deposit)
        began = trio.current_time()
        ending = await buyer.treasury.carry_out(
            sold.trade_id, Step.REVEAL, Reveal(sold, secret_of(2)), wanted=always
        )
    assert ending is Ending.DONE
    assert [type(t.call) for t in chain.history] == [Fund, Reveal]
    assert trio.current_time() - began < YIELD_SECONDS + REOFFER_SECONDS + 8


@pytest.mark.parametrize("step", [Step.REVEAL, Step.DISPUTE])
async def test_what_has_a_deadline_goes_before_the_deposits_that_came_first(
    buyer: Node, chain: FakeChain, step: Step
) -> None:
    sold = quote_of(9)
    reveal, dispute = Reveal(sold, secret_of(9)), Dispute(sold, goods_of(9).show(1))
    call = reveal if step is Step.REVEAL else dispute
    state = EscrowState.FUNDED if step is Step.REVEAL else EscrowState.REVEALED
    chain.deals[sold.trade_id] = Deal(state, wall(), digest(DOMAIN, sold))
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(fund, buyer, long_quote_of(number))
        await trio.sleep(0.5)
        nursery.start_soon(
            lambda: buyer.treasury.carry_out(sold.trade_id, step, call, wanted=always)
        )
    assert [type(t.call) for t in chain.history][:2] == [Fund, type(call)]
    assert len(chain.calls(Fund, succeeded=True)) == 4


async def test_what_reverts_for_ever_costs_next_to_nothing(buyer: Node, chain: FakeChain) -> None:
    quote = long_quote_of()
    assert await fund(buyer, quote) is Ending.DONE
    with trio.move_on_after(3_600):
        await buyer.treasury.carry_out(quote.trade_id, Step.REFUND, Refund(quote), wanted=always)
    assert 3 <= len(chain.calls(Refund, succeeded=False)) <= 8


async def test_the_port_of_the_fake_raises_what_its_hooks_raise(buyer: Node) -> None:
    buyer.escrow.before = down
    with pytest.raises(ChainUnavailableError):
        buyer.escrow.head()
