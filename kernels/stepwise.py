"""The stepwise schedule: one launch a time step ("torch"), two for "cho" and "chung".

A launch multiplies the whole state by a tile of W_hh and runs the gates on the product as its epilogue. W_hh comes from
L2 every step. It works for any shape on any device that Triton knows, and its launches can be captured in a CUDA graph.

Sizes: B batch, H hidden_size, N rows of all steps together (see steps.py). Accumulators are (BLOCK_H, BLOCK_B): the
weights are the left operand, so a small batch still fills the tensor cores' long side. The running state and its
derivative are float32; what is multiplied is rounded to the tensors' dtype, in backward exactly as in forward.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import StepwiseConfig, kept_values
from .gates import blend, blend_grad, candidate, reset_after_grad, reset_before_grad, sigmoid
from .launch import prepare
from .products import multiply
from .steps import Steps
from .tiles import load_state, load_weight, load_weight_transposed, tile

# They change from launch to launch: specialising on them would compile the kernel again and again.
_PER_STEP = ("row", "count", "row_before", "carried", "row_after", "count_after", "extent")


@triton.jit(do_not_specialize=_PER_STEP)
def forward_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    b_hn_ptr,  # (H,)
    state_ptr,  # (B, H) float32, in place
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn
    row,
    count,
    row_before,
    carried,
    H,
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step of variant "torch"."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    ar = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    az = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    an = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        h = load_state(output_ptr, h0_ptr, b, k, row_before, carried, count, H)
        ar = multiply(load_weight(w_hh_ptr, 0, j, k, H), h, ar, PRECISION)
        az = multiply(load_weight(w_hh_ptr, 1, j, k, H), h, az, PRECISION)
        an = multiply(load_weight(w_hh_ptr, 2, j, k, H), h, an, PRECISION)
    if HAS_BIAS:
        an += tl.load(b_hn_ptr + j, mask=j < H, other=0.0).to(tl.float32)[:, None]

    live = (b < count)[None, :]
    at_gate, inside = tile(row + b, 3 * H, j, H)
    mask = inside & live
    r = sigmoid(ar + tl.load(gates_in_ptr + at_gate, mask=mask, other=0.0).to(tl.float32))
    z = sigmoid(az + tl.load(gates_in_ptr + at_gate + H, mask=mask, other=0.0).to(tl.float32))
    n = candidate(tl.load(gates_in_ptr + at_gate + 2 * H, mask=mask, other=0.0).to(tl.float32), an, r, "torch")
    at_state, _ = tile(b, H, j, H)
    h = blend(tl.load(state_ptr + at_state, mask=mask, other=0.0), z, n, "torch")
    tl.store(state_ptr + at_state, h, mask=mask)
    at_row, _ = tile(row + b, H, j, H)
    tl.store(output_ptr + at_row, h.to(output_ptr.dtype.element_ty), mask=mask)
    if SAVE:
        dtype: tl.constexpr = reserve_ptr.dtype.element_ty
        at_reserve, _ = tile(row + b, 4 * H, j, H)
        tl.store(reserve_ptr + at_reserve, r.to(dtype), mask=mask)
        tl.store(reserve_ptr + at_reserve + H, z.to(dtype), mask=mask)
        tl.store(reserve_ptr + at_reserve + 2 * H, n.to(dtype), mask=mask)
        tl.store(reserve_ptr + at_reserve + 3 * H, an.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_PER_STEP)
def reset_update_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    state_ptr,  # (B, H) float32
    output_ptr,  # (N, H)
    update_ptr,  # (B, H) float32, out: z
    reset_state_ptr,  # (B, H), out: r * h
    reserve_ptr,  # (N, 3H): r, z, n
    row,
    count,
    row_before,
    carried,
    H,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """First half of a step of "cho" and "chung": both gates, and the state that the reset gate lets through."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    ar = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    az = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        h = load_state(output_ptr, h0_ptr, b, k, row_before, carried, count, H)
        ar = multiply(load_weight(w_hh_ptr, 0, j, k, H), h, ar, PRECISION)
        az = multiply(load_weight(w_hh_ptr, 1, j, k, H), h, az, PRECISION)

    at_gate, inside = tile(row + b, 3 * H, j, H)
    mask = inside & (b < count)[None, :]
    r = sigmoid(ar + tl.load(gates_in_ptr + at_gate, mask=mask, other=0.0).to(tl.float32))
    z = sigmoid(az + tl.load(gates_in_ptr + at_gate + H, mask=mask, other=0.0).to(tl.float32))
    at_state, _ = tile(b, H, j, H)
    rh = r * tl.load(state_ptr + at_state, mask=mask, other=0.0)
    tl.store(update_ptr + at_state, z, mask=mask)
    tl.store(reset_state_ptr + at_state, rh.to(reset_state_ptr.dtype.element_ty), mask=mask)
    if SAVE:
        dtype: tl.constexpr = reserve_ptr.dtype.element_ty
        tl.store(reserve_ptr + at_gate, r.to(dtype), mask=mask)
        tl.store(reserve_ptr + at_gate + H, z.to(dtype), mask=mask)


@triton.jit(do_not_specialize=_PER_STEP)
def candidate_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    w_hh_ptr,  # (3H, H)
    state_ptr,  # (B, H) float32, in place
    output_ptr,  # (N, H)
    update_ptr,  # (B, H) float32: z
    reset_state_ptr,  # (B, H): r * h
    reserve_ptr,  # (N, 3H): r, z, n
    row,
    count,
    H,
    VARIANT: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Second half of a step of "cho" and "chung": the candidate and the blend."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    an = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        at, inside = tile(b, H, k, H)
        rh = tl.load(reset_state_ptr + at, mask=inside & (b < count)[None, :], other=0.0)
        an = multiply(load_weight(w_hh_ptr, 2, j, k, H), rh, an, PRECISION)

    at_gate, inside = tile(row + b, 3 * H, j, H)
    mask = inside & (b < count)[None, :]
    n = candidate(tl.load(gates_in_ptr + at_gate + 2 * H, mask=mask, other=0.0).to(tl.float32), an, 1.0, VARIANT)
    at_state, _ = tile(b, H, j, H)
    z = tl.load(update_ptr + at_state, mask=mask, other=0.0)
    h = blend(tl.load(state_ptr + at_state, mask=mask, other=0.0), z, n, VARIANT)
    tl.store(state_ptr + at_state, h, mask=mask)
    at_row, _ = tile(row + b, H, j, H)
    tl.store(output_ptr + at_row, h.to(output_ptr.dtype.element_ty), mask=mask)
    if SAVE:
        tl.store(reserve_ptr + at_gate + 2 * H, n.to(reserve_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_PER_STEP)
def bptt_step(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H) "torch": r, z, n, an; (N, 3H) otherwise: r, z, n
    d_state_ptr,  # (B, H) float32, in place: d_h, less what comes through the products of the step after
    d_gates_ptr,  # (N, 3H), out: dr, dz, dn
    d_an_ptr,  # (N, H), out, "torch" only: derivative by W_hn h + b_hn
    row,
    count,
    row_before,
    carried,
    row_after,
    count_after,
    extent,
    H,
    VARIANT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step of back-propagation through time: finish d_h with the products of the step after, then its gates.

    `extent` is H, or 0 where there is no step after. Sequences alive at the step after but not at this one (count <= b
    < count_after) only get their d_h finished, which is then the derivative by their h0. With "cho" and "chung", dr is
    left to `bptt_reset_step`.
    """
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    dh = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    for first in range(0, extent, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        at, inside = tile(row_after + b, 3 * H, k, H)
        after = inside & (b < count_after)[None, :]
        dr = tl.load(d_gates_ptr + at, mask=after, other=0.0)
        dh = multiply(load_weight_transposed(w_hh_ptr, 0, k, j, H), dr, dh, PRECISION)
        dz = tl.load(d_gates_ptr + at + H, mask=after, other=0.0)
        dh = multiply(load_weight_transposed(w_hh_ptr, 1, k, j, H), dz, dh, PRECISION)
        if VARIANT == "torch":
            at_an, _ = tile(row_after + b, H, k, H)
            d_an = tl.load(d_an_ptr + at_an, mask=after, other=0.0)
            dh = multiply(load_weight_transposed(w_hh_ptr, 2, k, j, H), d_an, dh, PRECISION)

    at_row, inside = tile(row + b, H, j, H)
    mask = inside & (b < count)[None, :]
    at_state, _ = tile(b, H, j, H)
    known = inside & (b < tl.maximum(count, count_after))[None, :]
    dh += tl.load(d_state_ptr + at_state, mask=known, other=0.0)
    dh += tl.load(grad_output_ptr + at_row, mask=mask, other=0.0).to(tl.float32)
    h = load_state(output_ptr, h0_ptr, b, j, row_before, carried, count, H).to(tl.float32)

    dtype: tl.constexpr = d_gates_ptr.dtype.element_ty
    GATES: tl.constexpr = 4 if VARIANT == "torch" else 3
    at_reserve, _ = tile(row + b, GATES * H, j, H)
    z = tl.load(reserve_ptr + at_reserve + H, mask=mask, other=0.0).to(tl.float32)
    n = tl.load(reserve_ptr + at_reserve + 2 * H, mask=mask, other=0.0).to(tl.float32)
    dn, dz, direct = blend_grad(dh, h, z, n, VARIANT)
    at_gate, _ = tile(row + b, 3 * H, j, H)
    tl.store(d_gates_ptr + at_gate + H, dz.to(dtype), mask=mask)
    tl.store(d_gates_ptr + at_gate + 2 * H, dn.to(dtype), mask=mask)
    if VARIANT == "torch":
        r = tl.load(reserve_ptr + at_reserve, mask=mask, other=0.0).to(tl.float32)
        an = tl.load(reserve_ptr + at_reserve + 3 * H, mask=mask, other=0.0).to(tl.float32)
        dr, d_an = reset_after_grad(dn, an, r)
        tl.store(d_gates_ptr + at_gate, dr.to(dtype), mask=mask)
        tl.store(d_an_ptr + at_row, d_an.to(dtype), mask=mask)
    tl.store(d_state_ptr + at_state, tl.where((b < count)[None, :], direct, dh), mask=known)


@triton.jit(do_not_specialize=_PER_STEP)
def bptt_reset_step(
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 3H): r, z, n
    d_state_ptr,  # (B, H) float32, in place
    d_gates_ptr,  # (N, 3H): dn in, dr out
    row,
    count,
    row_before,
    carried,
    H,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Second half of a back-propagation step of "cho" and "chung": through the candidate's product to the reset."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    d_rh = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        at, inside = tile(row + b, 3 * H, k, H)
        dn = tl.load(d_gates_ptr + at + 2 * H, mask=inside & (b < count)[None, :], other=0.0)
        d_rh = multiply(load_weight_transposed(w_hh_ptr, 2, k, j, H), dn, d_rh, PRECISION)

    at_gate, inside = tile(row + b, 3 * H, j, H)
    mask = inside & (b < count)[None, :]
    h = load_state(output_ptr, h0_ptr, b, j, row_before, carried, count, H).to(tl.float32)
    r = tl.load(reserve_ptr + at_gate, mask=mask, other=0.0).to(tl.float32)
    dr, direct = reset_before_grad(d_rh, h, r)
    tl.store(d_gates_ptr + at_gate, dr.to(d_gates_ptr.dtype.element_ty), mask=mask)
    at_state, _ = tile(b, H, j, H)
    tl.store(d_state_ptr + at_state, tl.load(d_state_ptr + at_state, mask=mask, other=0.0) + direct, mask=mask)


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
    config: StepwiseConfig,
) -> tuple[Tensor, Tensor | None]:
    """All steps of one layer in one direction.

    Args:
        gates_in: the input's share of the pre-activations with every bias that can be folded in, (N, 3H), contiguous.
        h0: (B, H), contiguous. w_hh: (3H, H), contiguous. b_hn: (H,), variant "torch" only, or None.
        steps: where the rows of each step lie.
        variant, reverse: as in trigru/reference.py.
        save: also return what `backward` needs.
        precision: "tf32" or "ieee", how float32 is multiplied.
        config: tile sizes.

    Returns:
        output (N, H), and the reserve: (N, 4H) for "torch", (N, 3H) otherwise; None unless `save`.
    """
    hidden_size = h0.shape[1]
    output = gates_in.new_empty(steps.num_rows, hidden_size)
    reserve = gates_in.new_empty(steps.num_rows, kept_values(variant) * hidden_size) if save else None
    state = h0.clone() if h0.dtype == torch.float32 else h0.float()
    tiles = config.constexprs() | {"SAVE": save, "PRECISION": precision}
    shared: dict[str, Any] = {
        "gates_in_ptr": gates_in,
        "w_hh_ptr": w_hh,
        "state_ptr": state,
        "output_ptr": output,
        "reserve_ptr": gates_in if reserve is None else reserve,
        "H": hidden_size,
    }
    # What no step changes is put together before them: this is done in the time that a step takes on the device.
    if variant == "torch":
        first = shared | {"h0_ptr": h0, "b_hn_ptr": w_hh if b_hn is None else b_hn}
        tiles["HAS_BIAS"] = b_hn is not None
    else:
        shared |= {"update_ptr": torch.empty_like(state), "reset_state_ptr": torch.empty_like(h0)}
        first, second_tiles = shared | {"h0_ptr": h0}, tiles | {"VARIANT": variant}
    if variant == "torch":
        start = _prepare(forward_step, first, tiles, _PER_STEP[:4], config)
        for row, count, row_before, carried in steps.walk(reverse):
            start(config.grid(hidden_size, count), row, count, row_before, carried)
    else:
        start = _prepare(reset_update_step, first, tiles, _PER_STEP[:4], config)
        finish = _prepare(candidate_step, shared, second_tiles, _PER_STEP[:2], config)
        for row, count, row_before, carried in steps.walk(reverse):
            grid = config.grid(hidden_size, count)
            start(grid, row, count, row_before, carried)
            finish(grid, row, count)
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
    config: StepwiseConfig,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Back-propagation through time of `forward`.

    Args:
        grad_output: (N, H), contiguous. grad_h_n: (B, H).
        The others as given to `forward` or returned by it.

    Returns:
        d_gates (N, 3H): derivatives by the pre-activations of r, z, n; d_an (N, H): derivative by W_hn h + b_hn for
        "torch", None otherwise, where it is dn; d_h0 (B, H), float32.
    """
    hidden_size = h0.shape[1]
    d_gates = grad_output.new_empty(steps.num_rows, 3 * hidden_size)
    d_an = grad_output.new_empty(steps.num_rows, hidden_size) if variant == "torch" else None
    d_state = grad_h_n.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    tiles = config.constexprs() | {"PRECISION": precision}
    shared: dict[str, Any] = {"h0_ptr": h0, "w_hh_ptr": w_hh, "output_ptr": output, "reserve_ptr": reserve}
    shared |= {"d_state_ptr": d_state, "d_gates_ptr": d_gates, "H": hidden_size}
    whole = shared | {"grad_output_ptr": grad_output, "d_an_ptr": d_gates if d_an is None else d_an}
    whole_tiles = tiles | {"VARIANT": variant}
    start = _prepare(bptt_step, whole, whole_tiles, _PER_STEP, config)
    finish = None if variant == "torch" else _prepare(bptt_reset_step, shared, tiles, _PER_STEP[:4], config)
    row_after = count_after = 0
    for row, count, row_before, carried in [*reversed(list(steps.walk(reverse))), (0, 0, 0, 0)]:
        extent = hidden_size if count_after else 0
        grid = config.grid(hidden_size, max(count, count_after))
        start(grid, row, count, row_before, carried, row_after, count_after, extent)
        if finish is not None and count:
            finish(config.grid(hidden_size, count), row, count, row_before, carried)
        row_after, count_after = row, count
    return d_gates, d_an, d_state


def _prepare(kernel, args: dict, constexprs: dict, varying: tuple[str, ...], config: StepwiseConfig):
    return prepare(
        kernel, args, constexprs, varying, num_warps=config.num_warps, num_stages=config.num_stages
    )  # fmt: skip
