"""Local paths and paths in buckets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from etils import epath

from transformer.config import UserError


def local(path: Any) -> bool:
    """Whether a path is local, not in a bucket."""
    return "://" not in str(path) or str(path).startswith(("/", "."))


def refuse_empty(what: str, name: str | os.PathLike) -> None:
    """Raise `UserError` for an empty path, as an unset variable of a shell gives; it would be the current folder."""
    if not os.fspath(name):
        raise UserError(f"{what} is empty, as where a variable of the shell is not set; give a path")


def path_of(name: str | os.PathLike) -> epath.Path:
    """Parse a local path or a path in a bucket; ~ is the home folder, as in a shell. Raises `UserError` for an empty
    one or an unknown kind of storage."""
    refuse_empty("a path", name)
    text = os.path.expanduser(os.fspath(name))
    try:
        return epath.Path(re.sub("//+", "/", text) if local(text) else text)
    except KeyError:
        raise UserError(
            f"{text}: unknown kind of storage; give a gs:// or s3:// bucket, or a local folder (with ./ before a name "
            "that contains ://)"
        ) from None


def local_path(what: str, name: str | os.PathLike) -> Path:
    """The path of something that can be local only. Raises `UserError` for an empty one, a bucket or an unknown kind of
    storage; `what` is its option."""
    refuse_empty(what, name)
    if not local(name):
        raise UserError(f"{what} {os.fspath(name)}: give a local path (with ./ before a name that contains ://)")
    return Path(os.path.expanduser(name))


def refuse_pipe(path: str | os.PathLike) -> None:
    """Raise `UserError` for a pipe or a device, which can be read only once, and for an empty path."""
    refuse_empty("a path", path)
    if (given := Path(path)).exists() and not given.is_file() and not given.is_dir():
        raise UserError(f"{path} is a pipe or a device, but it is read several times; write it to a file first")


def unreadable(path: object, error: Exception) -> UserError:
    """The error for a user's file that could not be opened or read, because of `error`."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path}: is a folder; name a file in it")
    return UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")


def refuse_links(*paths: Any) -> None:
    """Raise `UserError` if one of these files or folders in a workdir is a link, which may lead out of the workdir.

    The workdir itself may be a link.
    """
    for path in paths:
        if os.path.islink(path):
            raise UserError(
                f"{path} is a link, so writing there would write outside the workdir; replace the link by its target, "
                "or make the whole workdir a link"
            )


def files_in(folder: Any) -> list[Any]:
    """All files below a folder, sorted."""
    files: list[Any] = []
    for path in sorted(folder.iterdir()):
        files += files_in(path) if path.is_dir() else [path]
    return files
