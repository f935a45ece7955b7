"""Constituency parsing: a toy grammar is learnt to exact match; trees on the command line; starts; mistakes."""

import dataclasses
import io
import json
import os
import random
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit

import transformer
from transformer.checkpoint import Checkpoints, best_seed
from transformer.config import (
    BERT,
    DecodeConfig,
    MeshConfig,
    ModelConfig,
    ParsingConfig,
    TreebankConfig,
    UserError,
    check,
)
from transformer.data import treebank
from transformer.data.linearised import Symbols
from transformer.data.trees import Tree, parse
from transformer.data.wordpiece_training import train_wordpiece
from transformer.inference.attention import of_parse
from transformer.inference.parser import Parser
from transformer.model import build
from transformer.model.encoder_decoder import beside_a_decoder
from transformer.tasks.evalb import COLLINS, Parameters
from transformer.tasks.parse_scores import parameters_of, warn_of_roots
from transformer.tasks.parsing import Parsing
from transformer.tools.tree_picture import svg
from transformer.training.sharding import make_mesh

pytest.importorskip("tokenizers")
NOUNS, VERBS, ADJECTIVES = ("cat", "dog", "man", "park"), ("saw", "liked", "chased"), ("big", "red")
SIZES = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 48, "d_ff": 96, "heads": 2}
CONFIG = """
from transformer.config import ModelConfig, ParsingConfig, TrainConfig, TreebankConfig

config = ParsingConfig(
    model=ModelConfig(**{sizes!r}, dropout=0.0, tied_embeddings="target", head="token"),
    data=TreebankConfig(
        train=({folder!r} + "/train.mrg",), dev=({folder!r} + "/dev.mrg",), vocab_size=45, context=32,
        length_buckets=2,
    ),
    train=TrainConfig(
        steps=360, batch_tokens=768, peak_learning_rate=0.007, warmup_steps=40, schedule="linear", decay_steps=360,
        label_smoothing=0.0,
        log_every=60, eval_every=180, checkpoint_every=60,
    ),
)
"""


def words_of(text: str) -> list[str]:
    (tree,) = parse(text, "here")
    return [word.word for word in tree.words()]


def phrase(draw: random.Random) -> str:
    adjective = f"(JJ {draw.choice(ADJECTIVES)}) " if draw.random() < 0.4 else ""
    return f"(NP (DT the) {adjective}(NN {draw.choice(NOUNS)}))"


def sentence(draw: random.Random) -> str:
    with_phrase = f" (PP (IN with) {phrase(draw)})" if draw.random() < 0.4 else ""
    return f"( (S {phrase(draw)} (VP (VBD {draw.choice(VERBS)}) {phrase(draw)}{with_phrase}) (. .)) )\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    draw, folder = random.Random(0), tmp_path_factory.mktemp("trees")
    for name, count in (("train", 1_000), ("dev", 60)):
        (folder / f"{name}.mrg").write_text("".join(sentence(draw) for _ in range(count)))
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder), sizes=SIZES))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory) -> Path:
    """The workdir of a finished run that was stopped after 180 updates and went on."""
    from transformer.jobs import train

    workdir = tmp_path_factory.mktemp("parser") / "run"
    for steps in (180, 360):
        train(["--config", str(folder / "config.py"), "--workdir", str(workdir), f"--train.steps={steps}"])
    return workdir


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch):
    """`feed(text)`: the text is on standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


# ---- A trained parser ------------------------------------------------------------------------------------------------


def test_the_grammar_is_learnt(run: Path) -> None:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [entry for entry in entries if "dev_f1" in entry]
    assert [entry["step"] for entry in scores] == [180, 360]
    last = scores[-1]
    assert {
        name: last[f"dev_{name}"] for name in ("f1", "recall", "precision", "complete", "tagging")
    } == dict.fromkeys(("f1", "recall", "precision", "complete", "tagging"), 100.0)
    assert last["dev_loss"] < 0.05 and last["dev_f1_all"] == 100
    assert last["dev_errors"] == 0


@pytest.mark.parametrize("hard", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_hard_attention_learns_it_sooner(folder: Path, tmp_path: Path, call, hard: bool) -> None:
    """A third of the updates is enough; without hard attention it is not."""
    command = ("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run")
    command += ("--train.steps", 120, "--train.decay_steps", 120, "--train.eval_every", 120)
    done = call(*command, "--model.hard_attention", hard)
    assert done.code == 0, done.err
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--json")
    assert (json.loads(done.out)["all"]["f1"] == 100) == hard


def test_evaluate_and_evalb_agree(run: Path, folder: Path, tmp_path: Path, call) -> None:
    done = call("evaluate.py", "--workdir", run, "--json")
    assert done.code == 0, done.err
    ours = json.loads(done.out)
    assert ours["all"]["f1"] == ours["len<=40"]["f1"] == 100
    assert (ours["all"]["sentences"], ours["test_set"], ours["beam_size"]) == (60, "dev.mrg", 4)
    assert ours["parameters"].startswith("COLLINS.prm, sha256 ")
    # The verb `evalb` on the output of the verb `parse` gives the same.
    gold = [line[2:-2] for line in (folder / "dev.mrg").read_text().splitlines()]
    found = [str(tree) for tree in Parser.load(run).parse([" ".join(words_of(line)) for line in gold])]
    (tmp_path / "gold").write_text("\n".join(gold) + "\n")
    (tmp_path / "test").write_text("\n".join(found) + "\n")
    (tmp_path / "p.prm").write_text("DELETE_LABEL TOP\nDELETE_LABEL .\nCUTOFF_LEN 6\n")
    rules = tmp_path / "p.prm"
    done = call("transformer", "evalb", tmp_path / "gold", tmp_path / "test", "--parameters", rules, "--json")
    theirs = json.loads(done.out)
    given = ("--data", folder / "dev.mrg", "--parser.parameters", rules)
    done = call("evaluate.py", "--workdir", run, *given, "--json")
    assert done.code == 0, done.err
    ours = json.loads(done.out)
    for name in ("all", "len<=6"):
        assert ours[name] == theirs[name]
    done = call("evaluate.py", "--workdir", run)
    assert "-- All --\nNumber of sentence        =     60" in done.out
    assert "Tagging accuracy          = 100.00" in done.out
    assert done.out.endswith("\nF1 of all sentences, words deleted by their gold tags: 100.00\n")


def test_parse_reads_lines(run: Path, tmp_path: Path, call, feed) -> None:
    feed("the cat saw the red dog .\n\n  the man liked (a) .\n")
    done = call("transformer", "parse", run, "--draw", tmp_path / "x.svg")
    assert done.code == 0, done.err
    first, blank, last = done.out.splitlines()
    assert first == ("(S (NP (DT the) (NN cat)) (VP (VBD saw) (NP (DT the) (JJ red) (NN dog))) (. .))")
    assert blank == ""
    assert words_of(last) == ["the", "man", "liked", "-LRB-a-RRB-", "."]
    texts = [node.text for node in ET.parse(tmp_path / "x.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("NP") >= 3
    assert {"the", "cat", "S", "VBD", "-LRB-a-RRB-"} <= {*texts}


def test_an_average_is_scored(run: Path, tmp_path: Path, call) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    done = call("transformer", "average", copy, "--last", 2)
    assert done.code == 0, done.err
    assert done.out.startswith("averaged 2 checkpoints: 300, 360\n")
    assert "f1 on dev.mrg: 100.0000 before (step 360), " in done.out
    done = call("evaluate.py", "--workdir", copy, "--json")
    assert json.loads(done.out)["averaged_steps"] == [300, 360]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "the name must end with .svg"),
        ("pipe.svg", "exists; name another file, or remove it"),
        ("link.svg", "exists; name another file, or remove it"),
        ("full.svg", "exists; name another file, or remove it"),
        ("x.png", "the name must end with .svg"),
        ("none/x.svg", "there is no folder"),
    ],
)
def test_a_picture_goes_to_a_new_file(run: Path, tmp_path: Path, call, feed, name: str, told: str) -> None:
    os.mkfifo(tmp_path / "pipe.svg")
    (tmp_path / "link.svg").symlink_to("nothing")
    (tmp_path / "full.svg").write_text("mine")
    feed("the cat .\n")
    done = call("transformer", "parse", run, "--draw", tmp_path / name)
    assert (done.code, done.out) == (2, "") and f"--draw {tmp_path / name}" in done.err and told in done.err
    assert (tmp_path / "full.svg").read_text() == "mine"


def test_what_is_no_sentence_is_told(run: Path, call, feed) -> None:
    """A tree, and characters that training did not have."""
    feed("(S (NP (NN cat)))\n")
    done = call("transformer", "parse", run)
    assert "warning: line 1 is a tree, and its brackets and labels are read as words; give the words alone" in done.err
    feed("the cat .\nthe 猫 .\n")
    done = call("transformer", "parse", run)
    assert done.err == "warning: line 2: the vocabulary lacks '猫', which the model reads as unknown (1 of 2 lines)\n"


def test_parse_reads_raw_text(run: Path, call, feed) -> None:
    feed("the dog chased the man.\n")
    done = call("transformer", "parse", run, "--raw", "--decode.beam_size", 1)
    assert done.out == "(S (NP (DT the) (NN dog)) (VP (VBD chased) (NP (DT the) (NN man))) (. .))\n"


def test_long_sentences_are_parsed_in_parts(run: Path, call, feed) -> None:
    words = ["the", "cat", "saw", "the", "dog", "."] * 8
    feed("the cat saw the dog .\n" + " ".join(words) + "\n" + "x" * 500 + "\n")
    done = call("transformer", "parse", run)
    assert done.code == 0, done.err
    assert "line 2: 48 words, too long for this model; parsed in parts (1 of 3 lines)" in done.err
    _, whole, one = done.out.splitlines()
    assert words_of(whole) == words
    assert whole.startswith("(S (S (NP (DT the)")  # parts end at full stops
    assert words_of(one) == ["x" * 500]


def test_raw_text_is_told(run: Path, caplog) -> None:
    parser = transformer.Parser.load(run)
    (tree,) = parser.parse(["The cat saw (a) dog."], raw=True)
    assert words_of(str(tree)) == ["The", "cat", "saw", "-LRB-", "a", "-RRB-", "dog", "."]
    assert not [message for message in caplog.messages if "--raw" in message]
    parser.parse(["the cat saw the dog .", "the cat saw Dr."])
    assert not [message for message in caplog.messages if "--raw" in message]
    parser.parse(["the cat saw the dog."])
    assert [message for message in caplog.messages if "raw English text needs --raw (raw=True)" in message]


def test_a_label_above_all_trees_is_told(tmp_path: Path, caplog) -> None:
    for top, told in (("TOP", 0), ("", 0), ("ROOT", 1)):
        (tmp_path / "x.mrg").write_text(f"({top} (S (NP (NN a)) (VP (V b))))\n({top} (NP (NN c) (NN d)))\n")
        warn_of_roots(bank := treebank.read([str(tmp_path / "x.mrg")]), COLLINS)
        assert len(caplog.messages) == told
    warn_of_roots(bank, Parameters(deleted={"ROOT"}))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("x.mrg: ROOT stands above all trees and counts as a bracket; ")


def test_from_python(run: Path) -> None:
    parser = transformer.Parser.load(run)
    tree, nothing = parser.parse([["the", "cat", "saw", "the", "dog", "."], ""])
    assert isinstance(tree, Tree)
    assert tree.label == "S"
    assert nothing is None
    for wrong, message in (
        ("the cat", "give a list of sentences"),
        ([["the cat"]], "line 1: the word 'the cat' is empty or holds white space"),
        ([["the", ""]], "line 1: the word '' is empty or holds white space"),
        ([3], "line 1: 3: give words, or a string"),
        ([[1]], r"line 1: \[1\]: give words, or a string"),
    ):
        with pytest.raises(UserError, match=message):
            parser.parse(wrong)
    assert str(parser.parse(["the cat\ud800 ."])[0]) == str(parser.parse(["the cat? ."])[0])
    for field, given in (("no_repeat_ngram", 2), ("max_length", 3), ("banned", ("x",)), ("n_best", 2)):
        with pytest.raises(
            UserError, match=rf"^decode\.{field} = .*: must be (left out: an output is a tree|1 without)"
        ):
            transformer.Parser.load(run, config=DecodeConfig(**{field: given}))
    with pytest.raises(UserError, match=r"^params = 'a'"):
        Parser(parser.model, "a", parser.vocabulary, parser.symbols)


def random_parser(form: str, scale: float, longest: int | None = None, **model: Any) -> Parser:
    """A model that has learnt nothing."""
    vocabulary = train_wordpiece(["the cat saw a dog ( ) ."] * 3, 30, lower_case=False)
    symbols = Symbols(form, ("A", "B"), ("X", "Y"))
    config = ModelConfig(
        **SIZES, vocab_size=vocabulary.size, target_vocab_size=symbols.size, labels=2, head="token",
        tied_embeddings="target", **model,
    )  # fmt: skip
    params = jax.tree.map(lambda x: scale * x, jit(build(config).init)(jax.random.key(0)))
    search = DecodeConfig(beam_size=2, length_normalization="none")
    return Parser(build(config), params, vocabulary, symbols, search, longest=longest)


def random_sentences(*lengths: int) -> list[list[str]]:
    draw = random.Random(1)
    return [[draw.choice(["the", "cat", "日", "zzz", "("]) for _ in range(n)] for n in lengths]


@pytest.mark.parametrize(
    "options",
    [
        {"form": "transitions", "longest": 20, "positions": "learned", "max_positions": 40},
        {"form": "brackets"},
        {"form": "transitions", "longest": 20, "hard_attention": True},
    ],
)
def test_random_parameters_give_trees(options: dict[str, Any]) -> None:
    """A model that has learnt nothing gives trees over exactly the words, in both forms."""
    sentences = random_sentences(2, 17, 40)
    for words, tree in zip(sentences, random_parser(scale=5, **options).parse(sentences), strict=True):
        assert [word.word for word in tree.words()] == ["-LRB-" if word == "(" else word for word in words]


def test_a_search_with_hard_attention_scores_as_a_whole_pass() -> None:
    """The score of a tree is the sum of the log-probabilities of its symbols in one pass without a cache, of parts of
    sentences, too, and of rows that go on when others are finished."""
    parser = random_parser("transitions", 1.5, longest=14, hard_attention=True)
    parts = parser._parts([parser._words(words, 1) for words in random_sentences(1, 3, 9, 5, 24, 2, 7, 4, 3, 8)], 1)
    assert len(parts) > 11
    for part, (tree, score) in zip(parts, parser._parsed(parts, 0), strict=True):
        attended = of_parse(parser, " ".join(part.words))
        assert attended.sides["target"].text == str(tree)
        *symbols, _ = attended.sides["target"].log_probs
        assert score == pytest.approx(sum(symbols), rel=1e-5)


@pytest.mark.parametrize("positions", [5, 6, 40])
def test_learned_positions_hold_a_usual_tree(positions: int, caplog) -> None:
    """A sentence whose tree fits into the learned positions is not cut, and no tree is longer."""
    vocabulary = train_wordpiece(["a b"] * 3, 7, lower_case=False)
    symbols = Symbols("transitions", ("A", "B"), ("X", "Y"))
    config = ModelConfig(
        **SIZES, vocab_size=vocabulary.size, target_vocab_size=symbols.size, labels=2, head="token",
        tied_embeddings="target", positions="learned", max_positions=positions,
    )  # fmt: skip
    model = build(config)
    parser = Parser(model, jit(model.init)(jax.random.key(0)), vocabulary, symbols, DecodeConfig(beam_size=2))
    words = ["a"] * int(positions / 2.5)
    (tree,) = parser.parse([words])
    assert "parsed in parts" not in caplog.text
    assert [word.word for word in tree.words()] == words
    assert len(symbols.encode(tree)) < positions


def test_numbers_that_are_not_finite_are_told(run: Path, call, feed, monkeypatch) -> None:
    params = Checkpoints(run).open().params()
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    monkeypatch.setattr("transformer.checkpoint.Checkpoint.params", lambda self: broken)
    feed("the cat saw the dog .\n")
    done = call("transformer", "parse", run)
    assert (done.code, done.out) == (2, "\n")
    assert "no score of 1 sentences is a number" in done.err


@pytest.mark.slow
def test_the_best_of_several_seeds_is_scored(folder: Path, tmp_path: Path, call) -> None:
    options = ("--train.steps", 2, "--train.eval_every", 2, "--train.checkpoint_every", 2, "--train.seeds", 2)
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path, *options)
    assert done.code == 0, done.err
    done = call("evaluate.py", "--workdir", tmp_path)
    assert done.code == 0, done.err
    assert f"with checkpoint 2 of {best_seed(tmp_path)}" in done.err


# ---- Starts ----------------------------------------------------------------------------------------------------------


def test_an_encoder_alone_computes_the_same_beside_a_decoder() -> None:
    alone = dataclasses.replace(BERT, encoder_layers=2, d_model=16, d_ff=32, heads=2, vocab_size=30, max_positions=12)
    model = build(alone)
    params = jax.tree.map(lambda x: x + 0.1, jit(model.init)(jax.random.key(0)))
    beside = dataclasses.replace(
        alone, decoder_layers=1, token_types=0, head="token", labels=3, target_vocab_size=9, tied_embeddings="target"
    )
    other = build(beside)
    named = beside_a_decoder(params, alone)
    whole = {name: named.get(name, node) for name, node in jit(other.init)(jax.random.key(1)).items()}
    tokens_BT = jnp.array([[2, 7, 9, 3], [2, 8, 3, 0]])
    expected = model.bind(params).states(tokens_BT, mask_BT=tokens_BT != 0)
    found = other.bind(whole).encoder_states(tokens_BT)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :3], expected[1, :3], atol=1e-5)


@pytest.mark.slow
def test_a_bert_becomes_the_encoder(folder: Path, tmp_path: Path, call) -> None:
    text = tmp_path / "a.txt"
    text.write_text(("the cat saw the dog .\nthe man liked the park .\n\n" * 40) + "a big red dog with it chased\n")
    (tmp_path / "bert.py").write_text(
        "import dataclasses\nfrom transformer.config import BERT, MaskedConfig, PretrainConfig, TrainConfig\n"
        "config = MaskedConfig(model=dataclasses.replace(BERT, encoder_layers=1, d_model=48, d_ff=96, heads=2, "
        f"max_positions=32), data=PretrainConfig(text=({str(text)!r},), context=32, vocab_size=50), "
        "train=TrainConfig(steps=2, batch_tokens=256, checkpoint_every=2, eval_every=2, peak_learning_rate=1e-3))\n"
    )
    done = call("train.py", "--config", tmp_path / "bert.py", "--workdir", tmp_path / "bert")
    assert done.code == 0, done.err
    command = ("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", "--train.steps", 2)
    command += ("--train.init_from", tmp_path / "bert", "--parser.encoder_rate", 0.1, "--model.hard_attention", True)
    done = call(*command)
    assert done.code == 0, done.err
    opened = Checkpoints(tmp_path / "run").open("last")
    m = opened.config.model
    assert (m.positions, m.token_types, m.head, m.activation, m.decoder_layers) == ("learned", 0, "token", "gelu", 1)
    assert m.hard_attention
    assert "drawn anew  decoder/" in done.err
    before, after = Checkpoints(tmp_path / "bert").open().params(), opened.params()
    np.testing.assert_allclose(after["source_positions"], before["positions"], atol=0.01)
    done = call(*command[:5], "--train.steps", 4, *command[7:])  # the config does not hold what the start decided
    assert done.code == 0, done.err
    assert "resuming from step 2" in done.err


def test_a_parser_goes_on_with_its_own_form_alone(folder: Path, run: Path, tmp_path: Path, call) -> None:
    command = ("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", "--train.steps", 2)
    command += ("--train.init_from", run)
    done = call(*command, "--data.form", "brackets")
    assert done.code == 2
    assert f"data.form = 'brackets': {run} was trained with 'transitions'; give that form" in done.err
    done = call(*command, "--model.labels", 6)  # the number that the trees have
    assert done.code == 0, done.err


# ---- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train", "nothing.mrg"], "nothing.mrg: no such file"),
        (["--parser.parameters", "nothing.prm"], "parser.parameters: nothing.prm: no such file"),
        (["--model.head", "none"], "model.head = 'none': must be 'token'"),
        (["--model.decoder_layers", "0"], "model.decoder_layers = 0: must be at least 1: the decoder writes the tree"),
        (["--model.tied_embeddings", "all"], "model.tied_embeddings = 'all': must be 'target' or 'none'"),
        (["--decode.min_length", "3"], "decode.min_length = 3: must be left out"),
        (["--decode.max_source_length", "9"], "decode.max_source_length = 9: must be left out"),
        (["--decode.n_best", "2"], "decode.n_best = 2: must be 1 without decode.sample: a sentence gets its best tree"),
        (["--train.batch_tokens", "16"], "train.batch_tokens = 16: must hold at least one sentence"),
        (["--model.labels", "3"], "model.labels = 3: the training trees have 6; leave"),
        (["--data.context", "5"], "no sentence is left of 1000"),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, call, options: list[str], message: str) -> None:
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *options)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_other_verbs_name_this_one(run: Path, call) -> None:
    done = call("transformer", "translate", run)
    assert done.code == 2
    assert f"python -m transformer parse {run}" in done.err


def test_a_parameter_file_counts_by_its_content(run: Path, tmp_path: Path, call) -> None:
    config = Checkpoints(run).open("last").config
    for name, text in (("a", "CUTOFF_LEN 6\n"), ("b", "CUTOFF_LEN 6\n"), ("c", "LABELED 0\n")):
        (tmp_path / name).write_text(text)
    found = []
    for name in "abc":
        parser = dataclasses.replace(config.parser, parameters=str(tmp_path / name))
        found.append(Parsing.build(dataclasses.replace(config, parser=parser), str(run)).judged_on())
    assert found[0] == found[1] != found[2]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a pipe or a device, but it is read several times"):
        parameters_of(dataclasses.replace(config.parser, parameters=str(tmp_path / "pipe")))
    parser = dataclasses.replace(config.parser, parameters=str(tmp_path / "c"))
    task = Parsing.build(dataclasses.replace(config, parser=parser), str(run))
    before = task.judged_on()
    (tmp_path / "c").unlink()  # a run reads it once
    assert task.judged_on() == before


def test_scores_depend_on_the_trees_and_the_search_and_not_on_speed(run: Path) -> None:
    config = Checkpoints(run).open("last").config

    def judged_on(section: str, **fields: object) -> object:
        section_of = dataclasses.replace(getattr(config, section), **fields)
        return Parsing.build(dataclasses.replace(config, **{section: section_of}), str(run)).judged_on()

    usual = judged_on("decode")
    for fields in ({"batch_sentences": 3}, {"batch_tokens": 99}, {"streams": 2}, {"seed": 5}, {"temperature": 0.5}):
        assert judged_on("decode", **fields) == usual
    assert judged_on("decode", beam_size=7) != usual != judged_on("train", eval_sentences=1)


def test_the_judge_leaves_out_no_sentence_for_its_tags(run: Path) -> None:
    """EVALB does: with a few sentences left, a poor checkpoint would be the best."""
    opened = Checkpoints(run).open("last")
    task, params = Parsing.build(opened.config, str(run)), jax.tree.map(jnp.asarray, opened.params())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    right = dict(task.evaluate(params, mesh, 1))
    bias = params["label_head"]["bias"]
    params["label_head"]["bias"] = bias.at[task.symbols.tags.index(".")].set(1e3)  # all words are full stops
    wrong = dict(task.evaluate(params, mesh, 1))
    assert (wrong["dev_errors"], wrong["dev_f1"]) == (60, 0) != (right["dev_errors"], right["dev_f1"])
    assert wrong["dev_f1_all"] == right["dev_f1_all"] == right["dev_f1"] == 100
    assert task.judged[0] == ("dev_f1_all", "up")


def test_trees_that_can_not_be_used_are_told(folder: Path, tmp_path: Path, run: Path, call) -> None:
    (tmp_path / "t.mrg").write_text("(S (NN cat dog))\n(S (NP (NN cat)))\n")
    done = call("evaluate.py", "--workdir", run, "--data", tmp_path / "t.mrg")
    assert done.code == 0, done.err
    assert "t.mrg:1: the word 'dog' has no tag" in done.err
    assert "t.mrg: 1 sentences" in done.out
    (tmp_path / "t.mrg").write_text("(S (NP (NN cat))\n")
    done = call("evaluate.py", "--workdir", run, "--data", tmp_path / "t.mrg")
    assert done.code == 2
    assert "t.mrg:1: 1 closing brackets are missing" in done.err.splitlines()[-1]


def test_the_config_is_checked() -> None:
    check(ParsingConfig(data=TreebankConfig(train=("a",))))
    with pytest.raises(UserError, match=r"^model\.target_vocab_size = 50: must be None: in translation"):
        check(transformer.Config(model=ModelConfig(target_vocab_size=50, tied_embeddings="target")))


# ---- Pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_has_each_node_where_its_children_are() -> None:
    (tree,) = parse("(S (NP (DT the) (NN <cat>)) (VP (V sleeps)))", "here")
    root = ET.fromstring(svg([tree, tree]))
    name = "{http://www.w3.org/2000/svg}text"
    places = [(node.text, float(node.get("x")), float(node.get("y"))) for node in root.iter(name)]
    assert len(places) == 2 * 9
    where = {text: (x, y) for text, x, y in places[:9]}
    assert where["NP"][0] == pytest.approx((where["DT"][0] + where["NN"][0]) / 2, abs=0.1)
    assert where["the"][0] == where["DT"][0]
    assert where["the"][0] < where["<cat>"][0] < where["sleeps"][0]
    assert where["the"][1] == where["<cat>"][1] == where["sleeps"][1] > where["DT"][1] > where["NP"][1] > where["S"][1]
    width, height = map(float, root.get("viewBox").split()[2:])
    assert all(0 < x < width and 0 < y < height for _, x, y in places)


def test_a_picture_is_xml_whatever_the_words() -> None:
    root = ET.fromstring(svg([Tree("S", [Tree("X", [], "a\x01\ufffe\U0001f408")])]))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a\ufffd\ufffd\U0001f408" in texts


def test_labels_of_neighbours_do_not_touch() -> None:
    (tree,) = parse("(S (WHADVP (NP (WRB a))) (WHADVP (WRB b)))", "here")
    root = ET.fromstring(svg([tree]))
    first, other = (x for x in root.iter("{http://www.w3.org/2000/svg}text") if x.text == "WHADVP")
    assert abs(float(first.get("x")) - float(other.get("x"))) > 6 * 8.4
