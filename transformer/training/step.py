"""One update as a pure function. It sums losses and weights over micro-batches and devices, and divides once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer.checkpoint import with_sharding
from transformer.config import TrainConfig
from transformer.model import Params
from transformer.training.optimizer import optimizer, without_frozen
from transformer.training.sharding import batch_sharding, batch_ways, shardings
from transformer.training.task import Batch, Loss, Objective, Shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that an update changes."""

    step: Array
    """The number of updates done, int32."""
    params: Params
    """The model: what is evaluated and saved. With `train.ema_decay`, the moving average."""
    optimizer: Any
    """The state of the optimiser; with `train.ema_decay`, `Averaged`."""


class Averaged(NamedTuple):
    """The state of the optimiser, and the parameters that updates change, where the model is their moving average."""

    optimizer: Any
    params: Params


def init_state(
    init: Callable[[Array], Params], optimizer: optax.GradientTransformation, seed: int, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first update, a pure function of the seed."""
    params = init(jax.random.fold_in(jax.random.key(seed), 0))
    return TrainState(jnp.int32(0), params, init_optimizer(optimizer, params, ema_decay))


def init_optimizer(optimizer: optax.GradientTransformation, params: Params, ema_decay: float) -> Any:
    """`TrainState.optimizer` before the first update."""
    state = optimizer.init(params)
    return Averaged(state, jax.tree.map(jnp.copy, params)) if ema_decay else state


def gradients(loss: Loss, params: Params, batch: Batch, key: Array | None) -> tuple[Params, Array, dict[str, Array]]:
    """The gradients of the loss over all micro-batches, that loss, and what else it returns, all summed.

    Arrays of `batch` have shape (micro-batches, rows, ...). Micro-batch i uses the dropout key `fold_in(key, i)`.
    """

    def micro(batch_i: Batch, i: Array | int) -> tuple[Params, Array, dict[str, Array]]:
        key_i = None if key is None else jax.random.fold_in(key, i)
        (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch_i, key_i)
        return grads, total, sums

    count = jax.tree.leaves(batch)[0].shape[0]
    first = jax.tree.map(lambda x: x[0], batch)
    if count == 1:
        return micro(first, 0)

    def add(summed: Any, inputs: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, summed, micro(*inputs)), None

    # Start from zeros, not from the first micro-batch, so that the program holds the model only once.
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro, first, 0))
    return jax.lax.scan(add, nothing, (batch, jnp.arange(count)))[0]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    seed: int,
    clip_norm: float | None = None,
    skip: bool = False,
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
    """The state after one more update, and its metrics: "loss", "gradient_norm", and the sums that `loss` returns.

    "loss" is the mean, the sum of all losses divided by that of their weights, and "gradient_norm" the norm of its
    gradient, before it is clipped to `clip_norm`. With `skip`, an update whose loss or gradient is not finite changes
    only the counters (see `left_out`).
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
    inner, params = state.optimizer if ema_decay else (state.optimizer, state.params)
    grads, total, sums = gradients(loss, params, batch, key)
    weight = jnp.where(sums["weight"] > 0, sums["weight"], 1.0)
    metrics = {"loss": total / weight, "gradient_norm": optax.tree.norm(grads) / weight, **sums}
    # One product with one number, which XLA computes where it is used: a quotient, or a mean that the norm needs, would
    # be written to memory and read again.
    scale = (1.0 if clip_norm is None else jnp.minimum(1.0, clip_norm / metrics["gradient_norm"])) / weight
    updates, inner = optimizer.update(jax.tree.map(lambda g: g * scale, grads), inner, params)
    params = optax.apply_updates(params, updates)
    if ema_decay:
        average = moved(state.params, params, state.step, ema_decay)
        after = TrainState(state.step + 1, average, Averaged(inner, params))
    else:
        after = TrainState(state.step + 1, params, inner)
    if skip:
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        after = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, left_out(state))
    return after, metrics


def moved(average: Params, params: Params, step: Array, decay: float) -> Params:
    """The moving average after update `step`, counted from 0: decay * average + (1 - decay) * params. At the start
    the decay is (1 + step) / (10 + step), if that is smaller, so that the initial parameters are soon forgotten."""
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, x: mean + share * (x - mean), average, params)


def left_out(state: TrainState) -> TrainState:
    """The state after an update that is left out: all counters, also that of the learning rate, go up by 1."""
    return jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.integer) else x, state)


@dataclass(frozen=True)
class Program:
    """The update of an objective on a mesh, and the state that it starts from."""

    mesh: Mesh
    abstract: TrainState
    """Shapes, types and shardings of the state."""
    init: Callable[[], TrainState]
    """Makes the state before the first update, sharded over the mesh; a pure function of `train.seed`."""
    start_from: Callable[[Params], TrainState]
    """Makes the state before the first update from given parameters."""
    update: Any
    """`train_step` under jit, (state, batch) -> (state, metrics). The state is donated."""

    def compile(self, shape: Shape, micro_batches: int) -> jax.stages.Compiled:
        """Compile the update for batches of this shape. Needs neither state, data nor the devices."""
        sharding = batch_sharding(self.mesh, micro_batches=True)

        def array(rows: int, length: int) -> jax.ShapeDtypeStruct:
            rows = micro_batch_rows(rows, self.mesh, micro_batches)
            return jax.ShapeDtypeStruct((micro_batches, rows, length), jnp.int32, sharding=sharding)

        return self.update.lower(self.abstract, {name: array(*size) for name, size in shape.items()}).compile()


def program(objective: Objective, train: TrainConfig, mesh: Mesh) -> Program:
    """The program that trains an objective. The first call with a new batch shape compiles the update."""
    model, rate = objective.model, objective.rate
    init = objective.init or model.init
    tx, skip = optimizer(train, model.config.d_model, rate), train.non_finite == "skip"
    abstract = jax.eval_shape(lambda: init_state(init, tx, train.seed, train.ema_decay))
    layout = shardings(abstract, mesh)

    def loss(params: Params, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Array]]:
        return objective.loss(without_frozen(params, rate), batch, key, mesh=mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        options = {"seed": train.seed, "clip_norm": train.clip_norm, "skip": skip, "ema_decay": train.ema_decay}
        return train_step(state, batch, loss=loss, optimizer=tx, **options)

    def start_from(params: Params) -> TrainState:
        start = jax.jit(lambda params: init_optimizer(tx, params, train.ema_decay), out_shardings=layout.optimizer)
        return TrainState(counter(0, mesh), params, start(params))

    return Program(
        mesh=mesh,
        abstract=with_sharding(abstract, layout),
        init=jax.jit(lambda: init_state(init, tx, train.seed, train.ema_decay), out_shardings=layout),
        start_from=start_from,
        update=jax.jit(
            step,
            in_shardings=(layout, batch_sharding(mesh, micro_batches=True)),
            out_shardings=(layout, None),
            donate_argnums=0,
        ),
    )


def counter(step: int, mesh: Mesh) -> Array:
    """A step counter, replicated on all devices of the mesh."""
    return jax.device_put(jnp.int32(step), NamedSharding(mesh, PartitionSpec()))


def micro_batch_rows(count: int, mesh: Mesh, micro_batches: int) -> int:
    """The rows of each micro-batch of a batch of `count` rows, over all devices: a multiple of `batch_ways`."""
    ways = batch_ways(mesh)
    return -(-count // (ways * micro_batches)) * ways


def bytes_needed(program: jax.stages.Compiled) -> int:
    """Bytes that a program needs on each device, arguments and results included; 0 if JAX can't tell."""
    memory = program.memory_analysis()
    if memory is None:
        return 0
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes


def cut(batch: dict[str, np.ndarray], mesh: Mesh, micro_batches: int) -> dict[str, np.ndarray]:
    """A batch of (rows, length) as (micro-batches, rows, length). Adds empty rows if the mesh does not divide it."""
    ways = batch_ways(mesh) * micro_batches
    return {name: dealt(np.pad(x, ((0, -len(x) % ways), (0, 0))), micro_batches) for name, x in batch.items()}


def dealt(rows: np.ndarray, micro_batches: int) -> np.ndarray:
    """Rows as (micro-batches, rows, length). Row r goes to micro-batch r mod `micro_batches`, so that all micro-batches
    have similar lengths if the rows are sorted by length."""
    return rows.reshape(-1, micro_batches, rows.shape[1]).swapaxes(0, 1)
