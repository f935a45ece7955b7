"""Decoding a batch in stages: finished sentences leave the batch, and the cache grows with the outputs.

A batch has sources that an encoder reads, or prompts that a decoder alone goes on from. All else is the same.

Every stage is one compiled program for a number of rows, a source length and a capacity. Each of these has only a few
possible values, so that a few programs serve any input. Between stages, the host checks which sentences are finished.

Shapes: B sentences, M beams, S source positions, L capacity in output positions, V vocabulary; X = B * M rows.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.config import BOS, PAD
from transformer.inference.batches import padded_lengths
from transformer.inference.beam_search import Beams, Hypotheses, Options, best_candidates, hypotheses, run, start
from transformer.inference.constraints import Constraints
from transformer.inference.context import STAGE, Context, Past, Prompts, Sliding, prefilled, used_pieces
from transformer.inference.sampling import sampled
from transformer.model import Model, Params

MIN_ROWS = 4  # a batch of fewer rows is hardly faster
_dispatch_lock = threading.Lock()  # so that two threads never compile the same program
SIZES = (0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # possible capacities: output positions, or cache slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampler:
    """The parameters of `sampling.sampled`."""

    key: Array
    temperature: Array | float = 1.0
    top_k: Array | int = 0
    top_p: Array | float = 1.0
    min_p: Array | float = 0.0


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["options", "constraints", "sampler", "repetition_penalty"],
    meta_fields=["never"],
)
@dataclass(frozen=True)
class Strategy:
    """How to decode: everything that is the same for all sentences."""

    options: Options
    constraints: Constraints | None = None
    sampler: Sampler | None = None
    repetition_penalty: Array | float | None = None
    """See `DecodeConfig`; None = 1, without counting what is used."""
    never: tuple[int, ...] = (PAD, BOS)
    """Pieces that are never chosen. They are never targets in training, but an untrained model would produce them."""


@jax.named_scope("softmax")
def log_softmax(logits_XV: Array) -> Array:
    """`jax.nn.log_softmax`, but on a CPU the maximum is computed by top_k: XLA would fuse a plain maximum into the
    product that makes the logits, which would then take twice as long."""

    def on_cpu(logits_XV: Array) -> Array:
        shifted_XV = logits_XV - jax.lax.top_k(logits_XV, 1)[0]
        return shifted_XV - jnp.log(jnp.sum(jnp.exp(shifted_XV), axis=1, keepdims=True))

    return jax.lax.platform_dependent(logits_XV, cpu=on_cpu, default=jax.nn.log_softmax)


def row_sharding(array: Any) -> NamedSharding | None:
    """The sharding that cuts the rows of an array over several devices; None if they are not cut."""
    sharding = getattr(array, "sharding", None)  # NumPy arrays have none
    cut = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 and sharding.spec and sharding.spec[0]
    return NamedSharding(sharding.mesh, P(sharding.spec[0])) if cut else None


def divides(over: NamedSharding | None, rows: int) -> bool:
    """Whether `over` is a sharding that divides this number of rows."""
    if over is None:
        return False
    axes = over.spec[0] if isinstance(over.spec[0], tuple) else over.spec[:1]
    return rows % math.prod(over.mesh.shape[axis] for axis in axes) == 0


def on_each_device(function: Any, over: NamedSharding | None) -> Any:
    """`function`, run on each device for the rows that the device holds. It must treat each row separately; scalars are
    replicated.

    Without this, XLA gathers all rows on all devices wherever it sorts them.
    """
    if over is None:
        return function

    def on_local_rows(*args: Any) -> Any:
        specs = jax.tree.map(lambda x: over.spec if x.ndim else P(), args)
        return jax.shard_map(function, mesh=over.mesh, in_specs=specs, out_specs=over.spec)(*args)

    return on_local_rows


def constrain_rows(tree: Any, over: NamedSharding | None) -> Any:
    """Arrays with the sharding constraint `over` on their rows, if it divides them."""
    constrain = jax.lax.with_sharding_constraint
    return jax.tree.map(lambda x: constrain(x, over) if x.ndim and divides(over, len(x)) else x, tree)


def next_log_probs(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    context: Context,
    strategy: Strategy,
    over: NamedSharding | None = None,
) -> Any:  # a beam_search.Step
    """The step of beam search under one model, or under several with averaged probabilities."""
    normalized = on_each_device(log_softmax, over)

    def step(tokens_X: Array, past: Past, at: Array) -> tuple[Array, Past]:
        log_probs, new_caches = [], []
        tokens_X, at_B = context.fed(tokens_X, at)
        past = past.use(tokens_X)
        for model, parameters, memory, cache in zip(models, params, context.memories, past.caches, strict=True):
            logits_X1V, cache, _ = model.bind(parameters).decode(tokens_X[:, None], memory, cache=cache, at_B=at_B)
            log_probs.append(normalized(past.penalized(logits_X1V[:, 0], strategy.repetition_penalty)))
            new_caches.append(cache)
        log_probs_XV = log_probs[0]
        if len(log_probs) > 1:
            log_probs_XV = jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))
        real_V = np.ones(log_probs_XV.shape[1], bool)
        real_V[list(strategy.never)] = False
        return jnp.where(real_V, log_probs_XV, -jnp.inf), past._replace(caches=tuple(new_caches))

    return step


def cache_type() -> Any:
    """The type of the cache; None = that of the model."""
    # At each write, XLA on CPU converts the whole of a 16-bit cache to float32 and back.
    return jnp.float32 if jax.default_backend() == "cpu" else None


@partial(jax.jit, static_argnames=("models", "length", "dtype", "over", "penalized"))
def begin(
    params: tuple[Params, ...],
    source: Array | Prompts,
    limit_B: Array,
    given: Any,
    options: Options,
    *,
    models: tuple[Model, ...],
    length: int,
    dtype: Any = None,
    over: NamedSharding | None = None,
    penalized: bool = False,
) -> tuple[Context, Beams]:
    """Encode the sources (source_BS), or read the prompts into the cache, once. Returns what all steps read, and the
    state of the search before the first piece.

    `length`: the capacity in output positions. `dtype`: the type of the cache; None = that of the model. `over`: the
    sharding of rows over several devices. `penalized`: whether there is a penalty on repetition.
    """
    bound = [model.bind(parameters) for model, parameters in zip(models, params, strict=True)]
    rows, M = len(limit_B), options.beam_size
    if prompts := source if isinstance(source, Prompts) else None:
        end_B = jnp.maximum(prompts.lengths_B - 1, 0)
        last_B = jnp.take_along_axis(prompts.tokens_BP, end_B[:, None], axis=1)[:, 0]
        context = Context((None,) * len(models), last_B, end_B)
        caches = tuple(prefilled(decoder, *prompts, M, dtype) for decoder in bound)
    else:
        context = Context(tuple(model.encode(source) for model in bound))
        caches = tuple(model.init_cache(rows, STAGE, M, dtype) for model in bound)
    used_BMV = used_pieces(rows, M, bound[0].vocab_size, prompts) if penalized else None
    return constrain_rows((context, start(Past(caches, used_BMV), limit_B, length, options, given)), over)


@partial(jax.jit, static_argnames=("models", "beams", "dtype", "over"))
def read_again(
    params: tuple[Params, ...],
    tokens_XT: Array,
    lengths_B: Array,
    offset_B: Array,
    *,
    models: tuple[Model, ...],
    beams: int,
    dtype: Any = None,
    over: NamedSharding | None = None,
) -> tuple[tuple[Any, ...], Array]:
    """The caches of prompts that have been cut, one row for each hypothesis (see `prefilled`), and `offset_B`."""
    bound = [model.bind(parameters) for model, parameters in zip(models, params, strict=True)]
    caches = tuple(prefilled(decoder, tokens_XT, lengths_B, beams, dtype) for decoder in bound)
    return constrain_rows((caches, offset_B), over)


@partial(jax.jit, static_argnames=("models", "over"), donate_argnames="beams")
def proceed(
    params: tuple[Params, ...],
    context: Context,
    beams: Beams,
    strategy: Strategy,
    few: Array | int,
    until: Array | int,
    *,
    models: tuple[Model, ...],
    over: NamedSharding | None = None,
) -> tuple[Beams, Array]:
    """Continue the search until at most `few` sentences are unfinished, or until there are `until` pieces.

    Returns the state, and the largest number of cache slots that an unfinished sentence needs. `over`: the sharding of
    rows over several devices.
    """
    sampler = strategy.sampler
    over = over if divides(over, len(beams.limit_B)) else None
    choose = best_candidates
    if sampler is not None:
        filters = {"top_k": sampler.top_k, "top_p": sampler.top_p, "min_p": sampler.min_p}
        choose = sampled(sampler.key, temperature=sampler.temperature, **filters)
    beams = run(
        next_log_probs(models, params, context, strategy, over),
        beams,
        strategy.options,
        few=few,
        until=until,
        reorder=Past.reorder,
        adjust=None if strategy.constraints is None else strategy.constraints.adjust,
        choose=choose,
        by_rows=lambda function: on_each_device(function, over),
    )
    return beams, jnp.max(jnp.where(beams.stopped_B, 0, beams.cache.caches[0].used_B()))


@partial(jax.jit, static_argnames=("length", "keep", "over"))
def rearrange(
    context: Context,
    beams: Beams,
    index_B: Array | None,
    *,
    length: int,
    keep: int | None,
    over: NamedSharding | None = None,
) -> tuple[Context, Beams]:
    """Context and state of the sentences `index_B` only (None = all), with a capacity of `length` output positions.

    `keep`: if given, the cache is collected into this number of slots, plus room for another stage.
    """
    if index_B is not None:
        context, beams = jax.tree.map(lambda x: x if x.ndim == 0 else x[index_B], (context, beams))
    if keep is not None:
        beams = replace(beams, cache=beams.cache.collect(keep))
    more = ((0, 0), (0, 0), (0, length - beams.tokens_BML.shape[2]))
    beams = replace(
        beams, tokens_BML=jnp.pad(beams.tokens_BML, more), done_tokens_BML=jnp.pad(beams.done_tokens_BML, more)
    )
    return constrain_rows((context, beams), over)


def size(n: int, ladder: Sequence[int] = SIZES) -> int:
    """The smallest size in `ladder` that is at least n; beyond its last size, the next multiple of that."""
    return next((size for size in ladder if size >= n), -(-n // ladder[-1]) * ladder[-1])


def decode(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source: Any,
    limit_B: Array,
    strategy: Strategy,
    given: Any = (),
    stop: threading.Event | None = None,
    window: int | None = None,
) -> Iterator[tuple[int, Hypotheses]]:
    """Decode a batch. Yields (row, hypotheses of that row) for each row, in the order in which they finish.

    `source`: pieces with eos, padded with 0 (source_BS), or `Prompts`. `limit_B`: the most pieces of each output, eos
    included; rows with 0 are empty and yield nothing. `given`: further data of each row, see `Beams`. Once `stop` is
    set, it ends after the present stage. `window`: the most pieces that the model sees at once, of a prompt and its
    output (see `Sliding`).
    """
    for input_row, beams in stages(models, params, source, limit_B, strategy, given, stop, window):
        done = np.flatnonzero(np.asarray(beams.stopped_B) & (input_row >= 0))
        if done.size:
            with _dispatch_lock:
                finished = hypotheses(beams, strategy.options)
            finished = jax.tree.map(np.asarray, finished)
            for row in done:
                yield int(input_row[row]), Hypotheses(*(x[row] for x in finished))


def stages(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source: Any,
    limit_B: Array,
    strategy: Strategy,
    given: Any = (),
    stop: threading.Event | None = None,
    window: int | None = None,
    most: int = STAGE,
) -> Iterator[tuple[np.ndarray, Beams]]:
    """`decode`, step by step: yields the state after each stage, of at most `most` output positions. Read the state
    before the next stage, which overwrites it.

    With it comes, for each row of the state, its row in the input, or -1 if it was finished in an earlier stage.
    """
    limits, over = np.asarray(limit_B), row_sharding(jax.tree.leaves(source)[0])
    length, until, keep, at = size(STAGE), STAGE, None, 0
    shared = {"models": models, "dtype": cache_type(), "over": over}
    sliding = None if window is None else Sliding(source, window)
    with _dispatch_lock:
        penalized = strategy.repetition_penalty is not None
        context, beams = begin(
            params, source, limit_B, given, strategy.options, length=length, **shared, penalized=penalized
        )
    # For each row of the batch: its row in the input, or -1 when it is finished.
    input_row = np.where(limits > 0, np.arange(len(limits)), -1)
    while (left := np.flatnonzero(input_row >= 0)).size:
        if stop is not None and stop.is_set():
            return
        rows, index = len(input_row), None
        while halve_at(rows, over) >= len(left):
            rows //= 2
        if rows < len(input_row):
            # Finished sentences, which stay stopped, fill up the batch.
            index = np.concatenate([left, np.flatnonzero(input_row < 0)])[:rows]
            input_row = input_row[index]
        ahead = min(until, at + most)
        with _dispatch_lock:
            if index is not None or keep is not None:
                context, beams = rearrange(context, beams, index, length=length, keep=keep, over=over)
            if sliding is not None:
                context, beams = slid(params, context, beams, sliding, input_row, at, shared)
                ahead = min(ahead, at + sliding.room(input_row[input_row >= 0], at))
            beams, used = proceed(
                params, context, beams, strategy, halve_at(rows, over), ahead, models=models, over=over
            )
        yield input_row, beams
        input_row[np.asarray(beams.stopped_B)] = -1
        keep, at = None, int(beams.at)
        if at == until:
            until, keep = until + STAGE, size(int(used))
            length = size(until)


def slid(
    params: tuple[Params, ...],
    context: Context,
    beams: Beams,
    sliding: Sliding,
    input_row: np.ndarray,
    at: int,
    shared: dict[str, Any],
) -> tuple[Context, Beams]:
    """Context and state in which no row is full: the caches are computed anew if one was."""
    rows = input_row[input_row >= 0]
    if sliding.room(rows, at) > 0:
        return context, beams
    sliding.slide(rows, at)
    texts, offset_B = sliding.texts(input_row, np.asarray(beams.tokens_BML), at)
    lengths_B = np.array([len(text[0]) for text in texts], np.int32)
    longest = next(n for n in padded_lengths() if n >= lengths_B.max())
    tokens_XT = np.zeros((len(texts) * len(texts[0]), min(longest, sliding.size)), np.int32)
    for row, text in zip(tokens_XT, itertools.chain(*texts), strict=True):
        row[: len(text)] = text
    caches, offset_B = read_again(params, tokens_XT, lengths_B, offset_B, beams=len(texts[0]), **shared)
    return context._replace(offset_B=offset_B), replace(beams, cache=beams.cache._replace(caches=caches))


def halve_at(rows: int, over: NamedSharding | None) -> int:
    """The number of unfinished sentences at which a batch of this many rows is halved; 0 = never."""
    if rows <= MIN_ROWS or rows % 2:
        return 0
    return rows // 2 if over is None or divides(over, rows // 2) else 0  # otherwise each device would hold all rows
