"""`export --to safetensors` and `import --from safetensors`: the same bits; a changed folder is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hf_cases import flat, same_bits
from small_runs import LINES, labelled_run, language_run, masked_run, run_readme, translation_run

import transformer
from transformer.checkpoint import Checkpoints
from transformer.data.labels import Labels
from transformer.data.vocabularies import Characters

pytest.importorskip("safetensors", reason="needs safetensors")
LABELS = Labels("classes", "accuracy", ("bad", "good"), "bad", pairs=False)
RUNS = {
    "translation": translation_run,
    "language model": lambda folder: language_run(folder, Characters("".join(LINES))),
    "masked": lambda folder: masked_run(folder, "pretraining"),
    "labels": lambda folder: labelled_run(folder, LABELS),
}


def run(call, *arguments) -> str:
    done = call("transformer", *arguments)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize("task", RUNS)
def test_out_and_in_gives_the_same_bits(task: str, call, tmp_path: Path) -> None:
    workdir, folder, again = RUNS[task](tmp_path / "run"), tmp_path / "out", tmp_path / "again"
    assert run(call, "export", workdir, folder, "--to", "safetensors") == f"{folder}\n"
    assert run(call, "import", folder, again, "--from", "safetensors") == f"{again}\n"
    one, other = Checkpoints(workdir).open(), Checkpoints(again).open()
    same_bits(flat(one.params()), flat(other.params()))
    assert one.config == other.config and one.files() == other.files()
    assert {**one.progress, "trainable": False} == {**other.progress, "trainable": False}


@pytest.mark.slow
def test_a_trained_run_goes_on_from_it(call, trained: Path, tiny, tmp_path: Path) -> None:
    """Translated with, and the start of a run; what Hugging Face's importers keep is kept."""
    folder, again = tmp_path / "out", tmp_path / "again"
    run(call, "export", trained, folder, "--to", "safetensors", "--checkpoint", "last")
    run(call, "import", folder, again, "--from", "safetensors")
    assert Checkpoints(again).open().progress["averaged_steps"] == [120]
    lines = (tiny.folder / "test.en").read_text().splitlines()[:5]
    mine, theirs = (
        transformer.Translator.load(str(one), "last" if one is trained else None) for one in (trained, again)
    )
    assert mine.translate(lines) == theirs.translate(lines)
    start = ("--train.init_from", again, "--train.steps", 2, "--train.eval_every", 2, "--train.checkpoint_every", 2)
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "tuned", *start)
    assert done.code == 0 and Checkpoints(tmp_path / "tuned").steps() == [2], done.err


@pytest.mark.slow
def test_the_readme_of_the_folder_runs(tmp_path: Path, call, monkeypatch) -> None:
    workdir = translation_run(tmp_path / "run")
    run(call, "export", workdir, tmp_path / "out", "--to", "safetensors")
    names = run_readme(tmp_path / "out", monkeypatch)
    model, params = transformer.load(str(workdir))
    same_bits({name: np.asarray(x) for name, x in names["params"].items()}, flat(params))
    source_BS, target_BT = np.array([[7, 5, 2]]), np.array([[1, 9]])
    logits = [model.apply(each, source_BS, target_BT) for each in (params, names["nested"])]
    assert np.array_equal(*logits)


def changed(folder: Path, name: str, old: bytes, new: bytes) -> None:
    content = (folder / name).read_bytes()
    assert old in content
    (folder / name).write_bytes(content.replace(old, new))


def without_the_header(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})


def with_other_arrays(folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(folder / "model.safetensors", "np") as file:
        metadata = file.metadata()
    arrays = load_file(folder / "model.safetensors")
    arrays["surplus"] = np.zeros(3, np.float32)
    arrays["embedding/table"] = arrays["embedding/table"][:, :3].copy()
    del arrays["decoder/layers/0/feed_forward/b1"]
    save_file(arrays, folder / "model.safetensors", metadata=metadata)


def with_a_path(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    metadata = {"format": "transformer", "files": json.dumps({"../run/config.json": "0" * 64})}
    save_file(arrays, folder / "model.safetensors", metadata=metadata)


def with_another_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def with_other(name: str, **values) -> Callable[[Path], None]:
    """A change of a JSON file, or of the name of a file, with the right digests."""

    def change(folder: Path) -> None:
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        content = json.dumps({**json.loads((folder / "progress.json").read_text()), **values}).encode()
        (folder / "progress.json").write_bytes(content)
        with safe_open(folder / "model.safetensors", "np") as file:
            metadata = file.metadata()
        files = json.loads(metadata["files"]) | {name: hashlib.sha256(content).hexdigest()}
        metadata["files"] = json.dumps(files)
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata=metadata)

    return change


BROKEN = {
    "config.json: not as it was written; copy the folder again": lambda folder: changed(
        *(folder, "config.json", b'"heads": 4', b'"heads": 2')
    ),
    "tokenizer.model: not as it was written; copy the folder again": lambda folder: changed(
        *(folder, "tokenizer.model", b"<pad>", b"<bad>")
    ),
    "tokenizer.sha256: missing; copy the folder again": lambda folder: (folder / "tokenizer.sha256").unlink(),
    "holds no model.safetensors; give the folder that export --to safetensors wrote": lambda folder: (
        folder / "model.safetensors"
    ).unlink(),
    "not written by export --to safetensors, but with format = 'pt'; give another --from": without_the_header,
    "model.safetensors: a zip archive, not a safetensors file; unpack it first": lambda folder: (
        folder / "model.safetensors"
    ).write_bytes(b"PK\3\4" + bytes(99)),
    "model.safetensors: not a safetensors file, or a damaged one (": lambda folder: (
        folder / "model.safetensors"
    ).write_bytes(b""),
    "missing decoder/layers/0/feed_forward/b1; unknown surplus; embedding/table has shape": with_other_arrays,
    "'files' in its header names '../run/config.json'": with_a_path,
    "'files' in its header names ''": with_other(""),
    "model.safetensors: its numbers are not as they were written; copy the folder again": with_another_bit,
    "progress.json: step = '7': must be a whole number; vocab_size = None: must": with_other(
        "progress.json", step="7", vocab_size=None
    ),
    "progress.json: averaged_steps = True: must be a whole number": with_other(
        "progress.json", averaged_steps=[True, 7]
    ),
    "config.json: model.vocab_size = 3: must be at least 4": with_other("progress.json", vocab_size=3),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_changed_folder_is_refused(message: str, call, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(call, "export", translation_run(tmp_path / "run"), folder, "--to", "safetensors")
    BROKEN[message](folder)
    done = call("transformer", "import", folder, tmp_path / "again", "--from", "safetensors")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err and not (tmp_path / "again").exists()


def test_what_is_no_such_folder_is_refused(call, tmp_path: Path) -> None:
    done = call("transformer", "import", tmp_path / "none", tmp_path / "again", "--from", "safetensors")
    assert (done.code, done.err.count("\n")) == (2, 1) and "no such folder" in done.err
    (tmp_path / "jax").mkdir()
    done = call("transformer", "import", tmp_path / "jax", tmp_path / "again", "--from", "safetensors")
    assert done.err.endswith("holds no config.json; give the folder that export --to safetensors wrote\n")
    run(call, "export", translation_run(tmp_path / "started"), tmp_path / "ours", "--to", "safetensors")
    done = call("transformer", "import", tmp_path / "ours", tmp_path / "again", "--from", "hf-bert")
    assert (done.code, done.err.count("\n")) == (2, 1) and "give --from safetensors, if export --to" in done.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    workdir = translation_run(tmp_path / "run")
    done = call("transformer", "export", workdir, tmp_path / "full", "--to", "safetensors")
    assert (done.code, "is not an empty folder" in done.err) == (2, True)


def test_a_folder_that_is_to_be_imported_first_is_told(call, tiny, tmp_path: Path) -> None:
    """It is no workdir, and stays as it is."""
    folder = tmp_path / "out"
    run(call, "export", translation_run(tmp_path / "run"), folder, "--to", "safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = call("transformer", "translate", folder)
    fix = f"import it: python -m transformer import {folder} NEW --from safetensors"
    assert (done.code, done.err) == (
        2,
        f"error: {folder}: no complete checkpoint there; it holds an exported model; {fix}\n",
    )
    done = call("train.py", "--config", tiny.config, "--workdir", folder)
    assert done.code == 2 and f"error: {folder} holds an exported model; use another --workdir. To start" in done.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert call("transformer", "embed", folder).err.endswith("NEW --from hf-bert\n")


def test_a_full_disk_leaves_nothing(call, trained: Path, tmp_path: Path, full_after) -> None:
    with full_after(20_000):
        done = call("transformer", "export", trained, tmp_path / "out", "--to", "safetensors")
    assert done.code == 2 and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
