"""The checks of `pm-node doctor` that ask others: the chain, its clock, the bootstrap peers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from node.chain import answers
from node.chain.check import check_escrow
from node.chain.client import ChainClient, is_development_chain
from node.chain.errors import ChainError, ChainUnavailableError, WrongContractError
from node.cli.checked import Check
from node.clock import wall_clock
from node.home import BrokerAddress, BrokerNotFoundError, find_broker, state_directory
from node.protocol.eip712 import Domain
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import NO_ADDRESS, Address, UnixTime

if TYPE_CHECKING:
    from node.config.table import Config
    from node.net.host import Network

CHAIN_SECONDS: Final = 5.0
DIAL_SECONDS: Final = 15.0
AHEAD_SECONDS: Final = 15
"""How far a block may be in our future before our own clock is the suspect."""
BEHIND_SECONDS: Final = 300


def market_checks(config: Config, environ: Mapping[str, str]) -> Iterator[Check]:
    """Check the market that a node with these settings would join."""
    here: BrokerAddress | None = None
    if config.role == "agent" and not (config.chain and config.bootstrap):
        try:
            here = find_broker(state_directory(environ))
            yield Check("broker", "ok", f"process {here.pid} on this machine")
        except BrokerNotFoundError as error:
            remedy = "start `pm-node --role broker`, or name --bootstrap, --chain and --escrow"
            harmless = error.reason in ("absent", "stale")
            yield Check("broker", "warn" if harmless else "fail", str(error), remedy)
    chain = config.chain or (here.chain if here else "")
    escrow = config.escrow
    if escrow == NO_ADDRESS and here:
        escrow = here.escrow
    if chain:
        yield from chain_checks(chain, escrow, here.chain_id if here and not config.chain else None)
    else:
        served = "a broker without --chain serves one of play money"
        yield Check("chain", "ok", f"none is named: {served}")
    peers = config.bootstrap or (here.multiaddrs[:1] if here else ())
    if peers:
        yield from peer_checks(peers)


# ── the chain ──


def chain_checks(url: str, escrow: Address, expected_id: int | None) -> Iterator[Check]:
    client, where = ChainClient(url, timeout=CHAIN_SECONDS), _without_password(url)
    try:
        chain_id = client.chain_id()
        if expected_id not in (None, chain_id):
            detail = f"chain {chain_id} at {where}; the broker's is {expected_id}"
            yield Check("chain", "fail", detail, "name the broker's chain with --chain")
            return
        yield Check("chain", "ok", f"chain {chain_id} at {where}")
        yield _head(client)
        if escrow != NO_ADDRESS:
            yield _escrow(client, Domain(chain_id=chain_id, escrow=escrow))
    except ChainUnavailableError as error:
        remedy = "start it, or name another with --chain; a running node waits for it"
        yield Check("chain", "fail", f"{where}: {error}", remedy)
    finally:
        client.close()


def _head(client: ChainClient) -> Check:
    development = is_development_chain(client)
    block = answers.mapping(client.ask("eth_getBlockByNumber", "latest", False), "a block")
    time = answers.time(block.get("timestamp"), "a block's timestamp")
    return check_clock(wall_clock(), time, makes_blocks_on_demand=development)


def check_clock(now: UnixTime, head: UnixTime, *, makes_blocks_on_demand: bool) -> Check:
    """Compare our clock with the newest block's; a quiet development chain makes none."""
    if head - now > AHEAD_SECONDS:
        detail = f"this clock is {head - now} s behind the chain's newest block"
        remedy = "set it (NTP): deadlines of payments and keys are in wall time"
        return Check("clock", "fail", detail, remedy)
    if now - head > BEHIND_SECONDS and not makes_blocks_on_demand:
        detail = f"the chain's newest block is {now - head} s old by this clock"
        return Check("clock", "warn", detail, "set the clock (NTP), or take another endpoint")
    return Check("clock", "ok", f"{abs(now - head)} s from the chain's newest block")


def _escrow(client: ChainClient, domain: Domain) -> Check:
    try:
        check_escrow(client, domain)
    except WrongContractError as error:
        return Check("escrow", "fail", str(error), "name the market's with --escrow and --chain")
    except ChainUnavailableError:
        raise
    except ChainError as error:
        return Check("escrow", "fail", str(error), "ask whoever runs the endpoint")
    return Check("escrow", "ok", f"the code at {domain.escrow} is ours")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# ── the peers ──


def peer_checks(addresses: Sequence[str]) -> Iterator[Check]:
    """Dial each as a node would; only that none can be reached keeps a node out of its market."""
    import trio

    reasons = trio.run(_dial_all, addresses)
    lost = all(reason for reason in reasons.values())
    for address, reason in reasons.items():
        if reason:
            remedy = "see that it runs and that no firewall is between; a running node redials"
            yield Check("bootstrap", "fail" if lost else "warn", f"{address}: {reason}", remedy)
        else:
            yield Check("bootstrap", "ok", f"{address} answers as itself")


async def _dial_all(addresses: Sequence[str]) -> dict[str, str]:
    import trio

    from node.net.host import open_host

    reasons = dict.fromkeys(addresses, f"no answer in {DIAL_SECONDS:.0f} s")

    async def dial(network: Network, address: str) -> None:
        with trio.move_on_after(DIAL_SECONDS):
            try:
                await network.connect(address)
                reasons[address] = ""
            except RemoteProtocolError as error:
                reasons[address] = str(error)

    async with open_host(secrets.token_bytes(32)) as network, trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(dial, network, address)
    return reasons
