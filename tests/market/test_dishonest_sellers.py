"""Sellers that cheat, one way each: the buyer has its weights or its money, and trades on.

Beside every dishonest trade the same buyer makes an honest one, which must not notice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio

from node.agent.brokers import fails
from node.agent.seller import Seller, Served
from node.chain.port import (
    Call,
    EscrowState,
    RefundedEvent,
    Reveal,
    RevealedEvent,
)
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.events import Step
from node.protocol.messages import (
    PLAIN_HASHES,
    SELLER_UNREACHABLE,
    Countersign,
    Countersigned,
    GoodsPrepared,
    StreamMessage,
)
from node.protocol.signing import sign_digest
from node.protocol.types import Digest, PeerId, UnixTime
from node.settlement.trade import Trade
from node.settlement.treasury import Ending, Treasury
from tests.market.cheats import cheat, honest_trade, market_with, untouched
from tests.market.market import bought

# ── before any money moves ──


def spoil_data(part: str, index: int) -> type[Seller]:
    """Serve one part of the goods with one byte changed."""

    class Spoiler(Seller):
        def serve_goods(self, peer: PeerId, name: bytes, wanted: str) -> Served:
            whole = super().serve_goods(peer, name, wanted)
            if wanted != part:
                return whole

            def read(offset: int, length: int) -> bytes:
                data = bytearray(whole.read(offset, length))
                if offset <= index < offset + length:
                    data[index - offset] ^= 1
                return bytes(data)

            return Served(whole.byte_length, read)

    return Spoiler


SPOILT = {
    "a wrong chunk": ("data", 5_000, "wrong-chunk"),
    "wrong hashes of the goods": ("hashes", 40, "wrong-leaf-hashes"),
    "wrong hashes of what was offered": (PLAIN_HASHES, 70, "wrong-leaf-hashes"),
}


async def test_what_is_not_the_goods_is_refused_before_it_is_paid_for(tmp_path: Path) -> None:
    async with market_with(tmp_path, cheat()) as market:
        buyer = market["buyer"]
        trades: dict[str, Trade] = {}
        for name, (part, index, _) in SPOILT.items():
            seller = await market.join(name, cheat(spoil_data(part, index)))
            await seller.offer()
            trades[name] = await buyer.buy(seller)
        await honest_trade(market)
        for name, (_, _, reason) in SPOILT.items():
            await trades[name].settled.wait()
            assert reason in trades[name].machine.record.note, name
            untouched(market, trades[name])
        reasons = [reason for _, _, reason in SPOILT.values()]
        assert sorted(buyer.blamed("fetch-goods")) == sorted(reasons)
        assert len(market.ledger().states) == 1


async def test_goods_that_never_come_are_given_up_in_time(tmp_path: Path) -> None:
    class Silent(Seller):
        def serve_goods(self, peer: PeerId, name: bytes, wanted: str) -> Served:
            raise RemoteProtocolError("busy", "for ever")

    async with market_with(tmp_path, cheat(Silent)) as market:
        await market["cheat"].offer()
        trade = await market["buyer"].buy(market["cheat"])
        await honest_trade(market)
        assert trade.machine.state.value == "fetching"
        market.skip(60)
        await trade.settled.wait()
        untouched(market, trade)


async def test_a_transfer_that_is_cut_off_goes_on_from_there(tmp_path: Path) -> None:
    class Moody(Seller):
        """Hands out the hashes, and four times nothing more."""

        refusals = 4

        def serve_goods(self, peer: PeerId, name: bytes, wanted: str) -> Served:
            if wanted == "data" and self.refusals:
                self.refusals -= 1
                raise RemoteProtocolError("busy", "later")
            return super().serve_goods(peer, name, wanted)

    async with market_with(tmp_path, cheat(Moody)) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        trade = await buyer.buy(seller)
        await honest_trade(market)
        await market.see_paid(trade, buyer, seller)
        assert seller.shell.seller.refusals == 0
        assert set(buyer.blamed("fetch-goods")) == {"busy"}


class Liar(Seller):
    """Commits to something else than it prepared, and signs whatever comes of it."""

    lie: Mapping[str, Any] = MappingProxyType({})

    async def _prepare(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        prepared = await super()._prepare(peer, question)
        assert isinstance(prepared, GoodsPrepared)
        return dataclasses.replace(prepared, **self.lie)

    async def _countersign(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Countersign)
        name = digest(self._station.domain, question.quote)
        return Countersigned(signature=sign_digest(self._station.keys.account, name))


LIES: list[tuple[dict[str, Any], str]] = [
    ({"dh_commitment": Digest(b"\x07" * 32)}, "wrong-dh-commitment"),
    ({"seller_key": Digest(b"\x09" * 32)}, "wrong-dh-commitment"),
    ({"seller_key": Digest(bytes(32))}, "bad-dh-key"),
    ({"byte_length": 99}, "wrong-size"),
    ({"leaf_count": 99}, "wrong-size"),
]


async def test_a_commitment_that_could_not_be_disputed_is_refused(tmp_path: Path) -> None:
    async with market_with(tmp_path, cheat(Liar)) as market:
        buyer, liar = market["buyer"], market["cheat"]
        await liar.offer()
        base = await buyer.offer()
        for lie, reason in LIES:
            liar.shell.seller.lie = lie
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(liar, base)
            assert caught.value.reason == reason, lie
        assert not buyer.journal.trades()
        await honest_trade(market)


async def test_a_seller_that_asks_for_more_than_it_signs_for_only_loses_the_trade(
    tmp_path: Path,
) -> None:
    """Its signature is over another quote: the broker says so, and nobody is bound."""

    class Forger(Seller):
        async def _countersign(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
            assert isinstance(question, Countersign)
            cheaper = dataclasses.replace(
                question.quote, reveal_by=UnixTime(question.quote.reveal_by + 9)
            )
            name = digest(self._station.domain, cheaper)
            return Countersigned(signature=sign_digest(self._station.keys.account, name))

    async with market_with(tmp_path, cheat(Forger)) as market:
        await market["cheat"].offer()
        with pytest.raises(RemoteProtocolError, match="wrong-signer"):
            await market["buyer"].buy(market["cheat"])
        await honest_trade(market)


# ── after the money moved ──


class Mute(Treasury):
    """Never sends a reveal."""

    async def carry_out(self, trade_id: Digest, step: Step, call: Call, **words: Any) -> Ending:
        if step is Step.REVEAL:
            await trio.sleep_forever()
        return await super().carry_out(trade_id, step, call, **words)


async def test_a_seller_that_never_reveals_is_not_paid_and_the_buyer_is(tmp_path: Path) -> None:
    async with market_with(tmp_path, cheat(treasury=Mute)) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        await buyer.reaches(name, "funded")
        await honest_trade(market)
        assert market.state(name) is EscrowState.FUNDED
        assert market.ledger().held == bought(trade).quote.price

        market.skip(60 + 60 + 10)
        await trade.settled.wait()
        for party, state in (
            (buyer, "refunded"),
            (seller, "refunded"),
            (market.broker, "refunded"),
        ):
            await party.reaches(name, state)
        assert market.state(name) is EscrowState.REFUNDED
        (refunded,) = market.events(RefundedEvent)
        assert refunded.amount == bought(trade).quote.price
        assert not [e for e in market.events(RevealedEvent) if e.trade_id == name]
        await market.all_over()
        ledger = await market.drawn_ledger()
        assert ledger.balances
        assert ledger.refunded == refunded.amount


async def test_a_seller_that_is_gone_is_as_good_as_one_that_never_reveals(tmp_path: Path) -> None:
    async with market_with(tmp_path, cheat(treasury=Mute)) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        await buyer.reaches(name, "funded")
        await seller.stop()
        await honest_trade(market)
        market.skip(60 + 60 + 10)
        await buyer.reaches(name, "refunded")
        assert market.state(name) is EscrowState.REFUNDED


async def test_a_secret_that_comes_late_but_before_a_refund_is_as_good_as_one_in_time(
    tmp_path: Path,
) -> None:
    late = trio.Event()

    class Late(Treasury):
        async def carry_out(self, trade_id: Digest, step: Step, call: Call, **words: Any) -> Ending:
            if step is Step.REVEAL:
                await late.wait()
                return await super().carry_out(
                    trade_id, step, call, **{**words, "wanted": lambda: True}
                )
            return await super().carry_out(trade_id, step, call, **words)

    shell = cheat(treasury=Late)
    async with market_with(tmp_path, shell, grace_seconds=3_600) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        await buyer.reaches(name, "funded")
        await honest_trade(market)
        market.skip(60 + 60 + 10)
        await trio.sleep(0.4)
        assert trade.machine.state.value == "funded"
        assert market.clock() > bought(trade).quote.reveal_by
        late.set()
        await market.see_paid(trade, buyer, seller)
        assert buyer.station.blobs.has(bought(trade).evaluation.merged_root)
        await market.all_over()
        assert (await market.drawn_ledger()).balances


async def test_the_reveal_of_a_cheat_is_the_only_thing_that_it_can_publish(tmp_path: Path) -> None:
    """A seller that reveals another secret than it committed to is refused by the contract."""

    class Wrong(Treasury):
        async def carry_out(self, trade_id: Digest, step: Step, call: Call, **words: Any) -> Ending:
            if isinstance(call, Reveal):
                call = Reveal(call.quote, b"\x08" * 32)
            return await super().carry_out(trade_id, step, call, **words)

    async with market_with(tmp_path, cheat(treasury=Wrong)) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        trade = await buyer.buy(seller)
        name = trade.machine.record.trade_id
        await buyer.reaches(name, "funded")
        await honest_trade(market)
        (attempt,) = seller.journal.transactions(name, "reveal")
        assert attempt.succeeded is False
        market.skip(60 + 60 + 10)
        await buyer.reaches(name, "refunded")


STEPS_OF_A_SELLER = ("_ask", "_prepare", "_countersign")


@pytest.mark.parametrize("step", STEPS_OF_A_SELLER)
async def test_whatever_a_seller_answers_no_buyer_passes_its_broker_over_for_it(
    tmp_path: Path, step: str
) -> None:
    """Else a seller could drive buyers from honest brokers, to one that is its friend."""
    reasons = ["below-quorum", "busy", "no-notice", "internal-error", "truncated"]
    said = iter(reasons)

    async def answer(*_: object) -> Any:
        await trio.lowlevel.checkpoint()
        raise RemoteProtocolError(next(said), "of the broker, says the seller")

    blaming = type("Blaming", (Seller,), {step: answer})
    async with market_with(tmp_path, cheat(seller=blaming)) as market:
        buyer, seller = market["buyer"], market["cheat"]
        await seller.offer()
        for reason in reasons:
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(seller)
            assert caught.value.reason == SELLER_UNREACHABLE, reason
            assert caught.value.detail.startswith(reason)
            assert not fails(caught.value)
        await honest_trade(market)
