from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import jit

from transformer.checkpoint import Checkpoints
from transformer.config import MeshConfig, ModelConfig, TrainConfig
from transformer.model import build
from transformer.training.objectives import sequences
from transformer.training.optimizer import optimizer
from transformer.training.sharding import make_mesh
from transformer.training.start import restore
from transformer.training.step import TrainState, cut, gradients, init_state, program, train_step
from transformer.training.task import Objective

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
MODEL = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=16, heads=2, dropout=0.1)


def objective(**changes) -> Objective:
    """The model and loss of training, over 30 pieces."""
    return sequences(build(dataclasses.replace(MODEL, **changes).with_vocabulary(30)), TrainConfig())


def batch(rows: int, every: int = 2) -> dict[str, np.ndarray]:
    """Sentences; one in `every` is much longer than the others."""
    rng = np.random.default_rng(0)
    made = {}
    for side, width in (("source", 9), ("target", 12)):
        ids = rng.integers(4, 30, (rows, width)).astype(np.int32)
        lengths = np.where(np.arange(rows) % every == 1, width - 1, rng.integers(1, 3, rows))
        ids[np.arange(width) > lengths[:, None]] = 0
        ids[np.arange(rows), lengths] = 2
        made[side] = ids
    return made


def without_dropout():
    """Parameters, and `gradients` compiled, as those of the mean loss."""
    made = objective()

    def means(params, batch):
        grads, total, sums = gradients(made.loss, params, batch, None)
        return jax.tree.map(lambda x: x / sums["weight"], grads), total / sums["weight"], sums

    return jit(made.model.init)(jax.random.key(1)), jit(means)


def close(one, other, tolerance: float) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), jax.tree_util.keystr(path)


# ---- Accumulation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_micro_batches_give_the_gradients_of_one_batch(count: int) -> None:
    rows, (params, grads_of) = batch(12, every=count), without_dropout()
    expected, expected_loss, expected_sums = grads_of(params, cut(rows, MESH, 1))
    pieces = cut(rows, MESH, count)
    weights = [(piece != 0).sum() for piece in pieces["target"]]
    assert max(weights) > 1.2 * min(weights)  # a mean of means would be another number
    grads, loss, sums = grads_of(params, pieces)
    close(grads, expected, 1e-5)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx({k: float(v) for k, v in expected_sums.items()})


def test_the_loss_is_divided_once_by_all_weights() -> None:
    # A loss with a known result: each row holds one number and its weight.
    def loss(params, batch, key):
        return jnp.sum(params["w"] * batch["x"] * batch["weight"]), {"weight": batch["weight"].sum()}

    values = {"x": np.array([[1.0, 5.0], [2.0, 9.0]]), "weight": np.array([[1.0, 10.0], [0.0, 100.0]])}
    params, tx = {"w": jnp.float32(2.0)}, optax.sgd(1.0)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    after, metrics = train_step(state, values, loss=loss, optimizer=tx, seed=0)
    total = 1 + 5 * 10 + 0 + 9 * 100
    assert 2 - float(after.params["w"]) == pytest.approx(total / 111) == float(metrics["gradient_norm"])
    assert float(metrics["loss"]) == pytest.approx(2 * total / 111)
    assert float(metrics["weight"]) == 111
    # Only padding: no division by zero.
    padding = {"x": values["x"], "weight": 0 * values["weight"]}
    after, metrics = train_step(state, padding, loss=loss, optimizer=tx, seed=0, clip_norm=1.0)
    assert float(after.params["w"]) == 2
    assert float(metrics["loss"]) == float(metrics["gradient_norm"]) == 0


def test_cut_deals_rows_out_and_fills_up_with_padding() -> None:
    rows = {"source": np.arange(1, 8)[:, None] * np.ones((7, 3), np.int32)}
    pieces = cut(rows, MESH, 3)["source"]
    assert pieces.shape == (3, 3, 3)
    assert pieces[:, :, 0].tolist() == [[1, 4, 7], [2, 5, 0], [3, 6, 0]]
    assert cut(rows, MESH, 1)["source"].shape == (1, 7, 3)
    eight = SimpleNamespace(shape={"data": 2, "fsdp": 4, "tensor": 2})
    pieces = cut(rows, eight, 2)["source"]
    assert pieces.shape == (2, 8, 3)
    assert pieces[:, :, 0].tolist() == [[1, 3, 5, 7, 0, 0, 0, 0], [2, 4, 6, 0, 0, 0, 0, 0]]


def test_padding_rows_change_nothing() -> None:
    rows, (params, grads_of) = batch(6), without_dropout()
    padded = {name: np.pad(x, ((0, 4), (0, 0))) for name, x in rows.items()}
    expected, loss, _ = grads_of(params, cut(rows, MESH, 1))
    grads, padded_loss, _ = grads_of(params, cut(padded, MESH, 1))
    close(grads, expected, 1e-6)
    assert float(padded_loss) == pytest.approx(float(loss), rel=1e-6)


# ---- Randomness -----------------------------------------------------------------------------------------------------


def keys_seen(step: int, seed: int, micro_batches: int) -> list[tuple[int, ...]]:
    """The dropout keys of the micro-batches of one update."""

    def loss(params, batch, key):
        seen = jax.random.key_data(key).astype(jnp.float32)  # exact enough to distinguish keys
        return jnp.sum(params["w"]), {"weight": jnp.float32(1), "keys": jnp.zeros((9, 2)).at[batch["i"][0]].set(seen)}

    tx = optax.sgd(0.0)
    state = TrainState(jnp.int32(step), {"w": jnp.float32(0)}, tx.init({"w": jnp.float32(0)}))
    numbers = {"i": np.arange(micro_batches)[:, None]}
    _, metrics = train_step(state, numbers, loss=loss, optimizer=tx, seed=seed)
    return [tuple(key) for key in np.asarray(metrics["keys"])[:micro_batches].tolist()]


def test_dropout_differs_between_updates_and_micro_batches() -> None:
    keys = [key for step in range(4) for key in keys_seen(step, 0, 3)]
    assert len(set(keys)) == 12
    assert keys_seen(2, 0, 3) == keys[6:9]  # a pure function of seed, update and micro-batch
    assert set(keys_seen(2, 1, 3)).isdisjoint(keys)
    # Micro-batch i of an update has the same key, whatever the number of micro-batches.
    assert keys_seen(1, 0, 1) == keys[3:4]


def test_initial_parameters_are_a_function_of_the_seed() -> None:
    model, tx = objective().model, optimizer(TrainConfig(), 16)
    one, same, other = (init_state(model.init, tx, seed) for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one.params, same.params)))
    assert not np.array_equal(one.params["embedding"]["table"], other.params["embedding"]["table"])
    assert int(one.step) == 0
    assert one.step.dtype == jnp.int32


# ---- The update -----------------------------------------------------------------------------------------------------


def test_an_update_donates_the_state_and_counts() -> None:
    made = program(objective(), TrainConfig(peak_learning_rate=0.01, warmup_steps=5), MESH)
    state = old = made.init()
    pieces = cut(batch(4), MESH, 2)
    update = made.update.lower(state, pieces).compile({"xla_backend_optimization_level": 0})  # faster to compile
    before = jax.tree.map(np.array, old.params)
    state, metrics = update(state, pieces)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert int(state.step) == 1
    assert set(metrics) == {"loss", "gradient_norm", "weight", "nll", "tokens"}
    assert float(metrics["weight"]) == (pieces["target"] != 0).sum()
    assert float(metrics["tokens"]) == (pieces["target"] != 0).sum() + (pieces["source"] != 0).sum()
    # The first update of Adam is the learning rate of step 1 times the gradient's sign.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state.params)
    assert max(jax.tree.leaves(moved)) == pytest.approx(0.01 / 5, rel=1e-3)
    # After twenty more updates, these rows are learned.
    first = float(metrics["loss"])
    for _ in range(20):
        state, metrics = update(state, pieces)
    assert int(state.step) == 21
    assert float(metrics["loss"]) < first - 0.3
    assert float(metrics["nll"]) / float(metrics["weight"]) < float(metrics["loss"]) + 0.5


@pytest.mark.slow
def test_r_drop_adds_half_of_the_divergence_of_two_readings() -> None:
    """As in the paper, but for a factor of two: the mean of both losses, and alpha / 2 times their divergence."""
    model, key, rows = objective().model, jax.random.key(3), {name: jnp.asarray(x) for name, x in batch(4).items()}
    params = jit(model.init)(jax.random.key(1))

    def total(alpha: float, key):
        return jit(sequences(model, TrainConfig(r_drop=alpha)).loss)(params, rows, key)[0]

    first, second = total(0.0, key), total(0.0, jax.random.fold_in(key, 2))
    once, twice = (float(total(alpha, key) - (first + second) / 2) for alpha in (1.0, 2.0))
    assert once > 0.01 and twice == pytest.approx(2 * once, rel=1e-3)
    assert float(total(1.0, None)) == float(total(0.0, None))  # nothing is dropped out: one reading

    def log_probs(key):
        before = jnp.pad(rows["target"][:, :-1], ((0, 0), (1, 0)), constant_values=1)
        return jax.nn.log_softmax(model.apply(params, rows["source"], before, key=key))

    p, q = log_probs(key), log_probs(jax.random.fold_in(key, 2))
    both = ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1)
    assert once == pytest.approx(float((both * (rows["target"] != 0)).sum() / 4), rel=1e-3)


def test_the_model_is_the_moving_average_of_what_updates_change() -> None:
    """The updates themselves are those without an average."""
    config = TrainConfig(peak_learning_rate=0.01, warmup_steps=5)
    pieces = cut(batch(4), MESH, 1)

    def states(config: TrainConfig) -> list[TrainState]:
        made = program(objective(), config, MESH)
        update = made.update.lower(made.abstract, pieces).compile({"xla_backend_optimization_level": 0})
        found = [made.init()]
        for _ in range(4):
            found.append(update(jax.tree.map(jnp.copy, found[-1]), pieces)[0])
        return found

    plain, averaged = states(config), states(dataclasses.replace(config, ema_decay=0.3))
    mean = jax.tree.map(np.asarray, plain[0].params)
    for step, (one, other) in enumerate(zip(plain[1:], averaged[1:], strict=True)):
        close(other.optimizer.params, one.params, 1e-6)
        decay = min(0.3, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda a, x, decay=decay: decay * a + (1 - decay) * np.asarray(x), mean, one.params)
        close(other.params, mean, 1e-6)
    made = program(objective(), dataclasses.replace(config, ema_decay=0.3), MESH)
    begun = made.start_from(plain[1].params)
    close(begun.optimizer.params, plain[1].params, 0)


@pytest.mark.parametrize(("clip_norm", "scale"), [(None, 1), (1e-3, 1e-3 / 5), (4.9, 4.9 / 5), (5.1, 1)])
def test_clipping_is_by_the_norm_of_all_gradients_of_the_mean(clip_norm: float | None, scale: float) -> None:
    def loss(params, batch, key):
        return 2 * (params["a"] * batch["x"][0, 0] + params["b"] * batch["x"][0, 1]), {"weight": jnp.float32(2)}

    tx = optimizer(TrainConfig(clip_norm=clip_norm, warmup_steps=1, peak_learning_rate=1.0), 16)
    params = {"a": jnp.float32(0), "b": jnp.float32(0)}
    state = TrainState(jnp.int32(0), params, tx.init(params))
    numbers = {"x": np.array([[[3.0, 4.0]]])}
    state, metrics = train_step(state, numbers, loss=loss, optimizer=tx, seed=0, clip_norm=clip_norm)
    assert float(metrics["gradient_norm"]) == pytest.approx(5.0)  # that before clipping
    mu = optax.tree.get(state.optimizer, "mu")
    assert [float(mu["a"]), float(mu["b"])] == pytest.approx([0.1 * 3 * scale, 0.1 * 4 * scale])


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_no_number_is_told(clip_norm: float | None) -> None:
    def loss(params, batch, key):
        return params["w"] * batch["x"].sum(), {"weight": jnp.float32(1)}

    tx = optimizer(TrainConfig(clip_norm=clip_norm), 16)
    state = TrainState(jnp.int32(0), {"w": jnp.float32(1)}, tx.init({"w": jnp.float32(1)}))
    for bad in (np.nan, np.inf):
        numbers = {"x": np.array([[bad]], np.float32)}
        after, metrics = train_step(state, numbers, loss=loss, optimizer=tx, seed=0, clip_norm=clip_norm)
        assert not np.isfinite(metrics["gradient_norm"])
        assert not np.isfinite(after.params["w"])


# ---- One device and eight -------------------------------------------------------------------------------------------


def eight(folder: Path, environment: dict[str, str], *cases: object) -> dict:
    environment = environment | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, str(Path(__file__).with_name("eight_devices.py")), str(folder), *map(str, cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    assert results["devices"] == 8
    return results


def agree(result: dict, share: float, within: float = 1e-5, tables: int = 1) -> None:
    assert result["same start"]
    assert result["devices"] == 8
    assert result["largest share"] == share
    assert result["arguments"] == result["planned"]  # each device holds what the sharding table gives
    assert result["needed"][0] < result["needed"][1]
    assert result["gradients"] < within
    # The gradients of the table from the logits and from both inputs are summed together, once over each axis.
    assert result["table sums"] == tables * result["axes"]
    assert len(result["losses"]) == 10
    assert result["losses"] == pytest.approx(result["expected"], rel=within)
    assert len(set(result["losses"])) == 10


@pytest.fixture(scope="module")
def results(environment, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("eight")
    return folder, eight(folder, environment, "8x1x1", 2, "2x2x2", 2)


@pytest.mark.slow
def test_eight_devices_give_the_losses_and_gradients_of_one(results) -> None:
    agree(results[1]["8x1x1 2"], 1.0)


@pytest.mark.slow
def test_eight_devices_that_share_the_parameters_do_too(results) -> None:
    agree(results[1]["2x2x2 2"], 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["8x1x1 2", "2x2x2 2"])
def test_eight_devices_translate_as_one_does(results, case: str, report) -> None:
    found, expected = results[1][case]["decoded"], results[1]["decoded on 1"]
    assert len(found) == len(expected) > 100
    exceptions = 0
    for (ours, score), (theirs, reference) in zip(found, expected, strict=True):
        if ours == theirs:
            assert score == pytest.approx(reference, abs=1e-5)
        else:  # two equally good ones
            exceptions += 1
            assert score == pytest.approx(reference, abs=1e-4)
    assert len({tuple(tokens) for tokens, _ in expected}) > 20  # the translations differ
    report(f"{exceptions} of {len(found)} translations on {case.split()[0]} devices are not those of one device")
    assert exceptions <= len(found) // 20


@pytest.mark.slow
def test_the_other_ways_to_arrange_eight_devices(environment, tmp_path: Path) -> None:
    found = eight(tmp_path, environment, "2x4x1", 1, "1x1x8", 1, "2x2x2", 1, "8x1x1", 1, "1x4x2", 2)
    for case, share in {"2x4x1 1": 0.25, "1x1x8 1": 0.125, "2x2x2 1": 0.25, "8x1x1 1": 1.0, "1x4x2 2": 0.125}.items():
        agree(found[case], share)
    assert found["restored on 1"]["digest"] == found["restored on 4"]["digest"] == found["digest"]


@pytest.mark.slow
def test_rematerialisation_packed_rows_and_sixteen_bits_on_eight_devices(environment, tmp_path: Path) -> None:
    cases = {"2x2x2-remat 2": 1e-5, "1x4x2-packing 2": 1e-5, "2x2x2-bfloat16 2": 2e-2}
    found = eight(tmp_path, environment, *" ".join(cases).split())
    for case, within in cases.items():
        agree(found[case], 0.25 if case.startswith("2x2x2") else 0.125, within)


@pytest.mark.slow
def test_three_tables_and_learned_positions_on_eight_devices(environment, tmp_path: Path) -> None:
    found = eight(tmp_path, environment, "2x2x2-untied", 1, "8x1x1-untied", 1)
    # Learned positions are not cut along the tensor axis.
    agree(found["2x2x2-untied 1"], 0.5, tables=3)
    agree(found["8x1x1-untied 1"], 1.0, tables=3)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_of_eight_devices_goes_on_with_fewer(results, count: int) -> None:
    found = results[1][f"restored on {count}"]
    assert found["digest"] == results[1]["digest"]  # parameters and optimiser, bit for bit
    assert found["placed"]
    assert found["losses"] == pytest.approx(results[1]["goes on"], rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_opens_in_a_process_with_one(results) -> None:
    assert len(jax.devices()) == 1
    run = eight_devices.Run(MESH, 2)
    state, _ = restore(Checkpoints(results[0] / "run"), run.abstract)
    assert int(state.step) == int(state.optimizer[0].count) == eight_devices.UPDATES
    assert eight_devices.digest(state) == results[1]["digest"]
