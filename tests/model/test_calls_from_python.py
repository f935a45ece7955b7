"""Wrong arguments in calls from Python raise one ValueError before any computation, as on the command line."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import jit
from tiny import SHALLOW, SOURCE, TARGET, TINY, VOCABULARY, forward, tiny

import transformer
from transformer.config import AttentionConfig, Config, DecodeConfig, ModelConfig, UserError, check, check_model
from transformer.model.attention import KV, attend

LEARNED = dataclasses.replace(SHALLOW, positions="learned")  # for 12 positions


# ---- Building a model -----------------------------------------------------------------------------------------------

WRONG = [
    ({"heads": 4, "kv_heads": 8}, "model.kv_heads = 8: must divide model.heads (4)"),
    ({"kv_heads": 3}, "model.kv_heads = 3"),
    ({"cross_attention": AttentionConfig(kv_heads=8)}, "model.cross_attention.kv_heads = 8"),
    ({"encoder_attention": AttentionConfig(window=-1)}, "model.encoder_attention.window = -1"),
    ({"decoder_attention": {"window": 1}}, "model.decoder_attention: must be a AttentionConfig, not dict"),
    ({"positions": "rope"}, "model.positions = 'rope': must be one of sinusoidal, learned, rotary, none"),
    ({"tied_embeddings": "some"}, "model.tied_embeddings = 'some'"),
    ({"initializer": None}, "model.initializer = None"),
    ({"dtype": "float16"}, "model.dtype = 'float16'"),
    ({"attention_kernel": ["plain"]}, "model.attention_kernel = ['plain']"),
    ({"encoder_layers": "6"}, "model.encoder_layers = '6': must be of type int"),
    ({"d_model": 16.0}, "model.d_model = 16.0: must be of type int"),
    ({"pre_norm": 1}, "model.pre_norm = 1: must be of type bool"),
    ({"d_model": 0}, "model.d_model = 0: must be at least 1"),
    ({"d_ff": -24}, "model.d_ff = -24: must be at least 1"),
    ({"decoder_layers": -1}, "model.decoder_layers = -1: must be at least 0"),
    ({"kv_sharing": 0}, "model.kv_sharing = 0: must be at least 1"),
    ({"d_k": 0}, "model.d_k = 0"),
    ({"heads": 3}, "model.heads = 3: must divide model.d_model (16)"),
    ({"d_model": 15, "heads": 3}, "model.d_model = 15: must be even"),
    ({"dropout": 1.0}, "model.dropout = 1.0"),
    ({"dropout": float("nan")}, "model.dropout = nan: must be a finite number"),
    ({"max_positions": 0, "positions": "learned"}, "model.max_positions = 0"),
]


def refused(function, *args, **kwargs):
    """The message of the ValueError that a call raises."""
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_config_that_breaks_a_rule_builds_no_model(fields, message):
    """The message is that of the command line, since the check is the same."""
    config = dataclasses.replace(TINY, **fields)
    told = refused(transformer.build, config.with_vocabulary(VOCABULARY))
    assert told.startswith(message)
    assert refused(transformer.EncoderDecoder, config.with_vocabulary(VOCABULARY), rngs=nnx.Rngs(0)) == told
    assert refused(check, Config(model=config)) == told


def test_a_model_without_layers_is_refused():
    told = refused(transformer.build, dataclasses.replace(TINY, encoder_layers=0, decoder_layers=0, vocab_size=8))
    assert told == "model.decoder_layers = 0: must be at least 1 where model.encoder_layers is 0"


@pytest.mark.parametrize("size", [0, -1, 3, 2**31, 8.0, "8000", True, None, np.float32(8), np.array([8])], ids=repr)
def test_a_vocabulary_has_room_for_the_special_ids(size):
    told = refused(transformer.build, SHALLOW.with_vocabulary(size))
    rules = "at least 4, or None", "at most 2,147,483,647, or None", "type int, or None", "the size of the vocabulary"
    assert told.startswith("model.vocab_size = ") and told.endswith(rules)


def test_what_is_no_model_config_is_named():
    assert refused(transformer.build, Config()).startswith("model: must be a ModelConfig, not Config")
    assert refused(check_model, ModelConfig).startswith("model: must be a ModelConfig, not type")
    assert refused(check, Config(decode=None)).startswith("decode: must be a DecodeConfig, not NoneType")


def test_numpy_sizes_are_sizes():
    assert transformer.build(SHALLOW.with_vocabulary(np.int64(13))) is transformer.build(SHALLOW.with_vocabulary(13))


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "d_model": st.sampled_from([-2, 0, 1, 6, 7, 8, 12, 16, "8", None]),
        "heads": st.sampled_from([0, 1, 2, 3, 4, 8, 2.0]),
        "kv_heads": st.sampled_from([None, 0, 1, 2, 3, 4, 8, -4]),
        "kv_sharing": st.sampled_from([0, 1, 2, 5, None]),
        "d_k": st.sampled_from([None, 0, 1, 5]),
        "d_v": st.sampled_from([None, -1, 3]),
        "positions": st.sampled_from(["sinusoidal", "learned", "rotary", "none", "rope", "", None]),
        "tied_embeddings": st.sampled_from(["all", "target", "none", "both"]),
        "encoder_attention": st.builds(AttentionConfig, kv_heads=st.sampled_from([None, 1, 2, 3]), window=st.none()),
        "decoder_attention": st.builds(AttentionConfig, kv_sharing=st.sampled_from([None, 0, 2]), window=st.none()),
        "pre_norm": st.sampled_from([True, False, "no"]),
        "dropout": st.sampled_from([0, 0.5, -0.1, 1]),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FIELDS)
def test_any_config_is_refused_or_computes_what_it_says(fields):
    """A config that is not refused gives logits of the right shape, without an error of JAX."""
    config = dataclasses.replace(SHALLOW, **fields)
    try:
        model = transformer.build(config.with_vocabulary(VOCABULARY))
    except UserError:
        return
    logits = jax.eval_shape(model.apply, model.abstract_params, SOURCE, TARGET)
    assert logits.shape == (*TARGET.shape, VOCABULARY)
    assert ("source_positions" in model.abstract_params) == (config.positions == "learned")
    for kind in ("encoder", "decoder", "cross"):
        assert config.heads % config.attention(kind).kv_heads == 0


def test_states_are_remembered_only_with_their_own_sources():
    model, params = tiny(SHALLOW)
    bound = model.bind(params)
    x_BSD = bound.encoder_states(SOURCE)
    assert refused(bound.remember, x_BSD, [[5, 6]]).startswith("source_BS is a list: give an array of integers")
    assert refused(bound.remember, x_BSD, SOURCE, mask_BS="x").startswith("mask_BS is of type str: give an array of")
    assert refused(bound.remember, x_BSD[..., 1:], SOURCE).startswith("x_BSD has the shape ")
    assert refused(bound.remember, x_BSD[:, 1:], SOURCE).endswith(f"and source_BS {SOURCE.shape}: give its own states")
    labelled = transformer.build(dataclasses.replace(SHALLOW, head="token", labels=3).with_vocabulary(VOCABULARY))
    bound = labelled.bind(labelled.init(jax.random.key(0)))
    assert refused(bound.label_logits, x_BSD, key=5).startswith("key ")


def test_attention_itself_refuses_heads_that_do_not_divide():
    """Without the check, its reshape would mix positions."""
    kv = KV(jnp.zeros((1, 8, 4, 3)), jnp.zeros((1, 8, 3, 4)))
    with pytest.raises(ValueError, match="4 query heads can't share 8 key/value heads"):
        attend(jnp.zeros((1, 2, 4, 4)), kv, jnp.ones((1, 2, 3), bool))


# ---- Applying it ----------------------------------------------------------------------------------------------------


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


EMPTY = changed(SOURCE, 1, 0)
CALLS = [
    ((changed(SOURCE, (1, 0), 13), TARGET), "source_BS[1, 0] = 13: ids must be 0 or more and below vocab_size, 13"),
    ((changed(SOURCE, (2, 5), -1), TARGET), "source_BS[2, 5] = -1"),
    ((SOURCE, changed(TARGET, (0, 4), 10**6)), "target_BT[0, 4] = 1000000"),
    ((SOURCE, changed(TARGET, (0, 1), -(2**40))), f"target_BT[0, 1] = {-(2**40)}"),
    ((SOURCE[:2], TARGET), "source_BS has 2 rows and target_BT 3"),
    ((SOURCE, TARGET[:1]), "source_BS has 3 rows and target_BT 1"),
    ((SOURCE[:1], TARGET), "source_BS has 1 rows and target_BT 3"),  # not beams of one
    ((SOURCE.tolist(), TARGET), "source_BS is a list"),
    ((SOURCE, TARGET.tolist()), "target_BT is a list"),
    ((None, TARGET), "source_BS is a NoneType"),
    ((SOURCE.astype(np.float32), TARGET), "source_BS is of type float32"),
    ((SOURCE, TARGET > 0), "target_BT is of type bool"),
    ((SOURCE.astype(str), TARGET), "source_BS is of type <U21"),
    ((SOURCE[0], TARGET[0]), "source_BS has the shape (6,)"),
    ((SOURCE, TARGET[0]), "target_BT has the shape (5,)"),
    ((SOURCE[None], TARGET), "source_BS has the shape (1, 3, 6)"),
    ((SOURCE[:, :0], TARGET), "source_BS has the shape (3, 0)"),
    ((SOURCE, TARGET[:, :0]), "target_BT has the shape (3, 0)"),
    ((SOURCE[:0], TARGET[:0]), "source_BS has the shape (0, 6)"),
    ((EMPTY, TARGET), "row 1 has a target, but its source is only padding"),
]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(("sides", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_arrays_that_are_no_pieces_are_named(sides, message, kind):
    model, params = tiny(SHALLOW)
    if all(
        isinstance(side, np.ndarray) and side.dtype.kind != "U" and abs(side).max(initial=0) < 2**31 for side in sides
    ):
        sides = [kind(side) for side in sides]
    assert refused(model.apply, params, *sides).startswith(message)


def test_the_last_id_and_numbers_of_any_width_are_taken():
    model, params = tiny(SHALLOW)
    source, target = changed(SOURCE, (0, 0), 12), changed(TARGET, (0, 1), 12)
    for dtype in (np.int8, np.uint8, np.int32, np.uint32):
        sides = source.astype(dtype), target.astype(dtype)
        # Concrete values are checked while a program is traced, too.
        assert jax.eval_shape(lambda params: model.apply(params, *sides), params).shape == (*TARGET.shape, VOCABULARY)  # noqa: B023


def test_ids_of_a_narrow_type_are_taken_from_a_large_vocabulary():
    """JAX adds the size of a table to negative ids; 300 is too large for a number of 8 bits."""
    model = transformer.build(dataclasses.replace(LEARNED, vocab_size=300, max_positions=300))
    params = model.init(jax.random.key(0))
    positions = np.arange(SOURCE.shape[1])[None], np.arange(TARGET.shape[1])[None]
    wanted = model.apply(params, SOURCE, TARGET, positions=positions)
    sides, positions = (SOURCE.astype(np.int8), TARGET.astype(np.int8)), tuple(p.astype(np.int8) for p in positions)
    assert np.array_equal(model.apply(params, *sides, positions=positions), wanted)


def test_rows_of_padding_on_both_sides_fill_up_a_batch():
    model, params = tiny(SHALLOW)
    filled = changed(TARGET, 1, 0)
    filled[1, 0] = TARGET[1, 0]  # bos, as training puts it before each row
    logits = model.apply(params, EMPTY, filled)
    assert np.isfinite(logits).all()
    wanted = forward(SHALLOW)(params, SOURCE, TARGET)
    np.testing.assert_allclose(np.delete(logits, 1, 0), np.delete(wanted, 1, 0), atol=2e-6)


def test_positions_that_were_not_learned_are_refused():
    """Padding may have positions beyond the learned ones; XLA uses the last one there."""
    model, params = tiny(LEARNED)
    long, wide = np.full((1, 13), 5), np.pad(SOURCE, ((0, 0), (0, 9)))
    assert "[0, 12] is at position 12, counted from 0, but this model has 12 learned" in refused(
        model.apply, params, long, TARGET[:1]
    )
    assert refused(model.apply, params, SOURCE[:1], long).startswith("tokens_BT[0, 12] is at position 12")
    assert model.apply(params, wide[:1], long[:, :12]).shape == (1, 12, VOCABULARY)
    places = np.tile(np.arange(6), (3, 1))
    for value in (12, -1):
        given = changed(places, (0, 2), value), np.arange(5)[None]
        assert f"is at position {value}" in refused(model.apply, params, SOURCE, TARGET, positions=given)


S, T = np.ones_like(SOURCE), np.ones_like(TARGET)
EXTRAS = [
    ({"positions": (S[:, :5], T)}, "positions_BS has the shape (3, 5)"),
    ({"positions": (S, T[:2])}, "positions_BT has the shape (2, 5)"),
    ({"positions": (S[0], T)}, "positions_BS has the shape (6,)"),
    ({"positions": (S * 1.0, T)}, "positions_BS is of type float64"),
    ({"positions": (S.tolist(), T)}, "positions_BS is a list"),
    ({"positions": S}, "positions must be two arrays"),
    ({"positions": (S.astype(np.int64) + 2**40, T)}, "positions_BS goes from 1099511627777 to 1099511627777"),
    ({"segments": (S, T, T)}, "segments must be two arrays"),
    ({"segments": (S, T[:, :4])}, "segments_BT has the shape (3, 4)"),
    ({"segments": (S, None)}, "segments: give both source and target segments, or neither"),
    ({"segments": (None, T)}, "segments: give both source and target segments, or neither"),
    ({"key": 0}, "key = 0: give a key, such as jax.random.key(0), or None for no dropout"),
    ({"key": "0"}, "key = '0': give a key"),
    ({"key": jnp.uint32(0)}, "key = Array(0, dtype=uint32): give a key"),
    ({"key": S}, "key = array("),
    ({"key": jax.random.split(jax.random.key(0))}, "key = Array((2,)"),
    ({"run": None}, "run = None: give a transformer.model.Run"),
    ({"key": jnp.zeros(3, jnp.uint32)}, "key = Array([0, 0, 0], dtype=uint32): give a key"),
    ({"run": transformer.model.Run(between=None)}, "run = Run(remat=False, between=None): give"),
    ({"run": True}, "run = True: give a transformer.model.Run"),
]


@pytest.mark.parametrize(("extra", "message"), EXTRAS, ids=[message[:40] for _, message in EXTRAS])
def test_positions_and_segments_belong_to_pieces(extra, message):
    """With segments on only one side, the sentences of a row would see each other."""
    model, params = tiny(SHALLOW)
    assert refused(model.apply, params, SOURCE, TARGET, **extra).startswith(message)
    # Types and shapes are checked while a program is traced, too.
    assert refused(jax.eval_shape, lambda: model.apply(params, SOURCE, TARGET, **extra)).startswith(message)


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.int64], ids=lambda kind: kind.__name__)
def test_windows_reach_as_far_with_positions_of_every_type(kind):
    """Differences of unsigned integers would wrap."""
    window = AttentionConfig(window=1)
    model, params = tiny(dataclasses.replace(SHALLOW, encoder_attention=window, cross_attention=window))
    positions = [np.broadcast_to(np.arange(ids.shape[1]), ids.shape) for ids in (SOURCE, TARGET)]
    wanted = model.apply(params, SOURCE, TARGET, positions=tuple(positions))
    found = model.apply(params, SOURCE, TARGET, positions=tuple(one.astype(kind) for one in positions))
    np.testing.assert_array_equal(found, wanted)


class OfAnotherLibrary:
    """An array with a type that NumPy does not know, as those of PyTorch."""

    def __init__(self, ids: np.ndarray):
        self.shape, self.ndim, self.dtype, self.ids = ids.shape, ids.ndim, "torch.int64", ids


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda x: np.ma.masked_equal(x, 0), "is a masked array: give its data, "),
        (lambda x: x.astype(">i4" if x.dtype.kind == "i" else ">f4"), ", which JAX lacks: convert it with astype"),
        (OfAnotherLibrary, "OfAnotherLibrary: give an array of JAX or NumPy"),
    ],
)
def test_arrays_that_jax_cannot_take_are_named(other, told):
    model, params = tiny(SHALLOW)
    bound, ids = model.bind(params), np.asarray(TARGET)
    assert told in refused(model.apply, params, other(np.asarray(SOURCE)), TARGET)
    assert told in refused(model.apply, params, SOURCE, other(ids))
    assert told in refused(bound.logits, other(np.zeros((1, 2, SHALLOW.d_model), np.float32)))
    table = other(np.asarray(params["embedding"]["table"]))
    assert told in refused(model.apply, {**params, "embedding": {"table": table}}, SOURCE, TARGET)
    assert told in refused(model.apply, params, SOURCE, TARGET, masks=(other(np.asarray(SOURCE)), None))


def test_numbers_of_more_than_64_bits_are_named():
    model, params = tiny(SHALLOW)
    table = np.asarray(params["embedding"]["table"]).astype(np.longdouble)
    assert "which JAX lacks" in refused(model.apply, {**params, "embedding": {"table": table}}, SOURCE, TARGET)


def test_an_empty_branch_of_parameters_is_named():
    """A checkpoint could not hold it."""
    model, params = tiny(SHALLOW)
    with pytest.raises(ValueError, match=r"unknown batch_stats$"):
        model.apply({**params, "batch_stats": {}}, SOURCE, TARGET)


def test_keys_of_both_kinds_are_keys():
    model, params = tiny(SHALLOW)
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert equal(model.init(key), model.init(jax.random.key(0)))
        assert jax.eval_shape(lambda key: model.apply(params, SOURCE, TARGET, key=key), key).ndim == 3
    for key in (0, None, jnp.zeros((), jnp.uint32)):
        assert refused(model.init, key).endswith("give a key, such as jax.random.key(0)")
    encoder = transformer.build(dataclasses.replace(SHALLOW, decoder_layers=0).with_vocabulary(VOCABULARY))
    alone = encoder.bind(encoder.init(jax.random.key(0)))
    for key in (0, "a", jnp.ones(2), jax.random.split(jax.random.key(0))):
        assert refused(alone, SOURCE, key=key).startswith("key = ")
    bound = model.bind(params)
    memory = jit(lambda: bound.encode(SOURCE))()
    assert refused(bound.decode, TARGET, memory, key=1).startswith("key = 1: give a key")
    assert refused(bound.decode, TARGET, memory, run=1).startswith("run = 1: give a transformer.model.Run")


def test_the_parts_of_a_model_name_wrong_arrays():
    model, params = tiny(SHALLOW)
    bound = model.bind(params)
    for wrong, told in ((None, "None: give an"), (SOURCE, "array("), (np.zeros((1, 2, 3)), "has the shape (1, 2, 3)")):
        assert told in refused(bound.logits, wrong)
    assert refused(bound.logits, np.zeros((0, 2, 16), np.float32)).endswith("give at least one row and one position")
    for dtype in ("x", jnp.int32, 3, 0, "", [], "\ud800", np.zeros((2, 2))):
        assert refused(bound.init_cache, 1, 2, dtype=dtype).endswith("give a type of floats, such as jnp.bfloat16")


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_decoding_with_a_cache_has_room_and_rows():
    model, params = tiny(SHALLOW)
    memory = jit(lambda params: model.bind(params).encode(SOURCE))(params)
    cache = model.bind(params).init_cache(3, 4)
    three = jit(lambda params, cache: model.bind(params).decode(TARGET[:, :3], memory, cache=cache)[1])

    def decode(tokens, memory=memory, cache=cache, **more):
        return model.bind(params).decode(tokens, memory, cache=cache, **more)

    assert refused(decode, TARGET).startswith("the cache has room for 4 positions and holds 0 already: no room for 5")
    full = three(params, cache)
    assert refused(decode, TARGET[:, 3:], cache=full, at_B=3).startswith(
        "the cache has room for 4 positions and holds 3"
    )
    assert refused(decode, TARGET[:, 3:4], cache=full).startswith("at_B is missing: the cache holds 3 positions")
    assert refused(decode, TARGET[:2, :1]).startswith("2 targets for 3 sources")
    assert refused(decode, np.repeat(TARGET[:, :1], 2, axis=0)).startswith("tokens_BT has 6 rows: the cache is for 3")
    assert refused(decode, TARGET[:, :1], at_B=np.zeros(2, int)).startswith("at_B has the shape (2,)")
    assert refused(decode, TARGET[:, :1], segments_BT=T[:, :1]).startswith("segments")
    assert refused(decode, TARGET[:, :1], positions_BT=T[:, :1]).startswith("with a cache, at_B gives the")
    assert refused(decode, TARGET[:, :1], memory=SOURCE).startswith("memory is a ndarray: give what `encode` returns")
    places = [
        (1.5, "at_B = 1.5: give integers"),
        (True, "at_B = True"),
        (-1, "at_B has -1: positions must be from 0 to"),
    ]
    places += [(place, f"at_B has {place}: positions must be from 0 to 1073741824") for place in (2**31 - 1, 10**30)]
    for place, told in (*places, (np.ones((2, 2)), "at_B = array([[1., 1.], [1., 1.]]): give integers")):
        assert refused(decode, TARGET[:, :1], at_B=place).startswith(told)
    assert refused(decode, TARGET[:, :1], want_weights=2) == "want_weights = 2: must be True or False"
    assert refused(decode, TARGET[:, :1], cache=5) == "cache is a int: give what `init_cache` returns"
    other = cache._replace(kv=cache.kv * 2)
    assert refused(decode, TARGET[:, :1], cache=other).startswith("cache is of another model: ")
    other = memory._replace(kv=tuple(KV(kv.k_BKHS[:, :1], kv.v_BKSH[:, :1]) for kv in memory.kv))
    assert refused(decode, TARGET[:, :1], memory=other).startswith("memory is of another model: ")
    assert refused(model.bind(params).init_cache, 2**40, 2**40).startswith("rows * beams * length = 1")
    for sizes in ((0, 4), (3, -1), (3, 4, 0), (3, 4.0)):
        refused(model.bind(params).init_cache, *sizes)
    assert "\n" not in refused(model.bind(params).init_cache, np.ones((2, 2)), 4)
    # Without a cache at_B would have no effect, and the tokens other positions.
    assert refused(decode, TARGET[:, 3:], cache=None, at_B=3).startswith("at_B needs a cache")


def test_inside_jit_nothing_is_looked_at():
    """Traced ids have no values: the program is the same with and without the checks, and accepts any ids."""
    _, params = tiny(SHALLOW)
    assert forward(SHALLOW)(params, changed(SOURCE, (0, 0), 99), TARGET).shape == (*TARGET.shape, VOCABULARY)
    model, _ = tiny(SHALLOW)
    grads = jit(jax.grad(lambda params, source: model.apply(params, source, TARGET).sum()))(params, SOURCE)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    # An array that is concrete while a program is traced is checked.
    source = jnp.asarray(changed(SOURCE, (0, 0), 99))
    assert refused(jit(lambda params: model.apply(params, source, TARGET)), params).startswith("source_BS[0, 0] = 99")


def test_without_jit_rows_of_padding_are_taken_as_inside_it():
    """`jax.disable_jit` calls compiled programs as they are; they were written for arrays without values."""
    model, params = tiny(SHALLOW)
    source = np.where(np.arange(3)[:, None] == 1, 0, SOURCE)
    expected = forward(SHALLOW)(params, source, TARGET)
    with jax.disable_jit():
        np.testing.assert_allclose(model.apply(params, source, TARGET)[::2], expected[::2], atol=1e-5)


def test_donated_parameters_are_named():
    model, params = tiny(SHALLOW)
    params = jax.tree.map(jnp.copy, params)
    params["embedding"]["table"].delete()
    told = "embedding/table was deleted or donated to a jitted function; use the arrays that the function returned"
    assert refused(model.apply, params, SOURCE, TARGET) == told
    assert refused(model.bind, params) == told


def test_parameters_that_are_no_dict_of_arrays_are_named():
    model, params = tiny(SHALLOW)
    with pytest.raises(ValueError, match="params is a tuple: give a nested dict of arrays"):
        model.apply((model, params), SOURCE, TARGET)
    with pytest.raises(ValueError, match=r"unknown 5$"):
        model.apply({**params, 5: params["embedding"]["table"]}, SOURCE, TARGET)
    with pytest.raises(ValueError, match="embedding/table has shape none, as a ShapeDtypeStruct, not"):
        model.apply(model.abstract_params, SOURCE, TARGET)
    listed = {**params, "embedding": {"table": np.asarray(params["embedding"]["table"]).tolist()}}
    with pytest.raises(ValueError, match=re.escape("embedding/table has shape none, as a list, not (13, 16)")):
        model.apply(listed, SOURCE, TARGET)


def test_a_user_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"^decode\.temperature = 0\.0: must be at least 1e-06$"):
        check(Config(decode=DecodeConfig(temperature=0.0)))
