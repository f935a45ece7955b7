"""Where the checkpoints of a workdir lie, and which folder there is what."""

from __future__ import annotations

import contextlib
import json
import logging
import os

from etils import epath

from transformer.config import UserError
from transformer.files import UNFINISHED, path_of, sealed

AVERAGE = "average"
NEXT = "average.next"  # a new average, until it has taken the place of the old one
INTERRUPTED = ".interrupted"
SAVED = ".saved"  # in the workdir: the name of the last checkpoint that training has sealed


def folder_of(workdir: str | epath.Path) -> epath.Path:
    """The folder of a workdir's checkpoints. Raises `UserError` where the workdir cannot be reached."""
    if not isinstance(workdir, (str, os.PathLike)):
        raise UserError(f"the workdir is a {type(workdir).__name__}: give a path")
    workdir = path_of(workdir)
    # Orbax takes absolute paths only; `resolve` would take gs:// for a local folder.
    folder = (workdir if workdir.is_absolute() else workdir.resolve()) / "checkpoints"
    storage = logging.getLogger("gcsfs")  # which logs a traceback of whatever it raises
    level = storage.level
    try:
        storage.setLevel(logging.CRITICAL)
        folder.exists()
    except ImportError as error:  # what a bucket needs is not installed with this package
        raise UserError(f"{workdir}: {error}") from None
    except Exception as error:  # each storage has its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{workdir} cannot be reached ({reason}); check its name, the network and your rights"
        ) from None
    finally:
        storage.setLevel(level)
    return folder


def interrupted(step: int) -> str:
    """The name of the checkpoint of a run that was asked to stop after so many updates."""
    return f"{step:08d}{INTERRUPTED}"


def of_training(name: str) -> bool:
    """Whether this is the name of a checkpoint that training saves."""
    number = name.removesuffix(INTERRUPTED)
    return number.isdecimal() and number == f"{int(number):08d}"


def unfinished(path: epath.Path) -> bool:
    """Whether this program was writing or removing it; an empty one it may have been about to write."""
    if not path.is_dir() or sealed(path):
        return False
    return (path / UNFINISHED).exists() or not any(path.iterdir())


def once_saved(folder: epath.Path, every: int) -> str | None:
    """What shows that a run saved checkpoints, one in so many updates, whether they are there now or not."""
    workdir = folder.parent
    with contextlib.suppress(OSError, ValueError):
        return f"checkpoint {(workdir / SAVED).read_text().strip()} was saved"
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.is_dir() and not unfinished(path):  # such as an average, or half a copy
            return f"{path} is there"
    with contextlib.suppress(OSError):
        if (workdir / "scores.jsonl").stat().length:
            return f"{workdir / 'scores.jsonl'} holds scores of one"
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # of half a line, say
            if (step := json.loads(line)["step"]) > 2 * every:  # the second save waits for the first
                return f"{workdir / 'metrics.jsonl'} reaches step {step}"
    return None
