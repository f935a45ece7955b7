from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from quick import jit
from runs import leftovers

from transformer.checkpoint import Checkpoint, Checkpoints, folders, interrupted, saving, store, with_sharding
from transformer.config import Config, DataConfig, MeshConfig, ModelConfig, UserError, conflicts, to_json
from transformer.files import Lock, atomic, digest, owner, replace, sealing
from transformer.model import build
from transformer.tasks.loading import load
from transformer.training.sharding import make_mesh, shardings
from transformer.training.start import restore
from transformer.training.step import TrainState, init_state

CONFIG = Config(model=ModelConfig(encoder_layers=1, decoder_layers=1, d_model=8, d_ff=8, heads=2))
MODEL = build(CONFIG.model.with_vocabulary(20))
ABSTRACT = jax.eval_shape(lambda: init_state(MODEL.init, optax.adam(1e-3), 0))
FILES = {"config.json": to_json(CONFIG).encode(), "tokenizer.model": b"pieces", "tokenizer.sha256": b"digest\n"}
MESH = make_mesh(MeshConfig(), jax.devices()[:1])


def state(step: int) -> TrainState:
    """A train state in which every number differs from step to step."""
    rng = np.random.default_rng(step)
    full = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape).astype(x.dtype)), ABSTRACT)
    return TrainState(jnp.int32(step), full.params, full.optimizer)


def save(
    checkpoints: Checkpoints,
    step: int,
    bleu: float | None = None,
    *,
    name: str = "",
    small: bool = False,
    wait: bool = True,
    **keep: Any,
) -> TrainState:
    """Save a checkpoint. A `small` one has no optimiser state and takes less time."""
    made = state(step)
    progress = {"step": step, "dev_bleu": bleu, "vocab_size": 20}
    items = {"params": made.params, "optimizer": made.optimizer}
    items = {"params": {"x": np.full(3, step)}} if small else items
    checkpoints.save(name or step, items, progress=progress, files=FILES, **keep)
    if wait:
        checkpoints.wait()
    return made


def resumed(checkpoints: Checkpoints) -> tuple[TrainState | None, dict]:
    """What training would resume from."""
    return restore(checkpoints, with_sharding(ABSTRACT, shardings(ABSTRACT, MESH)))


def equal(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, one, other)))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def seal(checkpoint: Path) -> None:
    """Write a new manifest, as if the present files had been saved."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    manifest = {str(path.relative_to(checkpoint)): digest(path) for path in files(checkpoint)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


class Killed(BaseException):
    pass


@contextlib.contextmanager
def broken_off(checkpoints: Checkpoints, function: str, *, after: bool = False) -> Iterator[None]:
    """A block in which a save is interrupted at its call of this function, or after that call."""
    owner = {"seal": saving, "remove": folders, "digest": sealing}.get(function, type(checkpoints.folder))
    whole = getattr(owner, function)

    def killed(*given: Any) -> None:
        if after:
            whole(*given)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, function, killed)
        yield
        with pytest.raises(UserError, match="saving a checkpoint"):
            checkpoints.wait()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run")


@pytest.fixture
def folder(checkpoints: Checkpoints) -> Path:
    return Path(checkpoints.folder)


# ---- Save and restore -----------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_bit_for_bit(checkpoints, folder: Path) -> None:
    made = save(checkpoints, 7, 12.5)
    back, progress = resumed(checkpoints)
    assert equal(back, made)
    assert int(back.step) == 7
    assert progress == {"step": 7, "dev_bleu": 12.5, "vocab_size": 20}
    assert checkpoints.at(7).config == CONFIG
    assert (folder / "00000007/tokenizer.model").read_bytes() == b"pieces"
    manifest = json.loads((folder / "00000007/manifest.json").read_text())
    on_disk = {str(path.relative_to(folder / "00000007")): path.stat().st_size for path in files(folder / "00000007")}
    assert on_disk.pop("manifest.json")
    assert {name: entry["size"] for name, entry in manifest.items()} == on_disk
    assert {"config.json", "progress.json", "tokenizer.model", "tokenizer.sha256"} < set(manifest)
    assert any(name.startswith("state/optimizer/") for name in manifest)


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ({"files": ("config.json",)}, "config.json in files"),
        ({"progress": ("step",)}, "step in progress"),
        ({"progress": ("vocab_size",)}, "vocab_size in progress"),
        ({"items": ("params",)}, "params in items"),
        (
            {"files": ("config.json", "tokenizer.model", "tokenizer.sha256"), "progress": ("step", "vocab_size")},
            "config.json in files, step in progress, vocab_size in progress",
        ),
    ],
    ids=str,
)
def test_a_save_without_what_readers_need_is_refused_at_once(checkpoints, folder: Path, lacking, told: str) -> None:
    """The error names the entry, before a folder is created or an older checkpoint is removed."""
    save(checkpoints, 1, small=True)
    before = files(folder)
    whole = {"files": FILES, "progress": {"step": 2, "vocab_size": 20}, "items": {"params": {"x": np.zeros(3)}}}
    given = {
        what: {name: v for name, v in of.items() if name not in lacking.get(what, ())} for what, of in whole.items()
    }
    with pytest.raises(ValueError, match=f"^a checkpoint cannot be read without {told}; pass these to save, too$"):
        checkpoints.save(2, given["items"], progress=given["progress"], files=given["files"], keep_last=1)
    checkpoints.wait()
    assert files(folder) == before
    checkpoints.save(2, whole["items"], progress=whole["progress"], files=whole["files"])
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("name", "files_", "progress", "told"),
    [
        (-1, {}, {}, "a checkpoint cannot be called -1; give its step"),
        (10**8, {}, {}, "a checkpoint cannot be called 100000000"),
        (True, {}, {}, "a checkpoint cannot be called True"),
        ("../x", {}, {}, "a checkpoint cannot be called '../x'"),
        ("", {}, {}, "a checkpoint cannot be called ''"),
        ("\ud800", {}, {}, r"a checkpoint cannot be called '\\ud800'"),
        (2, {"../y": b""}, {}, "file '../y' of a checkpoint"),
        (2, {"y": "text"}, {}, "file 'y' of a checkpoint"),
        (2, {}, {"step": "2"}, r"progress\['step'\] = '2': give an int"),
        (2, {}, {"more": {1}}, r"the progress of a checkpoint can't be written as JSON \(Object of type set"),
        (2, {}, {"vocab_size": True}, r"progress\['vocab_size'\] = True: give an int"),
        (2, {}, {"vocab_size": 0}, r"progress\['vocab_size'\] = 0: must be at least 1"),
        ("x", {}, {"step": -1}, r"progress\['step'\] = -1: must be at least 0"),
        ("best", {}, {}, "no checkpoint is found by the name 'best'; give its step, or 'average'"),
        ("1", {}, {}, "no checkpoint is found by the name '1'"),
        (2, {"manifest.json": b""}, {}, r"file 'manifest\.json' of a checkpoint is written by `save` itself"),
        (2, {"config.json": b"x"}, {}, r"config\.json: not valid JSON"),
        (2, {}, {"run": 5}, r"progress\['run'\] = 5: give a string"),
        (2, {}, {"step": 3}, "checkpoint 2 cannot be of step 3; give its own step"),
        (2, {}, {"judged": [["dev_loss", "down"]]}, r"progress can't be read with this 'judged' \(KeyError"),
    ],
)
def test_a_save_that_no_reader_accepts_is_refused(
    checkpoints, folder: Path, name: object, files_: dict, progress: dict, told: str
) -> None:
    save(checkpoints, 1, small=True)
    before = files(folder.parent)
    whole = {"progress": {"step": 2, "vocab_size": 20, **progress}, "files": {**FILES, **files_}}
    with pytest.raises(ValueError, match=f"^{told}"):
        checkpoints.save(name, {"params": {"x": np.zeros(3)}}, **whole)
    with pytest.raises(ValueError, match=r"^the items of a checkpoint hold 'a': give trees of arrays"):
        checkpoints.save(2, {"params": {"x": "a"}}, files=FILES, progress={"step": 2, "vocab_size": 20})
    with pytest.raises(ValueError, match=r"hold an empty dict, params/more, which is not stored; leave it out$"):
        items = {"params": {"x": np.zeros(3), "more": {}}}
        checkpoints.save(2, items, files=FILES, progress={"step": 2, "vocab_size": 20})
    with pytest.raises(ValueError, match=r"^progress of a checkpoint is a list: give a dict"):
        checkpoints.save(2, {"params": {}}, files=FILES, progress=[1])
    checkpoints.wait()
    assert files(folder.parent) == before


def test_names_that_no_checkpoint_has(checkpoints) -> None:
    save(checkpoints, 1, small=True)
    for name in (None, 1.5, True, -1, "a/b", "\ud800", [1]):
        with pytest.raises(UserError, match=r"^a checkpoint cannot be called .*; give its step"):
            checkpoints.at(name)
    for last in (0, 1.5, np.ones((2, 2))):
        with pytest.raises(UserError, match=r"^average the last .* checkpoints: give a whole number, at least 1$"):
            checkpoints.average(last)


def test_a_save_survives_that_its_arrays_are_given_away(checkpoints) -> None:
    # As in training: the next update takes over the donated buffers while the save is still running.
    made = state(3)
    expected = jax.tree.map(np.array, made)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    progress = {"step": 3, "dev_bleu": None, "vocab_size": 20, "interval": {"loss": 1.5, "updates": 2}}
    checkpoints.save(3, {"params": made.params, "optimizer": made.optimizer}, progress=progress, files=FILES)
    overwritten = overwrite(made)
    progress["interval"].pop("updates")  # training also changes its progress
    progress["step"] = 4
    checkpoints.wait()
    assert not equal(overwritten.params, expected.params)
    back, progress = resumed(checkpoints)
    assert equal(back, expected)
    assert (progress["step"], progress["interval"]) == (3, {"loss": 1.5, "updates": 2})


def test_a_save_that_did_not_end_is_passed_over_and_made_anew(checkpoints, folder: Path) -> None:
    save(checkpoints, 5)
    save(checkpoints, 10)
    (folder / "00000010/manifest.json").rename(folder / "00000010/unfinished")  # what is written last
    (folder / "00000099").mkdir()
    (folder / "00000042/state.orbax-checkpoint-tmp").mkdir(parents=True)
    (folder / "notes").mkdir()
    (folder / "12.tmp").write_text("")
    assert checkpoints.steps() == [5]
    assert checkpoints.choose("last") == 5
    assert int(resumed(checkpoints)[0].step) == 5
    made = save(checkpoints, 10)
    assert checkpoints.steps() == [5, 10]
    assert equal(resumed(checkpoints)[0], made)


@pytest.mark.parametrize("at", ["seal", "digest", "replace"])
def test_saves_that_did_not_end_leave_nothing_that_grows(checkpoints, folder: Path, at: str) -> None:
    save(checkpoints, 5, small=True)
    for name in ("", interrupted(10)):
        with broken_off(checkpoints, at):
            save(checkpoints, 10, name=name, small=True, wait=False)
    assert (folder / "00000010/state").exists()
    assert (folder / "00000010.interrupted/unfinished").exists()
    assert checkpoints.states() == [5]
    checkpoints = Checkpoints(folder.parent)
    made = save(checkpoints, 10)  # in its place
    assert equal(resumed(checkpoints)[0], made)
    assert leftovers(folder.parent) == []  # the other one was removed, too


def test_half_a_copy_is_kept_under_another_name(checkpoints, folder: Path) -> None:
    save(checkpoints, 5, small=True)
    save(checkpoints, 10, small=True)
    (folder / "00000010/manifest.json").unlink()  # a file that the copy did not reach
    before = {path.relative_to(folder / "00000010"): path.read_bytes() for path in files(folder / "00000010")}
    save(checkpoints, 7, keep_last=1, small=True)  # removes what it is allowed to
    save(checkpoints, 10, keep_last=1, small=True)
    kept = folder / "00000010.damaged"
    assert {path.relative_to(kept): path.read_bytes() for path in files(kept)} == before
    assert leftovers(folder.parent) == ["checkpoints/00000010.damaged"]


def test_a_removal_that_did_not_end_is_ended(checkpoints, folder: Path, monkeypatch) -> None:
    whole = type(checkpoints.folder).rmtree
    for removed in range(5):  # of the five things beside the mark
        save(checkpoints, 2 * removed, small=True)
        save(checkpoints, 2 * removed + 1, small=True)
        left = removed

        def killed(path: epath.Path) -> None:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            whole(path)

        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoints.folder), "rmtree", killed)
            with pytest.raises(Killed):
                checkpoints.prune(1, None, None)
        assert len(leftovers(folder.parent)) == 1  # no longer complete
        checkpoints.prune(1, None, None)
        assert leftovers(folder.parent) == []
        assert checkpoints.steps() == [2 * removed + 1]


def test_all_of_a_checkpoint_is_on_the_disk_before_its_manifest_and_older_ones_go(
    checkpoints, folder: Path, monkeypatch
) -> None:
    save(checkpoints, 5, small=True)
    synced, path = [], folder / "00000010"

    def sync(at: Any) -> None:
        assert (folder / "00000005").exists()
        synced.append((str(at), (path / "manifest.json").exists()))

    for module in (atomic, sealing):
        monkeypatch.setattr(module, "synced", sync)
    save(checkpoints, 10, keep_last=1, small=True)
    assert checkpoints.steps() == [10]
    before = {at for at, complete in synced if not complete}
    there = {str(at) for at in path.rglob("*")} - {str(path / "manifest.json")}
    assert there | {str(path), str(path / "unfinished")} == before
    assert synced.count((str(path / "unfinished"), False)) == 2  # again with its present content
    assert [at for at, complete in synced if complete][:2] == [str(path), str(folder)]


def test_a_checkpoint_is_sealed_when_what_comes_after_it_is_good(checkpoints, folder: Path) -> None:
    save(checkpoints, 5, small=True)
    for decide, kept in (
        (checkpoints.confirm, [10]),
        (checkpoints.abandon, [10]),
        (checkpoints.wait, [10, 20]),
    ):
        save(checkpoints, 10 * len(kept) if decide != checkpoints.abandon else 15, small=True, wait=False, good=False)
        until_read_back(checkpoints)
        assert len(checkpoints.steps()) == len(kept) + (decide == checkpoints.abandon)
        decide()
        checkpoints.wait()
        assert checkpoints.steps() == [5, *kept]
        assert leftovers(folder.parent) == []
    save(checkpoints, 30, small=True, wait=False, good=False)
    checkpoints.confirm()
    checkpoints.abandon()  # too late: it was confirmed
    assert checkpoints.steps() == [5, 10, 20, 30]


def until_read_back(checkpoints: Checkpoints) -> None:
    """Wait until the save in progress only has to be sealed."""
    while not checkpoints._saving._decided._cond._waiters:  # of threading.Event
        time.sleep(0.01)


def test_where_nobody_knows_whether_it_is_good_older_ones_stay(checkpoints, folder: Path) -> None:
    save(checkpoints, 5, small=True)
    save(checkpoints, 10, small=True, good=False, keep_last=1)  # sealed by `wait`, as when a run is asked to stop
    assert checkpoints.steps() == [5, 10]
    save(checkpoints, 15, small=True, good=False, keep_last=1, wait=False)
    checkpoints.confirm()
    checkpoints.wait()
    assert checkpoints.steps() == [15]


@pytest.mark.parametrize("file", ["config.json", "progress.json", "tokenizer.model"])
def test_files_that_are_not_kept_as_they_were_given_are_never_sealed(checkpoints, monkeypatch, file: str) -> None:
    metadata = ocp.PyTreeCheckpointHandler.metadata

    def lost(handler: Any, at: epath.Path) -> Any:
        (at.parents[1] / file).write_bytes(b"{")
        return metadata(handler, at)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "metadata", lost)
    with pytest.raises(UserError, match=f"{file} does not hold what was saved"):
        save(checkpoints, 5, small=True)
    assert checkpoints.steps() == []


@pytest.mark.parametrize("name", ["run [1]", "run*", "r?n", "[", "[!a]", "r\\n", "wörk", os.fsdecode(b"w\xf6rk")])
def test_no_name_of_a_users_is_a_pattern_or_has_to_be_utf8(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(tmp_path / name)
    for step in (5, 10, 15):
        made = save(checkpoints, step, keep_last=2)
    assert equal(resumed(checkpoints)[0], made)
    save(checkpoints, 20, name=interrupted(20), small=True)
    assert equal(Checkpoints(tmp_path / name).open("15").params(), made.params)
    there = Checkpoints(tmp_path / name)
    assert (there.steps(), there.states()) == ([10, 15], [10, 15, interrupted(20)])
    assert equal(there.at(15).params(), made.params)
    assert there.average(1) == [15] and equal(there.at("average").params(), made.params)
    plain = there._arrays._orbax_folder
    del there, checkpoints
    gc.collect()
    assert plain == epath.Path(tmp_path / name / "checkpoints") or not plain.parent.exists()


@pytest.mark.parametrize("harm", ["not merged", "cut off"])
def test_what_cannot_be_read_back_is_never_sealed(checkpoints, folder: Path, monkeypatch, harm: str) -> None:
    save(checkpoints, 5, 1.0)
    whole = type(checkpoints._arrays._orbax).wait_until_finished

    def lost(orbax: Any) -> None:
        whole(orbax)
        arrays = folder / "00000010/state/params"
        if not (arrays / "manifest.ocdbt").exists():  # Orbax waits before a save, too
            return
        if harm == "not merged":
            (arrays / "manifest.ocdbt").unlink()
        else:
            largest = max(files(arrays), key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:-50])

    monkeypatch.setattr(type(checkpoints._arrays._orbax), "wait_until_finished", lost)
    save(checkpoints, 10, 2.0, keep_last=1, wait=False)
    with pytest.raises(UserError, match=r"^saving a checkpoint under .* failed \(.*\); make room"):
        checkpoints.wait()
    assert checkpoints.steps() == [5]


def test_other_spellings_of_a_step_do_not_count(checkpoints, folder: Path, caplog) -> None:
    save(checkpoints, 20, small=True)
    for name in ("20", "000000020", "٠٠٠٠٠٠٢٠", "²"):
        shutil.copytree(folder / "00000020", folder / name)
    shutil.copytree(folder / "00000020", folder / "30.interrupted")
    for _ in range(2):
        assert (checkpoints.steps(), checkpoints.states()) == ([20], [20])
    told = [f"{folder / name} is ignored: training names" for name in ("20", "000000020", "٠٠٠٠٠٠٢٠")]
    assert sorted(message[: len(told[0])] for message in caplog.messages) == sorted(t[: len(told[0])] for t in told)
    save(checkpoints, 30, small=True, keep_last=1)
    assert (folder / "20").exists()  # never removes what no run has saved
    for wrong in ("²", "٢٠", "9" * 5_000):
        with pytest.raises(UserError, match=r"not in .*; it has 30, best, last and average"):
            checkpoints.choose(wrong)


def test_checkpoints_of_another_run_are_not_removed(checkpoints, folder: Path) -> None:
    def save_of(run: str | None, step: int) -> None:
        progress = {"step": step, "vocab_size": 20, **({"run": run} if run else {})}
        checkpoints.save(step, {"params": {"x": np.ones(1)}}, progress=progress, files=FILES, keep_last=1)
        checkpoints.wait()

    save_of("theirs", 5)
    save_of(None, 10)  # of an earlier version
    save_of("ours", 20)
    save_of("ours", 30)
    assert checkpoints.steps() == [5, 30]


def test_nothing_is_written_to_a_folder_that_is_no_longer_ours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lock = Lock(run / ".lock")
    with lock.held():
        checkpoints = Checkpoints(run, lock)
        save(checkpoints, 5, small=True)
        shutil.rmtree(run)
        other = Checkpoints(run)
        for step in (1, 2, 3):
            save(other, step, small=True)
        before = files(run)
        for write in (
            lambda: save(checkpoints, 10, small=True, keep_last=1),
            lambda: checkpoints.prune(1, None, None),
            lambda: checkpoints.discard(1),
        ):
            with pytest.raises(UserError, match=f"^{run} is no longer the folder that this run began in"):
                write()
        assert files(run) == before


def test_two_averages_at_once(checkpoints, folder: Path) -> None:
    for step in (10, 20, 30):
        save(checkpoints, step, 1.0)
    with Lock(folder.parent / ".average.lock").held(), pytest.raises(UserError, match="another process averages there"):
        checkpoints.average(2)
    assert checkpoints.average(2) == [20, 30]
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(UserError, match="give a whole number, at least 1"):
            checkpoints.average(wrong)


def test_an_average_is_not_written_into_another_folder(checkpoints, folder: Path, tmp_path: Path, monkeypatch) -> None:
    save(checkpoints, 10, 1.0)
    shutil.copytree(folder.parent, tmp_path / "other")
    make = Checkpoints.make_folder

    def replaced(self: Checkpoints, name: int | str) -> None:
        folder.parent.rename(tmp_path / "old")
        (tmp_path / "other").rename(folder.parent)
        make(self, name)

    monkeypatch.setattr(Checkpoints, "make_folder", replaced)
    with pytest.raises(UserError, match="is no longer the folder that this run began in"):
        checkpoints.average(1)
    assert not (folder / "average").exists() and not (folder / "average.next").exists()


def test_what_was_saved_is_remembered(checkpoints, folder: Path) -> None:
    assert checkpoints.once_saved(10) is None
    (folder.parent).mkdir()
    (folder.parent / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    assert checkpoints.once_saved(10) is None  # the run may have been killed before its first save was complete
    (folder.parent / "metrics.jsonl").write_text('{"step": 10}\n{"step": 21}\n')
    assert "metrics.jsonl reaches step 21" in checkpoints.once_saved(10)
    with (folder.parent / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n{"step": 2')  # half a line, left by a kill
    assert "metrics.jsonl reaches step 21" in checkpoints.once_saved(10)
    save(checkpoints, 5, small=True)
    shutil.rmtree(folder)
    assert checkpoints.once_saved(10) == "checkpoint 00000005 was saved"


@pytest.mark.parametrize("left", ["average", "00000005", "00000005.damaged", "20", "scores.jsonl"])
def test_whatever_is_left_of_checkpoints_shows_that_they_were_saved(checkpoints, folder: Path, left: str) -> None:
    """Also if hidden files were not copied, or an earlier version wrote none."""
    folder.mkdir(parents=True)
    (folder / "00000010").mkdir()
    (folder / "00000010/unfinished").touch()  # of a save that was killed
    (folder / "00000015").mkdir()
    assert checkpoints.once_saved(10) is None
    if left == "scores.jsonl":
        (folder.parent / left).write_text('{"bleu": 1}\n')
    else:
        (folder / left / "state").mkdir(parents=True)
    assert left in checkpoints.once_saved(10)


def test_a_failing_save_is_told_by_the_next_wait(checkpoints, folder: Path, monkeypatch) -> None:
    save(checkpoints, 5)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealing, "digest", full)
    save(checkpoints, 10, wait=False)
    with pytest.raises(UserError, match=r"failed \(.*No space left on device\); make room"):
        checkpoints.wait()
    checkpoints.wait()  # warned once
    assert checkpoints.steps() == [5]


def test_a_workdir_may_be_relative_or_a_bucket(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("runs/mine")
    made = save(checkpoints, 1)
    assert equal(resumed(Checkpoints("runs/mine"))[0], made)
    assert (tmp_path / "runs/mine/checkpoints/00000001/manifest.json").exists()
    monkeypatch.setattr(type(checkpoints.folder), "exists", lambda self: False)  # without asking for it
    assert str(Checkpoints("gs://bucket/mine").folder) == "gs://bucket/mine/checkpoints"


# ---- Damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_in_any_file_is_found(checkpoints, folder: Path, tmp_path: Path) -> None:
    save(checkpoints, 1, 3.0)
    whole = shutil.copytree(folder / "00000001", tmp_path / "whole")
    damaged = [path.relative_to(whole) for path in files(whole) if path.stat().st_size]
    assert len(damaged) > 10
    for name in damaged:
        flip(folder / "00000001" / name)
        wrong = checkpoints.at(1).damage()
        assert wrong, name
        if name.name != "manifest.json":
            assert str(name) in wrong
        with pytest.raises(UserError, match="this checkpoint is damaged; choose another"):
            checkpoints.at(1).restore({"params": MODEL.abstract_params})
        shutil.copy(whole / name, folder / "00000001" / name)
    assert checkpoints.at(1).damage() is None


@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "no JSON"])
def test_training_goes_back_to_the_last_whole_checkpoint(checkpoints, folder: Path, harm: str, caplog) -> None:
    made = save(checkpoints, 5)
    for step in (10, 15):
        save(checkpoints, step)
        largest = max(files(folder / f"{step:08d}" / "state"), key=lambda path: path.stat().st_size)
        if harm == "flipped":
            flip(largest)
        elif harm == "truncated":
            largest.write_bytes(largest.read_bytes()[:-1])
        elif harm == "missing":
            largest.unlink()
        else:
            (folder / f"{step:08d}" / "manifest.json").write_text("{")
    back, progress = resumed(checkpoints)
    assert (int(back.step), progress["step"]) == (5, 5)
    assert equal(back, made)
    assert len([record for record in caplog.records if "going back to the previous checkpoint" in record.message]) == 2
    # What is damaged no longer counts: not as the last one, nor among those that are kept.
    assert checkpoints.steps() == [5]
    save(checkpoints, 7, keep_last=2)
    assert checkpoints.steps() == [5, 7]


def test_nothing_whole_is_told_and_left_as_it_is(checkpoints, folder: Path) -> None:
    assert resumed(checkpoints) == (None, {})
    save(checkpoints, 5)
    save(checkpoints, 10)
    for step in (5, 10):
        flip(folder / f"{step:08d}/tokenizer.model")
    before = {path: path.read_bytes() for path in files(folder)}
    with pytest.raises(
        UserError, match=r"^all 2 checkpoints in .* are damaged or of another run; nothing was changed there\. Bring"
    ):
        resumed(checkpoints)
    assert {path: path.read_bytes() for path in files(folder)} == before


def test_a_file_that_cannot_be_read_just_now_is_not_damaged(checkpoints, folder: Path, monkeypatch) -> None:
    save(checkpoints, 5)
    made = save(checkpoints, 10)
    before = {path: path.read_bytes() for path in files(folder)}

    def fail(path: Any) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "digest", fail)
        with pytest.raises(UserError, match=r"/00000010/.* cannot be read \(Input/output error\); fix this"):
            resumed(checkpoints)
    assert {path: path.read_bytes() for path in files(folder)} == before
    assert equal(resumed(checkpoints)[0], made)


@pytest.mark.parametrize("file", ["progress.json", "config.json"])
@pytest.mark.parametrize("harm", ["missing", "another digit", "no JSON", "no text", "a list"])
def test_damaged_files_beside_the_arrays_are_told_in_one_line(checkpoints, folder: Path, file: str, harm: str) -> None:
    save(checkpoints, 5)
    path = folder / "00000005" / file
    content = {"no JSON": b'{"step":', "no text": b"\xff\xfe", "a list": b"[]"}
    if harm == "missing":
        path.unlink()
    else:  # another number of pieces or heads: a valid config, but not the saved one
        path.write_bytes(content.get(harm, path.read_bytes().replace(b"2", b"4")))
    with pytest.raises(UserError) as error:
        load(str(folder.parent), "last")
    assert f"00000005/{file} {'cannot be read (' if harm == 'missing' else 'is not as it was written: '}" in str(
        error.value
    )
    assert "choose another with --checkpoint (if the command has it), or remove" in str(error.value)
    assert "\n" not in str(error.value)
    if harm in content:  # written by another program, and sealed
        seal(path.parent)
        with pytest.raises(UserError, match=f"00000005/{file}") as error:
            load(str(folder.parent), "last")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ("[]", "it names no files"),
        ("{}", "it names no files"),
        ('["config.json"]', "it names no files"),
        ('{"../../../secret": {"size": 6, "sha256": ""}}', "it names ../../../secret, which is not in the folder"),
        ('{"state/../../x": 1}', "it names state/../../x, which is not in the folder"),
        ('{"/etc/passwd": {}}', "it names /etc/passwd, which is not in the folder"),
        ('{"config.json": null}', "config.json is not as it was written"),
        ('{"nothing": {}}', "nothing is missing"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_manifests_of_nothing_or_of_files_outside_are_refused(checkpoints, folder: Path, manifest, told: str) -> None:
    save(checkpoints, 5, small=True)
    (folder.parent.parent / "secret").write_text("secret")
    (folder / "00000005/manifest.json").write_text(manifest)
    assert told in checkpoints.at(5).damage()
    with pytest.raises(UserError, match=r"00000005/.*: this checkpoint is damaged; choose another") as error:
        load(str(folder.parent), "last")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"all 1 checkpoints in .* are damaged"):
        resumed(checkpoints)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"d_ff": 16}, r"feed_forward/b1 is \(8,\) in the checkpoint and \(16,\) in the model"),
        ({"decoder_layers": 2}, r"decoder/layers/1/\S+ is missing in the checkpoint and \(.+\) in the model"),
        (
            {"tied_embeddings": "target"},
            r"target_embedding/table is missing in the checkpoint and \(20, 8\) in the model",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_told_in_one_line(checkpoints, change: dict, told: str, caplog) -> None:
    save(checkpoints, 5)
    other = build(dataclasses.replace(CONFIG.model, **change).with_vocabulary(20)).abstract_params
    with pytest.raises(UserError, match=f"00000005 does not fit the model: .*{told}"):
        checkpoints.at(5).restore({"params": with_sharding(other, jax.sharding.SingleDeviceSharding(jax.devices()[0]))})
    assert caplog.records == []


def test_a_full_disk_is_told_in_one_line(checkpoints, folder: Path, tmp_path: Path, monkeypatch) -> None:
    def full(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    path = epath.Path(tmp_path / "some/file")
    replace(path, b"old")

    def cut_off(self: Any, content: bytes) -> None:
        Path(self).write_bytes(content[:2])
        full(self)

    told = r" cannot be written \(No space left on device\); make room or mend the folder, then run the same command"
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", cut_off)
        with pytest.raises(UserError, match=f"^{path}{told}"):
            replace(path, b"newer")
    assert {p.name: p.read_bytes() for p in (tmp_path / "some").iterdir()} == {"file": b"old"}
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "mkdir", full)
        with pytest.raises(UserError, match=f"^{folder}/00000005{told}"):
            save(checkpoints, 5)


def test_a_workdir_that_cannot_be_reached_is_told_in_one_line(tmp_path: Path, monkeypatch) -> None:
    def fail(self: Any) -> None:
        raise ConnectionError("Cannot connect to host\nexample:443")

    monkeypatch.setattr(type(epath.Path("gs://bucket/mine")), "exists", fail)
    told = r"^gs://bucket/mine cannot be reached \(ConnectionError: Cannot connect to host example:443\); check"
    with pytest.raises(UserError, match=told):
        Checkpoints("gs://bucket/mine")


def test_replace_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch) -> None:
    path = epath.Path(tmp_path / "some/file")
    replace(path, b"old")
    assert path.read_bytes() == b"old"
    before = path.stat()
    replace(path, b"old")
    assert path.stat() == before  # left alone

    def cut_off(self: Any, content: bytes) -> None:
        Path(self).write_bytes(content[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "write_bytes", cut_off)
    with pytest.raises(KeyboardInterrupt):
        replace(path, b"newer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    synced = []
    monkeypatch.setattr(atomic, "synced", lambda at: synced.append((at.name, path.read_bytes())))
    replace(path, b"newer")
    assert path.read_bytes() == b"newer"
    (temporary, before), after = synced
    assert temporary.startswith("file.") and temporary.endswith(f".{owner()}.tmp") and before == b"old"
    assert after == ("some", b"newer")
    assert [p.name for p in (tmp_path / "some").iterdir()] == ["file"]


# ---- Links ----------------------------------------------------------------------------------------------------------


def test_nothing_is_written_through_a_link(checkpoints, folder: Path, tmp_path: Path, monkeypatch) -> None:
    outside, run = tmp_path / "outside", folder.parent
    outside.mkdir()
    (outside / "file").write_text("mine")
    told = "is a link, so writing there would write outside the workdir; replace"
    run.mkdir()
    folder.symlink_to(outside)
    for write in (
        lambda: save(checkpoints, 5, small=True),
        lambda: checkpoints.prune(1, None, None),
        lambda: checkpoints.discard(5),
    ):
        with pytest.raises(UserError, match=f"^{folder} {told}"):
            write()
    folder.unlink()
    for target in (outside / "file", outside / "nowhere"):
        (run / "config.json").symlink_to(target)
        with pytest.raises(UserError, match=f"^{run}/config.json {told}"):
            replace(epath.Path(run / "config.json"), b"content")
        (run / "config.json").unlink()
    # Removing a checkpoint that is a link leaves its target.
    save(checkpoints, 5, small=True)
    (folder / "00000005").rename(outside / "five")
    (folder / "00000005").symlink_to(outside / "five")
    assert checkpoints.at(5).damage() is None
    save(checkpoints, 10, keep_last=1, small=True)
    assert [path.name for path in folder.iterdir()] == ["00000010"]
    assert (outside / "five/manifest.json").exists()
    assert [path.name for path in outside.iterdir() if path.is_file()] == ["file"]
    assert (outside / "file").read_text() == "mine"
    (run / ".average.lock").symlink_to(outside / "nowhere")
    with pytest.raises(UserError, match=f"^{run}/.average.lock {told}"):
        checkpoints.average(1)
    assert not (outside / "nowhere").exists()
    # The workdir itself may be a link.
    (tmp_path / "link").symlink_to(run)
    linked = Checkpoints(tmp_path / "link")
    save(linked, 15, small=True)
    replace(epath.Path(tmp_path / "link/config.json"), b"content")
    assert checkpoints.steps() == [10, 15]


# ---- Which are kept, which is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ({"keep_last": 2}, [30, 50, 60]),  # 30 is the best
        ({"keep_last": 1, "keep_every": 20}, [20, 30, 40, 60]),
        ({"keep_last": 9}, [10, 20, 30, 40, 50, 60]),
        ({}, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_the_last_the_best_and_every_nth_are_kept(checkpoints, folder: Path, keep: dict, kept: list[int]) -> None:
    scores = {10: 1.0, 20: None, 30: 9.0, 40: 9.0, 50: None, 60: 8.0}
    for step, bleu in scores.items():
        save(checkpoints, step, bleu, small=True, **keep)
    assert checkpoints.steps() == kept
    assert sorted(int(path.name) for path in folder.iterdir()) == kept  # the others were removed
    assert checkpoints.best() == 30  # the earliest of equals
    assert all(checkpoints.at(step).damage() is None for step in kept)


def test_one_whose_score_cannot_be_read_is_kept_and_the_others_are_not(checkpoints, folder: Path, caplog) -> None:
    for step in (10, 20, 30):
        save(checkpoints, step, float(step), small=True)
    (folder / "00000020/progress.json").write_text("{")
    for step in (40, 50, 60):
        save(checkpoints, step, 1.0, keep_last=1, small=True)
    assert checkpoints.steps() == [20, 30, 60]  # 30 is the best of those with known scores
    told = "00000020 is kept, as its score is not known: "
    assert [message.startswith(told) for message in caplog.messages] == [True]
    with pytest.raises(UserError, match=r"00000020/progress.json is not as it was written"):
        checkpoints.best()


@pytest.mark.parametrize(
    "change", [{"vocab_size": None}, {"step": None}, {"step": "5"}, {"run": {}}, {"vocab_size": 20.0}]
)
def test_progress_of_another_program_is_told(checkpoints, folder: Path, change: dict) -> None:
    save(checkpoints, 5, small=True)
    path = folder / "00000005/progress.json"
    changed = {name: x for name, x in {**json.loads(path.read_text()), **change}.items() if x is not None}
    path.write_text(json.dumps(changed))
    seal(path.parent)
    with pytest.raises(UserError, match=r"00000005/progress\.json was not written by this program: "):
        _ = checkpoints.at(5).progress


def test_what_cannot_be_removed_does_not_keep_the_others(checkpoints, folder: Path, monkeypatch, caplog) -> None:
    remove = folders.remove

    def stuck(path: epath.Path) -> None:
        if path.name == "00000010":
            raise OSError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(store, "remove", stuck)
    for step in (10, 20, 30):
        save(checkpoints, step, small=True)
    checkpoints.prune(1, None, None)
    assert checkpoints.steps() == [10, 30]
    assert caplog.messages == [f"older checkpoints are not removed: [Errno 13] Permission denied: '{folder}/00000010'"]


def test_choose(checkpoints, folder: Path) -> None:
    run = folder.parent
    with pytest.raises(UserError, match="no complete checkpoint there; train first"):
        checkpoints.choose()
    save(checkpoints, 10)
    for inside in (folder, folder / "00000010"):
        with pytest.raises(
            UserError, match=rf"{inside}: no complete checkpoint there; give the workdir itself: {run}$"
        ):
            Checkpoints(inside).choose()
    with pytest.raises(UserError, match=r"it is a file; give the folder that train.py made, unpacked$"):
        Checkpoints(folder / "00000010/manifest.json").choose()
    assert checkpoints.choose() == 10  # never evaluated: the last
    save(checkpoints, 20)
    assert checkpoints.choose() == 20
    with pytest.raises(UserError, match="use --checkpoint last"):
        checkpoints.choose("best")
    save(checkpoints, 30, 5.0)
    save(checkpoints, 40, 4.0)
    assert checkpoints.choose() == checkpoints.choose("best") == 30
    assert checkpoints.choose("last") == 40
    assert checkpoints.choose("20") == checkpoints.choose("00000020") == checkpoints.choose(20) == 20
    for wrong in ("25", "lst", "-1"):
        with pytest.raises(UserError, match=f"--checkpoint {wrong}: not in .*; it has 10, 20, 30, 40, best, last"):
            checkpoints.choose(wrong)
    for wrong in (2.5, b"last", [20], np.ones((2, 2))):
        with pytest.raises(UserError, match=r"^checkpoint = .*: give best, last, average or a step$"):
            checkpoints.choose(wrong)
    assert checkpoints.choose(np.int64(20)) == checkpoints.choose(jnp.int32(20)) == 20
    with pytest.raises(UserError, match=f"no average yet; make one with: python -m transformer average {run}"):
        checkpoints.choose("average")
    checkpoints.average(2)
    assert checkpoints.choose() == checkpoints.choose("average") == "average"
    assert checkpoints.choose("best") == 30
    assert checkpoints.choose("last") == 40
    # The checkpoint of an interrupted run, by its name.
    save(checkpoints, 45, name=interrupted(45))
    assert checkpoints.choose("last") == checkpoints.choose(interrupted(45)) == "00000045.interrupted"


def test_choose_in_a_folder_of_several_seeds(tmp_path: Path) -> None:
    """The error names the folder of a seed that has a checkpoint."""
    for seed in (2, 3, 10):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}/config.json").write_text("{}")
        if seed > 2:
            checkpoints = Checkpoints(tmp_path / f"seed-{seed}")
            save(checkpoints, 10, small=True)
            checkpoints.wait()
    with pytest.raises(
        UserError, match=rf"it holds the runs of 2 seeds; give the folder of one, such as {tmp_path}/seed-3$"
    ):
        Checkpoints(tmp_path).choose()


def test_scores_of_other_sentences_do_not_compare(checkpoints) -> None:
    items, bests = {"params": state(1).params}, []
    for step, bleu, of_dev in ((20, 8.0, "one"), (30, 7.0, "two"), (40, None, "three"), (50, 6.0, "two")):
        progress = {"step": step, "dev_bleu": bleu, "dev_digest": of_dev, "vocab_size": 20}
        checkpoints.save(step, items, progress=progress, files=FILES, keep_last=3)
        checkpoints.wait()
        bests.append(checkpoints.best())
    assert bests == [20, 30, 30, 30]
    assert checkpoints.steps() == [30, 40, 50]


def test_scores_that_tie_are_told_apart_by_the_next_ones(checkpoints) -> None:
    """Also among checkpoints of an earlier version, which had only dev BLEU."""
    judged = [["dev_bleu", "up"], ["dev_chrf", "up"], ["dev_loss", "down"]]
    items, bests = {"params": {"x": np.ones(3)}}, []
    for step, scores in {
        10: {"dev_bleu": 0.0},
        20: {"dev_bleu": 0.0, "dev_chrf": 64.8, "dev_loss": 2.0},
        30: {"dev_bleu": 0.0, "dev_chrf": 98.1, "dev_loss": 1.0},
        40: {"dev_bleu": 0.0, "dev_chrf": 98.1, "dev_loss": 0.5},
        50: {"dev_bleu": 0.0, "dev_chrf": 98.1, "dev_loss": 0.5},
        60: {"dev_bleu": float("nan"), "dev_chrf": float("inf"), "dev_loss": float("nan")},
        70: {"dev_bleu": 0.1, "dev_chrf": 1.0, "dev_loss": float("nan")},
    }.items():
        progress = {"step": step, "vocab_size": 20, **scores}
        if len(scores) > 1:
            progress |= {"judged": judged, "scored_with": {"bleu_tokenize": "13a"}}
        checkpoints.save(step, items, progress=progress, files=FILES, keep_last=1)
        checkpoints.wait()
        bests.append(checkpoints.best())
    assert bests == [10, 20, 30, 40, 40, 40, 70]
    assert checkpoints.best(judged=judged[1:]) == 70
    assert checkpoints.steps() == [70]


def test_scores_taken_otherwise_do_not_compare(checkpoints) -> None:
    by_bleu, by_loss = [["dev_bleu", "up"], ["dev_loss", "down"]], [["dev_loss", "down"], ["dev_bleu", "up"]]
    items, bests = {"params": {"x": np.ones(3)}}, []
    plain, short = {"decode.max_length": None, "bleu_tokenize": "13a"}, {"decode.max_length": 3, "bleu_tokenize": "13a"}
    for step, bleu, loss, judged, scored_with in (
        (10, 9.0, 1.0, by_bleu, plain),
        (20, 5.0, 0.9, by_bleu, short),
        (30, 4.0, 2.0, by_bleu, short),
        (40, 8.0, 3.0, by_loss, short),
        (50, 1.0, 2.5, by_loss, {"decode.max_length": 3, "bleu_tokenize": "zh"}),
    ):
        progress = {"step": step, "vocab_size": 20, "dev_bleu": bleu, "dev_loss": loss}
        progress |= {"judged": judged, "scored_with": scored_with}
        checkpoints.save(step, items, progress=progress, files=FILES)
        checkpoints.wait()
        bests.append(checkpoints.best())
    assert bests == [10, 20, 20, 40, 50]
    # With another score to rank by, all checkpoints with comparable scores count, whatever ranked them.
    progress = {**progress, "step": 60, "scored_with": short, "dev_bleu": 3.0}
    checkpoints.save(60, items, progress=progress, files=FILES)
    checkpoints.wait()
    assert checkpoints.best() == 60
    assert checkpoints.best(judged=by_loss) == checkpoints.choose(None, by_loss) == 20
    assert checkpoints.best(judged=by_bleu) == checkpoints.choose("best", by_bleu) == 40


def test_an_average_of_earlier_checkpoints_is_warned_of(checkpoints, folder: Path, caplog) -> None:
    for step in (10, 20):
        save(checkpoints, step, 1.0)
    checkpoints.average(2)
    caplog.clear()
    assert checkpoints.choose() == "average"
    assert caplog.messages == []
    save(checkpoints, 30)
    assert checkpoints.choose() == "average"
    run = folder.parent
    assert caplog.messages == [
        f"{run}: the average ends at step 20, but training went on to 30; update the average with: "
        f"python -m transformer average {run}"
    ]
    # No warning for an average that is named explicitly.
    assert checkpoints.choose("average") == "average"
    assert checkpoints.choose("best") == 10
    assert len(caplog.messages) == 1


# ---- The average ----------------------------------------------------------------------------------------------------


def test_the_average_is_the_mean_of_the_last_ones(checkpoints, folder: Path, caplog) -> None:
    made = [save(checkpoints, step, 1.0) for step in (10, 20, 30, 40)]

    def is_mean_of(states: list[TrainState]) -> None:
        mean = jax.tree.map(lambda *xs: np.mean(np.stack(xs, dtype=np.float64), 0), *[s.params for s in states])
        ours = checkpoints.at("average").params()
        for one, exact in zip(jax.tree.leaves(ours), jax.tree.leaves(mean), strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, exact, rtol=1e-7)

    assert checkpoints.average(3) == [20, 30, 40]
    is_mean_of(made[1:])
    progress = checkpoints.at("average").progress
    assert progress["averaged_steps"] == [20, 30, 40]
    assert progress["trainable"] is False
    assert checkpoints.at("average").damage() is None
    assert (folder / "average/tokenizer.model").read_bytes() == b"pieces"
    assert not (folder / "average/state/optimizer").exists()
    # A second average, of all checkpoints, replaces the first; nothing is left of the first.
    assert checkpoints.average(9) == [10, 20, 30, 40]
    assert checkpoints.at("average").progress["averaged_steps"] == [10, 20, 30, 40]
    is_mean_of(made)
    assert leftovers(folder.parent) == []
    assert caplog.messages == []


def test_a_copy_under_the_name_of_another_step_is_neither_chosen_nor_averaged(
    checkpoints, folder, caplog, monkeypatch
) -> None:
    for step in (10, 20, 30):
        save(checkpoints, step, float(-step), small=True)
    copies = [folder / name for name in ("00000005", "00000040")]
    for copy in copies:
        shutil.copytree(folder / "00000010", copy)
    assert checkpoints.choose("last") == 30
    assert checkpoints.choose("best") == checkpoints.best() == 10
    with pytest.raises(UserError, match=r"^--checkpoint 40: not in .* it has 10, 20, 30, best"):
        checkpoints.choose(40)
    monkeypatch.setattr(store, "mean", lambda opened: {"x": np.zeros(3)})
    assert checkpoints.average(9) == [10, 20, 30]
    told = "is passed over: it holds step 10, not the one in its name"
    assert caplog.messages == [f"{copy} {told}" for copy in copies]


def test_only_checkpoints_of_one_run_are_averaged(checkpoints, folder: Path, caplog) -> None:
    for step in (10, 20, 30, 40, 50):
        save(checkpoints, step)
    (folder / "00000020/tokenizer.model").write_bytes(b"others")
    for step, run in ((10, "theirs"), (30, "ours"), (50, "ours")):  # 40: of an earlier version, which saved no run
        path = folder / f"{step:08d}/progress.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "run": run}))
    for step in (10, 20, 30, 50):
        seal(folder / f"{step:08d}")
    assert checkpoints.average(2) == [40, 50]
    assert caplog.messages == []
    assert checkpoints.average(9) == checkpoints.at("average").progress["averaged_steps"] == [30, 40, 50]
    assert caplog.messages == [
        f"{folder}: left out, as their run or tokenizer is not that of 00000050: 00000020, 00000010"
    ]


@pytest.mark.parametrize(
    ("at", "after", "counts"),
    [
        ("seal", False, [10, 20]),
        ("seal", True, [10, 20]),
        ("remove", False, [10, 20]),
        ("remove", True, [20, 30]),
    ],
)
def test_one_average_counts_at_each_moment(checkpoints, folder: Path, caplog, at: str, after: bool, counts) -> None:
    for step in (10, 20):
        save(checkpoints, step, 1.0)
    checkpoints.average(2)
    save(checkpoints, 30, 1.0)
    with broken_off(checkpoints, at, after=after), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "wait", lambda: None)
        checkpoints.average(2)
    checkpoints = Checkpoints(folder.parent)
    assert checkpoints.choose() == "average"
    assert checkpoints.at("average").progress["averaged_steps"] == counts
    assert checkpoints.at("average").damage() is None
    checkpoints.at("average").params()
    caplog.clear()
    assert checkpoints.average(3) == [10, 20, 30]
    assert checkpoints.at("average").progress["averaged_steps"] == [10, 20, 30]
    assert leftovers(folder.parent) == []
    assert caplog.messages == []


def test_who_reads_while_an_average_is_made_anew_reads_one_of_the_two(checkpoints, folder: Path) -> None:
    for step in (10, 20):
        save(checkpoints, step)
    checkpoints.average(1)
    reader, found = Checkpoints(folder.parent), []

    def read(opened: Checkpoint) -> tuple[list[int], Any]:
        steps = opened.progress["averaged_steps"]
        if not found:
            checkpoints.average(2)
        found.append(steps)
        return steps, opened.params()

    steps, params = reader.read(None, read)
    assert found == [[20], [10, 20]]
    assert steps == [10, 20]
    assert equal(params, checkpoints.at("average").params())


def test_half_a_copy_of_an_average_is_kept(checkpoints, folder: Path) -> None:
    save(checkpoints, 10)
    checkpoints.average(1)
    (folder / "average/manifest.json").unlink()
    checkpoints.average(1)
    assert checkpoints.at("average").damage() is None
    assert leftovers(folder.parent) == ["checkpoints/average.damaged"]


def test_the_average_is_not_trained_on(checkpoints) -> None:
    save(checkpoints, 10)
    made = save(checkpoints, 20)
    checkpoints.average(2)
    assert checkpoints.steps() == [10, 20]
    assert equal(resumed(checkpoints)[0], made)
    with pytest.raises(UserError, match="average cannot be restored"):  # it has no optimiser
        items = {"params": made.params, "optimizer": made.optimizer}
        checkpoints.at("average").restore(jax.eval_shape(lambda: items))


def test_checkpoints_of_other_shapes_are_not_averaged(checkpoints, folder: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint to average"):
        checkpoints.average(2)
    save(checkpoints, 10)
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, d_ff=16))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), build(other.model.with_vocabulary(20)).abstract_params)
    others = {**FILES, "config.json": to_json(other).encode()}
    checkpoints.save(20, {"params": params}, progress={"step": 20, "vocab_size": 20}, files=others)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"checkpoints 10 and 20 of .* hold models of different shapes"):
        checkpoints.average(2)
    assert not (folder / "average").exists()
    flip(max(files(folder / "00000010/state"), key=lambda path: path.stat().st_size))
    with pytest.raises(UserError, match="damaged"):
        checkpoints.average(2)


# ---- Readers, and runs that go on -----------------------------------------------------------------------------------


def test_what_is_removed_while_it_is_read_is_chosen_anew(checkpoints, folder: Path) -> None:
    save(checkpoints, 10)
    reader, found, steps = Checkpoints(folder.parent), [], itertools.count(20)

    def read(opened: Checkpoint) -> tuple[int | str, Any]:
        if len(found) < 2:
            save(checkpoints, next(steps), keep_last=1)
        found.append(opened.name)
        return opened.name, opened.config, opened.params()

    assert reader.read("last", read)[0] == 21
    assert found == [10, 20, 21]
    found.clear()
    with pytest.raises(UserError, match="--checkpoint 21: not in"):  # requested by its step
        reader.read(21, read)
    # The mean of the existing checkpoints.
    params, gone = Checkpoint.params, []

    def slow(self: Checkpoint) -> Any:
        if not gone:
            gone.append(save(checkpoints, 40, keep_last=1))
        return params(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "params", slow)
        assert reader.average(5) == [40]


def test_files_may_lie_elsewhere_as_many_as_they_were() -> None:
    def refused(**new: Any) -> list[str]:
        old = DataConfig(source=("a.en", "b.en"), target=("a.de", "b.de"), weights=(1.0, 2.0), dev_source="dev.tsv")
        return list(conflicts(Config(data=old), Config(data=dataclasses.replace(old, **new))))

    assert refused(source=("/x/a", "/x/b"), target=("/y/a", "/y/b"), dev_source="/x/dev.tsv", tfds_dir="/x") == []
    assert refused(source=("a.en",), target=("a.de",), weights=(1.0,)) == ["data.source", "data.target", "data.weights"]
    assert refused(weights=(2.0, 1.0)) == ["data.weights"]
    assert refused(dev_source=None) == ["data.dev_source"]
    assert refused(dev_target="dev.de") == ["data.dev_target"]
    assert refused(test_source="test.tsv", fields=("a", "b")) == ["data.fields", "data.test_source"]


# ---- In Python ------------------------------------------------------------------------------------------------------


def test_load_gives_a_pure_function_and_a_nested_dict(checkpoints, folder: Path) -> None:
    import transformer

    save(checkpoints, 10, 2.0)
    made = save(checkpoints, 20, 1.0)
    model, params = transformer.load(str(folder.parent), "last")
    assert equal(params, made.params)
    assert isinstance(params, dict)
    assert params["decoder"]["layers"]["0"]["cross_attention"]["query"].shape == (8, 2, 4)
    source_BS, target_BT = np.array([[5, 6, 2, 0]]), np.array([[1, 7, 8]])
    logits_BTV = jit(model.apply)(params, source_BS, target_BT)
    assert logits_BTV.shape == (1, 3, 20)
    with_dropout_BTV = jit(lambda *given: model.apply(*given, key=jax.random.key(0)))(params, source_BS, target_BT)
    assert not equal(logits_BTV, with_dropout_BTV)
    assert equal(transformer.load(str(folder.parent), 20)[1], params)
    _, best = transformer.load(str(folder.parent))
    assert not equal(best, params)
    assert equal(best, checkpoints.at(10).params())
    with pytest.raises(UserError, match="no complete checkpoint"):
        transformer.load(str(folder.parent / "elsewhere"))
