"""The stepwise schedule's kernels of back-propagation through time: a step, and for "cho" and "chung" its other half.

A launch finishes d_h with the products of the step after, by a tile of W_hh's transpose, and goes on to the step's own
gates. What is multiplied is rounded to the tensors' dtype, exactly as in forward.
"""

import triton
import triton.language as tl

from .gates import reset_after_grad, reset_before_grad
from .norm import Norm, load_slopes, own_norm, unnormalised
from .per_step import (
    Beside,
    amount_of,
    as_seen,
    before_grad,
    begin_from,
    end_back,
    load_counting,
    load_seed,
    reset_gate,
)
from .products import multiply
from .stepwise_forward import PER_STEP, own_side, own_step, own_tile
from .tiles import at, load_state, load_weight_transposed, read, there, write


@triton.jit
def bptt_tile(grad_output_ptr, h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, d_an_ptr, beside,
              j, b, here, before, after, extent, H, width, VARIANT: tl.constexpr, PRECISION: tl.constexpr,
              BLOCK_K: tl.constexpr, LATE: tl.constexpr = False):  # fmt: skip
    """A tile of a step, as `bptt_step`; `before` and `width` as in `torch_tile` of stepwise_forward.py. LATE: the
    state's derivative is loaded behind the products, for want of registers."""
    amount = amount_of(beside, here, b, j, H)  # early, for what is kept waits for it
    live = there(j, b, H, here.count)
    finished = there(j, b, H, tl.maximum(here.count, after.count))
    # All that the gates need, raw: it arrives while the products run.
    d_state = at(d_state_ptr, 0, b, j, H)
    if not LATE:
        d_begun = read(d_state, finished)
    d_output = tl.load(at(grad_output_ptr, here.row, b, j, width), mask=live, other=0.0)
    h = load_state(output_ptr, h0_ptr, b, j, here, before, H, width)
    reserve = at(reserve_ptr, here.row, b, j, (4 if VARIANT == "torch" else 3) * H)
    z, n = load_counting(beside, reserve + H, live, amount), load_counting(beside, reserve + 2 * H, live, amount)
    if VARIANT == "torch":
        r = load_counting(beside, reserve, live, amount)
        an = load_counting(beside, reserve + 3 * H, live, amount)
    dh = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    if beside.norm is not None:
        gates: tl.constexpr = 3 if VARIANT == "torch" else 2
        mean, along = load_slopes(beside.norm, d_gates_ptr, d_an_ptr, after, b, 0, gates, extent, H, BLOCK_K)
    for first in range(0, extent, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        known = there(k, b, H, after.count)
        d_gates = at(d_gates_ptr, after.row, b, k, 3 * H)
        dr = tl.load(d_gates, mask=known, other=0.0)
        if beside.norm is not None:
            dr = unnormalised(beside.norm, dr, 0, mean, along, after.row, b, k, after.count, H).to(dr.dtype)
        dh = multiply(load_weight_transposed(w_hh_ptr, 0, k, j, H), dr, dh, PRECISION)
        dz = tl.load(d_gates + H, mask=known, other=0.0)
        if beside.norm is not None:
            dz = unnormalised(beside.norm, dz, 1, mean, along, after.row, b, k, after.count, H).to(dz.dtype)
        dh = multiply(load_weight_transposed(w_hh_ptr, 1, k, j, H), dz, dh, PRECISION)
        if VARIANT == "torch":
            d_an = tl.load(at(d_an_ptr, after.row, b, k, H), mask=known, other=0.0)
            if beside.norm is not None:
                d_an = unnormalised(beside.norm, d_an, 2, mean, along, after.row, b, k, after.count, H).to(d_an.dtype)
            dh = multiply(load_weight_transposed(w_hh_ptr, 2, k, j, H), d_an, dh, PRECISION)

    # A sequence that has no step after has a product with zeros, which is NaN where a weight is infinite.
    dh = tl.where((b < after.count)[None, :], dh, 0.0)
    if LATE:
        d_begun = read(d_state, finished)
    dh = before_grad(beside, dh, d_begun, after, b, j, H)
    dh += d_output.to(tl.float32)
    h = begin_from(beside, h.to(tl.float32), here, b, j, H)
    dn, dz, direct = end_back(dh, h, z.to(tl.float32), n.to(tl.float32), amount, beside.clip, VARIANT)
    d_gates = at(d_gates_ptr, here.row, b, j, 3 * H)
    write(d_gates + H, dz, live)
    write(d_gates + 2 * H, dn, live)
    if VARIANT == "torch":
        dr, d_an = reset_after_grad(dn, an.to(tl.float32), r.to(tl.float32))
        write(d_gates, dr, live)
        write(at(d_an_ptr, here.row, b, j, H), d_an, live)
    write(d_state, tl.where((b < here.count)[None, :], direct, dh), finished)


@triton.jit(do_not_specialize=PER_STEP)
def bptt_step(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H) "torch": r, z, n, an; (N, 3H) otherwise: r, z, n
    d_state_ptr,  # (B, H) float32, in place: d_h, less what comes through the products of the step after
    d_gates_ptr,  # (N, 3H), out: dr, dz, dn
    d_an_ptr,  # (N, H), out, "torch" only: derivative by W_hn h + b_hn
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    seed_ptr,  # () int64
    zoneout_below,
    d_begin_ptr,  # (N, H), out, or None: derivative by what the step after begins from
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
    hats_ptr,
    rstd_ptr,
    row,
    count,
    row_before,
    carried,
    row_after,
    count_after,
    extent,
    row_back,  # of the second direction, or None
    count_back,
    row_before_back,
    carried_back,
    row_after_back,
    count_after_back,
    H,
    rows,  # of all steps together, where both directions run, or None
    batch,
    clip,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
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
    behind, starts, width = None, None, H
    here, before = (
        own_step(row, count, row_back, count_back),
        own_step(row_before, carried, row_before_back, carried_back),
    )
    after = own_step(row_after, count_after, row_after_back, count_after_back)
    PRODUCTS: tl.constexpr = None if VARIANT == "torch" else 2
    if w_hh_back_ptr is not None:
        side, behind, w_hh_ptr = own_side(rows, w_hh_ptr, w_hh_back_ptr)
        grad_output_ptr += side * H
        h0_ptr += side * batch * H
        output_ptr += side * H
        width = 2 * H
        reserve_ptr += behind * ((4 if VARIANT == "torch" else 3) * H)
        starts = side * batch
        d_state_ptr += side * batch * H
        if gain_ptr is not None:
            gain_ptr, hats_ptr, rstd_ptr = own_norm(side, behind, gain_ptr, hats_ptr, rstd_ptr, H, PRODUCTS)
        d_gates_ptr += behind * (3 * H)
        if VARIANT == "torch":
            d_an_ptr += behind * H
    norm = None
    if gain_ptr is not None:
        norm = Norm(gain_ptr, H, hats_ptr, rstd_ptr, PRODUCTS)
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, None, d_begin_ptr, clip, behind, starts,
        FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below, norm,
    )  # fmt: skip
    bptt_tile(
        grad_output_ptr, h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, d_an_ptr, beside, j,
        b, here, before, after, extent, H, width, VARIANT, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit
def bptt_reset_tile(h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, beside, j, b, here, before, H,
                    width, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of the second half of a step, as `bptt_reset_step`; `before` and `width` as in `bptt_tile`."""
    live, d_state = there(j, b, H, here.count), at(d_state_ptr, 0, b, j, H)
    h = load_state(output_ptr, h0_ptr, b, j, here, before, H, width)
    r = tl.load(at(reserve_ptr, here.row, b, j, 3 * H), mask=live, other=0.0)
    past = read(d_state, live)
    d_rh = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    if beside.norm is not None:
        mean, along = load_slopes(beside.norm, d_gates_ptr, None, here, b, 2, 3, H, H, BLOCK_K)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        dn = tl.load(at(d_gates_ptr, here.row, b, k, 3 * H) + 2 * H, mask=there(k, b, H, here.count), other=0.0)
        if beside.norm is not None:
            dn = unnormalised(beside.norm, dn, 2, mean, along, here.row, b, k, here.count, H).to(dn.dtype)
        d_rh = multiply(load_weight_transposed(w_hh_ptr, 2, k, j, H), dn, d_rh, PRECISION)

    h = begin_from(beside, h.to(tl.float32), here, b, j, H)
    h = as_seen(beside, h, here, b, j, H)
    r = reset_gate(beside, r.to(tl.float32), d_rh)
    dr, direct = reset_before_grad(d_rh, h, r)
    write(at(d_gates_ptr, here.row, b, j, 3 * H), dr, live)
    write(d_state, past + as_seen(beside, direct, here, b, j, H), live)


@triton.jit(do_not_specialize=PER_STEP)
def bptt_reset_step(
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 3H): r, z, n
    d_state_ptr,  # (B, H) float32, in place
    d_gates_ptr,  # (N, 3H): dn in, dr out
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    dropped_ptr,
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
    hats_ptr,
    rstd_ptr,
    row,
    count,
    row_before,
    carried,
    row_back,  # of the second direction, or None
    count_back,
    row_before_back,
    carried_back,
    H,
    rows,  # of all steps together, where both directions run, or None
    batch,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    HAS_AMOUNT: tl.constexpr,  # True or None: whether there is one
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Second half of a back-propagation step of "cho" and "chung": through the candidate's product to the reset."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    behind, starts, width = None, None, H
    here, before = (
        own_step(row, count, row_back, count_back),
        own_step(row_before, carried, row_before_back, carried_back),
    )
    PRODUCTS: tl.constexpr = 2
    if w_hh_back_ptr is not None:
        side, behind, w_hh_ptr = own_side(rows, w_hh_ptr, w_hh_back_ptr)
        h0_ptr += side * batch * H
        output_ptr += side * H
        width = 2 * H
        reserve_ptr += behind * (3 * H)
        starts = side * batch
        d_state_ptr += side * batch * H
        if gain_ptr is not None:
            gain_ptr, hats_ptr, rstd_ptr = own_norm(side, behind, gain_ptr, hats_ptr, rstd_ptr, H, PRODUCTS)
        d_gates_ptr += behind * (3 * H)
    norm = None
    if gain_ptr is not None:
        norm = Norm(gain_ptr, H, hats_ptr, rstd_ptr, PRODUCTS)
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, HAS_AMOUNT, dropped_ptr, None, None, None, behind, starts,
        FRESH_BY_STEP, DECAY_BY_UNIT, norm=norm,
    )  # fmt: skip
    bptt_reset_tile(
        h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr, beside, j, b, here, before,
        H, width, PRECISION, BLOCK_K,
    )  # fmt: skip
