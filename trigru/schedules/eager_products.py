"""Matrix products of the eager schedule, and who computes them: torch.mm (MKL, cuBLAS, ...) or oneDNN.

On CPUs that are not Intel's MKL keeps to its AVX2 kernels. oneDNN uses AVX-512 there: 1.5 to 2.6 times as fast in
float32 on an AMD EPYC (Zen 5, 2 threads), but a call costs some 10 microseconds more, and where weights are not laid
out for it beforehand, their copy. On Zen 4, whose AVX-512 goes through units of 256 bits, MKL's are the faster ones but
for large weights. torch exposes it as the operators that torch.compile calls on a CPU; where these are missing or
different, torch.mm serves.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ONEDNN_MULTIPLICATIONS = 1_500_000
"""Multiplications of a product from which oneDNN is faster."""

ONEDNN_ROWS = 8
"""Rows of the left operand from which it can be: with fewer, weights are laid out anew for too little."""

PACKED_STEPS, PACKED_TURNED_STEPS = 8, 32
"""Products with the same weights, and with a transposed view, from which they are laid out for oneDNN beforehand: 80 to
200 us to 512 units, 800 at 1024, a view three times that, of which each product then saves 2 to 50 us."""

PACKED_MULTIPLICATIONS = 1_800_000
PACKED_WEIGHTS = (1_500_000, 300_000, 150_000)
"""With weights so laid out: multiplications of a product from which oneDNN is faster, or elements of weights, of 1, 2
or more rows. Of 2 to 8 rows, a product of 256 to 1024 units was 1.2 to 6 times as fast as MKL's (AMD EPYC, Zen 5, 1 and
2 threads)."""

OUTER_MULTIPLICATIONS = 4_000_000
OUTER_FEW, OUTER_MULTIPLICATIONS_OF_FEW = 16, 500_000
"""Multiplications of a.T @ b from which it is faster through oneDNN, its copies included (1.2 to 2.2 times); where one
side has few columns, but more than one, MKL is slow early (2 to 7 times at 6)."""

ZEN4_WEIGHTS = 1 << 21
ZEN4_ROWS, ZEN4_SIZE = 256, 512
"""On Zen 4: elements of the right operand from which oneDNN is faster, for it then comes from beyond L2 (hidden_size
1024: 1.2 to 2.5 times, of 2 to 16 rows), a quarter of them for 2 to 4 rows; or rows from which, with at least so many
columns in either operand (1.2 times). Below, torch.mm is: by 1.1 to 2 times."""

ZEN4_PACKED_ROWS, ZEN4_PACKED_WEIGHTS = 32, (190_000, 300_000)
"""There, with weights laid out beforehand: elements of them from which oneDNN is faster, of 2 to so many rows and of
more (1.0 to 1.7 times at 256 units, 1.05 to 2.2 times at 512)."""

Linear = Callable[..., Tensor]

TURNED_STEPS = 32
"""Steps from which a transposed copy of the recurrent weights pays for itself on an Intel CPU. With 8 to 128 rows a
step's product alone was 1.0 to 2.6 times as fast with it (hidden_size 32 to 1024, float32, 1 and 2 threads of a Xeon,
torch 2.13), a layer of 256 to 1024 units with batch 8 to 32 1.05 to 1.29 times without gradients and 1.02 to 1.17 times
in training; with 2 or 3 rows of 384 units and more it was slower."""


def _of_cpu() -> str:
    """What Linux tells of it; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


@functools.cache
def is_intel() -> bool:
    """Whether this CPU is one of those that MKL's fastest kernels are for."""
    return "GenuineIntel" in _of_cpu()


@functools.cache
def is_zen4() -> bool:
    """Whether this CPU is one of AMD's whose AVX-512 goes through units of 256 bits."""
    told = _of_cpu()
    return "AuthenticAMD" in told and re.search(r"cpu family\s*: 25\b", told) is not None


def _laid_out(w: Tensor, rows: int) -> Tensor:
    """w as oneDNN likes it best for products with so many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(w, rows)


@functools.cache
def _onednn() -> Linear | None:
    """x, w, bias -> x @ w.T + bias by oneDNN, or None where torch.mm is as good or oneDNN cannot be reached."""
    try:
        if torch.backends.cpu.get_cpu_capability() != "AVX512" or is_intel():
            return None
        operator = torch.ops.mkldnn._linear_pointwise.default

        def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
            return operator(x, w, bias, "none", [], "")

        x = torch.arange(6, dtype=torch.float32, device="cpu").view(2, 3)
        found = linear(x, x), linear(x, _laid_out(x, 2))
        return linear if all(torch.equal(product, x @ x.t()) for product in found) else None
    except (AttributeError, RuntimeError):
        return None


def fast_linear(x: Tensor, rows: int, inner: int, columns: int, *, packed: bool = False) -> Linear | None:
    """x, w -> x @ w.T for x (rows, inner) and w (columns, inner) where that beats torch.mm, else None. packed: w is
    laid out for it beforehand.

    Chosen by device, dtype and shape alone, so that equal calls give equal bits."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _is_large(rows, inner, columns, packed):
        return None
    return _onednn()


def _is_large(rows: int, inner: int, columns: int, packed: bool) -> bool:
    """Whether a product in float32 is large enough for oneDNN, where that can be the faster one."""
    weights = inner * columns
    if is_zen4():
        if packed and weights >= ZEN4_PACKED_WEIGHTS[rows > ZEN4_PACKED_ROWS]:
            return rows > 1
        least = ZEN4_WEIGHTS if rows > 4 else ZEN4_WEIGHTS // 4
        large = weights >= least or (rows >= ZEN4_ROWS and min(inner, columns) >= ZEN4_SIZE)
        return large and rows > 1
    if packed:
        return rows * weights >= PACKED_MULTIPLICATIONS or weights >= PACKED_WEIGHTS[min(max(rows, 1), 3) - 1]
    return rows >= ONEDNN_ROWS and rows * weights >= ONEDNN_MULTIPLICATIONS


def pays(rows: int, inner: int, columns: int) -> bool:
    """Whether there is more than torch.mm for such a product in float32 on this CPU."""
    return _is_large(rows, inner, columns, packed=False) and _onednn() is not None


def repeated(w: Tensor, rows: int, steps: int) -> Callable[[Tensor], Tensor] | None:
    """x -> x @ w.T for `steps` products with w of up to `rows` rows where that beats torch.mm, else None."""
    columns, inner = w.shape
    packed = steps >= (PACKED_STEPS if w.is_contiguous() else PACKED_TURNED_STEPS)
    linear = fast_linear(w, rows, inner, columns, packed=packed)
    if linear is None:
        return None
    weights = _laid_out(w, rows) if packed else w
    return lambda x: linear(x, weights, None)


def turned(w: Tensor, rows: int, steps: int) -> Tensor:
    """w.T for `steps` products of `rows` rows with it: a copy where MKL is faster with one, else a view."""
    view = w.t()
    if w.device.type != "cpu" or w.dtype != torch.float32 or steps < TURNED_STEPS or not 8 <= rows <= 128:
        return view
    return view.contiguous() if is_intel() else view


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, in new memory or in `out`, which may have another dtype."""
    linear = fast_linear(a, a.shape[0], *b.shape)
    if linear is None and (out is None or out.dtype == a.dtype):
        return torch.mm(a, b, out=out)
    found = torch.mm(a, b) if linear is None else linear(a, b.t())
    return found if out is None else out.copy_(found)


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """x @ w.T + bias."""
    fast = fast_linear(x, x.shape[0], *w.t().shape)
    return torch._C._nn.linear(x, w, bias) if fast is None else fast(x, w, bias)


def affine(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x @ w.T + bias."""
    linear = fast_linear(x, x.shape[0], *w.t().shape)
    if linear is not None:
        result = linear(x, w)
        out.copy_(result) if bias is None else torch.add(result, bias, out=out)
    elif bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)


def outer_sum(w: Tensor) -> Tensor:
    """Zeros as w for `add_outer`, laid out so that it adds to what lies in one piece."""
    return w.new_zeros(w.shape[::-1]).t() if w.shape[0] > w.shape[1] else torch.zeros_like(w)


def _fast_outer(a: Tensor, b: Tensor) -> Linear | None:
    """What computes a.T @ b where that beats torch.mm."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or is_zen4():
        return None
    columns = a.shape[1], b.shape[1]
    least = OUTER_MULTIPLICATIONS_OF_FEW if 1 < min(columns) < OUTER_FEW else OUTER_MULTIPLICATIONS
    return _onednn() if a.shape[0] * columns[0] * columns[1] >= least else None


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b, laid out as it may be."""
    linear = _fast_outer(a, b)
    if linear is None:
        return torch.mm(a.t(), b)
    if a.shape[1] > b.shape[1]:  # the narrower one is copied, transposed
        return linear(b.t().contiguous(), a.t()).t()
    return linear(a.t().contiguous(), b.t())


def add_outer(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a.T @ b, for many more rows than columns."""
    linear = _fast_outer(a, b)
    if linear is None:
        out.addmm_(a.t(), b)
        return
    # The narrower operand is copied, transposed; of the other one oneDNN makes its own layout, which takes it long
    # unless it lies in one piece.
    if out.shape[0] > out.shape[1]:
        out, a, b = out.t(), b, a
    out.add_(linear(a.t().contiguous(), b.contiguous().t()))


class Heads:
    """Products with blocks on a matrix's diagonal, batched. w: (planes * H, H / heads), the columns of a block.

    A row's planes have the heads beside each other, a batched product has each head's planes together: what goes in or
    comes out is laid out anew."""

    def __init__(self, w: Tensor, heads: int) -> None:
        self.heads, self.size = heads, w.shape[1]
        blocks = w.unflatten(0, (-1, heads, self.size))
        self.planes = blocks.shape[0]
        self.blocks = blocks.transpose(0, 1).reshape(heads, -1, self.size)

    def _planes(self, x: Tensor) -> Tensor:
        """(rows, planes * H) as (heads, rows, planes * H / heads)."""
        return x.unflatten(1, (self.planes, self.heads, self.size)).permute(2, 0, 1, 3).flatten(2)

    def _units(self, x: Tensor) -> Tensor:
        """(rows, H) as (heads, rows, H / heads)."""
        return x.unflatten(1, (self.heads, self.size)).transpose(0, 1)

    def onto(self, x: Tensor) -> Tensor:
        """x @ w.T, (rows, planes * H)."""
        found = torch.bmm(self._units(x), self.blocks.transpose(1, 2))
        return found.unflatten(2, (self.planes, self.size)).permute(1, 2, 0, 3).flatten(1)

    def back(self, x: Tensor) -> Tensor:
        """x @ w, (rows, H)."""
        return torch.bmm(self._planes(x), self.blocks).transpose(0, 1).flatten(1)

    def add_outer(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """out += a.T @ b, of each head alone."""
        found = torch.bmm(self._planes(a).transpose(1, 2), self._units(b)).unflatten(1, (self.planes, -1))
        out.view(self.planes, self.heads, self.size, self.size).add_(found.transpose(0, 1))
