from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from test_batching import make, random_pairs

from transformer.config import MeshConfig
from transformer.training.feed import Feed
from transformer.training.sharding import make_mesh
from transformer.training.step import cut

MESH = make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_the_batch_cut_into_micro_batches(packing: bool, micro_batches: int) -> None:
    batches = make(random_pairs(400), packing=packing, accumulate=micro_batches, batch_tokens=1_000)
    feed = Feed(batches, MESH, micro_batches)
    for step in range(batches.batches_per_epoch):
        expected = cut(batches[step], MESH, micro_batches)
        placed = feed.put(feed.read(step))
        for name, array in expected.items():
            assert placed[name].sharding == feed.sharding
            np.testing.assert_array_equal(placed[name], array)


@pytest.mark.parametrize("packing", [True, False])
def test_rows_read_by_themselves_are_those_of_the_batch(packing: bool) -> None:
    batches = make(random_pairs(300), packing=packing)
    for step in range(batches.batches_per_epoch):
        batch, rows = batches[step], batches.shape(step)["source"][0]
        cuts = [0, 1, rows // 2, rows, rows + 3]
        for name, array in batch.items():
            parts = [batches.read(step, begin, end)[name] for begin, end in itertools.pairwise(cuts)]
            together = np.concatenate(parts)
            np.testing.assert_array_equal(together[:rows], array)
            assert together.shape[0] == rows + 3 and not together[rows:].any()


def test_the_stream_goes_on_from_any_update() -> None:
    batches = make(random_pairs(300), packing=True)
    feed = Feed(batches, MESH)
    found = [feed.put(host)["source"] for host in feed.stream(3, 9, 2)]
    for step, array in zip(range(3, 9), found, strict=True):
        np.testing.assert_array_equal(array[0], batches[step]["source"])
