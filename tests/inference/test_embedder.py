"""Vectors of texts: those of each text alone, whatever its batch; cut texts, and wrong arguments."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from quick import jit

import transformer
from transformer.config import BERT, MaskedConfig, ModelConfig, UserError
from transformer.data.labels import Labels
from transformer.data.vocabularies import Characters
from transformer.data.wordpiece import SPECIAL_PIECES, WordPiece, tokenizer_json
from transformer.inference.classifier import Prediction
from transformer.inference.filler import Filler
from transformer.model import build
from transformer.tasks.vocabulary import files_of
from transformer.tools.new_workdir import new_workdir

pytest.importorskip("tokenizers", reason="needs tokenizers")
PIECES = [*SPECIAL_PIECES, "the", "cat", "dog", "walk", "##s", "##ing", "."]
CONFIG = dataclasses.replace(
    BERT, encoder_layers=2, d_model=16, d_ff=24, heads=2, max_positions=40, vocab_size=len(PIECES), head="none"
)
VOCABULARY = WordPiece(tokenizer_json(PIECES, lower_case=True))
TEXTS = ["The cats walk.", "", "dog " * 20, "cat", "unknown dog.", "the dog walks\twalking . . ."] * 3


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), build(CONFIG).abstract_params)


@pytest.fixture(scope="module")
def embedder(params: dict) -> transformer.Embedder:
    return transformer.Embedder(build(CONFIG), params, VOCABULARY)


@jit
def states(params: dict, ids: np.ndarray) -> jax.Array:
    return build(CONFIG).bind(params).states(ids[None])[0]


def test_each_vector_is_that_of_its_text_alone(params: dict, embedder: transformer.Embedder) -> None:
    rows = embedder.encode(TEXTS)
    assert rows[:2] == [[2, 5, 6, 9, 8, 11, 3], [2, 3]]
    means, first = embedder.embed(TEXTS), embedder.embed(TEXTS, pooling="cls")
    unit = embedder.embed(TEXTS, normalize=True)
    assert means.dtype == np.float32 and means.shape == (18, 16)
    for i in range(6):
        alone = np.asarray(states(params, np.array(rows[i])))
        for batch in (i, i + 6, i + 12):
            np.testing.assert_allclose(means[batch], alone.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(first[batch], alone[0], atol=1e-5)
    np.testing.assert_allclose(unit, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)
    assert embedder.embed([]).shape == (0, 16)


def test_long_texts_are_cut_and_the_first_is_named(params: dict, caplog) -> None:
    long = transformer.Embedder(build(CONFIG), params, VOCABULARY, longest=5)
    with caplog.at_level(logging.WARNING, "transformer"):
        found = long.encode(["the cat", "the cat walks.", "cat dog cat dog", "dog"], first_line=11)
    assert found[1:3] == [[2, 5, 6, 8, 3], [2, 6, 7, 6, 3]]
    assert caplog.messages == ["line 12: 5 pieces, cut to 3 (2 of 4 lines are cut)"]
    assert transformer.Embedder(build(CONFIG), params, VOCABULARY, longest=400).longest == 40
    rotary = dataclasses.replace(CONFIG, positions="rotary")
    params = {name: x for name, x in params.items() if name != "positions"}
    unlimited = transformer.Embedder(build(rotary), params, VOCABULARY)
    assert unlimited.longest is None and np.isfinite(unlimited.embed(["dog " * 90])).all()


def test_wrong_arguments_are_refused_in_one_line(params: dict, embedder: transformer.Embedder) -> None:
    model, translation = build(CONFIG), build(ModelConfig(vocab_size=9))
    broken = transformer.Embedder(model, {**params, "positions": np.full((40, 16), np.nan)}, VOCABULARY)
    few = build(dataclasses.replace(CONFIG, vocab_size=11))
    for error, call in (
        (r"^pooling = 'max': must be one of mean, cls$", lambda: embedder.embed(["a"], pooling="max")),
        (r"^pooling = array", lambda: embedder.embed(["a"], pooling=np.array(["mean", "cls"]))),
        (r"^normalize = 'False': must be True or False$", lambda: embedder.embed(["a"], normalize="False")),
        (r"^texts is a str: give a list of strings", lambda: embedder.embed("cat")),
        (r"^texts is a set: give a list of strings", lambda: embedder.embed({"cat", "dog"})),
        (r"^texts is a dict: give a list of strings", lambda: embedder.embed({"text": "cat"})),
        (r"^longest = 2: must be at least 3", lambda: transformer.Embedder(model, params, VOCABULARY, longest=2)),
        (r"^vocabulary = None: give that of an encoder", lambda: transformer.Embedder(model, params, None)),
        (r"^vocabulary = .*: give that of an encoder", lambda: transformer.Embedder(model, params, Characters("ab"))),
        (r"^model = .*: give an encoder alone", lambda: transformer.Embedder(translation, params, VOCABULARY)),
        (r"^the vocabulary has 12 pieces, and the model 11", lambda: transformer.Embedder(few, params, VOCABULARY)),
        (r"^line 7: its vector is not finite", lambda: broken.embed(["a"], first_line=7)),
    ):
        with pytest.raises(UserError, match=error):
            call()


@pytest.mark.parametrize("wrong", [None, [], {}, "a", 2.5, ["a"], {"a": "b"}], ids=repr)
def test_parameters_that_are_none_are_refused(wrong) -> None:
    """By all that read with an encoder."""
    labels = Labels("classes", "accuracy", ("a", "b"))
    labelled = build(dataclasses.replace(CONFIG, head="sequence", labels=2))
    masked = build(dataclasses.replace(CONFIG, head="masked"))
    for made in (
        lambda: transformer.Embedder(build(CONFIG), wrong, VOCABULARY),
        lambda: transformer.Classifier(labelled, wrong, VOCABULARY, labels),
        lambda: Filler(masked, wrong, VOCABULARY),
    ):
        with pytest.raises(UserError, match=r"^params( = .*|: a is a str): give a nested dict of arrays"):
            made()


def test_parameters_that_were_donated_are_told(params: dict) -> None:
    embedder = transformer.Embedder(build(CONFIG), jax.tree.map(jax.numpy.array, params), VOCABULARY)
    embedder.params["embedding"]["table"].delete()
    with pytest.raises(UserError, match="embedding/table"):
        embedder.embed(["a cat"])


def test_text_that_is_read_as_unknown_is_told(embedder: transformer.Embedder, params: dict, caplog) -> None:
    masked = build(dataclasses.replace(CONFIG, head="masked"))
    labelled = build(dataclasses.replace(CONFIG, head="sequence", labels=2))
    key, labels = jax.random.key(0), Labels("classes", "accuracy", ("a", "b"))
    classifier = transformer.Classifier(labelled, labelled.init(key), VOCABULARY, labels)
    classifier.predict = lambda rows: [Prediction("a", 1.0)] * len(rows)
    texts = ["the cat", "", "the 猫 walks", "catcat"]
    for read in (embedder.encode, Filler(masked, masked.init(key), VOCABULARY).fill, classifier.classify):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "transformer"):
            read(texts, first_line=7)
        told = "line 9: the vocabulary lacks '猫', which the model reads as unknown (2 of "
        (message,) = caplog.messages
        assert message.startswith(told)
    caplog.clear()
    embedder.encode(texts[3:])
    assert caplog.messages == ["line 1: the vocabulary lacks 'catcat', which the model reads as unknown (1 of 1 lines)"]


def test_on_the_command_line(params: dict, embedder: transformer.Embedder, tmp_path, call, monkeypatch) -> None:
    """Each number is read back with the same bits."""
    default = MaskedConfig()
    data = dataclasses.replace(default.data, context=8)
    progress = {"step": 1, "vocab_size": len(PIECES)}
    config = dataclasses.replace(default, model=CONFIG, data=data)
    new_workdir(str(tmp_path / "run"), params, config, progress=progress, files=files_of(VOCABULARY))
    loaded = transformer.Embedder.load(tmp_path / "run")
    assert loaded.longest == 8
    lines = ["The cats walk.", "", "dog"]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    for options, expected in (
        ((), loaded.embed(lines)),
        (("--pooling", "cls", "--normalize"), loaded.embed(lines, pooling="cls", normalize=True)),
    ):
        with open(tmp_path / "in.txt") as source:
            monkeypatch.setattr("sys.stdin", source)
            done = call("transformer", "embed", tmp_path / "run", *options)
        assert done.code == 0, done.err
        found = np.array([json.loads(line) for line in done.out.splitlines()], np.float32)
        assert found.tobytes() == expected.tobytes()
