"""BPE dropout: merges left out at random, in batches whose shapes stay."""

from pathlib import Path

import numpy as np
import pytest

from transformer.config import EOS, PAD, UserError
from transformer.data.batching import Batches
from transformer.data.bpe_dropout import BpeDropout
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer
from transformer.data.tokens import TokenStore, tokenize

WORDS = "the quick brown foxes jumped over lazy dogs while seventeen musicians were playing unhurried melodies 1999 öäü"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS.split(), rng.integers(1, 15))) + " …" * (i % 50 == 0) for i in range(600)]


@pytest.fixture(scope="module")
def tokenizer(lines) -> Tokenizer:
    return Tokenizer.train(lines[1:], vocab_size=390)


@pytest.fixture(scope="module")
def store(lines, tokenizer: Tokenizer, tmp_path_factory) -> TokenStore:
    folder = tmp_path_factory.mktemp("text")
    for name, side in (("source", lines), ("target", lines[::-1])):
        (folder / name).write_text("".join(line + "\n" for line in side))
    return tokenize(Parallel(str(folder / "source"), str(folder / "target")), tokenizer, folder=folder, workers=1)


def test_without_dropout_the_pieces_are_those_of_sentencepiece(lines, tokenizer: Tokenizer) -> None:
    none = BpeDropout(tokenizer, 0.0, 0)
    for ids in tokenizer.encode([*lines, "unseen Zebras ☃ \u2581", "a" * 300, "fox" * 40]):
        assert none(ids, 10_000, 0) == ids


def test_everything_is_left_out_at_a_rate_near_1(lines, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(lines[:50])
    cut = [BpeDropout(tokenizer, 0.9999, 0)(one, 10_000, i) for i, one in enumerate(ids)]
    assert sum(map(len, cut)) > 0.99 * sum(len(f" {line}") for line in lines[1:50])
    assert tokenizer.decode(cut) == tokenizer.decode(ids)


def test_the_share_of_merges_left_out(tokenizer: Tokenizer) -> None:
    """A word of two characters is one piece, unless its only merge is left out."""
    dropout = BpeDropout(tokenizer, 0.3, 5)
    merged = next(id for id in range(4, tokenizer.vocab_size) if len(dropout._symbols[id]) == 2)
    cut = [len(dropout([merged], 10, 0, i)) for i in range(4_000)]
    assert np.mean([size == 2 for size in cut]) == pytest.approx(0.3, abs=0.03)


def test_pieces_follow_from_seed_epoch_pair_and_side(store: TokenStore, tokenizer: Tokenizer) -> None:
    ids = store.source(3).tolist()
    dropout = BpeDropout(tokenizer, 0.3, 1)
    assert dropout(ids, 1_000, 2, 3, 0) == BpeDropout(tokenizer, 0.3, 1)(ids, 1_000, 2, 3, 0)
    others = [(1, (3, 3, 0)), (1, (2, 4, 0)), (1, (2, 3, 1)), (2, (2, 3, 0))]
    found = [tuple(BpeDropout(tokenizer, 0.3, seed)(ids, 1_000, *where)) for seed, where in others]
    assert len({*found, tuple(dropout(ids, 1_000, 2, 3, 0))}) == 5


def test_a_limit_keeps_words_whole(store: TokenStore, tokenizer: Tokenizer) -> None:
    dropout, ids = BpeDropout(tokenizer, 0.5, 1), store.source(7).tolist()
    sizes = []
    for limit in range(len(ids), 3 * len(ids)):
        cut = dropout(ids, limit, 0, 0, 0)
        sizes.append(len(cut))
        assert len(cut) <= limit
        assert tokenizer.decode([cut]) == tokenizer.decode([ids])
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("packing", [False, True])
def test_batches_hold_every_pair_cut_anew_in_each_epoch(store: TokenStore, tokenizer: Tokenizer, packing: bool) -> None:
    def batches(dropout: BpeDropout | None) -> Batches:
        size = {"batch_tokens": 800, "max_length": 64, "max_ratio": 30.0, "n_buckets": 3}
        return Batches([store], **size, packing=packing, dropout=dropout, seed=3)

    made, plain = batches(BpeDropout(tokenizer, 0.05, 3)), batches(None)

    def epoch(batches: Batches, number: int) -> list[tuple[list[int], list[int]]]:
        pairs, count = [], batches.batches_per_epoch
        for step in range(number * count, (number + 1) * count):
            batch = batches[step]
            assert {name: array.shape for name, array in batch.items()} == batches.shape(step)
            pairs += zip(*(sentences(batch[side]) for side in ("source", "target")), strict=True)
        return pairs

    whole, first, second = epoch(plain, 0), epoch(made, 0), epoch(made, 1)
    texts = [
        sorted(zip(*(tokenizer.decode(side) for side in zip(*e, strict=True)), strict=True))
        for e in (whole, first, second)
    ]
    assert texts[0] == texts[1] == texts[2]
    sizes = [sum(len(ids) for pair in e for ids in pair) for e in (whole, first, second)]
    assert 1.1 < sizes[1] / sizes[0] < 1.6 and 1.1 < sizes[2] / sizes[0] < 1.6
    assert sorted(first) != sorted(second)
    part = made.read(1, 1, 3)
    for side, array in made[1].items():
        np.testing.assert_array_equal(part[side], array[1:3])
    assert made.digest() != plain.digest() != batches(BpeDropout(tokenizer, 0.1, 3)).digest()


def sentences(rows: np.ndarray) -> list[list[int]]:
    """The sentences of an array, row by row, without EOS and padding."""
    found: list[list[int]] = [[]]
    for id in rows[rows != PAD].tolist():
        if id == EOS:
            found.append([])
        else:
            found[-1].append(id)
    return found[:-1]


def test_pieces_of_another_kind_are_refused(store: TokenStore, tokenizer: Tokenizer, lines, tmp_path: Path) -> None:
    import sentencepiece

    BpeDropout(tokenizer, 0.1, 0).check(store)
    prefix = str(tmp_path / "unigram")
    options = {"model_type": "unigram", "vocab_size": 60, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=prefix, **options)
    other = Tokenizer.load(f"{prefix}.model")
    for side in ("source", "target"):
        (tmp_path / side).write_text("".join(line + "\n" for line in lines))
    text = tokenize(Parallel(str(tmp_path / "source"), str(tmp_path / "target")), other, folder=tmp_path, workers=1)
    with pytest.raises(UserError, match=r"data\.bpe_dropout = 0\.1: the tokenizer's pieces are not those of BPE"):
        BpeDropout(other, 0.1, 0).check(text)
