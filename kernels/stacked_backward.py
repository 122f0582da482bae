"""Several layers of the persistent schedule in one cooperative launch, back-propagation through time.

The mirror image of `stacked_forward`: a layer's programs wait for their own layer's derivatives by the gates of the
step that forward took after this one, and for those of this step of the layer above, and multiply each by their columns
of W_hh and of the W_ih of the layer above. So layer l is at step t while layer l + 1 is at step t - 1. Only the lowest
layer's derivative by its input is left for after the launch. The last layer waits for a row of zeros, and adds the
derivative by its output, which is the launch's.

Sizes: as in `stacked_forward`.
"""

import triton
import triton.language as tl

from .exchange import publish, publish_two, report
from .gates import blend_grad, reset_after_grad, reset_before_grad
from .loop import last_steps, next_steps
from .parts import one_gate
from .persistent_tiles import Shape, in_float32, load_step, rows_at, there, tile_at
from .stacked_tiles import (
    await_all,
    load_columns_of,
    load_stays,
    own_level,
    passed_down,
    rows_of_gates,
    share_of_gates,
)
from .tiles import read, unknown_zero, write


@triton.jit
def _places(level, kept, states_ptr, d_state_ptr, d_gates_ptr, nothing_ptr, own, B, GATES: tl.constexpr,
            S: tl.constexpr):  # fmt: skip
    """A layer's own of what both kernels are given: what `load_step` reads, the derivatives by its state and its gates,
    and by the gates of the layer above."""
    grad_output_ptr, h0_ptr, output_ptr, reserve_ptr = kept
    h0_ptr += level.number * B * S.H
    output_ptr = tl.where(level.has_above, states_ptr + level.number * level.plane, output_ptr)
    reserve_ptr += level.number * (GATES * level.plane)
    d_state = tile_at(d_state_ptr + level.number * B * S.H, 0, own, 1, S)
    above_ptr = tl.where(level.has_above, d_gates_ptr + (level.number + 1) * (3 * level.plane), nothing_ptr)
    d_gates_ptr += level.number * (3 * level.plane)
    return (grad_output_ptr, h0_ptr, output_ptr, reserve_ptr), d_state, d_gates_ptr, above_ptr


@triton.jit(do_not_specialize=["T", "B", "layers", "first_tile", "direction", "number"])
def stacked_back_torch(
    grad_output_ptr,  # (N, H) of the last layer
    h0_ptr,  # (L, B, H)
    w_above_ptr,  # (L, 3H, H): W_ih of the layer above each, the last one's zeros
    w_hh_ptr,  # (L, 3H, H)
    states_ptr,  # (L - 1, N, H) of all layers but the last
    output_ptr,  # (N, H) of the last
    stays_ptr,  # (L - 1, N, H) bytes, the dropout behind each layer but the last; or None
    reserve_ptr,  # (L, N, 4H): r, z, n, W_hn h + b_hn
    d_state_ptr,  # (L, B, H) float32: derivative by the last state in, by h0 out
    d_gates_ptr,  # (L, N, 3H), filled with the reserved pattern: dr, dz, dn
    d_an_ptr,  # (L, N, H), filled with the reserved pattern: derivative by W_hn h + b_hn
    nothing_ptr,  # (3H,) zeros
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    layers,
    first_tile,  # number of the launch's first group, see `own_tile`
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    scale,  # of what stays
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
):
    """Variant "torch": one exchange a step."""
    S: tl.constexpr = Shape(
        1, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, 0
    )  # fmt: skip
    own, level = own_level(first_tile, layers, T, B, status_ptr, S)
    kept = (grad_output_ptr, h0_ptr, output_ptr, reserve_ptr)
    kept, d_state, d_gates_ptr, above_ptr = _places(
        level, kept, states_ptr, d_state_ptr, d_gates_ptr, nothing_ptr, own, B, 4, S
    )
    if stays_ptr is not None:
        stays_ptr += level.behind
    d_an_ptr += level.number * level.plane
    w = load_columns_of(w_hh_ptr + level.number * (3 * H * H), own, S)
    w_above = load_columns_of(w_above_ptr + level.number * (3 * H * H), own, S)

    exists = there(own, B, S)
    dh = read(d_state, exists)
    t, here, before = last_steps(None, T, B, direction, PACKED)
    loaded = load_step(kept, own, here, before, T == 1, 4, S, not level.has_above)
    first_stays = load_stays(stays_ptr, own, here, S)
    first_sources = rows_of_gates(above_ptr, own, here, level.has_above, S)
    first = await_all(first_sources, own, here, S)
    from_above = passed_down(share_of_gates(w_above, first, PRECISION, S), first_stays, scale)
    for i in range(T):
        dy, h, r, z, n, an = in_float32(loaded)
        dn, dz, direct = blend_grad(dh + (dy + from_above), h, z, n, "torch")
        dr, d_an = reset_after_grad(dn, an, r)
        dr_at = tile_at(d_gates_ptr, here.row, own, 3, S)
        publish_two(dr_at, dr, tile_at(d_gates_ptr, here.row, own, 3, S, 1), dz, exists, None, PROTOCOL)
        an_at = tile_at(d_an_ptr, here.row, own, 1, S)
        publish_two(an_at, d_an, tile_at(d_gates_ptr, here.row, own, 3, S, 2), dn, exists, None, PROTOCOL)

        t, following, before = next_steps(None, i, t, here, before, T, B, direction, PACKED)
        loaded = load_step(kept, own, following, before, i + 2 >= T, 4, S, not level.has_above)
        stays = load_stays(stays_ptr, own, following, S)
        tl.debug_barrier()
        source = rows_at(d_gates_ptr, here.row, own, 3, S)
        sources = (source, source + H, rows_at(d_an_ptr, here.row, own, 1, S))
        sources = sources + rows_of_gates(above_ptr, own, following, level.has_above, S)
        tiles = await_all(sources, own, here, S)
        dh = direct + share_of_gates(w, tiles[:3], PRECISION, S)
        from_above = passed_down(share_of_gates(w_above, tiles[3:], PRECISION, S), stays, scale)
        here = following
    level_row = (own.group % layers + unknown_zero()) * B  # not the address of above: kept through the loop, it spilled
    write(tile_at(d_state_ptr, level_row, own, 1, S), dh, exists)
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=["T", "B", "layers", "first_tile", "direction", "number"])
def stacked_back_reset_first(
    grad_output_ptr,  # (N, H) of the last layer
    h0_ptr,  # (L, B, H)
    w_above_ptr,  # (L, 3H, H): W_ih of the layer above each, the last one's zeros
    w_hh_ptr,  # (L, 3H, H)
    states_ptr,  # (L - 1, N, H) of all layers but the last
    output_ptr,  # (N, H) of the last
    stays_ptr,  # (L - 1, N, H) bytes, the dropout behind each layer but the last; or None
    reserve_ptr,  # (L, N, 3H): r, z, n
    d_state_ptr,  # (L, B, H) float32: derivative by the last state in, by h0 out
    d_gates_ptr,  # (L, N, 3H), filled with the reserved pattern: dr, dz, dn
    nothing_ptr,  # (3H,) zeros
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    layers,
    first_tile,  # number of the launch's first group, see `own_tile`
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    scale,  # of what stays
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
):
    """Variants "cho" and "chung": the layer above is waited for with dr, the second of a step's exchanges."""
    S: tl.constexpr = Shape(
        1, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, 0
    )  # fmt: skip
    own, level = own_level(first_tile, layers, T, B, status_ptr, S)
    kept = (grad_output_ptr, h0_ptr, output_ptr, reserve_ptr)
    kept, d_state, d_gates_ptr, above_ptr = _places(
        level, kept, states_ptr, d_state_ptr, d_gates_ptr, nothing_ptr, own, B, 3, S
    )
    if stays_ptr is not None:
        stays_ptr += level.behind
    w_r, w_z, w_n = load_columns_of(w_hh_ptr + level.number * (3 * H * H), own, S)
    w_above = load_columns_of(w_above_ptr + level.number * (3 * H * H), own, S)

    exists = there(own, B, S)
    dh = read(d_state, exists)
    t, here, before = last_steps(None, T, B, direction, PACKED)
    loaded = load_step(kept, own, here, before, T == 1, 3, S, not level.has_above)
    first_stays = load_stays(stays_ptr, own, here, S)
    first_sources = rows_of_gates(above_ptr, own, here, level.has_above, S)
    first = await_all(first_sources, own, here, S)
    from_above = passed_down(share_of_gates(w_above, first, PRECISION, S), first_stays, scale)
    for i in range(T):
        dy, h, r, z, n, _ = in_float32(loaded)
        dn, dz, direct = blend_grad(dh + (dy + from_above), h, z, n, VARIANT)
        dn_at = tile_at(d_gates_ptr, here.row, own, 3, S, 2)
        publish_two(dn_at, dn, tile_at(d_gates_ptr, here.row, own, 3, S, 1), dz, exists, None, PROTOCOL)

        t, following, before = next_steps(None, i, t, here, before, T, B, direction, PACKED)
        loaded = load_step(kept, own, following, before, i + 2 >= T, 3, S, not level.has_above)
        stays = load_stays(stays_ptr, own, following, S)
        tl.debug_barrier()
        source = rows_at(d_gates_ptr, here.row, own, 3, S)
        x_n, x_z = await_all((source + 2 * H, source + H), own, here, S)
        d_rh = one_gate(tl.dot(w_n, x_n, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
        dr, through_reset = reset_before_grad(d_rh, h, r)
        publish(tile_at(d_gates_ptr, here.row, own, 3, S), dr, exists, None, PROTOCOL)
        a = tl.dot(w_z, x_z, input_precision=PRECISION)
        sources = (source,) + rows_of_gates(above_ptr, own, following, level.has_above, S)  # noqa: RUF005
        tiles = await_all(sources, own, here, S)
        a = tl.dot(w_r, tiles[0], a, input_precision=PRECISION)
        dh = direct + through_reset + one_gate(a, SPLIT, BLOCK_H, BLOCK_B)
        from_above = passed_down(share_of_gates(w_above, tiles[1:], PRECISION, S), stays, scale)
        here = following
    write(d_state, dh, exists)
    report(status_ptr, host_ptr, number)
