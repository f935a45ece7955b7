"""Language models: train, resume, judge, evaluate; on running text and on documents."""

import dataclasses
import gzip
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from quick import jit
from runs import average

from transformer.checkpoint import Checkpoints
from transformer.command_line import config_file
from transformer.config import Config, FinetuneConfig, TextConfig, TrainConfig, UserError
from transformer.data.running import Text, texts
from transformer.data.text_store import encode_text
from transformer.data.vocabularies import Bytes
from transformer.model import build
from transformer.tasks import text_sets
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.perplexity import evaluate_workdir, summed
from transformer.tasks.vocabulary import VOCABULARIES, inherited, vocabulary_in
from transformer.training.start import without_effect

TRAIN = Path(__file__).parents[2] / "train.py"
WORDS = ("wolf", "sheep", "grass", "river", "stone")
CONFIG = """
import dataclasses
from transformer.config import GPT2, LanguageModelConfig, TextConfig, TrainConfig

config = LanguageModelConfig(
    model=dataclasses.replace(GPT2, decoder_layers=1, d_model=32, d_ff=64, heads=2, max_positions=16),
    data=TextConfig(text=({text!r},), pieces="characters", context=16, documents="blank_lines", dev_share=0.1),
    train=TrainConfig(
        steps=60, batch_tokens=256, accumulate=2, warmup_steps=10, peak_learning_rate=0.01, label_smoothing=0.0,
        schedule="cosine", decay_steps=60, weight_decay=0.1, clip_norm=1.0,
        log_every=10, eval_every=20, checkpoint_every=20,
    ),
)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Documents that tell who eats what, each of a few lines."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "meadow.txt"
    documents = ["\n".join(" ".join(draw.choices(WORDS, k=4)) for _ in range(draw.randint(1, 4))) for _ in range(200)]
    path.write_text("\n\n".join(documents) + "\n")
    path.with_suffix(".py").write_text(CONFIG.format(text=str(path)))
    return path


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory) -> Path:
    """The workdir of a finished run that was stopped after 40 updates and went on."""
    from transformer.jobs import train

    folder = tmp_path_factory.mktemp("gpt") / "run"
    for steps in (40, 60):
        train(["--config", str(text.with_suffix(".py")), "--workdir", str(folder), f"--train.steps={steps}"])
    return folder


@pytest.mark.slow
def test_a_run_that_was_stopped_equals_one_that_was_not(text: Path, run: Path, tmp_path: Path, call) -> None:
    straight = tmp_path / "straight"
    assert call("train.py", "--config", text.with_suffix(".py"), "--workdir", straight).code == 0
    ours, theirs = (Checkpoints(workdir).open("last") for workdir in (run, straight))
    assert ours.name == theirs.name == 60
    jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {entry["step"]: entry["dev_loss"] for entry in entries if "dev_loss" in entry}
    assert list(losses) == [20, 40, 60]
    assert losses[60] < losses[20] < math.log(20)  # it learns
    assert Checkpoints(run).best() == min(losses, key=losses.get)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(text: Path, run: Path, tmp_path: Path, environment) -> None:
    command = [sys.executable, TRAIN, "--config", text.with_suffix(".py"), "--workdir", tmp_path / "run"]
    for step in (20, 40):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while Checkpoints(tmp_path / "run").steps()[-1:] < [step] and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True, capture_output=True)
    ours, theirs = (Checkpoints(workdir).open("last") for workdir in (tmp_path / "run", run))
    assert ours.name == theirs.name == 60
    jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())


@pytest.mark.slow
def test_a_mesh_of_four_devices_trains_the_same_model(text: Path, run: Path, tmp_path: Path, environment) -> None:
    command = [sys.executable, TRAIN, "--config", text.with_suffix(".py"), "--workdir", tmp_path / "run"]
    devices = environment | {"JAX_NUM_CPU_DEVICES": "4"}
    subprocess.run([*command, "--mesh.fsdp=2"], env=devices, check=True, capture_output=True)

    def losses(workdir: Path) -> dict[int, float]:
        entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return {entry["step"]: entry["dev_loss"] for entry in entries if "dev_loss" in entry}

    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-3)
    # The vocabulary can't be cut in seven parts.
    done = subprocess.run(
        [*command[:-1], tmp_path / "other", "--mesh.tensor=7"],
        env=environment | {"JAX_NUM_CPU_DEVICES": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "; use another size of mesh.tensor, such as 1, or of the model" in done.stderr


def test_sixteen_bits_are_evaluated_as_in_training(text: Path, tmp_path: Path, call) -> None:
    """Whatever `decode.dtype` is, which is for generation."""
    command = ("train.py", "--config", text.with_suffix(".py"), "--workdir", tmp_path / "run", "--train.steps=20")
    done = call(*command, "--model.dtype=bfloat16", "--decode.dtype=int8")
    assert done.code == 0, done.err
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    (loss,) = [entry["dev_loss"] for entry in entries if "dev_loss" in entry]
    assert json.loads(done.out)["nats_per_token"] == pytest.approx(loss, rel=1e-5)


def test_the_figures_of_evaluate(text: Path, run: Path, tmp_path: Path, call) -> None:
    """Equal to the sum over documents of the log-probabilities of a forward pass; a moved workdir has its own text."""
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    done = call("evaluate.py", "--workdir", moved, "--stride", 1, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    opened = Checkpoints(run).open()
    pieces, params = vocabulary_in(opened, VOCABULARIES), opened.params()
    model = build(opened.config.model)

    forward = jit(lambda read: jax.nn.log_softmax(model.apply(params, read))[0])

    def log_probs(ids: list[int]) -> np.ndarray:
        read = np.pad(np.array([ids[:-1]], np.int32), ((0, 0), (0, 17 - len(ids))))  # later pieces are not seen
        return np.asarray(forward(read))[np.arange(len(ids) - 1), ids[1:]]

    documents = text.read_text().strip().split("\n\n")[180:]
    blocks, sliding, size, count = 0.0, 0.0, 0, 0
    for document in documents:
        ids = [pieces.begin, *pieces.encode(document), pieces.end]
        size, count = size + len(document), count + len(ids) - 1
        blocks += sum(log_probs(ids[at : at + 17]).sum() for at in range(0, len(ids) - 1, 16))
        sliding += log_probs(ids[:17]).sum()
        sliding += sum(log_probs(ids[at - 16 : at + 1])[-1] for at in range(17, len(ids)))
    assert (result["tokens"], result["bytes"], result["test_set"]) == (count, size, "meadow.txt")
    assert result["nats_per_token"] == pytest.approx(-blocks / count, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(-blocks / count), rel=1e-5)
    assert result["nats_per_byte"] == pytest.approx(-blocks / size, rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(-blocks / size / math.log(2), rel=1e-5)
    assert result["sliding_perplexity"] == pytest.approx(math.exp(-sliding / count), rel=1e-5)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_best = next(entry for entry in entries if entry["step"] == opened.name and "dev_loss" in entry)
    assert of_best["dev_loss"] == pytest.approx(result["nats_per_token"], rel=1e-5)
    assert of_best["dev_bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-5)


def test_the_average(run: Path, tmp_path: Path, call) -> None:
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    last = evaluate_workdir(str(workdir), checkpoint="last")
    lines, result = average(call, workdir, [40, 60])
    assert result["perplexity"] != last["perplexity"]
    line = f"perplexity on meadow.txt: {last['perplexity']:.4f} before (step 60), {result['perplexity']:.4f} after"
    assert line in lines


def test_another_text(run: Path, tmp_path: Path, call) -> None:
    (tmp_path / "other.txt").write_text("wolf wolf\n\nriver Zoo\n")
    done = call("evaluate.py", "--workdir", run, "--text", tmp_path / "other.txt")
    assert done.code == 0
    assert done.out.startswith("other.txt: 20 pieces, 18 bytes, checkpoint ")
    assert "warning: other.txt: 1 character was never seen in training: Z (U+005A)" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--text", "missing.txt"], "missing.txt"),
        (["--stride", "17"], "--stride = 17: must be at least 1, at most 16"),
        (["--source", "a.tsv"], "--source: the task of"),
        (["--decode.beam_size", "2"], "--decode.beam_size: the task of"),
    ],
)
def test_wrong_options_of_evaluate(run: Path, call, options: list[str], told: str) -> None:
    done = call("evaluate.py", "--workdir", run, *options)
    assert done.code == 2
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_text_in_the_workdir_that_was_changed(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    path = moved / "sets/dev.0.text"
    path.write_text(path.read_text().replace("wolf", "dog"))
    with pytest.raises(UserError, match=r"dev\.0\.text is not as it was written; give --text FILE"):
        evaluate_workdir(str(moved))
    (moved / "sets/texts.json").unlink()
    with pytest.raises(UserError, match=rf"^{moved} has no test or dev set; give --text FILE$"):
        evaluate_workdir(str(moved))


def test_a_text_to_evaluate_that_cannot_be_used_is_told(run: Path, tmp_path: Path, call) -> None:
    (tmp_path / "a.txt").write_text("wolf")
    os.mkfifo(tmp_path / "pipe")
    for arguments, told in (
        (("--source", tmp_path / "a.txt"), f"--source: the task of {run} has no such option; leave it out (it has --"),
        (
            ("--text", tmp_path / "pipe"),
            f"--text: {tmp_path}/pipe is a pipe or a device, but text is read several times",
        ),
        (("--text", tmp_path), f"--text: {tmp_path} is a folder; name a file in it"),
        (("--text", ""), "--text '': give the path of a file"),
        (("--text", "no.txt"), "no such file: no.txt (--text); correct the path"),
    ):
        done = call("evaluate.py", "--workdir", run, *arguments)
        assert done.code == 2 and done.err.splitlines()[-1].startswith(f"error: {told}")
    for wrong in (3, b"x", ["a"]):
        with pytest.raises(UserError, match=r"^--text .*: give the path of a file$"):
            evaluate_workdir(str(run), text=wrong)
    assert evaluate_workdir(str(run), text=tmp_path / "a.txt")["tokens"] == 5


def test_a_start_of_another_task_is_named(run: Path) -> None:
    train = TrainConfig(init_from=str(run))
    told = rf"^train\.init_from = '{run}': a run of the task 'language_model', whose vocabulary the task 'translation'"
    with pytest.raises(UserError, match=told):
        inherited(Config(train=train), None)


def test_a_damaged_vocabulary_of_another_task_is_called_damaged(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").glob("*/characters.json"):
        path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    config = FinetuneConfig(train=TrainConfig(init_from=str(copy)))
    with pytest.raises(UserError) as error:
        inherited(config, None, VOCABULARIES)
    assert "characters.json" in str(error.value) and "can't use" not in str(error.value)


def test_objects_that_are_read_as_text_are_told(run: Path, text: Path, tmp_path: Path, caplog) -> None:
    path = tmp_path / "a b.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "wolf grass"}\n'))
    told = (
        f"{path} holds JSON objects, which are read as they stand; to read their field 'text' only, write it to a file"
    )
    evaluate_workdir(str(run), text=str(path))
    assert f"--text: {told} first: gzip -dc '{path}' | jq -r .text > NEW" in caplog.messages
    texts(TextConfig(text=(str(text), str(path))))
    assert f"data.text: {told} first: gzip -dc '{path}' | jq -r .text > NEW" in caplog.messages
    for name, content, told in (
        ("list.json", '[\n  {"text": "wolf grass"}\n]\n', "holds JSON objects, which are read as they stand; to read"),
        ("a.csv", "text,label\nwolf,1\n", "is read as it stands, with separators, quotes and all columns; to read"),
        ("a.tsv.gz", gzip.compress(b"wolf\tgrass\n"), "is read as it stands, with separators, quotes and all"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        texts(TextConfig(text=(str(text), str(path))))
        assert caplog.messages[-1].startswith(f"data.text: {path} {told}")
    assert "jq -r '.[].text' < " in "".join(caplog.messages)
    (tmp_path / "c").write_text('{ x = 1 }\n{"a", "b"}\n')
    texts(TextConfig(text=(str(tmp_path / "c"),)))
    assert not any(str(tmp_path / "c") in message for message in caplog.messages)


def test_a_full_folder_for_temporary_files_is_told(run: Path, text: Path, call, full_after) -> None:
    with full_after(0):
        done = call("evaluate.py", "--workdir", run, "--text", text)
    assert done.code == 2 and done.err.splitlines()[-1].endswith("make room there, or set TMPDIR to another folder")


def test_a_folder_in_the_place_of_a_text_is_told(tmp_path: Path) -> None:
    from etils import epath

    from transformer.tasks import text_sets

    (tmp_path / "a.txt").write_text("red cat")
    (tmp_path / "run/sets/dev.0.text").mkdir(parents=True)
    text = Text((str(tmp_path / "a.txt"),), "none")
    with pytest.raises(UserError, match=r"sets/dev\.0\.text cannot be written \(Is a directory\)"):
        text_sets.write(epath.Path(tmp_path / "run"), {"dev": text})


@pytest.mark.parametrize("documents", ["none", "blank_lines", "files"])
def test_the_copy_in_a_workdir_has_the_pieces_of_the_text(text: Path, tmp_path: Path, documents: str) -> None:
    other = tmp_path / "other.txt"
    # Two byte order marks, as where files were joined, and line ends that were converted for Windows twice.
    other.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfriver\n  stone\n \n\nwolf\r\r\n\r\r\n\rsheep\r\n")
    whole = Text((str(text), str(other)), documents)
    for end in (None, 1 if documents == "files" else 190):
        part = whole._replace(begin=0 if documents == "files" else 180, end=end)
        text_sets.write(epath.Path(tmp_path / "run"), {"dev": part, "test": None})
        name, copy = text_sets.read(str(tmp_path / "run"), tmp_path)
        assert name == "meadow.txt and 1 more"
        stores = [encode_text(one, Bytes(), folder=tmp_path / "stores") for one in (part, copy)]
        for attribute in ("tokens", "offsets"):
            np.testing.assert_array_equal(*(getattr(store, attribute) for store in stores))
        shutil.rmtree(tmp_path / "run")


def test_a_set_that_changes_after_it_was_read_is_told(text: Path, tmp_path: Path) -> None:
    """It would be stored beside the scores of another text."""
    (dev := tmp_path / "dev.txt").write_text("river wolf\n")
    config = config_file(str(text.with_suffix(".py")))
    data = dataclasses.replace(config.data, dev_text=(str(dev),))
    task = LanguageModel.build(dataclasses.replace(config, data=data))
    task.prepare()
    dev.write_text("river wolf\nsheep\n")
    with pytest.raises(UserError, match=rf"^{dev} changed while it was read; run the same command again"):
        task.write_sets(epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("patience", 3), ("stop_at", 1.5)])
def test_an_early_stop_without_a_development_text_is_told(text: Path, name: str, value: float) -> None:
    config = config_file(str(text.with_suffix(".py")))
    data = dataclasses.replace(config.data, dev_share=0.0)
    train = dataclasses.replace(config.train, **{name: value})
    (told,) = without_effect(LanguageModel.build(dataclasses.replace(config, data=data, train=train)))
    assert told.startswith(f"train.{name} = {value} has no effect, as there is no development set")


def test_evaluation_has_rows_for_one_micro_batch(text: Path, tmp_path: Path) -> None:
    """A batch of all micro-batches might not fit into memory."""
    config = config_file(str(text.with_suffix(".py")))
    store = encode_text(Text((str(text),), "blank_lines"), Bytes(), folder=tmp_path)
    rows = []
    totals = summed(lambda batch: rows.append(len(batch["text"])) or {"nll": 2.0, "weight": 1}, store, config)
    assert set(rows) == {256 // 2 // 16}
    assert totals.nats_per_token == 2
