"""The batches of a run for one process: reads only the rows of its devices, ahead by threads, and puts them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from transformer.training.sharding import batch_sharding
from transformer.training.step import dealt, micro_batch_rows
from transformer.training.task import Batch, Batches

# Array name -> (global shape over all devices, {(begin row, end row): values} for the devices of this process).
HostBatch = dict[str, tuple[tuple[int, ...], dict[tuple[int, int], np.ndarray]]]


class Feed:
    """Reads batches and puts them on a mesh, as micro-batches of shape (micro-batches, rows, length).

    `dealt` defines which row goes to which micro-batch. Empty rows fill up a batch that the mesh does not divide. A
    process reads only the rows of its devices; all processes read the same number of batches.
    """

    def __init__(self, batches: Batches, mesh: Mesh, micro_batches: int = 1):
        self.batches, self.micro_batches = batches, micro_batches
        self.sharding = batch_sharding(mesh, micro_batches=True)
        self._mesh = mesh

    def read(self, step: int) -> HostBatch:
        """The rows of this process in the batch of update `step`, counted from 0."""
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
        """The batch on the devices of all processes; each process puts its own rows."""
        return {
            name: jax.make_array_from_callback(
                shape, self.sharding, lambda index, parts=parts, n=shape[1]: parts[index[1].indices(n)[:2]]
            )
            for name, (shape, parts) in host.items()
        }

    def stream(self, start: int, stop: int, prefetch: int) -> Iterator[Any]:
        """`read(start)` .. `read(stop - 1)`, read ahead by two threads."""
        return iterate(self.read, start=start, stop=stop, threads=2, prefetch=prefetch)


def iterate(read: Callable[[int], Any], *, start: int, stop: int, threads: int, prefetch: int) -> Any:
    """A Grain iterator over `read(start)` .. `read(stop - 1)`, whose threads read `prefetch` batches ahead.

    `get_state()` is {"next_index": step}: the update whose batch the consumer gets next, however far the threads have
    read. `set_state` accepts it for any number of threads. `close()` stops the threads.
    """
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    iterator = iter(grain.MapDataset.range(stop).map(read).to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator
