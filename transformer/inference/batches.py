"""Batches for every generator: of a few fixed shapes, on all devices, in parts where memory is short, side by side."""

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
J, R = TypeVar("J"), TypeVar("R")

MAX_STREAMS = 8  # on a CPU of many cores
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


class Batch(NamedTuple):
    """Sequences that are computed together, and the shape of their batch."""

    indices: list[int]
    """Their numbers among all sequences."""
    rows: int
    """At least as many as there are sequences."""
    length: int
    """Positions that each is padded to."""

    def filled(self, sequences: Sequence[Sequence[int]], eos: int, pad: int) -> np.ndarray:
        """The batch as an array (rows, length): its sequences, with eos behind each, padded."""
        array = np.full((self.rows, self.length), pad, np.int32)
        for row, i in zip(array, self.indices, strict=False):
            row[: len(sequences[i]) + 1] = [*sequences[i], eos]
        return array


class Batcher:
    """Forms batches for one model or several, and runs them on the devices that hold the parameters."""

    def __init__(self, params: Params, *, batch_sentences: int, batch_tokens: int, beams: int = 1, streams: int = 0):
        """`params` tell the devices. A batch has at most `batch_sentences` sequences, and at most `batch_tokens`
        positions, where each sequence has `beams` hypotheses. `streams` batches run at a time; 0 = what suits the
        machine."""
        first = next(iter(jax.tree.leaves(params)), None)
        sharding = getattr(first, "sharding", None)  # NumPy arrays have none
        self.mesh = sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None
        """The mesh that the parameters lie on, if they do."""
        sizes = {} if self.mesh is None else self.mesh.shape
        self.ways = math.prod(n for axis, n in sizes.items() if axis != "tensor")
        """Over how many devices the rows of a batch are laid."""
        self.batch_tokens, self.beams = batch_tokens, beams
        self._streams = streams
        self._rows_that_fit = batch_sentences
        self._lock = threading.Lock()

    def batches(self, lengths: Sequence[int], longest: int) -> Iterator[Batch]:
        """Batches of sequences with these numbers of positions, at most `longest`; those of 0 are left out.

        What does not fill a batch waits for the next longer one, if that is at most twice as long; else it is computed
        in the smallest shape that holds it.
        """
        buckets = [*itertools.takewhile(lambda n: n < longest, padded_lengths()), longest]
        order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
        at, waiting = 0, []
        for b, bucket in enumerate(buckets):
            while at < len(order) and lengths[order[at]] <= bucket:
                waiting.append(order[at])
                at += 1
            while len(waiting) >= (full := self.rows(bucket)):
                yield Batch(waiting[:full], full, bucket)
                del waiting[:full]
            if waiting:
                upper = buckets[b + 1] if b + 1 < len(buckets) else 0
                follows = at < len(order) and lengths[order[at]] <= upper <= 2 * bucket
                if not follows:
                    yield Batch(waiting, self._fewer_rows(len(waiting), full), bucket)
                    waiting = []

    def rows(self, length: int) -> int:
        """Rows of a full batch of this length, within `batch_tokens`: a power of two, on each of the devices if they
        are several."""
        fit = min(self._rows_that_fit, max(1, self.batch_tokens // (length * self.beams)))
        ways = self.ways if fit >= self.ways else 1
        return ways << ((fit // ways).bit_length() - 1)

    def _fewer_rows(self, count: int, full: int) -> int:
        """Rows of a batch of `count` sequences, which do not fill one of `full` rows."""
        ways = self.ways if full % self.ways == 0 else 1
        few = (-(-(8**k) // ways) * ways for k in itertools.count())  # the devices divide them
        return min(full, next(n for n in few if n >= count))

    def put(self, *arrays: np.ndarray) -> Sequence[Any]:
        """Rows laid over the mesh that the parameters lie on, where it divides them."""
        if self.mesh is None:
            return arrays
        axes = tuple(axis for axis in self.mesh.axis_names if axis != "tensor")
        spec = jax.sharding.PartitionSpec(axes if len(arrays[0]) % self.ways == 0 else None)
        return [jax.device_put(array, jax.sharding.NamedSharding(self.mesh, spec)) for array in arrays]

    def in_parts(self, compute: Callable[[slice], R], rows: int) -> list[R]:
        """`compute` of all rows; of one half and then the other where memory is short, and so on."""
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
            # Outside of the handler, which would keep the failed attempt's arrays alive.
            with self._lock:  # fewer than the devices take no less
                self._rows_that_fit = min(self._rows_that_fit, max(count, self.ways))
            log.warning("%d sentences at once do not fit into memory; going on with %d", rows, count)
            middle = part.start + count
            waiting += [slice(middle, part.stop), slice(part.start, middle)]
        return done

    def first_part(self, rows: int) -> int:
        """How many of so many rows go first where they are too many; 0 if neither part would take less memory."""
        if rows % self.ways == 0:  # so they lie on all devices, and both parts are to
            return rows // self.ways // 2 * self.ways
        return rows // self.ways * self.ways or rows // 2

    def side_by_side(self, work: Callable[[J, threading.Event], R], jobs: Iterable[J]) -> Iterator[R]:
        """As the function `side_by_side`, with so many jobs at a time as suits the devices."""
        return side_by_side(work, jobs, self.streams())

    def streams(self) -> int:
        """How many batches are computed at a time."""
        if jax.local_device_count() > 1:
            return 1  # all devices work on one batch
        if self._streams:
            return self._streams
        # What is small in a step runs on one core: another batch uses the others meanwhile.
        return min(MAX_STREAMS, cores()) if jax.default_backend() == "cpu" else 1


def padded_lengths() -> Iterator[int]:
    """The lengths that batches are padded to, ascending: beyond those of `LENGTHS` two for each doubling."""
    yield from LENGTHS
    for doubled in itertools.count(1):
        yield from (3 * LENGTHS[-1] * 2**doubled // 4, LENGTHS[-1] * 2**doubled)


def side_by_side(work: Callable[[J, threading.Event], R], jobs: Iterable[J], ways: int) -> Iterator[R]:
    """What `work` gives for each of the jobs, in their order; so many are done at a time, each in a thread.

    `work` is given an event, too, that is set when nobody waits for its result any more.
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
    """A copy of the parameters on each of this process's devices, if there are several."""
    if jax.local_device_count() == 1:
        return params
    mesh = jax.make_mesh(
        (jax.local_device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()
    )
    return jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
