"""The vocabulary of a run on running text: read from a file, or made from the training text."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformer.config import LabelledConfig, PretrainConfig, TextConfig
from transformer.data import vocabularies, wordpiece
from transformer.data.folder import writable_cache_dir
from transformer.data.running import Text, parts
from transformer.data.text import fingerprint_of_files, require_same_files
from transformer.data.vocabularies import Bytes, Characters, SentencePiece, Vocabulary
from transformer.data.wordpiece import EncoderVocabulary
from transformer.data.wordpiece_training import train_sentencepiece, train_wordpiece
from transformer.files import cached, write_file
from transformer.packages import require

V = TypeVar("V", bound=Vocabulary)

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
    depends_on = [_FORMAT, config.pieces, files, *train.chosen]
    if config.pieces == "sentencepiece":
        import sentencepiece

        depends_on += [sentencepiece.__version__, config.vocab_size, config.tokenizer_lines]

    def train_it() -> Vocabulary:
        read: dict[str, str] = {}
        made = _characters(train, read) if config.pieces == "characters" else _sentencepiece(config, train, read)
        require_same_files(train.paths, files, read)
        return made

    return _kept(config, depends_on, train_it, vocabularies.read, vocabularies.FILES)


def encoder_vocabulary(config: PretrainConfig, texts: Sequence[Text]) -> EncoderVocabulary:
    """`config.tokenizer` if given, else a vocabulary of the kind `config.pieces` made from the training texts.

    The cache folder keeps it, as with `vocabulary`.
    """
    if config.tokenizer is not None:
        return wordpiece.load(config.tokenizer)
    files = [fingerprint_of_files(text.paths) for text in texts]
    depends_on = [_FORMAT, config.pieces, config.lower_case, config.vocab_size, config.tokenizer_lines, files]
    depends_on += [text.chosen for text in texts]

    def train_it() -> EncoderVocabulary:
        read: dict[str, str] = {}
        made = _trained(config, list(_sampled(config, texts, read)))
        for text, digest in zip(texts, files, strict=True):
            require_same_files(text.paths, digest, read)
        return made

    depends_on.append(_library_version(config.pieces))
    return _kept(config, depends_on, train_it, wordpiece.read, wordpiece.FILES)


def labelled_vocabulary(config: LabelledConfig, texts: Sequence[str]) -> EncoderVocabulary:
    """As `encoder_vocabulary`, made from these texts."""
    if config.tokenizer is not None:
        return wordpiece.load(config.tokenizer)
    used = min(len(texts), config.tokenizer_lines)
    lines = [text for i, text in enumerate(texts) if (i + 1) * used // len(texts) > i * used // len(texts)]
    depends_on = [_FORMAT, config.pieces, config.lower_case, config.vocab_size, _library_version(config.pieces), lines]

    def train_it() -> EncoderVocabulary:
        log.info("training a vocabulary of %s pieces on %s texts", f"{config.vocab_size:,}", f"{used:,}")
        return _trained(config, lines)

    return _kept(config, depends_on, train_it, wordpiece.read, wordpiece.FILES)


def _trained(config: PretrainConfig | LabelledConfig, lines: list[str]) -> EncoderVocabulary:
    train = train_wordpiece if config.pieces == "wordpiece" else train_sentencepiece
    return train(lines, config.vocab_size, lower_case=config.lower_case)


def _library_version(pieces: str) -> str:
    """The version of the library that trains vocabularies of encoders. Raises `UserError` if it is missing."""
    if pieces == "wordpiece":
        require("data.pieces = 'wordpiece'", "tokenizers")
        import tokenizers as library
    else:
        import sentencepiece as library
    return library.__version__


def _kept(
    config: TextConfig | PretrainConfig | LabelledConfig,
    depends_on: list[Any],
    train: Callable[[], V],
    read: Callable[[str, bytes, Path], V],
    names: Sequence[str],
) -> V:
    """The vocabulary that the cache folder holds for `depends_on`; trained if it holds none. `names`: those of its
    file."""
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]

    def make(new: Path) -> None:
        name, content = train().file
        write_file(new / name, content)

    def read_in(folder: Path) -> V:
        path = next(folder / name for name in names if (folder / name).exists())
        return read(path.name, path.read_bytes(), path)

    with writable_cache_dir(config) as folder:
        return cached(folder / "vocabularies" / key, make, read_in, "the vocabulary")


def _characters(train: Text, read: dict[str, str]) -> Characters:
    found: set[str] = set()
    for part in parts(train, read):
        found.update(part.text)
    return Characters(found)


def _sentencepiece(config: TextConfig, train: Text, read: dict[str, str]) -> SentencePiece:
    from transformer.data.tokenizer import Tokenizer

    lines = _sampled(config, [train], read)
    return SentencePiece(Tokenizer.train(lines, vocab_size=config.vocab_size, running=True).model)


def _sampled(config: TextConfig | PretrainConfig, texts: Sequence[Text], read: dict[str, str]) -> Iterator[str]:
    """At most `config.tokenizer_lines` lines, spread evenly over the texts. `read`: see `parts`."""
    count = sum(1 for _ in _lines(texts))
    used = min(count, config.tokenizer_lines)
    log.info(
        "training a vocabulary of %s pieces on %s of %s lines", f"{config.vocab_size:,}", f"{used:,}", f"{count:,}"
    )
    for i, line in enumerate(_lines(texts, read)):
        if (i + 1) * used // count > i * used // count:
            yield line


def _lines(texts: Sequence[Text], read: dict[str, str] | None = None) -> Iterator[str]:
    """The lines of texts that are not blank."""
    for text in texts:
        for part in parts(text, read):
            yield from (line for line in part.text.split("\n") if line.strip())
