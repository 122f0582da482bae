"""Back-propagation through time of the persistent schedule where a program takes several batch tiles (see several.py):
the loops that its kernels then run.
"""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from .exchange import publish, publish_two
from .fetched import fetch_ahead
from .fetched_products import product, sum_of_products
from .gates import reset_after_grad, reset_before_grad
from .loop import Step, row_after, step_at, step_or_none, time_of
from .parts import one_gate
from .per_step import (
    begun,
    carries_on,
    end_back,
    load_beginning,
    load_dropped,
    load_of_step,
    reset_gate,
    seen,
    unless,
)
from .persistent_tiles import (
    await_rows,
    await_rows_of,
    before_step,
    flags_of,
    glance_at_rows,
    in_float32,
    load_step,
    number_of_tiles,
    one_look,
    own_place,
    rows_at,
    there,
    tile_at,
    tile_of,
    units_only,
    where_alive,
)
from .several import Turn, turn_after
from .tiles import write


@triton.jit
def _earlier(here, i, offsets_ptr, T, B, direction, S: tl.constexpr):
    """The step that the launch takes after `here`, which is its number i; behind the last, as `step_or_none` and
    `row_after` have it."""
    if S.PACKED:
        return step_or_none(offsets_ptr, time_of(i + 1, T, direction), T, B, S.PACKED)
    else:
        return Step(row_after(here, i, T, B, direction), here.count)


@triton.jit
def _first_step(offsets_ptr, T, B, direction, S: tl.constexpr):
    """The step that the launch takes first, and what stands for the one before it."""
    t = time_of(0, T, direction)
    return step_at(offsets_ptr, t, B, S.PACKED), Step(t.to(tl.int64) * B, B * 0)


@triton.jit
def _sources(pointers, nothing_ptr, own, step, first, S: tl.constexpr):
    """Where the rows lie that the product of a step sums over; at the first, none before it, zeros."""
    d_gates_ptr, d_an_ptr = pointers
    rows, rows_an = rows_at(d_gates_ptr, step.row, own, 3, S), rows_at(d_an_ptr, step.row, own, 1, S)
    return (
        tl.where(first, nothing_ptr, rows),
        tl.where(first, nothing_ptr, rows + S.H),
        tl.where(first, nothing_ptr, rows_an),
    )


@triton.jit
def _load_turn(kept, published, d_state_ptr, nothing_ptr, beside, own, turn, offsets_ptr, T, B, direction,
               S: tl.constexpr):  # fmt: skip
    """What a turn works with: what of the state's derivative goes past the products, the step's values, what it and the
    one taken before it do beside the equations, and a first look at what it waits for. direction: of the launch."""
    i, here, place = turn.i, turn.here, own_place(own, B, S)
    direct = tl.load(tile_at(d_state_ptr, 0, own, 1, S), mask=there(own, B, S), other=0.0)
    loaded = load_step(kept, own, here, _earlier(here, i, offsets_ptr, T, B, direction, S), i + 1 >= T, 4, S)
    began = load_beginning(beside, tl.where(i == 0, here.row, turn.before.row), place)
    glance = ()
    if S.FETCHED or one_look(published[0].dtype.element_ty.primitive_bitwidth, S):
        glance = glance_at_rows(_sources(published, nothing_ptr, own, turn.before, i == 0, S), own, turn.before, S)
    amount, beginning = load_of_step(beside, here.row, place)
    return direct, loaded, (amount, beginning, began, load_dropped(beside, place)), glance


@triton.jit
def _products(sources, weights, own, step, awaited, arrivals, glance, ahead, PRECISION: tl.constexpr, S: tl.constexpr,
              LOOP: tl.constexpr = False):  # fmt: skip
    """The sum of what lies at the sources, each waited for and multiplied by its weights."""
    COUNT: tl.constexpr = len(sources)
    if S.FETCHED:
        xs = (await_rows(sources[0], own, step, awaited, S, arrivals, glance),)
        for t in tl.static_range(1, COUNT):
            xs = xs + (await_rows(sources[t], own, step, None, S),)  # type: ignore[assignment]  # noqa: RUF005
        a = sum_of_products(weights, xs, ahead, PRECISION, S, LOOP=LOOP)[0]
    elif one_look(sources[0].dtype.element_ty.primitive_bitwidth, S):
        tiles = await_rows_of(sources, own, step, awaited, S, arrivals, glance)
        a = tl.dot(weights[0], tiles[0], input_precision=PRECISION)
        for t in tl.static_range(1, COUNT):
            a = tl.dot(weights[t], tiles[t], a, input_precision=PRECISION)
    else:
        a = tl.dot(weights[0], await_rows(sources[0], own, step, awaited, S, arrivals), input_precision=PRECISION)
        for t in tl.static_range(1, COUNT):
            a = tl.dot(weights[t], await_rows(sources[t], own, step, None, S), a, input_precision=PRECISION)
    return a


@triton.jit
def several_torch(kept, published, d_state_ptr, nothing_ptr, weights, beside, first, tiles, offsets_ptr, T, B,
                   direction, PRECISION: tl.constexpr, S: tl.constexpr, LOOP: tl.constexpr):  # fmt: skip
    """`backward_torch` of persistent_backward.py for several batch tiles, of which `first` is the first: in a turn the
    product of the step before it, as the launch takes them, then the derivatives of a step. So the first has no
    product, and behind the last step stands one of products alone. direction: of the launch. LOOP: as for
    `fetch_ahead`."""
    d_gates_ptr, d_an_ptr = published
    count = number_of_tiles(first, tiles, B, S)
    here, before = _first_step(offsets_ptr, T, B, direction, S)
    turn = Turn(0, 0, here, before)
    direct, loaded, of_step, glance = _load_turn(
        kept, published, d_state_ptr, nothing_ptr, beside, first, turn, offsets_ptr, T, B, direction, S
    )
    for _ in range((T + 1) * count):
        own, i, here, before = tile_of(first, turn.k, B, S), turn.i, turn.here, turn.before
        flags = flags_of(own, 0, T, B, S)
        awaited, arrivals = flags + tl.maximum(i - 1, 0), tl.where(i == 0, 0, tl.cdiv(S.H, S.BLOCK_H))
        sources = _sources(published, nothing_ptr, own, before, i == 0, S)
        ahead = fetch_ahead(weights[0], S, LOOP)
        tl.debug_barrier()
        a = _products(sources, weights, own, before, awaited, arrivals, glance, ahead, PRECISION, S, LOOP)

        following = turn_after(turn, count, offsets_ptr, T, B, direction, S.PACKED)
        then = tile_of(first, following.k, B, S)
        direct_then, loaded_then, of_step_then, glance = _load_turn(
            kept, published, d_state_ptr, nothing_ptr, beside, then, following, offsets_ptr, T, B, direction, S
        )
        amount, beginning, began, dropped = of_step
        d_begin = direct + seen(units_only(one_gate(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B), own, S), dropped)
        dh = before_step(beside, d_begin, began, own, before, there(own, before.count, S) & (i > 0), S)
        dh = tl.where(i == 0, direct, dh)

        dy, h, r, z, n, an = in_float32(loaded)
        h = begun(h, beginning)
        idle = carries_on(amount)
        dn, dz, direct = end_back(dh + dy, h, unless(z, idle), unless(n, idle), amount, beside.clip, "torch")
        dr, d_an = reset_after_grad(dn, unless(an, idle), unless(r, idle))
        mask = there(own, here.count, S) & (i < T)
        publish_two(
            tile_at(d_gates_ptr, here.row, own, 3, S), dr, tile_at(d_gates_ptr, here.row, own, 3, S, 1), dz, mask, None,
            S.PROTOCOL,
        )  # fmt: skip
        publish(tile_at(d_an_ptr, here.row, own, 1, S), d_an, mask, flags + tl.minimum(i, T - 1), S.PROTOCOL)
        write(tile_at(d_gates_ptr, here.row, own, 3, S, 2), dn, mask)
        direct = tl.where(i < T, where_alive(own, here, direct, dh, S), dh)
        write(tile_at(d_state_ptr, 0, own, 1, S), direct, there(own, B, S))
        direct, loaded, of_step = tl.where(count == 1, direct, direct_then), loaded_then, of_step_then
        turn = following


@triton.jit
def _sources_reset(d_gates_ptr, nothing_ptr, own, step, first, S: tl.constexpr):
    """Where the rows of dr and dz of a step lie; at the first, none before it, zeros."""
    rows = rows_at(d_gates_ptr, step.row, own, 3, S)
    return tl.where(first, nothing_ptr, rows), tl.where(first, nothing_ptr, rows + S.H)


@triton.constexpr_function
def _may_glance(bits, S):
    """Whether registers suffice for a look ahead between the halves of a step: not where each of many chunks has a mask
    of its own, nor on Blackwell where most columns are fetched, or in TF32 for more hidden units."""
    if bits != 16:
        return not (cuda_capability_geq(10, 0) and S.FETCHED and S.BLOCK_H > 16)
    many_masks = (S.PACKED or not S.EVEN_K) and S.DEPTH > 64
    most_fetched = cuda_capability_geq(10, 0) and S.FETCHED > 4
    return not (many_masks or most_fetched)


@triton.constexpr_function
def _may_glance_first(bits, S):
    """Whether they do for a look ahead at what the first half of a step waits for, two tiles of one look. On Blackwell
    not in TF32, where columns are many or have masks."""
    masked = S.PACKED or not S.EVEN_K
    return one_look(bits, S) and not (cuda_capability_geq(10, 0) and bits == 32 and (masked or S.DEPTH >= 64))


@triton.jit
def _load_first(kept, d_gates_ptr, d_state_ptr, nothing_ptr, beside, own, i, here, before, earlier, T, B,
                S: tl.constexpr):  # fmt: skip
    """As `_load_turn`, for the first half of a step: up to dn and dz."""
    place = own_place(own, B, S)
    direct = tl.load(tile_at(d_state_ptr, 0, own, 1, S), mask=there(own, B, S), other=0.0)
    loaded = load_step(kept, own, here, earlier, i + 1 >= T, 3, S)
    amount, beginning = load_of_step(beside, here.row, place)
    began = load_beginning(beside, tl.where(i == 0, here.row, before.row), place)
    glance = ()
    if S.FETCHED or _may_glance_first(d_gates_ptr.dtype.element_ty.primitive_bitwidth, S):
        glance = glance_at_rows(_sources_reset(d_gates_ptr, nothing_ptr, own, before, i == 0, S), own, before, S)
    return direct, loaded, (amount, beginning, began, load_dropped(beside, place)), glance


@triton.jit
def _load_second(kept, d_gates_ptr, d_state_ptr, beside, own, i, here, earlier, T, B, S: tl.constexpr):
    """The same for the second half."""
    place = own_place(own, B, S)
    direct = tl.load(tile_at(d_state_ptr, 0, own, 1, S), mask=there(own, B, S), other=0.0)
    _, h, r, _, _, _ = load_step(kept, own, here, earlier, i + 1 >= T, 3, S)
    of_step = load_beginning(beside, here.row, place), load_dropped(beside, place)
    glance = ()
    if _may_glance(d_gates_ptr.dtype.element_ty.primitive_bitwidth, S):
        glance = glance_at_rows((rows_at(d_gates_ptr, here.row, own, 3, S) + 2 * S.H,), own, here, S)
    return direct, h, r, of_step, glance


@triton.jit
def several_reset_first(kept, d_gates_ptr, d_state_ptr, nothing_ptr, weights, beside, first, tiles, offsets_ptr, T, B,
                        direction, VARIANT: tl.constexpr, PRECISION: tl.constexpr, S: tl.constexpr):  # fmt: skip
    """`backward_reset_first` of persistent_backward.py for several batch tiles: within a step, for all of them the
    products with dr and dz of the step before it and then dn and dz, and for all of them dr. Steps as in
    `several_torch`."""
    w_r, w_z, w_n = weights
    count = number_of_tiles(first, tiles, B, S)
    here, before = _first_step(offsets_ptr, T, B, direction, S)
    for i in range(T + 1):
        arrivals = tl.where(i == 0, 0, tl.cdiv(S.H, S.BLOCK_H))
        earlier = _earlier(here, i, offsets_ptr, T, B, direction, S)
        tl.debug_barrier()  # of what lies in memory, a thread may load what another has stored
        direct, loaded, of_step, glance = _load_first(
            kept, d_gates_ptr, d_state_ptr, nothing_ptr, beside, first, i, here, before, earlier, T, B, S
        )
        for k in range(count):
            own = tile_of(first, k, B, S)
            sources = _sources_reset(d_gates_ptr, nothing_ptr, own, before, i == 0, S)
            awaited = flags_of(own, 1, T, B, S) + tl.maximum(i - 1, 0)
            ahead = fetch_ahead(w_r, S)
            tl.debug_barrier()
            a = _products(sources, (w_r, w_z), own, before, awaited, arrivals, glance, ahead, PRECISION, S)
            then = tile_of(first, tl.minimum(k + 1, count - 1), B, S)
            direct_then, loaded_then, of_step_then, glance = _load_first(
                kept, d_gates_ptr, d_state_ptr, nothing_ptr, beside, then, i, here, before, earlier, T, B, S
            )
            amount, beginning, began, dropped = of_step
            d_begin = direct + seen(units_only(one_gate(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B), own, S), dropped)
            dh = before_step(beside, d_begin, began, own, before, there(own, before.count, S) & (i > 0), S)
            dh = tl.where(i == 0, direct, dh)

            dy, h, _, z, n, _ = in_float32(loaded)
            idle = carries_on(amount)
            z, n = unless(z, idle), unless(n, idle)
            dn, dz, direct = end_back(dh + dy, begun(h, beginning), z, n, amount, beside.clip, VARIANT)
            publish_two(
                tile_at(d_gates_ptr, here.row, own, 3, S, 2), dn, tile_at(d_gates_ptr, here.row, own, 3, S, 1), dz,
                there(own, here.count, S) & (i < T), flags_of(own, 0, T, B, S) + tl.minimum(i, T - 1), S.PROTOCOL,
            )  # fmt: skip
            direct = tl.where(i < T, where_alive(own, here, direct, dh, S), dh)
            write(tile_at(d_state_ptr, 0, own, 1, S), direct, there(own, B, S))
            direct, loaded, of_step = direct_then, loaded_then, of_step_then

        tl.debug_barrier()
        direct, h, r, beginning_and_dropped, glance = _load_second(
            kept, d_gates_ptr, d_state_ptr, beside, first, i, here, earlier, T, B, S
        )
        for k in range(tl.where(i < T, count, 0)):
            own = tile_of(first, k, B, S)
            source = rows_at(d_gates_ptr, here.row, own, 3, S)
            ahead = fetch_ahead(w_n, S)
            tl.debug_barrier()
            x = await_rows(source + 2 * S.H, own, here, flags_of(own, 0, T, B, S) + i, S, None, glance)
            a = product(w_n, x, ahead, PRECISION, S)[0]
            then = tile_of(first, tl.minimum(k + 1, count - 1), B, S)
            direct_then, h_then, r_then, beginning_and_dropped_then, glance = _load_second(
                kept, d_gates_ptr, d_state_ptr, beside, then, i, here, earlier, T, B, S
            )
            d_rh = units_only(one_gate(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B), own, S)
            beginning, dropped = beginning_and_dropped
            h, r = begun(h.to(tl.float32), beginning), r.to(tl.float32)
            dr, through_reset = reset_before_grad(d_rh, seen(h, dropped), reset_gate(beside, r, d_rh))
            exists, flag = there(own, here.count, S), flags_of(own, 1, T, B, S) + i
            publish(tile_at(d_gates_ptr, here.row, own, 3, S), dr, exists, flag, S.PROTOCOL)
            direct += seen(through_reset, dropped)
            write(tile_at(d_state_ptr, 0, own, 1, S), direct, there(own, B, S))
            direct, h, r, beginning_and_dropped = direct_then, h_then, r_then, beginning_and_dropped_then
        before, here = here, earlier
