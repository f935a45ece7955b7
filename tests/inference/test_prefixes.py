"""Translations that begin with a given text, which may end inside a word: with a trained model, and with pieces that
overlap in many ways."""

import dataclasses
import functools
import io
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import jit

from transformer.config import UNK, DecodeConfig, ModelConfig
from transformer.data import normalizer
from transformer.data.tokenizer import Cut, Tokenizer
from transformer.inference.beam_search import beam_search
from transformer.inference.constraints import Constraints
from transformer.inference.prefixes import Prefixes
from transformer.inference.translator import Translator
from transformer.model import build

PAD, BOS, EOS = 0, 1, 2
SOURCE = "the red cat sees"


@pytest.fixture(scope="module")
def ours(trained):
    """A tiny model after 120 updates."""
    return Translator.load(str(trained))


def as_(translator, **decode):
    return Translator(
        translator.model, translator.params, translator.tokenizer, dataclasses.replace(translator.config, **decode)
    )  # fmt: skip


@pytest.fixture(scope="module")
def tests(trained):
    return (trained / "sets/test.source").read_text().splitlines()


# ---- A trained model ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("beam_size", [1, 2])
def test_broken_off_anywhere_its_own_translation_comes_again(ours, tests, beam_size, report):
    """Cut inside a word, at its end, after a space, at the end of the text, and with a space after that.

    With greedy search always. With several beams the search may find a better one, because the prefix excludes
    hypotheses that had displaced it before; with a model that has learnt as little as this one, it does.
    """
    ours = as_(ours, beam_size=beam_size)
    whole = [found[0] for found in ours.translate_n_best(tests[:8])]
    cuts = [(i, own.text[:n]) for i, own in enumerate(whole) for n in range(len(own.text) + 1)]
    cuts += [(i, f"{own.text} ") for i, own in enumerate(whole)]
    found = ours.translate_n_best([tests[i] for i, _ in cuts], prefixes=[prefix for _, prefix in cuts])
    assert all(f"{own.text} ".startswith(prefix) for (own, *_), (_, prefix) in zip(found, cuts, strict=True))
    others = [(own, whole[i]) for (own, *_), (i, _) in zip(found, cuts, strict=True) if own.text != whole[i].text]
    worse = sum(own.score < wanted.score for own, wanted in others)
    report(f"beams {beam_size}: {len(others)} of {len(cuts)} differ under their own beginning, {worse} are worse")
    assert len(others) == 0 if beam_size == 1 else worse <= len(cuts) / 10


def test_white_space_around_a_prefix_changes_nothing(ours):
    whole = ours.translate([SOURCE])[0]
    first, second = whole.split()[:2]
    spaces = [f"{first} {second}", f"{first} {second} ", f" {first} {second}", f"\t{first}\u00a0\u2003{second}\u3000"]
    assert ours.translate([SOURCE] * 4, prefixes=spaces) == [whole] * 4


# At most 31 bytes, so that one compiled program serves all.
PREFIX = st.lists(
    st.sampled_from(["Katze", "Hu", "n", "ro", "t", " ", "ß", "ü", "4", "漢", "é", "\u00a0", "\ufb01", "\u200b", "."]),
    max_size=5,
).map("".join)


@settings(max_examples=15, deadline=None)
@given(st.lists(PREFIX, min_size=8, max_size=8))
def test_any_prefix_is_kept_letter_by_letter(ours, tests, prefixes):
    for text, prefix in zip(ours.translate(tests[:8], prefixes=prefixes), prefixes, strict=True):
        clean = ours.tokenizer.prefix(prefix)
        assert f"{text} ".startswith(clean)
        # A space at the end means that the word is complete.
        assert text.startswith(clean) or text == clean.removesuffix(" ")


@pytest.mark.slow
def test_of_several_results_samples_and_an_ensemble(ours, tests):
    prefixes = ["", "K", "rot ", "der", "Katze si", "xyz", "Hun", "4"]
    model = ours.model, ours.params
    searches = [
        as_(ours, beam_size=4, n_best=4),
        as_(ours, sample=True, n_best=5, top_k=20, seed=3),
        as_(ours, sample=True, n_best=3, temperature=3.0),
        Translator(*model, ours.tokenizer, ours.config, [model]),
        as_(ours, banned=("Katze",), no_repeat_ngram=1, min_length=9),
    ]
    for search in searches:
        found = search.translate_n_best(tests[:8], prefixes=prefixes)
        for results, prefix in zip(found, prefixes, strict=True):
            assert results and all(result.text.startswith(prefix) for result in results)
            assert all(np.isfinite(result.score) for result in results)
    # Two identical models give the same result as one.
    assert searches[3].translate(tests[:8], prefixes=prefixes) == ours.translate(tests[:8], prefixes=prefixes)


def test_what_a_piece_adds_to_a_prefix_is_bound_by_the_other_wishes(ours):
    """The prefix "Ka" becomes "Katze", unless that is banned. A prefix that contains "Katze" is kept nevertheless."""
    assert "Katze" in ours.translate([SOURCE], prefixes=["Ka"])[0]
    banned = as_(ours, banned=("Katze",))
    assert "Katze" not in banned.translate([SOURCE], prefixes=["Ka"])[0]
    assert banned.translate([SOURCE], prefixes=["Katze "])[0].startswith("Katze ")


def test_a_prefix_beyond_the_limit_is_whole_all_the_same(ours):
    for short in (as_(ours, max_length=2), as_(ours, max_length=1, beam_size=1), as_(ours, max_length=3, n_best=2)):
        for prefix in ("Katze Katze Katze Katz", "xylophonxylophon", "漢字 ", "a b c d e f g h"):
            for result in short.translate_n_best([SOURCE], prefixes=[prefix])[0]:
                assert result.text.startswith(prefix.rstrip())


def test_on_the_command_line(call, workdir, monkeypatch):
    prefixes = ["Katze", "Katze ", " Katze", "Katze  "]
    lines = "".join(json.dumps({"source": SOURCE, "prefix": prefix}) + "\n" for prefix in prefixes)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    done = call("transformer", "translate", workdir, "--jsonl", "--details", "--decode.n_best", 2)
    records = [json.loads(line) for line in done.out.splitlines()]
    assert len({record["translation"] for record in records}) == 1
    for record in records:
        assert "".join(record["pieces"][:-1]).replace("\u2581", " ").strip() == record["translation"]
        assert all(n["translation"].startswith("Katze") for n in record["n_best"])


def test_unknown_characters_are_told_once(ours, caplog):
    ours.translate(["the cat", "the \u6f22 cat \u200b", "\x1b[2J \u6f22"], first_line=5)
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith("line 6: the first of 2 such lines; ") and "\u6f22 (U+6F22)" in told
    assert "were never seen in training" in told and told.isprintable()
    caplog.clear()
    ours.encode(["\u6f22"], None)
    ours.translate(["the cat"])
    assert not caplog.records


# ---- Pieces of all kinds --------------------------------------------------------------------------------------------


@functools.cache
def random_translator(model: bytes):
    """A random model, whose translations have pieces that no tokenizer would choose."""
    pieces = Tokenizer(model)
    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=32, heads=2)
    net = build(config.with_vocabulary(pieces.vocab_size))
    params = jax.tree.map(lambda x: 2.0 * x, jit(net.init)(jax.random.key(4)))
    return Translator(net, params, pieces, DecodeConfig(max_extra_length=4, max_source_length=20, beam_size=1))


def foreign(options):
    """A SentencePiece model with other settings than ours."""
    model, words = io.BytesIO(), ["der Hund", "die Katze", "das Haus läuft", "unter 45 Bäumen", "Er hat", "geheiratet"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 30), model_writer=model, minloglevel=2,
        **{"vocab_size": 75, "hard_vocab_limit": options["model_type"] == "bpe"} | options,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"model_type": "unigram"},
        {"model_type": "bpe", "add_dummy_prefix": False, "normalization_rule_name": "identity"},
        {"model_type": "unigram", "split_by_whitespace": False, "remove_extra_whitespaces": False},
        {"model_type": "bpe", "byte_fallback": True, "vocab_size": 330},
    ],
    ids=str,
)
def test_tokenizers_of_somebody_else(options):
    """Without a space before a line, with pieces across words, with other normalisation rules, without a character."""
    ours = random_translator(foreign(options))
    prefixes = ["Er hat", "Er hat ", "Er h", "der Hun", "die Katze läuft unter 4", "漢", "Er 漢字 ha", "", "x"]
    found = ours.translate(["die Katze"] * len(prefixes), prefixes=prefixes)
    for text, prefix in zip(found, prefixes, strict=True):
        assert f"{text} ".startswith(prefix)
    # With greedy search, any prefix of a translation gives it again, unless its pieces spell what no text does.
    ((whole, _, tokens),), *_ = ours.translate_n_best(["die Katze"])
    spelt = b"".join(ours.tokenizer.spelling[i] for i in tokens)
    cuts = [whole[:n] for n in range(len(whole) + 1)]
    if UNK not in itertools.chain(*ours.tokenizer.encode(cuts)) and spelt == ours._prefixes.of([whole])[0].spelt:
        assert ours.translate(["die Katze"] * len(cuts), prefixes=cuts) == [whole] * len(cuts)


@pytest.mark.parametrize(
    ("normalization", "ends", "stays"),
    [
        ("identity", " \u2581", "\u00a0\t\u3000\u200b\u2060"),
        ("nfkc", " \u2581\u00a0\u3000", "\t\u200b\u2060"),
        ("nmt_nfkc", " \u2581\u00a0\u3000\t\u200b\ufeff", ""),
        ("clean", " \u2581\u00a0\u3000\t", ""),
    ],
)
@pytest.mark.parametrize("remove_spaces", [False, True])
def test_a_prefix_ends_in_a_space_where_the_models_rule_says_so(normalization, ends, stays, remove_spaces):
    """Whatever the rule turns into a space. Everything else is a letter, and no space is demanded after it."""
    made = Tokenizer.train(["der rote Hund rot"] * 50, vocab_size=275, normalization=normalization)
    if normalization != "clean":
        rule = dataclasses.replace(normalizer.read(made.model), remove_spaces=remove_spaces)
        made = Tokenizer(normalizer.replace(made.model, rule))
    prefixes = Prefixes(made)
    (rot,) = prefixes.of(["rot"])
    space = "\u2581".encode()
    assert (rot.spelt, rot.ends) == (space + b"rot", 6)
    for c in ends:
        (found,) = prefixes.of([f"rot{c}"])
        assert (found.spelt, found.ends) == (rot.spelt + space, 6)
    for c in stays:
        (found,) = prefixes.of([f"rot{c}"])
        assert (found.spelt, found.ends) == (rot.spelt + c.encode(), 6 + len(c.encode()))


class Overlapping:
    """A tokenizer with pieces that overlap in many ways. It takes the longest piece that fits."""

    spelling = (b"", b"", b"", b"", *map(str.encode, ["a", "b", "ab", "ba", "aba", "bb", "abab", "bab"]))

    def prefix(self, text):
        return text

    def ends_in_space(self, text):
        return text.endswith(" ")

    def cut(self, lines):
        return [self._one(line.encode()) for line in lines]

    def _one(self, rest):
        pieces = []
        while rest:
            fitting = [i for i, spelt in enumerate(self.spelling) if spelt and rest.startswith(spelt)]
            pieces.append(max(fitting, key=lambda i: len(self.spelling[i])))
            rest = rest[len(self.spelling[pieces[-1]]) :]
        return Cut(pieces, [self.spelling[i] for i in pieces])


V, LONGEST = len(Overlapping.spelling), 8


@functools.partial(jit, static_argnames="M")
def search(table, limits, constraints, given, M):
    def step(tokens_X, sentence_X, at):
        return table[sentence_X, at, tokens_X], sentence_X

    rows = jnp.repeat(jnp.arange(len(limits)), M)
    return beam_search(
        step, rows, limits, max_length=LONGEST, beam_size=M, bos=BOS, eos=EOS, pad=PAD, n_best=M,
        adjust=None if constraints is None else constraints.adjust, given=given,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.lists(st.text("ab", max_size=7), min_size=6, max_size=6),
    st.lists(st.integers(1, LONGEST), min_size=6, max_size=6),
)  # fmt: skip
def test_all_results_begin_with_the_prefix_and_there_are_some(seed, M, texts, limits):
    logits = np.random.default_rng(seed).normal(size=(6, LONGEST, V, V)) * 2
    logits[..., :EOS] = logits[..., UNK] = -np.inf
    table = jnp.asarray(jax.nn.log_softmax(logits))
    index, spelling = Prefixes(Overlapping()), Overlapping.spelling

    def results(texts, limits):
        prefixes = index.of(texts)
        limits = np.array([max(limit, len(p.pieces) + 1) for limit, p in zip(limits, prefixes, strict=True)])
        given = index.tables(6, 7)
        for row, prefix in enumerate(prefixes):
            index.fill(given, row, prefix)
        found = search(table, limits, Constraints(EOS, prefix=index.spelling), given, M)
        return [
            [
                (b"".join(spelling[i] for i in tokens[: n - 1]).decode(), n)
                for tokens, n in zip(*of_row, strict=True)
                if n > 0
            ]
            for of_row in zip(np.asarray(found.tokens_BML), np.asarray(found.lengths_BM), strict=True)
        ]

    for found, text, limit in zip(results(texts, limits), texts, limits, strict=True):
        assert found and all(whole.startswith(text) for whole, _ in found)
        assert max(n for _, n in found) <= max(limit, len(Overlapping().cut([text])[0].pieces) + 1)
    if M == 1:  # the same result comes again
        whole = [found[0][0] for found in results([""] * 6, [LONGEST] * 6)]
        for n in range(7):
            begun = [text[: min(n, 7)] for text in whole]
            assert [found[0][0] for found in results(begun, [LONGEST] * 6)] == whole
