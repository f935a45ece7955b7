"""Constituency trees of sentences: an encoder reads the words, and a search writes the tree."""

from __future__ import annotations

import bisect
import logging
import math
import os
import re
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import (
    EOS,
    PAD,
    DecodeConfig,
    ParsingConfig,
    UserError,
    check_tree_search,
    require_workdir,
    shown,
)
from transformer.data import linearised, penn
from transformer.data.framing import Row
from transformer.data.given import listed, strings
from transformer.data.linearised import Symbols
from transformer.data.treebank import frame_sentences
from transformer.data.trees import Tree, escaped, spoken
from transformer.inference.batches import Batch, on_all_devices
from transformer.inference.engine import COARSE, FINE
from transformer.inference.ensemble import Ensemble, Found, as_lists, check_members
from transformer.inference.pieces import MAX_LINES, encoder_vocabulary, require_encoder_vocabulary, warn_of_unknown
from transformer.inference.strategy import trees
from transformer.inference.tally import Tally
from transformer.model import Model, Params, build
from transformer.model.checks import check_flag, check_integer
from transformer.model.rounding import in_type

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.wordpiece import EncoderVocabulary

log = logging.getLogger("transformer")

_PER_WORD, _MORE = 4, 16  # symbols: the most that a tree has
_USUAL = 2.5  # symbols a word: those of treebanks have about 2.3
_PAUSES = frozenset((",", ";", ":", ".", "--", "?", "!"))  # words after which a long sentence may be cut


class _Part(NamedTuple):
    """A sentence, or a part of a long one."""

    sentence: int
    row: Row
    words: Sequence[str]


class Parser:
    """Finds the constituency trees of sentences with a model trained for it. `tally` counts the sentences so far.

    Each result is a tree over exactly the words of its sentence, whatever the model predicts.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        vocabulary: EncoderVocabulary,
        symbols: Symbols,
        config: DecodeConfig | None = None,
        *,
        longest: int | None = None,
    ) -> None:
        """`longest`: the most pieces of a sentence, the special ones included; longer ones are parsed in parts. None =
        as many as the model has learned positions. Raises `UserError` if the parts do not fit together."""
        if not isinstance(model, Model) or not model.config.decoder_layers or model.config.head != "token":
            raise UserError(f"model = {shown(model)}: give an encoder-decoder with the head 'token'")
        require_encoder_vocabulary(vocabulary)
        if not isinstance(symbols, Symbols):
            raise UserError(f"symbols = {shown(symbols)}: give those that the model was trained with")
        m = model.config
        sizes = ("pieces", vocabulary.size, m.vocab_size), ("symbols", symbols.size, m.output_size)
        for what, ours, theirs in (*sizes, ("tags", len(symbols.tags), m.labels)):
            if ours != theirs:
                fix = "give those that it was trained with"
                raise UserError(f"{ours} {what} are given, but the model has {theirs}; {fix}")
        check_members(model, params, ())
        if longest is not None:
            check_integer("longest", longest, 5)
        self.config = DecodeConfig(length_normalization="none") if config is None else config
        check_tree_search(self.config)
        learned = m.max_positions if m.positions == "learned" else None
        if learned is not None and learned < 5:
            raise UserError(f"model.max_positions = {learned}: must be at least 5, as many as the tree of a word needs")
        self.model, self.vocabulary, self.symbols = model, vocabulary, symbols
        self.longest = min((n for n in (longest, learned) if n is not None), default=None)
        """The most pieces of a sentence, the special ones included; None = no limit."""
        self._most_symbols = learned
        self._most_words = None if learned is None else max(1, int(learned / _USUAL))
        self.tally = Tally()
        self._ensemble = Ensemble([(model, params)], self.config)

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike[str],
        checkpoint: str | int | None = None,
        config: DecodeConfig | None = None,
    ) -> Parser:
        """The parser of a workdir. `checkpoint`: as in `transformer.load`. `config`: by default that of the workdir."""
        from transformer.checkpoint import Checkpoints, best_seed

        return Checkpoints(best_seed(workdir)).read(checkpoint, partial(cls.of, config=config))

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: DecodeConfig | None = None) -> Parser:
        """The parser of an open checkpoint. Raises `UserError` if it is of another task."""
        stored = checkpoint.config
        require_workdir(stored, checkpoint.path.parent.parent, ParsingConfig)
        config = stored.decode if config is None else config
        check_tree_search(config)
        model, params = in_type(checkpoint.model.config, checkpoint.params(), config.dtype)
        return cls(
            build(model),
            on_all_devices(params),
            encoder_vocabulary(checkpoint),
            symbols_in(checkpoint),
            config,
            longest=stored.data.context,
        )

    @property
    def params(self) -> Params:
        """The parameters of the model; for others, make another `Parser`."""
        return self._ensemble.params[0]

    def parse(
        self, sentences: Iterable[str | Sequence[str]], *, first_line: int = 1, raw: bool = False
    ) -> list[Tree | None]:
        """The tree of each sentence: words, or a string of words with spaces between them. With `raw`, strings are
        plain English, and are split by simple rules in the style of the Penn Treebank.

        None for a sentence without words, and where the model's numbers are not finite. Brackets within words become
        -LRB- and -RRB-. A sentence that is too long is parsed in parts, with a warning that names its line, counted
        from `first_line`. Raises `UserError` for wrong arguments.
        """
        check_flag("raw", raw)
        sentences = self._listed(sentences, first_line)
        if raw:
            sentences = [penn.words(one) if isinstance(one, str) else one for one in sentences]
        given = [self._words(sentence, i) for i, sentence in enumerate(sentences, first_line)]
        texts = [words for words, one in zip(given, sentences, strict=True) if isinstance(one, str)]
        if first_line == 1 and not raw and _looks_raw(texts):
            log.warning("marks such as a full stop are no words of their own; raw English text needs --raw (raw=True)")
        parts = self._parts(given, first_line)
        found: list[list[tuple[Tree | None, float]]] = [[] for _ in given]
        for part, result in zip(parts, self._parsed(parts, first_line - 1), strict=True):
            found[part.sentence].append(result)
        self.tally.count([sum(score for _, score in of) if of else None for of in found], first_line)
        return [_joined([tree for tree, _ in of]) for of in found]

    def _listed(self, sentences: Iterable[str | Sequence[str]], first_line: int) -> list[str | Sequence[str]]:
        sentences = listed("sentences", sentences)
        check_integer("first_line", first_line, 1, MAX_LINES - len(sentences))
        return sentences

    @staticmethod
    def _words(sentence: str | Sequence[str], line: int) -> list[str]:
        words = sentence.split() if isinstance(sentence, str) else sentence
        if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise UserError(f"line {line}: {shown(sentence)}: give words, or a string")
        wrong = next((word for word in words if word.split() != [word]), None)
        if wrong is not None:
            raise UserError(f"line {line}: the word {shown(wrong)} is empty or holds white space; leave that out")
        return [escaped(word) for word in strings("words", words)]

    # ---- Long sentences ---------------------------------------------------------------------------------------------

    def _parts(self, given: Sequence[Sequence[str]], first_line: int) -> list[_Part]:
        """The sentences that have words, long ones in parts."""
        parts: list[_Part] = []
        cut: list[int] = []
        rows = frame_sentences(self.vocabulary, given, None)
        lines = range(first_line, first_line + len(given))
        warn_of_unknown(self.vocabulary, [" ".join(spoken(words)) for words in given], [row.ids for row in rows], lines)
        for i, (words, row) in enumerate(zip(given, rows, strict=True)):
            bounds, before, begin = [*row.starts, len(row.ids) - 1], len(parts), 0
            while begin < len(words):
                end = self._end(words, bounds, begin)
                parts.append(_Part(i, self._row(row, bounds[begin : end + 1]), words[begin:end]))
                begin = end
            if len(parts) > before + 1:
                cut.append(i)
        if cut:
            log.warning(
                "line %d: %d words, too long for this model; parsed in parts (%d of %d lines)",
                *(first_line + cut[0], len(given[cut[0]]), len(cut), len(given)),
            )
        return parts

    def _end(self, words: Sequence[str], bounds: Sequence[int], begin: int) -> int:
        """The end of the part that begins with a word: behind as many words as fit, or at a pause before."""
        end = len(words) if self._most_words is None else min(len(words), begin + self._most_words)
        if self.longest is not None:
            end = min(end, bisect.bisect_right(bounds, bounds[begin] + self.longest - 2) - 1)
        if end == len(words):
            return end
        pauses = (i + 1 for i in reversed(range((begin + end) // 2, end)) if words[i] in _PAUSES)
        return max(next(pauses, end), begin + 1)

    def _row(self, whole: Row, bounds: Sequence[int]) -> Row:
        """The part of a row between the first and the last bound. A word that is too long by itself loses its end."""
        ids = whole.ids[bounds[0] : bounds[-1]]
        if self.longest is not None:
            ids = ids[: self.longest - 2]
        starts = [1 + bound - bounds[0] for bound in bounds[:-1]]
        return Row([self.vocabulary.cls, *ids, self.vocabulary.sep], len(ids) + 2, starts, 0)

    # ---- Search -----------------------------------------------------------------------------------------------------

    def _parsed(self, parts: Sequence[_Part], first: int) -> list[tuple[Tree | None, float]]:
        """The tree of each part and its score; None and NaN where the model's numbers are not finite.

        `first`: the number of the first sentence in the whole input, from 0; samples depend on it.
        """
        results: list[tuple[Tree | None, float]] = [(None, math.nan)] * len(parts)
        strategy, batcher = trees(self.config, self.symbols), self._ensemble.batcher
        sources = [part.row.ids[:-1] for part in parts]  # a batch puts the end behind each
        lengths = [len(source) + 1 for source in sources]
        few = batcher.few(lengths)
        longest = max(lengths, default=1) if self.longest is None else self.longest

        def decode(batch: Batch, stop: threading.Event) -> list[tuple[int, tuple[Tree | None, float]]]:
            # A limit of 0 excludes rows that fill up the batch.
            limit_B, words_B, number_B = (np.zeros(batch.rows, np.int32) for _ in range(3))
            for row, i in enumerate(batch.indices):
                words_B[row] = count = len(parts[i].words)
                limit_B[row], number_B[row] = self._limit(count), first + parts[i].sentence
            source_BS = batch.filled(sources, self.vocabulary.sep, PAD)
            tags_BS = self._tags(source_BS)
            given = {"words_B": words_B, "number_B": number_B}
            if self.model.config.hard_attention:
                given["begins_BS"] = _begins([parts[i].row for i in batch.indices], source_BS.shape)
            grain = COARSE if few else FINE
            found = self._ensemble.decode(source_BS, limit_B, strategy, given, stop, grain=grain)
            numbers = [(row, batch.indices[row], as_lists(one, EOS)) for row, one in found]
            return [(i, self._tree(parts[i], one, tags_BS[row])) for row, i, one in numbers]

        for finished in batcher.side_by_side(decode, batcher.batches(lengths, longest, few=few)):
            for i, result in finished:
                results[i] = result
        return results

    def _limit(self, words: int) -> int:
        """The most symbols of a tree over this many words, the end included."""
        limit = _PER_WORD * words + _MORE
        return limit if self._most_symbols is None else min(limit, self._most_symbols)

    def _tree(self, part: _Part, found: Found, tags_S: np.ndarray) -> tuple[Tree | None, float]:
        """The best tree of a part. `found`: the hypotheses. `tags_S`: the likeliest tag at each piece."""
        (ids, *_), (score, *_) = found
        if not math.isfinite(score):
            return None, math.nan
        tags = [self.symbols.tags[tags_S[start]] for start in part.row.starts]
        return self.symbols.decode(ids, part.words, tags), score

    def _tags(self, source_BS: np.ndarray) -> np.ndarray:
        """The likeliest tag at each piece: int32 (rows, length)."""

        def computed(of: slice) -> np.ndarray:
            (source,) = self._ensemble.batcher.put(source_BS[of])
            return np.asarray(_tags(self.params, source, model=self.model))

        return np.concatenate(self._ensemble.batcher.in_parts(computed, len(source_BS)))


def _joined(parts: Sequence[Tree | None]) -> Tree | None:
    """The trees of the parts of a sentence as one tree, with the label of the first one; None without them."""
    if None in parts or not parts:
        return None
    return parts[0] if len(parts) == 1 else Tree(parts[0].label, list(parts))


def _looks_raw(sentences: Sequence[Sequence[str]]) -> bool:
    """Whether a sentence of several words ends in a letter and a mark, and no mark is a word of its own."""
    ends = any(len(words) > 2 and re.fullmatch(r"\w*[^\W\d_][.?!]", words[-1]) for words in sentences)
    return ends and not any(word in _PAUSES for words in sentences for word in words)


def _begins(rows: Sequence[Row], shape: tuple[int, ...]) -> np.ndarray:
    """Where a word begins: True at the first piece of each, boolean (rows, length)."""
    begins_BS = np.zeros(shape, bool)
    for begins_S, row in zip(begins_BS, rows, strict=False):
        begins_S[row.starts] = True
    return begins_BS


def symbols_in(checkpoint: Checkpoint) -> Symbols:
    """The symbols of a checkpoint of a parser."""
    return linearised.read(checkpoint.file(linearised.FILE), str(checkpoint.path / linearised.FILE))


@partial(jax.jit, static_argnames="model")
def _tags(params: Params, source_BS: Array, *, model: Model) -> Array:
    """The likeliest tag at each piece."""
    bound = model.bind(params)
    return jnp.argmax(bound.label_logits(bound.encoder_states(source_BS)), axis=-1)
