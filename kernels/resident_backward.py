"""The resident schedule, back-propagation through time: the whole sequence in one launch, each program by itself."""

import triton
import triton.language as tl

from .gates import reset_after_grad, reset_before_grad
from .loop import Step, last_steps, next_steps, steps_back
from .norm import Norm, slopes, unnormalised
from .per_step import (
    Amount,
    Beside,
    begin_back,
    begun,
    carries_on,
    done,
    end_back,
    load_amount,
    load_beginning,
    load_dropped,
    load_seed,
    place_of,
    reset_gate,
    resets,
    row_of,
    seen,
    unless,
)
from .products import multiply
from .resident_forward import alive_steps, own_part, own_side, units_only
from .tile_words import beginning_by, in_words, later_if, load_words, words_of
from .tiles import at, either, load_state, read, there, unknown_zero, write, write_gates


@triton.jit
def _carry_back(grad_output_ptr, d_gates_ptr, d_an_ptr, beside, dh, first, end, t, here, before, j, b, T, B, H, width,
                direction, VARIANT: tl.constexpr):  # fmt: skip
    """Steps first ... end - 1 of a tile without a sequence alive, as `next_steps` counts them: a state's derivative
    takes up that of the output, and no gate has one."""
    live, zero = there(j, b, H, B), tl.zeros_like(dh)
    for i in range(first, end):
        dh += read(at(grad_output_ptr, here.row, b, j, width), live)
        own_row = row_of(beside, here.row)
        write_gates(at(d_gates_ptr, own_row, b, j, 3 * H), (zero, zero, zero), live, H)
        if VARIANT == "torch":
            write(at(d_an_ptr, own_row, b, j, H), zero, live)
        if beside.d_begin is not None:
            write(at(beside.d_begin, own_row, b, j, H), dh, live)
        t, here, before = next_steps(None, i, t, here, before, T, B, direction, False)
    return dh, t, here, before


@triton.jit
def _where(beside, words, live, EXACT: tl.constexpr):
    """Of a step's elements, those whose gates count, and those of the state before that do; of others load what carries
    the state on, and zeros. words: as `load_words` has them, which tell of sequences that do not exist, too."""
    counting, kept = live, live
    if in_words(beside.amount, beside.reset):
        if beside.amount is not None:
            counting = done(words).broadcast_to(live.shape) if EXACT else live & done(words)
        if beside.reset is not None and beside.fresh is None:
            kept = (~resets(words)).broadcast_to(live.shape) if EXACT else live & ~resets(words)
    return counting, kept


@triton.jit
def _load_step(kept, beside, words, here, before, is_first, j, b, H, width, VARIANT: tl.constexpr, EXACT: tl.constexpr):
    """What a step's derivatives need, as it lies in memory: r, z, n, W_hn h + b_hn (else n again), the state before,
    dy. kept: pointers to the output's derivative, h0, the output and the reserve. words: of the step, as `load_words`
    has them. is_first: whether forward began with it."""
    grad_output_ptr, h0_ptr, output_ptr, reserve_ptr = kept
    GATES: tl.constexpr = 4 if VARIANT == "torch" else 3
    live = there(j, b, H, here.count)
    counting, state = _where(beside, words, live, EXACT)
    reserve = at(reserve_ptr, row_of(beside, here.row), b, j, GATES * H)
    r, n = tl.load(reserve, mask=counting, other=0.0), tl.load(reserve + 2 * H, mask=counting, other=0.0)
    z = tl.load(
        reserve + H,
        mask=counting,
        other=1.0 if in_words(beside.amount, beside.reset) and VARIANT != "chung" else 0.0,
    )
    an = n if VARIANT != "torch" else tl.load(reserve + 3 * H, mask=counting, other=0.0)
    carried = Step(before.row, tl.where(is_first, 0, tl.minimum(before.count, here.count)))
    h = load_state(output_ptr, h0_ptr, b, j, here, carried, H, width, state)
    return r, z, n, an, h, tl.load(at(grad_output_ptr, here.row, b, j, width), mask=live, other=0.0)


@triton.jit(do_not_specialize=["T", "B", "units", "direction", "zoneout_below", "dropped_below"])
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
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    dropped_below,
    seed_ptr,  # () int64
    zoneout_below,
    d_begin_ptr,  # (N, H), out, or None: derivative by what each step begins from
    lengths_ptr,  # (B,) int64, of sequences past whose ends nothing happens; or None
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
    hats_ptr,  # (N, 3H) or None
    rstd_ptr,  # (N, 1) "torch", (N, 2) otherwise; float32; or None
    T,
    B,
    H,
    units,  # of the H, so many are the layer's, the others added (see widen.py)
    direction,  # of time, see loop.py
    clip,
    VARIANT: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    HIDDEN: tl.constexpr,
    EXACT: tl.constexpr,  # whether all HIDDEN units are the layer's
    BLOCK_B: tl.constexpr,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
    HEADS: tl.constexpr,  # of a direction, of which each has programs of its own; or None
):
    """All steps of one batch tile, last to first as forward ran."""
    width, behind, starts = H, None, None
    if w_hh_back_ptr is not None or HEADS is not None:
        side, behind, direction = own_side(offsets_ptr, T, B, direction, HEADS, PACKED)
        starts = side * B
        grad_output_ptr += side * H
        h0_ptr += side * B * H
        output_ptr += side * H
        width = (2 if HEADS is None else tl.num_programs(1)) * H
        w_hh_ptr = w_hh_ptr + side * (3 * H * H) if HEADS is not None else either(side, w_hh_ptr, w_hh_back_ptr)
        if gain_ptr is not None:
            gain_ptr += side * (3 * H)
    norm = Norm(gain_ptr, units, hats_ptr, rstd_ptr, None if VARIANT == "torch" else 2)
    if dropped_below is not None:
        dropped_ptr = tl.load(dropped_ptr)  # the seed of the masks
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, None, d_begin_ptr, clip,
        behind, starts, FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below,
        dropped_below=dropped_below,
    )  # fmt: skip
    j, b, w_r, w_z, w_n = own_part(w_hh_ptr, H, True, HIDDEN, BLOCK_B)
    exists = there(j, b, H, B)
    dh = read(at(d_state_ptr, 0 if starts is None else starts, b, j, H), exists)
    dtype: tl.constexpr = d_gates_ptr.dtype.element_ty
    zero = tl.zeros((HIDDEN, BLOCK_B), tl.float32)
    place = place_of(Step(0, B), b, j, H)
    t, here, before = last_steps(offsets_ptr, T, B, direction, PACKED)
    first, end = alive_steps(lengths_ptr, b, B, T, direction)
    if lengths_ptr is not None:
        dh, t, here, before = _carry_back(
            grad_output_ptr, d_gates_ptr, d_an_ptr, beside, dh, 0, T - end, t, here, before, j, b, T, B, H, width,
            direction, VARIANT,
        )  # fmt: skip
    words = words_of(beside, end - 1, T, direction, BLOCK_B)
    kept = grad_output_ptr, h0_ptr, output_ptr, reserve_ptr
    loaded = _load_step(
        kept, beside, load_words(words, BLOCK_B), here, before, end == 1, j, b, H, width, VARIANT, EXACT
    )
    coming = later_if(words, -1, end > 0)
    ahead = load_words(coming, BLOCK_B)
    for i in range(T - end, T - first):
        row, live = here.row, there(j, b, H, here.count)
        own_row = row if behind is None else row + behind  # fewer registers than pointers of its own
        r, z, n, an, h, dy = loaded
        t, following, past = next_steps(offsets_ptr, i, t, here, before, T, B, direction, PACKED)
        z, n, h = z.to(tl.float32), n.to(tl.float32), h.to(tl.float32)
        if in_words(beside.amount, beside.reset):
            mine = load_words(words, BLOCK_B)  # again: where rows lie otherwise, what is at hand is no help
            amount, beginning = Amount((), ()), beginning_by(beside, mine, place)
        else:
            amount, beginning = load_amount(beside, row, place), load_beginning(beside, row, place)
        if not in_words(beside.amount, beside.reset) or fresh_ptr is not None:
            h = begun(h, beginning)
        dropped = load_dropped(beside, place)  # kept from step to step, it spilled
        d = dh + dy.to(tl.float32)
        idle = carries_on(amount)
        dn, dz, direct = end_back(d, h, unless(z, idle), unless(n, idle), amount, clip, VARIANT)
        r = r.to(tl.float32)
        d = direct if dropped_ptr is None else zero  # what the products add to
        if VARIANT == "torch":
            dr, d_an = reset_after_grad(dn, unless(an.to(tl.float32), idle), unless(r, idle))
            write(at(d_an_ptr, own_row, b, j, H), d_an, live)
            by_r, by_z = dr, dz
            if gain_ptr is not None:
                mean, along = slopes(norm, (dr, dz, d_an), 0, own_row, b, j, here.count, H)
                d_an = unnormalised(norm, d_an, 2, mean, along, own_row, b, j, here.count, H)
                by_r = unnormalised(norm, dr, 0, mean, along, own_row, b, j, here.count, H)
                by_z = unnormalised(norm, dz, 1, mean, along, own_row, b, j, here.count, H)
            d += multiply(w_n, d_an.to(dtype), zero, PRECISION)
        else:
            by_n = dn
            if gain_ptr is not None:
                mean, along = slopes(norm, (dn,), 2, own_row, b, j, here.count, H)
                by_n = unnormalised(norm, dn, 2, mean, along, own_row, b, j, here.count, H)
            d_rh = multiply(w_n, by_n.to(dtype), zero, PRECISION)
            d_rh = units_only(d_rh, j, units, EXACT)
            dr, through = reset_before_grad(
                d_rh, seen(h, dropped), r if in_words(beside.amount, beside.reset) else reset_gate(beside, r, d_rh)
            )
            d += through
            by_r, by_z = dr, dz
            if gain_ptr is not None:
                mean, along = slopes(norm, (dr, dz), 0, own_row, b, j, here.count, H)
                by_r = unnormalised(norm, dr, 0, mean, along, own_row, b, j, here.count, H)
                by_z = unnormalised(norm, dz, 1, mean, along, own_row, b, j, here.count, H)
        # Of the next step, for memory is far; no earlier, for registers are few.
        loaded = _load_step(kept, beside, ahead, following, past, i + 2 >= T, j, b, H, width, VARIANT, EXACT)
        write_gates(at(d_gates_ptr, own_row, b, j, 3 * H), (dr, dz, dn), live, H)
        d = multiply(w_r, by_r.to(dtype), d, PRECISION)
        d = multiply(w_z, by_z.to(dtype), d, PRECISION)
        if dropped_ptr is not None:
            d = direct + seen(d, dropped)
        d = units_only(d, j, units, EXACT)
        if d_begin_ptr is not None:
            write(at(d_begin_ptr, row_of(beside, row), b, j, H), d, live)
        back = begin_back(d, beginning)
        dh = back if in_words(beside.amount, beside.reset) else tl.where((b < here.count)[None, :], back, dh)
        words, coming = coming, later_if(coming, -1, i + 2 < T)
        ahead = load_words(coming, BLOCK_B)
        here, before = following, past
    if lengths_ptr is not None:
        t, here, before = steps_back(None, first - 1, T, B, direction, False)  # kept from the loop, they cost more
        dh, t, here, before = _carry_back(
            grad_output_ptr, d_gates_ptr, d_an_ptr, beside, dh, T - first, T, t, here, before, j, b, T, B, H, width,
            direction, VARIANT,
        )  # fmt: skip
    side = tl.program_id(1) + unknown_zero()  # not the address of above: kept through the loop, it spilled
    write(at(d_state_ptr, side * B, b, j, H), dh, exists)
