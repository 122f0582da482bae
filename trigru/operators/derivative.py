"""First and second derivatives of the operators, for autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..layer import Call, Given, time_major
from ..schedules.per_step import does_more, of_parts
from ..schedules.reserve import lowest_kept, masks_of, shares_output
from ..schedules.stack import Result
from . import batching, compute, plain
from .known import Known
from .schema import NUM_OPTIONS, Backward, Recorded, flat_backward, recorded, recorded_backward

_GIVEN = len(Given._fields)
_DIFFERENTIABLE = (1, 2, 3, _GIVEN + 3)
"""Where fresh, decay and amount stand among the fields of Given, and the gain behind them, clip and two rates."""
_BEFORE_GIVEN = {"gru": 4 + NUM_OPTIONS, "gru_backward": 9 + NUM_OPTIONS}
"""Arguments of an operator before Given's first. Counted from the front: the last ones are not there where they have
their default values."""


class Shape(torch.autograd.Function):
    """A tensor of the input's shape, without its memory, by which second derivatives find their way to the input."""

    @staticmethod
    def forward(ctx, input):  # type: ignore[no-untyped-def]
        return input.new_zeros(()).expand(input.shape)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad


def reads_input(forward: Recorded, need_weights: Sequence[bool]) -> bool:
    """Whether the derivative reads the input: where an input weight of the first layer needs a gradient, where gates
    are computed again, where cuDNN does it, where there are heads, or where steps do more than the equations or
    products are normalised."""
    layer, weights, call, first_kept = forward
    of_input = need_weights[: len(weights) // layer.num_layers : 4 if layer.bias else 2]
    always = layer.memory == "recompute" or layer.schedule == "cudnn" or layer.num_heads > 1 or does_more(layer, call)
    return first_kept == 0 and (always or any(of_input))


def with_own_state(forward: Recorded) -> Recorded:
    """With a copy of hx on a CPU, where no recurrent weight takes a gradient: nn.GRU then keeps none of it, and whoever
    holds the state of a stream may put the next one in its place before backward."""
    layer, weights, call, first_kept = forward
    width, hx = 4 if layer.bias else 2, call.hx
    of_state = weights[len(weights) // layer.num_layers * first_kept + 1 :: width]
    if not hx.is_cpu or hx.requires_grad or any(w.requires_grad for w in of_state):
        return forward
    return forward._replace(call=call._replace(hx=hx.clone()))


def save(ctx, forward: Recorded, result: Result, has_input: bool) -> None:  # type: ignore[no-untyped-def]
    """Keep what the derivative needs, and nothing else. The call's input may be one of its shape alone."""
    layer, weights, call, first_kept = forward
    states = [result.output] if shares_output(call.hx.device) else []
    below = len(weights) // layer.num_layers * first_kept
    read = [*(call.hx.new_empty(0) for _ in range(below)), *weights[below:]]
    ctx.set_materialize_grads(False)
    inputs = (call.input, call.hx, call.batch_sizes, *call.given, call.gain)
    ctx.save_for_backward(*inputs, *read, *result.reserve, *states)
    ctx.recorded = (layer, len(weights), first_kept, has_input)


def differentiate(  # type: ignore[no-untyped-def]
    ctx, grad_output: Tensor | None, grad_h_n: Tensor | None, needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Derivatives by input, hx, each of the weights and, where `needs` goes so far, fresh, decay, amount and gain; None
    for those that it does not ask for."""
    if grad_output is None and grad_h_n is None:
        return [None] * len(needs)
    layer, count, first_kept, has_input = ctx.recorded
    input, hx, batch_sizes, *others = ctx.saved_tensors
    given, gain, others = Given.of(others[:_GIVEN]), others[_GIVEN], others[_GIVEN + 1 :]
    forward = Recorded(layer, others[:count], Call(input, hx, batch_sizes, given, gain), first_kept)
    return _derivatives(Backward(forward, grad_output, grad_h_n, others[count:], has_input, needs))


def differentiate_known(  # type: ignore[no-untyped-def]
    ctx, grad_output: Tensor | None, grad_h_n: Tensor | None, needs: tuple[bool, ...], known: Known
) -> Sequence[Tensor | None]:
    """`differentiate` of a call that went the short way: on a GPU, of the equations alone, with all layers kept.

    Saved are input, hx, weights, reserve and output."""
    if grad_output is None and grad_h_n is None:
        return [None] * len(needs)
    saved = ctx.saved_tensors
    if (found := known.back(grad_output, grad_h_n, saved)) is not None:
        return found
    forward = known.recorded(*saved[: len(needs)])
    backward = Backward(forward, grad_output, grad_h_n, saved[len(needs) :], True, needs)
    return _derivatives(backward, partial(known.remember, grad_output, grad_h_n, saved))


def _derivatives(backward: Backward, note: Callable[[compute.Again], None] | None = None) -> Sequence[Tensor | None]:
    """note: as for `compute.backward`."""
    _, grad_output, grad_h_n, _, _, needs = backward
    # With grad mode on this derivative may be differentiated again: only the operator can.
    if not torch.is_grad_enabled() and plain.is_plain((grad_output, grad_h_n)):
        return compute.backward(backward, alone=True, note=note)
    grads = () if torch.compiler.is_compiling() else (grad_output, grad_h_n)  # compiled autograd can do neither
    if any(grad is not None and plain.is_legacy_batched(grad) for grad in grads):
        found = batching.backward_of_each(backward)
    else:
        d_input, d_hx, d_weights = torch.ops.trigru.gru_backward(*flat_backward(backward))
        found = [d_input, d_hx, *d_weights]
    return [d if need else None for d, need in zip(found, needs, strict=True)]


def setup_forward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    """For autograd on the operator `gru`."""
    forward = recorded(*inputs)
    input = forward.call.input
    has_input = reads_input(forward, ctx.needs_input_grad[2 : 2 + len(forward.weights)])
    # No second derivative is taken of what a compiler traces.
    if not has_input and ctx.needs_input_grad[0] and type(input) in plain.PLAIN_TYPES:
        has_input = True
    if not has_input:
        forward = forward._replace(call=forward.call._replace(input=Shape.forward(ctx, input)))
    save(ctx, forward, Result(*output), has_input)


def backward_of_forward(ctx, grad_output, grad_h_n, _grads_of_reserve=None):  # type: ignore[no-untyped-def]
    """For autograd on the operator `gru`."""
    asked_of = ctx.needs_input_grad
    need_input, need_hx, need_weights, *_ = asked_of
    of_given = _needs_of_given("gru", asked_of)
    needs = [need_input, need_hx, *need_weights, *(of_given if any(of_given) else ())]
    d_input, d_hx, *found = differentiate(ctx, grad_output, grad_h_n, needs)
    d_weights, d_given = found[: len(need_weights)], found[len(need_weights) :]
    return (d_input, d_hx, d_weights, *_with_given("gru", asked_of, d_given)[3:])


def _needs_of_given(name: str, asked_of: Sequence[bool]) -> list[bool]:
    """Whether fresh, decay, amount and gain take a gradient."""
    came = asked_of[_BEFORE_GIVEN[name] :]
    return [place < len(came) and came[place] for place in _DIFFERENTIABLE]


def _with_given(name: str, asked_of: Sequence[bool], d_given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A gradient for each argument that came: those by fresh, decay, amount and gain at their places."""
    grads: list[Tensor | None] = [None] * len(asked_of)
    for place, d in zip(_DIFFERENTIABLE, d_given, strict=False):
        if d is not None:
            grads[_BEFORE_GIVEN[name] + place] = d
    return grads


def setup_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    """For autograd on the operator `gru_backward`: what the derivatives of derivatives are taken from."""
    backward = recorded_backward(*inputs)
    layer, weights, call, first_kept = backward.forward
    masks = masks_of(layer, backward.reserve, first_kept, call.input.dtype)
    has_input = backward.has_input or first_kept > 0
    input = backward.reserve[0] if first_kept else call.input
    gates = () if has_input else lowest_kept(layer, backward.reserve)
    ctx.set_materialize_grads(False)
    tensors = (backward.grad_output, backward.grad_h_n, input, call.hx, call.batch_sizes, *call.given, call.gain)
    ctx.save_for_backward(*tensors, *weights, *gates, *masks)
    ctx.recorded = (layer, len(weights), first_kept, has_input, list(backward.needs))


def _alias(x: Tensor, higher: bool) -> Tensor:
    """To differentiate by: one tensor in two places (tied weights) has two derivatives. Flags are as they are."""
    if not x.is_floating_point():
        return x
    return x.view_as(x) if higher and x.requires_grad else x.detach().requires_grad_()


def backward_of_backward(ctx, grad_d_input, grad_d_hx, grads_d_weights):  # type: ignore[no-untyped-def]
    """The first derivatives, taken through the reference, are differentiated again."""
    layer, count, first_kept, has_input, needs = ctx.recorded
    grad_output, grad_h_n, input, hx, batch_sizes, *others = ctx.saved_tensors
    given, gain, others = Given.of(others[:_GIVEN]), others[_GIVEN], others[_GIVEN + 1 :]
    weights, others = others[:count], others[count:]
    gates, masks = ([], others) if has_input else (others[:2], others[2:])
    higher, skipped = torch.is_grad_enabled(), first_kept * layer.directions
    upper = replace(layer, num_layers=layer.num_layers - first_kept, input_size=input.shape[-1])
    if first_kept:  # nothing below takes a gradient; what goes into the layer above is laid out by steps
        upper = replace(upper, batch_first=False)
    with torch.enable_grad():
        leaves = (grad_output, grad_h_n, input, hx, *weights, *given.differentiable, gain)
        primals = [None if x is None else _alias(x, higher) for x in leaves]
        grad_output, grad_h_n, input, hx, *weights, fresh, decay, amount, gain = primals
        call = Call(input, hx, batch_sizes, Given.of(given._replace(fresh=fresh, decay=decay, amount=amount)))
        # `upper` lays out what goes into it, as `input` is here
        given = of_parts(replace(layer, batch_first=upper.batch_first), call, skipped, layer.parts)
        call = call._replace(hx=hx[skipped:], given=given, gain=None if gain is None else gain[skipped:])
        given_weights = weights[count // layer.num_layers * first_kept :]
        if not has_input:
            call, given_weights = compute.without_input(layer, given_weights, call, gates)
            upper = replace(upper, input_size=call.input.shape[-1], batch_first=False)
        output, h_n = compute.by_reference(upper, given_weights, call, masks[first_kept:])
        if upper.batch_first != layer.batch_first:
            output = time_major(layer, call, output)  # the other way round, it is the same
        upstream = (grad_output, None if grad_h_n is None else grad_h_n[skipped:])
        used = [(out, grad) for out, grad in zip((output, h_n), upstream, strict=True) if grad is not None]
        asked = [(x, i) for i, (x, need) in enumerate(zip(primals[2:], needs, strict=False)) if need and x is not None]
        first = torch.autograd.grad(
            [out for out, _ in used],
            [x for x, _ in asked],
            [grad for _, grad in used],
            create_graph=True,
            materialize_grads=True,
        )
    grads = (grad_d_input, grad_d_hx, *grads_d_weights)
    pairs = [(d, grads[i]) for d, (_, i) in zip(first, asked, strict=True) if grads[i] is not None and d.requires_grad]
    asked_of = ctx.needs_input_grad
    needed = [*asked_of[:4], *asked_of[4], *_needs_of_given("gru_backward", asked_of)]
    if first_kept:
        needed[2] = False  # `input` is that of an upper layer
    results: list[Tensor | None] = [None] * len(primals)
    wanted = [i for i, x in enumerate(primals) if x is not None and needed[i]]
    if pairs and wanted:
        second = torch.autograd.grad(
            [d for d, _ in pairs],
            [primals[i] for i in wanted],
            [grad for _, grad in pairs],
            create_graph=higher,
            allow_unused=True,
        )
        for i, result in zip(wanted, second, strict=True):
            results[i] = result
    rest = _with_given("gru_backward", asked_of, results[4 + count :])[7:]
    return (*results[:4], results[4 : 4 + count], None, [None] * len(asked_of[6]), *rest)
