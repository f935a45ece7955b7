"""Checks of arguments in calls from Python: a mistake raises a one-line error instead of giving a wrong result.

Types and shapes are always checked. Values are checked only outside `jax.jit`: traced arrays have no values, so there
the checks cost no time. Without a check, XLA takes an id beyond the vocabulary for the last id, counts a negative id
from the end, and takes a position beyond the learned ones for the last learned one.

Shapes: B sentences, T positions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import BOS, LABEL_HEADS, ByteLatentModel, ModelConfig, UserError, check_byte_latent, check_model, shown

INT32_MAX = 2**31 - 1  # the largest id and index
MOST_POSITIONS = 2**30  # so that a position and a length together are an index, too


def value_of(x: Any) -> np.ndarray | None:
    """The values of an array or number as NumPy. None if it is traced (`jax.jit`) or partly in other processes; also
    under `jax.disable_jit`, where what was written for traced arrays is called with others."""
    if isinstance(x, jax.core.Tracer) or jax.config.jax_disable_jit or not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(x)


def check_integer(name: str, number: Any, least: int, most: int | None = None) -> None:
    """Raise `UserError` unless `number` is a Python or NumPy integer from `least` to `most`."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
        raise UserError(f"{name} = {shown(number)}: must be an integer")
    if number < least or (most is not None and number > most):
        raise UserError(f"{name} = {number}: must be at least {least}{'' if most is None else f', at most {most}'}")


def check_flag(name: str, flag: Any) -> None:
    """Raise `UserError` unless this is True or False."""
    if not isinstance(flag, (bool, np.bool_)):
        raise UserError(f"{name} = {shown(flag)}: must be True or False")


def check_key(key: Any, *, optional: bool = True) -> None:
    """Raise `UserError` unless this is one key of `jax.random`, or None if that is allowed."""
    if key is None and optional:
        return
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == np.uint32 and np.shape(key) == jax.eval_shape(jax.random.PRNGKey, 0).shape
    if not (raw or (typed and not key.shape)):
        otherwise = ", or None for no dropout" if optional else ""
        raise UserError(f"key = {shown(key)}: give a key, such as jax.random.key(0){otherwise}")


def check_complete(config: ModelConfig) -> None:
    """Raise `UserError` if no model can be built: the config breaks a rule, or a size is None that the data gives."""
    if isinstance(config, ByteLatentModel):
        check_byte_latent(config)
    else:
        check_model(config)
    if config.vocab_size is None:
        raise UserError("model.vocab_size = None: give the size of the vocabulary")
    if config.head in LABEL_HEADS and config.labels is None:
        raise UserError(f"model.labels = None: give the number of outputs of the head {config.head!r}")


def check_array(name: str, x: Any) -> None:
    """Raise `UserError` for what has a dtype, but is no array that JAX computes with: of another library, with a mask
    of NumPy's, in another byte order or of more than 64 bits."""
    if isinstance(x, np.ma.MaskedArray):
        raise UserError(f"{name} is a masked array: give its data, {name}.data, and say otherwise what is masked")
    if not isinstance(x.dtype, np.dtype):
        raise UserError(f"{name} is a {type(x).__module__}.{type(x).__name__}: give an array of JAX or NumPy")
    if not x.dtype.isnative or (x.dtype.kind == "f" and x.dtype.itemsize > 8):
        raise UserError(
            f"{name} is of type {x.dtype!r}, which JAX lacks: convert it with astype, such as to np.float32"
        )


def check_integers(name: str, x_BT: Any) -> None:
    """Raise `UserError` unless this is an array of integers of shape (rows, positions), neither of them 0."""
    if not hasattr(x_BT, "shape") or not hasattr(x_BT, "dtype"):
        raise UserError(f"{name} is a {type(x_BT).__name__}: give an array of integers, such as jnp.array({name})")
    check_array(name, x_BT)
    if not jnp.issubdtype(x_BT.dtype, jnp.integer):
        raise UserError(f"{name} is of type {x_BT.dtype}: give integers")
    if x_BT.ndim != 2:
        raise UserError(f"{name} has the shape {x_BT.shape}: give (rows, positions), or {name}[None] for one sentence")
    if 0 in x_BT.shape:
        raise UserError(f"{name} has the shape {x_BT.shape}: give at least one row and one position")


def check_width(name: str, x_BTD: Any, width: int) -> None:
    """Raise `UserError` unless this is an array of floats of shape (rows, positions, `width`), none of them 0."""
    shape, dtype = getattr(x_BTD, "shape", None), getattr(x_BTD, "dtype", None)
    if dtype is not None:
        check_array(name, x_BTD)
    if shape is None or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{name} = {shown(x_BTD)}: give an array of floats, as `hidden` returns")
    if len(shape) != 3 or shape[2] != width:
        raise UserError(f"{name} has the shape {shape}: give (rows, positions, {width}), as `hidden` returns")
    if 0 in shape:
        raise UserError(f"{name} has the shape {shape}: give at least one row and one position")


def check_float(name: str, dtype: Any) -> jnp.dtype:
    """The dtype. Raises `UserError` unless it is one of floats."""
    try:
        no_type = isinstance(dtype, (list, tuple, np.ndarray, jax.Array))  # JAX takes one as its type, with a warning
        if not no_type and jnp.issubdtype(found := jnp.dtype(dtype), jnp.floating):
            return found
    except (TypeError, ValueError):  # ValueError: a string that is not text
        pass
    raise UserError(f"{name} = {shown(dtype)}: give a type of floats, such as jnp.bfloat16")


def check_held(name: str, x: Any) -> None:
    """Raise `UserError` if an array was deleted, as those are that were donated (`jax.jit(..., donate_argnums=0)`)."""
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_deleted():
        raise UserError(
            f"{name} was deleted or donated to a jitted function; use the arrays that the function returned"
        )


def check_axes(name: str, x: Any) -> None:
    """Raise `UserError` if an array was deleted, or is sharded over mesh axes of the type Explicit.

    On such axes, JAX wants the sharding of the result of each gather and reshape from the model's code.
    """
    check_held(name, x)
    sharding = getattr(getattr(x, "aval", x), "sharding", None)
    types = getattr(getattr(sharding, "mesh", None), "axis_types", ())
    if jax.sharding.AxisType.Explicit in types and any(axis is not None for axis in sharding.spec):
        raise UserError(
            f"{name} is sharded over mesh axes of the type Explicit, the default of jax.make_mesh; make the mesh with "
            "axis_types=(jax.sharding.AxisType.Auto,) * (number of axes)"
        )


def check_ids(name: str, ids_BT: Any, size: int, limit: str = "vocab_size") -> None:
    """Raise `UserError` unless this is an array of ids below `size`, of shape (rows, positions). `limit`: the field
    that gives the size."""
    check_integers(name, ids_BT)
    check_axes(name, ids_BT)
    ids = value_of(ids_BT)
    if ids is not None and not (ids.min() >= 0 and ids.max() < size):
        row, column = np.argwhere((ids < 0) | (ids >= size))[0]
        raise UserError(
            f"{name}[{row}, {column}] = {ids[row, column]}: ids must be 0 or more and below {limit}, {size}"
        )


def check_same_shape(name: str, x_BT: Any, ids_BT: Any) -> None:
    """Raise `UserError` unless this array of integers has the shape of `ids_BT`, or one row for all rows."""
    check_integers(name, x_BT)
    if x_BT.shape[1] != ids_BT.shape[1] or x_BT.shape[0] not in (1, ids_BT.shape[0]):
        raise UserError(f"{name} has the shape {x_BT.shape}, but its ids have {ids_BT.shape}: give the same shape")
    if (values := value_of(x_BT)) is not None and not (values.min() >= -INT32_MAX and values.max() <= INT32_MAX):
        raise UserError(f"{name} goes from {values.min()} to {values.max()}: give integers of 32 bits")


def check_mask(name: str, mask: Any, shape: tuple[int, ...], cache: Any = None) -> None:
    """Raise `UserError` unless this is a boolean array of this shape (one row may stand for all rows) and there is no
    cache, which has a mask of its own."""
    if cache is not None:
        raise UserError(f"with a cache, at_B and the cache give the mask; leave out {name}")
    if hasattr(mask, "dtype"):
        check_array(name, mask)
    if getattr(mask, "dtype", None) != np.dtype(bool):
        raise UserError(f"{name} is of type {getattr(mask, 'dtype', type(mask).__name__)}: give an array of booleans")
    if mask.shape[1:] != shape[1:] or mask.shape[0] not in (1, shape[0]):
        raise UserError(f"{name} has the shape {mask.shape}: give {shape}, or one row for all rows")


def check_places(name: str, places: Any, rows: int) -> None:
    """Raise `UserError` unless this is one position, or an array with one for each of `rows` sentences."""
    if hasattr(places, "dtype"):
        check_array(name, places)
    kind = getattr(places, "dtype", type(places))
    if kind is not int and not (hasattr(places, "dtype") and jnp.issubdtype(kind, jnp.integer)):
        raise UserError(f"{name} = {shown(places)}: give integers")
    if jnp.shape(places) not in ((), (rows,)):
        raise UserError(
            f"{name} has the shape {jnp.shape(places)}: give one position, or one for each sentence, {rows}"
        )
    if (values := value_of(places)) is not None and not (values.min() >= 0 and values.max() <= MOST_POSITIONS):
        raise UserError(f"{name} has {shown(values.tolist())}: positions must be from 0 to {MOST_POSITIONS}")


def check_pair(name: str, pair: Any, parts: str = "source, target") -> tuple[Any, Any]:
    """Split an argument of two arrays, `parts`; (None, None) if it is None."""
    if pair is None:
        return None, None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError(f"{name} must be two arrays: ({parts})")
    return pair[0], pair[1]


def check_positions(name: str, ids_BT: Any, positions_BT: Any, rows: int, mask_BT: Any = True) -> None:
    """Raise `UserError` if a piece has a position outside a learned table of `rows` rows. `mask_BT`: False at padding,
    which is not checked."""
    mask, positions = value_of(mask_BT), value_of(positions_BT)
    if mask is None or positions is None:
        return
    wrong = np.broadcast_to((positions < 0) | (positions >= rows), ids_BT.shape) & mask
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{name}[{row}, {column}] is at position {np.broadcast_to(positions, ids_BT.shape)[row, column]}, "
            f"counted from 0, but this model has {rows} learned positions (max_positions); give shorter sentences"
        )


def check_length(name: str, length: Any, rows: int) -> None:
    """Raise `UserError` if rows of pieces, without padding, are longer than a learned table of `rows` rows."""
    if isinstance(length, int) and length > rows:  # else symbolic, in an exported program
        raise UserError(
            f"{name} has {length} positions, but this model has {rows} learned ones (max_positions); give shorter rows"
        )


def check_sources(mask_BS: Any, ids_BT: Any) -> None:
    """Raise `UserError` unless there are M >= 1 targets per source, and no target has pieces without any in its source.

    Rows that are empty on both sides may fill up a batch. A bos alone counts as empty: training puts one before each
    row.
    """
    sentences, rows = mask_BS.shape[0], ids_BT.shape[0]
    if rows % sentences:
        raise UserError(f"{rows} targets for {sentences} sources: give one for each, or M beams for each")
    mask, ids = value_of(mask_BS), value_of(ids_BT)
    if mask is None or ids is None:
        return
    wrong = np.repeat(~mask.any(axis=1), rows // sentences) & (ids > BOS).any(axis=1)
    if wrong.any():
        raise UserError(f"row {np.argmax(wrong)} has a target, but its source is only padding; leave the row out")
