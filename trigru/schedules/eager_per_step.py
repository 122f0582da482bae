"""What the eager schedule's steps do beside the equations (`PerStep`), forward and backward.

Forward changes the state between two steps. Backward goes a chunk at a time, as the equations do: the ends of its steps
are folded into the factors that the equations' derivatives are multiplied with, so that the loop has the beginnings
to go through, and the clip, behind which even an infinite derivative must not be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..kernels.recurrence import PerStep, by_row
from .eager_layout import Chunk, Layout
from .part import Found, Run
from .per_step import clipped, from_begins, of_amount, partly


def _cast(per_step: PerStep, dtype: torch.dtype) -> PerStep:
    """With all but `reset` in the dtype of the arithmetic."""
    _, *values = per_step[:5]
    fresh, decay, amount, dropped = (None if x is None else x.to(dtype) for x in values)
    return per_step._replace(fresh=fresh, decay=decay, amount=amount, dropped=dropped)


class Between:
    """What forward does between one step and the next, in the order in which steps run."""

    @classmethod
    def of(cls, layout: Layout, run: Run) -> Between | None:
        return None if run.per_step is None else cls(layout, run.per_step)

    def __init__(self, layout: Layout, per_step: PerStep) -> None:
        reset, fresh, decay, amount, self.dropped, self.clip, *_ = _cast(per_step, layout.dtype)
        batch = layout.sizes[0]

        def by_steps(x: Tensor | None) -> Sequence[Tensor] | None:
            return None if x is None else x.reshape(-1, batch, *(x.shape[1:] or (1,))).unbind(0)

        self.reset = by_steps(reset)
        self.decay, self.amount = by_steps(decay), by_steps(amount)
        self.fresh = None
        if reset is not None:
            once = fresh is None or fresh.shape[0] == batch
            if fresh is None:
                fresh = torch.zeros(batch, layout.hidden_size, dtype=layout.dtype, device=reset.device)
            self.fresh = (fresh,) * len(layout.sizes) if once else by_steps(fresh)
        # Steps of which no sequence begins anew are many; a CPU can tell them without waiting.
        told = reset is not None and reset.device.type == "cpu"
        self.any = reset.view(-1, batch).any(1).tolist() if told and reset is not None else (True,) * len(layout.sizes)
        self.t, self.step = (len(layout.sizes), -1) if layout.reverse else (-1, 1)

    def begin(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The state that the next step begins from, and what its products see of it."""
        self.t += self.step
        t = self.t
        if self.reset is not None and self.any[t]:
            assert self.fresh is not None
            h = torch.where(self.reset[t], self.fresh[t], h)
        if self.decay is not None:
            h = h * self.decay[t]
        return h, h if self.dropped is None else h * self.dropped

    def end(self, begin: Tensor, new: Tensor) -> Tensor:
        """What the step ends with, in place of `new`."""
        amount = None if self.amount is None else self.amount[self.t]
        if amount is not None:
            new.copy_(partly(begin, new, amount))
        if self.clip is not None:
            new.clamp_(-self.clip, self.clip)
        return new if amount is None else torch.where(amount == 0, begin, new, out=new)


class Back:
    """The same, backward; chunk by chunk in the order in which backward takes them."""

    @classmethod
    def of(cls, layout: Layout, run: Run, needs: Sequence[bool]) -> Back | None:
        return None if run.per_step is None else cls(layout, run, run.per_step, needs)

    def __init__(self, layout: Layout, run: Run, per_step: PerStep, needs: Sequence[bool]) -> None:
        self.whole, self.layout, self.run, self.needs = _cast(per_step, layout.dtype), layout, run, needs
        rows, size = layout.offsets[-1], layout.hidden_size
        new = run.h0.new_empty
        wanted = any(needs[:2])
        self.ends = per_step.amount is not None or per_step.clip is not None  # whether a step's end does anything
        self.d_begin = new(rows, size, dtype=layout.dtype) if wanted else None
        self.d_amount = new(rows, size, dtype=layout.dtype) if needs[2] else None
        self.clipped: Iterator[Tensor] | None = None  # of the steps of a chunk

    def begin(self, before: Tensor, chunk: Chunk) -> Tensor:
        """The states that a chunk's steps begin from."""
        layout, self.here = self.layout, slice(chunk.start, chunk.stop)
        self.own = self.whole.rows(self.here, layout.offsets[-1])
        steps = range(0, chunk.stop - chunk.start, layout.sizes[0])
        self.order = iter(steps if layout.reverse else reversed(steps))
        return self.own.begun(before)

    def seen(self, begin: Tensor) -> Tensor:
        """What the products see of them."""
        return self.own.seen(begin, self.layout.sizes[0])

    def of_ends(self, new: Tensor, begin: Tensor, factors: Sequence[Tensor], keep: Tensor) -> None:
        """Fold the ends of the steps into what a state's derivative is multiplied with on its way to the gates, and to
        the state that the step began from. new: the equations' own state."""
        hidden = clipped(self.own, begin, new)
        if hidden is not None:
            steps = hidden.split(self.layout.sizes[0])
            self.clipped = iter(steps if self.layout.reverse else reversed(steps))
        if self.own.amount is not None:
            amount = by_row(self.own.amount)
            rest, nothing = 1 - amount, amount == 0
            self.difference = new - begin
            # What is not done reaches nothing, whatever its factors are.
            for some in factors:
                wide = some.unflatten(1, (-1, new.shape[1]))
                wide.mul_(amount.unsqueeze(1)).masked_fill_(nothing.unsqueeze(1), 0)
            torch.where(nothing, rest, keep.mul_(amount).add_(rest), out=keep)

    def end(self, d: Tensor) -> None:
        """Take away of the derivative by the state that the next step ended with what its clip lets not pass."""
        if self.clipped is not None:
            d.masked_fill_(next(self.clipped), 0)

    def carry(self, direct: Tensor, products: Tensor) -> Tensor:
        """The derivative by the state before a step, from its shares past the products and through them."""
        own, batch = self.own, self.layout.sizes[0]
        first = next(self.order)
        here = slice(first, first + batch)
        if own.dropped is not None:
            products.mul_(own.dropped)
        d = direct.add_(products)
        if self.d_begin is not None:
            self.d_begin[self.here][here] = d
        if own.decay is not None:
            d = d * by_row(own.decay[here])
        return d if own.reset is None else d.masked_fill(own.reset[here].unsqueeze(1), 0)

    def found(self, d_ends: Tensor) -> None:
        """Of a chunk whose steps are through: d_ends (N, H), by the states that they ended with."""
        if self.d_amount is not None:
            torch.mul(d_ends, self.difference, out=self.d_amount[self.here])

    def sums(self, dtype: torch.dtype) -> Found:
        """The derivatives of all steps."""
        result = Found()
        if self.d_begin is not None:
            run, layout = self.run, self.layout
            whole = Chunk(0, 0, layout.offsets[-1], tuple(layout.sizes))
            before = layout.before(run.output, run.h0, whole)
            result = from_begins(self.whole, self.d_begin, before, self.needs)
        if self.d_amount is not None:
            result = result._replace(amount=of_amount(self.whole, self.d_amount))
        return Found._make(None if d is None else d.to(dtype) for d in result)
