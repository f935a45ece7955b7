"""Development and test text of a language model as plain files in the workdir, so that a copied workdir can be scored.

workdir/sets/{dev,test}.<i>.text   the text of file i
             texts.json            name, kind of documents, and sha256 of each file
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from transformer.config import UserError
from transformer.data.running import Text, file_of, parts
from transformer.data.text_store import TextStore
from transformer.files import path_of, refuse_links, replace, writing
from transformer.streams import to_json
from transformer.tasks.sets import NoSet

log = logging.getLogger("transformer")

INDEX = "texts.json"


def write(folder: epath.Path, sets: Mapping[str, Text | None]) -> None:
    """Copy these texts into `folder`/sets; None = there is no such text."""
    known: dict[str, Any] = {}
    refuse_links(folder / "sets")
    for kind, text in sets.items():
        if text is None:
            continue
        files = {f"{kind}.{i}.text": file_of(content) for i, content in enumerate(_contents(text))}
        for name, content in files.items():
            path = folder / "sets" / name
            with writing(path):
                changed = path.exists() and path.read_bytes() != content
            if changed:
                log.warning("%s is written anew: the %s text has changed, and scores of it don't compare", path, kind)
            replace(path, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        known[kind] = {"name": text.name, "documents": text.documents, "files": digests}
    if known:
        replace(folder / "sets" / INDEX, (to_json(known, indent=2) + "\n").encode())


def _contents(text: Text) -> list[str]:
    """The part of each file that belongs to the text; files of which nothing does are left out."""
    contents: dict[int, list[str]] = {}
    for part in parts(text):
        content = contents.setdefault(part.file, [])
        separate = text.documents == "blank_lines" and part.begins and content
        content.append("\n\n" * bool(separate) + part.text)
    return ["".join(content) for content in contents.values()]


def read(workdir: str, folder: Path, kind: str | None = None) -> tuple[str, Text]:
    """Name and text of the workdir's 'test' or 'dev' text, copied to `folder`; default: test if there is one, else dev.

    Raises `UserError` if the workdir has no such text, or if a file is not as it was written.
    """
    index = path_of(workdir) / "sets" / INDEX
    try:
        known = json.loads(index.read_bytes()) if index.exists() else {}
        kind = next((one for one in ([kind] if kind else ["test", "dev"]) if one in known), None)
        if kind is not None:
            name, documents, digests = (known[kind][field] for field in ("name", "documents", "files"))
            files = dict(digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(index, f"cannot be read ({type(error).__name__}: {error})") from None
    if kind is None:
        raise NoSet(f"{workdir} has no test or dev text; give --text FILE")
    copies = []
    for i, (file, digest) in enumerate(files.items()):
        path = path_of(workdir) / "sets" / Path(file).name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise _damaged(path, "is not as it was written")
        copies.append(folder / f"{i}.text")
        copies[-1].write_bytes(content)
    return str(name), Text(tuple(map(str, copies)), documents)


def warn_of_doubts(stores: Iterable[TextStore | None]) -> None:
    """Log a warning for each text that looks wrong (`TextStore.doubt`), in process 0."""
    for store in stores:
        if store is not None and jax.process_index() == 0 and (doubt := store.doubt()):
            log.warning("%s", doubt)


def _damaged(path: epath.Path, what: str) -> UserError:
    return UserError(f"{path} {what}; give --text FILE, or let train.py write it again")
