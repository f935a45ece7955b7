"""The task of a Byte Latent Transformer: a language model of bytes whose patches end where the next byte is hard to
predict. Text, rows, evaluation and generation are those of language models."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import ByteLatentConfig, LanguageModelConfig, PatchConfig, UserError, check, require_task
from transformer.data.running import Texts, texts
from transformer.data.text_store import TextStore
from transformer.data.vocabularies import Bytes, Vocabulary
from transformer.model import Params, build
from transformer.model.patches import ended, entropies, most
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.vocabulary import VOCABULARIES, vocabulary_in
from transformer.training.flops import byte_latent_flops
from transformer.training.task import Shape

log = logging.getLogger("transformer")

_HALVINGS = 40
_ROWS = 32  # whose entropies are computed at a time


class ByteLatentTask(LanguageModel):
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    def __init__(self, config: ByteLatentConfig, pieces: Vocabulary, sides: Texts, entropy: Params | None = None):
        """`entropy`: the parameters of the model of entropies that a new run starts from; None = random ones."""
        super().__init__(config, pieces, sides)
        self._entropy, model = entropy, self.objective.model

        def flops(shape: Shape) -> float:
            return byte_latent_flops(model.config, *shape["text"])

        def init(key: Array) -> Params:
            return {**model.init(key), **({} if entropy is None else {"entropy": entropy})}

        rate = None if model.config.patches.by == "static" else _rate
        self.objective = self.objective._replace(flops=flops, rate=rate, init=init)

    @staticmethod
    def check(config: ByteLatentConfig, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading text."""
        LanguageModel.check(_with_entropy(config, _start(config, workdir)), workdir)

    @staticmethod
    def resumed(config: ByteLatentConfig, stored: ByteLatentConfig) -> ByteLatentConfig:
        """`config` for a run that resumes in a workdir whose config is `stored`: with the model of entropies and the
        threshold that were chosen there."""
        return _with_patches_of(config, stored)

    @classmethod
    def build(cls, config: ByteLatentConfig, workdir: str | None = None) -> ByteLatentTask:
        """The task. A new run takes the model of entropies from `entropy.init_from`, and chooses the threshold."""
        start = _start(config, workdir)
        config, entropy = _with_entropy(config, start), None
        if start is not None and not isinstance(start.config, ByteLatentConfig):
            entropy = start.finite_params()
        task = cls(config, Bytes(), texts(config.data), entropy)
        if config.model.patches.by == "entropy" and config.model.patches.threshold is None:
            if entropy is None:
                raise UserError("model.patches.threshold = None: leave train.init_from out, or give the threshold")
            read, threshold = task, chosen(config, entropy, task._train)
            patches = dataclasses.replace(config.model.patches, threshold=threshold)
            model = dataclasses.replace(config.model, patches=patches)
            task = read._with(dataclasses.replace(config, model=model))
            vars(task)["_train"] = read._train
        return task

    def _with(self, config: ByteLatentConfig) -> ByteLatentTask:
        return ByteLatentTask(config, self.pieces, self.texts, self._entropy)

    def describe(self) -> Iterator[str]:
        """Lines for the banner: data, vocabulary and patches."""
        yield from super().describe()
        patches, context = self.config.model.patches, self.config.data.context
        kind = "all equally long" if patches.by == "static" else f"a byte begins one above {patches.threshold:.4f} nats"
        yield f"patches     {patches.bytes:g} bytes on average, {kind}; at most {most(patches, context)} in a row"


def _rate(path: str) -> float:
    """The factor of the learning rate of a parameter: entropies stay as they are."""
    return 0.0 if path.startswith("entropy/") else 1.0


# ---- The model of entropies, and the threshold -----------------------------------------------------------------------


def _start(config: ByteLatentConfig, workdir: str | None) -> Checkpoint | None:
    """The checkpoint that a new run takes the model of entropies from; None for a run that resumes or needs none.

    Raises `UserError` if there is no such checkpoint, or if it is none of a language model of bytes.
    """
    if config.model.patches.by == "static" or (workdir and Checkpoints(workdir).states()):
        return None
    if config.train.init_from:
        opened = Checkpoints(config.train.init_from).open()
        require_task(opened.config, config.train.init_from, ByteLatentConfig)
        return opened
    if (named := config.entropy.init_from) is None:
        raise UserError(
            "entropy.init_from = None: name the workdir of a language model of bytes, such as one that "
            "configs/byte_entropy.py trains; or give --model.patches.by static"
        )
    opened = Checkpoints(named).open()
    require_task(opened.config, f"entropy.init_from = {named!r}", LanguageModelConfig)
    if vocabulary_in(opened, VOCABULARIES).file != Bytes.file:
        raise UserError(
            f"entropy.init_from = {named!r}: its pieces are no bytes; give a model with data.pieces 'bytes'"
        )
    return opened


def _with_entropy(config: ByteLatentConfig, start: Checkpoint | None) -> ByteLatentConfig:
    """The config with the model of entropies of a start, and with its threshold if it has one."""
    if start is None:
        return config
    if isinstance(start.config, ByteLatentConfig):
        return _with_patches_of(config, start.config)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, entropy=start.config.model))
    check(config)
    return config


def _with_patches_of(config: ByteLatentConfig, other: ByteLatentConfig) -> ByteLatentConfig:
    """Take the model of entropies of another config, and its threshold unless `config` has one.

    Raises `UserError` if that threshold is for another mean of bytes.
    """
    patches, mean = config.model.patches, other.model.patches.bytes
    if patches.threshold is None:
        if patches.by == "entropy" and patches.bytes != mean:
            raise UserError(
                f"model.patches.bytes = {patches.bytes:g}: the start has {mean:g}, and a threshold for it; give the "
                "same, or model.patches.threshold"
            )
        patches = dataclasses.replace(patches, threshold=other.model.patches.threshold)
    model = dataclasses.replace(config.model, entropy=other.model.entropy, patches=patches)
    return dataclasses.replace(config, model=model)


def chosen(config: ByteLatentConfig, params: Params, store: TextStore) -> float:
    """The threshold of entropies with which patches of this text have `model.patches.bytes` bytes on average.

    Found by bisection, over some rows of the text. Warns if no threshold gives that mean.
    """
    patches = config.model.patches
    entropy_BT = entropies_of_rows(config, params, store)
    low, high = -1.0, float(entropy_BT.max()) + 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_bytes(patches, entropy_BT, middle) < patches.bytes else (low, middle)
    threshold = float(np.float32(high))
    mean = mean_bytes(patches, entropy_BT, threshold)
    log.info("patches of %.3f bytes on average: those that begin above %.4f nats", mean, threshold)
    if abs(mean - patches.bytes) > 0.1 * patches.bytes:
        log.warning(
            "model.patches.bytes = %g: no threshold gives that mean; the nearest gives %.3f", patches.bytes, mean
        )
    return threshold


def entropies_of_rows(config: ByteLatentConfig, params: Params, store: TextStore) -> Array:
    """The entropy of the byte after each byte, in `entropy.rows` rows of the text: (B, T)."""
    model = build(config.model.entropy.with_vocabulary(store.vocabulary.size))
    T = min(config.data.context, len(store.tokens))
    begins = np.linspace(0, len(store.tokens) - T, min(config.entropy.rows, len(store.tokens) - T + 1)).astype(int)
    rows_BT = np.stack([store.tokens[begin : begin + T] for begin in begins]).astype(np.int32)
    padded_BT = np.pad(rows_BT, ((0, -len(rows_BT) % _ROWS), (0, 0)))
    of_rows = jax.jit(lambda params, tokens_BT: entropies(model.apply(params, tokens_BT)))
    found = [of_rows(params, padded_BT[i : i + _ROWS]) for i in range(0, len(padded_BT), _ROWS)]
    return jnp.concatenate(found)[: len(rows_BT)]


def mean_bytes(patches: PatchConfig, entropy_BT: Array, threshold: float) -> float:
    """The mean number of bytes in a patch, over rows with these entropies."""
    B, T = entropy_BT.shape
    ended_BT = ended(patches, entropy_BT, jnp.arange(T)[None], threshold, jnp.zeros(B, jnp.int32))
    return B * T / float(ended_BT[:, -1].sum())
