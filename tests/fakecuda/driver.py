"""The driver behind libcuda.so.1: modules, functions, pointers, launches. A launch executes the kernel's PTX."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import re
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cubin

SMS = 132
INVALID_VALUE, NOT_FOUND, NO_IMAGE, INVALID_HANDLE, TOO_LARGE, FAILED = 1, 500, 200, 400, 720, 719
COOPERATIVE, PDL = 2, 6

launches: list[dict[str, Any]] = []
options: dict[str, Any] = {
    "seed": "round-robin",  # order of the programs of a cooperative launch; the others run one after another
    "quantum": 200,  # instructions of a program's turn
    "execute": True,  # False: launches are checked and recorded, nothing runs
    "checks": True,
    "races": True,
    "max_instructions": 200_000_000,
}

clock = {"driver": 0.0}  # seconds spent in here by launches and pointer look-ups: not the caller's time


def _counted(function: Any) -> Any:
    """Add the function's time to `clock`."""

    @functools.wraps(function)
    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            clock["driver"] += time.perf_counter() - start

    return timed


_Callback = {
    "module_load": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)),
    "module_function": ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64)
    ),
    "function_get": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.POINTER(ctypes.c_int)),
    "function_set": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int),
    "pointer": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(ctypes.c_int)),
    "launch": ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_uint32),
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_int),
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_void_p),
    ),
}


class _Callbacks(ctypes.Structure):
    _fields_ = list(_Callback.items())


@dataclass
class Module:
    """A loaded cubin, in the context of a device."""

    device: int
    functions: dict[str, cubin.Function]
    ptx: str
    hash: str


@dataclass
class Function:
    """A kernel's handle, with the attributes that were set on it."""

    module: Module
    of: cubin.Function
    set: dict[int, int] = field(default_factory=dict)


library: Any = None  # libcuda.so.1
torch_library: Any = None  # libtorch_fakecuda.so
_modules: dict[int, Module] = {}
_functions: dict[int, Function] = {}
_ptx: dict[str, str] = {}  # by the cubin's hash
_kept: list[Any] = []
streams: dict[int, int] = {0: -1}  # handle of a stream: its device; 0 is each device's default stream


class CudaError(RuntimeError):
    """A call that the driver refuses: its code, and why."""

    def __init__(self, code: int, why: str):
        super().__init__(why)
        self.code = code


def load(path: Path, devices: int) -> None:
    """Load libcuda.so.1, so that whoever asks for that name from now on gets this one, and take its calls."""
    global library
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    calls = {name: _guarded(kind, globals()[f"_{name}"]) for name, kind in _Callback.items()}
    _kept.append(_Callbacks(**calls))
    library.fakecuda_register(ctypes.byref(_kept[-1]), devices)
    os.environ["TRITON_LIBCUDA_PATH"] = str(path.parent)


def _guarded(kind: Any, call: Any) -> Any:
    def run(*arguments: Any) -> int:
        try:
            call(*arguments)
        except CudaError as error:
            library.fakecuda_error(str(error).encode())
            return error.code
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            library.fakecuda_error(f"{type(error).__name__}: {error}".encode()[:8000])
            return FAILED
        return 0

    return kind(run)


def know(metadata_group: Any) -> None:
    """Triton's hook before it loads a kernel: the PTX that belongs to a cubin."""
    paths = {Path(path).suffix: Path(path) for path in metadata_group.values()}
    _ptx[hashlib.sha256(paths[".cubin"].read_bytes()).hexdigest()] = paths[".ptx"].read_text()


def _module_load(image: int, module: Any) -> None:
    if torch_library.fakecuda_capturing():
        raise CudaError(900, "operation not permitted when stream is capturing: a kernel is loaded")
    header = ctypes.string_at(image, 64)
    if header[:4] != b"\x7fELF":
        raise CudaError(NO_IMAGE, "device kernel image is invalid")
    data = ctypes.string_at(image, cubin.size_of(header))
    found = cubin.functions(data)
    flags = struct.unpack_from("<I", data, 48)[0]
    arch = flags & 0xFF if data[8] < 8 else flags >> 8 & 0xFF
    if arch != 90:
        raise CudaError(209, f"no kernel image is available for execution on the device: sm_{arch}, not sm_90")
    key = hashlib.sha256(data).hexdigest()
    text = _ptx.get(key)
    if text is None:
        raise CudaError(FAILED, "the fake driver has not been told this cubin's PTX")
    handle = 0x4D00_0000 + 16 * len(_modules)
    _modules[handle] = Module(library.fakecuda_device(), found, text, key)
    module[0] = handle


def _module_function(module: int, name: bytes, function: Any) -> None:
    of = _modules[module].functions.get(name.decode())
    if of is None:
        raise CudaError(NOT_FOUND, f"named symbol not found: {name.decode()}")
    handle = 0x4600_0000 + 16 * len(_functions)
    _functions[handle] = Function(_modules[module], of)
    function[0] = handle


def _function_get(function: int, attribute: int, value: Any) -> None:
    of, was_set = _functions[function].of, _functions[function].set
    known = {0: of.max_threads, 1: of.static_shared, 3: of.local, 4: of.registers, 8: was_set.get(8, 49152)}
    if attribute not in known:
        raise CudaError(INVALID_VALUE, f"the fake driver knows no function attribute {attribute}")
    value[0] = known[attribute]


def _function_set(function: int, attribute: int, value: int) -> None:
    of = _functions[function].of
    if attribute == 8 and value + of.static_shared > 232448:
        raise CudaError(INVALID_VALUE, f"{value} bytes of dynamic shared memory are more than a block can have")
    _functions[function].set[attribute] = value


def _block(address: int) -> tuple[int, int, int]:
    """Device (-1: page-locked, -2: none), begin and size of the memory that an address leads into."""
    begin, size = ctypes.c_uint64(), ctypes.c_uint64()
    device = torch_library.fakecuda_block(ctypes.c_uint64(address), ctypes.byref(begin), ctypes.byref(size))
    return device, begin.value, size.value


@_counted
def _pointer(address: int, device: Any) -> None:
    found = _block(address)[0]
    if found == -2:
        raise CudaError(INVALID_VALUE, "invalid argument")
    device[0] = max(found, 0)


_PARAM = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)(\s+\.ptr\s+\.global[^,\n]*?)?\s+(\w+)\s*[,\n)]")


@_counted
def _launch(function: int, config: Any, stream: int, attributes: Any, count: int, params: Any) -> None:
    if function not in _functions:
        raise CudaError(INVALID_HANDLE, "invalid resource handle")
    handle, given = _functions[function], {attributes[2 * i]: attributes[2 * i + 1] for i in range(count)}
    of, device = handle.of, library.fakecuda_device()
    grid, block, dynamic = tuple(config[0:3]), tuple(config[3:6]), config[6]
    if handle.module.device != device:
        raise CudaError(INVALID_HANDLE, f"the kernel was loaded on device {handle.module.device}, not {device}")
    if stream not in streams or streams[stream] not in (-1, device):
        raise CudaError(INVALID_HANDLE, f"stream {stream:#x} is not one of device {device}")
    if not set(given) <= {COOPERATIVE, PDL}:
        raise CudaError(
            INVALID_VALUE, f"the fake driver knows no launch attributes but {COOPERATIVE} and {PDL}: {given}"
        )
    if min(*grid, *block) < 1 or grid[0] >= 1 << 31 or max(grid[1:]) > 65535:
        raise CudaError(INVALID_VALUE, f"invalid argument: grid {grid}, block {block}")
    threads = math.prod(block)
    if threads > of.max_threads or (of.required_threads and block != of.required_threads):
        raise CudaError(INVALID_VALUE, f"block {block}, but the kernel was compiled for {of.required_threads}")
    limit = handle.set.get(8, 49152)
    if dynamic > limit:
        raise CudaError(INVALID_VALUE, f"{dynamic} bytes of dynamic shared memory; the function's limit is {limit}")
    blocks = library.fakecuda_blocks(of.registers, of.static_shared, of.max_threads, limit, threads, dynamic)
    if blocks < 1:
        raise CudaError(701, f"too many resources requested for launch: {of.registers} registers, {dynamic} bytes")
    cooperative = bool(given.get(COOPERATIVE))
    if cooperative and math.prod(grid) > blocks * SMS:
        raise CudaError(TOO_LARGE, f"too many blocks in cooperative launch: {grid}, {blocks} on each of {SMS} SMs")

    kinds = [(kind, bool(pointer), name) for kind, pointer, name in _PARAM.findall(_entry(handle.module.ptx))]
    if len(kinds) != len(of.params):
        raise CudaError(FAILED, f"{len(kinds)} parameters in the PTX, {len(of.params)} in the cubin")
    values = []
    for i, (kind, pointer, name) in enumerate(kinds):
        size = of.params[i][1]
        if size * 8 != int(kind.lstrip("bsuf")):
            raise CudaError(FAILED, f"parameter {name}: {kind} in the PTX, {size} bytes in the cubin")
        raw = ctypes.string_at(params[i], size)
        value = struct.unpack("<f", raw)[0] if kind == "f32" else int.from_bytes(raw, "little", signed=kind[0] == "s")
        if pointer and value:
            where = _block(value)[0]
            if where not in (-1, device):
                raise CudaError(700, f"an illegal memory access was encountered: {name} leads to device {where}")
            declared = _entry(handle.module.ptx).split(name)[0].rsplit(".param", 1)[1]
            align = re.search(r"\.align\s+(\d+)", declared)
            if align and value % int(align[1]):
                raise CudaError(716, f"misaligned address: {name} is {value:#x}, compiled for multiples of {align[1]}")
        values.append((name, kind, pointer, value))
    record = {
        "kernel": of.name,
        "binary": handle.module.hash,
        "grid": grid,
        "block": block,
        "shared": dynamic,
        "cooperative": cooperative,
        "registers": of.registers,
        "blocks_per_sm": blocks,
        "stream": stream,
        "device": device,
        "params": values,
        "captured": bool(torch_library.fakecuda_capturing()),
    }

    def run() -> None:
        launches.append(record)
        if options["execute"]:
            record["statistics"] = _unseen(_execute, handle, record)
            for begin, end, write in record["statistics"].pop("touched"):
                what = f"the kernel {of.name}".encode()
                wrong = torch_library.fakecuda_use(begin, end, stream, device, write, what)
                if wrong:
                    raise CudaError(FAILED, f"fakecuda: {wrong.decode()}")

    if record["captured"]:
        number = len(_captured)
        _captured.append(run)
        torch_library.fakecuda_capture_keep(_replayed, number)
    else:
        run()


_captured: list[Any] = []
replay_errors: list[BaseException] = []


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _replayed(number: int) -> None:
    try:
        _captured[number]()
    except BaseException as error:
        replay_errors.append(error)


def _entry(ptx: str) -> str:
    """The parameters of the PTX's entry."""
    start = ptx.index(".entry")
    return ptx[start : ptx.index(")", start) + 1]


def _unseen(execute: Callable[..., Any], *arguments: Any) -> Any:
    """Without the caller's modes of torch: a kernel's work is nothing that they see."""
    import torch

    with torch._C.DisableTorchFunction():
        return execute(*arguments)


def _execute(handle: Function, record: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch
    from ptx.execution import run_ptx

    arguments: dict[str, Any] = {}
    at: dict[str, int] = {}
    of_the_host = set()  # page-locked memory: what the kernel writes there arrives late
    for name, _, _, value in record["params"]:
        where, begin, size = _block(value) if value and isinstance(value, int) else (-2, 0, 0)
        if where == -2:
            arguments[name] = value
            continue
        left = begin + size - value
        memory = np.frombuffer((ctypes.c_uint8 * left).from_address(value), np.uint8)
        if where == -1:
            of_the_host.add(name)
            memory = memory.copy()
        arguments[name] = torch.from_numpy(memory)
        at[name] = value
    grid = record["grid"]
    cooperative = record["cooperative"]
    touched: dict[str, list[tuple[int, int, bool]]] = {}
    statistics = run_ptx(
        handle.module.ptx,
        arguments,
        grid,
        record["block"][0] // 32,
        record["shared"],
        options["seed"] if cooperative else None,
        max_instructions=options["max_instructions"],
        checks=options["checks"],
        races=options["races"],
        quantum=options["quantum"],
        resident_programs=record["blocks_per_sm"] * SMS,
        touched=touched,
    )
    for name in of_the_host:
        for begin, end, write in touched.get(name, []):
            if write:
                torch_library.fakecuda_arrives_late(at[name] + begin, arguments[name].data_ptr() + begin, end - begin)
    spans = [
        (at[name] + begin, at[name] + end, write) for name, found in touched.items() for begin, end, write in found
    ]
    return {**statistics, "touched": spans}
