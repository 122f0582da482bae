"""The weights' derivatives from few rows, in one launch.

Torch's products, sums and copies for them are a dozen operations. Where they sum over a few rows only, each costs the
host and the device what a launch costs, and nothing that it does better comes to bear.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .config import cdiv
from .launch import launch
from .products import multiply

TILE = {"BLOCK_R": 32, "BLOCK_C": 64, "BLOCK_N": 16}
WARPS = 4


class Rows(NamedTuple):
    """What the derivatives are made of, of one direction of a padded sequence: N = T * B rows."""

    d_gates: Tensor  # (N, 3H)
    d_an: Tensor | None  # (N, H), variant "torch"
    reset: Tensor | None  # (N, ...), whose first H columns are r: the others, whose n sees r * h
    input: Tensor | None  # (N, I); None: nothing is asked for of it
    output: Tensor  # (N, H), of rows as wide as they like
    h0: Tensor  # (B, H)
    reverse: bool


class Places(NamedTuple):
    """Where they go; None for what is not asked for."""

    w_ih: Tensor | None  # (3H, I)
    w_hh: Tensor | None  # (3H, H)
    b_ih: Tensor | None  # (3H,)
    b_hh: Tensor | None  # (3H,)


@triton.jit
def _before(output_ptr, h0_ptr, n, c, N, B, H, width, REVERSE: tl.constexpr):
    """The state before the step of each row."""
    if REVERSE:
        starts, at, own = n >= N - B, n + B, n - (N - B)
    else:
        starts, at, own = n < B, n - B, n
    known = ((n < N) & (starts == 0))[:, None] & (c < H)[None, :]
    x = tl.load(output_ptr + at.to(tl.int64)[:, None] * width + c[None, :], mask=known, other=0.0)
    first = ((n < N) & starts)[:, None] & (c < H)[None, :]
    return x + tl.load(h0_ptr + own[:, None] * H + c[None, :], mask=first, other=0.0)


@triton.jit(do_not_specialize=["N", "B"])
def few_rows_kernel(
    d_gates_ptr,  # as Rows has them
    d_an_ptr,
    reset_ptr,
    input_ptr,
    output_ptr,
    h0_ptr,
    d_w_ih_ptr,  # as Places has them
    d_w_hh_ptr,
    d_b_ih_ptr,
    d_b_hh_ptr,
    N,
    B,
    features,
    H,
    width,  # of the output's rows
    of_reset,  # of those of `reset`
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of one gate's rows of a weight, by number: of W_ih, then of W_hh, then of both biases."""
    tiles_of_gate = tl.cdiv(H, BLOCK_R)
    gate, tile = tl.program_id(0) // tiles_of_gate, tl.program_id(1)
    unit = tl.program_id(0) % tiles_of_gate * BLOCK_R + tl.arange(0, BLOCK_R)
    units, row = unit < H, gate * H + unit
    d_ptr = d_gates_ptr + row  # by the products with the input; and with the state:
    of_state_ptr, wide = d_ptr, 3 * H
    if d_an_ptr is not None:
        of_state_ptr = tl.where(gate == 2, d_an_ptr + unit, d_ptr)
        wide = tl.where(gate == 2, H, 3 * H)
    of_input = 0 if d_w_ih_ptr is None else tl.cdiv(features, BLOCK_C)
    of_weights = of_input if d_w_hh_ptr is None else of_input + tl.cdiv(H, BLOCK_C)
    if d_w_ih_ptr is not None:  # noqa: SIM102, a constant: without it nothing below is compiled
        if tile < of_input:
            c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
            acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
            for first in range(0, N, BLOCK_N):
                n = first + tl.arange(0, BLOCK_N)
                d = tl.load(d_ptr[:, None] + n[None, :] * (3 * H), mask=units[:, None] & (n < N)[None, :], other=0.0)
                there = (n < N)[:, None] & (c < features)[None, :]
                x = tl.load(input_ptr + n[:, None] * features + c[None, :], mask=there, other=0.0)
                acc = multiply(d, x, acc, PRECISION)
            at = d_w_ih_ptr + row[:, None] * features + c[None, :]
            tl.store(at, acc.to(d_w_ih_ptr.dtype.element_ty), mask=units[:, None] & (c < features)[None, :])
    if d_w_hh_ptr is not None:  # noqa: SIM102
        if (tile >= of_input) & (tile < of_weights):
            c = (tile - of_input) * BLOCK_C + tl.arange(0, BLOCK_C)
            acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
            for first in range(0, N, BLOCK_N):
                n = first + tl.arange(0, BLOCK_N)
                mask = units[:, None] & (n < N)[None, :]
                d = tl.load(of_state_ptr[:, None] + n[None, :] * wide, mask=mask, other=0.0)
                h = _before(output_ptr, h0_ptr, n, c, N, B, H, width, REVERSE)
                if reset_ptr is not None:
                    there = (n < N)[:, None] & (c < H)[None, :]
                    r = tl.load(reset_ptr + n[:, None] * of_reset + c[None, :], mask=there, other=0.0)
                    h = tl.where(gate == 2, (r.to(tl.float32) * h.to(tl.float32)).to(h.dtype), h)
                acc = multiply(d, h, acc, PRECISION)
            at = d_w_hh_ptr + row[:, None] * H + c[None, :]
            tl.store(at, acc.to(d_w_hh_ptr.dtype.element_ty), mask=units[:, None] & (c < H)[None, :])
    if tile == of_weights:
        by_ih, by_hh = tl.zeros((BLOCK_R,), tl.float32), tl.zeros((BLOCK_R,), tl.float32)
        for first in range(0, N, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            mask = units[:, None] & (n < N)[None, :]
            by_ih += tl.sum(tl.load(d_ptr[:, None] + n[None, :] * (3 * H), mask=mask, other=0.0).to(tl.float32), 1)
            by_hh += tl.sum(tl.load(of_state_ptr[:, None] + n[None, :] * wide, mask=mask, other=0.0).to(tl.float32), 1)
        if d_b_ih_ptr is not None:
            tl.store(d_b_ih_ptr + row, by_ih.to(d_b_ih_ptr.dtype.element_ty), mask=units)
        if d_b_hh_ptr is not None:
            tl.store(d_b_hh_ptr + row, by_hh.to(d_b_hh_ptr.dtype.element_ty), mask=units)


def few_rows(rows: Rows, places: Places, precision: str) -> None:
    """Fill the places. precision: how float32 is multiplied, "tf32" or "ieee"."""
    count, hidden_size = rows.d_gates.shape[0], rows.h0.shape[1]
    features = 0 if rows.input is None else rows.input.shape[1]
    args: dict[str, Any] = {"d_gates_ptr": rows.d_gates, "d_an_ptr": rows.d_an, "reset_ptr": rows.reset}
    args |= {"input_ptr": rows.input, "output_ptr": rows.output, "h0_ptr": rows.h0}
    args |= {"d_w_ih_ptr": places.w_ih, "d_w_hh_ptr": places.w_hh}
    args |= {"d_b_ih_ptr": places.b_ih, "d_b_hh_ptr": places.b_hh}
    args |= {"N": count, "B": rows.h0.shape[0], "features": features, "H": hidden_size}
    args |= {"width": rows.output.stride(0), "of_reset": 0 if rows.reset is None else rows.reset.stride(0)}
    columns = (0 if places.w_ih is None else features, 0 if places.w_hh is None else hidden_size)
    tiles = sum(cdiv(size, TILE["BLOCK_C"]) for size in columns)
    grid = (3 * cdiv(hidden_size, TILE["BLOCK_R"]), tiles + (places.b_ih is not None or places.b_hh is not None))
    constexprs = {"REVERSE": rows.reverse, "PRECISION": precision, **TILE}
    launch(few_rows_kernel, grid, args, constexprs, num_warps=WARPS, num_stages=2)
