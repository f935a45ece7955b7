"""Which tokenizer a run has: the one it was begun with, that of `train.init_from`, or its own."""

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
    """How many pieces the vocabulary of a run in this workdir has, or will have once its tokenizer is trained."""
    pieces = inherited(config, workdir)
    if pieces is None and config.data.tokenizer:
        pieces = Tokenizer.load(config.data.tokenizer)
    return pieces.vocab_size if pieces else config.data.vocab_size


def inherited(config: Config, workdir: str | None) -> Tokenizer | None:
    """The tokenizer that a run takes over: the workdir's where it goes on, else that of `train.init_from`, if any."""
    start, given = config.train.init_from, config.data.tokenizer
    if workdir and Checkpoints(workdir).states() and (found := tokenizer_of(workdir)):
        if given is not None:
            refuse_other(given, found, workdir)
        return found
    if start is None:
        return None
    found = tokenizer_of(start)
    if found is None:
        raise UserError(f"train.init_from = {start!r}: no tokenizer.model there")
    if given and Tokenizer.load(given).sha256 != found.sha256:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer of train.init_from = {start!r}; leave data.tokenizer "
            "out to use that one"
        )
    return found


def tokenizer_of(workdir: str) -> Tokenizer | None:
    """The tokenizer of a run, or None; where the workdir's own file is damaged, that of the newest whole checkpoint."""
    path = path_of(workdir) / "tokenizer.model"
    said = path.with_name("tokenizer.sha256")
    if not path.exists():
        return None
    model = path.read_bytes()
    if said.exists() and said.read_bytes().split()[:1] != [hashlib.sha256(model).hexdigest().encode()]:
        whole = Checkpoints(workdir).newest_whole()
        if whole is None:
            raise UserError(f"{path} is not as it was written, as {said} tells; bring back a copy of it")
        log.warning("%s is not as it was written; taking the one that checkpoint %s holds", path, whole.name)
        model = whole.file(path.name)
    return Tokenizer(model, str(path))


def refuse_other(given: str, tokenizer: Tokenizer, workdir: str) -> None:
    """Raise `UserError` if the file `given` holds another tokenizer than this one, which is the workdir's."""
    try:
        same = Path(given).read_bytes() == tokenizer.model
    except OSError as error:
        raise UserError(f"data.tokenizer = {given!r} cannot be read ({error.strerror or error})") from None
    if not same:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer that {workdir} was trained with, "
            f"{path_of(workdir) / 'tokenizer.model'}; give that one, or use another --workdir"
        )
