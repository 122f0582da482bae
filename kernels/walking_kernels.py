"""The walking schedule's kernels: the whole sequence in one cooperative launch, for any hidden_size.

Each step is that of the stepwise schedule, tile by tile, with W_hh from L2. A program walks over tiles, the same ones
at every step, and tells by counters (protocol "flags" in exchange.py) when a tile is done; the tiles of other batch
tiles it never waits for. While it works on one tile, what another waits for is on its way.

Never stale: what is read of others, rows of `output` or `begins`, of the derivatives and of r * h, is read behind a
wait for the counter of the step that wrote it. Memory that serves every step (r * h; the state and its derivative,
which only its program touches) is written again only behind a wait for those who read it: they count themselves after
that. A batch tile whose sequences have all ended, or not begun, is passed over.

Where both directions of time run, half of the programs are each one's; see recurrence.py for where their tensors lie.
"""

import triton
import triton.language as tl

from .exchange import arrive, await_flag, first_flag, report
from .loop import Step, before_first, rows_of_all, step_after, step_or_none, time_of
from .per_step import Beside, load_seed
from .stepwise_backward import bptt_reset_tile, bptt_tile
from .stepwise_forward import candidate_tile, is_exact, reset_update_tile, torch_tile
from .tiles import either


@triton.jit
def _tiles(H, B, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """How many there are."""
    return tl.cdiv(H, BLOCK_H) * tl.cdiv(B, BLOCK_B)


@triton.jit
def _of_tile(tile, H, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Its hidden units, its sequences, and the first of these."""
    units = tl.cdiv(H, BLOCK_H)
    first = tile // units * BLOCK_B
    return tile % units * BLOCK_H + tl.arange(0, BLOCK_H), first + tl.arange(0, BLOCK_B), first


@triton.jit
def _side(offsets_ptr, T, B, PACKED: tl.constexpr):
    """Where both directions run: which of them is this program's, 0 or 1, how many rows lie before its own in tensors
    that hold one behind the other, and its direction (see loop.py)."""
    side = tl.program_id(1)
    return side.to(tl.int64), side * rows_of_all(offsets_ptr, T, B, PACKED), 1 - 2 * side


@triton.jit
def _after(last, offsets_ptr, i, T, B, direction, PACKED: tl.constexpr):
    """The step after `last`, number i in forward's order, and `last` with those sequences alone that are alive there
    too."""
    here = step_after(last, offsets_ptr, i, T, B, direction, PACKED)
    return here, Step(last.row, tl.minimum(last.count, here.count))


@triton.jit
def _flag(status_ptr, exchange, first, i, T, B, BLOCK_B: tl.constexpr):
    """The counter of an exchange at step number i, of the batch tile that begins with sequence `first`."""
    tiles = tl.cdiv(B, BLOCK_B)
    group = tl.program_id(1) * tiles + first // BLOCK_B
    return first_flag(status_ptr, exchange, group, tl.num_programs(1) * tiles, T) + i


@triton.jit
def _await(status_ptr, exchange, first, i, there, T, B, H, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
           TIMEOUT: tl.constexpr):  # fmt: skip
    """Wait until all hidden units of a batch tile have been through an exchange, unless they are not `there`. Returns
    0, to be added to the pointers of what is then read."""
    flag = _flag(status_ptr, exchange, first, tl.maximum(i, 0), T, B, BLOCK_B)
    return await_flag(flag, tl.where(there, tl.cdiv(H, BLOCK_H), 0), status_ptr, TIMEOUT)


@triton.jit(do_not_specialize=["T", "B", "direction", "number", "zoneout_below"])
def walk_torch(
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
    begins_ptr,  # (N, H): read at a step's rows, written at the next one's
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    H,
    clip,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    TIMEOUT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Variant "torch", forward."""
    width, behind, starts = H, None, None
    if w_hh_back_ptr is not None:
        side, behind, direction = _side(offsets_ptr, T, B, PACKED)
        starts = side * B
        w_hh_ptr = either(side, w_hh_ptr, w_hh_back_ptr)
        if b_hn_ptr is not None:
            b_hn_ptr = either(side, b_hn_ptr, b_hn_back_ptr)
        gates_in_ptr += behind * (3 * H)
        h0_ptr += side * B * H
        state_ptr += side * B * H
        output_ptr += side * H
        width = 2 * H
        if reserve_ptr is not None:
            reserve_ptr += behind * (4 * H)
    rows = rows_of_all(offsets_ptr, T, B, False)  # where steps do something beside, they are padded
    seed, last = load_seed(seed_ptr), before_first(T, B, direction)
    for i in range(T):
        here, before = _after(last, offsets_ptr, i, T, B, direction, PACKED)
        for tile in range(tl.program_id(0), _tiles(H, B, BLOCK_H, BLOCK_B), tl.num_programs(0)):
            j, b, first = _of_tile(tile, H, BLOCK_H, BLOCK_B)
            if first < here.count:
                ready = _await(
                    status_ptr, 0, first, i - 1, first < before.count, T, B, H, BLOCK_H, BLOCK_B, TIMEOUT
                )  # fmt: skip
                begins = None if begins_ptr is None else begins_ptr + ready
                beside = Beside(
                    reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, begins, None, clip, behind, starts,
                    FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, seed, zoneout_below,
                )  # fmt: skip
                torch_tile(
                    gates_in_ptr, h0_ptr, w_hh_ptr, b_hn_ptr, state_ptr, output_ptr + ready, reserve_ptr, beside, j,
                    b, here, before, H, width, direction, B, rows, PRECISION, BLOCK_K,
                )  # fmt: skip
                arrive(_flag(status_ptr, 0, first, i, T, B, BLOCK_B))
        last = here
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=["T", "B", "direction", "number", "zoneout_below"])
def walk_reset_first(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
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
    begins_ptr,  # (N, H): read at a step's rows, written at the next one's
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    H,
    clip,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
    VARIANT: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    TIMEOUT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Variants "cho" and "chung", forward: the candidate's product needs all of r * h, so a step has two exchanges."""
    width, behind, starts = H, None, None
    if w_hh_back_ptr is not None:
        side, behind, direction = _side(offsets_ptr, T, B, PACKED)
        starts = side * B
        w_hh_ptr = either(side, w_hh_ptr, w_hh_back_ptr)
        gates_in_ptr += behind * (3 * H)
        h0_ptr += side * B * H
        state_ptr += side * B * H
        output_ptr += side * H
        width = 2 * H
        update_ptr += side * B * H
        reset_state_ptr += side * B * H
        if reserve_ptr is not None:
            reserve_ptr += behind * (3 * H)
    rows = rows_of_all(offsets_ptr, T, B, False)  # where steps do something beside, they are padded
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, begins_ptr, None, clip, behind, starts,
        FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below,
    )  # fmt: skip
    last = before_first(T, B, direction)
    for i in range(T):
        here, before = _after(last, offsets_ptr, i, T, B, direction, PACKED)
        for tile in range(tl.program_id(0), _tiles(H, B, BLOCK_H, BLOCK_B), tl.num_programs(0)):
            j, b, first = _of_tile(tile, H, BLOCK_H, BLOCK_B)
            if first < here.count:
                ready = _await(
                    status_ptr, 1, first, i - 1, first < before.count, T, B, H, BLOCK_H, BLOCK_B, TIMEOUT
                )  # fmt: skip
                begins = None if begins_ptr is None else begins_ptr + ready
                seen = Beside(dropped=dropped_ptr, begins=begins, behind=behind, starts=starts)
                reset_update_tile(
                    gates_in_ptr, h0_ptr, w_hh_ptr, state_ptr, output_ptr + ready, update_ptr, reset_state_ptr,
                    reserve_ptr, seen, j, b, here, before, H, width, PRECISION, BLOCK_K,
                )  # fmt: skip
                arrive(_flag(status_ptr, 0, first, i, T, B, BLOCK_B))
        for tile in range(tl.program_id(0), _tiles(H, B, BLOCK_H, BLOCK_B), tl.num_programs(0)):
            j, b, first = _of_tile(tile, H, BLOCK_H, BLOCK_B)
            if first < here.count:
                ready = _await(status_ptr, 0, first, i, True, T, B, H, BLOCK_H, BLOCK_B, TIMEOUT)
                candidate_tile(
                    gates_in_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr + ready, reserve_ptr,
                    beside, j, b, here, H, width, direction, B, rows, VARIANT, PRECISION, BLOCK_K,
                )  # fmt: skip
                arrive(_flag(status_ptr, 1, first, i, T, B, BLOCK_B))
        last = here
    report(status_ptr, host_ptr, number)


@triton.jit(do_not_specialize=["T", "B", "direction", "number", "zoneout_below"])
def walk_back(
    grad_output_ptr,  # (N, H)
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    w_hh_back_ptr,  # of the second direction, or None: one runs
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H) "torch": r, z, n, an; (N, 3H) otherwise: r, z, n
    d_state_ptr,  # (B, H) float32, in place
    d_gates_ptr,  # (N, 3H), out
    d_an_ptr,  # (N, H), out, "torch" only: derivative by W_hn h + b_hn
    reset_ptr,  # what a step does beside the equations, see PerStep in recurrence.py; None: absent. As bytes
    fresh_ptr,
    decay_ptr,
    amount_ptr,
    dropped_ptr,
    seed_ptr,  # () int64
    zoneout_below,
    d_begin_ptr,  # (N, H), out, or None: derivative by what each step begins from
    offsets_ptr,  # (T + 1,) int64, first row of each step; or None: not PACKED
    status_ptr,  # see exchange.py
    host_ptr,  # see watch.py
    T,
    B,
    direction,  # of time, see loop.py
    number,  # of the launch, see watch.py
    H,
    clip,
    FRESH_BY_STEP: tl.constexpr,
    DECAY_BY_UNIT: tl.constexpr,
    AMOUNT_BY_UNIT: tl.constexpr,
    VARIANT: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    TIMEOUT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Back-propagation through time; behind the last turn of the loop d_state is the derivative by h0."""
    LAST: tl.constexpr = 0 if VARIANT == "torch" else 1  # a step's last exchange
    width, behind, starts = H, None, None
    if w_hh_back_ptr is not None:
        side, behind, direction = _side(offsets_ptr, T, B, PACKED)
        starts = side * B
        w_hh_ptr = either(side, w_hh_ptr, w_hh_back_ptr)
        grad_output_ptr += side * H
        h0_ptr += side * B * H
        output_ptr += side * H
        width = 2 * H
        reserve_ptr += behind * ((4 if VARIANT == "torch" else 3) * H)
        d_state_ptr += side * B * H
        d_gates_ptr += behind * (3 * H)
        if VARIANT == "torch":
            d_an_ptr += behind * H
    beside = Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, None, d_begin_ptr, clip, behind, starts,
        FRESH_BY_STEP, DECAY_BY_UNIT, AMOUNT_BY_UNIT, load_seed(seed_ptr), zoneout_below,
    )  # fmt: skip
    after = before_first(T, B, direction)
    for i in range(T + 1):
        t = time_of(T - 1 - i, T, direction)
        here = step_or_none(offsets_ptr, t, T, B, PACKED)
        before = step_or_none(offsets_ptr, t - direction, T, B, PACKED)
        here = Step(here.row, tl.where(i < T, here.count, 0))
        before = Step(before.row, tl.where(i + 1 < T, tl.minimum(before.count, here.count), 0))
        for tile in range(tl.program_id(0), _tiles(H, B, BLOCK_H, BLOCK_B), tl.num_programs(0)):
            j, b, first = _of_tile(tile, H, BLOCK_H, BLOCK_B)
            if first < tl.maximum(here.count, after.count):
                goes_on = first < after.count
                ready = _await(status_ptr, LAST, first, i - 1, goes_on, T, B, H, BLOCK_H, BLOCK_B, TIMEOUT)
                # "torch" alone has the other one.
                d_an = d_an_ptr + ready if VARIANT == "torch" else d_an_ptr
                bptt_tile(
                    grad_output_ptr, h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr + ready, d_an,
                    beside, j, b, here, before, after, tl.where(goes_on, H, 0), H, width, VARIANT, PRECISION, BLOCK_K,
                    is_exact(w_hh_ptr, PRECISION),
                )  # fmt: skip
                if first < here.count:
                    arrive(_flag(status_ptr, 0, first, i, T, B, BLOCK_B))
        if VARIANT != "torch":
            for tile in range(tl.program_id(0), _tiles(H, B, BLOCK_H, BLOCK_B), tl.num_programs(0)):
                j, b, first = _of_tile(tile, H, BLOCK_H, BLOCK_B)
                if first < here.count:
                    ready = _await(status_ptr, 0, first, i, True, T, B, H, BLOCK_H, BLOCK_B, TIMEOUT)
                    bptt_reset_tile(
                        h0_ptr, w_hh_ptr, output_ptr, reserve_ptr, d_state_ptr, d_gates_ptr + ready, beside, j, b, here,
                        before, H, width, PRECISION, BLOCK_K,
                    )  # fmt: skip
                    arrive(_flag(status_ptr, 1, first, i, T, B, BLOCK_B))
        after = here
    report(status_ptr, host_ptr, number)
