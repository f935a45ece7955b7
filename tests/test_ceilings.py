"""Limits that keep the code readable: function and file length, no import cycles, no task's words in training."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "transformer"
FUNCTION, FILE = 60, 400  # lines
FILES = sorted(PACKAGE.rglob("*.py"))
CODE = [*FILES, *(ROOT / "configs").glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *ROOT.glob("*.py")]
# Words of one task, which must not occur in training and checkpoint code.
TASK = re.compile(r"(?<![A-Za-z])(source|target|bleu|translation)s?(?![A-Za-z])", re.IGNORECASE)
NEUTRAL = [path for folder in ("training", "checkpoint") for path in (PACKAGE / folder).rglob("*.py")]
NEUTRAL.remove(PACKAGE / "training" / "objectives.py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_functions_are_short() -> None:
    long = [
        f"{name(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION
    ]
    assert not long, "\n".join(long)


def test_files_are_short() -> None:
    lines = {name(path): len(path.read_text().splitlines()) for path in CODE}
    long = [f"{path}: {count}" for path, count in lines.items() if count > FILE and "data/phrases/" not in path]
    assert not long, "\n".join(long)


# ---- Imports ---------------------------------------------------------------------------------------------------------
def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, including imports in functions and under TYPE_CHECKING.

    `from package import name` counts as the module `name` where there is one, else as the package itself.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), module(path.parent))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found & MODULES.keys() - {module(path)}


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Import cycles, found by a walk through the graph; empty only if the graph has no cycle."""
    done, path = set(), []

    def walk(node: str) -> Iterator[list[str]]:
        if node in path:
            yield [*path[path.index(node) :], node]
        elif node not in done:
            path.append(node)
            for other in sorted(graph[node]):
                yield from walk(other)
            path.pop()
            done.add(node)

    for node in graph:
        yield from walk(node)


def test_no_imports_go_round() -> None:
    found = [" -> ".join(circle) for circle in circles({one: imports(path) for one, path in MODULES.items()})]
    assert not found, "\n".join(found)


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"e"}, "e": {"b"}}
    assert list(circles(graph)) == [["b", "d", "e", "b"]]


# ---- Words -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", NEUTRAL, ids=name)
def test_training_and_checkpoints_know_no_task(path: Path) -> None:
    text = path.read_text().replace("Thread(target=", "Thread(")
    words = [
        f"{name(path)}:{token.start[0]}: {token.string.strip()}"
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT) and TASK.search(token.string)
    ]
    assert not words, "\n".join(words)
