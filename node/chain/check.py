"""Whether what lies on a chain is a market of ours: its four contracts, byte for byte.

The code of each must be its artifact's, and each place that a constructor fills in must hold
what it could have put there for this domain. What the escrow then says of itself (its registry,
its court, its threshold), and the clearing house of itself, is held against the words in its code:
an endpoint that lies must lie in both. Who may ever be a broker is in the storage of both and is
asked for by account.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from contracts import Artifact, load_artifact
from node.chain.abi import WORD_BYTES, Functions
from node.chain.client import ChainClient
from node.chain.codec import EscrowCodec
from node.chain.errors import ChainAnswerError, WrongContractError
from node.chain.port import Seat
from node.protocol.clearing import CLEARING_NAME, CLEARING_VERSION, ClearingDomain
from node.protocol.eip712 import DOMAIN_NAME, DOMAIN_VERSION, Domain, domain_separator
from node.protocol.schema import checksummed, raw_address
from node.protocol.types import Address, Wei

_ESCROW_VIEWS: Final = ("registry", "court", "threshold")
_HOUSE_VIEWS: Final = ("registry", "minimumChallenge", "threshold")
_REGISTRY_VIEWS: Final = ("minimumBond",)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketTerms:
    """What is fixed in the contracts of a market."""

    registry: Address
    court: Address
    threshold: int
    """How many brokers must sign a quote."""
    minimum_bond: Wei
    seated: frozenset[Address]
    """Those of the brokers that were asked about whose signature counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HouseTerms:
    """What is fixed in a clearing house."""

    registry: Address
    minimum_challenge: int
    """The shortest time, in seconds, in which its brokers can veto a root."""
    threshold: int
    """How many brokers must sign an opening, and a root."""
    minimum_bond: Wei
    seated: frozenset[Address]
    """Those of the brokers that were asked about whose signature counts."""


def escrow_artifact() -> Artifact:
    """Return the compiled escrow that this version speaks to."""
    return load_artifact("ParameterEscrow")


def clearing_artifact() -> Artifact:
    """Return the compiled clearing house that this version speaks to."""
    return load_artifact("ClearingHouse")


def registry_artifact() -> Artifact:
    """Return the compiled registry of brokers."""
    return load_artifact("BrokerRegistry")


def court_artifact() -> Artifact:
    """Return the compiled court of deliveries."""
    return load_artifact("DeliveryCourt")


def escrow_codec(artifact: Artifact) -> EscrowCodec:
    """Return the escrow's codec, which also knows the errors of what the escrow calls."""
    return EscrowCodec(artifact.abi, [*court_artifact().abi, *registry_artifact().abi])


def check_escrow(
    client: ChainClient,
    domain: Domain,
    brokers: Iterable[Address] = (),
    *,
    artifact: Artifact | None = None,
) -> MarketTerms:
    """Check that `domain` is our escrow, with our registry and court, and lists these brokers.

    Raises `WrongContractError`.
    """
    chain_id = client.chain_id()
    if chain_id != domain.chain_id:
        raise WrongContractError(f"the chain's id is {chain_id}, not {domain.chain_id}")
    found = artifact or escrow_artifact()
    words = _constants(client, domain.escrow, found)
    views = Functions(found.name, found.abi, _ESCROW_VIEWS)
    registry, court, threshold = (
        views.read(name, client.view(domain.escrow, views.call(name)))[0] for name in _ESCROW_VIEWS
    )
    registry, court = checksummed(_raw(registry)), checksummed(_raw(court))
    built_with = {_word(raw_address(registry)), _word(raw_address(court)), _number(threshold)}
    if words != built_with | _domain_words(
        DOMAIN_NAME, DOMAIN_VERSION, domain.chain_id, domain.escrow
    ):
        raise WrongContractError(f"the escrow at {domain.escrow} was built for another domain")
    terms = MarketTerms(
        registry=registry,
        court=court,
        threshold=threshold,
        minimum_bond=_check_registry(client, registry),
        seated=_seated(client, "escrow", domain.escrow, frozenset(brokers)),
    )
    _constants(client, court, court_artifact())
    return terms


def check_clearing_house(
    client: ChainClient, domain: ClearingDomain, brokers: Iterable[Address] = ()
) -> HouseTerms:
    """Check that `domain` is a clearing house of ours, with our registry, and lists these brokers.

    Raises `WrongContractError`.
    """
    chain_id, house = client.chain_id(), domain.clearing_house
    if chain_id != domain.chain_id:
        raise WrongContractError(f"the chain's id is {chain_id}, not {domain.chain_id}")
    artifact = clearing_artifact()
    words = _constants(client, house, artifact)
    views = Functions(artifact.name, artifact.abi, _HOUSE_VIEWS)
    registry, challenge, threshold = (
        views.read(name, client.view(house, views.call(name)))[0] for name in _HOUSE_VIEWS
    )
    registry = checksummed(_raw(registry))
    built_with = {_word(raw_address(registry)), _number(challenge), _number(threshold)}
    if words != built_with | _domain_words(CLEARING_NAME, CLEARING_VERSION, chain_id, house):
        raise WrongContractError(f"the clearing house at {house} was built for another domain")
    return HouseTerms(
        registry=registry,
        minimum_challenge=challenge,
        threshold=threshold,
        minimum_bond=_check_registry(client, registry),
        seated=_seated(client, "clearing house", house, frozenset(brokers)),
    )


def _check_registry(client: ChainClient, registry: Address) -> Wei:
    artifact = registry_artifact()
    words = _constants(client, registry, artifact)
    views = Functions(artifact.name, artifact.abi, _REGISTRY_VIEWS)
    (bond,) = views.read("minimumBond", client.view(registry, views.call("minimumBond")))
    if words != {_number(bond)}:
        raise WrongContractError(f"the registry at {registry} does not know its own minimum bond")
    return Wei(bond)


def _seated(
    client: ChainClient, what: str, where: Address, brokers: frozenset[Address]
) -> frozenset[Address]:
    codec = escrow_codec(escrow_artifact())  # the seats of a clearing house are of the same base
    seats = {
        broker: codec.decode_seat(client.view(where, codec.seat_of(broker))) for broker in brokers
    }
    for broker, seat in seats.items():
        if seat is Seat.STRANGER:
            raise WrongContractError(f"the {what} at {where} does not list broker {broker}")
    return frozenset(broker for broker, seat in seats.items() if seat is Seat.TAKEN)


def _constants(client: ChainClient, address: Address, artifact: Artifact) -> set[bytes]:
    """Return what the constructor filled in, of code that is the artifact's in all else."""
    code = client.code(address)
    if not code:
        raise WrongContractError(f"there is no code at {address} on chain {client.chain_id()}")
    if not artifact.is_code_of(code):
        raise WrongContractError(f"the code at {address} is not that of {artifact.name}")
    return {code[start : start + length] for start, length in artifact.immutables}


def _domain_words(name: str, version: str, chain_id: int, contract: Address) -> set[bytes]:
    """Return what the EIP712 base of the contract writes into the code."""
    return {
        _number(chain_id),
        _word(raw_address(contract)),
        domain_separator(name, version, chain_id, contract),
        keccak(name.encode()),
        keccak(version.encode()),
        _short_string(name.encode()),
        _short_string(version.encode()),
    }


def _raw(address: object) -> bytes:
    if not isinstance(address, str):
        raise ChainAnswerError(f"an address was answered with {address!r:.80}")
    return bytes.fromhex(address[2:])


def _number(value: int) -> bytes:
    return value.to_bytes(WORD_BYTES, "big")


def _word(value: bytes) -> bytes:
    return value.rjust(WORD_BYTES, b"\0")


def _short_string(text: bytes) -> bytes:
    """OpenZeppelin's ShortString: 31 bytes of text and their count."""
    return text.ljust(WORD_BYTES - 1, b"\0") + bytes([len(text)])
