"""What a training run leaves, to be compared bit for bit with what another one left."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import jax
import numpy as np

from transformer.checkpoint import Checkpoints
from transformer.config import MeshConfig
from transformer.training.objectives import sequences
from transformer.training.sharding import make_mesh
from transformer.training.start import restore
from transformer.training.step import program

CLOCK = ("time", "tokens_per_second")  # entries of the log that depend on it
FILES = ("config.json", "tokenizer.model", "tokenizer.sha256", "sets/dev.source", "sets/sets.json")


def entries(workdir: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def scalars(workdir: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all TensorBoard files, in the order that they stand there."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def state(workdir: Path, step: int) -> list[np.ndarray]:
    """All numbers of the newest checkpoint, which is that of `step`: parameters and optimiser."""
    checkpoints = Checkpoints(workdir)
    config = checkpoints.at(step).config
    objective = sequences(checkpoints.at(step).model, config.train)
    made = program(objective, config.train, make_mesh(MeshConfig(), jax.devices()[:1]))
    restored, progress = restore(checkpoints, made.abstract)
    assert progress["step"] == step == int(restored.step)
    return [np.asarray(x) for x in jax.tree.leaves(restored)]


def same_run(ours: Path, straight: Path) -> None:
    """Assert that they have the same checkpoints, logs and files, bit for bit, but for times and rates."""
    one, other = Checkpoints(ours), Checkpoints(straight)
    steps = other.steps()
    assert one.states() == other.states() == steps
    for step in steps:
        assert {**one.at(step).progress, "run": None} == {**other.at(step).progress, "run": None}
    for a, b in zip(state(ours, steps[-1]), state(straight, steps[-1]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert entries(ours) == entries(straight)
    plotted = [[scalar for scalar in scalars(run) if scalar[1] not in CLOCK] for run in (ours, straight)]
    assert plotted[0] == plotted[1]
    for name in FILES:
        assert (ours / name).read_bytes() == (straight / name).read_bytes()


def leftovers(workdir: Path) -> list[str]:
    """What there is in a workdir beyond its own files and complete checkpoints, as of saves that did not end."""
    found = [str(path.relative_to(workdir)) for path in workdir.rglob("*.tmp")]
    for path in sorted((workdir / "checkpoints").iterdir()):
        number = path.name.removesuffix(".interrupted")
        if not (number.isdecimal() or path.name == "average") or not (path / "manifest.json").exists():
            found.append(f"checkpoints/{path.name}")
            continue
        listed = {"manifest.json", *json.loads((path / "manifest.json").read_text())}
        files = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        found += [f"checkpoints/{path.name}/{file}" for file in files if file not in listed]
    return found


def average(call, workdir: Path, steps: list[int]) -> tuple[list[str], dict]:
    """Average the last checkpoints, which have these steps, by `python -m transformer average`.

    The arrays are the means, and evaluate.py takes them. Returns the lines about scores, and the result of evaluate.py.
    """
    done = call("transformer", "average", workdir, "--last", len(steps))
    assert done.code == 0, done.err
    first, *lines = done.out.splitlines()
    assert first == f"averaged {len(steps)} checkpoints: {', '.join(map(str, steps))}"
    checkpoints = Checkpoints(workdir)
    each = [jax.tree.leaves(checkpoints.at(step).params()) for step in steps]
    for ours, *theirs in zip(jax.tree.leaves(checkpoints.open().params()), *each, strict=True):
        np.testing.assert_allclose(ours, np.mean(theirs, axis=0, dtype=np.float64), rtol=1e-6)
    result = json.loads(call("evaluate.py", "--workdir", workdir, "--json").out)
    assert result["checkpoint"] == "average" and result.get("averaged_steps", steps) == steps
    return lines, result
