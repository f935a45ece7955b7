"""Development and test text of a language model as plain files in the workdir, so that a copied workdir can be scored.

workdir/sets/{dev,test}.<i>.text   the text of file i
             texts.json            name, kind of documents, and sha256 of each file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from transformer.config import UserError
from transformer.data.running import Text, file_of, parts
from transformer.files import path_of
from transformer.tasks import stored_sets
from transformer.tasks.stored_sets import StoredSet

INDEX = "texts.json"


def write(folder: epath.Path, sets: Mapping[str, Text | None]) -> None:
    """Copy these texts into `folder`/sets; None = there is no such text."""

    def stored(kind: str, text: Text | None) -> StoredSet | None:
        if text is None:
            return None
        files = {f"{kind}.{i}.text": file_of(content) for i, content in enumerate(_contents(text))}
        return StoredSet({"name": text.name, "documents": text.documents}, files)

    stored_sets.write(folder, INDEX, {kind: stored(kind, text) for kind, text in sets.items()})


def _contents(text: Text) -> list[str]:
    """The part of each file that belongs to the text; files of which nothing does are left out."""
    contents: dict[int, list[str]] = {}
    for part in parts(text):
        content = contents.setdefault(part.file, [])
        separate = text.documents == "blank_lines" and part.begins and content
        content.append("\n\n" * bool(separate) + part.text)
    return ["".join(content) for content in contents.values()]


def read(workdir: Any, folder: Path) -> tuple[str, Text]:
    """Name and text of the workdir's test text, or of its development text if there is none, copied to `folder`.

    Raises `UserError` if the workdir has neither, or if a file is not as it was written.
    """
    _, (entry, files) = stored_sets.read(workdir, INDEX, "--text FILE")
    if "documents" not in entry or "name" not in entry:
        index = path_of(workdir) / "sets" / INDEX
        raise UserError(
            f"{index} lacks a name or the kind of documents; give --text FILE, or let train.py write it again"
        )
    copies = [folder / f"{i}.text" for i in range(len(files))]
    for copy, content in zip(copies, files.values(), strict=True):
        copy.write_bytes(content)
    return str(entry["name"]), Text(tuple(map(str, copies)), entry["documents"])
