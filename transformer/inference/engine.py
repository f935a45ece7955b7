"""Decoding a batch in stages: finished sentences leave the batch, and the cache grows with the outputs.

A batch has sources that an encoder reads, or prompts that a decoder alone goes on from. All else is the same.

Every stage is one compiled program (see `programs`) for a number of rows, a source length and a capacity. Each of these
has only a few possible values, so that a few programs serve any input. Between stages, the host checks which sentences
are finished.

Shapes: B sentences, M beams, L capacity in output positions, T pieces; X = B * M rows.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from transformer.inference.batches import padded_lengths
from transformer.inference.beam_search import Beams, Hypotheses, Options, hypotheses
from transformer.inference.context import STAGE, Context, Sliding
from transformer.inference.programs import (
    Strategy,
    begin,
    cache_type,
    divides,
    proceed,
    read_again,
    rearrange,
    row_sharding,
)
from transformer.machine import cores
from transformer.model import Model, Params

MIN_ROWS = 4  # a batch of fewer rows is hardly faster
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
    source: Any,
    limit_B: Array,
    strategy: Strategy,
    given: Any = (),
    stop: threading.Event | None = None,
    window: int | None = None,
    grain: Grain = FINE,
) -> Iterator[tuple[int, Hypotheses]]:
    """Decode a batch. Yields (row, hypotheses of that row) for each row, in the order in which they finish.

    `source`: pieces with eos, padded with 0 (source_BS), or `Prompts`. `limit_B`: the most pieces of each output, eos
    included; rows with 0 are empty and yield nothing. `given`: further data of each row, see `Beams`. Once `stop` is
    set, it ends after the present stage. `window`: the most pieces that the model sees at once, of a prompt and its
    output (see `Sliding`).
    """
    for input_row, beams in stages(models, params, source, limit_B, strategy, given, stop, window, grain=grain):
        yield from finished(input_row, beams, strategy.options)


def finished(input_row: np.ndarray, beams: Beams, options: Options) -> Iterator[tuple[int, Hypotheses]]:
    """(row, its hypotheses) of each row that has finished in this stage. The arguments are what `stages` yields."""
    done = np.flatnonzero(np.asarray(beams.stopped_B) & (input_row >= 0))
    if done.size:
        found = hypotheses(jax.tree.map(np.asarray, replace(beams, cache=(), given=())), options)
        for row in done:
            yield int(input_row[row]), Hypotheses(*(x[row] for x in found))


def stages(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source: Any,
    limit_B: Array,
    strategy: Strategy,
    given: Any = (),
    stop: threading.Event | None = None,
    window: int | None = None,
    most: int | None = None,
    grain: Grain = FINE,
    watch: Callable[..., tuple[Beams, Array]] | None = None,
) -> Iterator[tuple[np.ndarray, Beams]]:
    """`decode`, step by step: yields the state after each stage, of at most `most` output positions. Read the state
    before the next stage, which overwrites it.

    With it comes, for each row of the state, its row in the input, or -1 if it was finished in an earlier stage.
    `watch`: a function to call in place of the program `proceed`.
    """
    leaf, stage = jax.tree.leaves(source)[0], grain.stage
    limits, over, until, at = np.asarray(limit_B), row_sharding(leaf), stage, 0
    shared, sizes = {"models": models, "dtype": cache_type(), "over": over}, {"over": over, "stage": stage}
    sliding = None if window is None else Sliding(source, window)
    if grain.ahead and not isinstance(getattr(leaf, "sharding", None), NamedSharding):
        compile_ahead(models, params, source, limit_B, strategy, given, grain)
    static = {**shared, **sizes, "length": size(stage, grain.sizes)}
    penalized = strategy.repetition_penalty is not None
    context, beams = once(begin, params, source, limit_B, given, strategy.options, **static, penalized=penalized)
    # For each row of the batch: its row in the input, or -1 when it is finished.
    input_row = np.where(limits > 0, np.arange(len(limits)), -1)
    while (left := np.flatnonzero(input_row >= 0)).size:
        if stop is not None and stop.is_set():
            return
        while len(left) <= (fewer := fewer_rows(len(input_row), over, grain.shrink)):
            # Finished sentences, which stay stopped, fill up the batch.
            index = np.concatenate([np.flatnonzero(input_row >= 0), np.flatnonzero(input_row < 0)])[:fewer]
            input_row, length = input_row[index], beams.tokens_BML.shape[2]
            context, beams = once(rearrange, context, beams, index, length=length, keep=None, **sizes)
        ahead = until if most is None else min(until, at + most)
        if sliding is not None:
            context, beams = slid(params, context, beams, sliding, input_row, at, {**shared, "stage": stage})
            ahead = min(ahead, at + sliding.room(input_row[input_row >= 0], at))
        go_on = partial(once, proceed) if watch is None else watch
        beams, used = go_on(params, context, beams, strategy, fewer, ahead, models=models, over=over)
        yield input_row, beams
        input_row[np.asarray(beams.stopped_B)] = -1
        at = int(beams.at)
        if at == until and (input_row >= 0).any():
            until += stage
            keep = {"length": size(until, grain.sizes), "keep": size(int(used), grain.sizes)}
            context, beams = once(rearrange, context, beams, None, **keep, **sizes)


def compile_ahead(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source: Any,
    limit_B: Array,
    strategy: Strategy,
    given: Any,
    grain: Grain,
) -> None:
    """Compile the programs that `decode` runs for outputs of one stage, on all cores, unless they are there.

    The arguments are those of `decode`; only their shapes count. For one device.
    """
    key = shapes_of(compile_ahead, (params, source, limit_B, strategy, given), {"models": models, "grain": grain})
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

        length, rows, sizes = size(grain.stage, grain.sizes), len(limit_B), {"over": None, "stage": grain.stage}
        static = {"models": models, "dtype": cache_type(), **sizes, "length": length}
        penalized = strategy.repetition_penalty is not None
        context, beams = lowered(begin, params, source, limit_B, given, strategy.options, **static, penalized=penalized)
        while True:
            fewer = fewer_rows(rows, None, grain.shrink)
            lowered(proceed, params, context, beams, strategy, fewer, grain.stage, models=models, over=None)
            if not fewer:
                break
            index, rows = np.arange(fewer), fewer
            context, beams = lowered(rearrange, context, beams, index, length=length, keep=None, **sizes)
        for job in jobs:
            job.result()
        _compiled.add(key)


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
    caches, offset_B = once(read_again, params, tokens_XT, lengths_B, offset_B, beams=len(texts[0]), **shared)
    return context._replace(offset_B=offset_B), replace(beams, cache=beams.cache._replace(caches=caches))


def fewer_rows(rows: int, over: NamedSharding | None, shrink: int = 2) -> int:
    """The number of unfinished sentences at which a batch of this many rows is cut to that number; 0 = never."""
    if rows <= MIN_ROWS or rows % shrink:
        return 0
    fewer = max(rows // shrink, MIN_ROWS)
    return fewer if over is None or divides(over, fewer) else 0  # otherwise each device would hold all rows
