"""Temporary names that tell their process, so that what killed processes left is found and removed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


def own_name(name: str) -> str:
    """A name for what is being made, which no other thread or process uses. `sweep` removes what a killed one left."""
    return f"{name}.{secrets.token_hex(4)}.{owner()}.tmp"


def owner() -> str:
    """This process, as part of the name of what it is making: HOST.NAMESPACE.PID.

    Containers may share a host's name, but not the numbers of their processes.
    """
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # another system
        namespace = 0
    return f"{socket.gethostname()}.{namespace}.{os.getpid()}"


@contextlib.contextmanager
def temporary(folder: Path, name: str) -> Iterator[Path]:
    """A new folder in `folder` for the length of a block. What killed processes left beside it is removed."""
    sweep(folder)
    path = folder / own_name(name)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder: what `own_name` named."""
    machine = owner().rpartition(".")[0]
    for path in folder.iterdir() if folder.is_dir() else ():
        process = path.name.removesuffix(".tmp").rpartition(".")[2]
        if path.name.endswith(f".{machine}.{process}.tmp") and process.isdecimal() and not _runs(int(process)):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True
