"""Resets and flags of amounts as words, laid out by batch tiles: for programs that run all of a tile by themselves.

    (sides, tiles, 1 + T + 1, BLOCK_B) int16        what a word says: see `word` in per_launch.py

Rows of whole tiles are loaded several at once, without a mask; rows without a sequence reset a state and carry it on.
The steps before the first and behind the last let a kernel load ahead, and say what forward begins with.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn.functional import pad

from .config import cdiv
from .loop import time_of
from .per_launch import in_rows, word
from .per_step import Amount, Beginning, absent, fresh_once
from .recurrence import Operands, PerStep


def arguments(operands: Operands, block_b: int, after: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Of the arguments in per_launch.py those that are told by words: resets, flags of amounts or both. after: as
    `in_words` has it. Empty where there are no such words."""
    per = operands.per_step or PerStep()
    given = [x for x in (per.reset, per.amount) if x is not None]
    if not (given and in_rows(operands)):
        return {}
    sides, seq_len, batch = operands.sides, operands.steps.seq_len, operands.h0.shape[-2]
    tiles = cdiv(batch, block_b)

    def tiled(flags: torch.Tensor, other: bool) -> torch.Tensor:
        return pad(flags.view(sides, seq_len, batch), (0, tiles * block_b - batch, 1, 1), value=other)

    reset = tiled(torch.zeros_like(given[0]) if per.reset is None else per.reset, True)
    amount = tiled(torch.ones_like(given[0]) if per.amount is None else per.amount, False)
    if after is not None:
        reset = torch.stack([x.roll(-way, 0) for x, way in zip(reset, after, strict=True)])
    words = word(reset, amount).view(sides, seq_len + 2, tiles, block_b).transpose(1, 2).contiguous()
    found = {"reset_ptr": per.reset, "amount_ptr": per.amount}
    return {name: words for name, x in found.items() if x is not None}


@triton.constexpr_function
def in_words(amount, reset):
    """Whether a Beside's are these words."""
    given = amount if reset is None else reset
    return given is not None and given.dtype.element_ty == tl.int16


class Words(NamedTuple):
    """Where a step's lie, and how many elements further forward's next one."""

    at: Any
    further: Any


@triton.jit
def words_of(beside, i, T, direction, BLOCK_B: tl.constexpr):
    """Those of the step that forward takes as number i, from -1 on, of this program's tile."""
    if in_words(beside.amount, beside.reset):
        pointer = beside.amount if beside.reset is None else beside.reset
        tile = tl.program_id(0).to(tl.int64)
        if beside.behind is not None:
            tile += tl.program_id(1).to(tl.int64) * tl.num_programs(0)
        step = tile * (T + 2) + 1 + time_of(i, T, direction)
        return Words(pointer + step * BLOCK_B, direction * BLOCK_B)
    else:
        return Words((), ())


@triton.jit
def later(words, STEPS: tl.constexpr = 1):
    """Those of a later step of forward's, or of an earlier one."""
    if absent(words.at):
        return words
    else:
        return Words(words.at + STEPS * words.further, words.further)


@triton.jit
def later_if(words, STEPS: tl.constexpr, there):
    """The same where that step is `there`, else these."""
    return words if absent(words.at) else Words(words.at + tl.where(there, STEPS * words.further, 0), words.further)


@triton.jit
def load_words(words, BLOCK_B: tl.constexpr):
    """(1, BLOCK_B); or nothing."""
    return () if absent(words.at) else tl.load(words.at + tl.arange(0, BLOCK_B))[None, :]


@triton.jit
def amount_by(beside, loaded):
    """An Amount."""
    return Amount(() if beside.amount is None else loaded, ())


@triton.jit
def beginning_by(beside, loaded, place):
    """A Beginning."""
    return Beginning(() if beside.reset is None else loaded, fresh_once(beside, place), ())
