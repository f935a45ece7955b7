"""Allowed imports between parts of the project. Read from the source, so imports inside functions count, too."""

import ast
import os
import shutil
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import transformer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "transformer"

# Part -> the parts it may import besides itself: config -> model | data -> checkpoint -> inference -> training ->
# tasks -> tools -> entry points.
MAY_IMPORT = {
    "config": set(),
    "configs": {"config"},
    "model": {"config"},
    "phases": set(),
    "machine": set(),
    "files": {"config", "phases"},
    "memory": {"config"},
    "streams": {"config"},
    "judging": {"config"},
    "packages": {"config"},
    "data": {"config", "phases", "files", "memory", "streams", "packages"},
    "compiled": {"config", "data"},
    "checkpoint": {"config", "model", "phases", "files", "judging", "memory", "streams"},
    "command_line": {"config", "data", "compiled", "memory", "streams"},
    "inference": {"config", "model", "data", "checkpoint", "files", "machine", "memory", "streams"},
    "training": {"config", "model", "phases", "files", "judging", "machine", "memory", "streams", "checkpoint"},
    "tasks": {
        *("config", "model", "files", "judging", "memory", "streams", "packages", "data", "checkpoint"),
        *("inference", "training", "command_line"),
    },
    "tools": {
        *("config", "model", "files", "memory", "streams", "packages", "data", "checkpoint"),
        *("inference", "training", "tasks", "command_line"),
    },
}
ENTRY_POINTS = {"__main__", "jobs", "evaluation", "programs", "verbs", "train", "evaluate"}
# Third-party packages that a part may import, where these are few, and those that it may not.
THEIRS = {
    "config": set(),
    "configs": set(),
    "model": {"jax", "flax", "numpy"},
    "judging": set(),
    "inference": {"jax", "numpy"},
}
NEVER = {
    "data": {"jax", "flax", "optax", "orbax"},
    "training": {"orbax", "sentencepiece", "sacrebleu"},
    "tasks": {"orbax", "grain", "tensorflow_datasets", "sentencepiece"},
    "tools": {"orbax"},
}


def part_of(path):
    """The part of the project that a file belongs to."""
    if path.parent == ROOT / "configs":
        return "configs"
    if path.parent == ROOT:
        return path.stem
    inside = path.relative_to(PACKAGE).parts
    return inside[0].removesuffix(".py")


def imports(path):
    """(line, full dotted name, whether at import time) of each import of a file. Relative names are resolved."""
    package = ".".join(path.parent.relative_to(ROOT).parts) if path.is_relative_to(ROOT) else ""
    tree = ast.parse(path.read_text(encoding="utf-8"), path.name)
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, node not in late
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            for name in node.names:
                yield node.lineno, f"{module}.{name.name}", node not in late


FILES = [*sorted(PACKAGE.rglob("*.py")), *sorted(ROOT.glob("configs/*.py")), ROOT / "train.py", ROOT / "evaluate.py"]
IDS = [str(path.relative_to(ROOT)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path):
    part = part_of(path)
    for line, name, early in imports(path):
        where = f"{path}:{line}: {part} imports {name}"
        if name.split(".")[0] == "transformer":
            imported = name.split(".")[1]
            if part == "__init__":
                assert imported == "config" or not early, where
            elif part not in ENTRY_POINTS:
                assert part in MAY_IMPORT, f"{path}: a new part; give it its place in MAY_IMPORT"
                assert imported == part or imported in MAY_IMPORT[part], where
        else:
            theirs = name.split(".")[0]
            if theirs in sys.stdlib_module_names:
                continue
            if part in THEIRS:
                assert theirs in THEIRS[part], where
            assert theirs not in NEVER.get(part, ()), where
            assert theirs != "orbax" or path == PACKAGE / "checkpoint" / "arrays.py", where


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_model_and_config_import_relatively(path):
    """So that the two folders run in a package of any name. Everywhere else an import names the whole path."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if part_of(path) in ("model", "config"):
            assert "transformer" not in {name.split(".")[0] for name in names}, f"{where}: write a relative import"
        else:
            assert not getattr(node, "level", 0), f"{where}: write the whole path"


def test_the_rule_sees_every_kind_of_import(tmp_path):
    """Tests `imports` itself: imports inside functions, under other names, for type checkers only."""
    (tmp_path / "x.py").write_text(
        "import a.b as c\nfrom d import e, f\n"
        "if TYPE_CHECKING:\n    import g\n"
        "def h():\n    import i\n    class J:\n        from k import l\n"
    )
    found = {name: early for _, name, early in imports(tmp_path / "x.py")}
    assert found == {"a.b": True, "d.e": True, "d.f": True, "g": False, "i": False, "k.l": False}
    assert part_of(PACKAGE / "model" / "layers.py") == "model"
    assert part_of(PACKAGE / "config" / "tasks.py") == "config"
    assert {"model", "data", "inference", "training", "tasks", "tools"} <= {part_of(path) for path in FILES}


def run(program, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_transformer_is_light():
    """The package, the model, beam search, translator and generator do not import what only data and files need, and
    the text of a language model needs no library that splits text before its first use."""
    heavy = "{'tensorflow_datasets', 'tensorflow', 'grain', 'orbax', 'sentencepiece', 'sacrebleu', 'tokenizers'}"
    program = f"""
import sys, transformer
print(sorted({heavy} & set(sys.modules)), 'jax' in sys.modules)
import transformer.data.vocabulary_training, transformer.data.windows, transformer.data.masking
print(sorted({heavy} & set(sys.modules)), 'jax' in sys.modules)
transformer.Translator, transformer.Generator, transformer.Embedder, transformer.beam_search, transformer.build
print(sorted({heavy} & set(sys.modules)))
"""
    assert run(program, ROOT) == "[] False\n[] False\n[]\n"


def test_every_public_name_is_there():
    assert set(transformer.__all__) <= set(dir(transformer)) | set(transformer._LAZY)
    for name in {*dir(transformer), *transformer.__all__, *transformer._LAZY}:
        assert getattr(transformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'transformers'"):
        _ = transformer.transformers


def test_the_model_runs_copied_into_a_package_of_another_name(tmp_path):
    for name in ("config", "model"):
        shutil.copytree(PACKAGE / name, tmp_path / "project" / "nets" / name, ignore=shutil.ignore_patterns("__pyc*"))
    program = """
import jax, sys
from project.nets import model as nets
from project.nets.config import ModelConfig
model = nets.build(ModelConfig(1, 1, d_model=4, d_ff=4, heads=1, vocab_size=8))
params = jax.tree.map(lambda x: jax.numpy.ones(x.shape), model.abstract_params)
source, target = jax.numpy.ones((1, 3), int), jax.numpy.ones((1, 2), int)
print(nets.__file__, jax.jit(model.apply)(params, source, target).shape, "transformer" in sys.modules)
"""
    # In a separate folder, so that Python does not find this project on its path.
    out = run(program, tmp_path, PYTHONPATH=str(tmp_path))
    assert out == f"{tmp_path / 'project' / 'nets' / 'model' / '__init__.py'} (1, 2, 8) False\n"


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in sorted(PACKAGE.rglob("*.py"))])
def test_nothing_that_is_loaded_can_run_code(path):
    """No pickle, and no function that reads pickles by default."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        assert not {name.split(".")[0] for name in names} & {
            "pickle",
            "dill",
            "cloudpickle",
            "shelve",
            "marshal",
            "joblib",
        }
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("allow_pickle") == "False"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec"):
            raise AssertionError(f"{path}:{node.lineno} runs text")
