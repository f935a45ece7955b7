"""Development and test examples as JSON lines in the workdir, so that a copied workdir can be scored.

workdir/sets/{dev,test}.jsonl   objects with text, label, and second of a pair; words and tags are lists
             labelled.json      name and sha256 of each
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from transformer.config import UserError
from transformer.data.labelled import Columns, Example, read_examples
from transformer.files import path_of, refuse_links, replace, writing
from transformer.streams import to_json
from transformer.tasks.sets import NoSet

log = logging.getLogger("transformer")

INDEX = "labelled.json"


class ExampleSet(NamedTuple):
    """Labelled examples, and where they come from."""

    kind: str
    """'dev', 'test', or 'given' on the command line."""
    name: str
    paths: tuple[str, ...]
    examples: Sequence[Example]


def from_files(kind: str, paths: Sequence[str], columns: Columns, kind_of_labels: str) -> ExampleSet:
    """The labelled texts of files (see `read_examples`)."""
    found = read_examples(paths, columns, kind_of_labels)
    return ExampleSet(kind, ", ".join(Path(path).name for path in paths), tuple(paths), found)


def write(folder: epath.Path, sets: Mapping[str, ExampleSet | None]) -> None:
    """Copy these sets into `folder`/sets; None = there is no such set."""
    known: dict[str, Any] = {}
    refuse_links(folder / "sets")
    for kind, one in sets.items():
        if one is None:
            continue
        path, content = folder / "sets" / f"{kind}.jsonl", "".join(map(_line, one.examples)).encode()
        with writing(path):
            changed = path.exists() and path.read_bytes() != content
        if changed:
            log.warning("%s is written anew: the %s set has changed, and scores of it don't compare", path, kind)
        replace(path, content)
        known[kind] = {"name": one.name, "sha256": hashlib.sha256(content).hexdigest()}
    if known:
        replace(folder / "sets" / INDEX, (to_json(known, indent=2) + "\n").encode())


def _line(example: Example) -> str:
    fields = {name: getattr(example, name) for name in ("text", "second", "label")}
    return to_json({name: value for name, value in fields.items() if value is not None}) + "\n"


def read(workdir: Any, kind_of_labels: str, pairs: bool, kind: str | None = None) -> ExampleSet:
    """The 'test' or 'dev' set of a workdir; default: test if there is one, else dev.

    Raises `UserError` if it has no such set, or if a file is not as it was written.
    """
    folder = path_of(workdir) / "sets"
    index = folder / INDEX
    try:
        known = json.loads(index.read_bytes()) if index.exists() else {}
        kind = next((one for one in ([kind] if kind else ["test", "dev"]) if one in known), None)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unusable(index, error) from None
    if kind is None:
        raise NoSet(f"{workdir} has no test or dev set; give --data FILE")
    try:
        path, name, digest = folder / f"{kind}.jsonl", str(known[kind]["name"]), known[kind]["sha256"]
        content = path.read_bytes()
    except (OSError, KeyError, TypeError) as error:
        raise _unusable(index, error) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path} is not as it was written; give --data FILE, or let train.py write it again")
    with tempfile.TemporaryDirectory() as copies:  # the workdir may be in a bucket
        copy = Path(copies) / path.name
        copy.write_bytes(content)
        columns = Columns("text", "second" if pairs else None, "label")
        return ExampleSet(kind, name, (str(path),), read_examples([str(copy)], columns, kind_of_labels))


def _unusable(index: epath.Path, error: Exception) -> UserError:
    return UserError(
        f"{index} can't be used ({type(error).__name__}: {error}); give --data FILE, or let train.py write it again"
    )
