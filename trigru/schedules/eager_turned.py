"""The eager schedule with units outermost: variant "torch" where many sequences run side by side.

A step's gates are (4 H, B), [an r z n] as in eager.py, its state (H, B). So each gate of a step lies in one piece, and
what is done to it runs through memory once; as columns of rows (B, 4 H) it would start anew with every row, which for 4
to 64 units takes longer than the work itself. A step's product is W (3 H, H) by the state (H, B). States are (B, H)
outside, and are turned a chunk at a time.

The reserve's gates are (T, 4 H, B) here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..layer import Weights
from ..planning.configs import EagerConfig
from .eager_forward import blend_of
from .eager_layout import CHUNKS
from .eager_tanh import tanh_in_place
from .pages import in_large_pages
from .part import Gradients, Part, Run, Upstream

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input

PLANES = 4
CHUNK_ELEMENTS = 1 << 17
"""Of a chunk's plane, at most (but one step at least)."""

MOST_SIZE, LEAST_BATCH = 8, 64
"""Training was 1.2 to 2.1 times as fast as with rows (hidden_size 4 and 8, batch 64 to 4016, 2 threads of an AMD EPYC,
Zen 4), a call without gradients 1.0 to 2.1 times; at hidden_size 16 and more it won little, or lost."""


def fits(part: Part, weights: Weights, run: Run) -> bool:
    """Whether a layer in one direction runs so: forward, and backward of it where gates were kept."""
    batch, size = run.h0.shape
    if size > MOST_SIZE or batch < LEAST_BATCH or not run.steps.counts or not run.input.is_cpu:
        return False
    if part.variant != "torch" or part.heads > 1 or run.steps.packed or run.per_step is not None:
        return False
    return weights.gain is None and run.input.dtype in (torch.float32, torch.float64)


def gates_as_rows(run: Run) -> Tensor:
    """What was kept as (N, 4 H), as the rest of the eager schedule keeps it."""
    assert run.gates is not None
    batch, size = run.h0.shape
    return run.gates.view(-1, PLANES * size, batch).transpose(1, 2).reshape(run.gates.shape)


def _chunks(part: Part, run: Run) -> list[slice]:
    """Steps of each chunk, in the order in which forward takes them."""
    asked = part.choice.config if isinstance(part.choice.config, EagerConfig) else CHUNKS
    elements, steps = max(1, run.h0.numel()), len(run.steps.counts)
    most = max(1, min(asked.chunk_steps, min(CHUNK_ELEMENTS, asked.chunk_elements) // elements))
    chunks = [slice(t, min(t + most, steps)) for t in range(0, steps, most)]
    return chunks[::-1] if part.reverse else chunks


def _recurrent(w_hh: Tensor) -> Tensor:
    """The recurrent weights, gates in the order n, r, z."""
    r, z, n = w_hh.chunk(3)
    return torch.cat([n, r, z])


def _views(gates: Tensor, states: Tensor, scratch: Tensor | None) -> tuple[Callable[..., object], list[tuple]]:
    """tanh, and of each step: [an r z], an, [r z], r, z, the candidate's share of the input, where the candidate comes
    to be, the state, and tanh's operands. scratch: for every step's candidate, where gates are not kept."""
    size = states.shape[1]
    planes = [gates[:, i * size : (i + 1) * size].unbind(0) for i in range(PLANES)]
    own, rz = gates[:, : 3 * size].unbind(0), gates[:, size : 3 * size].unbind(0)
    an, r, z, before = planes
    n = before if scratch is None else (scratch,) * len(before)
    tanh, operands = tanh_in_place(n)
    return tanh, list(zip(own, an, rz, r, z, before, n, states.unbind(0), operands, strict=True))


def forward(part: Part, weights: Weights, run: Run) -> None:
    """One layer in one direction; the results go where `run` says."""
    (batch, size), steps = run.h0.shape, len(run.steps.counts)
    assert run.h_n is not None
    w_hh, bias, b_hn = _recurrent(weights.hh), None, None
    if weights.bias_ih is not None and weights.bias_hh is not None:
        b_rz, b_hn = weights.bias_hh.split([2 * size, size])
        bias = torch.cat([weights.bias_ih[: 2 * size] + b_rz, weights.bias_ih[2 * size :]]).unsqueeze(1)
        b_hn = b_hn.unsqueeze(1)
    output, blend = run.output.view(steps, batch, size), blend_of(run.h0, part.variant)
    h = run.h0.t().contiguous()
    chunks = _chunks(part, run)
    longest = max(chunk.stop - chunk.start for chunk in chunks)
    states, scratch = h.new_empty(longest, size, batch), torch.empty_like(h)
    kept = None if run.gates is None else run.gates.view(steps, PLANES * size, batch)
    buffer = h.new_empty(longest, PLANES * size, batch) if kept is None else kept
    for chunk in chunks:
        count = chunk.stop - chunk.start
        gates = buffer[:count] if kept is None else kept[chunk]
        gates[:, :size].zero_() if b_hn is None else gates[:, :size].copy_(b_hn)
        x, w_ih, place = run.input[chunk].transpose(1, 2), weights.ih.expand(count, -1, -1), gates[:, size:]
        torch.bmm(w_ih, x, out=place) if bias is None else torch.baddbmm(bias, w_ih, x, out=place)
        tanh, views = _views(gates, states[:count], scratch if kept is None else None)
        for own, an, rz, r, z, before, n, state, (source, target) in views[::-1] if part.reverse else views:
            own.addmm_(w_hh, h)
            rz.sigmoid_()
            torch.addcmul(before, r, an, out=n)
            tanh(source, out=target)
            h = blend(n, h, z, out=state)
        output[chunk].copy_(states[:count].transpose(1, 2))
        h = h.clone()  # the next chunk's states go where it is
    run.h_n.copy_(h.t())


class _Backward:
    """Buffers of a chunk, and the derivatives of the weights, summed over the chunks."""

    def __init__(self, part: Part, weights: Weights, run: Run, upstream: Upstream, longest: int) -> None:
        self.part, self.run, self.upstream = part, run, upstream
        self.w_ih, self.w_hh = weights.ih, _recurrent(weights.hh)
        self.w_t, self.one = self.w_hh.t(), self.w_hh.new_ones(())
        batch, self.size = run.h0.shape
        need_x, _, need_ih, need_hh, *need_biases = upstream.needs[:6]
        empty, zeros = self.w_hh.new_empty, self.w_hh.new_zeros
        self.d_input = in_large_pages(empty(run.input.shape)) if need_x else None
        self.d_w_ih = zeros(self.w_ih.shape) if need_ih else None
        self.d_w_hh = zeros(self.w_hh.shape) if need_hh else None
        self.d_bias = zeros(PLANES * self.size) if any(need_biases) else None
        self.factors = empty(longest, PLANES * self.size, batch)
        self.d_states, self.before, self.scratch = (empty(longest, self.size, batch) for _ in range(3))

    def chunk(self, gates: Tensor, output: Tensor, here: slice, d: Tensor) -> Tensor:
        """The derivative by the state before a chunk, from that by its last one, `d`, past what the loss gives."""
        count, size, grad = here.stop - here.start, self.size, self.upstream.output
        factors, d_states, before, scratch = (
            x[:count] for x in (self.factors, self.d_states, self.before, self.scratch)
        )
        self._turn_before(output, here, before)
        d_states.zero_() if grad is None else d_states.copy_(grad[here].transpose(1, 2))
        an, r, z, n = gates.split(size, 1)
        f_an, f_r, f_z, f_n = factors.split(size, 1)
        _tanh_backward(torch.sub(self.one, z, out=scratch), n, grad_input=f_n)
        _sigmoid_backward(torch.sub(before, n, out=scratch), z, grad_input=f_z)
        _sigmoid_backward(torch.mul(f_n, an, out=scratch), r, grad_input=f_r)
        torch.mul(f_n, r, out=f_an)
        own = factors[:, : 3 * size].unbind(0)
        planes = factors.view(count, PLANES, size, -1).unbind(0)
        views = list(zip(d_states.unbind(0), z.unbind(0), planes, own, strict=True))
        d_last, keep_last, own_last = d, None, d
        for d_state, keep, planes_of_step, own_of_step in views if self.part.reverse else views[::-1]:
            if keep_last is None:
                d_state.add_(d)
            else:
                d_state.addcmul_(d_last, keep_last).addmm_(self.w_t, own_last)
            planes_of_step.mul_(d_state)
            d_last, keep_last, own_last = d_state, keep, own_of_step
        assert keep_last is not None
        self._products(factors, before, here)
        return torch.mul(d_last, keep_last).addmm_(self.w_t, own_last)

    def _products(self, factors: Tensor, before: Tensor, here: slice) -> None:
        """A chunk's share of what has no recurrence."""
        own, outer = factors[:, : 3 * self.size], factors[:, self.size :]
        if self.d_input is not None:
            torch.bmm(outer.transpose(1, 2), self.w_ih.expand(len(outer), -1, -1), out=self.d_input[here])
        if self.d_w_ih is not None:
            self.d_w_ih.addbmm_(outer, self.run.input[here])
        if self.d_w_hh is not None:
            self.d_w_hh.addbmm_(own, before.transpose(1, 2))
        if self.d_bias is not None:
            self.d_bias.add_(factors.sum((0, 2)))

    def _turn_before(self, output: Tensor, here: slice, out: Tensor) -> None:
        """The states that a chunk's steps began from, (S, H, B)."""
        reverse, inner = self.part.reverse, here.stop - here.start - 1
        shifted = slice(here.start + 1, here.stop) if reverse else slice(here.start, here.stop - 1)
        places = out[:inner] if reverse else out[1:]
        places.copy_(output[shifted].transpose(1, 2))
        edge = here.stop if reverse else here.start - 1
        at_edge = output[edge] if 0 <= edge < output.shape[0] else self.run.h0
        out[-1 if reverse else 0].copy_(at_edge.t())

    def weights(self) -> tuple[Tensor | None, ...]:
        """Derivatives by w_ih, w_hh, b_ih, b_hh and the gain, as far as they are needed."""
        size, (need_b_ih, need_b_hh) = self.size, self.upstream.needs[4:6]
        d_w_hh, d_b_ih, d_b_hh = self.d_w_hh, None, None
        if d_w_hh is not None:
            d_w_hh = torch.cat([d_w_hh[size:], d_w_hh[:size]])
        if self.d_bias is not None:
            d_b_ih = self.d_bias[size:].clone() if need_b_ih else None
            d_b_hh = torch.cat([self.d_bias[size : 3 * size], self.d_bias[:size]]) if need_b_hh else None
        return self.d_w_ih, d_w_hh, d_b_ih, d_b_hh, None


def backward(part: Part, weights: Weights, run: Run, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`, where gates were kept."""
    (batch, size), steps = run.h0.shape, len(run.steps.counts)
    assert run.gates is not None
    output, gates = run.output.view(steps, batch, size), run.gates.view(steps, PLANES * size, batch)
    chunks = _chunks(part, run)[::-1]
    own = _Backward(part, weights, run, upstream, max(chunk.stop - chunk.start for chunk in chunks))
    d = run.h0.new_zeros(size, batch) if upstream.h_n is None else upstream.h_n.t().contiguous()
    for chunk in chunks:
        d = own.chunk(gates[chunk], output, chunk, d)
    return Gradients(own.d_input, d.t().contiguous() if upstream.needs[1] else None, own.weights())
