"""The resident schedule, back-propagation through time: the whole sequence in one launch, each program by itself."""

import triton
import triton.language as tl

from .gates import reset_after_grad, reset_before_grad
from .loop import Step, last_steps, next_steps
from .per_step import Beside, begin_back, begin_from, end_back, load_amount, load_beginning, load_dropped, of_side, seen
from .products import multiply
from .resident_forward import own_part, own_place, own_side, units_only
from .tiles import at, either, load_state, read, read_gates, there, write, write_gates


@triton.jit(do_not_specialize=["T", "B", "units", "direction"])
def bptt_kernel(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H) "torch": r, z, n, an; (N, 3H) otherwise: r, z, n
    d_state_ptr,  # (B, H) float32: in, derivative by h_n; out, by h0
    d_gates_ptr,  # (N, 3H), out: dr, dz, dn
    d_an_ptr,  # (N, H), out, "torch" only: derivative by W_hn h + b_hn
    d_begin_ptr,  # (N, H), out, or None: derivative by the state that a step begins from
    T,
    B,
    H,
    units,  # of the H, so many are the layer's, the others added (see widen.py)
    direction,  # of time, see loop.py
    reset_ptr,  # from here on: see per_step.py
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    clip,
    VARIANT: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    EXACT: tl.constexpr,  # whether all HIDDEN units are the layer's
    BLOCK_B: tl.constexpr,
    FRESH_STEPS: tl.constexpr,
    DECAY_UNITS: tl.constexpr,
    AMOUNT_UNITS: tl.constexpr,
):
    """All steps of one batch tile, last to first as forward ran."""
    width = H
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, clip, FRESH_STEPS, DECAY_UNITS, AMOUNT_UNITS
    )
    if w_hh_back_ptr is not None:
        side, behind, direction = own_side(offsets_ptr, T, B, PACKED)
        beside = of_side(beside, side, behind, B, H)
        grad_output_ptr += side * H
        h0_ptr += side * B * H
        output_ptr += side * H
        width = 2 * H
        d_state_ptr += side * B * H
        w_hh_ptr = either(side, w_hh_ptr, w_hh_back_ptr)
    j, b, w_r, w_z, w_n = own_part(w_hh_ptr, H, True, HIDDEN, BLOCK_B)
    d_state, exists = at(d_state_ptr, 0, b, j, H), there(j, b, H, B)
    dh = read(d_state, exists)
    dtype: tl.constexpr = d_gates_ptr.dtype.element_ty
    zero = tl.zeros((HIDDEN, BLOCK_B), tl.float32)
    place = own_place(j, b, H, B)
    dropped = load_dropped(beside, place)
    t, here, before = last_steps(offsets_ptr, T, B, direction, PACKED)
    for i in range(T):
        carried = Step(before.row, tl.where(i + 1 == T, 0, tl.minimum(before.count, here.count)))
        row, live = here.row, there(j, b, H, here.count)
        own_row = row if w_hh_back_ptr is None else row + behind  # fewer registers than pointers of its own
        reserve = at(reserve_ptr, own_row, b, j, (4 if VARIANT == "torch" else 3) * H)
        r, z, n = read_gates(reserve, live, H)
        h = load_state(output_ptr, h0_ptr, b, j, here, carried, H, width).to(tl.float32)
        beginning = load_beginning(beside, row, place)
        h = begin_from(h, beginning)
        d = dh + read(at(grad_output_ptr, row, b, j, width), live)
        dn, dz, direct = end_back(d, h, z, n, load_amount(beside, row, place), beside.clip, VARIANT)
        d = direct if dropped is None else zero  # what the products add to
        if VARIANT == "torch":
            dr, d_an = reset_after_grad(dn, read(reserve + 3 * H, live), r)
            write(at(d_an_ptr, own_row, b, j, H), d_an, live)
            d += multiply(w_n, d_an.to(dtype), zero, PRECISION)
        else:
            d_rh = multiply(w_n, dn.to(dtype), zero, PRECISION)
            dr, through = reset_before_grad(units_only(d_rh, j, units, EXACT), seen(h, dropped), r)
            d += through
        write_gates(at(d_gates_ptr, own_row, b, j, 3 * H), (dr, dz, dn), live, H)
        d = multiply(w_r, dr.to(dtype), d, PRECISION)
        d = multiply(w_z, dz.to(dtype), d, PRECISION)
        if dropped is not None:
            d = direct + seen(d, dropped)
        d = units_only(d, j, units, EXACT)
        if d_begin_ptr is not None:
            write(at(d_begin_ptr, own_row, b, j, H), d, live)
        dh = tl.where((b < here.count)[None, :], begin_back(d, beginning), dh)
        t, here, before = next_steps(offsets_ptr, i, t, here, before, T, B, direction, PACKED)
    write(d_state, dh, exists)
