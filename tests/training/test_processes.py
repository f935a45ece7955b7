"""Two processes with one device each, compared with one process with two devices. They connect over loopback."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from two import both, port, start

from transformer.checkpoint import Checkpoints
from transformer.config import UserError
from transformer.data.tokenizer import Tokenizer
from transformer.training import processes

SHORTER = ("--train.steps=24", "--train.eval_every=12", "--train.checkpoint_every=12", "--train.log_every=4")


def metrics(workdir: Path) -> list[dict]:
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if "second" not in name and name != "time"} for entry in entries
    ]


def leaves(workdir: Path, step: int) -> dict[str, np.ndarray]:
    import jax

    params = Checkpoints(workdir).at(step).params()
    return {"/".join(k.key for k in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def agree(ours: Path, theirs: Path) -> bool:
    """Require the same log entries and parameters within 1e-5. Returns whether they are equal bit for bit."""
    mine, other = metrics(ours), metrics(theirs)
    assert [entry["step"] for entry in mine] == [entry["step"] for entry in other]
    for a, b in zip(mine, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == (b[name] if isinstance(a[name], str) else pytest.approx(b[name], rel=1e-5)), (a, b)
    step = Checkpoints(theirs).steps()[-1]
    assert Checkpoints(ours).steps() == Checkpoints(theirs).steps()
    params, others = leaves(ours, step), leaves(theirs, step)
    for path, x in others.items():
        assert np.linalg.norm(params[path] - x) <= 1e-5 * np.linalg.norm(x), path
    return mine == other and all((params[path] == x).all() for path, x in others.items())


def train_as_one_does(tiny, environment, folder: Path, *options: str) -> None:
    """Train with two processes, and with one process that has two devices: the results must be the same."""
    done = both(environment, "--config", tiny.config, "--workdir", folder / "two", *options)
    assert [code for code, _ in done] == [0, 0], done
    process = start(environment, 2, "--config", tiny.config, "--workdir", folder / "one", *options)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told
    agree(folder / "two", folder / "one")


@pytest.fixture(scope="module")
def one(tiny, environment, tmp_path_factory) -> Path:
    """The workdir of one process with two devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    process = start(environment, 2, "--config", tiny.config, "--workdir", workdir, *SHORTER)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return workdir


@pytest.fixture(scope="module")
def two(tiny, environment, tmp_path_factory) -> tuple[Path, list[str]]:
    workdir = tmp_path_factory.mktemp("two") / "run"
    done = both(environment, "--config", tiny.config, "--workdir", workdir, *SHORTER)
    assert [code for code, _ in done] == [0, 0], done
    return workdir, [text for _, text in done]


@pytest.mark.slow
def test_two_processes_are_as_one_with_two_devices(one: Path, two, report) -> None:
    equal = agree(two[0], one)
    report(f"two processes and one with two devices: {'equal bit for bit' if equal else 'within 1e-5'}")
    log = two[1]
    assert "2 x cpu" in log[0] and "step 24" in log[0]
    assert "loss" not in log[1]  # only process 0 logs it


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(one: Path, environment) -> None:
    process = start(environment, 2, "--workdir", one, program="evaluate.py")
    assert process.communicate(timeout=300) and process.returncode == 0
    assert [code for code, _ in both(environment, "--workdir", one, program="evaluate.py")] == [0, 0]
    alone, shared = [json.loads(line) for line in (one / "scores.jsonl").read_text().splitlines()]
    assert {**alone, "time": shared["time"]} == shared
    # Samples depend on the numbers of the sentences, not on the process that draws them.
    sampled = "--workdir", one, "--decode.sample", "True", "--decode.seed", "3"
    process = start(environment, 2, *sampled, program="evaluate.py")
    assert process.communicate(timeout=300) and process.returncode == 0
    assert [code for code, _ in both(environment, *sampled, program="evaluate.py")] == [0, 0]
    alone, shared = [json.loads(line) for line in (one / "scores.jsonl").read_text().splitlines()[2:]]
    assert {**alone, "time": shared["time"]} == shared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "told"),
    [(("--checkpoint", "7"), "process 1 had to stop"), (("--decode.beam_size", "3"), "decode.beam_size is 3")],
)
def test_what_is_wrong_with_one_that_evaluates_ends_both(one: Path, environment, second, told: str) -> None:
    meeting = f"127.0.0.1:{port()}"
    arguments = ("--workdir", one, "--coordinator", meeting)
    running = [
        start(environment, 1, *arguments, "--process", f"{i}/2", *own, program="evaluate.py")
        for i, own in enumerate([(), second])
    ]
    for process in running:
        assert process.wait(timeout=300) == 2
    assert told in running[0].stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mesh"), [(1, ""), (2, "--mesh.fsdp=2"), (2, "--mesh.tensor=2")])
def test_a_run_goes_on_with_another_number_of_processes(
    one: Path, two, tiny, environment, tmp_path, count, mesh: str
) -> None:
    half = tmp_path / "half"
    shutil.copytree(one if count == 2 else two[0], half)
    shutil.rmtree(half / "checkpoints" / "00000024")
    arguments = ("--config", tiny.config, "--workdir", half, *SHORTER)
    if count == 1:
        process = start(environment, 2, *arguments)
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told
    else:
        # Here the parameters are cut over the two processes, too.
        done = both(environment, *arguments, mesh)
        assert [code for code, _ in done] == [0, 0], done
        told = done[0][1]
    assert "resuming from step 12" in told
    agree(half, one)


@pytest.mark.slow
def test_each_host_makes_its_own_cache_and_they_are_compared(tiny, environment, two, tmp_path) -> None:
    own = [{"TRANSFORMER_CACHE": str(tmp_path / f"cache{i}")} for i in range(2)]
    arguments = ("--config", tiny.config, *SHORTER)
    done = both(environment, *arguments, "--workdir", tmp_path / "run", own=own)
    assert [code for code, _ in done] == [0, 0], done
    agree(tmp_path / "run", two[0])
    made = [sorted(os.listdir(folder["TRANSFORMER_CACHE"] + "/tokens")) for folder in own]
    assert made[0] == made[1] and len(made[0]) == 3  # training, development and test text


@pytest.mark.slow
def test_other_text_in_the_same_place_is_found_by_its_contents(tiny, environment, tmp_path) -> None:
    """Each process sees another folder, where one word differs."""
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        shutil.copytree(tiny.folder, host)
    text = Path(tiny.config).read_text().replace(repr(str(tiny.folder)), "__import__('os').environ['HOST']")
    (tmp_path / "config.py").write_text(text)
    words = (hosts[1] / "train.de").read_text()
    (hosts[1] / "train.de").write_text(words.replace("Hund", "Haus", 1))
    own = [{"HOST": str(host), "TRANSFORMER_CACHE": str(host / "cache")} for host in hosts]
    model = "--data.tokenizer", given_tokenizer(tiny, tmp_path)
    arguments = "--config", tmp_path / "config.py", *SHORTER, *model, "--workdir", tmp_path / "run"
    for code, told in both(environment, *arguments, own=own):
        assert code == 2, told
        assert "error: sha256 of the tokens of train.en (data.source, 1) is " in told.splitlines()[-1]
        assert "in process 1" in told and "in process 0" in told and "Traceback" not in told
    assert not (tmp_path / "run" / "config.json").exists()
    # The same text under another path on each host is accepted.
    (hosts[1] / "train.de").write_text(words)
    assert [code for code, _ in both(environment, *arguments, own=own)] == [0, 0]


def given_tokenizer(tiny, folder: Path) -> Path:
    model = Tokenizer.train((tiny.folder / "train.en").read_text().splitlines(), vocab_size=300)
    (folder / "given.model").write_bytes(model.model)
    return folder / "given.model"


@pytest.mark.slow
def test_who_waits_for_too_long_says_so(tiny, environment, tmp_path) -> None:
    arguments = "--config", tiny.config, "--workdir", tmp_path / "run", "--coordinator", f"127.0.0.1:{port()}"
    # Process 0 needs some time to train a tokenizer in its empty cache. Process 1 waits 0 seconds for it.
    fresh = environment | {"TRANSFORMER_CACHE": str(tmp_path / "cache")}
    running = [start(fresh, 1, *arguments, "--process", "0/2"), None]
    running[1] = start(fresh, 1, *arguments, "--process", "1/2", "--wait-minutes", "0")
    told = running[1].communicate(timeout=300)[1]
    assert running[1].returncode == 2, told
    assert told.splitlines()[-1].startswith(
        "error: process 1 waited 0 s for process 0 to make the tokenizer and the tokenised text; see what delays it"
    )
    told = running[0].communicate(timeout=300)[1]  # it does not wait for an hour either
    assert running[0].returncode in (2, processes.LOST), told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_job_of_slurm_is_found_by_itself(one: Path, tiny, environment, tmp_path) -> None:
    """From the environment that SLURM sets for each task, without our options."""
    job = {"SLURM_JOB_ID": str(port()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NUM_NODES": "1"}
    arguments = "--config", tiny.config, "--workdir", tmp_path / "run", *SHORTER
    running = [
        start(environment | job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}, 1, *arguments) for i in range(2)
    ]
    told = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert "devices     2 x cpu" in told[0]
    agree(tmp_path / "run", one)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--train.seed=0", "--train.seed=1"), "train.seed is 1 in process 1 and 0 in process 0"),
        ((None, "--batch=auto"), "--batch is 'auto' in process 1 and None in process 0"),
    ],
)
@pytest.mark.slow
def test_other_options_are_named(tiny, environment, tmp_path, options, told: str) -> None:
    meeting = f"127.0.0.1:{port()}"
    arguments = ("--config", tiny.config, "--workdir", tmp_path / "run", *SHORTER, "--coordinator", meeting)
    running = [
        start(environment, 1, *arguments, "--process", f"{i}/2", *filter(None, [option]))
        for i, option in enumerate(options)
    ]
    for process in running:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 2, said
        assert told in said and "Traceback" not in said


@pytest.mark.slow
def test_what_goes_wrong_in_process_1_ends_the_other(tiny, environment, tmp_path) -> None:
    own = ({}, {"TRANSFORMER_CACHE": "/dev/null/nowhere"})
    done = both(environment, "--config", tiny.config, "--workdir", tmp_path / "run", *SHORTER, own=own)
    assert [code for code, _ in done] == [2, 2], done
    assert "/dev/null/nowhere" in done[1][1] and "process 1 had to stop: /dev/null" in done[0][1]


@pytest.mark.slow
def test_each_its_own_workdir_is_noticed(tiny, environment, tmp_path) -> None:
    meeting = f"127.0.0.1:{port()}"
    arguments = ("--config", tiny.config, *SHORTER, "--coordinator", meeting)
    running = [
        start(environment, 1, *arguments, "--process", f"{i}/2", "--workdir", tmp_path / f"run{i}") for i in range(2)
    ]
    for process in running:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 2, told
        assert "is not the folder that process 0 sees there" in told


@pytest.mark.slow
def test_packed_rows_cut_into_micro_batches(tiny, environment, tmp_path) -> None:
    options = ("--data.packing=True", "--train.accumulate=2", "--train.batch_tokens=1024", *SHORTER)
    train_as_one_does(tiny, environment, tmp_path, *options)


@pytest.mark.slow
def test_fewer_sentences_to_decode_than_processes_and_a_batch_that_fits(tiny, environment, tmp_path) -> None:
    """Both processes find the same number of micro-batches. One of them has no dev sentence to translate."""
    options = ("--batch", "auto", "--train.eval_sentences=1", *SHORTER)
    train_as_one_does(tiny, environment, tmp_path, *options)


@pytest.mark.slow
def test_what_goes_wrong_in_process_0_ends_the_other(tiny, environment, tmp_path) -> None:
    broken = tmp_path / "config.py"
    broken.write_text(Path(tiny.config).read_text() + "\nimport os\n")
    done = both(environment, "--config", broken, "--workdir", tmp_path / "run", "--data.vocab_size=9", *SHORTER)
    assert [code for code, _ in done] == [2, 2], done
    assert "data.vocab_size = 9" in done[0][1]
    assert "process 0 had to stop: data.vocab_size = 9" in done[1][1]


@pytest.mark.parametrize(
    ("coordinator", "process", "told"),
    [
        ("localhost:1", None, "go together"),
        (None, "0/2", "go together"),
        ("localhost:1", "2/2", "--process 2/2: give it as I/N"),
        ("localhost:1", "first", "--process first: give it as I/N"),
        ("localhost", "0/2", "--coordinator localhost: give it as HOST:PORT"),
        (":1234", "0/2", "--coordinator :1234: give it as HOST:PORT"),
        ("localhost:0", "0/1", "--coordinator localhost:0: give it as HOST:PORT"),
        ("localhost:65536", "0/1", "--coordinator localhost:65536: .* with a port from 1 to 65535$"),
        ("localhost:99999999", "0/1", "--coordinator localhost:99999999: give it as HOST:PORT"),
    ],
)
def test_wrong_options(coordinator, process, told: str) -> None:
    with pytest.raises(UserError, match=told):
        processes.start(coordinator, process)


def test_alone_all_of_it_is_nothing() -> None:
    with processes.in_turn("something"):
        assert processes.first()
    assert processes.gather("text") == ["text"]
    with processes.all_or_none():
        pass
    processes.agree({"text": "digest"})


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])  # JAX raises one of them, depending on the place
@pytest.mark.parametrize(
    "told, waits",
    [("UNKNOWN: Gloo all-reduce failed: Read error: Connection reset by peer", True), ("shapes differ", False)],
)
def test_a_collective_that_fails_waits_for_what_became_of_the_others(monkeypatch, caplog, kind, told, waits) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "HEARTBEAT", 0.001)
    with pytest.raises(kind, match=told.split()[0]), processes.fail_fast():
        raise kind(told)
    assert ("no longer answer" in caplog.text) == waits
