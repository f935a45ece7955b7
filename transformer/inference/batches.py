"""Batches for every generator: a few fixed shapes, rows over all devices, halving when memory is short, and threads."""

from __future__ import annotations

import collections
import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from transformer.machine import cores
from transformer.memory import ran_out
from transformer.model import Params

log = logging.getLogger("transformer")
J, R, T = TypeVar("J"), TypeVar("R"), TypeVar("T")

MAX_STREAMS = 8  # the most batches at a time on a CPU
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Fewer sequences than fill this number of batches are computed in few shapes: a program takes longer to compile than
# these sequences would save by more shapes.
FEW_BATCHES = 8
FEW_LENGTHS = (8, 32, 128, 512)


class Batch(NamedTuple):
    """Sequences that are computed together, and the shape of their array."""

    indices: list[int]
    """The indices of these sequences among all sequences."""
    rows: int
    """Rows of the array, at least the number of sequences."""
    length: int
    """Positions that each row is padded to."""

    def filled(self, sequences: Sequence[Sequence[int]], eos: int, pad: int) -> np.ndarray:
        """The batch as an int32 array (rows, length): each sequence followed by eos and padding."""
        array = np.full((self.rows, self.length), pad, np.int32)
        for row, i in zip(array, self.indices, strict=False):
            row[: len(sequences[i]) + 1] = [*sequences[i], eos]
        return array


class Batcher:
    """Forms batches for one model or several, and runs them on the devices that hold the parameters."""

    def __init__(self, params: Params, *, batch_sentences: int, batch_tokens: int, beams: int = 1, streams: int = 0):
        """`params`: their sharding gives the devices. `batch_sentences`: the most sequences of a batch. `batch_tokens`:
        its most positions, counted for each of the `beams` hypotheses of a sequence. `streams`: batches at a time; 0 =
        chosen for the machine."""
        first = next(iter(jax.tree.leaves(params)), None)
        sharding = getattr(first, "sharding", None)  # NumPy arrays have none
        self.mesh = sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None
        """The mesh of the parameters; None without one."""
        sizes = {} if self.mesh is None else self.mesh.shape
        self.ways = math.prod(n for axis, n in sizes.items() if axis != "tensor")
        """The number of parts that the rows of a batch are cut into, over devices."""
        self.batch_tokens, self.beams = batch_tokens, beams
        self._streams = streams
        self._rows_that_fit = self._batch_sentences = batch_sentences
        self._lock = threading.Lock()

    def batches(self, lengths: Sequence[int], longest: int, *, few: bool = False) -> Iterator[Batch]:
        """Batches of sequences with these lengths in positions, sorted by length. `longest`: the largest length.

        Sequences of length 0 are left out. Sequences that do not fill a batch join the next longer one if that is at
        most twice as long; otherwise they form a batch of the smallest shape that holds them. With `few`, for few
        sequences, lengths are coarser, and sequences join a batch up to four times as long.
        """
        order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
        ladder, most = (FEW_LENGTHS, 4) if few else (padded_lengths(), 2)
        buckets = [*itertools.takewhile(lambda n: n < longest, ladder), longest]
        at, waiting = 0, []
        for b, bucket in enumerate(buckets):
            while at < len(order) and lengths[order[at]] <= bucket:
                waiting.append(order[at])
                at += 1
            filled = False
            while len(waiting) >= (full := self.rows(bucket)):
                yield Batch(waiting[:full], full, bucket)
                del waiting[:full]
                filled = True
            if waiting:
                upper = buckets[b + 1] if b + 1 < len(buckets) else 0
                follows = at < len(order) and lengths[order[at]] <= upper <= most * bucket
                if not follows:  # few sequences: in the shape that is there already
                    rows = full if few and filled else self._fewer_rows(len(waiting), full)
                    yield Batch(waiting, rows, bucket)
                    waiting = []

    def few(self, lengths: Sequence[int]) -> bool:
        """Whether these sequences are so few that few shapes save more time than they cost (see `FEW_BATCHES`)."""
        return sum(1 for n in lengths if n) < FEW_BATCHES * self._batch_sentences

    def rows(self, length: int) -> int:
        """Rows of a full batch of this length, within `batch_tokens`: `ways` times a power of two, or, if fewer than
        `ways` rows fit, a power of two."""
        fit = min(self._rows_that_fit, max(1, self.batch_tokens // (length * self.beams)))
        ways = self.ways if fit >= self.ways else 1
        return ways << ((fit // ways).bit_length() - 1)

    def _fewer_rows(self, count: int, full: int) -> int:
        """Rows of a batch for `count` sequences, at most `full`: a power of 8, rounded up to a multiple of `ways`."""
        ways = self.ways if full % self.ways == 0 else 1
        few = (-(-(8**k) // ways) * ways for k in itertools.count())  # multiples of `ways`
        return min(full, next(n for n in few if n >= count))

    def put(self, *arrays: np.ndarray) -> Sequence[Any]:
        """Put arrays on the mesh of the parameters: their rows cut over it if it divides them, else replicated."""
        if self.mesh is None:
            return arrays
        axes = tuple(axis for axis in self.mesh.axis_names if axis != "tensor")
        spec = jax.sharding.PartitionSpec(axes if len(arrays[0]) % self.ways == 0 else None)
        return [jax.device_put(array, jax.sharding.NamedSharding(self.mesh, spec)) for array in arrays]

    def put_tree(self, tree: T) -> T:
        """`put` for a tree of arrays."""
        leaves, form = jax.tree.flatten(tree)
        return jax.tree.unflatten(form, self.put(*leaves))

    def in_parts(self, compute: Callable[[slice], R], rows: int) -> list[R]:
        """`compute(slice(0, rows))`. When memory is short, compute one half and then the other, recursively.

        Returns the results in the order of rows. Later batches have at most as many rows as have fitted.
        """
        waiting, done = [slice(0, rows)], []
        while waiting:
            part = waiting.pop()
            rows = part.stop - part.start
            count = self.first_part(rows)
            try:
                done.append(compute(part))
                continue
            except jax.errors.JaxRuntimeError as error:
                if not ran_out(error) or not count:
                    raise
            # Outside of the handler: there the exception keeps the arrays of the failed attempt alive.
            with self._lock:  # fewer rows than `ways` do not need less memory
                self._rows_that_fit = min(self._rows_that_fit, max(count, self.ways))
            log.warning("%d sentences at once do not fit into memory; going on with %d", rows, count)
            middle = part.start + count
            waiting += [slice(middle, part.stop), slice(part.start, middle)]
        return done

    def first_part(self, rows: int) -> int:
        """The rows of the first of two parts; 0 if neither part would need less memory than all `rows`."""
        if rows % self.ways == 0:  # the rows are on all devices, and those of each part stay so
            return rows // self.ways // 2 * self.ways
        return rows // self.ways * self.ways or rows // 2

    def side_by_side(self, work: Callable[[J, threading.Event], R], jobs: Iterable[J]) -> Iterator[R]:
        """The function `side_by_side` with `streams()` jobs at a time."""
        return side_by_side(work, jobs, self.streams())

    def streams(self) -> int:
        """The number of batches that are computed at a time."""
        if jax.local_device_count() > 1:
            return 1  # all devices work on one batch
        if self._streams:
            return self._streams
        # Small operations of a step use one core; another batch can use the other cores meanwhile.
        return min(MAX_STREAMS, cores()) if jax.default_backend() == "cpu" else 1


def padded_lengths() -> Iterator[int]:
    """The lengths that batches are padded to, ascending: `LENGTHS`, and then two for each doubling."""
    yield from LENGTHS
    for doubled in itertools.count(1):
        yield from (3 * LENGTHS[-1] * 2**doubled // 4, LENGTHS[-1] * 2**doubled)


def side_by_side(work: Callable[[J, threading.Event], R], jobs: Iterable[J], ways: int) -> Iterator[R]:
    """`work(job, stop)` for each job, `ways` at a time in threads. Yields the results in the order of the jobs.

    `stop` is an event that is set when the caller no longer waits for results.
    """
    stop = threading.Event()
    if ways == 1:
        yield from (work(job, stop) for job in jobs)
        return
    pool = ThreadPoolExecutor(ways, "decode")
    try:
        begun: collections.deque[Future[R]] = collections.deque()
        for job in jobs:
            begun.append(pool.submit(work, job, stop))
            if len(begun) > ways:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def on_all_devices(params: Params) -> Params:
    """The parameters, replicated on all devices of this process if there are several."""
    if jax.local_device_count() == 1:
        return params
    mesh = jax.make_mesh(
        (jax.local_device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()
    )
    return jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
