"""Algorithmic tasks: instances are right, and each RASP-L program solves 1,000 of them."""

import numpy as np
import pytest

from transformer.config import BOS, EOS
from transformer.data.algorithms import (
    BITS,
    EVEN,
    FIRST,
    ODD,
    PLUS,
    SEP,
    ZERO,
    Algorithm,
    addition,
    conjunction,
    copy,
    count,
    mode,
    parity,
    sort,
)
from transformer.data.rasp import aggregate, first_where, kqv, seen, select, shifted, width

ALL = [
    *(count(), mode(2), mode(26), sort(), copy(), copy(10, repeated=True), parity(), parity(scratchpad=True)),
    *(addition(hints=h, reverse=r) for h in (False, True) for r in (False, True)),
    *(conjunction(3), conjunction(3, training=False)),
]
SOLVED = [one for one in ALL if one.program is not None]


def lengths(one: Algorithm, rng: np.random.Generator, count: int) -> list[int]:
    return [BITS] * count if one.name == "and" else rng.integers(1, 61, size=count).tolist()


@pytest.mark.parametrize("one", SOLVED, ids=lambda one: one.name)
def test_the_program_solves_the_task(one: Algorithm) -> None:
    rng = np.random.default_rng(0)
    for length in lengths(one, rng, 1_000):
        instance = one.draw(rng, length)
        ids = np.array(instance.ids)
        begin = len(instance.prompt) + 1
        np.testing.assert_array_equal(one.program(ids)[begin:-1], ids[begin + 1 :])


@pytest.mark.parametrize("one", SOLVED, ids=lambda one: one.name)
def test_a_program_sees_only_what_came_before(one: Algorithm) -> None:
    """What a program says at a position does not change with what follows."""
    rng = np.random.default_rng(1)
    ids = np.array(one.draw(rng, lengths(one, rng, 1)[0]).ids)
    whole = one.program(ids)
    for end in range(len(ids) - 3, len(ids)):
        np.testing.assert_array_equal(one.program(ids[:end]), whole[:end])


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_ids_lie_in_the_vocabulary_and_vary(one: Algorithm) -> None:
    rng = np.random.default_rng(0)
    sizes = lengths(one, rng, 200)
    drawn = [one.draw(rng, length) for length in sizes]
    assert all(FIRST <= id < one.vocab_size for instance in drawn for id in instance.prompt + instance.answer)
    assert len({tuple(instance.prompt) for instance in drawn}) > 20
    assert all(len(instance.ids) <= one.size(n) for n, instance in zip(sizes, drawn, strict=True))
    assert drawn[0].ids[0] == BOS
    assert drawn[0].ids[-1] == EOS
    assert drawn[0].ids.count(SEP) == 1


def test_the_tasks_by_hand() -> None:
    rng = np.random.default_rng(0)
    prompt, answer = count().draw(rng, 4)
    assert answer == [prompt[0], prompt[0] + 1, prompt[0] + 2, prompt[1]]
    prompt, answer = sort().draw(rng, 9)
    assert answer == sorted(set(prompt))
    assert len(prompt) == 9
    prompt, answer = copy(10, repeated=True).draw(rng, 30)
    assert prompt == answer
    assert len(set(prompt)) < 30
    prompt, answer = mode(2).draw(rng, 7)
    assert prompt.count(answer[0]) > 3
    prompt, answer = parity().draw(rng, 12)
    assert answer == [EVEN + prompt.count(ODD) % 2]
    prompt, answer = parity(scratchpad=True).draw(rng, 12)
    assert answer[-1] == EVEN + prompt.count(ODD) % 2
    assert answer[1::2] == [hint for hint, bit in zip(prompt[::2], prompt[1::2], strict=True) if bit == ODD]
    prompt, answer = addition().draw(rng, 5)
    one, other = "".join(str(id - ZERO) if id != PLUS else " " for id in prompt).split()
    assert "".join(str(id - ZERO) for id in answer) == str(int(one) + int(other)).zfill(6)
    prompt, answer = addition(hints=True, reverse=True).draw(rng, 5)
    one, other = ("".join(str(id - ZERO) for id in part[1::2]) for part in (prompt[:10], prompt[11:]))
    assert "".join(str(id - ZERO) for id in answer[1::2])[::-1] == str(int(one) + int(other)).zfill(6)
    assert answer[::2] == [*prompt[8::-2], prompt[0] - 1]
    longer = addition().draw(rng, 5_000)  # than there are hints, and than `int` reads
    assert len(longer.prompt) == 10_001 and len(longer.answer) == 5_001


def test_and_differs_from_what_training_shows() -> None:
    """In training both labels are common and five bits are always 1; the others decide nothing there."""
    rng = np.random.default_rng(0)
    training = np.array([conjunction(7).draw(rng, BITS).ids for _ in range(2_000)])
    labels = training[:, -2] == ODD
    assert 0.4 < labels.mean() < 0.6
    always = (training[:, 1 : BITS + 1] == ODD).all(axis=0)
    assert always.sum() == 5
    other = np.array([conjunction(7, training=False).draw(rng, BITS).ids for _ in range(2_000)])
    assert (other[:, 1 : BITS + 1][:, ~always] == ODD).all()
    assert (other[:, -2] == EVEN).all()
    assert len(np.unique(other, axis=0)) == 31  # the patterns that decide


def test_the_functions_of_rasp() -> None:
    x = np.array([3, 1, 3, 2])
    pattern = select(x, x, np.equal)
    assert pattern.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert width(pattern).tolist() == [1, 1, 2, 1]
    assert aggregate(select(x, x, np.greater), x, -1, "max").tolist() == [-1, 3, -1, 3]
    assert kqv(x, x, np.array([4, 5, 6, 7]), np.equal).tolist() == [4, 5, 5, 7]
    assert shifted(x, 0).tolist() == [0, 3, 1, 3]
    assert seen(x == 1).tolist() == [False, True, True, True]
    assert first_where(x == 3, np.array([4, 5, 6, 7])).tolist() == [4, 4, 4, 4]
    assert first_where(x == 1, np.array([4, 5, 6, 7]), -1).tolist() == [-1, 5, 5, 5]
