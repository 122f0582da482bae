"""Products of rows with a weight in tiles that are the same for any number of rows.

The products of all steps are torch's, which sums in another order for other sizes. Where what a row gets must not
depend on how many there are (`trigru.batch_invariant`), these take their place: an element is summed over its K columns
in chunks of BLOCK_K, one after another, in float32, wherever its row lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import cdiv
from .launch import launch
from .products import multiply

TILE = {"BLOCK_N": 32, "BLOCK_C": 32, "BLOCK_K": 32}
TILE_OF_FEW = {"BLOCK_N": 16, "BLOCK_C": 32, "BLOCK_K": 128}
WARPS = 4


@triton.jit(do_not_specialize=["N", "folded", "zeros"])
def rows_kernel(
    x_ptr,  # (N, K)
    w_ptr,  # column c of row k of the right operand is at k * of_row + c * of_column
    bias_ptr,  # (C,), or None
    more_bias_ptr,  # (C,), of which the first `folded` are added to those; or None
    zeros_ptr,  # (zeros,), out: zeros; or None
    base_ptr,  # (N, C) that the product is added to, or None; may be out_ptr
    out_ptr,  # (N, C), out
    N,
    K,
    C,
    of_row,
    of_column,
    folded,
    zeros,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
        at = k.to(tl.int64)[:, None] * of_row + c.to(tl.int64)[None, :] * of_column
        w = tl.load(w_ptr + at, mask=(k < K)[:, None] & (c < C)[None, :], other=0.0)
        acc = multiply(x, w, acc, PRECISION)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + c, mask=c < C, other=0.0)
        if more_bias_ptr is not None:  # rounded, as a sum that torch makes of them
            more = bias.to(tl.float32) + tl.load(more_bias_ptr + c, mask=c < folded, other=0.0).to(tl.float32)
            bias = tl.where(c < folded, more.to(bias.dtype), bias)
        acc += bias.to(tl.float32)[None, :]
    place, there = n[:, None] * C + c[None, :], (n < N)[:, None] & (c < C)[None, :]
    if base_ptr is not None:
        acc += tl.load(base_ptr + place, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask=there)
    if zeros_ptr is not None:
        BLOCK: tl.constexpr = BLOCK_N * BLOCK_C
        first = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * BLOCK
        for start in range(first, zeros, tl.num_programs(0) * tl.num_programs(1) * BLOCK):
            i = start + tl.arange(0, BLOCK)
            tl.store(zeros_ptr + i, tl.zeros((BLOCK,), zeros_ptr.dtype.element_ty), mask=i < zeros)


def product(
    x: Tensor,
    weight: Tensor,
    precision: str,
    *,
    transposed: bool = False,
    bias: Tensor | None = None,
    more_bias: Tensor | None = None,
    folded: int = 0,
    zeros: Tensor | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
    tile: Mapping[str, int] = TILE,
) -> Tensor:
    """x @ weight + bias + base, rounded once: x (N, K), weight (K, C), or `transposed` (C, K), bias (C,), base (N, C).

    precision: how float32 is multiplied, "tf32" or "ieee". out: contiguous memory for the result; may be base.
    more_bias: (C,), of which the first `folded` are added to `bias`. zeros: contiguous memory that is filled with
    zeros."""
    (rows, inner), columns = x.shape, weight.shape[0 if transposed else 1]
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device) if out is None else out
    of_row, of_column = (1, inner) if transposed else (columns, 1)
    args: dict[str, Any] = {"x_ptr": x.contiguous(), "w_ptr": weight.contiguous(), "bias_ptr": bias}
    args |= {"more_bias_ptr": more_bias, "folded": folded, "zeros_ptr": zeros}
    args["zeros"] = 0 if zeros is None else zeros.numel()
    args |= {"base_ptr": base, "out_ptr": out, "N": rows, "K": inner, "C": columns}
    args |= {"of_row": of_row, "of_column": of_column}
    grid = (cdiv(rows, tile["BLOCK_N"]), cdiv(columns, tile["BLOCK_C"]))
    launch(rows_kernel, grid, args, {"PRECISION": precision, **tile}, num_warps=WARPS, num_stages=2)
    return out
