#!/usr/bin/env python3
"""Write docs/contracts.md from the NatSpec in the Solidity sources.

    scripts/document_contracts.py            write the page
    scripts/document_contracts.py --check    fail unless every byte of it is as generated

Every function, event and error that a contract shows to others, and every type that they take,
is on the page with its note, or nothing is written: one of ours without a note is an error. Notes
are those that the compiler gives out for users (`@notice`); what the library adds has its own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from eth_hash.auto import keccak

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.compile_contracts import (  # noqa: E402  (the path above comes first)
    OURS,
    SETTINGS,
    CompilationError,
    MissingToolError,
    engines,
    install,
    run_solc,
    source_closure,
)

PAGE: Final = ROOT / "docs" / "contracts.md"
HEAD: Final = """\
# The contracts, call by call

Generated from the sources' NatSpec by `scripts/document_contracts.py`; `make lint` compares it.
What the contracts rest on, and cannot do, is in [SECURITY.md](SECURITY.md); why they
are never changed is in [ADR 9](adr/0009-contracts-are-replaced-never-changed.md).

Behind each call and each error stands its selector. Zero stands for ETH where an asset is named.
"""
VIEWS: Final = ("view", "pure")
FOREIGN: Final = "Of OpenZeppelin's library."
_DRAWING: Final = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_TAG: Final = re.compile(r"^@(\w+) ?", re.MULTILINE)


class UndocumentedError(Exception):
    """Something that others can call, see or catch has no note."""


@dataclass
class Sources:
    """What the syntax trees of our own sources say."""

    selectors: set[str] = field(default_factory=set)
    """Of every function, event and error that is ours."""
    contracts: dict[str, str] = field(default_factory=dict)
    """The text above each contract, library and interface."""
    types: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Structs and enums by name, as the ABI names them."""


def analysed(engine: str | None = None) -> tuple[dict[str, dict[str, Any]], Sources]:
    """Have the compiler read the sources; return what it says of each contract of ours.

    Raises `CompilationError`, and `MissingToolError` where there is no compiler.
    """
    install()
    here = engines()
    if not here:
        raise MissingToolError("neither node nor the Python package mini-racer is there")
    files = {name: f"contracts/src/{name}.sol" for name in OURS}
    sources = source_closure(list(files.values()))
    wanted: dict[str, Any] = {name: {"": ["ast"]} for name in sources if not name.startswith("@")}
    for name in files.values():
        wanted[name]["*"] = ["abi", "devdoc", "userdoc"]
    request = {
        "language": "Solidity",
        "sources": {name: {"content": data.decode()} for name, data in sources.items()},
        "settings": {**SETTINGS, "outputSelection": wanted},
    }
    output = json.loads(run_solc(json.dumps(request), engine or here[0]))
    if complaints := [error["formattedMessage"] for error in output.get("errors", [])]:
        raise CompilationError("\n".join(complaints))
    found = Sources()
    for name in wanted:
        for node in nodes(output["sources"][name]["ast"]):
            note_down(node, found)
    return {name: output["contracts"][file][name] for name, file in files.items()}, found


def nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Return each node of a syntax tree."""
    if isinstance(tree, dict):
        yield tree
        for below in tree.values():
            yield from nodes(below)
    elif isinstance(tree, list):
        for below in tree:
            yield from nodes(below)


def note_down(node: dict[str, Any], found: Sources) -> None:
    """Keep what a node of a syntax tree says."""
    for kind in ("functionSelector", "eventSelector", "errorSelector"):
        if kind in node:
            found.selectors.add(node[kind])
    match node.get("nodeType"):
        case "ContractDefinition":
            found.contracts[node["name"]] = text_of(node)
        case "StructDefinition" | "EnumDefinition":
            found.types[node["canonicalName"]] = node


def text_of(node: dict[str, Any]) -> str:
    """Return the NatSpec of a node, its lines as they were."""
    documentation = node.get("documentation")
    text = documentation["text"] if isinstance(documentation, dict) else documentation or ""
    return "\n".join(line.removeprefix(" ").rstrip() for line in text.splitlines())


def tags_of(text: str) -> dict[str, str]:
    """Return NatSpec by tag; `param x` for each parameter."""
    tags: dict[str, str] = {}
    if not (marks := [*_TAG.finditer(text)]):
        return tags
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
        name, body = mark[1], text[mark.end() : end].strip("\n")
        if name == "param":
            parameter, _, body = body.partition(" ")
            name = f"param {parameter}"
        tags[name] = body
    return tags


# ── one entry of an ABI ──


def shown_type(member: dict[str, Any]) -> str:
    """Return a type as a reader of the sources knows it."""
    internal, kind = str(member.get("internalType", member["type"])), str(member["type"])
    word, _, name = internal.partition(" ")
    return name if word in {"struct", "enum"} else kind


def bare_type(member: dict[str, Any]) -> str:
    """Return a type as it stands in a signature."""
    kind = str(member["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(map(bare_type, member['components']))}){kind[len('tuple') :]}"


def members(listed: Sequence[dict[str, Any]]) -> str:
    """Return parameters with their types."""
    return ", ".join(
        " ".join(
            filter(
                None,
                (shown_type(one), "indexed" if one.get("indexed") else "", one.get("name", "")),
            )
        )
        for one in listed
    )


def signature(entry: dict[str, Any]) -> str:
    """Return the signature that the selector is a hash of."""
    return f"{entry['name']}({','.join(map(bare_type, entry['inputs']))})"


def described(contract: str, entry: dict[str, Any], made: dict[str, Any], found: Sources) -> str:
    """Return one entry of the ABI as a paragraph. Raises `UndocumentedError`."""
    group = {"function": "methods", "event": "events", "error": "errors"}[entry["type"]]
    key = signature(entry)
    selector = keccak(key.encode())
    ours = selector.hex() in found.selectors or selector[:4].hex() in found.selectors
    users, developers = (
        merged(made[kind].get(group, {}).get(key)) for kind in ("userdoc", "devdoc")
    )
    notes = users.get("notice", [])
    if not notes and ours:
        raise UndocumentedError(f"{contract}: {entry['type']} {key} has no @notice")
    notes = notes or developers.get("details", []) or [FOREIGN]
    head = f"**`{entry['name']}`** `({members(entry['inputs'])})`"
    if outputs := entry.get("outputs"):
        head += f" → `({members(outputs)})`"
    if entry.get("stateMutability") == "payable":
        head += " payable"
    if entry["type"] != "event":
        head += f" · `0x{selector[:4].hex()}`"
    lines = [head + "\\", " ".join(" ".join(notes).split())]
    for kind in ("params", "returns"):
        for values in developers.get(kind, []):
            said = [one["name"] for one in entry["inputs"] if one["name"] in values]
            names = (*said, *sorted(values.keys() - set(said)))
            lines += [f"- `{name}`: {' '.join(values[name].split())}" for name in names]
    return "\n".join(lines)


def merged(documented: Any) -> dict[str, list[Any]]:
    """Return documentation by tag; of an error there may be several, from several sources."""
    every = documented if isinstance(documented, list) else [documented or {}]
    tags: dict[str, list[Any]] = {}
    for one in every:
        for tag, value in one.items():
            if value not in tags.setdefault(tag, []):
                tags[tag].append(value)
    return tags


# ── the page ──


def fenced(text: str) -> str:
    """Return a text with its drawings, which are indented, as blocks of code."""
    return _DRAWING.sub(
        lambda drawn: f"\n```\n{textwrap.dedent(drawn[0])}```\n\n", text + "\n"
    ).strip()


def chapter(contract: str, made: dict[str, Any], found: Sources) -> str:
    """Return all of one contract."""
    abi = made["abi"]
    parts = [f"## {contract}"]
    for name in (f"I{contract}", contract):
        tags = tags_of(found.contracts.get(name, ""))
        parts += [fenced(tags[tag]) for tag in ("notice", "dev") if tags.get(tag)]
    for entry in abi:
        if entry["type"] == "constructor" and entry["inputs"]:
            parts.append(f"Deployed with `({members(entry['inputs'])})`.")
    functions = [entry for entry in abi if entry["type"] == "function"]
    for title, entries in (
        ("Calls", [one for one in functions if one["stateMutability"] not in VIEWS]),
        ("Questions", [one for one in functions if one["stateMutability"] in VIEWS]),
        ("Events", [entry for entry in abi if entry["type"] == "event"]),
        ("Errors", [entry for entry in abi if entry["type"] == "error"]),
    ):
        if entries:
            parts.append(f"### {contract}: {title.lower()}")
            parts += [described(contract, entry, made, found) for entry in entries]
    return "\n\n".join(parts)


def mentioned(abis: Sequence[dict[str, Any]]) -> list[str]:
    """Return the structs and enums that are named in ABIs, in order."""
    named = set()
    for entry in nodes(list(abis)):
        word, _, name = str(entry.get("internalType", "")).partition(" ")
        if word in {"struct", "enum"}:
            named.add(re.sub(r"(\[\d*\])+$", "", name))
    return sorted(named)


def type_described(name: str, node: dict[str, Any]) -> str:
    """Return a struct with its members, or an enum with its values."""
    tags = tags_of(text_of(node))
    note = tags.get("notice") or tags.get("dev") or ""
    parts = [f"### {name}", *([" ".join(note.split())] if note else [])]
    if node["nodeType"] == "EnumDefinition":
        values = (f"{number} {one['name']}" for number, one in enumerate(node["members"]))
        parts.append(f"One of {', '.join(values)}.")
        return "\n\n".join(parts)
    rows = ["| member | type | |", "|---|---|---|"]
    for member in node["members"]:
        kind = member["typeDescriptions"]["typeString"].removeprefix("struct ")
        what = " ".join(tags.get(f"param {member['name']}", "").split())
        rows.append(f"| `{member['name']}` | `{kind}` | {what} |")
    return "\n\n".join((*parts, "\n".join(rows)))


def page(made: dict[str, dict[str, Any]], found: Sources) -> bytes:
    """Return the page. Raises `UndocumentedError`."""
    chapters = [chapter(name, made[name], found) for name in OURS]
    names = mentioned([entry for one in made.values() for entry in one["abi"]])
    types = ["## Types", *(type_described(name, found.types[name]) for name in names)]
    return ("\n\n".join([HEAD.rstrip(), *chapters, *types]) + "\n").encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is well, 1 if the page is stale, 2 if it cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, compare bytes")
    parser.add_argument("--engine", choices=("node", "mini-racer"), help="what runs the compiler")
    options = parser.parse_args(arguments)
    try:
        wanted = page(*analysed(options.engine))
    except (CompilationError, UndocumentedError) as error:
        print(f"not documented: {error}", file=sys.stderr)
        return 2
    name = PAGE.relative_to(ROOT)
    if PAGE.is_file() and PAGE.read_bytes() == wanted:
        print(f"{name} is as generated")
        return 0
    if options.check:
        print(f"stale: {name} (run scripts/document_contracts.py)")
        return 1
    PAGE.write_bytes(wanted)
    print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
