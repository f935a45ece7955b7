"""The expected results of a `Translator`: a plain beam search with whole passes, no cache and no batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from plain_beam_search import plain_beam_search
from quick import jit

from transformer.config import DecodeConfig, ModelConfig
from transformer.data.tokenizer import Cut
from transformer.inference.translator import Translator
from transformer.model import build

PAD, BOS, EOS = 0, 1, 2
VOCABULARY = 14
SOURCE_LENGTH, TARGET_LENGTH = 8, 36  # of the whole passes
CONFIG = ModelConfig(
    encoder_layers=2, decoder_layers=2, d_model=16, d_ff=24, heads=4, max_positions=64, positions="learned",
    tied_embeddings="none",
)  # fmt: skip
SPREAD = {"table": 0.6, "query": 0.5, "key": 0.5, "value": 0.5, "output": 0.5, "w1": 0.2, "w2": 0.2}


class Numbers:
    """A tokenizer whose text is the ids of the pieces. For prefixes, each piece spells a different letter."""

    vocab_size = VOCABULARY
    spelling = (b"", b"", b"", *(bytes([65 + i]) for i in range(3, VOCABULARY)))

    def prefix(self, text):
        return " ".join(text.split())

    def cut(self, lines):
        ids = self.encode(lines)
        return [Cut(line, [bytes([65 + i]) for i in line]) for line in ids]

    def ends_in_space(self, text):
        return False

    def encode(self, lines, side="source"):
        return [[int(word) for word in line.split()] for line in lines]

    def unknown(self, lines, first_line):
        return None

    def decode(self, pieces):
        return [" ".join(map(str, own)) for own in pieces]

    def piece(self, i):
        return f"<{i}>"


@functools.cache
def tiny(config, seed):
    """A model with random parameters and large attention weights, so that outputs depend on their sources."""
    model, draw = build(config.with_vocabulary(VOCABULARY)), np.random.default_rng(seed)

    def leaf(path, abstract):
        name = path[-1].key
        values = draw.normal(size=abstract.shape) * SPREAD.get(name, 0.1) + (name == "scale")
        return jnp.asarray(values, abstract.dtype)

    return model, jax.tree_util.tree_map_with_path(leaf, model.abstract_params)


def translator(config=CONFIG, seeds=(0,), **decode):
    """One tiny random model, or several."""
    decode = {
        "beam_size": 3,
        "min_length": 3,
        "max_extra_length": 6,
        "max_source_length": 15,
        "batch_sentences": 4,
        **decode,
    }
    (model, params), *others = (tiny(config, seed) for seed in seeds)
    return Translator(model, params, Numbers(), DecodeConfig(**decode), others)


def begun(translator, prefixes):
    """Prefixes from their pieces."""
    return translator._prefixes.of([" ".join(map(str, pieces)) for pieces in prefixes])


def sources(count, seed=0, longest=SOURCE_LENGTH - 1):
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCABULARY, draw.integers(1, longest + 1)).tolist() for _ in range(count)]


@functools.cache
def whole(model):
    """Log-probabilities after each prefix of a target."""
    return jit(lambda params, source, target: jax.nn.log_softmax(model.apply(params, source[None], target[None])[0]))


def following(models, source):
    """`log_probs(prefix)` of the next piece after one source, the probabilities averaged over [(model, params)]."""
    padded = np.array([*source, EOS] + [PAD] * (SOURCE_LENGTH - 1 - len(source)))

    @functools.cache
    def log_probs(prefix):
        target = np.array([BOS, *prefix] + [PAD] * (TARGET_LENGTH - 1 - len(prefix)))
        each = [np.float64(whole(model)(params, padded, target)[len(prefix)]) for model, params in models]
        mean = np.log(np.mean(np.exp(each), axis=0))
        mean[[PAD, BOS]] = -np.inf
        return mean

    return log_probs


def expected(translator, source, prefix=()):
    """The hypotheses of one source as (pieces without eos, scores), with the options of the translator."""
    c = translator.config
    limit = len(source) + c.max_extra_length + 1
    if c.max_length is not None:
        limit = min(limit, c.max_length + 1)
    found = plain_beam_search(
        following(list(zip(translator.models, translator.all_params, strict=True)), source),
        max(limit, len(prefix) + 1), c.beam_size, EOS, c.length_penalty, c.length_normalization,
        min_length=c.min_length, banned=[tuple(map(int, phrase.split())) for phrase in c.banned],
        no_repeat_ngram=c.no_repeat_ngram, prefix=tuple(prefix),
    )[: c.n_best]  # fmt: skip
    return [list(pieces[:-1]) for _, pieces in found], [score for score, _ in found]


def same(found, wanted):
    """1 if the best pieces are the same; 0 for an exception, which must have a choice closer than 1e-4. The best scores
    must be within 1e-5 of each other, relatively."""
    (pieces, scores), (others, other_scores) = found, wanted
    np.testing.assert_allclose(scores[:1], other_scores[:1], rtol=1e-5)
    if pieces[:1] == others[:1]:
        return 1
    runners_up = np.concatenate([-np.diff(scores), -np.diff(other_scores)])
    assert runners_up.min() <= 1e-4
    return 0
