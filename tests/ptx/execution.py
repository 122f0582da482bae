"""Run PTX, or a Triton kernel through its PTX, on tensors in main memory."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import isa_arith, isa_bits, isa_control, isa_cvt, isa_mem, isa_warp, isa_wgmma  # noqa: F401  (register decoders)
from .compilation import compile_ptx
from .late import LateStores
from .memory import GLOBAL_BASE, GlobalMemory
from .parse import parse
from .program import Program
from .schedule import make_policy, run_grid

_FORMAT = {
    "u8": "<B",
    "s8": "<b",
    "u16": "<H",
    "s16": "<h",
    "u32": "<I",
    "s32": "<i",
    "u64": "<Q",
    "s64": "<q",
    "f32": "<f",
    "f64": "<d",
    "b8": "<B",
    "b16": "<H",
    "b32": "<I",
    "b64": "<Q",
}


def _bytes_of(name: str, tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as bytes."""
    if tensor.device.type != "cpu":
        raise ValueError(f"argument {name} is on {tensor.device}; kernels run here on tensors in main memory")
    if not tensor.is_contiguous():
        shape, strides = tuple(tensor.shape), tensor.stride()
        raise ValueError(f"argument {name} is not contiguous: shape {shape}, strides {strides}")
    if not tensor.numel():
        return np.zeros(0, np.uint8)
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


@functools.lru_cache(maxsize=256)
def _decode(text: str, num_warps: int, shared: int) -> Program:
    """The program of a PTX text. Its constants lie where `run_ptx` puts them: before everything else."""
    module = parse(text)
    memory = GlobalMemory()
    symbols = {name: memory.add(name, len(data)) for name, (_, data) in module.constants.items()}
    return Program(module, module.threads // 32 or num_warps, symbols, shared)


def run_ptx(
    text: str,
    args: Mapping[str, Any],
    grid: tuple[int, ...],
    num_warps: int = 4,
    shared: int = 0,
    seed: int | str | None = None,
    quantum: int = 200,
    max_instructions: int = 50_000_000,
    checks: bool = True,
    races: bool = True,
    strong: bool = False,
    global_scratch: int = 0,
    starve: int | None = None,
    behind: tuple[int, int] | None = None,
    resident_programs: int | None = None,
    touched: dict[str, list[tuple[int, int, bool]]] | None = None,
    late: int | None = None,
) -> dict[str, Any]:
    """Run the entry of a PTX text; see `emulate_ptx`.

    Args:
        args: tensors and numbers in the order of its parameters, without Triton's two scratch pointers.
        num_warps: matters only where the entry has no .reqntid.
        shared: bytes of dynamic shared memory of a program.
        global_scratch: bytes of global scratch memory of a program.
        late: see `emulate_ptx`.
        touched: gets the spans of bytes that were read or written of each tensor, see `GlobalMemory.spans`.
    """
    if not 1 <= len(grid) <= 3:
        raise ValueError(f"a grid has one to three axes, not {len(grid)}")
    policy = make_policy(seed, quantum, starve, behind)
    program = _decode(text, num_warps, shared)
    module = program.module
    memory = GlobalMemory(checks, strong)
    constants = {memory.add(name, len(data)): data for name, (_, data) in module.constants.items()}
    address = memory.add_tensors({n: _bytes_of(n, v) for n, v in args.items() if isinstance(v, torch.Tensor)})
    values = [address.get(name, value) for name, value in args.items()]
    if global_scratch:
        values.append(memory.add("global scratch", global_scratch * math.prod(grid)))
    values += [0] * (len(module.params) - len(values))
    if len(values) != len(module.params):
        raise TypeError(f"the PTX has {len(module.params)} parameters, {len(values)} values were given")
    params = {}
    for (name, kind), value in zip(module.params, values, strict=True):
        if kind[0] in "bu" and isinstance(value, int):
            value &= (1 << int(kind[1:])) - 1
        params[name] = struct.pack("<f" if isinstance(value, float) and kind == "b32" else _FORMAT[kind], value)
    memory.seal()
    for start, data in constants.items():
        memory.data[start - GLOBAL_BASE : start - GLOBAL_BASE + len(data)] = np.frombuffer(data, np.uint8)
    if late is not None:
        memory.late = LateStores(memory.data, late)
    if touched is not None:
        memory.observe()
    try:
        stats = run_grid(program, memory, params, grid, policy, resident_programs, max_instructions, checks, races)
    finally:
        if memory.late is not None:
            memory.late.end()
        memory.copy_back()
        if touched is not None:
            touched |= memory.spans()
    return {
        **stats,
        "shared": program.shared_bytes,
        "local": program.local_bytes,
        "race_check": checks and races and program.races,
        "ptx_instructions": len(module.instructions),
    }


def emulate_ptx(
    kernel: Any,
    args: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    grid: tuple[int, ...],
    num_warps: int = 4,
    seed: int | str | None = None,
    arch: int = 80,
    quantum: int = 200,
    max_instructions: int = 50_000_000,
    checks: bool = True,
    races: bool = True,
    strong: bool = False,
    starve: int | None = None,
    behind: tuple[int, int] | None = None,
    resident_programs: int | None = None,
    late: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compile `kernel` for sm_`arch` and run its PTX on the CPU; tensors in `args` are updated in place, also after an
    error. They must be contiguous; they may be views, and may overlap.

    Args:
        kernel: a `triton.jit` function.
        args: run-time arguments by name: tensors in main memory, numbers, None.
        constexprs: compile-time arguments by name.
        grid: number of programs along one to three axes.
        num_warps: warps of a program.
        seed: None runs the programs one after another; "round-robin" gives each in turn `quantum` instructions; an
            integer draws them at random for up to `quantum` instructions, one turn in four for some of the warps only.
        arch: compute capability, 80, 90 or 100.
        quantum: instructions of a turn.
        max_instructions: more warp-instructions than these are an error.
        checks: check accesses.
        races: check for races.
        strong: and let programs that race use strong accesses of one size only.
        starve: index, in launch order, of a program that runs only when the others seem to wait for it.
        behind: index of a program and the number of instructions by which it comes late, whenever it has stored
            something; all run in turn.
        resident_programs: how many programs are on the device at once, None: all.
        late: a seed, by which stores become visible to other programs late and in an odd order, see late.py; None: at
            once and in order.
        options: Triton's (num_stages, ...).

    Returns:
        What was executed. instructions, barriers, atomics and mma count once for each warp (a wgmma four times); bytes
        are those of active threads; critical_path is the largest number of instructions of a single warp.

    Raises:
        PtxError: an error of the kernel, see README.md.
        NotImplementedError: an instruction that is not known here.
    """
    compiled = compile_ptx(kernel, {**args, **constexprs}, arch, num_warps=num_warps, **options)
    ordered = {
        name: args[name] if name in args else kernel.signature.parameters[name].default for name in compiled.arguments
    }
    stats = run_ptx(
        compiled.ptx,
        ordered,
        grid,
        compiled.num_warps,
        compiled.shared,
        seed,
        quantum,
        max_instructions,
        checks,
        races,
        strong,
        compiled.global_scratch,
        starve,
        behind,
        resident_programs,
        late=late,
    )
    return {**stats, "compiled": compiled}
