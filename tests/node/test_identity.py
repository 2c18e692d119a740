"""Keys: made once, kept private, opened only by whoever may."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from node.identity import (
    AccountKey,
    CorruptKeyError,
    ExposedKeyError,
    IdentityError,
    KeyExistsError,
    MissingKeyError,
    PasswordError,
    PeerKey,
    WrongPasswordError,
    create_account,
    create_peer_key,
    import_account,
    import_keystore,
    list_accounts,
    load_account,
    load_or_create_peer_key,
    load_peer_key,
    open_account,
    read_password,
    seal_account,
)
from node.protocol.signing import peer_verify

# The Web3 Secret Storage definition's own scrypt and pbkdf2 vectors: password "testpassword".
VECTOR_KEY = bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")
PBKDF2_VECTOR = """{"crypto": {"cipher": "aes-128-ctr",
  "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
  "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
  "kdf": "pbkdf2", "kdfparams": {"c": 262144, "dklen": 32, "prf": "hmac-sha256",
    "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
  "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},
 "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3}"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dev_account(keystore: Path, password: str = "correct horse") -> AccountKey:
    keystore.mkdir(exist_ok=True)
    return create_account(keystore, password, development=True)


# ------------------------------------------------------------------------- the peer key


def test_a_peer_key_survives_a_restart(tmp_path: Path) -> None:
    made = create_peer_key(tmp_path / "peer.key")
    assert load_peer_key(tmp_path / "peer.key") == made


def test_a_peer_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    create_peer_key(tmp_path / "peer.key")
    assert mode_of(tmp_path / "peer.key") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["peer.key"]


def test_the_peer_id_is_the_one_that_libp2p_derives() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    seed = bytes(range(32))
    pair = create_new_key_pair(seed)
    assert PeerKey(seed).peer_id == str(ID.from_pubkey(pair.public_key))
    assert PeerKey(seed).peer_id.startswith("12D3Koo")


def test_a_signature_names_its_peer() -> None:
    key = PeerKey(b"\7" * 32)
    peer_verify(key.peer_id, b"hello", key.sign(b"hello"))


def test_an_existing_peer_key_is_never_overwritten(tmp_path: Path) -> None:
    made = create_peer_key(tmp_path / "peer.key")
    with pytest.raises(KeyExistsError):
        create_peer_key(tmp_path / "peer.key")
    assert load_peer_key(tmp_path / "peer.key") == made
    assert [path.name for path in tmp_path.iterdir()] == ["peer.key"]


def test_a_missing_peer_key_is_made_once(tmp_path: Path) -> None:
    first = load_or_create_peer_key(tmp_path / "peer.key")
    assert load_or_create_peer_key(tmp_path / "peer.key") == first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_could_touch_is_refused(tmp_path: Path, mode: int) -> None:
    create_peer_key(tmp_path / "peer.key")
    (tmp_path / "peer.key").chmod(mode)
    with pytest.raises(ExposedKeyError, match=f"{mode:04o}"):
        load_peer_key(tmp_path / "peer.key")


def test_another_kind_of_key_is_no_peer_key(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "peer.key").write_bytes(pem)
    (tmp_path / "peer.key").chmod(0o600)
    with pytest.raises(CorruptKeyError, match="another kind"):
        load_peer_key(tmp_path / "peer.key")


@given(junk=st.binary(max_size=400))
@settings(max_examples=30)
def test_junk_in_the_key_file_is_named_corrupt(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("junk") / "peer.key"
    path.write_bytes(junk)
    path.chmod(0o600)
    with pytest.raises(CorruptKeyError):
        load_peer_key(path)


def test_a_half_written_key_file_is_named_corrupt(tmp_path: Path) -> None:
    create_peer_key(tmp_path / "peer.key")
    whole = (tmp_path / "peer.key").read_bytes()
    (tmp_path / "peer.key").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptKeyError):
        load_peer_key(tmp_path / "peer.key")


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(CorruptKeyError, match=str(length)):
        PeerKey(bytes(length))


def test_secrets_do_not_show_when_printed() -> None:
    assert "abab" not in repr(PeerKey(b"\xab" * 32))
    assert "abab" not in repr(AccountKey(b"\xab" * 32))


# -------------------------------------------------------------------------- the account


def test_an_account_survives_a_restart(tmp_path: Path) -> None:
    made = dev_account(tmp_path / "keystore")
    assert load_account(tmp_path / "keystore", "correct horse") == made
    assert mode_of(tmp_path / "keystore" / f"{made.address}.json") == 0o600


def test_the_wrong_password_is_named(tmp_path: Path) -> None:
    dev_account(tmp_path / "keystore")
    with pytest.raises(WrongPasswordError):
        load_account(tmp_path / "keystore", "battery staple")


def test_other_wallets_open_our_keystore(tmp_path: Path) -> None:
    made = dev_account(tmp_path / "keystore")
    document = (tmp_path / "keystore" / f"{made.address}.json").read_text()
    assert Account.decrypt(document, "correct horse") == made.private_key


def test_we_open_the_keystores_of_other_wallets(tmp_path: Path) -> None:
    account = import_keystore(tmp_path, PBKDF2_VECTOR, "testpassword")
    assert account.private_key == VECTOR_KEY
    assert load_account(tmp_path, "testpassword", account.address) == account


def test_an_exported_account_opens_under_its_new_password(tmp_path: Path) -> None:
    made = dev_account(tmp_path / "keystore")
    exported = seal_account(made, "another one", development=True)
    assert open_account(exported, "another one").private_key == made.private_key


def test_only_a_development_account_uses_the_light_derivation(tmp_path: Path) -> None:
    made = create_account(tmp_path, "correct horse")
    parameters = json.loads((tmp_path / f"{made.address}.json").read_text())["crypto"]["kdfparams"]
    assert parameters["n"] == 2**18
    assert not load_account(tmp_path, "correct horse").development
    light = json.loads(seal_account(made, "x", development=True))
    assert light["crypto"]["kdfparams"]["n"] == 2**10
    assert open_account(json.dumps(light), "x").development


def test_the_only_account_needs_no_name_but_one_of_two_does(tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError, match="none"):
        load_account(tmp_path, "correct horse")
    first = dev_account(tmp_path)
    assert load_account(tmp_path, "correct horse") == first
    second = dev_account(tmp_path)
    assert set(list_accounts(tmp_path)) == {first.address, second.address}
    with pytest.raises(MissingKeyError, match="expected one"):
        load_account(tmp_path, "correct horse")
    assert load_account(tmp_path, "correct horse", second.address) == second


def test_importing_an_account_twice_keeps_the_first_file(tmp_path: Path) -> None:
    key = b"\x11" * 32
    import_account(tmp_path, key, "first", development=True)
    with pytest.raises(KeyExistsError):
        import_account(tmp_path, key, "second", development=True)
    assert load_account(tmp_path, "first").private_key == key


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, b"\1" * 31, b""])
def test_bytes_that_are_no_private_key_are_refused(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(CorruptKeyError):
        import_account(tmp_path, key, "x", development=True)
    assert list(tmp_path.iterdir()) == []


def _mutated(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(seal_account(AccountKey(b"\x22" * 32), "x", development=True))
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"version": 3}',
        "[" * 100_000,
        _mutated(lambda d: d.update(version=4)),
        _mutated(lambda d: d["crypto"].pop("ciphertext")),
        _mutated(lambda d: d["crypto"].update(ciphertext="zz")),
        _mutated(lambda d: d["crypto"].update(mac=None)),
        _mutated(lambda d: d["crypto"].update(cipher="rot13")),
        _mutated(lambda d: d["crypto"].update(kdf="md5")),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(n=2**40)),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(n=1_000)),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(r=2**30)),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(dklen=1)),
        _mutated(lambda d: d["crypto"]["kdfparams"].pop("salt")),
        _mutated(lambda d: d.update(address="00" * 20)),
    ],
)
def test_a_garbled_keystore_is_named_corrupt(document: str) -> None:
    with pytest.raises(CorruptKeyError):
        open_account(document, "x")


@pytest.mark.parametrize(
    "document",
    [
        PBKDF2_VECTOR.replace("262144", str(2**62)),
        PBKDF2_VECTOR.replace("262144", "0"),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(n=2**40)),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(r=2**30)),
        _mutated(lambda d: d["crypto"]["kdfparams"].update(p=2**20)),
    ],
)
def test_a_keystore_that_asks_for_years_of_work_is_refused(document: str) -> None:
    with pytest.raises(CorruptKeyError, match="unreasonable"):
        open_account(document, "testpassword")


def test_a_keystore_under_another_accounts_name_is_refused(tmp_path: Path) -> None:
    first, second = dev_account(tmp_path), dev_account(tmp_path)
    (tmp_path / f"{first.address}.json").replace(tmp_path / f"{second.address}.json")
    with pytest.raises(CorruptKeyError):
        load_account(tmp_path, "correct horse", second.address)


# ------------------------------------------------------------------------- the password


def test_a_password_is_the_first_line_of_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse \r\nrest\n")
    file.chmod(0o600)
    assert read_password(file) == "correct horse "
    file.chmod(0o644)
    with pytest.raises(ExposedKeyError):
        read_password(file)


def test_a_password_comes_from_a_stream() -> None:
    assert read_password(io.StringIO("correct horse\n")) == "correct horse"


@pytest.mark.parametrize("text", ["", "\n", "x" * 5_000])
def test_no_password_is_an_error_and_not_an_empty_one(text: str) -> None:
    with pytest.raises(PasswordError):
        read_password(io.StringIO(text))


def test_every_error_of_this_module_can_be_caught_by_one_name(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=str(tmp_path)):
        read_password(tmp_path / "nowhere")
