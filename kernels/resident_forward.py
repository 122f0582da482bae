"""The resident schedule, forward: the whole sequence in one launch, each program by itself.

HIDDEN is H padded to a power of two; tiles are (HIDDEN, BLOCK_B).
"""

import triton
import triton.language as tl

from .gates import blend, candidate, sigmoid
from .loop import Step, before_first, row_after, rows_of_all, step_after, step_ahead, step_at, time_of
from .norm import Norm, moments, normalised
from .per_step import (
    Beside,
    begun,
    ended,
    load_amount,
    load_beginning,
    load_dropped,
    load_seed,
    place_of,
    seen,
)
from .products import multiply
from .tile_words import amount_by, beginning_by, in_words, later, load_words, words_of
from .tiles import at, either, load_gates, load_weight, load_weight_transposed, read, there, write, write_gates


@triton.jit
def own_part(w_hh_ptr, H, TRANSPOSED: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_B: tl.constexpr):
    """The hidden units and the sequences of this program, and the weights of r, z and n that it keeps."""
    j = tl.arange(0, HIDDEN)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    if TRANSPOSED:
        w_r = load_weight_transposed(w_hh_ptr, 0, j, j, H)
        w_z = load_weight_transposed(w_hh_ptr, 1, j, j, H)
        w_n = load_weight_transposed(w_hh_ptr, 2, j, j, H)
    else:
        w_r = load_weight(w_hh_ptr, 0, j, j, H)
        w_z = load_weight(w_hh_ptr, 1, j, j, H)
        w_n = load_weight(w_hh_ptr, 2, j, j, H)
    return j, b, w_r, w_z, w_n


@triton.jit
def own_side(offsets_ptr, T, B, direction, HEADS: tl.constexpr, PACKED: tl.constexpr):
    """Where both directions or several heads run: the number of this program's, how many rows lie before its own in
    tensors that hold one behind the other, and its direction (see loop.py). direction: of a single one."""
    side = tl.program_id(1).to(tl.int64)
    behind = side * rows_of_all(offsets_ptr, T, B, PACKED)
    if HEADS is None:
        return side, behind, 1 - 2 * tl.program_id(1)
    else:
        return side, behind, tl.where(tl.program_id(1) < HEADS, direction, -1)


@triton.jit
def alive_steps(lengths_ptr, b, B, T, direction):
    """Of the steps as forward takes them, the first one at which a sequence of the tile is alive, and the one behind
    the last; all, where none has an end of its own."""
    if lengths_ptr is None:
        return 0, T
    else:
        most = tl.max(tl.load(lengths_ptr + b, mask=b < B, other=0), 0).to(tl.int32)
        first = tl.where(direction > 0, 0, T - most)
        return first, first + most


@triton.jit
def units_only(x, j, units, EXACT: tl.constexpr):
    """x, with zeros in the place of units that the layer does not have: before a product sums over them, for zero
    weights make NaN of what is infinite."""
    return x if EXACT else tl.where((j < units)[:, None], x, 0.0)


@triton.jit
def _carry_over(output_ptr, reserve_ptr, h, here, first, end, j, b, T, B, H, width, direction,
                VARIANT: tl.constexpr):  # fmt: skip
    """Steps first ... end - 1, behind `here`, of a tile without a sequence alive: the state goes on as it is, and zeros
    are kept, for products of backward go over all rows. Returns the last of them."""
    live, zero = there(j, b, H, B), tl.zeros_like(h)
    for i in range(first, end):
        here = step_after(here, None, i, T, B, direction, False)
        write(at(output_ptr, here.row, b, j, width), h, live)
        if reserve_ptr is not None:
            if VARIANT == "torch":
                write_gates(at(reserve_ptr, here.row, b, j, 4 * H), (zero, zero, zero, zero), live, H)
            else:
                write_gates(at(reserve_ptr, here.row, b, j, 3 * H), (zero, zero, zero), live, H)
    return here


@triton.jit(do_not_specialize=["T", "B", "units", "direction", "zoneout_below", "dropped_below"])
def forward_kernel(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    b_hn_ptr,  # (H,), "torch" only, or None
    b_hn_back_ptr,  # of the second direction, or None
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    output_ptr,  # (N, H)
    h_n_ptr,  # (B, H), out: each sequence's last state; or None
    reserve_ptr,  # (N, 4H) "torch": r, z, n, an; (N, 3H) otherwise: r, z, n; or None
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    dropped_below,
    seed_ptr,  # () int64
    zoneout_below,
    lengths_ptr,  # (B,) int64, of sequences past whose ends nothing happens; or None
    gain_ptr,  # (3H,) of normalised products, see Normalised in recurrence.py; or None
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
    """All steps of one batch tile."""
    width, behind, starts = H, None, None
    if w_hh_back_ptr is not None or HEADS is not None:
        side, behind, direction = own_side(offsets_ptr, T, B, direction, HEADS, PACKED)
        starts = side * B
        gates_in_ptr += behind * (3 * H)
        h0_ptr += side * B * H
        output_ptr += side * H
        width = (2 if HEADS is None else tl.num_programs(1)) * H
        if h_n_ptr is not None:
            h_n_ptr += side * B * H
        if reserve_ptr is not None:
            reserve_ptr += behind * ((4 if VARIANT == "torch" else 3) * H)
        w_hh_ptr = w_hh_ptr + side * (3 * H * H) if HEADS is not None else either(side, w_hh_ptr, w_hh_back_ptr)
        if b_hn_ptr is not None:
            b_hn_ptr = b_hn_ptr + side * H if HEADS is not None else either(side, b_hn_ptr, b_hn_back_ptr)
        if gain_ptr is not None:
            gain_ptr += side * (3 * H)
    norm = Norm(gain_ptr, units)
    if dropped_below is not None:
        dropped_ptr = tl.load(dropped_ptr)  # the seed of the masks
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, None, None, clip,
        behind, starts, FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below,
        dropped_below=dropped_below,
    )  # fmt: skip
    j, b, w_r, w_z, w_n = own_part(w_hh_ptr, H, False, HIDDEN, BLOCK_B)
    b_hn = tl.zeros((HIDDEN, 1), tl.float32)
    if b_hn_ptr is not None:
        b_hn += read(b_hn_ptr + j, j < H)[:, None]
    h = read(at(h0_ptr, 0, b, j, H), there(j, b, H, B))
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    zero = tl.zeros((HIDDEN, BLOCK_B), tl.float32)
    here = before_first(T, B, direction)
    place = place_of(Step(0, B), b, j, H)
    dropped = load_dropped(beside, place)
    first, end = alive_steps(lengths_ptr, b, B, T, direction)
    if lengths_ptr is not None:
        here = _carry_over(output_ptr, reserve_ptr, h, here, 0, first, j, b, T, B, H, width, direction, VARIANT)
    words = words_of(beside, first - 1, T, direction, BLOCK_B)
    if in_words(beside.amount, beside.reset):
        begin = begun(h, beginning_by(beside, load_words(words, BLOCK_B), place))
    else:
        begin = begun(h, load_beginning(beside, row_after(here, first - 1, T, B, direction), place))
    following = step_after(here, offsets_ptr, tl.minimum(first, T - 1), T, B, direction, PACKED)
    exists = there(j, b, H, tl.where(first < end, following.count, 0))
    gates = load_gates(at(gates_in_ptr, following.row, b, j, 3 * H), exists, H)
    for i in range(first, end):
        here = following
        gr, gz, gn = gates
        row, count = here
        following = step_ahead(here, offsets_ptr, i, T, B, direction, PACKED)
        words = later(words)
        if in_words(beside.amount, beside.reset):
            loaded = load_words(words, BLOCK_B)
            amount, beginning = amount_by(beside, loaded), beginning_by(beside, loaded, place)
        else:
            beginning = load_beginning(beside, row_after(here, i, T, B, direction), place)  # early: it is waited for
            amount = load_amount(beside, row, place)
        live = there(j, b, H, count)
        shown = seen(begin, dropped)
        x = shown.to(dtype)
        if gain_ptr is None:
            r = sigmoid(gr.to(tl.float32) + multiply(w_r, x, zero, PRECISION))
            z = sigmoid(gz.to(tl.float32) + multiply(w_z, x, zero, PRECISION))
            if VARIANT == "torch":
                an = multiply(w_n, x, zero, PRECISION) + b_hn
        else:
            ar, az = multiply(w_r, x, zero, PRECISION), multiply(w_z, x, zero, PRECISION)
            if VARIANT == "torch":
                an = multiply(w_n, x, zero, PRECISION)
                mean, rstd = moments(norm, (ar, az, an), j)
                an = normalised(norm, an, 2, mean, rstd, j, H) + b_hn
            else:
                mean, rstd = moments(norm, (ar, az), j)
            r = sigmoid(gr.to(tl.float32) + normalised(norm, ar, 0, mean, rstd, j, H))
            z = sigmoid(gz.to(tl.float32) + normalised(norm, az, 1, mean, rstd, j, H))
        # A step ahead, for memory is far.
        gates = load_gates(at(gates_in_ptr, following.row, b, j, 3 * H), there(j, b, H, following.count), H)
        if VARIANT != "torch":
            an = multiply(w_n, units_only(r * shown, j, units, EXACT).to(dtype), zero, PRECISION)
            if gain_ptr is not None:
                mean, rstd = moments(norm, (an,), j)
                an = normalised(norm, an, 2, mean, rstd, j, H)
        n = candidate(gn.to(tl.float32), an, r, VARIANT)
        new = ended(begin, units_only(blend(begin, z, n, VARIANT), j, units, EXACT), amount, clip)
        h = new if in_words(beside.amount, beside.reset) else tl.where((b < count)[None, :], new, begin)
        write(at(output_ptr, row, b, j, width), h, live)
        if reserve_ptr is not None:
            if VARIANT == "torch":
                write_gates(at(reserve_ptr, row, b, j, 4 * H), (r, z, n, an), live, H)
            else:
                write_gates(at(reserve_ptr, row, b, j, 3 * H), (r, z, n), live, H)
        begin = begun(h, beginning)
    if lengths_ptr is not None:
        here = step_at(None, time_of(end - 1, T, direction), B, False)  # kept from the loop, it would count along
        _carry_over(output_ptr, reserve_ptr, h, here, end, T, j, b, T, B, H, width, direction, VARIANT)
    if h_n_ptr is not None:
        write(at(h_n_ptr, 0, b, j, H), h, there(j, b, H, B))
