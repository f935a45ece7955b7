"""The objectives: a model and the loss that training minimises, for each kind of batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from transformer.checkpoint import Checkpoint
from transformer.config import BOS, EOS, PAD, TrainConfig
from transformer.model import Model, Params, Run, fold
from transformer.model.stack import RUN
from transformer.training.flops import update_flops
from transformer.training.loss import cross_entropy, divergence
from transformer.training.sharding import constrain, with_table_copies
from transformer.training.task import Batch, Objective, Shape


def sequences(model: Model, train: TrainConfig, *, packing: bool = False) -> Objective:
    """Label-smoothed cross-entropy of each target token, given the source and the target tokens before it (paper §5.4).

    A batch holds "source" and "target": int32 (rows, length). Each sentence ends with EOS and has no BOS; PAD fills the
    row. With `packing`, a row holds several sentences, the same number in source and target. "tokens" counts both.

    With `train.r_drop`, the model reads each batch twice with other dropout: the loss is the mean of both, plus half of
    r_drop times the divergence of both (R-Drop, Liang et al. 2021; there everything is twice as large).
    """

    def loss(params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None) -> Any:
        source_BS, target_BT = batch["source"], batch["target"]
        before_BT = jnp.pad(target_BT[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
        packed_source, packed_target = {}, {}
        if packing:
            begins_BT, numbers_BT = sentences(target_BT)
            before_BT = jnp.where(begins_BT, BOS, before_BT)
            packed_source, packed_target = {"segments_BS": sentences(source_BS)[1]}, {"segments_BT": numbers_BT}
        module, run = model.bind(with_table_copies(params, mesh)), Run(train.remat, partial(constrain, mesh=mesh))

        def states(key: Array | None) -> Array:
            memory = module.encode(source_BS, key=fold(key, 0), run=run, **packed_source)
            return module.hidden(before_BT, memory, key=fold(key, 1), run=run, **packed_target)[0]

        x_BTD, mask_BT = states(key), target_BT != PAD
        tokens = mask_BT.sum() + (source_BS != PAD).sum()
        total, sums = _loss(module, x_BTD, target_BT, mask_BT, train.label_smoothing, tokens)
        if train.r_drop and key is not None:
            y_BTD = states(fold(key, 2))
            other, _ = _loss(module, y_BTD, target_BT, mask_BT, train.label_smoothing, tokens)
            weights_BT, bias_V = mask_BT.astype(jnp.float32), _bias(module)
            apart = divergence(x_BTD, y_BTD, module.output.table[...], weights_BT, bias_V)
            total = (total + other + train.r_drop * apart) / 2
        return total, sums

    def flops(shape: Shape) -> float:
        (rows, S), (_, T) = shape["source"], shape["target"]
        return update_flops(model.config, rows, S, T) * (2 if train.r_drop else 1)

    return Objective(model, loss, flops)


def causal(model: Model, train: TrainConfig, *, documents: bool = False) -> Objective:
    """Label-smoothed cross-entropy of each next piece of a text, given the pieces before it (a language model).

    A batch holds "text", "next" and "predicted": int32 (rows, length). "next" is the piece that follows each piece of
    the text; it counts where "predicted" is not 0. With `documents`, a row holds several documents, and "document"
    numbers them: positions restart in each, and none attends to another.
    """

    def loss(params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None) -> Any:
        packed, mask_BT = {"segments_BT": batch["document"]} if documents else {}, batch["predicted"] != 0
        module, run = model.bind(with_table_copies(params, mesh)), Run(train.remat, partial(constrain, mesh=mesh))
        x_BTD, _, _ = module.hidden(batch["text"], key=key, run=run, **packed)
        return _loss(module, x_BTD, batch["next"], mask_BT, train.label_smoothing, mask_BT.sum())

    def flops(shape: Shape) -> float:
        rows, length = shape["text"]
        return update_flops(model.config, rows, 0, length)

    return Objective(model, loss, flops)


def masked(model: Model, train: TrainConfig, *, next_sentence: bool = False) -> Objective:
    """Label-smoothed cross-entropy of each masked piece of a text, given the others (a masked language model). With
    `next_sentence`, plus that of whether the second text of a row follows the first (BERT).

    A batch holds "text", "part", "place" and "label", and "next" with `next_sentence`: see `data.masking`. The loss is
    the mean over masked pieces plus the mean over pairs. As a sum, the second counts as often as there are masked
    pieces. So micro-batches count by their masked pieces.
    """

    def loss(params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None) -> Any:
        module, run = model.bind(with_table_copies(params, mesh)), Run(train.remat, partial(constrain, mesh=mesh))
        x_BTD, x_BXD = masked_states(module, batch, key, run)
        mask_BX, tokens = batch["place"] != 0, (batch["part"] != 0).sum()
        hidden_BXD = module.masked_hidden(x_BXD)
        total, sums = _loss(module, hidden_BXD, batch["label"], mask_BX, train.label_smoothing, tokens)
        if next_sentence:
            nll_B, pair_B = next_sentence_nll(module, x_BTD, batch["next"])
            more = nll_B.sum() * sums["weight"] / jnp.maximum(pair_B.sum(), 1)
            total, sums = total + more, sums | {"nll": sums["nll"] + jax.lax.stop_gradient(more)}
        return total, sums

    def flops(shape: Shape) -> float:
        (rows, length), (_, places) = shape["text"], shape["place"]
        return update_flops(model.config, rows, length, places)

    return Objective(model, loss, flops)


def labelled(
    model: Model,
    train: TrainConfig,
    *,
    numbers: bool = False,
    class_weights: Sequence[float] | None = None,
    rate: Callable[[str], float] | None = None,
    redrawn: Callable[[str, Checkpoint], bool] | None = None,
) -> Objective:
    """The loss of an encoder with a head for labels: cross-entropy of classes or tags, or squared error of `numbers`.

    A batch holds "text", "part" and "label": see `data.labelled_rows`. The loss is a mean over texts, or over tagged
    words; with `class_weights`, a weighted mean. `rate` and `redrawn`: see `Objective`. With `train.r_drop`, the model
    reads each batch twice, as in `sequences`.
    """

    def losses(outputs: Array, batch: Batch) -> tuple[Array, Array, Array]:
        """Of each text or word: its weight, its loss, and its loss with smoothing."""
        label = batch["label"] if outputs.ndim == 3 else batch["label"][:, 0]
        if numbers:
            nll = (outputs[:, 0] - jax.lax.bitcast_convert_type(label, jnp.float32)) ** 2
            return (batch["part"][:, 0] != 0).astype(jnp.float32), nll, nll
        one_hot = jax.nn.one_hot(label - 1, outputs.shape[-1])  # zeros where there is no label
        weight = one_hot.sum(-1) if class_weights is None else one_hot @ jnp.array(class_weights, jnp.float32)
        log_probs = jax.nn.log_softmax(outputs)
        nll = -(one_hot * log_probs).sum(-1)
        return weight, nll, (1 - train.label_smoothing) * nll - train.label_smoothing * log_probs.mean(-1)

    def loss(params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None) -> Any:
        module, run = model.bind(with_table_copies(params, mesh)), Run(train.remat, partial(constrain, mesh=mesh))
        outputs = label_outputs(module, batch, key, run)
        weight, nll, smoothed = losses(outputs, batch)
        sums = {"weight": weight.sum(), "nll": jax.lax.stop_gradient(weight * nll).sum()}
        if train.r_drop and key is not None:
            others = label_outputs(module, batch, fold(key, 2), run)
            log_p, log_q = jax.nn.log_softmax(outputs), jax.nn.log_softmax(others)
            apart = ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1) / 2
            smoothed = (smoothed + losses(others, batch)[2] + train.r_drop * apart) / 2
        return (weight * smoothed).sum(), sums | {"tokens": (batch["part"] != 0).sum()}

    def flops(shape: Shape) -> float:
        rows, length = shape["text"]
        return update_flops(model.config, rows, length, length) * (2 if train.r_drop else 1)

    return Objective(model, loss, flops, rate, redrawn)


def parsed(model: Model, train: TrainConfig, shift: int, *, rate: Callable[[str], float] | None = None) -> Objective:
    """Label-smoothed cross-entropy of each symbol of a tree, given the sentence and the symbols before it, and of the
    tag of each word.

    A batch holds "source", "target" and "tag": see `data.treebank`. The loss is a sum over symbols and words, and
    counts by symbols. `shift`: the symbol that stands for a word. `rate`: see `Objective`.
    """

    def loss(params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None) -> Any:
        source_BS, target_BT = batch["source"], batch["target"]
        before_BT = jnp.pad(target_BT[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
        module, run = model.bind(with_table_copies(params, mesh)), Run(train.remat, partial(constrain, mesh=mesh))
        x_BSD = module.encoder_states(source_BS, key=fold(key, 0), run=run)
        begins, passed = {}, {}
        if model.config.hard_attention:
            begins, passed = {"begins_BS": batch["tag"] != 0}, {"passed_BT": jnp.cumsum(before_BT == shift, axis=1)}
        memory = module.remember(x_BSD, source_BS, **begins)
        x_BTD, _, _ = module.hidden(before_BT, memory, key=fold(key, 1), run=run, **passed)
        mask_BT = target_BT != PAD
        tokens = mask_BT.sum() + (source_BS != PAD).sum()
        total, sums = _loss(module, x_BTD, target_BT, mask_BT, train.label_smoothing, tokens)
        one_hot_BSL = jax.nn.one_hot(batch["tag"] - 1, model.config.labels)  # zeros where no tag is known
        log_probs_BSL = jax.nn.log_softmax(module.label_logits(x_BSD, key=fold(key, 2)))
        return total - (one_hot_BSL * log_probs_BSL).sum(), sums

    def flops(shape: Shape) -> float:
        (rows, S), (_, T) = shape["source"], shape["target"]
        return update_flops(model.config, rows, S, T)

    return Objective(model, loss, flops, rate)


def label_outputs(module: Any, batch: Batch, key: Array | None = None, run: Run = RUN) -> Array:
    """The outputs of an encoder's head for labels on the "text" and "part" of a batch; float32."""
    x_BTD = _states(module, batch, fold(key, 0), run)
    return module.label_logits(x_BTD, key=fold(key, 1))


def _states(module: Any, batch: Batch, key: Array | None, run: Run) -> Array:
    """The states of an encoder for the "text" of a batch, x_BTD. "part": 1 or 2 in the texts, 0 = padding."""
    part_BT = batch["part"]
    types_BT = None if module.token_types is None else (part_BT == 2).astype(jnp.int32)
    return module.states(batch["text"], types_BT=types_BT, mask_BT=part_BT != 0, key=key, run=run)


def masked_states(module: Any, batch: Batch, key: Array | None = None, run: Run = RUN) -> tuple[Array, Array]:
    """The states of an encoder for all pieces of a batch of `masked`, x_BTD, and at its places, x_BXD."""
    x_BTD = _states(module, batch, key, run)
    return x_BTD, jnp.take_along_axis(x_BTD, batch["place"][:, :, None], axis=1)


def next_sentence_nll(module: Any, x_BTD: Array, next_B1: Array) -> tuple[Array, Array]:
    """The negative log-likelihood of "next" in each row, 0 without a pair: nll_B. Whether there is a pair: pair_B."""
    pair_B = next_B1[:, 0] != 0
    log_probs_B2 = jax.nn.log_softmax(module.next_sentence_logits(x_BTD))
    nll_B = -jnp.take_along_axis(log_probs_B2, jnp.maximum(next_B1 - 1, 0), axis=1)[:, 0]
    return jnp.where(pair_B, nll_B, 0.0), pair_B


def sentences(tokens_BT: Array) -> tuple[Array, Array]:
    """Where a further sentence begins in a packed row, and the number of each token's sentence, from 0. EOS marks the
    end of each sentence."""
    begins_BT = jnp.pad(tokens_BT[:, :-1] == EOS, ((0, 0), (1, 0)))
    return begins_BT, jnp.cumsum(begins_BT, axis=1)


def _loss(
    module: Any, x_BTD: Array, label_BT: Array, mask_BT: Array, smoothing: float, tokens: Array
) -> tuple[Array, dict[str, Array]]:
    """What a `Loss` returns. `x_BTD`: what the logits are computed from. `mask_BT`: where a label counts."""
    weights_BT, table = mask_BT.astype(jnp.float32), module.output.table[...]
    total, nll = cross_entropy(x_BTD, table, label_BT, weights_BT, _bias(module), smoothing=smoothing)
    return total, {"weight": weights_BT.sum(), "nll": nll, "tokens": tokens}


def _bias(module: Any) -> Array | None:
    """The bias of the logits, if the model has one."""
    return None if module.output_bias is None else module.output_bias[...]
