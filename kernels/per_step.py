"""What a step does beside the equations, as kernels take it: see PerStep in recurrence.py.

Where a step begins from something else than the state before, forward's running state is `begin`: who computes a state
has the next step begin from it at once, and writes what that step's products see. What is absent, None, is no code.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import begin_grad, begin_of_step, end_of_step
from .loop import Step
from .recurrence import Derivatives, Operands, PerStep
from .tiles import at, load_state, read, there, write


def arguments(operands: Operands) -> dict[str, Any]:
    """What every kernel that begins or ends a step takes of it, by name. All None where there is nothing."""
    per = operands.per_step or PerStep()
    return {
        "reset_ptr": None if per.reset is None else per.reset.view(torch.uint8),
        "fresh_ptr": None if per.reset is None else per.fresh,
        "decay_ptr": per.decay,
        "amount_ptr": per.amount,
        "dropped_ptr": per.dropped,
    }


def forward_arguments(operands: Operands) -> dict[str, Any]:
    """Those of forward's kernels."""
    per = operands.per_step or PerStep()
    return arguments(operands) | {"begins_ptr": per.begins, "clip": per.clip}


def backward_arguments(operands: Operands, derivatives: Derivatives) -> dict[str, Any]:
    """Those of the kernels of back-propagation."""
    per = operands.per_step or PerStep()
    return arguments(operands) | {"d_begin_ptr": derivatives.d_begin, "clip": per.clip}


def constexprs(operands: Operands) -> dict[str, Any]:
    """How the arguments lie: True or None, as `Beside` has it."""
    per, has_units = operands.per_step or PerStep(), operands.h0.dim()
    by_step = per.fresh is not None and per.fresh.shape[-2] == operands.steps.num_rows
    return {
        "FRESH_BY_STEP": by_step or None,
        "DECAY_BY_UNIT": (per.decay is not None and per.decay.dim() == has_units) or None,
        "AMOUNT_BY_UNIT": (per.amount is not None and per.amount.dim() == has_units) or None,
    }


def first_state(operands: Operands, reverse: bool) -> Tensor:
    """The running state that forward starts with, in float32; what the first step's products see is written.

    Raises:
        ValueError: packed sequences, whose steps do nothing beside the equations; begins missing, or for nothing.
    """
    h0, per, steps = operands.h0, operands.per_step, operands.steps
    state = h0.clone() if h0.dtype == torch.float32 else h0.float()
    if per is None:
        return state
    if steps.packed:
        raise ValueError("per_step: expected padded sequences with it, got packed ones")
    if per.carries != (per.begins is not None):
        raise ValueError(f"begins: expected {'a tensor' if per.carries else 'None'}, got {type(per.begins).__name__}")
    if per.begins is None:
        return state
    if operands.sides == 1:
        _begin_first(state, per, steps.num_rows, reverse)
    else:
        for side in range(2):
            own: dict[str, Any] = {name: x[side] for name, x in per._asdict().items() if isinstance(x, Tensor)}
            _begin_first(state[side], per._replace(**own), steps.num_rows, side == 1)
    return state


def _begin_first(state: Tensor, per: PerStep, num_rows: int, reverse: bool) -> None:
    """In place, of one direction: from h0 to what its first step begins from."""
    assert per.begins is not None
    batch = len(state)
    rows = slice(num_rows - batch, num_rows) if reverse else slice(batch)
    if per.reset is not None:
        fresh = torch.zeros_like(state)
        if per.fresh is not None:
            fresh = (per.fresh[rows] if len(per.fresh) == num_rows else per.fresh).float()
        state.copy_(torch.where(per.reset[rows, None], fresh, state))
    if per.decay is not None:
        state *= per.decay[rows].view(batch, -1)
    per.begins[rows] = (state if per.dropped is None else state * per.dropped).to(per.begins.dtype)


class Beside(NamedTuple):
    """A kernel's arguments of it, as far as it has them."""

    reset: Any = None  # pointers
    fresh: Any = None
    decay: Any = None
    amount: Any = None
    dropped: Any = None
    begins: Any = None
    d_begin: Any = None
    clip: Any = None
    behind: Any = None  # where both directions run: rows of all steps, and sequences, that lie before its own
    starts: Any = None
    FRESH_BY_STEP: Any = None  # not None: `fresh` has rows for each step
    DECAY_BY_UNIT: Any = None  # not None: a value for each hidden unit of a row
    AMOUNT_BY_UNIT: Any = None


@triton.jit
def following(here, direction, batch, rows):
    """The step that forward takes after the step `here` of a padded sequence; direction: see loop.py. Behind the last
    one without any sequence alive."""
    row = here.row.to(tl.int64) + direction * batch
    return Step(row, tl.where((row >= 0) & (row < rows), here.count, 0))


@triton.jit
def _row(beside, step):
    """A step's first row."""
    return step.row if beside.behind is None else step.row + beside.behind


@triton.jit
def _factors(pointer, by_unit, beside, step, b, j, H):
    """A step's values for a (j, b) tile, or (1, b) where units have none of their own; 1 where there is no sequence."""
    row = _row(beside, step)
    if by_unit is None:
        x = tl.load(pointer + (row + b).to(tl.int64), mask=b < step.count, other=1.0)[None, :]
    else:
        x = tl.load(at(pointer, row, b, j, H), mask=there(j, b, H, step.count), other=1.0)
    return x.to(tl.float32)


@triton.jit
def _resets(beside, step, b):
    """Where a step begins anew, (1, b)."""
    return (tl.load(beside.reset + (_row(beside, step) + b).to(tl.int64), mask=b < step.count, other=0) != 0)[None, :]


@triton.jit
def _fresh(beside, step, b, j, H):
    """What a step begins from where it begins anew."""
    row = _first_start(beside) if beside.FRESH_BY_STEP is None else _row(beside, step)
    return read(at(beside.fresh, row, b, j, H), there(j, b, H, step.count))


@triton.jit
def _first_start(beside):
    """The first row of tensors that have one for each sequence."""
    return 0 if beside.starts is None else beside.starts


@triton.jit
def _dropped(beside, b, j, H, live):
    return read(at(beside.dropped, _first_start(beside), b, j, H), live)


@triton.jit
def as_seen(beside, x, b, j, H, live):
    """`dropped` times what a step begins from; or a derivative on its way back."""
    return x if beside.dropped is None else _dropped(beside, b, j, H, live) * x


@triton.jit
def load_seen(beside, output_ptr, h0_ptr, b, k, here, before, H, width):
    """A (k, b) tile of what the products of the step `here` see; the rest as `load_state` of tiles.py."""
    if beside.begins is None:
        x = load_state(output_ptr, h0_ptr, b, k, here, before, H, width)
    else:
        x = tl.load(at(beside.begins, _row(beside, here), b, k, H), mask=there(k, b, H, here.count), other=0.0)
    return x


@triton.jit
def begin_from(beside, before, step, b, j, H):
    """What a step begins from after the state `before`."""
    reset = None if beside.reset is None else _resets(beside, step, b)
    fresh = None if beside.fresh is None else _fresh(beside, step, b, j, H)
    decay = None if beside.decay is None else _factors(beside.decay, beside.DECAY_BY_UNIT, beside, step, b, j, H)
    return begin_of_step(before, reset, fresh, decay)


@triton.jit
def pass_on(beside, end, here, direction, batch, rows, b, j, H):
    """The running state after the step `here` that ended with `end`: what the next one begins from. direction: of time,
    see loop.py; rows: of all steps together."""
    begin = end
    if beside.begins is not None:
        step = following(here, direction, batch, rows)
        begin = begin_from(beside, end, step, b, j, H)
        exists = there(j, b, H, step.count)
        write(at(beside.begins, _row(beside, step), b, j, H), as_seen(beside, begin, b, j, H, exists), exists)
    return begin


@triton.jit
def amount_of(beside, step, b, j, H):
    """How much of what the equations say a step takes over, where not all of it."""
    return _factors(beside.amount, beside.AMOUNT_BY_UNIT, beside, step, b, j, H)


@triton.jit
def end_from(beside, begin, new, step, b, j, H):
    """What a step ends with, the equations having said `new`."""
    amount = None if beside.amount is None else amount_of(beside, step, b, j, H)
    return end_of_step(begin, new, amount, beside.clip)


@triton.jit
def unless(x, nothing):
    """x, or 0 where nothing of it counts: there it may be NaN."""
    return x if nothing is None else tl.where(nothing, 0.0, x)


@triton.jit
def before_grad(beside, through, direct, step, b, j, H):
    """The derivative by the state before a step, from those by what the step's products see, and past them by what it
    begins from; the derivative by the latter in all is kept where asked for."""
    live = there(j, b, H, step.count)
    d_begin = as_seen(beside, through, b, j, H, live) + direct
    if beside.d_begin is not None:
        write(at(beside.d_begin, _row(beside, step), b, j, H), d_begin, live)
    reset = None if beside.reset is None else _resets(beside, step, b)
    decay = None if beside.decay is None else _factors(beside.decay, beside.DECAY_BY_UNIT, beside, step, b, j, H)
    return begin_grad(d_begin, reset, decay)
