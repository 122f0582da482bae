"""What the operators compute: a layer by the plan's schedules, or by the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import reference
from ..blocks import whole_weights
from ..checks import batch_sizes_of
from ..layer import NOTHING, Call, Given, Layer, time_major
from ..planning import invariant
from ..planning.plan import KERNELS, Site, plan, precision_of, shared_devices
from ..planning.stages import Plan
from ..schedules import stack
from ..schedules.part import Part, Run
from ..schedules.per_step import as_options, does_more, names
from ..schedules.unsquash import share_of_input
from .schema import Backward, Recorded


def site_of(layer: Layer, call: Call, *, recording: bool = False, plain: bool = False) -> Site:
    """Where and how the layer is called."""
    input, hx, batch_sizes, *_ = call
    seq_len = input.shape[1 if layer.batch_first else 0] if batch_sizes is None else batch_sizes.shape[0]
    site = Site(input.device, input.dtype, seq_len, hx.shape[1], batch_sizes is not None, recording, plain)
    return site._replace(given=names(layer, call)) if does_more(layer, call) else site


def forward(recorded: Recorded, by: Plan | None = None, again: Again | None = None) -> stack.Result:
    """By a plan, or by the one that is made here. again: what repeats the call, of `repeated`."""
    layer, weights, call, first_kept = recorded
    if by is None:
        by = plan(layer, site_of(layer, call, recording=first_kept < layer.num_layers))
    if call.zeros and by.schedule not in KERNELS:
        call.hx.zero_()

    def run(tensors: Sequence[Any]) -> tuple[Any, ...]:
        input, hx, *own = tensors
        return tuple(stack.forward(layer, own, call._replace(input=input, hx=hx), by, first_kept))

    tensors: Sequence[Any] = (call.input, call.hx, *weights)
    if by.schedule in KERNELS:
        tensors, call = _as_in_memory(tensors), _others_in_memory(call)
    return stack.Result(*(run(tensors) if again is None else again(run, tensors)))


def _as_in_memory(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Tensors whose memory holds their values: kernels see nothing of a bit by which torch reads them negated."""
    return [x.resolve_neg() if x is not None and x.is_neg() else x for x in tensors]


def _others_in_memory(call: Call) -> Call:
    """What a call brings beside input and hx."""
    if call.gain is not None:
        call = call._replace(gain=call.gain.resolve_neg())
    return call if call.given is NOTHING else call._replace(given=Given.of(_as_in_memory(call.given)))


def backward(
    backward: Backward, *, alone: bool = False, note: Callable[[Again], None] | None = None
) -> list[Tensor | None]:
    """Derivatives by input, hx, the weights and what else `needs` has a place for, as far as they are asked for. alone:
    nobody looks on. note: is told what repeats it."""
    (layer, weights, call, first_kept), grad_output, grad_h_n, reserve, _, needs = backward
    by = plan(layer, site_of(layer, call), "backward")
    given = 2 + len(weights)

    def run(tensors: Sequence[Any]) -> list[Tensor | None]:
        grad_output, grad_h_n, input, hx, *others = tensors
        own, kept = others[: len(weights)], others[len(weights) :]
        wanted = stack.Wanted(grad_output, grad_h_n, needs[:given], needs[given:])
        return stack.backward(layer, own, call._replace(input=input, hx=hx), by, first_kept, kept, wanted)

    tensors: Sequence[Any] = (grad_output, grad_h_n, call.input, call.hx, *weights, *reserve)
    if by.schedule in KERNELS:
        tensors, call = _as_in_memory(tensors), _others_in_memory(call)
    again = repeated(backward.forward, by, tensors, needs) if alone else None
    if again is not None and note is not None:
        note(again)
    return run(tensors) if again is None else again(run, tensors)


KINDS = 256
"""Kinds of calls that are remembered."""
_kinds: dict[tuple[Any, ...], tuple[Any, Plan]] = {}  # a plan is known by its identity, and so must stay
_LARGEST = 1 << 24
"""Values of gates up to which a call is repeated: where there are more the device takes longer than the host."""


class Again(Protocol):
    """`trigru.schedules.repeat.Repeated`, which imports Triton."""

    again: Callable[..., Any] | None

    def __call__(self, function: Callable[..., Any], tensors: Sequence[Tensor | None]) -> Any: ...
    def refused(self, error: RuntimeError) -> None: ...


def repeated(
    recorded: Recorded, by: Plan, tensors: Sequence[Tensor | None] = (), needs: Sequence[bool] = ()
) -> Again | None:
    """What repeats calls of this kind as they were noted (see `trigru.schedules.repeat`), or None where none is; asked
    for where nobody looks on. tensors, needs: of backward."""
    layer, weights, call, first_kept = recorded
    tensors = tensors or (call.input, call.hx, *weights)
    if not call.input.is_cuda or call.batch_sizes is not None or does_more(layer, call) or by.schedule not in KERNELS:
        return None
    shape = call.input.shape
    if shape[0] * shape[1] * layer.parts * layer.hidden_size > _LARGEST:
        return None
    address, strides = 0, [None if x is None else x.stride() for x in tensors]
    for x in tensors:
        if x is not None:
            if x.is_neg():
                return None
            address |= x.data_ptr()
    launch, repeat = _lazily()
    if address % 16 or (around := launch.circumstances()) is None:
        return None
    kind = (layer, first_kept, shape, call.input.dtype, call.input.device, precision_of(call.input.dtype))
    kind = (*kind, id(by), invariant.is_on(), around, call.zeros, *strides, *needs)
    known = _kinds.get(kind)
    if known is None:
        if len(_kinds) >= KINDS:
            _kinds.clear()
        known = _kinds[kind] = repeat.Repeated(), by
    return known[0]


def forget() -> None:
    """Let each call be noted anew."""
    _kinds.clear()


def circumstances() -> tuple[Any, ...] | None:
    """What a call on a GPU depends on beside its own arguments; None where it is not repeated."""
    around = _lazily()[0].circumstances()
    return None if around is None else (around, invariant.is_on(), shared_devices())


@functools.cache
def _lazily() -> tuple[ModuleType, ModuleType]:
    """They import Triton."""
    from ..kernels import launch
    from ..schedules import repeat

    return launch, repeat


def by_reference(
    layer: Layer, weights: Sequence[Tensor], call: Call, masks: Sequence[Tensor | None] = ()
) -> tuple[Tensor, Tensor]:
    """(output, h_n) by the reference implementation; `masks` as `reference.stack` takes them."""
    invariant.refuse("the reference implementation")
    if call.batch_sizes is not None:
        batch_sizes_of(call)
    output, h_n = reference.stack(
        time_major(layer, call, call.input),
        call.hx,
        [layer.weights_of(whole_weights(layer, weights), part, call.gain) for part in range(layer.parts)],
        variant=layer.variant,
        bidirectional=layer.bidirectional,
        reverse=layer.reverse,
        batch_sizes=call.batch_sizes,
        masks=masks,
        options=as_options(layer, call),
    )
    return time_major(layer, call, output), h_n


def by_torch(layer: Layer, weights: Sequence[Tensor], call: Call) -> tuple[Tensor, Tensor]:
    """(output, h_n) of a padded call by torch's own GRU, variant "torch"."""
    dim = 1 if layer.batch_first else 0
    x = call.input.flip(dim) if layer.reverse else call.input
    output, h_n = torchs_own(layer, whole_weights(layer, weights), x, call.hx)
    return output.flip(dim) if layer.reverse else output, h_n


def torchs_own(layer: Layer, weights: list[Tensor], input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """(output, h_n) of a padded call, not of one direction from the end, by torch's own GRU."""
    return torch.gru(
        input,
        hx,
        weights,
        layer.bias,
        layer.num_layers,
        layer.dropout,
        layer.dropout > 0,
        layer.bidirectional,
        layer.batch_first,
    )


def without_input(
    layer: Layer, weights: Sequence[Tensor], call: Call, kept: Sequence[Tensor]
) -> tuple[Call, list[Tensor]]:
    """A call of the same results and derivatives, where all that is known of the input is what the first layer's gates
    tell. kept: its gates, (D, N, values * H), and states.

    The input's share of the pre-activations becomes the input, beside zeros that have the input's derivative; weights
    of ones pass it on."""
    steps = stack.steps_of(layer, call)
    width, size = 4 if layer.bias else 2, 3 * layer.hidden_size
    of_input = weights[: width * layer.directions : width]
    with torch.no_grad():
        shares = []
        choice = plan(layer, site_of(layer, call)).stages[0].choice
        gates, states = kept
        all_states = stack.as_rows(layer, call, states).chunk(layer.directions, 1)
        for direction in range(layer.directions):
            part = Part(choice, layer.variant, layer.runs_backwards(direction))
            run = Run(call.input, call.hx[direction], steps, all_states[direction], gates[direction])
            shares.append(share_of_input(part, layer.weights_of(weights, direction), run))
        known = torch.cat(shares, 1)
    x = time_major(layer, call, call.input)
    zeros = torch.nn.functional.linear(x - x.detach(), torch.cat(list(of_input)))
    ones = torch.eye(size * layer.directions, dtype=known.dtype, device=known.device)
    given = list(weights)
    given[: width * layer.directions : width] = ones.split(size)
    return call._replace(input=known.view(zeros.shape) + zeros), given
