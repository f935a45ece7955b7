"""What pip installs: programs, shipped configs, licence and types."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import transformer
from transformer.command_line.shipped import shipped
from transformer.packages import OPTIONAL

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def test_requirements_are_the_dependencies_and_the_extra_train() -> None:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert [line for line in lines if line] == PYPROJECT["project"]["dependencies"] + EXTRAS["train"]


def test_optional_packages_are_those_of_the_extras() -> None:
    listed = {extra: {re.split("[<>=]", one)[0] for one in EXTRAS[extra]} for extra in EXTRAS}
    assert {package for package, extra in OPTIONAL.values() if extra == "train"} == listed["train"]
    assert all(package in listed[extra] for package, extra in OPTIONAL.values())


def test_extras_that_pages_name_exist() -> None:
    """Also those of earlier versions, which stand in programs of others."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"transformer\[(\w+)\]", page.read_text(encoding="utf-8"))}
    assert {"train", "hf"} <= named <= EXTRAS.keys() and {"export", "gpt2"} <= EXTRAS.keys()


@pytest.mark.parametrize(
    ("module", "arguments", "who"),
    [
        ("grain", ("train.py", "--config", "quickstart", "--workdir"), "training"),
        ("tensorboardX", ("train.py", "--config", "quickstart", "--workdir"), "training"),
        ("sacrebleu", ("train.py", "--config", "quickstart", "--workdir"), "scoring"),
        ("sacrebleu", ("evaluate.py", "--workdir"), "scoring"),
        ("babel", ("train.py", "--config", "quickstart", "--workdir"), "the generated text of data.corpus 'phrases'"),
        (
            "num2words",
            ("train.py", "--config", "quickstart", "--workdir"),
            "the generated text of data.corpus 'phrases'",
        ),
        ("tensorflow_datasets", ("train.py", "--config", "wmt14_en_de", "--workdir"), "the download of WMT14"),
        ("safetensors", ("transformer", "export", "OUT", "--to", "hf-marian"), "export --to hf-marian"),
    ],
)
def test_a_missing_package_is_one_line_with_its_extra(module, arguments, who, call, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    program, *rest = arguments
    if program == "train.py":
        rest.append(tmp_path / "run")
    elif program == "evaluate.py":
        rest.append(trained)
    else:
        rest = [rest[0], trained, tmp_path / "out", *rest[2:]]
    done = call(program, *rest)
    package, extra = OPTIONAL[module]
    expected = f"error: {who} needs {package}, which is not installed: pip install 'transformer[{extra}]'"
    assert (done.code, done.err.splitlines()[-1]) == (2, expected)
    assert "Traceback" not in done.err


def test_every_package_is_named() -> None:
    named = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "transformer").rglob("*.py")}
    there = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(named) == there | {"transformer.configs"} and len(named) == len(set(named))


def test_a_workdir_may_be_called_like_a_shipped_config(call, tmp_path: Path, monkeypatch) -> None:
    """Else the command that began a run there could not be given again."""
    expected = call("train.py", "--config", "quickstart", "--print-config").out
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call("train.py", "--config", "quickstart", "--print-config").out == expected
    (tmp_path / "other").mkdir()
    done = call("train.py", "--config", "other", "--print-config")
    assert done.err == "error: --config other: a folder; name a config file, such as configs/quickstart.py\n"


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
    page = [f"tools/attention/attention.{ending}" for ending in ("html", "css", "js")]
    needed = "py.typed", "configs/quickstart.py", "data/phrases/wording.py", *page
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


LIGHT = """
import sys, jax, jax.numpy as jnp, transformer
model = transformer.build(transformer.ModelConfig(1, 1, d_model=8, d_ff=8, heads=2, vocab_size=9))
params = model.init(jax.random.key(0))
print(model.apply(params, jnp.array([[5, 2]]), jnp.array([[1, 8]])).shape, transformer.beam_search)
model, params = transformer.load(sys.argv[1])
print(transformer.Translator.load(sys.argv[1]).translate(["a b"]) != [])
"""


@pytest.mark.slow
def test_the_dependencies_alone_are_enough_to_use_a_model(workdir: Path, tmp_path: Path) -> None:
    """In a new environment without the extra `train`: import, load, search, translate; train and evaluate say what
    they need."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    run("git", "clone", "-q", ROOT, tmp_path / "source", folder=tmp_path)
    run(programs / "pip", "install", "-q", tmp_path / "source", folder=tmp_path)
    run(programs / "pip", "check", folder=tmp_path)
    clean = {"PYTHONPATH": "", "JAX_PLATFORMS": "cpu", "TRANSFORMER_CACHE": str(tmp_path / "cache")}
    assert "(1, 2, 9)" in run(programs / "python", "-c", LIGHT, workdir, folder=tmp_path, **clean)
    (tmp_path / "in.txt").write_text("a b\n")
    files = "--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt"
    for verb in (("describe", "--config", "multi30k_en_de"), ("translate", workdir, *files)):
        run(programs / "transformer", *verb, folder=tmp_path, **clean)
    assert (tmp_path / "out.txt").read_text().count("\n") == 1
    run(programs / "transformer-train", "--config", "quickstart", "--print-config", folder=tmp_path, **clean)
    for command, needs in (
        (("transformer-train", "--config", "quickstart", "--workdir", tmp_path / "new"), "training needs grain"),
        (("transformer-evaluate", "--workdir", workdir), "scoring needs sacrebleu"),
        (("transformer", "average", workdir, "--last", "2"), "scoring needs sacrebleu"),
    ):
        words = [str(programs / command[0]), *map(str, command[1:])]
        done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **clean}, capture_output=True, text=True)
        last = f"error: {needs}, which is not installed: pip install 'transformer[train]'"
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, last)
        assert "Traceback" not in done.stderr


def test_the_version_is_that_of_the_changelog() -> None:
    assert f"## {transformer.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
