"""``pm-node mechanism``: the papers' mechanisms on a market written in JSON.

Needs no node, no chain and no settings. A file with `cases` is cleared case by case, so
that start-up is paid once; a case that is refused, or that a solver fails on, is answered in
its place. What is read is hostile: at most `MAX_BYTES`, plain JSON, no key twice, every number
finite.

What a mechanism answers is an outcome, also that there is no trade or that it is infeasible:
the command ends in 0. Bad input ends it in 2. `verify` ends in 1 where an outcome is not
confirmed.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from node.cli.exits import DONE, FAILED
from node.cli.invocation import Invocation, on_node
from node.protocol.errors import LocalProtocolError

if TYPE_CHECKING:
    from broker_node.mechanisms.base import Mechanism, Outcome

STANDARD_INPUT: Final = Path("-")
MAX_BYTES: Final = 64 << 20
"""A market of 2,048 buyers, 400 sellers and 3 types has some 50 million bytes."""
MAX_DEPTH: Final = 100
_BRACKETS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
"""A string, also one that never ends, or a bracket outside of any."""
_ENTRIES_SHOWN: Final = 8
_REFUSED: Final = "refused"
_UNSOLVED: Final = "unsolved"
"""Of a case of a batch that a solver failed on: no outcome, and none that `verify` confirms."""
_Place: TypeAlias = "tuple[()] | tuple[_Place, str | int]"
"""A key in an object or an index in a list, after the place of that; none for the whole."""
_file = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


class Constant(float):
    """A NaN or an infinity, which JSON does not have, as it was written."""

    def __new__(cls, written: str) -> Constant:
        made = super().__new__(cls, written)
        made.written = written
        return made

    written: str

    def __str__(self) -> str:
        return self.written


class MarketFileError(LocalProtocolError):
    """A file is not one of markets or outcomes; names the file and what is wrong in it."""


@click.group()
def mechanism() -> None:
    """Clear and check markets by the papers' mechanisms."""


@mechanism.command("list")
@on_node
def mechanism_list(node: Invocation) -> None:
    """Name the mechanisms, what each is and claims, and the keys of its markets and outcomes."""
    from broker_node.mechanisms.keys import KEYS
    from broker_node.mechanisms.registry import MECHANISMS

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "summary": (type(found).__doc__ or "").split("\n", maxsplit=1)[0],
            "claims": sorted(claim.value for claim in found.claims),
            "keys": asdict(KEYS[name]),
        }
        for name, found in MECHANISMS.items()
    ]
    if node.json_output:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']:15}  {row['summary']}")
        click.echo(f"{'':15}  claims: {', '.join(row['claims']) or 'nothing'}")
        for part, keys in row["keys"].items():
            click.echo(f"{'':15}  {part}: {', '.join(keys) or 'none'}")


@mechanism.command("clear")
@click.argument("name")
@click.argument("market", type=_file)
@click.option("--tolerance", type=float, default=None, help="of solvers (default: 1e-9)")
@on_node
def mechanism_clear(node: Invocation, name: str, market: Path, tolerance: float | None) -> None:
    """Clear MARKET, a JSON file (- for standard input), by the mechanism NAME.

    The file is one market, or {"cases": [market, …]}; `mechanism list` prints the keys of each
    mechanism, and docs/mechanisms.md says what they mean. The answer is an outcome, or
    {"outcomes": [outcome, …]} in the same order.
    """
    chosen = _named(name)
    tolerance, seed = _tolerance(tolerance), _seed(node)
    document = read_json(market)
    batch = _batch(document, "cases")
    if batch is None:
        _tell(node, _cleared(chosen, document, tolerance, seed).to_json())
        return
    told = [_cleared_in_place(chosen, case, tolerance, seed) for case in batch]
    if node.json_output:
        _echo_json({"outcomes": told})
        return
    for index, outcome in enumerate(told):
        click.echo(f"case {index}")
        _tell(node, outcome)


@mechanism.command("verify")
@click.argument("name")
@click.argument("market", type=_file)
@click.argument("outcome", type=_file)
@on_node
def mechanism_verify(node: Invocation, name: str, market: Path, outcome: Path) -> int:
    """Check OUTCOME against MARKET, from the inputs alone; both are files that `clear` knows.

    Ends in 0 where every figure of the certificate is within its tolerance, else in 1.
    """
    chosen = _named(name)
    if market == outcome == STANDARD_INPUT:
        raise click.UsageError("MARKET and OUTCOME cannot both be standard input")
    asked, answered = read_json(market), read_json(outcome)
    cases, outcomes = _batch(asked, "cases"), _batch(answered, "outcomes")
    if (cases is None) != (outcomes is None):
        raise MarketFileError(f"{market} and {outcome} must both be batches, or neither")
    if cases is None or outcomes is None:
        certificate = _verified(chosen, asked, answered)
        _tell(node, certificate)
        return DONE if certificate["valid"] else FAILED
    if len(cases) != len(outcomes):
        raise MarketFileError(f"outcomes: there are {len(outcomes)} of {len(cases)} cases")
    certificates = [
        _verified_in_place(chosen, case, answer)
        for case, answer in zip(cases, outcomes, strict=True)
    ]
    if node.json_output:
        _echo_json({"certificates": certificates})
    else:
        for index, certificate in enumerate(certificates):
            click.echo(f"case {index}")
            _tell(node, certificate)
    return DONE if all(certificate["valid"] for certificate in certificates) else FAILED


# ── the mechanisms ──


def _named(name: str) -> Mechanism:
    from broker_node.mechanisms.registry import MECHANISMS

    if name not in MECHANISMS:
        known = ", ".join(MECHANISMS)
        raise click.BadParameter(f"no mechanism {name!r}; there are {known}", param_hint="NAME")
    return MECHANISMS[name]


def _cleared(chosen: Mechanism, market: Any, tolerance: float, seed: int) -> Outcome:
    """Return the outcome of one case. Raises `RefusedInputError`."""
    return chosen.clear(_object(market, "market"), tolerance=tolerance, seed=seed)


def _cleared_in_place(
    chosen: Mechanism, market: Any, tolerance: float, seed: int
) -> Mapping[str, Any]:
    """Return the outcome of one case of a batch, or why it has none."""
    from broker_node.mechanisms.base import RefusedInputError
    from broker_node.mechanisms.weight_market.linear import SolverError

    try:
        return _cleared(chosen, market, tolerance, seed).to_json()
    except RefusedInputError as refused:
        return {"status": _REFUSED, "field": refused.field, "reason": refused.reason}
    except SolverError as unsolved:
        return {"status": _UNSOLVED, "reason": str(unsolved)}


def _verified(chosen: Mechanism, market: Any, answer: Any) -> dict[str, Any]:
    """Return the certificate of one case; a refusal is right where the input is refused so."""
    from broker_node.mechanisms.base import (
        DEFAULT_TOLERANCE,
        Certificate,
        Issue,
        Outcome,
        RefusedInputError,
        Status,
    )

    told = dict(_object(answer, "outcome"))
    status = told.pop("status", None)
    try:
        refusals = chosen.validate(_object(market, "market"))
    except RefusedInputError as refused:
        refusals = [Issue(field=refused.field, reason=refused.reason)]
    if status == _REFUSED:
        right = told.get("field") in [issue.field for issue in refusals]
        certificate = Certificate(
            violations={"refusal": 0.0 if right else 1.0}, tolerance=DEFAULT_TOLERANCE
        )
    else:
        for issue in refusals:
            raise RefusedInputError(issue.field, issue.reason)
        if status not in [known.value for known in Status]:
            raise RefusedInputError("status", f"is none of an outcome: {status!r:.40}")
        certificate = chosen.verify(market, Outcome(status=Status(status), values=told))
    return {
        "valid": certificate.valid,
        "tolerance": certificate.tolerance,
        "violations": dict(certificate.violations),
    }


def _verified_in_place(chosen: Mechanism, market: Any, answer: Any) -> dict[str, Any]:
    from broker_node.mechanisms.base import RefusedInputError

    try:
        return _verified(chosen, market, answer)
    except RefusedInputError as refused:
        return {"valid": False, "field": refused.field, "reason": refused.reason}


def _object(value: Any, field: str) -> dict[str, Any]:
    """Return a JSON object. Raises `RefusedInputError` for what is none, and for a NaN in it."""
    from broker_node.mechanisms.base import RefusedInputError

    if not isinstance(value, dict):
        raise RefusedInputError(field, f"must be an object, got {value!r:.40}")
    constant = _constant_in(value)
    if constant is not None:
        place, written = constant
        raise RefusedInputError(place, f"must be finite, got {written}")
    return value


def _constant_in(value: dict[str, Any]) -> tuple[str, Constant] | None:
    """Return a NaN or an infinity that an object was written with, and its place in it."""
    level: list[tuple[_Place, Any]] = [((), value)]
    while level:
        below: list[tuple[_Place, Any]] = []
        for place, container in level:
            keyed = container.items() if isinstance(container, dict) else enumerate(container)
            for key, child in keyed:
                if isinstance(child, Constant):
                    return _name_of((place, key)), child
                if isinstance(child, list | dict):
                    below.append(((place, key), child))
        level = below
    return None


def _name_of(place: _Place) -> str:
    """Return the name of an entry, ``prior.samples[3]``."""
    keys: list[str | int] = []
    while place:
        place, key = place
        keys.append(key)
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key:.40}" for key in keys[::-1])
    return name.removeprefix(".")


def _tolerance(given: float | None) -> float:
    from broker_node.mechanisms.base import DEFAULT_TOLERANCE

    if given is None:
        return DEFAULT_TOLERANCE
    if not 0 < given < 1:
        raise click.BadParameter(f"must be over 0 and under 1, got {given}", param_hint="tolerance")
    return given


def _seed(node: Invocation) -> int:
    said = node.flags.get("seed")
    if said is None:
        return 0
    if not str(said).isdecimal():
        raise click.BadParameter(f"must be a whole number, got {said}", param_hint="seed")
    return int(str(said))


# ── files ──


def read_json(source: Path) -> Any:
    """Return what a file or standard input holds. Raises `MarketFileError` in one line."""
    try:
        if source == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with source.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MarketFileError(f"cannot read {source}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise MarketFileError(f"{source} has more than {MAX_BYTES} bytes")
    if _depth(data) > MAX_DEPTH:
        raise MarketFileError(f"{source} is nested over {MAX_DEPTH} deep")
    try:
        document: Any = json.loads(
            data.decode(), object_pairs_hook=_without_repeats, parse_constant=Constant
        )
    except UnicodeDecodeError as error:
        raise MarketFileError(f"{source} is not UTF-8: {error.reason}") from error
    except ValueError as error:  # also of an integer with thousands of digits
        raise MarketFileError(f"{source} is not JSON: {str(error).partition(';')[0]}") from error
    return document


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        twice, times = Counter(key for key, _ in pairs).most_common(1)[0]
        raise MarketFileError(f"{twice:.40}: is given {times} times in one object")
    return read


def _depth(data: bytes) -> int:
    """Return how deep lists and objects stand in each other, once it is over `MAX_DEPTH`.

    Before parsing: where a library has raised the limit of recursion, the parser would end
    the process.
    """
    depth = deepest = 0
    for found in _BRACKETS.finditer(data):
        bracket = data[found.start()]
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif bracket in b"]}":
            depth -= 1
    return deepest


def _batch(document: Any, key: str) -> list[Any] | None:
    """Return the cases of a batch, None where the document is a single one."""
    if not isinstance(document, dict) or key not in document:
        return None
    if len(document) != 1:
        other = next(name for name in document if name != key)
        raise MarketFileError(f"{other}: is not a key of a batch, which has {key} alone")
    cases = document[key]
    if not isinstance(cases, list):
        raise MarketFileError(f"{key}: must be a list, got {cases!r:.40}")
    return cases


# ── what is told ──


def _tell(node: Invocation, told: Mapping[str, Any]) -> None:
    if node.json_output:
        _echo_json(told)
        return
    for name, value in told.items():
        click.echo(f"{name:18}  {_shown(value)}")


def _echo_json(told: Mapping[str, Any]) -> None:
    """Print one JSON value on one line; numbers that are not finite are null."""
    try:
        text = json.dumps(told, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(told), allow_nan=False)
    click.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    return value


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > _ENTRIES_SHOWN:
        return f"{json.dumps(value[:_ENTRIES_SHOWN])[:-1]}, … {len(value)} in all]"
    return json.dumps(_finite(value))
