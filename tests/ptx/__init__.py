"""Run a compiled Triton kernel for NVIDIA GPUs without a GPU.

Triton compiles the kernel to PTX (sm_80, sm_90); this package executes the PTX on the CPU with numpy: threads, warps,
shared memory, barriers, tensor cores, and checks of every access. See README.md.

    from ptx import emulate_ptx, ptx_launcher

    stats = emulate_ptx(kernel, {"x": x, "y": y, "n": 300}, {"BLOCK": 128}, grid=(3,), seed=0, arch=90)

    launcher = ptx_launcher(arch=90, seed=0)
    with trigru.kernels.launch.using(launcher):
        ...
"""

from .compilation import Compiled, compile_ptx
from .execution import emulate_ptx, run_ptx
from .launcher import PtxLauncher, ptx_launcher
from .machine import PtxError

__all__ = ["Compiled", "PtxError", "PtxLauncher", "compile_ptx", "emulate_ptx", "ptx_launcher", "run_ptx"]
