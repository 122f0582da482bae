"""A single step on a CPU with its derivatives by hand, for a cell that nothing but eager execution looks at.

autograd's graph of a step has a node for each operation, and each of its products is torch.mm's. Here it has one, and
products go where `eager_products` sends them. Derivatives of derivatives are those of the plain operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import eager_products
from .eager_products import linear, outer, product
from .eager_tanh import tanh_

MULTIPLICATIONS = 5_000_000
"""Of a step from which this is faster: 1.1 to 1.8 times nn.GRUCell in training, 1.4 to 2.1 without gradients where
oneDNN multiplies faster than MKL (AMD EPYC, Zen 5, 2 threads, batch 8 to 512, hidden_size 64 to 512); below, 0.9 to 1.1
times, and elsewhere."""

_tanh_backward = torch.ops.aten.tanh_backward.default
_sigmoid_backward = torch.ops.aten.sigmoid_backward.default


def pays(batch: int, size: int, input_size: int, dtype: torch.dtype) -> bool:
    """Whether `step` beats the plain operations on this CPU."""
    if dtype != torch.float32 or 3 * batch * size * (input_size + size) < MULTIPLICATIONS:
        return False
    return eager_products.pays(batch, size, 3 * size)


def plain(variant: str, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None) -> Tensor:
    """One step in plain operations, of which autograd takes derivatives of any order."""
    if variant == "torch":
        return torch.gru_cell(x, h, w_ih, w_hh, *biases)
    sizes, (b_ih, b_hh) = (2 * h.shape[1], h.shape[1]), biases  # r and z, n
    bias = b_hh if b_ih is None else b_ih if b_hh is None else b_ih + b_hh
    gates_rz, gate_n = torch.nn.functional.linear(x, w_ih, bias).split_with_sizes(sizes, 1)
    w_rz, w_n = w_hh.split_with_sizes(sizes)
    r, z = torch.addmm(gates_rz, h, w_rz.t()).sigmoid().chunk(2, 1)
    n = torch.addmm(gate_n, r * h, w_n.t()).tanh()
    kept, new = (h, n) if variant == "chung" else (n, h)
    return torch.addcmul((1 - z) * kept, z, new)  # kept + z (new - kept) would lose a small one behind a large one


def step(variant: str, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None) -> Tensor:
    """The same, with the derivative by hand: contiguous tensors of one dtype, of shapes that fit."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h, w_ih, w_hh, *biases)):
        return _Step.apply(variant, x, h, w_ih, w_hh, *biases)
    return _forward(variant, x, h, w_ih, w_hh, *biases)[0]


def _forward(
    variant: str, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The state; and r and z side by side, n, and what r is multiplied with for the candidate, or what it becomes."""
    size = h.shape[1]
    sizes = (2 * size, size)
    gates_rz, gate_n = linear(x, w_ih, b_ih).split_with_sizes(sizes, 1)
    if variant == "torch":
        own_rz, own_n = linear(h, w_hh, b_hh).split_with_sizes(sizes, 1)
        rz = torch.add(gates_rz, own_rz).sigmoid_()
        r, z = rz.split_with_sizes((size, size), 1)
        n = torch.addcmul(gate_n, r, own_n)
        tanh_(n)
        return torch.lerp(n, h, z), (rz, n, own_n)
    w_rz, w_n = w_hh.split_with_sizes(sizes)
    b_rz, b_n = (None, None) if b_hh is None else b_hh.split_with_sizes(sizes)
    rz = torch.add(gates_rz, linear(h, w_rz, b_rz)).sigmoid_()
    r, z = rz.split_with_sizes((size, size), 1)
    reset = r * h
    n = torch.add(gate_n, linear(reset, w_n, b_n))
    tanh_(n)
    kept, new = (h, n) if variant == "chung" else (n, h)
    return torch.addcmul((1 - z).mul_(kept), z, new), (rz, n, reset)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variant: str, *inputs: Any) -> Tensor:
        new, kept = _forward(variant, *inputs)
        ctx.variant = variant
        ctx.save_for_backward(*inputs, *kept)
        return new

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        variant, saved, needs = ctx.variant, ctx.saved_tensors, ctx.needs_input_grad[1:]  # hooks unpack at each look
        inputs = saved[:6]
        higher = torch.is_grad_enabled()
        if not higher and forward_ad._current_level < 0:  # products by oneDNN would drop a tangent of d
            given = d.contiguous(), inputs, saved[6:], needs
            return None, *(_after(*given) if variant == "torch" else _before(variant, *given))
        # An alias each: a tensor in two places, or one that another was made of, has a derivative of its own here.
        with torch.enable_grad():
            inputs = [None if x is None else x.view_as(x) for x in inputs]
            new = plain(variant, *inputs)
        wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
        found = iter(torch.autograd.grad(new, wanted, d, create_graph=higher))
        return None, *(next(found) if need else None for need in needs)


def _of_input(d_gates: Tensor, x: Tensor, w_ih: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Derivatives by the input, its weights and bias."""
    need_x, _, need_ih, _, need_bias, _ = needs
    d_x = product(d_gates, w_ih) if need_x else None
    return d_x, outer(d_gates, x) if need_ih else None, d_gates.sum(0) if need_bias else None


def _after(
    d: Tensor, inputs: Sequence[Tensor], kept: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Derivatives of variant "torch", whose reset comes after the product. inputs: of the step; kept: of `_forward`."""
    (x, h, w_ih, w_hh), (rz, n, own_n) = inputs[:4], kept
    r, z = rz.chunk(2, 1)
    past = d * z
    d_n = _tanh_backward(d - past, n)
    d_z = _sigmoid_backward((h - n) * d, z)
    d_r = _sigmoid_backward(d_n * own_n, r)
    own = torch.cat((d_r, d_z, d_n), 1)
    d_x, d_w_ih, d_b_ih = _of_input(own, x, w_ih, needs)
    own[:, 2 * h.shape[1] :].mul_(r)
    d_h = past.add_(product(own, w_hh)) if needs[1] else None
    return d_x, d_h, d_w_ih, outer(own, h) if needs[3] else None, d_b_ih, own.sum(0) if needs[5] else None


def _before(
    variant: str, d: Tensor, inputs: Sequence[Tensor], kept: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Derivatives of "cho" and "chung", whose reset comes before it."""
    (x, h, w_ih, w_hh), (rz, n, reset) = inputs[:4], kept
    r, z = rz.chunk(2, 1)
    w_rz, w_n = w_hh.split_with_sizes((rz.shape[1], n.shape[1]))
    chung = variant == "chung"
    of_new = d * z
    of_kept = d - of_new
    past, to_n = (of_kept, of_new) if chung else (of_new, of_kept)
    d_n = _tanh_backward(to_n, n)
    d_z = _sigmoid_backward((n - h if chung else h - n) * d, z)
    d_reset = product(d_n, w_n)
    d_rz = torch.cat((_sigmoid_backward(d_reset * h, r), d_z), 1)
    d_gates = torch.cat((d_rz, d_n), 1)
    d_x, d_w_ih, d_b_ih = _of_input(d_gates, x, w_ih, needs)
    d_h = past.addcmul_(d_reset, r).add_(product(d_rz, w_rz)) if needs[1] else None
    d_w_hh = torch.cat((outer(d_rz, h), outer(d_n, reset))) if needs[3] else None
    d_b_hh = None if not needs[5] else d_gates.sum(0) if d_b_ih is None else d_b_ih.clone()
    return d_x, d_h, d_w_ih, d_w_hh, d_b_ih, d_b_hh
