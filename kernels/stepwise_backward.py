"""The stepwise schedule's kernels of back-propagation through time: a step, and for "cho" and "chung" its other half.

A launch finishes d_h with the products of the step after, by a tile of W_hh's transpose, and goes on to the step's own
gates. What is multiplied is rounded to the tensors' dtype, exactly as in forward.
"""

import triton
import triton.language as tl

from .gates import blend_grad, reset_after_grad, reset_before_grad
from .loop import Step
from .products import multiply
from .stepwise_forward import PER_STEP, own_tile
from .tiles import at, load_state, load_weight_transposed, read, there, write


@triton.jit
def bptt_tile(grad_output_ptr, h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, d_an_ptr, j, b,
              here, before, after, extent, H, VARIANT: tl.constexpr, PRECISION: tl.constexpr,
              BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of a step, as `bptt_step`; before: the step before, of which it counts what is alive `here` too."""
    dh = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    for first in range(0, extent, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        known = there(k, b, H, after.count)
        d_gates = at(d_gates_ptr, after.row, b, k, 3 * H)
        dr = tl.load(d_gates, mask=known, other=0.0)
        dh = multiply(load_weight_transposed(w_hh_ptr, 0, k, j, H), dr, dh, PRECISION)
        dz = tl.load(d_gates + H, mask=known, other=0.0)
        dh = multiply(load_weight_transposed(w_hh_ptr, 1, k, j, H), dz, dh, PRECISION)
        if VARIANT == "torch":
            d_an = tl.load(at(d_an_ptr, after.row, b, k, H), mask=known, other=0.0)
            dh = multiply(load_weight_transposed(w_hh_ptr, 2, k, j, H), d_an, dh, PRECISION)

    live = there(j, b, H, here.count)
    known = there(j, b, H, tl.maximum(here.count, after.count))
    d_state = at(d_state_ptr, 0, b, j, H)
    dh += read(d_state, known)
    dh += read(at(grad_output_ptr, here.row, b, j, H), live)
    h = load_state(output_ptr, h0_ptr, b, j, here, before, H).to(tl.float32)
    reserve = at(reserve_ptr, here.row, b, j, (4 if VARIANT == "torch" else 3) * H)
    z, n = read(reserve + H, live), read(reserve + 2 * H, live)
    dn, dz, direct = blend_grad(dh, h, z, n, VARIANT)
    d_gates = at(d_gates_ptr, here.row, b, j, 3 * H)
    write(d_gates + H, dz, live)
    write(d_gates + 2 * H, dn, live)
    if VARIANT == "torch":
        r, an = read(reserve, live), read(reserve + 3 * H, live)
        dr, d_an = reset_after_grad(dn, an, r)
        write(d_gates, dr, live)
        write(at(d_an_ptr, here.row, b, j, H), d_an, live)
    write(d_state, tl.where((b < here.count)[None, :], direct, dh), known)


@triton.jit(do_not_specialize=PER_STEP)
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
    j, b = own_tile(BLOCK_H, BLOCK_B)
    bptt_tile(
        grad_output_ptr, h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, d_an_ptr, j, b,
        Step(row, count), Step(row_before, carried), Step(row_after, count_after), extent, H, VARIANT, PRECISION,
        BLOCK_K,
    )  # fmt: skip


@triton.jit
def bptt_reset_tile(h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, j, b, here, before, H,
                    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of the second half of a step, as `bptt_reset_step`; `before` as in `bptt_tile`."""
    d_rh = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        dn = tl.load(at(d_gates_ptr, here.row, b, k, 3 * H) + 2 * H, mask=there(k, b, H, here.count), other=0.0)
        d_rh = multiply(load_weight_transposed(w_hh_ptr, 2, k, j, H), dn, d_rh, PRECISION)

    live = there(j, b, H, here.count)
    h = load_state(output_ptr, h0_ptr, b, j, here, before, H).to(tl.float32)
    dr, direct = reset_before_grad(d_rh, h, read(at(reserve_ptr, here.row, b, j, 3 * H), live))
    write(at(d_gates_ptr, here.row, b, j, 3 * H), dr, live)
    d_state = at(d_state_ptr, 0, b, j, H)
    write(d_state, read(d_state, live) + direct, live)


@triton.jit(do_not_specialize=PER_STEP)
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
    j, b = own_tile(BLOCK_H, BLOCK_B)
    bptt_reset_tile(
        h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, j, b, Step(row, count),
        Step(row_before, carried), H, PRECISION, BLOCK_K,
    )  # fmt: skip
