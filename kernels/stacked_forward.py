"""Several layers of the persistent schedule in one cooperative launch, forward.

A layer's programs are those of `persistent_forward`, beside the other layers' on the device. At a step they wait for
two tiles, their own layer's state after the step before and the state after this step of the layer below, multiply each
by their rows of W_hh and W_ih, and sum both products as one: layer l is at step t while layer l - 1 is at step t + 1,
and L layers take T + L - 1 steps. Only the lowest layer's input has been multiplied before the launch.

All layers run the same code. What the lowest would wait for is a row of zeros, its W_ih is zero; what the others would
load as their input's share of the gates is the same row at each step, their biases.

Sizes: L layers, T steps, B batch, H hidden_size, N = T * B. Tensors of several layers hold one behind the other.
"""

import triton
import triton.language as tl

from .exchange import publish, report
from .gates import blend, candidate, sigmoid
from .loop import Step, step_after
from .parts import four_gates, one_gate
from .per_step import absent
from .persistent_tiles import (
    Own,
    Shape,
    await_rows,
    keep,
    load_inputs,
    load_rows,
    load_start,
    rows_at,
    there,
    tile_at,
)
from .stacked_tiles import await_pair, load_stays, own_level, rows_or_zeros
from .tiles import either, read


@triton.jit
def _places(level, gates_in_ptr, bias_ptr, states_ptr, output_ptr, h0_ptr, passed_ptr, B, S: tl.constexpr):
    """A layer's own of what both kernels are given: where its gates' inputs are, what it sees of the layer below, its
    states and the first one."""
    inputs = either(level.number, gates_in_ptr, bias_ptr + level.number * (3 * S.H))
    below_ptr = (states_ptr if passed_ptr is None else passed_ptr) + (level.number - 1) * level.plane
    to_ptr = tl.where(level.has_above, states_ptr + level.number * level.plane, output_ptr)
    return inputs, either(level.number, bias_ptr, below_ptr), to_ptr, h0_ptr + level.number * B * S.H


@triton.jit
def _load_next(inputs, stays_ptr, own, level, before, i, T, B, direction, S: tl.constexpr):
    """The step after `before`, number i in forward's order, the gates' inputs, which above the lowest layer are the
    biases of every row, and `load_stays` of it."""
    here = step_after(before, None, i, T, B, direction, S.PACKED)
    moves = level.is_lowest.to(tl.int32)
    still = Own(own.group, own.j, own.b, own.row * moves, own.status_ptr, own.packed_ptr, own.nothing_ptr)
    r, z, n = load_inputs(inputs, still, Step(here.row * moves, here.count), S)
    return here, r, z, n, load_stays(stays_ptr, own, here, S)


@triton.jit
def _await_inputs(to_ptr, h0_ptr, below_ptr, own, level, here, before, i, S: tl.constexpr):
    """`await_pair`; of the lowest layer zeros are those of the layer below."""
    source = rows_or_zeros(below_ptr, own, here, not level.is_lowest, 1, S)
    return await_pair(to_ptr, h0_ptr, source, own, here, before, i, S)


@triton.jit
def _pass_up(to_ptr, h, stays, scale, own, here, level, S: tl.constexpr):
    """Publish what the layer above sees of the state, where that is not the state itself."""
    if not absent(stays):
        stored = h.to(to_ptr.dtype.element_ty).to(tl.float32)
        seen = stored * tl.where(stays != 0, scale, 0.0)
        exists = there(own, here.count, S) & level.has_above
        publish(tile_at(to_ptr, here.row, own, 1, S), seen, exists, None, S.PROTOCOL)


@triton.jit(do_not_specialize=["T", "B", "layers", "first_tile", "direction", "number"])
def stacked_torch(
    gates_in_ptr,  # (N, 3H) input's share of the lowest layer's pre-activations
    h0_ptr,  # (L, B, H)
    w_ih_ptr,  # (L, 3H, H), the lowest layer's zeros
    w_hh_ptr,  # (L, 3H, H)
    bias_ptr,  # (L, 3H) of the gates' inputs, the lowest layer's zeros
    b_hn_ptr,  # (L, H) or None
    states_ptr,  # (L - 1, N, H), filled with the reserved pattern: of all layers but the last
    output_ptr,  # (N, H), filled with it: of the last
    stays_ptr,  # (L - 1, N, H) bytes, the dropout behind each layer but the last; or None
    passed_ptr,  # (L - 1, N, H), filled with the pattern: what the layer above sees; there with stays_ptr
    reserve_ptr,  # (L, N, 4H): r, z, n, W_hn h + b_hn; or None
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
    """Variant "torch". The candidate's two products stay apart: W_hh's rows are r, z, n, zeros, those of W_ih r, z,
    zeros, n."""
    S: tl.constexpr = Shape(
        1, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, 0
    )  # fmt: skip
    own, level = own_level(first_tile, layers, T, B, status_ptr, S)
    inputs, below_ptr, to_ptr, h0_ptr = _places(
        level, gates_in_ptr, bias_ptr, states_ptr, output_ptr, h0_ptr, passed_ptr, B, S
    )
    if stays_ptr is not None:
        stays_ptr, passed_ptr = stays_ptr + level.behind, passed_ptr + level.number * level.plane
    if reserve_ptr is not None:
        reserve_ptr += level.number * (4 * level.plane)
    first_row = level.number * (3 * H * H)
    w = load_rows(w_hh_ptr + first_row, 0, 4, own, S, 3)
    w_below = load_rows(w_ih_ptr + first_row, 0, 4, own, S, 2)
    if b_hn_ptr is not None:
        b_hn = read(b_hn_ptr + level.number * H + own.j, own.j < H)[None, :]

    h, before = load_start(h0_ptr, own, T, B, direction, S)
    for i in range(T):
        here, gr, gz, gn, stays = _load_next(inputs, stays_ptr, own, level, before, i, T, B, direction, S)
        tl.debug_barrier()
        x, x_below = _await_inputs(to_ptr, h0_ptr, below_ptr, own, level, here, before, i, S)
        a = tl.dot(w, x, input_precision=PRECISION)
        a = tl.dot(w_below, x_below, a, input_precision=PRECISION)
        ar, az, an, an_below = four_gates(a, SPLIT, BLOCK_H, BLOCK_B)
        if b_hn_ptr is not None:
            an += b_hn
        r = sigmoid(ar + gr.to(tl.float32))
        z = sigmoid(az + gz.to(tl.float32))
        n = candidate(an_below + gn.to(tl.float32), an, r, "torch")
        h = blend(h, z, n, "torch")
        publish(tile_at(to_ptr, here.row, own, 1, S), h, there(own, here.count, S), None, PROTOCOL)
        _pass_up(passed_ptr, h, stays, scale, own, here, level, S)
        if reserve_ptr is not None:
            keep(reserve_ptr, own, here, (r, z, n, an), S)
        before = here
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=["T", "B", "layers", "first_tile", "direction", "number"])
def stacked_reset_first(
    gates_in_ptr,  # (N, 3H) input's share of the lowest layer's pre-activations
    h0_ptr,  # (L, B, H)
    w_ih_ptr,  # (L, 3H, H), the lowest layer's zeros
    w_hh_ptr,  # (L, 3H, H)
    bias_ptr,  # (L, 3H) of the gates' inputs, the lowest layer's zeros
    states_ptr,  # (L - 1, N, H), filled with the reserved pattern: of all layers but the last
    output_ptr,  # (N, H), filled with it: of the last
    stays_ptr,  # (L - 1, N, H) bytes, the dropout behind each layer but the last; or None
    passed_ptr,  # (L - 1, N, H), filled with the pattern: what the layer above sees; there with stays_ptr
    reset_state_ptr,  # (L, N, H), filled with it: r * h
    reserve_ptr,  # (L, N, 3H): r, z, n; or None
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
    """Variants "cho" and "chung": what needs the layer below for the update gate and the candidate runs while r * h is
    on its way."""
    S: tl.constexpr = Shape(
        1, H, ADDED, PACKED, EVEN_H, EVEN_K, PROTOCOL, TIMEOUT, SPLIT, DEPTH, BLOCK_H, BLOCK_B, 0
    )  # fmt: skip
    own, level = own_level(first_tile, layers, T, B, status_ptr, S)
    inputs, below_ptr, to_ptr, h0_ptr = _places(
        level, gates_in_ptr, bias_ptr, states_ptr, output_ptr, h0_ptr, passed_ptr, B, S
    )
    if stays_ptr is not None:
        stays_ptr, passed_ptr = stays_ptr + level.behind, passed_ptr + level.number * level.plane
    reset_state_ptr += level.number * level.plane
    if reserve_ptr is not None:
        reserve_ptr += level.number * (3 * level.plane)
    w_hh_ptr += level.number * (3 * H * H)
    w_ih_ptr += level.number * (3 * H * H)
    w_r, below_r = load_rows(w_hh_ptr, 0, 1, own, S), load_rows(w_ih_ptr, 0, 1, own, S)
    w_z, below_z = load_rows(w_hh_ptr, 1, 1, own, S), load_rows(w_ih_ptr, 1, 1, own, S)
    w_n, below_n = load_rows(w_hh_ptr, 2, 1, own, S), load_rows(w_ih_ptr, 2, 1, own, S)

    h, before = load_start(h0_ptr, own, T, B, direction, S)
    for i in range(T):
        here, gr, gz, gn, stays = _load_next(inputs, stays_ptr, own, level, before, i, T, B, direction, S)
        tl.debug_barrier()
        x, x_below = _await_inputs(to_ptr, h0_ptr, below_ptr, own, level, here, before, i, S)
        a = tl.dot(w_r, x, input_precision=PRECISION)
        a = tl.dot(below_r, x_below, a, input_precision=PRECISION)
        r = sigmoid(one_gate(a, SPLIT, BLOCK_H, BLOCK_B) + gr.to(tl.float32))
        exists = there(own, here.count, S)
        publish(tile_at(reset_state_ptr, here.row, own, 1, S), r * h, exists, None, PROTOCOL)

        a = tl.dot(w_z, x, input_precision=PRECISION)
        a = tl.dot(below_z, x_below, a, input_precision=PRECISION)
        z = sigmoid(one_gate(a, SPLIT, BLOCK_H, BLOCK_B) + gz.to(tl.float32))
        a = tl.dot(below_n, x_below, input_precision=PRECISION)
        x = await_rows(rows_at(reset_state_ptr, here.row, own, 1, S), own, here, None, S)
        a = tl.dot(w_n, x, a, input_precision=PRECISION)
        n = candidate(gn.to(tl.float32), one_gate(a, SPLIT, BLOCK_H, BLOCK_B), r, VARIANT)
        h = blend(h, z, n, VARIANT)
        publish(tile_at(to_ptr, here.row, own, 1, S), h, exists, None, PROTOCOL)
        _pass_up(passed_ptr, h, stays, scale, own, here, level, S)
        if reserve_ptr is not None:
            keep(reserve_ptr, own, here, (r, z, n), S)
        before = here
    report(status_ptr, host_ptr, number)
