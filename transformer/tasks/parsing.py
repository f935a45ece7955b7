"""The task of constituency parsing: train on trees, evaluate with EVALB's F1 (Vaswani et al. 2017, §6.3)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from transformer.checkpoint import Checkpoints
from transformer.config import PAD, ParsingConfig, UserError, check, with_micro_batches
from transformer.data import linearised, treebank
from transformer.data.batching import evaluation_batches
from transformer.data.folder import check_cache
from transformer.data.linearised import Symbols
from transformer.data.treebank import Treebank, TreeBatches, TreeRows
from transformer.data.vocabulary_training import labelled_vocabulary
from transformer.data.wordpiece import EncoderVocabulary
from transformer.files import path_of
from transformer.inference.batches import on_all_devices
from transformer.inference.parser import Parser, symbols_in
from transformer.judging import decoding
from transformer.model import Params, build
from transformer.model.rounding import in_type
from transformer.tasks import parse_scores
from transformer.tasks.evalb import Parameters, summary
from transformer.tasks.parse_scores import evaluate_workdir, f1_of_all, lines_of, parameters_of, parse_shares, scored
from transformer.tasks.starts import adopted, start_model, stored_model
from transformer.tasks.vocabulary import ENCODER_VOCABULARIES, files_of, inherited, size_before_training, sized
from transformer.training.objectives import parsed
from transformer.training.sharding import batch_sharding, gathered, put
from transformer.training.step import cut
from transformer.training.task import with_data_of
from transformer.training.warm_start import check_start

log = logging.getLogger("transformer")

_SAMPLES = 3
_NO_TRAIN = "data.train is empty: name a file of trees, such as --data.train train.mrg"
_OF_ENCODER = ("embedding/", "encoder/", "source_positions", "source_norm/")


class Parsing:
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    def __init__(
        self,
        config: ParsingConfig,
        pieces: EncoderVocabulary,
        symbols: Symbols,
        banks: dict[str, Treebank | None],
    ):
        """`banks`: the trees "train", "dev" and "test"."""
        if pieces.pad != PAD:
            raise UserError(
                f"the vocabulary has padding at id {pieces.pad}, a parser needs it at {PAD}; give another one"
            )
        config = sized(dataclasses.replace(config, model=_with_symbols(config, symbols)), pieces.size)
        check(config)
        self.config, self.pieces, self.symbols, self.banks = config, pieces, symbols, banks
        self.files = {**files_of(pieces), **dict([symbols.file])}
        self.judged = (("dev_f1_all", "up"), ("dev_loss", "down"))
        model = build(config.model)
        self.objective = parsed(model, config.train, symbols.shift, rate=_rate_of(config))
        unsmoothed = dataclasses.replace(config.train, label_smoothing=0.0)
        self._dev_loss = jax.jit(parsed(model, unsmoothed, symbols.shift).loss, static_argnames="mesh")

    @staticmethod
    def check(config: ParsingConfig, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading trees."""
        parse_scores.check_parameters(config)
        config = _from_start(config, workdir)
        size = size_before_training(config, workdir, ENCODER_VOCABULARIES)
        symbols = _inherited_symbols(config, workdir)
        model = _with_some_sizes(config) if symbols is None else _with_symbols(config, symbols)
        check_start(config, workdir, build(model.with_vocabulary(size)))

    @staticmethod
    def resumed(config: ParsingConfig, stored: ParsingConfig) -> ParsingConfig:
        """`config` for a run that resumes in a workdir whose config is `stored`."""
        return dataclasses.replace(config, model=stored_model(config, stored))

    check_cache = staticmethod(check_cache)
    score = staticmethod(evaluate_workdir)
    lines_of = staticmethod(lines_of)

    @classmethod
    def build(cls, config: ParsingConfig, workdir: str | None = None) -> Parsing:
        """The task. Vocabulary and symbols: the workdir's if the run resumes, else those of `train.init_from`, else new
        ones."""
        data, config = config.data, _from_start(config, workdir)
        if not data.train:
            raise UserError(_NO_TRAIN)
        banks = {
            "train": treebank.read(data.train, data.most_trees),
            "dev": treebank.read(data.dev) if data.dev else None,
            "test": treebank.read(data.test) if data.test else None,
        }
        if jax.process_index() == 0:
            parse_scores.warn_of_doubts(banks, parse_scores.parameters_of(config.parser))
        sentences = banks["train"].sentences
        symbols = _inherited_symbols(config, workdir)
        symbols = symbols or linearised.learn([one.tree for one in sentences], data.form)
        pieces = inherited(config, workdir, ENCODER_VOCABULARIES)
        if pieces is None:
            pieces = labelled_vocabulary(data, [" ".join(treebank.spoken(one.words)) for one in sentences])
        return cls(config, pieces, symbols, banks)

    def cut_into(self, micro_batches: int) -> Parsing:
        """The same task with this number of micro-batches a batch. Trees that this task has read are not read again."""
        other = Parsing(with_micro_batches(self.config, micro_batches), self.pieces, self.symbols, self.banks)
        return with_data_of(self, other, ("_train", "_dev"))

    # ---- Training ---------------------------------------------------------------------------------------------------

    def batches(self) -> TreeBatches:
        """The training batches. The first call splits the sentences into pieces."""
        return self._batches

    def prepare(self) -> None:
        """Split all sentences of the run into pieces. Only the first call does the work."""
        self.batches()

    def content_digests(self) -> dict[str, str]:
        """sha256 of the pieces, symbols and tags of the training and of the development trees."""
        return {"sha256 of data.train": self.data_digest(), "sha256 of the dev set": self.dev_digest()}

    def data_digest(self) -> str:
        """sha256 of the pieces, symbols and tags of the training trees."""
        return self._train.sha256()

    def dev_digest(self) -> str:
        """sha256 of the pieces, symbols and tags of the development trees; "" without them."""
        return "" if self._dev is None else self._dev.sha256()

    def judged_on(self) -> dict[str, Any]:
        """What dev scores depend on besides the parameters: the trees and the options of decoding and scoring."""
        options = {
            "train.eval_sentences": self.config.train.eval_sentences,
            "EVALB's parameters": self._parameters.digest(),
        }
        if (dev := self.banks["dev"]) is not None:  # those that are too long for the loss are parsed, too
            options["sha256 of all development trees"] = dev.sha256()
        return {"dev_digest": self.dev_digest(), "scored_with": {**options, **decoding(self.config.decode)}}

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test trees into the workdir."""
        parse_scores.write(folder, {kind: self.banks[kind] for kind in ("dev", "test")})

    def describe(self) -> Iterator[str]:
        """Lines for the banner: trees, symbols and vocabulary."""
        rows, batches = self._train, self.batches()
        left_out = f"; {rows.too_long} too long are left out" if rows.too_long else ""
        left_out += f"; {rows.unknown} with unknown labels are left out" if rows.unknown else ""
        words, symbols = sum(len(one.words) for one in rows.sentences), len(rows.target_tokens)
        yield (
            f"data        {self.banks['train'].name}: {len(rows):,} trees, {words:,} words, {symbols:,} symbols"
            f"{left_out}; {batches.batches_per_epoch:,} updates an epoch"
        )
        yield f"symbols     {self.symbols.form}: {len(self.symbols.labels)} labels; {len(self.symbols.tags)} tags"
        yield f"padding     {batches.padding:.1%} of positions"
        yield f"vocabulary  {self.pieces.size:,} pieces, sha256 {self.pieces.sha256[:16]}"
        if (dev := self.banks["dev"]) is not None:
            yield f"dev set     {dev.name}: {len(dev.sentences):,} trees"

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores on the development trees, by name: the loss (nats a symbol, without smoothing), and EVALB's F1,
        recall, precision, complete matches and tagging accuracy in percent. "dev_errors": the number of sentences that
        these leave out, since their tags delete other words than the gold ones. "dev_f1_all" leaves none out, so it
        judges. Logs a sample."""
        dev = self.banks["dev"]
        if dev is None:
            return
        yield "dev_loss", self._loss(params, mesh)
        sentences = dev.sentences[: self.config.train.eval_sentences]
        found = parse_shares(self._parser(gathered(params)), sentences)
        figures = summary(scored(sentences, found, self._parameters))
        for name in ("f1", "recall", "precision", "complete", "tagging"):
            yield f"dev_{name}", getattr(figures, name)
        yield "dev_errors", float(figures.errors + figures.skipped)
        yield "dev_f1_all", f1_of_all(sentences, found, self._parameters)
        if jax.process_index() == 0:
            for i in np.unique(np.linspace(0, len(sentences) - 1, _SAMPLES).astype(int)):
                log.info("  gold    %s\n  parsed  %s\n", sentences[i].tree, found[i])

    def _loss(self, params: Params, mesh: Mesh) -> float:
        """The development loss in nats a symbol."""
        total = np.zeros(2)
        longest = int(max(self._dev.source_lengths.max(), self._dev.target_lengths.max())) + 1
        size = {"batch_tokens": max(self.config.train.batch_tokens, longest), "n_buckets": 3}
        for batch in evaluation_batches(self._dev, **size, more=self._dev.with_tags):
            rows = jax.tree.map(lambda x: x[0], cut(batch, mesh, 1))
            _, sums = self._dev_loss(params, put(rows, batch_sharding(mesh)), None, mesh=mesh)
            total += float(sums["nll"]), float(sums["weight"])
        return float(total[0] / total[1])

    def sample(self, params: Params) -> None:
        """Parse two sentences and log their trees, for a dry run."""
        bank = self.banks["dev"] or self.banks["train"]
        for tree in self._parser(gathered(params)).parse([one.words for one in bank.sentences[:2]]):
            log.info("parsed      %s", tree)

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the trees in the batch of update `step` (from 0)."""
        return self.batches().told(step)

    def _parser(self, params: Params) -> Parser:
        model, params = in_type(self.config.model, params, self.config.decode.dtype)
        params = params if jax.process_count() > 1 else on_all_devices(params)
        options = {"longest": self.config.data.context}
        return Parser(build(model), params, self.pieces, self.symbols, self.config.decode, **options)

    @cached_property
    def _parameters(self) -> Parameters:
        """EVALB's parameters as they were when they were first read, so that all scores of a run are by the same."""
        return parameters_of(self.config.parser)

    @cached_property
    def _train(self) -> TreeRows:
        return TreeRows(self.banks["train"], self.pieces, self.symbols, self.config.data.context)

    @cached_property
    def _dev(self) -> TreeRows | None:
        bank = self.banks["dev"]
        return None if bank is None else TreeRows(bank, self.pieces, self.symbols, self.config.data.context)

    @cached_property
    def _batches(self) -> TreeBatches:
        d, t = self.config.data, self.config.train
        return TreeBatches(
            self._train,
            batch_tokens=t.batch_tokens,
            accumulate=t.accumulate,
            context=d.context,
            buckets=d.length_buckets,
            seed=t.seed,
        )


# ---- The model -------------------------------------------------------------------------------------------------------


def _from_start(config: ParsingConfig, workdir: str | None) -> ParsingConfig:
    """The config of a run with the encoder of `train.init_from`, or with all of its model if that is a parser.

    Raises `UserError` if the start is neither, or if the config gives a field of its model another value.
    """
    there = start_model(config, workdir)
    if there is None:
        return config
    if there.decoder_layers == 0:
        ours = ("decoder_layers", "target_vocab_size", "labels", "output_bias", "tied_embeddings", "hard_attention")
        return adopted(config, there, kept=ours, head="token", token_types=0)
    if there.head != "token":
        raise UserError(
            f"train.init_from = {config.train.init_from!r}: its model is no parser; give a parser, or an encoder alone "
            "such as a BERT"
        )
    return adopted(config, there)


def _with_symbols(config: ParsingConfig, symbols: Symbols) -> Any:
    """The model with a head for the tags, and with the symbols as its targets."""
    sizes = {"labels": len(symbols.tags), "target_vocab_size": symbols.size}
    for name, size in sizes.items():
        if (given := getattr(config.model, name)) not in (None, size):
            raise UserError(f"model.{name} = {given}: the training trees have {size}; leave model.{name} out")
    return dataclasses.replace(config.model, **sizes)


def _with_some_sizes(config: ParsingConfig) -> Any:
    """The model before the trees are read: the sizes that they decide are those of the config, else small ones."""
    m, least = config.model, Symbols(config.data.form, ("S",), ("NN",))
    sizes = {"labels": m.labels or len(least.tags), "target_vocab_size": m.target_vocab_size or least.size}
    return dataclasses.replace(m, **sizes)


def of_config(config: ParsingConfig) -> ParsingConfig:
    """The config with the model that a new run would train, for tables of its parameters. Reads the training trees for
    the symbols, unless the config gives their numbers."""
    config, m = _from_start(config, None), config.model
    if m.labels is None or m.target_vocab_size is None:
        if not config.data.train:
            raise UserError(_NO_TRAIN)
        trees = [one.tree for one in treebank.read(config.data.train, config.data.most_trees).sentences]
        symbols = _inherited_symbols(config, None) or linearised.learn(trees, config.data.form)
        config = dataclasses.replace(config, model=_with_symbols(config, symbols))
    return config


def _inherited_symbols(config: ParsingConfig, workdir: str | None) -> Symbols | None:
    """The symbols of the workdir if the run resumes, or of `train.init_from` if that is a parser; else None.

    Raises `UserError` if they are of another form than that of the config.
    """
    for folder in (workdir, config.train.init_from):
        if folder is None or not (states := Checkpoints(folder)).states():
            continue
        if (path_of(states.at(states.states()[-1]).path) / linearised.FILE).exists():
            symbols = states.read(None, symbols_in)
            if symbols.form != config.data.form:
                raise UserError(
                    f"data.form = {config.data.form!r}: {folder} was trained with {symbols.form!r}; give that form"
                )
            return symbols
    return None


def _rate_of(config: ParsingConfig) -> Callable[[str], float] | None:
    """The factor of the learning rate of each parameter, by its path; None if all are 1."""
    factor = config.parser.encoder_rate
    return None if factor == 1 else lambda path: factor if path.startswith(_OF_ENCODER) else 1.0
