"""The persistent schedule, back-propagation through time: the whole sequence in one cooperative launch.

A program owns BLOCK_H hidden units of d_h for BLOCK_B sequences, and the columns of W_hh that lead to them. What the
programs exchange is what has to be written anyway for the weights' gradient: the gates' derivatives of the step. What
the next step needs from memory is loaded before the wait, so that it arrives meanwhile.

Sizes: T steps, B batch, H hidden_size, N rows of all steps together (see steps.py).
"""

import triton
import triton.language as tl

from .exchange import await_three, await_tile, by_thread, first_flag, publish, publish_two, report
from .fragments import load_weights
from .gates import blend_grad, reset_after_grad, reset_before_grad
from .parts import one_gate
from .persistent_forward import state_pointers, step_rows, tile_mask


@triton.jit
def _load_step(grad_output_ptr, h0_ptr, output_ptr, reserve_ptr, b, j, row, count, row_before, count_before, first,
mask,                GATES: tl.constexpr, H: tl.constexpr, PACKED: tl.constexpr):  # fmt: skip
    """What a step's derivatives need: dy, the state before, r, z, n and for "torch" W_hn h + b_hn (else n again)."""
    own = b[:, None] * H + j[None, :]
    dy = tl.load(grad_output_ptr + row * H + own, mask=mask, other=0.0)
    carried = tl.minimum(count, count_before)
    before = state_pointers(output_ptr, h0_ptr, b, row_before, carried, first, H, PACKED)
    h = tl.load(before[:, None] + j[None, :], mask=mask, other=0.0)
    reserve = reserve_ptr + row * (GATES * H) + b[:, None] * (GATES * H) + j[None, :]
    r = tl.load(reserve, mask=mask, other=0.0)
    z = tl.load(reserve + H, mask=mask, other=0.0)
    n = tl.load(reserve + 2 * H, mask=mask, other=0.0)
    an = tl.load(reserve + (GATES - 1) * H, mask=mask, other=0.0)
    return dy, h, r, z, n, an


@triton.jit(do_not_specialize=["T", "B", "first_tile", "number"])
def backward_torch(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn
    d_state_ptr,  # (B, H) float32: derivative by the last state in, by h0 out
    d_gates_ptr,  # (N, 3H), filled with the reserved pattern: dr, dz, dn
    d_an_ptr,  # (N, H), filled with the reserved pattern: derivative by W_hn h + b_hn
    offsets_ptr,  # (T + 1,) int64, first row of each step; PACKED only
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    first_tile,  # number of the launch's first batch tile
    number,  # of the launch, for the host
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_B: tl.constexpr,
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
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = (tl.program_id(1) + first_tile) * BLOCK_B + tl.arange(0, BLOCK_B)
    PROGRAMS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    own = b[:, None] * H + j[None, :]
    own_gate = b[:, None] * (3 * H) + j[None, :]
    W_MASKED: tl.constexpr = not (EVEN_H and EVEN_K)
    X_MASKED: tl.constexpr = not (EVEN_B and EVEN_K)
    w_r = load_weights(w_hh_ptr + j, status_ptr, j < H, H, H, SPLIT, DEPTH, BLOCK_H, W_MASKED)
    w_z = load_weights(w_hh_ptr + H * H + j, status_ptr, j < H, H, H, SPLIT, DEPTH, BLOCK_H, W_MASKED)
    w_n = load_weights(w_hh_ptr + 2 * H * H + j, status_ptr, j < H, H, H, SPLIT, DEPTH, BLOCK_H, W_MASKED)

    flags = first_flag(status_ptr, 0, tl.program_id(1) + first_tile, T, B, BLOCK_B)
    exists = tile_mask(b, j, B, H, EVEN_B and not PACKED, EVEN_H)
    dh = tl.load(d_state_ptr + own, mask=exists, other=0.0)
    ONE: tl.constexpr = 1 if REVERSE else -1  # from a step to the one that forward took before it
    t = tl.zeros((), tl.int32) if REVERSE else T - 1
    row, count = step_rows(offsets_ptr, t, T, B, PACKED)
    row_before, count_before = step_rows(offsets_ptr, t + ONE, T, B, PACKED)
    mask = tile_mask(b, j, count, H, EVEN_B, EVEN_H)
    dy, h, r, z, n, an = _load_step(
        grad_output_ptr, h0_ptr, output_ptr, reserve_ptr, b, j, row, count, row_before, count_before, T == 1, mask,
        4, H, PACKED,
    )  # fmt: skip
    for i in range(T):
        dn, dz, direct = blend_grad(
            dh + dy.to(tl.float32), h.to(tl.float32), z.to(tl.float32), n.to(tl.float32), "torch"
        )
        dr, d_an = reset_after_grad(dn, an.to(tl.float32), r.to(tl.float32))
        mask = tile_mask(b, j, count, H, EVEN_B, EVEN_H)
        d_gates = d_gates_ptr + row * (3 * H)
        publish_two(d_gates + own_gate, dr, d_gates + H + own_gate, dz, mask, None, PROTOCOL)
        publish(d_an_ptr + row * H + own, d_an, mask, flags + i, PROTOCOL)
        tl.store(d_gates + 2 * H + own_gate, dn.to(d_gates_ptr.dtype.element_ty), mask=mask)
        direct = direct if EVEN_B else tl.where((b < count)[:, None], direct, dh)

        # The last step has none before it: it loads its own values again, which nothing uses.
        last = i + 1 == T
        row_next = tl.where(last, row, row_before)
        count_next = tl.where(last, count, count_before)
        t += ONE
        row_before, count_before = step_rows(offsets_ptr, t + ONE, T, B, PACKED)
        mask_next = tile_mask(b, j, count_next, H, EVEN_B, EVEN_H)
        dy, h, r, z, n, an = _load_step(
            grad_output_ptr, h0_ptr, output_ptr, reserve_ptr, b, j, row_next, count_next, row_before, count_before,
            i + 2 >= T, mask_next, 4, H, PACKED,
        )  # fmt: skip

        source = d_gates + b * (3 * H)
        source_an = d_an_ptr + row * H + b * H
        BITS: tl.constexpr = d_gates_ptr.dtype.element_ty.primitive_bitwidth
        # One look at all three with masks takes more registers than there are; waiting as a whole has no such look.
        if (X_MASKED and DEPTH * BITS > 1024) or not by_thread(BITS, H, SPLIT):
            x = await_tile(
                source, b < count, status_ptr, flags + i, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, True, TIMEOUT
            )
            a = tl.dot(w_r, x, input_precision=PRECISION)
            x = await_tile(
                source + H, b < count, status_ptr, None, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, True, TIMEOUT
            )
            a = tl.dot(w_z, x, a, input_precision=PRECISION)
            x = await_tile(
                source_an, b < count, status_ptr, None, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, True, TIMEOUT
            )
            a = tl.dot(w_n, x, a, input_precision=PRECISION)
        else:
            x_r, x_z, x_n = await_three(
                source, source + H, source_an, b < count, status_ptr, flags + i, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH,
                BLOCK_B, X_MASKED, TIMEOUT,
            )  # fmt: skip
            a = tl.dot(w_r, x_r, input_precision=PRECISION)
            a = tl.dot(w_z, x_z, a, input_precision=PRECISION)
            a = tl.dot(w_n, x_n, a, input_precision=PRECISION)
        dh = direct + one_gate(a, SPLIT, BLOCK_H, BLOCK_B)
        row, count = row_next, count_next
    tl.store(d_state_ptr + own, dh, mask=exists)
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=["T", "B", "first_tile", "number"])
def backward_reset_first(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 3H): r, z, n
    d_state_ptr,  # (B, H) float32: derivative by the last state in, by h0 out
    d_gates_ptr,  # (N, 3H), filled with the reserved pattern: dr, dz, dn
    offsets_ptr,  # (T + 1,) int64, first row of each step; PACKED only
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    first_tile,  # number of the launch's first batch tile
    number,  # of the launch, for the host
    H: tl.constexpr,
    VARIANT: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_B: tl.constexpr,
    EVEN_H: tl.constexpr,
    EVEN_K: tl.constexpr,
    PROTOCOL: tl.constexpr,
    TIMEOUT: tl.constexpr,
    SPLIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Variants "cho" and "chung": dn first, and with it through the candidate's product to dr; the update gate's
    product runs while dr is on its way."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = (tl.program_id(1) + first_tile) * BLOCK_B + tl.arange(0, BLOCK_B)
    PROGRAMS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    own = b[:, None] * H + j[None, :]
    own_gate = b[:, None] * (3 * H) + j[None, :]
    W_MASKED: tl.constexpr = not (EVEN_H and EVEN_K)
    X_MASKED: tl.constexpr = not (EVEN_B and EVEN_K)
    w_r = load_weights(w_hh_ptr + j, status_ptr, j < H, H, H, SPLIT, DEPTH, BLOCK_H, W_MASKED)
    w_z = load_weights(w_hh_ptr + H * H + j, status_ptr, j < H, H, H, SPLIT, DEPTH, BLOCK_H, W_MASKED)
    if EVEN_H:  # all addresses at once spill at H = 768 on sm_100; waiting here spills at H = 1000 on sm_80
        tl.debug_barrier()
    w_n = load_weights(w_hh_ptr + 2 * H * H + j, status_ptr, j < H, H, H, SPLIT, DEPTH, BLOCK_H, W_MASKED)

    flags = first_flag(status_ptr, 0, tl.program_id(1) + first_tile, T, B, BLOCK_B)
    flags_reset = first_flag(status_ptr, 1, tl.program_id(1) + first_tile, T, B, BLOCK_B)
    exists = tile_mask(b, j, B, H, EVEN_B and not PACKED, EVEN_H)
    dh = tl.load(d_state_ptr + own, mask=exists, other=0.0)
    ONE: tl.constexpr = 1 if REVERSE else -1  # from a step to the one that forward took before it
    t = tl.zeros((), tl.int32) if REVERSE else T - 1
    row, count = step_rows(offsets_ptr, t, T, B, PACKED)
    row_before, count_before = step_rows(offsets_ptr, t + ONE, T, B, PACKED)
    mask = tile_mask(b, j, count, H, EVEN_B, EVEN_H)
    dy, h, r, z, n, _ = _load_step(
        grad_output_ptr, h0_ptr, output_ptr, reserve_ptr, b, j, row, count, row_before, count_before, T == 1, mask,
        3, H, PACKED,
    )  # fmt: skip
    for i in range(T):
        state, reset = h.to(tl.float32), r.to(tl.float32)
        dn, dz, direct = blend_grad(dh + dy.to(tl.float32), state, z.to(tl.float32), n.to(tl.float32), VARIANT)
        mask = tile_mask(b, j, count, H, EVEN_B, EVEN_H)
        d_gates = d_gates_ptr + row * (3 * H)
        publish_two(d_gates + 2 * H + own_gate, dn, d_gates + H + own_gate, dz, mask, flags + i, PROTOCOL)
        direct = direct if EVEN_B else tl.where((b < count)[:, None], direct, dh)

        # The last step has none before it: it loads its own values again, which nothing uses.
        last = i + 1 == T
        row_next = tl.where(last, row, row_before)
        count_next = tl.where(last, count, count_before)
        t += ONE
        row_before, count_before = step_rows(offsets_ptr, t + ONE, T, B, PACKED)
        mask_next = tile_mask(b, j, count_next, H, EVEN_B, EVEN_H)
        dy, h, r, z, n, _ = _load_step(
            grad_output_ptr, h0_ptr, output_ptr, reserve_ptr, b, j, row_next, count_next, row_before, count_before,
            i + 2 >= T, mask_next, 3, H, PACKED,
        )  # fmt: skip

        source = d_gates + b * (3 * H)
        x = await_tile(
            source + 2 * H, b < count, status_ptr, flags + i, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, X_MASKED,
            TIMEOUT,
        )  # fmt: skip
        d_rh = one_gate(tl.dot(w_n, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
        dr, through_reset = reset_before_grad(d_rh, state, reset)
        publish(d_gates + own_gate, dr, mask, flags_reset + i, PROTOCOL)
        x = await_tile(
            source + H, b < count, status_ptr, None, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, X_MASKED, TIMEOUT
        )
        a = tl.dot(w_z, x, input_precision=PRECISION)
        x = await_tile(
            source, b < count, status_ptr, flags_reset + i, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, X_MASKED,
            TIMEOUT,
        )  # fmt: skip
        a = tl.dot(w_r, x, a, input_precision=PRECISION)
        dh = direct + through_reset + one_gate(a, SPLIT, BLOCK_H, BLOCK_B)
        row, count = row_next, count_next
    tl.store(d_state_ptr + own, dh, mask=exists)
    report(status_ptr, host_ptr, number)
