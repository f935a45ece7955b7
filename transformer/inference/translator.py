"""From text to text: sentences are sorted by length, decoded in a few fixed shapes, and put back in order."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transformer.config import EOS, PAD, TOKENIZER_FILES, UNK, Config, DecodeConfig, UserError, check_decode, shown
from transformer.data.given import strings
from transformer.inference.batches import Batch
from transformer.inference.engine import COARSE, FINE, compile_ahead
from transformer.inference.ensemble import (
    TRANSLATES,
    Ensemble,
    Found,
    as_lists,
    check_checkpoints,
    check_members,
    load,
    members,
    same_file,
)
from transformer.inference.pieces import MAX_LINES, check_ids, encode
from transformer.inference.prefixes import Prefix, Prefixes
from transformer.inference.recorder import Recorded, record
from transformer.inference.scorer import Scored, Scorer
from transformer.inference.strategy import options, strategy
from transformer.inference.tally import Tally
from transformer.memory import require_memory
from transformer.model import Model, Params
from transformer.model.checks import check_integer

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.tokenizer import Tokenizer

log = logging.getLogger("transformer")

_WARM = 1_000_000  # sentences of a call; more have the programs of these
_LONG = 4_096  # pieces of a source; attention over so many takes less than a GiB in the paper's models


class Hypothesis(NamedTuple):
    """One translation of a sentence."""

    text: str
    score: float
    """Log-probability (nats) divided by the length penalty. NaN, with an empty text, if it is not finite."""
    tokens: list[int]
    """The ids of its pieces, without eos."""


class Translator:
    """Translates sentences with one model, or with an ensemble. `tally` counts the sentences so far.

    Results do not depend on the grouping of sentences into batches, except for rounding: of two hypotheses whose scores
    differ in the last digits, another batch may prefer the other.

    All methods check their arguments as the command line does: they raise `UserError` (a ValueError) before they
    compute.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        tokenizer: Tokenizer,
        config: DecodeConfig | None = None,
        others: Sequence[tuple[Model, Params]] = (),
    ):
        """`others`: further models with the same vocabulary. Each step averages the probabilities of all models.

        `config.dtype` has no effect here: only `load` converts parameters (see `in_type`).
        """
        check_members(model, params, others, TRANSLATES)
        if tokenizer is not None and not hasattr(tokenizer, "spelling"):  # None: `search` needs only pieces
            raise UserError(f"tokenizer = {shown(tokenizer)}: give Tokenizer.load of it")
        self.model, self.tokenizer = model, tokenizer
        self.config = c = DecodeConfig() if config is None else config
        check_decode(c)
        self.tally = Tally()
        self._ensemble = Ensemble([(model, params), *others], c)
        self.models = self._ensemble.models
        self.batcher, self._vocab_size = self._ensemble.batcher, self._ensemble.vocab_size
        self._positions = self._ensemble.positions("source_positions", "target_positions")
        self._check_positions(c)

    @classmethod
    def load(
        cls,
        workdir: str | Sequence[str],
        checkpoint: str | int | Sequence[str | int] | None = None,
        config: DecodeConfig | None = None,
    ) -> Translator:
        """The translator of a workdir, or of several as an ensemble.

        `checkpoint`: as in `transformer.load`, or one for each workdir. `config`: by default that of the first workdir.
        If there are several devices, the rows of a batch are cut over all of them.
        """
        return load(workdir, checkpoint, config, cls.of)

    @classmethod
    def of(cls, checkpoints: Sequence[Checkpoint], config: DecodeConfig | None = None) -> Translator:
        """The translator of one checkpoint, or of several as an ensemble. `config`: as in `load`."""
        from transformer.data import marian

        check_checkpoints(checkpoints, Config)
        name, pieces = same_file(checkpoints, TOKENIZER_FILES, "tokenizers")
        config = checkpoints[0].config.decode if config is None else config
        check_decode(config)
        (model, params), *others = members(checkpoints, config)
        return cls(model, params, marian.read(name, pieces), config, others)

    def with_config(self, config: DecodeConfig) -> Translator:
        """The same models with other options of decoding. `config.dtype` has no effect."""
        check_decode(config)
        self._check_positions(config)
        other = copy.copy(self)
        other.config, other.tally, other._ensemble = config, Tally(), self._ensemble.with_config(config)
        other.batcher = other._ensemble.batcher
        return other

    def translate(
        self, sentences: Sequence[str], *, first_line: int = 1, prefixes: Sequence[str] | None = None
    ) -> list[str]:
        """One translation, without line breaks, for each sentence. The translation of a blank sentence is empty.

        A sentence of more than `config.max_source_length` pieces is cut, with a warning that names its line, counted
        from `first_line`. If the model's scores are not finite, the translation is empty; a warning names the first
        such line and counts them. `prefixes`: the beginning of each translation, cleaned like a source. A prefix may
        end inside a word; a space at its end means that the word is complete.
        """
        results = self.translate_n_best(sentences, first_line=first_line, prefixes=prefixes)
        return [hypotheses[0].text if hypotheses else "" for hypotheses in results]

    def translate_n_best(
        self, sentences: Sequence[str], *, first_line: int = 1, prefixes: Sequence[str] | None = None
    ) -> list[list[Hypothesis]]:
        """Up to `config.n_best` translations of each sentence, best first; none for a blank one. See `translate`."""
        check_integer("first_line", first_line, 1)
        pieces = self.encode(sentences, first_line)
        forced = self._forced(prefixes, len(pieces), first_line)
        results: list[list[Hypothesis]] = [[] for _ in pieces]
        for i, found in self.search(pieces, prefixes=forced, first=first_line - 1):
            results[i] = self._hypotheses(found, None if forced is None else forced[i])
        self.tally.count([result[0].score if result else None for result in results], first_line)
        nothing = [i for i, result in enumerate(results) if pieces[i] and not result]
        if nothing:
            log.warning(
                "line %d: no translation obeys decode.banned, no_repeat_ngram and min_length together, so it stays "
                "empty (%d of %d lines)",
                *(first_line + nothing[0], len(nothing), len(results)),
            )
        return results

    def recorded(
        self, sentences: Sequence[str], *, prefixes: Sequence[str] | None = None, stop: threading.Event | None = None
    ) -> list[tuple[list[Hypothesis], Recorded]]:
        """`translate_n_best` of a few sentences in one batch, and the record of each search.

        An event `stop` that is set ends the search; then there are no hypotheses. It does not warn.
        """
        pieces = self.encode(sentences, None)
        self._check_sources(pieces)
        forced = self._forced(prefixes, len(pieces), 1)
        results: list[tuple[list[Hypothesis], Recorded]] = [([], Recorded()) for _ in pieces]
        lengths = [len(ids) + 1 if ids else 0 for ids in pieces]
        decoding = strategy(self.config, self.tokenizer, None if forced is None else self._prefixes.spelling)
        limits = self._limits(pieces, forced)
        for batch in self.batcher.batches(lengths, self.config.max_source_length + 1, few=True):
            source_BS, limit_B, given = self.batcher.put_tree(self._filled(batch, pieces, limits, forced, 0))
            found = record(self.models, self.all_params, source_BS, limit_B, decoding, given, stop)
            for row, one in found.items():
                i = batch.indices[row]
                searched = None if one.hypotheses is None else as_lists(one.hypotheses, EOS)
                prefix = None if forced is None else forced[i]
                results[i] = [] if searched is None else self._hypotheses(searched, prefix), one
        return results

    def _forced(self, prefixes: Sequence[str] | None, count: int, first_line: int) -> list[Prefix] | None:
        """The prefixes of this number of sentences. Raises `UserError` for others."""
        if prefixes is None:
            return None
        prefixes = strings("prefixes", prefixes)
        if len(prefixes) != count:
            raise UserError(f"{count} sentences and {len(prefixes)} prefixes: give one prefix per sentence")
        return self._prefixes.of(
            prefixes, lambda pieces: self._check_lengths(pieces, lambda i: f"line {first_line + i}: the prefix")
        )

    def _hypotheses(self, found: Found, prefix: Prefix | None) -> list[Hypothesis]:
        """The best hypotheses of a sentence, as texts of one line each."""
        tokens, scores = found
        lines = self.tokenizer.decode(tokens[: self.config.n_best])
        if prefix is not None:
            lines = [self._prefixes.kept(line, prefix) for line in lines]
        # Byte pieces can spell a line break.
        lines = [" ".join(line.split("\n")) for line in lines]
        return [Hypothesis(*parts) for parts in zip(lines, scores, tokens, strict=False)]

    @cached_property
    def _prefixes(self) -> Prefixes:
        return Prefixes(self.tokenizer)

    def encode(self, sentences: Sequence[str], first_line: int | None = 1) -> list[list[int]]:
        """The pieces of each sentence, cut to `config.max_source_length`; none for a blank sentence.

        Warns of cut sentences, and of characters that no piece contains. With `first_line` None it does not warn.
        """
        sentences = strings("sentences", sentences)
        if first_line is not None:
            check_integer("first_line", first_line, 1, MAX_LINES - len(sentences))
        self._require_tokenizer()
        return encode(self.tokenizer, sentences, self.config.max_source_length, first_line)

    def _require_tokenizer(self) -> None:
        """Raise `UserError` without a tokenizer, and for one of another size than the model's vocabulary."""
        if self.tokenizer is None:
            raise UserError("this translator has no tokenizer: give one, such as Tokenizer.load('tokenizer.model')")
        if self._vocab_size not in (None, self.tokenizer.vocab_size):
            raise UserError(
                f"the model has a vocabulary of {self._vocab_size} pieces, and the tokenizer one of "
                f"{self.tokenizer.vocab_size}; give the tokenizer that it was trained with"
            )

    def search(
        self, sources: Sequence[Sequence[int]], *, prefixes: Sequence[Prefix] | None = None, first: int = 0
    ) -> Iterator[tuple[int, Found]]:
        """Yields (index, hypotheses) for each non-empty source, in any order. Sources are pieces without eos.

        `prefixes`: the beginnings of the translations. `first`: the number of the first sentence in the whole input,
        from 0; samples depend on it.
        """
        check_ids("source", sources, self._vocab_size, least=1)
        check_integer("first", first, 0, MAX_LINES - len(sources))
        if prefixes is not None and (
            not isinstance(prefixes, Sequence) or [type(one) for one in prefixes] != [Prefix] * len(sources)
        ):
            raise UserError(f"{len(sources)} sources: give one prefix per source, made by `Prefixes.of`")
        self._check_sources(sources)
        decoding = strategy(self.config, self.tokenizer, None if prefixes is None else self._prefixes.spelling)
        limits = self._limits(sources, prefixes)

        def decode_batch(batch: Batch, stop: threading.Event) -> list[tuple[int, Found]]:
            source_BS, limit_B, given = self._filled(batch, sources, limits, prefixes, first)
            finished = self._ensemble.decode(source_BS, limit_B, decoding, given, stop, grain=grain)
            return [(batch.indices[row], as_lists(hypotheses, EOS)) for row, hypotheses in finished]

        lengths = [n + 1 if n else 0 for n in map(len, sources)]
        few = self.batcher.few(lengths)
        grain = COARSE if few else FINE
        batches = self.batcher.batches(lengths, self.config.max_source_length + 1, few=few)
        for results in self.batcher.side_by_side(decode_batch, batches):
            yield from results

    def _filled(
        self,
        batch: Batch,
        sources: Sequence[Sequence[int]],
        limits: Sequence[int],
        prefixes: Sequence[Prefix] | None,
        first: int,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """The arrays of a batch: sources, limits with eos (0 excludes empty rows from the search), and further data."""
        limit_B = np.zeros(batch.rows, np.int32)
        given = {"number_B": np.zeros(batch.rows, np.int32)}
        if prefixes is not None:
            given |= self._prefixes.tables(batch.rows, max((len(prefix.spelt) for prefix in prefixes), default=0))
        for row, i in enumerate(batch.indices):
            limit_B[row] = limits[i] + 1
            given["number_B"][row] = first + i
            if prefixes is not None:
                self._prefixes.fill(given, row, prefixes[i])
        return batch.filled(sources, EOS, PAD), limit_B, given

    def _limits(self, sources: Sequence[Sequence[int]], prefixes: Sequence[Prefix] | None) -> list[int]:
        """The most pieces of each translation, without eos."""
        c = self.config
        longest = math.inf if c.max_length is None else c.max_length
        limits = [min(len(source) + c.max_extra_length, longest) for source in sources]
        if prefixes is not None:
            limits = [self._prefixes.limit(*row) for row in zip(limits, prefixes, strict=True)]
        return limits

    @property
    def params(self) -> Params:
        """The parameters of the first model; for others, make another `Translator`."""
        return self._ensemble.params[0]

    @property
    def all_params(self) -> tuple[Params, ...]:
        """The parameters of each model."""
        return self._ensemble.params

    def warm_up(self, sentences: int = 64, pieces: int = 31) -> None:
        """Compile, side by side, the programs for calls with this number of sentences of this many pieces.

        The lengths of few sentences are rounded up to 7, 31, 127 or 511 pieces: call this once for each size that you
        expect. Outputs of more than 32 pieces (16, if `sentences` fill 8 batches or more) need further programs, which
        are compiled when they occur. With several devices this decodes one call of such sentences instead. See
        `transformer.cache_compiled` to keep programs on disk.
        """
        check_integer("sentences", sentences, 1, _WARM)
        check_integer("pieces", pieces, 1, self.config.max_source_length)
        sources = [[UNK] * pieces] * sentences
        if self.batcher.mesh is not None:
            list(self.search(sources))
            return
        decoding, lengths = strategy(self.config, self.tokenizer), [pieces + 1] * sentences
        few = self.batcher.few(lengths)
        grain = COARSE if few else FINE
        for batch in self.batcher.batches(lengths, self.config.max_source_length + 1, few=few):
            source_BS, zeros_B = batch.filled(sources, EOS, PAD), np.zeros(batch.rows, np.int32)
            compile_ahead(self.models, self.all_params, source_BS, zeros_B, decoding, {"number_B": zeros_B}, grain)

    def score(self, sentences: Sequence[str], translations: Sequence[str], *, first_line: int = 1) -> list[Scored]:
        """Score given translations (forced decoding).

        The alignment comes from the cross-attention of the last layer but one (or of the only layer), averaged over its
        heads: for each target piece, the source position with the greatest weight when that piece is predicted (Garg et
        al. 2019 found that this layer aligns best). With several models, the alignment is that of the first. Warns of
        scores that are not finite, as `translate` does.
        """
        check_integer("first_line", first_line, 1)
        pieces = (
            self.encode(sentences, first_line),
            self.tokenizer.encode(strings("translations", translations), "target"),
        )
        if len(pieces[0]) != len(pieces[1]):
            raise UserError(
                f"{len(pieces[0])} sentences and {len(pieces[1])} translations: give one translation per sentence"
            )
        self._check_lengths(pieces[1], lambda i: f"line {first_line + i}: the translation")
        results = self.score_pieces(*pieces)
        self.tally.count([result.score for result in results], first_line)
        return results

    def score_pieces(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        """`score` for pieces without eos."""
        self._require_tokenizer()
        check_ids("source", sources, self._vocab_size, least=1)
        check_ids("target", targets, self._vocab_size, least=1)
        if len(sources) != len(targets):
            raise UserError(f"{len(sources)} sources and {len(targets)} targets: give one target per source")
        self._check_sources(sources)
        self._check_lengths(targets, lambda i: f"target {i}")
        scorer = Scorer(
            self.models,
            self.all_params,
            self.tokenizer,
            self.batcher,
            options(self.config),
            self._positions or math.inf,
        )
        return scorer.score(sources, targets)

    def _check_sources(self, sources: Sequence[Sequence[int]]) -> None:
        """Raise `UserError` if a source is longer than `config.max_source_length`, or its attention needs more memory
        than a device has."""
        longest = self.config.max_source_length
        if (most := max(map(len, sources), default=0)) > longest:
            raise UserError(f"a source has {most} pieces, and decode.max_source_length = {longest}; cut it")
        if most > _LONG:
            heads = max(model.config.heads for model in self.models)
            what = f"the attention weights of a source of {most} pieces"
            require_memory(4 * heads * (most + 1) ** 2, what, "lower decode.max_source_length")

    def _check_positions(self, c: DecodeConfig) -> None:
        """Raise `UserError` if the options allow for more positions than a model has learned."""
        longest = min(c.max_source_length + c.max_extra_length, c.max_length or math.inf)
        if self._positions is not None and max(c.max_source_length, longest) >= self._positions:
            raise UserError(
                f"decode.max_source_length = {c.max_source_length} and decode.max_extra_length = {c.max_extra_length} "
                f"allow for {max(c.max_source_length, longest) + 1} positions, but a model has only {self._positions} "
                "learned positions (model.max_positions); lower them"
            )

    def _check_lengths(self, pieces: Sequence[Sequence[int]], name: Callable[[int], str]) -> None:
        """Raise `UserError` if a translation or prefix has more pieces than decoding allows, or than the model has
        positions. `name(i)`: what to call the i-th in the message."""
        c = self.config
        most = c.max_source_length + c.max_extra_length
        for i, ids in enumerate(pieces):
            if self._positions is not None and len(ids) >= self._positions:
                raise UserError(
                    f"{name(i)} has {len(ids)} pieces; this model has learned positions for "
                    f"model.max_positions = {self._positions}, end of sentence included; make it shorter"
                )
            if len(ids) > most:
                raise UserError(
                    f"{name(i)} has {len(ids)} pieces, and decode.max_source_length + decode.max_extra_length = "
                    f"{most} is the most that a translation may have; make it shorter, or raise one of the two"
                )
