"""The only code that starts a kernel, so that one place decides how it runs.

A starter is a callable with the parameters of `launch`. Without one, the kernel goes to Triton, which needs tensors on
a GPU, or `TRITON_INTERPRET=1` in the environment before Triton is imported. With one (`using`), it gets every kernel
instead: tests execute the compiled kernel on the CPU that way, `trigru inspect` records what would be launched.

Triton's `kernel[grid](...)` takes the host longer than a step may last. It returns what it has compiled, and what is
started again under the same conditions is started through that.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import triton
from triton.runtime import driver

from .errors import DoesNotFit

Starter = Callable[..., None]

# Triton's options of every launch. A product and the sum that it goes into are rounded once: its default, which 3.10
# changes.
EVERY: dict[str, Any] = {"enable_fp_fusion": True}

# Those of a cooperative launch. Its programs may take all registers that a thread can have: left alone, the
# assembler makes room for several programs on a multiprocessor, and spilled a few registers for it.
COOPERATIVE: dict[str, Any] = {"launch_cooperative_grid": True, "maxnreg": 255}
REGISTERS = 65536  # of a multiprocessor, since compute capability 7.0

_starter: ContextVar[Starter | None] = ContextVar("trigru_kernel_starter", default=None)


@contextlib.contextmanager
def using(starter: Starter) -> Iterator[None]:
    """Within the block, and in this thread only, `launch` calls `starter` instead of Triton."""
    token = _starter.set(starter)
    try:
        yield
    finally:
        _starter.reset(token)


def replaced() -> bool:
    """Whether a starter given by `using` is in force."""
    return _starter.get() is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def cooperation(num_warps: int, cooperative: int) -> dict[str, Any]:
    """Triton's options where so many programs of a cooperative launch share a multiprocessor; 0: it is none."""
    if not cooperative:
        return {}
    registers = REGISTERS // (32 * num_warps * cooperative)
    return COOPERATIVE if registers >= 255 else COOPERATIVE | {"maxnreg": registers}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    *,
    num_warps: int,
    num_stages: int,
    cooperative: int = 0,
) -> None:
    """Start `kernel` on `grid`, on the current stream of the device of its first tensor argument.

    Args:
        kernel: a `triton.jit` function.
        grid: number of programs along each axis.
        args: run-time arguments by the kernel's argument names: tensors and numbers.
        constexprs: compile-time arguments by the kernel's argument names.
        num_warps, num_stages: Triton's launch options.
        cooperative: all programs must be on the device together, because they wait for each other, so many of them on
            a multiprocessor; 0: they need not.
    """
    start = prepare(kernel, args, constexprs, (), num_warps=num_warps, num_stages=num_stages, cooperative=cooperative)
    start(grid)


def prepare(
    kernel: Any,
    args: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    varying: tuple[str, ...],
    *,
    num_warps: int,
    num_stages: int,
    cooperative: int = 0,
) -> Callable[..., None]:
    """A function that starts `kernel` as `launch` does, on a grid and with the integers `varying`, any number of times.

    Args:
        args: as for `launch`, but for those that vary.
        varying: names of arguments that follow each other in the kernel, which must not specialise on them.
    """
    options: dict[str, Any] = {"num_warps": num_warps, "num_stages": num_stages}
    if (starter := _starter.get()) is not None:
        options["cooperative"] = cooperative
        return functools.partial(_elsewhere, starter, kernel, args, constexprs, varying, options)
    options |= EVERY
    options |= cooperation(num_warps, cooperative)
    device = next(value.device for value in args.values() if isinstance(value, torch.Tensor))
    return _Prepared(kernel, args, constexprs, varying, options, device)


def _elsewhere(
    starter: Starter,
    kernel: Any,
    args: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    varying: tuple[str, ...],
    options: Mapping[str, Any],
    grid: tuple[int, ...],
    *values: int,
) -> None:
    if 0 not in grid:  # an empty batch: a driver takes no empty grid
        starter(kernel, grid, {**args, **dict(zip(varying, values, strict=True))}, constexprs, **options)


STREAM = object()
"""Where the current stream goes among the arguments of a noted launch."""

_note: ContextVar[Callable[..., None] | None] = ContextVar("trigru_kernel_note", default=None)


@contextlib.contextmanager
def noting(note: Callable[..., None]) -> Iterator[None]:
    """Within the block, and in this thread only, `note` is told of each launch: what Triton compiled for it and all
    that this was started with; or None, where only Triton may start it."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def current() -> tuple[Callable[[int], int], int]:
    """What gives a device's current stream, as Triton's launcher takes it, and the current device."""
    return torch._C._cuda_getCurrentRawStream, torch._C._cuda_getDevice()


Values = Callable[[Mapping[str, Any]], tuple[Any, ...]]

_compiled: dict[tuple[Any, ...], tuple[Any, Values, Values]] = {}
"""Triton's compiled kernels, by all that they depend on, each with what takes the arguments before and after those that
vary. Their own launcher takes a tenth of the time of `kernel[grid]`, which finds out each time, by names, what it has
to run."""


def forget() -> None:
    """Let Triton start each kernel anew."""
    _compiled.clear()
    outdate()


def outdate() -> None:
    """Let no launch be made as it was noted before: something has changed that `circumstances` does not tell."""
    global _age
    _age += 1


_age = 0


class _Prepared:
    """See `prepare`. The first start of its kind is Triton's own, `kernel[grid](...)`, which returns the compiled
    kernel; further ones call that directly. Nothing that Triton specialises on changes between them: `_key` has it, and
    varying integers fit in 32 bits, else Triton starts the kernel again."""

    def __init__(
        self,
        kernel: Any,
        args: Mapping[str, Any],
        constexprs: Mapping[str, Any],
        varying: tuple[str, ...],
        options: dict[str, Any],
        device: torch.device,
    ):
        self.kernel, self.args, self.constexprs, self.varying, self.options = kernel, args, constexprs, varying, options
        self.device = device
        self.key = _key(kernel, args, constexprs, varying, options, device) if device.type == "cuda" else None
        self.run: Callable[..., None] | None = None
        if self.key is not None and (known := _compiled.get(self.key)) is not None:
            self._directly(*known)

    def __call__(self, grid: tuple[int, ...], *values: int) -> None:
        if 0 in grid:  # an empty batch: a driver takes no empty grid
            return
        if self.run is None or (values and max(values) >= _PAST_32_BITS):
            self._by_triton(grid, values)
            if (note := _note.get()) is not None:
                self._noted(note, grid, values)
            return
        with _HERE if self.current else torch.cuda.device(self.device):
            try:
                self.run(*(*grid, 1, 1)[:3], *self.before, *values, *self.after)
            except RuntimeError as error:
                raise named(error) from None
        if (note := _note.get()) is not None:
            self._noted(note, grid, values)

    def _noted(self, note: Callable[..., None], grid: tuple[int, ...], values: tuple[int, ...]) -> None:
        if self.run is None or not self.current or any(value >= _PAST_32_BITS for value in values):
            note(None)
            return
        note(self.run, (*(*grid, 1, 1)[:3], STREAM, *self.before[1:], *values, *self.after))

    def _by_triton(self, grid: tuple[int, ...], values: tuple[int, ...]) -> None:
        given = dict(zip(self.varying, values, strict=True))
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            try:
                compiled = self.kernel[grid](**self.args, **given, **self.constexprs, **self.options)
            except RuntimeError as error:
                raise _in_capture(error, self.kernel.__name__) or named(error) from None
        if self.key is not None and not any(value >= _PAST_32_BITS for value in values):
            names = self.kernel.arg_names
            first = names.index(self.varying[0]) if self.varying else 0
            getters = _values_of(names[:first]), _values_of(names[first + len(self.varying) :])
            known = _compiled[self.key] = compiled, *getters
            self._directly(*known)

    def _directly(self, compiled: Any, before: Values, after: Values) -> None:
        """From now on start what Triton compiled, as `JITFunction.run` does it where nobody listens to launches."""
        values = {**self.args, **self.constexprs}
        active, index = driver.active, self.device.index
        self.current = active.get_current_device() == index
        started = active.get_current_stream(index), compiled.function, compiled.packed_metadata, None, None, None
        self.before, self.after = (*started, *before(values)), after(values)
        self.run = compiled.run


_HERE = contextlib.nullcontext()


def named(error: RuntimeError) -> RuntimeError:
    """CUDA's error 720 as one that can be told from others."""
    return DoesNotFit(str(error)) if "cooperative launch" in str(error) else error


def _in_capture(error: RuntimeError, kernel: str) -> RuntimeError | None:
    """CUDA's error at what a capture does not allow, with what to do about it; None for others."""
    if "captur" not in str(error):
        return None
    return RuntimeError(
        f"{error}. {kernel} is launched for the first time here, and cannot be loaded while a CUDA graph is captured: "
        "before the capture, call the layer once with an input of these sizes, and go back through it if the graph does"
    )


def _values_of(names: Sequence[str]) -> Values:
    if len(names) < 2:  # an itemgetter of one name returns no tuple
        return lambda values: tuple(values[name] for name in names)
    return operator.itemgetter(*names)


_PAST_32_BITS = 1 << 31
# What `JITFunction.run` asks at each start, in some versions of Triton.
_COMPILATION = [
    name for name in ("instrumentation_mode", "fpsan_homomorphic_casts") if hasattr(triton.knobs.compilation, name)
]


_HOOKS = [
    name
    for name in ("launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook")
    if hasattr(triton.knobs.runtime, name)
]
_hooks_of = operator.attrgetter(*_HOOKS)


def _listening() -> bool:
    """Whether hooks of Triton are told of launches."""
    return any(hook is not None and getattr(hook, "calls", True) for hook in _hooks_of(triton.knobs.runtime))


def circumstances() -> tuple[Any, ...] | None:
    """What must be as it was for a launch to be made as it was noted; None where each has to be made anew."""
    if _starter.get() is not None:
        return None
    for hook in _hooks_of(triton.knobs.runtime):  # `_listening`, which takes twice as long
        if hook is not None and getattr(hook, "calls", True):
            return None
    return driver.active, torch._C._cuda_getDevice(), _age


def _key(
    kernel: Any,
    args: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    varying: tuple[str, ...],
    options: Mapping[str, Any],
    device: torch.device,
) -> tuple[Any, ...] | None:
    """All that decides what Triton runs for these arguments, or None where only Triton itself may: on AMD, where sizes
    of tensors matter too, and where hooks listen."""
    if torch.version.hip is not None or _listening() or kernel.pre_run_hooks:
        return None
    kinds, pointers, misaligned = [], [], 0
    for name, value in args.items():
        if isinstance(value, torch.Tensor):
            pointer = value.data_ptr()
            pointers.append(pointer)
            misaligned |= pointer
            kinds.append(value.dtype)
        else:
            kinds.append(_class(value, name not in kernel.do_not_specialize))
    where = tuple(pointer % 16 for pointer in pointers) if misaligned % 16 else None
    settings = triton.knobs.runtime.debug, *[getattr(triton.knobs.compilation, name) for name in _COMPILATION]
    names, fixed = (*args, *varying, *constexprs), (*constexprs.values(), *options.values())
    # Triton hashes a kernel by its source, each time; a function is hashed by where it lies.
    return kernel.fn, device.index, driver.active, names, tuple(kinds), where, fixed, settings


def _class(value: Any, specialised: bool) -> Any:
    """Of a number: what Triton distinguishes, or more."""
    if type(value) is not int:
        return type(value), value
    wide = not -_PAST_32_BITS <= value < _PAST_32_BITS
    return (wide, value == 1, value % 16 == 0) if specialised else wide
