"""What training and decoding would take on TPUs that are not here: the real programs, compiled for them.

libtpu compiles for a topology without one being there. What comes out is memory, arithmetic, traffic and collectives of
each program, and from them, by the chips' data sheets, a bound on the time: an estimate, not a run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.config import BOS, EOS, PAD, Config, MeshConfig, UserError
from transformer.inference import engine
from transformer.inference.beam_search import Options
from transformer.model.rounding import rounded
from transformer.tasks.translation import Translation
from transformer.training.flops import update_flops
from transformer.training.optimizer import optimizer
from transformer.training.sharding import make_mesh
from transformer.training.step import ahead_of_time, bytes_needed, compiled, init_state, micro_batch_rows

log = logging.getLogger("transformer")

GIB = 2**30
PADDING = 0.03  # of the positions of packed rows, as data/packing.py makes them
SENTENCES, PIECES = 32, 64  # decoded at a time on each device, and in each


class Chip(NamedTuple):
    """One chip, by Google's data sheets (cloud.google.com/tpu/docs): bfloat16 FLOP/s, bytes of memory and bytes/s to
    it, and bytes/s to its neighbours, over all links together."""

    flops: float
    memory: float
    bandwidth: float
    links: float
    axes: int
    """Dimensions of the torus: a collective has the links of those that it goes along."""
    pod: int
    """The most chips that are wired together."""
    side: int = 16
    """How many lie along one dimension, the longest."""


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1_228e9, 300e9, 3, 4_096),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 2, 256),
    "v5p": Chip(459e12, 95 * GIB, 2_765e9, 600e9, 3, 8_960),
    "v6e": Chip(918e12, 32 * GIB, 1_640e9, 448e9, 2, 256),
}


class Collective(NamedTuple):
    """One kind of traffic between devices in a program."""

    kind: str
    shape: str
    """Of the result on one device, as XLA writes it."""
    group: int
    """How many devices take part together."""
    times: int
    """In one run of the program."""
    sent: float
    """Bytes that each device sends in all, by a ring."""


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


def topology_mesh(topology: str, sizes: Sequence[int]) -> tuple[Mesh, Chip]:
    """The mesh (data, fsdp, tensor) over the chips of a topology such as 'v5e:4x4'.

    Raises `UserError` if libtpu is missing, does not know the topology, or the mesh does not fit it.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology {topology}: give it as {'|'.join(CHIPS)}:AxB or AxBxC, such as v5e:16x16")
    sides = [int(side) for side in shape.split("x")]
    chips = math.prod(sides)
    if math.prod(sizes) != chips:
        raise UserError(f"--mesh {','.join(map(str, sizes))} has {math.prod(sizes)} devices, {topology} {chips}")
    if chips > CHIPS[kind].pod:
        raise UserError(f"--topology {topology}: a pod of {kind} has {CHIPS[kind].pod:,} chips, not {chips:,}")
    devices = _devices(topology)
    if len(devices) != chips:
        raise UserError(f"--topology {topology}: libtpu makes {len(devices)} devices of it, not {chips}")
    return make_mesh(MeshConfig(*sizes), devices), CHIPS[kind]._replace(side=max(sides))


def _devices(topology: str) -> Sequence[Any]:
    from jax.experimental import topologies

    # libtpu is for one process at a time, since it takes the machine's TPUs, and asks the cloud who it is. Here it
    # takes none and is nobody.
    alone = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    options = (
        {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    )  # one device a chip, not one a core
    x, y, *_ = map(int, topology.partition(":")[2].split("x"))
    options["chips_per_host_bounds"] = (min(x, 2), min(y, 2), 1)  # hosts have four chips, or all there are
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # XLA's own, and others when libtpu is missing
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {topology}: cannot be compiled for ({reason}); it needs libtpu: pip install 'jax[tpu]'"
        ) from None


# ---- Programs --------------------------------------------------------------------------------------------------------


def training(
    config: Config, mesh: Mesh, chip: Chip, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Estimate | TooBig]:
    """An update for batches of each shape (rows, source, target)."""
    task, tx = _task(config), optimizer(config.train, config.model.d_model)
    abstract = jax.eval_shape(lambda: init_state(task.model.init, tx, config.train.seed))
    update = compiled(task.loss, tx, config.train.seed, mesh, abstract)
    for shape in shapes:
        make = partial(ahead_of_time, update, abstract, shape, mesh, config.train.accumulate)
        yield estimate("update {}x{}+{}".format(*shape), make, chip, mesh.size)


def decoding(config: Config, mesh: Mesh, chip: Chip, sentences: int, length: int) -> Iterator[Estimate | TooBig]:
    """Encoding, and a step of beam search, of so many sentences a device, with up to `length` pieces on either side.

    As `Translator` does it: each host by itself, with a copy of all parameters on each device, in the type of
    `decode.dtype`. The step is one of the last stage, of sentences whose beams have no past in common: never is the
    cache larger.
    """
    d = config.decode
    dtype = "bfloat16" if d.dtype == "auto" else d.dtype
    own = "bfloat16" if dtype == "int8" else dtype  # as `translator.in_type` has it on accelerators
    model = _task(dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=own))).model
    host = mesh.devices.flat[0].process_index
    mesh = Mesh(np.array([device for device in mesh.devices.flat if device.process_index == host]), ("data",))
    whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    rows = sentences * mesh.size
    source = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=cut)
    limit = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=cut)
    params = (_lying(jax.eval_shape(partial(rounded, dtype=dtype), model.abstract_params), lambda x: whole),)
    options = Options(d.beam_size, BOS, EOS, PAD, d.length_penalty, d.length_normalization)
    same = {"models": (model,), "over": engine.over_devices(source)}
    begin = engine.begin.lower(
        *(params, source, limit, {"number_B": limit}, options), length=engine.size(engine.STAGE), **same
    )
    yield estimate(f"encoding of {rows} sentences", begin.compile, chip, mesh.size)
    # What `engine.decode` has before the last stage; its programs leave rows on their devices.
    found, last = begin.out_info, -(-length // engine.STAGE) * engine.STAGE
    if last > engine.STAGE:
        slots = engine.size((last - engine.STAGE) * d.beam_size)
        grow = partial(engine.rearrange, length=engine.size(last), keep=slots, over=same["over"])
        found = jax.eval_shape(grow, *_lying(found, lambda x: None), None)
    memories, beams = _lying(found, lambda x: cut if x.ndim and engine.divides(cut, len(x)) else whole)
    step = engine.proceed.lower(
        params, memories, beams, engine.Plan(options), engine.half(rows, same["over"]), last, **same
    )
    yield estimate(f"decoding step of {rows} sentences", step.compile, chip, mesh.size)


def _task(config: Config) -> Translation:
    """The task without its data."""
    return Translation(config, SimpleNamespace(vocab_size=config.data.vocab_size, model=b"", sha256=""), None)


def _lying(tree: Any, where: Callable[[Any], NamedSharding | None]) -> Any:
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


# ---- Compiled programs -----------------------------------------------------------------------------------------------

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_SLICES = {"dynamic-slice", "slice", "gather", "dynamic-update-slice"}
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all", "conditional"}
_NO_TRAFFIC |= {"call", "opt-barrier", "async-start", "async-update", "async-done", "partition-id", "replica-id"}


class Instruction(NamedTuple):
    """A line of a program."""

    shape: str
    opcode: str
    operands: list[str]
    line: str


class Hlo:
    """A program as XLA prints it, for `devices` devices; loops count as often as they run."""

    def __init__(self, text: str, devices: int):
        self.devices = devices
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._roots: dict[str, Instruction] = {}
        """The last instruction of each, which makes its result."""
        name = self._entry = ""
        for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
            head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$", line)
            if head:
                name = head[2]
                self._computations[name] = {}
                self._entry = name if head[1] else self._entry
            elif found := re.match(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
                root, own, shape, opcode, rest = found.groups()
                # Operands end at the first bracket that closes more than was opened; shapes may stand before names.
                inside = rest[: _closing(rest)]
                operands = [part.split()[-1].lstrip("%") for part in _split(inside) if part.strip()]
                self._computations[name][own] = made = Instruction(shape, opcode, operands, line)
                if root:
                    self._roots[name] = made
        self._fused = {
            name
            for own in self._computations.values()
            for one in own.values()
            if one.opcode not in ("while", "conditional", "call", "async-start")  # reducers, too, stay inside
            for name in self._called(one)
        }
        self.times = self._times()
        """How often each computation runs, those inside fusions included."""

    def _times(self) -> Counter[str]:
        times: Counter[str] = Counter()

        def walk(name: str, count: int) -> None:
            times[name] += count
            for one in self._computations[name].values():
                turns = self._turns(one.line) if one.opcode == "while" else 1
                for called in self._called(one):
                    walk(called, count * turns)

        walk(self._entry, 1)
        return times

    def _turns(self, line: str) -> int:
        """How often a loop runs: as XLA says, or else the number that its condition compares with."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.-]+)", line)
        waiting, numbers = [condition[1]] if condition else [], [1]
        while waiting:
            for one in self._computations.get(waiting.pop(), {}).values():
                number = re.search(r"= [su]32\[\]\S* constant\((\d+)\)", one.line)
                numbers += [int(number[1])] if number else []
                waiting += self._called(one)
        return max(numbers)

    def _called(self, one: Instruction) -> list[str]:
        if one.opcode in ("async-update", "async-done"):  # of what the start called
            return []
        names = re.findall(r"(?:body|to_apply|calls)=%?([\w.-]+)", one.line)
        for several in re.findall(r"(?:branch_computations|called_computations)=\{(.*?)\}", one.line):
            names += [name.strip().lstrip("%") for name in several.split(",")]
        return [name for name in names if name in self._computations]

    def flops(self) -> float:
        """Of all products of matrices."""
        total = 0.0
        for name, count in self.times.items():
            own = self._computations[name]
            for one in own.values():
                if one.opcode == "dot":
                    sizes = _numbers(self._shape(own, one.operands[0]))
                    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.line)
                    inner = [sizes[int(d)] for d in contracted[1].split(",") if d] if contracted else []
                    total += count * 2.0 * math.prod(_numbers(one.shape)) * math.prod(inner)
                elif one.opcode == "convolution":
                    total += count * _convolution_flops(one, self._shape(own, one.operands[1]))
        return total

    def traffic(self) -> float:
        """Bytes to and from memory: what instructions outside fusions read and write, of slices and updates of slices
        their own size. What XLA keeps next to the cores, in another memory space, does not count."""
        return sum(
            count * (self._written(own, one) + self._read(own, one))
            for name, count in self.times.items()
            if name not in self._fused
            for own in (self._computations[name],)
            for one in own.values()
            if one.opcode not in _NO_TRAFFIC and 'custom_call_target="AllocateBuffer"' not in one.line
        )

    def _written(self, own: dict[str, Instruction], one: Instruction) -> float:
        if one.opcode.endswith("-start"):  # written when done
            return 0.0
        inside, whole = self._inside(one), _in_memory(one.shape)
        if not inside:
            in_place = one.opcode == "dynamic-update-slice"
            return min(whole, _bytes(self._shape(own, one.operands[1]))) if in_place else whole
        root = self._roots[self._called(one)[0]]
        if _begins(root):
            return 0.0
        results = zip(root.operands, _arrays(one.shape), strict=False) if root.opcode == "tuple" else [("", one.shape)]
        spared = 0.0
        for name, shape in results:
            made = inside.get(name, root)
            if made.opcode == "parameter" or _overlapped(made):  # handed on
                spared += _in_memory(shape)
            # An update of what came in is done in place; of what was made here it goes with the whole.
            elif made.opcode == "dynamic-update-slice" and _given(inside, made.operands[0]):
                spared += _in_memory(shape) - _bytes(self._shape(inside, made.operands[1]))
        return max(whole - spared, 0.0)

    def _read(self, own: dict[str, Instruction], one: Instruction) -> float:
        if one.opcode.endswith("-done"):
            return 0.0
        total = 0.0
        for i, name in enumerate(one.operands):
            whole = _in_memory(self._shape(own, name))
            part = self._of_operand(one, i)
            if one.opcode.endswith("slice-start"):  # ((operands), slice, counter)
                part = max(map(_bytes, re.findall(r"\w+\[[\d,]*\]", one.shape.rpartition("),")[2])), default=0.0)
            elif one.opcode in _SLICES and i == 0:
                part = 0.0 if one.opcode == "dynamic-update-slice" else _bytes(one.shape)
            total += min(whole, part)
        return total

    def _of_operand(self, one: Instruction, i: int) -> float:
        """Bytes of its i-th operand that a fusion reads: where it only takes slices, theirs."""
        inside = self._inside(one)
        named = (name for name, inner in inside.items() if f" parameter({i})" in inner.line)
        parameter = next(named, None)
        names = {n for n, inner in inside.items() if inner.opcode == "bitcast" and parameter in inner.operands}
        names |= {parameter}
        users = [user for n, user in inside.items() if n not in names and names & set(user.operands)]
        root = self._roots[self._called(one)[0]] if inside else None
        handed_on = [_overlapped(user) or (user is root and _hands_on(user)) for user in users]
        if users and all(handed_on) and not _begins(root):
            return 0.0  # what is a collective's was read by the fusion that began it
        if not users or any(user.opcode not in _SLICES or user.operands[0] not in names for user in users):
            return math.inf
        return sum(0.0 if user.opcode == "dynamic-update-slice" else _bytes(user.shape) for user in users)

    def _inside(self, one: Instruction) -> dict[str, Instruction]:
        """The computation of a fusion."""
        called = self._called(one) if one.opcode == "fusion" else []
        return self._computations[called[0]] if called else {}

    def collectives(self) -> list[Collective]:
        """What the devices send each other, the most traffic first."""
        found: Counter[tuple[str, str, int]] = Counter()
        for name, count in self.times.items():
            own = self._computations[name]
            begun = {operand for one in own.values() if _begins(one) for operand in one.operands}
            for result, one in own.items():
                match = re.fullmatch(rf"({_KINDS})(-start)?", one.opcode)
                if not match or (_overlapped(one) and result not in begun):
                    continue  # in fusions that go on with a collective, and in the one that ends it, it is named again
                kind, shape = match[1], one.shape
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind, shape = "reduce-scatter", self._roots[name].shape  # TPUs take only their own part of the sum
                found[kind, _result(shape, kind, bool(match[2])), self._group(one.line)] += count
        made = [Collective(*key, times, times * _sent(*key)) for key, times in found.items()]
        return sorted(made, key=lambda one: -one.sent)

    def _shape(self, own: dict[str, Instruction], name: str) -> str:
        return own[name].shape if name in own else ""

    def _group(self, line: str) -> int:
        """Devices of one group."""
        cut = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
        if cut:
            return int(cut[1])
        listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
        if listed:
            return len(listed[1].split(","))
        along = re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", line)
        if along:  # mesh['a'=4,'b'=8], device_ids=([8,4]T(1,0)) {'a','b':(1)2}: along a, and a part of b of size 2
            sizes = dict(re.findall(r"('\w+')=(\d+)", along[1]))
            named = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", along[2])
            return math.prod(int(part or sizes[axis]) for axis, part in named)
        if "source_target_pairs" in line:
            return 2
        if unknown := re.search(r"replica_groups=(?!\{\})\S*", line):
            log.warning("%s is taken to be all devices", unknown[0])
        return self.devices


def _begins(one: Instruction | None) -> bool:
    """Whether it begins a collective that goes on beside other fusions' work."""
    return one is not None and 'custom_call_target="AsyncCollectiveStart"' in one.line


def _overlapped(one: Instruction) -> bool:
    """Whether it is such a collective."""
    return "async_collective_fusion_config" in one.line


def _hands_on(root: Instruction) -> bool:
    """Whether a fusion's result holds its operands themselves, or what a collective has brought."""
    return root.opcode == "tuple" or 'custom_call_target="AsyncCollectiveDone"' in root.line


def _given(inside: dict[str, Instruction], name: str) -> bool:
    """Whether a name in a fusion stands for one of its parameters."""
    while name in inside and inside[name].opcode in ("bitcast", "copy", "get-tuple-element"):
        name = inside[name].operands[0]
    return name in inside and inside[name].opcode == "parameter"


def _closing(text: str) -> int:
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return i
    return len(text)


def _split(text: str) -> list[str]:
    """The operands of an instruction: at commas outside brackets."""
    parts, depth, begin = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [*parts, text[begin:]]


def _numbers(shape: str) -> list[int]:
    """The sizes of an array's dimensions."""
    sizes = re.search(r"\[([\d,]*)\]", shape)
    return [int(size) for size in sizes[1].split(",") if size] if sizes else []


def _convolution_flops(one: Instruction, kernel: str) -> float:
    """TPUs do products of matrices as convolutions: spatial dimensions are those of a batch where the result keeps
    them, and are summed over where it does not."""
    labels = re.search(r"dim_labels=\w+_(\w+)->(\w+)", one.line)
    sizes, result = _numbers(kernel), _numbers(one.shape)
    if not labels or len(labels[1]) != len(sizes):
        return 0.0
    inner = 1
    for label, size in zip(labels[1], sizes, strict=True):
        if label == "i" or (label.isdigit() and result[labels[2].index(label)] == 1):
            inner *= size
    return 2.0 * math.prod(result) * inner


def _result(shapes: str, kind: str, started: bool) -> str:
    """The shapes of a collective's result without layouts."""
    plain = re.findall(r"(\w+\[[\d,]*\])", shapes)
    if started and kind in ("all-gather", "collective-permute"):  # (operands, results), and perhaps counters
        plain = [shape for shape in plain if shape != "u32[]"]
        plain = plain[len(plain) // 2 :]
    return " ".join(f"{n} x {shape}" if n > 1 else shape for shape, n in Counter(plain).items())


def _arrays(shapes: str) -> list[str]:
    """Each array's shape with its layout."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shapes)


def _bytes(shapes: str) -> float:
    total = 0.0
    for count, kind, sizes in re.findall(r"(?:(\d+) x )?(\w+)\[([\d,]*)\]", shapes):
        numbers = math.prod(int(size) for size in sizes.split(",")) if sizes else 1
        total += int(count or 1) * numbers * _SIZES.get(kind, 4)
    return total


def _in_memory(shapes: str) -> float:
    """Bytes of the arrays that lie in the first memory space."""
    return sum(_bytes(array) for array in _arrays(shapes) if not re.search(r"S\([1-9]", array))


def _sent(kind: str, shapes: str, group: int) -> float:
    """Bytes that a device sends once, by a ring of `group` devices."""
    size, others = _bytes(shapes), (group - 1) / group
    return (
        size
        * {
            "all-reduce": 2 * others,
            "all-gather": others,
            "reduce-scatter": group - 1,  # the result is one device's part
            "all-to-all": others,
            "ragged-all-to-all": others,
            "collective-permute": 1.0,
        }[kind]
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
    model = update_flops(config.model, config.data.vocab_size, in_all, source, target) / mesh.size
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
        biggest = max((math.prod(_numbers(shape)) for shape in one.shape.split(" ")), default=0)
        if one.kind == "all-gather" and biggest >= table:
            yield f"all-gather of {one.shape}, as large as the vocabulary's matrix, {one.times} times an update"


def state_share(config: Config, mesh: Mesh) -> float:
    """Bytes of parameters and optimiser state on each device where all matrices are cut along fsdp and tensor."""
    tx = optimizer(config.train, config.model.d_model)
    state = jax.eval_shape(lambda: init_state(_task(config).model.init, tx, config.train.seed))
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
    own = result.get("decoding", {})
    if "pieces_per_s" in own:
        yield (
            f"a step of decoding takes {_at_least(own)}; {own['pieces_per_s']:,.0f} target pieces/s on all devices, "
            f"with {own['sentences']} sentences of {own['length']} pieces on each, their encoding included, if every "
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
    own = f", the model's own share {part['model_flops']:.3g}" if "model_flops" in part else ""
    yield f"  arithmetic  {part['flops']:.3g} FLOPs{own}: {1e3 * seconds['arithmetic']:.2f} ms at peak"
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


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result)
