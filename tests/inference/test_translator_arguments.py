"""Arguments of a translator in Python are checked like those of the command line, before anything is computed."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_passes import CONFIG, VOCABULARY, Numbers, tiny, translator

import transformer
from transformer.config import Config, DecodeConfig, UserError, check
from transformer.inference.translator import Translator

WRONG = [
    ({"temperature": 0.0}, "decode.temperature = 0.0: must be at least 1e-06"),
    ({"temperature": 0.0, "sample": True}, "decode.temperature = 0.0: must be at least 1e-06"),
    ({"beam_size": 0}, "decode.beam_size = 0: must be at least 1"),
    ({"beam_size": "4"}, "decode.beam_size = '4': must be of type int"),
    ({"n_best": 5}, "decode.n_best = 5: must be at most decode.beam_size (4)"),
    ({"n_best": 0, "sample": True}, "decode.n_best = 0"),
    ({"length_normalization": "google"}, "decode.length_normalization = 'google'"),
    ({"length_penalty": -1.0}, "decode.length_penalty = -1.0"),
    ({"dtype": "float16"}, "decode.dtype = 'float16'"),
    ({"top_p": 0.0}, "decode.top_p = 0.0"),
    ({"top_k": -1}, "decode.top_k = -1"),
    ({"banned": ["a"]}, "decode.banned = ['a']"),
    ({"banned": (" ",)}, "decode.banned = (' ',)"),
    ({"max_length": 0}, "decode.max_length = 0"),
    ({"min_length": 9, "max_length": 3}, "decode.min_length = 9"),
    ({"max_source_length": 0}, "decode.max_source_length = 0"),
    ({"batch_tokens": 0}, "decode.batch_tokens = 0"),
    ({"seed": -1}, "decode.seed = -1"),
    ({"seed": 2**32}, "decode.seed = 4294967296"),
]


def refused(function, *args, **kwargs):
    """The message of the ValueError that a call raises."""
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_options_that_break_a_rule_are_named(fields, message, tmp_path):
    """With the message of the command line, and before a workdir is opened."""
    model, params = tiny(CONFIG, 0)
    decode = DecodeConfig(**fields)
    told = refused(Translator, model, params, Numbers(), decode)
    assert told.startswith(message)
    assert refused(Translator.load, str(tmp_path / "nowhere"), config=decode) == told
    assert refused(check, Config(decode=decode)) == told


def test_options_of_sampling_without_sampling_are_told(caplog):
    ours = translator(temperature=5.0, top_k=3)
    assert caplog.messages == ["decode.temperature = 5.0, decode.top_k = 3: no effect without decode.sample = True"]
    ours.with_config(dataclasses.replace(ours.config, sample=True))
    ours.with_config(dataclasses.replace(ours.config, temperature=1.0, top_k=0, seed=4))
    assert len(caplog.messages) == 1


def test_what_is_no_decode_config_is_named(tmp_path):
    model, params = tiny(CONFIG, 0)
    for config in (Config(), {"beam_size": 4}, 4, False):
        told = refused(Translator, model, params, Numbers(), config)
        assert told.startswith(f"decode: must be a DecodeConfig, not {type(config).__name__}")
        assert refused(Translator.load, str(tmp_path), config=config) == told


def test_workdirs_and_checkpoints_are_as_many(tmp_path):
    assert refused(Translator.load, []).startswith("0 workdirs and 0 checkpoints")
    assert refused(Translator.load, ["a", "b"], ["last"]).startswith("2 workdirs and 1 checkpoints")
    assert refused(Translator.load, str(tmp_path), ["last", "best"]).startswith("1 workdirs and 2 checkpoints")
    assert "no complete checkpoint there" in refused(Translator.load, tmp_path)
    assert refused(Translator.load, b"runs/x").startswith("the workdir is a bytes: give a path")
    for wrong in (b"last", True):
        assert refused(Translator.load, tmp_path, wrong).startswith(f"checkpoint = {wrong!r}: give best, last, average")
    assert "no complete checkpoint there" in refused(transformer.load, tmp_path)
    for wrong in (None, 1, ["a"], b"a"):
        assert refused(transformer.load, wrong) == f"the workdir is a {type(wrong).__name__}: give a path"
    for wrong in ("\ud800", pathlib.Path("\ud800")):
        assert refused(transformer.load, wrong) == "the workdir is '\\ud800': give the path of a folder"
    assert refused(Translator.load, None) == "the workdir is a NoneType: give a path"


def test_models_and_tokenizer_have_one_vocabulary():
    (model, params), other = tiny(CONFIG, 0), transformer.build(CONFIG.with_vocabulary(VOCABULARY + 1))
    bigger = other.init(jax.random.key(0))
    config = translator().config
    told = refused(Translator, model, params, Numbers(), config, [(other, bigger)])
    assert told == "the models have vocabularies of [14, 15] pieces; an ensemble needs the same one"
    ours = Translator(other, bigger, Numbers(), config)
    for call in (lambda: ours.translate(["4"]), lambda: ours.score(["4"], ["4"])):
        assert refused(call).startswith("the model has a vocabulary of 15 pieces, and the tokenizer one of 14")


def test_what_a_translator_lacks_is_named():
    assert refused(Translator.of, ["runs/x"]).startswith("checkpoints = ['runs/x']: give a list of what Checkpoints(")
    assert refused(Translator.of, []) == "no checkpoints: give one at least"
    without = Translator(*tiny(CONFIG, 0), None, DecodeConfig(banned=("4",), max_source_length=8, max_extra_length=8))
    assert refused(without.warm_up, 2, 4).startswith(
        "decode.banned needs a tokenizer: give one, such as Tokenizer.load("
    )


class Table(list):
    """As a DataFrame of pandas: a loop over it gives the names of its columns."""

    columns = ("text", "label")


@pytest.mark.parametrize("method", ["translate", "translate_n_best", "encode", "score"])
@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("4 5", "sentences is a str: give a list of strings"),
        (b"4 5", "sentences is a bytes"),
        (None, "sentences is a NoneType"),
        (4, "sentences is a int"),
        (["4", None], "sentences[1] is a NoneType: give strings"),
        (["4", "5", b"6"], "sentences[2] is a bytes"),
        ([["4"]], "sentences[0] is a list"),
        (np.array([1.5]), "sentences[0] is a float64"),
        (np.array("4"), "sentences is a ndarray: give a list of strings"),
        (Table(["text", "label"]), "sentences is a Table: give one of its columns, such as df['text']"),
    ],
    ids=repr,
)
def test_sentences_are_lists_of_strings(method, sentences, message):
    more = (["4"],) if method == "score" else ()
    assert refused(getattr(translator(), method), sentences, *more).startswith(message)


def test_prefixes_and_translations_are_as_many_strings():
    ours = translator()
    assert refused(ours.translate, ["4", "5"], prefixes=["4"]).startswith("2 sentences and 1 prefixes")
    assert refused(ours.translate, ["4"], prefixes=["4", "5"]).startswith("1 sentences and 2 prefixes")
    assert refused(ours.translate, ["4"], prefixes="4").startswith("prefixes is a str")
    assert refused(ours.translate, ["4"], prefixes=[None]).startswith("prefixes[0] is a NoneType")
    assert refused(ours.score, ["4"], [4]).startswith("translations[0] is a int")
    assert refused(ours.score, ["4"], "4").startswith("translations is a str")


def test_any_series_of_strings_will_do():
    ours, lines = translator(), ["4 5", "", "6"]
    wanted = ours.translate(lines)
    for given in (tuple(lines), iter(lines), np.array(lines), dict.fromkeys(lines).keys()):
        assert ours.translate(given) == wanted


def test_pieces_may_be_arrays():
    ours = translator()
    plain = dict(ours.search([[4, 5], [6, 4]]))
    for make in (np.array, jnp.array):
        for sources in (make([[4, 5], [6, 4]]), [make([4, 5]), make([6, 4])]):
            found = dict(ours.search(sources))
            assert [found[i][0] for i in range(2)] == [plain[i][0] for i in range(2)]
            assert ours.score_pieces(sources, sources) == ours.score_pieces([[4, 5], [6, 4]], [[4, 5], [6, 4]])


@pytest.mark.parametrize(
    "ids", [[VOCABULARY], [4, -1], [4.5], ["4"], [[4]], np.array([4, VOCABULARY]), jnp.array([1.5])], ids=str
)
def test_pieces_are_ids_of_the_vocabulary(ids):
    ours = translator()
    assert refused(lambda: list(ours.search([[4], ids]))).startswith(
        "source 1: ids must be integers, 1 or more and below"
    )
    assert refused(ours.score_pieces, [[4], [4]], [[4], ids]).startswith("target 1: ids must be")
    assert refused(ours.score_pieces, [[4]], []).startswith("1 sources and 0 targets")


@pytest.mark.parametrize(
    "lists",
    [None, 4, [4, 5], [[4], None], np.array(4), [np.array(4)], [{4, 5}], {4: [5]}.values(), [b"ab"], "ab"],
    ids=str,
)
def test_pieces_are_lists_of_lists(lists):
    ours = translator()
    assert refused(lambda: list(ours.search(lists))).startswith("the sources must be a list of lists of ids, not ")
    assert refused(ours.score_pieces, [[4]], lists).startswith("the targets must be a list of lists of ids, not ")


def test_a_search_has_a_prefix_for_each_source():
    ours = translator()
    assert refused(lambda: list(ours.search(iter([[4]])))).startswith(
        "the sources must be a list of lists of ids, not "
    )
    for prefixes in (
        True,
        5,
        np.array(4),
        "4",
        ["4"],
        [[4]],
        ours._prefixes.of(["4"]),
        ours._prefixes.of(["4", "5", "6"]),
    ):
        assert refused(lambda given: list(ours.search([[4], [5]], prefixes=given)), prefixes).startswith("2 sources")


def test_a_source_too_long_is_not_left_out():
    ours = translator(dataclasses.replace(CONFIG, positions="sinusoidal"), max_source_length=4)
    assert refused(lambda: list(ours.search([[4], [4] * 5]))).startswith("a source has 5 pieces, and decode.max_source")
    assert len(dict(ours.search([[4], [4] * 4]))) == 2


def test_a_source_whose_attention_no_memory_holds_is_refused():
    ours = translator(dataclasses.replace(CONFIG, positions="sinusoidal"), max_source_length=1_000_000)
    told = refused(lambda: list(ours.search([[4], [4] * 1_000_000])))
    assert told.startswith("the attention weights of a source of 1000000 pieces need at least ")
    assert told.endswith(" GiB; lower decode.max_source_length")
    assert refused(ours.score_pieces, [[4] * 1_000_000], [[4]]).startswith("the attention weights of a source of")


@pytest.mark.parametrize("number", ["1", None, 1.0, True, 0, -1, 2**31 - 1, 2**40, 10**30], ids=repr)
def test_the_number_of_the_first_line_is_a_whole_number(number):
    """Sampling counts lines from it, in 32 bits."""
    ours = translator()
    for method, *more in ((ours.translate,), (ours.translate_n_best,), (ours.score, ["4"])):
        assert refused(method, ["4"], *more, first_line=number).startswith(f"first_line = {number!r}: must be")
    assert refused(lambda: list(ours.search([[4]], first=-1 if number == 0 else number))).startswith("first = ")
    assert ours.encode(["4"], None) == [[4]]  # without warnings


@pytest.mark.parametrize("sample", [False, True])
def test_the_last_line_that_there_can_be(sample):
    ours = translator(sample=sample)
    assert len(ours.translate(["4"], first_line=np.int64(2**31 - 2))) == 1


WITHOUT_END = dataclasses.replace(CONFIG, positions="sinusoidal")


@pytest.mark.parametrize("config", [CONFIG, WITHOUT_END], ids=["learned", "computed"])
def test_what_a_translation_is_given_is_no_longer_than_one_may_be(config):
    """A source is cut, but a translation is not: the score would be that of another text."""
    ours, longest = translator(config, max_source_length=7, max_extra_length=3), " ".join("4" * 10)
    assert len(ours.score(["5"], [longest])[0].pieces) == 11
    assert ours.translate(["5"], prefixes=[longest])[0].startswith(longest)
    for longer in (f"{longest} 4", f"{longest} " * 1_000):
        count = len(longer.split())
        told = (
            f"line 12: the {{}} has {count} pieces, and " if count < 64 or config is WITHOUT_END else "line 12: the {}"
        )
        end = "decode.max_source_length + decode.max_extra_length = 10 is the most"
        message = refused(ours.score, ["5", "5"], ["4", longer], first_line=11)
        assert message.startswith(told.format("translation")) and (end in message or "max_positions" in message)
        message = refused(ours.translate, ["5", "5"], prefixes=["", longer], first_line=11)
        assert message.startswith(told.format("prefix")) and (end in message or "max_positions" in message)
        ids = list(map(int, longer.split()))
        assert refused(ours.score_pieces, [[5], [5]], [[4], ids]).startswith(f"target 1 has {count} pieces")
        assert refused(ours.score_pieces, [ids], [[4]]).startswith(
            f"a source has {count} pieces, and decode.max_source"
        )


def test_what_no_translator_is_made_of_is_named():
    model, params = tiny(CONFIG, 0)
    for wrong in (None, {}, [1], "params"):
        assert refused(Translator, model, wrong, Numbers()).startswith(f"params = {wrong!r}: give a nested dict of arr")
        assert refused(Translator, model, params, Numbers(), None, [(model, wrong)]).startswith("params = ")
    for wrong in (None, 5, [model], [(model,)], ["ab", "abc"]):
        assert refused(Translator, model, params, Numbers(), None, wrong).startswith("others = ")
    for wrong in (None, "model", params):
        assert refused(Translator, wrong, params, Numbers()).startswith("model = ")
        assert refused(Translator, model, params, Numbers(), None, [(wrong, params)]).startswith("model = ")
    for wrong in (3, "tokenizer.model", b"tokenizer.model", pathlib.Path("tokenizer.model")):
        assert refused(Translator, model, params, wrong).startswith(f"tokenizer = {wrong!r}: give Tokenizer.load of it")
    config = translator().config
    ours = Translator(model, params, None, config)
    assert len(dict(ours.search([[4]]))) == 1  # a search needs no tokenizer
    assert refused(ours.score_pieces, [[4]], [[5]]).startswith("this translator has no tokenizer: give one, such as")
    for method, *more in ((ours.translate,), (ours.score, ["4"]), (ours.encode,)):
        assert refused(method, ["4"], *more).startswith("this translator has no tokenizer: give one, such as")
    assert refused(Translator.of, []).startswith("no checkpoints")
    parsing = {"head": "token", "labels": 2, "hard_attention": True}
    for changes in ({"encoder_layers": 0}, {"decoder_layers": 0}, parsing):
        other = transformer.build(dataclasses.replace(model.config, **changes))
        told = "model = <Model(ModelConfig("
        assert refused(Translator, other, params, Numbers()).startswith(told)
        message = refused(Translator, model, params, Numbers(), None, [(other, params)])
        needed = ": give a model with an encoder and a decoder, without hard_attention"
        assert message.startswith(told) and message.endswith(needed)


def test_parameters_that_do_not_fit_are_named():
    """Also None, which JAX takes for a branch without leaves, and shapes without values."""
    model, params = tiny(CONFIG, 0)
    for embedding in (None, {}, {"table": None}, {"table": jnp.zeros(())}, params["embedding"]["table"]):
        with pytest.raises(ValueError, match=r"^parameters do not fit the model: .*embedding"):
            Translator(model, {**params, "embedding": embedding}, Numbers())
    with pytest.raises(ValueError, match="as a ShapeDtypeStruct"):
        Translator(model, model.abstract_params, Numbers())
    with pytest.raises(ValueError, match="params is a mappingproxy: give a nested dict of arrays"):
        Translator(model, types.MappingProxyType(params), Numbers())


def test_padding_among_pieces_is_named():
    ours = translator()
    padded = np.array([[4, 5], [4, 0]])
    for call in (lambda: list(ours.search(padded)), lambda: ours.score_pieces(padded, padded)):
        told = refused(call)
        assert told.startswith("source 1: ids must be integers, 1 or more") and "(0 is padding: leave it out)" in told
    assert refused(ours.score_pieces, [[4]], [[0]]).startswith("target 0: ids must be integers, 1 or more")


def test_parameters_that_are_gone_or_traced_are_named():
    model, params = tiny(CONFIG, 0)
    params = jax.tree.map(jnp.copy, params)
    made = Translator(model, params, Numbers(), DecodeConfig(max_source_length=15, max_extra_length=6))

    def inside(params):
        told.append(refused(Translator, model, params, Numbers()))
        return 0

    told: list[str] = []
    jax.eval_shape(inside, params)
    assert told == ["the parameters are traced: decode outside jax.jit"]
    jax.tree.map(lambda leaf: leaf.delete(), params)
    for call in (
        lambda: made.translate(["5 6"]),
        lambda: made.score(["5 6"], ["7"]),
        lambda: made.warm_up(1, 3),
        lambda: Translator(model, params, Numbers()),
    ):
        assert "was deleted or donated to a jitted function; use the arrays" in refused(call)


def test_to_warm_up_for_more_sentences_than_a_call_has_is_refused():
    assert refused(translator().warm_up, 10**9) == "sentences = 1000000000: must be at least 1, at most 1000000"


@pytest.mark.slow
@pytest.mark.parametrize("state", ["jax_enable_x64", "jax_disable_jit"])
def test_no_state_of_jax_changes_a_translation(state):
    """Neither 64 bits, which a program may need for itself, nor the debugger's way to call what is compiled."""
    ours, sources = translator(max_extra_length=1), ["5 6 7", "8", "9 10 11 12"]
    expected = ours.translate(sources), ours.score(sources, ["7 8", "9", "10"])
    before = getattr(jax.config, state)
    jax.config.update(state, True)  # a context would not reach the threads that decode
    try:
        found = ours.translate(sources), ours.score(sources, ["7 8", "9", "10"])
    finally:
        jax.config.update(state, before)
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
