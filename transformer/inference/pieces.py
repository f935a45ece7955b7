"""From text to pieces: check what the caller passes, encode it, and cut what is too long."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer.config import UserError, shown

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.tokenizer import Tokenizer
    from transformer.data.wordpiece import EncoderVocabulary

log = logging.getLogger("transformer")

_NEIGHBOURHOOD = 256  # pieces around a position that its piece may depend on
_LONGEST_SHOWN = 40  # characters of a word
MAX_LINES = 2**31 - 1  # sampling numbers the lines with 32 bits


def encode(tokenizer: Tokenizer, sentences: Sequence[str], longest: int, first_line: int | None = 1) -> list[list[int]]:
    """The pieces of each sentence, cut to `longest` (= `decode.max_source_length`) pieces; none for a blank sentence.

    Warns of cut sentences, and of characters that no piece contains. `first_line`: the line number of the first
    sentence, for warnings; None = no warnings.
    """
    heads = [_head(tokenizer, sentence, longest) for sentence in sentences]
    pieces = tokenizer.encode(heads)
    for i, ids in enumerate(pieces):
        if not heads[i].strip():
            ids.clear()
        elif len(ids) > longest:
            if first_line is not None:
                more = "more than " if len(heads[i]) < len(sentences[i]) else ""
                log.warning(
                    "line %d: %s%d pieces, cut to decode.max_source_length = %d",
                    *(first_line + i, more, len(ids), longest),
                )
            del ids[longest:]
    if first_line is not None and (unknown := tokenizer.unknown(heads, first_line)):
        log.warning(unknown)
    return pieces


def _head(tokenizer: Tokenizer, sentence: str, longest: int) -> str:
    """The beginning of a very long sentence, long enough that its first `longest` pieces do not change.

    So a sentence as long as a book need not be encoded whole. Pieces end at spaces; within a word they depend only on
    their neighbourhood.
    """
    enough = longest + _NEIGHBOURHOOD
    size = 16 * enough
    while 2 * size < len(sentence):
        space = sentence.rfind(" ", size // 2, size)
        head = sentence[: size if space < 0 else space]
        if len(tokenizer.encode([head])[0]) >= enough and head.strip():
            return head
        size *= 4
    return sentence


def encoder_vocabulary(checkpoint: Checkpoint) -> EncoderVocabulary:
    """The vocabulary of a checkpoint of an encoder alone. Raises `UserError` if it has none, as an imported model whose
    folder had no tokenizer."""
    from transformer.data import wordpiece

    name = next(filter(checkpoint.has, wordpiece.FILES), None)
    if name is None:
        workdir = checkpoint.path.parent.parent
        raise UserError(f"{workdir} has no vocabulary, so it can't read text; import the model with its tokenizer")
    return wordpiece.read(name, checkpoint.file(name), str(checkpoint.path / name))


def require_encoder_vocabulary(vocabulary: Any) -> None:
    """Raise `UserError` unless this is a vocabulary of an encoder alone."""
    from transformer.data.wordpiece import EncoderVocabulary

    if not isinstance(vocabulary, EncoderVocabulary):
        raise UserError(
            f"vocabulary = {shown(vocabulary)}: give that of an encoder alone, such as transformer.data.wordpiece.load "
            "returns"
        )


def framed(
    pieces: Sequence[list[int]], vocabulary: EncoderVocabulary, longest: int | None, first_line: int
) -> list[list[int]]:
    """The ids of each text between the special ones at its ends, cut to `longest` (None = not cut), with a warning.

    `first_line`: the line number of the first text, for the warning.
    """
    room = max(map(len, pieces), default=0) if longest is None else max(longest - 2, 0)
    if cut := [i for i, ids in enumerate(pieces) if len(ids) > room]:
        log.warning(
            "line %d: %d pieces, cut to %d (%d of %d lines are cut)",
            *(first_line + cut[0], len(pieces[cut[0]]), room, len(cut), len(pieces)),
        )
    return [[vocabulary.cls, *ids[:room], vocabulary.sep] for ids in pieces]


def warn_of_unknown(
    vocabulary: EncoderVocabulary, texts: Sequence[str], rows: Iterable[Sequence[int]], lines: Sequence[int]
) -> None:
    """Log a warning if rows hold the piece for unknown text. `lines`: the line number of each text."""
    unknown = {line: text for line, text, ids in zip(lines, texts, rows, strict=True) if vocabulary.unk in ids}
    if not unknown:
        return
    line, text = next(iter(unknown.items()))
    words = text.split()
    encoded = zip(words, vocabulary.encode_lines(words), strict=True)
    lacking = {word[:_LONGEST_SHOWN] for word, ids in encoded if vocabulary.unk in ids or not ids}
    # Where words are cut elsewhere than here, as at control characters, none of these may be unknown alone.
    warn_of_missing(line, lacking or {text[:_LONGEST_SHOWN]}, len(unknown), len(texts))


def warn_of_missing(line: int, missing: Iterable[str], count: int, all_of_them: int) -> None:
    """Log a warning that `count` of the lines have text that the vocabulary lacks; the first is `line`, with
    `missing`."""
    log.warning(
        "line %d: the vocabulary lacks %s, which the model reads as unknown (%d of %d lines)",
        *(line, " ".join(sorted(map(repr, missing))[:20]), count, all_of_them),
    )


def check_ids(what: str, lists: Sequence[Sequence[int]], vocab_size: int | None, *, least: int = 0) -> None:
    """Raise `UserError` unless `lists` are lists of ids of the vocabulary. `what`: name of a list. `least`: the lowest
    id; 1 where 0 is padding."""

    beyond = math.inf if vocab_size is None else vocab_size

    def fit(ids: Any) -> bool:
        if hasattr(ids, "dtype"):
            ids = np.asarray(ids)
            return ids.ndim == 1 and ids.dtype.kind in "iu" and bool(((ids >= least) & (ids < beyond)).all())
        return all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) and least <= i < beyond for i in ids)

    def ordered(given: Any) -> bool:
        return getattr(given, "ndim", 0) > 0 or (isinstance(given, Sequence) and not isinstance(given, (str, bytes)))

    if not ordered(lists) or not all(map(ordered, lists)):
        raise UserError(f"the {what}s must be a list of lists of ids, not {shown(lists)}")
    if not all(map(fit, lists)):
        number = next(i for i, ids in enumerate(lists) if not fit(ids))
        below = "" if vocab_size is None else f" and below the size of the vocabulary, {vocab_size}"
        padding = " (0 is padding: leave it out)" if least else ""
        raise UserError(f"{what} {number}: ids must be integers, {least} or more{below}{padding}")
