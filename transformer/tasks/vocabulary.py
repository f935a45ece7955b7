"""Choose the tokenizer of a run: the workdir's, that of `train.init_from`, or a new one."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from etils import epath

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import Config, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.files import path_of

log = logging.getLogger("transformer")


def vocabulary(config: Config, workdir: str) -> int:
    """The vocabulary size of a run in this workdir, in pieces; before its tokenizer is trained, the configured one."""
    pieces = inherited(config, workdir)
    if pieces is None and config.data.tokenizer:
        pieces = Tokenizer.load(config.data.tokenizer)
    size = pieces.vocab_size if pieces else config.data.vocab_size
    refuse_other_size(config, size)
    return size


def refuse_other_size(config: Config, size: int) -> None:
    """Raise `UserError` if model.vocab_size is not the size of the tokenizer."""
    if (given := config.model.vocab_size) not in (None, size):
        raise UserError(f"model.vocab_size = {given}: the tokenizer has {size} pieces; leave model.vocab_size out")


def inherited(config: Config, workdir: str | None) -> Tokenizer | None:
    """The tokenizer that a run reuses: the workdir's if the run resumes, else that of `train.init_from`; else None."""
    start, given = config.train.init_from, config.data.tokenizer
    if workdir and Checkpoints(workdir).states():
        pieces = tokenizer_of(workdir)
        if given is not None:
            refuse_other(given, pieces, workdir)
        return pieces
    if start is None:
        return None
    pieces = Checkpoints(start).read(None, _tokenizer_in)
    if given and Tokenizer.load(given).sha256 != pieces.sha256:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer of train.init_from = {start!r}; leave data.tokenizer "
            "out to use that one"
        )
    return pieces


def tokenizer_of(workdir: str) -> Tokenizer:
    """The tokenizer of a run that has checkpoints.

    It is the workdir's tokenizer.model if that has the sha256 in tokenizer.sha256. Else it is the tokenizer of the
    newest whole checkpoint, with a warning if the two differ. Raises `UserError` if no checkpoint is whole.
    """
    path = path_of(workdir) / "tokenizer.model"
    model, digest = _content(path), _content(path.with_name("tokenizer.sha256"))
    if model and digest and digest.split()[:1] == [hashlib.sha256(model).hexdigest().encode()]:
        return Tokenizer(model, str(path))
    wrong = f"{path} is {'missing' if model is None else 'not as it was written'}"
    whole = Checkpoints(workdir).newest_whole()
    if whole is None:
        raise UserError(f"{wrong}, and no checkpoint is whole; restore a copy")
    pieces = _tokenizer_in(whole)
    if pieces.model != model:
        log.warning("%s; taking the one that checkpoint %s holds", wrong, whole.name)
    return pieces


def _tokenizer_in(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that the parameters of a checkpoint were trained with."""
    return Tokenizer(checkpoint.file("tokenizer.model"), str(checkpoint.path / "tokenizer.model"))


def _content(path: epath.Path) -> bytes | None:
    """The content of a file, or None if it does not exist. Raises `UserError` if it cannot be read."""
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:  # such as a folder
        why = error.strerror or error
        raise UserError(f"{path} cannot be read ({why}); restore a copy, then run the same command again") from None


def refuse_other(given: str, tokenizer: Tokenizer, workdir: str) -> None:
    """Raise `UserError` if the file `given` is not the same as `tokenizer`, the one of the workdir."""
    try:
        same = Path(given).read_bytes() == tokenizer.model
    except OSError as error:
        raise UserError(f"data.tokenizer = {given!r} cannot be read ({error.strerror or error})") from None
    if not same:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer that {workdir} was trained with, "
            f"{path_of(workdir) / 'tokenizer.model'}; give that one, or use another --workdir"
        )
