import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer.config import Config, ModelConfig, TrainConfig, UserError, check
from transformer.model import build
from transformer.training.optimizer import learning_rate, optimizer


@pytest.mark.parametrize(
    ("step", "base", "peak"),
    [
        # 512^-0.5 = 0.0441942; 4000^-1.5 = 3.95285e-6, 4000^-0.5 = 0.0158114, 100,000^-0.5 = 0.00316228
        (1, 1.746928e-7, 2.5e-7),
        (2, 3.493856e-7, 5e-7),
        (4_000, 6.987712e-4, 1e-3),
        (16_000, 3.493856e-4, 5e-4),
        (100_000, 1.397542e-4, 2e-4),
    ],
)
def test_schedule_by_hand(step, base, peak):
    """Equation 3 of the paper for the base model, and the same curve with a peak of 0.001."""
    assert learning_rate(step, TrainConfig(), 512) == pytest.approx(base, rel=1e-5)
    assert learning_rate(step, TrainConfig(peak_learning_rate=1e-3), 512) == pytest.approx(peak, rel=1e-5)


def test_schedule_of_traced_and_first_steps():
    steps = jnp.array([0, 1, 4_000])
    rates = learning_rate(steps, TrainConfig(), 1024)
    np.testing.assert_allclose(rates, [0, 1.235265e-7, 4.941059e-4], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("linear", [0.1, 0.5, 1, 0.775, 0.55, 0.1, 0.1]), ("cosine", [0.1, 0.5, 1, 0.868198, 0.55, 0.1, 0.1])],
)
def test_decay_to_a_floor(schedule, shares):
    """Warmup to update 10, then to a tenth of the peak at update 30; a quarter of the way is update 15."""
    config = TrainConfig(
        peak_learning_rate=2.0, warmup_steps=10, schedule=schedule, decay_steps=30, final_learning_rate=0.1
    )
    rates = learning_rate(jnp.array([1, 5, 10, 15, 20, 30, 1_000]), config, 512)
    np.testing.assert_allclose(rates, 2 * np.array(shares), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"schedule": "cosine"}, "train.decay_steps"),
        ({"schedule": "linear", "decay_steps": 4_000}, "train.decay_steps"),
        ({"decay_steps": 9_000}, "train.decay_steps"),
        ({"final_learning_rate": 0.1}, "train.final_learning_rate"),
    ],
)
def test_schedules_that_make_no_sense(options, field):
    with pytest.raises(UserError, match=field):
        check(Config(train=TrainConfig(**options)))


@pytest.mark.parametrize("fields", [{}, {"decoder_layers": 0, "token_types": 2, "head": "pretraining"}])
def test_weight_decay_leaves_out_biases_and_norms(fields):
    config = ModelConfig(2, 2, 8, 16, 2, vocab_size=9, attention_bias=True, output_bias=True, positions="learned")
    model = build(dataclasses.replace(config, input_norm=True, **fields))
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    tx = optimizer(TrainConfig(peak_learning_rate=0.5, warmup_steps=1, weight_decay=0.1), 8)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for keys, update in jax.tree_util.tree_leaves_with_path(updates):
        path = "/".join(key.key for key in keys)
        left_out = re.search(r"norm/|bias$|/b[12]$", path)
        np.testing.assert_allclose(update, 0 if left_out else -0.05, rtol=1e-6, err_msg=path)
    assert sum(x.size for x in jax.tree.leaves(updates)) > 0


def updates_of(config, d_model, gradients):
    """What each update adds to a single parameter tensor."""
    adam = optimizer(config, d_model)
    params = {"w": jnp.zeros(len(gradients[0]))}
    state, updates = adam.init(params), []
    for gradient in gradients:
        update, state = adam.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        updates.append(np.asarray(update["w"]))
        params = optax.apply_updates(params, update)
    return np.stack(updates)


def test_the_first_update_uses_step_1():
    """Adam's first update is the learning rate of step 1 in each direction, whatever the size of the gradient."""
    (update,) = updates_of(TrainConfig(), 512, [[3.0, -0.002, 1e-4, 0.0]])
    np.testing.assert_allclose(update, np.array([-1, 1, -1, 0]) * 1.746928e-7, rtol=1e-4)
    (update,) = updates_of(TrainConfig(peak_learning_rate=0.5, warmup_steps=10), 512, [[3.0, -2.0]])
    np.testing.assert_allclose(update, [-0.05, 0.05], rtol=1e-4)


def test_epsilon_is_the_papers():
    """A gradient as small as 1e-9 is halved by an epsilon of 1e-9."""
    (update,) = updates_of(TrainConfig(peak_learning_rate=1.0, warmup_steps=1), 512, [[1e-9, 1.0]])
    np.testing.assert_allclose(update, [-0.5, -1], rtol=1e-3)


def test_updates_equal_adam_written_out():
    """§5.3: beta1 0.9, beta2 0.98, epsilon 1e-9, with bias correction."""
    config = TrainConfig(warmup_steps=3)
    gradients = np.random.default_rng(0).normal(size=(7, 5)) * np.array([3, 0.1, 1, 0.2, 5, 1, 0.1])[:, None]
    m = v = 0
    for t, (gradient, update) in enumerate(zip(gradients, updates_of(config, 64, gradients), strict=True), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        rate = 64**-0.5 * min(t**-0.5, t * 3**-1.5)
        expected = -rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-9)
        np.testing.assert_allclose(update, expected, rtol=1e-4)
