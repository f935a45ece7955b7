"""Tiny models with random values in all parameters: the zeros and ones of an initialised model would hide mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from quick import jit

from transformer.config import ModelConfig
from transformer.model import build

VOCABULARY = 13
PAD, BOS, EOS = 0, 1, 2
TINY = ModelConfig(encoder_layers=2, decoder_layers=2, d_model=16, d_ff=24, heads=4, max_positions=12)
SHALLOW = dataclasses.replace(TINY, encoder_layers=1, decoder_layers=1)

# Of different lengths, padded on the right.
SOURCE = np.array([[5, 7, 11, 4, 9, EOS], [8, 3, EOS, 0, 0, 0], [6, 12, 10, 5, EOS, 0]])
TARGET = np.array([[BOS, 9, 4, 7, 12], [BOS, 6, 0, 0, 0], [BOS, 3, 8, 5, 0]])


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, abstract):
        values = rng.normal(size=abstract.shape) * 0.3 + (path[-1].key == "scale")
        return jnp.asarray(values, abstract.dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.abstract_params)


@functools.cache
def tiny(config=TINY):
    model = build(config.with_vocabulary(VOCABULARY))
    return model, random_params(model)


@functools.cache
def forward(config=TINY):
    """Logits of sources and targets with these parameters, and with a dropout key if given."""
    return jit(tiny(config)[0].apply)


def lengths(tokens):
    return (tokens != PAD).sum(axis=1)
