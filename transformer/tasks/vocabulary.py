"""Choose the tokenizer of a run: the workdir's, that of `train.init_from`, or a new one."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from transformer.checkpoint import Checkpoints
from transformer.config import Config, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.files import path_of

log = logging.getLogger("transformer")


def vocabulary(config: Config, workdir: str) -> int:
    """The vocabulary size of a run in this workdir, in pieces; before its tokenizer is trained, the configured one."""
    pieces = inherited(config, workdir)
    if pieces is None and config.data.tokenizer:
        pieces = Tokenizer.load(config.data.tokenizer)
    return pieces.vocab_size if pieces else config.data.vocab_size


def inherited(config: Config, workdir: str | None) -> Tokenizer | None:
    """The tokenizer that a run reuses: the workdir's if the run resumes, else that of `train.init_from`; else None."""
    start, given = config.train.init_from, config.data.tokenizer
    if workdir and Checkpoints(workdir).states() and (pieces := tokenizer_of(workdir)):
        if given is not None:
            refuse_other(given, pieces, workdir)
        return pieces
    if start is None:
        return None
    pieces = tokenizer_of(start)
    if pieces is None:
        raise UserError(f"train.init_from = {start!r}: no tokenizer.model there")
    if given and Tokenizer.load(given).sha256 != pieces.sha256:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer of train.init_from = {start!r}; leave data.tokenizer "
            "out to use that one"
        )
    return pieces


def tokenizer_of(workdir: str) -> Tokenizer | None:
    """The tokenizer in a workdir, or None. If its file is damaged, the tokenizer in the newest whole checkpoint."""
    path = path_of(workdir) / "tokenizer.model"
    digest = path.with_name("tokenizer.sha256")
    if not path.exists():
        return None
    model = path.read_bytes()
    if digest.exists() and digest.read_bytes().split()[:1] != [hashlib.sha256(model).hexdigest().encode()]:
        whole = Checkpoints(workdir).newest_whole()
        if whole is None:
            raise UserError(f"{path} is not as it was written: its sha256 is not the one in {digest}; restore a copy")
        log.warning("%s is not as it was written; taking the one that checkpoint %s holds", path, whole.name)
        model = whole.file(path.name)
    return Tokenizer(model, str(path))


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
