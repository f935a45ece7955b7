"""Tiny random language models, and what they generate according to plain loops over whole passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from quick import jit

from transformer.config import AttentionConfig, DecodeConfig, ModelConfig
from transformer.data.vocabularies import Characters
from transformer.inference.generator import Generator
from transformer.model import build

VOCABULARY = Characters("abcdefg \n")
LONGEST = 48  # pieces of the whole passes
CONFIG = ModelConfig(
    encoder_layers=0, decoder_layers=2, d_model=16, d_ff=24, heads=4, max_positions=LONGEST, positions="learned",
    pre_norm=True, vocab_size=VOCABULARY.size,
)  # fmt: skip
VARIANTS = {
    "multi-head, learned positions": {},
    "grouped, rotary, small heads": {"kv_heads": 2, "d_k": 6, "d_v": 3, "positions": "rotary"},
    "shared multi-query with a window": {
        "decoder_attention": AttentionConfig(kv_heads=1, kv_sharing=2, window=4),
        "positions": "sinusoidal",
        "pre_norm": False,
    },
}
PROMPTS = ["abc", "", "gfedcba gfed", "a\nb", "e"]


@functools.cache
def tiny(config=CONFIG, seed=0):
    """A model with random parameters that are large enough for varied texts."""
    model, draw = build(config), np.random.default_rng(seed)

    def leaf(path, abstract):
        values = draw.normal(size=abstract.shape) * 0.5 + (path[-1].key == "scale")
        return jnp.asarray(values, abstract.dtype)

    return model, jax.tree_util.tree_map_with_path(leaf, model.abstract_params)


def generator(config=CONFIG, seeds=(0,), context=None, documents=False, vocabulary=VOCABULARY, **decode):
    """One tiny model, or several. Greedy search by default."""
    decode = {"beam_size": 1, "max_extra_length": 12, "batch_sentences": 8, **decode}
    (model, params), *others = (tiny(config, seed) for seed in seeds)
    more = {"context": context, "documents": documents}
    return Generator(model, params, vocabulary, DecodeConfig(**decode), others, **more)


@functools.cache
def whole(model):
    return jit(lambda params, text: model.apply(params, text[None])[0])


def logits_of(model, params, text):
    """Logits after each piece of a text, by a whole pass without a cache."""
    padded = np.zeros(LONGEST, np.int32)
    padded[: len(text)] = text
    return np.float64(whole(model)(params, padded)[: len(text)])


def following(generator, prompt):
    """`log_probs(pieces)` of the next piece after the prompt and these pieces; -inf at those that are never generated.

    The text restarts with its last half where it is longer than the context, and the probabilities of an ensemble are
    averaged.
    """
    ensemble, vocabulary, penalty = generator._ensemble, generator.vocabulary, generator.config.repetition_penalty

    @functools.cache
    def log_probs(pieces):
        text = [*prompt, *pieces]
        seen, size = len(prompt), generator.context or LONGEST
        for _ in pieces:
            seen = seen + 1 if seen < size else max(1, size // 2)
        each = []
        for model, params in zip(ensemble.models, ensemble.params, strict=True):
            logits = logits_of(model, params, text[-seen:])[-1]
            for used in set(text):
                logits[used] = logits[used] / penalty if logits[used] > 0 else logits[used] * penalty
            each.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
        mean = np.log(np.mean(each, axis=0))
        mean[list(vocabulary.banned)] = -np.inf
        return mean

    return log_probs


def greedy(generator, prompt):
    """(pieces, log-probability) of a greedy search from a prompt of pieces."""
    log_probs, pieces, total = following(generator, prompt), (), 0.0
    for _ in range(generator.config.max_extra_length):
        row = log_probs(pieces)
        best = int(np.argmax(row))
        total += row[best]
        if best == generator.vocabulary.end:
            break
        pieces += (best,)
    return list(pieces), total


def log_prob_of(generator, prompt, pieces, ended):
    """The log-probability of given pieces, and of the end after them if `ended`."""
    log_probs, text = following(generator, prompt), [*pieces, *([generator.vocabulary.end] if ended else [])]
    return sum(log_probs(tuple(text[:i]))[piece] for i, piece in enumerate(text))
