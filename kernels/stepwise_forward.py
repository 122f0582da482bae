"""The stepwise schedule's forward kernels: a step of "torch", and the two halves of a step of "cho" and "chung".

A launch multiplies the whole state by a tile of W_hh and runs the gates on the product as its epilogue. Accumulators
are (BLOCK_H, BLOCK_B): the weights are the left operand, so a small batch still fills the tensor cores' long side.
What is done for one tile of one step stands in functions of its own, for kernels of other schedules run it too.
"""

import triton
import triton.language as tl

from .gates import blend, candidate, sigmoid
from .loop import Step
from .products import multiply
from .tiles import at, load_state, load_weight, read, read_gates, there, write, write_gates

# They change from launch to launch: specialising on them would compile the kernel again and again.
PER_STEP = ["row", "count", "row_before", "carried", "row_after", "count_after", "extent"]


@triton.jit
def own_tile(BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The hidden units and the sequences of this program."""
    j = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    return j, b


@triton.jit
def _state_products(w_hh_ptr, output_ptr, h0_ptr, j, b, here, before, H, GATES: tl.constexpr, PRECISION: tl.constexpr,
                    BLOCK_K: tl.constexpr):  # fmt: skip
    """The state before the step multiplied by the weights of r, z and, for three GATES, n."""
    ar = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    az = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    an = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        h = load_state(output_ptr, h0_ptr, b, k, here, before, H)
        ar = multiply(load_weight(w_hh_ptr, 0, j, k, H), h, ar, PRECISION)
        az = multiply(load_weight(w_hh_ptr, 1, j, k, H), h, az, PRECISION)
        if GATES == 3:
            an = multiply(load_weight(w_hh_ptr, 2, j, k, H), h, an, PRECISION)
    return ar, az, an


@triton.jit
def torch_tile(gates_in_ptr, h0_ptr, w_hh_ptr, b_hn_ptr, state_ptr, output_ptr, reserve_ptr, j, b, here, before, H,
               PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of a step of variant "torch". before: the step before, of which it counts what is alive `here` too."""
    ar, az, an = _state_products(w_hh_ptr, output_ptr, h0_ptr, j, b, here, before, H, 3, PRECISION, BLOCK_K)
    if b_hn_ptr is not None:
        an += read(b_hn_ptr + j, j < H)[:, None]

    live = there(j, b, H, here.count)
    gr, gz, gn = read_gates(at(gates_in_ptr, here.row, b, j, 3 * H), live, H)
    r = sigmoid(ar + gr)
    z = sigmoid(az + gz)
    n = candidate(gn, an, r, "torch")
    state = at(state_ptr, 0, b, j, H)
    h = blend(read(state, live), z, n, "torch")
    write(state, h, live)
    write(at(output_ptr, here.row, b, j, H), h, live)
    if reserve_ptr is not None:
        write_gates(at(reserve_ptr, here.row, b, j, 4 * H), (r, z, n, an), live, H)


@triton.jit(do_not_specialize=PER_STEP)
def forward_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    b_hn_ptr,  # (H,) or None
    state_ptr,  # (B, H) float32, in place
    output_ptr,  # (N, H)
    reserve_ptr,  # (N, 4H): r, z, n, W_hn h + b_hn; or None
    row,
    count,
    row_before,
    carried,
    H,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One step of variant "torch"."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    torch_tile(
        gates_in_ptr, h0_ptr, w_hh_ptr, b_hn_ptr, state_ptr, output_ptr, reserve_ptr, j, b, Step(row, count),
        Step(row_before, carried), H, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit
def reset_update_tile(gates_in_ptr, h0_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr,
                      j, b, here, before, H, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of the first half of a step of "cho" and "chung"; `before` as in `torch_tile`."""
    ar, az, _ = _state_products(w_hh_ptr, output_ptr, h0_ptr, j, b, here, before, H, 2, PRECISION, BLOCK_K)

    live = there(j, b, H, here.count)
    gates_in = at(gates_in_ptr, here.row, b, j, 3 * H)
    r = sigmoid(ar + read(gates_in, live))
    z = sigmoid(az + read(gates_in + H, live))
    write(at(update_ptr, 0, b, j, H), z, live)
    write(at(reset_state_ptr, 0, b, j, H), r * read(at(state_ptr, 0, b, j, H), live), live)
    if reserve_ptr is not None:
        write_gates(at(reserve_ptr, here.row, b, j, 3 * H), (r, z), live, H)


@triton.jit(do_not_specialize=PER_STEP)
def reset_update_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    h0_ptr,  # (B, H)
    w_hh_ptr,  # (3H, H)
    state_ptr,  # (B, H) float32
    output_ptr,  # (N, H)
    update_ptr,  # (B, H) float32, out: z
    reset_state_ptr,  # (B, H), out: r * h
    reserve_ptr,  # (N, 3H): r, z, n; or None
    row,
    count,
    row_before,
    carried,
    H,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """First half of a step of "cho" and "chung": both gates, and the state that the reset gate lets through."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    reset_update_tile(
        gates_in_ptr, h0_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr, j, b,
        Step(row, count), Step(row_before, carried), H, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit
def candidate_tile(gates_in_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr, j, b, here,
                   H, VARIANT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """A tile of the second half of a step of "cho" and "chung"."""
    an = tl.zeros((j.shape[0], b.shape[0]), tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        rh = tl.load(at(reset_state_ptr, 0, b, k, H), mask=there(k, b, H, here.count), other=0.0)
        an = multiply(load_weight(w_hh_ptr, 2, j, k, H), rh, an, PRECISION)

    live = there(j, b, H, here.count)
    n = candidate(read(at(gates_in_ptr, here.row, b, j, 3 * H) + 2 * H, live), an, 1.0, VARIANT)
    z = read(at(update_ptr, 0, b, j, H), live)
    state = at(state_ptr, 0, b, j, H)
    h = blend(read(state, live), z, n, VARIANT)
    write(state, h, live)
    write(at(output_ptr, here.row, b, j, H), h, live)
    if reserve_ptr is not None:
        write(at(reserve_ptr, here.row, b, j, 3 * H) + 2 * H, n, live)


@triton.jit(do_not_specialize=PER_STEP)
def candidate_step(
    gates_in_ptr,  # (N, 3H) input's share of the pre-activations
    w_hh_ptr,  # (3H, H)
    state_ptr,  # (B, H) float32, in place
    output_ptr,  # (N, H)
    update_ptr,  # (B, H) float32: z
    reset_state_ptr,  # (B, H): r * h
    reserve_ptr,  # (N, 3H): r, z, n; or None
    row,
    count,
    row_before,  # of the first half only
    carried,
    H,
    VARIANT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Second half of a step of "cho" and "chung": the candidate and the blend."""
    j, b = own_tile(BLOCK_H, BLOCK_B)
    candidate_tile(
        gates_in_ptr, w_hh_ptr, state_ptr, output_ptr, update_ptr, reset_state_ptr, reserve_ptr, j, b,
        Step(row, count), H, VARIANT, PRECISION, BLOCK_K,
    )  # fmt: skip
