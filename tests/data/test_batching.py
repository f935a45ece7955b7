import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import transformer
from transformer.config import EOS, PAD, DataConfig, UserError
from transformer.data.batching import Batches, evaluation_batches, too_long
from transformer.data.buckets import length_buckets
from transformer.training.feed import iterate


class Pairs:
    """A token store in memory. Every piece of pair i is first + i, which identifies the pair in a batch."""

    path = Path("nowhere")
    ends: ClassVar = {"source": EOS, "target": EOS}

    def __init__(self, source_lengths, target_lengths, first=10):
        self.source_lengths = np.asarray(source_lengths, np.int32)
        self.target_lengths = np.asarray(target_lengths, np.int32)
        for side in ("source", "target"):
            lengths = getattr(self, f"{side}_lengths")
            setattr(self, f"{side}_offsets", np.concatenate([[0], np.cumsum(lengths)]))
            setattr(self, f"{side}_tokens", np.repeat(np.arange(len(lengths), dtype=np.uint32) + first, lengths))

    def __len__(self):
        return len(self.source_lengths)


def random_pairs(n, seed=0, longest=60, first=10):
    rng = np.random.default_rng(seed)
    source = np.clip(rng.lognormal(2.3, 0.6, n), 1, longest).astype(int)
    return Pairs(source, np.clip(source * rng.lognormal(0, 0.3, n), 1, longest).astype(int), first)


def make(stores, **changed):
    stores = stores if isinstance(stores, list) else [stores]
    given = {"batch_tokens": 512, "max_length": 64, "max_ratio": 9.0, "n_buckets": 5, "seed": 1}
    return Batches(stores, **given | changed)


def epoch(batches, e=0):
    n = batches.batches_per_epoch
    return [batches[step] for step in range(e * n, (e + 1) * n)]


def pair_of_rows(batch):
    return [row[0] for row in batch["target"] if row[0] != PAD]


SETUPS = [
    {"n": 1000},
    {"n": 1000, "batch_tokens": 2000, "accumulate": 2},
    {"n": 1003, "accumulate": 3, "n_buckets": 1},
    {"n": 997, "batch_tokens": 64},  # the smallest budget that fits the longest sentence
    {"n": 5, "batch_tokens": 25_000},
    {"n": 1, "n_buckets": 20},
    {"n": 300, "batch_tokens": 4096, "n_buckets": 64, "accumulate": 4},
]


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_each_pair_once_an_epoch_within_the_budget(setup):
    setup = dict(setup)
    pairs = random_pairs(setup.pop("n"))
    batches = make(pairs, **setup)
    budget, accumulate = setup.get("batch_tokens", 512), setup.get("accumulate", 1)
    assert batches.kept == len(pairs) and not any(batches.dropped.values())
    used = set()
    for e in (0, 1, 5):
        seen, partial, padding = [], 0, []
        for batch in epoch(batches, e):
            source, target = batch["source"], batch["target"]
            used.add((source.shape, target.shape))
            assert source.dtype == target.dtype == np.int32 and len(source) == len(target)
            assert source.size <= budget and target.size <= budget
            assert len(source) % accumulate == 0 and (
                len(source) % (8 * accumulate) == 0 or len(source) < 8 * accumulate
            )
            rows = pair_of_rows(batch)
            partial += len(rows) < len(source)
            assert not source[len(rows) :].any() and not target[len(rows) :].any()
            for r, first in enumerate(rows):
                i = first - 10
                assert (
                    source[r].tolist() == ([first] * pairs.source_lengths[i] + [EOS] + [PAD] * 999)[: source.shape[1]]
                )
                assert (
                    target[r].tolist() == ([first] * pairs.target_lengths[i] + [EOS] + [PAD] * 999)[: target.shape[1]]
                )
                assert EOS in source[r] and EOS in target[r]
            seen += rows
            padding += [np.mean(np.concatenate([source, target], 1) == PAD)] * source[0].size
        assert sorted(seen) == list(range(10, 10 + len(pairs)))
        assert partial <= 1
    assert used == {tuple(shape.values()) for shape in batches.shapes} and len(batches.shapes) <= setup.get(
        "n_buckets", 5
    )


def test_padding_is_the_share_of_padded_positions():
    batches = make(random_pairs(2000))
    ids = np.concatenate([side.ravel() for batch in epoch(batches) for side in batch.values()])
    assert batches.padding == pytest.approx(np.mean(ids == PAD), abs=1e-12)
    assert batches.padding < make(random_pairs(2000), n_buckets=1).padding - 0.2


def test_shapes_do_not_outgrow_a_small_corpus():
    batches = make(random_pairs(30), batch_tokens=25_000)
    assert batches.batches_per_epoch == 1 and batches.shapes[0]["source"][0] == 32


def test_buckets_are_the_best_there_are():
    rng = np.random.default_rng(3)
    for _ in range(20):
        source, target = rng.integers(2, 41, (2, 60))
        longer, ends = np.maximum(source, target), np.arange(4, 45, 4)

        def positions(boundaries, source=source, target=target, longer=longer):
            total, done = 0, np.zeros(len(longer), bool)
            for end in boundaries:
                inside = (longer <= end) & ~done
                widths = [-(-side[longer <= end].max(initial=0) // 4) * 4 for side in (source, target)]
                total += inside.sum() * sum(widths)
                done |= inside
            return total if done.all() else np.inf

        for n in (1, 2, 3):
            best = min(positions(choice) for k in range(1, n + 1) for choice in itertools.combinations(ends, k))
            chosen = length_buckets(source, target, n)
            assert positions(chosen) == best and len(chosen) <= n and list(chosen) == sorted(set(chosen))
    long = length_buckets(np.array([3, 70, 130]), np.array([2, 60, 131]), 9)
    assert long == (4, 72, 136)  # multiples of 4 up to 64, then of 8


def test_dropped_pairs_are_counted_by_reason():
    #                     kept empty empty long long ratio ratio kept(9 = 18/2)
    pairs = Pairs([5, 0, 99, 63, 64, 2, 28, 17], [5, 3, 0, 64, 63, 27, 2, 1])
    batches = make(pairs)
    assert batches.dropped == {"empty": 2, "too long": 2, "ratio": 2} and batches.kept == 2
    assert sorted(pair_of_rows(batches[0])) == [10, 17]
    with pytest.raises(UserError, match=r"no training pair is left of 3 \(2 empty, 1 too long, 0 ratio\)"):
        make(Pairs([0, 5, 99], [5, 0, 99]))
    with pytest.raises(UserError, match=r"no training pair is left of 0"):
        make(Pairs([], []))
    with pytest.raises(UserError, match=r"train\.batch_tokens = 100: too small for 2 micro-batches"):
        make(Pairs([59], [59]), batch_tokens=100, accumulate=2)


def test_a_budget_of_exactly_the_longest_sentence():
    batches = make(
        Pairs([98], [3]), max_length=99, max_ratio=99, batch_tokens=198, accumulate=2
    )  # not rounded up to 104
    assert batches.shapes == ({"source": (2, 99), "target": (2, 4)},)


def order(batches, epochs):
    n = batches.batches_per_epoch
    return [batches.lines(step).tolist() for e in epochs for step in range(e * n, (e + 1) * n)]


def test_order_rests_on_seed_epoch_and_step_alone():
    pairs = random_pairs(500)
    one, two = make(pairs), make(pairs)
    n = one.batches_per_epoch
    backwards = [two.lines(step).tolist() for step in reversed(range(3 * n))][::-1]
    assert order(one, (0, 1, 2)) == backwards
    assert order(one, (0,)) != order(one, (1,)) != order(one, (2,))
    assert order(one, (0,)) != order(make(pairs, seed=2), (0,))
    assert one.locate(0) == (0, 0) and one.locate(n - 1) == (0, n - 1) and one.locate(2 * n + 3) == (2, 3)
    # Another epoch has other groups of pairs, not the same in another order. Batches are not sorted by length.
    assert not {frozenset(map(tuple, b)) for b in order(one, (0,))} & {
        frozenset(map(tuple, b)) for b in order(one, (1,))
    }
    widths = [batch["source"].shape[1] for batch in epoch(one)]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


def test_order_is_the_same_in_every_version_of_numpy():
    """A run resumed after an upgrade of numpy keeps its order. A changed digest would break this silently."""
    number = np.arange(500)
    batches = make(Pairs(3 + number * 7919 % 50, 3 + number * 104729 % 50), seed=7, n_buckets=3, max_ratio=99)
    rows = np.concatenate([batches.lines(step) for step in range(3 * batches.batches_per_epoch)])
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    assert digest == "648500da410bae8c73a7ca869dbaa7a52c7509d09052f613bb1bb1a6e8acc767"


def test_rows_name_cache_and_line():
    stores = [random_pairs(50, 1, first=1000), random_pairs(70, 2, first=2000), random_pairs(9, 3, first=3000)]
    stores[0].source_lengths[7] = 0  # dropped: the indices of the others stay
    stores[0] = Pairs(stores[0].source_lengths, stores[0].target_lengths, 1000)
    batches = make(stores)
    assert batches.kept == 128
    seen = set()
    for step in range(batches.batches_per_epoch):
        rows, batch = batches.lines(step), batches[step]
        first = pair_of_rows(batch)
        assert [1000 * (c + 1) + line for c, line in rows] == first
        for r, (c, line) in enumerate(rows):
            for side in ("source", "target"):
                length = getattr(stores[c], f"{side}_lengths")[line]
                assert (batch[side][r] == first[r]).sum() == length and batch[side][r][length] == EOS
        seen |= set(map(tuple, rows.tolist()))
    assert len(seen) == 128 and (0, 7) not in seen


def test_weights():
    stores = [random_pairs(400, 1), random_pairs(300, 2), random_pairs(200, 3)]
    batches = make(stores, weights=(1, 2.25, 0.5), n_buckets=4)
    drawn = []
    for e in range(4):
        counts = Counter(map(tuple, itertools.chain.from_iterable(order(batches, (e,)))))
        assert all(counts[0, i] == 1 for i in range(400))
        assert {counts[1, i] for i in range(300)} == {2, 3}
        assert {counts[2, i] for i in range(200)} == {0, 1}
        for c, once, expected in ((1, 2, 75), (2, 0, 100)):  # rounded up in each of at most 4 buckets
            extra = {i for i in range(len(stores[c])) if counts[c, i] > once}
            assert expected <= len(extra) <= expected + 4
            drawn.append(extra)
        assert sum(counts.values()) == sum(len(rows) for rows in order(batches, (e,)))
    assert len(set(map(frozenset, drawn))) == 8  # drawn anew in each epoch
    everything = set().union(*drawn[1::2])
    assert len(everything) > 170  # 1 - 1/16 of 200 are expected


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_iterate_yields_the_batches_in_order_under_any_number_of_threads(threads):
    batches = make(random_pairs(300))
    start, stop = batches.batches_per_epoch - 3, batches.batches_per_epoch + 9  # over the end of an epoch
    iterator = iterate(batches.__getitem__, start=start, stop=stop, threads=threads, prefetch=6)
    for step in range(start, stop):
        assert iterator.get_state() == {"next_index": step}  # the position of the consumer, not of the threads
        batch = next(iterator)
        assert all(np.array_equal(batch[side], batches[step][side]) for side in ("source", "target"))
    assert next(iterator, None) is None
    iterator.close()


def test_resume_from_the_iterators_state():
    batches = make(random_pairs(300))
    whole = iterate(batches.__getitem__, start=0, stop=40, threads=2, prefetch=5)
    for _ in range(17):
        next(whole)
    again = iterate(make(random_pairs(300)).__getitem__, start=0, stop=40, threads=3, prefetch=9)
    next(again)
    again.set_state(whole.get_state())
    for one, two in zip(whole, again, strict=True):
        assert np.array_equal(one["source"], two["source"]) and np.array_equal(one["target"], two["target"])
    assert whole.get_state() == again.get_state() == {"next_index": 40}


def test_an_open_iterator_does_not_hold_up_the_exit():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_batching import *\n"
        "read = make(random_pairs(2000)).__getitem__\n"
        "it = iterate(read, start=3, stop=10**9, threads=4, prefetch=64); next(it); print('ok')"
    )
    env = os.environ | {"PYTHONPATH": str(Path(transformer.__file__).parents[1])}
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_evaluation_has_every_pair_once_shortest_first():
    pairs = random_pairs(333)
    pairs = Pairs([0, 3, 0, 900, *pairs.source_lengths], [4, 0, 0, 2, *pairs.target_lengths])
    for budget, n_buckets in ((512, 4), (10_000, 6), (2000, 1)):
        seen, longest, shapes = 0, 0, set()
        for batch in evaluation_batches(pairs, batch_tokens=budget, n_buckets=n_buckets):
            source, target = batch["source"], batch["target"]
            assert max(source.size, target.size) <= max(budget, 904)
            shapes.add(source.shape + target.shape)
            real = source[:, 0] != PAD
            assert ((target[:, 0] != PAD) == real).all()
            seen += real.sum()
            assert ((source == EOS).sum(1) == real).all() and ((target == EOS).sum(1) == real).all()
            lengths = np.maximum((source != PAD).sum(1), (target != PAD).sum(1))[real]
            assert (np.diff([longest, *lengths]) >= 0).all()
            longest = lengths[-1]
        assert seen == 337 and longest == 901 and len(shapes) <= n_buckets
        short = list(evaluation_batches(pairs, batch_tokens=budget, n_buckets=n_buckets, max_length=900))
        assert sum((batch["source"][:, 0] != PAD).sum() for batch in short) == 336  # all except one
        assert max(max(batch["source"].shape[1], batch["target"].shape[1]) for batch in short) < 900
    assert too_long(pairs, 900).tolist() == [3] and not len(too_long(pairs, 901))
    assert list(evaluation_batches(pairs, batch_tokens=512, n_buckets=4, max_length=0)) == []
    assert list(evaluation_batches(Pairs([], []), batch_tokens=512, n_buckets=4)) == []
    [only] = evaluation_batches(Pairs([0], [0]), batch_tokens=512, n_buckets=4)
    assert only["source"][0].tolist() == [EOS, PAD, PAD, PAD] and not only["source"][1:].any()


@pytest.mark.skipif("TRANSFORMER_DATA" not in os.environ, reason="TRANSFORMER_DATA names no folder of corpora")
def test_padding_on_multi30k(tmp_path, report):
    from transformer.data.text import Parallel
    from transformer.data.tokenizer import tokenizer
    from transformer.data.tokens import tokenize

    folder = Path(os.environ["TRANSFORMER_DATA"]) / "multi30k/raw"
    text = Parallel(str(folder / "train.en.gz"), str(folder / "train.de.gz"))
    config = DataConfig(cache_dir=str(tmp_path))
    store = tokenize(text, tokenizer(config, (text,)), folder=tmp_path, workers=1)
    batches = make(store, batch_tokens=8_192, max_length=config.max_length, n_buckets=config.length_buckets)
    report(f"Multi30k: {batches.padding:.1%} padding in {len(batches.shapes)} shapes")
    assert len(store) == batches.kept == 29_000
    assert batches.padding < 0.2


def test_outliers_move_up_so_that_shorter_sources_need_less_padding():
    rng = np.random.default_rng(0)
    target = rng.integers(10, 200, 3_000)
    source = np.where(rng.random(3_000) < 0.02, target, target // 2)  # a few sources are as long as their targets
    kept = Pairs(source, target)
    options = {"batch_tokens": 4_096, "max_length": 201, "max_ratio": np.inf, "n_buckets": 6, "seed": 0}
    plain, moved = Batches([kept], **options), Batches([kept], **options, outliers=0.05)
    assert moved.padding < plain.padding - 0.05
    seen = Counter(int(line) for step in range(moved.batches_per_epoch) for line in moved.lines(step)[:, 1])
    assert seen == Counter(range(3_000))
    for step in range(moved.batches_per_epoch):
        batch = moved[step]
        for row, pair in enumerate(moved.lines(step)[:, 1]):
            assert (batch["source"][row] == pair + 10).sum() == source[pair]
            assert (batch["target"][row] == pair + 10).sum() == target[pair]
