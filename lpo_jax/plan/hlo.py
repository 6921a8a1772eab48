"""Bytes that a compiled program moves in memory and between chips, counted from its HLO text.

The body of a loop counts times its trips; the compiler's own `cost_analysis` counts it once. The branches of a conditional aren't counted.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device in one run of a program."""

    memory: int  # read from and written to HBM: every operation reads its operands and writes its results once
    sent: dict[str, int]  # to other devices, by kind of collective, as on a ring
    uncounted_loops: int  # loops whose trips can't be read from the program; their bodies are counted once

    def warnings(self) -> list[str]:
        loops = self.uncounted_loops
        return [f"{loops} loops whose trips aren't in the program: their bytes are counted once"] if loops else []


class _Instruction(NamedTuple):
    type: str
    op: str
    operands: list[str]
    attributes: str


_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_ARRAY = re.compile(r"(pred|[a-z]\w*?)\[([\d,]*)\](?:\{([^}]*)\})?")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_BODIES = {"while": "body", "call": "to_apply", "async-start": "calls"}  # not conditional's: which branch runs isn't in the program
_BUFFERS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AsyncCollective\w+)"')
_FREE = {  # these move nothing themselves
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all", "opt-barrier", "iota",
    "partition-id", "replica-id", "async-start", "async-update", "async-done", "add-dependency",
}  # fmt: skip


def traffic(text: str, devices: int) -> Traffic:
    """What a module (`Compiled.as_text()`) for so many devices moves."""
    return _Module(text, devices).traffic()


class _Module:
    def __init__(self, text: str, devices: int):
        self.devices, self.entry = devices, ""
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.roots: dict[str, str] = {}
        current = ""
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if header := _HEADER.match(line):
                current = header[2]
                self.computations[current] = {}
                self.entry = current if header[1] else self.entry
            elif current and (found := _LINE.match(line)):
                self.computations[current][found[2]] = _parse(found[3])
                if found[1]:
                    self.roots[current] = found[2]

    def traffic(self) -> Traffic:
        memory, unknown = 0, 0
        runs: Counter[str] = Counter()
        pending = [(self.entry, 1)]
        while pending:  # computations outside of fusions, with how often they run
            name, times = pending.pop()
            runs[name] += times
            for i in self.computations[name].values():
                trips = self._trips(name, i) if i.op == "while" else 1
                unknown += trips is None
                if i.op in _BODIES:
                    pending += [(body, times * (trips or 1)) for body in _called(i, _BODIES[i.op])]
        # An asynchronous collective stands in its start, in the fusions that it overlaps and in its end: one channel, one collective.
        once: dict[str, tuple[int, str, int]] = {}
        for name, times in runs.items():
            for own, i in self.computations[name].items():
                memory += times * self._memory(name, i)
                for inside, each in [(name, i), *self._fused(i)]:
                    if each.op.removesuffix("-start") in _KINDS:
                        channel = re.search(r"channel_id=(\d+)", each.attributes)
                        key = channel[1] if channel else f"{name}/{own}"
                        once[key] = max(once.get(key, (0, "", 0)), (times, *self._sent(inside, each)))
        sent: Counter[str] = Counter()
        for times, kind, size in once.values():
            sent[kind] += times * size
        return Traffic(memory, dict(sent), unknown)

    def _fused(self, i: _Instruction) -> list[tuple[str, _Instruction]]:
        """The instructions of a fusion, those of fusions in it too, each with its computation."""
        found = []
        for name in _called(i, "calls") if i.op in ("fusion", "async-start") else ():
            for each in self.computations[name].values():
                found += [(name, each), *self._fused(each)]
        return found

    def _sent(self, computation: str, i: _Instruction) -> tuple[str, int]:
        """A collective's kind and the bytes that one device sends."""
        kind = i.op.removesuffix("-start")
        size = sum(array_bytes(self.computations[computation][name].type, anywhere=True) for name in i.operands)
        group = _group_size(i.attributes) or self.devices
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):  # the TPU's fused form
            kind = "reduce-scatter"
        if kind == "all-gather":
            return kind, size * (group - 1)
        if kind == "collective-permute":
            return kind, size
        return kind, size * (group - 1) * (2 if kind == "all-reduce" else 1) // group

    def _memory(self, computation: str, i: _Instruction) -> int:
        """Bytes that an instruction outside of fusions reads and writes in HBM."""
        if i.op in _FREE or _BUFFERS.search(i.attributes):
            return 0
        if i.op.endswith("-done"):  # what its start has read
            return array_bytes(i.type)
        types = [self.computations[computation][name].type for name in i.operands]
        if i.op == "fusion":
            (fused,) = _called(i, "calls")
            reads = sum(min(array_bytes(t), self._read(fused, p)) for p, t in zip(self._parameters(fused), types, strict=True))
            return reads + self._written(fused, self.roots[fused])
        written = 0 if i.op.endswith("-start") else array_bytes(i.type)
        if i.op in _SLICES:
            return written + min(array_bytes(types[0]), array_bytes(i.type, anywhere=True))
        if i.op == "slice-start":  # its type repeats the operand's
            return min(array_bytes(types[0]), array_bytes(i.type, anywhere=True) - array_bytes(types[0], anywhere=True))
        if i.op == "dynamic-update-slice":  # in place
            return 2 * array_bytes(types[1])
        return written + sum(map(array_bytes, types))

    def _parameters(self, computation: str) -> list[str]:
        names = [name for name, i in self.computations[computation].items() if i.op == "parameter"]
        return sorted(names, key=lambda name: int(self.computations[computation][name].attributes))

    def _read(self, fused: str, value: str) -> int:
        """How much of a value a fused computation reads: the slices of what it only slices, nothing of what it passes on."""
        total = 0
        for name, i in self.computations[fused].items():
            for position in (k for k, operand in enumerate(i.operands) if operand == value):
                if i.op == "bitcast":
                    total += self._read(fused, name)
                elif i.op == "fusion":
                    (inner,) = _called(i, "calls")
                    total += self._read(inner, self._parameters(inner)[position])
                elif i.op in _SLICES and position == 0:
                    total += array_bytes(i.type, anywhere=True)
                elif not self._passes(i) and not (i.op == "dynamic-update-slice" and position == 0):
                    return array_bytes(self.computations[fused][value].type, anywhere=True)
        return total

    def _written(self, fused: str, value: str) -> int:
        """How much of its result a fused computation writes into HBM. The result may be a tuple, and an update fills a part of it."""
        i = self.computations[fused][value]
        if i.op == "tuple":
            return sum(self._written(fused, name) for name in i.operands)
        if i.op == "parameter" or self._passes(i):
            return 0
        if i.op == "fusion":
            (inner,) = _called(i, "calls")
            return min(array_bytes(i.type), self._written(inner, self.roots[inner]))
        if i.op == "bitcast":
            return min(array_bytes(i.type), self._written(fused, i.operands[0]))
        if i.op == "dynamic-update-slice":
            return min(array_bytes(i.type), array_bytes(self.computations[fused][i.operands[1]].type, anywhere=True))
        return array_bytes(i.type)

    def _passes(self, i: _Instruction) -> bool:
        """Whether an instruction in a fusion hands buffers on: an asynchronous collective's bytes move beside the fusion."""
        return i.op == "tuple" or i.op in _KINDS or bool(_BUFFERS.search(i.attributes))

    def _trips(self, computation: str, loop: _Instruction) -> int | None:
        """A loop's trips, if it counts up to a constant as all of JAX's scans do: to the smallest of several, as in `flops.count`."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        (condition,) = _called(loop, "condition")
        test = self.computations[condition][self.roots[condition]]
        return self._counted(computation, loop, condition, test)

    def _counted(self, computation: str, loop: _Instruction, condition: str, test: _Instruction) -> int | None:
        """How often `counter < limit` holds; of several such tests, joined by and or or, the least."""
        if test.op in ("and", "or"):
            counts = [self._counted(computation, loop, condition, self._origin(condition, name)) for name in test.operands]
            return min((count for count in counts if count is not None), default=None)
        if test.op != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = self._origin(condition, test.operands[0])
        if counter.op != "get-tuple-element":
            return None
        index, (body,) = _index(counter), _called(loop, "body")
        start_values = self.computations[computation][loop.operands[0]]
        following = self._origin(body, self.computations[body][self.roots[body]].operands[index])
        if start_values.op != "tuple" or following.op != "add":
            return None
        outside = (computation, start_values.operands)
        limit = self._constant(condition, test.operands[1], outside)
        start = self._constant(computation, start_values.operands[index])
        steps = [k for name in following.operands if (k := self._constant(body, name, outside, index)) is not None]
        if limit is None or start is None or len(steps) != 1:
            return None
        return max(0, -(-(limit - start) // steps[0]))

    def _origin(self, computation: str, name: str) -> _Instruction:
        """The instruction that a value was copied from."""
        i = self.computations[computation][name]
        return self._origin(computation, i.operands[0]) if i.op in ("copy", "copy-start", "copy-done", "bitcast", "convert") else i

    def _constant(
        self, computation: str, name: str, outside: tuple[str, list[str]] | None = None, counter: int | None = None
    ) -> int | None:
        """An integer that is fixed in a computation or, for a loop, outside of it. The loop's own counter isn't."""
        i = self._origin(computation, name)
        if i.op == "constant":
            return int(i.attributes)
        if i.op == "get-tuple-element" and outside is not None and _index(i) != counter:
            return self._constant(outside[0], outside[1][_index(i)])
        return None


_SLICES = ("dynamic-slice", "slice", "gather")


def _parse(text: str) -> _Instruction:
    """An instruction behind its name: type, operation, operands, attributes (of a constant or parameter: its value or number)."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    op, _, rest = text[end:].strip().partition("(")
    behind = _closing("(" + rest) - 1
    inside, attributes = rest[: behind - 1], rest[behind:]
    operands = re.findall(r"%([\w.\-]+)", inside)
    return _Instruction(text[:end], op, operands, inside if op in ("constant", "parameter") else attributes)


def _closing(text: str) -> int:
    """The place behind the parenthesis that closes the first one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _called(i: _Instruction, key: str) -> list[str]:
    """The computations that an attribute names."""
    return [
        name for match in re.finditer(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", i.attributes) for name in re.findall(r"%([\w.\-]+)", match[1])
    ]


def _index(i: _Instruction) -> int:
    match = re.search(r"index=(\d+)", i.attributes)
    assert match is not None
    return int(match[1])


@cache
def array_bytes(type_: str, anywhere: bool = False) -> int:
    """Bytes of a type's arrays: those that lie in HBM (a layout's S(n) names another memory), or all."""
    total = 0
    for dtype, dims, layout in _ARRAY.findall(type_):
        bits = 8 if dtype == "pred" else int((re.findall(r"\d+", dtype) or ["0"])[0])
        if anywhere or "S(" not in layout:
            total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total


def _group_size(attributes: str) -> int | None:
    """How many devices take part in a collective, from its replica groups in any of their notations; None: all."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'?([\w.]+)'?=(\d+)", match[1])}
        parts = re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in parts)
    return None
