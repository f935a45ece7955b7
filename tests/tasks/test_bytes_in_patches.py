"""Byte Latent Transformers: trained with another run's entropies, resumed, evaluated, generated with; mistakes told."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from quick import jit

from transformer.checkpoint import Checkpoints
from transformer.command_line import config_file
from transformer.config import LanguageModelConfig, ModelConfig, PatchConfig, TextConfig, UserError
from transformer.data.vocabularies import Bytes
from transformer.inference.attention import of_text
from transformer.inference.generator import Generator
from transformer.model import build
from transformer.tasks import byte_latent
from transformer.tasks.byte_latent import ByteLatentTask, chosen, entropies_of_rows, mean_bytes
from transformer.tasks.vocabulary import files_of
from transformer.tools.new_workdir import new_workdir

ROOT = Path(__file__).parents[2]
TOY = {
    **{"model.d_model": 16, "model.d_ff": 24, "model.heads": 2, "model.decoder_layers": 1},
    **{"data.context": 24, "train.batch_tokens": 96, "train.warmup_steps": 2, "train.peak_learning_rate": 0.01},
    **{"train.steps": 6, "train.eval_every": 6, "train.checkpoint_every": 3, "train.log_every": 3},
    **{"decode.max_extra_length": 4, "train.decay_steps": 10},
}
OF_PATCHES = {
    **{"model.latent.d_model": 32, "model.latent.d_ff": 32, "model.latent.heads": 2, "model.latent.decoder_layers": 1},
    **{"model.ngrams.rows": 50, "model.patches.bytes": 3.0, "entropy.rows": 16},
}


def options(name: str, workdir: Path, **more) -> list[str]:
    fields = TOY | (OF_PATCHES if name.startswith("blt") else {}) | more
    return ["--config", f"configs/{name}.py", "--workdir", str(workdir), *(f"--{k}={v}" for k, v in fields.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a text, and a run of bytes with random parameters in `entropies`."""
    folder, draw = tmp_path_factory.mktemp("bytes"), np.random.default_rng(0)
    words = ["wolf", "sheep", "grass", "river", "stone", "Öl"]
    (folder / "tiny_shakespeare").mkdir()
    lines = [" ".join(draw.choice(words, 4)) for _ in range(60)]
    (folder / "tiny_shakespeare" / "input.txt").write_text("\n".join(lines) + "\n")
    sizes = {"decoder_layers": 1, "d_model": 8, "d_ff": 12, "heads": 2, "positions": "rotary", "vocab_size": 260}
    config = LanguageModelConfig(ModelConfig(encoder_layers=0, **sizes), TextConfig(pieces="bytes", context=24))
    params = jax.tree.map(lambda x: draw.normal(size=x.shape).astype("f") * 0.4, build(config.model).abstract_params)
    progress = {"step": 7, "vocab_size": 260, "averaged_steps": [7]}
    new_workdir(str(folder / "entropies"), params, config, progress=progress, files=files_of(Bytes()))
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TRANSFORMER_DATA", str(folder))
    monkeypatch.chdir(ROOT)
    return folder


@pytest.fixture(scope="module")
def task(folder: Path) -> ByteLatentTask:
    """The task of a new run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_DATA", str(folder))
        config = config_file(str(ROOT / "configs" / "blt_shakespeare.py"))
    sizes = {"d_model": 16, "d_ff": 24, "heads": 2, "decoder_layers": 1}
    model = dataclasses.replace(
        config.model,
        **sizes,
        latent=dataclasses.replace(config.model.latent, **sizes | {"d_model": 32}),
        patches=PatchConfig(bytes=3.0),
        ngrams=dataclasses.replace(config.model.ngrams, rows=50),
    )
    entropy = dataclasses.replace(config.entropy, init_from=str(folder / "entropies"), rows=40)
    data, train = dataclasses.replace(config.data, context=24), dataclasses.replace(config.train, batch_tokens=96)
    return ByteLatentTask.build(dataclasses.replace(config, model=model, entropy=entropy, data=data, train=train))


def test_a_new_run_takes_the_entropies_and_chooses_the_threshold(task: ByteLatentTask, folder: Path) -> None:
    model, start = task.config.model, Checkpoints(folder / "entropies").open()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(task.objective.init, jax.random.key(0)))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), task.objective.model.abstract_params)
    assert model.entropy == start.config.model
    entropy_BT = entropies_of_rows(task.config, start.params(), task._train)
    assert entropy_BT.shape == (40, 24)
    assert mean_bytes(model.patches, entropy_BT, model.patches.threshold) == pytest.approx(3.0, rel=0.05)
    assert list(task.describe())[-1].startswith("patches     3 bytes on average, a byte begins one above ")
    rate = task.objective.rate
    assert (rate("entropy/embedding/table"), rate("embedding/table")) == (0.0, 1.0)
    assert task.objective.flops({"text": (8, 24)}) == 2 * task.objective.flops({"text": (4, 24)}) > 1e6


def test_a_mean_that_no_threshold_gives_is_told(task: ByteLatentTask, monkeypatch, caplog) -> None:
    """The entropies are 0, 1, 2, ...: a threshold below them all cuts after each byte."""
    monkeypatch.setattr(byte_latent, "entropies_of_rows", lambda *_: np.arange(48.0).reshape(2, 24).astype("f"))

    def of_mean(length: float) -> float:
        patches = PatchConfig(bytes=length, room=1.0, spare=0)
        model = dataclasses.replace(task.config.model, patches=patches)
        return chosen(dataclasses.replace(task.config, model=model), {}, task._train)

    assert of_mean(1.0) < 0 and not caplog.messages
    assert of_mean(100.0) > 46
    assert caplog.messages == ["model.patches.bytes = 100: no threshold gives that mean; the nearest gives 24.000"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"entropy.init_from": None}, "entropy.init_from = None: name the workdir of a language model of bytes"),
        ({"entropy.init_from": "nowhere"}, "nowhere"),
        ({"data.pieces": "characters"}, "data.pieces = 'characters': must be 'bytes': patches are cut from bytes"),
        ({"data.documents": "files"}, "data.documents = 'files': must be 'none': patches are cut from a running text"),
        ({"model.latent.d_model": 24}, "model.latent.d_model = 24: must be a multiple of model.d_model (16)"),
        ({"train.batch_tokens": 8}, "train.batch_tokens = 8: must hold at least one row of data.context (24)"),
        ({"train.init_from": "{folder}/entropies"}, "its task is 'language_model'; give one of the task 'byte_latent'"),
    ],
)
def test_mistakes_are_one_line(here: Path, tmp_path: Path, call, changes: dict, told: str) -> None:
    changes = {name: str(value).format(folder=here) for name, value in changes.items()}
    changes = {"entropy.init_from": str(here / "entropies"), **changes}
    done = call("train.py", *options("blt_shakespeare", tmp_path / "run", **changes))
    assert done.code == 2 and told in done.err.splitlines()[-1], done.err
    assert "Traceback" not in done.err and not (tmp_path / "run" / "checkpoints").exists()


def test_the_config_is_described(call) -> None:
    ngrams = ("--model.ngrams.rows", "50")
    done = call("transformer", "describe", "--config", ROOT / "configs" / "blt_shakespeare.py", *ngrams)
    assert done.code == 0, done.err
    assert "entropy/decoder/layers/*/self_attention/query" in done.out and "ngram_embedding/table" in done.out
    done = call("transformer", "describe", "--config", ROOT / "configs" / "blt_shakespeare.py", "--attention")
    assert done.code == 2 and "its task is 'byte_latent'" in done.err


# ---- Whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The workdir of a run that was stopped after 3 updates and went on without the run of its entropies."""
    from transformer.jobs import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_DATA", str(folder))
        patch.chdir(ROOT)
        train(
            options(
                "blt_shakespeare", folder / "run", **{"entropy.init_from": folder / "entropies"}, **{"train.steps": 3}
            )
        )
        train(options("blt_shakespeare", folder / "run"))
    return folder / "run"


@pytest.mark.slow
def test_a_run_that_was_stopped_equals_one_that_was_not(run: Path, here: Path, tmp_path: Path, call) -> None:
    more = {"entropy.init_from": str(here / "entropies")}
    assert call("train.py", *options("blt_shakespeare", tmp_path / "straight", **more)).code == 0
    ours, theirs = (Checkpoints(workdir).open("last") for workdir in (run, tmp_path / "straight"))
    assert ours.name == theirs.name == 6 and ours.config.model == theirs.config.model
    jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())
    first, start = Checkpoints(run).open("3"), Checkpoints(here / "entropies").open()
    jax.tree.map(np.testing.assert_array_equal, ours.params()["entropy"], start.params())
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), first.params(), ours.params())
    assert all(jax.tree.leaves({name: one for name, one in changed.items() if name != "entropy"}))


@pytest.mark.slow
def test_evaluation_and_the_log_agree_in_a_moved_workdir(run: Path, tmp_path: Path, call) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    done = call("evaluate.py", "--workdir", moved, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (dev,) = [one["dev_bits_per_byte"] for one in entries if one["step"] == 6 and "dev_bits_per_byte" in one]
    assert result["bits_per_byte"] == pytest.approx(dev, rel=1e-4)
    assert result["tokens"] == result["bytes"] and result["bits_per_byte"] < math.log2(260)


@pytest.mark.slow
def test_generation_cuts_patches_as_evaluation_does(run: Path, call) -> None:
    """The log-probability of a text that was generated byte by byte is that of a whole pass."""
    done = call("transformer", "generate", run, "--prompt", "wolf sh", "--samples", "2", "--jsonl")
    assert done.code == 0 and len(done.out.splitlines()) == 2, done.err
    ours, opened = Generator.load(str(run)), Checkpoints(run).open()
    ((found,),) = ours.with_config(dataclasses.replace(ours.config, max_extra_length=14)).generate_n_best(["wolf sh"])
    prompt = ours.vocabulary.encode("wolf sh").tolist()
    tokens = np.array([[*prompt, *found.tokens]], np.int32)
    log_probs = jax.nn.log_softmax(jit(opened.model.apply)(opened.params(), tokens))[0]
    at = np.arange(len(prompt) - 1, tokens.shape[1] - 1)
    total = float(log_probs[at, tokens[0, at + 1]].sum())
    ended = 0.0 if len(found.tokens) == 14 else float(log_probs[-1, ours.vocabulary.end])
    assert found.log_prob == pytest.approx(total + ended, rel=1e-3)
    with pytest.raises(UserError, match="bytes in patches"):
        of_text(ours, "wolf")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["attention", "page", "export"])
def test_what_has_no_such_models_says_so(run: Path, tmp_path: Path, call, verb: str) -> None:
    more = {
        "attention": [run, "a", "--output", tmp_path / "a.html"],
        "page": [run],
        "export": [run, tmp_path / "out", "--to", "jax"],
    }
    done = call("transformer", verb, *more[verb])
    assert done.code == 2 and "'byte_latent'" in done.err.splitlines()[-1], done.err


@pytest.mark.slow
def test_the_whole_way_of_a_run(run: Path, here: Path, tmp_path: Path, call) -> None:
    """Average, safetensors out and in, a start from another run, static patches, a dry run, micro-batches."""
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    assert call("transformer", "average", workdir, "--last", "2").code == 0
    assert call("transformer", "export", workdir, tmp_path / "out", "--to", "safetensors").code == 0
    assert call("transformer", "import", tmp_path / "out", tmp_path / "again", "--from", "safetensors").code == 0
    one, other = Checkpoints(workdir).open(), Checkpoints(tmp_path / "again").open()
    jax.tree.map(np.testing.assert_array_equal, one.params(), other.params())
    more = {"train.init_from": str(workdir), "train.accumulate": 2}
    done = call("train.py", *options("blt_shakespeare", tmp_path / "tuned", **more))
    assert done.code == 0, done.err
    tuned = Checkpoints(tmp_path / "tuned").open("last")
    assert tuned.config.model == one.config.model
    done = call("train.py", *options("blt_shakespeare", tmp_path / "longer", **more, **{"model.patches.bytes": 9.0}))
    assert done.code == 2 and "error: model.patches.bytes = 9: the start has 3, and a threshold for it" in done.err
    jax.tree.map(np.testing.assert_array_equal, tuned.params()["entropy"], one.params()["entropy"])
    assert call("train.py", *options("blt_static_shakespeare", tmp_path / "static")).code == 0
    assert "entropy" not in Checkpoints(tmp_path / "static").open().params()
    done = call("train.py", *options("blt_static_shakespeare", tmp_path / "dry"), "--dry-run")
    assert done.code == 0 and not (tmp_path / "dry").exists(), done.err
    assert call("transformer", "generate", tmp_path / "static", "--prompt", "wolf").code == 0


@pytest.mark.slow
def test_several_devices_train_as_one_does(here: Path, tmp_path: Path, environment) -> None:
    """Rows over two devices, parameters over two."""
    scores = []
    for count, mesh in ((1, ()), (4, ("--mesh.data=2", "--mesh.fsdp=2"))):
        more = {"entropy.init_from": here / "entropies", "train.batch_tokens": 192}
        arguments = ["train.py", *options("blt_shakespeare", tmp_path / str(count), **more), *mesh]
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        with_data = {**environment, "TRANSFORMER_DATA": str(here), "XLA_FLAGS": flags}
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=with_data, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        entries = [json.loads(line) for line in (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines()]
        scores.append(next(one["dev_loss"] for one in entries if "dev_loss" in one))
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
