"""The persistent schedule, forward: the whole sequence in one cooperative launch.

A program owns BLOCK_H hidden units of every gate for BLOCK_B sequences. Its rows of W_hh stay in registers; the
programs of a batch tile exchange the state through L2 each step ("cho" and "chung": r * h too); batch tiles never
wait for each other. `output` is its own exchange buffer. Where a step begins from something else than the state before
(see per_step.py), `begins` is: who has computed a state has the next step begin from it at once.

Sizes: T steps, B batch, H hidden_size, N rows of all steps together (see steps.py).
"""

import triton
import triton.language as tl

from .config import one_use_of_a_fragment
from .exchange import publish, report
from .fetched import fetch_ahead, multiply, stacked
from .fetched_products import product, sum_of_products
from .gates import blend, candidate, sigmoid
from .loop import before_first, row_after, step_after
from .parts import four_gates, one_gate, two_gates
from .per_step import (
    Beside,
    ended,
    load_amount,
    load_beginning,
    load_dropped,
    load_forward,
    load_seed,
    seen,
)
from .persistent_tiles import (
    PER_LAUNCH,
    Shape,
    await_rows,
    flags_of,
    glance_at_rows,
    keep,
    load_inputs,
    load_rows,
    number_of_tiles,
    of_side,
    own_place,
    own_side,
    own_tile,
    rows_at,
    there,
    tile_at,
    tile_of,
    units_only,
)
from .running_state import await_seen, first_state, first_states, glance_at_seen, pass_on
from .several import Turn, turn_after
from .tiles import read, write

_ONE_USE = tl.constexpr(one_use_of_a_fragment())


@triton.jit
def _own_places(gates_in_ptr, h0_ptr, output_ptr, side, B, S: tl.constexpr):
    """Where the own direction's begin."""
    h0_ptr += side.number * B * S.H
    return gates_in_ptr + side.rows * (3 * S.H), h0_ptr, output_ptr + side.number * S.H


@triton.jit
def _load_weights(w_hh_ptr, own, S: tl.constexpr):
    """What `_products` multiplies."""
    if S.FETCHED or _ONE_USE:
        return load_rows(w_hh_ptr, 0, 4, own, S)
    else:
        return load_rows(w_hh_ptr, 0, 2, own, S), load_rows(w_hh_ptr, 2, 1, own, S)


@triton.jit
def _products(w, x, ahead, PRECISION: tl.constexpr, S: tl.constexpr):
    """Of W_hh and the state, the parts of all gates. That of n is by itself: what three gates lack to a power of two
    would go through shared memory too."""
    if S.FETCHED:
        return sum_of_products((w,), (x,), ahead, PRECISION, S, STACK=False)[0]
    elif _ONE_USE:
        return tl.dot(w, x, input_precision=PRECISION)
    else:
        return tl.dot(w[0], x, input_precision=PRECISION), tl.dot(w[1], x, input_precision=PRECISION)


@triton.jit
def _first_sums(a, S: tl.constexpr):
    """The sums of the parts of r and z, and what is left for `_last_sum`: nothing, where registers are short."""
    if S.FETCHED:
        ar, az = two_gates(stacked((a[0], a[1])), S.SPLIT, S.BLOCK_H, S.BLOCK_B)
        rest = a[2]
    elif _ONE_USE:
        ar, az, rest, _ = four_gates(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B)
    else:
        ar, az = two_gates(a[0], S.SPLIT, S.BLOCK_H, S.BLOCK_B)
        rest = a[1] if S.BLOCK_H == 16 else one_gate(a[1], S.SPLIT, S.BLOCK_H, S.BLOCK_B)
    return ar, az, rest


@triton.jit
def _last_sum(rest, S: tl.constexpr):
    """That of the parts of n."""
    if _ONE_USE or (S.BLOCK_H > 16 and S.FETCHED == 0):
        return rest
    else:
        return one_gate(rest, S.SPLIT, S.BLOCK_H, S.BLOCK_B)


@triton.jit
def _next_step(gates_in_ptr, beside, output_ptr, h0_ptr, own, before, i, flags, offsets_ptr, T, B, direction,
               w, S: tl.constexpr):  # fmt: skip
    """Step number i: the gates' inputs, what it does beside the equations with what begins behind it, what is fetched
    of w, and, behind a barrier, what it waits for."""
    here = step_after(before, offsets_ptr, i, T, B, direction, S.PACKED)
    gr, gz, gn = load_inputs(gates_in_ptr, own, here, S)
    amount, beginning, row = load_forward(beside, here, i, T, B, direction, own_place(own, B, S))
    ahead = fetch_ahead(w, S)
    tl.debug_barrier()
    x = await_seen(beside, output_ptr, h0_ptr, own, here, before, i, flags, S)
    return here, gr, gz, gn, amount, beginning, row, ahead, x


@triton.jit
def _load_turn(pointers, beside, own, turn, T, B, direction, S: tl.constexpr):
    """What a turn works with: the running state, the gates' inputs, what the step does beside the equations, and a
    first look at what it waits for."""
    gates_in_ptr, h0_ptr, output_ptr, state_ptr = pointers
    i, here, place = turn.i, turn.here, own_place(own, B, S)
    h = tl.load(tile_at(state_ptr, 0, own, 1, S), mask=there(own, B, S), other=0.0)
    gates, dropped = load_inputs(gates_in_ptr, own, here, S), load_dropped(beside, place)
    amount, beginning, row = load_forward(beside, here, i, T, B, direction, place)
    glance = glance_at_seen(beside, output_ptr, h0_ptr, own, here, turn.before, i, S)
    return h, gates, (amount, beginning, dropped, row), glance


@triton.jit
def _several_torch(pointers, reserve_ptr, w, b_hn, beside, first, tiles, offsets_ptr, T, B, direction,
                   PRECISION: tl.constexpr, S: tl.constexpr):  # fmt: skip
    """`forward_torch` for several batch tiles, of which `first` is the first."""
    _, h0_ptr, output_ptr, state_ptr = pointers
    count = number_of_tiles(first, tiles, B, S)
    before = before_first(T, B, direction)
    turn = Turn(0, 0, step_after(before, offsets_ptr, 0, T, B, direction, S.PACKED), before)
    first_states(beside, h0_ptr, state_ptr, first, count, turn.here.row, T, B, S)
    tl.debug_barrier()  # of the running states, a thread may load what another has stored
    h, gates, of_step, glance = _load_turn(pointers, beside, first, turn, T, B, direction, S)
    last = h  # the state that the turn before has left
    for _ in range(T * count):
        own, i, here = tile_of(first, turn.k, B, S), turn.i, turn.here
        flags = flags_of(own, 0, T, B, S)
        amount, beginning, dropped, row = of_step
        ahead = fetch_ahead(w, S)
        tl.debug_barrier()
        x = await_seen(beside, output_ptr, h0_ptr, own, here, turn.before, i, flags, S, glance)
        a = _products(w, x, ahead, PRECISION, S)

        following = turn_after(turn, count, offsets_ptr, T, B, direction, S.PACKED)
        then = tile_of(first, following.k, B, S)
        ar, az, rest = _first_sums(a, S)
        h_then, gates_then, of_step, glance = _load_turn(pointers, beside, then, following, T, B, direction, S)
        an = _last_sum(rest, S)
        if b_hn is not None:
            an += b_hn
        gr, gz, gn = gates
        r = sigmoid(ar + gr.to(tl.float32))
        z = sigmoid(az + gz.to(tl.float32))
        n = candidate(gn.to(tl.float32), an, r, "torch")
        h = tl.where(count == 1, last, h) if S.BLOCK_H == 16 else h  # wide ones lack registers for both
        new = ended(h, units_only(blend(h, z, n, "torch"), own, S), amount, beside.clip)
        last = pass_on(beside, output_ptr, h, new, row, beginning, dropped, own, here, i, T, flags, S)
        if reserve_ptr is not None:
            keep(reserve_ptr, own, here, (r, z, n, an), S)
        write(tile_at(state_ptr, 0, own, 1, S), last, there(own, B, S))
        h, gates, turn = h_then if S.BLOCK_H == 16 else tl.where(count == 1, last, h_then), gates_then, following


@triton.jit
def _load_first(pointers, beside, own, here, before, i, B, S: tl.constexpr):
    """What a tile's first half of a step works with, as in `_load_turn`: up to r * h."""
    gates_in_ptr, h0_ptr, output_ptr, state_ptr = pointers
    h = tl.load(tile_at(state_ptr, 0, own, 1, S), mask=there(own, B, S), other=0.0)
    gr, gz, _ = load_inputs(gates_in_ptr, own, here, S)
    glance = glance_at_seen(beside, output_ptr, h0_ptr, own, here, before, i, S)
    return h, gr, gz, load_dropped(beside, own_place(own, B, S)), glance


@triton.jit
def _load_second(pointers, z_ptr, reset_state_ptr, beside, own, here, row, B, S: tl.constexpr):
    """The same of its second half; row: of the step after it."""
    gates_in_ptr, _, _, state_ptr = pointers
    exists, place = there(own, B, S), own_place(own, B, S)
    h = tl.load(tile_at(state_ptr, 0, own, 1, S), mask=exists, other=0.0)
    z = tl.load(tile_at(z_ptr, 0, own, 1, S), mask=exists, other=0.0)
    _, _, gn = load_inputs(gates_in_ptr, own, here, S)
    of_step = load_amount(beside, here.row, place), load_beginning(beside, row, place), load_dropped(beside, place)
    return h, z, gn, of_step, glance_at_rows((rows_at(reset_state_ptr, here.row, own, 1, S),), own, here, S)


@triton.jit
def _several_reset_first(pointers, z_ptr, reset_state_ptr, reserve_ptr, weights, beside, first, tiles, offsets_ptr, T,
                         B, direction, VARIANT: tl.constexpr, PRECISION: tl.constexpr, S: tl.constexpr):  # fmt: skip
    """`forward_reset_first` for several batch tiles, of which `first` is the first: within a step up to r * h for all
    of them, then the rest. z waits in memory, as the running state does."""
    _, h0_ptr, output_ptr, state_ptr = pointers
    count = number_of_tiles(first, tiles, B, S)
    before = before_first(T, B, direction)
    first_states(beside, h0_ptr, state_ptr, first, count, row_after(before, -1, T, B, direction), T, B, S)
    for i in range(T):
        here = step_after(before, offsets_ptr, i, T, B, direction, S.PACKED)
        row = row_after(here, i, T, B, direction)
        tl.debug_barrier()  # of what lies in memory, a thread may load what another has stored
        h, gr, gz, dropped, glance = _load_first(pointers, beside, first, here, before, i, B, S)
        for k in range(count):
            own = tile_of(first, k, B, S)
            ahead = fetch_ahead(weights[0], S, S.PACKED)
            tl.debug_barrier()
            x = await_seen(beside, output_ptr, h0_ptr, own, here, before, i, flags_of(own, 0, T, B, S), S, glance)
            if _ONE_USE:
                ar, az = two_gates(tl.dot(weights[0], x, input_precision=PRECISION), S.SPLIT, S.BLOCK_H, S.BLOCK_B)
            else:
                a, x = product(weights[0], x, ahead, PRECISION, S)
                ar = one_gate(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B)
                ahead = fetch_ahead(weights[1], S, S.PACKED)
                az = one_gate(multiply(weights[1], x, ahead, PRECISION, S), S.SPLIT, S.BLOCK_H, S.BLOCK_B)
            then = tile_of(first, tl.minimum(k + 1, count - 1), B, S)
            h_then, gr_then, gz_then, dropped_then, glance = _load_first(pointers, beside, then, here, before, i, B, S)
            r = sigmoid(ar + gr.to(tl.float32))
            exists = there(own, here.count, S)
            flag = flags_of(own, 1, T, B, S) + i
            to = tile_at(reset_state_ptr, here.row, own, 1, S)
            publish(to, units_only(r * seen(h, dropped), own, S), exists, flag, S.PROTOCOL)
            z = sigmoid(az + gz.to(tl.float32))
            write(tile_at(z_ptr, 0, own, 1, S), z, there(own, B, S))
            if reserve_ptr is not None:
                write(tile_at(reserve_ptr, here.row, own, 3, S), r, exists)
                write(tile_at(reserve_ptr, here.row, own, 3, S, 1), z, exists)
            h, gr, gz, dropped = h_then, gr_then, gz_then, dropped_then

        tl.debug_barrier()
        h, z, gn, of_step, glance = _load_second(pointers, z_ptr, reset_state_ptr, beside, first, here, row, B, S)
        for k in range(count):
            own = tile_of(first, k, B, S)
            ahead = fetch_ahead(weights[2], S)
            tl.debug_barrier()
            source = rows_at(reset_state_ptr, here.row, own, 1, S)
            x = await_rows(source, own, here, flags_of(own, 1, T, B, S) + i, S, None, glance)
            a = product(weights[2], x, ahead, PRECISION, S)[0]
            then = tile_of(first, tl.minimum(k + 1, count - 1), B, S)
            h_then, z_then, gn_then, of_step_then, glance = _load_second(
                pointers, z_ptr, reset_state_ptr, beside, then, here, row, B, S
            )
            an = one_gate(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B)
            n = candidate(gn.to(tl.float32), an, an, VARIANT)  # whose reset gate is in `an`
            amount, beginning, dropped = of_step
            new = ended(h, units_only(blend(h, z, n, VARIANT), own, S), amount, beside.clip)
            flags = flags_of(own, 0, T, B, S)
            h = pass_on(beside, output_ptr, h, new, row, beginning, dropped, own, here, i, T, flags, S)
            write(tile_at(state_ptr, 0, own, 1, S), h, there(own, B, S))
            if reserve_ptr is not None:
                write(tile_at(reserve_ptr, here.row, own, 3, S, 2), n, there(own, here.count, S))
            h, z, gn, of_step = h_then, z_then, gn_then, of_step_then
        before = here


@triton.jit(do_not_specialize=PER_LAUNCH)
def forward_torch(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    packed_ptr,  # columns of both that are fetched, see fetched.py; or None
    b_hn_ptr,  # (H,) or None
    b_hn_back_ptr,  # of the second direction, or None
    output_ptr,  # (N, H), filled with the reserved pattern where there is no begins_ptr
    h_n_ptr,  # (B, H), out: each sequence's last state, where there is no begins_ptr; or None
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    dropped_below,
    seed_ptr,  # () int64
    zoneout_below,
    begins_ptr,  # (N, H), filled with it
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn; or None
    state_ptr,  # (B, H) float32, there with `tiles`
    nothing_ptr,  # (H,) zeros, where columns are fetched and PACKED
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
    """Variant "torch": one exchange a step, one product for the three gates."""
    SIDES: tl.constexpr = 1 if w_hh_back_ptr is None else 2
    S: tl.constexpr = Shape(
        SIDES, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, FETCHED
    )  # fmt: skip
    own = own_tile(first_tile, B, status_ptr, S, None, tiles, packed_ptr, nothing_ptr)
    side = own_side(own, offsets_ptr, T, B, direction, S)
    gates_in_ptr, h0_ptr, output_ptr = _own_places(gates_in_ptr, h0_ptr, output_ptr, side, B, S)
    if reserve_ptr is not None:
        reserve_ptr += side.rows * (4 * H)
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr,
        dropped_ptr if dropped_below is None else tl.load(dropped_ptr),  # the seed of the masks
        begins_ptr, None, clip, side.rows, side.sequences, FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT,
        load_seed(seed_ptr), zoneout_below, dropped_below=dropped_below,
    )  # fmt: skip
    w = _load_weights(of_side(side, w_hh_ptr, w_hh_back_ptr), own, S)
    b_hn = None
    if b_hn_ptr is not None:
        b_hn = read(of_side(side, b_hn_ptr, b_hn_back_ptr) + own.j, own.j < H)[None, :]

    if tiles is None:
        flags = flags_of(own, 0, T, B, S)
        before = before_first(T, B, side.direction)
        h, dropped = first_state(beside, h0_ptr, own, B, row_after(before, -1, T, B, side.direction), flags, S)
        for i in range(T):
            here, gr, gz, gn, amount, beginning, row, ahead, x = _next_step(
                gates_in_ptr, beside, output_ptr, h0_ptr, own, before, i, flags, offsets_ptr, T, B, side.direction, w,
                S,
            )  # fmt: skip
            ar, az, rest = _first_sums(_products(w, x, ahead, PRECISION, S), S)
            an = _last_sum(rest, S)
            if b_hn_ptr is not None:
                an += b_hn
            r = sigmoid(ar + gr.to(tl.float32))
            z = sigmoid(az + gz.to(tl.float32))
            n = candidate(gn.to(tl.float32), an, r, "torch")
            new = ended(h, units_only(blend(h, z, n, "torch"), own, S), amount, clip)
            h = pass_on(beside, output_ptr, h, new, row, beginning, dropped, own, here, i, T, flags, S)
            if reserve_ptr is not None:
                keep(reserve_ptr, own, here, (r, z, n, an), S)
            before = here
        if h_n_ptr is not None:
            write(tile_at(h_n_ptr + side.number * B * H, 0, own, 1, S), h, there(own, B, S))
    else:
        state_ptr += side.number * B * H
        _several_torch(
            (gates_in_ptr, h0_ptr, output_ptr, state_ptr), reserve_ptr, w, b_hn, beside, own, tiles, offsets_ptr, T, B,
            side.direction, PRECISION, S,
        )  # fmt: skip
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=PER_LAUNCH)
def forward_reset_first(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    packed_ptr,  # columns of both that are fetched, see fetched.py; or None
    output_ptr,  # (N, H), filled with the reserved pattern where there is no begins_ptr
    h_n_ptr,  # (B, H), out: each sequence's last state, where there is no begins_ptr; or None
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    dropped_below,
    seed_ptr,  # () int64
    zoneout_below,
    begins_ptr,  # (N, H), filled with it
    reset_state_ptr,  # (N, H), filled with the reserved pattern: r * h
    reserve_ptr,  # (N, 3H): r, z, n; or None
    state_ptr,  # (2, B, H) float32, there with `tiles`
    nothing_ptr,  # (H,) zeros, where columns are fetched and PACKED
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
    """Variants "cho" and "chung": the candidate's product needs all of r * h, so a step has two exchanges. The update
    gate's product runs while the second is on its way."""
    SIDES: tl.constexpr = 1 if w_hh_back_ptr is None else 2
    S: tl.constexpr = Shape(
        SIDES, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, FETCHED
    )  # fmt: skip
    own = own_tile(first_tile, B, status_ptr, S, None, tiles, packed_ptr, nothing_ptr)
    side = own_side(own, offsets_ptr, T, B, direction, S)
    gates_in_ptr, h0_ptr, output_ptr = _own_places(gates_in_ptr, h0_ptr, output_ptr, side, B, S)
    reset_state_ptr += side.rows * H
    if reserve_ptr is not None:
        reserve_ptr += side.rows * (3 * H)
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr,
        dropped_ptr if dropped_below is None else tl.load(dropped_ptr),  # the seed of the masks
        begins_ptr, None, clip, side.rows, side.sequences, FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT,
        load_seed(seed_ptr), zoneout_below, dropped_below=dropped_below,
    )  # fmt: skip
    w_hh_ptr = of_side(side, w_hh_ptr, w_hh_back_ptr)
    if _ONE_USE:
        w_rz = load_rows(w_hh_ptr, 0, 2, own, S)
        w_r, w_z = w_rz, w_rz
    else:
        w_r = load_rows(w_hh_ptr, 0, 1, own, S)
        w_z = load_rows(w_hh_ptr, 1, 1, own, S)
    w_n = load_rows(w_hh_ptr, 2, 1, own, S)

    if tiles is None:
        flags, flags_reset = flags_of(own, 0, T, B, S), flags_of(own, 1, T, B, S)
        before = before_first(T, B, side.direction)
        h, dropped = first_state(beside, h0_ptr, own, B, row_after(before, -1, T, B, side.direction), flags, S)
        for i in range(T):
            here, gr, gz, gn, amount, beginning, row, ahead, x = _next_step(
                gates_in_ptr, beside, output_ptr, h0_ptr, own, before, i, flags, offsets_ptr, T, B, side.direction, w_r,
                S,
            )  # fmt: skip
            if _ONE_USE:
                ar, az = two_gates(tl.dot(w_rz, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
            else:
                a, x = product(w_r, x, ahead, PRECISION, S)
                ar = one_gate(a, SPLIT, BLOCK_H, BLOCK_B)
            r = sigmoid(ar + gr.to(tl.float32))
            reset_state = tile_at(reset_state_ptr, here.row, own, 1, S)
            publish(
                reset_state,
                units_only(r * seen(h, dropped), own, S),
                there(own, here.count, S),
                flags_reset + i,
                PROTOCOL,
            )

            if not _ONE_USE:
                az = one_gate(multiply(w_z, x, fetch_ahead(w_z, S), PRECISION, S), SPLIT, BLOCK_H, BLOCK_B)
            z = sigmoid(az + gz.to(tl.float32))
            source = rows_at(reset_state_ptr, here.row, own, 1, S)
            ahead = fetch_ahead(w_n, S)
            x = await_rows(source, own, here, flags_reset + i, S)
            an = one_gate(product(w_n, x, ahead, PRECISION, S)[0], SPLIT, BLOCK_H, BLOCK_B)
            n = candidate(gn.to(tl.float32), an, r, VARIANT)
            new = ended(h, units_only(blend(h, z, n, VARIANT), own, S), amount, clip)
            h = pass_on(beside, output_ptr, h, new, row, beginning, dropped, own, here, i, T, flags, S)
            if reserve_ptr is not None:
                keep(reserve_ptr, own, here, (r, z, n), S)
            before = here
        if h_n_ptr is not None:
            write(tile_at(h_n_ptr + side.number * B * H, 0, own, 1, S), h, there(own, B, S))
    else:
        state_ptr += side.number * B * H
        _several_reset_first(
            (gates_in_ptr, h0_ptr, output_ptr, state_ptr), state_ptr + SIDES * B.to(tl.int64) * H, reset_state_ptr,
            reserve_ptr, (w_r, w_z, w_n), beside, own, tiles, offsets_ptr, T, B, side.direction, VARIANT, PRECISION, S,
        )  # fmt: skip
    report(status_ptr, host_ptr, number)
