"""Every output of a search under `TreeConstraint` is a tree over exactly the words, whatever the model predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit

from transformer.config import BOS, EOS, PAD
from transformer.data.linearised import Symbols
from transformer.inference.beam_search import beam_search, best_candidates
from transformer.inference.sampling import sampled
from transformer.inference.transitions import MOST_OPENED, TreeConstraint

LABELS = ("A", "B", "C")
WORDS = (1, 2, 3, 7, 20, 40)


@functools.partial(jit, static_argnames=("M", "form", "length", "sample"))
def search(key, scale, lean, limits, *, M, form, length, sample):
    """Random logits, other ones at each step and for each row; `lean` favours one kind of symbol."""
    symbols = Symbols(form, LABELS, ("NN",))
    constraint = TreeConstraint(symbols.shift, symbols.opening, symbols.closing)

    def step(tokens_X, cache, at):
        logits_XV = scale * jax.random.normal(jax.random.fold_in(key, at), (len(tokens_X), symbols.size))
        logits_XV += lean * jnp.isin(jnp.arange(symbols.size), jnp.arange(symbols.opening.start, symbols.size))
        return jax.nn.log_softmax(logits_XV), cache

    words_B = jnp.array(WORDS)
    return beam_search(
        step, jnp.zeros(len(WORDS) * M), limits, max_length=length, beam_size=M, bos=BOS, eos=EOS, pad=PAD, n_best=M,
        length_normalization="none", adjust=constraint.adjust,
        given={"words_B": words_B, "number_B": jnp.arange(len(WORDS))},
        choose=sampled(key, temperature=1.0, top_k=0, top_p=1.0) if sample else best_candidates,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["transitions", "brackets"])
@pytest.mark.parametrize("M", [1, 4])
@pytest.mark.parametrize("sample", [False, True])
def test_every_output_is_a_tree(form: str, M: int, sample: bool) -> None:
    symbols = Symbols(form, LABELS, ("NN",))
    for seed, (scale, lean, tight) in enumerate(
        [(1, 0, False), (5, 0, False), (1, 20, False), (1, -20, False), (3, 20, True), (0, 0, True)]
    ):
        words = np.array(WORDS)
        limits = words + 3 + seed if tight else 4 * words + 16
        found = search(
            *(jax.random.key(seed), float(scale), float(lean), jnp.asarray(limits, jnp.int32)),
            **{"M": M, "form": form, "length": 4 * max(WORDS) + 16, "sample": sample},
        )
        for b, count in enumerate(WORDS):
            lengths = np.asarray(found.lengths_BM[b])
            assert lengths[0] > 0
            for m in np.flatnonzero(lengths):
                ids = np.asarray(found.tokens_BML[b, m, : lengths[m]]).tolist()
                assert ids.pop() == EOS
                # Raises ValueError if it is no tree over all words.
                symbols.decode(ids, ["w"] * count, ["NN"] * count)
                opened = "".join("o" if i in symbols.opening else "." for i in ids)
                assert "o" * (MOST_OPENED + 1) not in opened


def test_the_end_costs_nothing() -> None:
    """Where a tree is complete, the end is certain: its log-probability is 0, whatever the model says."""
    symbols = Symbols("transitions", ("A",), ("NN",))
    constraint = TreeConstraint(symbols.shift, symbols.opening, symbols.closing)

    def step(tokens_X, cache, at):
        return jnp.full((1, symbols.size), -1.0), cache

    found = beam_search(
        step, jnp.zeros(1), jnp.array([20]), max_length=20, beam_size=1, bos=BOS, eos=EOS, pad=PAD,
        length_normalization="none", adjust=constraint.adjust, given={"words_B": jnp.array([1])},
    )  # fmt: skip
    ids = found.tokens_BML[0, 0, : int(found.lengths_BM[0, 0])].tolist()
    assert float(found.scores_BM[0, 0]) == -(len(ids) - 1.0)
