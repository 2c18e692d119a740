"""Coming into a round: by whom, and on which terms; those that follow from no inputs are left."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from node.agent import joining
from node.agent.brokers import Brokers
from node.agent.joining import DISTRUSTED, Joining
from node.agent.taking_part import ClearingTerms
from node.chain.errors import ChainUnavailableError
from node.chain.rounds import Round
from node.chronicle import BrokerDistrusted, ClearingOff, PeerFault
from node.observe import Observer
from node.protocol.clearing import Opening
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.participation import Participation, ParticipationRecord
from node.protocol.pooling import House, Invited, NotInvited
from node.protocol.signing import address_of, peer_id_of_seed
from node.protocol.types import NO_ADDRESS, Address, Digest, PeerId, UnixTime, Wei

FIRST, SECOND = (peer_id_of_seed(bytes([number]) * 32) for number in (1, 2))
ACCOUNTS = {FIRST: address_of(b"\x01" * 32), SECOND: address_of(b"\x02" * 32)}
US, HOUSE = address_of(b"\x03" * 32), address_of(b"\x04" * 32)
DUE, CHALLENGE = Wei(90), 100
OPENING = Opening(
    round=Digest(b"\x07" * 32), asset=NO_ADDRESS, pay_by=UnixTime(1_000),
    post_by=UnixTime(2_000), challenge_period=CHALLENGE,
)  # fmt: skip
ROUND = Round(
    asset=NO_ADDRESS, pay_by=OPENING.pay_by, post_by=OPENING.post_by, challenge_period=CHALLENGE,
    posted_at=UnixTime(0), leaves=0, version=0, pot=Wei(0), taken=Wei(0),
    clearing=Digest(bytes(32)),
)  # fmt: skip
INVITED = Invited(opening=OPENING, due=DUE, inputs=b"{}")


def wronged_by(peer: PeerId) -> ParticipationRecord:
    part = Participation.accepted(
        number=1, clearing_house=HOUSE, broker=ACCOUNTS[peer], opening=OPENING, due=DUE,
        inputs=b"{}", base_root=Digest(bytes(32)),
    )  # fmt: skip
    return dataclasses.replace(part.record, state="outlasting", reason="wrong-root")


class Market:
    """An agent between two brokers of one house, of which a test says what they answer."""

    def __init__(self, *, most_due: Wei | None = None) -> None:
        self.answers: list[Invited | NotInvited | RemoteProtocolError] = [INVITED]
        self.found: Round | None = ROUND
        self.due: Wei | None = DUE
        self.mechanism, self.seated = "shapley", True
        self.away: RemoteProtocolError | None = None
        self.outages = 0
        self.audited_terms: list[ClearingTerms] = []
        self.wronged: dict[Address, ParticipationRecord] = {}
        self.asked: list[PeerId] = []
        self.events: list[Any] = []
        self.account = US
        self.observer = Observer()
        self.observer.subscribe(lambda told: self.events.append(told.event))
        anything: Any = self
        audit: Any = SimpleNamespace(due=self.audited)
        addresses = [f"/ip4/127.0.0.1/tcp/1/p2p/{peer}" for peer in ACCOUNTS]
        self.brokers = Brokers(anything, anything, addresses)
        terms = ClearingTerms(
            mechanism="shapley", audit=audit, open_house=anything, cost=Wei(1),
            reserve=Wei(0), most_due=most_due, least_challenge=CHALLENGE,
        )  # fmt: skip
        settings: Any = SimpleNamespace(round_patience=0)
        self.joining = Joining(
            anything, self.brokers, anything, terms, settings, anything, self.report
        )

    def report(self, during: str, error: RemoteProtocolError) -> None:
        self.events.append(PeerFault(peer=FIRST, during=during, reason=error.reason))

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def join(self) -> Participation | str:
        return await self.joining.join(1, b"", Digest(b"\x09" * 32))

    # ── as a station, a keeper and an audit ──

    def notice_of(self, peer: PeerId) -> Any:
        return SimpleNamespace(broker=ACCOUNTS[peer])

    def offer_in(self, _: bytes) -> tuple[Digest, None]:
        return Digest(bytes(32)), None

    async def ask(self, peer: PeerId, *_: Any, **__: Any) -> House:
        await trio.lowlevel.checkpoint()
        if self.away is not None and peer == FIRST:
            raise self.away
        return House(clearing_house=HOUSE, mechanism=self.mechanism)

    async def ask_either(self, peer: PeerId, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(peer)
        answer = self.answers.pop(0)
        if isinstance(answer, RemoteProtocolError):
            raise answer
        return answer

    def distrusted(self) -> dict[Address, ParticipationRecord]:
        return self.wronged

    async def cashier(self, address: Address) -> Any:
        async def ask(question: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return question(house)

        house = SimpleNamespace(
            seats=self.seats,
            round=lambda _: self.found,
            domain=SimpleNamespace(clearing_house=address),
        )
        return SimpleNamespace(house=house, ask=ask)

    def seats(self, _: Address) -> bool:
        if self.outages:
            self.outages -= 1
            raise ChainUnavailableError("away")
        return self.seated

    def audited(self, _: bytes, account: Address, broker: Address, terms: ClearingTerms) -> Wei:
        self.audited_terms.append(terms)
        if self.due is None:
            raise LocalProtocolError("no party")
        return self.due


async def test_terms_that_follow_from_the_inputs_are_taken() -> None:
    market = Market(most_due=DUE)
    part = await market.join()
    assert isinstance(part, Participation)
    record = part.record
    assert (record.clearing_house, record.broker, record.due) == (HOUSE, ACCOUNTS[FIRST], DUE)
    assert record.base_root == b"\x09" * 32
    (terms,) = market.audited_terms
    assert (terms.mechanism, terms.cost, terms.reserve) == ("shapley", 1, 0)
    assert market.events == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"due": Wei(89)}, "wrong-due"),
        ({"due": None}, "wrong-inputs"),
        ({"found": None}, "no-such-round"),
        ({"found": dataclasses.replace(ROUND, pay_by=UnixTime(1_001))}, "another-round"),
        ({"found": dataclasses.replace(ROUND, post_by=UnixTime(1_999))}, "another-round"),
        ({"found": dataclasses.replace(ROUND, challenge_period=99)}, "another-round"),
        ({"found": dataclasses.replace(ROUND, asset=US)}, "another-round"),
        ({"found": dataclasses.replace(ROUND, posted_at=UnixTime(3))}, "another-round"),
    ],
)
async def test_an_invitation_to_another_round_than_there_is_costs_nothing(
    changed: dict[str, Any], reason: str
) -> None:
    market = Market()
    for name, value in changed.items():
        setattr(market, name, value)
    assert await market.join() == reason
    (off,) = market.told(ClearingOff)
    assert (off.number, off.reason) == (1, reason)
    assert [fault.reason for fault in market.told(PeerFault)] == [reason]


async def test_a_challenge_that_is_too_short_to_look_is_not_taken() -> None:
    market = Market()
    short = dataclasses.replace(OPENING, challenge_period=CHALLENGE - 1)
    market.answers = [dataclasses.replace(INVITED, opening=short)]
    market.found = dataclasses.replace(ROUND, challenge_period=CHALLENGE - 1)
    assert await market.join() == "short-challenge"


async def test_what_is_dearer_than_we_pay_is_left_without_a_fault() -> None:
    market = Market(most_due=Wei(DUE - 1))
    assert await market.join() == "too-dear"
    assert market.told(PeerFault) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"away": RemoteProtocolError("busy", "", peer=FIRST)}, "busy"),
        ({"mechanism": "triplewin"}, "another-mechanism"),
        ({"seated": False}, "not-the-houses-broker"),
    ],
)
async def test_a_broker_that_names_no_house_of_its_own_is_waited_for_as_long_as_a_round_is(
    changed: dict[str, Any], reason: str
) -> None:
    market = Market()
    for name, value in changed.items():
        setattr(market, name, value)
    with trio.fail_after(5):
        assert await market.join() == reason
    (off,) = market.told(ClearingOff)
    assert (off.number, off.reason) == (1, reason)
    assert [fault.reason for fault in market.told(PeerFault)] == [reason]
    # and the next round is by the other
    market.away, market.mechanism, market.seated = None, "shapley", True
    assert market.joining.choose(2) == ""
    assert isinstance(await market.join(), Participation)
    assert market.asked == [SECOND]


async def test_while_the_chain_is_away_no_broker_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "RETRY_SECONDS", 0.01)
    market = Market()
    market.outages = 3
    assert isinstance(await market.join(), Participation)
    assert market.asked == [FIRST]
    assert market.events == []


async def test_a_round_that_is_off_is_asked_for_no_more() -> None:
    market = Market()
    market.answers = [NotInvited(reason="infeasible", off=True, inputs=b""), INVITED]
    assert await market.join() == "infeasible"
    assert len(market.answers) == 1


async def test_a_broker_whose_root_was_wrong_is_asked_no_more_and_named_once() -> None:
    market = Market()
    market.wronged = {ACCOUNTS[FIRST]: wronged_by(FIRST)}
    for _ in range(2):
        assert market.joining.choose(2) == ""
        assert market.brokers.current == SECOND
    (said,) = market.told(BrokerDistrusted)
    assert (said.peer, said.broker, said.reason) == (FIRST, ACCOUNTS[FIRST], "wrong-root")
    await market.join()
    assert market.asked == [SECOND]
    # nor where the other fails
    assert not await market.brokers.pass_over(RemoteProtocolError("busy", "", peer=SECOND))
    assert market.brokers.current == SECOND


async def test_with_nobody_else_to_ask_no_round_is_joined() -> None:
    market = Market()
    market.wronged = {ACCOUNTS[peer]: wronged_by(peer) for peer in (FIRST, SECOND)}
    assert market.joining.choose(2) == DISTRUSTED
    (off,) = market.told(ClearingOff)
    assert off.detail == f"{ACCOUNTS[FIRST]}: wrong-root"
    market.wronged = {}  # it published after all, and was right
    assert market.joining.choose(3) == ""
    assert market.brokers.current == FIRST
