"""The eager schedule's steps backward; see eager.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..blocks import narrow
from ..layer import Weights
from .eager_forward import Forward, heads_of, resize
from .eager_kept import candidate, sides
from .eager_layout import Layout
from .eager_per_step import Back
from .eager_products import add_outer, outer_sum, product, repeated
from .norm import Rows
from .pages import empty_again, in_large_pages
from .part import Gradients, Part, Run, Upstream

BY_GATE = 128
"""Units to which a large step's gates are multiplied one by one: 1.4 to 1.9 times as fast as together (batch 512 to
2048, hidden_size 64 and 128, 2 threads of an AMD EPYC), above as fast."""

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class _Backward:
    """The backward steps, with their buffers and the derivatives of the weights, summed over the chunks."""

    def __init__(self, layout: Layout, weights: Weights, needs: Sequence[bool], back: Back | None = None) -> None:
        self.layout, self.needs, self.back = layout, needs, back
        self.w_ih, self.w_hh = layout.stack(weights.ih), layout.recurrent(weights.hh)
        self.all, self.of_rz, self.of_n = heads_of(self.w_hh, layout)
        size = layout.hidden_size
        self.d_w_ih = outer_sum(self.w_ih) if needs[2] else None
        self.d_w_hh = None
        if needs[3]:
            self.d_w_hh = torch.zeros_like(self.w_hh) if layout.apart else outer_sum(self.w_hh)
        self.d_bias = self.w_hh.new_zeros(layout.planes * size) if needs[4] or needs[5] else None
        self.sizes: tuple[int, ...] = ()
        self.views: list[tuple] = []
        self.buffers: tuple[Tensor, ...] = ()
        self.one = weights.ih.new_ones((), dtype=layout.dtype)
        self.gain_ih, self.gain_hh = layout.gains(weights.gain)
        self.d_gain = self.w_hh.new_zeros(2, 3 * size)
        self.normed: list[Rows] = []  # the recurrent products of a chunk, one after another in a step
        self.by_steps: tuple[Iterator[Rows], ...] = ()

    def chunk(self, gates: Tensor, before: Tensor, grad: Tensor | None, sizes: tuple[int, ...]) -> None:
        """Fill the buffers: in `own`, and for the candidate of "torch" in `outer`, what a step's derivative is
        multiplied with, in `d_states` what the loss gives each state directly."""
        layout, size, rows = self.layout, self.layout.hidden_size, before.shape[0]
        if not self.buffers or self.buffers[0].shape[0] < rows:
            widths = (3, 3 if layout.reset_after else 1, 1, 1, 1)
            self.buffers = tuple(empty_again(before, rows, width * size) for width in widths)
            self.sizes = ()
        if sizes != self.sizes:
            self.own, other, self.d_states, self.keep, self.scratch = (buffer[:rows] for buffer in self.buffers)
            self.outer = other if layout.reset_after else self.own
            self.reset: Tensor | None = None if layout.reset_after else other
            self.views, self.sizes = self._views(sizes), sizes
        seen = self.before = before if self.back is None else self.back.seen(before)
        self.d_states.zero_() if grad is None else self.d_states.copy_(grad)
        rz, n, chung = gates[:, layout.rz], gates[:, -size:], layout.variant == "chung"
        *f_an, f_r, f_z = self.own[:, : (layout.planes - 1) * size].split(size, 1)
        f_n = self.outer[:, 2 * size :]
        # derivatives of gates from either side of them, y or 1 - y
        if layout.narrow:
            (side_r, side_z), (r, z), (_, rest) = (x.split(size, 1) for x in sides(rz))
            n, slope = candidate(n)
            torch.mul(z if chung else rest, slope, out=f_n)
        else:
            side_r, side_z = r, z = rz.split(size, 1)
            rest = torch.sub(self.one, z, out=self.scratch)
            _tanh_backward(z if chung else rest, n, grad_input=f_n)
        self.keep.copy_(rest if chung else z)
        torch.sub(n, before, out=self.scratch) if chung else torch.sub(before, n, out=self.scratch)
        _sigmoid_backward(self.scratch, side_z, grad_input=f_z)
        if layout.reset_after:
            _sigmoid_backward(torch.mul(f_n, gates[:, :size], out=self.scratch), side_r, grad_input=f_r)
            torch.mul(f_n, r, out=f_an[0])
        else:
            assert self.reset is not None
            self.reset.copy_(r)
            _sigmoid_backward(seen, side_r, grad_input=f_r)
        if self.back is not None and self.back.ends:
            new = self.keep * before + (z * n if chung else n - z * n)
            # Before the product, r has its derivative from the candidate's alone.
            factors = (self.own, f_n) if layout.reset_after else (self.own[:, size:],)
            self.back.of_ends(new, before, factors, self.keep)
        if self.gain_hh is not None:
            self._normalise(seen, sizes, self.gain_hh)

    def _normalise(self, seen: Tensor, sizes: tuple[int, ...], gain: Tensor) -> None:
        """The recurrent products of a chunk anew, and of its steps in the order in which backward takes them."""
        operands, size = [seen], self.layout.hidden_size
        spans = [slice(3 * size)]
        if self.reset is not None:
            operands, spans = [seen, self.reset * seen], [slice(2 * size), slice(2 * size, None)]
        pairs = zip(operands, spans, strict=True)
        self.normed = [Rows.of(product(x, self.w_hh[span].t()), gain[span]) for x, span in pairs]
        steps = [rows.steps(sizes) for rows in self.normed]
        self.by_steps = tuple(map(iter if self.layout.reverse else reversed, steps))

    def _views(self, sizes: tuple[int, ...]) -> list[tuple]:
        size = self.layout.hidden_size
        d_states = self.d_states.split_with_sizes(sizes)
        keep = self.keep.split_with_sizes(sizes)
        if self.reset is None:
            own, d_wide = self.own.split_with_sizes(sizes), d_states
            if size <= BY_GATE and not self.layout.reuse:
                gates = [x.split(size, 1) for x in own]
            else:
                gates = [(x.unflatten(1, (3, size)),) for x in own]
                d_wide = self.d_states.unsqueeze(1).split_with_sizes(sizes)
            views = list(zip(sizes, d_states, d_wide, keep, gates, own, strict=True))
        else:
            rz = self.own[:, : 2 * size].split_with_sizes(sizes)
            r, z, n = (x.split_with_sizes(sizes) for x in self.own.split(size, 1))
            reset = self.reset.split_with_sizes(sizes)
            views = list(zip(sizes, d_states, keep, z, rz, r, n, reset, strict=True))
        return views if self.layout.reverse else views[::-1]

    @functools.cached_property
    def linear(self) -> Sequence[Callable[[Tensor], Tensor] | None]:
        """Who else than torch.mm computes the steps' products: with all gates, or with r and z and with n."""
        size, sizes = self.layout.hidden_size, self.layout.sizes
        if self.all is not None:
            return (self.all.back,)
        if self.of_rz is not None and self.of_n is not None:
            return self.of_rz.back, self.of_n.back
        parts = (self.w_hh,) if self.layout.reset_after else self.w_hh.split([2 * size, size])
        return [repeated(part.t(), sizes[0], len(sizes)) for part in parts]

    def steps_reset_after(self, carry: Tensor, grad_h_n: Tensor, d_h0: Tensor) -> Tensor:
        """Variant "torch" over the current chunk; returns the derivative by the state before it."""
        w, (linear,) = self.w_hh, self.linear
        times = linear or (lambda x: torch.mm(x, w))
        alive, d_last, keep_last, own_last = -1, carry, carry, carry
        back, (norm,) = self.back, self.by_steps or (None,)
        for count, d, d_wide, keep, gates, own in self.views:
            if count == alive and back is None:
                d.addcmul_(d_last, keep_last)
                if linear is None:
                    d.addmm_(own_last, w)
                else:
                    d.add_(linear(own_last))
            else:
                if alive >= 0:
                    carry = self._carry(d_last * keep_last, times(own_last))
                d.add_(resize(carry, count, grad_h_n, d_h0))
                alive = count
            if back is not None:
                back.end(d)
            for gate in gates:
                gate.mul_(d_wide)
            d_last, keep_last, own_last = d, keep, own if norm is None else next(norm).back(own)
        if back is None and linear is None:
            return torch.mul(d_last, keep_last).addmm_(own_last, w)
        return self._carry(d_last * keep_last, times(own_last))

    def steps_reset_before(self, carry: Tensor, grad_h_n: Tensor, d_h0: Tensor) -> Tensor:
        """Variants "cho" and "chung" over the current chunk; returns the derivative by the state before it."""
        w_rz, w_n = self.w_hh.split([2 * self.layout.hidden_size, self.layout.hidden_size])
        linear_rz, linear_n = self.linear
        times = linear_rz or (lambda x: torch.mm(x, w_rz))
        d_reset = torch.empty_like(carry)
        alive, d_last, keep_last, rz_last, r_last = -1, carry, carry, carry, carry
        back, (norm_rz, norm_n) = self.back, self.by_steps or (None, None)
        for count, d, keep, z, rz, d_r, n, r in self.views:
            if count == alive and back is None:
                d.addcmul_(d_last, keep_last).addcmul_(d_reset, r_last)
                if linear_rz is None:
                    d.addmm_(rz_last, w_rz)
                else:
                    d.add_(linear_rz(rz_last))
            else:
                if alive >= 0:
                    carry = self._carry(d_last * keep_last, (d_reset * r_last).add_(times(rz_last)))
                d.add_(resize(carry, count, grad_h_n, d_h0))
                alive, d_reset = count, torch.empty_like(d)
            if back is not None:
                back.end(d)
            z.mul_(d)
            n.mul_(d)
            of_n = n if norm_n is None else next(norm_n).back(n)
            if linear_n is None:
                torch.mm(of_n, w_n, out=d_reset)
            else:
                d_reset = linear_n(of_n)
            d_r.mul_(d_reset)
            d_last, keep_last, rz_last, r_last = d, keep, rz if norm_rz is None else next(norm_rz).back(rz), r
        return self._carry(d_last * keep_last, (d_reset * r_last).add_(times(rz_last)))

    def _carry(self, direct: Tensor, products: Tensor) -> Tensor:
        """The derivative by the state before a step, from its shares past the products and through them."""
        return direct.add_(products) if self.back is None else self.back.carry(direct, products)

    def products(self, x: Tensor | None, d_input: Tensor | None) -> None:
        """The chunk's share of what has no recurrence, from the derivatives that the steps have left in `own`."""
        size, own, outer = self.layout.hidden_size, self.own, self.outer
        if self.layout.reset_after:
            outer[:, : 2 * size] = own[:, size:]
            outer[:, 2 * size :].mul_(self.d_states)
        if self.gain_ih is not None:
            assert x is not None
            outer, own = self._before_norms(outer, own, Rows.of(product(x, self.w_ih.t()), self.gain_ih))
        if d_input is not None:
            product(outer, self.w_ih, out=d_input.view(-1, d_input.shape[-1]))
        if self.d_bias is not None:
            self.d_bias[-3 * size :] += self.outer.sum(0)
            if self.layout.reset_after:
                self.d_bias[:size] += self.own[:, :size].sum(0)
        if self.d_w_ih is not None:
            assert x is not None
            add_outer(self.d_w_ih, outer, x)
        if self.d_w_hh is not None:
            if self.reset is None:
                add = add_outer if self.all is None else self.all.add_outer
                add(self.d_w_hh, own, self.before)
            else:
                add, add_n = add_outer, add_outer
                if self.of_rz is not None and self.of_n is not None:
                    add, add_n = self.of_rz.add_outer, self.of_n.add_outer
                add(self.d_w_hh[: 2 * size], own[:, : 2 * size], self.before)
                reset = torch.mul(self.reset, self.before, out=self.scratch)
                add_n(self.d_w_hh[2 * size :], own[:, 2 * size :], reset)

    def _before_norms(self, outer: Tensor, own: Tensor, of_input: Rows) -> tuple[Tensor, Tensor]:
        """The derivatives by the chunk's products themselves, from those by the normalised ones."""
        outer, d_gain = of_input.back_in_all(outer)
        parts = own.split([rows.gain.shape[0] for rows in self.normed], 1)
        found = [rows.back_in_all(d) for rows, d in zip(self.normed, parts, strict=True)]
        self.d_gain += torch.stack([d_gain, torch.cat([d for _, d in found])])
        return outer, torch.cat([d for d, _ in found], 1)

    def weights(self) -> tuple[Tensor | None, ...]:
        """Derivatives by w_ih, w_hh, b_ih, b_hh and the gain, as far as they are needed."""
        layout, size = self.layout, self.layout.hidden_size
        d_w_hh, d_b_ih, d_b_hh = self.d_w_hh, None, None
        d_gain_ih, d_gain_hh = self.d_gain
        if layout.reset_after:
            d_gain_hh = torch.cat([d_gain_hh[size:], d_gain_hh[:size]])
            d_w_hh = None if d_w_hh is None else torch.cat([d_w_hh[size:], d_w_hh[:size]])
        if d_w_hh is not None and layout.heads > 1 and not layout.apart:
            d_w_hh = narrow(d_w_hh, layout.heads)
        if self.d_bias is not None:
            d_b_ih = self.d_bias[-3 * size :].clone()
            d_b_hh = d_b_ih.clone()
            if layout.reset_after:
                d_b_hh[2 * size :] = self.d_bias[:size]
        d_w_ih, d_w_hh = (None if d is None else d.contiguous() for d in (self.d_w_ih, d_w_hh))
        found = (d_w_ih, d_w_hh, d_b_ih, d_b_hh, torch.stack([d_gain_ih, d_gain_hh]))
        return tuple(d if need else None for d, need in zip(found, self.needs[2:], strict=True))


def backward(part: Part, weights: Sequence[Weights], run: Run, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`.

    Where no gates were kept, those of a chunk are computed again before its steps."""
    layout = Layout(part, run)
    (own,) = weights
    back = Back.of(layout, run, upstream.given)
    backward = _Backward(layout, own, upstream.needs, back)
    rows, gates = run.output.contiguous(), run.gates
    again = Forward(layout, own) if gates is None else None
    d_input = in_large_pages(run.input.new_empty(run.input.shape)) if upstream.needs[0] else None
    d_h0 = run.h0.new_zeros(run.h0.shape, dtype=layout.dtype)
    grad_h_n = d_h0.clone() if upstream.h_n is None else upstream.h_n.to(layout.dtype).contiguous()
    carry = grad_h_n[: layout.sizes[0 if part.reverse else -1]]
    steps = backward.steps_reset_after if layout.reset_after else backward.steps_reset_before
    chunks = layout.chunks() if rows.numel() else []
    for chunk in chunks if part.reverse else reversed(chunks):
        grad = None if upstream.output is None else layout.rows(upstream.output, chunk)
        before = layout.before(rows, run.h0, chunk)
        if back is not None:
            before = back.begin(before, chunk)
        reads = upstream.needs[2] or again is not None or own.gain is not None
        x = layout.rows(run.input, chunk) if reads else None
        if again is None:
            assert gates is not None
            kept = gates[chunk.start : chunk.stop].to(layout.dtype)
        else:
            kept = again.again(x, before if back is None else back.seen(before))
        backward.chunk(kept, before, grad, chunk.sizes)
        carry = steps(carry, grad_h_n, d_h0)
        if back is not None:
            back.found(backward.d_states)
        place = None
        if d_input is not None:
            first, last = (chunk.start, chunk.stop) if layout.packed else (chunk.first, chunk.first + len(chunk.sizes))
            place = d_input[first:last]
        backward.products(x, place)
    d_h0[: carry.shape[0]] = carry
    found = (d_input, d_h0 if upstream.needs[1] else None, *backward.weights())
    of_input, of_h0, *of_weights = (None if d is None else d.to(rows.dtype) for d in found)
    return Gradients(of_input, of_h0, tuple(of_weights), () if back is None else (back.sums(rows.dtype),))
