"""What JAX's transformations make of the model: meshes, second derivatives, shard_map, export."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from quick import jit
from tiny import SHALLOW, SOURCE, TARGET, tiny

from transformer.config import UserError

HALF = dataclasses.replace(SHALLOW, dtype="bfloat16")


def loss_of(model):
    def loss(params, source, target):
        log_probs = jax.nn.log_softmax(model.apply(params, source, target[:, :-1]))
        return -jnp.take_along_axis(log_probs, target[:, 1:, None], axis=2).mean()

    return loss


@pytest.mark.parametrize("config", [SHALLOW, HALF], ids=["float32", "bfloat16"])
def test_axes_of_the_type_explicit_are_named(config):
    """`jax.make_mesh` makes such axes by default. Arrays that are replicated over them still work."""
    model, params = tiny(config)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    rows, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    source, target = jax.device_put((SOURCE, TARGET), rows)
    message = r"is sharded over mesh axes of the type Explicit.*axis_types=\(jax.sharding.AxisType.Auto"
    for call in (model.apply, jax.jit(model.apply)):
        with pytest.raises(UserError, match=f"^source_BS {message}"):
            call(jax.device_put(params, replicated), source, target)
    with pytest.raises(UserError, match=message):
        model.bind(jax.device_put(params, rows))
    automatic = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    placed = jax.device_put((SOURCE, TARGET), NamedSharding(automatic, P("data")))
    assert jit(model.apply)(params, *placed).shape[:2] == TARGET.shape


@pytest.mark.slow
def test_second_derivatives():
    """The product of Hessian and vector, for the table: by reverse mode in both types, by forward mode in float32."""

    def along(config, forward):
        model, params = tiny(config)
        loss = loss_of(model)

        def of_table(table):
            return jax.grad(lambda table: loss({**params, "embedding": {"table": table}}, SOURCE, TARGET))(table)

        if forward:
            return jit(lambda table: jax.jvp(of_table, (table,), (table,))[1])(params["embedding"]["table"])
        return jit(jax.grad(lambda table: jnp.vdot(of_table(table), jax.lax.stop_gradient(table))))(
            params["embedding"]["table"]
        )

    exact = along(SHALLOW, forward=True)
    np.testing.assert_allclose(along(SHALLOW, forward=False), exact, rtol=1e-3, atol=1e-4)
    assert np.corrcoef(np.ravel(along(HALF, forward=False)), np.ravel(exact))[0, 1] > 0.98


def test_forward_mode_in_16_bits_is_refused_by_name():
    model, params = tiny(HALF)
    with pytest.raises(UserError, match=r"forward-mode derivatives are not possible with model\.dtype = 'bfloat16'"):
        jax.jvp(lambda p: model.apply(p, SOURCE, TARGET), (params,), (params,))


@pytest.mark.parametrize("config", [SHALLOW, HALF], ids=["float32", "bfloat16"])
def test_gradients_in_shard_map_are_those_outside(config):
    """With the check of varying axes, which is the default: parameters do not vary, so their gradients are sums."""
    model, params = tiny(config)
    loss = loss_of(model)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
    outside = jit(jax.grad(loss))(params, SOURCE, TARGET)
    close = {"rtol": 0.05, "atol": 0.01} if config is HALF else {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), jit(mapped)(params, SOURCE, TARGET), outside)
