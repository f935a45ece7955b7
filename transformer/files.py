"""Files and folders that are whole or not there: atomic writes, whole lines, digests, sealed folders, locks.

A path is a local one or, as etils' epath, one in a bucket. A sealed folder holds a `manifest.json` with the size and
the sha256 of each of its files. The manifest is written last: a folder without one is unfinished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from etils import epath

from transformer.config import UserError
from transformer.phases import phase

log = logging.getLogger("transformer")
T = TypeVar("T")

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
"""The manifest's name while it is written. A folder may have it from its beginning, as a mark."""


# ---- Paths ----------------------------------------------------------------------------------------------------------


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


# ---- Writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Any) -> Iterator[None]:
    """A block that writes to or below `path`. An `OSError` in it becomes a `UserError`."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or path, error.strerror or error
        raise UserError(
            f"{where} cannot be written ({why}); make room or mend the folder, then run the same command again"
        ) from error


def synced(path: str | Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk.

    Raises `OSError` where a file can't be written. Folders that the system can't sync are left to it.
    """
    if os.path.isdir(path):
        with contextlib.suppress(OSError):
            _sync(path)
    else:
        _sync(path)


def _sync(path: str | Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def replace(path: Any, content: bytes) -> None:
    """Give a file this content, whole or not at all. A file that has it already is left alone."""
    temporary = path.parent / own_name(path.name)
    refuse_links(path)
    with writing(path):
        if path.exists() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            if local(path):
                synced(temporary)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with phase(f"renaming {path.name}"):
            temporary.replace(path)
        if local(path):
            synced(path.parent)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder for a block to fill. Once the block is done, and all of it is on the disk, it becomes `out`, which must
    be new or empty. If the block fails, nothing of it stays.

    Raises `OSError` where the disk refuses something, and `UserError` where something else came to `out` meanwhile.
    """
    made = [folder for folder in out.parents if not folder.exists()]
    there = out.exists()
    # A folder that is there may be a mount: it is filled, not replaced.
    building = (out if there else out.parent) / f".{out.name}.{uuid.uuid4().hex}.tmp"
    try:
        building.mkdir(parents=True)
        with _only_writer(out) if there else contextlib.nullcontext():
            yield building
            _require_free(out, building, there)
            for path in (*building.rglob("*"), building):
                synced(path)
            _require_free(out, building, there)
            if there:
                for path in sorted(building.iterdir()):
                    path.rename(out / path.name)
                building.rmdir()
            else:
                building.rename(out)
            synced(out.parent)
    except BaseException:
        for _ in range(50):  # while threads of a library may still write there
            shutil.rmtree(building, ignore_errors=True)
            if not building.exists():
                break
            time.sleep(0.1)
        with contextlib.suppress(OSError):  # others may use them by now
            for folder in made:
                folder.rmdir()
        raise


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """A block in which this process alone fills a folder. Raises `UserError` where another one does."""
    with _opened(folder) as at:
        if not _flock(at, folder):
            raise UserError(f"{folder}: another process writes there; wait until it is done, or name another folder")
        yield


def _require_free(out: Path, building: Path, there: bool) -> None:
    """Raise `UserError` unless `out` is still as it was when `building` was begun: empty, or not there."""
    free = out.is_dir() and list(out.iterdir()) == [building] if there else not os.path.lexists(out)
    if not free:
        raise UserError(
            f"{out}: something else was written there meanwhile, or it was replaced; that stays as it is: name a new "
            "folder, then run the command again"
        )


def append(path: Any, line: str) -> bool:
    """Add a line to a file of lines, in UTF-8. Returns whether half a line stood at the file's end; it stays, as a line
    of its own.

    Raises `OSError` where there is no room: then what was written of the line is taken back.
    """
    with open(path, "a+b", buffering=0) as file:
        _alone(file)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        half = size > 0 and file.read(1) != b"\n"
        content = memoryview((("\n" if half else "") + line + "\n").encode())
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise
    return half


def _alone(file: Any) -> None:
    """Wait until nobody else writes to a file or folder that is open here, where the system knows locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


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


# ---- Digests and sealed folders -------------------------------------------------------------------------------------


def digest(path: Any) -> dict[str, Any]:
    """Size and sha256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            size += len(block)
    return {"size": size, "sha256": sha256.hexdigest()}


def digest_of(content: bytes) -> dict[str, Any]:
    """Size and sha256 of a file with this content."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sealed(folder: Any) -> bool:
    """Whether a folder has a manifest. Whether its files are still as they were written, `damage` finds out."""
    return (folder / MANIFEST).exists()


def seal(folder: Any) -> None:
    """Write a folder's manifest, once all else in it is on the disk."""
    manifest = {str(f.relative_to(folder)): digest(f) for f in files_in(folder) if f != folder / UNFINISHED}
    if local(folder):
        with ThreadPoolExecutor(8) as pool:  # each waits for the disk, which takes them together
            list(pool.map(synced, [folder, *Path(folder).rglob("*")]))
    (folder / UNFINISHED).write_bytes((json.dumps(manifest, indent=2) + "\n").encode())
    if local(folder):
        synced(folder / UNFINISHED)
    with phase(f"renaming {MANIFEST}"):
        (folder / UNFINISHED).replace(folder / MANIFEST)
    if local(folder):
        for path in (folder, folder.parent):
            synced(path)


def manifest(folder: Any, content: bytes | None = None) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file of a sealed folder. Raises `ValueError` where the manifest itself is damaged.

    `content`: the manifest, where it was read already.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_bytes() if content is None else content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(entries, dict) or not entries:
        raise ValueError("it names no files")
    for file in entries:
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"it names {file}, which is not in the folder")
    return entries


def damage(folder: Any, digest_of_file: Callable[[Any], dict[str, Any]] | None = None) -> str | None:
    """What is wrong with the files of a sealed folder, or None.

    Raises `UserError` for a file that can't be read at the moment: that says nothing about what is in it.
    """
    try:
        for file, expected in manifest(folder).items():
            if not (folder / file).exists():
                return f"{folder / file} is missing"
            if (digest_of_file or digest)(folder / file) != expected:
                return f"{folder / file} is not as it was written"
    except ValueError as error:
        return f"{folder / MANIFEST} is not as it was written ({error})"
    except FileNotFoundError as error:
        return f"{error.filename or folder} is missing"
    except IsADirectoryError as error:
        return f"{error.filename or folder} is a folder"
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        raise UserError(f"{where} cannot be read ({why}); see to that, then run the same command again") from None
    return None


_digests: dict[tuple[int, ...], dict[str, Any]] = {}


def digest_once(path: Path) -> dict[str, Any]:
    """As `digest`; a file that has not changed since is read once a process."""
    found = path.stat()
    key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    if key not in _digests:
        _digests[key] = digest(path)
    return _digests[key]


def cached(folder: Path, make: Callable[[Path], None], read: Callable[[Path], T], what: str) -> T:
    """What `read` returns for a sealed folder of a cache: the one that is there, or the one that `make` fills now.

    `make` gets an empty folder. It is sealed, read, and renamed to `folder` when `make` returns. A damaged folder is
    made anew, with a warning that calls it `what`. `read` raises `ValueError` or `OSError` where files do not fit.
    """
    if folder.exists():
        try:
            wrong = damage(folder, digest_once) if sealed(folder) else f"{folder} has no {MANIFEST}"
            if not wrong:
                return read(folder)
        except (FileNotFoundError, ValueError, KeyError) as error:
            wrong = f"{folder}: {error}"
        log.warning("%s: making %s again", wrong, what)
    with temporary(folder.parent, folder.name) as new:
        with phase(f"building {what}"):
            make(new)
            seal(new)
        try:
            read(new)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: {what} cannot be read back ({error}); see whether the disk is full, or files may not be so "
                "large (ulimit -f), then run the same command again"
            ) from error
        with phase(f"renaming {what}"):
            _take_place(new, folder)
    return read(folder)


def _take_place(new: Path, folder: Path) -> None:
    """Rename a sealed folder. A whole one that another process put there meanwhile stays; a damaged one, or anything
    else, goes.

    One process does so at a time: else a whole folder could be taken for the damaged one that it replaced.
    """
    with _opened(folder.parent) as parent:
        _alone(parent)
        if os.path.lexists(folder):
            if sealed(folder) and damage(folder, digest_once) is None:
                return
            with temporary(folder.parent, "replaced") as old:
                os.rename(folder, old / folder.name)
                os.rename(new, folder)
        else:
            os.rename(new, folder)


@contextlib.contextmanager
def _opened(folder: Any) -> Iterator[int]:
    """The descriptor of an open folder."""
    at = os.open(folder, os.O_RDONLY)
    try:
        yield at
    finally:
        os.close(at)


# ---- Locks ----------------------------------------------------------------------------------------------------------


class Lock:
    """The right to write to a folder, while a file in it is locked.

    The lock is the system's: it goes with the process, however that ends. A bucket has none: there the file holds a
    mark of its last owner, so that the owner before it finds out.
    """

    def __init__(self, path: Any, busy: str = "another process writes there; wait until it is done"):
        """`busy`: what a second process is told."""
        self._path, self._busy, self._file = path, busy, None
        self._mark = secrets.token_hex(8)

    def check(self) -> None:
        """Raise `UserError` if the folder was removed or replaced since, or, in a bucket, another process took it."""
        try:
            if self._file is None:
                same = not self._mark or self._path.read_text() == self._mark
            else:
                same = _same(self._path, self._file.fileno())
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise UserError(f"{self._path} cannot be read ({error.strerror or error})") from None
        if not same:
            raise _no_longer(self._path.parent)

    @contextlib.contextmanager
    def held(self) -> Iterator[Lock]:
        """Hold the lock for a block. Raises `UserError` at once where another process holds it."""
        if not local(self._path):
            self._path.write_text(self._mark)
            yield self
            return
        with self._path.open("a") as file:
            if not _flock(file, self._path):
                raise UserError(f"{self._path.parent}: {self._busy}")
            self._file = file
            yield self


@contextlib.contextmanager
def unchanged(folder: Any) -> Iterator[Callable[[], None]]:
    """A block with a function to call before each write. It raises `UserError` if another folder, or none, lies at this
    path by then.

    For whoever adds to a folder without a lock. Of one in a bucket nothing can be told.
    """
    with contextlib.ExitStack() as stack:
        at = None
        with contextlib.suppress(OSError):  # told by whoever reads there
            at = stack.enter_context(_opened(folder)) if local(folder) else None

        def check() -> None:
            with contextlib.suppress(OSError):
                if at is None or _same(folder, at):
                    return
            raise _no_longer(folder)

        yield check


def _same(path: Any, at: int) -> bool:
    """Whether what lies at a path is what is open under a descriptor. (As long as it is open, nothing else gets its
    number.)"""
    there, held = os.stat(path), os.fstat(at)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _no_longer(folder: Any) -> UserError:
    return UserError(
        f"{folder} is no longer the folder that this run began in: it was removed, replaced or taken over by another "
        "run; nothing more is written there"
    )


def _flock(file: IO | int, path: Any) -> bool:
    """Lock an open file or folder. Returns False where another process holds it."""
    try:
        import fcntl
    except ImportError:  # another system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that nobody else writes there", path, error.strerror)
    return True
