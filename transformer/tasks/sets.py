"""Development and test sets as plain files in the workdir, so that a copied workdir can be scored.

workdir/sets/{dev,test}.{source,reference}
             sets.json    name, number of lines and sha256 of each set
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from transformer.config import UserError
from transformer.data.doubts import refuse_csv
from transformer.data.opening import open_text
from transformer.data.text import Parallel, file_kind, read_pairs
from transformer.files import path_of, refuse_links, replace, writing
from transformer.streams import to_json

log = logging.getLogger("transformer")

SIDES = ("source", "reference")


class NoSet(UserError):
    """A workdir has no set to score."""


def read_sides(parallel: Parallel, fields: tuple[str, str]) -> tuple[list[str], list[str]]:
    """All sources and all references of a set. Raises `UserError` if it is empty."""
    pairs = list(read_pairs(parallel, fields))
    if not pairs:
        raise UserError(f"{parallel.source}: no sentences in it")
    sources, references = zip(*pairs, strict=True)
    return list(sources), list(references)


def check_given(source: str | None, references: Sequence[str]) -> None:
    """Raise `UserError` if these files can't be source and references of a set. Reads no text."""
    if source is None and references:
        raise UserError("--source and --reference go together; name the sentences that these are translations of")
    refuse_csv([source] if source else [], "--source ")
    refuse_csv(references, "--reference ")
    if source is not None and not references and file_kind(os.fspath(source)) == "text":
        if os.path.isfile(source) or os.path.isdir(source) or not os.path.exists(source):  # not a pipe
            open_text(source).close()  # raises a precise error if the file is not text
        raise UserError(
            f"--source {source}: holds one side only; give its translations as --reference FILE, or a .tsv or "
            ".jsonl with both sides"
        )


def read_given(source: str, references: Sequence[str], fields: tuple[str, str]) -> tuple[list[str], list[list[str]]]:
    """Sources and references of a set that is given on the command line. Each file of references has one a sentence.

    If the source file holds both sides, `references` is empty and they are read from it.
    """
    if len(references) > 1 and not os.path.isfile(source) and os.path.exists(source):
        raise UserError(f"--source {source}: several references need a regular file here; it is read once for each")
    for one, other in itertools.combinations(references, 2):
        if one == other or (os.path.isfile(one) and os.path.isfile(other) and os.path.samefile(one, other)):
            also = "" if one == other else f", too, as {one}"
            raise UserError(f"--reference {other} is given twice{also}; each one must be another translation")
    sides = [read_sides(Parallel(source, reference), fields) for reference in references or [None]]
    return sides[0][0], [reference for _, reference in sides]


class Sides(NamedTuple):
    """A development or test set, as it was read."""

    name: str
    sources: list[str]
    references: list[str]


def write_sets(folder: epath.Path, sets: Mapping[str, Sides | None]) -> None:
    """Write sets, named "dev" or "test", into `folder`/sets; None = there is no such set."""
    known = {}
    refuse_links(folder / "sets")
    for kind, one in sets.items():
        if one is None:
            continue
        name, *sides = one
        known[kind] = {"name": name}
        for side, lines in zip(SIDES, sides, strict=True):
            content = "".join(line + "\n" for line in lines).encode()
            digest, path = hashlib.sha256(content).hexdigest(), folder / "sets" / f"{kind}.{side}"
            with writing(path):
                changed = path.exists() and path.read_bytes() != content
            if changed:
                log.warning("%s is written anew: the %s set has changed, and scores of it don't compare", path, kind)
            replace(path, content)
            known[kind] |= {"lines": len(lines), f"{side}_sha256": digest}
            log.info("%-4s set    %s, %s: %d lines, sha256 %s", kind, name, side, len(lines), digest)
    if known:
        replace(folder / "sets" / "sets.json", (to_json(known, indent=2) + "\n").encode())


def copy_sets(workdir: epath.Path, folder: epath.Path) -> None:
    """Copy what `write_sets` wrote in `workdir` to `folder`/sets. Other files and folders there are not copied."""
    for name in ("sets.json", *(f"{kind}.{side}" for kind in ("dev", "test") for side in SIDES)):
        if (path := workdir / "sets" / name).is_file():
            replace(folder / "sets" / name, path.read_bytes())


def known_sets(workdir: str) -> dict[str, Any]:
    """The entries 'dev' and 'test' of sets.json; empty if the workdir has neither."""
    path = path_of(workdir) / "sets" / "sets.json"
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
        return {kind: {**entry, "name": str(entry["name"])} for kind, entry in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"cannot be read ({type(error).__name__}: {error})") from None


def read_set(workdir: str, kind: str | None = None) -> tuple[str, list[str], list[str]]:
    """Name, sources and references of the workdir's 'test' or 'dev' set; default: test if there is one, else dev.

    These sets have one reference for each sentence.
    """
    known = known_sets(workdir)
    kind = kind or ("test" if "test" in known else "dev")
    if kind not in known:
        raise NoSet(f"{workdir} has no test or dev set; give --source FILE --reference FILE")
    sides = []
    for side in SIDES:
        path = path_of(workdir) / "sets" / f"{kind}.{side}"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(content).hexdigest() != known[kind].get(f"{side}_sha256"):
            raise _damaged(path, "is not as it was written")
        # Not read with `open_text`, which needs a local file; this path may be in a bucket. `write_sets` wrote it, so
        # it is well-formed.
        sides.append(content.decode().split("\n")[:-1])
    return known[kind]["name"], *sides


def _damaged(path: epath.Path, what: str) -> UserError:
    return UserError(f"{path} {what}; give --source FILE --reference FILE, or let train.py write it again")
