"""The page of the contracts: all that they show to others, with the notes of the sources."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from contracts import load_artifact
from scripts import document_contracts as script
from scripts.compile_contracts import OURS, MissingToolError

MADE: dict[str, Any] = {
    "abi": [
        {"type": "constructor", "inputs": [{"name": "least", "type": "uint256"}]},
        {
            "type": "function", "name": "pay", "stateMutability": "payable",
            "inputs": [{"name": "to", "type": "address", "internalType": "contract Shop"}],
            "outputs": [{"name": "", "type": "uint8", "internalType": "enum Shop.State"}],
        },
        {
            "type": "event", "name": "Payment",
            "inputs": [{"name": "to", "type": "address", "indexed": True}],
        },
        {
            "type": "error", "name": "Shut",
            "inputs": [
                {"name": "hours", "type": "tuple", "internalType": "struct Hours",
                 "components": [{"name": "from", "type": "uint64"}]}
            ],
        },
    ],
    "userdoc": {
        "methods": {"pay(address)": {"notice": "Pays."}},
        "events": {"Payment(address)": {"notice": "Somebody paid."}},
        "errors": {"Shut((uint64))": [{"notice": "It is closed."}, {"notice": "Or was."}]},
    },
    "devdoc": {"methods": {"pay(address)": {"params": {"to": "who gets it"}}}},
}  # fmt: skip
KINDS = {"function": "methods", "event": "events", "error": "errors"}


def ours() -> script.Sources:
    """Sources in which everything of `MADE` is ours."""
    found = script.Sources()
    for entry in MADE["abi"][1:]:
        digest = keccak(script.signature(entry).encode())
        found.selectors.add(digest.hex() if entry["type"] == "event" else digest[:4].hex())
    found.contracts["Shop"] = "@title A shop\n@notice Sells.\n    in ──► out\nDaily."
    return found


def entry_of(kind: str) -> dict[str, Any]:
    return next(dict(entry) for entry in MADE["abi"] if entry["type"] == kind)


def test_the_page_is_what_the_sources_say() -> None:
    try:
        page = script.page(*script.analysed())
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    assert page == script.PAGE.read_bytes()


def test_every_function_event_and_error_of_every_contract_is_on_the_page() -> None:
    chapters = script.PAGE.read_text().split("\n## ")[1:]
    told = {chapter.splitlines()[0]: chapter for chapter in chapters}
    for name in OURS:
        for entry in load_artifact(name).abi:
            if entry["type"] == "constructor":
                continue
            assert f"**`{entry['name']}`** `({script.members(entry['inputs'])})`" in told[name]


def test_a_chapter_has_what_is_called_seen_and_caught() -> None:
    chapter = script.chapter("Shop", MADE, ours())
    for told in (
        "Sells.\n\n```\nin ──► out\n```\n\nDaily.",
        "Deployed with `(uint256 least)`.",
        "### Shop: calls\n\n**`pay`** `(address to)` → `(Shop.State)` payable · `0x",
        "0c11dedd`\\\nPays.",
        "- `to`: who gets it",
        "**`Payment`** `(address indexed to)`\\\nSomebody paid.",
        "### Shop: errors\n\n**`Shut`** `(Hours hours)` · `0x",
        "It is closed. Or was.",
    ):
        assert told in chapter, told


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_note_is_not_documented(kind: str) -> None:
    made = copy.deepcopy(MADE)
    made["userdoc"][KINDS[kind]].clear()
    with pytest.raises(script.UndocumentedError, match=f"Shop: {kind} .* has no @notice"):
        script.described("Shop", entry_of(kind), made, ours())


def test_what_the_library_adds_has_its_own_note_or_says_whose_it_is() -> None:
    made, nobodys = copy.deepcopy(MADE), script.Sources()
    made["userdoc"]["errors"].clear()
    assert script.FOREIGN in script.described("Shop", entry_of("error"), made, nobodys)
    made["devdoc"]["errors"] = {"Shut((uint64))": [{"details": "Closed for good."}]}
    assert "Closed for good." in script.described("Shop", entry_of("error"), made, nobodys)


def test_a_page_that_differs_by_a_byte_is_stale_and_written_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "page.md"
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PAGE", path)
    monkeypatch.setattr(script, "analysed", lambda engine: ({}, script.Sources()))
    monkeypatch.setattr(script, "page", lambda made, found: b"page\n")
    assert script.main(["--check"]) == 1
    path.write_bytes(b"pagE\n")
    assert script.main(["--check"]) == 1
    assert "stale: page.md" in capsys.readouterr().out
    assert path.read_bytes() == b"pagE\n"
    assert script.main([]) == 0
    assert path.read_bytes() == b"page\n"
    assert script.main(["--check"]) == 0


def test_a_page_that_cannot_be_made_is_neither_written_nor_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(made: Any, found: Any) -> bytes:
        raise script.UndocumentedError("Shop: error Shut() has no @notice")

    monkeypatch.setattr(script, "analysed", lambda engine: ({}, script.Sources()))
    monkeypatch.setattr(script, "page", page)
    assert script.main(["--check"]) == 2
    assert "not documented: Shop: error Shut()" in capsys.readouterr().err
