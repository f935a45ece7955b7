"""Paths, local or in a bucket, and what lies there."""

from __future__ import annotations

import os
import re
from typing import Any

from etils import epath

from transformer.config import UserError


def local(path: Any) -> bool:
    """Whether a path is on this machine, not in a bucket."""
    return "://" not in str(path) or str(path).startswith(("/", "."))


def path_of(name: str | os.PathLike) -> epath.Path:
    """A path on this machine or in a bucket. Raises `UserError` for a kind of storage that is not known."""
    text = os.fspath(name)
    try:
        return epath.Path(re.sub("//+", "/", text) if local(text) else text)
    except KeyError:
        raise UserError(
            f"{text}: there is no such kind of storage; name a bucket of gs:// or s3://, or a local folder, with ./ "
            "before its name if that holds ://"
        ) from None


def refuse_links(*paths: Any) -> None:
    """Raise `UserError` if one of these files or folders of a workdir is a link: writing there would write elsewhere.

    The workdir itself may be a link.
    """
    for path in paths:
        if os.path.islink(path):
            raise UserError(
                f"{path} is a link, and what is written there would lie outside the workdir; remove it, and move there "
                "what it names, or make the whole workdir a link"
            )


def files_in(folder: Any) -> list[Any]:
    """All files below a folder, sorted."""
    files: list[Any] = []
    for path in sorted(folder.iterdir()):
        files += files_in(path) if path.is_dir() else [path]
    return files
