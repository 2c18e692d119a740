"""A market that an operator deploys: what is missing, what it costs, whether it is as compiled.

Addresses follow from a market's terms and from the code of its contracts, and from nothing that
has to be kept: whoever names the same terms finds the same market, finished or half-finished.
What is kept in a file, by chain, are the terms and addresses of each market that was deployed.
A new version of the contracts is another code, and so a market at other addresses; those of the
old one stay in the file, and on the chain.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.chain import answers
from node.chain.check import MarketTerms, check_clearing_house, check_escrow
from node.chain.client import ChainClient
from node.chain.deploy import DEPLOY_GAS, MarketPlan, Part
from node.chain.errors import ChainUnavailableError, UnfundedAccountError, WrongContractError
from node.chain.transactions import Wallet
from node.protocol import bounded_json
from node.protocol.clearing import MAX_WINDOW, ClearingDomain
from node.protocol.eip712 import Domain
from node.protocol.errors import MarketError
from node.protocol.schema import checksummed
from node.protocol.types import DIGEST_BYTES, UINT256_MAX, Address, Digest, Wei

FILE_VERSION: Final = 1
PARTS: Final = ("clearing_house", "registry", "court")
"""What a market of the file has beside its escrow."""
MAX_FILE_BYTES: Final = 1 << 20


class DeploymentFileError(MarketError):
    """The file of deployments cannot be used; the message says what to do."""


# ── on the chain ──


def missing_parts(client: ChainClient, plan: MarketPlan) -> list[Part]:
    """Return what of a market is not deployed yet.

    Raises `WrongContractError` if something else lies at the address of a part.
    """
    missing = []
    for part in plan.parts:
        code = client.code(part.address)
        if not code:
            missing.append(part)
        else:
            _require_code(part, code)
    return missing


def check_market(client: ChainClient, plan: MarketPlan) -> MarketTerms:
    """Check each contract of a market, byte for byte, and return what the chain says of it.

    Places that a constructor fills in are compared with what it fills in for this plan. Raises
    `WrongContractError`.
    """
    domain = Domain(chain_id=client.chain_id(), escrow=plan.escrow)
    terms = check_escrow(client, domain, plan.brokers)
    found = (terms.registry, terms.court, terms.threshold, terms.minimum_bond)
    if found != (plan.registry, plan.court, plan.threshold, plan.minimum_bond):
        raise WrongContractError(f"the escrow at {plan.escrow} was built with other terms")
    where = plan.clearing_house
    house = check_clearing_house(
        client, ClearingDomain(chain_id=domain.chain_id, clearing_house=where), plan.brokers
    )
    built_with = (house.registry, house.minimum_challenge, house.threshold)
    if built_with != (plan.registry, plan.minimum_challenge, plan.threshold):
        raise WrongContractError(f"the clearing house at {where} was built with other terms")
    return terms


def _require_code(part: Part, code: bytes) -> None:
    if not code:
        raise WrongContractError(f"there is no code of {part.name} at {part.address}")
    if not part.artifact.is_code_of(code):
        raise WrongContractError(f"the code at {part.address} is not that of {part.name}")


# ── what it costs ──


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The most that a deployment costs, at the fees of now."""

    gas: int
    price: Wei
    """For a unit of gas, the base fee doubled."""
    least_balance: Wei
    """What the account must hold to begin: the last transaction's limit is paid in advance."""

    @property
    def cost(self) -> Wei:
        return Wei(self.gas * self.price)


def estimate(client: ChainClient, wallet: Wallet, parts: Sequence[Part]) -> Estimate:
    """Return what it costs to deploy `parts`, from their code: the endpoint names the fee alone.

    A rollup's charge for data on the chain below comes on top.
    """
    price = wallet.fees(client).max_fee
    before_last = sum(part.gas for part in parts[:-1])
    last = max((part.gas_limit for part in parts[-1:]), default=DEPLOY_GAS)
    return Estimate(
        gas=sum(part.gas for part in parts),
        price=price,
        least_balance=Wei((before_last + last) * price),
    )


def require_funds(client: ChainClient, wallet: Wallet, needed: Wei) -> None:
    """Raise `UnfundedAccountError` unless the wallet's account holds so much."""
    held = answers.wei(client.ask("eth_getBalance", wallet.address, "latest"), "eth_getBalance")
    if held < needed:
        raise UnfundedAccountError(
            f"{wallet.address} holds {held} wei, and this begins with {needed}: send it the rest"
        )


def require_none_pending(client: ChainClient, wallet: Wallet) -> None:
    """Raise `ChainUnavailableError` while a transaction of this account waits.

    It may be just what seems to be left to do, and a second one would burn its gas.
    """
    asked = client.ask("eth_getTransactionCount", wallet.address, "latest")
    if answers.quantity(asked, "a nonce") < client.nonce(wallet.address):
        raise ChainUnavailableError(
            f"a transaction of {wallet.address} is not mined yet: nothing is sent before it is"
        )


# ── the file ──


def describe(plan: MarketPlan, release: str) -> dict[str, Any]:
    """Return a market as it stands in the file."""
    return {
        "release": release,
        "escrow": plan.escrow,
        "clearing_house": plan.clearing_house,
        "registry": plan.registry,
        "court": plan.court,
        "brokers": list(plan.brokers),
        "threshold": plan.threshold,
        "minimum_bond": str(plan.minimum_bond),
        "minimum_challenge": plan.minimum_challenge,
        "salt": "0x" + plan.salt.hex(),
    }


def deployments_file(root: Path, chain_id: int) -> Path:
    """Return where a data directory keeps the markets that were deployed on a chain."""
    return root / "deployments" / f"{chain_id}.json"


def newest_escrow(root: Path, chain_id: int) -> Address | None:
    """Return the escrow that was deployed last by a data directory; None if none was.

    Raises as `read_deployments`.
    """
    return next(reversed(deployed_escrows(root, chain_id)), None)


def deployed_escrows(root: Path, chain_id: int) -> tuple[Address, ...]:
    """Return the escrows that a data directory deployed on a chain, the newest last.

    Raises as `read_deployments`.
    """
    markets = read_deployments(deployments_file(root, chain_id), chain_id)
    return tuple(Address(str(market["escrow"])) for market in markets)


def read_deployments(path: Path, chain_id: int) -> list[dict[str, Any]]:
    """Return the markets in a file, the newest last; none if there is no file.

    Raises `DeploymentFileError` for anything but such a file, `WrongContractError` for that of
    another chain.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DeploymentFileError(f"cannot read {path}: {error.strerror}") from error
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError
        document = bounded_json.loads(data)
        version, of_chain = document["version"], document["chain_id"]
        markets = [dict(market) for market in document["markets"]]
        for market in markets:
            plan_of(market)
    except (ValueError, TypeError, KeyError) as error:
        raise DeploymentFileError(
            f"{path} is not a file of deployments; move it away, and deploy again to write it anew"
        ) from error
    if version != FILE_VERSION:
        raise DeploymentFileError(f"{path} is of version {version!r:.20}, not {FILE_VERSION}")
    if of_chain != chain_id:
        raise WrongContractError(f"the chain's id is {chain_id}; {path} is of {of_chain!r:.40}")
    return markets


def write_deployment(path: Path, chain_id: int, market: dict[str, Any]) -> bool:
    """Put a market last in the file unless it is there; return whether it was not.

    The file appears whole. Raises as `read_deployments`, and `DeploymentFileError`.
    """
    markets = read_deployments(path, chain_id)
    if any(known["escrow"] == market["escrow"] for known in markets):
        return False
    document = {"version": FILE_VERSION, "chain_id": chain_id, "markets": [*markets, market]}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise DeploymentFileError(f"cannot write {path}: {error.strerror}") from error
    return True


def plan_of(market: dict[str, Any]) -> MarketPlan:
    """Return the plan of a market of the file. Raises `ValueError`, `TypeError` or `KeyError`."""
    salt = bytes.fromhex(str(market["salt"]).removeprefix("0x"))
    brokers = tuple(_address(broker) for broker in market["brokers"])
    threshold, bond = market["threshold"], int(market["minimum_bond"])
    if len(salt) != DIGEST_BYTES or type(threshold) is not int or not 0 <= bond <= UINT256_MAX:
        raise ValueError
    if not 0 < threshold <= len(set(brokers)) == len(brokers):
        raise ValueError
    challenge = market["minimum_challenge"]
    if type(challenge) is not int or not 0 < challenge <= MAX_WINDOW:
        raise ValueError
    for name in ("escrow", *PARTS):
        _address(market[name])
    return MarketPlan(
        salt=Digest(salt),
        brokers=brokers,
        threshold=threshold,
        minimum_bond=Wei(bond),
        minimum_challenge=challenge,
    )


def _address(text: object) -> Address:
    if not isinstance(text, str) or checksummed(bytes.fromhex(text.removeprefix("0x"))) != text:
        raise ValueError
    return Address(text)
