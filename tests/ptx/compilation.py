"""Compile a kernel for an NVIDIA GPU that is not there, as Triton's launcher would for the same arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import triton

from trigru.kernels import offline
from trigru.kernels.offline import Compiled, target_of

_compiled: dict[tuple, Compiled] = {}


def _to_ptx_only(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str]:
    """Triton's hook: asked for stages, the last makes no machine code; asked for a name, one under which nobody who
    needs machine code finds the result on disk."""
    if stages is not None:
        stages["cubin"] = lambda ptx, metadata: b""
    return "to PTX only", "to PTX only"


@contextlib.contextmanager
def _without_machine_code() -> Iterator[None]:
    """ptxas takes a tenth of the time, and nothing of what it makes is executed here. Before it had this hook, Triton
    makes machine code all the same."""
    runtime = triton.knobs.runtime
    if not hasattr(runtime, "add_stages_inspection_hook"):
        yield
        return
    before = runtime.add_stages_inspection_hook
    runtime.add_stages_inspection_hook = _to_ptx_only
    try:
        yield
    finally:
        runtime.add_stages_inspection_hook = before


def compile_ptx(kernel: Any, args: Mapping[str, Any], arch: int = 80, **options: Any) -> Compiled:
    """Compile `kernel` for sm_`arch`, 80, 90 or 100, as far as PTX; see `trigru.kernels.offline.specialise`."""
    special = offline.specialise(kernel, args, target_of(f"sm_{arch}"), **options)
    if special.key not in _compiled:
        with _without_machine_code():
            _compiled[special.key] = offline._compile(special)
    return _compiled[special.key]
