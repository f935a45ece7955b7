"""Masked language models: train, resume, judge, evaluate, fill masks; on documents and on unpaired text."""

import dataclasses
import io
import json
import math
import random
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from runs import average

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import BERT, TrainConfig, UserError, to_json
from transformer.data.masking import MaskedRows, in_order
from transformer.data.running import Text
from transformer.data.text_store import encode_text
from transformer.inference.filler import Filler, likeliest
from transformer.model import build
from transformer.tasks.masked_scores import evaluate_workdir, summed, sums_of
from transformer.tasks.vocabulary import ENCODER_VOCABULARIES, files_of, vocabulary_in
from transformer.training.objectives import masked

pytest.importorskip("tokenizers")
TOPICS = (
    ("wolf", "sheep", "grass", "river", "stone", "cloud"),
    ("table", "chair", "lamp", "door", "window", "floor"),
    ("queen", "king", "tower", "horse", "knight", "pawn"),
)
MODEL = dataclasses.replace(BERT, encoder_layers=1, d_model=16, d_ff=32, heads=2, vocab_size=30, max_positions=9)
CONFIG = """
import dataclasses
from transformer.config import BERT, MaskedConfig, PretrainConfig, TrainConfig

config = MaskedConfig(
    model=dataclasses.replace(
        BERT, encoder_layers=1, d_model=32, d_ff=64, heads=2, max_positions=24, initializer="scaled"
    ),
    data=PretrainConfig(
        text=({folder!r} + "/a.txt",), unpaired_text=({folder!r} + "/b.txt",), context=24, vocab_size=108, duplicates=2
    ),
    train=TrainConfig(
        steps=150, batch_tokens=768, accumulate=2, warmup_steps=10, peak_learning_rate=0.01, label_smoothing=0.0,
        schedule="linear", decay_steps=150, weight_decay=0.01, clip_norm=1.0,
        log_every=25, eval_every=50, checkpoint_every=50,
    ),
)
"""


def sentence(draw: random.Random, topic: tuple[str, ...]) -> str:
    """Words of a topic in its order, from any one on."""
    first = draw.randrange(6)
    return " ".join(topic[(first + i) % 6] for i in range(draw.randint(3, 7)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Documents of one topic each, and lines of any topic."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("text")
    documents = [[sentence(draw, topic) for _ in range(draw.randint(2, 6))] for topic in draw.choices(TOPICS, k=300)]
    (folder / "a.txt").write_text("\n\n".join("\n".join(document) for document in documents) + "\n")
    (folder / "b.txt").write_text("".join(sentence(draw, draw.choice(TOPICS)) + "\n" for _ in range(100)))
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory) -> Path:
    """The workdir of a finished run that was stopped after 100 updates and went on."""
    from transformer.jobs import train

    workdir = tmp_path_factory.mktemp("bert") / "run"
    for steps in (100, 150):
        train(["--config", str(folder / "config.py"), "--workdir", str(workdir), f"--train.steps={steps}"])
    return workdir


@pytest.mark.slow
def test_a_run_that_was_stopped_equals_one_that_was_not(folder: Path, run: Path, tmp_path: Path, call) -> None:
    straight = tmp_path / "straight"
    done = call("train.py", "--config", folder / "config.py", "--workdir", straight)
    assert done.code == 0, done.err
    ours, theirs = (Checkpoints(workdir).open("last") for workdir in (run, straight))
    assert ours.name == theirs.name == 150
    jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {entry["step"]: entry for entry in entries if "dev_loss" in entry}
    assert list(scores) == [50, 100, 150]
    losses = {step: entry["dev_loss"] for step, entry in scores.items()}
    assert Checkpoints(run).best() == min(losses, key=losses.get) and losses[150] < losses[50]
    assert scores[150]["dev_masked_loss"] < 2.2  # it learns: the frequencies of the 18 words alone give 2.9
    assert scores[150]["dev_masked_accuracy"] > 0.25 and scores[150]["dev_next_accuracy"] > 0.6
    assert losses[150] > scores[150]["dev_masked_loss"]
    for line in ("data        b.txt: unpaired, ", "dev text    a.txt: 15 documents", "  sample  [CLS] "):
        assert line in done.err


def batch_of(rows: MaskedRows) -> dict[str, np.ndarray]:
    (batch,) = in_order(rows, rows.count)
    return batch


def test_the_figures_of_evaluate(folder: Path, run: Path, tmp_path: Path, call) -> None:
    """Equal to those of a forward pass with the logits of all pieces; a moved workdir has its own text."""
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    done = call("evaluate.py", "--workdir", moved, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    opened = Checkpoints(run).open()
    pieces, params, config = vocabulary_in(opened, ENCODER_VOCABULARIES), opened.params(), opened.config
    dev = Text((str(folder / "a.txt"),), "blank_lines", begin=285)
    batch = batch_of(MaskedRows(config.data, [encode_text(dev, pieces, folder=tmp_path)], seed=0))
    options = {"types_BT": (batch["part"] == 2).astype(np.int32), "mask_BT": batch["part"] > 0}
    logits_BTV, logits_B2 = jit(build(config.model).apply)(params, batch["text"], **options)
    rows, columns = np.nonzero(batch["place"])
    log_probs = np.asarray(jax.nn.log_softmax(logits_BTV))[rows, batch["place"][rows, columns]]
    labels, is_next = batch["label"][rows, columns], batch["next"][:, 0] - 1
    masked_loss = -log_probs[np.arange(len(labels)), labels].mean()
    next_loss = -np.asarray(jax.nn.log_softmax(logits_B2))[np.arange(len(is_next)), is_next].mean()
    assert (result["test_set"], result["masked_pieces"], result["pairs"]) == ("a.txt", len(labels), len(is_next))
    assert result["masked_loss"] == pytest.approx(masked_loss, rel=1e-5)
    assert result["next_loss"] == pytest.approx(next_loss, rel=1e-5)
    assert result["loss"] == pytest.approx(masked_loss + next_loss, rel=1e-5)
    assert result["masked_perplexity"] == pytest.approx(math.exp(masked_loss), rel=1e-5)
    assert result["masked_accuracy"] == pytest.approx((log_probs.argmax(axis=1) == labels).mean())
    assert result["next_accuracy"] == pytest.approx((np.argmax(logits_B2, axis=1) == is_next).mean())
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_best = next(entry for entry in entries if entry["step"] == opened.name and "dev_loss" in entry)
    for name in ("loss", "masked_loss", "masked_accuracy", "next_accuracy"):
        assert of_best[f"dev_{name}"] == pytest.approx(result[name], rel=1e-5)


def test_the_average(run: Path, tmp_path: Path, call) -> None:
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    last = evaluate_workdir(str(workdir), checkpoint="last")
    lines, result = average(call, workdir, [50, 100, 150])
    assert result["loss"] != last["loss"]
    names = ("loss", "masked_loss", "masked_perplexity", "masked_accuracy", "next_loss", "next_accuracy")
    assert lines == [f"{n} on a.txt: {last[n]:.4f} before (step 150), {result[n]:.4f} after" for n in names]
    assert transformer.Embedder.load(workdir).embed(["the wolf"]).shape == (1, 32)
    (workdir / "sets/texts.json").unlink()
    done = call("transformer", "average", workdir)
    assert done.code == 0 and done.out.splitlines()[1:] == ["no development set to score it on"]
    assert "there are only 3 checkpoints; train.keep_last" in done.err


def test_another_text(run: Path, tmp_path: Path, call) -> None:
    (tmp_path / "other.txt").write_text("wolf sheep grass\nriver stone\n\nking 日\n")
    done = call("evaluate.py", "--workdir", run, "--text", tmp_path / "other.txt")
    assert done.code == 0
    assert done.out.startswith("other.txt: checkpoint ") and "\nnext sentence  " in done.out
    assert "warning: other.txt: 1 character was never seen in training: 日 (U+65E5)" in done.err
    (tmp_path / "other.txt").write_text("wolf sheep grass\nriver stone\n")
    done = call("evaluate.py", "--workdir", run, "--text", tmp_path / "other.txt")
    assert done.code == 0 and "masked pieces  " in done.out and "next sentence" not in done.out
    told = "warning: other.txt holds a single document, so only masked pieces are scored; blank lines would separate"
    assert told in done.err


def test_a_text_that_is_none(run: Path, tmp_path: Path, call) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "wolf grass"}\n{"text": "river stone"}\n')
    done = call("evaluate.py", "--workdir", run, "--text", path)
    assert f"warning: --text: {path} holds JSON objects, which are read as they stand" in done.err
    for name, told in (
        ("", "--text '': give the path of a file"),
        ("no", "no such file: no (--text); correct the path"),
    ):
        done = call("evaluate.py", "--workdir", run, "--text", name)
        assert done.code == 2 and done.err.splitlines()[-1] == f"error: {told}"


def test_a_text_without_a_masked_piece(run: Path, tmp_path: Path) -> None:
    """Its only words have more pieces than a row predicts."""
    config, pieces = Checkpoints(run).open().config, Filler.load(str(run)).vocabulary
    (tmp_path / "other.txt").write_text("wolfsheep\n\nsheepwolf\n")
    store = encode_text(Text((str(tmp_path / "other.txt"),), "blank_lines"), pieces, folder=tmp_path)
    rows = MaskedRows(dataclasses.replace(config.data, whole_words=True), [store], seed=0)
    model, params = build(config.model), Checkpoints(run).open().params()
    with pytest.raises(UserError, match=r"^no piece of the text is masked: with data\.whole_words, all its words have"):
        summed(lambda batch: jit(sums_of(model))(params, batch), in_order(rows, 2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--model.head=masked"],
            "model.head = 'masked': must be 'pretraining' to train with data.next_sentence = True",
        ),
        (
            ["--model.token_types=0"],
            "model.token_types = 0: must be at least 2 to train with data.next_sentence = True",
        ),
        (["--model.head=none", "--data.next_sentence=False"], "model.head = 'none': must be 'masked' or 'pretraining'"),
        (["--data.context=32"], "model.max_positions = 24: must be at least 32: data.context + model.position_offset"),
        (["--data.dev_share=0.001"], "a.txt: has a development share that holds a single document, but pairs of texts"),
        (["--data.vocab_size=30"], "data.vocab_size = 30: too small for this text; with its characters the smallest"),
    ],
)
def test_mistakes_before_training(folder: Path, tmp_path: Path, call, options: list[str], told: str) -> None:
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *options)
    assert done.code == 2
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_masked_pieces_alone(folder: Path, tmp_path: Path, call) -> None:
    """Without pairs the model needs neither token types nor the pooler."""
    options = (
        "--data.next_sentence=False",
        "--model.head=masked",
        "--model.token_types=0",
        "--data.pieces=sentencepiece",
    )
    options += ("--data.vocab_size=300", "--train.steps=2", "--train.eval_every=2", "--train.accumulate=1")
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert "dev_masked_accuracy" in done.err and "dev_next_accuracy" not in done.err
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--json")
    result = json.loads(done.out)
    assert result["pairs"] == 0 and result["next_accuracy"] is None and result["loss"] == result["masked_loss"]


# ---- The objective ---------------------------------------------------------------------------------------------------


def random_batch(rows: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    part = np.array([[1] * n + [2] * m + [0] * (9 - n - m) for n, m in draw.integers(2, 5, (rows, 2))], np.int32)
    place = np.sort(draw.permuted(np.tile(np.arange(1, 5), (rows, 1)), axis=1)[:, :3], axis=1).astype(np.int32)
    place[::2, 2] = 0
    text, label = (draw.integers(5, 30, (rows, n), np.int32) for n in (9, 3))
    return {
        "text": text,
        "part": part,
        "place": place,
        "label": label,
        "next": draw.integers(0, 3, (rows, 1), np.int32),
    }


def test_the_loss_is_the_sum_of_two_means() -> None:
    model, batch = build(MODEL), random_batch(8)
    params = model.init(jax.random.key(0))
    loss = masked(model, TrainConfig(label_smoothing=0.0), next_sentence=True).loss
    (total, sums), summed_gradient = jit(jax.value_and_grad(loss, has_aux=True))(params, batch, None)

    def expected(params):
        logits_BTV, logits_B2 = model.apply(
            params, batch["text"], types_BT=jnp.int32(batch["part"] == 2), mask_BT=batch["part"] > 0
        )
        rows, columns = np.nonzero(batch["place"])
        log_probs = jax.nn.log_softmax(logits_BTV)[rows, batch["place"][rows, columns], batch["label"][rows, columns]]
        pairs = np.flatnonzero(batch["next"][:, 0])
        of_pairs = jax.nn.log_softmax(logits_B2)[pairs, batch["next"][pairs, 0] - 1]
        return -log_probs.mean() - of_pairs.mean()

    assert sums["weight"] == 20 and sums["tokens"] == (batch["part"] > 0).sum()
    value, gradient = jit(jax.value_and_grad(expected))(params)
    assert total / 20 == pytest.approx(float(value), rel=1e-5)
    assert sums["nll"] == pytest.approx(float(total), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 20, b, rtol=2e-4, atol=1e-6), summed_gradient, gradient)


def test_empty_rows_change_nothing() -> None:
    """A mesh that does not divide a batch adds them."""
    model, batch = build(MODEL), random_batch(4)
    params = model.init(jax.random.key(0))
    longer = {name: np.pad(x, ((0, 2), (0, 0))) for name, x in batch.items()}
    loss = jit(jax.value_and_grad(masked(model, TrainConfig(), next_sentence=True).loss, has_aux=True))
    ((one, sums), gradient), ((other, more), longer_gradient) = loss(params, batch, None), loss(params, longer, None)
    assert other == pytest.approx(float(one), rel=1e-6) and sums["tokens"] == more["tokens"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, longer_gradient)
    totals = [summed(lambda b: jit(sums_of(model))(params, b), [each]) for each in (batch, longer)]
    np.testing.assert_allclose(*totals, rtol=1e-5)


# ---- Filling masks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fill(run: Path, call, monkeypatch):
    """`fill(text, options)`: the output of the verb for this standard input."""

    def fill(text: str, *options: object):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return call("transformer", "fill", run, *options)

    return fill


@pytest.mark.slow
def test_the_likeliest_pieces(run: Path, fill) -> None:
    """Each line by itself, in the order of the input; the probabilities are those of a forward pass."""
    lines = ["wolf [MASK] grass", "", "no mask", "[MASK] chair lamp [MASK] window floor table"]
    done = fill("\n".join(lines) + "\n", "--jsonl", "--top", 3)
    assert done.code == 0, done.err
    results = [json.loads(line) for line in done.out.splitlines()]
    assert [one["text"] for one in results] == lines
    assert [[len(mask) for mask in one["masks"]] for one in results] == [[3], [], [], [3, 3]]
    opened = Checkpoints(run).open()
    v, model, params = vocabulary_in(opened, ENCODER_VOCABULARIES), build(opened.config.model), opened.params()
    for line, result in zip(lines, results, strict=True):
        ids = [v.mask if word == "[MASK]" else int(v.encode(word)[0]) for word in line.split()]
        text = np.array([[v.cls, *ids, v.sep]])
        probabilities = np.asarray(jax.nn.softmax(model.apply(params, text)[0][0]))
        for at, candidates in zip(np.flatnonzero(text[0] == v.mask), result["masks"], strict=True):
            expected = np.argsort(-probabilities[at])[:3]
            assert [one["piece"] for one in candidates] == [v.name(int(i)) for i in expected]
            np.testing.assert_allclose(
                [one["probability"] for one in candidates], probabilities[at][expected], rtol=1e-4
            )
    plain = fill("\n".join(lines), "--top", 2)
    first, *_ = plain.out.split("\n")
    assert first == " ".join(f"{one['piece']} {one['probability']:.4f}" for one in results[0]["masks"][0][:2])
    assert [line.count("\t") for line in plain.out.split("\n")] == [0, 0, 0, 1, 0]


def test_a_long_text_loses_its_end_and_the_masks_in_it(run: Path, fill) -> None:
    """No other line is lost."""
    lines = ["wolf [MASK]", "[MASK] " + "wolf " * 30 + "[MASK]", "wolf " * 30 + "[MASK] [MASK]", "[MASK] wolf"]
    done = fill("\n".join(lines) + "\n", "--jsonl", "--top", 2)
    assert done.code == 0, done.err
    masks = [json.loads(line)["masks"] for line in done.out.splitlines()]
    assert [[len(pieces) for pieces in of_line] for of_line in masks] == [[2], [2, 0], [0, 0], [2]]
    assert done.err.splitlines()[-1] == "warning: line 2: 32 pieces, cut to 22 (2 of 4 lines are cut)"
    assert [line.count("\t") for line in fill("\n".join(lines)).out.splitlines()] == [0, 1, 1, 0]


def test_masks_whose_numbers_are_not_finite_have_no_pieces(run: Path, monkeypatch, caplog) -> None:
    """Of a text with several masks one is enough to be told."""
    filler = Filler.load(str(run))

    def broken(*arguments, **options):
        ids, probabilities = likeliest(*arguments, **options)
        return ids, probabilities.at[1:, -1].set(np.nan)  # the last mask of all texts but the first

    monkeypatch.setattr(transformer.inference.filler, "likeliest", broken)
    masks = filler.fill(["[MASK] wolf [MASK]", "wolf [MASK] [MASK]", "wolf"], 2, first_line=4)
    assert [[len(pieces) for pieces in of_line] for of_line in masks] == [[2, 2], [2, 0], []]
    assert caplog.messages[-1].startswith("line 5: the model's scores are not finite") and filler.tally.broken == 1


def test_wrong_arguments_of_fill(run: Path, fill) -> None:
    assert fill("[MASK]\n", "--top", 1_000).err.splitlines()[-1] == (
        "error: top = 1000: must be at least 1, at most 108"
    )
    with pytest.raises(UserError, match=r"^the model has a vocabulary of 30 pieces, and the given one has 108"):
        Filler(build(MODEL), {}, Filler.load(str(run)).vocabulary)
    with pytest.raises(UserError, match=r"^vocabulary = None: give that of an encoder alone"):
        Filler(build(MODEL), {}, None)
    for first_line in (None, 1.5, "1", 0, True):
        with pytest.raises(UserError, match=r"^first_line = "):
            Filler.load(str(run)).fill(["[MASK]"], first_line=first_line)


def test_a_model_without_a_head_for_masked_pieces(run: Path, tmp_path: Path) -> None:
    """Such as an imported one."""
    opened = Checkpoints(run).open()
    config = dataclasses.replace(opened.config, model=dataclasses.replace(opened.config.model, head="none"))
    checkpoints = Checkpoints(str(tmp_path / "run"))
    files = {"config.json": to_json(config).encode(), **files_of(vocabulary_in(opened, ENCODER_VOCABULARIES))}
    params = build(config.model).init(jax.random.key(0))
    checkpoints.save(1, {"params": params}, progress={"step": 1, "vocab_size": 108}, files=files)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"run: its model\.head is 'none', which does not predict masked pieces"):
        Filler.load(str(tmp_path / "run"))
