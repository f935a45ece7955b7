"""The translation task: train on parallel text, evaluate with BLEU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from transformer.config import PAD, Config, DecodeConfig, UserError, with_micro_batches
from transformer.data.batching import Batches, evaluation_batches, too_long
from transformer.data.bpe_dropout import BpeDropout
from transformer.data.folder import check_cache, writable_cache_dir
from transformer.data.held_out import HeldOut, held_out_doubts
from transformer.data.languages import Named, doubts
from transformer.data.sources import corpora
from transformer.data.text import Corpora, Parallel, read_pairs
from transformer.data.tokenizer import Tokenizer, tokenizer
from transformer.data.tokens import TokenStore, tokenize
from transformer.inference.translator import Translator
from transformer.judging import decoding
from transformer.model import Params, build
from transformer.model.rounding import in_type
from transformer.tasks.gathered import translate_shares
from transformer.tasks.judges import JUDGED, bleu_tokenizer, check_scoring, score, spelt_otherwise, unsuited
from transformer.tasks.scoring import evaluate_workdir, lines_of
from transformer.tasks.sets import Sides, read_sides, write_sets
from transformer.tasks.vocabulary import files_of, inherited, size_before_training, sized
from transformer.training.objectives import sequences
from transformer.training.sharding import batch_sharding, gathered, put
from transformer.training.step import cut
from transformer.training.task import with_data_of
from transformer.training.warm_start import check_start

log = logging.getLogger("transformer")

# Warn if exchanging sources raises dev loss by less than this share of it.
LEAST_GAIN = 0.5


class Translation:
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    def __init__(self, config: Config, pieces: Tokenizer, texts: Corpora):
        config = sized(config, pieces.vocab_size)
        self.config, self.pieces, self.texts = config, pieces, texts
        model = build(config.model)
        self.objective = sequences(model, config.train, packing=config.data.packing)
        self.files = files_of(pieces)
        self.judged = JUDGED[config.evaluate.metric]
        unsmoothed = dataclasses.replace(config.train, label_smoothing=0.0)
        self._dev_loss = jax.jit(sequences(model, unsmoothed, packing=config.data.packing).loss, static_argnames="mesh")

    @staticmethod
    def check(config: Config, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading text."""
        check_start(config, workdir, build(config.model.with_vocabulary(size_before_training(config, workdir))))
        check_scoring(config)

    @staticmethod
    def resumed(config: Config, stored: Config) -> Config:
        """`config` for a run that resumes in a workdir whose config is `stored`.

        Keeps normalization "identity", an earlier default, if `config` has today's default "clean".
        """
        if (stored.data.normalization, config.data.normalization) != ("identity", "clean"):
            return config
        log.info("data.normalization stays 'identity', as at the start of this run")
        return dataclasses.replace(config, data=dataclasses.replace(config.data, normalization="identity"))

    check_cache = staticmethod(check_cache)
    score = staticmethod(evaluate_workdir)
    lines_of = staticmethod(lines_of)

    @classmethod
    def build(cls, config: Config, workdir: str | None = None) -> Translation:
        """The task. Tokenizer: the workdir's if the run resumes, else that of `train.init_from`, else a new one."""
        texts = corpora(config.data)
        pieces = inherited(config, workdir) or tokenizer(config.data, texts.train)
        if pieces.vocab_size != config.data.vocab_size:
            log.info(
                "the tokenizer has %d pieces; data.vocab_size = %d is not used",
                *(pieces.vocab_size, config.data.vocab_size),
            )
        return cls(config, pieces, texts)

    def cut_into(self, micro_batches: int) -> Translation:
        """The same task with this number of micro-batches a batch. Text that this task has read is not read again."""
        other = Translation(with_micro_batches(self.config, micro_batches), self.pieces, self.texts)
        read = ("_train", "_development", "_test", "_doubts")
        return with_data_of(self, other, read)

    # ---- Training ---------------------------------------------------------------------------------------------------

    def batches(self) -> Batches:
        """The training batches. The first call tokenises the text."""
        return self._batches

    def text_doubts(self) -> list[str]:
        """Warnings about the languages of the text and about the development and test sets.

        Raises `UserError` if source and target are exchanged in all of the training text.
        """
        return self._doubts

    def prepare(self) -> None:
        """Tokenise all text of the run, check it and plan the batches. Only the first call does the work."""
        self.text_doubts()
        self.batches()

    def content_digests(self) -> dict[str, str]:
        """sha256 of the tokens of each file of training text, and of the development set."""
        train = {
            f"sha256 of the tokens of {Path(parallel.source).name} (data.source, {i})": tokens.sha256()
            for i, (parallel, tokens) in enumerate(zip(self.texts.train, self._train, strict=True), 1)
        }
        return {**train, "sha256 of the development set": self.dev_digest()}

    def data_digest(self) -> str:
        """sha256 of the training text and its tokens: it changes if either changes."""
        return hashlib.sha256(" ".join(tokens.text for tokens in self._train).encode()).hexdigest()

    def dev_digest(self) -> str:
        """sha256 of the development sentences that are scored; "" without a development set."""
        if self.texts.dev is None:
            return ""
        return self._digest_of(self.config.train.eval_sentences)

    def _digest_of(self, count: int | None) -> str:
        """sha256 of the first development sentences; None = of all."""
        return hashlib.sha256(json.dumps([side[:count] for side in self._development[:2]]).encode()).hexdigest()

    def judged_on(self) -> dict[str, Any]:
        """What dev scores depend on besides the parameters: the sentences and the options of decoding and scoring."""
        options = {"bleu_tokenize": bleu_tokenizer(self.config), **decoding(self.config.decode)}
        if self.texts.dev is not None:  # the loss is of all sentences
            options["sha256 of all development sentences"] = self._digest_of(None)
        return {"dev_digest": self.dev_digest(), "scored_with": options}

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test sets into the workdir, as they were read."""
        texts = self.texts
        dev = None if texts.dev is None else Sides(texts.dev_name, *self._development[:2])
        test = None if texts.test is None else Sides(texts.test_name, *self._test[:2])
        write_sets(folder, {"dev": dev, "test": test})

    def describe(self) -> Iterator[str]:
        """Lines for the banner: data and tokenizer. Process 0 also logs the warnings of `text_doubts`."""
        b = self.batches()
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in b.dropped.items() if n) or "none"
        same = sum(tokens.same for tokens in self._train)
        copied = f"; {same:,} are the same text on both sides" if same else ""
        yield f"data        {b.kept:,} pairs kept, dropped: {dropped}; {b.batches_per_epoch:,} updates an epoch{copied}"
        if jax.process_index() == 0:
            for doubt in self.text_doubts():
                log.warning("%s", doubt)
        yield f"padding     {b.padding:.1%} of positions"
        yield f"tokenizer   {self.pieces.vocab_size:,} pieces, sha256 {self.pieces.sha256[:16]}"
        if self.texts.dev is not None:
            sources, references, _ = self._development
            sides = (("source", sources), ("target", references))
            rates = [f"{self.pieces.round_trip_rate(lines, side):.2%}" for side, lines in sides]
            name, count, both = self.texts.dev_name, len(sources), " and ".join(rates)
            yield f"dev set     {name}, {count:,} pairs; {both} of lines survive the tokenizer unchanged"

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores on the development set, by name: the loss (nats per target piece, eos included, without smoothing),
        its perplexity, the loss with sources exchanged among sentences, BLEU, chrF, and their signatures.

        Logs a warning if, after the warmup, the source hardly helps: then the model does not translate yet.
        """
        if self.texts.dev is None:
            return
        sources, references, tokens = self._development
        t = self.config.train
        loss, gain = self._losses(params, mesh, tokens)
        yield "dev_loss", loss
        yield "dev_perplexity", float(np.exp(min(loss, 700.0)))
        if gain is not None:
            yield "dev_loss_exchanged", loss + gain
            if jax.process_index() == 0 and step >= t.warmup_steps and gain < LEAST_GAIN * loss:
                log.warning(
                    "step %d: the source hardly helps: dev loss is %.2f, and %.2f with sources exchanged among "
                    "sentences. Check that line n of the source belongs to line n of the target; if so, and if the "
                    "warning stays, start anew with a lower train.peak_learning_rate or with model.pre_norm",
                    *(step, loss, loss + gain),
                )
        sources, references = sources[: t.eval_sentences], references[: t.eval_sentences]
        hypotheses = translate_shares(self._translator(gathered(params)), sources)
        scores = score(hypotheses, [references], bleu_tokenizer(self.config))
        if jax.process_index() == 0 and (doubt := spelt_otherwise(self.texts.dev_name, hypotheses, references)):
            log.warning("%s", doubt)
        yield "dev_bleu", scores["bleu"]
        yield "dev_chrf", scores["chrf"]
        yield "dev_bleu_signature", scores["signature"]
        yield "dev_chrf_signature", scores["chrf_signature"]
        # Always the same five sentences, so that the log shows the model learn.
        for i in np.unique(np.linspace(0, len(sources) - 1, 5).astype(int)):
            log.info("  source      %s\n  reference   %s\n  hypothesis  %s\n", sources[i], references[i], hypotheses[i])
        text, count = Counter(hypotheses).most_common(1)[0]
        if len(hypotheses) >= 10 and count > len(hypotheses) / 2:
            log.warning("%d of %d translations are the same: %r", count, len(hypotheses), text)

    def _losses(self, params: Params, mesh: Mesh, tokens: TokenStore) -> tuple[float, float | None]:
        """The development loss (nats per target piece), and its increase if each sentence has the source of its
        neighbour in the batch; the increase is None if no batch has two sentences."""

        def nll_and_weight(batch: dict[str, np.ndarray]) -> np.ndarray:
            rows = jax.tree.map(lambda x: x[0], cut(batch, mesh, 1))
            _, sums = self._dev_loss(params, put(rows, batch_sharding(mesh)), None, mesh=mesh)
            return np.array([float(sums["nll"]), float(sums["weight"])])

        total, growth = np.zeros(2), np.zeros(2)
        size = {"batch_tokens": self.config.train.batch_tokens, "n_buckets": 3, "max_length": self._most_pieces}
        for batch in evaluation_batches(tokens, **size):
            nll, weight = nll_and_weight(batch)
            total += nll, weight
            if (other := exchanged(batch)) is not None:
                growth += nll_and_weight(other)[0] - nll, weight
        return float(total[0] / total[1]), float(growth[0] / growth[1]) if growth[1] else None

    def sample(self, params: Params) -> None:
        """Translate two sentences and log them, for a dry run."""
        pair = self.texts.dev or self.texts.train[0]
        sources = [source for source, _ in zip_first(read_pairs(pair, self.config.data.fields), 2)]
        for source, hypothesis in zip(sources, self._translator(params).translate(sources), strict=True):
            log.info("decoded     %s -> %s", source, hypothesis)

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the pairs in the batch of update `step` (from 0)."""
        pairs = self.batches().lines(step)  # (corpus, line)
        return "; ".join(
            f"{parallel.source}:{','.join(map(str, 1 + np.sort(pairs[pairs[:, 0] == c, 1])))}"
            for c, parallel in enumerate(self.texts.train)
            if c in pairs[:, 0]
        )

    def _translator(self, params: Params) -> Translator:
        """The translator that evaluate.py uses, with parameters of type decode.dtype."""
        model, params = in_type(self.config.model, params, self.config.decode.dtype)
        return Translator(build(model.with_vocabulary(self.pieces.vocab_size)), params, self.pieces, self.config.decode)

    @cached_property
    def _batches(self) -> Batches:
        d, t = self.config.data, self.config.train
        dropout = BpeDropout(self.pieces, d.bpe_dropout, t.seed) if d.bpe_dropout else None
        for tokens in self._train if dropout is not None else ():
            dropout.check(tokens)
        return Batches(
            self._train,
            weights=[parallel.weight for parallel in self.texts.train],
            batch_tokens=t.batch_tokens,
            accumulate=t.accumulate,
            max_length=d.max_length,
            max_ratio=d.max_ratio,
            n_buckets=d.length_buckets,
            packing=d.packing,
            dropout=dropout,
            seed=t.seed,
        )

    @cached_property
    def _development(self) -> tuple[list[str], list[str], TokenStore]:
        sources, references = read_sides(self.texts.dev, self.config.data.fields)
        return sources, references, self._tokens(self.texts.dev)

    @cached_property
    def _test(self) -> tuple[list[str], list[str], TokenStore]:
        sources, references = read_sides(self.texts.test, self.config.data.fields)
        return sources, references, self._tokens(self.texts.test)

    @cached_property
    def _doubts(self) -> list[str]:
        texts, dev, test = self.texts, None, None
        train = [Named(_name(parallel), tokens) for parallel, tokens in zip(texts.train, self._train, strict=True)]
        warnings = doubts(train, Named(_name(texts.dev), self._development[2]) if texts.dev is not None else None)
        warnings += self._development_doubts()
        if texts.dev is not None:
            sources, references, tokens = self._development
            dev = HeldOut(texts.dev_name, tokens, sources, references)
        if texts.test is not None:
            sources, references, tokens = self._test
            test = HeldOut(texts.test_name, tokens, sources, references)
        return [*warnings, *held_out_doubts(train, dev, test)]

    def _development_doubts(self) -> Iterator[str]:
        """Warnings about the development set. Raises `UserError` if no pair of it is short enough for dev loss."""
        name = self.texts.dev_name
        if self.texts.dev is None:
            return
        _, references, tokens = self._development
        if doubt := unsuited(name, references, self.config):
            yield doubt
        left_out, most = too_long(tokens, self._most_pieces), self._most_pieces
        if len(left_out) == len(tokens):
            raise UserError(
                f"{name}: all {len(tokens):,} pairs of the development set have more than {most:,} pieces on a side; "
                "give shorter ones, or raise decode.max_source_length"
            )
        if len(left_out):
            yield (
                f"{name}: {len(left_out):,} of {len(tokens):,} pairs of the development set have more than {most:,} "
                "pieces on a side (as decode.max_source_length allows) and are left out of dev loss; the first "
                f"is pair {left_out[0] + 1:,}"
            )

    @property
    def _most_pieces(self) -> int:
        """The most pieces on a side, eos included, of a pair that counts in the development loss. Longer pairs are left
        out: memory grows with the square of the length, and learned positions end there."""
        model, decode = self.config.model, self.config.decode
        most = max(self.config.data.max_length, decode.max_source_length + 1, DecodeConfig().max_source_length + 1)
        return min(most, model.max_positions) if model.positions == "learned" else most

    @cached_property
    def _train(self) -> list[TokenStore]:
        return [self._tokens(parallel) for parallel in self.texts.train]

    def _tokens(self, parallel: Parallel) -> TokenStore:
        d = self.config.data
        with writable_cache_dir(d) as folder:
            return tokenize(parallel, self.pieces, fields=d.fields, folder=folder, workers=d.workers)


def exchanged(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The batch with each source_BS row replaced by the row before it; None with fewer than two rows.

    Rows of padding, the last rows of a batch, stay unchanged.
    """
    n = int((batch["target"][:, 0] != PAD).sum())
    if n < 2:
        return None
    source = batch["source"].copy()
    source[:n] = np.roll(source[:n], 1, axis=0)
    return {**batch, "source": source}


def _name(parallel: Parallel) -> str:
    return parallel.source if parallel.target is None else f"{parallel.source} and {parallel.target}"


def zip_first(pairs: Iterator[tuple[str, str]], n: int) -> list[tuple[str, str]]:
    """The first n pairs."""
    return [pair for pair, _ in zip(pairs, range(n), strict=False)]
