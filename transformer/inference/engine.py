"""Decoding a batch in stages: finished sentences leave the batch, and the cache grows with the outputs.

Every stage is one compiled program for a number of rows, a source length and a capacity. Each of these has only a few
possible values, so that a few programs serve any input. Between stages, the host checks which sentences are finished.

Shapes: B sentences, M beams, S source positions, L capacity in output positions, V vocabulary; X = B * M rows.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.config import BOS
from transformer.inference.beam_search import Beams, Hypotheses, Options, best_candidates, hypotheses, run, start
from transformer.inference.constraints import Constraints
from transformer.inference.sampling import sampled
from transformer.machine import cores
from transformer.model import Cache, Memory, Model, Params

MIN_ROWS = 4  # a batch of fewer rows is hardly faster
STAGE = 16  # output positions of a stage
SIZES = (0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # possible capacities: output positions, or cache slots


class Grain(NamedTuple):
    """How finely the shapes of a batch follow its sentences. Each shape costs a compilation."""

    stage: int
    """Output positions of a stage."""
    shrink: int
    """The factor by which the rows become fewer when sentences are finished."""
    sizes: Sequence[int]
    """Possible capacities: output positions, or cache slots."""
    ahead: bool
    """Compile the programs of a first stage together, before they are needed (with one device)."""


FINE = Grain(STAGE, 2, SIZES, False)
COARSE = Grain(2 * STAGE, 4, (0, 32, 64, 128, 256, 512, 1024), True)
"""For a few sentences, which take less time than the compilation of a program."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampler:
    """The parameters of `sampling.sampled`."""

    key: Array
    temperature: Array | float = 1.0
    top_k: Array | int = 0
    top_p: Array | float = 1.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Strategy:
    """How to decode: everything that is the same for all sentences."""

    options: Options
    constraints: Constraints | None = None
    sampler: Sampler | None = None


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
    memories: tuple[Memory, ...],
    over: NamedSharding | None = None,
) -> Any:  # a beam_search.Step
    """The step of beam search under one model, or under several with averaged probabilities."""
    normalized = on_each_device(log_softmax, over)

    def step(tokens_X: Array, caches: tuple[Cache, ...], at: Array) -> tuple[Array, tuple[Cache, ...]]:
        log_probs, new_caches = [], []
        for model, parameters, memory, cache in zip(models, params, memories, caches, strict=True):
            logits_X1V, cache, _ = model.bind(parameters).decode(tokens_X[:, None], memory, cache=cache, at_B=at)
            log_probs.append(normalized(logits_X1V[:, 0]))
            new_caches.append(cache)
        log_probs_XV = log_probs[0]
        if len(log_probs) > 1:
            log_probs_XV = jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))
        # PAD and BOS are never targets in training. An untrained model must not produce them either.
        real_V = jnp.arange(log_probs_XV.shape[1]) > BOS
        return jnp.where(real_V, log_probs_XV, -jnp.inf), tuple(new_caches)

    return step


def cache_type() -> Any:
    """The type of the cache; None = that of the model."""
    # At each write, XLA on CPU converts the whole of a 16-bit cache to float32 and back.
    return jnp.float32 if jax.default_backend() == "cpu" else None


@partial(jax.jit, static_argnames=("models", "length", "dtype", "over", "stage"))
def begin(
    params: tuple[Params, ...],
    source_BS: Array,
    limit_B: Array,
    given: Any,
    options: Options,
    *,
    models: tuple[Model, ...],
    length: int,
    dtype: Any = None,
    over: NamedSharding | None = None,
    stage: int = STAGE,
) -> tuple[tuple[Memory, ...], Beams]:
    """Encode the sources once. Returns the memories, and the state of the search before the first piece.

    `length`: the capacity in output positions; `stage`: that of the cache. `dtype`: the type of the cache; None = that
    of the model. `over`: the sharding of rows over several devices.
    """
    memories = tuple(model.bind(parameters).encode(source_BS) for model, parameters in zip(models, params, strict=True))
    caches = tuple(
        model.bind(parameters).init_cache(len(source_BS), stage, options.beam_size, dtype)
        for model, parameters in zip(models, params, strict=True)
    )
    return constrain_rows((memories, start(caches, limit_B, length, options, given)), over)


@partial(jax.jit, static_argnames=("models", "over"), donate_argnames="beams")
def proceed(
    params: tuple[Params, ...],
    memories: tuple[Memory, ...],
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
        choose = sampled(sampler.key, temperature=sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p)
    beams = run(
        next_log_probs(models, params, memories, over),
        beams,
        strategy.options,
        few=few,
        until=until,
        reorder=lambda caches, parents_BM: tuple(cache.reorder(parents_BM) for cache in caches),
        adjust=None if strategy.constraints is None else strategy.constraints.adjust,
        choose=choose,
        by_rows=lambda function: on_each_device(function, over),
    )
    return beams, jnp.max(jnp.where(beams.stopped_B, 0, beams.cache[0].used_B()))


@partial(jax.jit, static_argnames=("length", "keep", "over", "stage"))
def rearrange(
    memories: tuple[Memory, ...],
    beams: Beams,
    index_B: Array | None,
    *,
    length: int,
    keep: int | None,
    over: NamedSharding | None = None,
    stage: int = STAGE,
) -> tuple[tuple[Memory, ...], Beams]:
    """Memories and state of the sentences `index_B` only (None = all), with a capacity of `length` output positions.

    `keep`: if given, the cache is collected into this number of slots, plus room for another `stage` positions.
    """
    if index_B is not None:
        memories, beams = jax.tree.map(lambda x: x if x.ndim == 0 else x[index_B], (memories, beams))
    if keep is not None:
        beams = replace(beams, cache=tuple(cache.collect(keep, stage) for cache in beams.cache))
    more = ((0, 0), (0, 0), (0, length - beams.tokens_BML.shape[2]))
    beams = replace(
        beams, tokens_BML=jnp.pad(beams.tokens_BML, more), done_tokens_BML=jnp.pad(beams.done_tokens_BML, more)
    )
    return constrain_rows((memories, beams), over)


def size(n: int, ladder: Sequence[int] = SIZES) -> int:
    """The smallest size in `ladder` that is at least n; beyond its last size, the next multiple of that."""
    return next((size for size in ladder if size >= n), -(-n // ladder[-1]) * ladder[-1])


_locks: dict[Any, threading.Lock] = {}
_compiled: set[Any] = set()


def shapes_of(program: Any, args: Any, static: Any) -> Any:
    """What the compilation of a program for these arguments depends on, as a key."""
    leaves, tree = jax.tree.flatten(args)
    return program, tree, tuple((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves), *static.items()


def once(program: Any, *args: Any, **static: Any) -> Any:
    """Call a jitted program. Threads that call it with the same shapes take turns, so that only one compiles it."""
    with _locks.setdefault(shapes_of(program, args, static), threading.Lock()):
        return program(*args, **static)


def decode(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source_BS: Array,
    limit_B: Array,
    strategy: Strategy,
    given: Any = (),
    stop: threading.Event | None = None,
    grain: Grain = FINE,
) -> Iterator[tuple[int, Hypotheses]]:
    """Decode a batch. Yields (row, hypotheses of that row) for each row, in the order in which they finish.

    `source_BS`: pieces with eos, padded with 0. `limit_B`: the most pieces of each output, eos included; rows with 0
    are empty and yield nothing. `given`: further data of each row, see `Beams`. Once `stop` is set, it ends after the
    present stage.
    """
    limits, over, stage = np.asarray(limit_B), row_sharding(source_BS), grain.stage
    if grain.ahead and not isinstance(getattr(source_BS, "sharding", None), NamedSharding):
        compile_ahead(models, params, source_BS, limit_B, strategy, given, grain)
    until, shared = stage, {"over": over, "stage": stage}
    memories, beams = once(
        *(begin, params, source_BS, limit_B, given, strategy.options),
        **{"models": models, "length": size(stage, grain.sizes), "dtype": cache_type(), **shared},
    )
    # For each row of the batch: its row in the input, or -1 when it is finished.
    input_row = np.where(limits > 0, np.arange(len(limits)), -1)
    while (left := np.flatnonzero(input_row >= 0)).size:
        if stop is not None and stop.is_set():
            return
        while 0 < len(left) <= (fewer := fewer_rows(len(input_row), over, grain.shrink)):
            # Finished sentences, which stay stopped, fill up the batch.
            index = np.concatenate([np.flatnonzero(input_row >= 0), np.flatnonzero(input_row < 0)])[:fewer]
            input_row, length = input_row[index], beams.tokens_BML.shape[2]
            memories, beams = once(rearrange, memories, beams, index, length=length, keep=None, **shared)
        few = fewer_rows(len(input_row), over, grain.shrink)
        beams, used = once(proceed, params, memories, beams, strategy, few, until, models=models, over=over)
        done = np.flatnonzero(np.asarray(beams.stopped_B) & (input_row >= 0))
        if done.size:
            finished = hypotheses(jax.tree.map(np.asarray, replace(beams, cache=(), given=())), strategy.options)
            for row in done:
                yield int(input_row[row]), Hypotheses(*(x[row] for x in finished))
            input_row[done] = -1
        if int(beams.at) == until and (input_row >= 0).any():
            until += stage
            sizes = {"length": size(until, grain.sizes), "keep": size(int(used), grain.sizes)}
            memories, beams = once(rearrange, memories, beams, None, **sizes, **shared)


def compile_ahead(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source_BS: Array,
    limit_B: Array,
    strategy: Strategy,
    given: Any,
    grain: Grain,
) -> None:
    """Compile the programs that `decode` runs for outputs of one stage, on all cores, unless they are there.

    The arguments are those of `decode`; only their shapes count. For one device.
    """
    key = shapes_of(compile_ahead, (params, source_BS, limit_B, strategy, given), {"models": models, "grain": grain})
    with _locks.setdefault(key, threading.Lock()), ThreadPoolExecutor(cores(), "compile") as pool:
        if key in _compiled:
            return
        first = jax.tree.leaves(params)[0]
        device = first.sharding if getattr(first, "committed", False) else None  # committed arrays have other programs
        jobs = []

        def lowered(program: Any, *args: Any, **static: Any) -> Any:
            program = program.lower(*args, **static)
            jobs.append(pool.submit(program.compile))
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), program.out_info)

        length, rows, shared = size(grain.stage, grain.sizes), len(limit_B), {"over": None, "stage": grain.stage}
        static = {"models": models, "length": length, "dtype": cache_type(), **shared}
        memories, beams = lowered(begin, params, source_BS, limit_B, given, strategy.options, **static)
        while True:
            fewer = fewer_rows(rows, None, grain.shrink)
            lowered(proceed, params, memories, beams, strategy, fewer, grain.stage, models=models, over=None)
            if not fewer:
                break
            index, rows = np.arange(fewer), fewer
            memories, beams = lowered(rearrange, memories, beams, index, length=length, keep=None, **shared)
        for job in jobs:
            job.result()
        _compiled.add(key)


def fewer_rows(rows: int, over: NamedSharding | None, shrink: int = 2) -> int:
    """The number of unfinished sentences at which a batch of this many rows is cut to that number; 0 = never."""
    if rows <= MIN_ROWS or rows % shrink:
        return 0
    fewer = max(rows // shrink, MIN_ROWS)
    return fewer if over is None or divides(over, fewer) else 0  # otherwise each device would hold all rows
