"""Runs that are asked to stop, and runs with updates that are not finite: they resume as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import entries, same_run

from transformer.checkpoint import Checkpoints
from transformer.config import from_json
from transformer.tasks import translation
from transformer.tasks.translation import Translation
from transformer.training import loop
from transformer.training.objectives import sequences
from transformer.training.progress import Display
from transformer.training.stopping import StopSignals


@pytest.fixture
def at(monkeypatch) -> Callable[[int, Callable[[], None]], None]:
    """`at(step, act)`: call `act` once, when update `step` is done and the next one runs."""

    def at(step: int, act: Callable[[], None]) -> None:
        advance, waiting = Display.advance, [act]

        def advanced(self, done: int) -> None:
            advance(self, done)
            if done == step and waiting:
                waiting.pop()()

        monkeypatch.setattr(Display, "advance", advanced)

    return at


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# ---- Asked to stop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [SIGTERM, SIGHUP])
def test_what_is_heard_and_what_stays_ignored(number: int, monkeypatch, capfd) -> None:
    """Under nohup SIGHUP is ignored."""
    before = signal.getsignal(number)
    with StopSignals() as signals:
        send(number)()
        assert signals.received == number
    assert signal.getsignal(number) == before
    assert f"{signal.Signals(number).name}: saving the state" in capfd.readouterr().err
    try:
        signal.signal(number, signal.SIG_IGN)
        with StopSignals() as signals:
            send(number)()
            assert signals.received is None
    finally:
        signal.signal(number, before)


def test_a_signal_is_heard_where_nothing_can_be_written(monkeypatch) -> None:
    """For example, SIGHUP comes because the terminal is gone."""

    def gone(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with StopSignals() as signals, monkeypatch.context() as patch:
        patch.setattr(os, "write", gone)
        send(SIGHUP)()
        assert signals.received == SIGHUP


@pytest.mark.parametrize(
    ("number", "code"),
    [(SIGTERM, 143), *(pytest.param(*given, marks=pytest.mark.slow) for given in ((SIGINT, 130), (SIGHUP, 129)))],
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    call, tiny, trained, tmp_path, at, request, number: int, code: int
) -> None:
    workdir = tmp_path / "run"
    command = "train.py", "--config", tiny.config, "--workdir", workdir
    before = {SIGTERM: signal.getsignal(SIGTERM), SIGINT: signal.signal(SIGINT, signal.default_int_handler)}
    request.addfinalizer(lambda: signal.signal(SIGINT, before[SIGINT]))
    at(60, send(number))
    done = call(*command)
    name = signal.Signals(number).name
    assert done.code == code
    assert done.err.splitlines()[-1] == f"{name}: stopped after update 61; the same command goes on from there"
    assert "Traceback" not in done.err
    checkpoints = Checkpoints(workdir)
    assert checkpoints.states() == [25, 40, 50, "00000061.interrupted"]
    assert checkpoints.at("00000061.interrupted").progress["step"] == 61
    assert checkpoints.choose("last") == "00000061.interrupted"  # users may choose it
    assert checkpoints.choose() == checkpoints.best() == 40
    # The signal handlers are the same as before.
    assert signal.getsignal(SIGTERM) == before[SIGTERM]
    assert signal.getsignal(SIGINT) == signal.default_int_handler
    again = call(*command)
    assert again.code == 0
    assert "resuming from step 61" in again.err
    same_run(workdir, trained)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_stops_before_its_first_compilation(call, tiny, workdir, tmp_path, monkeypatch, resumed: bool) -> None:
    begin = loop.begin

    def asked(setup: loop.Setup) -> tuple:
        send(SIGTERM)()
        return begin(setup)

    monkeypatch.setattr(loop, "begin", asked)
    folder = workdir if resumed else tmp_path / "new"
    before = Checkpoints(folder).states()
    done = call("train.py", "--config", tiny.config, "--workdir", folder, "--train.steps", 124)
    assert done.code == 143
    assert "compiling" not in done.err
    where = (
        "after update 120; the same command goes on from there"
        if resumed
        else "before the first update; nothing was saved, the same command starts again"
    )
    assert done.err.splitlines()[-1] == f"SIGTERM: stopped {where}"
    assert Checkpoints(folder).states() == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "within"])
def test_asked_to_stop_where_an_evaluation_is_due(call, tiny, trained, tmp_path, at, monkeypatch, where: str) -> None:
    workdir = tmp_path / "run"
    command = "train.py", "--config", tiny.config, "--workdir", workdir
    if where == "before":
        at(79, send(SIGTERM))
    else:
        whole, count = translation.score, []

        def score(*given: object) -> dict:
            count.append(1)
            if len(count) in (2, 3):  # the evaluation at 80, and the same one at the start of the next run
                send(SIGTERM)()
            return whole(*given)

        monkeypatch.setattr(translation, "score", score)
    assert call(*command).code == 143
    checkpoints = Checkpoints(workdir)
    assert checkpoints.states() == [40, 50, 75, "00000080.interrupted"]
    assert [entry["step"] for entry in entries(workdir) if "dev_bleu" in entry] == [40]
    if where == "within":
        before = contents(workdir / "checkpoints")
        done = call(*command)
        assert done.code == 143
        assert done.err.splitlines()[-1].startswith("SIGTERM: stopped after update 80")
        assert contents(workdir / "checkpoints") == before
    assert call(*command).code == 0
    same_run(workdir, trained)


@pytest.mark.slow
def test_asked_to_stop_twice_between_two_checkpoints(call, tiny, trained, tmp_path, at) -> None:
    workdir = tmp_path / "run"
    command = "train.py", "--config", tiny.config, "--workdir", workdir
    for step in (101, 108):
        at(step, send(SIGTERM))
        assert call(*command).code == 143
    assert Checkpoints(workdir).states() == [75, 80, 100, "00000109.interrupted"]
    assert not (workdir / "checkpoints/00000102.interrupted").exists()
    assert call(*command).code == 0
    same_run(workdir, trained)
    assert not list((workdir / "checkpoints").glob("*.interrupted"))


@pytest.mark.slow
def test_a_damaged_interruption_is_passed_over_and_kept(call, tiny, trained, tmp_path, at) -> None:
    workdir = tmp_path / "run"
    command = "train.py", "--config", tiny.config, "--workdir", workdir
    at(60, send(SIGTERM))
    assert call(*command).code == 143
    (workdir / "checkpoints/00000061.interrupted/progress.json").write_text("{}")
    done = call(*command)
    assert done.code == 0
    assert "progress.json is not as it was written; going back to the previous checkpoint" in done.err
    assert "resuming from step 50" in done.err
    same_run(workdir, trained)
    assert (workdir / "checkpoints/00000061.interrupted.damaged/manifest.json").exists()


@pytest.mark.slow
def test_the_entry_of_the_log_is_not_lost_where_no_evaluation_is_due_any_more(call, tiny, tmp_path, at) -> None:
    command = "train.py", "--config", tiny.config, "--workdir", tmp_path / "run", "--train.log_every", 10
    at(79, send(SIGTERM))
    assert call(*command).code == 143
    assert call(*command, "--train.eval_every", 50).code == 0
    steps = [entry["step"] for entry in entries(tmp_path / "run")]
    assert steps == sorted({*range(10, 121, 10), 40, 80, 100, 120})


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- Updates that are not finite ------------------------------------------------------------------------------------


@pytest.fixture
def planted(monkeypatch, tiny) -> Callable[..., None]:
    """`planted(30, 31)`: make the losses of these updates NaN. Marked batches identify the updates."""

    def plant(*steps: int) -> None:
        whole, read = sequences, loop.Feed.read
        marked = 3_000  # an id outside of the vocabulary

        def spoilt(*given, **options):
            objective = whole(*given, **options)

            def loss(params, batch, key, **options):
                bad = jnp.any(batch["source"] == marked)
                clean = {**batch, "source": jnp.where(batch["source"] == marked, 5, batch["source"])}
                total, sums = objective.loss(params, clean, key, **options)
                return total * jnp.where(bad, jnp.nan, 1), sums

            return objective._replace(loss=loss)

        def marking(self, step: int):
            host = read(self, step)
            if step + 1 in steps:
                for part in host["source"][1].values():
                    part[0, 0, 0] = marked
            return host

        monkeypatch.setattr(translation, "sequences", spoilt)
        monkeypatch.setattr(loop.Feed, "read", marking)

    return plant


@pytest.mark.slow
def test_what_is_not_finite_is_skipped_and_counted(call, tiny, tmp_path, planted, monkeypatch, at) -> None:
    planted(30, 31, 90)
    command = "train.py", "--config", tiny.config, "--train.non_finite", "skip"
    done = call(*command, "--workdir", tmp_path / "a")
    assert done.code == 0
    told = [line for line in done.err.splitlines() if "the loss is nan" in line]
    assert [line.split(":")[1] for line in told] == [" update 30", " update 31", " update 90"]
    assert "(3 of 20 allowed); its batch: " in told[2]
    numbers = told[0].split("train.en:")[1].split(",")
    assert len(numbers) > 10
    assert all(1 <= int(number) <= 400 for number in numbers)
    last = Checkpoints(tmp_path / "a").at(120).progress
    assert last["skipped"] == 3
    assert last["left_out"] == []
    assert all(
        np.isfinite(value) for entry in entries(tmp_path / "a") for value in entry.values() if value != str(value)
    )
    assert [entry["step"] for entry in entries(tmp_path / "a")][:5] == [7, 14, 21, 28, 35]
    # The same with an interruption in between.
    at(31, send(SIGTERM))
    assert call(*command, "--workdir", tmp_path / "b").code == 143
    assert call(*command, "--workdir", tmp_path / "b").code == 0
    same_run(tmp_path / "b", tmp_path / "a")


@pytest.mark.slow
def test_a_skipped_update_changes_nothing(tiny, tmp_path, planted, call) -> None:
    planted(4)
    command = "train.py", "--config", tiny.config, "--train.non_finite", "skip", "--train.checkpoint_every", 1
    runs = []
    for steps in (3, 5):
        short = "--train.steps", steps, "--train.keep_last", 9, "--train.eval_sentences", 2
        assert call(*command, *short, "--workdir", tmp_path / str(steps)).code == 0
        runs.append(Checkpoints(tmp_path / str(steps)))
    assert runs[1].steps() == [1, 2, 4, 5]  # none at 3, after which no update was finite until the next save
    params = [jax.tree.leaves(of.at(step).params()) for of, step in zip((*runs, runs[1]), (3, 4, 5), strict=True)]
    for a, b in zip(params[0], params[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not all(np.array_equal(a, b) for a, b in zip(params[1], params[2], strict=True))


@pytest.mark.slow
def test_going_back_leaves_the_update_out(call, tiny, tmp_path, planted, at) -> None:
    planted(60, 110)
    command = "train.py", "--config", tiny.config, "--train.non_finite", "rollback"
    done = call(*command, "--workdir", tmp_path / "a")
    assert done.code == 0
    assert "going back to the last checkpoint, to leave update 60 out" in done.err
    assert [line for line in done.err.splitlines() if line.startswith("resuming")] == [
        "resuming from step 50",
        "resuming from step 100",
    ]
    assert Checkpoints(tmp_path / "a").at(120).progress["left_out"] == [60, 110]
    steps = [entry["step"] for entry in entries(tmp_path / "a")]
    assert steps == sorted(set(steps))
    # The same with an interruption after that.
    at(70, send(SIGTERM))
    assert call(*command, "--workdir", tmp_path / "b").code == 143
    assert call(*command, "--workdir", tmp_path / "b").code == 0
    same_run(tmp_path / "b", tmp_path / "a")


@pytest.mark.slow
def test_going_back_to_the_start(call, tiny, tmp_path, planted) -> None:
    planted(3)
    command = "train.py", "--config", tiny.config, "--train.non_finite", "rollback", "--workdir", tmp_path / "run"
    assert call(*command, "--train.steps", 10, "--train.eval_sentences", 2).code == 0
    assert Checkpoints(tmp_path / "run").at(10).progress["left_out"] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_there_is_a_limit(call, tiny, tmp_path, planted, policy: str) -> None:
    planted(*range(5, 30))
    command = "train.py", "--config", tiny.config, "--train.non_finite", policy, "--workdir", tmp_path / "run"
    done = call(*command, "--train.non_finite_limit", 2)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert error.startswith(
        "error: update 7: the loss is nan and the gradient norm nan; that makes 3 such updates (train.non"
    )
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_jump_of_the_loss_is_told_with_its_lines(call, tiny, tmp_path, monkeypatch) -> None:
    read = loop.Feed.read

    def jumping(self, step: int):
        host = read(self, step)
        if step + 1 == 60:
            for part in host["target"][1].values():  # change every second word
                part[:, :, ::2] = np.where(part[:, :, ::2] > 3, 390, part[:, :, ::2])
        return host

    monkeypatch.setattr(loop.Feed, "read", jumping)
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "run", "--train.steps", 70)
    assert done.code == 0
    told = [line for line in done.err.splitlines() if "jumped" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: step 60: the loss jumped to ")
    expected = Translation.build(from_json((tmp_path / "run/config.json").read_text()), str(tmp_path / "run"))
    assert told[0].endswith(f"; its batch: {expected.lines(59)}")
    lines = expected.batches().lines(59)
    assert set(lines[:, 1] + 1) == {int(n) for n in expected.lines(59).split(":")[1].split(",")}
