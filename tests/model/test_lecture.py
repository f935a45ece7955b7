"""A lecture on attention: seven facts, each with its proof in words and a test on the parameters of a real model.

A language model turns each piece of a text into a vector x of d numbers. In each block, attention adds to every vector
something that it reads from the vectors before it. One attention has h heads, and each head n has four matrices:

    W_Q, W_K   d x d_head    query and key: they decide which position looks at which
    V_down     d x d_head    what is read from a position, in few numbers ("value")
    V_up       d_head x d    what these numbers add to the vector that reads ("output", the rows of this head)

For the T vectors of a text, X (T x d), head n computes

    A = softmax(X W_Q (X W_K)^T / sqrt(d_head))     the pattern, T x T; row t is about position t; 0 where s > t
    head_n(X) = A X V_down                           T x d_head
    attention(X) = sum over n of head_n(X) V_up      T x d

The tests compute this with NumPy in 64 bits, so that two sides of an equation agree to 1e-12, and once compare it with
the model's own layer, which computes in 32 bits. The model has GPT-2's structure, but for biases in attention.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params

from transformer.config import GPT2
from transformer.model import Run, build

D, HEADS, D_HEAD, T = 16, 4, 4, 7  # d = h * d_head
CONFIG = dataclasses.replace(
    GPT2, decoder_layers=2, d_model=D, d_ff=24, heads=HEADS, max_positions=12, vocab_size=13, attention_bias=False
)
TEXT = np.array([[5, 9, 4, 7, 12, 3, 1]])
EXACT = {"rtol": 0, "atol": 1e-12}
IN_32_BITS = {"rtol": 0, "atol": 2e-5}


@functools.cache
def model():
    """The model, and random parameters: a nested dict of arrays."""
    built = build(CONFIG)
    return built, random_params(built)


@pytest.fixture
def matrices() -> dict[str, np.ndarray]:
    """The matrices of the attention in the first block, in 64 bits. Axis 1 of query, key and value numbers the heads;
    of the output it is axis 0: its rows belong to the heads, d_head of them to each."""
    found = model()[1]["decoder"]["layers"]["0"]["self_attention"]
    return {name: np.asarray(matrix, np.float64) for name, matrix in found.items()}


@pytest.fixture
def X() -> np.ndarray:
    """The vectors of a text of seven pieces."""
    return np.random.default_rng(1).normal(size=(T, D))


def pattern(Q: np.ndarray, K: np.ndarray) -> np.ndarray:
    """The pattern of a head from its queries and keys: T x T, rows sum to 1, 0 above the diagonal."""
    scores = Q @ K.T / np.sqrt(Q.shape[1])
    scores[np.triu_indices(len(scores), 1)] = -np.inf
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def head(matrices: dict, X: np.ndarray, n: int) -> np.ndarray:
    """head_n(X): T x d_head."""
    A = pattern(X @ matrices["query"][:, n], X @ matrices["key"][:, n])
    return A @ X @ matrices["value"][:, n]


def attention(matrices: dict, X: np.ndarray) -> np.ndarray:
    """Multi-head attention as the paper writes it (§3.2.2): Concat(head_1, ..., head_h) W_O."""
    heads = [head(matrices, X, n) for n in range(matrices["query"].shape[1])]
    W_O = matrices["output"].reshape(-1, matrices["output"].shape[-1])  # (h * d_head) x d
    return np.concatenate(heads, axis=1) @ W_O


def test_the_lecture_speaks_of_the_real_layer(matrices: dict, X: np.ndarray) -> None:
    built, params = model()
    layer = built.bind(params).decoder.layers[0].self_attention
    x = jnp.asarray(X[None], jnp.float32)
    found, _ = layer(x, layer.kv(x), np.tril(np.ones((1, T, T), bool)))
    np.testing.assert_allclose(found[0], attention(matrices, X), **IN_32_BITS)


def test_1_the_heads_add_up(matrices: dict, X: np.ndarray) -> None:
    """Concat(head_1, ..., head_h) W_O = head_1 W_O^1 + ... + head_h W_O^h, where W_O^n are the rows of head n.

    A product of matrices sums over columns of the left and rows of the right one. Cut both into h parts: the sum falls
    into h sums. So heads do not mix. Each adds its own vector to the stream, as if it were alone.
    """
    one_by_one = sum(head(matrices, X, n) @ matrices["output"][n] for n in range(HEADS))
    np.testing.assert_allclose(attention(matrices, X), one_by_one, **EXACT)


def test_2_a_value_map_goes_down_and_up_again(matrices: dict, X: np.ndarray) -> None:
    """A head maps what it reads by one d x d matrix, V = V_down V_up, of rank at most d_head.

    A (X V_down) V_up = A X (V_down V_up): products of matrices may be bracketed in any way. Everything passes through
    d_head numbers, so V has rank at most d_head. In return it costs 2 d d_head numbers instead of d^2; in GPT-3 that is
    48 times fewer (`python -m transformer describe --attention --config configs/gpt3.py`).
    """
    for n in range(HEADS):
        V_down, V_up = matrices["value"][:, n], matrices["output"][n]
        V = V_down @ V_up
        A = pattern(X @ matrices["query"][:, n], X @ matrices["key"][:, n])
        np.testing.assert_allclose(head(matrices, X, n) @ V_up, A @ X @ V, **EXACT)
        singular_values = np.linalg.svd(V, compute_uv=False)
        assert singular_values[D_HEAD - 1] > 1e-3 and singular_values[D_HEAD:].max() < 1e-12
        assert V.size == D**2 and V_down.size + V_up.size == 2 * D * D_HEAD


def test_3_query_and_key_count_only_together(matrices: dict, X: np.ndarray) -> None:
    """The pattern depends on W_Q W_K^T alone: W_Q R and W_K R^-T give the same pattern for any invertible R.

    The scores are X W_Q W_K^T X^T / sqrt(d_head), and (W_Q R)(W_K R^-T)^T = W_Q R R^-1 W_K^T. So a single query
    vector, or a single key vector, has no meaning by itself; only their product has.
    """
    R = np.random.default_rng(2).normal(size=(D_HEAD, D_HEAD)) + 2 * np.eye(D_HEAD)
    changed = {name: matrix.copy() for name, matrix in matrices.items()}
    changed["query"][:, 0] = matrices["query"][:, 0] @ R
    changed["key"][:, 0] = matrices["key"][:, 0] @ np.linalg.inv(R).T
    assert np.abs(changed["query"] - matrices["query"]).max() > 0.1
    np.testing.assert_allclose(attention(changed, X), attention(matrices, X), **EXACT)
    np.testing.assert_allclose(logits(with_attention(changed)), logits(model()[1]), **IN_32_BITS)
    # A matrix that is not invertible loses something.
    R[:, 0] = 0
    changed["query"][:, 0] = matrices["query"][:, 0] @ R
    assert np.abs(attention(changed, X) - attention(matrices, X)).max() > 1e-3


def test_4_heads_have_no_order(matrices: dict, X: np.ndarray) -> None:
    """Heads may change places, if all four matrices of a head move together: a sum has no order (fact 1)."""
    order = [2, 0, 3, 1]
    moved = {name: matrix[:, order] for name, matrix in matrices.items() if name != "output"}
    moved["output"] = matrices["output"][order]
    np.testing.assert_allclose(attention(moved, X), attention(matrices, X), **EXACT)
    np.testing.assert_allclose(logits(with_attention(moved)), logits(model()[1]), **IN_32_BITS)
    # If the output matrix stays, heads write through the rows of others.
    moved["output"] = matrices["output"]
    assert np.abs(attention(moved, X) - attention(matrices, X)).max() > 1e-3


def test_5_many_small_heads_are_not_one_large_head(matrices: dict, X: np.ndarray) -> None:
    """h heads of size d / h have as many parameters as one head of size d, but compute another function.

    The same numbers fill both: h matrices of d x d_head side by side are one matrix of d x d. But h heads have h
    patterns, the large one a single pattern. No head shares a weight with another: if one changes, the vectors that the
    others add stay the same.
    """
    large = {name: matrix.reshape(D, 1, D) for name, matrix in matrices.items() if name != "output"}
    large["output"] = matrices["output"].reshape(1, D, D)
    alone = build(dataclasses.replace(CONFIG, heads=1)).abstract_params["decoder"]["layers"]["0"]["self_attention"]
    assert {name: matrix.shape for name, matrix in alone.items()} == {name: m.shape for name, m in large.items()}
    assert sum(m.size for m in matrices.values()) == sum(m.size for m in large.values()) == 4 * D * D
    assert np.abs(attention(large, X) - attention(matrices, X)).max() > 0.1

    changed = {name: matrix.copy() for name, matrix in matrices.items()}
    for name in ("query", "key", "value"):
        changed[name][:, 1] += 1
    for n in range(HEADS):
        same = np.array_equal(head(changed, X, n), head(matrices, X, n))
        assert same == (n != 1)


def test_6_no_position_sees_a_later_one() -> None:
    """The logits at position t do not depend on x_s for s > t: the gradient is exactly 0, not just small.

    The pattern is 0 above its diagonal, and all other layers treat each position by itself. So one pass over a text of
    T pieces is T exercises at once, "what comes next?", and none of them contains its own solution.
    """
    built, params = model()

    def all_logits(x_TD: jax.Array) -> jax.Array:
        module = built.bind(params)
        y_BTD, *_ = module.decoder(x_TD[None], jnp.tril(jnp.ones((1, T, T), bool)))
        return module.logits(y_BTD)[0]

    x_TD = jnp.asarray(np.random.default_rng(3).normal(size=(T, D)), jnp.float32)
    gradient = np.asarray(jax.jit(jax.jacrev(all_logits))(x_TD))  # of logits (t, piece) to x (s, dimension)
    largest = np.abs(gradient).max(axis=(1, 3))
    for t in range(T):
        assert (largest[t, t + 1 :] == 0).all() and (largest[t, : t + 1] > 1e-4).all()


def test_7_a_vector_takes_its_meaning_from_its_context() -> None:
    """The same piece at the same position of two texts has equal vectors at layer 0, and different ones from layer 1.

    Layer 0 is the embedding: it knows the piece and the position. Attention in the first block adds what stands
    before. In "the bank of the river" and "the bank of England", "bank" starts as one vector and becomes two as soon as
    the words before it differ.
    """
    built, params = model()
    other = np.array([[2, 8, 4, 7, 12, 3, 1]])  # two other pieces at the beginning
    layers = {}
    for name, text in (("one", TEXT), ("other", other)):
        layers[name] = []
        built.bind(params).hidden(text, run=Run(between=lambda x, found=layers[name]: found.append(np.asarray(x)) or x))
        assert len(layers[name]) == 1 + CONFIG.decoder_layers
    for i, (one, another) in enumerate(zip(layers["one"], layers["other"], strict=True)):
        difference = np.abs(one - another).max(axis=(0, 2))  # for each position
        assert (difference[:2] > 1e-3).all()
        assert (difference[2:] == 0).all() if i == 0 else (difference[2:] > 1e-4).all()


def with_attention(matrices: dict[str, np.ndarray]) -> dict:
    """The parameters of the model with other matrices in the attention of the first block."""
    params = jax.tree.map(lambda x: x, dict(model()[1]))
    params["decoder"]["layers"]["0"]["self_attention"] = {
        name: jnp.asarray(matrix, jnp.float32) for name, matrix in matrices.items()
    }
    return params


def logits(params: dict) -> np.ndarray:
    """The model's own logits for the text, in 32 bits."""
    return np.asarray(jax.jit(model()[0].apply)(params, TEXT))
