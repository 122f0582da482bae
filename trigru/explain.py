"""Which schedule runs, where, and why: for a call at hand, or for a GPU that need not be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .functional import cell_way, gru
from .modules import GRU, GRUCell
from .planning.plan import choose, torch_serves


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
    if isinstance(input, PackedSequence):
        data, sizes, packed = input.data, (len(input.batch_sizes), int(input.batch_sizes[0])), True
    else:
        data, packed = input, False
        sizes = (data.shape[0], data.shape[1] if data.dim() == 3 else 1)
        if isinstance(call, GRU) and call.batch_first and data.dim() == 3:
            sizes = sizes[::-1]
    if call is gru:
        h0 = kwargs["h0"] if "h0" in kwargs else args[0]
        variant, schedule = kwargs.get("variant", "torch"), kwargs.get("schedule", "auto")
        hidden_size = h0.shape[1]
        sizes = (sizes[0], h0.shape[0])
    elif isinstance(call, GRU):
        variant, schedule, hidden_size = call.variant, call.schedule, call.hidden_size
    elif isinstance(call, GRUCell):
        variant, schedule, hidden_size = call.variant, "auto", call.hidden_size
        sizes = (1, 1 if data.dim() == 1 else data.shape[0])
        if data.is_cpu and (way := cell_way(variant)) in CELL_REASONS:
            return Explanation(way, data.device, data.dtype, variant, CELL_REASONS[way])
    else:
        raise TypeError(f"call: expected a trigru.GRU, a trigru.GRUCell or trigru.gru, got {type(call).__name__}")
    seq_len, batch = sizes
    single = isinstance(call, GRUCell) and data.is_cpu
    keeps = kwargs.get("memory", getattr(call, "memory", "keep")) == "keep"
    facts = {"device": data.device, "dtype": data.dtype, "variant": variant, "schedule": schedule}
    training = torch.is_grad_enabled() and _takes_gradients(call, data, *args, *kwargs.values())
    if single or (not packed and keeps and torch_serves(seq_len, batch, hidden_size, training=training, **facts)):
        reason = "on a CPU torch's own is faster for so short a sequence"
        return Explanation("torch", data.device, data.dtype, variant, reason)
    plan = choose(schedule, data.device, data.dtype, batch, hidden_size, variant=variant)
    return Explanation(plan.schedule, data.device, data.dtype, variant, plan.reason)


def _takes_gradients(*parts: Any) -> bool:
    """Whether a gradient can be asked for of a module or tensor among them."""
    tensors = [x for part in parts for x in (part.parameters() if isinstance(part, nn.Module) else [part])]
    return any(isinstance(x, Tensor) and x.requires_grad for x in tensors)
