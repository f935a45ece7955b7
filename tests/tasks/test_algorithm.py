"""The task of algorithms: AND is learnt as AND, runs resume, exact match by length, mistakes in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from quick import jit

from transformer.command_line import config_file
from transformer.config import AlgorithmConfig, InstancesConfig, ModelConfig, UserError, check
from transformer.data.algorithms import EVEN, Instance, InstanceBatches, copy, drawn, padded_size, rows
from transformer.model import build
from transformer.tasks.algorithm import AlgorithmTask
from transformer.tasks.exact_match import deciding, instances_of, interpolated, lengths_of, ranges, scores

CONFIGS = Path(__file__).parents[2] / "configs" / "algorithms"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The workdir of a finished run on AND that was stopped after 200 updates and went on."""
    from transformer.jobs import train

    workdir = tmp_path_factory.mktemp("and") / "run"
    for steps in (200, 400):
        options = [f"--train.{name}=200" for name in ("eval_every", "checkpoint_every", "log_every")] + [
            "--train.stop_at=None"
        ]
        train(["--config", str(CONFIGS / "and.py"), "--workdir", str(workdir), f"--train.steps={steps}", *options])
    return workdir


@pytest.mark.slow
def test_and_is_learnt_as_and(run: Path, call) -> None:
    """Not as the polynomial of least degree that fits the training data, which is wrong on all patterns that decide."""
    done = call("evaluate.py", "--workdir", run, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["patterns"], result["interpolator_right"]) == (31, 0)
    assert result["patterns_right"] == 31
    assert result["exact_match"]["training"] > 0.99
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "dev_exact_match" in entry] == [200, 400]
    done = call("evaluate.py", "--workdir", run)
    assert "of 31 patterns that decide 31 are right" in done.out


@pytest.mark.slow
def test_several_seeds_are_scored_together(run: Path, tmp_path: Path, call) -> None:
    for seed in (0, 1):
        shutil.copytree(run, tmp_path / "runs" / f"seed-{seed}")
    shutil.copytree(run, tmp_path / "runs" / "seed-2", ignore=shutil.ignore_patterns("checkpoints"))
    done = call("evaluate.py", "--workdir", tmp_path / "runs", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert list(result["seeds"]) == ["0", "1"]
    of = result["exact_match_length_given"]["other_patterns"]
    assert (of["mean"], of["standard_deviation"], of["best"]) == (1.0, 0.0, 1.0)
    assert "seed-2 has no checkpoint: left out" in done.err
    done = call("evaluate.py", "--workdir", tmp_path / "runs")
    assert done.out.splitlines()[1].startswith("seed 0, checkpoint 400  exact match training: 1.0000")
    assert "patterns that decide: 31 of 31" in done.out.splitlines()[2]


@pytest.mark.slow
def test_seeds_of_other_lengths_are_not_scored_together(tmp_path: Path, call) -> None:
    sizes = ["--model.d_model=8", "--model.d_ff=8", "--data.longest=5", "--train.steps=1", "--data.dev_instances=5"]
    command = ["train.py", "--config", CONFIGS / "copy.py", *sizes, "--train.seeds=1"]
    for seed, tested in ((0, "7"), (1, "9")):
        folder = tmp_path / "runs" / f"seed-{seed}"
        done = call(*command, "--workdir", folder, f"--train.seed={seed}", "--data.tested", tested)
        assert done.code == 0, done.err
    done = call("evaluate.py", "--workdir", tmp_path / "runs")
    told = "its seeds have different lengths: 1-5 6-7 for seed 0, 1-5 6-9 for seed 1. Score each of its folders seed-N"
    assert done.code == 2 and told in done.err.splitlines()[-1]
    folder = tmp_path / "runs" / "seed-0"
    assert call(*command, "--workdir", folder, "--data.tested=9").code == 0  # told to test others, though it has ended
    done = call("evaluate.py", "--workdir", tmp_path / "runs", "--json")
    assert done.code == 0 and list(json.loads(done.out)["exact_match"]) == ["1-5", "6-9"]


def test_batches_are_drawn_by_update_and_row() -> None:
    batches = InstanceBatches(copy(), count=6, shortest=2, longest=9, seed=3)
    whole = batches[5]
    assert {name: array.shape for name, array in whole.items()} == batches.shape(5)
    for name, array in batches.read(5, 2, 5).items():
        np.testing.assert_array_equal(array, whole[name][2:5])
    assert not np.array_equal(batches[6]["text"], whole["text"])
    sizes = {int(row.sum()) - 1 for step in range(40) for row in batches[step]["predicted"]}  # without EOS
    assert sizes == set(range(2, 10))


def test_rows_predict_the_answer_alone() -> None:
    batch = rows([Instance([7, 8], [9])], 2, 6)
    assert batch["text"].tolist() == [[1, 7, 8, 4, 9, 0], [0] * 6]
    assert batch["next"].tolist() == [[7, 8, 4, 9, 2, 0], [0] * 6]
    assert batch["predicted"].tolist() == [[0, 0, 0, 1, 1, 0], [0] * 6]


def test_an_answer_is_right_if_greedy_decoding_gives_it() -> None:
    """Piece by piece, on a random model: the answers that it would give are right, and no other ones."""
    algorithm = copy(3, repeated=True)
    model = build(ModelConfig(encoder_layers=0, decoder_layers=1, d_model=8, d_ff=8, heads=1, vocab_size=8))
    params = jit(model.init)(np.array([0, 3], np.uint32))
    instances, length = drawn(algorithm, [3] * 8, 0), padded_size(algorithm, 6)
    greedy, apply = [], jit(model.apply)
    for instance in instances:
        ids = [1, *instance.prompt, 4]
        while len(ids) < length and ids[-1] != 2:
            padded = np.zeros((1, length), np.int32)
            padded[0, : len(ids)] = ids
            ids.append(int(np.argmax(apply(params, padded)[0, len(ids) - 1])))
        greedy.append(Instance(instance.prompt, ids[len(instance.prompt) + 2 : -1]))
    ended = [one for one in greedy if len(one.ids) < length]
    if ended:
        found = scores(model, params, ended, length)
        assert found.right.all()
        other = [Instance(one.prompt, [*one.answer[:-1], 5 + (one.answer[-1] == 5)]) for one in ended if one.answer]
        assert not scores(model, params, other, length).right.any() if other else True
    found = scores(model, params, instances, length)
    assert found.right.tolist() == [a.answer == b.answer for a, b in zip(instances, greedy, strict=True)]
    assert (found.right_length_given | ~found.right).all()


def test_ranges_of_lengths() -> None:
    data = InstancesConfig(longest=5, tested=(8, 12))
    config = AlgorithmConfig(data=data)
    assert ranges(data) == ["1-5", "6-8", "9-12"]
    lengths = [{len(one.prompt) for one in instances_of(copy(), config, i, 40)} for i in range(3)]
    assert lengths == [set(range(1, 6)), set(range(6, 9)), set(range(9, 13))]


def test_the_patterns_that_decide() -> None:
    patterns = deciding(0)
    assert len({tuple(one.prompt) for one in patterns}) == 31
    assert all(one.answer == [EVEN] for one in patterns)
    assert interpolated(0, patterns) == [EVEN + 1] * 31


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_each_config_makes_a_task(path: Path) -> None:
    task = AlgorithmTask(config_file(str(path)))
    assert task.algorithm.program is not None
    assert "drawn anew" in next(task.describe())
    assert int(task.batches()[0]["text"].max()) < task.config.model.vocab_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.symbols", "20"], "data.tested: copy has symbols for lengths up to 20, not 150; raise data.symbols"),
        (["--data.hints", "True"], "data.hints = True: is not for data.algorithm = 'copy'"),
        (["--data.longest", "120"], "data.tested = (100, 150): must be ascending lengths beyond data.longest (120)"),
        (["--model.max_positions", "100"], "model.max_positions = 100: must be at least 404 for lengths up to 150"),
        (["--model.vocab_size", "9"], "model.vocab_size = 9: the task has 205; leave it out"),
        (["--model.encoder_layers", "1"], "model.encoder_layers = 1: must be 0"),
        (["--train.batch_tokens", "900"], "train.batch_tokens = 900: data.batch_rows sets it; leave it out"),
        (["--data.tested", "--model.max_positions", "9"], "model.max_positions = 9: must be at least 404"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, call, options: list[str], message: str) -> None:
    done = call("train.py", "--config", CONFIGS / "copy.py", "--workdir", tmp_path / "run", *options)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_the_config_is_checked() -> None:
    check(AlgorithmConfig())
    with pytest.raises(UserError, match=r"data\.shortest = 9: must be at most data\.longest"):
        check(AlgorithmConfig(data=InstancesConfig(shortest=9, longest=5, tested=(10,))))


@pytest.mark.slow
@pytest.mark.long
def test_the_mode_of_two_symbols_is_learnt_for_longer_texts(tmp_path: Path, call) -> None:
    """One layer with one head, 16 wide, trained up to length 50: at 51 to 100 nearly all answers are right."""
    sizes = ("--data.symbols=2", "--model.heads=1", "--model.d_model=16", "--model.d_ff=64")
    training = [f"--train.{name}=1500" for name in ("steps", "decay_steps", "eval_every", "checkpoint_every")]
    command = ("train.py", "--config", CONFIGS / "mode.py", "--workdir", tmp_path / "run")
    done = call(*command, *sizes, *training)
    assert done.code == 0, done.err
    result = json.loads(call("evaluate.py", "--workdir", tmp_path / "run", "--json").out)
    assert result["exact_match"]["51-100"] > 0.97
    assert result["exact_match"]["101-150"] > 0.9


@pytest.mark.slow
@pytest.mark.long
def test_copying_is_learnt_for_texts_twice_as_long(tmp_path: Path, call) -> None:
    """Trained on 10 to 25 symbols, most texts of 26 to 50 are copied. Short texts would make it slower."""
    training = [f"--train.{name}=2500" for name in ("steps", "decay_steps", "eval_every", "checkpoint_every")]
    lengths = ("--data.shortest=10", "--data.longest=25", "--data.tested", "50", "--data.batch_rows=32")
    sizes = ("--model.d_model=128", "--model.d_ff=512", "--model.heads=2", "--model.max_positions=140")
    config = ("--config", CONFIGS / "copy.py", "--model.position_offset=50", "--workdir", tmp_path / "run")
    done = call("train.py", *config, *training, *lengths, *sizes)
    assert done.code == 0, done.err
    result = json.loads(call("evaluate.py", "--workdir", tmp_path / "run", "--json").out)
    assert result["exact_match"]["10-25"] > 0.9
    assert result["exact_match"]["26-50"] > 0.7


def test_a_run_goes_on_with_another_number_of_dev_instances(tmp_path: Path, call) -> None:
    command = ("train.py", "--config", CONFIGS / "and.py", "--workdir", tmp_path / "run", "--model.d_model=8")
    command += ("--model.d_ff=8", "--train.eval_every=2", "--train.checkpoint_every=2")
    for steps, instances in ((2, 4), (4, 8)):
        done = call(*command, f"--train.steps={steps}", f"--data.dev_instances={instances}")
        assert done.code == 0, done.err
    scored = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in scored if "dev_loss" in entry] == [2, 4]
    # `average` scores before and after.
    done = call("transformer", "average", tmp_path / "run", "--last", 2)
    assert done.code == 0, done.err
    assert "exact_match training: " in done.out and "exact_match other_patterns: " in done.out


def test_few_instances_have_lengths_from_the_whole_range() -> None:
    data = InstancesConfig(longest=50, tested=(100,))
    assert lengths_of(data, 1, 5) == [56, 66, 76, 86, 96] and lengths_of(data, 1, 1) == [76]
    assert lengths_of(data, 0, 50) == [*range(1, 51)] and lengths_of(data, 1, 52)[48:] == [99, 100, 51, 52]
