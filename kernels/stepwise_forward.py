"""The stepwise schedule's forward kernels: a step of "torch", and the two halves of a step of "cho" and "chung".

A launch multiplies the whole state by a tile of W_hh and runs the gates on the product as its epilogue. Accumulators
are (BLOCK_H, BLOCK_B): the weights are the left operand, so a small batch still fills the tensor cores' long side.
What is done for one tile of one step stands in functions of its own, for kernels of other schedules run it too.
"""

import triton
import triton.language as tl

from .gates import blend, candidate, sigmoid
from .loop import Step
from .norm import Norm, load_moments, load_normalised
from .per_step import Beside, as_seen, end_from, load_seed, load_seen, pass_on
from .products import multiply
from .tiles import at, either, load_gates, load_weight, read, there, write, write_gates

# They change from launch to launch: specialising on them would compile the kernel again and again.
PER_STEP = ["row", "count", "row_before", "carried", "row_after", "count_after"]
PER_STEP += [*(f"{name}_back" for name in PER_STEP), "extent", "rows", "batch", "direction", "zoneout_below"]


@triton.jit
def own_tile(BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The hidden units and the sequences of this program."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    return j, b


@triton.jit
def own_side(rows, w_hh_ptr, w_hh_back_ptr):
    """Where both directions run: which of them is this program's, 0 or 1, how many rows lie before its own in tensors
    that hold one behind the other, and its weights."""
    side = tl.program_id(2).to(tl.int64)
    return side, side * rows, either(side, w_hh_ptr, w_hh_back_ptr)


@triton.jit
def _own(pointer, starts, width):
    """Where the first sequence's row of the own direction is; starts: as `Beside` has it."""
    return pointer if starts is None else pointer + starts * width


@triton.jit
def own_step(row, count, row_back, count_back):
    """The first direction's step, or where both run this program's."""
    if row_back is None:
        return Step(row, count)
    else:
        side = tl.program_id(2)
        return Step(either(side, row, row_back), either(side, count, count_back))


@triton.jit
def _state_products(w_hh_ptr, output_ptr, h0_ptr, beside, j, b, here, before, H, width, GATES: tl.constexpr,
                    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """The state that the step sees multiplied by the weights of r, z and, for three GATES, n."""
    ar = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    az = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    an = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        h = load_seen(beside, output_ptr, h0_ptr, b, k, here, before, H, width)
        ar = multiply(load_weight(w_hh_ptr, 0, j, k, H), h, ar, PRECISION)
        az = multiply(load_weight(w_hh_ptr, 1, j, k, H), h, az, PRECISION)
        if GATES == 3:
            an = multiply(load_weight(w_hh_ptr, 2, j, k, H), h, an, PRECISION)
    return ar, az, an


@triton.jit
def torch_tile(gates_in_ptr, h0_ptr, w_hh_ptr, b_hn_ptr, state_ptr, output_ptr, reserve_ptr, beside, j, b, here, before,
               H, width, direction, batch, rows, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of a step of variant "torch". before: the step before, of which it counts what is alive `here` too. width:
    of the output's rows. direction, batch, rows: as `pass_on` takes them."""
    live, state = there(j, b, H, here.count), at(state_ptr, 0, b, j, H)
    # Raw, for a conversion would wait: they arrive while the products run.
    gr, gz, gn = load_gates(at(gates_in_ptr, here.row, b, j, 3 * H), live, H)
    begin = read(state, live)
    if beside.norm is None:
        ar, az, an = _state_products(
            w_hh_ptr, output_ptr, h0_ptr, beside, j, b, here, before, H, width, 3, PRECISION, BLOCK_K
        )  # fmt: skip
    else:
        mean, rstd = load_moments(beside.norm, b, here.count, 0, 3, H, BLOCK_K)
        ar = load_normalised(beside.norm, 0, mean, rstd, b, j, here.count, H)
        az = load_normalised(beside.norm, 1, mean, rstd, b, j, here.count, H)
        an = load_normalised(beside.norm, 2, mean, rstd, b, j, here.count, H)
    if b_hn_ptr is not None:
        an += read(b_hn_ptr + j, j < H)[:, None]

    r = sigmoid(ar + gr.to(tl.float32))
    z = sigmoid(az + gz.to(tl.float32))
    n = candidate(gn.to(tl.float32), an, r, "torch")
    h = end_from(beside, begin, blend(begin, z, n, "torch"), here, b, j, H)
    write(state, pass_on(beside, h, here, direction, batch, rows, b, j, H), live)
    write(at(output_ptr, here.row, b, j, width), h, live)
    if reserve_ptr is not None:
        write_gates(at(reserve_ptr, here.row, b, j, 4 * H), (r, z, n, an), live, H)


@triton.jit(do_not_specialize=PER_STEP)
def forward_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    b_hn_ptr,  # (H,) or None
    b_hn_back_ptr,  # of the second direction, or None
    state_ptr,  # (B, H) float32, in place
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn; or None
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    seed_ptr,  # () int64
    zoneout_below,
    begins_ptr,  # (N, H): read at this step's rows, written at the next one's
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
    products_ptr,  # (B, 3H) float32, of `product_step`, or None
    row,
    count,
    row_before,
    carried,
    row_back,  # of the second direction, or None
    count_back,
    row_before_back,
    carried_back,
    H,
    rows,  # of all steps together, where both directions run or there are `begins`; or None
    batch,
    direction,  # of time, as in loop.py (of the first one, where both run), where there are `begins`; or None
    clip,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step of variant "torch"."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    here, before = (
        own_step(row, count, row_back, count_back),
        own_step(row_before, carried, row_before_back, carried_back),
    )
    side, behind, starts, width = 0, None, None, H
    if w_hh_back_ptr is not None:
        side, behind, w_hh_ptr = own_side(rows, w_hh_ptr, w_hh_back_ptr)
        if b_hn_ptr is not None:
            b_hn_ptr = either(side, b_hn_ptr, b_hn_back_ptr)
        gates_in_ptr += behind * (3 * H)
        h0_ptr += side * batch * H
        starts = side * batch
        if begins_ptr is not None:
            direction = 1 - 2 * side
        state_ptr += side * batch * H
        output_ptr, width = output_ptr + side * H, 2 * H
        if reserve_ptr is not None:
            reserve_ptr += behind * (4 * H)
    norm = None if gain_ptr is None else Norm(gain_ptr + side * (3 * H), H, products=_own(products_ptr, starts, 3 * H))
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, begins_ptr, None, clip, behind, starts,
        FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below, norm,
    )  # fmt: skip
    torch_tile(
        gates_in_ptr, h0_ptr, w_hh_ptr, b_hn_ptr, state_ptr, output_ptr, reserve_ptr, beside, j, b, here,
        before, H, width, direction, batch, rows, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.constexpr_function
def is_exact(pointer, precision):
    """Whether products of such weights are exact float32 ones, which leave few registers for what is loaded early."""
    return pointer.dtype.element_ty.is_fp32() and precision == "ieee"


@triton.jit
def _own_states(behind, state_ptr, update_ptr, reset_state_ptr):
    """What the two halves of a step of "cho" and "chung" have in common, of the direction before which so much lies."""
    return state_ptr + behind, update_ptr + behind, reset_state_ptr + behind


@triton.jit
def reset_update_tile(gates_in_ptr, h0_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr,
                      beside, j, b, here, before, H, width, PRECISION: tl.constexpr,
                      BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of the first half of a step of "cho" and "chung"; `before` and `width` as in `torch_tile`."""
    live, gates_in = there(j, b, H, here.count), at(gates_in_ptr, here.row, b, j, 3 * H)
    LATE: tl.constexpr = is_exact(w_hh_ptr, PRECISION) and b.shape[0] > 16
    if not LATE:
        gr, gz = tl.load(gates_in, mask=live, other=0.0), tl.load(gates_in + H, mask=live, other=0.0)
    begin = read(at(state_ptr, 0, b, j, H), live)
    if beside.norm is None:
        ar, az, _ = _state_products(
            w_hh_ptr, output_ptr, h0_ptr, beside, j, b, here, before, H, width, 2, PRECISION, BLOCK_K
        )  # fmt: skip
    else:
        mean, rstd = load_moments(beside.norm, b, here.count, 0, 2, H, BLOCK_K)
        ar = load_normalised(beside.norm, 0, mean, rstd, b, j, here.count, H)
        az = load_normalised(beside.norm, 1, mean, rstd, b, j, here.count, H)

    if LATE:
        gr, gz = tl.load(gates_in, mask=live, other=0.0), tl.load(gates_in + H, mask=live, other=0.0)
    r = sigmoid(ar + gr.to(tl.float32))
    z = sigmoid(az + gz.to(tl.float32))
    write(at(update_ptr, 0, b, j, H), z, live)
    reset_state = at(reset_state_ptr, 0, b, j, H)
    write(reset_state, r * as_seen(beside, begin, here, b, j, H), live)
    if reserve_ptr is not None:
        write_gates(at(reserve_ptr, here.row, b, j, 3 * H), (r, z), live, H)


@triton.jit(do_not_specialize=PER_STEP)
def reset_update_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    state_ptr,  # (B, H) float32
    output_ptr,  # (N, H)
    update_ptr,  # (B, H) float32, out: z
    reset_state_ptr,  # (B, H), out: r * h
    reserve_ptr,  # (N, 3H): r, z, n; or None
    dropped_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent
    begins_ptr,  # (N, H)
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
    products_ptr,  # (B, 3H) float32, of `product_step`, or None
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
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """First half of a step of "cho" and "chung": both gates, and the state that the reset gate lets through."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    here, before = (
        own_step(row, count, row_back, count_back),
        own_step(row_before, carried, row_before_back, carried_back),
    )
    side, behind, starts, width = 0, None, None, H
    if w_hh_back_ptr is not None:
        side, behind, w_hh_ptr = own_side(rows, w_hh_ptr, w_hh_back_ptr)
        gates_in_ptr += behind * (3 * H)
        h0_ptr += side * batch * H
        starts = side * batch
        state_ptr, update_ptr, reset_state_ptr = _own_states(side * batch * H, state_ptr, update_ptr, reset_state_ptr)
        output_ptr, width = output_ptr + side * H, 2 * H
        if reserve_ptr is not None:
            reserve_ptr += behind * (3 * H)
    norm = None if gain_ptr is None else Norm(gain_ptr + side * (3 * H), H, products=_own(products_ptr, starts, 3 * H))
    beside = Beside(dropped=dropped_ptr, begins=begins_ptr, behind=behind, starts=starts, norm=norm)
    reset_update_tile(
        gates_in_ptr, h0_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr, beside, j,
        b, here, before, H, width, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit
def _candidate_product(w_hh_ptr, reset_state_ptr, j, b, here, H, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """What the reset gate lets through multiplied by the weights of n."""
    an = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        rh = tl.load(at(reset_state_ptr, 0, b, k, H), mask=there(k, b, H, here.count), other=0.0)
        an = multiply(load_weight(w_hh_ptr, 2, j, k, H), rh, an, PRECISION)
    return an


@triton.jit
def candidate_tile(gates_in_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr, beside, j,
                   b, here, H, width, direction, batch, rows, VARIANT: tl.constexpr, PRECISION: tl.constexpr,
                   BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of the second half of a step of "cho" and "chung"; what it takes as `torch_tile`."""
    live, state = there(j, b, H, here.count), at(state_ptr, 0, b, j, H)
    gn = tl.load(at(gates_in_ptr, here.row, b, j, 3 * H) + 2 * H, mask=live, other=0.0)
    z, begin = read(at(update_ptr, 0, b, j, H), live), read(state, live)
    if beside.norm is None:
        an = _candidate_product(w_hh_ptr, reset_state_ptr, j, b, here, H, PRECISION, BLOCK_K)
    else:
        mean, rstd = load_moments(beside.norm, b, here.count, 2, 3, H, BLOCK_K)
        an = load_normalised(beside.norm, 2, mean, rstd, b, j, here.count, H)

    n = candidate(gn.to(tl.float32), an, 1.0, VARIANT)
    h = end_from(beside, begin, blend(begin, z, n, VARIANT), here, b, j, H)
    write(state, pass_on(beside, h, here, direction, batch, rows, b, j, H), live)
    write(at(output_ptr, here.row, b, j, width), h, live)
    if reserve_ptr is not None:
        write(at(reserve_ptr, here.row, b, j, 3 * H) + 2 * H, n, live)


@triton.jit(do_not_specialize=PER_STEP)
def candidate_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    state_ptr,  # (B, H) float32, in place
    output_ptr,  # (N, H)
    update_ptr,  # (B, H) float32: z
    reset_state_ptr,  # (B, H): r * h
    reserve_ptr,  # (N, 3H): r, z, n; or None
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    seed_ptr,  # () int64
    zoneout_below,
    begins_ptr,  # (N, H): read at this step's rows, written at the next one's
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
    products_ptr,  # (B, 3H) float32, of `product_step`, or None
    row,
    count,
    row_before,  # of the first half only
    carried,
    row_back,  # of the second direction, or None
    count_back,
    row_before_back,
    carried_back,
    H,
    rows,  # of all steps together, where both directions run or there are `begins`; or None
    batch,
    direction,  # of time, as in loop.py (of the first one, where both run), where there are `begins`; or None
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
    """Second half of a step of "cho" and "chung": the candidate and the blend."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    side, behind, starts, width = 0, None, None, H
    here = own_step(row, count, row_back, count_back)
    if w_hh_back_ptr is not None:
        side, behind, w_hh_ptr = own_side(rows, w_hh_ptr, w_hh_back_ptr)
        gates_in_ptr += behind * (3 * H)
        starts = side * batch
        if begins_ptr is not None:
            direction = 1 - 2 * side
        state_ptr, update_ptr, reset_state_ptr = _own_states(side * batch * H, state_ptr, update_ptr, reset_state_ptr)
        output_ptr, width = output_ptr + side * H, 2 * H
        if reserve_ptr is not None:
            reserve_ptr += behind * (3 * H)
    norm = None if gain_ptr is None else Norm(gain_ptr + side * (3 * H), H, products=_own(products_ptr, starts, 3 * H))
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, begins_ptr, None, clip, behind, starts,
        FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below, norm,
    )  # fmt: skip
    candidate_tile(
        gates_in_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr, beside, j,
        b, here, H, width, direction, batch, rows, VARIANT, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit(do_not_specialize=PER_STEP)
def product_step(
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    output_ptr,  # (N, H)
    reset_state_ptr,  # (B, H): r * h; or None
    begins_ptr,  # (N, H) or None, see PerStep in recurrence.py
    products_ptr,  # (B, 3H) float32, out
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
    GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A step's products, for the kernel behind it to normalise: of the state with the weights of the first GATES gates,
    or of `reset_state` with those of n."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    here, before = (
        own_step(row, count, row_back, count_back),
        own_step(row_before, carried, row_before_back, carried_back),
    )
    width, behind = H, None
    if w_hh_back_ptr is not None:
        side, behind, w_hh_ptr = own_side(rows, w_hh_ptr, w_hh_back_ptr)
        products_ptr += side * batch * (3 * H)
        h0_ptr += side * batch * H
        if reset_state_ptr is not None:
            reset_state_ptr += side * batch * H
        output_ptr, width = output_ptr + side * H, 2 * H
    if reset_state_ptr is not None:
        an = _candidate_product(w_hh_ptr, reset_state_ptr, j, b, here, H, PRECISION, BLOCK_K)
        write(at(products_ptr + 2 * H, 0, b, j, 3 * H), an, there(j, b, H, here.count))
    else:
        beside = Beside(begins=begins_ptr, behind=behind)
        ar, az, an = _state_products(
            w_hh_ptr, output_ptr, h0_ptr, beside, j, b, here, before, H, width, GATES, PRECISION, BLOCK_K
        )  # fmt: skip
        live, to = there(j, b, H, here.count), at(products_ptr, 0, b, j, 3 * H)
        write_gates(to, (ar, az), live, H)
        if GATES == 3:
            write(to + 2 * H, an, live)
