"""Runs the model in this folder. Needs jax, numpy and flatbuffers alone. README.md shows how to use it."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jax import export

FOLDER = Path(__file__).parent
ABOUT = json.loads((FOLDER / "programs.json").read_bytes())


@cache
def params():
    """The parameters on the device, by name. Their file holds the size of its header, the header, and the numbers."""
    content = (FOLDER / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = {name: one for name, one in json.loads(content[8:start]).items() if name != "__metadata__"}
    numbers = {name: slice(*(start + n for n in one["data_offsets"])) for name, one in entries.items()}
    arrays = {name: np.frombuffer(content[numbers[name]], "<f4") for name in entries}
    return jax.device_put({name: array.reshape(entries[name]["shape"]) for name, array in arrays.items()})


@cache
def program(name):
    """A program of this folder. It is compiled for the shapes that it is called with."""
    return jax.jit(export.deserialize(bytearray((FOLDER / f"{name}.jax").read_bytes())).call)


def forward(*arrays):
    """The model's outputs for arrays of any sizes: ABOUT["forward"] names them. Their rows end where positions do."""
    longest, most = max(array.shape[1] for array in arrays), ABOUT["positions"]
    if most is not None and longest > most:
        raise ValueError(f"a row has {longest} ids; this model has learned only {most} positions")
    return program("forward")(params(), *arrays)


def search(texts, seed=0):
    """For each text, a list of ids, its outputs as pairs (ids, score), the best first. `seed`: for samples."""
    longest = max(map(len, texts), default=0)
    fitting = [shape for shape in ABOUT["search"] if shape[1] >= longest]
    if not fitting:
        raise ValueError(f"a text has {longest} ids; the programs in {FOLDER} take {ABOUT['search']} (texts, ids)")
    rows, length = min(fitting, key=lambda shape: (shape[1], abs(shape[0] - len(texts))))
    run, found = program(f"search_{rows}x{length}"), []
    for first in range(0, len(texts), rows):
        some = texts[first : first + rows]
        tokens, lengths = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
        for row, ids in enumerate(some):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        results = jax.device_get(run(params(), tokens, lengths, np.uint32(seed), np.int32(first)))
        for outputs in zip(*(results[name][: len(some)] for name in ("tokens", "lengths", "scores")), strict=True):
            pairs = ((ids[:n].tolist(), float(score)) for ids, n, score in zip(*outputs, strict=True) if n)
            found.append([(ids[:-1] if ids[-1] == ABOUT["end"] else ids, score) for ids, score in pairs])
    return found
