"""The persistent schedule, back-propagation through time: the whole sequence in one cooperative launch.

A program owns BLOCK_H hidden units of d_h for BLOCK_B sequences, and the columns of W_hh that lead to them. What the
programs exchange is what has to be written anyway for the weights' gradient: the gates' derivatives of the step. What
the next step needs from memory is loaded before the wait, so that it arrives meanwhile.

Sizes: T steps, B batch, H hidden_size, N rows of all steps together (see steps.py).
"""

import triton
import triton.language as tl

from .exchange import publish, publish_two, report
from .fetched import fetch_ahead
from .fetched_products import product, sum_of_products
from .gates import reset_after_grad, reset_before_grad
from .loop import last_steps, next_steps
from .parts import one_gate
from .per_step import (
    Beside,
    begun,
    carries_on,
    end_back,
    load_dropped,
    load_of_step,
    load_seed,
    load_words,
    reset_gate,
    seen,
    unless,
)
from .persistent_tiles import (
    PER_LAUNCH,
    Shape,
    await_rows,
    await_rows_of,
    before_step,
    flags_of,
    in_float32,
    load_columns,
    load_step,
    of_side,
    one_look,
    own_place,
    own_side,
    own_tile,
    rows_at,
    there,
    tile_at,
    units_only,
    where_alive,
)
from .several_backward import several_reset_first, several_torch
from .tiles import read, write


@triton.jit
def _own_places(kept, d_state_ptr, d_gates_ptr, side, B, GATES: tl.constexpr, S: tl.constexpr):
    """Where the own direction's begin: of what `load_step` reads, and the derivatives by its state and its gates."""
    grad_output_ptr, h0_ptr, output_ptr, reserve_ptr = kept
    grad_output_ptr += side.number * S.H
    output_ptr += side.number * S.H
    reserve_ptr += side.rows * (GATES * S.H)
    states = side.number * B * S.H
    return (
        (grad_output_ptr, h0_ptr + states, output_ptr, reserve_ptr),
        d_state_ptr + states,
        d_gates_ptr + side.rows * (3 * S.H),
    )


@triton.jit
def _load_ahead(kept, beside, own, following, before, i, T, words, place, VALUES: tl.constexpr, S: tl.constexpr,
                Z: tl.constexpr = 1.0):  # fmt: skip
    """In turn i of the loop, what the next one works with, whose words are there, and the words of the one after it."""
    loaded = load_step(kept, own, following, before, i + 2 >= T, VALUES, S, words=words, Z=Z)
    return loaded, load_of_step(beside, following.row, place, words), load_words(beside, before.row, place)


@triton.jit(do_not_specialize=PER_LAUNCH)
def backward_torch(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    packed_ptr,  # columns of both that are fetched, see fetched.py; or None
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn
    d_state_ptr,  # (B, H) float32: derivative by the last state in, by h0 out
    d_gates_ptr,  # (N, 3H), filled with the reserved pattern: dr, dz, dn
    d_an_ptr,  # (N, H), filled with the reserved pattern: derivative by W_hn h + b_hn
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    dropped_below,
    seed_ptr,  # () int64
    zoneout_below,
    d_begin_ptr,  # (N, H), out, or None: derivative by what each step begins from
    nothing_ptr,  # (H,) zeros, there with `tiles`, and where columns are fetched and PACKED
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    first_tile,  # number of the launch's first group, see `own_tile`
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    tiles,  # batch tiles of a program, or None: one
    clip,
    H: tl.constexpr,
    ADDED: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_H: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROTOCOL: tl.constexpr,
    TIMEOUT: tl.constexpr,
    SPLIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    FETCHED: tl.constexpr,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
):
    """Variant "torch": one exchange a step."""
    SIDES: tl.constexpr = 1 if w_hh_back_ptr is None else 2
    S: tl.constexpr = Shape(
        SIDES, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, FETCHED
    )  # fmt: skip
    own = own_tile(first_tile, B, status_ptr, S, None, tiles, packed_ptr, nothing_ptr)
    side = own_side(own, offsets_ptr, T, B, direction, S)
    kept = (grad_output_ptr, h0_ptr, output_ptr, reserve_ptr)
    kept, d_state_ptr, d_gates_ptr = _own_places(kept, d_state_ptr, d_gates_ptr, side, B, 4, S)
    d_an_ptr += side.rows * H
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr,
        dropped_ptr if dropped_below is None else tl.load(dropped_ptr),  # the seed of the masks
        None, d_begin_ptr, clip, side.rows, side.sequences, FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT,
        load_seed(seed_ptr), zoneout_below, dropped_below=dropped_below,
    )  # fmt: skip
    MASKS: tl.constexpr = dropped_ptr is not None or seed_ptr is not None
    MORE: tl.constexpr = MASKS or reset_ptr is not None or decay_ptr is not None or amount_ptr is not None
    LATE: tl.constexpr = FETCHED and BLOCK_H > 16  # what a step loads: the products take all registers
    w_hh_ptr = of_side(side, w_hh_ptr, w_hh_back_ptr)
    w_r = load_columns(w_hh_ptr, 0, own, S)
    w_z = load_columns(w_hh_ptr, 1, own, S)
    w_n = load_columns(w_hh_ptr, 2, own, S)

    if tiles is None:
        flags = flags_of(own, 0, T, B, S)
        d_state, exists = tile_at(d_state_ptr, 0, own, 1, S), there(own, B, S)
        dh = read(d_state, exists)
        t, here, before = last_steps(offsets_ptr, T, B, side.direction, PACKED)
        place = own_place(own, B, S)
        words, ahead = load_words(beside, here.row, place), load_words(beside, before.row, place)
        loaded = load_step(kept, own, here, before, T == 1, 4, S, words=words)
        dropped = load_dropped(beside, place)
        of_step = load_of_step(beside, here.row, place, words)
        for i in range(T):
            dy, h, r, z, n, an = in_float32(loaded)
            amount, beginning = of_step
            h = begun(h, beginning)
            idle = carries_on(amount)
            dn, dz, direct = end_back(dh + dy, h, unless(z, idle), unless(n, idle), amount, clip, "torch")
            dr, d_an = reset_after_grad(dn, unless(an, idle), unless(r, idle))
            mask = there(own, here.count, S)
            publish_two(
                tile_at(d_gates_ptr, here.row, own, 3, S), dr, tile_at(d_gates_ptr, here.row, own, 3, S, 1), dz, mask,
                None, PROTOCOL,
            )  # fmt: skip
            publish(tile_at(d_an_ptr, here.row, own, 1, S), d_an, mask, flags + i, PROTOCOL)
            write(tile_at(d_gates_ptr, here.row, own, 3, S, 2), dn, mask)
            direct = where_alive(own, here, direct, dh, S)

            t, following, before = next_steps(offsets_ptr, i, t, here, before, T, B, side.direction, PACKED)
            if not LATE:
                loaded, of_step, ahead = _load_ahead(kept, beside, own, following, before, i, T, ahead, place, 4, S)
            first = fetch_ahead(w_r, S, MORE)
            tl.debug_barrier()

            source = rows_at(d_gates_ptr, here.row, own, 3, S)
            source_an = rows_at(d_an_ptr, here.row, own, 1, S)
            if S.FETCHED:
                x_r = await_rows(source, own, here, flags + i, S)
                x_z, x_n = await_rows(source + H, own, here, None, S), await_rows(source_an, own, here, None, S)
                a = sum_of_products((w_r, w_z, w_n), (x_r, x_z, x_n), first, PRECISION, S, LOOP=MORE)[0]
            elif not one_look(d_gates_ptr.dtype.element_ty.primitive_bitwidth, S):
                x = await_rows(source, own, here, flags + i, S)
                a = tl.dot(w_r, x, input_precision=PRECISION)
                x = await_rows(source + H, own, here, None, S)
                a = tl.dot(w_z, x, a, input_precision=PRECISION)
                x = await_rows(source_an, own, here, None, S)
                a = tl.dot(w_n, x, a, input_precision=PRECISION)
            else:
                x_r, x_z, x_n = await_rows_of((source, source + H, source_an), own, here, flags + i, S)
                a = tl.dot(w_r, x_r, input_precision=PRECISION)
                a = tl.dot(w_z, x_z, a, input_precision=PRECISION)
                a = tl.dot(w_n, x_n, a, input_precision=PRECISION)
            if LATE:
                loaded, of_step, ahead = _load_ahead(kept, beside, own, following, before, i, T, ahead, place, 4, S)
            products = seen(units_only(one_gate(a, SPLIT, BLOCK_H, BLOCK_B), own, S), dropped)
            dh = before_step(beside, direct + products, beginning, own, here, mask, S)
            here = following
        write(d_state, dh, exists)
    else:
        several_torch(
            kept, (d_gates_ptr, d_an_ptr), d_state_ptr, nothing_ptr, (w_r, w_z, w_n), beside, own, tiles, offsets_ptr,
            T, B, -side.direction, PRECISION, S, MORE,
        )  # fmt: skip
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=PER_LAUNCH)
def backward_reset_first(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    packed_ptr,  # columns of both that are fetched, see fetched.py; or None
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 3H): r, z, n
    d_state_ptr,  # (B, H) float32: derivative by the last state in, by h0 out
    d_gates_ptr,  # (N, 3H), filled with the reserved pattern: dr, dz, dn
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    dropped_below,
    seed_ptr,  # () int64
    zoneout_below,
    d_begin_ptr,  # (N, H), out, or None: derivative by what each step begins from
    nothing_ptr,  # (H,) zeros, there with `tiles`, and where columns are fetched and PACKED
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    first_tile,  # number of the launch's first group, see `own_tile`
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    tiles,  # batch tiles of a program, or None: one
    clip,
    H: tl.constexpr,
    ADDED: tl.constexpr,
    VARIANT: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_H: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROTOCOL: tl.constexpr,
    TIMEOUT: tl.constexpr,
    SPLIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    FETCHED: tl.constexpr,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
):
    """Variants "cho" and "chung": dn first, and with it through the candidate's product to dr; the update gate's
    product runs while dr is on its way."""
    SIDES: tl.constexpr = 1 if w_hh_back_ptr is None else 2
    Z: tl.constexpr = 0.0 if VARIANT == "chung" else 1.0
    S: tl.constexpr = Shape(
        SIDES, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, FETCHED
    )  # fmt: skip
    own = own_tile(first_tile, B, status_ptr, S, None, tiles, packed_ptr, nothing_ptr)
    side = own_side(own, offsets_ptr, T, B, direction, S)
    kept = (grad_output_ptr, h0_ptr, output_ptr, reserve_ptr)
    kept, d_state_ptr, d_gates_ptr = _own_places(kept, d_state_ptr, d_gates_ptr, side, B, 3, S)
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr,
        dropped_ptr if dropped_below is None else tl.load(dropped_ptr),  # the seed of the masks
        None, d_begin_ptr, clip, side.rows, side.sequences, FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT,
        load_seed(seed_ptr), zoneout_below, dropped_below=dropped_below,
    )  # fmt: skip
    w_hh_ptr = of_side(side, w_hh_ptr, w_hh_back_ptr)
    w_r = load_columns(w_hh_ptr, 0, own, S)
    w_z = load_columns(w_hh_ptr, 1, own, S)
    if EVEN_H:  # all addresses at once spill at H = 768 on sm_100; waiting here spills at H = 1000 on sm_80
        tl.debug_barrier()
    w_n = load_columns(w_hh_ptr, 2, own, S)

    if tiles is None:
        flags, flags_reset = flags_of(own, 0, T, B, S), flags_of(own, 1, T, B, S)
        d_state, exists = tile_at(d_state_ptr, 0, own, 1, S), there(own, B, S)
        dh = read(d_state, exists)
        t, here, before = last_steps(offsets_ptr, T, B, side.direction, PACKED)
        place = own_place(own, B, S)
        words, ahead = load_words(beside, here.row, place), load_words(beside, before.row, place)
        loaded = load_step(kept, own, here, before, T == 1, 3, S, words=words, Z=Z)
        dropped = load_dropped(beside, place)
        of_step = load_of_step(beside, here.row, place, words)
        for i in range(T):
            dy, h, r, z, n, _ = in_float32(loaded)
            amount, beginning = of_step
            h = begun(h, beginning)
            idle = carries_on(amount)
            dn, dz, direct = end_back(dh + dy, h, unless(z, idle), unless(n, idle), amount, clip, VARIANT)
            mask = there(own, here.count, S)
            publish_two(
                tile_at(d_gates_ptr, here.row, own, 3, S, 2), dn, tile_at(d_gates_ptr, here.row, own, 3, S, 1), dz,
                mask, flags + i, PROTOCOL,
            )  # fmt: skip
            direct = where_alive(own, here, direct, dh, S)

            t, following, before = next_steps(offsets_ptr, i, t, here, before, T, B, side.direction, PACKED)
            loaded, of_step, ahead = _load_ahead(kept, beside, own, following, before, i, T, ahead, place, 3, S, Z)
            first = fetch_ahead(w_n, S)
            tl.debug_barrier()

            source = rows_at(d_gates_ptr, here.row, own, 3, S)
            # Where registers suffice, dz has come with dn, and is multiplied while dr is on its way.
            ONE_LOOK: tl.constexpr = one_look(d_gates_ptr.dtype.element_ty.primitive_bitwidth, S)
            if ONE_LOOK:
                x_n, x_z = await_rows_of((source + 2 * H, source + H), own, here, flags + i, S)
            else:
                x_n = await_rows(source + 2 * H, own, here, flags + i, S)
            d_rh = one_gate(product(w_n, x_n, first, PRECISION, S)[0], SPLIT, BLOCK_H, BLOCK_B)
            d_rh = units_only(d_rh, own, S)
            dr, through_reset = reset_before_grad(d_rh, seen(h, dropped), reset_gate(beside, r, d_rh))
            publish(tile_at(d_gates_ptr, here.row, own, 3, S), dr, mask, flags_reset + i, PROTOCOL)
            second = fetch_ahead(w_z, S)
            if not ONE_LOOK:
                x_z = await_rows(source + H, own, here, None, S)
            a = product(w_z, x_z, second, PRECISION, S)[0]
            third = fetch_ahead(w_r, S)
            x = await_rows(source, own, here, flags_reset + i, S)
            a = product(w_r, x, third, PRECISION, S, a)[0]
            direct += seen(through_reset, dropped)
            products = seen(units_only(one_gate(a, SPLIT, BLOCK_H, BLOCK_B), own, S), dropped)
            dh = before_step(beside, direct + products, beginning, own, here, mask, S)
            here = following
        write(d_state, dh, exists)
    else:
        several_reset_first(
            kept, d_gates_ptr, d_state_ptr, nothing_ptr, (w_r, w_z, w_n), beside, own, tiles, offsets_ptr, T, B,
            -side.direction, VARIANT, PRECISION, S,
        )  # fmt: skip
    report(status_ptr, host_ptr, number)
