"""Compile a kernel for an NVIDIA GPU that is not there, as Triton's launcher would for the same arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for one specialisation of its arguments."""

    kernel: Any  # Triton's CompiledKernel
    arguments: tuple[str, ...]  # names of the arguments that exist at run time, in order

    @property
    def ptx(self) -> str:
        """The PTX text."""
        return self.kernel.asm["ptx"]

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return self.kernel.metadata.num_warps

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory of a program."""
        return self.kernel.metadata.shared

    @property
    def global_scratch(self) -> int:
        """Bytes of global scratch memory of a program."""
        return getattr(self.kernel.metadata, "global_scratch_size", 0) or 0


_compiled: dict[tuple, Compiled] = {}
_binders: dict[tuple, Any] = {}


def compile_ptx(kernel: Any, args: Mapping[str, Any], arch: int = 80, **options: Any) -> Compiled:
    """Compile `kernel` for sm_`arch`; what was compiled once in this process is kept.

    Args:
        kernel: a `triton.jit` function.
        args: all its arguments by name, compile-time constants among them. Triton's own rules decide what is
            specialised: an argument that is None, or an integer 1, becomes a constant; pointers and integers that 16
            divides get that attribute; both not where the kernel says `do_not_specialize`.
        arch: compute capability, 80 or 90.
        options: Triton's (num_warps, num_stages, ...).
    """
    if triton.knobs.runtime.interpret or not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            "cannot compile: TRITON_INTERPRET=1 is in force, which makes triton.jit build interpreted functions; "
            "run this in a process without it"
        )
    unknown = [name for name in args if name not in kernel.arg_names]
    if unknown:
        raise TypeError(f"{kernel.__name__} has no arguments {unknown}")
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    if (kernel, arch) not in _binders:
        _binders[kernel, arch] = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, _ = _binders[kernel, arch](**args)
    key = (kernel, arch, str(specialisation), str(sorted(options.items())))
    if key not in _compiled:
        kinds = [s[0] for s in specialisation]
        if any(isinstance(kind, (tuple, list)) for kind in kinds):
            raise TypeError(f"{kernel.__name__}: arguments that are tuples are not supported")
        values = list(bound.values())
        source = ASTSource(
            fn=kernel,
            signature=dict(zip(bound, kinds, strict=True)),
            constexprs={(i,): values[i] for i, kind in enumerate(kinds) if kind == "constexpr"},
            attrs={(i,): backend.parse_attr(s[1]) for i, s in enumerate(specialisation) if isinstance(s[1], str)},
        )
        result = triton.compile(source, target=target, options={"debug": kernel.debug, **options})
        names = tuple(name for name, kind in zip(bound, kinds, strict=True) if kind != "constexpr")
        _compiled[key] = Compiled(result, names)
    return _compiled[key]
