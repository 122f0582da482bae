"""The eager schedule with units outermost: variant "torch" where many sequences run side by side.

A step's gates are (4 H, B), [an r z n] as in eager.py, its state (H, B). So each gate of a step lies in one piece, and
what is done to it runs through memory once; as columns of rows (B, 4 H) it would start anew with every row, which for 4
to 64 units takes longer than the work itself. A step's product is W (3 H, H) by the state (H, B). States are (B, H)
outside, and are turned a chunk at a time.

The reserve's gates are (T, 4 H, B) here.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def fits(part: Part, weights: Weights, run: Run) -> bool:
    """Whether a layer in one direction runs so: forward, and backward of it where gates were kept."""
    if part.variant != "torch" or run.steps.packed or run.per_step is not None or part.heads > 1:
        return False
    if not run.input.is_cpu or run.input.dtype not in (torch.float32, torch.float64) or weights.gain is not None:
        return False
    return worth(*run.h0.shape)


def worth(batch: int, size: int) -> bool:
    """Whether it is the faster one."""
    return size <= 8 and batch >= 64


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


def _in_order(part: Part, steps: Sequence[Tensor]) -> Sequence[Tensor]:
    return steps[::-1] if part.reverse else steps


def _recurrent(w_hh: Tensor) -> Tensor:
    """The recurrent weights, gates in the order n, r, z."""
    r, z, n = w_hh.chunk(3)
    return torch.cat([n, r, z])


def forward(part: Part, weights: Weights, run: Run) -> None:
    """One layer in one direction; the results go where `run` says."""
    (batch, size), steps = run.h0.shape, len(run.steps.counts)
    assert run.h_n is not None
    if not steps or not batch:
        run.h_n.copy_(run.h0)
        return
    w_hh, bias, b_hn = _recurrent(weights.hh), weights.bias_ih, None
    if weights.bias_hh is not None:
        b_rz, b_hn = weights.bias_hh.split([2 * size, size])
        assert bias is not None
        bias, b_hn = torch.cat([bias[: 2 * size] + b_rz, bias[2 * size :]]).unsqueeze(1), b_hn.unsqueeze(1)
    output, blend = run.output.view(steps, batch, size), blend_of(run.h0, part.variant)
    h = run.h0.t().contiguous()
    chunks = _chunks(part, run)
    longest = chunks[0].stop - chunks[0].start if not part.reverse else chunks[-1].stop
    kept = None if run.gates is None else run.gates.view(steps, PLANES * size, batch)
    buffer = h.new_empty(longest, PLANES * size, batch) if kept is None else None
    states = h.new_empty(longest, size, batch)
    scratch = (torch.empty_like(h),) if kept is None else ()
    for chunk in chunks:
        count = chunk.stop - chunk.start
        gates = kept[chunk] if kept is not None else buffer[:count]
        own = gates[:, : 3 * size]
        gates[:, :size].zero_() if b_hn is None else gates[:, :size].copy_(b_hn)
        x, w_ih, place = run.input[chunk].transpose(1, 2), weights.ih.expand(count, -1, -1), gates[:, size:]
        torch.bmm(w_ih, x, out=place) if bias is None else torch.baddbmm(bias, w_ih, x, out=place)
        n = gates[:, 3 * size :].unbind(0)
        tanh, operands = tanh_in_place(n if kept is not None else scratch * count)
        views = (
            own.unbind(0),
            gates[:, :size].unbind(0),
            gates[:, size : 3 * size].unbind(0),
            gates[:, size : 2 * size].unbind(0),
            gates[:, 2 * size : 3 * size].unbind(0),
            n,
            n if kept is not None else scratch * count,
            states[:count].unbind(0),
            operands,
        )
        ordered = list(zip(*views, strict=True))
        for product, an, rz, r, z, before_n, n_, state, (source, target) in ordered[::-1] if part.reverse else ordered:
            product.addmm_(w_hh, h)
            rz.sigmoid_()
            torch.addcmul(before_n, r, an, out=n_)
            tanh(source, out=target)
            h = blend(n_, h, z, out=state)
        output[chunk].copy_(states[:count].transpose(1, 2))
        h = h.clone()
    run.h_n.copy_(h.t())


def backward(part: Part, weights: Weights, run: Run, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`, where gates were kept."""
    (batch, size), steps = run.h0.shape, len(run.steps.counts)
    assert run.gates is not None
    need_x, need_h0, need_ih, need_hh, need_b_ih, need_b_hh, *_ = upstream.needs
    w_ih, w_hh = weights.ih, _recurrent(weights.hh)
    d_input = torch.empty_like(run.input, memory_format=torch.contiguous_format) if need_x else None
    if d_input is not None:
        in_large_pages(d_input)
    d_w_ih = torch.zeros_like(w_ih, memory_format=torch.contiguous_format) if need_ih else None
    d_w_hh = torch.zeros_like(w_hh) if need_hh else None
    d_bias = w_hh.new_zeros(PLANES * size) if need_b_ih or need_b_hh else None
    d = w_hh.new_zeros(size, batch) if upstream.h_n is None else upstream.h_n.t().contiguous()
    if steps and batch:
        output, kept = run.output.view(steps, batch, size), run.gates.view(steps, PLANES * size, batch)
        chunks = _chunks(part, run)[::-1]
        longest = max(chunk.stop - chunk.start for chunk in chunks)
        factors = d.new_empty(longest, PLANES * size, batch)
        d_states, before, scratch = (d.new_empty(longest, size, batch) for _ in range(3))
        w_t, one = w_hh.t(), w_hh.new_ones(())
        first = True
        d_last = keep_last = own_last = d
        for chunk in chunks:
            count = chunk.stop - chunk.start
            gates, f, ds, b, s = kept[chunk], factors[:count], d_states[:count], before[:count], scratch[:count]
            _turn_before(part, run, output, chunk, b)
            ds.zero_() if upstream.output is None else ds.copy_(upstream.output[chunk].transpose(1, 2))
            an, r, z, n = gates.split(size, 1)
            f_an, f_r, f_z, f_n = f.split(size, 1)
            _tanh_backward(torch.sub(one, z, out=s), n, grad_input=f_n)
            _sigmoid_backward(torch.sub(b, n, out=s), z, grad_input=f_z)
            _sigmoid_backward(torch.mul(f_n, an, out=s), r, grad_input=f_r)
            torch.mul(f_n, r, out=f_an)
            own = f[:, : 3 * size]
            views = list(zip(ds.unbind(0), z.unbind(0), f.view(count, PLANES, size, batch).unbind(0), own.unbind(0), strict=True))
            for d_state, keep, all_gates, own_step in views if part.reverse else views[::-1]:
                if first:
                    d_state.add_(d)
                    first = False
                else:
                    d_state.addcmul_(d_last, keep_last).addmm_(w_t, own_last)
                all_gates.mul_(d_state)
                d_last, keep_last, own_last = d_state, keep, own_step
            # The chunk's buffers are used again.
            d = torch.addmm(d_last * keep_last, w_t, own_last)
            first = True
            outer = f[:, size:]
            if d_input is not None:
                torch.bmm(outer.transpose(1, 2), w_ih.expand(count, -1, -1), out=d_input[chunk])
            if d_w_ih is not None:
                d_w_ih.addbmm_(outer, run.input[chunk])
            if d_w_hh is not None:
                d_w_hh.addbmm_(own, b.transpose(1, 2))
            if d_bias is not None:
                d_bias.add_(f.sum((0, 2)))
    if d_w_hh is not None:
        d_w_hh = torch.cat([d_w_hh[size:], d_w_hh[:size]])
    d_b_ih = d_b_hh = None
    if d_bias is not None:
        d_b_ih = d_bias[size:].clone() if need_b_ih else None
        d_b_hh = torch.cat([d_bias[size : 3 * size], d_bias[:size]]) if need_b_hh else None
    return Gradients(d_input, d.t().contiguous() if need_h0 else None, (d_w_ih, d_w_hh, d_b_ih, d_b_hh, None))


def _turn_before(part: Part, run: Run, output: Tensor, chunk: slice, out: Tensor) -> None:
    """The states that a chunk's steps began from, (S, H, B)."""
    if part.reverse:
        stop = min(chunk.stop + 1, output.shape[0])
        there = stop - chunk.start - 1
        out[:there].copy_(output[chunk.start + 1 : stop].transpose(1, 2))
        if there < out.shape[0]:
            out[-1].copy_(run.h0.t())
    else:
        start = max(chunk.start - 1, 0)
        there = chunk.stop - 1 - start
        out[out.shape[0] - there :].copy_(output[start : chunk.stop - 1].transpose(1, 2))
        if there < out.shape[0]:
            out[0].copy_(run.h0.t())
