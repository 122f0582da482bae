"""What a driver reads from a cubin: registers, shared and local memory, limits, and the layout of the parameters."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class Function:
    """A kernel of a cubin. params: offset and size of each parameter, by ordinal."""

    name: str
    registers: int = 0
    static_shared: int = 0
    local: int = 0
    max_threads: int = 1024
    required_threads: tuple[int, int, int] | None = None
    params: dict[int, tuple[int, int]] = field(default_factory=dict)
    param_bytes: int = 0


def size_of(header: bytes) -> int:
    """Bytes of the ELF file that begins with these 64 bytes: its section table is its end, or its program headers."""
    phoff, shoff = struct.unpack_from("<QQ", header, 32)
    phsize, phnum, shsize, shnum = struct.unpack_from("<HHHH", header, 54)
    return max(phoff + phsize * phnum, shoff + shsize * shnum)


def functions(image: bytes) -> dict[str, Function]:
    """The kernels of a cubin, by name."""
    if image[:4] != b"\x7fELF" or struct.unpack_from("<H", image, 18)[0] != 190:
        raise ValueError("no cubin: not an ELF file for CUDA")
    shoff = struct.unpack_from("<Q", image, 40)[0]
    shsize, shnum, names_at = struct.unpack_from("<HHH", image, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, shoff + i * shsize) for i in range(shnum)]

    def text(table: int, at: int) -> str:
        start = sections[table][4] + at
        return image[start : image.index(b"\0", start)].decode()

    found: dict[str, Function] = {}
    named = [(text(names_at, section[0]), section) for section in sections]
    for name, section in named:
        if name.startswith(".text."):
            found[name[6:]] = Function(name[6:], registers=section[7] >> 24)
    for name, section in named:
        for kind in (".nv.shared.", ".nv.info."):
            function = found.get(name.removeprefix(kind)) if name.startswith(kind) else None
            if function is None:
                continue
            if kind == ".nv.shared.":
                function.static_shared = section[5]
            else:
                _read_info(function, image[section[4] : section[4] + section[5]])
    symbols = {}  # of .nv.info: attributes of functions by their symbol's number
    for _, section in named:
        if section[1] == 2:  # SHT_SYMTAB
            for i in range(section[5] // 24):
                symbols[i] = text(section[6], struct.unpack_from("<I", image, section[4] + 24 * i)[0])
    for name, section in named:
        if name == ".nv.info":
            for attribute, value in _attributes(image[section[4] : section[4] + section[5]]):
                if attribute in (0x2F, 0x12, 0x11) and len(value) == 8:
                    symbol, number = struct.unpack("<II", value)
                    function = found.get(symbols.get(symbol, ""))
                    if function is None:
                        continue
                    if attribute == 0x2F:  # EIATTR_REGCOUNT
                        function.registers = number
                    elif attribute == 0x11:  # EIATTR_FRAME_SIZE
                        function.local = max(function.local, number)
    return found


def _attributes(data: bytes):
    at = 0
    while at + 4 <= len(data):
        kind, attribute, size = data[at], data[at + 1], struct.unpack_from("<H", data, at + 2)[0]
        if kind == 4:
            yield attribute, data[at + 4 : at + 4 + size]
            at += 4 + (size + 3) // 4 * 4
        else:
            yield attribute, data[at + 2 : at + 4]
            at += 4


def _read_info(function: Function, data: bytes) -> None:
    for attribute, value in _attributes(data):
        if attribute == 0x17:  # EIATTR_KPARAM_INFO
            _, ordinal, offset, flags = struct.unpack("<IHHI", value)
            function.params[ordinal] = offset, flags >> 18
        elif attribute == 0x19:  # EIATTR_CBANK_PARAM_SIZE
            function.param_bytes = struct.unpack("<H", value[:2])[0]
        elif attribute == 0x05:  # EIATTR_MAX_THREADS
            function.max_threads = min(1024, struct.unpack_from("<I", value)[0])
        elif attribute == 0x10:  # EIATTR_REQNTID
            function.required_threads = struct.unpack("<III", value)
