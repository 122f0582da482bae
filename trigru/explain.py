"""Which schedule runs, where, and why: for a call at hand, or for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .cell import GRUCell
from .checks import expect_tensor
from .functional import cell_way, gru, records_of
from .layer import Layer, Records
from .modules import GRU
from .operators import site_of
from .options import per_call
from .planning.plan import plan
from .planning.stages import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Arguments


@dataclass(frozen=True)
class Explanation:
    """What a GRU does with an input: the schedule that runs, on which device and dtype, and why; how many kernels of
    the recurrence its forward starts, for all layers and directions, and in how many turns of a full device, None where
    torch operations run."""

    schedule: str
    device: torch.device
    dtype: torch.dtype
    variant: str
    reason: str
    launches: int | None = None
    turns: int | None = None

    def __str__(self) -> str:
        counted = "" if self.launches is None else f", launches {self.launches}, turns {self.turns}"
        place = f"{self.dtype} on {self.device}"
        return f"schedule {self.schedule!r}, variant {self.variant!r}, {place}{counted}: {self.reason}"


class Explanations(dict[str, "Explanation"]):
    """What each GRU of a model does, by its name in the model; printed, a line each."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {found}" for name, found in self.items()) or "no trigru.GRU and no trigru.GRUCell"


CELL_REASONS = {
    "eager": "a single step on a CPU, with products by oneDNN and derivatives by hand",
    "cell": "a single step on a CPU has nothing to hoist: torch operations run it, and autograd their derivatives",
    "dreamer": "torch operations run it, a step at a time as its users do",
    "reference": "under autocast the reference runs a single step on a CPU, so that each of its products is cast",
    "torch": "on a CPU torch's own is faster for so short a sequence",
}


@overload
def explain(call: GRU | GRUCell, input: Tensor | PackedSequence, *args: Any, **kwargs: Any) -> Explanation: ...
@overload
def explain(call: nn.Module, input: Any, *args: Any, **kwargs: Any) -> Explanations: ...
@overload
def explain(call: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Explanation: ...
def explain(call: Any, input: Any, *args: Any, **kwargs: Any) -> Explanation | Explanations:
    """Say which schedule runs, on which device and dtype, and in one sentence why; nothing is computed.

    Args:
        call: a `trigru.GRU`, a `trigru.GRUCell`, or the function `trigru.gru`. Or a model that holds such modules: it
            is called once, as it is, to see what reaches them, and its buffers and torch's random numbers are put back.
        input: what it would be called with.
        args, kwargs: the other arguments of the call; of `trigru.gru`, which is planned by its h0, the weights may be
            left out.

    Returns:
        An Explanation; for a model, one for the first call of each of its modules, by name.

    Raises:
        TypeError: `call` is none of these; an nn.GRU, which `trigru.swap` would turn into one.
        RuntimeError: a schedule was asked for by name that cannot run here.

    Example:
        >>> found = trigru.explain(trigru.GRU(8, 16), torch.randn(50, 2, 8))
        >>> found.schedule, found.dtype, found.device
        ('eager', torch.float32, device(type='cpu'))
        >>> found.reason  # doctest: +ELLIPSIS
        '..., so torch operations run'
        >>> print(trigru.explain(trigru.GRU(8, 16), torch.randn(5, 2, 8)).reason)
        on a CPU torch's own is faster for so short a sequence
        >>> model = nn.Sequential(nn.Linear(4, 8), trigru.GRU(8, 16))
        >>> trigru.explain(model, torch.randn(50, 2, 4))["1"].schedule
        'eager'
    """
    if isinstance(call, GRUCell):
        return _explain_cell(call, expect_tensor("input", input), *args, **kwargs)
    if isinstance(call, GRU):
        records = of_module(call, input, *args, **kwargs)
    elif call is gru:
        input = expect_tensor("input", input)
        h0 = kwargs["h0"] if "h0" in kwargs else next(iter(args), None)
        if len(args) < 2 and "w_ih" not in kwargs:  # planned by its state alone
            if not isinstance(h0, Tensor) or h0.dim() != 2:
                got = f"{tuple(h0.shape)}" if isinstance(h0, Tensor) else type(h0).__name__
                raise TypeError(f"h0: expected a tensor (batch, hidden_size) where no weights are given, got {got}")
            rows = 3 * h0.shape[1]
            kwargs |= {"w_ih": input.new_empty(rows, input.shape[-1]), "w_hh": input.new_empty(rows, h0.shape[1])}
        records = records_of(input, *args, **kwargs)
    elif isinstance(call, nn.Module) and not isinstance(call, (nn.RNNBase, nn.RNNCellBase)):
        return _of_model(call, input, *args, **kwargs)
    else:
        kind = "a trigru.GRU, a trigru.GRUCell, a model of them or trigru.gru"
        got = f"{type(call).__module__}.{type(call).__qualname__}"
        raise TypeError(f"call: expected {kind}, got {got}; trigru.swap makes nn.GRU a trigru.GRU")
    layer, _, given = records
    site = site_of(*records)
    return _explanation(plan(layer, site), given.input, layer, site.seq_len)


def _explanation(found: Plan, input: Tensor, layer: Layer, seq_len: int) -> Explanation:
    launches = found.launches(seq_len)
    return Explanation(found.schedule, input.device, input.dtype, layer.variant, found.reason, launches, found.turns)


def of_module(
    module: GRU, input: Tensor | PackedSequence, hx: Tensor | None = None, **arguments: Unpack[Arguments]
) -> Records:
    """The records of a module's call."""
    given = per_call(**arguments)
    rows = input.data if isinstance(input, PackedSequence) else input
    devices = [rows.device] if rows.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=module.training), _kept(module):  # of a call's own masks
        if isinstance(input, PackedSequence):
            return module._records(input.data, hx, input.batch_sizes, input.sorted_indices, given)
        return module._records(input, hx, given=given)


def _of_model(model: nn.Module, *args: Any, **kwargs: Any) -> Explanations:
    found = Explanations()
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (GRU, GRUCell)):

            def look(called: Any, given: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
                if name not in found:
                    found[name] = explain(called, *given, **named)

            hooks.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        with torch.random.fork_rng(), _kept(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Put its buffers back in the end, those that a parametrization steps on included."""
    changing = torch.is_inference_mode_enabled()  # outside it none can change that was made within
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers() if changing or not buffer.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _explain_cell(cell: GRUCell, input: Tensor, hx: Tensor | None = None) -> Explanation:
    dreamer = cell.variant == "dreamer"
    with _kept(cell):
        weights = cell._weights()
    x, h = cell._rows(input, hx, weights[0])
    if h.layout != torch.strided:
        raise RuntimeError(f"hx: expected a strided tensor, got one of layout {h.layout}")
    if x.layout != torch.strided:  # of which cells take a step on a CPU
        x = x.to_dense()
    records = records_of(x.unsqueeze(0), h, *weights, variant="torch" if dreamer else cell.variant)  # for its checks
    if dreamer:
        return Explanation("cell", input.device, input.dtype, cell.variant, CELL_REASONS["dreamer"])
    if input.is_cpu:
        way = cell_way(cell.variant, x.shape[0], cell.input_size, cell.hidden_size, x.dtype)
        return Explanation(way, input.device, input.dtype, cell.variant, CELL_REASONS[way])
    layer, _, given = records
    return _explanation(plan(layer, site_of(*records)), given.input, layer, 1)
