"""Settings: whose word counts, and what is said about a word that makes no sense."""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.config import SETTINGS, Config, ConfigError, Setting, load, template

ESCROW = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
PEER = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, 'rounds = 3\nseed = 4\nlog_level = "debug"\n')
    loaded = load(
        file=file, environ={"PMNODE_ROUNDS": "5", "PMNODE_SEED": "6"}, flags={"rounds": 7}
    )
    config, origins = loaded
    assert (config.rounds, config.seed, config.log_level, config.fee_bps) == (7, 6, "debug", 200)
    assert str(origins["rounds"]) == "flag --rounds"
    assert str(origins["seed"]) == "environment PMNODE_SEED"
    assert str(origins["log_level"]) == f"file {file}"
    assert str(origins["fee_bps"]) == "default"
    assert origins.keys() == SETTINGS.keys()


WRITTEN = {"fraction", "quorum"}
"""Kinds whose values are never written as they are held."""


def test_every_default_is_a_legal_value() -> None:
    for row in SETTINGS.values():
        if row.default is not None:
            written = row.kind.show(row.default) if row.kind.name in WRITTEN else row.default
            assert load(flags={row.name: written}).config == Config()


def test_flags_that_were_not_given_do_not_count() -> None:
    assert load(flags={"rounds": None, "bootstrap": ()}).config == Config()


def test_a_config_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().rounds = 3  # type: ignore[misc]
    assert hash(Config()) == hash(Config())


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ({"environ": {"PMNODE_ROUND": "3"}}, "PMNODE_ROUNDS"),
        ({"flags": {"boot_strap": PEER}}, "--bootstrap"),
        ({"flags": {"qqq": 1}}, "config show"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_likely_one(
    source: dict[str, Any], meant: str
) -> None:
    with pytest.raises(ConfigError, match=meant):
        load(**source)


def test_a_misspelt_key_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "fee_bp = 3\n")
    with pytest.raises(ConfigError, match=r"fee_bps") as caught:
        load(file=file)
    assert str(file) in str(caught.value)
    assert caught.value.key == "fee_bp"


BAD: list[tuple[str, object]] = [
    ("role", "king"),
    ("rounds", 0),
    ("rounds", True),
    ("rounds", 1.5),
    ("rounds", "three"),
    ("rounds", "9" * 5_000),
    ("fee_bps", 5_001),
    ("seed", -1),
    ("reserve", -1),
    ("reserve", 1.0),
    ("reserve", str(2**256)),
    ("min_gain", "0.0000001"),
    ("min_gain", "0.12345600000000000000000000000000000000000001"),
    ("min_gain", "1.1"),
    ("min_gain", "nan"),
    ("min_gain", "1e999999"),
    ("listen", "127.0.0.1:4001"),
    ("listen", "/ip4/127.0.0.1/tcp/65536"),
    ("bootstrap", "/ip4/127.0.0.1/tcp/4001"),
    ("bootstrap", "/ip4/127.0.0.1/tcp/4001/p2p/12D3Koo"),
    ("bootstrap", 5),
    ("chain", "ftp://example.org"),
    ("chain", "127.0.0.1:8545"),
    ("escrow", ESCROW[:-1]),
    ("escrow", ESCROW.replace("F", "f")),
    ("brokers", [ESCROW, 3]),
    ("task", ""),
    ("task", "two\nlines"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_value_that_makes_no_sense_is_named_with_its_origin_and_remedy(
    key: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags={key: value})
    error = caught.value
    assert error.key == key
    assert f"flag {SETTINGS[key].flag}" in str(error)
    assert "expected" in error.remedy
    assert len(str(error).splitlines()) == 1


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path: Path) -> None:
    for file in (written(tmp_path, "rounds ="), tmp_path / "nowhere.toml"):
        with pytest.raises(ConfigError, match=str(file)):
            load(file=file)


def test_lists_are_read_from_each_origin_alike(tmp_path: Path) -> None:
    second = PEER.replace("4001", "4002")
    for loaded in (
        load(environ={"PMNODE_BOOTSTRAP": f"{PEER}, {second}"}),
        load(flags={"bootstrap": (PEER, second)}),
        load(file=written(tmp_path, f'bootstrap = ["{PEER}", "{second}"]\n')),
    ):
        assert loaded.config.bootstrap == (PEER, second)


def test_an_address_is_checksummed_whichever_way_it_was_written() -> None:
    for spelling in (ESCROW, ESCROW.lower()):
        assert load(flags={"escrow": spelling}).config.escrow == ESCROW


def test_a_path_in_the_file_is_relative_to_the_file(tmp_path: Path) -> None:
    loaded = load(
        file=written(tmp_path, 'data_folder = "sets"\n'), environ={"PMNODE_DATA_DIR": "here"}
    )
    assert loaded.config.data_folder == tmp_path / "sets"
    assert loaded.config.data_dir == Path("here")


def test_variables_of_ours_that_are_not_settings_are_left_alone() -> None:
    assert load(environ={"PMNODE_STATE": "/run", "HOME": "/"}).config == Config()


@given(millionths=st.integers(0, 1_000_000))
def test_a_fraction_reaches_the_market_exactly(millionths: int) -> None:
    exact = Decimal(millionths) / 1_000_000
    assert load(environ={"PMNODE_MIN_GAIN": str(exact)}).config.min_gain == millionths


@given(wei=st.integers(0, 2**256 - 1))
def test_an_amount_of_any_size_reaches_the_market_exactly(wei: int) -> None:
    assert load(environ={"PMNODE_RESERVE": str(wei)}).config.reserve == wei


@pytest.mark.parametrize("row", SETTINGS.values(), ids=SETTINGS)
@given(raw=st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
@example(raw="~nobody-of-this-name")
def test_any_value_is_either_taken_or_refused_with_the_one_error(row: Setting, raw: object) -> None:
    with contextlib.suppress(ConfigError):
        load(flags={row.name: raw})


def test_the_template_is_a_file_of_defaults(tmp_path: Path) -> None:
    text = template()
    assert tomllib.loads(text) == {}
    assert all(f"# {name} =" in text for name in SETTINGS)
    assert load(file=written(tmp_path, text)).config == Config()


def test_the_template_sets_what_was_chosen(tmp_path: Path) -> None:
    chosen: dict[str, object] = {
        "role": "broker", "reserve": 10**21, "min_gain": "0.015", "brokers": ESCROW,
        "data_dir": str(tmp_path / 'a "quoted" dir'),
    }  # fmt: skip
    loaded = load(file=written(tmp_path, template(chosen)))
    assert loaded.config == load(flags=chosen).config
    assert {name for name, origin in loaded.origins.items() if origin.kind == "file"} == set(chosen)


def test_every_commented_default_in_the_template_is_legal(tmp_path: Path) -> None:
    lines = [line.removeprefix("# ") for line in template().splitlines()]
    pairs = [line for line in lines if line.partition(" = ")[0] in SETTINGS and " = " in line]
    assert len(pairs) > 20
    assert load(file=written(tmp_path, "\n".join(pairs))).config == Config()
