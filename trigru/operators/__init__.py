"""The operators `torch.ops.trigru.gru` and `gru_backward`: all layers and directions of a call; see `schema`.

Backward is an operator of its own, so that a compiler sees it whole; its own derivative goes through the reference
implementation. What torch asks of an operator has a file each: `schema`, `derivative`, `batching`, `flops`,
`sharding`; `compute` is what runs. No module and no user's argument is known here.

`gru` below, which everything else calls, has four ways: the operator; where nothing but plain eager execution looks on,
the same schedules without the dispatcher's Python layers, or torch's own GRU; and the reference, for derivatives that
the operators do not have (forward mode, torch.func).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check
from ..layer import NOTHING, Call, Layer, differentiable, time_major
from ..planning.invariant import is_on
from ..planning.plan import Site, plan
from ..schedules.cudnn import unspent
from ..schedules.per_step import of_parts
from ..schedules.reserve import empty_reserve
from ..schedules.stack import new_output
from . import batching, compute, derivative, flops, known, sharding
from .known import Asked
from .late import when_imported
from .plain import has_tangent, is_batched, is_plain, is_transformed
from .schema import Recorded, flat, new_library, recorded, recorded_backward

LIBRARY = new_library()


def tensors_of(weights: Sequence[Tensor], call: Call) -> tuple[Tensor | None, ...]:
    """All that may take a gradient."""
    return (call.input, call.hx, *weights, *differentiable(call))


def _refuse_tangents(name: str, tensors: Sequence[Tensor | None]) -> None:
    """Inside an operator tangents would be dropped without a word: raise instead."""
    if has_tangent(tensors):
        raise NotImplementedError(f"torch.ops.trigru.{name} has no forward-mode derivative; trigru.gru has")


def _forward(*arguments):  # type: ignore[no-untyped-def]
    """`torch.ops.trigru.gru`."""
    call = recorded(*arguments)
    _refuse_tangents("gru", tensors_of(call.weights, call.call))
    check(call.layer, call.weights, call.call)
    return tuple(compute.forward(call))


def _backward(*arguments):  # type: ignore[no-untyped-def]
    """`torch.ops.trigru.gru_backward`."""
    call = recorded_backward(*arguments)
    _, weights, given, _ = call.forward
    _refuse_tangents("gru_backward", (call.grad_output, call.grad_h_n, *tensors_of(weights, given)))
    found = compute.backward(call._replace(reserve=unspent(call.reserve)))  # an operator changes none of its arguments
    d_input, d_hx, *d_weights = [given.hx.new_empty(0) if d is None else d for d in found]
    return d_input, d_hx, d_weights


def _forward_fake(*arguments):  # type: ignore[no-untyped-def]
    layer, _, call, first_kept = recorded(*arguments)
    output = new_output(layer, call, layer.hidden_size * layer.directions)
    return output, call.hx.new_empty(call.hx.shape), empty_reserve(layer, call, first_kept)


def _backward_fake(*arguments):  # type: ignore[no-untyped-def]
    call = recorded_backward(*arguments)
    layer, weights, given, _ = call.forward
    need_input, need_hx, *need_weights = call.needs
    nothing = given.hx.new_empty(0)
    return (
        new_output(layer, given, given.input.shape[-1]) if need_input else nothing,
        given.hx.new_empty(given.hx.shape) if need_hx else nothing.clone(),
        [
            x.new_empty(x.shape) if need and x is not None else nothing.clone()
            for x, need in zip((*weights, *differentiable(given)), need_weights, strict=False)
        ],
    )


def _without_autocast(operator: Callable, key: str) -> Callable:
    """The operator with autocast off inside: its arguments have been cast by `trigru.autocast`."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(*args):  # type: ignore[no-untyped-def]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*args)

    return call


def _register() -> None:
    operators = {
        "gru": (_forward, _forward_fake, derivative.backward_of_forward, derivative.setup_forward, batching.forward),
        "gru_backward": (
            _backward,
            _backward_fake,
            derivative.backward_of_backward,
            derivative.setup_backward,
            batching.backward,
        ),
    }
    for name, (compute_, fake, backward, setup, batched) in operators.items():
        LIBRARY.impl(name, compute_, "CompositeExplicitAutograd")
        torch.library.register_fake(f"trigru::{name}", fake, lib=LIBRARY)
        torch.library.register_autograd(f"trigru::{name}", backward, setup_context=setup, lib=LIBRARY)
        torch.library.register_vmap(f"trigru::{name}", batched, lib=LIBRARY)
        for key in ("AutocastCPU", "AutocastCUDA"):
            LIBRARY.impl(name, _without_autocast(getattr(torch.ops.trigru, name).default, key), key)


_register()
when_imported("torch.utils.flop_counter", flops.register)
when_imported("torch.distributed.tensor", partial(sharding.register, LIBRARY))


class _GRU(torch.autograd.Function):
    """The operator `gru` and its derivative without the dispatcher, whose Python layers cost some 100 us a call."""

    @staticmethod
    def forward(ctx, forward: Recorded, run, has_input, batch_sizes, input, shape, hx, *others):  # type: ignore[no-untyped-def]
        result = run(forward)
        if not has_input:
            forward = forward._replace(call=forward.call._replace(input=shape))
        derivative.save(ctx, derivative.with_own_state(forward), result, has_input)
        return result.output, result.h_n

    @staticmethod
    def backward(ctx, grad_output, grad_h_n):  # type: ignore[no-untyped-def]
        *_, need_input, has_shape, need_hx = ctx.needs_input_grad[:7]
        needs = [need_hx, *ctx.needs_input_grad[7:]]
        needs = [need_input, *needs]
        d_input, *others = derivative.differentiate(ctx, grad_output, grad_h_n, needs)
        compiled = has_shape and torch.compiler.is_compiling()  # compiled autograd adds up, and knows no None
        return None, None, None, None, d_input, torch.zeros_like(d_input) if compiled else None, *others


class _Again(torch.autograd.Function):
    """`_GRU` of a call like one before."""

    @staticmethod
    def forward(ctx, found, zeros, *tensors):  # type: ignore[no-untyped-def]
        ctx.known = found
        output, h_n, reserve = found(zeros, *tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *reserve, output)
        return output, h_n

    @staticmethod
    def backward(ctx, grad_output, grad_h_n):  # type: ignore[no-untyped-def]
        needs = ctx.needs_input_grad[2:]
        return None, None, *derivative.differentiate_known(ctx, grad_output, grad_h_n, needs, ctx.known)


# Without what looks for torch.func's tensors, none of which takes the short way.
_apply_again = super(torch.autograd.Function, _Again).apply

# What a profiler shows.
for _function in (_GRU, _Again):
    _function.__name__ = "trigru::gru"
    _function._backward_cls.__name__ = "trigru::gruBackward"  # type: ignore[attr-defined]


def site_of(layer: Layer, weights: Sequence[Tensor], call: Call) -> Site:
    """Where and how a call runs, which the plan goes by."""
    tensors = tensors_of(weights, call)
    recording = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return compute.site_of(layer, call, recording=recording, plain=is_plain(tensors))


def _first_kept(layer: Layer, weights: Sequence[Tensor], call: Call) -> int:
    """The lowest layer that takes part in a gradient. cuDNN goes back through all of them."""
    if layer.schedule == "cudnn" or call.input.requires_grad or call.hx.requires_grad:
        return 0
    others = () if call.given is NOTHING and call.gain is None else differentiable(call)
    if any(x is not None and x.requires_grad for x in others):
        return 0
    for index, weight in enumerate(weights):
        if weight.requires_grad:
            return index * layer.num_layers // len(weights)
    return layer.num_layers


key_of = known.key_of
_benchmark = torch._C._get_cudnn_benchmark


def _at_first_call(layer: Layer, weights: Sequence[Tensor], call: Call, site: Site) -> None:
    from ..tune import at_first_call  # imports this module

    at_first_call(layer, weights, call, site)


def gru(layer: Layer, weights: Sequence[Tensor], call: Call, asked: Asked | None = None) -> tuple[Tensor, Tensor]:
    """(output, h_n) of all layers and directions; gate values are kept only where a gradient can be asked for.

    The caller has checked that everything fits: `trigru.checks`. asked: what calls like it will be known by."""
    if is_transformed() or (not torch.compiler.is_compiling() and has_tangent(tensors_of(weights, call))):
        return compute.by_reference(layer, weights, call, _drawn(layer, call))
    if layer.dropout and is_batched():
        return _layer_by_layer(layer, weights, call)
    site = site_of(layer, weights, call)
    # What is traced is compared with a trace without gradients, and must not differ from it.
    recording = site.recording or torch._C._get_tracing_state() is not None
    first_kept = _first_kept(layer, weights, call) if recording else layer.num_layers
    forward = Recorded(layer, weights, call, first_kept)
    if not site.plain:
        return torch.ops.trigru.gru(*flat(forward))[:2]
    if _benchmark() and layer.schedule == "auto" and not is_on():
        _at_first_call(layer, weights, call, site)
    by = plan(layer, site)
    if by.schedule == "torch":
        return compute.by_torch(layer, weights, call)
    again = None if torch.autograd._profiler_enabled() and not site.recording else compute.repeated(forward, by)
    if site.recording:
        if by_cudnn := by.schedule == "cudnn":
            forward = forward._replace(first_kept=0)
        has_input = by_cudnn or derivative.reads_input(forward, [w.requires_grad for w in weights])
        shape = None if has_input else derivative.Shape.apply(call.input)
        given = () if call.given is NOTHING and call.gain is None else differentiable(call)
        run = partial(compute.forward, by=by, again=again)
        if asked is not None and again is not None and has_input:
            known.remember(asked, known.Known(again, layer, first_kept, True))
        return _GRU.apply(forward, run, has_input, call.batch_sizes, call.input, shape, call.hx, *weights, *given)
    if torch.autograd._profiler_enabled():
        with torch.autograd.profiler.record_function("trigru::gru"):
            return compute.forward(forward, by)[:2]
    if asked is not None and again is not None:
        known.remember(asked, known.Known(again, layer, first_kept, False))
    return compute.forward(forward, by, again)[:2]


def gru_again(asked: Asked) -> tuple[Tensor, Tensor] | None:
    """`gru` where a call like this has been noted; else None."""
    key, tensors, zeros = asked
    found = known.find(key, tensors)
    if found is None:
        return None
    if zeros is not None:
        input, *weights = tensors
        tensors = (input, input.new_empty(*zeros), *weights)
    if found.recording:
        return _apply_again(found, zeros is not None, *tensors)
    output, h_n, _ = found(zeros is not None, *tensors)
    return output, h_n


def _drawn(layer: Layer, call: Call) -> list[Tensor | None]:
    """Dropout's factors between layers, for the reference."""
    if not layer.dropout:
        return []
    *sizes, _ = time_major(layer, call, call.input).shape
    ones = call.input.new_ones(*sizes, layer.hidden_size * layer.directions)
    return [F.dropout(ones, layer.dropout) for _ in range(1, layer.num_layers)]


def _layer_by_layer(layer: Layer, weights: Sequence[Tensor], call: Call) -> tuple[Tensor, Tensor]:
    """A stack as a call for each layer, so that vmap sees the dropout between them and its randomness."""
    finals, x, size = [], call.input, layer.directions
    width = len(weights) // layer.num_layers
    for index in range(layer.num_layers):
        if index:
            x = F.dropout(x, layer.dropout)
        one = replace(layer, input_size=x.shape[-1], num_layers=1, dropout=0.0)
        first, last = index * size, (index + 1) * size
        gain = None if call.gain is None else call.gain[first:last]
        part = Call(x, call.hx[first:last], call.batch_sizes, of_parts(layer, call, first, last), gain)
        x, h_n = gru(one, weights[index * width : (index + 1) * width], part)
        finals.append(h_n)
    return x, torch.cat(finals)
