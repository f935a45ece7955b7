"""The workdir of a run: lock it, and compare the config of the run in it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from transformer.checkpoint import Checkpoints, exported_form
from transformer.config import UserError, conflicts, differences, from_json
from transformer.files import Lock, local, path_of, refuse_links, sealed

log = logging.getLogger("transformer")

# What a run writes to its workdir after config.json. That file comes first and marks the folder as a workdir.
MADE = (
    *("checkpoints", "metrics.jsonl", "scores.jsonl", "sets", "tensorboard"),
    *("tokenizer.model", "tokenizer.json", "characters.json", "bytes.json", "marian.json"),
    *("labels.json", "symbols.json", "tokenizer.sha256"),
)
FOLDERS = ("checkpoints", "sets", "tensorboard", "profile")


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[Lock]:
    """Make the workdir and lock it against other training runs. Reading from it needs no lock.

    Removes a new folder again if the run is refused before it has written anything. Raises `UserError` if another run
    holds the lock, or if the folder cannot be written.
    """
    lock, folder = _lock(workdir), path_of(workdir)
    new = not folder.exists()
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held())
        except OSError as error:
            raise _unwritable(workdir, error) from None
        try:
            yield lock
        except UserError:
            if new and local(folder):
                _remove_unused(folder)
            raise


def _remove_unused(folder: Any) -> None:
    """Remove a folder that holds nothing but the lock."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def refuse_held(workdir: str) -> None:
    """Raise `UserError` if `hold` would refuse this workdir: it cannot be one, or another run holds its lock. Writes
    nothing."""
    try:
        _lock(workdir).refuse_held()
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _unwritable(workdir: str, error: OSError) -> UserError:
    return UserError(f"--workdir {workdir}: {error.strerror or error}; name a folder that can be written")


def _lock(workdir: str) -> Lock:
    """The lock of a workdir. Raises `UserError` for a checkpoint's folder, and for links in the workdir or files in the
    place of its folders."""
    folder = path_of(workdir)
    if sealed(folder):
        raise UserError(f"--workdir {workdir}: this is a checkpoint, whose folder must not change; use another folder")
    refuse_links(*(folder / name for name in (".lock", "config.json", "profile", *MADE)))
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise UserError(f"{folder / name} is a file, but training makes a folder there; move the file away")
    return Lock(folder / ".lock", "another run trains there; stop it first, or use another --workdir")


def refuse_other_config(config: Any, workdir: str) -> None:
    """Raise `UserError` if the folder holds a run with a conflicting config, or is no workdir. Log the rest."""
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps()
    if not checkpoints.states() and (form := exported_form(path_of(workdir))) is not None:
        raise UserError(
            f"{workdir} holds an exported model; use another --workdir. To start from it: python -m transformer import "
            f"{workdir} NEW --from {form}, and --train.init_from NEW"
        )
    old_config = config_of(checkpoints)
    if old_config is None:
        refuse_no_workdir(workdir)
        return
    refuse_conflict(old_config, config, workdir)
    if not checkpoints.states() and (saved := checkpoints.once_saved(old_config.train.checkpoint_every)):
        raise UserError(
            f"{workdir}: {saved}, but no complete checkpoint is in {checkpoints.folder}; bring them back, or start "
            "anew with another --workdir"
        )
    if steps:
        for name, (old, new) in differences(old_config, config).items():
            if name == "model.vocab_size":  # None where the config leaves it to the task
                continue
            log.info("resuming with %s changed from %r to %r", name, old, new)
        t = config.train
        if t.decay_steps is not None and not t.final_learning_rate and t.steps > t.decay_steps:
            log.warning(
                "train.steps = %d: from update %d on (train.decay_steps) the learning rate is 0, so nothing more is "
                "learnt; to train further, start another run with --train.init_from %s",
                *(t.steps, t.decay_steps, workdir),
            )


def refuse_no_workdir(folder: str) -> None:
    """Raise `UserError` if a folder without config.json holds what training would overwrite, or is within a workdir."""
    path = path_of(folder)
    if path.name == "checkpoints" and (path.parent / "config.json").exists():
        raise UserError(f"{folder} holds the checkpoints of a run; give the workdir itself: {path.parent}")
    if made := [name for name in MADE if (path_of(folder) / name).exists()]:
        raise UserError(
            f"{folder} is not a workdir of train.py: it has no config.json, but {', '.join(made)}, which "
            "training would overwrite; use another --workdir"
        )


def refuse_conflict(old: Any, new: Any, workdir: object) -> None:
    """Raise `UserError` if a run of config `old`, in this workdir, can't go on with config `new`."""
    if conflicting := conflicts(old, new):
        listed = "; ".join(f"{name} is {before!r} there, {now!r} now" for name, (before, now) in conflicting.items())
        raise UserError(
            f"{workdir} was trained with another config: {listed}. Use another --workdir, or the same values"
        )


def config_of(checkpoints: Checkpoints) -> Any:
    """The config of the run in a workdir: that in config.json, or that of the newest checkpoint if config.json is
    missing, can't be read, or conflicts with each checkpoint. None if there is neither.

    Raises `UserError` if config.json can't be read and no checkpoint has a config.
    """
    path, wrong = checkpoints.folder.parent / "config.json", None
    if path.exists():
        try:
            config = from_json(path.read_bytes().decode(), str(path))
            if (difference := _unlike_saved(config, _saved_configs(checkpoints))) is None:
                return config
            wrong = f"{path} is not as it was written ({difference})"
        except (UserError, OSError, UnicodeDecodeError) as error:
            wrong = error
    name, config = next(_saved_configs(checkpoints), (None, None))
    if wrong is not None:
        if config is None:
            workdir = checkpoints.folder.parent
            raise UserError(f"{workdir} is not a workdir of train.py ({wrong}); use another --workdir") from None
        log.warning("%s; taking the one that checkpoint %s holds", wrong, name)
    return config


def _saved_configs(checkpoints: Checkpoints) -> Iterator[tuple[int | str, Any]]:
    """Name and config of each checkpoint, the newest first. Passes over those whose config can't be read."""
    for name in reversed(checkpoints.states()):
        with contextlib.suppress(UserError):
            yield name, checkpoints.at(name).config


def _unlike_saved(config: Any, saved: Iterator[tuple[int | str, Any]]) -> str | None:
    """How a config differs from that of the newest checkpoint, in words; None if a checkpoint or none has such a
    config. Checkpoints may be of another run, so one that agrees is enough."""
    newest = None
    for name, other in saved:
        conflicting = conflicts(other, config)
        if not conflicting:
            return None
        newest = newest or (name, conflicting)
    if newest is None:
        return None
    name, conflicting = newest
    return "; ".join(
        f"{field} is {new!r} there, {old!r} in checkpoint {name}" for field, (old, new) in conflicting.items()
    )
