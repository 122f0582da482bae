"""Compile kernels for GPUs that are not there, and record what host code would launch on them.

recorder = Recorder()
with launch.using(recorder):
    stepwise.forward(...)  # meta tensors will do
for start in recorder.launches:
    compiled = compile_launch(start, target_of("sm_90"))
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.language import target_info
from triton.runtime.jit import create_function_from_signature

from .launch import EVERY, cooperation

# CPython counts the depth of what it parses for all threads together, and raises SystemError where two parse at once.
_PARSER = threading.Lock()


@contextmanager
def _asked_of(target: GPUTarget) -> Iterator[None]:
    """While a kernel is parsed, let it find the GPU that it is compiled for: Triton's `target_info` answers for the one
    that is there, or, where none is, that of no capability, and another branch would be compiled than runs there."""
    found = target_info.current_target
    target_info.current_target = lambda: target
    try:
        yield
    finally:
        target_info.current_target = found


class _Source(ASTSource):
    """A kernel's source, read by one thread at a time; what takes longest, ptxas, comes after that."""

    def hash(self) -> str:
        """What Triton names the binary by."""
        with _PARSER:
            return super().hash()

    def make_ir(self, target: GPUTarget, *args: Any, **kwargs: Any) -> Any:
        """What Triton's compiler begins with."""
        with _PARSER, _asked_of(target):
            return super().make_ir(target, *args, **kwargs)


def target_of(name: str) -> GPUTarget:
    """The target of a name as "sm_90" (NVIDIA) or "gfx942" (AMD's 64-lane GPUs).

    Raises:
        ValueError: a name of neither kind.
    """
    if match := re.fullmatch(r"sm_(\d+)", name):
        return GPUTarget("cuda", int(match[1]), 32)
    if re.fullmatch(r"gfx9\w+", name):
        return GPUTarget("hip", name, 64)
    raise ValueError(f"target: expected a name as 'sm_90' or 'gfx942', got {name!r}")


@dataclass(frozen=True)
class Launch:
    """The arguments of one `trigru.kernels.launch.launch`."""

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    cooperative: int

    @property
    def options(self) -> dict[str, Any]:
        """Triton's options."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options | cooperation(self.num_warps, self.cooperative)


class Recorder:
    """A starter for `trigru.kernels.launch.using` that starts nothing and keeps what it was given, in `launches`."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        args: Mapping[str, Any],
        constexprs: Mapping[str, Any],
        *,
        num_warps: int,
        num_stages: int,
        cooperative: int = 0,
    ) -> None:
        """Record one launch."""
        self.launches.append(
            Launch(kernel, tuple(grid), dict(args), dict(constexprs), num_warps, num_stages, cooperative)
        )


@dataclass(frozen=True)
class Specialisation:
    """All that decides what a launch compiles to. Launches with equal keys run the same binary."""

    kernel: Any
    target: GPUTarget
    options: dict[str, Any]
    values: dict[str, Any]  # by argument name, defaults filled in
    kinds: tuple[tuple[Any, Any], ...]  # of each argument: its type or "constexpr", and its value or attributes

    @property
    def key(self) -> tuple:
        """Equal for launches that run the same binary."""
        return self.kernel, str(self.target), str(self.kinds), str(sorted(self.options.items()))


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for one specialisation of its arguments."""

    kernel: Any  # Triton's CompiledKernel
    target: GPUTarget
    arguments: tuple[str, ...]  # names of the arguments that exist at run time, in order

    @property
    def asm(self) -> Mapping[str, Any]:
        """The stages of compilation by name: "ttgir", "ptx" and "cubin", or "amdgcn" and "hsaco", ..."""
        return self.kernel.asm

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


_binders: dict[tuple, Any] = {}


def specialise(kernel: Any, args: Mapping[str, Any], target: GPUTarget, **options: Any) -> Specialisation:
    """What Triton's launcher would make of these arguments; nothing is compiled.

    Args:
        kernel: a `triton.jit` function.
        args: all its arguments by name, compile-time constants among them; tensors may be on any device, "meta" too.
            Triton's own rules decide what is specialised: an argument that is None, or an integer 1, becomes a
            constant; pointers and integers that 16 divides get that attribute; both not where the kernel says
            `do_not_specialize`.
        target: see `target_of`.
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
    at = kernel, str(target)
    if at not in _binders:
        _binders[at] = create_function_from_signature(kernel.signature, kernel.params, make_backend(target))
    bound, kinds, _ = _binders[at](**args)
    return Specialisation(kernel, target, {**EVERY, **options}, bound, tuple(map(tuple, kinds)))


def specialise_launch(launch: Launch, target: GPUTarget) -> Specialisation:
    """What decides the binary of a recorded launch."""
    return specialise(launch.kernel, {**launch.args, **launch.constexprs}, target, **launch.options)


def compile_launch(launch: Launch, target: GPUTarget) -> Compiled:
    """Compile what a recorded launch would run, or take it from Triton's cache on disk."""
    return _compile(specialise_launch(launch, target))


def _compile(special: Specialisation) -> Compiled:
    kernel, names = special.kernel, list(special.values)
    kinds = [kind for kind, _ in special.kinds]
    if any(isinstance(kind, (tuple, list)) for kind in kinds):
        raise TypeError(f"{kernel.__name__}: arguments that are tuples are not supported")
    values = list(special.values.values())
    # As `JITFunction.run` has them: they are a part of the name under which a binary is kept on disk.
    attributes = ["" if kind == "constexpr" else attribute for kind, attribute in special.kinds]
    backend = make_backend(special.target)
    source = _Source(
        fn=kernel,
        signature=dict(zip(names, kinds, strict=True)),
        constexprs={(i,): values[i] for i, kind in enumerate(kinds) if kind == "constexpr"},
        attrs={(i,): backend.parse_attr(attr) for i, attr in enumerate(attributes) if isinstance(attr, str)},
    )
    result = triton.compile(source, target=special.target, options={"debug": kernel.debug, **special.options})
    there = tuple(name for name, kind in zip(names, kinds, strict=True) if kind != "constexpr")
    return Compiled(result, special.target, there)
