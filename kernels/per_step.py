"""What a step does beside the equations (`PerStep` in recurrence.py), as kernels have it: the loads of its operands.

Each may be absent: it is None then, and nothing is compiled for it. Loads give values as they lie in memory, for a
conversion would wait for them; the functions that take what was loaded convert it, and leave the mathematics to
gates.py. All are for tiles of either orientation: hidden units along one axis, sequences along the other.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .gates import begin_grad, begin_of_step, blend, blend_grad, end_grad, end_of_step
from .recurrence import Operands

_NAMES = (
    *("reset_ptr", "fresh_ptr", "decay_ptr", "amount_ptr", "dropped_ptr", "clip"),
    *("FRESH_STEPS", "DECAY_UNITS", "AMOUNT_UNITS"),
)


def arguments(operands: Operands) -> dict[str, Any]:
    """What every kernel of every schedule takes for them, by name; all None where there is no `per_step`.

    Sequences are padded: packed ones have none."""
    given = operands.per_step
    if given is None:
        return dict.fromkeys(_NAMES)
    assert not operands.steps.packed, "per_step is for padded sequences"
    reset = None if given.reset is None else given.reset.view(torch.uint8)  # Triton would convert a bool as it loads it
    values = reset, given.fresh, given.decay, given.amount, given.dropped, given.clip
    flags = (
        given.fresh is not None and given.fresh.shape[-2] == operands.steps.num_rows,
        *(x is not None and x.dim() == operands.h0.dim() for x in (given.decay, given.amount)),
    )
    return dict(zip(_NAMES, (*values, *(flag or None for flag in flags)), strict=True))


class Beside(NamedTuple):
    """The operands, None where they are absent. Flags are None or not, for that is all that Triton keeps constant in a
    tuple that has a name."""

    reset_ptr: tl.tensor  # (N,) uint8
    fresh_ptr: tl.tensor  # (N, H), or (B, H) for all steps
    decay_ptr: tl.tensor  # (N,) or (N, H)
    amount_ptr: tl.tensor  # (N,) or (N, H)
    dropped_ptr: tl.tensor  # (B, H)
    clip: tl.tensor  # a number
    FRESH_STEPS: tl.constexpr  # whether `fresh` has a row for each step
    DECAY_UNITS: tl.constexpr  # whether it has a value for each hidden unit
    AMOUNT_UNITS: tl.constexpr


class Place(NamedTuple):
    """A tile."""

    j: tl.tensor  # its hidden units, along one axis
    b: tl.tensor  # where the rows of its sequences lie within a step, along the other
    alive: tl.tensor  # of `b`, those to be loaded
    there: tl.tensor  # the tile's elements to be loaded
    H: tl.tensor


class Beginning(NamedTuple):
    """A tile of what leads from the state before a step to the one that it begins from."""

    reset: tl.tensor
    fresh: tl.tensor
    decay: tl.tensor


@triton.jit
def of_side(beside, side, behind, B, H):
    """The operands of one direction where both run; `behind`: how many rows lie before its own."""
    reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, clip, STEPS, DECAY_UNITS, AMOUNT_UNITS = beside
    if reset_ptr is not None:
        reset_ptr += behind
    if fresh_ptr is not None:
        fresh_ptr += (side * B if STEPS is None else behind) * H
    if decay_ptr is not None:
        decay_ptr += behind * (1 if DECAY_UNITS is None else H)
    if amount_ptr is not None:
        amount_ptr += behind * (1 if AMOUNT_UNITS is None else H)
    if dropped_ptr is not None:
        dropped_ptr += side * B * H
    return Beside(
        reset_ptr, fresh_ptr, decay_ptr, amount_ptr, dropped_ptr, clip, STEPS, DECAY_UNITS, AMOUNT_UNITS
    )  # fmt: skip


@triton.jit
def _of_units(pointer, row, place):
    """A value of each hidden unit, in rows of which `row` is a step's first; None: rows of all steps. None of None."""
    if pointer is None:
        return None
    else:
        if row is not None:
            pointer += row.to(tl.int64) * place.H
        return tl.load(pointer + (place.b * place.H + place.j), mask=place.there, other=0)


@triton.jit
def _of_rows(pointer, row, place, UNITS):
    """The same, or where UNITS is None a value of each sequence."""
    if pointer is None or UNITS is not None:
        return _of_units(pointer, row, place)
    else:
        return tl.load(pointer + row + place.b, mask=place.alive, other=0)


@triton.jit
def load_beginning(beside, row, place):
    """For the step whose first row is `row`."""
    reset = _of_rows(beside.reset_ptr, row, place, None)
    fresh = _of_units(beside.fresh_ptr, None if beside.FRESH_STEPS is None else row, place)
    return Beginning(reset, fresh, _of_rows(beside.decay_ptr, row, place, beside.DECAY_UNITS))


@triton.jit
def load_amount(beside, row, place):
    """For the step whose first row is `row`."""
    return _of_rows(beside.amount_ptr, row, place, beside.AMOUNT_UNITS)


@triton.jit
def load_of_step(beside, row, place):
    """Both, in a tuple: by itself, what is None cannot go from one turn of a loop to the next."""
    return load_amount(beside, row, place), load_beginning(beside, row, place)


@triton.jit
def load_dropped(beside, place):
    """For all steps."""
    return _of_units(beside.dropped_ptr, None, place)


@triton.jit
def _wide(x):
    return None if x is None else x.to(tl.float32)


@triton.jit
def _resets(reset):
    return None if reset is None else reset != 0


@triton.jit
def begin_from(before, beginning):
    """The state that a step begins from, and that its blend sees."""
    return begin_of_step(before, _resets(beginning.reset), _wide(beginning.fresh), _wide(beginning.decay))


@triton.jit
def seen(begin, dropped):
    """What the products see of it, and the derivative by it of theirs."""
    return begin if dropped is None else dropped.to(tl.float32) * begin


@triton.jit
def end_from(begin, new, amount, clip):
    """The state that a step ends with; `new`: the equations'."""
    return end_of_step(begin, new, _wide(amount), clip)


@triton.jit
def end_back(dh, begin, z, n, amount, clip, VARIANT: tl.constexpr):
    """`blend_grad` from dh, the derivative by the state that a step ends with; `direct` with what passes by the
    equations."""
    if amount is None and clip is None:
        return blend_grad(dh, begin, z, n, VARIANT)
    else:
        d_new, past = end_grad(dh, begin, blend(begin, z, n, VARIANT), _wide(amount), clip)
        dn, dz, direct = blend_grad(d_new, begin, z, n, VARIANT)
        return dn, dz, direct + past


@triton.jit
def begin_back(d_begin, beginning):
    """The derivative by the state before a step."""
    return begin_grad(d_begin, _resets(beginning.reset), _wide(beginning.decay))
