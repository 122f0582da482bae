"""Compile a kernel for an NVIDIA GPU that is not there, as Triton's launcher would for the same arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trigru.kernels.offline import Compiled, compile_for, target_of


def compile_ptx(kernel: Any, args: Mapping[str, Any], arch: int = 80, **options: Any) -> Compiled:
    """Compile `kernel` for sm_`arch`, 80 or 90; see `trigru.kernels.offline.compile_for`."""
    return compile_for(kernel, args, target_of(f"sm_{arch}"), **options)
