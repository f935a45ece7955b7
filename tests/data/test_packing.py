import hashlib
import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_batching import Pairs, make, order, random_pairs

from transformer.config import EOS, PAD, DataConfig, UserError
from transformer.data import packing
from transformer.data.packing import choose_row_lengths, pack, pack_cached


def lengths(n, seed=0, longest=60):
    pairs = random_pairs(n, seed, longest)
    return pairs.source_lengths + 1, pairs.target_lengths + 1


@pytest.mark.parametrize("n", [0, 1, 7, 900, 40_000])
@pytest.mark.parametrize("sides", [(64, 64), (61, 90), (200, 64)])
def test_each_pair_lies_in_one_row_that_has_room_for_it(n, sides):
    source, target = lengths(n)
    pairs, starts = pack(source, target, sides, seed=3)
    assert sorted(pairs.tolist()) == list(range(n))
    assert starts[0] == 0 and starts[-1] == n and (np.diff(starts) > 0).all()
    for begin, end in itertools.pairwise(starts):
        row = pairs[begin:end]
        assert source[row].sum() <= sides[0] and target[row].sum() <= sides[1]


def test_a_large_corpus_is_packed_once(monkeypatch, tmp_path, caplog):
    source, target = lengths(900)
    monkeypatch.setattr(packing, "_CACHED_FROM", 900)
    expected = pack(source, target, (64, 64), seed=3)
    calls = []
    monkeypatch.setattr(packing, "pack", lambda *given: calls.append(given) or pack(*given))

    def found(source=source, target=target, sides=(64, 64), seed=3, folder=tmp_path):
        return pack_cached(source, target, sides, seed, folder)

    for _ in range(2):
        for ours, theirs in zip(found(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(calls) == 1
    (folder,) = tmp_path.iterdir()
    kept = folder / "pairs.npy"
    # Everything that the rows depend on changes the name of the folder.
    found(seed=4), found(sides=(64, 65)), found(source=target, target=source)
    longer = source.copy()
    longer[0] += 1
    found(source=longer)
    assert len(calls) == 5 and len(list(tmp_path.iterdir())) == 5
    # Damaged rows are packed again; few pairs are not cached; an unwritable folder gives a warning.
    found(source[:800], target[:800])
    assert len(calls) == 6 and len(list(tmp_path.iterdir())) == 5
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    whole = kept.read_bytes()
    for harm in (whole[:-100], whole[:-9] + b"\1" + whole[-8:], whole[:40] + b"(" + whole[41:], b""):
        calls.clear()
        kept.write_bytes(harm)
        np.testing.assert_array_equal(found()[1], expected[1])
        assert len(calls) == 1 and "making packed rows again" in caplog.text
        np.testing.assert_array_equal(found()[0], expected[0])
        assert len(calls) == 1 and kept.read_bytes() == whole
        caplog.clear()
    (tmp_path / "no folder").touch()
    np.testing.assert_array_equal(found(folder=tmp_path / "no folder")[0], expected[0])
    assert "not kept for the next run" in caplog.text


def test_as_good_as_can_be_where_the_best_is_known():
    # These sizes can fill up rows exactly.
    size = np.repeat([32, 16, 8, 24, 40], [100, 200, 400, 100, 100])
    _, starts = pack(size, size, (64, 64), seed=0)
    assert size.sum() / 64 <= len(starts) - 1 <= 1.01 * size.sum() / 64
    # Pairs with a long source share rows with pairs with a long target.
    source, target = np.repeat([48, 16], 50), np.repeat([16, 48], 50)
    assert len(pack(source, target, (64, 64), seed=0)[1]) - 1 == 50


def test_the_seed_decides_who_shares_a_row_and_nothing_else_does():
    source, target = lengths(5_000)
    first, again, other = (pack(source, target, (64, 64), seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


def padding(source, target, sides):
    _, starts = pack(source, target, sides, seed=0)
    return 1 - (source.sum() + target.sum()) / ((len(starts) - 1) * sum(sides))


def test_rows_are_no_longer_than_they_need_be():
    source, target = lengths(20_000)
    S, T = choose_row_lengths(source, target, 1_000, seed=0)
    assert padding(source, target, (S, T)) < 0.03
    assert S % 8 == T % 8 == 0 and min(S, T) > 61
    assert padding(source, target, (S // 2, T // 2)) > 0.03
    assert max(choose_row_lengths(source, target, 100, seed=0)) <= 100  # at the cost of more padding
    S, T = choose_row_lengths(source, 2 * target, 1_000, seed=0)
    assert T > 1.7 * S  # both sides fill up
    # If all sentences have one awkward length, rows hold several of them.
    awkward = np.full(1000, 33)
    assert min(choose_row_lengths(awkward, awkward, 1_000, seed=0)) >= 2 * 33


def sentences_of(row):
    """The pieces of each sentence of a packed row."""
    ends = np.flatnonzero(row == EOS)
    assert not row[ends[-1] + 1 :].any() if len(ends) else not row.any()
    return [part.tolist() for part in np.split(row, ends + 1)[: len(ends)]]


@pytest.mark.parametrize(
    "setup", [{}, {"batch_tokens": 2000, "accumulate": 2}, {"batch_tokens": 80}, {"batch_tokens": 90_000}], ids=str
)
def test_batches_hold_each_pair_once_an_epoch(setup):
    stores = [random_pairs(700, 1, first=1_000), random_pairs(301, 2, first=2_000), random_pairs(0, 3)]
    batches = make(stores, packing=True, **setup)
    assert len(batches.shapes) == 1
    (rows, S), (_, T) = batches.shapes[0].values()
    budget, accumulate = setup.get("batch_tokens", 512), setup.get("accumulate", 1)
    assert rows * max(S, T) <= budget and rows % accumulate == 0
    lengths = {1_000 + i: (stores[0].source_lengths[i], stores[0].target_lengths[i]) for i in range(700)}
    lengths |= {2_000 + i: (stores[1].source_lengths[i], stores[1].target_lengths[i]) for i in range(301)}
    for e in (0, 2):
        seen, real = Counter(), 0
        for step in range(e * batches.batches_per_epoch, (e + 1) * batches.batches_per_epoch):
            batch = batches[step]
            assert batch["source"].shape == (rows, S) and batch["target"].shape == (rows, T)
            named = iter(batches.lines(step).tolist())
            for source, target in zip(batch["source"], batch["target"], strict=True):
                for own, translation in zip(sentences_of(source), sentences_of(target), strict=True):
                    number = own[0]
                    assert own == [number] * lengths[number][0] + [EOS]
                    assert translation == [number] * lengths[number][1] + [EOS]
                    store, line = next(named)
                    assert number == 1_000 * (store + 1) + line
                    seen[number] += 1
            assert next(named, None) is None
            real += sum((side != PAD).sum() for side in batch.values())
        assert seen == Counter(list(lengths))
        if e == 0:
            size = batches.batches_per_epoch * rows * (S + T)
            assert batches.padding == pytest.approx(1 - real / size)


def test_order_rests_on_seed_epoch_and_step_alone():
    one, two = (make(random_pairs(800), packing=True) for _ in range(2))
    n = one.batches_per_epoch
    backwards = [two.lines(step).tolist() for step in reversed(range(3 * n))][::-1]
    assert order(one, (0, 1, 2)) == backwards
    assert order(one, (0,)) != order(one, (1,))
    assert order(one, (0,)) != order(make(random_pairs(800), packing=True, seed=2), (0,))


def test_order_is_the_same_in_every_version_of_numpy():
    """A run resumed after an upgrade of numpy keeps its order. A changed digest would break this silently."""
    number = np.arange(5_000)
    pairs = Pairs(3 + number * 7919 % 50, 3 + number * 104729 % 50)
    batches = make(pairs, seed=7, max_ratio=99, packing=True)
    lines = np.concatenate([batches.lines(step) for step in range(2 * batches.batches_per_epoch)])
    digest = hashlib.sha256(lines.astype("<i8").tobytes()).hexdigest()
    assert digest == "3fa7d7152a9b51add2362fd31c0ad37305b856ec52b295101c378f670306190a"


def test_weights():
    stores = [random_pairs(400, 1), random_pairs(300, 2), random_pairs(200, 3)]
    batches = make(stores, weights=(1, 2.25, 0.5), packing=True)
    for e in range(3):
        counts = Counter(map(tuple, itertools.chain.from_iterable(order(batches, (e,)))))
        assert all(counts[0, i] == 1 for i in range(400))
        assert {counts[1, i] for i in range(300)} == {2, 3}
        assert {counts[2, i] for i in range(200)} == {0, 1}
        assert 60 <= sum(counts[1, i] == 3 for i in range(300)) <= 90
        assert 80 <= sum(counts[2, i] for i in range(200)) <= 120


def test_a_budget_too_small_for_a_row():
    with pytest.raises(UserError, match=r"^train.batch_tokens = 64: too small for 2 micro-batches of a row of packed"):
        make(random_pairs(500), packing=True, batch_tokens=64, accumulate=2)


@pytest.mark.skipif("TRANSFORMER_DATA" not in os.environ, reason="TRANSFORMER_DATA names no folder of corpora")
@pytest.mark.parametrize(
    "source",
    [
        "multi30k/raw/train.en.gz",
        "wmt_mini/news.en.gz",
        pytest.param("wmt_mini/tatoeba.en.gz", marks=pytest.mark.slow),
        pytest.param("wmt_mini/europarl.en.gz", marks=pytest.mark.slow),
    ],
)
def test_padding_of_real_text(tmp_path, report, source):
    from transformer.data.text import Parallel
    from transformer.data.tokenizer import tokenizer
    from transformer.data.tokens import tokenize

    path = str(Path(os.environ["TRANSFORMER_DATA"]) / source)
    text = Parallel(path, path.replace(".en", ".de"))
    config = DataConfig(cache_dir=str(tmp_path))
    store = tokenize(text, tokenizer(config, (text,)), folder=tmp_path, workers=1)
    batches = make(store, batch_tokens=8_192, max_length=config.max_length, packing=True)
    ((_, S), (_, T)), *more = (shape.values() for shape in batches.shapes)
    report(f"{source}: {batches.padding:.1%} padding, packed into rows of {S} and {T}")
    assert not more and batches.padding < 0.03
