import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit

from transformer.training.loss import cross_entropy, divergence

RNG = np.random.default_rng(0)


def naive(logits, target, weights, smoothing):
    """The definition: cross-entropy with 1 - smoothing on the target plus smoothing / V on all V pieces."""
    V = logits.shape[-1]
    distribution = (1 - smoothing) * jax.nn.one_hot(target, V) + smoothing / V
    log_probs = jax.nn.log_softmax(logits)
    return -(distribution * log_probs).sum(axis=-1) @ weights


def of_logits(logits, target, weights, **options):
    """`cross_entropy` of given logits, with the identity as the table."""
    return cross_entropy(logits, jnp.eye(logits.shape[-1]), target, weights, **options)


def test_by_hand():
    """Probabilities 0.1, 0.2, 0.3 and 0.4; the logits are their logarithms, shifted."""
    logits = jnp.log(jnp.array([[[1.0, 2.0, 3.0, 4.0]]])) + 5
    one = jnp.ones((1, 1))
    # -ln 0.4
    loss, nll = of_logits(logits, jnp.array([[3]]), one)
    np.testing.assert_allclose([loss, nll], 0.9162907, rtol=1e-6)
    # -0.9 ln 0.4 - 0.025 (ln 0.1 + ln 0.2 + ln 0.3 + ln 0.4)
    loss, nll = of_logits(logits, jnp.array([[3]]), one, smoothing=0.1)
    np.testing.assert_allclose([loss, nll], [0.9754688, 0.9162907], rtol=1e-6)
    # -0.6 ln 0.1 - 0.1 (...)
    loss, nll = of_logits(logits, jnp.array([[0]]), one, smoothing=0.4)
    np.testing.assert_allclose([loss, nll], [1.9847797, 2.3025851], rtol=1e-6)


def test_uniform_logits_cost_log_v_whatever_the_smoothing():
    for smoothing in (0.0, 0.1, 0.5):
        sums = of_logits(jnp.full((2, 3, 7), 4.0), jnp.zeros((2, 3), int), jnp.ones((2, 3)), smoothing=smoothing)
        np.testing.assert_allclose(sums, 6 * np.log(7), rtol=1e-6)


def test_the_best_loss_is_the_entropy_of_the_smoothed_distribution():
    """The model reaches it by predicting exactly that distribution. The gradient is zero there."""
    smoothed = np.full(5, 0.02)
    smoothed[1] = 0.92
    logits = jnp.asarray(np.log(smoothed), jnp.float32)[None, None]
    one, target = jnp.ones((1, 1)), jnp.array([[1]])
    (loss, _), grad = jax.value_and_grad(of_logits, has_aux=True)(logits, target, one, smoothing=0.1)
    np.testing.assert_allclose(loss, -(smoothed * np.log(smoothed)).sum(), rtol=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-7)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_bias_is_added_to_the_logits_of_each_position(parts):
    x, table = RNG.normal(size=(3, 4, 5)).astype(np.float32), RNG.normal(size=(11, 5)).astype(np.float32)
    bias, weights = RNG.normal(size=11).astype(np.float32), RNG.random((3, 4)).astype(np.float32)
    target = RNG.integers(0, 11, size=(3, 4))

    def ours(x, table, bias):
        return cross_entropy(x, table, target, weights, bias, smoothing=0.1, parts=parts)[0]

    def theirs(x, table, bias):
        logits = (x @ table.T + bias).reshape(12, 11)
        return naive(logits, target.reshape(-1), weights.reshape(-1), 0.1)

    found, expected = (jax.value_and_grad(loss, argnums=(0, 1, 2))(x, table, bias) for loss in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)
    np.testing.assert_allclose(ours(x, table, bias), expected[0], rtol=1e-5)  # without a gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_those_of_the_definition(smoothing):
    logits = RNG.normal(size=(3, 4, 11)).astype(np.float32) * 3
    target = RNG.integers(0, 11, size=(3, 4))
    weights = RNG.choice([0.0, 1.0, 2.5], size=(3, 4)).astype(np.float32)
    weights[0, 0], weights[1, 1] = 0.0, 2.5

    def ours(logits):
        loss, nll = of_logits(logits, target, weights, smoothing=smoothing)
        return 3 * loss, nll  # a cotangent that is not 1

    def theirs(logits):
        return 3 * naive(logits.reshape(12, 11), target.reshape(-1), weights.reshape(-1), smoothing)

    (loss, nll), grad = jit(jax.value_and_grad(ours, has_aux=True))(logits)
    expected_loss, expected_grad = jit(jax.value_and_grad(theirs))(logits)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(
        nll, naive(logits.reshape(12, 11), target.reshape(-1), weights.reshape(-1), 0), rtol=1e-5
    )
    np.testing.assert_allclose(grad, expected_grad, atol=1e-5)
    assert (np.asarray(grad)[weights == 0] == 0).all() and np.asarray(grad)[weights > 0].any(axis=-1).all()


def test_the_second_sum_has_no_gradient():
    logits = jnp.asarray(RNG.normal(size=(1, 2, 5)), jnp.float32)
    grad = jax.grad(lambda x: of_logits(x, jnp.zeros((1, 2), int), jnp.ones((1, 2)))[1])(logits)
    assert not np.asarray(grad).any()


def test_huge_logits_do_not_overflow():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    target, one = jnp.array([[1]]), jnp.ones((1, 1))
    (loss, _), grad = jax.value_and_grad(of_logits, has_aux=True)(logits, target, one)
    assert loss == 2e4
    np.testing.assert_array_equal(grad, [[[1, -1, 0]]])


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(RNG.normal(size=(8, 64, 16)), jnp.bfloat16)
    target, ones = jnp.zeros((8, 64), int), jnp.ones((8, 64))
    sums = of_logits(logits, target, ones, smoothing=0.1)
    expected = of_logits(logits.astype(jnp.float32), target, ones, smoothing=0.1)
    assert {x.dtype for x in sums} == {jnp.dtype("float32")}
    np.testing.assert_allclose(sums, expected, rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_x_and_of_the_table(parts, dtype):
    B, T, D, V = 3, 12, 6, 17
    x = jnp.asarray(RNG.normal(size=(B, T, D)), dtype)
    table = jnp.asarray(RNG.normal(size=(V, D)), jnp.float32)
    target, weights = RNG.integers(0, V, (B, T)), RNG.choice([0.0, 1.0, 2.5], (B, T)).astype(np.float32)

    def ours(x, table):
        return 3 * cross_entropy(x, table, target, weights, smoothing=0.1, parts=parts)[0]

    def theirs(x, table):
        logits = x.astype(jnp.float32) @ table.astype(dtype).astype(jnp.float32).T
        return 3 * naive(logits.reshape(B * T, V), target.reshape(-1), weights.reshape(-1), 0.1)

    loss, grads = jit(jax.value_and_grad(ours, (0, 1)))(x, table)
    expected, expected_grads = jit(jax.value_and_grad(theirs, (0, 1)))(x, table)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert grad.dtype == wanted.dtype
        error = np.linalg.norm(np.float32(grad) - np.float32(wanted)) / np.linalg.norm(np.float32(wanted))
        assert error < (1e-5 if dtype == jnp.float32 else 1e-2)
    assert jit(ours)(x, table) == pytest.approx(float(loss), rel=1e-6)  # without a gradient


def both_ways(p_logits, q_logits, weights):
    """The definition of `divergence`: the mean of KL(p || q) and KL(q || p)."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    forward = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    backward = (jnp.exp(log_q) * (log_q - log_p)).sum(-1)
    return ((forward + backward) / 2 * weights).sum()


@pytest.mark.parametrize("parts", [1, 4])
def test_divergence_and_its_gradients_equal_those_of_the_definition(parts):
    B, T, D, V = 3, 12, 6, 17
    x, y = (jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32) for _ in range(2))
    table, bias = jnp.asarray(RNG.normal(size=(V, D)), jnp.float32), jnp.asarray(RNG.normal(size=V), jnp.float32)
    weights = RNG.choice([0.0, 1.0], (B, T)).astype(np.float32)

    def ours(x, y, table, bias):
        return divergence(x, y, table, weights, bias, parts=parts)

    def theirs(x, y, table, bias):
        return both_ways(x @ table.T + bias, y @ table.T + bias, weights)

    loss, grads = jit(jax.value_and_grad(ours, (0, 1, 2, 3)))(x, y, table, bias)
    expected, expected_grads = jit(jax.value_and_grad(theirs, (0, 1, 2, 3)))(x, y, table, bias)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5) and loss > 1
    for grad, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-4)
    assert float(divergence(x, x, table, weights)) == 0


def crossed(x, table):
    return cross_entropy(x, table, jnp.zeros(x.shape[:2], int), jnp.ones(x.shape[:2]))[0]


def diverged(x, table):
    return divergence(x, 2 * x, table, jnp.ones(x.shape[:2]))


@pytest.mark.parametrize("loss", [crossed, diverged])
def test_no_array_of_all_positions_by_all_pieces(loss):
    B, T, D, V = 4, 64, 8, 300
    x, table = jnp.ones((B, T, D)), jnp.ones((V, D))
    step = jax.grad(loss, (0, 1))
    sizes = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(variable.aval.size for variable in equation.outvars)
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    look(inner)

    look(jax.make_jaxpr(step)(x, table).jaxpr)
    assert max(sizes) == B * T * V // 8
    memory = jax.jit(step).lower(x, table).compile().memory_analysis()
    assert memory is None or memory.temp_size_in_bytes < 4 * B * T * V
