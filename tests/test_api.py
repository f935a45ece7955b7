"""docs/api.md and examples/ run as printed; the public names have types."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import transformer
from transformer.config import RUNS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
TASKS = [kind.__name__ for kind in RUNS.values()]


@pytest.mark.slow
def test_the_page_runs(trained: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("flatbuffers", reason="needs flatbuffers")
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs")
    os.symlink(trained, "runs/quickstart")
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in settings}
    found: dict = {}
    try:
        for block in re.finditer(r"```python\n(.*?)```", PAGE, re.DOTALL):
            line = PAGE[: block.start()].count("\n") + 1
            exec(compile("\n" * line + block[1], "docs/api.md", "exec"), found)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert len(found["translations"]) == 2 and found["translations"][1] == ""
    assert found["states_BSD"].shape == (2, 4, 32)
    assert transformer.load("runs/own", 2)[0] is found["model"]


def test_programs_are_kept_in_any_folder_that_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    assert transformer.cache_compiled(tmp_path / "own") == transformer.cache_compiled(str(tmp_path / "own"))
    assert transformer.cache_compiled(tmp_path / "own") == tmp_path / "own"
    for wrong in (3, True, b"x", "", ["x"]):
        with pytest.raises(
            transformer.UserError, match=r"^folder = .*: give a path, or None for the folder of the com"
        ):
            transformer.cache_compiled(wrong)


def test_the_page_names_all_that_is_public_and_all_parameters() -> None:
    for name in set(transformer.__all__) - {"AttentionConfig"}:
        assert f"`{name}`" in PAGE or f"transformer.{name}" in PAGE or name.endswith("Config"), name
    assert set(TASKS) <= set(transformer.__all__) and all(f"`{name}`" in PAGE for name in TASKS)
    rows = set(re.findall(r"^\| `([a-z0-9_/N]+)` \|", PAGE, re.MULTILINE))
    model = transformer.build(transformer.ModelConfig(vocab_size=8))
    paths = {re.sub(r"/\d+/", "/N/", path) for path in model.starts}
    in_encoder = {path.replace("encoder", "decoder") for path in rows if path.startswith("encoder")}
    assert rows | in_encoder == paths


SECTIONS = [name for name in transformer.__all__ if name.endswith("Config") and name not in TASKS]


@pytest.mark.parametrize("kind", SECTIONS)
def test_help_describes_each_field(kind) -> None:
    kind = getattr(transformer, kind)
    for name in kind.__dataclass_fields__:
        assert re.search(rf"^    {name}: \S", inspect.getdoc(kind), re.MULTILINE), name


def example():
    spec = importlib.util.spec_from_file_location("own_loop", ROOT / "examples" / "own_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_saves_what_the_command_line_translates(call, tmp_path: Path, capsys) -> None:
    example().main(str(tmp_path / "own"), steps=3)
    (tmp_path / "in.txt").write_text("the red dog sees the cat\n\nthe old cat\n")
    options = ("--decode.max_extra_length", "5", "--decode.max_source_length", "40")
    files = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert call("transformer", "translate", tmp_path / "own", *files, *options).code == 0
    assert len((tmp_path / "out.txt").read_text().split("\n")) == 4


@pytest.mark.slow
def test_the_example_learns_to_translate(call, tmp_path: Path, capsys) -> None:
    module = example()
    module.main(str(tmp_path / "own"))
    (tmp_path / "in.txt").write_text("the red dog sees the cat\nold cat likes the dog\n")
    files = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert call("transformer", "translate", tmp_path / "own", *files).code == 0
    assert (tmp_path / "out.txt").read_text() == "die rote Hündin sieht die Katze\nalte Katze mag die Hündin\n"


STRANGER = """
import transformer

translator = transformer.Translator.load("runs/x")
texts: list[str] = translator.translate(["a"])
model, params = transformer.load("runs/x")
reveal_type(model)
reveal_type(transformer.load("runs/x").tokenizer)
reveal_type(translator.score(["a"], ["b"])[0].alignment)
transformer.save("runs/y", model, params, "spm.model", step=3)
transformer.build(3)
translator.translate(["a"], prefix=["b"])
"""


@pytest.mark.slow
def test_types_are_seen_through_the_lazy_names(tmp_path: Path) -> None:
    """mypy is not among the packages of the tests: it would add 70 MB and 20 seconds."""
    pytest.importorskip("mypy", reason="needs mypy")
    (tmp_path / "stranger.py").write_text(STRANGER)
    options = ("--no-incremental", "--follow-imports=silent", "--ignore-missing-imports", "--cache-dir=/dev/null")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "stranger.py"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == 3, done.stdout + done.stderr
    assert "functional.Model[" in revealed[0] and "Tokenizer" in revealed[1]
    assert "int" in revealed[2]
    errors = [line for line in done.stdout.splitlines() if "stranger.py" in line and ": error:" in line]
    assert len(errors) == 2 and "build" in errors[0] and "prefix" in errors[1]
