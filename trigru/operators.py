"""The operators `torch.ops.trigru.gru` and `gru_backward`: one layer in one direction.

    gru(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save) -> (output, h_n, reserve)

input (T, B, I) padded, or (N, I) packed with batch_sizes (T,) on the CPU, as in PackedSequence; h0 (B, H); output
(T, B, H) or (N, H); h_n (B, H); reserve: what backward needs of the gates, one flat tensor, empty unless `save`.
Backward is an operator of its own, so that a compiler sees it whole; its own derivative goes through the reference
implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import plan, reference

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
    return num_rows * hidden_size * (4 if variant == "torch" else 3)


def _forward(input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save):
    chosen = plan.choose(schedule, input.device, input.dtype, h0.shape[0], h0.shape[1])
    tensors = (input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes)
    if chosen.schedule == "eager":
        from . import eager

        return eager.forward(*tensors, variant=variant, reverse=reverse, save=save)
    from . import fused

    return fused.forward(chosen, *tensors, variant=variant, reverse=reverse, save=save)


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
    chosen = plan.choose(schedule, input.device, input.dtype, h0.shape[0], h0.shape[1])
    tensors = (grad_output, grad_h_n, input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, output, reserve)
    if chosen.schedule == "eager":
        from . import eager

        results = eager.backward(*tensors, variant=variant, reverse=reverse, needs=needs)
    else:
        from . import fused

        results = fused.backward(chosen, *tensors, variant=variant, reverse=reverse, needs=needs)
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


def _differentiate(ctx, grad_output, grad_h_n, _grad_reserve):
    none = (None,) * 5
    if grad_output is None and grad_h_n is None:
        return (None,) * 6 + none
    needs = list(ctx.needs_input_grad[:6])
    results = torch.ops.trigru.gru_backward(grad_output, grad_h_n, *ctx.saved_tensors, *ctx.options, needs)
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


_LIBRARY.impl("gru", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("gru_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("trigru::gru", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("trigru::gru_backward", _backward_fake, lib=_LIBRARY)
torch.library.register_autograd("trigru::gru", _differentiate, setup_context=_save_forward, lib=_LIBRARY)
torch.library.register_autograd(
    "trigru::gru_backward", _differentiate_twice, setup_context=_save_backward, lib=_LIBRARY
)


def gru(
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    *,
    variant: str,
    schedule: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Call the operator; gate values are kept only where a gradient can be asked for."""
    w_ih, w_hh, b_ih, b_hh = weights
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (input, h0, *weights))
    output, h_n, _ = torch.ops.trigru.gru(
        input, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, variant, schedule, reverse, save
    )
    return output, h_n
