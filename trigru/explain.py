"""Which schedule runs, where, and why: for a call at hand, or for a GPU that need not be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .checks import layer_of
from .functional import cell_way, gru, records_of
from .layer import Call, Records
from .modules import GRU, GRUCell
from .operators import site_of
from .planning.plan import plan


@dataclass(frozen=True)
class Explanation:
    """What a GRU does with an input: the schedule that runs, on which device and dtype, and why."""

    schedule: str
    device: torch.device
    dtype: torch.dtype
    variant: str
    reason: str

    def __str__(self) -> str:
        return f"schedule {self.schedule!r}, variant {self.variant!r}, {self.dtype} on {self.device}: {self.reason}"


CELL_REASONS = {
    "cell": "a single step on a CPU has nothing to hoist: torch operations run it, and autograd their derivatives",
    "reference": "under autocast the reference runs a single step on a CPU, so that each of its products is cast",
    "torch": "on a CPU torch's own is faster for so short a sequence",
}


def explain(call: nn.Module | Any, input: Tensor | PackedSequence, *args: Any, **kwargs: Any) -> Explanation:
    """Say which schedule runs, on which device and dtype, and in one sentence why; nothing is computed.

    Args:
        call: a `trigru.GRU`, a `trigru.GRUCell`, or the function `trigru.gru`.
        input: what it would be called with.
        args, kwargs: the other arguments of the call; needed for `trigru.gru` alone, which is planned by its h0.

    Raises:
        TypeError: `call` is none of these.
        RuntimeError: a schedule was asked for by name that cannot run here.

    Example:
        >>> found = trigru.explain(trigru.GRU(8, 16), torch.randn(50, 2, 8))
        >>> found.schedule, found.dtype, found.device
        ('eager', torch.float32, device(type='cpu'))
        >>> found.reason  # doctest: +ELLIPSIS
        '..., so torch operations run'
        >>> print(trigru.explain(trigru.GRU(8, 16), torch.randn(5, 2, 8)).reason)
        on a CPU torch's own is faster for so short a sequence
    """
    if isinstance(call, GRUCell) and isinstance(input, Tensor):
        return _explain_cell(call, input)
    if isinstance(call, GRU):
        records = _of_module(call, input, *args, **kwargs)
    elif call is gru and isinstance(input, Tensor):
        h0 = kwargs["h0"] if "h0" in kwargs else args[0]
        if len(args) < 2 and "w_ih" not in kwargs:  # planned by its state alone
            rows = 3 * h0.shape[1]
            kwargs |= {"w_ih": input.new_empty(rows, input.shape[-1]), "w_hh": input.new_empty(rows, h0.shape[1])}
        records = records_of(input, *args, **kwargs)
    else:
        kind = "a trigru.GRU, a trigru.GRUCell or trigru.gru, the last two with a tensor"
        raise TypeError(f"call: expected {kind}, got {type(call).__name__} and {type(input).__name__}")
    layer, _, given = records
    site = site_of(*records)
    first, *_ = plan(layer, site)
    return Explanation(first.schedule, given.input.device, given.input.dtype, layer.variant, first.reason)


def _of_module(module: GRU, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Records:
    if isinstance(input, PackedSequence):
        return module._records(input.data, hx, input.batch_sizes, input.sorted_indices)
    return module._records(input, hx)


def _explain_cell(cell: GRUCell, input: Tensor) -> Explanation:
    if input.is_cpu:
        way = cell_way(cell.variant)
        return Explanation(way, input.device, input.dtype, cell.variant, CELL_REASONS[way])
    weights = [w for w in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh) if w is not None]
    x = input if input.dim() == 2 else input.unsqueeze(0)
    layer = layer_of(cell.input_size, cell.hidden_size, bias=cell.bias, variant=cell.variant)
    records = Records(layer, weights, Call(x.unsqueeze(0), x.new_zeros(1, x.shape[0], cell.hidden_size)))
    first, *_ = plan(layer, site_of(*records))
    return Explanation(first.schedule, input.device, input.dtype, cell.variant, first.reason)
