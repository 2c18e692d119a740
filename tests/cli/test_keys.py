"""An operator's keys: made once, brought in, handed out, never shown and never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.identity import AccountKey, load_account, open_account, seal_account
from tests.cli.conftest import PASSWORD, Command, private_file

KEY = bytes(range(1, 33))
ACCOUNT = AccountKey(KEY).address
SEALED = seal_account(AccountKey(KEY), PASSWORD, development=True)


@pytest.fixture
def imported(pm_node: Command, home: Path, tmp_path: Path, password_file: Path) -> Path:
    """A data directory with the account of `KEY`."""
    source = private_file(tmp_path / "key.json", SEALED)
    words = ("--data-dir", home, "--password-file", password_file)
    assert pm_node("keys", "import", source, *words).code == 0
    return home


def test_new_keys_open_with_their_password_and_are_for_their_owner_alone(
    pm_node: Command, home: Path, password_file: Path
) -> None:
    ran = pm_node(
        *("keys", "new", "--development", "--data-dir", home, "--json"),
        *("--password-file", password_file),
    )
    assert ran.code == 0
    account = ran.json["account"]
    assert load_account(home / "keystore", PASSWORD).address == account
    for file in (home / "keystore" / f"{account}.json", home / "peer.key"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert pm_node("keys", "show", "--data-dir", home, "--json").json == ran.json


def test_a_password_may_come_on_standard_input(pm_node: Command, home: Path) -> None:
    ran = pm_node("keys", "new", "--development", "--data-dir", home, stdin=PASSWORD + "\n")
    assert ran.code == 0
    assert load_account(home / "keystore", PASSWORD).address in ran.out


def test_without_a_terminal_nobody_is_asked_for_a_password(pm_node: Command, home: Path) -> None:
    pm_node("keys", "new", "--data-dir", home).refused(3, "empty", "--password-file")


def test_a_password_is_no_argument(pm_node: Command, home: Path) -> None:
    pm_node("keys", "new", "--data-dir", home, "--password", "x").refused(2, "--password-file")


def test_a_second_account_is_refused_and_the_first_one_kept(
    pm_node: Command, imported: Path, password_file: Path
) -> None:
    words = ("--development", "--data-dir", imported, "--password-file", password_file)
    pm_node("keys", "new", *words).refused(3, ACCOUNT, "move it away")
    assert load_account(imported / "keystore", PASSWORD).private_key == KEY


@pytest.mark.parametrize("text", [KEY.hex(), f"0x{KEY.hex().upper()}\n", f"  {KEY.hex()}\r\n"])
def test_a_key_in_hex_is_brought_in(
    pm_node: Command, home: Path, tmp_path: Path, password_file: Path, text: str
) -> None:
    source = private_file(tmp_path / "key", text)
    ran = pm_node(
        *("keys", "import", source, "--development", "--data-dir", home),
        *("--password-file", password_file),
    )
    assert ran.code == 0
    assert ACCOUNT in ran.out
    assert load_account(home / "keystore", PASSWORD).private_key == KEY


@pytest.mark.parametrize("document", [KEY.hex(), SEALED])
def test_a_key_may_come_on_standard_input_with_its_password_in_a_file(
    pm_node: Command, home: Path, password_file: Path, document: str
) -> None:
    ran = pm_node(
        *("keys", "import", "-", "--development", "--data-dir", home),
        *("--password-file", password_file),
        stdin=document,
    )
    assert ran.code == 0
    assert load_account(home / "keystore", PASSWORD).private_key == KEY


@pytest.mark.parametrize(
    ("text", "mode", "fragments"),
    [
        (KEY.hex(), 0o644, ["0644", "chmod 600"]),
        (KEY.hex()[:-1], 0o600, ["64 hex digits"]),
        ("0" * 64, 0o600, ["secp256k1"]),
        ('{"version": 1}', 0o600, ["version 1"]),
        ("{", 0o600, ["JSON"]),
        ("", 0o600, ["64 hex digits"]),
        ("x" * 70_000, 0o600, ["65536 bytes"]),
    ],
)
def test_what_is_no_good_key_is_not_brought_in(
    pm_node: Command,
    home: Path,
    tmp_path: Path,
    password_file: Path,
    text: str,
    mode: int,
    fragments: list[str],
) -> None:
    source = private_file(tmp_path / "key", text, mode)
    ran = pm_node(
        *("keys", "import", source, "--development", "--data-dir", home),
        *("--password-file", password_file),
    )
    ran.refused(3, *fragments)
    assert not [*home.glob("keystore/*")]


@pytest.mark.parametrize("words", [("export",), ("export", "--raw", "--to", "raw")])
def test_a_wrong_password_opens_nothing(
    pm_node: Command, imported: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(imported)
    ran = pm_node("keys", *words, "--data-dir", imported, stdin="wrong\n")
    ran.refused(3, "does not open", "--password-file")
    assert not (imported / "raw").exists()


def test_a_keystore_with_the_wrong_password_is_not_brought_in(
    pm_node: Command, home: Path, tmp_path: Path
) -> None:
    source = private_file(tmp_path / "key.json", SEALED)
    pm_node("keys", "import", source, "--data-dir", home, stdin="wrong\n").refused(3, "password")
    assert not [*home.glob("keystore/*")]


def test_an_export_is_encrypted_anew_and_never_bare(
    pm_node: Command, imported: Path, tmp_path: Path, password_file: Path
) -> None:
    new = private_file(tmp_path / "new", "another\n")
    ran = pm_node(
        *("keys", "export", "--data-dir", imported, "--password-file", password_file),
        *("--new-password-file", new),
    )
    assert ran.code == 0
    assert KEY.hex() not in ran.out.lower()
    sealed = json.loads(ran.out)["crypto"]
    assert sealed["kdfparams"]["n"] == 2**18
    assert sealed["kdfparams"]["salt"] != json.loads(SEALED)["crypto"]["kdfparams"]["salt"]
    assert open_account(ran.out, "another").private_key == KEY


def test_a_raw_key_goes_to_a_new_file_of_its_owner_alone(
    pm_node: Command, imported: Path, tmp_path: Path, password_file: Path
) -> None:
    target = tmp_path / "raw"
    words = ("keys", "export", "--raw", "--to", target, "--data-dir", imported)
    ran = pm_node(*words, "--password-file", password_file)
    assert ran.code == 0
    assert KEY.hex() not in ran.out
    assert target.read_text() == KEY.hex() + "\n"
    assert target.stat().st_mode & 0o777 == 0o600
    pm_node(*words, "--password-file", password_file).refused(3, "exists and is kept")


def test_keys_of_no_data_directory_are_not_shown(pm_node: Command, home: Path) -> None:
    pm_node("keys", "show", "--data-dir", home).refused(3, str(home), "pm-node init")
    assert not home.exists()


def test_keys_that_are_not_there_yet_are_said_to_be_so(pm_node: Command, home: Path) -> None:
    pm_node("init", "--data-dir", home)
    assert pm_node("keys", "show", "--data-dir", home).out.count("none yet") == 2
    told = pm_node("keys", "show", "--data-dir", home, "--json").json
    assert told["account"] is None
    assert told["peer_id"] is None
