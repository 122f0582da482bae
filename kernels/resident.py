"""The resident schedule: one launch for the whole sequence, one program for a batch tile, all of W_hh on chip.

For hidden sizes at which W_hh fits one multiprocessor. Nothing is exchanged between programs: a program's state never
leaves it, except as output. Sizes and conventions are those of stepwise.py; HIDDEN is H padded to a power of two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import widen
from .config import ResidentConfig, kept_values, power_of_two
from .gates import blend, blend_grad, candidate, reset_after_grad, reset_before_grad, sigmoid
from .launch import launch
from .products import multiply
from .steps import Steps
from .tiles import load_state, load_weight, load_weight_transposed, rows_of, tile

_ALIGNED = 16  # hidden units: rows at which Triton loads whole chunks, which takes half of the registers


@triton.jit(do_not_specialize=["T", "B"])
def forward_kernel(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    b_hn_ptr,  # (H,), "torch" only
    offsets_ptr,  # (T + 1,) int64, first row of each step; PACKED only
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H) "torch": r, z, n, an; (N, 3H) otherwise: r, z, n
    T,
    B,
    H,
    VARIANT: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """All steps of one batch tile."""
    j = tl.arange(0, HIDDEN)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    w_r = load_weight(w_hh_ptr, 0, j, j, H)
    w_z = load_weight(w_hh_ptr, 1, j, j, H)
    w_n = load_weight(w_hh_ptr, 2, j, j, H)
    b_hn = tl.zeros((HIDDEN, 1), tl.float32)
    if HAS_BIAS:
        b_hn += tl.load(b_hn_ptr + j, mask=j < H, other=0.0).to(tl.float32)[:, None]
    at_state, inside = tile(b, H, j, H)
    h = tl.load(h0_ptr + at_state, mask=inside & (b < B)[None, :], other=0.0).to(tl.float32)
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    zero = tl.zeros((HIDDEN, BLOCK_B), tl.float32)
    for i in range(T):
        t = T - 1 - i if REVERSE else i
        row, count = rows_of(offsets_ptr, t, B, PACKED)
        live = (b < count)[None, :]
        mask = inside & live
        at_gate, _ = tile(row + b, 3 * H, j, H)
        gr = tl.load(gates_in_ptr + at_gate, mask=mask, other=0.0).to(tl.float32)
        gz = tl.load(gates_in_ptr + at_gate + H, mask=mask, other=0.0).to(tl.float32)
        gn = tl.load(gates_in_ptr + at_gate + 2 * H, mask=mask, other=0.0).to(tl.float32)
        x = h.to(dtype)
        r = sigmoid(gr + multiply(w_r, x, zero, PRECISION))
        z = sigmoid(gz + multiply(w_z, x, zero, PRECISION))
        if VARIANT == "torch":
            an = multiply(w_n, x, zero, PRECISION) + b_hn
        else:
            an = multiply(w_n, (r * h).to(dtype), zero, PRECISION)
        n = candidate(gn, an, r, VARIANT)
        h = tl.where(live, blend(h, z, n, VARIANT), h)
        at_row, _ = tile(row + b, H, j, H)
        tl.store(output_ptr + at_row, h.to(dtype), mask=mask)
        if SAVE:
            GATES: tl.constexpr = 4 if VARIANT == "torch" else 3
            at_reserve, _ = tile(row + b, GATES * H, j, H)
            tl.store(reserve_ptr + at_reserve, r.to(dtype), mask=mask)
            tl.store(reserve_ptr + at_reserve + H, z.to(dtype), mask=mask)
            tl.store(reserve_ptr + at_reserve + 2 * H, n.to(dtype), mask=mask)
            if VARIANT == "torch":
                tl.store(reserve_ptr + at_reserve + 3 * H, an.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["T", "B"])
def bptt_kernel(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    offsets_ptr,  # (T + 1,) int64, first row of each step; PACKED only
    output_ptr,  # (N, H)
    reserve_ptr,  # as in forward
    d_state_ptr,  # (B, H) float32: in, derivative by h_n; out, by h0
    d_gates_ptr,  # (N, 3H), out: dr, dz, dn
    d_an_ptr,  # (N, H), out, "torch" only: derivative by W_hn h + b_hn
    T,
    B,
    H,
    VARIANT: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """All steps of one batch tile, last to first as forward ran."""
    j = tl.arange(0, HIDDEN)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    w_r = load_weight_transposed(w_hh_ptr, 0, j, j, H)
    w_z = load_weight_transposed(w_hh_ptr, 1, j, j, H)
    w_n = load_weight_transposed(w_hh_ptr, 2, j, j, H)
    at_state, inside = tile(b, H, j, H)
    dh = tl.load(d_state_ptr + at_state, mask=inside & (b < B)[None, :], other=0.0)
    dtype: tl.constexpr = d_gates_ptr.dtype.element_ty
    GATES: tl.constexpr = 4 if VARIANT == "torch" else 3
    zero = tl.zeros((HIDDEN, BLOCK_B), tl.float32)
    for i in range(T):
        t = i if REVERSE else T - 1 - i
        row, count = rows_of(offsets_ptr, t, B, PACKED)
        before = t + 1 if REVERSE else t - 1
        row_before, carried = rows_of(offsets_ptr, tl.minimum(tl.maximum(before, 0), T - 1), B, PACKED)
        carried = tl.where((before < 0) | (before >= T), 0, tl.minimum(carried, count))
        live = (b < count)[None, :]
        mask = inside & live
        at_row, _ = tile(row + b, H, j, H)
        at_reserve, _ = tile(row + b, GATES * H, j, H)
        r = tl.load(reserve_ptr + at_reserve, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(reserve_ptr + at_reserve + H, mask=mask, other=0.0).to(tl.float32)
        n = tl.load(reserve_ptr + at_reserve + 2 * H, mask=mask, other=0.0).to(tl.float32)
        h = load_state(output_ptr, h0_ptr, b, j, row_before, carried, count, H).to(tl.float32)
        d = dh + tl.load(grad_output_ptr + at_row, mask=mask, other=0.0).to(tl.float32)
        dn, dz, direct = blend_grad(d, h, z, n, VARIANT)
        at_gate, _ = tile(row + b, 3 * H, j, H)
        if VARIANT == "torch":
            an = tl.load(reserve_ptr + at_reserve + 3 * H, mask=mask, other=0.0).to(tl.float32)
            dr, d_an = reset_after_grad(dn, an, r)
            tl.store(d_an_ptr + at_row, d_an.to(dtype), mask=mask)
            d = direct + multiply(w_n, d_an.to(dtype), zero, PRECISION)
        else:
            dr, through = reset_before_grad(multiply(w_n, dn.to(dtype), zero, PRECISION), h, r)
            d = direct + through
        tl.store(d_gates_ptr + at_gate, dr.to(dtype), mask=mask)
        tl.store(d_gates_ptr + at_gate + H, dz.to(dtype), mask=mask)
        tl.store(d_gates_ptr + at_gate + 2 * H, dn.to(dtype), mask=mask)
        d = multiply(w_r, dr.to(dtype), d, PRECISION)
        d = multiply(w_z, dz.to(dtype), d, PRECISION)
        dh = tl.where(live, d, dh)
    tl.store(d_state_ptr + at_state, dh, mask=inside & (b < B)[None, :])


def forward(
    gates_in: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    b_hn: Tensor | None,
    steps: Steps,
    *,
    variant: str,
    reverse: bool,
    save: bool,
    precision: str,
    config: ResidentConfig,
) -> tuple[Tensor, Tensor | None]:
    """As `stepwise.forward`."""
    hidden_size = h0.shape[1]
    if more := widen.missing(hidden_size, _ALIGNED):
        return widen.forward(
            forward, more, gates_in, h0, w_hh, b_hn, steps, variant=variant, reverse=reverse, save=save,
            precision=precision, config=config,
        )  # fmt: skip
    output = gates_in.new_empty(steps.num_rows, hidden_size)
    reserve = gates_in.new_empty(steps.num_rows, kept_values(variant) * hidden_size) if save else None
    args = {
        "gates_in_ptr": gates_in,
        "b_hn_ptr": w_hh if b_hn is None else b_hn,
        "reserve_ptr": gates_in if reserve is None else reserve,
    }
    flags = {"HAS_BIAS": b_hn is not None, "SAVE": save}
    _start(forward_kernel, args, flags, h0, w_hh, output, steps, variant, reverse, precision, config)
    return output, reserve


def backward(
    grad_output: Tensor,
    grad_h_n: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    steps: Steps,
    output: Tensor,
    reserve: Tensor,
    *,
    variant: str,
    reverse: bool,
    precision: str,
    config: ResidentConfig,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `stepwise.backward`."""
    hidden_size = h0.shape[1]
    if more := widen.missing(hidden_size, _ALIGNED):
        return widen.backward(
            backward, more, grad_output, grad_h_n, h0, w_hh, steps, output, reserve, variant=variant, reverse=reverse,
            precision=precision, config=config,
        )  # fmt: skip
    d_gates = grad_output.new_empty(steps.num_rows, 3 * hidden_size)
    d_an = grad_output.new_empty(steps.num_rows, hidden_size) if variant == "torch" else None
    d_state = grad_h_n.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    args = {"grad_output_ptr": grad_output, "reserve_ptr": reserve, "d_state_ptr": d_state, "d_gates_ptr": d_gates}
    args |= {"d_an_ptr": d_gates if d_an is None else d_an}
    _start(bptt_kernel, args, {}, h0, w_hh, output, steps, variant, reverse, precision, config)
    return d_gates, d_an, d_state


def _start(
    kernel: Any,
    args: dict[str, Any],
    flags: dict[str, Any],
    h0: Tensor,
    w_hh: Tensor,
    output: Tensor,
    steps: Steps,
    variant: str,
    reverse: bool,
    precision: str,
    config: ResidentConfig,
) -> None:
    """Launch with the arguments that both directions share."""
    batch, hidden_size = h0.shape
    args |= {
        "h0_ptr": h0,
        "w_hh_ptr": w_hh,
        "offsets_ptr": steps.row_offsets(h0.device) if steps.packed else h0,  # which no kernel reads
        "output_ptr": output,
        "T": steps.seq_len,
        "B": batch,
        "H": hidden_size,
    }
    flags |= {
        "VARIANT": variant,
        "REVERSE": reverse,
        "PACKED": steps.packed,
        "PRECISION": precision,
        "HIDDEN": power_of_two(hidden_size),
        "BLOCK_B": config.block_b,
    }
    grid = (config.programs(batch),)
    launch(kernel, grid, args, flags, num_warps=config.num_warps, num_stages=config.num_stages)
