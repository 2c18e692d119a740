"""What an agent pays into a round, and what it takes out of one besides money."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import trio

from node.agent import participant
from node.agent.participant import Participant
from node.agent.taking_part import Bought, TakingPart
from node.chain.rounds import HouseCall, Pay
from node.chronicle import PeerFault
from node.observe import Observer
from node.params.architecture import Architecture, layout
from node.protocol.clearing import Opening
from node.protocol.parameters import encoded_length
from node.protocol.participation import Act, Participation
from node.protocol.pot import Sight
from node.protocol.signing import address_of, peer_id_of_seed
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei
from node.settlement.cashier import DONE

US, HOUSE, BROKER = (address_of(bytes([number]) * 32) for number in (1, 2, 3))
PEER = peer_id_of_seed(b"\x04" * 32)
DUE = Wei(90)
OPENING = Opening(
    round=Digest(b"\x07" * 32), asset=NO_ADDRESS, pay_by=UnixTime(1_000),
    post_by=UnixTime(2_000), challenge_period=100,
)  # fmt: skip
ARCHITECTURE = Architecture("mlp", {"widths": [4, 3, 2]})
OWN, SOLD = Digest(b"\x08" * 32), Digest(b"\x09" * 32)


def a_part(**changes: Any) -> Participation:
    begun = Participation.accepted(
        number=1, clearing_house=HOUSE, broker=BROKER, opening=OPENING, due=DUE, inputs=b"{}",
        base_root=OWN,
    )  # fmt: skip
    return Participation(dataclasses.replace(begun.record, **changes))


class Payer:
    """An agent and its cashier, in whose round others may pay for it."""

    def __init__(self, *, by_others: int) -> None:
        self.paid = Wei(by_others)
        self.account = US
        self.calls: list[HouseCall] = []

    def clock(self) -> UnixTime:
        return UnixTime(10)

    def paid_in(self, name: Digest, account: Address) -> Wei:
        assert (name, account) == (OPENING.round, US)
        return self.paid

    async def carry_out(
        self, _: Digest, __: str, call: HouseCall, *, done: Any, wanted: Any
    ) -> str:
        await trio.lowlevel.checkpoint()
        if not done(self) and wanted():
            assert isinstance(call, Pay)
            self.calls.append(call)
            self.paid = Wei(self.paid + call.amount)
        assert done(self)
        return DONE


@pytest.mark.parametrize("by_others", [0, 1, DUE - 1])
async def test_a_wei_that_a_stranger_paid_for_us_does_not_keep_us_out(by_others: int) -> None:
    anything: Any = Payer(by_others=by_others)
    taking = TakingPart(anything, anything, anything, lambda _: PEER)
    part = a_part()
    for _ in range(2):  # the second finds it done
        seen = Sight(now=UnixTime(10), paid=Wei(by_others))
        await taking._do(Act.PAY, part, seen)
    assert anything.calls == [Pay(OPENING.round, NO_ADDRESS, US, Wei(DUE - by_others))]
    assert part.see(Sight(now=UnixTime(11), paid=anything.paid)) == []
    assert part.state.value == "waiting"


class Buyer:
    """An agent at the end of a round in which one model of this length was sold to it."""

    def __init__(self, byte_length: int) -> None:
        self.sold = Bought(root=SOLD, byte_length=byte_length, performance=0.9)
        self.account, self.peers, self.current = US, (PEER,), PEER
        self.held = {OWN}
        self.events: list[Any] = []
        self.observer = Observer()
        self.observer.subscribe(lambda told: self.events.append(told.event))
        self.audit = self.network = self.book = self.blobs = self
        self.architecture = ARCHITECTURE
        self.round_patience = 0

    def models(self, *_: Any) -> tuple[Bought, ...]:
        return (self.sold,)

    def peer_of(self, _: Address) -> str:
        return PEER

    def addresses_of(self, _: str) -> tuple[str, ...]:
        return ()

    def has(self, root: Digest) -> bool:
        return root in self.held

    async def adopted(self) -> tuple[str, Digest]:
        anything: Any = self
        shell = Participant(
            station=anything, brokers=anything, trainer=anything, settings=anything,
            terms=anything, keeper=anything, meet=anything,
        )  # fmt: skip
        part = a_part(state="settled", inputs=b"{}")
        return await shell._adopted(part, OWN)


@pytest.mark.parametrize("more", [-1, 0, 1, 1 << 40])
async def test_a_sold_model_is_fetched_only_if_it_is_as_long_as_one_of_ours(
    more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer = Buyer(encoded_length(layout(ARCHITECTURE)) + more)
    fetched = []

    async def fetch(_: Any, source: Any, *__: Any, root: Digest, byte_length: int) -> None:
        await trio.lowlevel.checkpoint()
        fetched.append(byte_length)
        buyer.held.add(root)

    monkeypatch.setattr(participant, "fetch_blob", fetch)
    monkeypatch.setattr(participant, "read_tensors", lambda *_: {})
    got = await buyer.adopted()
    if not more:
        assert (got, fetched) == (("bought", SOLD), [buyer.sold.byte_length])
        assert buyer.events == []
        return
    assert (got, fetched) == (("model-away", OWN), [])
    (fault,) = buyer.events
    assert isinstance(fault, PeerFault)
    assert (fault.peer, fault.during, fault.reason) == (PEER, "fetch-model", "wrong-layout")
