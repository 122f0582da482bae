"""What launches take of what a step does beside the equations (see PerStep in recurrence.py): arguments by name, the
memory that goes with them, and the words that tell several at once. per_step.py has what kernels make of it."""

from typing import Any

import torch
from torch import Tensor

from .counters import written
from .masks import threshold
from .prologue import State, prologue
from .recurrence import Derivatives, Operands, PerStep


def arguments(operands: Operands) -> dict[str, Any]:
    """What every kernel that begins or ends a step takes of it, by name. All None where there is nothing."""
    per = operands.per_step or PerStep()
    return {
        "reset_ptr": _as_bytes(per.reset),
        "fresh_ptr": None if per.reset is None else per.fresh,
        "decay_ptr": per.decay,
        "amount_ptr": _as_bytes(per.amount),
        "dropped_ptr": per.dropped,
        "seed_ptr": per.seed,
        "zoneout_below": None if per.seed is None else threshold(per.zoneout),
    }


def of_masks(operands: Operands) -> dict[str, Any]:
    """What kernels of whole sequences take too, for masks of what the products see, which they make themselves."""
    per = operands.per_step or PerStep()
    return {"dropped_below": threshold(per.recurrent_dropout) if per.drops_by_seed else None}


def with_masks(operands: Operands) -> Operands:
    """The same with those masks written, by a launch of its own, for kernels that have nothing from one tile and step
    to the next: they would make them at each, at 18 % more instructions of a step (H 256, B 32) than to read them."""
    per, (*_, batch, hidden_size) = operands.per_step, operands.h0.shape
    if per is None or per.dropped is None or not per.drops_by_seed:
        return operands
    made = written(per.dropped, batch, hidden_size, per.recurrent_dropout)
    return operands._replace(per_step=per._replace(dropped=made))


def in_words(operands: Operands, after: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Of `arguments` the amount, where steps have resets and flags of amounts and little else: a `word` for each row,
    so that one load does. after: of each direction 1 or -1, as forward takes the steps; then the resets are those of
    the step behind. Empty where there are no such words."""
    per = operands.per_step or PerStep()
    reset, amount = per.reset, per.amount
    if reset is None or amount is None or not in_rows(operands):
        return {}
    if after is not None:
        each, batch = reset.view(len(after), -1), operands.h0.shape[-2]
        none = torch.zeros_like(each[0, :batch])
        moved = [
            torch.cat([x[batch:], none] if way > 0 else [none, x[:-batch]]) for way, x in zip(after, each, strict=True)
        ]
        reset = torch.stack(moved).view_as(reset)
    return {"amount_ptr": word(reset, amount)}


def in_rows(operands: Operands) -> bool:
    """Whether steps have resets and flags of amounts, (N,), and little else."""
    per, has_units = operands.per_step or PerStep(), operands.h0.dim()
    flags = per.amount is None or (per.amount.dtype == torch.bool and per.amount.dim() < has_units)
    by_step = per.fresh is not None and per.fresh.shape[-2] == operands.steps.num_rows
    return flags and not by_step and per.decay is per.clip is per.seed is None


def word(reset: Tensor, amount: Tensor) -> Tensor:
    """Both flags in 16 bits, to be told by a comparison for each: of the numbers from 0 to 0xFFFF those from 0xA000 on
    carry the state on, and those from 0x8000 to 0xBFFF reset, which are the least if they have a sign."""
    words = torch.where(reset, torch.where(amount, -0x8000, -0x5000), torch.where(amount, 0, -1))
    return words.to(torch.int16)


def _as_bytes(x: Tensor | None) -> Tensor | None:
    """Flags as kernels load them: Triton would convert them at once."""
    return x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x


def alone_arguments(operands: Operands) -> dict[str, Any]:
    """Those of forward's kernels whose programs show each other nothing.

    Raises:
        ValueError: packed sequences, whose steps do nothing beside the equations.
    """
    if operands.per_step is not None and operands.steps.packed:
        raise ValueError("per_step: expected padded sequences with it, got packed ones")
    return arguments(operands) | {"clip": None if operands.per_step is None else operands.per_step.clip}


def forward_arguments(operands: Operands) -> dict[str, Any]:
    """Those of other kernels of forward.

    Raises:
        ValueError: as `alone_arguments`; begins missing, or for nothing.
    """
    per, found = operands.per_step or PerStep(), alone_arguments(operands)
    if per.carries != (per.begins is not None):
        raise ValueError(f"begins: expected {'a tensor' if per.carries else 'None'}, got {type(per.begins).__name__}")
    return found | {"begins_ptr": per.begins}


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
    """The running state that forward starts with, in float32; what the first step's products see is written."""
    h0, per, steps = operands.h0, operands.per_step, operands.steps
    state = torch.empty_like(h0, dtype=torch.float32)
    prologue(state=State(state, h0))
    if per is None or per.begins is None:
        return state
    batch, num_rows = h0.shape[-2], steps.num_rows
    for side in range(operands.sides):
        own, begin, back = (per, state, reverse) if operands.sides == 1 else (per.side(side), state[side], side == 1)
        first = own.rows(slice(num_rows - batch, None) if back else slice(batch), num_rows)
        begin.copy_(first.begun(begin))
        assert first.begins is not None
        first.begins.copy_(first.seen(begin, batch))
    return state


def last_state(state: Tensor, operands: Operands) -> Tensor | None:
    """h_n of the running state at the end, where it is asked for and that is no step's beginning."""
    if operands.h_n is None or operands.begins is not None:
        return None
    prologue(state=State(operands.h_n, state))
    return operands.h_n
