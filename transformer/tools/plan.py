"""What training and decoding would take on TPUs that are not here: the real programs, compiled for them.

libtpu compiles for a topology without one being there. What comes out is memory, arithmetic, traffic and collectives of
each program, and from them, by the chips' data sheets, a bound on the time: an estimate, not a run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.config import BOS, EOS, PAD, Config, UserError
from transformer.inference import engine
from transformer.inference.beam_search import Options
from transformer.model import build
from transformer.model.rounding import rounded
from transformer.tools.hlo import Collective, Hlo, dimensions
from transformer.tools.topologies import GIB, Chip, topology_mesh
from transformer.training.flops import update_flops
from transformer.training.objectives import sequences
from transformer.training.step import bytes_needed, micro_batch_rows, program
from transformer.training.task import Objective

PADDING = 0.03  # of the positions of packed rows, as data/packing.py makes them
SENTENCES, PIECES = 32, 64  # decoded at a time on each device, and in each


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A program on each device of a mesh."""

    name: str
    chip: Chip
    needed: int
    """Bytes of memory."""
    flops: float
    traffic: float
    """Bytes to and from memory."""
    collectives: tuple[Collective, ...]
    state: int = 0
    """Bytes of the arguments: an update's parameters, optimiser state and batch."""

    @property
    def seconds(self) -> dict[str, float]:
        """What arithmetic, memory and links would each take at their peak rates."""
        chip = self.chip
        links = 0.0
        for one in self.collectives:
            along = next(n for n in range(1, chip.axes + 1) if n == chip.axes or chip.side**n >= one.group)
            links += one.sent / (chip.links * along / chip.axes)
        return {"arithmetic": self.flops / chip.flops, "memory": self.traffic / chip.bandwidth, "links": links}

    @property
    def bound(self) -> float:
        """Seconds, if everything overlapped."""
        return max(self.seconds.values())


class TooBig(NamedTuple):
    """A program that the compiler gave up on, since it does not fit the memory: no more is known of it."""

    name: str
    chip: Chip
    needed: int
    """Bytes, as the compiler says."""


# ---- Programs --------------------------------------------------------------------------------------------------------


def training(
    config: Config, mesh: Mesh, chip: Chip, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Estimate | TooBig]:
    """An update for batches of each shape (rows, source, target)."""
    made = program(_objective(config), config.train, mesh)
    for rows, source, target in shapes:
        shape = {"source": (rows, source), "target": (rows, target)}
        make = partial(made.compile, shape, config.train.accumulate)
        yield estimate(f"update {rows}x{source}+{target}", make, chip, mesh.size)


def decoding(config: Config, mesh: Mesh, chip: Chip, sentences: int, length: int) -> Iterator[Estimate | TooBig]:
    """Encoding, and a step of beam search, of so many sentences a device, with up to `length` pieces on either side.

    As `Translator` does it: each host by itself, with a copy of all parameters on each device, in the type of
    `decode.dtype`. The step is one of the last stage, of sentences whose beams have no past in common: never is the
    cache larger.
    """
    d = config.decode
    dtype = "bfloat16" if d.dtype == "auto" else d.dtype
    products = "bfloat16" if dtype == "int8" else dtype  # as `in_type` has it on accelerators
    model = build(dataclasses.replace(config.model, dtype=products).with_vocabulary(config.data.vocab_size))
    host = mesh.devices.flat[0].process_index
    mesh = Mesh(np.array([device for device in mesh.devices.flat if device.process_index == host]), ("data",))
    whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    rows = sentences * mesh.size
    source = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=cut)
    limit = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=cut)
    params = (_with_sharding(jax.eval_shape(partial(rounded, dtype=dtype), model.abstract_params), lambda x: whole),)
    options = Options(d.beam_size, BOS, EOS, PAD, d.length_penalty, d.length_normalization)
    same = {"models": (model,), "over": engine.row_sharding(source)}
    begin = engine.begin.lower(
        *(params, source, limit, {"number_B": limit}, options), length=engine.size(engine.STAGE), **same
    )
    yield estimate(f"encoding of {rows} sentences", begin.compile, chip, mesh.size)
    # What `engine.decode` has before the last stage; its programs leave rows on their devices.
    found, last = begin.out_info, -(-length // engine.STAGE) * engine.STAGE
    if last > engine.STAGE:
        slots = engine.size((last - engine.STAGE) * d.beam_size)
        grow = partial(engine.rearrange, length=engine.size(last), keep=slots, over=same["over"])
        found = jax.eval_shape(grow, *_with_sharding(found, lambda x: None), None)
    memories, beams = _with_sharding(found, lambda x: cut if x.ndim and engine.divides(cut, len(x)) else whole)
    step = engine.proceed.lower(
        params, memories, beams, engine.Strategy(options), engine.halve_at(rows, same["over"]), last, **same
    )
    yield estimate(f"decoding step of {rows} sentences", step.compile, chip, mesh.size)


def _objective(config: Config) -> Objective:
    """What a run of the config would minimise."""
    model = build(config.model.with_vocabulary(config.data.vocab_size))
    return sequences(model, config.train, packing=config.data.packing)


def _with_sharding(tree: Any, where: Callable[[Any], NamedSharding | None]) -> Any:
    """Abstract arrays, each with the sharding that `where` says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), tree)


def estimate(name: str, make: Callable[[], jax.stages.Compiled], chip: Chip, devices: int) -> Estimate | TooBig:
    """What the program that `make` compiles takes on each of so many devices.

    Raises `UserError` if it does not compile, other than for its size.
    """
    try:
        program = make()
        text = program.as_text()
    except jax.errors.JaxRuntimeError as error:
        # "Used 23.50G of 15.75G hbm", "HLO temporaries (72.78G) exceeds available HBM (15.75G)", and then its parts.
        sizes = re.findall(r"\b([\d.]+)([KMGT])\b", str(error)) if "hbm" in str(error).lower() else []
        if "RESOURCE_EXHAUSTED" in str(error) and sizes:
            return TooBig(name, chip, int(max(float(n) * 1024 ** " KMGT".index(unit) for n, unit in sizes)))
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: does not compile for these devices ({reason}); libtpu must be the one that this JAX asks for: "
            "pip install 'jax[tpu]'"
        ) from None
    hlo = Hlo(text, devices)
    memory = program.memory_analysis()
    return Estimate(
        name,
        chip,
        bytes_needed(program),
        hlo.flops(),
        hlo.traffic(),
        tuple(hlo.collectives()),
        0 if memory is None else memory.argument_size_in_bytes,
    )


# ---- Telling ---------------------------------------------------------------------------------------------------------


def plan(config: Config, topology: str, sizes: Sequence[int], only: str | None = None) -> dict[str, Any]:
    """Everything about a config on a topology, as plain values; `only` 'training' or 'decoding'."""
    mesh, chip = topology_mesh(topology, sizes)
    return planned(config, topology, mesh, chip, only)


def planned(config: Config, where: str, mesh: Mesh, chip: Chip, only: str | None = None) -> dict[str, Any]:
    """As `plan`, on the devices of a mesh, which are named `where`."""
    result = {"topology": where, "mesh": dict(mesh.shape), "warnings": []}
    if only != "decoding":
        result |= _planned_training(config, mesh, chip)
    if only != "training":
        encoding, step = decoding(config, mesh, chip, SENTENCES, PIECES)
        result |= {"encoding": _told(encoding), "decoding": _told(step) | {"sentences": SENTENCES, "length": PIECES}}
        if isinstance(encoding, Estimate) and isinstance(step, Estimate):
            seconds = encoding.bound + PIECES * step.bound
            result["decoding"]["pieces_per_s"] = mesh.size * SENTENCES * PIECES / seconds
    return result


def _planned_training(config: Config, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=True))
    rows, source, target = shape = batch_shape(config)
    count = config.train.accumulate
    in_all = micro_batch_rows(rows, mesh, count) * count
    (update,) = training(config, mesh, chip, [shape])
    model = update_flops(config.model.with_vocabulary(config.data.vocab_size), in_all, source, target) / mesh.size
    batch = {"rows": rows, "source": source, "target": target, "micro_batches": count}
    told = {
        "batch": batch | {"compiled_rows": in_all, "padding": PADDING},
        "update": _told(update) | {"model_flops": model},
        "steps": config.train.steps,
        "warnings": list(warnings(update, model, config, mesh)),
    }
    if isinstance(update, Estimate):
        told["tokens_per_s"] = rows * target * (1 - PADDING) / update.bound
        told["days"] = update.bound * config.train.steps / 86_400
    return told


def batch_shape(config: Config) -> tuple[int, int, int]:
    """The shape of packed batches of the config's size: rows of `data.max_length`."""
    d, t = config.data, config.train
    rows = t.batch_tokens // d.max_length
    step = 8 * t.accumulate if rows >= 8 * t.accumulate else t.accumulate
    return max(rows // step, 1) * step, d.max_length, d.max_length


def warnings(update: Estimate | TooBig, model_flops: float, config: Config, mesh: Mesh) -> Iterator[str]:
    """What is wrong with an update, mistakes in sharding above all; `model_flops` is each device's share of the
    model's own arithmetic, empty rows included."""
    if isinstance(update, TooBig) or update.needed > update.chip.memory:
        yield f"{update.needed / GIB:.1f} GiB do not fit the {update.chip.memory / GIB:.0f} GiB of a chip"
    if isinstance(update, TooBig):
        return
    if update.flops > 1.5 * model_flops:
        yield (
            f"each device does {update.flops / model_flops:.1f} times its share of the model's arithmetic: something "
            "is computed on several of them"
        )
    share = state_share(config, mesh)
    if update.state > 1.3 * share:
        yield (
            f"each device holds {update.state / share:.1f} times its share of parameters and optimiser state: "
            "something lies whole on several of them"
        )
    if mesh.shape["fsdp"] > 1 and mesh.shape["tensor"] == 1:
        return  # there the whole matrix is gathered by design, as all others are
    table = config.data.vocab_size * config.model.d_model
    for one in update.collectives:
        biggest = max((math.prod(dimensions(shape)) for shape in one.shape.split(" ")), default=0)
        if one.kind == "all-gather" and biggest >= table:
            yield f"all-gather of {one.shape}, as large as the vocabulary's matrix, {one.times} times an update"


def state_share(config: Config, mesh: Mesh) -> float:
    """Bytes of parameters and optimiser state on each device where all matrices are cut along fsdp and tensor."""
    state = program(_objective(config), config.train, mesh).abstract
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    return sum(x.size * x.dtype.itemsize / (ways if x.ndim > 1 else 1) for x in jax.tree.leaves(state))


def _told(one: Estimate | TooBig) -> dict[str, Any]:
    told = {
        "name": one.name,
        "memory_gib": one.needed / GIB,
        "limit_gib": one.chip.memory / GIB,
        "fits": isinstance(one, Estimate) and one.needed <= one.chip.memory,
    }
    if isinstance(one, TooBig):
        return told
    return told | {
        "state_gib": one.state / GIB,
        "flops": one.flops,
        "traffic": one.traffic,
        "seconds": one.seconds,
        "bound": one.bound,
        "collectives": [entry._asdict() for entry in one.collectives],
    }


def lines(result: dict[str, Any], most: int = 8) -> Iterator[str]:
    """The plan for people; at most so many kinds of collectives of each program."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    yield f"{result['topology']}, mesh {mesh}: compiled for it, not run on it"
    if "batch" in result:
        batch = result["batch"]
        empty = 1 - batch["rows"] / batch["compiled_rows"]
        yield (
            f"batch of {batch['rows']} rows of {batch['source']} source and {batch['target']} target positions, in "
            f"{batch['micro_batches']} micro-batches"
        )
        yield (
            f"padding: {batch['compiled_rows']} rows are compiled, for the mesh to cut them evenly, {empty:.1%} of "
            f"them empty; of the others {batch['padding']:.0%} is assumed to be padding"
        )
    for name in ("update", "encoding", "decoding"):
        if name in result:
            yield ""
            yield from _program(result[name], most)
    yield ""
    if "tokens_per_s" in result:
        yield (
            f"an update takes {_at_least(result['update'])}; {result['steps']:,} updates {result['days'] * 24:.2f} "
            f"hours at least; {result['tokens_per_s']:,.0f} target tokens/s at most, padding and empty rows left out"
        )
    step = result.get("decoding", {})
    if "pieces_per_s" in step:
        yield (
            f"a step of decoding takes {_at_least(step)}; {step['pieces_per_s']:,.0f} target pieces/s on all devices, "
            f"with {step['sentences']} sentences of {step['length']} pieces on each, their encoding included, if every "
            "step is like this last one"
        )
    for warning in result["warnings"]:
        yield f"warning: {warning}"


def _program(part: dict[str, Any], most: int) -> Iterator[str]:
    yield f"{part['name']}, on each device"
    fits = "" if part["fits"] else ": does not fit"
    yield f"  memory      {part['memory_gib']:.2f} of {part['limit_gib']:.0f} GiB{fits}"
    if "seconds" not in part:
        return
    seconds = part["seconds"]
    share = f", the model's own share {part['model_flops']:.3g}" if "model_flops" in part else ""
    yield f"  arithmetic  {part['flops']:.3g} FLOPs{share}: {1e3 * seconds['arithmetic']:.2f} ms at peak"
    yield f"  memory      {part['traffic']:.3g} bytes: {1e3 * seconds['memory']:.2f} ms"
    sent = sum(one["sent"] for one in part["collectives"])
    yield f"  links       {sent:.3g} bytes sent: {1e3 * seconds['links']:.2f} ms"
    for one in part["collectives"][:most]:
        yield (
            f"    {one['kind']:18} {one['times']:4} x {one['shape']} over {one['group']}: {one['sent'] / 2**20:.1f} MiB"
        )
    if len(part["collectives"]) > most:
        yield f"    and {len(part['collectives']) - most} more kinds"


def _at_least(part: dict[str, Any]) -> str:
    whole = sum(part["seconds"].values())
    return f"{1e3 * part['bound']:.2f} ms at least, {1e3 * whole:.2f} ms if nothing overlaps"
