"""Temporary names that contain their process id, so that the leftovers of killed processes can be removed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


def temporary_name(name: str) -> str:
    """A temporary name that no other thread or process uses. If the process is killed, `sweep` removes the file."""
    return f"{name}.{secrets.token_hex(4)}.{owner()}.tmp"


def owner() -> str:
    """Identify this process for names of temporary files: HOST.NAMESPACE.PID.

    NAMESPACE is the process id namespace: containers may share a host name, but not their process ids.
    """
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not a Linux system
        namespace = 0
    return f"{socket.gethostname()}.{namespace}.{os.getpid()}"


@contextlib.contextmanager
def temporary(folder: Path, name: str) -> Iterator[Path]:
    """A new folder in `folder` during a block. Also removes what killed processes left in `folder`."""
    sweep(folder)
    path = folder / temporary_name(name)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove files and folders with a `temporary_name` that killed processes of this machine left in a folder."""
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
    except OSError:  # it runs, but belongs to another user
        pass
    return True
