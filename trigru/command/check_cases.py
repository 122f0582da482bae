"""Random layers, their results by the float64 reference, and how far a schedule's results may be from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..reference import layer as run_reference

ARGUMENTS = ("input", "h0", "w_ih", "w_hh", "b_ih", "b_hh")


@dataclass(frozen=True)
class Numbers:
    """How numbers are stored and multiplied, and the largest ||error|| / ||reference|| that their rounding explains."""

    name: str
    dtype: torch.dtype
    tolerance: float
    tf32: bool = False


# 16 bits and TF32: 8 units of rounding, of the state at each step or of a product's operands. float32 and float64 allow
# for the rounding of some hundred steps.
NUMBERS = {
    numbers.name: numbers
    for numbers in (
        Numbers("fp64", torch.float64, 1e-12),
        Numbers("fp32", torch.float32, 1e-5),
        Numbers("tf32", torch.float32, 4e-3, tf32=True),
        Numbers("fp16", torch.float16, 4e-3),
        Numbers("bf16", torch.bfloat16, 3e-2),
    )
}


@dataclass(frozen=True)
class Case:
    """The sizes and the layout of a layer; packed: sequences of different lengths, at most seq_len."""

    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    packed: bool = False
    reverse: bool = False
    bias: bool = True
    memory: str = "keep"

    def __str__(self) -> str:
        said = [f"{self.seq_len} steps, batch {self.batch}, {self.input_size} -> {self.hidden_size}"]
        said += ["packed" if self.packed else "padded", "reverse" if self.reverse else "forward"]
        said += [] if self.bias else ["no bias"]
        said += ["recomputed"] if self.memory == "recompute" else []
        return ", ".join(said)


def layouts(case: Case) -> list[Case]:
    """The layer padded and packed, each in both directions."""
    return [replace(case, packed=packed, reverse=reverse) for packed in (False, True) for reverse in (False, True)]


ODD = Case(5, 3, 9, 17)
CASES = [
    Case(1, 1, 12, 33),
    *layouts(ODD),
    replace(ODD, packed=True, bias=False),
    replace(ODD, memory="recompute"),
    *layouts(Case(9, 33, 24, 64)),
    Case(40, 4, 12, 128, packed=True),
    Case(12, 16, 64, 512, reverse=True),
]
QUICK_CASES = [ODD, replace(ODD, packed=True, reverse=True)]
# Where a CPU executes a kernel instruction by instruction.
EXECUTED_CASES = [Case(3, 2, 5, 7), Case(3, 17, 4, 33, packed=True, reverse=True)]
EXECUTED_QUICK_CASES = [Case(3, 2, 5, 7, packed=True, reverse=True)]


@dataclass(frozen=True)
class Problem:
    """A random layer in float64 whose numbers are representable in the dtype it is tested in, with the derivatives of
    its outputs that gradients start from, and what outputs and gradients are."""

    case: Case
    variant: str
    arguments: list[Tensor | None]  # in the order of ARGUMENTS
    batch_sizes: Tensor | None
    upstream: list[Tensor]
    expected: dict[str, Tensor]

    def leaves(self, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
        """Fresh copies of the arguments that gradients can be asked for."""
        return [None if x is None else x.to(dtype, copy=True).to(device).requires_grad_() for x in self.arguments]


@functools.cache
def problem(case: Case, variant: str, dtype: torch.dtype) -> Problem:
    """The same random layer for the same arguments; its results are computed once, on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return numbers.to(dtype).double()

    rows: tuple[int, ...] = (case.seq_len, case.batch)
    batch_sizes = None
    if case.packed:
        lengths = torch.randint(1, case.seq_len + 1, (case.batch,), generator=generator)
        lengths[0] = case.seq_len
        batch_sizes = (lengths[None, :] > torch.arange(case.seq_len)[:, None]).sum(1)
        rows = (int(lengths.sum()),)
    gates = 3 * case.hidden_size
    arguments: list[Tensor | None] = [
        random(*rows, case.input_size),
        random(case.batch, case.hidden_size),
        random(gates, case.input_size, scale=case.input_size**-0.5),
        random(gates, case.hidden_size, scale=case.hidden_size**-0.5),
        random(gates, scale=0.5) if case.bias else None,
        random(gates, scale=0.5) if case.bias else None,
    ]
    upstream = [random(*rows, case.hidden_size), random(case.batch, case.hidden_size)]
    reference = functools.partial(run_reference, batch_sizes=batch_sizes, variant=variant, reverse=case.reverse)
    leaves = [None if x is None else x.clone().requires_grad_() for x in arguments]
    results = outputs_and_gradients(reference, leaves, upstream)
    return Problem(case, variant, arguments, batch_sizes, upstream, dict(zip(names(case), results, strict=True)))


def names(case: Case) -> list[str]:
    """The names of what `outputs_and_gradients` returns."""
    return ["output", "h_n", *(f"gradient of {name}" for name in (ARGUMENTS if case.bias else ARGUMENTS[:4]))]


def outputs_and_gradients(
    call: Callable[..., tuple[Tensor, Tensor]], leaves: list[Tensor | None], upstream: list[Tensor]
) -> tuple[Tensor, ...]:
    """Output, last state, and the gradients of the leaves that are there.

    Args:
        call: of the leaves.
        upstream: the derivatives of a loss by output and last state.
    """
    outputs = call(*leaves)
    gradients = torch.autograd.grad(outputs, [x for x in leaves if x is not None], upstream)
    return tuple(x.detach() for x in (*outputs, *gradients))


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; infinite for a NaN or a wrong shape."""
    if got.shape != want.shape:
        return float("inf")
    ratio = float((got.cpu().double() - want).norm() / want.norm())
    return ratio if ratio == ratio else float("inf")
