"""Shared by the tests of conversions: random parameters, comparison by bits, and the message of a refusal."""

import jax
import numpy as np
import pytest

from transformer.config import ModelConfig, UserError
from transformer.model import build


def random_params(config: ModelConfig) -> dict:
    """Every parameter random: zeros and ones would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (rng.normal(size=x.shape) * 0.1 + (path[-1].key == "scale")).astype(np.float32),
        build(config).abstract_params,
    )


def flat(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in leaves}


def complaint(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name
