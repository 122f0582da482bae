"""The eager schedule's steps forward; see eager.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels.recurrence import PerStep
from ..layer import Weights
from ..reference import EPS, layer_norm
from .eager_kept import keep_
from .eager_layout import Layout
from .eager_per_step import Between
from .eager_products import Heads, affine, product, repeated, turned
from .eager_tanh import tanh_, tanh_in_place, tanh_in_steps
from .part import Part, Run


def resize(x: Tensor, count: int, joining: Tensor, leaving: Tensor) -> Tensor:
    """The running state for a step of another batch size: rows join from one tensor or leave to another."""
    alive = x.shape[0]
    if count == alive:
        return x
    if count > alive:
        return torch.cat([x, joining[alive:count]])
    leaving[count:alive] = x[count:]
    return x[:count]


def _to_infinite(start: Tensor, end: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
    """torch.lerp where `end` may be infinite."""
    return torch.addcmul(start, weight, torch.sub(end, start, out=out), out=out)


def _from_infinite(start: Tensor, end: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
    """torch.lerp where `start` may be infinite."""
    return torch.mul(start, 1 - weight, out=out).addcmul_(end, weight)


def blend_of(h0: Tensor, variant: str, per_step: PerStep | None = None) -> Callable[..., Tensor]:
    """torch.lerp, or where states may be infinite what gives no NaN that the formula has not: lerp takes away from an
    infinite number what it adds. Only a CPU can be asked whether h0 is finite without waiting for it."""
    others = per_step is not None and (per_step.fresh is not None or per_step.decay is not None)
    if not others and h0.device.type == "cpu" and math.isfinite(h0.sum().item()):
        return torch.lerp
    return _from_infinite if variant == "chung" else _to_infinite


def heads_of(w_hh: Tensor, layout: Layout) -> tuple[Heads | None, Heads | None, Heads | None]:
    """Of heads that are taken apart, the products with all gates, with r and z, and with n, as the variant has them."""
    if not layout.apart:
        return None, None, None
    if layout.reset_after:
        return Heads(w_hh, layout.heads), None, None
    size = 2 * layout.hidden_size
    return None, Heads(w_hh[:size], layout.heads), Heads(w_hh[size:], layout.heads)


class Forward:
    """The forward steps, with their buffers."""

    def __init__(self, layout: Layout, weights: Weights, between: Between | None = None, *, keeps: bool = True) -> None:
        self.layout, self.between = layout, between
        self.w_ih, self.w_hh = layout.stack(weights.ih), layout.recurrent(weights.hh)
        self.bias, self.b_hn = self._biases(weights.bias_ih, weights.bias_hh)
        self.all, self.of_rz, self.of_n = heads_of(self.w_hh, layout)
        self.gain_ih, self.gain_hh = layout.gains(weights.gain)
        self.buffers: tuple[Tensor, ...] = ()
        alone = not keeps and not layout.narrow and weights.gain is None
        self.scratch = self.w_hh.new_empty(max(layout.sizes, default=0), layout.hidden_size) if alone else None
        self.candidates: Tensor | None = None  # of a chunk, where they do not come to be in their place
        self.sizes: tuple[int, ...] = ()
        self.views: list[tuple] = []

    def _biases(self, b_ih: Tensor | None, b_hh: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the input's projection, and to W_hn h where that stands apart."""
        layout = self.layout
        bias = None if b_ih is None else layout.stack(b_ih)
        if b_hh is None:
            return bias, None
        folded = b_hh.to(layout.dtype)
        n = folded[2 * layout.hidden_size :]
        if layout.reset_after:
            folded = torch.cat([folded[: 2 * layout.hidden_size], torch.zeros_like(n)])
        return folded if bias is None else bias + folded, n

    def chunk(self, x: Tensor, sizes: tuple[int, ...], reserve: Tensor | None, states: Tensor) -> tuple:
        """Buffers for a chunk's gates and states, the gates with the input's share in them, and the steps' views."""
        layout, rows = self.layout, x.shape[0]
        width = layout.planes * layout.hidden_size
        if not layout.reuse:
            if reserve is None and (not self.buffers or self.buffers[0].shape[0] < rows):
                self.buffers = (x.new_empty(rows, width),)
            gates = self.buffers[0][:rows] if reserve is None else reserve
            if reserve is not None:
                self.candidates = x.new_empty(rows, layout.hidden_size)
            self.views = self._views(gates, gates, states, sizes)
        else:
            if not self.buffers or self.buffers[0].shape[0] < rows:
                widths = (width, layout.hidden_size, 3 * layout.hidden_size if layout.narrow else 0)
                self.buffers, self.sizes = tuple(x.new_empty(rows, w) for w in widths), ()
            gates, states, apart = (buffer[:rows] for buffer in self.buffers)
            if sizes != self.sizes:
                # What is kept in 16 bits is made of the pre-activations, so these stay in `gates`.
                self.views = self._views(gates, apart if layout.narrow else gates, states, sizes)
                self.sizes = sizes
        self._project(x, gates)
        return gates, states

    def _project(self, x: Tensor, gates: Tensor) -> None:
        """Put into `gates` what does not depend on the state."""
        layout = self.layout
        if layout.reset_after:
            own = gates[:, : layout.hidden_size]
            own.zero_() if self.b_hn is None else own.copy_(self.b_hn)
        place = gates[:, (layout.planes - 3) * layout.hidden_size :]
        if self.gain_ih is None:
            affine(x, self.w_ih, self.bias, out=place)
        else:
            products = product(x, self.w_ih.t())
            place.copy_(torch.nn.functional.layer_norm(products, products.shape[1:], self.gain_ih, self.bias, EPS))

    @property
    def parts(self) -> Sequence[Tensor]:
        """The recurrent weights by products: of all gates, or of r and z and of n."""
        size = self.layout.hidden_size
        return (self.w_hh,) if self.layout.reset_after else self.w_hh.split([2 * size, size])

    @functools.cached_property
    def turned(self) -> tuple[Tensor, ...]:
        """`parts` as the steps' products take them."""
        return tuple(turned(part, self.layout.sizes[0], len(self.layout.sizes)) for part in self.parts)

    @functools.cached_property
    def linear(self) -> Sequence[Callable[[Tensor], Tensor] | None]:
        """Who computes the same products where torch.mm does not."""
        if self.all is not None:
            return (self.all.onto,)
        if self.of_rz is not None and self.of_n is not None:
            return self.of_rz.onto, self.of_n.onto
        return [repeated(part, self.layout.sizes[0], len(self.layout.sizes)) for part in self.parts]

    def _add(self, seen: Tensor, rows: slice, to: Tensor) -> None:
        """Add to a place what some rows of the recurrent weights make of `seen`."""
        if self.gain_hh is None:
            to.addmm_(seen, self.w_hh[rows].t())
        else:
            to.add_(layer_norm(product(seen, self.w_hh[rows].t()), self.gain_hh[rows]))

    def again(self, x: Tensor | None, before: Tensor) -> Tensor:
        """The gates of rows whose states before are all known: what forward would have kept, without its loop."""
        assert x is not None
        layout, size = self.layout, self.layout.hidden_size
        gates = x.new_empty(x.shape[0], layout.planes * size)
        self._project(x, gates)
        own, rz, n = gates[:, : 3 * size], gates[:, layout.rz], gates[:, -size:]
        if not layout.reset_after:
            own = rz
        by_head = self.all if layout.reset_after else self.of_rz
        if by_head is None:
            self._add(before, slice(own.shape[1]), to=own)
        else:
            own.add_(by_head.onto(before))
        r = rz[:, :size].sigmoid()
        if layout.reset_after:
            n.addcmul_(r, gates[:, :size])
        elif self.of_n is None:
            self._add(r * before, slice(2 * size, None), to=n)
        else:
            n.add_(self.of_n.onto(r * before))
        if layout.narrow:
            keep_(rz, n)
        else:
            rz.sigmoid_()
            tanh_(n)
        return gates

    def _views(self, gates: Tensor, to: Tensor, states: Tensor, sizes: tuple[int, ...]) -> list[tuple]:
        """Views of each step: pre-activations have their place in `gates`, and r, z, n in the last columns of `to`;
        where nothing is kept, a step's candidate, from its last sum on, in memory of its own, which is faster."""
        layout, size = self.layout, self.layout.hidden_size

        def steps(x: Tensor, first: int, planes: int = 1) -> tuple[Tensor, ...]:
            return x[:, first * size : (first + planes) * size].split_with_sizes(sizes)

        start = layout.planes - 3
        before_rz, before_n = steps(gates, start, 2), steps(gates, start + 2)
        rz, summed, n, source = before_rz, before_n, before_n, gates[:, -size:]
        target = source
        if to is not gates:
            rz, n, start, target = steps(to, 0, 2), steps(to, 2), 0, to[:, -size:]
        if self.candidates is not None:
            summed = n = self.candidates.split_with_sizes(sizes)
            self.tanh, operands = tanh_in_place(n)
        elif self.scratch is None:
            self.tanh, operands = tanh_in_steps(source, target, sizes)
        else:
            summed = n = tuple(self.scratch[:count] for count in sizes)
            self.tanh, operands = tanh_in_place(n)
        own = (steps(gates, 0, 3), steps(gates, 0)) if layout.reset_after else ()  # [an r z], an
        parts = before_rz, rz, steps(to, start), steps(to, start + 1), before_n, summed, n
        views = list(zip(sizes, *own, *parts, states.split_with_sizes(sizes), operands, strict=True))
        return views[::-1] if self.layout.reverse else views

    def steps_reset_after(self, h: Tensor, h0: Tensor, h_n: Tensor, blend: Callable[..., Tensor]) -> Tensor:
        """Variant "torch" over the current chunk; returns the last state."""
        (w,), (linear,) = self.turned, self.linear
        tanh, apart, alive, between = self.tanh, self.layout.narrow, h.shape[0], self.between
        normed, every = self.gain_hh is not None, slice(None)
        for count, own, an, before_rz, rz, r, z, before_n, summed, n, state, (source, target) in self.views:
            if count != alive:
                h, alive = resize(h, count, h0, h_n), count
            seen = h
            if between is not None:
                h, seen = between.begin(h)
            if normed:
                self._add(seen, every, to=own)
            elif linear is None:
                own.addmm_(seen, w)
            else:
                own.add_(linear(seen))
            torch.sigmoid(before_rz, out=rz) if apart else rz.sigmoid_()
            if summed is before_n:
                before_n.addcmul_(r, an)
            else:
                torch.addcmul(before_n, r, an, out=summed)
            tanh(source, out=target)
            new = blend(n, h, z, out=state)
            h = new if between is None else between.end(h, new)
        return h

    def steps_reset_before(self, h: Tensor, h0: Tensor, h_n: Tensor, blend: Callable[..., Tensor]) -> Tensor:
        """Variants "cho" and "chung" over the current chunk; returns the last state."""
        size = self.layout.hidden_size
        (w_rz, w_n), (linear_rz, linear_n) = self.turned, self.linear
        tanh, apart, alive, chung = self.tanh, self.layout.narrow, h.shape[0], self.layout.variant == "chung"
        reset, between = torch.empty_like(h), self.between
        normed, of_rz, of_n = self.gain_hh is not None, slice(2 * size), slice(2 * size, None)
        for count, before_rz, rz, r, z, before_n, summed, n, state, (source, target) in self.views:
            if count != alive:
                h, alive = resize(h, count, h0, h_n), count
                reset = torch.empty_like(h)
            seen = h
            if between is not None:
                h, seen = between.begin(h)
            if normed:
                self._add(seen, of_rz, to=before_rz)
            elif linear_rz is None:
                before_rz.addmm_(seen, w_rz)
            else:
                before_rz.add_(linear_rz(seen))
            torch.sigmoid(before_rz, out=rz) if apart else rz.sigmoid_()
            torch.mul(r, seen, out=reset)
            if normed:
                self._add(reset, of_n, to=before_n)
            elif linear_n is not None:
                torch.add(before_n, linear_n(reset), out=summed)
            elif summed is before_n:
                before_n.addmm_(reset, w_n)
            else:
                torch.addmm(before_n, reset, w_n, out=summed)
            tanh(source, out=target)
            new = blend(h, n, z, out=state) if chung else blend(n, h, z, out=state)
            h = new if between is None else between.end(h, new)
        return h


def forward(part: Part, weights: Sequence[Weights], run: Run) -> None:
    """One layer in one direction; the results go where `run` says."""
    layout = Layout(part, run)
    gates_kept, h_n = run.gates, run.h_n
    assert h_n is not None
    # Steps that compute in place want rows that lie together.
    rows = run.output if layout.reuse or run.output.is_contiguous() else h_n.new_empty(run.output.shape)
    h0 = run.h0.to(layout.dtype).contiguous()
    ends = h_n.copy_(h0) if h_n.dtype == layout.dtype else h0.clone()
    if rows.numel():
        forward = Forward(layout, weights[0], Between.of(layout, run), keeps=gates_kept is not None)
        steps = forward.steps_reset_after if layout.reset_after else forward.steps_reset_before
        chunks, blend = layout.chunks(), blend_of(h0, part.variant, run.per_step)
        h = h0[: layout.sizes[-1 if part.reverse else 0]]
        for chunk in reversed(chunks) if part.reverse else chunks:
            kept = None if gates_kept is None else gates_kept[chunk.start : chunk.stop]
            place = rows[chunk.start : chunk.stop]
            gates, states = forward.chunk(layout.rows(run.input, chunk), chunk.sizes, kept, place)
            h = steps(h, h0, ends, blend)
            if layout.reuse:
                place.copy_(states)
                h = h.clone()
                if kept is not None:
                    if layout.narrow:
                        keep_(gates[:, layout.rz], gates[:, -layout.hidden_size :])
                    kept.copy_(gates)
            elif forward.candidates is not None:
                gates[:, -layout.hidden_size :].copy_(forward.candidates)
        ends[: h.shape[0]] = h
    if ends is not h_n:
        h_n.copy_(ends)
    if rows is not run.output:
        run.output.copy_(rows)
