"""Byte Latent Transformer: causal through the ends of patches, what each byte reads, cached as not cached."""

import dataclasses
import functools
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from tiny import VOCABULARY, random_params

from transformer.config import (
    AttentionConfig,
    ByteLatentModel,
    ModelConfig,
    NgramConfig,
    PatchConfig,
    UserError,
    check_model,
)
from transformer.model import build
from transformer.model.patches import ended, most, ngrams, running_max

SIZES = {"d_model": 8, "d_ff": 12, "heads": 2, "dropout": 0.0, "positions": "rotary", "pre_norm": True}
PART = ModelConfig(encoder_layers=0, decoder_layers=2, **SIZES)
MODEL = ByteLatentModel(
    **{**SIZES, "encoder_layers": 1, "decoder_layers": 2},
    encoder_attention=AttentionConfig(window=3),
    decoder_attention=AttentionConfig(window=5),
    latent=dataclasses.replace(PART, d_model=16, heads=4),
    entropy=dataclasses.replace(PART, decoder_layers=1),
    patches=PatchConfig(bytes=3.0, room=1.5, spare=2, threshold=1.9),
    ngrams=NgramConfig(shortest=2, longest=4, rows=20),
    vocab_size=VOCABULARY,
)
CONFIGS = {
    "entropies": MODEL,
    "hardly any room": dataclasses.replace(MODEL, patches=PatchConfig(bytes=4.0, room=1.0, spare=0, threshold=1.9)),
    "static": dataclasses.replace(MODEL, patches=PatchConfig(by="static", bytes=2.5)),
    "post-norm, one way, learned positions": dataclasses.replace(
        MODEL,
        **{"pre_norm": False, "positions": "learned", "max_positions": 24, "tied_embeddings": "none", "kv_heads": 1},
        latent=dataclasses.replace(PART, kv_sharing=2, positions="none"),
        ngrams=NgramConfig(rows=0),
        encoder_attention=AttentionConfig(),
    ),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
TEXT = np.random.default_rng(5).integers(0, VOCABULARY, (3, 20)).astype(np.int32)


@functools.cache
def model(name):
    built = build(CONFIGS[name])
    return built, random_params(built, seed=3)


@functools.cache
def forward(name):
    """tokens -> logits, the number of each byte's patch, and the patches that have ended with it."""
    built, params = model(name)

    def run(tokens):
        bound = built.bind(params)
        return bound(tokens), *bound.patches(tokens)

    return jit(run)


@pytest.mark.parametrize("name", ["entropies", *SLOW[1:2], "static", *SLOW[3:]])
def test_a_byte_changes_nothing_before_it(name):
    """Patches are cut anew in the changed text."""
    T, V = TEXT.shape[1], VOCABULARY
    changed = np.repeat(TEXT[:1], T + 1, axis=0)  # the last row stays as it is
    changed[range(T), range(T)] = (changed[range(T), range(T)] + 1 + np.arange(T) % (V - 1)) % V
    (*others, logits), _, (*other_done, done) = map(np.asarray, forward(name)(changed))
    later, cut_anew = 0, 0
    for j, (other, other_ended) in enumerate(zip(others, other_done, strict=True)):
        np.testing.assert_array_equal(other[:j], logits[:j])
        np.testing.assert_array_equal(other_ended[:j], done[:j])
        assert np.abs(other[j] - logits[j]).max() > 1e-4
        later += np.abs(other[j + 1 :] - logits[j + 1 :]).sum() > 1e-3
        cut_anew += (other_ended != done).any()
    assert later >= T - 2
    assert (cut_anew > 0) == (CONFIGS[name].patches.by == "entropy")


def test_a_byte_is_predicted_from_the_patch_before_its_own():
    """Where local layers see a single byte, logits depend on that byte and on all patches that have ended with it."""
    alone = AttentionConfig(window=0)
    patches = PatchConfig(by="static", bytes=3.0)
    config = dataclasses.replace(
        MODEL, encoder_attention=alone, decoder_attention=alone, patches=patches, ngrams=NgramConfig(rows=0)
    )
    built = build(config)
    params, T = random_params(built), TEXT.shape[1]
    changed = np.repeat(TEXT[:1], T + 1, axis=0)
    changed[range(T), range(T)] = (changed[range(T), range(T)] + 1) % VOCABULARY
    logits = np.asarray(jit(built.apply)(params, changed))
    depends = np.abs(logits[:-1] - logits[-1]).max(axis=2) > 1e-6  # [changed byte, predicted from]
    first = [0, *range(1, T, 3)]  # the first patch is one byte
    patch = np.searchsorted(first, np.arange(T + 1), side="right")
    expected = [[j == t or patch[j] < patch[t + 1] for t in range(T)] for j in range(T)]
    np.testing.assert_array_equal(depends, np.array(expected) & (np.arange(T)[:, None] <= np.arange(T)))


def test_more_bytes_than_learned_positions_are_refused():
    """Of the model itself, with a cache and without, and of the part that gives the entropies."""
    learned = {"positions": "learned", "max_positions": 8}
    own = dataclasses.replace(CONFIGS["static"], **learned)
    entropy = dataclasses.replace(MODEL, entropy=dataclasses.replace(MODEL.entropy, **learned))
    for config in (own, entropy):
        bound = build(config).bind(build(config).init(jax.random.key(0)))
        with pytest.raises(UserError, match="tokens_BT has 20 positions, but this model has 8 learned ones"):
            jit(bound)(TEXT)
        with pytest.raises(UserError, match=r"tokens_BT\[0, 8\] is at position 8, .* has 8 learned positions"):
            bound.decode(TEXT, cache=bound.init_cache(3, 20))


@pytest.mark.parametrize("name", ["entropies", *SLOW[1:]])
def test_a_prompt_at_once_and_then_byte_by_byte(name):
    """Rows have prompts of different lengths, and two beams, of which the second continues another text."""
    built, params = model(name)
    rows, lengths = 2, np.array([5, 9])

    @jit
    def prompt(tokens):
        bound = built.bind(params)
        cache = bound.init_cache(rows, 30)
        cache = cache._replace(kv=jax.tree.map(lambda x: x + 7.0, cache.kv))  # must not be seen
        return bound.hidden(tokens, cache=cache)[1]

    @jit
    def step(tokens, cache, at):
        return built.bind(params).decode(tokens, cache=cache, at_B=at)[:2]

    cache = prompt(TEXT[:rows, : lengths.max()])
    for message, wrong in {
        "at_B is missing": {"cache": cache},
        "at_B needs a cache": {"at_B": 9},
        r"at_B has the shape \(3,\)": {"cache": cache, "at_B": jnp.full(3, 9)},
        "key: this model has no dropout with a cache": {"cache": cache, "at_B": 9, "key": jax.random.key(0)},
    }.items():
        with pytest.raises(UserError, match=message):
            built.bind(params).decode(TEXT[:rows, :1], **wrong)
    with pytest.raises(UserError, match=r"^tokens_BT is a list: give an array"):
        built.bind(params).patches([[1]])
    seen = cache.seen_BMS & (cache.positions_BS < lengths[:, None])[:, None]
    cache = cache._replace(seen_BMS=jnp.repeat(seen, 2, axis=1))
    texts = np.repeat(TEXT[:rows], 2, axis=0)
    for row, n in enumerate(lengths):
        texts[2 * row + 1, n:] = TEXT[2, n:]
    expected = np.asarray(forward(name)(texts)[0])
    for i in range(8):
        at = lengths + i
        of_rows = np.arange(4), np.repeat(at, 2)
        found, cache = step(texts[of_rows][:, None], cache, jnp.asarray(at))
        np.testing.assert_allclose(found[:, 0], expected[of_rows], rtol=2e-4, atol=2e-5)
        if i == 3:  # the beams change places, and slots are collected
            cache = jit(lambda cache: cache.reorder(jnp.array([[1, 0], [1, 0]])).collect(18, 8))(cache)
            texts, expected = texts[[1, 0, 3, 2]], expected[[1, 0, 3, 2]]


@pytest.mark.parametrize("name", ["entropies", "hardly any room"])
def test_patches_are_those_of_a_plain_loop(name):
    patches, draw = CONFIGS[name].patches, np.random.default_rng(0)
    entropy = draw.uniform(0, 3, (4, 50)).astype(np.float32)
    expected = []
    for row in entropy:
        done = 0
        for t, value in enumerate(row):
            room = 1 + patches.spare + int(t / (patches.bytes / patches.room))
            done = min(done + (t == 0 or value > patches.threshold), room)
            expected.append(done)
    positions = np.arange(50)[None]
    of_row = jit(lambda *arrays: ended(patches, arrays[0], arrays[1], patches.threshold, arrays[2]))
    found = of_row(entropy, positions, np.zeros(4, np.int32))
    assert np.asarray(found).ravel().tolist() == expected
    assert max(expected) <= most(patches, 50)
    half = of_row(entropy[:, 20:], positions[:, 20:], found[:, 19])
    np.testing.assert_array_equal(half, found[:, 20:])


def test_static_patches_are_equally_long():
    for length in (1.0, 2.5, 4.0):
        patches = PatchConfig(by="static", bytes=length)
        done = np.asarray(ended(patches, None, jnp.arange(100)[None], 0.0, jnp.zeros(1, jnp.int32)))[0]
        assert done.tolist() == [1 + int(t / length) for t in range(100)]
        assert [most(patches, n) for n in range(1, 101)] == done.tolist()


def test_hashes_of_ngrams():
    """The same n-gram has the same row, wherever it stands; different ones mostly have others."""
    config = NgramConfig(shortest=3, longest=5, rows=1_000)
    draw = np.random.default_rng(1)
    tokens = np.tile(draw.integers(4, 260, 40), 2)[None]
    of_row = jit(lambda earlier, tokens: list(ngrams(config, earlier, tokens)))
    found = [np.asarray(rows)[0] for rows in of_row(np.zeros((1, 4), np.int32), tokens)]
    for i, rows in enumerate(found):
        np.testing.assert_array_equal(rows[10:40], rows[50:])
        assert ((rows >= 1_000 * i) & (rows < 1_000 * (i + 1))).all() and len(set(rows[:40].tolist())) > 36
    later = of_row(tokens[:, 3:7], tokens[:, 7:])
    for rows, part in zip(found, later, strict=True):
        np.testing.assert_array_equal(part[0], rows[7:])


def test_a_byte_is_read_as_the_mean_of_its_embedding_and_those_of_its_ngrams():
    built, params = model("entropies")
    bound, earlier = built.bind(params), np.zeros((3, 3), np.int32)
    found = bound._read(TEXT, earlier, jnp.arange(20)[None], None)
    tables = [np.asarray(bound.ngram_embedding.embed(rows)) for rows in ngrams(MODEL.ngrams, earlier, TEXT)]
    expected = np.mean([np.asarray(bound.embedding.embed(TEXT)), *tables], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_running_maximum_of_a_patch():
    draw = np.random.default_rng(2)
    x, number = draw.normal(size=(2, 13, 3)).astype(np.float32), np.cumsum(draw.random((2, 13)) < 0.3, axis=1)
    found = np.asarray(jit(running_max)(x, number))
    for b, t in np.ndindex(2, 13):
        inside = (number[b] == number[b, t]) & (np.arange(13) <= t)
        np.testing.assert_array_equal(found[b, t], x[b, inside].max(axis=0))


@pytest.mark.slow
def test_every_parameter_learns_but_the_entropies():
    built, params = model("entropies")
    grads = jit(jax.grad(lambda params: built.apply(params, TEXT).astype(jnp.float32)[..., 0].sum()))(params)
    still = [
        "/".join(key.key for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 1e-9
    ]
    assert still and all(path.startswith("entropy/") for path in still)
    assert len(still) == len(jax.tree.leaves(params["entropy"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"latent": dataclasses.replace(PART, d_model=12)}, r"^model\.latent\.d_model = 12: must be a multiple of m"),
        ({"latent": dataclasses.replace(PART, heads=3)}, r"^model\.latent\.heads = 3: must divide model\.latent\.d_m"),
        ({"entropy": dataclasses.replace(PART, encoder_layers=1)}, r"^model\.entropy\.encoder_layers = 1: must be 0"),
        ({"encoder_layers": 0}, r"^model\.encoder_layers = 0: must be at least 1: the layers of the local encoder"),
        ({"patches": []}, r"^model\.patches: must be a PatchConfig, not list \[\]"),
        ({"ngrams": NgramConfig(shortest=9)}, r"^model\.ngrams\.shortest = 9: must be at most model\.ngrams\.longest"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_are_told(change, told):
    with pytest.raises(UserError, match=told):
        build(dataclasses.replace(MODEL, **change))


def test_a_model_without_a_threshold_cuts_no_patches():
    built = build(dataclasses.replace(MODEL, patches=PatchConfig()))
    with pytest.raises(UserError, match=r"^model\.patches\.threshold = None: give the entropy, in nats, above which"):
        jax.eval_shape(built.apply, built.abstract_params, TEXT)


def _at_bounds(kind, base):
    """Each field of a section of numbers, at its least and its largest value."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        of = [one for one in (hint, *get_args(hint)) if hasattr(one, "__metadata__")]
        for rule, number in ((one.__metadata__[0], one.__origin__) for one in of[:1]):
            for value in (rule.least, rule.most):
                yield pytest.param(dataclasses.replace(base, **{name: number(value)}), id=f"{name}={value}")


@pytest.mark.slow
@pytest.mark.parametrize("section", [*_at_bounds(PatchConfig, MODEL.patches), *_at_bounds(NgramConfig, MODEL.ngrams)])
def test_numbers_at_their_bounds_are_computed_or_refused(section):
    config = dataclasses.replace(MODEL, **{"patches" if isinstance(section, PatchConfig) else "ngrams": section})
    try:
        check_model(config)
        built = build(config)
        jax.eval_shape(lambda params, tokens: built.apply(params, tokens), built.abstract_params, TEXT)
    except UserError as error:
        assert str(error).startswith("model.")
