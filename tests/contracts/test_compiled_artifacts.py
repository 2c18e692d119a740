"""The artifacts are what the pinned compiler makes of the sources beside them, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from contracts import load_artifact
from contracts.artifact import Artifact, read_artifact
from contracts.stage import Stage

ROOT = Path(__file__).resolve().parents[2]


def require_tools(compiler: ModuleType) -> list[str]:
    """Return the engines that can compile here; without any, skip, or fail where CI must not."""
    missing = ""
    try:
        compiler.install()
    except compiler.MissingToolError as error:
        missing = str(error)
    engines: list[str] = compiler.engines()
    if not missing and engines:
        return engines
    why = f"nothing can be compiled here: {missing or 'no node and no mini-racer'}"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["node", "mini-racer"])
def test_each_engine_gives_the_committed_bytes(compiler: ModuleType, engine: str) -> None:
    """Slow; `compile_contracts.py --check` does the same, and is a part of `make lint`."""
    if engine not in require_tools(compiler):
        pytest.skip(f"{engine} is not there")
    built: dict[Path, bytes] = compiler.build(engine)
    assert len(built) == len(compiler.TARGETS)
    assert compiler.stale(built) == []


def test_a_single_changed_byte_is_stale(compiler: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "artifact.json"
    assert compiler.stale({path: b"{}\n"}) == [path]
    path.write_bytes(b"{}")
    assert compiler.stale({path: b"{}\n"}) == [path]
    path.write_bytes(b"{}\n")
    assert compiler.stale({path: b"{}\n"}) == []


def test_the_sources_here_are_those_that_were_compiled(compiler: ModuleType) -> None:
    for target in compiler.TARGETS:
        artifact = read_artifact(ROOT / target.artifact)
        ours = {name for name in artifact.sources if not name.startswith("@")}
        assert target.source in ours
        for name in ours:
            digest = hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
            assert digest == artifact.sources[name], f"{name} was changed and not compiled"


def test_the_artifact_says_how_it_was_made() -> None:
    artifact = load_artifact("ParameterEscrow")
    assert artifact.name == "ParameterEscrow"
    assert artifact.compiler.startswith("solc 0.8.37+commit.")
    assert artifact.settings["evmVersion"] == "prague"
    with pytest.raises(FileNotFoundError):
        load_artifact("NoSuchContract")


def test_the_code_on_a_chain_is_recognised_whatever_its_broker_is(stage: Stage) -> None:
    artifact: Artifact = load_artifact("ParameterEscrow")
    code = bytes.fromhex(stage.chain.get_code(stage.escrow.address)[2:])
    assert artifact.is_code_of(code)
    assert code != artifact.deployed_bytecode
    assert not artifact.is_code_of(code[:-1])
    assert not artifact.is_code_of(b"")
    assert not artifact.is_code_of(bytes([code[0] ^ 1]) + code[1:])


def test_the_lock_file_pins_every_package_and_names_no_host() -> None:
    written = (ROOT / "contracts" / "package-lock.json").read_text()
    assert "://" not in written.replace('"url": "https://github.com/sponsors/', "")
    packages = json.loads(written)["packages"]
    root = packages.pop("")
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
    for name, pin in {**root["dependencies"], **root["devDependencies"]}.items():
        assert packages[f"node_modules/{name}"]["version"] == pin


def test_imports_are_followed_through_folders_and_packages(
    compiler: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "node_modules"
    (modules / "@a" / "b").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "A.sol").write_text(
        'import {\n    B\n} from "../B.sol";\nimport "@a/b/C.sol";'
    )
    (tmp_path / "B.sol").write_text('// import "nothing";\n')
    (modules / "@a" / "b" / "C.sol").write_text('import * as D from "./D.sol";')
    (modules / "@a" / "b" / "D.sol").write_text("")
    monkeypatch.setattr(compiler, "ROOT", tmp_path)
    monkeypatch.setattr(compiler, "MODULES", modules)
    assert list(compiler.source_closure(["src/A.sol"])) == [
        "@a/b/C.sol", "@a/b/D.sol", "B.sol", "src/A.sol"
    ]  # fmt: skip
    (tmp_path / "B.sol").unlink()
    with pytest.raises(compiler.CompilationError, match=r"B\.sol"):
        compiler.source_closure(["src/A.sol"])
