"""`Model`: an NNX module as pure functions of its parameters, which are a nested dict of arrays.

NNX modules hold their parameters as state, but optimisers, checkpoints and sharding need a plain tree. A `Model` wraps
the module and takes such a tree. All keys are strings, so a path such as `decoder/layers/0/self_attention/query` names
the same parameter in memory, in a sharding rule and on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from math import prod
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ByteLatentModel, ModelConfig, UserError
from .byte_latent import ByteLatent
from .checks import check_array, check_axes, check_complete, check_key
from .decoder import Decoder
from .encoder import Encoder
from .encoder_decoder import EncoderDecoder

Params = Mapping[str, Any]
M = TypeVar("M", bound=nnx.Module)


class Model(Generic[M]):
    """Pure functions for the module that `make(rngs)` returns.

    `model.init(key)` returns parameters; `model.apply(params, ...)` calls the module with them; `model.config` is its
    config. A `Model` is immutable and hashable, so it can be a static argument of `jax.jit`. Two models are equal if
    their configs and their `make` are. It can be pickled if `make` can.
    """

    def __init__(self, config: ModelConfig, make: Callable[[nnx.Rngs], M]):
        graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        variables = dict(nnx.to_flat_state(state))
        self.__dict__.update(config=config, _make=make, _graph=graph, _variables=variables)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):  # of Python: `Model[Encoder](...)` sets __orig_class__
            return super().__setattr__(name, value)
        raise UserError("a Model is immutable: to change its config, build another one")

    def __delattr__(self, name: str) -> None:
        raise UserError("a Model is immutable: to change its config, build another one")

    def __repr__(self) -> str:
        """The fields of the config that are not defaults, and the number of parameters."""
        kind = type(self.config)
        default = kind()
        named = ((f.name, getattr(self.config, f.name), getattr(default, f.name)) for f in fields(self.config))
        changed = ", ".join(f"{name}={value!r}" for name, value, usual in named if value != usual)
        return (
            f"<Model({kind.__name__}({changed})): {sum(prod(v.shape) for v in self._variables.values()):,} parameters>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and (self.config, self._make) == (other.config, other._make)

    def __hash__(self) -> int:
        return hash((self.config, self._make))

    def __reduce__(self) -> tuple[Any, ...]:
        return (build, (self.config,)) if isinstance(self._make, _Module) else (Model, (self.config, self._make))

    @property
    def abstract_params(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s; allocates nothing."""
        return _nest({path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in self._variables.items()})

    @property
    def starts(self) -> Mapping[str, str]:
        """Map each parameter's path to the distribution of its initial values, in words."""
        return {"/".join(map(str, path)): v.get_metadata()["start"] for path, v in self._variables.items()}

    def init(self, key: Array) -> Params:
        """Fresh float32 parameters; the same key gives the same values. Raises `UserError` if `key` is no key."""
        check_key(key, optional=False)
        state = nnx.state(self._make(nnx.Rngs(params=key)))
        return _nest({path: variable[...] for path, variable in nnx.to_flat_state(state)})

    def apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Call the module with these parameters: `logits_BTV = model.apply(params, source_BS, target_BT)`.

        Same as `bind(params)(...)`. `key=` switches dropout on. See `EncoderDecoder.__call__`.

        Raises `UserError` for forward-mode derivatives (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) in 16 bits; derivatives
        of any order by `jax.grad` work in all types.
        """
        try:
            return self.bind(params)(*args, **kwargs)
        except TypeError as error:
            if "custom_vjp" not in str(error):
                raise
            raise UserError(
                f"forward-mode derivatives are not possible with model.dtype = {self.config.dtype!r}; use 'float32', "
                "or jax.grad of jax.grad"
            ) from None

    def bind(self, params: Params) -> M:
        """The module with these parameters, to call its methods: `model.bind(params).encode(source_BS)`.

        Use the bound module only within the function that called `bind`. Raises ValueError that names every parameter
        that is missing, unknown, or of a wrong shape or type.
        """
        if not isinstance(params, Mapping):
            raise ValueError(f"params is a {type(params).__name__}: give a nested dict of arrays, as `init` returns")
        flat = _flatten(params)
        if set(params) == {"params"}:
            raise ValueError("params has the single key 'params', as flax.linen has it: give params['params']")
        expected = {tuple(map(str, path)): path for path in self._variables}
        wrong = [f"missing {'/'.join(p)}" for p in expected if p not in flat]
        wrong += [f"unknown {'/'.join(map(str, p))}" for p in flat if p not in expected]
        wrong += [
            f"{'/'.join(p)} has shape {_shape(flat[p])}, not {self._variables[path].shape}"
            for p, path in expected.items()
            if p in flat and _shape(flat[p]) != self._variables[path].shape
        ]
        if wrong:
            raise ValueError("parameters do not fit the model: " + "; ".join(wrong))
        for p, leaf in flat.items():
            if hasattr(leaf, "dtype"):
                check_array("/".join(p), leaf)
        wrong = [f"{'/'.join(p)} is of type {x.dtype}, not of floats" for p, x in flat.items() if not _of_floats(x)]
        if wrong:
            raise ValueError("parameters do not fit the model: " + "; ".join(wrong))
        for path, leaf in flat.items():
            check_axes("/".join(path), leaf)
        state = nnx.from_flat_state([(path, self._variables[path].replace(flat[p])) for p, path in expected.items()])
        return nnx.merge(self._graph, state)


def build(config: ModelConfig) -> Model[Any]:
    """The model of a config, whose `vocab_size` must be set: an `EncoderDecoder`, a `Decoder` if encoder_layers = 0, an
    `Encoder` if decoder_layers = 0, a `ByteLatent` for a `ByteLatentModel`.

    Equal configs give the same `Model`.
    Raises `UserError` (a ValueError) if the config breaks a rule, with the same message as on the command line.
    """
    check_complete(config)
    return _built(config)


@cache  # compiled programs belong to a `Model` object: a second one of the same config would compile all again
def _built(config: ModelConfig) -> Model[Any]:
    return Model(config, _Module(config))


@dataclass(frozen=True)
class _Module:
    """Makes the module of `build`. Not a lambda, so that models can be compared and pickled."""

    config: ModelConfig

    def __call__(self, rngs: nnx.Rngs) -> EncoderDecoder | Decoder | Encoder | ByteLatent:
        if isinstance(self.config, ByteLatentModel):
            return ByteLatent(self.config, rngs=rngs)
        encoder, decoder = self.config.encoder_layers > 0, self.config.decoder_layers > 0
        kind = EncoderDecoder if encoder and decoder else Decoder if decoder else Encoder
        return kind(self.config, rngs=rngs)


@jax.jit
def finite(params: Params) -> Array:
    """Whether all parameters are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))


def _shape(leaf: Any) -> tuple[int, ...] | str:
    """The shape of an array, or in words that there is none."""
    no_array = isinstance(leaf, jax.ShapeDtypeStruct) or not hasattr(leaf, "shape")
    return f"none, as a {type(leaf).__name__}" if no_array else leaf.shape


def _of_floats(leaf: Any) -> bool:
    return not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jnp.floating)


def _nest(flat: Mapping[tuple, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = nested
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        node[str(path[-1])] = leaf
    return nested


def _flatten(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The leaves by their paths. An empty dict is a leaf: as a branch it would be lost. The integers that
    `nnx.to_pure_dict` gives for places in a list count as strings."""
    flat = {}
    for name, node in tree.items():
        inner = (*path, str(name) if isinstance(name, int) else name)
        branch = isinstance(node, Mapping) and node
        flat |= _flatten(node, inner) if branch else {inner: node}
    return flat
