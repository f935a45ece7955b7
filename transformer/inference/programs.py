"""The compiled programs of decoding: begin a search, proceed with it, rearrange its state.

Shapes: B sentences, M beams, S source positions, L capacity in output positions, P pieces of a prompt, T pieces, V
vocabulary; X = B * M rows.
"""

from __future__ import annotations

import math
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
from transformer.inference.beam_search import Beams, Options, best_candidates, run, start
from transformer.inference.constraints import Constraints
from transformer.inference.context import STAGE, Context, Past, Prompts, prefilled, used_pieces
from transformer.inference.sampling import sampled
from transformer.inference.transitions import TreeConstraint
from transformer.model import Model, Params


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
    constraints: Constraints | TreeConstraint | None = None
    sampler: Sampler | None = None
    repetition_penalty: Array | float | None = None
    """See `DecodeConfig`; None = 1, without counting what is used."""
    never: tuple[int, ...] = (PAD, BOS)
    """Pieces that are never chosen. They are never targets in training, but an untrained model would produce them."""


@jax.named_scope("softmax")
def log_softmax(logits_XV: Array) -> Array:
    """`jax.nn.log_softmax`, but on a CPU the maximum is not fused into the product that makes the logits, which would
    then take twice as long."""

    def on_cpu(logits_XV: Array) -> Array:
        numbers_XV = jnp.where(jnp.isnan(logits_XV), -jnp.inf, logits_XV)  # XLA does not fuse this with the product
        shifted_XV = logits_XV - jnp.max(numbers_XV, axis=1, keepdims=True)
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
        past, words = past.use(tokens_X), {}
        if past.passed_BM is not None:
            past = past.passing(tokens_X, strategy.constraints.shift)
            words = {"passed_BT": past.passed_BM.reshape(-1, 1)}
        for model, parameters, memory, cache in zip(models, params, context.memories, past.caches, strict=True):
            options = {"cache": cache, "at_B": at_B, **words}
            logits_X1V, cache, _ = model.bind(parameters).decode(tokens_X[:, None], memory, **options)
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


@partial(jax.jit, static_argnames=("models", "length", "dtype", "over", "penalized", "stage"))
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
    stage: int = STAGE,
) -> tuple[Context, Beams]:
    """Encode the sources (source_BS), or read the prompts into the cache, once. Returns what all steps read, and the
    state of the search before the first piece.

    `length`: the capacity in output positions; `stage`: that of the cache. `dtype`: the type of the cache; None = that
    of the model. `over`: the sharding of rows over several devices. `penalized`: whether there is a penalty on
    repetition.
    """
    bound = [model.bind(parameters) for model, parameters in zip(models, params, strict=True)]
    rows, M, hard = len(limit_B), options.beam_size, models[0].config.hard_attention
    if prompts := source if isinstance(source, Prompts) else None:
        end_B = jnp.maximum(prompts.lengths_B - 1, 0)
        last_B = jnp.take_along_axis(prompts.tokens_BP, end_B[:, None], axis=1)[:, 0]
        context = Context((None,) * len(models), last_B, end_B)
        caches = tuple(prefilled(decoder, *prompts, M, dtype, stage) for decoder in bound)
    else:
        begins = {}
        if hard:
            begins = {"begins_BS": given["begins_BS"]}
            given = {name: of_rows for name, of_rows in given.items() if name not in begins}
        context = Context(tuple(model.encode(source, **begins) for model in bound))
        caches = tuple(model.init_cache(rows, stage, M, dtype) for model in bound)
    used_BMV = used_pieces(rows, M, models[0].config.output_size, prompts) if penalized else None
    past = Past(caches, used_BMV, jnp.zeros((rows, M), jnp.int32) if hard else None)
    return constrain_rows((context, start(past, limit_B, length, options, given)), over)


@partial(jax.jit, static_argnames=("models", "beams", "dtype", "over", "stage"))
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
    stage: int = STAGE,
) -> tuple[tuple[Any, ...], Array]:
    """The caches of prompts that have been cut, one row for each hypothesis (see `prefilled`), and `offset_B`."""
    bound = [model.bind(parameters) for model, parameters in zip(models, params, strict=True)]
    caches = tuple(prefilled(decoder, tokens_XT, lengths_B, beams, dtype, stage) for decoder in bound)
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
    over = over if divides(over, len(beams.limit_B)) else None
    step = next_log_probs(models, params, context, strategy, over)
    by_rows = partial(on_each_device, over=over)
    beams = run(step, beams, strategy.options, few=few, until=until, by_rows=by_rows, **hooks(strategy))
    return beams, slots_used(beams)


def hooks(strategy: Strategy) -> dict[str, Any]:
    """The hooks of `beam_search.advance` for a strategy: reorder, adjust and choose."""
    sampler, choose = strategy.sampler, best_candidates
    if sampler is not None:
        filters = {"top_k": sampler.top_k, "top_p": sampler.top_p, "min_p": sampler.min_p}
        choose = sampled(sampler.key, temperature=sampler.temperature, **filters)
    adjust = None if strategy.constraints is None else strategy.constraints.adjust
    return {"reorder": Past.reorder, "adjust": adjust, "choose": choose}


def slots_used(beams: Beams) -> Array:
    """The largest number of cache slots that an unfinished sentence needs."""
    return jnp.max(jnp.where(beams.stopped_B, 0, beams.cache.caches[0].used_B()))


@partial(jax.jit, static_argnames=("length", "keep", "over", "stage"))
def rearrange(
    context: Context,
    beams: Beams,
    index_B: Array | None,
    *,
    length: int,
    keep: int | None,
    over: NamedSharding | None = None,
    stage: int = STAGE,
) -> tuple[Context, Beams]:
    """Context and state of the sentences `index_B` only (None = all), with a capacity of `length` output positions.

    `keep`: if given, the cache is collected into this number of slots, plus room for another `stage` positions.
    """
    if index_B is not None:
        context, beams = jax.tree.map(lambda x: x if x.ndim == 0 else x[index_B], (context, beams))
    if keep is not None:
        beams = replace(beams, cache=beams.cache.collect(keep, stage))
    more = ((0, 0), (0, 0), (0, length - beams.tokens_BML.shape[2]))
    beams = replace(
        beams, tokens_BML=jnp.pad(beams.tokens_BML, more), done_tokens_BML=jnp.pad(beams.done_tokens_BML, more)
    )
    return constrain_rows((context, beams), over)
