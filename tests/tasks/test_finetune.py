"""Fine-tuning: classes, numbers and tags; resumed runs, starts, frozen and redrawn layers, seeds; new texts."""

import dataclasses
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from quick import jit
from runs import average

import transformer
from transformer.checkpoint import Checkpoints, best_seed
from transformer.command_line import config_file
from transformer.config import BERT, FinetuneConfig, TrainConfig, TuneConfig, UserError
from transformer.data import wordpiece
from transformer.data.labelled import Columns
from transformer.data.labels import Labels
from transformer.inference.attention import of_encoder, of_labelled, of_parse, of_text, of_translation
from transformer.inference.classifier import Classifier, labels_in
from transformer.inference.pieces import warn_of_unknown
from transformer.model import build
from transformer.tasks import labelled_sets
from transformer.tasks.finetune import Finetune, shown_label
from transformer.tasks.label_scores import evaluate_workdir
from transformer.tasks.tuning import heads_agree, rate_of, refuse_other_labels
from transformer.training.objectives import labelled
from transformer.training.optimizer import optimizer, without_frozen
from transformer.training.progress import Display
from transformer.training.step import gradients

pytest.importorskip("tokenizers")
TRAIN = Path(__file__).parents[2] / "train.py"
GOOD, BAD = ("good", "fine", "great", "lovely"), ("bad", "poor", "awful", "dull")
PAIRS = ["_pairs", "--data.second=other", "--tune.metric=matthews"]
OTHER = ("the", "film", "a", "story", "was", "is", "actor", "scene")
MODEL = dataclasses.replace(
    BERT, encoder_layers=2, d_model=16, d_ff=32, heads=2, vocab_size=30, max_positions=9, head="sequence", labels=3
)
CONFIG = """
import dataclasses
from transformer.config import BERT, FinetuneConfig, LabelledConfig, TrainConfig, TuneConfig

folder = {folder!r}
config = FinetuneConfig(
    model=dataclasses.replace(
        BERT, encoder_layers=2, d_model=32, d_ff=64, heads=2, max_positions=24, head="sequence", initializer="scaled"
    ),
    data=LabelledConfig(
        train=(folder + "/train.tsv",), dev=(folder + "/dev.tsv",), context=16, vocab_size=70, length_buckets=2
    ),
    train=dataclasses.replace(FinetuneConfig.train, peak_learning_rate=0.003, log_every=20),
    tune=TuneConfig(epochs=3, batch_rows=16),
)
"""


def sentence(draw: random.Random, words: tuple[str, ...]) -> str:
    """Words without meaning, and one that says whether the sentence is good or bad."""
    others = [draw.choice(OTHER) for _ in range(draw.randint(2, 8))]
    others.insert(draw.randint(0, len(others)), draw.choice(words))
    return " ".join(others)


def write(path: Path, rows: list[tuple[str, ...]], header: str = "label\ttext") -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in [(header,), *rows]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Texts, pairs, numbers and tags that can be learnt."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("labelled")
    for name, count in (("train", 400), ("dev", 60), ("test", 40)):
        kinds = [draw.random() < 0.6 for _ in range(count)]
        texts = [sentence(draw, GOOD if good else BAD) for good in kinds]
        labels = ["positive" if good else "negative" for good in kinds]
        write(folder / f"{name}.tsv", list(zip(labels, texts, strict=True)))
        seconds = [sentence(draw, GOOD if draw.random() < 0.5 else BAD) for _ in texts]
        pairs = [
            str(bool(set(one.split()) & set(GOOD)) == bool(set(two.split()) & set(GOOD)))
            for one, two in zip(texts, seconds, strict=True)
        ]
        write(folder / f"{name}_pairs.tsv", list(zip(pairs, texts, seconds, strict=True)), "label\ttext\tother")
        numbers = [f"{130 if good else 70}.5" for good in kinds]
        write(folder / f"{name}_numbers.tsv", list(zip(numbers, texts, strict=True)))
        tags = [" ".join("B-G" if w in GOOD else "B-B" if w in BAD else "O" for w in text.split()) for text in texts]
        write(folder / f"{name}_tags.tsv", list(zip(tags, texts, strict=True)))
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory) -> Path:
    """The workdir of a finished run."""
    from transformer.jobs import train

    workdir = tmp_path_factory.mktemp("finetune") / "run"
    train(["--config", str(folder / "config.py"), "--workdir", str(workdir)])
    return workdir


def scores(workdir: Path) -> dict[int, dict]:
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry for entry in entries if "dev_loss" in entry}


# ---- Training --------------------------------------------------------------------------------------------------------


def test_epochs_decide_on_the_updates(run: Path) -> None:
    """400 texts are 25 updates of 16; the config that is kept has all that follows from it."""
    config = Checkpoints(run).open().config
    train = config.train
    assert (train.steps, train.warmup_steps, train.decay_steps, train.eval_every) == (75, 8, 75, 25)
    assert train.batch_tokens == 16 * 16 and (config.model.labels, config.model.vocab_size) == (2, 70)
    found = scores(run)
    assert list(found) == [25, 50, 75] and found[75]["dev_accuracy"] > 0.9
    best = max(found, key=lambda step: (found[step]["dev_accuracy"], -found[step]["dev_loss"]))
    assert Checkpoints(run).best() == best
    labels = json.loads((run / "labels.json").read_text())
    assert (
        labels["names"] == ["negative", "positive"] and labels["metric"] == "accuracy" and labels["direction"] == "up"
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_equals_one_that_was_not(folder: Path, run: Path, tmp_path: Path, call) -> None:
    for steps in (30, 75):
        done = call(
            "train.py",
            "--config",
            folder / "config.py",
            "--workdir",
            tmp_path / "run",
            "--tune.epochs=None",
            f"--train.steps={steps}",
            "--train.warmup_steps=8",
            "--train.decay_steps=75",
            "--train.eval_every=25",
            "--train.checkpoint_every=25",
        )
        assert done.code == 0, done.err
    ours, theirs = (Checkpoints(workdir).at(75) for workdir in (run, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())
    done = call("train.py", "--config", folder / "config.py", "--workdir", run)
    assert done.code == 0 and "is trained already, to step 75" in done.err
    further = ("--workdir", shutil.copytree(run, tmp_path / "further"), "--train.steps=80")
    done = call("train.py", "--config", folder / "config.py", *further)
    told = "warning: train.steps = 80: from update 75 on (train.decay_steps) the learning rate is 0, so nothing more is"
    assert done.code == 0 and told in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "score", "least"),
    [
        pytest.param(["_numbers", "--data.kind=regression"], "dev_pearson", 0.9, marks=pytest.mark.slow),
        (["_tags", "--data.kind=tags"], "dev_f1", 0.9),
        pytest.param(PAIRS, "dev_matthews", -1.0, marks=pytest.mark.slow),
    ],
)
def test_other_kinds_of_labels(
    folder: Path, tmp_path: Path, call, options: list[str], score: str, least: float
) -> None:
    kind, *rest = options
    files = [f"--data.train={folder}/train{kind}.tsv", f"--data.dev={folder}/dev{kind}.tsv"]
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *files, *rest)
    assert done.code == 0, done.err
    found = scores(tmp_path / "run")
    assert max(entry[score] for entry in found.values()) >= least
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--json")
    result, best = json.loads(done.out), Checkpoints(tmp_path / "run").best()
    assert result["texts"] == 60 and result["scores"]["loss"] == pytest.approx(found[best]["dev_loss"], rel=1e-5)
    assert result["scores"][score[4:]] == pytest.approx(found[best][score], rel=1e-5)
    assert result["last_epoch"][score[4:]] == pytest.approx(found[75][score], rel=1e-5)


@pytest.mark.slow
def test_a_mesh_of_four_devices_trains_the_same_model(folder: Path, tmp_path: Path, environment) -> None:
    """With R-Drop and its dropout, and batches of 14 texts, which four devices do not divide."""
    losses = []
    for count, mesh in ((1, ()), (4, ("--mesh.data=2", "--mesh.fsdp=2"))):
        options = ("--config", folder / "config.py", "--workdir", tmp_path / str(count), "--train.r_drop=1", *mesh)
        subprocess.run(
            [sys.executable, TRAIN, *options, "--tune.batch_rows=14", "--tune.epochs=1"],
            env=environment | {"JAX_NUM_CPU_DEVICES": str(count)},
            check=True,
            capture_output=True,
        )
        losses.append({step: entry["dev_loss"] for step, entry in scores(tmp_path / str(count)).items()})
    assert list(losses[0]) == [29] and losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.slow
def test_layers_and_heads_of_a_start(folder: Path, run: Path, tmp_path: Path, call) -> None:
    """The model is that of the start. Frozen layers stay as they are, redrawn ones and the head do not."""
    (folder / "plain.py").write_text("from transformer.config import FinetuneConfig\nconfig = FinetuneConfig()\n")
    options = ["--config", folder / "plain.py", "--data.context=16", "--train.init_from", run, "--tune.epochs=1"]
    options += [f"--data.train={folder}/train_numbers.tsv", "--data.kind=regression"]
    done = call("train.py", *options, "--workdir", tmp_path / "a", "--tune.frozen_layers=1", "--tune.layer_decay=0.5")
    assert done.code == 0, done.err
    assert "drawn anew  label_head" in done.err and Checkpoints(tmp_path / "a").open().config.model.d_model == 32
    before, after = Checkpoints(run).open().params(), Checkpoints(tmp_path / "a").open("last").params()
    same = jax.tree.map(lambda a, b: bool(a.shape == b.shape and (a == b).all()), before, after)
    assert all(jax.tree.leaves([same["embedding"], same["positions"], same["encoder"]["layers"]["0"]]))
    assert not any(jax.tree.leaves(same["encoder"]["layers"]["1"])) and not same["label_head"]["w"]
    done = call("train.py", *options, "--workdir", tmp_path / "b", "--tune.redrawn_layers=1")
    assert "drawn anew  encoder/layers/1/feed_forward, " in done.err and "label_head, pooler" in done.err
    done = call("train.py", *options, "--workdir", tmp_path / "c", "--model.d_ff=128")
    assert (
        done.code == 2
        and "--model.d_ff is 64 there, 128 here. Give the values there, or leave these options out" in done.err
    )
    again = [*options[:5], "--tune.epochs=1", f"--data.train={folder}/train.tsv", f"--data.dev={folder}/dev.tsv"]
    done = call("train.py", *again, "--workdir", tmp_path / "d")
    assert done.code == 0 and "drawn anew" not in done.err  # the same labels: the head goes on, too


def test_the_rates_of_layers() -> None:
    """Each layer has half the rate of the one above it; what is frozen has none."""
    model = dataclasses.replace(MODEL, encoder_layers=2)
    paths = ("embedding/table", "encoder/layers/0/feed_forward/w1", "encoder/layers/1/feed_forward/w1", "pooler/w")
    for frozen, expected in ((None, [0.125, 0.25, 0.5, 1]), (0, [0, 0.25, 0.5, 1]), (1, [0, 0, 0.5, 1])):
        tune = TuneConfig(layer_decay=0.5, frozen_layers=frozen)
        rate = rate_of(FinetuneConfig(model=model, tune=tune))
        assert [rate(path) for path in paths] == expected
    assert rate_of(FinetuneConfig(model=model)) is None


def test_frozen_parameters_stay_and_the_others_move_at_their_rates() -> None:
    """With weight decay, too. The others move as if nothing was frozen, at their own rates."""
    train = TrainConfig(weight_decay=0.1, peak_learning_rate=0.1, warmup_steps=1)
    params = {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones(3)}, "c": {"w": jnp.ones(3)}}
    rates = {"a/w": 0.0, "b/w": 0.5, "c/w": 1.0}

    def loss(params, batch, key, *, mesh=None):
        total = sum((x["w"] ** 2).sum() for x in params.values())
        return total, {"weight": jnp.float32(1), "nll": total, "tokens": jnp.int32(1)}

    grads = jax.grad(lambda p: loss(without_frozen(p, rates.get), None, None)[0])(params)
    assert float(grads["a"]["w"].sum()) == 0 and float(grads["b"]["w"].sum()) == 6
    scaled, plain = (optimizer(train, 16, rate) for rate in (rates.get, None))
    moved, usual = (tx.update(grads, tx.init(params), params)[0] for tx in (scaled, plain))
    for name, rate in (("a", 0.0), ("b", 0.5), ("c", 1.0)):
        np.testing.assert_allclose(moved[name]["w"], rate * usual[name]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.train="], "data.train is empty: name a file of labelled texts"),
        (["--train.steps=50"], "train.steps = 50: tune.epochs sets it; leave it out, or set tune.epochs to None"),
        (["--train.batch_tokens=64"], "train.batch_tokens = 64: tune.batch_rows sets it; leave it out"),
        (["--tune.metric=pearson"], "tune.metric = 'pearson': must be auto, accuracy, f1 or matthews with data.kind"),
        (["--data.second=text"], "data.second = 'text': must be another column than data.text"),
        (["--data.second=label"], "data.label = 'label': must be another column than the texts"),
        (["--data.text=2"], "data.label = 'label': must be a number from 1, as another column is"),
        (["--data.context=32"], "model.max_positions = 24: must be at least 32"),
        (["--tune.frozen_layers=3"], "tune.frozen_layers = 3: must be at most model.encoder_layers (2)"),
        (["--tune.class_weights", "spam"], "must be 'balanced' alone, or entries such as spam=2"),
        (["--tune.class_weights", "spam=2", "spam=3"], "must be 'balanced' alone, or entries such as spam=2, each"),
        (["--tune.class_weights", "spam=1e300"], "each with another name and a weight up to 1e6"),
        (["--tune.class_weights", "spam=2"], "tune.class_weights: no training text has the label 'spam'"),
        (["--tune.redrawn_layers=1"], "tune.redrawn_layers = 1: without train.init_from all layers are new; leave it"),
        (["--model.labels=3"], "model.labels = 3: the training texts have 2; leave model.labels out"),
        (["--data.kind=regression", "--train.r_drop=1"], "train.r_drop = 1.0: is for classes and tags alone"),
        (["--tune.batch_rows=5", "--train.accumulate=2"], "tune.batch_rows = 5: must be a multiple of train.acc"),
        (
            ["--train.seed=4294967295", "--train.seeds=2"],
            "train.seeds = 2: must leave the last seed below 4,294,967,296",
        ),
    ],
)
def test_mistakes_before_training(folder: Path, tmp_path: Path, call, options: list[str], told: str) -> None:
    if options == ["--data.train="]:
        (folder / "plain.py").write_text("from transformer.config import FinetuneConfig\nconfig = FinetuneConfig()\n")
        done = call("train.py", "--config", folder / "plain.py", "--workdir", tmp_path / "run")
    else:
        done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *options)
    assert done.code == 2 and told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("lost", [None, "config.json"])
def test_seeds_beside_a_single_run_are_refused(folder: Path, run: Path, tmp_path: Path, call, lost: str) -> None:
    """Commands would not read them, and the single run could not go on."""
    shutil.copytree(run, tmp_path / "run")
    if lost:
        (tmp_path / "run" / lost).unlink()
    command = ["train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", "--train.seeds=2"]
    done = call(*command, "--tune.epochs=1")
    assert done.code == 2 and "holds a single run; leave --train.seeds out" in done.err
    assert not (tmp_path / "run/seed-0").exists()


def test_seeds_of_another_config_are_refused(folder: Path, run: Path, tmp_path: Path, call) -> None:
    """They would be scored together."""
    shutil.copytree(run, tmp_path / "runs" / "seed-0")
    command = ["train.py", "--config", folder / "config.py", "--workdir", tmp_path / "runs", "--train.seed=1"]
    done = call(*command, "--train.seeds=2", "--train.peak_learning_rate=0.007")
    told = f"error: {tmp_path}/runs/seed-0 was trained with another config: train.peak_learning_rate is 0.003 there, "
    assert done.code == 2 and done.err.splitlines()[-1].startswith(told)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["seed-0"]


def test_a_folder_that_no_seed_has_made_is_refused_before_the_first_seed(folder: Path, tmp_path: Path, call) -> None:
    other = tmp_path / "runs/seed-1/metrics.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text("of something else\n")
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "runs", "--train.seeds=2")
    told = f"error: {tmp_path}/runs/seed-1 is not a workdir of train.py: it has no config.json, but metrics.jsonl"
    assert done.code == 2 and done.err.splitlines()[-1].startswith(told)
    assert not (tmp_path / "runs/seed-0").exists() and other.read_text() == "of something else\n"


@pytest.mark.slow
def test_seeds_are_compared_on_the_same_texts_only(folder: Path, run: Path, tmp_path: Path, call, predict) -> None:
    """Paths may change between seeds, and so may what is at these paths."""
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "seed-0")
    lines = (folder / "dev.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "dev.tsv").write_text("".join(lines[:-1]))
    command = ["train.py", "--config", folder / "config.py", "--workdir", runs, f"--data.dev={tmp_path}/dev.tsv"]
    done = call(*command, "--train.seeds=2")
    different = "seed 1 can't be compared with seed 0, because the development text or train.eval_sentences has changed"
    assert done.code == 0 and f"no mean: {different}" in done.err
    shutil.copytree(run / "sets", runs / "seed-0" / "sets", dirs_exist_ok=True)
    done = call("evaluate.py", "--workdir", runs)
    assert done.code == 2 and "its seeds have different texts to score: dev.tsv (" in done.err.splitlines()[-1]
    done = predict(runs, "a film\n")
    assert done.code == 2 and done.err.splitlines()[-1] == f"error: {runs}: {different}; name one of its folders seed-N"
    assert predict(runs / "seed-1", "a film\n").code == 0


def test_several_seeds_do_not_read_a_pipe(folder: Path, run: Path, tmp_path: Path, call) -> None:
    os.mkfifo(tmp_path / "pipe.tsv")
    shutil.copytree(run, tmp_path / "runs" / "seed-0")
    train = ["train.py", "--config", folder / "config.py", "--workdir", tmp_path / "new", "--train.seeds=2"]
    evaluate = ["evaluate.py", "--workdir", tmp_path / "runs", "--data", tmp_path / "pipe.tsv"]
    for command in ([*train, f"--data.dev={tmp_path}/pipe.tsv"], evaluate):
        done = call(*command)
        assert done.code == 2 and f"{tmp_path}/pipe.tsv is a pipe or a device" in done.err.splitlines()[-1]


def test_other_labels_than_those_of_the_run(folder: Path, run: Path, tmp_path: Path, call) -> None:
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    text = (folder / "train.tsv").read_text()
    for changed in (text + "neutral\tthe film\n", text.replace("negative", "bad")):
        (tmp_path / "train.tsv").write_text(changed)
        done = call(
            "train.py", "--config", folder / "config.py", "--workdir", workdir, f"--data.train={tmp_path}/train.tsv"
        )
        told = f"the training texts have other labels than those that {workdir} was trained on; restore them, or use"
        assert done.code == 2 and told in done.err.splitlines()[-1]


@pytest.mark.parametrize("content", [b"", b"[" * 100_000])
def test_labels_that_are_damaged_are_those_of_the_checkpoint(run: Path, tmp_path: Path, caplog, content: bytes) -> None:
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    labels = labels_in(Checkpoints(workdir).open())
    (workdir / "labels.json").write_bytes(content)
    refuse_other_labels(labels, str(workdir))
    (told,) = caplog.messages
    assert told.startswith(f"{workdir / 'labels.json'} is not as it was written; taking the labels that checkpoint")
    with pytest.raises(UserError, match="the training texts have other labels"):
        refuse_other_labels(dataclasses.replace(labels, names=("a", "b")), str(workdir))
    (workdir / "labels.json").unlink()
    (workdir / "labels.json").mkdir()
    with pytest.raises(UserError, match=r"labels\.json cannot be read \(Is a directory\); restore a copy"):
        refuse_other_labels(labels, str(workdir))


def test_a_head_goes_on_with_the_same_labels() -> None:
    """An imported model leaves open whether its texts are pairs; its head fits both."""
    labels = Labels("classes", "accuracy", ("a", "b"), "a")
    for other, same in (
        (dataclasses.replace(labels, pairs=None), True),
        (dataclasses.replace(labels, metric="f1", usual="b"), True),
        (dataclasses.replace(labels, pairs=True), False),
        (dataclasses.replace(labels, names=("b", "a")), False),
    ):
        assert heads_agree(labels, other) == heads_agree(other, labels) == same


# ---- Seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_seeds(folder: Path, tmp_path: Path, call, monkeypatch) -> None:
    """Each in a folder of its own, with a summary; the best one predicts; a second call trains nothing."""
    command = ["train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", "--train.seeds=2"]
    done = call(*command, "--train.seed=3", "--tune.epochs=1")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["seed-3", "seed-4"]
    each = {seed: scores(tmp_path / "run" / f"seed-{seed}")[25]["dev_accuracy"] for seed in (3, 4)}
    assert f"seed 3: best dev_accuracy {each[3]:.4g}, last {each[3]:.4g}" in done.err
    assert f"2 seeds: mean of the best dev_accuracy {np.mean(list(each.values())):.4g}, standard deviation" in done.err
    done = call(*command, "--train.seed=3", "--tune.epochs=1")
    assert done.err.count("is trained already, to step 25") == 2
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--json")
    result = json.loads(done.out)
    assert list(result["seeds"]) == ["3", "4"] and result["mean"] == pytest.approx(np.mean(list(each.values())))
    best = best_seed(tmp_path / "run")
    assert best.name == f"seed-{result['best_seed']}"
    texts = ["the film was lovely", "a dull story"]
    assert Classifier.load(tmp_path / "run").classify(texts) == Classifier.load(best).classify(texts)
    done = call("evaluate.py", "--workdir", tmp_path / "run")
    assert "2 seeds" in done.out and f"best on the development set: seed {result['best_seed']}" in done.out
    if importlib.util.find_spec("safetensors"):
        for run, out in ((tmp_path / "run", tmp_path / "out"), (best, tmp_path / "of_best")):
            done = call("transformer", "export", run, out, "--to", "hf-bert")
            assert done.code == 0, done.err
        assert (tmp_path / "out/model.safetensors").read_bytes() == (
            tmp_path / "of_best/model.safetensors"
        ).read_bytes()
    told = (
        f"{tmp_path / 'run'}: no complete checkpoint there; it holds the runs of 2 seeds; give the folder of one, such"
    )
    (folder / "plain.py").write_text("from transformer.config import FinetuneConfig\nconfig = FinetuneConfig()\n")
    start = ["--workdir", tmp_path / "next", "--train.init_from", tmp_path / "run", f"--data.train={folder}/train.tsv"]
    for call_of in (("transformer", "embed", tmp_path / "run"), ("train.py", "--config", folder / "plain.py", *start)):
        done = call(*call_of)
        assert done.code == 2 and done.err.splitlines()[-1].endswith(f"{told} as {tmp_path / 'run' / 'seed-3'}")
    done = call(*command[:-1])
    assert done.code == 2 and "holds the runs of 2 seeds; give --train.seeds 2, or another --workdir" in done.err


@pytest.mark.slow
def test_a_seed_that_was_stopped_before_its_first_evaluation(
    folder: Path, run: Path, tmp_path: Path, call, monkeypatch
) -> None:
    """It is scored, with a remark."""
    shutil.copytree(run, tmp_path / "run/seed-0")
    advance = Display.advance

    def stopped(self, done: int) -> None:
        advance(self, done)
        if done == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Display, "advance", stopped)
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run/seed-1", "--train.seed=1")
    assert done.code == 143
    told = "stopped at update 11 of 75, before its first evaluation"
    for workdir in (tmp_path / "run", tmp_path / "run/seed-1"):
        done = call("evaluate.py", "--workdir", workdir)
        assert done.out.count("STOPPED EARLY: ") == done.out.count(f"STOPPED EARLY: {told}") == 1
    seeds = json.loads(call("evaluate.py", "--workdir", tmp_path / "run", "--json").out)["seeds"]
    assert (seeds["0"]["stopped_early"], seeds["1"]["stopped_early"]) == (None, told)


@pytest.mark.slow
def test_the_last_score_is_of_the_same_texts_as_the_best(folder: Path, tmp_path: Path, call) -> None:
    """Though training scored fewer of them."""
    options = ["--tune.epochs=1", "--train.eval_sentences=1", "--train.peak_learning_rate=1e-8"]
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *options)
    assert done.code == 0, done.err
    result = json.loads(call("evaluate.py", "--workdir", tmp_path / "run", "--json").out)
    assert result["texts"] == 60 and result["scores"]["accuracy"] != scores(tmp_path / "run")[25]["dev_accuracy"]
    assert result["last_epoch"] == {"checkpoint": "25", "accuracy": result["scores"]["accuracy"]}


# ---- The objective ---------------------------------------------------------------------------------------------------


def random_batch(kind: str) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    part = np.array([[1] * n + [2] * m + [0] * (9 - n - m) for n, m in draw.integers(2, 5, (6, 2))], np.int32)
    label = (
        draw.integers(0, 4, (6, 9), np.int32) * (part > 0) if kind == "tags" else draw.integers(1, 4, (6, 1), np.int32)
    )
    if kind == "numbers":
        label = draw.normal(size=(6, 1)).astype(np.float32).view(np.int32)
    return {"text": draw.integers(5, 30, (6, 9), np.int32), "part": part, "label": label}


@pytest.mark.parametrize("kind", ["classes", "weighted", "numbers", "tags"])
def test_the_loss_is_a_mean_over_texts_or_words(kind: str) -> None:
    outputs = 1 if kind == "numbers" else 3
    model = build(dataclasses.replace(MODEL, head="token" if kind == "tags" else "sequence", labels=outputs))
    params, batch = model.init(jax.random.key(0)), random_batch(kind)
    params["label_head"]["w"] = jax.random.normal(jax.random.key(1), (16, outputs))
    weights = np.array([1.0, 2.0, 0.5]) if kind == "weighted" else np.ones(3)
    options = {"numbers": kind == "numbers", "class_weights": tuple(weights) if kind == "weighted" else None}
    loss = jit(labelled(model, TrainConfig(label_smoothing=0.1), **options).loss)
    padded = {name: np.pad(x, ((0, 2), (0, 0))) for name, x in batch.items()}  # rows that a mesh adds
    given = {"types_BT": jnp.int32(batch["part"] == 2), "mask_BT": batch["part"] > 0}
    logits = np.asarray(jit(model.apply)(params, batch["text"], **given), np.float64)
    if kind == "numbers":
        expected, weight = ((logits - batch["label"].view(np.float32)) ** 2).sum(), 6
        smoothed = expected
    else:
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        label = batch["label"] if kind == "tags" else batch["label"][:, 0]
        at = np.nonzero(label)
        of_label = weights[label[at] - 1]
        nll = -np.take_along_axis(log_probs[at], label[at][:, None] - 1, axis=1)[:, 0]
        expected, weight = (of_label * nll).sum(), of_label.sum()
        smoothed = (of_label * (0.9 * nll - 0.1 * log_probs[at].mean(-1))).sum()
    for each in (batch, padded):
        total, sums = loss(params, each, None)
        assert float(total) == pytest.approx(smoothed, rel=1e-5) and float(sums["nll"]) == pytest.approx(
            expected, rel=1e-5
        )
        assert float(sums["weight"]) == pytest.approx(weight) and sums["tokens"] == (batch["part"] > 0).sum()


@pytest.mark.parametrize("kind", ["classes", "weighted", "tags"])
def test_r_drop_adds_half_of_the_divergence_of_two_readings(kind: str) -> None:
    """The mean of both losses, and alpha / 2 times their divergence, each text or word with its weight."""
    config = dataclasses.replace(MODEL, head="token" if kind == "tags" else "sequence", labels=3, dropout=0.3)
    model, batch, key = build(config), random_batch(kind), jax.random.key(3)
    params = model.init(jax.random.key(0))
    params["label_head"]["w"] = jax.random.normal(jax.random.key(1), (16, 3))
    weights = (1.0, 2.0, 0.5) if kind == "weighted" else None

    def total(alpha: float, key: jax.Array | None) -> float:
        objective = labelled(model, TrainConfig(r_drop=alpha), class_weights=weights)
        return float(jit(objective.loss)(params, batch, key)[0])

    first, second = total(0.0, key), total(0.0, jax.random.fold_in(key, 2))
    assert first != second and total(1.0, None) == total(0.0, None)  # nothing is dropped out: one reading
    given = {"types_BT": jnp.int32(batch["part"] == 2), "mask_BT": batch["part"] > 0}
    p, q = (
        jax.nn.log_softmax(jit(model.apply)(params, batch["text"], **given, key=each))
        for each in (key, jax.random.fold_in(key, 2))
    )
    apart = np.asarray(((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1) / 2)
    label = batch["label"] if kind == "tags" else batch["label"][:, 0]
    weight = np.where(label > 0, 1.0 if weights is None else np.array(weights)[label - 1], 0.0)
    expected = (weight * apart).sum()
    assert expected > 0.01
    for alpha in (1.0, 4.0):
        assert total(alpha, key) == pytest.approx((first + second + alpha * expected) / 2, rel=1e-4)


def test_small_class_weights_leave_the_loss_a_mean() -> None:
    """Only the ratio of the weights counts, also if their sum over a batch is below 1."""
    model, batch = build(MODEL), {name: x[None] for name, x in random_batch("classes").items()}
    params = model.init(jax.random.key(0))

    def update(weight: float):
        loss = labelled(model, TrainConfig(label_smoothing=0.0), class_weights=(weight, 2 * weight, weight)).loss
        grads, total, sums = jit(lambda params: gradients(loss, params, batch, None))(params)
        return jax.tree.map(lambda x: x / sums["weight"], (grads, total))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), update(1.0), update(0.01))


@pytest.mark.parametrize(("path", "level"), [("encoder/norm/scale", 2), ("encoder/layers/1/w1", 2), ("positions", 0)])
def test_the_norm_behind_the_layers_learns_as_the_highest_one(path: str, level: int) -> None:
    config = FinetuneConfig(model=MODEL, tune=TuneConfig(layer_decay=0.5, frozen_layers=1))
    assert rate_of(config)(path) == (0.5 ** (3 - level) if level > 1 else 0)


# ---- Evaluation and prediction ---------------------------------------------------------------------------------------


@pytest.fixture
def predict(call, monkeypatch):
    """`predict(workdir, text, options)`: the verb's output for this standard input."""

    def predict(workdir: Path, text: str, *options: object):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return call("transformer", "predict", workdir, *options)

    return predict


def test_a_set_with_one_label_is_told(folder: Path, tmp_path: Path, caplog) -> None:
    write(tmp_path / "dev.tsv", [("positive", "a great film")] * 3)
    config = config_file(str(folder / "config.py"))
    data = dataclasses.replace(config.data, dev=(str(tmp_path / "dev.tsv"),))
    Finetune.build(dataclasses.replace(config, data=data))
    told = 'dev.tsv: the dev set has the label "positive" alone, so its scores tell little; add texts with other labels'
    assert told in caplog.messages


def test_a_label_and_its_probability_a_line(run: Path, predict) -> None:
    lines = ["the film was lovely", "", "a dull story is a dull story"]
    done = predict(run, "\n".join(lines) + "\n")
    assert done.code == 0, done.err
    assert [line.split("\t")[0] for line in done.out.split("\n")] == ["positive", "", "negative", ""]
    done = predict(run, "\n".join(lines), "--jsonl")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [one["text"] for one in found] == lines and found[1] == {"text": "", "label": None}
    opened = Checkpoints(run).open()
    classifier = Classifier.of(opened)
    for one in (found[0], found[2]):
        ids = np.array([classifier.encode([[one["text"]]])[0].ids])
        probabilities = np.asarray(jax.nn.softmax(opened.model.apply(opened.params(), ids)))[0]
        np.testing.assert_allclose(list(one["probabilities"].values()), probabilities, rtol=1e-4)
        assert one["probability"] == max(one["probabilities"].values())


def test_from_python(run: Path) -> None:
    classifier = transformer.Classifier.load(run)
    found = classifier.classify(["a great film"] * 70)
    assert found[0].label == "positive" and found[0].probabilities.keys() == {"negative", "positive"}
    assert all(one.probability == pytest.approx(found[0].probability, rel=1e-4) for one in found)
    for wrong, told in (
        ("a text", "texts = 'a text': give a list of texts"),
        ([3], "line 1: 3: give a string"),
        ([("a", "b")], "line 1: has 2 texts, but this model was trained on one"),
    ):
        for method in (classifier.classify, classifier.encode):
            with pytest.raises(UserError, match=f"^{told}"):
                method(wrong)
    for of, kind in (
        (of_text, "Generator"),
        (of_translation, "Translator"),
        (of_parse, "Parser"),
        (of_encoder, "Embedder"),
    ):
        with pytest.raises(UserError, match=f": give a transformer.{kind}$"):
            of(classifier, "a film")
    with pytest.raises(UserError, match=r": give a transformer\.Classifier$"):
        of_labelled(None, "a film")
    assert classifier.encode(["a great film"]) == classifier.encode([["a great film"]])
    with pytest.raises(UserError, match=r"^line 8: is blank"):
        classifier.encode(["a film", " "], first_line=7)
    for rows in (None, "a film", [[5, 6]]):
        with pytest.raises(UserError, match=r"^rows = .*: give those that `encode` returns"):
            classifier.predict(rows)
    (row,) = classifier.encode(["a great film"])
    length, longest = len(row.ids), classifier.longest
    for changes, told in (
        ({"ids": [10**6] * length}, "row 1: ids must be integers, 0 or more and below"),
        ({"ids": "abc", "first": 3}, "the rows must be a list of lists of ids, not "),
        *(
            (changes, "row 1 is not as `encode` of this classifier returns it")
            for changes in (
                {"ids": []},
                {"ids": [5] * (longest + 1), "first": longest + 1},
                {"first": length - 1},  # a pair
                {"starts": [1]},  # of tags
                {"first": length + 1},
            )
        ),
    ):
        with pytest.raises(UserError, match=f"^{told}"):
            classifier.outputs([row, row._replace(**changes)])
    with pytest.raises(UserError, match=r"^the model has the head 'sequence' with 2 outputs, but these labels need"):
        Classifier(classifier.model, classifier.params, classifier.vocabulary, Labels("tags", "f1", ("O", "B-x")))
    with pytest.raises(UserError, match=r"^labels = None: give those that the model was trained with"):
        Classifier(classifier.model, classifier.params, classifier.vocabulary, None)
    with pytest.raises(UserError, match=r"^vocabulary = None: give that of an encoder alone"):
        Classifier(classifier.model, classifier.params, None, classifier.labels)
    assert classifier.classify(["a great\ud800 film"]) == classifier.classify(["a great? film"])


def test_columns_and_objects_that_are_read_as_one_text_are_told(run: Path, predict) -> None:
    done = predict(run, "positive\tthe film was lovely\n")
    assert done.code == 0 and "warning: line 1 has a tab and is read as one text" in done.err
    done = predict(run, '{"text": "the film was lovely"}\n', "--jsonl")
    assert done.code == 0 and "warning: line 1 is a JSON object and is read as text" in done.err


def test_files_that_are_given_twice_and_sets_that_were_trained_on_are_told(folder: Path, caplog) -> None:
    config = config_file(str(folder / "config.py"))
    train, dev = config.data.train, config.data.dev
    caplog.set_level("WARNING", "transformer")
    Finetune.build(dataclasses.replace(config, data=dataclasses.replace(config.data, train=train * 2, test=dev)))
    first, second, *doubts = caplog.messages
    assert first == f"data.train: {train[0]} is already given in data.train; leave it out of one"
    assert second == f"data.test: {dev[0]} is already given in data.dev; leave it out of one"
    assert "dev.tsv: 60 of 60 texts of the test set are in the development set, too, which" in doubts[-1]


def test_words_for_tags_end_only_at_spaces_and_tabs(run: Path) -> None:
    """As they do in training: a no-break space is part of a word."""
    classifier = Classifier.of(Checkpoints(run).open())
    model = build(dataclasses.replace(classifier.model.config, head="token"))
    params = {name: part for name, part in classifier.params.items() if name != "pooler"}
    tagger = Classifier(model, params, classifier.vocabulary, Labels("tags", "accuracy", ("N", "V"), "N"))
    assert len(tagger.classify(["the film\u00a0was  a\tstory"])[0].label) == 4
    assert tagger.classify([["the ", "\tfilm\r\n"]]) == tagger.classify(["the film"])
    # A line break stands between words, as in the texts of training.
    assert tagger.classify(["the film\nwas \r\n"]) == tagger.classify(["the film was"])
    # Texts and words may be arrays, as in the columns of a table.
    assert tagger.classify(np.array(["the film", "was"])) == tagger.classify(["the film", "was"])
    assert tagger.classify(text for text in [np.array(["the", "film"])]) == tagger.classify(["the film"])
    with pytest.raises(UserError, match=r"^line 3: word 1 of the list is empty; leave it out$"):
        tagger.classify(["the film", ["the", "", "film"]], first_line=2)


def test_what_is_unknown_is_shown_where_words_are_cut_elsewhere(tmp_path: Path, caplog) -> None:
    """A vertical tab ends a word of Python's, but not one of WordPiece, which leaves it out."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    vocabulary = wordpiece.load(tmp_path / "vocab.txt")
    rows = vocabulary.encode_lines(["a\vb"])
    assert rows == [[vocabulary.unk]]
    with caplog.at_level("WARNING", "transformer"):
        warn_of_unknown(vocabulary, ["a\vb"], rows, [7])
    assert caplog.messages == [
        "line 7: the vocabulary lacks 'a\\x0bb', which the model reads as unknown (1 of 1 lines)"
    ]


def test_a_workdir_copied_halfway(run: Path, tmp_path: Path, call, predict) -> None:
    """A file that the manifest names is missing: the checkpoint is damaged, not an import without that file."""
    for name in ("tokenizer.json", "labels.json"):
        half = Path(shutil.copytree(run, tmp_path / name.replace(".", "_")))
        for path in half.glob(f"checkpoints/*/{name}"):
            path.unlink()
        for done in (predict(half, "a film\n"), call("transformer", "export", half, tmp_path / "x", "--to", "hf-bert")):
            assert done.code == 2 and f"{name} cannot be read" in done.err and "checkpoint is damaged" in done.err


def test_outputs_that_are_not_finite(run: Path, caplog) -> None:
    """Such texts have no label; the warning names their line, blank ones counted, and a sample shows that."""
    opened = Checkpoints(run).open()
    classifier = Classifier.of(opened)
    head = classifier.params["label_head"]
    classifier.params = {**classifier.params, "label_head": head | {"bias": head["bias"] * np.nan}}
    with caplog.at_level("WARNING", "transformer"):
        assert classifier.classify(["", "a film"], first_line=4)[1].label is None
    assert caplog.messages[0].startswith("line 5: ") and shown_label(None) == "none"


def test_evaluate_on_another_file(folder: Path, run: Path, tmp_path: Path, call) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    done = call("evaluate.py", "--workdir", moved)
    assert done.code == 0 and done.out.startswith("dev.tsv: 60 texts, checkpoint ")
    assert "last epoch: accuracy " in done.out and "negative" in done.out
    done = call("evaluate.py", "--workdir", moved, "--data", folder / "test.tsv", "--json")
    result = json.loads(done.out)
    assert (result["test_set"], result["texts"]) == ("test.tsv", 40) and "last_epoch" not in result
    assert np.sum(result["confusion"]) == 40 and result["labels"] == ["negative", "positive"]
    assert np.trace(result["confusion"]) / 40 == pytest.approx(result["scores"]["accuracy"])
    write(tmp_path / "wrong.tsv", [("positive", "good"), ("neutral", "a film")])
    done = call("evaluate.py", "--workdir", moved, "--data", tmp_path / "wrong.tsv")
    assert done.code == 2 and "wrong.tsv:3: the label 'neutral' never occurs in training" in done.err.splitlines()[-1]
    (tmp_path / "empty.tsv").write_text("label\ttext\n")
    done = call("evaluate.py", "--workdir", moved, "--data", tmp_path / "empty.tsv")
    assert done.code == 2 and "empty.tsv: holds no labelled text" in done.err.splitlines()[-1]
    rows = (folder / "test.tsv").read_text().replace("label\ttext", "class\twords")
    (tmp_path / "renamed.tsv").write_text(rows)
    renamed = ["--data", tmp_path / "renamed.tsv", "--data.text=words", "--data.label", "class"]
    again = json.loads(call("evaluate.py", "--workdir", moved, *renamed, "--json").out)
    assert again["scores"] == result["scores"]
    for options, told in (
        (["--data.text=words"], "--data.text is for --data FILE: the sets of the workdir have their own columns"),
        ([*renamed, "--data.second=words2"], f"--data.second words2: the model of {moved} labels single texts: leave"),
    ):
        done = call("evaluate.py", "--workdir", moved, *options)
        assert done.code == 2 and told in done.err.splitlines()[-1]
    (moved / "sets" / "labelled.json").unlink()
    done = call("evaluate.py", "--workdir", moved)
    assert done.code == 2 and done.err.splitlines()[-1].endswith(f"{moved} has no test or dev set; give --data FILE")
    assert "can't be used" not in done.err
    done = call("evaluate.py", "--workdir", moved, "--text", tmp_path / "wrong.tsv")
    assert done.code == 2 and "--text: the task of" in done.err


def test_the_average(folder: Path, run: Path, tmp_path: Path, call) -> None:
    """It is scored on the development set, though there is a test set; and it predicts."""
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    dev = labelled_sets.read(workdir, "classes", False)
    test = labelled_sets.from_files("test", [str(folder / "test.tsv")], Columns("text", None, "label"), "classes")
    labelled_sets.write(epath.Path(workdir), {"dev": dev, "test": test})
    lines, result = average(call, workdir, [25, 50, 75])
    last, after = (
        evaluate_workdir(str(workdir), data=str(folder / "dev.tsv"), checkpoint=checkpoint)
        for checkpoint in ("last", "average")
    )
    assert (result["test_set"], result["texts"]) == ("test.tsv", 40) and after["scores"] != last["scores"]
    assert lines == [
        f"{name} on dev.tsv: {last['scores'][name]:.4f} before (step 75), {after['scores'][name]:.4f} after"
        for name in last["scores"]
    ]
    assert Classifier.load(workdir).classify(["a great film"])[0].label == "positive"
    (workdir / "sets/labelled.json").unlink()
    labelled_sets.write(epath.Path(workdir), {"dev": dev, "test": None})
    lines = call("evaluate.py", "--workdir", workdir).out.splitlines()
    assert f"last epoch: accuracy {last['scores']['accuracy']:.4f}" in lines  # and not that the average was chosen


def test_the_best_seed_is_the_same_with_an_average(run: Path, tmp_path: Path) -> None:
    """An average has no score of its own: the best checkpoint of its run counts."""
    for seed in (0, 1):
        shutil.copytree(run, tmp_path / f"seed-{seed}")
    assert best_seed(tmp_path).name == "seed-0"  # of equals, the first
    Checkpoints(tmp_path / "seed-0").average(2)
    assert best_seed(tmp_path).name == "seed-0"


@pytest.mark.slow
def test_collapse_is_named(folder: Path, tmp_path: Path, call) -> None:
    """A run that gives all texts one label says so."""
    options = ["--train.peak_learning_rate=1e-8", "--tune.epochs=1", "--data.dev", folder / "dev.tsv"]
    done = call("train.py", "--config", folder / "config.py", "--workdir", tmp_path / "run", *options)
    assert (
        "dev_collapse all get the label 'positive'" in done.err
        or "dev_collapse all get the label 'negative'" in done.err
    )
    done = call("evaluate.py", "--workdir", tmp_path / "run")
    assert "COLLAPSED: all get the label '" in done.out
