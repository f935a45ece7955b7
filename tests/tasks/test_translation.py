from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import sacrebleu
from etils import epath
from quick import jit

import transformer
from transformer.checkpoint import Checkpoints
from transformer.command_line import config_file
from transformer.config import BOS, EOS, PAD, AttentionConfig, Config, MeshConfig, UserError, from_json, to_json
from transformer.data.batching import evaluation_batches
from transformer.data.tokenizer import Tokenizer
from transformer.inference.translator import Translator
from transformer.tasks import translation
from transformer.tasks.judges import compound_split_bleu
from transformer.tasks.translation import Translation
from transformer.training.objectives import sequences
from transformer.training.sharding import make_mesh
from transformer.training.start import without_effect

MESH = make_mesh(MeshConfig(), jax.devices()[:1])


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.fixture(scope="module")
def config(tiny) -> Config:
    return config_file(tiny.config)


@pytest.fixture(scope="module")
def task(trained: Path, config: Config) -> Translation:
    """The task of the finished run."""
    return Translation.build(config, str(trained))


@pytest.fixture(scope="module")
def scores(task: Translation, trained: Path) -> dict[str, float]:
    """The scores of evaluation during training, for the last parameters."""
    return dict(task.evaluate(Checkpoints(trained).at(120).params(), MESH, 120))


def log_probabilities(task: Translation, params, source: str, target: str) -> np.ndarray:
    """Log-probabilities of each target piece, eos included, one sentence at a time and without padding."""
    (source_ids,), (target_ids,) = task.pieces.encode([source]), task.pieces.encode([target])
    logits = task.objective.model.apply(params, np.array([[*source_ids, EOS]]), np.array([[BOS, *target_ids]]))
    log_probs = np.asarray(jax.nn.log_softmax(np.float64(logits[0])))
    return log_probs[np.arange(len(target_ids) + 1), [*target_ids, EOS]]


def test_dev_loss_is_unsmoothed_per_target_piece_with_eos(task, tiny, trained: Path, scores) -> None:
    params, jitted = Checkpoints(trained).at(120).params(), jit(task.objective.model.apply)
    pairs = zip(lines(tiny.folder / "dev.en"), lines(tiny.folder / "dev.de"), strict=True)
    task = Translation(task.config, task.pieces, task.texts)
    task.objective = task.objective._replace(model=type("Model", (), {"apply": staticmethod(jitted)}))
    found = np.concatenate([log_probabilities(task, params, *pair) for pair in pairs])
    assert len(found) > 100
    assert scores["dev_loss"] == pytest.approx(-found.mean(), rel=1e-5)
    assert scores["dev_perplexity"] == pytest.approx(np.exp(-found.mean()), rel=1e-5)


def test_dev_scores_are_sacrebleus(task, tiny, trained: Path, scores) -> None:
    references = lines(tiny.folder / "dev.de")
    hypotheses = transformer.Translator.load(str(trained), "last").translate(lines(tiny.folder / "dev.en"))
    assert scores["dev_bleu"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert scores["dev_chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert scores["dev_bleu"] > 1  # a score of 0 would prove nothing


def test_dev_scores_are_taken_in_the_type_of_decoding(task, trained: Path, monkeypatch) -> None:
    """In the same type as in evaluate.py; the default on a CPU is the model's type."""
    used, params = [], Checkpoints(trained).at(120).params()
    monkeypatch.setattr(Translator, "translate", lambda self, texts, **_: used.append(self) or ["x"] * len(texts))
    for dtype in ("auto", "int8"):
        decode = dataclasses.replace(task.config.decode, dtype=dtype)
        own = Translation(dataclasses.replace(task.config, decode=decode), task.pieces, task.texts)
        own._dev_loss = lambda *_, **__: (1.0, {"nll": 1.0, "weight": 1.0})
        list(own.evaluate(params, MESH, 120))
        own.sample(params)
        loaded = Translator.load(str(trained), "last", decode)
        for translator in used:
            assert translator.model is loaded.model and translator.config == decode
            jax.tree.map(np.testing.assert_array_equal, translator.params, loaded.params)
        assert len(used) == 2
        del used[:]
    assert {x.dtype.name for x in jax.tree.leaves(loaded.params)} == {"int8", "float32"}
    assert loaded.model is task.objective.model


def test_eval_sentences_limits_what_is_translated_not_the_loss(task, trained: Path, scores, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        Translator, "translate", lambda self, texts, **_: asked.append(list(texts)) or ["x"] * len(texts)
    )
    limited = Translation(
        dataclasses.replace(task.config, train=dataclasses.replace(task.config.train, eval_sentences=3)),
        *(task.pieces, task.texts),
    )
    found = dict(limited.evaluate(Checkpoints(trained).at(120).params(), MESH, 120))
    assert [len(texts) for texts in asked] == [3]
    assert found["dev_loss"] == pytest.approx(scores["dev_loss"], rel=1e-6)


def test_five_samples_are_shown_always_the_same(task, tiny, trained: Path, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO, "transformer")
    shown = []
    for prefix in ("first ", "second "):
        monkeypatch.setattr(
            Translator, "translate", lambda self, texts, prefix=prefix, **_: [prefix + t for t in texts]
        )
        caplog.clear()
        list(task.evaluate(Checkpoints(trained).at(120).params(), MESH, 120))
        shown.append([message.split("\n") for message in caplog.messages if "hypothesis" in message])
    sources, references = lines(tiny.folder / "dev.en"), lines(tiny.folder / "dev.de")
    assert len(shown[0]) == 5
    for one, other in zip(*shown, strict=True):
        source = one[0].removeprefix("  source      ")
        assert one[1] == f"  reference   {references[sources.index(source)]}"
        assert one[2] == f"  hypothesis  first {source}"
        assert other == [one[0], one[1], f"  hypothesis  second {source}", ""]
    # Samples cover the whole set.
    places = [sources.index(one[0].removeprefix("  source      ")) for one in shown[0]]
    assert (places[0], places[-1]) == (0, len(sources) - 1)
    assert places == sorted(set(places))


@pytest.mark.parametrize(("same", "warned"), [(11, True), (10, False)])
def test_a_warning_when_most_outputs_are_the_same(task, trained, caplog, monkeypatch, same: int, warned: bool) -> None:
    outputs = ["das ist"] * same + [f"Satz {i}" for i in range(20 - same)]
    monkeypatch.setattr(Translator, "translate", lambda self, texts, **_: outputs)
    list(task.evaluate(Checkpoints(trained).at(120).params(), MESH, 120))
    told = [line for line in map(logging.LogRecord.getMessage, caplog.records) if "are the same" in line]
    assert told == (["11 of 20 translations are the same: 'das ist'"] if warned else [])


def test_dev_loss_exchanged_is_that_of_other_sources(task, trained: Path, scores, monkeypatch) -> None:
    """Each sentence gets the source of another one; a batch of one sentence does not count."""
    params = Checkpoints(trained).at(120).params()
    unsmoothed = dataclasses.replace(task.config.train, label_smoothing=0.0)
    loss, nll, weight = sequences(task.objective.model, unsmoothed).loss, 0.0, 0.0
    for batch in evaluation_batches(task._development[2], batch_tokens=task.config.train.batch_tokens, n_buckets=3):
        real = batch["target"][:, 0] != PAD
        other = {**batch, "source": batch["source"].copy()}
        other["source"][real] = batch["source"][np.roll(np.flatnonzero(real), 1)]
        assert (other["source"][~real] == PAD).all()
        sums = loss(params, other, None)[1]
        nll, weight = nll + float(sums["nll"]), weight + float(sums["weight"])
    assert scores["dev_loss_exchanged"] == pytest.approx(nll / weight, rel=1e-5)
    assert scores["dev_loss_exchanged"] > scores["dev_loss"] + 0.5  # the model has learnt something
    alone = {side: np.where(np.arange(len(ids))[:, None] == 0, ids, PAD) for side, ids in batch.items()}
    monkeypatch.setattr(translation, "evaluation_batches", lambda *_, **__: iter([alone]))
    assert "dev_loss_exchanged" not in dict(task.evaluate(params, MESH, 120))


@pytest.mark.parametrize(("step", "gain", "warned"), [(20, 0.4, True), (19, 0.4, False), (20, 0.6, False)])
def test_a_warning_where_the_source_hardly_helps(task, trained, caplog, monkeypatch, step, gain, warned) -> None:
    """After the 20 updates of warmup, if exchanging sources raises the loss by less than half."""
    monkeypatch.setattr(Translation, "_losses", lambda *_: (2.0, 2.0 * gain))
    monkeypatch.setattr(Translator, "translate", lambda self, texts, **_: [f"Satz {text}" for text in texts])
    found = dict(task.evaluate(Checkpoints(trained).at(120).params(), MESH, step))
    assert found["dev_loss_exchanged"] == pytest.approx(2.0 + 2.0 * gain)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.split(":")[1] for line in told] == ([" the source hardly helps"] if warned else [])


def test_the_loss_counts_what_is_no_padding(task, trained: Path) -> None:
    params = Checkpoints(trained).at(120).params()
    batch = {"source": np.array([[9, 2, 0, 0], [9, 8, 7, 2]]), "target": np.array([[5, 6, 2, 0, 0], [5, 2, 0, 0, 0]])}
    total, sums = jit(lambda params: task.objective.loss(params, batch, None))(params)
    assert float(sums["weight"]) == 5
    assert float(sums["tokens"]) == 5 + 6
    # bos first, each piece predicted from those before it; ε = 0.1 of the weight spread over all 400 pieces.
    expected = nll = 0.0
    for source, target in (([9, 2], [5, 6, 2]), ([9, 8, 7, 2], [5, 2])):
        logits = jit(task.objective.model.apply)(params, np.array([source]), np.array([[BOS, *target[:-1]]]))
        log_probs = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
        nll -= log_probs[np.arange(len(target)), target].sum()
        expected -= 0.9 * log_probs[np.arange(len(target)), target].sum() + 0.1 * log_probs.mean(1).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(sums["nll"]) == pytest.approx(nll, rel=1e-5)


def test_data_digest_follows_text_and_tokenizer(task, tiny, config, tmp_path: Path) -> None:
    def digest(folder: Path, **changes) -> str:
        data = dataclasses.replace(
            config.data, source=(f"{folder}/train.en",), target=(f"{folder}/train.de",), **changes
        )
        return Translation.build(dataclasses.replace(config, data=data)).data_digest()

    moved = Path(shutil.copytree(tiny.folder, tmp_path / "moved"))
    tokenizer = {"tokenizer": str(tmp_path / "tokenizer.model")}
    (tmp_path / "tokenizer.model").write_bytes(task.pieces.model)
    assert digest(moved) == digest(moved, **tokenizer) == task.data_digest()
    assert digest(moved, vocab_size=390) != task.data_digest()
    text = lines(moved / "train.de")
    (moved / "train.de").write_text("\n".join([text[1], text[0], *text[2:]]) + "\n")
    assert digest(moved, **tokenizer) != task.data_digest()


def test_compound_split_bleu_by_hand() -> None:
    # "a-b" counts as three tokens: a ##AT##-##AT## b.
    hypothesis, reference = ["der rot-grüne Vogel sieht das alte Haus ."], ["der rot-blaue Vogel sieht das alte Haus ."]
    hypothesis_split = "der rot ##AT##-##AT## grüne Vogel sieht das alte Haus ."
    reference_split = "der rot ##AT##-##AT## blaue Vogel sieht das alte Haus ."
    assert len(hypothesis_split.split()) == 10
    # One token of ten differs: it touches 1 of 10 unigrams, 2 of 9 bigrams, 3 of 8 trigrams and 4 of 7 4-grams.
    by_hand = 100 * (9 / 10 * 7 / 9 * 5 / 8 * 3 / 7) ** (1 / 4)
    assert compound_split_bleu(hypothesis, [reference]) == pytest.approx(by_hand)
    split = sacrebleu.BLEU(tokenize="none", force=True).corpus_score([hypothesis_split], [[reference_split]]).score
    assert compound_split_bleu(hypothesis, [reference]) == pytest.approx(split)
    # Without the split one token of eight differs.
    whole = 100 * (7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** (1 / 4)
    assert sacrebleu.corpus_bleu(hypothesis, [reference]).score == pytest.approx(whole)
    # Dashes between words are not split, and punctuation is tokenised as usual.
    assert compound_split_bleu(["er - ja, er - kam."], [["er - ja , er - kam ."]]) == pytest.approx(100)
    assert compound_split_bleu(["a-b-c d e f"], [["a - b - c d e f"]]) < 100


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 2])
def test_packed_sentences_learn_what_they_learn_alone(task, config: Config, window: int | None) -> None:
    """Losses and gradients of an epoch are the same for packed rows and for one sentence a row."""
    model = dataclasses.replace(
        config.model,
        encoder_attention=AttentionConfig(window=window),
        decoder_attention=AttentionConfig(window=window),
        cross_attention=AttentionConfig(window=window),
    )
    found, rows = [], []
    for packing in (True, False):
        own = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, packing=packing))
        other = Translation(own, task.pieces, task.texts)
        params = jit(other.objective.model.init)(jax.random.key(1))
        batches = other.batches()
        gradient = jit(
            jax.value_and_grad(lambda params, batch, loss=other.objective.loss: loss(params, batch, None), has_aux=True)
        )
        whole = [gradient(params, batches[step]) for step in range(batches.batches_per_epoch)]
        found.append(jax.tree.map(lambda *x: np.sum(np.stack(x).astype(np.float64), axis=0), *whole))
        rows.append((batches.padding, sum(len(batches[step]["source"]) for step in range(batches.batches_per_epoch))))
    ((packed_loss, packed_sums), packed_grads), ((loss, sums), grads) = found
    assert rows[0][1] < rows[1][1] / 1.5 and rows[0][0] < 0.1  # rows were packed
    assert packed_sums["weight"] == sums["weight"] and packed_sums["tokens"] == sums["tokens"]
    assert packed_loss == pytest.approx(loss, rel=1e-6) and packed_sums["nll"] == pytest.approx(sums["nll"], rel=1e-6)
    for path, expected in jax.tree_util.tree_leaves_with_path(grads):
        got = packed_grads
        for key in path:
            got = got[key.key]
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected), path


def test_pairs_of_the_same_text_are_shown_and_warned_of(tiny, config, tmp_path: Path, caplog) -> None:
    def banner(count: int) -> tuple[str, list[str]]:
        """The log line on the data, and the warnings, if `count` of 400 pairs are the same on both sides."""
        (tmp_path / "train.de").write_text("\n".join([*english[:count], *german[count:]]) + "\n")
        caplog.clear()
        told = list(Translation.build(dataclasses.replace(config, data=data)).describe())
        return told[0], [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    english, german = (lines(tiny.folder / f"train.{side}") for side in ("en", "de"))
    source, target = str(tiny.folder / "train.en"), str(tmp_path / "train.de")
    data = dataclasses.replace(config.data, source=(source,), target=(target,), vocab_size=350)
    line, warnings = banner(0)
    assert line.endswith(" updates an epoch") and warnings == []
    line, warnings = banner(7)
    assert line.endswith(" updates an epoch; 7 are the same text on both sides") and warnings == []
    _, warnings = banner(201)
    assert warnings == [f"{source} and {target}: 201 of 400 pairs are the same text on both sides"]
    with pytest.raises(UserError, match="are the same text in all 400 pairs"):
        banner(400)


def test_pairs_beyond_every_bound_do_not_count_in_dev_loss(trained: Path, config, scores, tmp_path, caplog) -> None:
    """Translation would cut such pairs, and their memory grows with the square of their length."""
    for side, word in (("source", "cat"), ("target", "Katze")):
        short = lines(Path(getattr(config.data, f"dev_{side}")))
        long = f"{word} " * (20_000 if side == "source" else 3)
        (tmp_path / side).write_text("".join(f"{line}\n" for line in [*short[:4], long, *short[4:]]))
    with_long = {"dev_source": str(tmp_path / "source"), "dev_target": str(tmp_path / "target")}
    task = Translation.build(
        dataclasses.replace(config, data=dataclasses.replace(config.data, **with_long)), str(trained)
    )
    (told,) = [doubt for doubt in task.text_doubts() if "left out" in doubt]
    assert told.startswith(f"{tmp_path / 'source'}: 1 of 21 pairs") or told.startswith("source: 1 of 21 pairs")
    assert "more than 1,025 pieces" in told and told.endswith("the first is pair 5")
    found = dict(task.evaluate(Checkpoints(trained).at(120).params(), MESH, 120))
    assert found["dev_loss"] == pytest.approx(scores["dev_loss"], rel=1e-5)
    assert "line 5: more than" in caplog.text  # it is cut before translation
    for side in ("source", "target"):
        (tmp_path / side).write_text("cat " * 1_100 + "\n")
    with pytest.raises(UserError, match=r"source: all 1 pairs of the development set have more than 1,025 pieces"):
        Translation.build(task.config, str(trained)).text_doubts()


def test_what_bounds_the_pairs_of_dev_loss(task) -> None:
    def most(decode: int, learned: int | None = None, data: int = 16) -> int:
        config = dataclasses.replace(
            task.config,
            data=dataclasses.replace(task.config.data, max_length=data),
            decode=dataclasses.replace(task.config.decode, max_source_length=decode),
        )
        if learned:
            model = dataclasses.replace(config.model, positions="learned", max_positions=learned)
            config = dataclasses.replace(config, model=model)
        return Translation(config, task.pieces, task.texts)._most_pieces

    assert [most(30), most(2_000), most(30, data=3_000)] == [1_025, 2_001, 3_000]
    assert [most(30, 64), most(2_000, 2_100)] == [64, 2_001]


@pytest.mark.parametrize(("name", "value"), [("patience", 3), ("stop_at", 30.0)])
def test_an_early_stop_without_a_development_set_is_told(trained: Path, config, name: str, value: float) -> None:
    data = dataclasses.replace(config.data, dev_source=None, dev_target=None)
    train = dataclasses.replace(config.train, **{name: value})
    (told,) = without_effect(Translation.build(dataclasses.replace(config, data=data, train=train), str(trained)))
    assert told.startswith(f"train.{name} = {value} has no effect, as there is no ")
    for given in ({"data": data}, {"train": train}):
        assert not list(without_effect(Translation.build(dataclasses.replace(config, **given), str(trained))))


def test_the_sets_of_a_workdir_are_those_that_were_read(trained: Path, config, tmp_path: Path) -> None:
    """Also if their files change while the model is compiled."""
    for side in ("source", "target"):
        shutil.copy(getattr(config.data, f"dev_{side}"), tmp_path / side)
    data = {f"dev_{side}": str(tmp_path / side) for side in ("source", "target")}
    task = Translation.build(dataclasses.replace(config, data=dataclasses.replace(config.data, **data)), str(trained))
    task.prepare()
    read = {side: (tmp_path / side).read_text() for side in ("source", "target")}
    for side in read:
        (tmp_path / side).write_text("another\n")
    task.write_sets(epath.Path(tmp_path / "run"))
    assert (tmp_path / "run/sets/dev.source").read_text() == read["source"]
    assert (tmp_path / "run/sets/dev.reference").read_text() == read["target"]


@pytest.mark.slow
def test_the_tokenizer_may_change_before_the_first_checkpoint(call, tiny, trained: Path, tmp_path: Path) -> None:
    """config.json of the workdir names the size of the former tokenizer."""
    workdir, given = tmp_path / "run", tmp_path / "t.model"
    given.write_bytes(Tokenizer.train(lines(tiny.folder / "train.en"), vocab_size=300).model)
    stored = from_json((trained / "config.json").read_text())
    assert stored.model.vocab_size == 400
    workdir.mkdir()
    stored = dataclasses.replace(stored, data=dataclasses.replace(stored.data, tokenizer=str(given)))
    (workdir / "config.json").write_text(to_json(stored))
    short = "--data.tokenizer", given, "--train.steps", 1, "--train.eval_sentences", 1
    done = call("train.py", "--config", tiny.config, "--workdir", workdir, *short)
    assert done.code == 0, done.err
    assert Checkpoints(workdir).at(1).progress["vocab_size"] == 300
