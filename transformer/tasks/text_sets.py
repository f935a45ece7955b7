"""Development and test text of a language model as plain files in the workdir, so that a copied workdir can be scored.

workdir/sets/{dev,test}.<i>.text   the text of file i
             texts.json            name, kind of documents, and sha256 of each file
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
from etils import epath

from transformer.config import UserError
from transformer.data.running import Text, file_of, parts
from transformer.data.text_store import TextStore
from transformer.files import path_of
from transformer.tasks import stored_sets
from transformer.tasks.stored_sets import StoredSet

log = logging.getLogger("transformer")

INDEX = "texts.json"


def write(folder: epath.Path, sets: Mapping[str, Text | None], stores: Sequence[TextStore | None] = ()) -> None:
    """Copy these texts into `folder`/sets; None = there is no such text.

    `stores`: what was read of these texts before. Raises `UserError` if the files of one have changed since then.
    """

    def stored(kind: str, text: Text | None) -> StoredSet | None:
        if text is None:
            return None
        digests: dict[str, str] = {}
        files = {f"{kind}.{i}.text": file_of(content) for i, content in enumerate(_contents(text, digests))}
        for store in stores:
            if store is not None and store.source == text:
                store.require_same(digests)
        return StoredSet({"name": text.name, "documents": text.documents}, files)

    stored_sets.write(folder, INDEX, {kind: stored(kind, text) for kind, text in sets.items()})


def _contents(text: Text, digests: dict[str, str]) -> list[str]:
    """The part of each file that belongs to the text; files of which nothing does are left out. `digests`: see
    `parts`."""
    contents: dict[int, list[str]] = {}
    for part in parts(text, digests):
        content = contents.setdefault(part.file, [])
        separate = text.documents == "blank_lines" and part.begins and content
        content.append("\n\n" * bool(separate) + part.text)
    return ["".join(content) for content in contents.values()]


def read(workdir: str, folder: Path, kind: str | None = None) -> tuple[str, Text]:
    """Name and text of the workdir's 'test' or 'dev' text, copied to `folder`; default: test if there is one, else dev.

    Raises `UserError` if the workdir has no such text, or if a file is not as it was written.
    """
    _, (entry, files) = stored_sets.read(workdir, INDEX, "--text FILE", kind)
    if "documents" not in entry or "name" not in entry:
        index = path_of(workdir) / "sets" / INDEX
        raise UserError(
            f"{index} lacks a name or the kind of documents; give --text FILE, or let train.py write it again"
        )
    copies = [folder / f"{i}.text" for i in range(len(files))]
    for copy, content in zip(copies, files.values(), strict=True):
        copy.write_bytes(content)
    return str(entry["name"]), Text(tuple(map(str, copies)), entry["documents"])


def warn_of_doubts(stores: Iterable[TextStore | None]) -> None:
    """Log a warning for each text that looks wrong (`TextStore.doubt`), in process 0."""
    for store in stores:
        if store is not None and jax.process_index() == 0 and (doubt := store.doubt()):
            log.warning("%s", doubt)
