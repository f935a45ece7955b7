"""The batches of a run as one process needs them: its own rows only, read ahead by threads, laid on its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from transformer.training.sharding import batch_sharding
from transformer.training.step import dealt, micro_batch_rows
from transformer.training.task import Batch, Batches

# For each array its shape on all devices together, and what lies where: (first row, last row) -> values.
HostBatch = dict[str, tuple[tuple[int, ...], dict[tuple[int, int], np.ndarray]]]


class Feed:
    """Reads and places batches for a mesh, cut into micro-batches of shape (micro-batches, rows, length).

    Rows are dealt out to the micro-batches as by `dealt`. Empty rows are added where the mesh does not divide. What a
    process reads depends on its devices alone, and all take the same number of batches.
    """

    def __init__(self, batches: Batches, mesh: Mesh, micro_batches: int = 1):
        self.batches, self.micro_batches = batches, micro_batches
        self.sharding = batch_sharding(mesh, micro_batches=True)
        self._mesh = mesh

    def read(self, step: int) -> HostBatch:
        """The rows of this process's devices in the batch of update `step`, counted from 0."""
        m, shape = self.micro_batches, self.batches.shape(step)
        host: HostBatch = {
            name: ((m, micro_batch_rows(rows, self._mesh, m), length), {}) for name, (rows, length) in shape.items()
        }
        rows = next(iter(host.values()))[0][1]
        for begin, end in sorted(self._row_ranges(rows)):
            part = self.batches.read(step, begin * m, end * m)
            for name, (_, parts) in host.items():
                parts[begin, end] = dealt(part[name], m)
        return host

    def _row_ranges(self, rows: int) -> set[tuple[int, int]]:
        slices = self.sharding.addressable_devices_indices_map((self.micro_batches, rows, 1))
        return {index[1].indices(rows)[:2] for index in slices.values()}

    def put(self, host: HostBatch) -> Batch:
        """The batch on the devices of all processes, each of which gives its own part."""
        return {
            name: jax.make_array_from_callback(
                shape, self.sharding, lambda index, parts=parts, n=shape[1]: parts[index[1].indices(n)[:2]]
            )
            for name, (shape, parts) in host.items()
        }

    def stream(self, start: int, stop: int, prefetch: int) -> Iterator[Any]:
        """What `read` gives for updates `start` to `stop`, made ahead by two threads."""
        return iterate(self.read, start=start, stop=stop, threads=2, prefetch=prefetch)


def iterate(read: Callable[[int], Any], *, start: int, stop: int, threads: int, prefetch: int) -> Any:
    """Grain's iterator over `read(start)` .. `read(stop - 1)`, read ahead by `prefetch` batches on threads.

    `get_state()` is {"next_index": step}, the update whose batch comes next for the consumer, however far the threads
    have read; `set_state` accepts it under any number of threads. `close()` stops reading ahead.
    """
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    iterator = iter(grain.MapDataset.range(stop).map(read).to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator
