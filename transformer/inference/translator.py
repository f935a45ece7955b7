"""From text to text: sentences sorted by length, decoded in a few fixed shapes, put back in order."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import BOS, EOS, PAD, DecodeConfig, ModelConfig, UserError, check_decode, shown
from transformer.inference.beam_search import Hypotheses, Options
from transformer.inference.constraints import Constraints
from transformer.inference.engine import Plan, Sampler, decode
from transformer.inference.prefixes import Prefix, Prefixes
from transformer.memory import ran_out
from transformer.model import Model, Params, encoder_decoder
from transformer.model.checks import whole
from transformer.model.rounding import rounded

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.tokenizer import Tokenizer

log = logging.getLogger("transformer")
J, R = TypeVar("J"), TypeVar("R")

_NEIGHBOURHOOD = 256  # pieces
_MOST_LINES = 2**31 - 1  # which sampling numbers by 32 bits
MOST_STREAMS = 8  # on a CPU of many cores
SOURCE_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

Found = tuple[list[list[int]], list[float]]
"""Hypotheses of a sentence as pieces without eos, best first, and their scores. Where the model's log-probabilities are
no numbers, one hypothesis without pieces, whose score is NaN."""


class Translation(NamedTuple):
    """One hypothesis."""

    text: str
    score: float
    """Log-probability over the length penalty; NaN, with an empty text, where the model's are no numbers."""
    tokens: list[int]
    """Its pieces, without eos."""


@dataclass(frozen=True)
class Scored:
    """What a model thinks of a given translation."""

    pieces: tuple[str, ...]
    """Its pieces, eos at the end."""
    log_probs: tuple[float, ...]
    """The log-probability of each piece after those before it, in nats."""
    score: float
    """Their sum over the length penalty: what beam search would have ranked it by."""
    source_pieces: tuple[str, ...]
    """The pieces of the source, eos at the end."""
    alignment: tuple[int, ...]
    """For each piece the number, from 0, of the source piece that it looks at most (see `Translator.score`)."""


@dataclass
class Tally:
    """How many sentences a translator has translated or scored, blank ones not counted."""

    all: int = 0
    broken: int = 0
    """Those whose scores are no numbers."""

    def refuse(self, whose: str = "") -> None:
        """Raise `UserError`, beginning with `whose`, if there were sentences, and no score of theirs is a number."""
        if self.all and self.broken == self.all:
            raise UserError(
                f"{whose}no score of {self.all} sentences is a number: the parameters of this model are broken; choose "
                "another checkpoint (--checkpoint), or train again with a lower train.peak_learning_rate"
            )


class Translator:
    """Translates sentences with one model, or with several that vote. `tally` counts what it has done so far.

    Results do not depend on how the sentences are grouped into batches, but for rounding: of two hypotheses whose
    scores differ in the last digits, another batch may prefer the other.

    Arguments are checked as on the command line: all methods raise `UserError` (a ValueError) before they compute.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        tokenizer: Tokenizer,
        config: DecodeConfig | None = None,
        others: Sequence[tuple[Model, Params]] = (),
    ):
        """`others` are further models over the same pieces: at each step probabilities are averaged over all.

        `config.dtype` is for `load`: here parameters stay as they are (see `in_type`).
        """
        _check_parts(params, tokenizer, others)
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.config = DecodeConfig() if config is None else config
        check_decode(self.config)
        self.tally = Tally()
        self.models = (model, *(other for other, _ in others))
        self.all_params = (params, *(own for _, own in others))
        self.beams = self.config.n_best if self.config.sample else self.config.beam_size
        self._rows_that_fit = self.config.batch_sentences
        self._lock = threading.Lock()
        sizes = {own["embedding"]["table"].shape[0] for own in self.all_params if "embedding" in own}
        if len(sizes) > 1:
            raise UserError(f"the models have vocabularies of {sorted(sizes)} pieces; an ensemble needs the same one")
        self._vocab_size = max(sizes, default=None)
        tables = [own.get(f"{side}_positions") for own in self.all_params for side in ("source", "target")]
        # None where positions are computed, and so without end.
        self._positions = min((table.shape[0] for table in tables if table is not None), default=None)
        c = self.config
        longest = min(c.max_source_length + c.max_extra_length, c.max_length or math.inf)
        if self._positions is not None and max(c.max_source_length, longest) >= self._positions:
            raise UserError(
                f"decode.max_source_length = {c.max_source_length} and decode.max_extra_length = {c.max_extra_length} "
                f"allow for {max(c.max_source_length, longest) + 1} positions, but a model has learned ones for "
                f"{self._positions} (model.max_positions); lower them"
            )

    @classmethod
    def load(
        cls,
        workdir: str | Sequence[str],
        checkpoint: str | int | Sequence[str | int] | None = None,
        config: DecodeConfig | None = None,
    ) -> Translator:
        """The translator of a workdir, or of several as an ensemble.

        `checkpoint` as in `transformer.load`, or one for each workdir; `config` overrides the (first) workdir's own.
        Where there are several devices, batches are laid over all of them.
        """
        if config is not None:
            check_decode(config)
        from transformer.checkpoint import Checkpoints, again

        workdirs = [workdir] if isinstance(workdir, str) or not isinstance(workdir, Sequence) else list(workdir)
        single = isinstance(checkpoint, str) or not isinstance(checkpoint, Sequence)
        names = [checkpoint] * len(workdirs) if single else list(checkpoint)
        if not workdirs or len(names) != len(workdirs):
            raise UserError(f"{len(workdirs)} workdirs and {len(names)} checkpoints: give one, or as many as workdirs")
        folders = [Checkpoints(folder) for folder in workdirs]
        return again(lambda: cls.of([of.open(name) for of, name in zip(folders, names, strict=True)], config))

    @classmethod
    def of(cls, checkpoints: Sequence[Checkpoint], config: DecodeConfig | None = None) -> Translator:
        """The translator of a checkpoint, or of several as an ensemble; `config` as in `load`."""
        from transformer.data.tokenizer import Tokenizer

        if not checkpoints:
            raise UserError("no checkpoints: give one at least")
        first = checkpoints[0]
        pieces = first.file("tokenizer.model")
        for other in checkpoints:
            if other.file("tokenizer.model") != pieces:
                one, two = (opened.path.parent.parent for opened in (other, first))
                raise UserError(f"{one} and {two} have different tokenizers; an ensemble needs the same one")
        config = first.config.decode if config is None else config
        check_decode(config)
        loaded = []
        for opened in checkpoints:
            model, params = in_type(opened.config.model, opened.params(), config.dtype)
            loaded.append((encoder_decoder(model, opened.progress["vocab_size"]), _everywhere(params)))
        (model, params), *others = loaded
        return cls(model, params, Tokenizer(pieces), config, others)

    def translate(
        self, sentences: Sequence[str], *, first_line: int = 1, prefixes: Sequence[str] | None = None
    ) -> list[str]:
        """One translation, without line breaks, for each sentence; a blank one gives an empty one.

        A sentence of more than `config.max_source_length` pieces is cut, with a warning that names its line, counted
        from `first_line`. Where the model's scores are no numbers the translation is empty; a warning names the first
        such line and counts them. With `prefixes`, each translation begins with its own, cleaned like a source. A
        prefix may break off anywhere, in a word, too; a space at its end says that the word has ended.
        """
        found = self.translate_n_best(sentences, first_line=first_line, prefixes=prefixes)
        return [own[0].text if own else "" for own in found]

    def translate_n_best(
        self, sentences: Sequence[str], *, first_line: int = 1, prefixes: Sequence[str] | None = None
    ) -> list[list[Translation]]:
        """For each sentence up to `config.n_best` translations, best first; none for a blank one. As `translate`."""
        whole("first_line", first_line, 1)
        pieces = self.encode(sentences, first_line)
        begun = None
        if prefixes is not None:
            prefixes = _texts("prefixes", prefixes)
            if len(prefixes) != len(pieces):
                raise UserError(f"{len(pieces)} sentences and {len(prefixes)} prefixes: give as many")
            begun = self._prefixes.of(
                prefixes, lambda found: self._check_lengths(found, lambda i: f"line {first_line + i}: the prefix")
            )
        n_best = self.config.n_best
        results: list[list[Translation]] = [[] for _ in pieces]
        for i, (tokens, scores) in self.search(pieces, prefixes=begun, first=first_line - 1):
            # Byte pieces can spell a line break; a translation is one line.
            texts = self.tokenizer.decode(tokens[:n_best])
            if begun is not None:
                texts = [self._prefixes.kept(text, begun[i]) for text in texts]
            texts = [" ".join(text.split("\n")) for text in texts]
            results[i] = [Translation(*own) for own in zip(texts, scores, tokens, strict=False)]
        self._count([own[0].score if own else None for own in results], first_line)
        nothing = [i for i, own in enumerate(results) if pieces[i] and not own]
        if nothing:
            log.warning(
                "line %d: no translation obeys decode.banned, no_repeat_ngram and min_length together, so it stays "
                "empty; so it is with %d of %d lines",
                *(first_line + nothing[0], len(nothing), len(results)),
            )
        return results

    @cached_property
    def _prefixes(self) -> Prefixes:
        return Prefixes(self.tokenizer)

    def encode(self, sentences: Sequence[str], first_line: int | None = 1) -> list[list[int]]:
        """Pieces of the sentences, blank ones emptied, long ones cut; with None without a warning.

        Characters that no piece holds are counted in a warning.
        """
        sentences = _texts("sentences", sentences)
        if first_line is not None:
            whole("first_line", first_line, 1, _MOST_LINES - len(sentences))
        if self.tokenizer is None:
            raise UserError("this translator has no tokenizer: give one, such as Tokenizer.load('tokenizer.model')")
        if self._vocab_size not in (None, self.tokenizer.vocab_size):
            raise UserError(
                f"the model has a vocabulary of {self._vocab_size} pieces, and the tokenizer one of "
                f"{self.tokenizer.vocab_size}; give the tokenizer that it was trained with"
            )
        heads = [self._head(sentence) for sentence in sentences]
        pieces = self.tokenizer.encode(heads)
        for i, ids in enumerate(pieces):
            if not heads[i].strip():
                ids.clear()
            elif len(ids) > self.config.max_source_length:
                if first_line is not None:
                    more = "more than " if len(heads[i]) < len(sentences[i]) else ""
                    log.warning(
                        "line %d: %s%d pieces, cut to decode.max_source_length = %d",
                        *(first_line + i, more, len(ids), self.config.max_source_length),
                    )
                del ids[self.config.max_source_length :]
        if first_line is not None and (unknown := self.tokenizer.unknown(heads, first_line)):
            log.warning(unknown)
        return pieces

    def _head(self, sentence: str) -> str:
        """So much of a very long sentence that its first `config.max_source_length` pieces stay the same, as those of
        a book need not be looked for. Pieces end at spaces, and elsewhere depend on their neighbourhood alone."""
        enough = self.config.max_source_length + _NEIGHBOURHOOD
        size = 16 * enough
        while 2 * size < len(sentence):
            space = sentence.rfind(" ", size // 2, size)
            head = sentence[: size if space < 0 else space]
            if len(self.tokenizer.encode([head])[0]) >= enough and head.strip():
                return head
            size *= 4
        return sentence

    def search(
        self, sources: Sequence[Sequence[int]], *, prefixes: Sequence[Prefix] | None = None, first: int = 0
    ) -> Iterator[tuple[int, Found]]:
        """For each non-empty source (pieces without eos): its index and what was found.

        They come in an order that suits the machine. `prefixes` say what the translations begin with; `first` is the
        number of the first sentence in the whole input, which sampling depends on.
        """
        c = self.config
        self._check_ids("source", sources)
        whole("first", first, 0, _MOST_LINES - len(sources))
        if prefixes is not None and [type(one) for one in prefixes] != [Prefix] * len(sources):
            raise UserError(f"{len(sources)} sources: give as many prefixes, as `Prefixes.of` makes them")
        self._check_sources(sources)
        plan = self._plan(prefixes is not None)
        limits = [len(source) + c.max_extra_length for source in sources]
        if c.max_length is not None:
            limits = [min(limit, c.max_length) for limit in limits]
        if prefixes is not None:
            limits = [self._prefixes.limit(*row) for row in zip(limits, prefixes, strict=True)]
            longest = max([0, *(len(prefix.spelt) for prefix in prefixes)])

        def work(job: tuple[list[int], int, int], stop: threading.Event) -> list[tuple[int, Found]]:
            indices, rows, length = job
            source_BS = np.full((rows, length), PAD, np.int32)
            # Empty rows may not search at all.
            limit_B = np.zeros(rows, np.int32)
            given = {"number_B": np.zeros(rows, np.int32)}
            if prefixes is not None:
                given |= self._prefixes.tables(rows, longest)
            for row, i in enumerate(indices):
                source_BS[row, : len(sources[i]) + 1] = [*sources[i], EOS]
                limit_B[row] = limits[i] + 1
                given["number_B"][row] = first + i
                if prefixes is not None:
                    self._prefixes.fill(given, row, prefixes[i])
            results = []
            for row, found in self._decode(source_BS, limit_B, plan, given, stop):
                lengths = [int(n) for n in found.lengths_BM if n > 0]
                tokens = [found.tokens_BML[m, : n - 1].tolist() for m, n in enumerate(lengths)]
                if not tokens and np.isnan(found.scores_BM[0]):
                    tokens = [[]]
                results.append((indices[row], (tokens, found.scores_BM[: len(tokens)].tolist())))
            return results

        for results in side_by_side(work, self._batches([len(source) for source in sources]), self._streams()):
            yield from results

    def score(self, sentences: Sequence[str], translations: Sequence[str], *, first_line: int = 1) -> list[Scored]:
        """What the model thinks of given translations (forced decoding).

        The alignment is read off the cross-attention of the last layer but one (of the only one, if there is but one),
        averaged over its heads: for each target piece the source position with the greatest weight when that piece is
        predicted (after Garg et al. 2019, who found that layer to align best). With several models, the first aligns.
        Of scores that are no numbers a warning tells as `translate` does.
        """
        whole("first_line", first_line, 1)
        pieces = (
            self.encode(sentences, first_line),
            self.tokenizer.encode(_texts("translations", translations), "target"),
        )
        if len(pieces[0]) != len(pieces[1]):
            raise UserError(f"{len(pieces[0])} sentences and {len(pieces[1])} translations: give as many")
        self._check_lengths(pieces[1], lambda i: f"line {first_line + i}: the translation")
        results = self.score_pieces(*pieces)
        self._count([own.score for own in results], first_line)
        return results

    def score_pieces(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        """As `score`, for pieces without eos."""
        c = self.config
        self._check_ids("source", sources)
        self._check_ids("target", targets)
        if len(sources) != len(targets):
            raise UserError(f"{len(sources)} sources and {len(targets)} targets: give as many")
        self._check_sources(sources)
        self._check_lengths(targets, lambda i: f"target {i}")
        results: list[Any] = [None] * len(sources)
        longest = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
        # At least 1, so that an empty sentence is scored like any other.
        for indices, rows, length in self._batches([max(1, n) for n in longest], longest=max([1, *longest])):
            source_BS, target_BT = (np.full((rows, length), PAD, np.int32) for _ in range(2))
            for row, i in enumerate(indices):
                source_BS[row, : len(sources[i]) + 1] = [*sources[i], EOS]
                target_BT[row, : len(targets[i]) + 1] = [*targets[i], EOS]

            def part(rows: slice, sides: Sequence[np.ndarray] = (source_BS, target_BT)) -> tuple:
                placed = self._place(*(side[rows] for side in sides))
                return jax.tree.map(np.asarray, forced(self.all_params, *placed, models=self.models))

            log_probs, alignment = (np.concatenate(own) for own in zip(*self._as_fits(part, rows), strict=True))
            options = Options(c.beam_size, BOS, EOS, PAD, c.length_penalty, c.length_normalization)
            for row, i in enumerate(indices):
                n = len(targets[i]) + 1
                results[i] = Scored(
                    tuple(self.tokenizer.piece(piece) for piece in target_BT[row, :n].tolist()),
                    tuple(log_probs[row, :n].tolist()),
                    float(options.score(log_probs[row, :n].sum(), n)),
                    tuple(self.tokenizer.piece(piece) for piece in [*sources[i], EOS]),
                    tuple(alignment[row, :n].tolist()),
                )
        return results

    def _count(self, scores: Sequence[float | None], first_line: int) -> None:
        """Count sentences by their scores, None for a blank one, and warn of scores that are no numbers."""
        broken = [i for i, score in enumerate(scores) if score is not None and not math.isfinite(score)]
        self.tally.all += sum(score is not None for score in scores)
        self.tally.broken += len(broken)
        if broken:
            log.warning(
                "line %d: the model's scores are no numbers, so there is no translation or score; so it is with %d of "
                "%d lines",
                *(first_line + broken[0], len(broken), len(scores)),
            )

    def _check_ids(self, what: str, lists: Sequence[Sequence[int]]) -> None:
        """Raise `UserError` unless these are lists of ids of the vocabulary."""

        beyond = math.inf if self._vocab_size is None else self._vocab_size

        def fit(ids: Iterable[Any]) -> bool:
            return all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) and 0 <= i < beyond for i in ids)

        if not isinstance(lists, Iterable) or not all(isinstance(ids, Iterable) for ids in lists):
            raise UserError(f"the {what}s must be a list of lists of ids, not {shown(lists)}")
        if not fit(itertools.chain(*lists)):
            number = next(i for i, ids in enumerate(lists) if not fit(ids))
            below = "" if self._vocab_size is None else f" and below the size of the vocabulary, {self._vocab_size}"
            raise UserError(f"{what} {number}: ids must be integers, 0 or more{below}")

    def _check_sources(self, sources: Sequence[Sequence[int]]) -> None:
        """Raise `UserError` where a source is longer than `encode` gives any."""
        longest = self.config.max_source_length
        if (most := max(map(len, sources), default=0)) > longest:
            raise UserError(f"a source has {most} pieces, and decode.max_source_length = {longest}; cut it")

    def _check_lengths(self, pieces: Sequence[Sequence[int]], name: Callable[[int], str]) -> None:
        """Raise `UserError` where a translation, or its beginning, has more pieces than decoding allows for, or than
        the model has positions for. `name(i)` says what the i-th is."""
        c = self.config
        most = c.max_source_length + c.max_extra_length
        for i, own in enumerate(pieces):
            if self._positions is not None and len(own) >= self._positions:
                raise UserError(
                    f"{name(i)} has {len(own)} pieces; this model has learned positions for "
                    f"model.max_positions = {self._positions}, end of sentence included; make it shorter"
                )
            if len(own) > most:
                raise UserError(
                    f"{name(i)} has {len(own)} pieces, and decode.max_source_length + decode.max_extra_length = "
                    f"{most} is the most that a translation may have; make it shorter, or raise one of the two"
                )

    def _plan(self, prefix: bool) -> Plan:
        c = self.config
        options = Options(
            beam_size=self.beams,
            bos=BOS,
            eos=EOS,
            pad=PAD,
            length_penalty=c.length_penalty,
            length_normalization=c.length_normalization,
            n_best=c.n_best,
        )
        banned = None
        if c.banned:
            phrases = self.tokenizer.encode(_texts("decode.banned", c.banned), "target")
            for phrase, own in zip(c.banned, phrases, strict=True):
                if not own or not self.tokenizer.decode([own])[0].strip():
                    raise UserError(f"decode.banned: this model's tokenizer sees nothing in {phrase!r}; leave it out")
            banned = np.full((len(phrases), max(map(len, phrases))), -1, np.int32)
            for row, phrase in zip(banned, phrases, strict=True):
                row[len(row) - len(phrase) :] = phrase
        constraints = None
        if c.min_length or c.no_repeat_ngram or c.banned or prefix:
            spelling = self._prefixes.spelling if prefix else None
            constraints = Constraints(EOS, c.min_length, banned, c.no_repeat_ngram, spelling)
        sampler = Sampler(jax.random.key(c.seed), c.temperature, c.top_k, c.top_p) if c.sample else None
        return Plan(options, constraints, sampler)

    def _decode(
        self,
        source_BS: np.ndarray,
        limit_B: np.ndarray,
        plan: Plan,
        given: Mapping[str, np.ndarray],
        stop: threading.Event,
    ) -> list[tuple[int, Hypotheses]]:
        """`engine.decode`, in parts where the whole does not fit into memory."""

        def part(rows: slice) -> list[tuple[int, Hypotheses]]:
            arrays = [x[rows] for x in (source_BS, limit_B, *given.values())]
            source, limit, *rest = self._place(*arrays)
            own = dict(zip(given, rest, strict=True))
            found = decode(self.models, self.all_params, source, limit, plan, own, stop)
            return [(rows.start + row, result) for row, result in found]

        return [one for own in self._as_fits(part, len(source_BS)) for one in own]

    def _as_fits(self, part: Callable[[slice], R], rows: int) -> list[R]:
        """`part` of all rows; of one half and then the other where memory is short, and so on."""
        waiting, done = [slice(0, rows)], []
        while waiting:
            own = waiting.pop()
            rows = own.stop - own.start
            count = self._half(rows)
            try:
                done.append(part(own))
                continue
            except jax.errors.JaxRuntimeError as error:
                if not ran_out(error) or not count:
                    raise
            # Outside of the handler, which would keep the failed attempt's arrays alive.
            with self._lock:  # fewer than the devices take no less
                self._rows_that_fit = min(self._rows_that_fit, max(count, self._ways()))
            log.warning("%d sentences at once do not fit into memory; going on with %d", rows, count)
            middle = own.start + count
            waiting += [slice(middle, own.stop), slice(own.start, middle)]
        return done

    def _half(self, rows: int) -> int:
        """How many of so many rows go first where they are too many; 0 if neither part would take less memory."""
        ways = self._ways()
        if rows % ways == 0:  # so they lie on all devices, and both parts are to
            return rows // ways // 2 * ways
        return rows // ways * ways or rows // 2

    def _batches(self, lengths: Sequence[int], *, longest: int | None = None) -> Iterator[tuple[list[int], int, int]]:
        """Indices of sentences that are decoded together, and the shape: rows, length with eos.

        What does not fill a batch waits for the next longer one, if that is at most twice as long; else it is decoded
        in the smallest shape that holds it.
        """
        if longest is None:
            longest = self.config.max_source_length + 1
        else:
            longest = min(next(n for n in source_lengths() if n > longest), self._positions or math.inf)
        buckets = [*itertools.takewhile(lambda n: n < longest, source_lengths()), longest]
        order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
        at, waiting, ways = 0, [], self._ways()
        for b, bucket in enumerate(buckets):
            while at < len(order) and lengths[order[at]] + 1 <= bucket:
                waiting.append(order[at])
                at += 1
            while len(waiting) >= (full := self._rows(bucket)):
                yield waiting[:full], full, bucket
                del waiting[:full]
            if waiting:
                upper = buckets[b + 1] if b + 1 < len(buckets) else 0
                follows = at < len(order) and lengths[order[at]] + 1 <= upper <= 2 * bucket
                if not follows:
                    own = ways if full % ways == 0 else 1
                    few = (-(-(8**k) // own) * own for k in itertools.count())  # the devices divide them
                    yield waiting, min(full, next(n for n in few if n >= len(waiting))), bucket
                    waiting = []

    def _streams(self) -> int:
        """How many batches are decoded at a time."""
        if jax.local_device_count() > 1:
            return 1  # all devices work on one batch
        if self.config.streams:
            return self.config.streams
        # What is small in a step runs on one core: another batch uses the others meanwhile.
        return min(MOST_STREAMS, cores()) if jax.default_backend() == "cpu" else 1

    def _rows(self, length: int) -> int:
        """Rows of a full batch of sources of this length, within `decode.batch_tokens`: a power of two, on each of
        the devices if they are several."""
        fit = min(self._rows_that_fit, max(1, self.config.batch_tokens // (length * self.beams)))
        ways = self._ways() if fit >= self._ways() else 1
        return ways << ((fit // ways).bit_length() - 1)

    def _mesh(self) -> jax.sharding.Mesh | None:
        """That on which the parameters lie, if they do."""
        sharding = getattr(jax.tree.leaves(self.params)[0], "sharding", None)  # NumPy arrays have none
        return sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None

    def _ways(self) -> int:
        """Over how many devices the rows of a batch are laid."""
        mesh = self._mesh()
        return 1 if mesh is None else math.prod(n for axis, n in mesh.shape.items() if axis != "tensor")

    def _place(self, *arrays: np.ndarray) -> Sequence[Any]:
        """Rows laid over the mesh that the parameters lie on, where it divides them."""
        mesh = self._mesh()
        if mesh is None:
            return arrays
        axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
        spec = jax.sharding.PartitionSpec(axes if len(arrays[0]) % self._ways() == 0 else None)
        return [jax.device_put(array, jax.sharding.NamedSharding(mesh, spec)) for array in arrays]


def source_lengths() -> Iterator[int]:
    """The lengths that batches are padded to, ascending: beyond those of `SOURCE_LENGTHS` two for each doubling."""
    yield from SOURCE_LENGTHS
    for doubled in itertools.count(1):
        yield from (3 * SOURCE_LENGTHS[-1] * 2**doubled // 4, SOURCE_LENGTHS[-1] * 2**doubled)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_parts(params: Any, tokenizer: Any, others: Any) -> None:
    """Raise `UserError` for what no translator can be made of. Without a tokenizer it can search, for pieces."""
    if not isinstance(others, Sequence) or not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in others):
        raise UserError(f"others = {shown(others)}: give pairs of a model and its parameters")
    for each in (params, *(other for _, other in others)):
        if not isinstance(each, Mapping) or not each:
            raise UserError(f"params = {shown(each)}: give a nested dict of arrays, as `transformer.load` returns")
    if isinstance(tokenizer, (str, bytes, os.PathLike)):
        raise UserError(f"tokenizer = {shown(tokenizer)}: give Tokenizer.load of it")


def _texts(name: str, texts: Iterable[str]) -> list[str]:
    """The texts as a list, with "?" for half a character, which no tokenizer takes.

    Raises `UserError` for anything else than strings.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise UserError(f"{name} is a {type(texts).__name__}: give a list of strings")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}[{i}] is a {type(text).__name__}: give strings")
    return [text.encode("utf-8", errors="replace").decode() for text in texts]


@partial(jax.jit, static_argnames="models")
def forced(
    params: tuple[Params, ...], source_BS: Array, target_BT: Array, *, models: tuple[Model, ...]
) -> tuple[Array, Array]:
    """Log-probability of each target piece (B, T), averaged over the models' probabilities, and the source position
    (B, T) that it looks at most."""
    input_BT = jnp.concatenate([jnp.full_like(target_BT[:, :1], BOS), target_BT[:, :-1]], axis=1)
    log_probs, alignment_BT = [], None
    for model, own in zip(models, params, strict=True):
        bound = model.bind(own)
        logits_BTV, _, weights = bound.decode(input_BT, bound.encode(source_BS), want_weights=alignment_BT is None)
        if alignment_BT is None:
            alignment_BT = jnp.argmax(weights[max(0, len(weights) - 2)].mean(axis=1), axis=-1)
        # As the search sees them: see `engine.next_log_probs`.
        own_BTV = jax.nn.log_softmax(logits_BTV)
        log_probs.append(jnp.take_along_axis(own_BTV, target_BT[..., None], axis=2)[..., 0])
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs)), alignment_BT


def side_by_side(work: Callable[[J, threading.Event], R], jobs: Iterable[J], ways: int) -> Iterator[R]:
    """What `work` gives for each of the jobs, in their order; so many are done at a time, each in a thread.

    `work` is given an event, too, that is set when nobody waits for its result any more.
    """
    stop = threading.Event()
    if ways == 1:
        yield from (work(job, stop) for job in jobs)
        return
    pool = ThreadPoolExecutor(ways, "decode")
    try:
        begun: collections.deque[Future[R]] = collections.deque()
        for job in jobs:
            begun.append(pool.submit(work, job, stop))
            if len(begun) > ways:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def in_type(model: ModelConfig, params: Params, dtype: str) -> tuple[ModelConfig, Params]:
    """A trained model for decoding in a type that `decode.dtype` names."""
    fast = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype == "auto":
        dtype = model.dtype if fast == "float32" else fast
    # In 8 bits are the matrices alone, and what is multiplied with them.
    return dataclasses.replace(model, dtype=fast if dtype == "int8" else dtype), rounded(params, dtype)


def _everywhere(params: Params) -> Params:
    """A copy of the parameters on each of this process's devices, if there are several."""
    if jax.local_device_count() == 1:
        return params
    mesh = jax.make_mesh(
        (jax.local_device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()
    )
    return jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
