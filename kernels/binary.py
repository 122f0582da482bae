"""Read a compiled kernel's machine code: registers, spills, loops, and which instructions a loop consists of."""

from __future__ import annotations

import functools
import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import triton

from .offline import Compiled

# What an instruction is, by how its name begins. SASS:
_SASS_CLASSES = {
    "barriers": r"BAR\b",
    "global_loads": r"(LDG|LDGSTS|UBLKCP|UTMALDG)\b",
    "global_stores": r"(STG|UTMASTG)\b",
    "atomics": r"(ATOM|ATOMG|RED|REDG)\b",
    "shared_accesses": r"(LDS|LDSM|STS|STSM|ATOMS)\b",
    "local_accesses": r"(LDL|STL)\b",
    "matrix_instructions": r"([BDHIQ]G?MMA|UTC\w*MMA)\b",
    "conversions": r"(F2F|F2FP|F2I|I2F|I2FP|SHFL|MOVM)\b",  # to another number format, or to another thread
}
# AMD's assembly:
_GCN_CLASSES = {
    "barriers": r"s_barrier",
    "global_loads": r"(buffer|global|flat)_load",
    "global_stores": r"(buffer|global|flat)_store",
    "atomics": r"(buffer|global|flat)_atomic",
    "shared_accesses": r"ds_(read|write|load|store)",
    "local_accesses": r"scratch_",
    "matrix_instructions": r"v_s?mfma",
    "conversions": r"(v_cvt|ds_b?permute|ds_swizzle|v_permlane)|.*_dpp\b",
}
CLASSES = tuple(_SASS_CLASSES)


@dataclass(frozen=True)
class Instruction:
    """An instruction's full name, the classes it belongs to, and the indices of those that may come after it."""

    name: str
    classes: frozenset[str]
    successors: tuple[int, ...]


@dataclass(frozen=True)
class Binary:
    """What is known of a compiled kernel."""

    registers: int  # of a thread
    spill_bytes: int  # of a thread
    shared_bytes: int  # of a program
    matrix_instruction: str | None  # the most frequent one's full name
    instructions: int
    loop: dict[str, int]  # of the largest loop, inner loops included: "instructions" and CLASSES

    @staticmethod
    def of(compiled: Compiled) -> Binary:
        """Read `compiled`."""
        return Binary.of_all([compiled])[0]

    @staticmethod
    def of_all(several: Sequence[Compiled]) -> list[Binary]:
        """Read kernels of one target: the disassembler takes a quarter of a second to start, a kernel a hundredth."""
        if not several:
            return []
        if "cubin" not in several[0].asm:
            return [Binary._of_gcn(compiled) for compiled in several]
        found = []
        texts = _disassembled(several[0].target.arch, [_code(compiled.asm["cubin"]) for compiled in several])
        for compiled, text in zip(several, texts, strict=True):
            code, (registers, spilled) = parse_sass(text), _usage(compiled.asm["cubin"])
            if not any("local_accesses" in i.classes for i in code):
                spilled = 0  # a stack frame that nothing is stored in
            found.append(Binary._counted(code, registers, spilled, compiled.shared))
        return found

    @staticmethod
    def _of_gcn(compiled: Compiled) -> Binary:
        text = compiled.asm["amdgcn"]
        # Scalar registers spill into lanes of vector registers, not to memory.
        spilled = max(4 * _metadata(text, "vgpr_spill_count"), _metadata(text, "private_segment_fixed_size"))
        return Binary._counted(parse_gcn(text), _metadata(text, "vgpr_count"), spilled, compiled.shared)

    @staticmethod
    def _counted(code: Sequence[Instruction], registers: int, spilled: int, shared: int) -> Binary:
        matrix = Counter(i.name for i in code if "matrix_instructions" in i.classes).most_common(1)
        name = matrix[0][0] if matrix else None
        return Binary(registers, spilled, shared, name, len(code), count(code, time_loop(code)))


def count(code: Sequence[Instruction], where: Sequence[int]) -> dict[str, int]:
    """How many instructions, and how many of each class, there are at these indices."""
    counts = Counter(name for i in where for name in code[i].classes)
    return {"instructions": len(where), **{name: counts[name] for name in CLASSES}}


def time_loop(code: Sequence[Instruction]) -> list[int]:
    """The indices of the largest outermost loop, in order, whatever it contains; empty where nothing loops.

    That is the loop over time of a kernel that has one, and otherwise the loop over chunks of a product.
    """
    return max(loops(code), key=len, default=[])


def loops(code: Sequence[Instruction]) -> list[list[int]]:
    """The outermost loops: the strongly connected components of the control flow that hold more than an instruction.

    Not intervals between a branch and its target: a wait's cold path may lie behind the end of the kernel.
    """
    order: dict[int, int] = {}  # Tarjan's algorithm, without recursion
    low: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()
    found = []
    for root in range(len(code)):
        if root in order:
            continue
        path = [(root, iter(code[root].successors))]
        order[root] = low[root] = len(order)
        stack.append(root)
        waiting.add(root)
        while path:
            node, rest = path[-1]
            after = next(rest, None)
            if after is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    component = [stack.pop()]
                    while component[-1] != node:
                        component.append(stack.pop())
                    waiting.difference_update(component)
                    if len(component) > 1:
                        found.append(sorted(component))
            elif after not in order:
                order[after] = low[after] = len(order)
                stack.append(after)
                waiting.add(after)
                path.append((after, iter(code[after].successors)))
            elif after in waiting:
                low[node] = min(low[node], order[after])
    return found


def parse_sass(text: str) -> list[Instruction]:
    """The instructions of one function that a disassembler of NVIDIA's printed."""
    pattern = r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);"
    lines = [m.groups() for m in re.finditer(pattern, text, re.MULTILINE)]
    index = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    code, joins = [], {}
    for i, (_, predicate, name, operands) in enumerate(lines):
        base = name.split(".")[0]
        after = {i + 1} if i + 1 < len(lines) else set()
        always, goal = predicate in (None, "@PT"), None
        if base in ("BSSY", "BRA", "JMP") and (target := re.search(r"\b0x([0-9a-f]+)\s*$", operands)):
            goal = index.get(int(target[1], 16))
        if base == "BSSY":
            joins[operands.split(",")[0]] = goal
        elif base == "BSYNC":
            goal = joins.get(operands.strip())
            after |= {goal} if goal is not None else set()
        elif base in ("BRA", "JMP"):
            if always and re.fullmatch(r"0x[0-9a-f]+\s*", operands):
                after = set()
            after |= {goal} if goal is not None else set()
        elif base in ("EXIT", "RET", "KILL") and always:
            after = set()
        classes = _classes(name) if predicate != "@!PT" else frozenset()
        code.append(Instruction(name, classes, tuple(sorted(after))))
    return code


def parse_gcn(text: str) -> list[Instruction]:
    """The instructions of AMD's assembly text."""
    labels: dict[str, int] = {}
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.?\w+):", line):
            labels[label[1]] = len(lines)
        elif match := re.match(r"\s+((?:[sv]|ds|buffer|global|flat|scratch)_\w+)\s*([\w.]*)", line):
            lines.append((match[1], match[2]))
    code = []
    for i, (name, operand) in enumerate(lines):
        goal = labels.get(operand) if name.startswith(("s_branch", "s_cbranch")) else None
        ends = name.startswith(("s_branch", "s_endpgm", "s_setpc"))
        after = {x for x in (None if ends else i + 1, goal) if x is not None and x < len(lines)}
        code.append(Instruction(name, _classes(name, gcn=True), tuple(sorted(after))))
    return code


@functools.cache
def _classes(name: str, gcn: bool = False) -> frozenset[str]:
    patterns = _GCN_CLASSES if gcn else _SASS_CLASSES
    return frozenset(kind for kind, pattern in patterns.items() if re.match(pattern, name))


def _metadata(text: str, name: str) -> int:
    found = re.search(rf"^\s+\.{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _code(cubin: bytes) -> bytes:
    """The instructions of the only kernel of an ELF file of 64 bits."""
    (table,), (size, number, names) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<2I4Q", cubin, table + size * i) for i in range(number)]
    strings = headers[names][4]
    found = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in headers
        if cubin[strings + name :].startswith(b".text.")
    ]
    if len(found) != 1:
        raise RuntimeError(f"expected one kernel in a cubin, found {len(found)}")
    return found[0]


def _disassembled(capability: int, codes: Sequence[bytes]) -> list[str]:
    """What nvdisasm, which comes with Triton, prints of each; addresses are those in all of them together."""
    architecture = f"SM{capability}" + "a" * (capability >= 90)  # as Triton names it
    text = _printed(triton.knobs.nvidia.nvdisasm.path, "--binary", architecture, given=b"".join(codes))
    *starts, _ = accumulate(map(len, codes), initial=0)
    return [text[first:end] for first, end in pairwise([*(text.index(f" /*{x:04x}*/") for x in starts), len(text)])]


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, by cuobjdump, which comes with Triton."""
    text = _printed(triton.knobs.nvidia.cuobjdump.path, "-res-usage", given=cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text[:200]!r}")
    return int(found[1]), int(found[2])


def _printed(*command: str, given: bytes) -> str:
    """What a program prints of a file with these bytes."""
    handle, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(given)
        return subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout
    finally:
        os.remove(path)
