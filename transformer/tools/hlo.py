"""Parse a compiled program as XLA prints it (HLO): instructions, arithmetic, memory traffic, collectives."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from typing import NamedTuple

log = logging.getLogger("transformer")

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_SLICES = {"dynamic-slice", "slice", "gather", "dynamic-update-slice"}
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all", "conditional"}
_NO_TRAFFIC |= {"call", "opt-barrier", "async-start", "async-update", "async-done", "partition-id", "replica-id"}


class Collective(NamedTuple):
    """One kind of communication between devices in a program."""

    kind: str
    shape: str
    """Shape of the result on one device, as XLA writes it."""
    group: int
    """Number of devices that communicate with each other."""
    times: int
    """How often it runs in one run of the program."""
    sent: float
    """Bytes that each device sends in total, with a ring algorithm."""


class Instruction(NamedTuple):
    """One instruction: a line of the program."""

    shape: str
    opcode: str
    operands: list[str]
    line: str


class Hlo:
    """A program as XLA prints it, for `devices` devices. Instructions in loops count as often as the loop runs."""

    def __init__(self, text: str, devices: int):
        self.devices = devices
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._roots: dict[str, Instruction] = {}
        """The root instruction of each computation: it gives the result."""
        name = self._entry = ""
        for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
            head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$", line)
            if head:
                name = head[2]
                self._computations[name] = {}
                self._entry = name if head[1] else self._entry
            elif found := re.match(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
                root, result, shape, opcode, rest = found.groups()
                # The operands end at the closing bracket of the instruction. A shape may precede an operand's name.
                inside = rest[: _closing_bracket(rest)]
                operands = [part.split()[-1].lstrip("%") for part in _split(inside) if part.strip()]
                self._computations[name][result] = op = Instruction(shape, opcode, operands, line)
                if root:
                    self._roots[name] = op
        self._fused = {
            name
            for computation in self._computations.values()
            for op in computation.values()
            if op.opcode not in ("while", "conditional", "call", "async-start")  # reducers, too, are inside
            for name in self._called(op)
        }
        self.times = self._times()
        """How often each computation runs, including those inside fusions."""

    def _times(self) -> Counter[str]:
        times: Counter[str] = Counter()

        def walk(name: str, count: int) -> None:
            times[name] += count
            for op in self._computations[name].values():
                trips = self._trip_count(op.line) if op.opcode == "while" else 1
                for called in self._called(op):
                    walk(called, count * trips)

        walk(self._entry, 1)
        return times

    def _trip_count(self, line: str) -> int:
        """The trip count of a loop: XLA's annotation if there is one, else the largest constant in its condition."""
        annotated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        if annotated:
            return int(annotated[1])
        condition = re.search(r"condition=%?([\w.-]+)", line)
        pending, numbers = [condition[1]] if condition else [], [1]
        while pending:
            for op in self._computations.get(pending.pop(), {}).values():
                number = re.search(r"= [su]32\[\]\S* constant\((\d+)\)", op.line)
                numbers += [int(number[1])] if number else []
                pending += self._called(op)
        return max(numbers)

    def _called(self, op: Instruction) -> list[str]:
        if op.opcode in ("async-update", "async-done"):  # `async-start` names the computation already
            return []
        names = re.findall(r"(?:body|to_apply|calls)=%?([\w.-]+)", op.line)
        for several in re.findall(r"(?:branch_computations|called_computations)=\{(.*?)\}", op.line):
            names += [name.strip().lstrip("%") for name in several.split(",")]
        return [name for name in names if name in self._computations]

    def flops(self) -> float:
        """FLOPs of all matrix products."""
        total = 0.0
        for name, count in self.times.items():
            computation = self._computations[name]
            for op in computation.values():
                if op.opcode == "dot":
                    sizes = dimensions(self._shape(computation, op.operands[0]))
                    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.line)
                    inner = [sizes[int(d)] for d in contracted[1].split(",") if d] if contracted else []
                    total += count * 2.0 * math.prod(dimensions(op.shape)) * math.prod(inner)
                elif op.opcode == "convolution":
                    total += count * _convolution_flops(op, self._shape(computation, op.operands[1]))
        return total

    def traffic(self) -> float:
        """Bytes to and from memory (HBM): what instructions outside fusions read and write.

        A slice, or an update of a slice, counts with the size of the slice. Arrays in other memory spaces, which XLA
        keeps next to the cores, don't count.
        """
        return sum(
            count * (self._written(computation, op) + self._read(computation, op))
            for name, count in self.times.items()
            if name not in self._fused
            for computation in (self._computations[name],)
            for op in computation.values()
            if op.opcode not in _NO_TRAFFIC and 'custom_call_target="AllocateBuffer"' not in op.line
        )

    def _written(self, computation: dict[str, Instruction], op: Instruction) -> float:
        if op.opcode.endswith("-start"):  # counted at `-done`
            return 0.0
        inside, whole = self._inside(op), _in_memory(op.shape)
        if not inside:
            in_place = op.opcode == "dynamic-update-slice"
            return min(whole, _bytes(self._shape(computation, op.operands[1]))) if in_place else whole
        root = self._roots[self._called(op)[0]]
        if _starts_async(root):
            return 0.0
        results = zip(root.operands, _arrays(op.shape), strict=False) if root.opcode == "tuple" else [("", op.shape)]
        not_written = 0.0
        for name, shape in results:
            inner = inside.get(name, root)
            if inner.opcode == "parameter" or _is_async(inner):  # passed through, not written
                not_written += _in_memory(shape)
            # An update of an operand is in place: only the slice is written. Else the whole array is written.
            elif inner.opcode == "dynamic-update-slice" and _is_parameter(inside, inner.operands[0]):
                not_written += _in_memory(shape) - _bytes(self._shape(inside, inner.operands[1]))
        return max(whole - not_written, 0.0)

    def _read(self, computation: dict[str, Instruction], op: Instruction) -> float:
        if op.opcode.endswith("-done"):
            return 0.0
        total = 0.0
        for i, name in enumerate(op.operands):
            whole = _in_memory(self._shape(computation, name))
            part = self._operand_bytes(op, i)
            if op.opcode.endswith("slice-start"):  # ((operands), slice, counter)
                part = max(map(_bytes, re.findall(r"\w+\[[\d,]*\]", op.shape.rpartition("),")[2])), default=0.0)
            elif op.opcode in _SLICES and i == 0:
                part = 0.0 if op.opcode == "dynamic-update-slice" else _bytes(op.shape)
            total += min(whole, part)
        return total

    def _operand_bytes(self, op: Instruction, i: int) -> float:
        """Bytes of operand `i` that a fusion reads: those of slices if it only reads slices, else infinity (all)."""
        inside = self._inside(op)
        named = (name for name, inner in inside.items() if f" parameter({i})" in inner.line)
        parameter = next(named, None)
        names = {n for n, inner in inside.items() if inner.opcode == "bitcast" and parameter in inner.operands}
        names |= {parameter}
        users = [user for n, user in inside.items() if n not in names and names & set(user.operands)]
        root = self._roots[self._called(op)[0]] if inside else None
        passed_through = [_is_async(user) or (user is root and _passes_through(user)) for user in users]
        if users and all(passed_through) and not _starts_async(root):
            return 0.0  # the fusion that started the collective has read it
        if not users or any(user.opcode not in _SLICES or user.operands[0] not in names for user in users):
            return math.inf
        return sum(0.0 if user.opcode == "dynamic-update-slice" else _bytes(user.shape) for user in users)

    def _inside(self, op: Instruction) -> dict[str, Instruction]:
        """The instructions inside a fusion; empty for other instructions."""
        called = self._called(op) if op.opcode == "fusion" else []
        return self._computations[called[0]] if called else {}

    def collectives(self) -> list[Collective]:
        """The collectives, the one with the most bytes first."""
        counts: Counter[tuple[str, str, int]] = Counter()
        for name, count in self.times.items():
            computation = self._computations[name]
            started = {operand for op in computation.values() if _starts_async(op) for operand in op.operands}
            for result, op in computation.items():
                match = re.fullmatch(rf"({_KINDS})(-start)?", op.opcode)
                if not match or (_is_async(op) and result not in started):
                    continue  # fusions that continue or end a collective name it again
                kind, shape = match[1], op.shape
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind, shape = "reduce-scatter", self._roots[name].shape  # TPUs keep only their part of the sum
                counts[kind, _result(shape, kind, bool(match[2])), self._group(op.line)] += count
        collectives = [Collective(*key, times, times * _sent(*key)) for key, times in counts.items()]
        return sorted(collectives, key=lambda collective: -collective.sent)

    def _shape(self, computation: dict[str, Instruction], name: str) -> str:
        return computation[name].shape if name in computation else ""

    def _group(self, line: str) -> int:
        """Number of devices in one replica group."""
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
            log.warning("%s: unknown format of groups, counted as one group of all devices", unknown[0])
        return self.devices


def _starts_async(op: Instruction | None) -> bool:
    """Whether this instruction starts a collective that overlaps with other fusions."""
    return op is not None and 'custom_call_target="AsyncCollectiveStart"' in op.line


def _is_async(op: Instruction) -> bool:
    """Whether this instruction is a collective that overlaps with other fusions."""
    return "async_collective_fusion_config" in op.line


def _passes_through(root: Instruction) -> bool:
    """Whether a fusion's result only passes through its operands or the result of a collective."""
    return root.opcode == "tuple" or 'custom_call_target="AsyncCollectiveDone"' in root.line


def _is_parameter(inside: dict[str, Instruction], name: str) -> bool:
    """Whether a name in a fusion is one of its parameters, perhaps through bitcasts and copies."""
    while name in inside and inside[name].opcode in ("bitcast", "copy", "get-tuple-element"):
        name = inside[name].operands[0]
    return name in inside and inside[name].opcode == "parameter"


def _closing_bracket(text: str) -> int:
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return i
    return len(text)


def _split(text: str) -> list[str]:
    """Split the operands of an instruction at commas outside brackets."""
    parts, depth, begin = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [*parts, text[begin:]]


def dimensions(shape: str) -> list[int]:
    """The dimensions of a shape: [8, 128] for "f32[8,128]"."""
    sizes = re.search(r"\[([\d,]*)\]", shape)
    return [int(size) for size in sizes[1].split(",") if size] if sizes else []


def _convolution_flops(op: Instruction, kernel: str) -> float:
    """FLOPs of a matrix product that XLA writes as a convolution, as on TPUs: a spatial dimension that the result keeps
    is a batch dimension, any other is summed over."""
    labels = re.search(r"dim_labels=\w+_(\w+)->(\w+)", op.line)
    sizes, result = dimensions(kernel), dimensions(op.shape)
    if not labels or len(labels[1]) != len(sizes):
        return 0.0
    inner = 1
    for label, size in zip(labels[1], sizes, strict=True):
        if label == "i" or (label.isdigit() and result[labels[2].index(label)] == 1):
            inner *= size
    return 2.0 * math.prod(result) * inner


def _result(shapes: str, kind: str, started: bool) -> str:
    """The shapes in a collective's result, without layouts."""
    plain = re.findall(r"(\w+\[[\d,]*\])", shapes)
    if started and kind in ("all-gather", "collective-permute"):  # (operands, results), and perhaps counters
        plain = [shape for shape in plain if shape != "u32[]"]
        plain = plain[len(plain) // 2 :]
    return " ".join(f"{n} x {shape}" if n > 1 else shape for shape, n in Counter(plain).items())


def _arrays(shapes: str) -> list[str]:
    """The shape of each array, with its layout."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shapes)


def _bytes(shapes: str) -> float:
    total = 0.0
    for count, kind, sizes in re.findall(r"(?:(\d+) x )?(\w+)\[([\d,]*)\]", shapes):
        numbers = math.prod(int(size) for size in sizes.split(",")) if sizes else 1
        total += int(count or 1) * numbers * _SIZES.get(kind, 4)
    return total


def _in_memory(shapes: str) -> float:
    """Bytes of the arrays in memory space 0 (HBM)."""
    return sum(_bytes(array) for array in _arrays(shapes) if not re.search(r"S\([1-9]", array))


def _sent(kind: str, shapes: str, group: int) -> float:
    """Bytes that a device sends for one collective, in a ring of `group` devices."""
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
