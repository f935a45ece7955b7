"""Estimate training and decoding on TPUs without the TPUs: compile the real programs for them.

libtpu can compile for a topology without hardware. From the compiled programs come memory, arithmetic, traffic and
collectives, and from these, with the chips' data sheets, a lower bound on the time: an estimate, not a measurement.
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

from transformer.config import BOS, EOS, PAD, Config, LanguageModelConfig, MaskedConfig, UserError
from transformer.data.masking import most_masked
from transformer.inference import engine
from transformer.inference.beam_search import Options
from transformer.model import build
from transformer.model.rounding import rounded
from transformer.tools.describe import vocabulary_size
from transformer.tools.hlo import Collective, Hlo, dimensions
from transformer.tools.topologies import GIB, Chip, topology_mesh
from transformer.training.objectives import causal, masked, sequences
from transformer.training.step import bytes_needed, micro_batch_rows, program
from transformer.training.task import Objective, Shape

PADDING = 0.03  # assumed share of padding in the packed rows of data/packing.py
SENTENCES, PIECES = 32, 64  # decoded at a time on each device; pieces in each sentence


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a program needs on each device of a mesh."""

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
        """Seconds of arithmetic, memory and links, each at its peak rate."""
        chip = self.chip
        links = 0.0
        for one in self.collectives:
            along = next(n for n in range(1, chip.axes + 1) if n == chip.axes or chip.side**n >= one.group)
            links += one.sent / (chip.links * along / chip.axes)
        return {"arithmetic": self.flops / chip.flops, "memory": self.traffic / chip.bandwidth, "links": links}

    @property
    def bound(self) -> float:
        """Seconds if everything overlaps: a lower bound."""
        return max(self.seconds.values())


class TooBig(NamedTuple):
    """A program that the compiler rejected because it does not fit the memory."""

    name: str
    chip: Chip
    needed: int
    """Bytes of memory, from the compiler's message."""


# ---- Programs --------------------------------------------------------------------------------------------------------


def training(config: Any, mesh: Mesh, chip: Chip, shapes: Sequence[Shape]) -> Iterator[Estimate | TooBig]:
    """An estimate of one update for each batch shape."""
    update = program(_objective(config), config.train, mesh)
    for shape in shapes:
        make = partial(update.compile, shape, config.train.accumulate)
        rows = next(iter(shape.values()))[0]
        lengths = "+".join(str(shape[name][1]) for name in ("source", "target", "text") if name in shape)
        yield estimate(f"update {rows}x{lengths}", make, chip, mesh.size)


def decoding(config: Config, mesh: Mesh, chip: Chip, sentences: int, length: int) -> Iterator[Estimate | TooBig]:
    """Estimates of encoding and of one step of beam search. `sentences`: on each device; `length`: pieces on each side.

    Like `Translator`, each host decodes separately, with a copy of all parameters on each device, in the type of
    `decode.dtype`. The step is one of the last stage, with beams that share no prefix, where the cache is largest.
    """
    d = config.decode
    dtype = "bfloat16" if d.dtype == "auto" else d.dtype
    products = "bfloat16" if dtype == "int8" else dtype  # as in `in_type` on accelerators
    model = build(dataclasses.replace(config.model, dtype=products).with_vocabulary(vocabulary_size(config)))
    host = mesh.devices.flat[0].process_index
    mesh = Mesh(np.array([device for device in mesh.devices.flat if device.process_index == host]), ("data",))
    replicated, by_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    rows = sentences * mesh.size
    source = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=by_rows)
    limit = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_rows)
    params = (
        _with_sharding(jax.eval_shape(partial(rounded, dtype=dtype), model.abstract_params), lambda x: replicated),
    )
    options = Options(d.beam_size, BOS, EOS, PAD, d.length_penalty, d.length_normalization)
    shared = {"models": (model,), "over": engine.row_sharding(source)}
    begin = engine.begin.lower(
        *(params, source, limit, {"number_B": limit}, options), length=engine.size(engine.STAGE), **shared
    )
    yield estimate(f"encoding of {rows} sentences", begin.compile, chip, mesh.size)
    # The state of `engine.decode` before the last stage. Its programs keep rows on their devices.
    state, last = begin.out_info, -(-length // engine.STAGE) * engine.STAGE
    if last > engine.STAGE:
        slots = engine.size((last - engine.STAGE) * d.beam_size)
        grow = partial(engine.rearrange, length=engine.size(last), keep=slots, over=shared["over"])
        state = jax.eval_shape(grow, *_with_sharding(state, lambda x: None), None)
    memories, beams = _with_sharding(
        state, lambda x: by_rows if x.ndim and engine.divides(by_rows, len(x)) else replicated
    )
    step = engine.proceed.lower(
        params, memories, beams, engine.Strategy(options), engine.fewer_rows(rows, shared["over"]), last, **shared
    )
    yield estimate(f"decoding step of {rows} sentences", step.compile, chip, mesh.size)


def _objective(config: Any) -> Objective:
    """The objective of a training run of the config."""
    model = build(config.model.with_vocabulary(vocabulary_size(config)))
    if isinstance(config, LanguageModelConfig):
        return causal(model, config.train, documents=config.data.documents != "none")
    if isinstance(config, MaskedConfig):
        return masked(model, config.train, next_sentence=config.data.next_sentence)
    return sequences(model, config.train, packing=config.data.packing)


def _with_sharding(tree: Any, where: Callable[[Any], NamedSharding | None]) -> Any:
    """The abstract arrays of `tree`, each with the sharding `where(array)`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), tree)


def estimate(name: str, make: Callable[[], jax.stages.Compiled], chip: Chip, devices: int) -> Estimate | TooBig:
    """Estimate the program that `make` compiles, on each of `devices` devices. `TooBig` if it does not fit the memory.

    Raises `UserError` if it does not compile for another reason.
    """
    try:
        program = make()
        text = program.as_text()
    except jax.errors.JaxRuntimeError as error:
        # "Used 23.50G of 15.75G hbm" or "HLO temporaries (72.78G) exceeds available HBM (15.75G)", then parts.
        sizes = re.findall(r"\b([\d.]+)([KMGT])\b", str(error)) if "hbm" in str(error).lower() else []
        if "RESOURCE_EXHAUSTED" in str(error) and sizes:
            return TooBig(name, chip, int(max(float(n) * 1024 ** " KMGT".index(unit) for n, unit in sizes)))
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: does not compile for these devices ({reason}); install the libtpu that this JAX requires: "
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


# ---- Report ----------------------------------------------------------------------------------------------------------


def plan(config: Any, topology: str, sizes: Sequence[int], only: str | None = None) -> dict[str, Any]:
    """All estimates for a config on a topology, as JSON values. `only`: 'training' or 'decoding'; None = both.

    Decoding is planned for translation only.
    """
    mesh, chip = topology_mesh(topology, sizes)
    return planned(config, topology, mesh, chip, only)


def planned(config: Any, where: str, mesh: Mesh, chip: Chip, only: str | None = None) -> dict[str, Any]:
    """Like `plan`, for a mesh; `where` names its devices in the result."""
    result = {"topology": where, "mesh": dict(mesh.shape), "warnings": []}
    if only != "decoding":
        result |= _planned_training(config, mesh, chip)
    if only != "training" and isinstance(config, Config):
        encoding, step = decoding(config, mesh, chip, SENTENCES, PIECES)
        result |= {
            "encoding": _values(encoding),
            "decoding": _values(step) | {"sentences": SENTENCES, "length": PIECES},
        }
        if isinstance(encoding, Estimate) and isinstance(step, Estimate):
            seconds = encoding.bound + PIECES * step.bound
            result["decoding"]["pieces_per_s"] = mesh.size * SENTENCES * PIECES / seconds
    return result


def _planned_training(config: Any, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    padding = PADDING
    if isinstance(config, Config):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=True))
    elif isinstance(config, LanguageModelConfig) and config.data.documents == "none":  # windows of a text are full
        padding = 0.0
    shape = batch_shape(config)
    rows, count = next(iter(shape.values()))[0], config.train.accumulate
    compiled = micro_batch_rows(rows, mesh, count) * count
    (update,) = training(config, mesh, chip, [shape])
    model = _objective(config).flops({name: (compiled, length) for name, (_, length) in shape.items()}) / mesh.size
    lengths = {name: shape[name][1] for name in ("source", "target", "text") if name in shape}
    batch = {"rows": rows, **lengths, "micro_batches": count}
    values = {
        "batch": batch | {"compiled_rows": compiled, "padding": padding},
        "update": _values(update) | {"model_flops": model},
        "steps": config.train.steps,
        "warnings": list(warnings(update, model, config, mesh)),
    }
    if isinstance(update, Estimate):
        values["tokens_per_s"] = rows * list(lengths.values())[-1] * (1 - padding) / update.bound
        values["days"] = update.bound * config.train.steps / 86_400
    return values


def batch_shape(config: Any) -> Shape:
    """The shape of packed batches of `train.batch_tokens`, with rows of `data.max_length`; for running text, with rows
    of `data.context`."""
    d, t = config.data, config.train
    if not isinstance(config, Config):
        rows = max(t.batch_tokens // d.context // t.accumulate, 1) * t.accumulate
        if isinstance(config, LanguageModelConfig):
            names = ("text", "next", "predicted", *(["document"] if d.documents != "none" else []))
            return dict.fromkeys(names, (rows, d.context))
        places = (rows, most_masked(d, d.context))
        shape = dict.fromkeys(("text", "part"), (rows, d.context)) | dict.fromkeys(("place", "label"), places)
        return shape | ({"next": (rows, 1)} if d.next_sentence else {})
    rows = t.batch_tokens // d.max_length
    step = 8 * t.accumulate if rows >= 8 * t.accumulate else t.accumulate
    return dict.fromkeys(("source", "target"), (max(rows // step, 1) * step, d.max_length))


def warnings(update: Estimate | TooBig, model_flops: float, config: Any, mesh: Mesh) -> Iterator[str]:
    """Warnings about an update, above all about sharding. `model_flops`: each device's share of the model's arithmetic,
    empty rows included."""
    if isinstance(update, TooBig) or update.needed > update.chip.memory:
        yield f"{update.needed / GIB:.1f} GiB do not fit the {update.chip.memory / GIB:.0f} GiB of a chip"
    if isinstance(update, TooBig):
        return
    if update.flops > 1.5 * model_flops:
        yield (
            f"each device does {update.flops / model_flops:.1f} times its share of the model's arithmetic: something "
            "is computed on several devices"
        )
    share = state_share(config, mesh)
    if update.state > 1.3 * share:
        yield (
            f"each device holds {update.state / share:.1f} times its share of parameters and optimiser state: "
            "something is replicated instead of sharded"
        )
    if mesh.shape["fsdp"] > 1 and mesh.shape["tensor"] == 1:
        return  # with fsdp alone, all matrices are gathered by design
    table = vocabulary_size(config) * config.model.d_model
    for one in update.collectives:
        biggest = max((math.prod(dimensions(shape)) for shape in one.shape.split(" ")), default=0)
        if one.kind == "all-gather" and biggest >= table:
            yield f"all-gather of {one.shape}, as large as the vocabulary's matrix, {one.times} times an update"


def state_share(config: Any, mesh: Mesh) -> float:
    """Bytes of parameters and optimiser state on each device if all matrices are sharded over fsdp and tensor."""
    state = program(_objective(config), config.train, mesh).abstract
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    return sum(x.size * x.dtype.itemsize / (ways if x.ndim > 1 else 1) for x in jax.tree.leaves(state))


def _values(estimated: Estimate | TooBig) -> dict[str, Any]:
    values = {
        "name": estimated.name,
        "memory_gib": estimated.needed / GIB,
        "limit_gib": estimated.chip.memory / GIB,
        "fits": isinstance(estimated, Estimate) and estimated.needed <= estimated.chip.memory,
    }
    if isinstance(estimated, TooBig):
        return values
    return values | {
        "state_gib": estimated.state / GIB,
        "flops": estimated.flops,
        "traffic": estimated.traffic,
        "seconds": estimated.seconds,
        "bound": estimated.bound,
        "collectives": [entry._asdict() for entry in estimated.collectives],
    }


def lines(result: dict[str, Any], most: int = 8) -> Iterator[str]:
    """The plan as lines of text, with at most `most` kinds of collectives for each program."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    yield f"{result['topology']}, mesh {mesh}: compiled for it, not run on it"
    if "batch" in result:
        batch = result["batch"]
        empty = 1 - batch["rows"] / batch["compiled_rows"]
        lengths = f"{batch['text']}" if "text" in batch else f"{batch['source']} source and {batch['target']} target"
        yield f"batch of {batch['rows']} rows of {lengths} positions, in {batch['micro_batches']} micro-batches"
        yield (
            f"padding: {batch['compiled_rows']} rows are compiled, to divide evenly over the mesh, {empty:.1%} of "
            f"them empty; of the others {batch['padding']:.0%} is assumed to be padding"
        )
    for name in ("update", "encoding", "decoding"):
        if name in result:
            yield ""
            yield from _program(result[name], most)
    yield ""
    if "tokens_per_s" in result:
        side = "" if "text" in result["batch"] else "target "
        yield (
            f"an update takes {_at_least(result['update'])}; {result['steps']:,} updates {result['days'] * 24:.2f} "
            f"hours at least; {result['tokens_per_s']:,.0f} {side}tokens/s at most, padding and empty rows left out"
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
    total = sum(part["seconds"].values())
    return f"{1e3 * part['bound']:.2f} ms at least, {1e3 * total:.2f} ms if nothing overlaps"
