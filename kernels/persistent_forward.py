"""The persistent schedule, forward: the whole sequence in one cooperative launch.

A program owns BLOCK_H hidden units of every gate for BLOCK_B sequences. Its rows of W_hh stay in registers; the
programs of a batch tile exchange the state through L2 each step ("cho" and "chung": r * h too); batch tiles never
wait for each other. `output` is its own exchange buffer. Tiles are (BLOCK_B, BLOCK_H), hidden units fastest, as in
memory.

Sizes: T steps, B batch, H hidden_size, N rows of all steps together (see steps.py).
"""

import triton
import triton.language as tl

from .config import one_use_of_a_fragment
from .exchange import await_tile, first_flag, publish, report
from .fragments import load_weights
from .gates import blend, candidate, sigmoid
from .parts import four_gates, one_gate, two_gates
from .tiles import rows_of

_ONE_USE = tl.constexpr(one_use_of_a_fragment())


@triton.jit
def step_rows(offsets_ptr, t, T, B, PACKED: tl.constexpr):
    """First row of step t and how many sequences are alive at it: none where a packed sequence has no such step."""
    row, count = rows_of(offsets_ptr, tl.minimum(tl.maximum(t, 0), T - 1), B, PACKED)
    if PACKED:
        count = tl.where((t >= 0) & (t < T), count, 0)
    return row, count


@triton.jit
def tile_mask(b, j, count, H: tl.constexpr, EVEN_B: tl.constexpr, EVEN_H: tl.constexpr):
    """Which elements of a (b, j) tile exist; a constant where all do, which leaves accesses without a mask."""
    rows = tl.full((b.shape[0], 1), True, tl.int1) if EVEN_B else (b < count)[:, None]
    columns = tl.full((1, j.shape[0]), True, tl.int1) if EVEN_H else (j < H)[None, :]
    return rows & columns


@triton.jit
def state_pointers(output_ptr, h0_ptr, b, row_before, carried, first, H: tl.constexpr, PACKED: tl.constexpr):
    """Where the rows of the state before a step begin: in the output, or in h0 for sequences that start here."""
    before = output_ptr + row_before * H
    if PACKED:
        return tl.where(b < carried, before + b * H, h0_ptr + b * H)
    else:
        return tl.where(first, h0_ptr, before) + b * H


@triton.jit
def _load_gates(pointers, mask, H: tl.constexpr):
    """The input's share of the pre-activations of r, z, n."""
    gr = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    gz = tl.load(pointers + H, mask=mask, other=0.0).to(tl.float32)
    gn = tl.load(pointers + 2 * H, mask=mask, other=0.0).to(tl.float32)
    return gr, gz, gn


@triton.jit(do_not_specialize=["T", "B", "first_tile", "number"])
def forward_torch(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    b_hn_ptr,  # (H,)
    output_ptr,  # (N, H), filled with the reserved pattern
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn
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
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
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
    """Variant "torch": one exchange a step, one product for the three gates."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = (tl.program_id(1) + first_tile) * BLOCK_B + tl.arange(0, BLOCK_B)
    PROGRAMS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    own = b[:, None] * H + j[None, :]
    own_gate = b[:, None] * (3 * H) + j[None, :]
    own_reserve = b[:, None] * (4 * H) + j[None, :]

    # Four gates stacked in one operand: a power of two. The fourth repeats n; its product is never used.
    line = tl.arange(0, 4 * BLOCK_H)
    unit = tl.program_id(0) * BLOCK_H + line % BLOCK_H
    rows = w_hh_ptr + (tl.minimum(line // BLOCK_H, 2) * H + unit) * H
    w = load_weights(rows, status_ptr, unit < H, H, 1, SPLIT, DEPTH, 4 * BLOCK_H, not (EVEN_H and EVEN_K))
    if HAS_BIAS:
        b_hn = tl.load(b_hn_ptr + j, mask=j < H, other=0.0).to(tl.float32)[None, :]

    exists = tile_mask(b, j, B, H, EVEN_B and not PACKED, EVEN_H)
    h = tl.load(h0_ptr + own, mask=exists, other=0.0).to(tl.float32)
    flags = first_flag(status_ptr, 0, tl.program_id(1) + first_tile, T, B, BLOCK_B)
    row_before, count_before = step_rows(offsets_ptr, -1 + tl.zeros((), tl.int32), T, B, PACKED)
    for i in range(T):
        row, count = step_rows(offsets_ptr, T - 1 - i if REVERSE else i, T, B, PACKED)
        mask = tile_mask(b, j, count, H, EVEN_B, EVEN_H)
        gr, gz, gn = _load_gates(gates_in_ptr + row * (3 * H) + own_gate, mask, H)

        flag, arrivals = flags + tl.maximum(i - 1, 0), tl.where(i == 0, 0, PROGRAMS)
        carried = tl.minimum(count, count_before)
        source = state_pointers(output_ptr, h0_ptr, b, row_before, carried, i == 0, H, PACKED)
        x = await_tile(
            source, b < count, status_ptr, flag, arrivals, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B,
            not (EVEN_B and EVEN_K), TIMEOUT,
        )  # fmt: skip
        ar, az, an, _ = four_gates(tl.dot(w, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)

        if HAS_BIAS:
            an += b_hn
        r = sigmoid(ar + gr)
        z = sigmoid(az + gz)
        n = candidate(gn, an, r, "torch")
        new = blend(h, z, n, "torch")
        publish(output_ptr + row * H + own, new, mask, flags + i, PROTOCOL)
        h = new if EVEN_B else tl.where((b < count)[:, None], new, h)
        if SAVE:
            dtype: tl.constexpr = reserve_ptr.dtype.element_ty
            reserve = reserve_ptr + row * (4 * H)
            tl.store(reserve + own_reserve, r.to(dtype), mask=mask)
            tl.store(reserve + H + own_reserve, z.to(dtype), mask=mask)
            tl.store(reserve + 2 * H + own_reserve, n.to(dtype), mask=mask)
            tl.store(reserve + 3 * H + own_reserve, an.to(dtype), mask=mask)
        row_before, count_before = row, count
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=["T", "B", "first_tile", "number"])
def forward_reset_first(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    output_ptr,  # (N, H), filled with the reserved pattern
    reset_state_ptr,  # (N, H), filled with the reserved pattern: r * h
    reserve_ptr,  # (N, 3H): r, z, n
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
    SAVE: tl.constexpr,
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
    """Variants "cho" and "chung": the candidate's product needs all of r * h, so a step has two exchanges. The update
    gate's product runs while the second is on its way."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = (tl.program_id(1) + first_tile) * BLOCK_B + tl.arange(0, BLOCK_B)
    PROGRAMS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    own = b[:, None] * H + j[None, :]
    own_gate = b[:, None] * (3 * H) + j[None, :]
    W_MASKED: tl.constexpr = not (EVEN_H and EVEN_K)
    X_MASKED: tl.constexpr = not (EVEN_B and EVEN_K)
    if _ONE_USE:
        line = tl.arange(0, 2 * BLOCK_H)
        unit = tl.program_id(0) * BLOCK_H + line % BLOCK_H
        rows = w_hh_ptr + (line // BLOCK_H * H + unit) * H
        w_rz = load_weights(rows, status_ptr, unit < H, H, 1, SPLIT, DEPTH, 2 * BLOCK_H, W_MASKED)
    else:
        w_r = load_weights(w_hh_ptr + j * H, status_ptr, j < H, H, 1, SPLIT, DEPTH, BLOCK_H, W_MASKED)
        w_z = load_weights(w_hh_ptr + (H + j) * H, status_ptr, j < H, H, 1, SPLIT, DEPTH, BLOCK_H, W_MASKED)
    w_n = load_weights(w_hh_ptr + (2 * H + j) * H, status_ptr, j < H, H, 1, SPLIT, DEPTH, BLOCK_H, W_MASKED)

    exists = tile_mask(b, j, B, H, EVEN_B and not PACKED, EVEN_H)
    h = tl.load(h0_ptr + own, mask=exists, other=0.0).to(tl.float32)
    flags = first_flag(status_ptr, 0, tl.program_id(1) + first_tile, T, B, BLOCK_B)
    flags_reset = first_flag(status_ptr, 1, tl.program_id(1) + first_tile, T, B, BLOCK_B)
    row_before, count_before = step_rows(offsets_ptr, -1 + tl.zeros((), tl.int32), T, B, PACKED)
    for i in range(T):
        row, count = step_rows(offsets_ptr, T - 1 - i if REVERSE else i, T, B, PACKED)
        mask = tile_mask(b, j, count, H, EVEN_B, EVEN_H)
        gr, gz, gn = _load_gates(gates_in_ptr + row * (3 * H) + own_gate, mask, H)

        flag, arrivals = flags + tl.maximum(i - 1, 0), tl.where(i == 0, 0, PROGRAMS)
        carried = tl.minimum(count, count_before)
        source = state_pointers(output_ptr, h0_ptr, b, row_before, carried, i == 0, H, PACKED)
        x = await_tile(
            source, b < count, status_ptr, flag, arrivals, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B, X_MASKED, TIMEOUT
        )
        if _ONE_USE:
            ar, az = two_gates(tl.dot(w_rz, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
        else:
            ar = one_gate(tl.dot(w_r, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
        r = sigmoid(ar + gr)
        reset_state = reset_state_ptr + row * H
        publish(reset_state + own, r * h, mask, flags_reset + i, PROTOCOL)

        if not _ONE_USE:
            az = one_gate(tl.dot(w_z, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
        z = sigmoid(az + gz)
        source = reset_state + b * H
        x = await_tile(
            source, b < count, status_ptr, flags_reset + i, PROGRAMS, PROTOCOL, H, SPLIT, DEPTH, BLOCK_B,
            X_MASKED, TIMEOUT,
        )  # fmt: skip
        an = one_gate(tl.dot(w_n, x, input_precision=PRECISION), SPLIT, BLOCK_H, BLOCK_B)
        n = candidate(gn, an, r, VARIANT)
        new = blend(h, z, n, VARIANT)
        publish(output_ptr + row * H + own, new, mask, flags + i, PROTOCOL)
        h = new if EVEN_B else tl.where((b < count)[:, None], new, h)
        if SAVE:
            dtype: tl.constexpr = reserve_ptr.dtype.element_ty
            reserve = reserve_ptr + row * (3 * H)
            tl.store(reserve + own_gate, r.to(dtype), mask=mask)
            tl.store(reserve + H + own_gate, z.to(dtype), mask=mask)
            tl.store(reserve + 2 * H + own_gate, n.to(dtype), mask=mask)
        row_before, count_before = row, count
    report(status_ptr, host_ptr, number)
