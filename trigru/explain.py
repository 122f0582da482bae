"""`trigru.explain`: which schedule runs, where, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .functional import gru
from .modules import GRU, GRUCell
from .plan import choose


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
        >>> trigru.explain(trigru.GRU(8, 16), torch.randn(5, 2, 8)).schedule
        'eager'
    """
    data = input.data if isinstance(input, PackedSequence) else input
    if call is gru:
        h0 = kwargs["h0"] if "h0" in kwargs else args[0]
        variant, schedule = kwargs.get("variant", "torch"), kwargs.get("schedule", "auto")
        batch, hidden_size = h0.shape
    elif isinstance(call, GRU):
        variant, schedule, hidden_size = call.variant, call.schedule, call.hidden_size
        if isinstance(input, PackedSequence):
            batch = int(input.batch_sizes[0])
        else:
            batch = 1 if input.dim() == 2 else input.shape[0 if call.batch_first else 1]
    elif isinstance(call, GRUCell):
        variant, schedule, hidden_size = call.variant, "auto", call.hidden_size
        batch = 1 if data.dim() == 1 else data.shape[0]
    else:
        raise TypeError(f"call: expected a trigru.GRU, a trigru.GRUCell or trigru.gru, got {type(call).__name__}")
    plan = choose(schedule, data.device, data.dtype, batch, hidden_size)
    return Explanation(plan.schedule, data.device, data.dtype, variant, plan.reason)
