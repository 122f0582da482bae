"""PTX text -> instructions. Only syntax, no meaning: what Triton's NVPTX back end and its inline assembly print."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reg:
    """A register."""

    name: str
    negated: bool = False  # !%p as a source


@dataclass(frozen=True)
class Imm:
    """A number."""

    value: int | float
    bits: int = 0  # 32 or 64 when the literal gave the bits of a float (0f..., 0d...): value then holds these bits


@dataclass(frozen=True)
class Sym:
    """A name."""

    name: str  # a variable, a label or a special register such as %tid.x
    offset: int = 0


@dataclass(frozen=True)
class Vec:
    """Operands in braces."""

    items: tuple


@dataclass(frozen=True)
class Mem:
    """An address in brackets."""

    base: Any  # Reg, Sym or Imm
    offset: int = 0


@dataclass(frozen=True)
class Pair:
    """Two destinations, p|q."""

    first: Any
    second: Any


@dataclass
class Instruction:
    """One instruction of the text."""

    opcode: str
    parts: list[str]  # opcode split at its dots
    operands: list
    guard: Reg | None  # @%p or @!%p
    line: int  # 1-based line of the PTX text
    loc: str  # source file:line by .loc, or ""
    text: str


@dataclass
class Module:
    """A PTX text: its entry and its variables."""

    name: str = ""
    target: str = ""
    threads: int = 0  # of one program, when the entry says so (.reqntid)
    params: list = field(default_factory=list)  # (name, type) of the entry
    registers: dict = field(default_factory=dict)  # name -> "pred", "b16", "b32", "b64"
    families: list = field(default_factory=list)  # (prefix, type) of .reg .b32 %r<10>
    instructions: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)  # name -> index of an instruction
    constants: dict = field(default_factory=dict)  # name -> (align, bytes) of .global variables
    shared: dict = field(default_factory=dict)  # name -> (align, bytes or None for the dynamic array)
    local: dict = field(default_factory=dict)  # name -> (align, bytes)


_WIDTH = {"8": "b16", "16": "b16", "32": "b32", "64": "b64"}
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_VARIABLE = re.compile(
    r"\.(global|shared|local|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.%]+)\s*(\[(\d*)\])?\s*(?:=\s*(.*))?$", re.S
)


_FIRST_OF_NUMBERS = frozenset("-0123456789")
_BRACKET = re.compile(r"[\[{(]")


def _split(text: str) -> list[str]:
    """Operands at the top level of `a, {b, c}, [d+4]`."""
    if _BRACKET.search(text) is None:
        flat = [part.strip() for part in text.split(",")]
        return flat if flat[-1] else flat[:-1]
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*out, last] if last else out


def _expect(match: re.Match[str] | None, text: str) -> re.Match[str]:
    if match is None:
        raise NotImplementedError(f"cannot parse: {text}")
    return match


def _number(text: str) -> Imm | None:
    if text[:1] not in _FIRST_OF_NUMBERS:  # most operands are registers
        return None
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Imm(int(text[2:], 16), 32)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Imm(int(text[2:], 16), 64)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Imm(int(text.rstrip("U"), 0))
    if re.fullmatch(r"-?\d+\.\d*([eE][-+]?\d+)?", text):
        return Imm(float(text))
    return None


class Parser:
    """Reads one text."""

    def __init__(self, text: str):
        self.m = Module()
        self.files = dict(re.findall(r'\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]*)"', text))  # printed after the code
        self.loc = ""
        self.scopes: list[dict] = []  # names declared inside { } of inline assembly -> unique names
        self.starts: dict[int, int] = {}  # first instruction of the scope at each depth
        self.fresh = 0
        self.text = text

    def parse(self) -> Module:
        """The module."""
        body, buffer, line0 = False, "", 0
        head = ""
        for number, raw in enumerate(self.text.splitlines(), 1):
            line = re.sub(r"/\*.*?\*/", " ", raw).split("//", 1)[0].strip()
            if not line:
                continue
            if line.startswith(".file"):
                continue
            if not body:  # module level: statements end with ; and the entry's head with {
                if line.startswith(".target"):
                    self.m.target = line.split()[1].rstrip(",")
                if line.startswith((".version", ".target", ".address_size")):
                    continue
                if line.startswith(".section"):
                    break
                if line == "{" and ".entry" in head:
                    self._head(head)
                    head, body = "", True
                    self.scopes = [{}]
                    continue
                if line == "{" and ".func" in head:
                    raise NotImplementedError(
                        f"line {number}: device functions (a kernel that calls a noinline function?)"
                    )
                head += " " + line
                if line.endswith(";"):
                    self._module_statement(head.strip().rstrip(";"))
                    head = ""
                continue
            m = _LOC.match(line)
            if m:
                if m[2] != "0":
                    caller = re.findall(
                        r"@\[ ([\w.]+:\d+):", raw
                    )  # the back end prints the chain of inlined calls as a comment
                    self.loc = f"{self.files.get(m[1], 'source')}:{m[2]}" + (f" from {caller[-1]}" if caller else "")
                continue
            for c in line + " ":
                if not buffer.strip():
                    buffer = ""
                    line0 = number
                    if c == "{":
                        self.scopes.append({})
                        self.starts[len(self.scopes) - 1] = len(self.m.instructions)
                        continue
                    if c == "}":
                        self.scopes.pop()
                        if not self.scopes:
                            body = False
                            break
                        continue
                if c == ";":
                    self._statement(buffer.strip(), line0)
                    buffer = ""
                elif c == ":" and re.fullmatch(r"[\w$%]+", buffer.strip()):
                    self.m.labels[self._label(buffer.strip(), True)] = len(self.m.instructions)
                    buffer = ""
                else:
                    buffer += c
            if not body and self.m.instructions:
                break
        return self.m

    def _module_statement(self, text: str) -> None:
        text = re.sub(r"^\.(extern|visible|weak)\s+", "", text)
        m = _VARIABLE.match(text)
        if not m or m[1] not in ("global", "shared", "const"):
            return  # prototypes of external functions
        self._variable(m)

    def _variable(self, m: re.Match[str]) -> None:
        space, align, kind, name = m[1], int(m[2] or 1), m[3], m[4]
        size = int(re.sub(r"\D", "", kind)) // 8
        count = (int(m[6]) if m[6] else None) if m[5] else 1
        if space in ("global", "const"):
            data = b""
            if m[7]:
                numbers = [int(v, 0) for v in re.findall(r"-?(?:0x[0-9a-fA-F]+|\d+)", m[7])]
                data = b"".join((v & (1 << 8 * size) - 1).to_bytes(size, "little") for v in numbers)
            total = (count or len(data) // size) * size
            self.m.constants[name] = (align, data.ljust(total, b"\0"))
        else:
            getattr(self.m, space)[name] = (align, None if count is None else count * size)

    def _head(self, text: str) -> None:
        m = _expect(re.search(r"\.entry\s+([\w$.]+)\s*\((.*?)\)", text, re.S), text)
        self.m.name = m[1]
        threads = re.search(r"\.reqntid\s+(\d+)", text)
        self.m.threads = int(threads[1]) if threads else 0
        for item in _split(m[2]):
            kind = _expect(re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)", item), item)[1]
            self.m.params.append((item.split()[-1], kind))

    def _label(self, name: str, define: bool = False) -> str:
        if define and len(self.scopes) > 1:
            self.fresh += 1
            unique = self.scopes[-1][name] = f"{name}'{self.fresh}"
            for instruction in self.m.instructions[self.starts[len(self.scopes) - 1] :]:  # branches ahead of the label
                instruction.operands = [Sym(unique) if o == Sym(name) else o for o in instruction.operands]
        return self._resolve(name)

    def _resolve(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def _statement(self, text: str, line: int) -> None:
        m: re.Match[str] | None
        if text.startswith(".reg"):
            declared = _expect(re.match(r"\.reg\s+(?:\.v\d\s+)?\.(\w+)\s+(.*)", text, re.S), text)
            kind = "pred" if declared[1] == "pred" else _WIDTH[re.sub(r"\D", "", declared[1])]
            for name in _split(declared[2]):
                family = re.match(r"(.*)<(\d+)>$", name)
                if family:
                    for i in range(int(family[2])):
                        self.m.registers[f"{family[1]}{i}"] = kind
                    continue
                unique = name
                if len(self.scopes) > 1:
                    self.fresh += 1
                    unique = f"{name}'{self.fresh}"
                    self.scopes[-1][name] = unique
                self.m.registers[unique] = kind
            return
        if text.startswith("."):
            m = _VARIABLE.match(text)
            if m:
                self._variable(m)
            return  # .pragma, .param of a call, ...
        guard = None
        m = re.match(r"@(!?)\s*([\w$%]+)\s+(.*)", text, re.S)
        if m:
            guard = Reg(self._resolve(m[2]), bool(m[1]))
            text_op = m[3]
        else:
            text_op = text
        opcode, _, rest = text_op.replace("\t", " ").partition(" ")
        if opcode.startswith("call"):
            operands = re.findall(r"[\w$]+", rest)
        else:
            operands = [self._operand(o) for o in _split(rest)]
        self.m.instructions.append(Instruction(opcode, opcode.split("."), operands, guard, line, self.loc, text))

    def _operand(self, text: str) -> Any:
        text = text.strip()
        if text.startswith("{"):
            return Vec(tuple(self._operand(o) for o in _split(text[1:-1])))
        if text.startswith("["):
            inner = [self._operand(o) for o in _split(text[1:-1])]
            if len(inner) != 1:
                return Vec(tuple(inner))
            inner = inner[0]
            if isinstance(inner, Sym):
                return Mem(Sym(inner.name), inner.offset)
            return inner if isinstance(inner, Mem) else Mem(inner)
        number = _number(text)
        if number is not None:
            return number
        if "|" in text:
            a, b = text.split("|")
            return Pair(self._operand(a), self._operand(b))
        if text.startswith("!"):
            return Reg(self._resolve(text[1:].strip()), True)
        m = re.fullmatch(r"([\w$%.']+)\s*([+-])\s*(-?(?:0x[0-9a-fA-F]+|\d+))", text)
        if m:
            offset = int(m[3], 0) * (-1 if m[2] == "-" else 1)
            base = self._operand(m[1])
            return Sym(base.name, offset) if isinstance(base, Sym) else Mem(base, offset)
        name = self._resolve(text)
        return Reg(name) if name in self.m.registers else Sym(name)


def parse(text: str) -> Module:
    """The module of a PTX text."""
    return Parser(text).parse()


def float_of(imm: Imm) -> float:
    """The number a literal means where a float is wanted."""
    if imm.bits == 32:
        return struct.unpack("<f", struct.pack("<I", imm.value))[0]
    if imm.bits == 64:
        return struct.unpack("<d", struct.pack("<Q", imm.value))[0]
    return float(imm.value)
