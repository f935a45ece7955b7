"""Text that goes on from prompts: sampled, or searched, with one language model or with an ensemble."""

from __future__ import annotations

import codecs
import copy
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transformer.config import CONTINUING, DecodeConfig, UserError, check_decode, shown
from transformer.data.given import strings
from transformer.inference.batches import Batch
from transformer.inference.context import Prompts
from transformer.inference.engine import stages
from transformer.inference.ensemble import (
    CONTINUES,
    Ensemble,
    as_lists,
    check_checkpoints,
    check_members,
    load,
    members,
    same_file,
)
from transformer.inference.pieces import MAX_LINES, check_ids, warn_of_missing
from transformer.inference.recorder import Recorded, record
from transformer.inference.stops import before, certain
from transformer.inference.strategy import beams, generation
from transformer.inference.tally import Tally
from transformer.inference.text_scorer import ScoredText, TextScorer
from transformer.model import Model, Params
from transformer.model.checks import check_flag, check_integer

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.vocabularies import Vocabulary

log = logging.getLogger("transformer")


class Generated(NamedTuple):
    """One text that goes on from a prompt."""

    text: str
    """Without the prompt, and without a stop string and what follows it."""
    log_prob: float
    """Log-probability (nats) of `tokens`, and of the end of the document where the text ends with it. NaN, with an
    empty text, if it is not finite."""
    tokens: list[int]
    """The ids of its pieces, without the end of the document. The last may belong to a stop string."""


class Generator:
    """Generates text with one language model, or with an ensemble. `tally` counts the prompts so far.

    A model sees at most `context` pieces at once. When prompt and output together grow longer, the model goes on with
    the last half of them, and so on (see `context.Sliding`); a warning tells it once.

    All methods check their arguments as the command line does: they raise `UserError` (a ValueError) before they
    compute.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        vocabulary: Vocabulary,
        config: DecodeConfig | None = None,
        others: Sequence[tuple[Model, Params]] = (),
        *,
        context: int | None = None,
        documents: bool = False,
    ):
        """`config`: by default one draw of at most 50 pieces for each prompt. `others`: further models with the same
        vocabulary. Each step averages the probabilities of all models.

        `context`: the most pieces that the model sees at once (`data.context` of its training); None = as many as it
        has learned positions. `documents`: the model was trained on documents, so the begin of a document precedes each
        prompt; otherwise it stands only for an empty prompt. `config.dtype` has no effect here: only `load` converts
        parameters (see `in_type`).
        """
        check_members(model, params, others, CONTINUES)
        check_flag("documents", documents)
        if not hasattr(vocabulary, "spelling") or not hasattr(vocabulary, "size"):
            raise UserError(f"vocabulary = {shown(vocabulary)}: give one of transformer.data.vocabularies")
        self.model, self.vocabulary, self.documents = model, vocabulary, documents
        self.config = DecodeConfig(sample=True) if config is None else config
        check_decode(self.config)
        self.tally = Tally()
        self._ensemble = Ensemble([(model, params), *others], self.config)
        self.batcher = self._ensemble.batcher
        if self._ensemble.vocab_size not in (None, vocabulary.size):
            raise UserError(
                f"the model has a vocabulary of {self._ensemble.vocab_size} pieces, and the given one has "
                f"{vocabulary.size}; give the vocabulary that it was trained with"
            )
        if context is not None:
            check_integer("context", context, 2)
        limits = [n for n in (context, self._ensemble.positions("positions", "entropy/positions")) if n is not None]
        self.context: int | None = min(limits, default=None)
        """The most pieces that the model sees at once; None = no limit."""
        self._slid = False  # whether the warning about the context has been given

    @classmethod
    def load(
        cls,
        workdir: str | Sequence[str],
        checkpoint: str | int | Sequence[str | int] | None = None,
        config: DecodeConfig | None = None,
    ) -> Generator:
        """The generator of a workdir, or of several as an ensemble.

        `checkpoint`: as in `transformer.load`, or one for each workdir. `config`: by default that of the first workdir.
        If there are several devices, the rows of a batch are cut over all of them.
        """
        return load(workdir, checkpoint, config, cls.of)

    @classmethod
    def of(cls, checkpoints: Sequence[Checkpoint], config: DecodeConfig | None = None) -> Generator:
        """The generator of one checkpoint, or of several as an ensemble. `config`: as in `load`."""
        from transformer.data import vocabularies

        check_checkpoints(checkpoints, *CONTINUING)
        name, content = same_file(checkpoints, vocabularies.FILES, "vocabularies")
        vocabulary = vocabularies.read(name, content, str(checkpoints[0].path / name))
        config = checkpoints[0].config.decode if config is None else config
        check_decode(config)
        (model, params), *others = members(checkpoints, config)
        data = [opened.config.data for opened in checkpoints]
        context, documents = min(each.context for each in data), data[0].documents != "none"
        return cls(model, params, vocabulary, config, others, context=context, documents=documents)

    def with_config(self, config: DecodeConfig) -> Generator:
        """The same models with other options of decoding. `config.dtype` has no effect."""
        check_decode(config)
        other = copy.copy(self)
        other.config, other.tally, other._ensemble = config, Tally(), self._ensemble.with_config(config)
        other.batcher = other._ensemble.batcher
        return other

    def generate(self, prompts: Sequence[str], *, stop: Sequence[str] = (), first_line: int = 1) -> list[str]:
        """One text for each prompt, without the prompt: the best of `config.n_best`.

        A text ends before the first of the strings `stop`, at the end of a document, or after
        `config.max_extra_length` pieces. A prompt that is too long loses its beginning, with a warning that names its
        line, counted from `first_line`. If the model's scores are not finite, the text is empty; a warning names the
        first such line and counts them.
        """
        results = self.generate_n_best(prompts, stop=stop, first_line=first_line)
        return [found[0].text if found else "" for found in results]

    def generate_n_best(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), first_line: int = 1
    ) -> list[list[Generated]]:
        """`config.n_best` samples for each prompt, or, with beam search, up to as many texts; the most probable first.

        See `generate`. The samples of a prompt depend on `config.seed`, on the number of its line, and on `n_best`.
        """
        pieces = self.encode(prompts, first_line)
        results: list[list[Generated]] = [[] for _ in pieces]
        for i, found in self.search(pieces, stop=stop, first=first_line - 1):
            results[i] = found[: self.config.n_best]
        self.tally.count([result[0].log_prob if result else None for result in results], first_line)
        if nothing := [i for i, result in enumerate(results) if not result]:
            log.warning(
                "line %d: no text obeys decode.banned, no_repeat_ngram and min_length together, so it stays empty "
                "(%d of %d lines)",
                *(first_line + nothing[0], len(nothing), len(results)),
            )
        return results

    def stream(self, prompt: str, *, stop: Sequence[str] = (), first_line: int = 1) -> Iterator[str]:
        """The text that `generate` returns for one prompt, piece by piece as they are drawn.

        The parts are whole characters; what may begin a stop string is held back. Raises `UserError` for beam search,
        which decides only at the end.
        """
        if not self.streams:
            kind = f"decode.n_best = {self.config.n_best}" if self.config.sample else "beam search"
            raise UserError(f"{kind} has no stream of pieces: give --decode.n_best 1 and --decode.sample True")
        (pieces,) = self.encode([prompt], first_line)
        stop = _checked_stops(stop)
        text, written, score = "", 0, None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for fresh, score in self._fresh(pieces, stop, first_line - 1):
            text += decoder.decode(self.vocabulary.spell(fresh), final=score is not None)
            sure = before(text, stop)
            if score is None and sure == text:
                sure = certain(text, stop)
            if len(sure) > written:
                yield sure[written:]
                written = len(sure)
        self.tally.count([score], first_line)

    def recorded(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), ended: threading.Event | None = None
    ) -> list[tuple[list[Generated], Recorded]]:
        """`generate_n_best` of a few prompts, and the record of each search.

        An event `ended` that is set ends the search; then there are no texts.
        """
        pieces, stop = self.encode(prompts), _checked_stops(stop)
        limit = self._check(pieces, 0)
        if limit == 0:
            return [([Generated("", 0.0, [])], Recorded()) for _ in pieces]
        decoding, window = (
            generation(self.config, self.vocabulary, stop),
            self._window(max(map(len, pieces), default=0) + limit),
        )
        results: list[tuple[list[Generated], Recorded]] = [([], Recorded()) for _ in pieces]
        for batch in self._batches(pieces):
            source, limit_B, given = self.batcher.put_tree(_filled(batch, pieces, limit, 0))
            ensemble = self._ensemble
            records = record(ensemble.models, ensemble.params, source, limit_B, decoding, given, ended, window)
            for row, one in records.items():
                texts = [] if one.hypotheses is None else self._texts(one.hypotheses, decoding, stop)
                results[batch.indices[row]] = texts[: self.config.n_best], one
        return results

    @property
    def params(self) -> Params:
        """The parameters of the first model; for others, make another `Generator`."""
        return self._ensemble.params[0]

    @property
    def streams(self) -> bool:
        """Whether `stream` can give the pieces as they are drawn: there is one sample, or a greedy search."""
        return beams(self.config) == 1

    def encode(self, prompts: Sequence[str], first_line: int = 1) -> list[list[int]]:
        """The pieces of each prompt, with the begin of a document where it belongs (see `__init__`).

        Warns of prompts that are cut to their last pieces, and of characters that the vocabulary lacks.
        """
        prompts = strings("prompts", prompts)
        check_integer("first_line", first_line, 1, MAX_LINES - len(prompts))
        most, field = self.config.max_source_length, "decode.max_source_length"
        if self.context is not None and self.context < most:
            most, field = self.context, "the model's context"
        encoded, cut = [], []
        for number, pieces in enumerate(self._pieces(prompts, first_line), first_line):
            if self.documents or not pieces:
                pieces.insert(0, self.vocabulary.begin)
            if len(pieces) > most:
                cut.append((number, len(pieces)))
            encoded.append(pieces[-most:])
        if cut:
            log.warning(
                "line %d: the prompt has %d pieces; only the last %d are used: %s (%d of %d lines)",
                *(*cut[0], most, field, len(cut), len(prompts)),
            )
        return encoded

    def _pieces(self, texts: Sequence[str], first_line: int) -> list[list[int]]:
        """The pieces of each text. Warns of characters that the vocabulary lacks."""
        encoded, lacking = [self.vocabulary.encode(text).tolist() for text in texts], {}
        for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), first_line):
            if (missing := self.vocabulary.missing(text)) and self.vocabulary.decode(ids) != text:
                lacking[number] = missing
        if lacking:
            number, missing = next(iter(lacking.items()))
            warn_of_missing(number, missing, len(lacking), len(texts))
        return encoded

    def search(
        self, prompts: Sequence[Sequence[int]], *, stop: Sequence[str] = (), first: int = 0
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Yields (index, texts, best first) for each prompt, in any order. Prompts are pieces, at least one each.

        `first`: the number of the first prompt in the whole input, from 0; samples depend on it.
        """
        stop, limit = _checked_stops(stop), self._check(prompts, first)
        if limit == 0:
            yield from ((i, [Generated("", 0.0, [])]) for i in range(len(prompts)))
            return
        decoding = generation(self.config, self.vocabulary, stop)
        window = self._window(max(map(len, prompts), default=0) + limit)

        def decode_batch(batch: Batch, ended: threading.Event) -> list[tuple[int, list[Generated]]]:
            source, limit_B, given = _filled(batch, prompts, limit, first)
            finished = self._ensemble.decode(source, limit_B, decoding, given, ended, window)
            return [(batch.indices[row], self._texts(hypotheses, decoding, stop)) for row, hypotheses in finished]

        for results in self.batcher.side_by_side(decode_batch, self._batches(prompts)):
            yield from results

    def score(self, given: Sequence[str], *, first_line: int = 1) -> list[ScoredText]:
        """The log-probability of each piece of each text (see `ScoredText`).

        Warns of characters that the vocabulary lacks. Raises `UserError` for a text that is longer than the model's
        context.
        """
        check_integer("first_line", first_line, 1)
        given = strings("texts", given)
        pieces = self._pieces(given, first_line)
        for number, ids in enumerate(pieces, first_line):
            if self.context is not None and len(ids) > self.context:
                raise UserError(
                    f"line {number}: the text has {len(ids)} pieces, and the model sees at most {self.context} at "
                    "once; make it shorter, or measure a whole file: evaluate.py --text FILE"
                )
        scorer = TextScorer(self._ensemble, self.vocabulary, self.documents, self.context or math.inf)
        results = scorer.score(pieces)
        self.tally.count([one.log_prob if one.pieces else None for one in results], first_line)
        return results

    def _check(self, prompts: Sequence[Sequence[int]], first: int) -> int:
        """Raise `UserError` for prompts that can't be decoded. Returns the most pieces of an output."""
        check_ids("prompt", prompts, self.vocabulary.size)
        check_integer("first", first, 0, MAX_LINES - len(prompts))
        for i, pieces in enumerate(prompts):
            if not len(pieces):
                raise UserError(f"prompt {i} is empty; give the begin of a document, {self.vocabulary.begin}")
            if self.context is not None and len(pieces) > self.context:
                raise UserError(f"prompt {i} has {len(pieces)} pieces, and the context {self.context}; cut it")
        c = self.config
        return c.max_extra_length if c.max_length is None else min(c.max_extra_length, c.max_length)

    def _window(self, longest: int) -> int | None:
        """`window` of `engine.decode` for texts of at most `longest` pieces. Warns once if it may cut them."""
        if self.context is None or longest - 1 <= self.context:
            return None
        if not self._slid:
            self._slid = True
            log.warning(
                "the model sees at most %d pieces at once (data.context, model.max_positions): where prompt and output "
                "together are longer, it goes on with the last %d of them",
                *(self.context, max(1, self.context // 2)),
            )
        return self.context

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[Batch]:
        lengths = list(map(len, prompts))
        return self.batcher.batches(lengths, max(self.context or self.config.max_source_length, *lengths, 1))

    def _texts(self, hypotheses: Any, decoding: Any, stop: Sequence[str]) -> list[Generated]:
        """The hypotheses of one prompt as texts."""
        tokens, scores = as_lists(hypotheses, self.vocabulary.end)
        found = []
        for pieces, score, length in zip(tokens, scores, hypotheses.lengths_BM.tolist(), strict=False):
            penalty = float(decoding.options.score(1.0, length)) ** -1 if length else 1.0
            found.append(Generated(before(self.vocabulary.decode(pieces), stop), score * penalty, pieces))
        return found

    def _fresh(self, pieces: list[int], stop: Sequence[str], first: int) -> Iterator[tuple[list[int], float | None]]:
        """The new pieces after each step of one prompt and sample, and at its end the log-probability."""
        limit = self._check([pieces], first)
        if limit == 0:
            yield [], 0.0
            return
        decoding, window = generation(self.config, self.vocabulary, stop), self._window(len(pieces) + limit)
        (batch,) = self._batches([pieces])
        prompts, limit_B, given = self.batcher.put_tree(_filled(batch, [pieces], limit, first))
        seen = 0
        ensemble = self._ensemble
        for _, state in stages(
            ensemble.models, ensemble.params, prompts, limit_B, decoding, given, window=window, most=1
        ):
            stopped = bool(state.stopped_B[0])
            if stopped:
                tokens_L = np.asarray(state.done_tokens_BML[0, 0])[: int(state.done_lengths_BM[0, 0])]
                score = float(state.done_scores_BM[0, 0])
                score = score if math.isfinite(score) or not bool(state.broken_B[0]) else math.nan
            else:
                tokens_L, score = np.asarray(state.tokens_BML[0, 0])[: int(state.at)], None
            fresh = [int(i) for i in tokens_L[seen:] if i != self.vocabulary.end]
            seen = len(tokens_L)
            yield fresh, score


def _filled(
    batch: Batch, prompts: Sequence[Sequence[int]], limit: int, first: int
) -> tuple[Prompts, np.ndarray, dict[str, np.ndarray]]:
    """The arrays of a batch: prompts, limits (0 excludes empty rows from the search), and the numbers of the lines."""
    tokens_BP = np.zeros((batch.rows, batch.length), np.int32)
    lengths_B, limit_B, number_B = (np.zeros(batch.rows, np.int32) for _ in range(3))
    for row, i in enumerate(batch.indices):
        lengths_B[row], limit_B[row], number_B[row] = len(prompts[i]), limit, first + i
        tokens_BP[row, : len(prompts[i])] = prompts[i]
    return Prompts(tokens_BP, lengths_B), limit_B, {"number_B": number_B}


def _checked_stops(stop: Sequence[str]) -> list[str]:
    """The stop strings as a list. Raises `UserError` for an empty one."""
    stop = strings("stop", stop, exact=True)
    if not all(stop):
        raise UserError("a stop string is empty; leave it out")
    return stop
