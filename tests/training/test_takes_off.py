"""A fresh model takes off: it soon learns to use the source, with the paper's post-norm layers and dropout.

The first update must give recorded numbers. A small language must be learnt. In the slow tests, Multi30k and the
quickstart must reach scores that a model reaches only after it has taken off.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from quick import jit

from transformer.config import BOS, EOS, PAD, Config, ModelConfig, TrainConfig
from transformer.model import build
from transformer.training.objectives import sequences
from transformer.training.optimizer import optimizer
from transformer.training.step import init_state, train_step
from transformer.training.task import Objective

FIRST_UPDATE = {
    **{"loss": 4.140869, "gradient norm": 2.125942, "norm": 25.20120, "norm of the update": 1.058202},
    "second loss": 3.388097,
}


def update_of(objective: Objective, train: TrainConfig, compile=jit):
    """The state before the first update, and the update."""
    tx = optimizer(train, objective.model.config.d_model)
    state = jit(lambda: init_state(objective.model.init, tx, train.seed))()
    return state, compile(partial(train_step, loss=objective.loss, optimizer=tx, seed=train.seed))


def objective_of(config: Config, vocab_size: int) -> Objective:
    return sequences(build(config.model.with_vocabulary(vocab_size)), config.train)


def test_the_first_update_is_what_it_was() -> None:
    """Loss, gradient and parameters, with dropout and label smoothing. Another initialisation, update
    rule or order of operations changes them."""
    model = ModelConfig(encoder_layers=2, decoder_layers=2, d_model=16, d_ff=32, heads=2)
    config = Config(model=model, train=TrainConfig(peak_learning_rate=0.01, warmup_steps=1))
    rng = np.random.default_rng(0)
    batch = {side: rng.integers(4, 30, (1, 8, 6)).astype(np.int32) for side in ("source", "target")}
    for side, length in (("source", 4), ("target", 5)):
        batch[side][0, ::2, length:], batch[side][0, ::2, length - 1], batch[side][0, 1::2, -1] = PAD, EOS, EOS
    state, update = update_of(objective_of(config, 30), config.train)
    after, metrics = update(state, batch)
    found = {
        "loss": metrics["loss"],
        "gradient norm": metrics["gradient_norm"],
        "norm": optax.tree.norm(state.params),
        "norm of the update": optax.tree.norm(optax.tree.sub(after.params, state.params)),
        "second loss": update(after, batch)[1]["loss"],
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(FIRST_UPDATE, rel=1e-4)


# ---- A small language ------------------------------------------------------------------------------------------------
WORDS, LENGTH = 8, 4


def sentences(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random sentences and their translations: other words, and each pair of neighbours exchanged."""
    source = np.full((count, LENGTH + 1), EOS, np.int32)
    source[:, :-1] = rng.integers(4, 4 + WORDS, (count, LENGTH))
    target = source.copy()
    target[:, :-1] = source[:, :-1].reshape(count, -1, 2)[:, :, ::-1].reshape(count, -1) + WORDS
    return source, target


def greedy(objective: Objective, params, source_BS: np.ndarray) -> np.ndarray:
    """The most probable piece at each position, given those before it."""
    apply = jit(objective.model.apply)
    before_BT = np.full_like(source_BS, BOS)
    for t in range(source_BS.shape[1]):
        found_BT = np.argmax(apply(params, source_BS, before_BT), axis=-1)
        before_BT[:, 1 : t + 2] = found_BT[:, : t + 1][:, : source_BS.shape[1] - 1]
    return found_BT


def test_a_small_language_is_learnt() -> None:
    """With six post-norm layers on each side, and dropout. Models with Glorot initialisation stay on a plateau."""
    model = ModelConfig(encoder_layers=6, decoder_layers=6, d_model=32, d_ff=64, heads=4, dropout=0.1)
    config = Config(model=model, train=TrainConfig(peak_learning_rate=0.005, warmup_steps=100))
    objective, rng = objective_of(config, 4 + 2 * WORDS), np.random.default_rng(0)
    state, update = update_of(objective, config.train, partial(jax.jit, donate_argnums=0))
    for _ in range(500):
        source, target = sentences(32, rng)
        state, _ = update(state, {"source": source[None], "target": target[None]})
    source, target = sentences(200, np.random.default_rng(1))
    right = (greedy(objective, state.params, source) == target).all(axis=1)
    assert right.mean() >= 0.95


# ---- Multi30k --------------------------------------------------------------------------------------------------------
ROOT = Path(__file__).parents[2]
MULTI30K = ("train.steps=300", "train.warmup_steps=200", "train.eval_every=300", "train.eval_sentences=1")


@pytest.mark.slow
@pytest.mark.long
def test_multi30k_takes_off_with_two_seeds(environment, tmp_path: Path, report) -> None:
    """With a shorter warmup than in the config, so that 300 updates are enough."""
    text = environment.get("TRANSFORMER_DATA")
    if not text or not (Path(text) / "multi30k" / "raw").is_dir():
        pytest.skip("TRANSFORMER_DATA does not name a folder with multi30k/raw")
    command = [sys.executable, "train.py", "--config", "configs/multi30k_en_de.py", "--train.checkpoint_every=300"]
    command += [f"--{option}" for option in MULTI30K]

    def trained(seed: int) -> subprocess.CompletedProcess:
        seeded = ["--workdir", str(tmp_path / str(seed)), f"--train.seed={seed}"]
        return subprocess.run(
            [*command, *seeded], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=2_400
        )

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(trained, range(2)):
            assert done.returncode == 0, done.stderr[-3_000:]
    for seed in range(2):
        last = json.loads((tmp_path / str(seed) / "metrics.jsonl").read_text().splitlines()[-1])
        report(f"Multi30k, 300 updates, seed {seed}: dev loss {last['dev_loss']:.3f}")
        assert last["dev_loss"] <= 4.0
