"""Names and kinds of the folders in `workdir/checkpoints`, and of those with the runs of several seeds.

Runs that differ in their seed are workdirs in folders seed-N of a common one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from typing import Any

from etils import epath

from transformer.config import UserError
from transformer.files import UNFINISHED, path_of, sealed

AVERAGE = "average"
NEXT = "average.next"  # a new average, until it replaces the old one
INTERRUPTED = ".interrupted"
SAVED = ".saved"  # file in the workdir that holds the name of the last checkpoint that training sealed
_SEED = re.compile(r"seed-(0|[1-9][0-9]{0,9})")


def folder_of(workdir: str | epath.Path) -> epath.Path:
    """The checkpoints folder of a workdir. Raises `UserError` if the workdir cannot be reached."""
    if not isinstance(workdir, (str, os.PathLike)):
        raise UserError(f"the workdir is a {type(workdir).__name__}: give a path")
    if not os.fspath(workdir) or "\0" in os.fspath(workdir) or not _encodable(workdir):
        raise UserError(f"the workdir is {os.fspath(workdir)!r}: give the path of a folder")
    workdir = path_of(workdir)
    # Orbax accepts absolute paths only. `resolve` would turn gs:// into a local folder.
    folder = (workdir if workdir.is_absolute() else workdir.resolve()) / "checkpoints"
    storage = logging.getLogger("gcsfs")  # it logs a traceback of every exception that it raises
    level = storage.level
    try:
        storage.setLevel(logging.CRITICAL)
        folder.exists()
    except ImportError as error:  # buckets need packages that are not installed with this one
        raise UserError(f"{workdir}: {error}") from None
    except Exception as error:  # each kind of storage has its own exceptions
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{workdir} cannot be reached ({reason}); check its name, the network and your rights"
        ) from None
    finally:
        storage.setLevel(level)
    return folder


def _encodable(path: str | epath.Path) -> bool:
    """Whether the system can have this path: not if it holds half a surrogate pair."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def interrupted(step: int) -> str:
    """Name of the checkpoint that a run saves when it is asked to stop after update `step`."""
    return f"{step:08d}{INTERRUPTED}"


def is_training_name(name: str) -> bool:
    """Whether training gives its checkpoints names of this form: eight digits, perhaps with `.interrupted`."""
    number = name.removesuffix(INTERRUPTED)
    return number.isdecimal() and number == f"{int(number):08d}"


def unfinished(path: epath.Path) -> bool:
    """Whether this program was writing or removing this folder. An empty folder counts: writing may have just begun."""
    if not path.is_dir() or sealed(path):
        return False
    return (path / UNFINISHED).exists() or not any(path.iterdir())


def once_saved(folder: epath.Path, every: int) -> str | None:
    """Evidence, in words, that a run saved checkpoints every `every` updates, even if they are gone now; else None."""
    workdir = folder.parent
    with contextlib.suppress(OSError, ValueError):
        return f"checkpoint {(workdir / SAVED).read_text().strip()} was saved"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not unfinished(path):  # such as an average, or an incomplete copy
            return f"{path} exists"
    with contextlib.suppress(OSError):
        if (workdir / "scores.jsonl").stat().length:
            return f"{workdir / 'scores.jsonl'} holds scores of a checkpoint"
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # for example half a line
            if (step := json.loads(line)["step"]) > 2 * every:  # the second save waits for the first
                return f"{workdir / 'metrics.jsonl'} reaches step {step}"
    return None


def seed_folder(workdir: Any, seed: int) -> epath.Path:
    """The workdir of the run with this seed."""
    return folder_of(workdir).parent / f"seed-{seed}"


def seeds_in(workdir: Any) -> list[int]:
    """The seeds of the runs in a common workdir, ascending; none if it has no such folders."""
    folder = folder_of(workdir).parent
    found = [_SEED.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match and (folder / match[0] / "config.json").exists())


def exported_form(folder: epath.Path) -> str | None:
    """The format, as `import --from` calls it, of a folder that holds an exported model; None for other folders."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    if (kind := config.get("model_type")) in ("bert", "gpt2", "marian"):
        return f"hf-{kind}"
    return "safetensors" if "task" in config and (folder / "model.safetensors").exists() else None
