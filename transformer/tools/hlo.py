"""A compiled program as XLA prints it: its instructions, arithmetic, traffic to memory, and collectives."""

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
                root, result, shape, opcode, rest = found.groups()
                # Operands end at the first bracket that closes more than was opened; shapes may stand before names.
                inside = rest[: _closing(rest)]
                operands = [part.split()[-1].lstrip("%") for part in _split(inside) if part.strip()]
                self._computations[name][result] = made = Instruction(shape, opcode, operands, line)
                if root:
                    self._roots[name] = made
        self._fused = {
            name
            for computation in self._computations.values()
            for one in computation.values()
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
            computation = self._computations[name]
            for one in computation.values():
                if one.opcode == "dot":
                    sizes = dimensions(self._shape(computation, one.operands[0]))
                    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.line)
                    inner = [sizes[int(d)] for d in contracted[1].split(",") if d] if contracted else []
                    total += count * 2.0 * math.prod(dimensions(one.shape)) * math.prod(inner)
                elif one.opcode == "convolution":
                    total += count * _convolution_flops(one, self._shape(computation, one.operands[1]))
        return total

    def traffic(self) -> float:
        """Bytes to and from memory: what instructions outside fusions read and write, of slices and updates of slices
        their own size. What XLA keeps next to the cores, in another memory space, does not count."""
        return sum(
            count * (self._written(computation, one) + self._read(computation, one))
            for name, count in self.times.items()
            if name not in self._fused
            for computation in (self._computations[name],)
            for one in computation.values()
            if one.opcode not in _NO_TRAFFIC and 'custom_call_target="AllocateBuffer"' not in one.line
        )

    def _written(self, computation: dict[str, Instruction], one: Instruction) -> float:
        if one.opcode.endswith("-start"):  # written when done
            return 0.0
        inside, whole = self._inside(one), _in_memory(one.shape)
        if not inside:
            in_place = one.opcode == "dynamic-update-slice"
            return min(whole, _bytes(self._shape(computation, one.operands[1]))) if in_place else whole
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

    def _read(self, computation: dict[str, Instruction], one: Instruction) -> float:
        if one.opcode.endswith("-done"):
            return 0.0
        total = 0.0
        for i, name in enumerate(one.operands):
            whole = _in_memory(self._shape(computation, name))
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
            computation = self._computations[name]
            begun = {operand for one in computation.values() if _begins(one) for operand in one.operands}
            for result, one in computation.items():
                match = re.fullmatch(rf"({_KINDS})(-start)?", one.opcode)
                if not match or (_overlapped(one) and result not in begun):
                    continue  # in fusions that go on with a collective, and in the one that ends it, it is named again
                kind, shape = match[1], one.shape
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind, shape = "reduce-scatter", self._roots[name].shape  # TPUs take only their own part of the sum
                found[kind, _result(shape, kind, bool(match[2])), self._group(one.line)] += count
        made = [Collective(*key, times, times * _sent(*key)) for key, times in found.items()]
        return sorted(made, key=lambda one: -one.sent)

    def _shape(self, computation: dict[str, Instruction], name: str) -> str:
        return computation[name].shape if name in computation else ""

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


def dimensions(shape: str) -> list[int]:
    """The sizes of an array's dimensions."""
    sizes = re.search(r"\[([\d,]*)\]", shape)
    return [int(size) for size in sizes[1].split(",") if size] if sizes else []


def _convolution_flops(one: Instruction, kernel: str) -> float:
    """TPUs do products of matrices as convolutions: spatial dimensions are those of a batch where the result keeps
    them, and are summed over where it does not."""
    labels = re.search(r"dim_labels=\w+_(\w+)->(\w+)", one.line)
    sizes, result = dimensions(kernel), dimensions(one.shape)
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
