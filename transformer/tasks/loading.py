"""Load a trained model, for Python programs."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformer.checkpoint import Checkpoint, Checkpoints, Removed
from transformer.config import TOKENIZER_FILES, Config, UserError
from transformer.model import Model, Params

if TYPE_CHECKING:
    from transformer.data.tokenizer import Tokenizer


class Loaded(tuple[Model[Any], Params]):
    """The pair (model, params) of a checkpoint, with its config and its tokenizer."""

    _checkpoint: Checkpoint

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Loaded:
        """Read model, parameters and config. Raises `UserError` or `Removed`."""
        loaded = cls((checkpoint.model, checkpoint.params()))
        loaded._checkpoint = checkpoint
        _ = checkpoint.config
        try:  # now, as training may remove the checkpoint later
            _ = loaded._pieces
        except Removed:
            raise
        except UserError:  # missing or damaged: raised again when the tokenizer is asked for
            pass
        return loaded

    @property
    def config(self) -> Config:
        """The config of the run: model, data, training, decoding and evaluation."""
        return self._checkpoint.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a translation model. Imports sentencepiece on first use.

        Raises `UserError` for a language model, which has a vocabulary of its own kind (see `Generator`).
        """
        from transformer.data import marian

        name, content = self._pieces
        return marian.read(name, content, self._checkpoint.path / name)

    @cached_property
    def _pieces(self) -> tuple[str, bytes]:
        """Name and content of the tokenizer's file."""
        name = next(filter(self._checkpoint.has, TOKENIZER_FILES), TOKENIZER_FILES[0])
        return name, self._checkpoint.file(name)


def load(workdir: str | os.PathLike[str], checkpoint: str | int | None = None) -> Loaded:
    """Load the model of a workdir and its parameters: `model, params = load(workdir)`.

    The result is this pair; it also has the attributes `tokenizer` and `config`. `checkpoint` is 'best', 'last',
    'average' or a step; by default the average if there is one, else the best checkpoint, else the last. Raises
    `UserError` if there is no such checkpoint.
    """
    return Checkpoints(workdir).read(checkpoint, Loaded.of)
