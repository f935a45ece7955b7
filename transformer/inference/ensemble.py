"""One model or several that decode together, and their checkpoints. The basis of `Translator` and `Generator`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np

from transformer.config import ByteLatentModel, DecodeConfig, UserError, check_decode, require_workdir, shown
from transformer.inference.batches import Batcher, on_all_devices
from transformer.inference.beam_search import Hypotheses
from transformer.inference.engine import FINE, Grain, decode
from transformer.inference.programs import Strategy
from transformer.inference.strategy import beams
from transformer.model import Model, Params, build
from transformer.model.checks import check_held
from transformer.model.rounding import in_type

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint

log = logging.getLogger("transformer")

R = TypeVar("R")
Found = tuple[list[list[int]], list[float]]
"""The hypotheses of a sentence as pieces without eos, best first, and their scores. If the log-probabilities of the
model are not finite, one hypothesis without pieces, with the score NaN."""


class Ensemble:
    """Models of the same vocabulary. Each step averages their probabilities."""

    def __init__(self, members: Sequence[tuple[Model, Params]], config: DecodeConfig):
        """Raises `UserError` if the vocabularies differ in size."""
        self.models: tuple[Model, ...] = tuple(model for model, _ in members)
        _warn_of_no_effect(config)
        self._params: tuple[Params, ...] = tuple(params for _, params in members)
        self.batcher = Batcher(
            self.params[0],
            batch_sentences=config.batch_sentences,
            batch_tokens=config.batch_tokens,
            beams=beams(config),
            streams=config.streams,
        )
        sizes = {each["embedding"]["table"].shape[0] for each in self.params if "embedding" in each}
        if len(sizes) > 1:
            raise UserError(f"the models have vocabularies of {sorted(sizes)} pieces; an ensemble needs the same one")
        self.vocab_size: int | None = max(sizes, default=None)

    def with_config(self, config: DecodeConfig) -> Ensemble:
        """The same models with other options."""
        return Ensemble(list(zip(self.models, self._params, strict=True)), config)

    @property
    def params(self) -> tuple[Params, ...]:
        """The parameters of each model. Raises `UserError` if they were deleted, as by a training step that donates."""
        for each in self._params:
            check_leaves(each)
        return self._params

    def positions(self, *tables: str) -> int | None:
        """The fewest learned positions in tables of these paths; None if positions are computed, so not limited."""
        leaves = [leaf for each in self.params for leaf in jax.tree.leaves_with_path(each)]
        found = [x.shape[0] for path, x in leaves if jax.tree_util.keystr(path, simple=True, separator="/") in tables]
        return min(found, default=None)

    def decode(
        self,
        source: Any,
        limit_B: np.ndarray,
        decoding: Strategy,
        given: Mapping[str, np.ndarray],
        stop: threading.Event,
        window: int | None = None,
        grain: Grain = FINE,
    ) -> list[tuple[int, Hypotheses]]:
        """`engine.decode`, in parts if the whole batch does not fit into memory."""

        def part(rows: slice) -> list[tuple[int, Hypotheses]]:
            arrays = jax.tree.map(lambda x: x[rows], (source, limit_B, dict(given)))
            placed, limit, of_rows = self.batcher.put_tree(arrays)
            finished = decode(self.models, self.params, placed, limit, decoding, of_rows, stop, window, grain)
            return [(rows.start + row, result) for row, result in finished]

        return [row for rows in self.batcher.in_parts(part, len(limit_B)) for row in rows]


@cache  # once: training makes a translator at each evaluation
def _warn_of_no_effect(config: DecodeConfig) -> None:
    """Log a warning for options of sampling where the best is searched for."""
    usual = DecodeConfig()
    changed = [
        f"decode.{name} = {getattr(config, name)}"
        for name in ("temperature", "top_k", "top_p", "min_p")
        if not config.sample and getattr(config, name) != getattr(usual, name)
    ]
    if changed:
        log.warning("%s: no effect without decode.sample = True", ", ".join(changed))


def as_lists(hypotheses: Hypotheses, eos: int) -> Found:
    """The hypotheses of one sentence or prompt as lists."""
    lengths = [int(n) for n in hypotheses.lengths_BM if n > 0]
    tokens = [hypotheses.tokens_BML[m, :n].tolist() for m, n in enumerate(lengths)]
    tokens = [pieces[:-1] if pieces[-1] == eos else pieces for pieces in tokens]
    if not tokens and np.isnan(hypotheses.scores_BM[0]):
        tokens = [[]]
    return tokens, hypotheses.scores_BM[: len(tokens)].tolist()


def load(
    workdir: str | Sequence[str],
    checkpoint: str | int | Sequence[str | int] | None,
    config: DecodeConfig | None,
    of: Callable[[Sequence[Checkpoint], DecodeConfig | None], R],
) -> R:
    """`of(checkpoints, config)` for one workdir or several, and one checkpoint or one for each workdir."""
    if config is not None:
        check_decode(config)
    from transformer.checkpoint import Checkpoints, again

    workdirs = list(workdir) if _several(workdir) else [workdir]
    names = list(checkpoint) if _several(checkpoint) else [checkpoint] * len(workdirs)
    if not workdirs or len(names) != len(workdirs):
        raise UserError(f"{len(workdirs)} workdirs and {len(names)} checkpoints: give one, or as many as workdirs")
    folders = [Checkpoints(folder) for folder in workdirs]
    return again(lambda: of([folder.open(name) for folder, name in zip(folders, names, strict=True)], config))


def _several(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, (str, bytes))


def check_checkpoints(checkpoints: Any, *kinds: type) -> None:
    """Raise `UserError` unless these are checkpoints of tasks with configs of these classes, one at least."""
    from transformer.checkpoint import Checkpoint

    if not isinstance(checkpoints, Sequence) or not all(isinstance(one, Checkpoint) for one in checkpoints):
        raise UserError(f"checkpoints = {shown(checkpoints)}: give a list of what Checkpoints(workdir).open() returns")
    if not checkpoints:
        raise UserError("no checkpoints: give one at least")
    for opened in checkpoints:
        require_workdir(opened.config, opened.path.parent.parent, *kinds)


def same_file(checkpoints: Sequence[Checkpoint], names: Sequence[str], what: str) -> tuple[str, bytes]:
    """(name, content) of the first of these files that a checkpoint holds. Raises `UserError` if it holds none, or if
    those of the others differ. `what`: what the files are, in the plural."""
    held = checkpoints[0].files()
    name = next((name for name in names if name in held), None)
    if name is None:
        raise UserError(
            f"{checkpoints[0].path} holds no {' or '.join(names)}; choose another checkpoint or workdir, or import the "
            "model again, with its tokenizer"
        )
    content = checkpoints[0].file(name)
    for other in checkpoints[1:]:
        if name not in other.files() or other.file(name) != content:
            one, two = (opened.path.parent.parent for opened in (other, checkpoints[0]))
            raise UserError(f"{one} and {two} have different {what}; an ensemble needs the same one")
    return name, content


def members(checkpoints: Sequence[Checkpoint], config: DecodeConfig) -> list[tuple[Model, Params]]:
    """Model and parameters of each checkpoint, in the type of `config.dtype`, on all devices."""
    loaded = []
    for opened in checkpoints:
        model, params = in_type(opened.config.model, opened.params(), config.dtype)
        loaded.append((build(model.with_vocabulary(opened.progress["vocab_size"])), on_all_devices(params)))
    return loaded


def check_leaves(params: Params) -> None:
    """Raise `UserError` for parameters that are no arrays, traced or deleted."""
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not hasattr(leaf, "shape"):
            where = f"params: {name}" if name else "params"
            raise UserError(f"{where} is a {type(leaf).__name__}: give a nested dict of arrays")
        if isinstance(leaf, jax.core.Tracer):
            raise UserError("the parameters are traced: decode outside jax.jit")
        check_held(name, leaf)


class Kind(NamedTuple):
    """A kind of model."""

    name: str
    fits: Callable[[Any], bool]
    """Whether a model with this config is of this kind."""


ANY = Kind("any model", lambda config: True)
TRANSLATES = Kind(
    "a model with an encoder and a decoder, without hard_attention",
    lambda c: not isinstance(c, ByteLatentModel) and c.encoder_layers and c.decoder_layers and not c.hard_attention,
)
CONTINUES = Kind(
    "a decoder alone, a model with encoder_layers = 0",
    lambda c: isinstance(c, ByteLatentModel) or (not c.encoder_layers and c.decoder_layers > 0),
)


def check_members(model: Any, params: Any, others: Any, kind: Kind = ANY) -> None:
    """Raise `UserError` for parameters of a wrong kind, and for models of another kind than this one; ValueError for
    parameters that do not fit their model."""
    if not isinstance(others, Sequence) or not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in others):
        raise UserError(f"others = {shown(others)}: give pairs of a model and its parameters")
    for each in (model, *(other for other, _ in others)):
        if not isinstance(each, Model):
            raise UserError(f"model = {shown(each)}: give what `transformer.build` returns")
        if not kind.fits(each.config):
            raise UserError(f"model = {shown(each)}: give {kind.name}")
    for each, given in ((model, params), *others):
        if not isinstance(given, Mapping) or not given:
            raise UserError(f"params = {shown(given)}: give a nested dict of arrays, as `transformer.load` returns")
        check_leaves(given)
        each.bind(given)
