"""The sharding of parameters and batches over a mesh of devices: one table of path rules, outside the model."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.checkpoint import with_sharding
from transformer.config import MeshConfig, UserError
from transformer.memory import require_memory
from transformer.model import Model

# Pattern of parameter paths -> the mesh axis that each dimension is cut along. The first match wins. No match is an
# error.
RULES: tuple[tuple[str, P], ...] = (
    (r"(entropy/|.*_)?embedding/table", P("tensor", "fsdp")),
    (r"(entropy/)?output_bias", P("tensor")),
    (r"(entropy/|.*_)?positions|token_types", P(None, "fsdp")),
    (r".*_attention/(query|key|value)", P("fsdp", "tensor", None)),
    (r".*_attention/(query|key|value)_bias", P("tensor", None)),
    (r".*_attention/score", P(None, "tensor")),
    (r".*_attention/score_bias", P("tensor", None)),
    (r".*_attention/output", P("tensor", None, "fsdp")),
    (r".*_attention/output_bias", P()),
    (r".*feed_forward/w1", P("fsdp", "tensor")),
    (r".*feed_forward/b1", P("tensor")),
    (r".*feed_forward/w2", P("tensor", "fsdp")),
    (r".*feed_forward/b2", P()),
    (r"(pooler|masked_head)/w", P("fsdp", "tensor")),
    (r"(pooler|masked_head)/bias", P("tensor")),
    (r"(next_sentence|label)_head/w", P("fsdp", None)),
    (r"(next_sentence|label)_head/bias", P()),
    (r".*norm/(scale|bias)", P()),
)

# The mesh axes that the rows of a batch are cut along.
BATCH_AXES = ("data", "fsdp")
BATCH = P(BATCH_AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices, or over the given ones.

    Raises `UserError` if the sizes do not match the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    others = config.fsdp * config.tensor
    data = len(devices) // others if config.data == -1 else config.data
    if data * others != len(devices):
        raise UserError(
            f"mesh.data * mesh.fsdp * mesh.tensor = {config.data} * {config.fsdp} * {config.tensor} "
            f"does not match the number of devices, {len(devices)}"
        )
    shape = (data, config.fsdp, config.tensor)
    try:  # neighbours on the mesh are neighbours in the machine; a physical axis may be split between two mesh axes
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise UserError(f"mesh {shape}: cannot be laid over these devices ({error}); try other sizes") from None
    return Mesh(placed, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def check_mesh(model: Model, config: MeshConfig) -> None:
    """Raise `UserError` if the mesh does not fit the available devices or does not divide the model, or if parameters
    and Adam's two moments exceed the memory of a device."""
    params = model.abstract_params
    sharded = with_sharding(params, shardings(params, make_mesh(config)))
    require_memory(
        3 * bytes_on_a_device(sharded),
        "the parameters and Adam's two moments",
        "lower the sizes of the model (--model.d_model, d_ff, ...), or share it over more devices (mesh.fsdp, "
        "mesh.tensor)",
    )


def bytes_on_a_device(sharded: Any) -> int:
    """Bytes that a tree of abstract arrays with shardings takes on each device."""
    leaves = jax.tree.leaves(sharded)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def spec(path: str) -> P:
    """The rule for the parameter at `path`, such as 'encoder/layers/0/feed_forward/w1'."""
    for pattern, rule in RULES:
        if re.fullmatch(pattern, path):
            return rule
    raise ValueError(f"no sharding rule matches the parameter {path}")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf of parameters, or of a state that holds trees of parameters (Adam's moments).

    Leaves outside of any dict, such as counters, are replicated. Raises `UserError` if a mesh axis does not divide a
    dimension.
    """

    def leaf_sharding(keys: tuple, leaf: Any) -> NamedSharding:
        path = "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))
        rule = spec(path) if path else P()
        for size, axis in zip(leaf.shape, rule, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis} = {mesh.shape[axis]} does not divide {path}, which has a dimension of {size}; use "
                    f"another size of mesh.{axis}, such as 1, or of the model"
                )
        return NamedSharding(mesh, rule)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh, *, micro_batches: bool = False) -> NamedSharding:
    """Rows cut over the mesh. With `micro_batches`, arrays have a leading axis before the rows, which is not cut."""
    return NamedSharding(mesh, P(None, BATCH_AXES) if micro_batches else BATCH)


def constrain(x: Array, mesh: Mesh | None, rule: P = BATCH) -> Array:
    """x with a sharding constraint (default: rows over devices). Returns x unchanged without a mesh.

    Without constraints, XLA derives the sharding of each array from its neighbours, and moves activations to the
    devices that hold the parameters.
    """
    return x if mesh is None or mesh.size == 1 else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rule))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["table_WVD"], meta_fields=["mesh"])
@dataclass(frozen=True)
class Copies:
    """W copies of an embedding table, one for each of the W parts of a batch, on the devices that hold the part.

    The gradient of a copy collects all its uses: the lookups and the logits. It is then summed over devices once, where
    the copies were made. With a single table, XLA would sum the gradient of each use over devices separately.
    """

    table_WVD: Array
    mesh: Mesh | None

    @classmethod
    def of(cls, table_VD: Array, mesh: Mesh, rule: P) -> Copies:
        """Copies of a table that is sharded by `rule`.

        A copy is not cut along D, because parts of rows would have to be sent to the devices of their sentences. The
        copies are made in two steps, data and then fsdp, and so their gradients are summed in two steps: over fsdp,
        each device gets only its own part of the sum.
        """
        data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
        of_data = constrain(jnp.broadcast_to(table_VD, (data, *table_VD.shape)), mesh, P("data", *rule))
        copies = jnp.broadcast_to(of_data[:, None], (data, fsdp, *table_VD.shape))
        copies = constrain(copies, mesh, P("data", "fsdp", rule[0], None))
        return cls(constrain(copies.reshape(-1, *table_VD.shape), mesh, P(BATCH_AXES, rule[0], None)), mesh)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.table_WVD.shape[1:]

    def __getitem__(self, everything: Any) -> Copies:
        return self  # like `array[...]`

    def lookup(self, index_BT: Array) -> Array:
        """The rows of the table at these indices, x_BTD. B must be a multiple of W."""
        index_WXT = index_BT.reshape(len(self.table_WVD), -1, *index_BT.shape[1:])
        rows_WXTD = jax.vmap(lambda table_VD, index_XT: table_VD[index_XT])(self.table_WVD, index_WXT)
        return constrain(rows_WXTD, self.mesh).reshape(*index_BT.shape, -1)


def with_table_copies(params: Any, mesh: Mesh | None) -> Any:
    """Parameters for an update: embedding tables become `Copies`; positions and token types, also looked up, are not
    cut along D. XLA gathers the other parameters itself where they are used."""
    if mesh is None or mesh.size == 1:
        return params

    def leaf(keys: tuple, x: Array) -> Any:
        rule = spec("/".join(str(key.key) for key in keys))
        if keys[0].key == "entropy":  # not trained; its tables are multiplied by, too
            return constrain(x, mesh, P())
        if keys[-1].key == "table":
            return Copies.of(x, mesh, rule)
        looked_up = keys[-1].key.endswith(("positions", "token_types"))
        return constrain(x, mesh, P(rule[0], None)) if looked_up else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Put NumPy arrays, which are the same in all processes, on the devices of all processes."""
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


@functools.cache
def _replicate_on(mesh: Mesh) -> Any:
    return jax.jit(lambda params: params, out_shardings=NamedSharding(mesh, P()))


def gathered(params: Any) -> Any:
    """Parameters that are sharded over several processes, replicated on the devices of this process."""
    if jax.process_count() == 1:
        return params
    replicated = _replicate_on(jax.tree.leaves(params)[0].sharding.mesh)(params)
    local_mesh = jax.make_mesh(
        (jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )
    return jax.device_put(jax.tree.map(lambda x: x.addressable_data(0), replicated), NamedSharding(local_mesh, P()))


def batch_ways(mesh: Mesh | None) -> int:
    """The number of parts that the rows of a batch are cut into."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
