"""What pip installs: programs, shipped configs, licence and types."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import transformer
from transformer.command_line.shipped import shipped

ROOT = Path(__file__).parents[1]


def test_every_package_is_named() -> None:
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "transformer").rglob("*.py")}
    there = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(named) == there | {"transformer.configs"} and len(named) == len(set(named))


def test_shipped_configs_have_names(call) -> None:
    assert set(shipped()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    by_name, by_path = (
        call("train.py", "--config", one, "--print-config") for one in ("quickstart", "configs/quickstart.py")
    )
    assert by_name.code == 0 and by_name.out == by_path.out
    wrong = call("train.py", "--config", "quickstrat", "--workdir", "x")
    assert wrong.code == 2 and wrong.err.strip().endswith("--config quickstrat: no such file; did you mean quickstart?")


def run(*command: object, folder: Path, **more: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**os.environ, **more}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_wheel_and_an_sdist_hold_all_that_is_needed(tmp_path: Path) -> None:
    pip = sys.executable, "-m", "pip"
    source = tmp_path / "source"
    run("git", "clone", "-q", ROOT, source, folder=tmp_path)
    run(*pip, "install", "-q", "--target", tmp_path / "tool", "build", "setuptools>=77", folder=tmp_path)
    tool = {"PYTHONPATH": str(tmp_path / "tool")}
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source, folder=tmp_path, **tool)
    (sdist,), (wheel,) = (list((tmp_path / "dist").glob(name)) for name in ("*.tar.gz", "*.whl"))
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    needed = "py.typed", "configs/quickstart.py", "data/phrases/wording.py"
    assert {f"transformer/{name}" for name in needed} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    with tarfile.open(sdist) as file:
        assert any(name.endswith("/configs/quickstart.py") for name in file.getnames())
    # From an empty folder, the wheel in front of what else is installed.
    run(*pip, "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel, folder=tmp_path)
    site, empty = {"PYTHONPATH": str(tmp_path / "site")}, tmp_path / "empty"
    empty.mkdir()
    where = run(sys.executable, "-c", "import transformer; print(transformer.__file__)", folder=empty, **site)
    assert where.startswith(str(tmp_path / "site"))
    program = tmp_path / "site" / "bin" / "transformer-train"
    shown = run(sys.executable, program, "--config", "quickstart", "--print-config", folder=empty, **site)
    assert '"task": "translation"' in shown
    for name in ("transformer-evaluate", "transformer"):
        assert "--help" in run(sys.executable, tmp_path / "site" / "bin" / name, "--help", folder=empty, **site)


def test_the_version_is_that_of_the_changelog() -> None:
    assert f"## {transformer.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
