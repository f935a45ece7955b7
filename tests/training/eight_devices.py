"""Ten updates and a search on meshes of 1 and 8 virtual devices. test_step.py runs it in a separate process.

python eight_devices.py FOLDER MESH MICRO-BATCHES [MESH MICRO-BATCHES ...]: writes FOLDER/results.json, and a checkpoint
of the last case there. A mesh is given as 2x4x1 (data, fsdp, tensor), or as 2x4x1-remat, -packing, -bfloat16 or
-untied (three tables, and learned positions).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

from transformer.checkpoint import Checkpoints
from transformer.config import Config, DataConfig, DecodeConfig, MeshConfig, ModelConfig, TrainConfig
from transformer.inference.translator import Translator
from transformer.model import build
from transformer.training.objectives import sequences
from transformer.training.sharding import batch_sharding, bytes_on_a_device, make_mesh
from transformer.training.start import restore
from transformer.training.step import TrainState, bytes_needed, cut, program
from transformer.training.task import Objective

MODEL = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=32, d_ff=32, heads=8, dropout=0.1)
TRAIN = TrainConfig(warmup_steps=20, peak_learning_rate=0.002, seed=3)
VOCABULARY, UPDATES = 48, 10
# By the number of micro-batches. 8 does not divide the first; in the second, some devices get only padding.
ROWS = {1: 13, 2: 22}


def objective(variant: str = "") -> Objective:
    """The model and loss of training."""
    config = Config(
        model=dataclasses.replace(
            MODEL,
            dtype="bfloat16" if variant == "bfloat16" else "float32",
            **{"tied_embeddings": "none", "positions": "learned"} if variant == "untied" else {},
        ),
        data=DataConfig(packing=variant == "packing"),
        train=dataclasses.replace(TRAIN, remat=variant == "remat"),
    )
    return sequences(build(config.model.with_vocabulary(VOCABULARY)), config.train, packing=config.data.packing)


def batches(accumulate: int, variant: str = "") -> list[dict[str, np.ndarray]]:
    """A batch for each update: sentences of 2 to 9 pieces, packed two to a row."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(UPDATES + 2):
        batch = {}
        for side, width in (("source", 10), ("target", 10)):
            ids = rng.integers(4, VOCABULARY, (ROWS[accumulate], width)).astype(np.int32)
            lengths = rng.integers(2, width, len(ids))
            ids[np.arange(width) > lengths[:, None]] = 0
            ids[np.arange(len(ids)), lengths] = 2
            if variant == "packing":
                further = np.roll(ids, 1, axis=0)
                ids = np.pad(ids, ((0, 0), (0, width)))
                for row, second, end in zip(ids, further, lengths + 1, strict=True):
                    row[end : end + width] = second
            batch[side] = ids
        made.append(batch)
    return made


class Run:
    """Updates on one mesh."""

    def __init__(self, mesh: jax.sharding.Mesh, accumulate: int, variant: str = ""):
        self.mesh, self.accumulate, self.objective = mesh, accumulate, objective(variant)
        made = program(self.objective, TRAIN, mesh)
        self.abstract, self.start = made.abstract, made.init
        self.layout = jax.tree.map(lambda x: x.sharding, made.abstract)
        shapes = {name: array.shape for name, array in batches(accumulate, variant)[0].items()}
        self.update = made.compile(shapes, accumulate)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return jax.device_put(cut(batch, self.mesh, self.accumulate), batch_sharding(self.mesh, micro_batches=True))

    def train(self, state: TrainState, some: list[dict[str, np.ndarray]]) -> tuple[TrainState, list[float]]:
        losses = []
        for batch in some:
            state, metrics = self.update(state, self.put(batch))
            losses.append(float(metrics["loss"]))
        return state, losses


def decoded(params: dict, variant: str) -> list[tuple[list[int], float]]:
    """(pieces, score) of the best translation of each sentence, searched for on the devices of the parameters."""
    rows = [row for batch in batches(1) for row in batch["source"]]
    model = objective(variant if variant == "untied" else "").model
    translator = Translator(model, params, None, DecodeConfig(beam_size=4, max_extra_length=6, max_source_length=64))
    found = dict(translator.search([row[: row.tolist().index(2)].tolist() for row in rows]))
    return [(found[i][0][0], found[i][1][0]) for i in range(len(rows))]


def gradients(state: TrainState) -> dict:
    """The gradients of the first update, computed from Adam's first moment after it."""
    return jax.tree.map(lambda m: np.asarray(m) / (1 - TRAIN.adam_b1), state.optimizer[0].mu)


def farthest(ours: dict, theirs: dict) -> float:
    """The largest distance between two tensors, relative to the norm of the second."""
    distances = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), ours, theirs)
    return max(jax.tree.leaves(distances))


def table_sums(run: Run) -> int:
    """How many arrays of the shape of the embedding table, cut along D or not, an update sums over devices."""
    rows, D = VOCABULARY // run.mesh.shape["tensor"], MODEL.d_model
    sums = re.findall(r"= (.*) (?:all-reduce|reduce-scatter)(?:-start)?\(", run.update.as_text())
    return len(re.findall(rf"\[(?:1,)?{rows},(?:{D}|{D // run.mesh.shape['fsdp']})\]", " ".join(sums)))


def digest(state: TrainState) -> str:
    """A digest that is the same for states that are equal bit for bit."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest()


def main(folder: Path, cases: list[tuple[str, int]]) -> None:
    devices, results = jax.devices(), {"devices": len(jax.devices())}
    singles: dict[tuple[int, str], Run] = {}
    for name, accumulate in cases:
        sizes, _, variant = name.partition("-")
        some, case = batches(accumulate, variant), (accumulate, variant)
        if case not in singles:
            single = singles[case] = Run(make_mesh(MeshConfig(), devices[:1]), accumulate, variant)
            start = single.start()
            begun = digest(start)
            state, expected = single.train(start, some[:1])
            reference = gradients(state)
            state, more = single.train(state, some[1:UPDATES])
            expected += more
            if "decoded on 1" not in results:
                learned = jax.tree.map(np.asarray, state.params)
                results["decoded on 1"] = decoded(jax.device_put(learned, single.layout.params), variant)
        run = Run(make_mesh(MeshConfig(*map(int, sizes.split("x"))), devices), accumulate, variant)
        start = run.start()
        same = digest(start) == begun
        state, losses = run.train(start, some[:1])
        shares = [x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(state) if x.ndim > 1]
        result = results[f"{name} {accumulate}"] = {
            "same start": same,
            "gradients": farthest(gradients(state), reference),
            "devices": min(len(x.sharding.device_set) for x in jax.tree.leaves(state)),
            "largest share": max(shares),
            "table sums": table_sums(run),
            "axes": sum(run.mesh.shape[axis] > 1 for axis in ("data", "fsdp")),
            "expected": expected,
            "decoded": decoded(jax.device_put(learned, run.layout.params), variant),
        }
        batch = sum(x.addressable_shards[0].data.nbytes for x in run.put(some[0]).values())
        result["planned"] = bytes_on_a_device(run.abstract) + batch
        result["arguments"] = run.update.memory_analysis().argument_size_in_bytes
        result["needed"] = bytes_needed(run.update), bytes_needed(single.update)
        state, more = run.train(state, some[1:UPDATES])
        result["losses"] = losses + more

    # ---- A checkpoint saved on eight devices ------------------------------------------------------------------------
    checkpoints = Checkpoints(folder / "run")
    items = {"params": state.params, "optimizer": state.optimizer}
    files = {"config.json": b"{}", "tokenizer.model": b""}
    checkpoints.save(UPDATES, items, progress={"step": UPDATES, "vocab_size": VOCABULARY}, files=files)
    checkpoints.wait()
    results["digest"] = digest(state)
    _, results["goes on"] = run.train(state, some[UPDATES:])
    four = Run(make_mesh(MeshConfig(fsdp=2, tensor=2), devices[:4]), accumulate, variant)
    for name, other in (("1", singles[case]), ("4", four)):
        state, _ = restore(checkpoints, other.abstract)
        placed = jax.tree.map(lambda x, layout: x.sharding.is_equivalent_to(layout, x.ndim), state, other.layout)
        result = results[f"restored on {name}"] = {
            "digest": digest(state),
            "placed": all(jax.tree.leaves(placed)),
        }
        _, result["losses"] = other.train(state, some[UPDATES:])
    (folder / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(Path(sys.argv[1]), list(zip(sys.argv[2::2], map(int, sys.argv[3::2]), strict=True)))
