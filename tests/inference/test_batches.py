"""Batches of any sequences: their shapes, devices and parts, and jobs in threads. No model is needed."""

import threading
import time

import numpy as np
import pytest

from transformer.config import DecodeConfig
from transformer.inference.batches import Batcher, padded_lengths, side_by_side


def batcher(devices=1, **sizes):
    c = DecodeConfig()
    sizes = {"batch_sentences": c.batch_sentences, "batch_tokens": c.batch_tokens, "beams": c.beam_size, **sizes}
    made = Batcher({"w": np.zeros(1)}, **sizes)
    made.ways = devices
    return made


def test_jobs_side_by_side_overlap_and_keep_their_order():
    meeting = threading.Barrier(3, timeout=30)  # opens only for three threads at once

    def work(job, stop):
        meeting.wait()
        time.sleep(0.01 * (-job % 3))
        return job * 10

    assert list(side_by_side(work, range(9), 3)) == [10 * job for job in range(9)]
    assert list(side_by_side(lambda job, stop: job, [], 3)) == []


def test_an_error_in_a_job_ends_them_all_and_an_early_stop_begins_no_more():
    begun = []

    def work(job, stop):
        begun.append(job)
        if job == 4:
            raise ValueError("job 4")
        return job

    with pytest.raises(ValueError, match="job 4"):
        list(side_by_side(work, range(100), 2))
    assert len(begun) < 10
    del begun[:]
    jobs = side_by_side(work, range(5, 100), 2)
    assert next(jobs) == 5
    jobs.close()
    assert len(begun) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(("devices", "sentences", "rows"), [(1, 64, 64), (3, 64, 48), (8, 64, 64), (6, 5, 4)])
def test_full_batches_lie_evenly_on_the_devices(devices, sentences, rows):
    assert batcher(devices, batch_sentences=sentences).rows(16) == rows


@pytest.mark.parametrize(
    ("devices", "left", "rows"),
    [(1, 1, 1), (1, 3, 8), (1, 20, 64), (3, 2, 3), (3, 5, 9), (4, 3, 4), (16, 1, 16), (16, 20, 64), (6, 1, 1)],
)
def test_what_is_left_over_lies_evenly_on_the_devices(devices, left, rows):
    ours = batcher(devices, batch_sentences=5 if devices == 6 else 64)
    full = ours.rows(16)
    found = [(len(indices), shape) for indices, shape, _ in ours.batches([11] * (full + left), 251)]
    assert found == [(full, full), (left, rows)]


@pytest.mark.parametrize("longest", [1_024, 1_500, 100_000, 1_000_000])
def test_a_source_is_padded_to_something_near_it(longest):
    """However long sources may be. There are only a few different lengths."""
    made = batcher(batch_tokens=1).batches
    lengths = [n for n in (1, 1_000, 1_024, 1_100, 1_500, 5_000, 90_000, 999_999) if n <= longest]
    shapes = {tuple(indices): length for indices, _, length in made([n + 1 for n in lengths], longest + 1)}
    for i, length in enumerate(lengths):
        assert length < shapes[(i,)] <= max(8, 1.6 * length)
    every = {length for _, _, length in made(range(2, longest + 2, max(1, longest // 5_000)), longest + 1)}
    assert len(every) <= 15 + 2 * np.log2(longest / 1_024) + 1
    assert max(every) == longest + 1
    # Scoring pads to the same length, if all sequences are short.
    padded = next(n for n in padded_lengths() if n > max(lengths))
    scored = {length for _, _, length in made([n + 1 for n in lengths], padded)}
    assert max(scored) <= 1.6 * max(lengths)


def test_few_sequences_have_few_shapes():
    """Sequences of all lengths: one or two lengths of rows, and at most four times what each sequence needs."""
    lengths = np.random.default_rng(0).integers(2, 33, 200).tolist()
    for count in (1, 7, 64, 200):
        found = [(batch.rows, batch.length) for batch in batcher().batches(lengths[:count], 251, few=True)]
        assert len(set(found)) <= 2
        assert sum(rows for rows, _ in found) <= max(8, 64 * -(-count // 64) + 64)
    for length in range(2, 130):
        (batch,) = batcher().batches([length], 251, few=True)
        assert length <= batch.length <= max(8, 4 * length)
    assert batcher().few(511 * [9] + 10 * [0]) and not batcher().few(512 * [9])


@pytest.mark.parametrize("devices", [1, 3])
def test_no_batch_is_far_larger_than_what_is_in_it(devices):
    """Whatever the largest number of sentences in a batch."""
    ours = batcher(devices, batch_sentences=2**31 - 1, batch_tokens=2**31 - 1)
    shapes = set()
    for count in (1, 2, 9, 65, 600, 5_000):
        rows = [rows for _, rows, _ in ours.batches([6] * count, 251)]
        assert sum(rows) <= 8 * max(count, devices) and not any(n % devices for n in rows)
        shapes |= set(rows)
    assert len(shapes) <= 6


@pytest.mark.parametrize("ways", [1, 3, 8])
def test_each_half_takes_less_memory(ways):
    ours = batcher(ways)

    def on_a_device(rows):
        return rows // ways if rows % ways == 0 else rows

    for rows in range(1, 50):
        first = ours.first_part(rows)
        if first:
            assert 0 < first < rows and max(on_a_device(first), on_a_device(rows - first)) < on_a_device(rows)
        else:
            assert on_a_device(rows) == 1
