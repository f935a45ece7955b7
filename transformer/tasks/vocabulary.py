"""Choose the vocabulary of a run: the workdir's, that of `train.init_from`, or a new one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import TOKENIZER_FILES, UserError
from transformer.data import marian, vocabularies, wordpiece
from transformer.files import path_of

log = logging.getLogger("transformer")

_WITHOUT = "choose another checkpoint or workdir, or import the model again, with its tokenizer"
DIGEST = "tokenizer.sha256"  # file in the workdir beside that of the vocabulary


class Kind(NamedTuple):
    """How the vocabularies of a task are read. Each has `file`, the (name, content) in a workdir, and `sha256`."""

    names: tuple[str, ...]
    """The names that the file may have."""
    read: Callable[[str, bytes, str], Any]
    """(name, content, where it comes from) -> the vocabulary."""
    load: Callable[[str], Any]
    """Path of a user's file -> the vocabulary."""


TOKENIZERS = Kind(TOKENIZER_FILES, marian.read, marian.load)
VOCABULARIES = Kind(vocabularies.FILES, vocabularies.read, vocabularies.load)
ENCODER_VOCABULARIES = Kind(wordpiece.FILES, wordpiece.read, wordpiece.load)


def files_of(pieces: Any) -> dict[str, bytes]:
    """The files of a vocabulary in a workdir and in each checkpoint: its own, and the sha256 of that."""
    name, content = pieces.file
    return {name: content, DIGEST: f"{pieces.sha256}  {name}\n".encode()}


def size_before_training(config: Any, workdir: str, kind: Kind = TOKENIZERS) -> int | None:
    """The vocabulary size of a run in this workdir, in pieces, before any text is read; None if the text decides."""
    pieces = inherited(config, workdir, kind)
    if pieces is None and config.data.tokenizer:
        pieces = kind.load(config.data.tokenizer)
    if pieces is not None:
        size = pieces.vocab_size if kind is TOKENIZERS else pieces.size
    else:
        of_pieces = {"characters": None, "bytes": vocabularies.Bytes().size}
        size = of_pieces.get(getattr(config.data, "pieces", None), config.data.vocab_size)
    if size is not None:
        refuse_other_size(config, size)
    return size


def sized(config: Any, size: int) -> Any:
    """The config with the size of its vocabulary. Raises `UserError` if model.vocab_size is another one."""
    refuse_other_size(config, size)
    return dataclasses.replace(config, model=config.model.with_vocabulary(size))


def refuse_other_size(config: Any, size: int) -> None:
    """Raise `UserError` if model.vocab_size is not the size of the vocabulary."""
    if (given := config.model.vocab_size) not in (None, size):
        raise UserError(f"model.vocab_size = {given}: the tokenizer has {size} pieces; leave model.vocab_size out")


def inherited(config: Any, workdir: str | None, kind: Kind = TOKENIZERS) -> Any:
    """The vocabulary that a run reuses: the workdir's if the run resumes, else that of `train.init_from`; else None."""
    start, given = config.train.init_from, config.data.tokenizer
    if workdir and Checkpoints(workdir).states():
        pieces = vocabulary_of(workdir, kind)
        if given is not None:
            refuse_other(given, pieces, workdir, kind)
        return pieces
    if start is None:
        return None
    pieces = Checkpoints(start).read(None, lambda opened: _of_start(opened, config, kind))
    if given and kind.load(given).sha256 != pieces.sha256:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer of train.init_from = {start!r}; leave data.tokenizer "
            "out to use that one"
        )
    return pieces


def _of_start(opened: Checkpoint, config: Any, kind: Kind) -> Any:
    """The vocabulary of the checkpoint that a run begins from. Raises `UserError` if the run can't read it."""
    for name in kind.names:
        if opened.has(name):
            opened.file(name)  # raises if it is damaged: then the task is not to blame
    try:
        return vocabulary_in(opened, kind)
    except UserError:
        if (task := opened.config.task) == config.task:
            raise
        raise UserError(
            f"train.init_from = {config.train.init_from!r}: a run of the task {task!r}, whose vocabulary the task "
            f"{config.task!r} can't use; name a run of {config.task!r}, or leave train.init_from out"
        ) from None


def vocabulary_of(workdir: str, kind: Kind = TOKENIZERS) -> Any:
    """The vocabulary of a run that has checkpoints.

    It is that of the workdir if it has the sha256 in tokenizer.sha256. Else it is that of the newest whole checkpoint,
    with a warning if the two differ. Raises `UserError` if no checkpoint is whole.
    """
    folder = path_of(workdir)
    path = next((folder / name for name in kind.names if (folder / name).exists()), folder / kind.names[0])
    content, digest = content_of(path), content_of(folder / DIGEST)
    if content and digest and digest.split()[:1] == [hashlib.sha256(content).hexdigest().encode()]:
        return kind.read(path.name, content, str(path))
    wrong = f"{path} is {'missing' if content is None else 'not as it was written'}"
    whole = Checkpoints(workdir).newest_whole()
    if whole is None:
        raise UserError(f"{wrong}, and no checkpoint is whole; restore a copy")
    pieces = vocabulary_in(whole, kind)
    if pieces.file[1] != content:
        log.warning("%s; taking the one that checkpoint %s holds", wrong, whole.name)
    return pieces


def vocabulary_in(checkpoint: Checkpoint, kind: Kind = TOKENIZERS) -> Any:
    """The vocabulary that the parameters of a checkpoint were trained with. Raises `UserError` if it has none."""
    name = next(filter(checkpoint.has, kind.names), None)
    if name is None:
        raise UserError(f"{checkpoint.path} holds no {' or '.join(kind.names)}; {_WITHOUT}")
    return kind.read(name, checkpoint.file(name), str(checkpoint.path / name))


def content_of(path: epath.Path) -> bytes | None:
    """The content of a file, or None if it does not exist. Raises `UserError` if it cannot be read."""
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:  # such as a folder
        why = error.strerror or error
        raise UserError(f"{path} cannot be read ({why}); restore a copy, then run the same command again") from None


def refuse_other(given: str, pieces: Any, workdir: str, kind: Kind = TOKENIZERS) -> None:
    """Raise `UserError` if the file `given` is not the vocabulary of the workdir."""
    try:
        same = Path(given).read_bytes() == pieces.file[1]
    except OSError as error:
        raise UserError(f"data.tokenizer = {given!r} cannot be read ({error.strerror or error})") from None
    with contextlib.suppress(UserError):  # reading may change the normaliser
        same = same or kind.load(given).sha256 == pieces.sha256
    if not same:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer that {workdir} was trained with, "
            f"{path_of(workdir) / pieces.file[0]}; give that one, or use another --workdir"
        )
