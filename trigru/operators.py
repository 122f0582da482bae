"""The operators `torch.ops.trigru.gru` and `gru_backward`: one layer in one direction.

    gru(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save) -> (output, h_n, reserve)

input (T, B, I) padded, or (N, I) packed with batch_sizes (T,) on the CPU, as in PackedSequence; h0 (B, H); output
(T, B, H) or (N, H); h_n (B, H); reserve: what backward needs of the gates, one flat tensor, empty unless `save`.
Backward is an operator of its own, so that a compiler sees it whole; its own derivative goes through the reference
implementation.

`gru` below, which everything else calls, has three ways: the operator; where nothing but plain eager execution looks
on, the same schedules without the dispatcher's Python layers; and the reference, for derivatives that the operators do
not have (forward mode, torch.func).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import exporters, reference
from .kernels.config import kept_values
from .planning import plan

_LIBRARY = torch.library.Library("trigru", "DEF")
_LIBRARY.define(
    "gru(Tensor input, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? batch_sizes, "
    "str variant, str schedule, bool reverse, bool save) -> (Tensor output, Tensor h_n, Tensor reserve)",
    tags=[torch.Tag.pt2_compliant_tag],
)
_LIBRARY.define(
    "gru_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor h0, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor? batch_sizes, Tensor output, Tensor reserve, str variant, str schedule, "
    "bool reverse, bool[] needs) -> "
    "(Tensor d_input, Tensor d_h0, Tensor d_w_ih, Tensor d_w_hh, Tensor d_b_ih, Tensor d_b_hh)",
    tags=[torch.Tag.pt2_compliant_tag],
)


def reserve_size(num_rows: int, hidden_size: int, variant: str) -> int:
    """Elements that forward keeps for backward beside its output: r, z, n, and W_hn h + b_hn for "torch"."""
    return num_rows * hidden_size * kept_values(variant)


def _has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward-mode AD is on and one of the tensors takes part in it."""
    return forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors
    )


def _refuse_tangents(name: str, tensors: Sequence[Tensor | None]) -> None:
    """Inside an operator tangents would be dropped without a word: raise instead."""
    if _has_tangent(tensors):
        raise NotImplementedError(f"torch.ops.trigru.{name} has no forward-mode derivative; trigru.gru has")


def _forward(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save):
    """`torch.ops.trigru.gru`."""
    _refuse_tangents("gru", (input, h0, w_ih, w_hh, b_ih, b_hh))
    output, h_n, reserve = _run(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save)
    return output, h_n, input.new_empty(0) if reserve is None else reserve


def _run(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save):
    """(output, h_n, reserve) by the schedule that is chosen. The reserve may be None where it would be empty."""
    if batch_sizes is not None and int(batch_sizes[0]) != h0.shape[0]:
        raise RuntimeError(f"h0: expected a batch of {int(batch_sizes[0])} as in batch_sizes, got {h0.shape[0]}")
    chosen = plan.choose(schedule, input.device, input.dtype, *h0.shape, variant=variant)
    tensors = (input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes)
    if chosen.schedule == "eager":
        return _eager().forward(*tensors, variant=variant, reverse=reverse, save=save)
    return _fused().forward(chosen, *tensors, variant=variant, reverse=reverse, save=save)


# Imported at their first call; an import statement costs some 0.5 us at every further one.


@functools.cache
def _eager() -> ModuleType:
    from .schedules import eager

    return eager


@functools.cache
def _fused() -> ModuleType:
    from .schedules import fused

    return fused


def _backward(
    grad_output,
    grad_h_n,
    input,
    h0,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    batch_sizes,
    output,
    reserve,
    variant,
    schedule,
    reverse,
    needs,
):
    _refuse_tangents("gru_backward", (grad_output, grad_h_n, input, h0, w_ih, w_hh, b_ih, b_hh))
    chosen = plan.choose(schedule, input.device, input.dtype, *h0.shape, variant=variant, direction="backward")
    tensors = (grad_output, grad_h_n, input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, output, reserve)
    if chosen.schedule == "eager":
        results = _eager().backward(*tensors, variant=variant, reverse=reverse, needs=needs)
    else:
        results = _fused().backward(chosen, *tensors, variant=variant, reverse=reverse, needs=needs)
    return tuple(input.new_empty(0) if result is None else result for result in results)


def _forward_fake(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save):
    hidden_size = h0.shape[1]
    output = input.new_empty(*input.shape[:-1], hidden_size)
    elements = reserve_size(output.numel() // hidden_size, hidden_size, variant) if save else 0
    return output, torch.empty_like(h0, memory_format=torch.contiguous_format), input.new_empty(elements)


def _backward_fake(
    grad_output,
    grad_h_n,
    input,
    h0,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    batch_sizes,
    output,
    reserve,
    variant,
    schedule,
    reverse,
    needs,
):
    bias_shape = (w_hh.shape[0],)
    shapes = (input.shape, h0.shape, w_ih.shape, w_hh.shape, bias_shape, bias_shape)
    return tuple(input.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))


def _save_forward(ctx, inputs, output):
    *tensors, variant, schedule, reverse, _save = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[0], output[2])
    ctx.options = (variant, schedule, reverse)


def _differentiate(ctx, grad_output, grad_h_n, _grad_reserve=None):
    none = (None,) * 5
    if grad_output is None and grad_h_n is None:
        return (None,) * 6 + none
    needs = list(ctx.needs_input_grad[:6])
    arguments = (grad_output, grad_h_n, *ctx.saved_tensors, *ctx.options, needs)
    # With grad mode on this derivative may be differentiated again: only the operator can.
    direct = not torch.is_grad_enabled() and _is_plain((grad_output, grad_h_n))
    results = _backward(*arguments) if direct else torch.ops.trigru.gru_backward(*arguments)
    return tuple(result if need else None for result, need in zip(results, needs, strict=True)) + none


def _save_backward(ctx, inputs, output):
    *tensors, _output, _reserve, variant, _schedule, reverse, needs = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.options = (variant, reverse, needs)


def _differentiate_twice(ctx, *grads_of_results):
    """Derivative of `gru_backward`: the first derivatives, taken through the reference, are differentiated again."""
    variant, reverse, needs = ctx.options
    *tensors, batch_sizes = ctx.saved_tensors
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        # An alias each: one tensor in two places (tied weights) has two derivatives here.
        inputs = [
            None if x is None else x.view_as(x) if higher and x.requires_grad else x.detach().requires_grad_()
            for x in tensors
        ]
        grad_output, grad_h_n, *primals = inputs
        outputs = run_reference(*primals, batch_sizes, variant=variant, reverse=reverse)
        used = [i for i, grad in enumerate((grad_output, grad_h_n)) if grad is not None]
        first = torch.autograd.grad(
            [outputs[i] for i in used],
            [x for x, need in zip(primals, needs, strict=True) if need],
            [(grad_output, grad_h_n)[i] for i in used],
            create_graph=True,
            materialize_grads=True,
        )
    given = [grad for grad, need in zip(grads_of_results, needs, strict=True) if need]
    pairs = [(d, grad) for d, grad in zip(first, given, strict=True) if grad is not None and d.requires_grad]
    results: list[Tensor | None] = [None] * len(inputs)
    asked = [i for i, x in enumerate(inputs) if x is not None and ctx.needs_input_grad[i]]
    if pairs and asked:
        second = torch.autograd.grad(
            [d for d, _ in pairs],
            [inputs[i] for i in asked],
            [grad for _, grad in pairs],
            create_graph=higher,
            allow_unused=True,
        )
        for i, result in zip(asked, second, strict=True):
            results[i] = result
    return (*results, None, None, None, None, None, None, None)


def run_reference(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    *,
    variant: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(output, h_n) by the reference implementation, padded or packed."""
    weights = (w_ih, w_hh, b_ih, b_hh)
    if batch_sizes is None:
        return reference.gru(input, h0, *weights, variant=variant, reverse=reverse)
    return reference.gru_packed(input, batch_sizes, h0, *weights, variant=variant, reverse=reverse)


def _move(x: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """`x` with its batched dimension at `to`; expanded where it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:])


def _select(args: Sequence, in_dims: Sequence, index: int) -> list:
    """The arguments of one sample of a vmap."""
    return [x.select(dim, index) if isinstance(dim, int) else x for x, dim in zip(args, in_dims, strict=True)]


def _forward_vmap(info, in_dims, *args):
    """vmap over input and h0 is one call with a larger batch; over anything else, a call a sample."""
    # Batched tensors hide whether what they hold requires a gradient, so `save` is settled here.
    save = args[-1] or (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args[:6]))
    args = (*args[:-1], save)
    input, h0, *weights, batch_sizes, variant, schedule, reverse, _ = args
    count = info.batch_size
    if batch_sizes is not None or any(dim is not None for dim in in_dims[2:7]):
        samples = [torch.ops.trigru.gru(*_select(args, in_dims, i)) for i in range(count)]
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True)), (0, 0, 0)
    input = _move(input, in_dims[0], 1, count)
    h0 = _move(h0, in_dims[1], 0, count)
    output, h_n, reserve = torch.ops.trigru.gru(
        input.flatten(1, 2), h0.flatten(0, 1), *weights, batch_sizes, variant, schedule, reverse, save
    )
    split = (count, h0.shape[1])
    # What lies where in the reserve is the schedule's own business, so it stays whole, for no sample alone.
    return (output.unflatten(1, split), h_n.unflatten(0, split), reserve), (1, 0, None)


def _backward_vmap(info, in_dims, *args):
    """A call a sample."""
    samples = []
    for i in range(info.batch_size):
        one = _select(args, in_dims, i)
        if in_dims[9] is not None and in_dims[10] is None:  # the reserve of all samples: see _forward_vmap
            one[10] = torch.ops.trigru.gru(*one[2:9], *one[11:14], True)[2]
        samples.append(torch.ops.trigru.gru_backward(*one))
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True)), (0,) * 6


def _without_autocast(operator: Callable, key: str) -> Callable:
    """The operator with autocast off inside: `functional.gru` has cast its arguments."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(*args):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*args)

    return call


_LIBRARY.impl("gru", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("gru_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("trigru::gru", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("trigru::gru_backward", _backward_fake, lib=_LIBRARY)
torch.library.register_autograd("trigru::gru", _differentiate, setup_context=_save_forward, lib=_LIBRARY)
torch.library.register_autograd(
    "trigru::gru_backward", _differentiate_twice, setup_context=_save_backward, lib=_LIBRARY
)
torch.library.register_vmap("trigru::gru", _forward_vmap, lib=_LIBRARY)
torch.library.register_vmap("trigru::gru_backward", _backward_vmap, lib=_LIBRARY)
exporters.register(_LIBRARY)
for _name in ("gru", "gru_backward"):
    for _key in ("AutocastCPU", "AutocastCUDA"):
        _LIBRARY.impl(_name, _without_autocast(getattr(torch.ops.trigru, _name).default, _key), _key)


class _Layer(torch.autograd.Function):
    """The operator `gru` and its derivative without the dispatcher, whose Python layers cost some 100 us a call."""

    @staticmethod
    def forward(ctx, *arguments):
        output, h_n, reserve = _run(*arguments)
        reserve = output.new_empty(0) if reserve is None else reserve
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:7], output, reserve)
        ctx.options = arguments[7:10]
        return output, h_n

    @staticmethod
    def backward(ctx, grad_output, grad_h_n):
        return _differentiate(ctx, grad_output, grad_h_n)


_PLAIN_TYPES = frozenset((Tensor, Parameter))


def _is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing but eager execution sees a call: no compiler, tracer, transform, mode, subclass, autocast."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
        or torch._C._is_any_autocast_enabled()
    ):
        return False
    for x in tensors:  # no any(...), which takes as long again
        if x is not None and (type(x) not in _PLAIN_TYPES or x.is_meta or _is_batched(x) or _is_legacy_batched(x)):
            return False
    return True


# Under vmap: torch.func's, or the older one by which autograd batches gradients.
_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def _is_transformed() -> bool:
    """Whether torch.func takes derivatives, or a compiler traces under forward mode.

    A constant to dynamo, which guards on both; under vmap alone the operators do."""
    if torch._C._are_functorch_transforms_active():
        stack = torch._C._functorch.get_interpreter_stack() or ()
        return any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)
    return forward_ad._current_level >= 0 and torch.compiler.is_compiling()


_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]  # the decorator would import dynamo


def _needs_reference(tensors: Sequence[Tensor | None]) -> bool:
    """Whether derivatives are being taken that the operators do not have: forward mode, or by torch.func."""
    return _is_transformed() or (not torch.compiler.is_compiling() and _has_tangent(tensors))


def _by_torch(
    input: Tensor, h0: Tensor, weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None], reverse: bool
) -> tuple[Tensor, Tensor]:
    """The layer by torch's own kernels, variant "torch"."""
    if input.shape[0] == 1:
        h_n = torch.gru_cell(input[0], h0, *weights)
        return h_n.unsqueeze(0).clone(), h_n
    given = [w for w in weights if w is not None]
    x = input.flip(0) if reverse else input
    output, h_n = torch.gru(x, h0.unsqueeze(0), given, len(given) == 4, 1, 0.0, False, False, False)
    return output.flip(0) if reverse else output, h_n.squeeze(0)


def gru(
    input: Tensor,
    h0: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    batch_sizes: Tensor | None,
    *,
    variant: str,
    schedule: str,
    reverse: bool,
    memory: str,
) -> tuple[Tensor, Tensor]:
    """One layer in one direction; gate values are kept only where a gradient can be asked for, with memory="keep"."""
    w_ih, w_hh, b_ih, b_hh = weights
    tensors = (input, h0, w_ih, w_hh, b_ih, b_hh)
    if _needs_reference(tensors):
        return run_reference(*tensors, batch_sizes, variant=variant, reverse=reverse)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    keep = save and memory == "keep"
    if not _is_plain(tensors):
        if torch._C._get_tracing_state():
            exporters.tell_torchscript()
        return torch.ops.trigru.gru(*tensors, batch_sizes, variant, schedule, reverse, keep)[:2]
    if schedule == "auto" and batch_sizes is None and memory == "keep" and (b_ih is None) == (b_hh is None):
        call: dict[str, Any] = {"device": input.device, "dtype": input.dtype, "variant": variant, "schedule": schedule}
        if plan.torch_serves(input.shape[0], *h0.shape, training=save, **call):
            return _by_torch(input, h0, weights, reverse)
    if save:
        return _Layer.apply(*tensors, batch_sizes, variant, schedule, reverse, keep)
    return _run(*tensors, batch_sizes, variant, schedule, reverse, False)[:2]
