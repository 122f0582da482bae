"""The smaller way: no library, no compiler, no CUDA tensors. Triton's JITFunction.run with a driver written in Python.

    with driver_only.active() as launches:
        kernel[grid](cpu_tensor, ..., num_warps=4)

What is real: the binder, specialisation, the cache keys, options and their names, compilation, `CompiledKernel.run`.
What is not: driver.c and the generated launcher, module loading, streams, devices, every branch of a caller on
device.type.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from .cubin import functions
from .driver import SMS

REGISTERS = 65536  # of a multiprocessor
DEVICE = 1000  # Triton keeps what it compiled by the device's number: no other device has this one


class Launcher:
    """`driver.active.launcher_cls`: made once for a compiled kernel, called at each launch."""

    def __init__(self, src: Any, metadata: Any):
        self.src, self.metadata = src, metadata

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        """Execute the kernel; rest: the packed metadata, the launch's metadata, two hooks, the kernel's arguments."""
        from ptx.execution import run_ptx

        grid, metadata = (x, y, z), self.metadata
        names = [name for name, kind in self.src.signature.items() if kind != "constexpr"]
        given = dict(zip(self.src.fn.arg_names, rest[4:], strict=True))
        cooperative = metadata.launch_cooperative_grid
        at_once = SMS * (REGISTERS // max(1, function.registers * 32 * metadata.num_warps))
        if cooperative and math.prod(grid) > at_once:
            raise RuntimeError(f"too many blocks in cooperative launch: {grid}, {at_once} at once")
        statistics = run_ptx(
            function.ptx,
            {name: given[name] for name in names},
            grid,
            metadata.num_warps,
            metadata.shared,
            "round-robin" if cooperative else None,
        )
        kept = {"kernel": metadata.name, "grid": grid, "cooperative": cooperative, "registers": function.registers}
        driver.active.launches.append({**kept, **statistics})


class Function:
    """A kernel that Triton has loaded."""

    def __init__(self, name: str, cubin: bytes, ptx: str):
        self.ptx, self.registers = ptx, functions(cubin)[name].registers


class Driver(DriverBase):
    """An H100."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self.utils = self
        self.ptx = ""
        self.get_current_device = lambda: DEVICE
        self.get_current_stream = lambda device: 0
        self.set_current_device = lambda device: None
        self.get_device_capability = lambda device=0: (9, 0)

    is_active = classmethod(lambda cls: True)

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Asked for by launchers in C only."""
        raise NotImplementedError

    def get_current_target(self) -> GPUTarget:
        """An H100's."""
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> Any:
        """Where tensors are."""
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """There is no time to measure."""
        raise NotImplementedError

    def get_device_properties(self, device: int) -> dict[str, int]:
        """An H100's."""
        return {"max_shared_mem": 232448, "multiprocessor_count": SMS, "max_num_regs": REGISTERS, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spills, threads at most."""
        return 1, Function(name, kernel, self.ptx), 0, 0, 1024

    def before_load(self, module: Any, function: Any, name: str, metadata_group: Any, hash: str) -> None:
        """Triton's hook before `load_binary`: the PTX of the cubin."""
        with open(next(path for path in metadata_group.values() if path.endswith(".ptx"))) as file:
            self.ptx = file.read()


@contextlib.contextmanager
def active() -> Iterator[list[dict[str, Any]]]:
    """Within the block Triton's launches come here; yields the list of launches: kernel, grid, cooperative, registers,
    and what `ptx.run_ptx` returns."""
    import triton

    fake, before = Driver(), driver._active
    driver.set_active(fake)
    triton.knobs.runtime.kernel_load_start_hook.add(fake.before_load)
    try:
        yield fake.launches
    finally:
        triton.knobs.runtime.kernel_load_start_hook.remove(fake.before_load)
        driver._active = before
