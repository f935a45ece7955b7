"""The vocabulary of a language model's run: read from a file, or made from the training text."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from transformer.config import TextConfig
from transformer.data import vocabularies
from transformer.data.folder import writable_cache_dir
from transformer.data.running import Text, parts
from transformer.data.text import fingerprint_of_files, require_same_files
from transformer.data.vocabularies import Bytes, Characters, SentencePiece, Vocabulary
from transformer.files import cached, write_file

_FORMAT = 1  # part of every cache key: raise it when the same text gives another vocabulary

log = logging.getLogger("transformer")


def vocabulary(config: TextConfig, train: Text) -> Vocabulary:
    """`config.tokenizer` if given, else a vocabulary of the kind `config.pieces` made from the text `train`.

    The cache folder keeps it under a hash of the text and of all else that it depends on.
    """
    if config.tokenizer is not None:
        return vocabularies.load(config.tokenizer)
    if config.pieces == "bytes":
        return Bytes()
    files = fingerprint_of_files(train.paths)
    depends_on = [_FORMAT, config.pieces, files, *train[1:]]
    if config.pieces == "sentencepiece":
        import sentencepiece

        depends_on += [sentencepiece.__version__, config.vocab_size, config.tokenizer_lines]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]

    def make(new: Path) -> None:
        name, content = _trained(config, train, files).file
        write_file(new / name, content)

    with writable_cache_dir(config) as folder:
        return cached(folder / "vocabularies" / key, make, _read, "the vocabulary")


def _read(folder: Path) -> Vocabulary:
    path = next(folder / name for name in vocabularies.FILES if (folder / name).exists())
    return vocabularies.read(path.name, path.read_bytes(), path)


def _trained(config: TextConfig, train: Text, files: str) -> Vocabulary:
    """`files`: the fingerprint of the files of `train`."""
    read: dict[str, str] = {}
    made: Vocabulary
    if config.pieces == "characters":
        found: set[str] = set()
        for part in parts(train, read):
            found.update(part.text)
        made = Characters(found)
    else:
        from transformer.data.tokenizer import Tokenizer

        count = sum(1 for _ in _lines(train))
        used = min(count, config.tokenizer_lines)
        log.info(
            "training a vocabulary of %s pieces on %s of %s lines", f"{config.vocab_size:,}", f"{used:,}", f"{count:,}"
        )
        chosen = (line for i, line in enumerate(_lines(train, read)) if (i + 1) * used // count > i * used // count)
        made = SentencePiece(Tokenizer.train(chosen, vocab_size=config.vocab_size, running=True).model)
    require_same_files(train.paths, files, read)
    return made


def _lines(train: Text, digests: dict[str, str] | None = None) -> Iterator[str]:
    """The lines of a text that are not blank."""
    for part in parts(train, digests):
        yield from (line for line in part.text.split("\n") if line.strip())
