"""Decoding with real, tiny, random models: the results of a plain search over whole passes, whatever the batch."""

import dataclasses
import functools
import json
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_passes import (
    CONFIG,
    EOS,
    SOURCE_LENGTH,
    VOCABULARY,
    Numbers,
    begun,
    expected,
    same,
    sources,
    tiny,
    translator,
)

from transformer.checkpoint import Checkpoints
from transformer.config import AttentionConfig, Config, DecodeConfig, UserError, to_json
from transformer.inference import batches, engine, ensemble, scorer
from transformer.inference import translator as translator_module
from transformer.inference.strategy import strategy
from transformer.inference.translator import Translator
from transformer.model import EncoderDecoder, Model, build
from transformer.model.attention import KV, attend
from transformer.model.rounding import in_type

VARIANTS = {
    "multi-head": {"positions": "sinusoidal"},
    "grouped": {"kv_heads": 2, "d_k": 6, "d_v": 3},
    "multi-query, pre-norm": {"kv_heads": 1, "pre_norm": True, "positions": "none"},
    "shared": {"kv_sharing": 2, "kv_heads": 2},
    "window in the encoder": {"encoder_attention": AttentionConfig(window=1)},
    "window in the decoder": {"decoder_attention": AttentionConfig(window=2)},
    "window across": {"cross_attention": AttentionConfig(window=1)},
    "each its own": {
        "encoder_attention": AttentionConfig(kv_heads=2, window=2),
        "decoder_attention": AttentionConfig(kv_heads=1, kv_sharing=2, window=3),
        "cross_attention": AttentionConfig(kv_sharing=2, window=3),
        "pre_norm": True,
    },
}
EACH_ITS_OWN = dataclasses.replace(CONFIG, **VARIANTS["each its own"])


# ---- Equal to the plain search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_a_plain_search_without_a_cache(name):
    """All n best hypotheses, with constraints."""
    ours = translator(
        dataclasses.replace(CONFIG, **VARIANTS[name]), n_best=3, no_repeat_ngram=2, min_length=4, banned=("5 6", "7")
    )
    texts = sources(8)
    found = dict(ours.search(texts))
    assert sorted(found) == list(range(8))
    for i, source in enumerate(texts):
        pieces, scores = expected(ours, source)
        np.testing.assert_allclose(found[i][1][:3], scores, rtol=1e-5)
        assert found[i][0][:3] == pieces
    assert len({tuple(pieces) for tokens, _ in found.values() for pieces in tokens}) > 12


OPTIONS = [
    {"beam_size": 1},
    {"beam_size": 5, "n_best": 5, "min_length": 0},
    {"length_normalization": "fairseq", "length_penalty": 1.0},
    {"length_normalization": "none", "max_length": 4},
    {"min_length": 12, "no_repeat_ngram": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_a_plain_search_whatever_the_options(options):
    """With prefixes of 0 to 9 pieces; some are longer than the limit."""
    ours = translator(**options)
    texts, prefixes = sources(4, seed=1), [[], [4, 4], [3], [9, 8, 7, 6, 5, 9, 8, 7, 6]]
    found = dict(ours.search(texts, prefixes=begun(ours, prefixes)))
    for i, source in enumerate(texts):
        n = ours.config.n_best
        pieces, scores = expected(ours, source, prefixes[i])
        np.testing.assert_allclose(found[i][1][:n], scores, rtol=1e-5)
        assert found[i][0][:n] == pieces
        assert all(own[: len(prefixes[i])] == prefixes[i] for own in pieces)


def test_an_ensemble_searches_averaged_probabilities():
    ours, texts = translator(seeds=(0, 1), n_best=2), sources(8, seed=2)
    found, alone = dict(ours.search(texts)), [dict(translator(seeds=(i,)).search(texts)) for i in range(2)]
    for i, source in enumerate(texts):
        pieces, scores = expected(ours, source)
        np.testing.assert_allclose(found[i][1][:2], scores, rtol=1e-5)
        assert found[i][0][:2] == pieces
    for one in alone:  # the ensemble differs from both models
        assert sum(one[i][0][0] != found[i][0][0] for i in range(8)) > 2


@functools.cache
def pieces_of(text):
    from transformer.data.tokenizer import Tokenizer

    return Tokenizer.train([text] * 20, vocab_size=280).model


def workdir(folder, seed, text):
    """A workdir as training leaves it, with a random model."""
    model, params = tiny(CONFIG, seed)
    checkpoints = Checkpoints(str(folder))
    config = Config(model=CONFIG, decode=DecodeConfig(beam_size=2, max_source_length=15, max_extra_length=6))
    files = {"tokenizer.model": pieces_of(text), "config.json": to_json(config).encode()}
    vocab_size = model.abstract_params["embedding"]["table"].shape[0]
    checkpoints.save(1, {"params": params}, progress={"step": 1, "vocab_size": vocab_size}, files=files)
    checkpoints.wait()
    return str(folder)


def test_an_ensemble_of_workdirs(tmp_path):
    folders = [workdir(tmp_path / str(seed), seed, "the dog sees a cat") for seed in (0, 1)]
    ours = Translator.load(folders)
    assert len(ours.models) == 2 and ours.config.beam_size == 2
    ((_, found),) = ours.search([[4, 5, 6]])
    ((_, wanted),) = translator(seeds=(0, 1), beam_size=2).search([[4, 5, 6]])
    assert same(found, wanted)
    other = workdir(tmp_path / "other", 2, "eins zwei drei vier fünf")
    with pytest.raises(UserError, match=r"^\S+ and \S+ have different tokenizers; an ensemble needs the same one$"):
        Translator.load([*folders, other])
    one, two = (Checkpoints(folder).at(1) for folder in (folders[0], other))
    held = two.files()
    del held["tokenizer.model"]  # as of a model whose vocabulary is of another kind
    two.files, two.file = (lambda: held), held.__getitem__
    with pytest.raises(UserError, match=r"^\S+ and \S+ have different vocabularies; an ensemble needs the same one$"):
        ensemble.same_file([one, two], ["tokenizer.model"], "vocabularies")


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
def test_the_type_of_decoding(monkeypatch, backend, trained):
    """'auto' is bfloat16, except on a CPU, where it is the type of the model."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model, params = dataclasses.replace(CONFIG, dtype=trained), {"w1": jnp.ones((2, 3)), "scale": jnp.ones(3)}
    fast = "float32" if backend == "cpu" else "bfloat16"
    for dtype, products, matrices in (
        ("auto", *[trained if backend == "cpu" else "bfloat16"] * 2),
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("int8", fast, "int8"),
    ):
        found, rounded = in_type(model, params, dtype)
        assert found == dataclasses.replace(model, dtype=products)
        assert jax.tree.leaves(rounded["w1"])[0].dtype == matrices and rounded["scale"].dtype == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_workdir_in_fewer_bits(tmp_path, dtype):
    """A search with a cache gives the same score as forced scoring without a cache, within the rounding of the type."""
    folder = workdir(tmp_path / "run", 0, "the dog sees a cat")
    decode = DecodeConfig(beam_size=3, min_length=5, max_extra_length=20, max_source_length=15, dtype=dtype)
    loaded, exact = Translator.load(folder, config=decode), translator(min_length=5, max_extra_length=20)
    ours = Translator(loaded.model, loaded.params, Numbers(), decode)  # its own tokenizer has more pieces
    found = dict(ours.search(TEXTS))
    targets = [found[i][0][0] for i in range(len(TEXTS))]
    scores = np.array([found[i][1][0] for i in range(len(TEXTS))])
    again = np.array([one.score for one in ours.score_pieces(TEXTS, targets)])
    np.testing.assert_allclose(again, scores, rtol=0.02)
    other = np.array([one.score for one in exact.score_pieces(TEXTS, targets)])
    off = np.abs(other - scores) / np.abs(scores)
    assert off.min() > 0  # the type does differ
    assert np.median(off) < 0.05


def fresh(config):
    """A new model, for which no program has been compiled. `build` would return a cached one."""
    return Model(config, lambda rngs: EncoderDecoder(config.with_vocabulary(VOCABULARY), rngs=rngs))


# ---- Whatever the batch ---------------------------------------------------------------------------------------------

TEXTS = sources(19, seed=3, longest=12)
LONG = {"max_extra_length": 28, "min_length": 12, "length_normalization": "fairseq", "length_penalty": 1.0}


@functools.cache
def alone():
    """Each sentence in a separate batch."""
    ours = translator(EACH_ITS_OWN, **LONG)
    return [next(iter(ours.search([source])))[1] for source in TEXTS]


@pytest.mark.slow
def test_long_outputs_equal_a_plain_search():
    """With a cache that is collected."""
    ours, count = translator(EACH_ITS_OWN, **LONG), 0
    for source, found in zip(TEXTS, alone(), strict=True):
        if len(source) < 6:
            pieces, scores = expected(ours, source)
            np.testing.assert_allclose(found[1][:1], scores, rtol=1e-5)
            assert found[0][:1] == pieces
            count += len(pieces[0]) > 16
    assert count > 3


@pytest.mark.parametrize(
    "decode", [{}, {"batch_sentences": 16}, {"batch_sentences": 2}, {"batch_tokens": 16 * 3 * 8, "batch_sentences": 64}]
)
def test_the_batch_changes_nothing(decode):
    """Rows, neighbours and padding; finished sentences that leave; a cache that is collected once or twice."""
    ours = translator(EACH_ITS_OWN, **LONG, **decode)
    for order in (range(len(TEXTS)), np.random.default_rng(0).permutation(len(TEXTS))):
        found = dict(ours.search([TEXTS[i] for i in order]))
        agreeing = sum(same(found[place], alone()[i]) for place, i in enumerate(order))
        print(f"{len(TEXTS) - agreeing} of {len(TEXTS)} differ at a choice closer than 1e-4")
        assert agreeing >= len(TEXTS) - 1
    lengths = [len(tokens[0]) for tokens, _ in alone()]
    assert min(lengths) < 20 and max(lengths) > 32


def test_collecting_the_cache_changes_nothing(monkeypatch):
    """With more room from the beginning, the cache is never collected. Sentences leave only all at once."""
    monkeypatch.setattr(translator_module, "COARSE", engine.COARSE._replace(stage=48))
    monkeypatch.setattr(engine, "MIN_ROWS", 64)
    calls, rearrange = [], engine.rearrange
    monkeypatch.setattr(engine, "rearrange", lambda *a, **k: calls.append(a) or rearrange(*a, **k))
    own, config = fresh(EACH_ITS_OWN), translator(EACH_ITS_OWN, **LONG).config
    found = dict(Translator(own, tiny(EACH_ITS_OWN, 0)[1], Numbers(), config).search(TEXTS))
    assert not calls
    assert sum(same(found[i], alone()[i]) for i in range(len(TEXTS))) >= len(TEXTS) - 1


EIGHT = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path[:0] = sys.argv[1:]
import numpy as np
import test_engine
from transformer.inference.batches import on_all_devices
from transformer.inference.translator import Translator
from transformer.model.rounding import in_type
def of_params(ours, params):
    return Translator(ours.model, params, ours.tokenizer, ours.config)
def search(dtype, spread):
    ours = test_engine.translator(test_engine.EACH_ITS_OWN, **test_engine.LONG, batch_sentences=16)
    params = in_type(test_engine.EACH_ITS_OWN, ours.params, dtype)[1]
    ours = of_params(ours, on_all_devices(params) if spread else params)
    placed, *_ = ours.batcher.put(np.zeros((16, 8), np.int32))
    found = dict(ours.search(test_engine.TEXTS[:16]))
    rows = [shard.data.shape[0] for shard in placed.addressable_shards] if spread else None
    return rows, [found[i] for i in range(len(found))]
def wished(spread):
    # Sampling; then banned phrases, no n-gram twice, prefixes, several results.
    wishes = {"n_best": 3, "no_repeat_ngram": 2, "banned": ("5 6", "7")}
    results = []
    for options in ({"sample": True, "seed": 5, "top_k": 20}, wishes):
        ours = test_engine.translator(test_engine.CONFIG, batch_sentences=16, **options)
        if spread:
            ours = of_params(ours, on_all_devices(ours.params))
        begun = test_engine.begun(ours, [[9, 10][: i % 3] for i in range(16)])
        found = dict(ours.search(test_engine.TEXTS[:16], prefixes=None if "sample" in options else begun))
        results += [[found[i][0], found[i][1]] for i in range(16)]
    return results
plain = search("float32", True), search("int8", True)[1], search("int8", False)[1]
print(json.dumps([*plain[0], *plain[1:], wished(True), wished(False)]))
"""


@pytest.mark.slow
def test_eight_devices_change_nothing(environment):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(here), str(here.parent)],
        capture_output=True, text=True, env=environment | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows, found, eight, one, wished, alone_wished = json.loads(done.stdout)
    assert rows == [2] * 8 and len(found) == 16
    agreeing = sum(same(own, alone()[i]) for i, own in enumerate(found))
    print(f"{len(found) - agreeing} of {len(found)} differ at a choice closer than 1e-4")
    assert agreeing >= len(found) - 1
    # In int8, a value may be rounded the other way.
    np.testing.assert_allclose([own[1][0] for own in eight], [own[1][0] for own in one], rtol=0.01)
    assert len(wished) == 32
    assert sum(same(own, other) for own, other in zip(wished, alone_wished, strict=True)) >= 31


# ---- Compilations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations():
    """A list to which each compilation of any program adds an entry."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_once_compiled_it_serves_all_sentences_and_numbers(compilations):
    texts, prefixes = sources(9, seed=4), [[3], [], [4, 5]] * 3
    options = {"no_repeat_ngram": 3, "banned": ("4 5 6", "7"), "n_best": 2}

    def run(texts, **decode):
        ours = translator(**options | decode)
        return dict(ours.search(texts, prefixes=begun(ours, prefixes)))

    first = run(texts)
    assert compilations  # the list does count them
    del compilations[:]
    # Other sentences of the same shapes, and another number of them.
    assert run(sources(9, seed=5)) != first
    run(sources(9, seed=6), length_penalty=2.0)
    run(sources(9, seed=6), min_length=7, banned=("8 9 10", "11"))
    run(sources(9, seed=6), length_penalty=0.1, max_extra_length=4)
    assert compilations == []
    run(texts, beam_size=2)
    assert compilations


@pytest.fixture
def stages(monkeypatch, compilations):
    """A list with an entry for each call of a program of the engine: its static arguments, the shapes and types of the
    other arguments, and the number of compilations."""
    calls = []

    def watched(name):
        program = getattr(engine, name)

        def call(*args, **static):
            leaves, tree = jax.tree.flatten(args)
            types = tuple((np.shape(leaf), str(jnp.asarray(leaf).dtype)) for leaf in leaves)
            before = len(compilations)
            result = program(*args, **static)
            calls.append(((name, tuple(sorted(static.items())), str(tree), types), len(compilations) - before))
            return result

        call.lower = program.lower
        return call

    for name in ("begin", "proceed", "rearrange"):
        monkeypatch.setattr(engine, name, watched(name))
    return calls


@pytest.mark.slow
def test_each_shape_is_compiled_once_however_long_the_outputs(stages, compilations, report, monkeypatch):
    """Batches of several shapes, halved twice, with caches that are collected and enlarged."""
    monkeypatch.setattr(batches, "FEW_BATCHES", 0)
    config = dataclasses.replace(CONFIG, encoder_layers=1, decoder_layers=1, pre_norm=True)
    own, params = fresh(config), tiny(config, 2)[1]
    decode = translator(**LONG | {"min_length": 8}, batch_sentences=16, streams=1).config
    texts = sources(50, seed=4)

    def run(order):
        del stages[:], compilations[:]
        found = dict(Translator(own, params, Numbers(), decode).search([texts[i] for i in order]))
        lengths = [len(tokens[0]) for tokens, _ in found.values()]
        assert len(found) == len(texts) and min(lengths) < 17 and max(lengths) > 32
        return {shape for shape, _ in stages}, sum(count for _, count in stages)

    shapes, count = run(range(len(texts)))
    names = [name for name, *_ in shapes]
    static = [dict(options) for name, options, *_ in shapes if name == "rearrange"]
    assert names.count("begin") >= 2 and names.count("proceed") >= 8
    for name in ("keep", "length"):
        sizes = {options[name] for options in static} - {None}
        assert len(sizes) >= 2 and sizes <= set(engine.SIZES)
    assert count == len(shapes)
    again, count = run(range(len(texts)))
    assert again == shapes and count == 0 and compilations == []
    # With other neighbours: the number of kept cache slots depends on what the beams have in common.
    others, count = run(np.random.default_rng(0).permutation(len(texts)))
    assert count == len(others - shapes)
    report(f"the same {len(texts)} sentences with other neighbours: {count} programs more than {len(shapes)}")
    assert count < len(shapes) / 4


def test_a_second_translator_of_the_same_config_compiles_nothing(compilations, tmp_path):
    """The same for a translator of another run: programs depend on shapes and options, not on parameters."""
    found = []
    for seed in (0, 1):
        ours = Translator.load(workdir(tmp_path / str(seed), seed, "the dog sees a cat"))
        ours.tokenizer = Numbers()  # of as many pieces as the model
        del compilations[:]
        found.append(dict(ours.search([[4, 5, 6]])))
        found.append(ours.score_pieces([[4, 5, 6]], [[7, 8]]))
    assert compilations == []
    assert found[:2] != found[2:]


@pytest.mark.parametrize("count", [3, 16, 40])
def test_after_warm_up_nothing_is_compiled(compilations, count):
    """For outputs of one stage, 32 pieces with few sentences."""
    config = dataclasses.replace(CONFIG, d_ff=20 + count)  # of no other test
    own, params = fresh(config), tiny(config, 2)[1]
    made = Translator(own, params, Numbers(), DecodeConfig(batch_sentences=16, max_source_length=8, max_extra_length=9))
    made.warm_up(count, 7)
    assert compilations
    del compilations[:]
    assert len(dict(made.search(sources(count, seed=3)))) == count
    assert compilations == []


@pytest.mark.slow
def test_threads_do_not_compile_what_another_compiles(compilations):
    """Four batches of one shape at once, with a new model: as many compilations as for one batch."""
    own = build(dataclasses.replace(CONFIG, d_ff=28).with_vocabulary(13))
    params = own.init(jax.random.key(1))

    def run(count, streams):
        config = DecodeConfig(batch_sentences=2, streams=streams, min_length=6, max_length=6, max_source_length=9)
        batch = [[5, 6, 7]] * count
        assert len(dict(Translator(own, params, None, config).search(batch))) == count

    jax.clear_caches()
    del compilations[:]
    run(8, 4)
    once = len(compilations)
    del compilations[:]
    jax.clear_caches()
    run(2, 1)
    assert once == len(compilations) > 0
    del compilations[:]
    run(8, 4)
    assert compilations == []


def test_once_compiled_it_draws_with_any_seed_and_temperature(compilations):
    def run(**decode):
        return dict(translator(sample=True, n_best=2, **decode).search(sources(4)))

    first = run()
    del compilations[:]
    assert run(seed=7) != first
    run(temperature=0.5)
    run(top_k=3)
    run(top_p=0.5, temperature=2.0, seed=1)
    assert compilations == []


def test_scoring_compiles_once_a_shape(compilations):
    translator().score_pieces(sources(4), sources(4, seed=1))
    del compilations[:]
    translator(length_penalty=1.0).score_pieces(sources(4, seed=2), sources(4, seed=3))
    # Whatever the largest length.
    for longest in range(1, SOURCE_LENGTH):
        pairs = [[5] * longest] * 4
        translator().score_pieces(pairs, pairs)
    assert compilations == []


KEPT = """
import collections, json, sys
import jax
sys.path[:0] = sys.argv[1:]
from transformer.command_line import set_up_jax
set_up_jax()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
from transformer.model import build
from whole_passes import sources, translator
ours = translator()
found = dict(ours.search(sources(3)))
print(json.dumps([found[0], counts["cache_hits"], counts["cache_misses"]]))
"""


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_process(environment, tmp_path):
    here, cache = Path(__file__).parent, str(tmp_path / "cache")
    hurried, results = "--xla_backend_optimization_level=0", []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KEPT, str(here), str(here.parent)],
            capture_output=True, text=True, env=environment | {"TRANSFORMER_CACHE": cache, "XLA_FLAGS": hurried},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout))
    (first, hits, misses), (again, kept, missing) = results
    assert first == again and hits == missing == 0 and kept == misses > 3
    assert (tmp_path / "cache/compiled").is_dir()


def exponentials(jaxpr):
    """The number of `exp` in a program and in the programs inside it."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "exp"
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            count += exponentials(inner) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.parametrize("want_weights", [False, True])
def test_the_one_softmax(want_weights):
    """The softmax is only in `attend`: once per layer in the encoder, twice per layer in a step of decoding."""
    kv = KV(jnp.ones((1, 2, 4, 5)), jnp.ones((1, 2, 5, 4)))
    mask = jnp.ones((1, 1, 5), bool)
    program = jax.make_jaxpr(lambda q: attend(q, kv, mask, want_weights=want_weights))(jnp.ones((1, 3, 4, 4)))
    assert exponentials(program.jaxpr) == 1
    model, params = tiny(EACH_ITS_OWN, 0)
    source = np.array([[4, 5, EOS]])
    encode = functools.partial(model.bind(params).encode, source)
    assert exponentials(jax.make_jaxpr(encode)().jaxpr) == 2
    abstract = jax.eval_shape(encode), jax.eval_shape(lambda: model.bind(params).init_cache(1, 4, 3))

    def step(memory, cache):
        tokens = np.ones((3, 1), int)
        return model.bind(params).decode(tokens, memory, cache=cache, at_B=0, want_weights=want_weights)

    assert exponentials(jax.make_jaxpr(step)(*abstract).jaxpr) == 4


# ---- Memory ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_halved(monkeypatch, caplog):
    """Results are complete and in order, each row is decoded once, and later batches start with the smaller size."""
    ours, tried = translator(batch_sentences=16, streams=1), []

    def limited(models, params, source_BS, *rest):
        tried.append(len(source_BS))
        if len(source_BS) > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        yield from engine.decode(models, params, source_BS, *rest)

    texts = sources(35, seed=7)
    wanted = dict(translator().search(texts))
    monkeypatch.setattr(ensemble, "decode", limited)
    caplog.set_level(logging.WARNING, logger="transformer")
    prefixes = [[3 + i % 9] for i in range(35)]
    found = list(ours.search(texts))
    assert sorted(i for i, _ in found) == list(range(35))
    assert sum(same(result, wanted[i]) for i, result in found) >= 34
    assert tried[:4] == [16, 8, 4, 4] and tried[4] == 8 and set(tried[7:]) <= {1, 4}
    assert [record.getMessage() for record in caplog.records] == [
        "16 sentences at once do not fit into memory; going on with 8",
        *["8 sentences at once do not fit into memory; going on with 4"] * 2,
    ]
    del tried[:]
    found = dict(ours.search(texts, prefixes=begun(ours, prefixes)))
    assert set(tried) <= {1, 4} and all(found[i][0][0][0] == 3 + i % 9 for i in range(35))


@pytest.mark.parametrize(
    ("ways", "most", "told"),
    [
        # If the devices divide the rows, each holds a part of them; otherwise each holds all of them.
        (3, 2, ["12 sentences at once do not fit into memory; going on with 6"]),
        (3, 1, ["12 sentences at once do not fit into memory; going on with 6", "6 .* with 3", "6 .* with 3"]),
        (8, 1, ["16 sentences at once do not fit into memory; going on with 8"]),
    ],
)
def test_halves_lie_on_all_devices(monkeypatch, caplog, ways, most, told):
    ours, tried = translator(batch_sentences=16, streams=1), []
    monkeypatch.setattr(ours.batcher, "ways", ways)

    def limited(models, params, source_BS, *rest):
        rows = len(source_BS)
        tried.append(rows)
        if (rows // ways if rows % ways == 0 else rows) > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        yield from engine.decode(models, params, source_BS, *rest)

    texts = [[5, 6, 7]] * ours.batcher.rows(8)
    monkeypatch.setattr(ensemble, "decode", limited)
    caplog.set_level(logging.WARNING, logger="transformer")
    assert len(list(ours.search(texts))) == len(texts)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(told) and all(map(re.fullmatch, told, said))
    assert all(rows % ways == 0 for rows in tried) and ours.batcher.rows(8) == most * ways
    # A batch has at least one row on each device.
    most, tried[:] = 0, []
    with pytest.raises(jax.errors.JaxRuntimeError):
        list(ours.search(texts))
    assert tried[-1] == ways


def test_a_batch_that_shrinks_stays_on_all_devices():
    """Four rows on four devices: one on each. On eight devices, each device would hold all four."""
    for devices, halves in ((4, [8, 4, 0]), (8, [8, 0, 0])):
        mesh = jax.sharding.AbstractMesh((devices,), ("data",))
        over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        assert [engine.fewer_rows(rows, over) for rows in (16, 8, 4)] == halves
    assert [engine.fewer_rows(rows, None) for rows in (16, 8, 7, 4)] == [8, 4, 0, 0]


def test_scoring_that_does_not_fit_is_halved(monkeypatch, caplog):
    tried = []

    def limited(params, source_BS, target_BT, *, models):
        tried.append(len(source_BS))
        if len(source_BS) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        return forced(params, source_BS, target_BT, models=models)

    forced = scorer.forced
    texts, targets = sources(9, seed=8), sources(9, seed=9)
    wanted = translator(batch_sentences=2).score_pieces(texts, targets)
    monkeypatch.setattr(scorer, "forced", limited)
    caplog.set_level(logging.WARNING, logger="transformer")
    assert translator(batch_sentences=8).score_pieces(texts, targets) == wanted
    assert tried[:4] == [8, 4, 2, 2] and len(caplog.records) >= 2


def test_nobody_waits_nothing_is_decoded(monkeypatch):
    """Once `stop` is set, a batch ends after its present stage."""
    ours, stop, stages = translator(EACH_ITS_OWN, **LONG), threading.Event(), []
    proceed = engine.proceed
    monkeypatch.setattr(engine, "proceed", lambda *a, **k: stages.append(stop.set()) or proceed(*a, **k))
    source, limit = np.array([[4, 5, 6, EOS, 0, 0, 0, 0]] * 2), np.array([30, 30])
    given = {"number_B": np.zeros(2, np.int32)}
    found = list(
        engine.decode(ours.models, ours.all_params, source, limit, strategy(ours.config, ours.tokenizer), given, stop)
    )
    assert len(stages) == 1 and len(found) < 2


def test_failures_that_halves_do_not_help_are_not_hidden(monkeypatch):
    calls = []

    def fail(*_):
        calls.append(message)
        raise jax.errors.JaxRuntimeError(message)
        yield

    monkeypatch.setattr(ensemble, "decode", fail)
    for message, rows in (
        ("RESOURCE_EXHAUSTED: Out of memory", 1),
        ("INTERNAL: YNNPACK operation failed", 1),
        ("INTERNAL: something else", 4),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            list(translator().search(sources(rows)))
    assert len(calls) == 3


def test_numbers_are_a_tokenizer():
    assert Numbers().encode(Numbers().decode([[3, 4], []])) == [[3, 4], []]
