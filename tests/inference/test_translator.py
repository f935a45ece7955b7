import dataclasses
import functools
import logging
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit

from transformer.config import BOS, EOS, PAD, DecodeConfig, ModelConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.data.vocabularies import Bytes
from transformer.inference import ensemble
from transformer.inference.batches import LENGTHS
from transformer.inference.beam_search import Hypotheses
from transformer.inference.strategy import generation
from transformer.inference.translator import Translator
from transformer.model import build

WORDS = ["the", "a", "small", "big", "red", "old", "house", "dog", "cat", "runs", "sees", "under", "over", "behind"]


def sentences(count, longest=9, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


@functools.cache
def tokenizer():
    return Tokenizer.train(sentences(400, seed=9), vocab_size=330)


# --- the translator around a search that only copies its sources, without a model


@pytest.fixture
def shapes(monkeypatch):
    """Replace the decoding of a batch by one that copies sources. Returns a list of the (rows, length) of its calls."""
    calls = []

    def copy(models, params, source_BS, limit_B, plan, given, stop, window, grain):
        calls.append(source_BS.shape)
        for row, (source, limit) in enumerate(zip(source_BS, limit_B, strict=True)):
            n = int((source != PAD).sum())
            # A sentence with eos and a limit of 50 more pieces; or an empty row with the limit 0.
            assert limit == (n - 1 + 50 + 1 if n else 0)
            if n:
                assert source[n - 1] == EOS and EOS not in source[: n - 1]
                yield row, Hypotheses(source[None], np.array([n]), np.array([-1.0]))

    monkeypatch.setattr(ensemble, "decode", copy)
    return calls


MODEL = build(ModelConfig(1, 1, d_model=8, d_ff=8, heads=2, vocab_size=330))  # does nothing: `shapes` decodes
PARAMS = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), MODEL.abstract_params)


def copier(**decode):
    return Translator(MODEL, PARAMS, tokenizer(), DecodeConfig(**decode))


def test_results_come_in_the_order_of_the_input(shapes):
    lines = sentences(600, longest=100)
    assert copier().translate(lines) == lines
    assert len({length for _, length in shapes}) > 2


def test_blank_lines_stay_blank(shapes):
    assert copier().translate(["", "the dog", "   ", "\t", "a cat", ""]) == ["", "the dog", "", "", "a cat", ""]
    assert copier().translate(["", " "]) == ["", ""]
    assert copier().translate([]) == []
    assert len(shapes) == 1


def test_a_line_break_inside_is_no_line_break_outside(shapes):
    assert copier().translate(["the\ndog\n", "a\r\u0085\u2028cat"]) == ["the dog ", "a\r\u0085\u2028cat"]


def test_long_input_is_cut_and_its_line_named(shapes, caplog):
    lines = ["a cat", " ".join(["house"] * 40), "", "the " * 11 + "dog"]
    pieces = tokenizer().encode(lines)
    longest = len(pieces[3])
    caplog.set_level(logging.WARNING, logger="transformer")
    translated = copier(max_source_length=longest).translate(lines, first_line=101)
    assert translated[0] == lines[0] and translated[2:] == lines[2:]
    assert translated[1] == tokenizer().decode([pieces[1][:longest]])[0]
    (record,) = caplog.records
    assert record.getMessage() == f"line 102: {len(pieces[1])} pieces, cut to decode.max_source_length = {longest}"


@pytest.mark.parametrize(
    "unit", ["the dog ", "x", "🙂", "thedoghouse", "a  b", "\t", "\u00a0house", "the\u3000dog", "ab" * 50 + " "]
)
def test_a_very_long_line_is_cut_to_the_same_pieces(unit, caplog, monkeypatch):
    """The rest of the line is not encoded."""
    caplog.set_level(logging.WARNING, logger="transformer")
    translator, asked = copier(max_source_length=20), []
    encode = translator.tokenizer.encode
    monkeypatch.setattr(translator.tokenizer, "encode", lambda lines: asked.extend(lines) or encode(lines))
    for lead in ("", " " * 60_000, "house " * 3):
        line = lead + unit * (200_000 // len(unit))
        (whole,) = encode([line])
        asked.clear()
        (found,) = translator.encode([line], 7)
        if not line.strip():
            assert found == []
            continue
        assert found == whole[:20]
        assert len(max(asked, key=len)) < len(line) or lead.isspace()
    if unit.strip():
        messages = [record.getMessage() for record in caplog.records]
        messages = [message for message in messages if "never seen in training" not in message]
        assert all(
            re.match(r"line 7: (more than )?\d+ pieces, cut to decode.max_source_length = 20$", m) for m in messages
        )
        assert len(messages) == 3 and messages[0].startswith("line 7: more than ")


@pytest.mark.parametrize("decode", [{}, {"beam_size": 1, "max_source_length": 90}, {"batch_tokens": 1}])
def test_a_few_fixed_shapes_within_the_budget(shapes, decode):
    """Whatever the number and the lengths of sentences. Each sentence is decoded once."""
    translator = copier(**decode)
    c = translator.config
    draw = np.random.default_rng(0)
    for count in (1, 2, 7, 9, 65, 500, 600):
        lengths = np.minimum(draw.geometric(0.02, count), c.max_source_length).tolist()
        translator_sources = [[5] * n for n in lengths]
        translator_sources.insert(count // 2, [])
        found = dict(translator.search(translator_sources))
        assert sorted(found) == [i for i, source in enumerate(translator_sources) if source]
        assert all(found[i][0] == [translator_sources[i]] and found[i][1] == [-1.0] for i in found)
    fixed = {*LENGTHS, c.max_source_length + 1}
    for rows, length in set(shapes):
        assert length in fixed and length <= c.max_source_length + 1
        assert rows == 1 or rows == 8 or rows * length * c.beam_size <= c.batch_tokens
        assert rows & (rows - 1) == 0
    assert len({rows for rows, length in shapes if length == 16}) <= 3


def test_the_longest_source_fits_the_longest_shape(shapes):
    translator = copier(max_source_length=1024)
    ((_, (tokens, _)),) = translator.search([[5] * 1024])
    assert tokens == [[5] * 1024] and shapes == [(1, 1025)]


def test_no_hypothesis_is_an_empty_line(monkeypatch):
    def nothing(models, params, source_BS, *rest):
        for row in range(len(source_BS)):
            if row < 2:
                yield row, Hypotheses(np.zeros((4, 16), np.int32), np.zeros(4, np.int32), np.full(4, -np.inf))

    monkeypatch.setattr(ensemble, "decode", nothing)
    assert copier().translate(["the dog", "a cat"]) == ["", ""]


# --- a real, tiny, random model


RANDOM = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=32, heads=2)


@functools.cache
def random_translator():
    model = build(RANDOM.with_vocabulary(tokenizer().vocab_size))
    params = jax.tree.map(lambda x: 2.0 * x, jit(model.init)(jax.random.key(4)))
    # Eight rows of up to 16 pieces, four of up to 21.
    decode = DecodeConfig(max_extra_length=4, max_source_length=20, batch_tokens=8 * 16 * 4)
    return Translator(model, params, tokenizer(), decode)


def agree(found, expected):
    """Require relative score differences within 1e-5, and the same pieces. Returns 1 for an exception: other pieces.

    The scores are sums of about twenty float32 log-probabilities near -4; therefore the difference is relative.
    """
    (pieces, scores), (wanted, wanted_scores) = found, expected
    np.testing.assert_allclose(scores[0], wanted_scores[0], rtol=1e-5)
    if pieces[0] == wanted[0]:
        return 0
    # Other pieces are allowed only if some hypotheses of the search have scores that close.
    runners_up = np.concatenate([-np.diff(scores), -np.diff(wanted_scores)])
    assert runners_up.min() <= 1e-4
    return 1


def test_alone_or_with_neighbours(report):
    """With other neighbours, numbers of rows and padding: other compiled shapes, but the same results."""
    translator = random_translator()
    sources = tokenizer().encode(sentences(22, longest=5, seed=3))
    assert max(map(len, sources)) < 16
    alone = {i: next(iter(translator.search([source])))[1] for i, source in enumerate(sources)}
    together = dict(translator.search(sources))
    # With two longer neighbours: sentences that do not fill a batch join them, and are padded to their length.
    longer = [[5] * 20] * 2
    padded = dict(translator.search([*longer, *sources]))
    exceptions = 0
    for i in range(len(sources)):
        exceptions += agree(together[i], alone[i]) + agree(padded[i + 2], alone[i])
    report(f"{exceptions} of {2 * len(sources)} translations differ by their batch, at a choice closer than 1e-4")
    assert exceptions < len(sources) / 4
    assert len({tuple(tokens[0]) for tokens, _ in alone.values()}) > 12  # the translations differ
    shuffled = [*reversed(sources)]
    again = dict(translator.search(shuffled))
    assert sum(agree(again[len(sources) - 1 - i], together[i]) for i in range(len(sources))) < len(sources) / 4


def test_side_by_side_or_one_after_another():
    """Batches in several threads: the same results bit for bit, in the same order."""
    sources = tokenizer().encode(sentences(40, longest=5, seed=6))
    found = []
    for streams in (1, 3):
        one = random_translator()
        config = dataclasses.replace(one.config, streams=streams)
        found.append(list(Translator(one.model, one.params, tokenizer(), config).search(sources)))
    assert found[0] == found[1]
    assert len(found[0]) == 40


@pytest.mark.parametrize("phrases", [("\u0001",), ("dog", "\u0001")])
def test_a_banned_phrase_that_the_tokenizer_drops_is_told_of(monkeypatch, phrases):
    """Normalisation leaves no piece, so that nothing could be banned, or only a space, so that too much would be."""
    dropping = Tokenizer.train(sentences(400, seed=9), vocab_size=330, normalization="nmt_nfkc")
    assert [dropping.piece(i) for i in dropping.encode(["\u0001"])[0]] == ["▁"]
    ours = Translator(MODEL, PARAMS, dropping, DecodeConfig(banned=phrases))
    told = r"^decode.banned: this model's tokenizer keeps nothing of '.x01'; leave it out$"
    with pytest.raises(UserError, match=told):
        list(ours.search([[5]]))
    # A SentencePiece model from the user may not put a space before a line.
    monkeypatch.setattr(dropping, "encode", lambda lines, side: [[5] if line == "dog" else [] for line in lines])
    with pytest.raises(UserError, match=told):
        list(ours.search([[5]]))


def test_a_very_long_banned_phrase_is_refused():
    """A whole list of words as one phrase: the program of each step would have a comparison for each of its pieces."""
    config = DecodeConfig(banned=("\u0002" * 101,))  # each is a byte piece, with a space before the first
    told = r"^decode.banned: .* has 102 pieces, and the most is 100; give several phrases as several values: "
    with pytest.raises(UserError, match=told):
        list(Translator(MODEL, PARAMS, tokenizer(), config).search([[5]]))
    with pytest.raises(UserError, match=told.replace("102", "101")):
        generation(config, Bytes())
    within = dataclasses.replace(config, banned=("\u0002" * 100,))
    assert generation(within, Bytes()).constraints.banned_PW.shape == (1, 100)


def test_translations_are_what_the_search_found():
    translator = random_translator()
    lines = ["the dog", "", "a cat runs", *sentences(5)]
    found = dict(translator.search(tokenizer().encode(lines)))
    expected = [tokenizer().decode([found[i][0][0]])[0] if i in found else "" for i in range(8)]
    assert translator.translate(lines) == expected
    for i, source in enumerate(tokenizer().encode(lines)):
        if source:
            tokens, scores = found[i]
            assert len(tokens) == len(scores) == 4 and scores == sorted(scores, reverse=True)
            assert not {PAD, BOS, EOS} & {piece for pieces in tokens for piece in pieces}
            assert max(map(len, tokens)) <= len(source) + 4


def test_numpy_params_do_as_well():
    translator = random_translator()
    numpy = Translator(
        translator.model, jax.tree.map(np.asarray, translator.params), tokenizer(), translator.config
    )  # fmt: skip
    assert numpy.translate(["the dog"]) == translator.translate(["the dog"])


def test_params_laid_over_a_mesh():
    """One device, but the code for several: rows are put on the mesh."""
    translator = random_translator()
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = Translator(
        translator.model, jax.device_put(translator.params, everywhere), tokenizer(), translator.config
    )  # fmt: skip
    rows, limits = placed.batcher.put(np.zeros((2, 16), np.int32), np.zeros(2, np.int32))
    assert rows.sharding.mesh == limits.sharding.mesh == mesh
    assert rows.sharding.spec[0] == ("data", "fsdp")


def test_greedy_is_a_beam_of_1():
    translator = random_translator()
    greedy = Translator(
        translator.model, translator.params, tokenizer(), dataclasses.replace(translator.config, beam_size=1)
    )
    ((_, (tokens, scores)),) = greedy.search(tokenizer().encode(["the dog"]))
    assert len(tokens) == len(scores) == 1
    source = jnp.array([[*tokenizer().encode(["the dog"])[0], EOS]])
    pieces = [BOS]
    limit = source.shape[1] + 4
    apply = jit(translator.model.apply)
    while pieces[-1] != EOS and len(pieces) < limit:
        target = np.zeros((1, limit), int)
        target[0, : len(pieces)] = pieces
        logits = np.array(apply(translator.params, source, target)[0, len(pieces) - 1])
        logits[[PAD, BOS]] = -np.inf
        pieces.append(int(logits.argmax()))
    assert tokens[0] == [p for p in pieces[1:] if p != EOS]


def test_prefixes_without_pieces_are_none():
    translator = random_translator()
    lines = ["the dog", "a cat", ""]
    assert translator.translate(lines, prefixes=[""] * 3) == translator.translate(lines)


def test_half_a_character_is_a_question_mark():
    """JSON and Python strings can hold a lone surrogate; no tokenizer takes it."""
    translator = random_translator()
    assert translator.translate(["the \ud800 dog"]) == translator.translate(["the ? dog"])
    (half,), (mark,) = (translator.score(["a"], [text]) for text in ("\udfff", "?"))
    assert half == mark
