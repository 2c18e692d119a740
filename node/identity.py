"""The two identities of a node, each in a file that only its owner can read.

The peer key (Ed25519) names the node on the network, and is a PKCS #8 PEM file. The
account (secp256k1) holds its money, and is a version 3 keystore, as every Ethereum wallet
writes. They are never derived from one another: a lost peer key loses no funds.

A key file appears whole or not at all, and is never overwritten. One that others on the
machine could read is refused, since it has to be taken for a known key.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from eth_keyfile import create_keyfile_json, decode_keyfile_json

from node.protocol import bounded_json
from node.protocol.errors import MarketError
from node.protocol.signing import address_of, peer_id_of, peer_sign
from node.protocol.types import Address, PeerId

SEED_BYTES: Final = 32
PRIVATE_KEY_BYTES: Final = 32
SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SCRYPT_N: Final = 2**18
"""The cost that geth writes: about a second and 256 MiB for each guess."""
DEVELOPMENT_SCRYPT_N: Final = 2**10
"""Milliseconds. For play money only."""
MAX_SCRYPT_MEMORY: Final = 2**30  # 128·n·r bytes: a keystore may not ask for more to be read
MAX_PBKDF2_ROUNDS: Final = 10_000_000
MAX_FILE_BYTES: Final = 64 * 1024
MAX_PASSWORD_BYTES: Final = 4 * 1024


class IdentityError(MarketError):
    """A key cannot be used as it stands; the message says what to do."""


class MissingKeyError(IdentityError):
    """There is no such key file, or more than one to choose from."""


class KeyExistsError(IdentityError):
    """A key file is in the way: keys are never overwritten."""


class ExposedKeyError(IdentityError):
    """Others on this machine can read or replace the file."""


class CorruptKeyError(IdentityError):
    """The file is not what it should be."""


class WrongPasswordError(IdentityError):
    """The password does not open this keystore."""


class PasswordError(IdentityError):
    """No usable password was given."""


@dataclass(frozen=True, slots=True)
class PeerKey:
    """The Ed25519 key of a node on the network."""

    seed: bytes = field(repr=False)
    """32 bytes, secret."""

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise CorruptKeyError(f"an Ed25519 seed is {SEED_BYTES} bytes, got {len(self.seed)}")

    @property
    def public_key(self) -> bytes:
        """Return the 32 bytes that the peer id contains."""
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def peer_id(self) -> PeerId:
        """Return the libp2p id, the base58 identity multihash of the key."""
        return peer_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return peer_sign(self.seed, message)


@dataclass(frozen=True, slots=True)
class AccountKey:
    """The secp256k1 key of an Ethereum account."""

    private_key: bytes = field(repr=False)
    """32 bytes, secret."""
    development: bool = False
    """Whether the keystore uses the light derivation, fit for play money only."""

    def __post_init__(self) -> None:
        if len(self.private_key) != PRIVATE_KEY_BYTES:
            raise CorruptKeyError(
                f"a private key is {PRIVATE_KEY_BYTES} bytes, got {len(self.private_key)}"
            )
        if not 0 < int.from_bytes(self.private_key, "big") < SECP256K1_ORDER:
            raise CorruptKeyError("the private key is outside the order of secp256k1")

    @property
    def address(self) -> Address:
        """Return the account, checksummed."""
        return address_of(self.private_key)


# ------------------------------------------------------------------------- the peer key


def create_peer_key(path: Path) -> PeerKey:
    """Make a new peer key at `path`.

    Raises `KeyExistsError` if there is a file.
    """
    key = PeerKey(secrets.token_bytes(SEED_BYTES))
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(path, pem)
    return key


def load_peer_key(path: Path) -> PeerKey:
    """Read the peer key at `path`.

    Raises `MissingKeyError`, `ExposedKeyError`, or `CorruptKeyError` for anything but an
    Ed25519 key in PKCS #8 PEM without a password.
    """
    data = _read_private(path)
    try:
        private = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise CorruptKeyError(f"{path} is not a PEM private key: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise CorruptKeyError(f"{path} holds another kind of key than Ed25519")
    return PeerKey(private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))


def load_or_create_peer_key(path: Path) -> PeerKey:
    """Read the peer key at `path`, making one if there is none yet."""
    with contextlib.suppress(KeyExistsError):
        if not path.exists():
            return create_peer_key(path)
    return load_peer_key(path)


# -------------------------------------------------------------------------- the account


def create_account(keystore: Path, password: str, *, development: bool = False) -> AccountKey:
    """Make a new account in the folder `keystore`; `development` takes the light derivation."""
    while True:
        private_key = secrets.token_bytes(PRIVATE_KEY_BYTES)
        if 0 < int.from_bytes(private_key, "big") < SECP256K1_ORDER:
            return import_account(keystore, private_key, password, development=development)


def import_account(
    keystore: Path, private_key: bytes, password: str, *, development: bool = False
) -> AccountKey:
    """Keep an existing private key in the folder `keystore`.

    Raises `KeyExistsError` if the account is there already, `CorruptKeyError` if the bytes
    are no private key.
    """
    account = AccountKey(private_key, development)
    target = keystore / f"{account.address}.json"
    _write_new(target, seal_account(account, password, development=development).encode())
    return account


def import_keystore(keystore: Path, document: str, password: str) -> AccountKey:
    """Keep a version 3 keystore that another wallet wrote, once `password` has opened it."""
    account = open_account(document, password)
    _write_new(keystore / f"{account.address}.json", document.encode())
    return account


def seal_account(account: AccountKey, password: str, *, development: bool = False) -> str:
    """Return the version 3 keystore of `account` under `password`: also how it is exported."""
    sealed = create_keyfile_json(
        account.private_key,
        _encoded(password),
        kdf="scrypt",
        iterations=DEVELOPMENT_SCRYPT_N if development else SCRYPT_N,
    )
    return json.dumps(sealed, indent=2, sort_keys=True) + "\n"


def open_account(document: str, password: str, *, source: str = "the keystore") -> AccountKey:
    """Return the account inside a version 3 keystore.

    Raises `WrongPasswordError`, or `CorruptKeyError` for another format, for a derivation
    that would take more memory or time than any wallet asks for, or for an address that
    is not that of the key.
    """
    sealed = _parse_keystore(document, source)
    cost = _derivation_cost(sealed, source)
    try:
        private_key = decode_keyfile_json(sealed, _encoded(password))
    except ValueError as error:
        if "MAC" in str(error):
            raise WrongPasswordError(f"the password does not open {source}") from error
        raise CorruptKeyError(f"{source} cannot be decrypted: {error}") from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CorruptKeyError(f"{source} lacks or garbles {error}") from error
    account = AccountKey(private_key, development=cost < SCRYPT_N // 64)
    named = sealed.get("address", "")
    if named and _plain(named) != _plain(account.address):
        raise CorruptKeyError(f"{source} is labelled {named} but holds {account.address}")
    return account


def list_accounts(keystore: Path) -> tuple[Address, ...]:
    """Return the accounts that have a file in the folder `keystore`, sorted."""
    if not keystore.is_dir():
        return ()
    return tuple(sorted(Address(path.stem) for path in keystore.glob("0x*.json")))


def load_account(keystore: Path, password: str, address: Address | None = None) -> AccountKey:
    """Open an account of the folder `keystore`: `address`, or the only one there is.

    Raises `MissingKeyError` if there is none or several, and what `open_account` raises.
    """
    accounts = list_accounts(keystore)
    if address is None:
        if len(accounts) != 1:
            found = ", ".join(accounts) or "none"
            raise MissingKeyError(f"expected one account in {keystore}, found {found}")
        (address,) = accounts
    path = keystore / f"{address}.json"
    data = _read_private(path)
    try:
        document = data.decode()
    except UnicodeDecodeError as error:
        raise CorruptKeyError(f"{path} is not text") from error
    account = open_account(document, password, source=str(path))
    if account.address != address:
        raise CorruptKeyError(f"{path} holds {account.address}")
    return account


# ------------------------------------------------------------------------ the password


def read_password(source: Path | TextIO) -> str:
    """Read a password: the first line of a private file, or of an open stream.

    Passwords are never command-line arguments, which any user of the machine can list.

    Raises `PasswordError` if it is empty, too long or not text, and `MissingKeyError` or
    `ExposedKeyError` as for a key.
    """
    if isinstance(source, Path):
        origin = str(source)
        try:
            text = _read_private(source).decode()
        except UnicodeDecodeError as error:
            raise PasswordError(f"the password in {origin} is not UTF-8 text") from error
    else:
        origin = "standard input"
        text = source.readline(MAX_PASSWORD_BYTES + 2)
    password = text.split("\n", 1)[0].removesuffix("\r")
    if not password:
        raise PasswordError(f"the password from {origin} is empty")
    _encoded(password)
    return password


def _encoded(password: str) -> bytes:
    encoded = password.encode()
    if not encoded or len(encoded) > MAX_PASSWORD_BYTES:
        raise PasswordError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes, got {len(encoded)}")
    return encoded


# ----------------------------------------------------------------------------- the files


def _write_new(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 that appears whole, and only if there was none."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError as error:
        raise KeyExistsError(f"{path} exists and is kept; move it away first") from error
    finally:
        partial.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_private(path: Path) -> bytes:
    """Read a file that must belong to its owner alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise MissingKeyError(f"there is no {path}") from error
    except OSError as error:
        raise MissingKeyError(f"cannot open {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptKeyError(f"{path} is not a regular file")
        if status.st_uid not in {os.geteuid(), 0} or status.st_mode & 0o077:
            raise ExposedKeyError(
                f"{path} has mode {stat.S_IMODE(status.st_mode):04o} and owner {status.st_uid}: "
                f"others may read it; if it is still secret, run chmod 600 on it"
            )
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise CorruptKeyError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data


def _parse_keystore(document: str, source: str) -> dict[str, Any]:
    if len(document) > MAX_FILE_BYTES:
        raise CorruptKeyError(f"{source} is no keystore: too long")
    try:
        parsed = bounded_json.loads(document)
    except ValueError as error:
        raise CorruptKeyError(f"{source} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CorruptKeyError(f"{source} is not a JSON object")
    sealed: dict[str, Any] = {str(key).lower(): value for key, value in parsed.items()}
    if sealed.get("version") != 3:
        raise CorruptKeyError(f"{source} is version {sealed.get('version')!r}, not 3")
    if not isinstance(sealed.get("crypto"), dict):
        raise CorruptKeyError(f"{source} has no crypto section")
    return sealed


def _derivation_cost(sealed: dict[str, Any], source: str) -> int:
    """Return the work of one guess in units of scrypt's n, within what is reasonable."""
    crypto = sealed["crypto"]
    parameters = crypto.get("kdfparams")
    if crypto.get("cipher") != "aes-128-ctr" or not isinstance(parameters, dict):
        raise CorruptKeyError(f"{source} is not an aes-128-ctr keystore")
    if parameters.get("dklen") != 32:  # a shorter one would check no password at all
        raise CorruptKeyError(f"{source} derives {parameters.get('dklen')!r} bytes, not 32")
    match crypto.get("kdf"), parameters:
        case "scrypt", {"n": int(n), "r": int(r), "p": int(p)}:
            usable = n > 1 and r > 0 and 0 < p <= 64 and 128 * n * r <= MAX_SCRYPT_MEMORY
            cost = n * r * p // 8
        case "pbkdf2", {"c": int(rounds)}:
            usable, cost = 0 < rounds <= MAX_PBKDF2_ROUNDS, rounds
        case kdf, _:
            raise CorruptKeyError(f"{source} uses an unknown key derivation {kdf!r}")
    if not usable:
        raise CorruptKeyError(f"{source} asks for an unreasonable derivation {parameters}")
    return cost


def _plain(address: object) -> str:
    return str(address).lower().removeprefix("0x")
