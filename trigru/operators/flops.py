"""Floating-point operations of a call, for torch.utils.flop_counter: those of its products, two a multiplication.

As nn.GRU's are counted where torch's own operations run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from .schema import GAIN

Shape = Sequence[int]

GATES = 3
_BEFORE_MEMORY = 6  # options between num_layers and memory, see schema.py


def register(flop_counter: ModuleType) -> None:
    """With torch.utils.flop_counter."""
    operators = torch.ops.trigru
    flop_counter.register_flop_formula(operators.gru)(_forward)
    flop_counter.register_flop_formula(operators.gru_backward)(_backward)


def _rows(input: Shape) -> int:
    """Rows of all steps together, of the shape of a call's input."""
    return input[0] * input[1] if len(input) == 3 else input[0]


def _products(hx: Shape, weights: Sequence[Shape]) -> list[tuple[int, int]]:
    """Of each layer and direction, multiplications of a row with w_ih and with w_hh."""
    parts, _, hidden_size = hx
    width = len(weights) // parts
    of_input, of_state = ([GATES * hidden_size * w[1] for w in weights[first::width]] for first in (0, 1))
    return list(zip(of_input, of_state, strict=True))


def _forward(input: Shape, hx: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * _rows(input) * sum(own + recurrent for own, recurrent in _products(hx, weights))


def _backward(
    _grad_output: Shape,
    _grad_h_n: Shape,
    input: Shape,
    hx: Shape,
    weights: Sequence[Shape],
    _batch_sizes: Shape,
    _reserve: Sequence[Shape],
    num_layers: int,
    *options: Any,
    **__: Any,
) -> int:
    memory, first_kept, _has_input, needs, *given = options[_BEFORE_MEMORY:]
    normalised = len(given) > GAIN and given[GAIN] is not None
    again = (memory == "recompute") + normalised  # for the gates, and for what was normalised
    need_input, need_hx, *need_weights = needs[: 2 + len(weights)]
    parts, batch, _ = hx
    width, rows, total = len(weights) // parts, _rows(input), 0
    below = need_input or need_hx
    for part, (own, recurrent) in enumerate(_products(hx, weights)):
        layer = part * num_layers // parts
        if layer < first_kept:
            continue
        above_lowest = below or any(need_weights[: layer * width * parts // num_layers])
        to_input = need_input if layer == 0 else above_lowest
        need_ih, need_hh = need_weights[width * part : width * part + 2]
        if not (to_input or need_hx or any(need_weights[width * part : width * (part + 1)])):
            continue
        # The recurrence ends at the first step unless the derivative by hx is asked for.
        total += own * rows * (to_input + need_ih) + recurrent * (rows * need_hh + rows - (0 if need_hx else batch))
        total += again * (own + recurrent) * rows
    return 2 * total
