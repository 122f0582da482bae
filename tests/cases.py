"""Random layers, and the comparison of a schedule with the float64 reference: used by the tests of every schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import trigru
from trigru.functional import records_of
from trigru.operators.schema import Recorded, flat
from trigru.reference import layer as run_reference

NAMES = ("input", "h0", "w_ih", "w_hh", "b_ih", "b_hh")
# ||out - ref|| / ||ref|| of outputs and gradients. float64 and float32 allow for the rounding of some hundred steps;
# 16 bits: state and gates are rounded to 8 (bfloat16) or 11 (float16) bits at each step, which the reference is not.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Layer:
    """A layer's arguments in float64, holding values that `dtype` represents, and the dtype that is tested."""

    tensors: list[Tensor | None]
    batch_sizes: Tensor | None
    dtype: torch.dtype
    options: dict

    def arguments(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Fresh leaves of the given dtype."""
        return [None if x is None else x.to(dtype, copy=True).requires_grad_() for x in self.tensors]


def layer(
    seq_len: int = 3,
    batch: int = 2,
    input_size: int = 5,
    hidden_size: int = 7,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    packed: bool = False,
    variant: str = "torch",
    reverse: bool = False,
) -> Layer:
    """A random layer; packed: with lengths from 1 to seq_len, the longest first."""
    batch_sizes = None
    shape: tuple[int, ...] = (seq_len, batch, input_size)
    if packed:
        lengths = torch.cat([torch.tensor([seq_len]), torch.randint(1, seq_len + 1, (batch - 1,))])
        batch_sizes = (lengths[None, :] > torch.arange(seq_len)[:, None]).sum(1)
        shape = (int(lengths.sum()), input_size)
    gates = 3 * hidden_size
    tensors: list[Tensor | None] = [
        torch.randn(shape),
        torch.randn(batch, hidden_size),
        torch.randn(gates, input_size) / input_size**0.5,
        torch.randn(gates, hidden_size) / hidden_size**0.5,
        torch.randn(gates) / 2 if bias else None,
        torch.randn(gates) / 2 if bias else None,
    ]
    rounded = [None if x is None else x.to(dtype).double() for x in tensors]
    return Layer(rounded, batch_sizes, dtype, {"variant": variant, "reverse": reverse})


def flat_call(case: Layer, arguments: list[Tensor | None], *, first_kept: int = 0, schedule: str = "auto") -> tuple:
    """The arguments of `torch.ops.trigru.gru` for a case's tensors."""
    input, h0, *weights = arguments
    assert input is not None
    options = {"variant": case.options["variant"], "reverse": case.options["reverse"], "schedule": schedule}
    records = records_of(input, h0, *weights, batch_sizes=case.batch_sizes, **options)
    return flat(Recorded(*records, first_kept))


def error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; 0 for equal tensors, infinite for a NaN or a wrong shape."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    if torch.equal(got, want):
        return 0.0
    ratio = ((got - want).norm() / want.norm()).item()
    return ratio if ratio == ratio else float("inf")


def run(function, case: Layer, dtype: torch.dtype, upstream: list[Tensor | None]) -> tuple[Tensor, ...]:
    """Outputs and gradients of `function`, called with the case's arguments and batch sizes in `dtype`."""
    arguments = case.arguments(dtype)
    outputs = function(*arguments, batch_sizes=case.batch_sizes, **case.options)
    used = [(out, grad.to(dtype)) for out, grad in zip(outputs, upstream, strict=True) if grad is not None]
    leaves = [x for x in arguments if x is not None]
    return (*outputs, *torch.autograd.grad([out for out, _ in used], leaves, [grad for _, grad in used]))


def assert_as_reference(
    case: Layer, *, through: str = "both", tolerance: float | None = None, call=trigru.gru, **options
) -> None:
    """Outputs and all gradients of `call` with the given options (its schedule) against the reference in float64.

    through: whether the loss depends on "output", "h_n" or "both"."""
    data, h0 = case.tensors[0], case.tensors[1]
    assert data is not None
    assert h0 is not None
    upstream: list[Tensor | None] = [
        torch.randn(*data.shape[:-1], h0.shape[1]).to(case.dtype).double() if through != "h_n" else None,
        torch.randn(h0.shape).to(case.dtype).double() if through != "output" else None,
    ]
    want = run(run_reference, case, torch.float64, upstream)
    got = run(partial(call, **options), case, case.dtype, upstream)
    tolerance = TOLERANCE[case.dtype] if tolerance is None else tolerance
    names = ["output", "h_n", *(f"gradient of {n}" for n, x in zip(NAMES, case.tensors, strict=True) if x is not None)]
    errors = {name: error(g, w) for name, g, w in zip(names, got, want, strict=True)}
    wrong = {name: e for name, e in errors.items() if not e <= tolerance}
    assert not wrong, f"errors above {tolerance}: {wrong}"
