"""Errors element by element, measured by what plain torch operations reach in the same dtype.

An element's relative error alone says nothing: where a sum cancels, nobody does well. So each error is compared with
the largest that the plain formula makes at that element, in a few runs whose arguments differ in their last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from cases import NAMES, Layer, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import trigru
from trigru.reference import layer as run_reference

SCALES = (1e-7, 1e-5, 1e-3, 1.0, 1e2, 1e4)
RUNS = 4
ULPS = 4  # of the result: always allowed, before the factor
FACTOR = 16  # over the largest error of so few runs


class Rounding(TorchDispatchMode):
    """Operations as another implementation may round them.

    tf32: products of matrices see the first 11 bits of their operands, as matrix units do. ulps: tanh and sigmoid are
    less than they should be by about as much, so that they are not 1 where an exact one is not."""

    def __init__(self, *, tf32: bool = False, ulps: float = 0.0):
        super().__init__()
        self.tf32, self.ulps = tf32, ulps

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.tf32 and func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            args = (
                *args[:-2],
                *((x.contiguous().view(torch.int32) & ~0x1FFF).view(x.dtype) for x in args[-2:]),
            )
        result = func(*args, **(kwargs or {}))
        if self.ulps and func in (torch.ops.aten.tanh.default, torch.ops.aten.sigmoid.default):
            result = result * (1 - self.ulps * torch.finfo(result.dtype).eps * (0.5 + torch.rand_like(result)))
        return result


class Overflowing(TorchDispatchMode):
    """Operations as they may overflow in another order.

    A sum is infinite as soon as a part of it is too large for the dtype in which it is added up, whatever the others
    are, and NaN with infinite parts of both signs. Which parts come first differs between torch's own products, by how
    a matrix lies in memory. So where parts of one sign could overflow the result is infinite here, and `otherwise`
    where those of both could: it is any of NaN, an infinity and a finite number. Exact sums say it: a product whose
    parts stay within the dtype is left as it is. Of a row that is normalised the squares are added up: it is any of
    those too where they overflow, though what is normalised would be within the dtype."""

    def __init__(self, otherwise: float) -> None:
        super().__init__()
        self.otherwise = otherwise

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            return self._product(*args, result)
        if func is torch.ops.aten.native_layer_norm.default:
            return self._normalised(args[0], *result)
        if func in _ADDED_UP and result.is_floating_point():
            large = result.abs() > torch.finfo(_added_in(result.dtype)).max / SUMMANDS
            return torch.where(large, torch.copysign(torch.full_like(result, torch.inf), result), result)
        return result

    def _product(self, a: Tensor, b: Tensor, result: Tensor) -> Tensor:
        """a @ b: `result`, where no order of its sums overflows."""
        half = 2.0**-512  # of the exponents that float64 has, so that its own products do not overflow
        parts = (a.double() * half).unsqueeze(-1) * (b.double() * half)
        most = torch.finfo(_added_in(a.dtype)).max * half * half / SUMMANDS
        above, below = parts.clamp(min=0).sum(1) > most, parts.clamp(max=0).sum(1) < -most
        result = torch.where(above, torch.inf, torch.where(below, -torch.inf, result))
        result = torch.where(above & below, self.otherwise, result)
        return torch.where(parts.isnan().any(1), torch.nan, result)

    def _normalised(self, x: Tensor, result: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows x, normalised: where no order of their squares' sums overflows."""
        most = torch.finfo(_added_in(x.dtype)).max / SUMMANDS
        lost = x.double().square().sum(-1, keepdim=True) > most
        return torch.where(lost, self.otherwise, result), mean, torch.where(lost, torch.nan, rstd)


SUMMANDS = 64
"""So many results of the size of one are added up in one place or another: of gates, steps and sequences."""

_ADDED_UP = {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.sum.dim_IntList}


def _added_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of another's elements are added up."""
    return dtype if dtype == torch.float64 else torch.float32


def _nudged(x: Tensor | None, dtype: torch.dtype, tf32: bool) -> Tensor | None:
    """Some values of `dtype` near those of x, in float64: as near as it, or TF32, tells numbers apart."""
    if x is None:
        return None
    eps = 2.0**-10 if tf32 else torch.finfo(dtype).eps
    return (x * (1 + eps * (torch.rand_like(x) - 0.5))).to(dtype).double()


Plain = Callable[[list, torch.dtype], Sequence[Tensor]]


def reachable(plain: Plain, tensors: list, dtype: torch.dtype, tf32: bool = False) -> list[Tensor]:
    """Of each element of what `plain` gives, the largest error in `dtype`; at least that of the float64 reference.

    plain: takes the arguments, in float64 but of values that `dtype` has, and the dtype to compute in."""
    largest: list[Tensor] = []
    for i in range(RUNS):
        arguments = [_nudged(x, dtype, tf32) for x in tensors] if i else tensors
        exact = plain(arguments, torch.float64)
        # In 16 bits a gate that is less by one unit would excuse everything.
        with Rounding(tf32=tf32, ulps=float(i > 0 and dtype == torch.float32)):
            found = [plain(arguments, dtype)]
        with Rounding(ulps=1):
            found.append(plain(arguments, torch.float64))
        for results in found:
            errors = [(a.double() - b).abs() for a, b in zip(results, exact, strict=True)]
            # A result that is NaN or infinite in `dtype` says nothing about what is reachable.
            errors = [torch.where(e.isfinite(), e, 0) for e in errors]
            largest = [torch.maximum(a, b) for a, b in zip(largest, errors, strict=True)] if largest else errors
    return largest


def excess(got: Tensor, want: Tensor, reach: Tensor, dtype: torch.dtype) -> float:
    """The largest error, as a multiple of the reachable one; infinite where an element is NaN."""
    info = torch.finfo(dtype)
    allowed = torch.maximum(reach, ULPS * info.eps * want.abs()) + ULPS * info.smallest_normal * info.eps
    ratio = ((got.double() - want).abs() / allowed).max().item() if want.numel() else 0.0
    return ratio if ratio == ratio else float("inf")


def scaled(case: Layer, scale: float, bias_scale: float) -> Layer:
    """The case with its input scaled, its state with it where that is below 1, and its biases."""
    factors = (scale, min(scale, 1.0), 1.0, 1.0, bias_scale, bias_scale)
    tensors = [
        None if x is None else (x * factor).to(case.dtype).double()
        for x, factor in zip(case.tensors, factors, strict=True)
    ]
    return Layer(tensors, case.batch_sizes, case.dtype, case.options)


def assert_elements_as_reachable(case: Layer, *, call=trigru.gru, tf32: bool = False, **options) -> None:
    """Every element of outputs and all gradients of `call` with the given options is as near to the float64 reference
    as the reference in the case's own dtype, within FACTOR. tf32: where float32 is multiplied so."""
    data, h0 = case.tensors[0], case.tensors[1]
    assert data is not None
    assert h0 is not None
    upstream: list[Tensor | None] = [torch.randn(*data.shape[:-1], h0.shape[1]), torch.randn(h0.shape)]
    upstream = [x.to(case.dtype).double() for x in upstream if x is not None]

    def plain(tensors: list, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return run(run_reference, Layer(tensors, case.batch_sizes, dtype, case.options), dtype, upstream)

    want = plain(case.tensors, torch.float64)
    reach = reachable(plain, case.tensors, case.dtype, tf32)
    got = run(partial(call, **options), case, case.dtype, upstream)
    names = ["output", "h_n", *(f"gradient of {n}" for n, x in zip(NAMES, case.tensors, strict=True) if x is not None)]
    found = {n: excess(g, w, r, case.dtype) for n, g, w, r in zip(names, got, want, reach, strict=True)}
    wrong = {name: x for name, x in found.items() if not x <= FACTOR}
    assert not wrong, f"errors of so many times what is reachable: {wrong}"
