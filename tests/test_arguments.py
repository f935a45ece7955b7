"""Every argument of the public classes and functions, given values of the wrong kind and values at the limits.

A call may succeed. Else it raises one line from this package: a ValueError, or Python's own TypeError for an argument
that the function does not have.
"""

import dataclasses
import functools
import inspect
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import BERT, DecodeConfig, ModelConfig
from transformer.data.labels import Labels
from transformer.data.linearised import Symbols
from transformer.data.vocabularies import Characters
from transformer.data.wordpiece import SPECIAL_PIECES, WordPiece, tokenizer_json
from transformer.model import build

pytestmark = pytest.mark.slow
pytest.importorskip("tokenizers")
PACKAGE = str(Path(transformer.__file__).parent)
LINES = ["the red dog sees an old cat", "a cat runs to the big house"] * 9
SIZES = {"d_model": 8, "d_ff": 8, "heads": 2, "max_positions": 16}
WORDS = WordPiece(tokenizer_json([*SPECIAL_PIECES, "the", "cat", "dog", "walk", "##s", "."], lower_case=True))
LETTERS = Characters("abcdefg \n")


def odd_values() -> dict[str, Any]:
    """Values by name; made anew, as a generator gives its texts only once."""
    return {
        **{repr(x): x for x in (None, 3, -1, 0, 10**20, 1.5, float("nan"), float("inf"), True, 1j)},
        **{repr(x): x for x in ("abc", "", "\ud800", b"abc", Path("nowhere/x"), np.str_("abc"))},
        **{repr(x): x for x in ([], [[]], [None], [1], [-1], [10**12], [1.5], ["a"], [b"a"], [["a", "b"]], ("a", "b"))},
        **{repr(x): x for x in ([[1], [1, 2]], {}, {"a": 1}, {"a"}, ["a\0b"], ["a\nb"], ["a \ud800"])},
        "generator": (text for text in ["a b"]),
        "object": object(),
        "function": lambda *arguments: 1,
        "0-d": np.array(3),
        "strings": np.array(["a b"]),
        "objects": np.array([None, "a"], object),
        "jax": jnp.arange(3),
        **{f"{kind} (2, 3)": np.ones((2, 3), kind) for kind in ("int64", "float32", "bool", "complex64")},
        "negative": np.full((2, 3), -1),
        "large": np.full((2, 3), 10**6),
        **{str(shape): np.ones(shape, np.int32) for shape in ((0, 3), (2, 0), (2, 3, 4))},
        "model": translation()[0],
        "parameters": translation()[1],
    }


def drawn(config: ModelConfig) -> tuple:
    model = build(config)
    return model, model.init(jax.random.key(0))


def encoder(**more: Any) -> tuple:
    return drawn(dataclasses.replace(BERT, encoder_layers=1, **SIZES, vocab_size=WORDS.size, **more))


@functools.cache
def pieces() -> transformer.Tokenizer:
    return transformer.Tokenizer.train(LINES, vocab_size=290)


@functools.cache
def translation() -> tuple:
    return drawn(ModelConfig(1, 1, **SIZES, vocab_size=290))


DECODE = DecodeConfig(beam_size=2, max_extra_length=4, max_source_length=16)


def inference() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """Functions of models that compute texts, and arguments with which they work."""
    translator = transformer.Translator(*translation(), pieces(), DECODE)
    language = drawn(ModelConfig(0, 1, **SIZES, vocab_size=LETTERS.size))
    generator = transformer.Generator(*language, LETTERS, dataclasses.replace(DECODE, sample=True), context=12)
    plain, sorting, tagging = encoder(head="none"), encoder(head="sequence", labels=2), encoder(head="token", labels=2)
    labels, tags = Labels("classes", "accuracy", ("a", "b"), "a"), Labels("tags", "accuracy", ("N", "V"), "N")
    embedder, classifier = transformer.Embedder(*plain, WORDS), transformer.Classifier(*sorting, WORDS, labels)
    tagger = transformer.Classifier(*tagging, WORDS, tags)
    symbols = Symbols("transitions", ("A", "B"), ("X", "Y"))
    sizes = {"vocab_size": WORDS.size, "target_vocab_size": symbols.size, "labels": 2}
    parsing = drawn(ModelConfig(1, 1, **SIZES, **sizes, head="token", tied_embeddings="target"))
    parser = transformer.Parser(*parsing, WORDS, symbols, DecodeConfig(beam_size=2))

    def of(pair: tuple) -> dict[str, Any]:
        return {"model": pair[0], "params": pair[1]}

    text, line = {"sentences": ["the dog"]}, {"first_line": 1}
    return {
        "Translator": (
            transformer.Translator,
            {**of(translation()), "tokenizer": pieces(), "config": None, "others": ()},
        ),
        "translate": (translator.translate, {**text, "prefixes": None, **line}),
        "translate_n_best": (translator.translate_n_best, {**text, "prefixes": None, **line}),
        "recorded": (translator.recorded, {**text, "prefixes": None, "stop": None}),
        "score": (translator.score, {**text, "translations": ["a cat"], **line}),
        "score_pieces": (translator.score_pieces, {"sources": [[5, 6]], "targets": [[7]]}),
        "search": (translator.search, {"sources": [[5, 6]], "prefixes": None, "first": 0}),
        "warm_up": (translator.warm_up, {"sentences": 2, "pieces": 3}),
        "with_config": (translator.with_config, {"config": DECODE}),
        "Generator": (
            transformer.Generator,
            {**of(language), "vocabulary": LETTERS, "config": None, "others": (), "context": None, "documents": False},
        ),
        "generate": (generator.generate, {"prompts": ["ab"], "stop": (), **line}),
        "stream": (generator.stream, {"prompt": "ab", "stop": (), **line}),
        "generated": (generator.recorded, {"prompts": ["ab"], "stop": (), "ended": None}),
        "score of a text": (generator.score, {"given": ["ab"], **line}),
        "search of a text": (generator.search, {"prompts": [[5]], "stop": (), "first": 0}),
        "Embedder": (transformer.Embedder, {**of(plain), "vocabulary": WORDS, "longest": None}),
        "embed": (embedder.embed, {"texts": ["the cat"], "pooling": "mean", "normalize": False, **line}),
        "Classifier": (transformer.Classifier, {**of(sorting), "vocabulary": WORDS, "labels": labels, "longest": None}),
        "classify": (classifier.classify, {"texts": ["the cat"], **line}),
        "tags": (tagger.classify, {"texts": ["the cat"], **line}),
        "outputs": (classifier.outputs, {"rows": classifier.encode(["the cat"])}),
        "Parser": (
            transformer.Parser,
            {**of(parsing), "vocabulary": WORDS, "symbols": symbols, "config": None, "longest": None},
        ),
        "parse": (parser.parse, {"sentences": ["the cat"], **line}),
    }


def models() -> dict[str, tuple[Callable, dict[str, Any]]]:
    """The model, the search and the tokenizer."""
    model, params = translation()
    source_BS, target_BT = jnp.array([[5, 6, 2], [7, 2, 0]]), jnp.array([[1, 5, 6], [1, 7, 0]])
    bound = model.bind(params)
    memory, none = bound.encode(source_BS), dict.fromkeys(("positions", "segments", "masks", "words"))
    of_source = dict.fromkeys(("mask_BS", "positions_BS", "segments_BS", "begins_BS", "key"))
    of_target = dict.fromkeys(("mask_BTS", "positions_BT", "segments_BT", "passed_BT", "cache", "key"))
    hard = build(dataclasses.replace(model.config, head="token", labels=2, hard_attention=True))
    hard_bound, words = hard.bind(hard.init(jax.random.key(0))), (source_BS > 2, jnp.array([[0, 1, 2], [0, 1, 1]]))
    hard_memory = {"memory": hard_bound.encode(source_BS, begins_BS=words[0])}
    cache = bound.init_cache(rows=2, length=8)

    def step(tokens_X: jax.Array, cache: Any, at: jax.Array) -> tuple[jax.Array, Any]:
        return jnp.full((tokens_X.shape[0], 7), -2.0), cache

    search = {"max_length": 4, "beam_size": 2, "bos": 1, "eos": 2, "pad": 0, "length_penalty": 0.6}
    search |= {"length_normalization": "paper", "n_best": 1, "stop_early": True, "cut": False}
    return {
        "build": (build, {"config": model.config}),
        "init": (model.init, {"key": jax.random.key(0)}),
        "apply": (model.apply, {"params": params, "source_BS": source_BS, "target_BT": target_BT, "key": None, **none}),
        "encode": (bound.encode, {"source_BS": source_BS, **of_source}),
        "attention": (bound.attention, {"source_BS": source_BS, "target_BT": target_BT, **none}),
        "hidden": (bound.hidden, {"tokens_BT": target_BT, "memory": memory, **of_target, "want_weights": False}),
        "encode words": (hard_bound.encode, {"source_BS": source_BS, "begins_BS": words[0]}),
        "pass words": (hard_bound.hidden, {"tokens_BT": target_BT, "passed_BT": words[1], **hard_memory}),
        "apply to words": (hard_bound, {"source_BS": source_BS, "target_BT": target_BT, "words": words}),
        "logits": (bound.logits, {"x_BTD": bound.hidden(target_BT, memory)[0]}),
        "init_cache": (bound.init_cache, {"rows": 2, "length": 8, "beams": 1, "dtype": None}),
        "decode": (bound.decode, {"tokens_BT": target_BT[:, :1], "memory": memory, "cache": cache, "at_B": 0}),
        "beam_search": (
            transformer.beam_search,
            {"step": step, "cache": {"a": jnp.zeros((4, 2))}, "limit_B": jnp.array([3, 3]), **search},
        ),
        "Tokenizer.train": (transformer.Tokenizer.train, {"lines": LINES, "vocab_size": 290, "normalization": "nfkc"}),
        "tokenizer": (pieces().encode, {"lines": ["the dog"], "side": "source"}),
        "pieces": (pieces().cut, {"lines": ["the dog"]}),
        "text": (pieces().decode, {"ids": [[5, 6]]}),
        "prefix": (pieces().prefix, {"text": "the dog"}),
        "piece": (pieces().piece, {"id": 3}),
        "round trips": (pieces().round_trip_rate, {"lines": ["a"], "side": "source"}),
    }


def workdirs(folder: Path) -> dict[str, tuple[Callable, dict[str, Any]]]:
    """What reads and writes workdirs."""
    model, params = translation()
    transformer.save(folder / "run", model, params, pieces())
    checkpoints, number = Checkpoints(folder / "run"), itertools.count()

    def save(**given: Any) -> None:
        transformer.save(**({"workdir": folder / f"saved {next(number)}"} | given))

    def save_checkpoint(**given: Any) -> None:
        other = Checkpoints(folder / f"saved {next(number)}")
        other.save(**given)
        other.wait()

    saved = {"name": 1, "items": {"params": params}, "progress": {"step": 1, "vocab_size": 290}}
    where = {"workdir": folder / "run", "checkpoint": None}
    return {
        "save": (save, {"model": model, "params": params, "tokenizer": pieces(), "step": 0, "config": None}),
        "load": (transformer.load, where),
        "Translator.load": (transformer.Translator.load, {**where, "config": None}),
        "Tokenizer.load": (transformer.Tokenizer.load, {"path": folder / "run/tokenizer.model"}),
        "Checkpoints.open": (checkpoints.open, {"checkpoint": None}),
        "Checkpoints.at": (checkpoints.at, {"name": 0}),
        "Checkpoints.average": (checkpoints.average, {"last": 1}),
        "Checkpoints.save": (save_checkpoint, {**saved, "files": {"config.json": b"{}"}}),
    }


def fault(call: Callable, arguments: dict[str, Any]) -> str | None:
    """What is wrong with the error that a call raises; None if it raises none, or as it should."""
    try:
        result = call(**arguments)
        if inspect.isgenerator(result):
            list(result)
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = raised_in.startswith(PACKAGE) and isinstance(error, (ValueError, FileNotFoundError))
        shown = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        texts = [text for value in arguments.values() for text in (value if isinstance(value, list) else [value])]
        given = any("\n" in text and text in str(error) for text in texts if isinstance(text, str))
        if not ours or ("\n" in str(error) and not given) or "ambiguous" in shown:
            return f"{shown} ({raised_in})"
    return None


@pytest.mark.parametrize("part", ["inference", "models", "workdirs"])
def test_what_is_no_argument_is_told_in_one_line(part: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    functions = {"inference": inference, "models": models, "workdirs": lambda: workdirs(tmp_path)}[part]()
    faults, attempts = [], 0
    for name, (call, valid) in functions.items():
        assert fault(call, valid) is None, name
        for argument in valid:
            for shown, value in odd_values().items():
                attempts += 1
                if (wrong := fault(call, valid | {argument: value})) is not None:
                    faults.append(f"{name}({argument}={shown}): {wrong}")
    assert not faults and attempts > 500, "\n".join(faults)
