"""The checkout is what it says: its packages, its layers, its pins."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("node", "broker_node", "contracts")
OWN_ROOTS = {*PACKAGES, "tests", "scripts"}
MAX_LINES = 400


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def modules() -> dict[str, Path]:
    """Return every module of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "node_modules" not in path.parts:
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported_roots(path: Path) -> set[str]:
    roots = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            roots.add(statement.module.partition(".")[0])
    return roots


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------ packages


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_resolves_inside_this_checkout(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_dependency_takes_the_name_of_a_package_of_ours(package: str) -> None:
    site = Path(sysconfig.get_path("purelib"))
    assert not (site / package).exists()
    assert not (site / f"{package}.py").exists()


def test_every_folder_with_modules_is_a_package_with_a_docstring() -> None:
    surfaces = {path.parent / "__init__.py" for path in modules().values()}
    assert [path for path in surfaces if not path.is_file()] == []
    assert [path for path in surfaces if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_a_package_says_what_it_is_and_computes_nothing_on_import() -> None:
    for name, path in modules().items():
        if path.name != "__init__.py":
            continue
        for statement in ast.parse(path.read_text()).body:
            surface = isinstance(statement, ast.ImportFrom) or (
                isinstance(statement, ast.Assign)
                and [ast.unparse(target) for target in statement.targets] == ["__all__"]
            )
            docstring = isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant
            )
            assert surface or docstring, f"{name}: {ast.unparse(statement)}"


def test_no_module_is_too_long_to_read() -> None:
    long = {n: len(p.read_text().splitlines()) for n, p in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


# -------------------------------------------------------------------------------- layers


def test_every_module_stands_in_a_layer() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {word.strip().strip("()") for layer in layers for word in re.split(r"[|:]", layer)}
    stray = [
        name
        for name in modules()
        if not any(name == layer or name.startswith(layer + ".") for layer in placed)
    ]
    assert stray == ["node"]  # it holds its docstring alone


def test_compute_and_protocol_keep_free_of_event_loop_and_network() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]
    forbidden = {
        source: set(contract["forbidden_modules"])
        for contract in contracts
        if contract["type"] == "forbidden"
        for source in contract["source_modules"]
    }
    for compute in ("verify", "align", "evaluate", "mechanisms"):
        assert forbidden[f"broker_node.{compute}"] >= {"trio", "libp2p", "web3"}
    assert forbidden["node.protocol"] >= {"trio", "libp2p", "web3", "torch"}


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio",
        "import random",
        "import pickle",
        "import logging",
        "from time import time",
        "import time\n\ntime.time()",
        "import torch\n\ntorch.load('a')",
        "from . import sibling",
    ],
)
def test_what_the_house_bans_is_a_lint_error(code: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "node/x.py", "-"]
    run = subprocess.run(
        command, input=code + "\n", capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 1
    assert re.search("TID25[12]", run.stdout)


# ---------------------------------------------------------------------------------- pins


@cache
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_pins_are_plain_names_and_versions() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def test_everything_imported_directly_is_declared_and_pinned() -> None:
    declared = project()["project"]["dependencies"]
    for extra in project()["project"]["optional-dependencies"].values():
        declared = declared + extra
    names = {canonical(re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0]) for line in declared}
    distributions = metadata.packages_distributions()
    known = sys.stdlib_module_names | OWN_ROOTS
    foreign = {
        root: name
        for name, path in modules().items()
        for root in imported_roots(path) - known
        if root != "__future__"
    }
    pinned = {canonical(name) for name in pins()}
    sources = {root: {canonical(name) for name in distributions.get(root, [])} for root in foreign}
    undeclared = {root: foreign[root] for root in foreign if not sources[root] & names}
    unpinned = {root: foreign[root] for root in foreign if not sources[root] & pinned}
    assert (undeclared, unpinned) == ({}, {})


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libp2p", "0.8.1"),
        ("web3", "8.0.0"),
        ("eth-tester", "0.14.0b1"),
        ("py-evm", "0.12.1b1"),
        ("eth-account", "0.14.0"),
        ("coincurve", "21.0.0"),
        ("torch", "2.13.0"),
        ("safetensors", "0.8.0"),
    ],
)
def test_what_was_measured_is_pinned_to_the_version_measured(name: str, version: str) -> None:
    assert pins()[name] == version


def test_the_command_is_the_one_that_the_readme_names() -> None:
    assert project()["project"]["name"] == "pm-node"
    assert project()["project"]["scripts"] == {"pm-node": "node.cli.main:main"}


# --------------------------------------------------------------------------------- tests


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_a_warning_is_an_error_and_each_exception_is_dated() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("filterwarnings = [")
    block = lines[start + 1 : lines.index("]", start)]
    assert block[0].strip() == '"error",'
    for before, line in itertools.pairwise(block):
        if not line.strip().startswith("#"):
            assert re.match(r"\s*# (\d{4}-\d{2}|and)", before), line
