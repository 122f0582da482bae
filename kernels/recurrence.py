"""What a schedule's host functions take and give, in records: a layer, its input already multiplied.

A schedule is a module with two functions:

    forward(run, operands, save) -> Kept
    backward(run, operands, kept, gradients) -> Derivatives

Sizes: B batch, H hidden_size, N rows of all steps together (see steps.py). Tensors are contiguous and of one dtype,
but for float32 where it says so.

Both directions of time at once: where `Operands` has the weights of a second direction, from the last step to the
first, every launch runs both. Tensors then hold one direction behind the other, (2, N, 3H) for (N, 3H) and so on, but
for the output and the loss's derivative by it, (N, 2H), whose rows hold one beside the other: as the layer's output has
them, and the next layer's input.

Heads, where a schedule takes them: as directions lie, the first direction's heads before the second's. H is that of one
head, w_hh is (heads or twice as many, 3H, H) and b_hn (as many, H), with no second ones beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .config import kept_values
from .masks import factors, renewed
from .steps import Steps

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Recurrence(Generic[C]):
    """What of a run does not change from call to call. variant, reverse: as in trigru/reference.py; both directions at
    once are no longer to be told which. precision: "tf32" or "ieee", how float32 is multiplied. config: the schedule's
    tile sizes."""

    variant: str
    reverse: bool
    precision: str
    config: C


_NOT_BY_ROW = ("dropped", "seed", "lengths")  # tensors of PerStep


class PerStep(NamedTuple):
    """What a step does beside the equations, for padded sequences:

        begin = decay * (fresh where reset, else the state before)       what the blend sees
        the products see dropped * begin
        end   = begin + amount * (h' - begin), clipped to -clip ... clip; begin as it is where amount is 0

    With a seed the amount of a unit is 0 where masks.py says so. Row t * B + b, as everywhere, is sequence b at step
    t. None costs nothing, and stands for what changes nothing."""

    reset: Tensor | None = None  # (N,) bool. It selects: what was before reaches neither values nor derivatives
    fresh: Tensor | None = None  # (N, H), or (B, H) for all steps; None: zeros
    decay: Tensor | None = None  # (N,) or (N, H)
    amount: Tensor | None = None  # (N,) or (N, H); bool: 0 or 1, at less work
    dropped: Tensor | None = None  # (B, H); or () int64: of masks of it, the number of the first sequence added
    clip: float | None = None
    begins: Tensor | None = None  # (N, H) dropped * begin: written by forward, not resident's; there iff `carries`
    wants_d_begin: bool = False  # whether backward also gives the derivatives by `begin`
    seed: Tensor | None = None  # () int64: of zoneout's masks, the number of the first row added
    zoneout: float = 0.0  # the rate; with a seed
    lengths: Tensor | None = None  # (B,) int64: past them no reset, decay 1, amount 0: may be skipped
    recurrent_dropout: float = 0.0  # the rate; with a seed as `dropped`

    @property
    def carries(self) -> bool:
        """Whether what the products see is not simply the state before."""
        return not (self.reset is None and self.decay is None and self.dropped is None)

    @property
    def drops_by_seed(self) -> bool:
        """Whether `dropped` is of masks that are not made yet."""
        return self.dropped is not None and self.dropped.dtype == torch.int64

    def side(self, number: int) -> PerStep:
        """One direction's own, where both lie one behind the other."""
        return PerStep._make(x[number] if isinstance(x, Tensor) else x for x in self)

    def rows(self, here: slice, num_rows: int) -> PerStep:
        """Of one direction's num_rows rows, some whole steps."""
        rows = {name: x for name, x in self._asdict().items() if isinstance(x, Tensor) and name not in _NOT_BY_ROW}
        own: dict[str, Any] = {name: x[here] for name, x in rows.items() if x.shape[0] == num_rows}
        seed = None if self.seed is None else self.seed + here.indices(num_rows)[0]
        return self._replace(**own, seed=seed, lengths=None)

    def masked(self, num_rows: int, hidden_size: int) -> PerStep:
        """The same of one direction with zoneout's masks in the amount, bool as long as that is all or nothing."""
        if self.seed is None:
            return self
        mask, amount = renewed(self.seed, num_rows, hidden_size, self.zoneout), self.amount
        if amount is not None:
            amount = by_row(amount)
            mask = mask & amount if amount.dtype == torch.bool else torch.where(mask, amount, 0)
        return self._replace(amount=mask, seed=None)

    def dropping(self, batch: int, hidden_size: int, dtype: torch.dtype) -> PerStep:
        """The same of one direction with (B, H) as `dropped`."""
        if self.dropped is None or not self.drops_by_seed:
            return self
        return self._replace(dropped=factors(self.dropped, batch, hidden_size, self.recurrent_dropout, dtype))

    def selected(self, before: Tensor) -> Tensor:
        """One direction's (N, H): the state before each step, the fresh one where it is reset."""
        if self.reset is None:
            return before
        reset, fresh = self.reset.unsqueeze(1), self.fresh
        if fresh is None:
            return before.masked_fill(reset, 0)
        if fresh.shape[0] != before.shape[0]:
            fresh = fresh.expand(before.shape[0] // fresh.shape[0], *fresh.shape).reshape(before.shape)
        return torch.where(reset, fresh, before)

    def begun(self, before: Tensor) -> Tensor:
        """The `begin` of each step, from the state before it."""
        begin = self.selected(before)
        return begin if self.decay is None else begin * by_row(self.decay)

    def seen(self, begin: Tensor, batch: int) -> Tensor:
        """What the products see of it; rounded once."""
        if self.dropped is None:
            return begin
        wide = torch.promote_types(begin.dtype, torch.float32)
        dropped = self.dropping(batch, begin.shape[1], wide).dropped
        assert dropped is not None
        seen = torch.empty_like(begin)
        by_step = begin.shape[0] // max(batch, 1), batch, begin.shape[1]
        torch.mul(begin.view(by_step), dropped, out=seen.view(by_step))
        return seen

    def begun_grad(self, d_begin: Tensor) -> Tensor:
        """The derivative by the state before each step."""
        d_before = d_begin if self.decay is None else d_begin * by_row(self.decay)
        return d_before if self.reset is None else d_before.masked_fill(self.reset.unsqueeze(1), 0)


class Normalised(NamedTuple):
    """Of recurrent products that are normalised (`layer_norm` of trigru/reference.py) before a bias is added: over all
    units of r, z and n together in variant "torch", over those of r and z, and of n by itself, in "cho" and "chung"."""

    gain: Tensor  # (3H,)
    hats: Tensor | None = None  # (N, 3H), backward: the products less their means, by their deviations
    rstd: Tensor | None = None  # (N, 1) or (N, 2) float32, backward: one by a product's deviation


def by_row(x: Tensor) -> Tensor:
    """(N,) or (N, H) beside (N, H)."""
    return x if x.dim() == 2 else x.unsqueeze(1)


class Operands(NamedTuple):
    """What a run reads, and where forward's results go. backward needs no more than h0, the w_hh and steps."""

    gates_in: Tensor | None  # (N, 3H) input's share of the pre-activations, with every bias that can be folded in
    h0: Tensor  # (B, H)
    w_hh: Tensor  # (3H, H)
    b_hn: Tensor | None  # (H,), variant "torch" only
    steps: Steps
    output: Tensor | None = None  # (N, H); None: memory of its own
    reserve: Tensor | None = None  # as in Kept, where it is saved; None: memory of its own
    added: int = 0  # of the hidden units, the last so many are none of the layer's (see widen.py)
    w_hh_back: Tensor | None = None  # (3H, H) of the second direction, where both run
    b_hn_back: Tensor | None = None  # (H,)
    per_step: PerStep | None = None  # None: the equations alone
    heads: int = 1  # of each direction
    normalised: Normalised | None = None  # None: products as they are
    h_n: Tensor | None = None  # (B, H), for each sequence's last state, where the schedule writes it; None: not wanted

    @property
    def sides(self) -> int:
        """What runs at once: 1, 2 for both directions of time, or the heads of one or both."""
        return self.w_hh.shape[0] if self.heads > 1 else 1 if self.w_hh_back is None else 2

    @property
    def begins(self) -> Tensor | None:
        """Where forward writes what the products see, if that is not simply the state before."""
        return None if self.per_step is None else self.per_step.begins

    @property
    def wants_d_begin(self) -> bool:
        """Whether backward gives the derivatives by what each step begins from."""
        return self.per_step is not None and self.per_step.wants_d_begin

    def new(self, features: int, per_row: bool = True) -> Tensor:
        """Memory for so many values of each row, or of each sequence, of each direction."""
        rows = self.steps.num_rows if per_row else self.h0.shape[-2]
        return self.h0.new_empty(*self.h0.shape[:-2], rows, features)


class Kept(NamedTuple):
    """What forward gives, and backward takes."""

    output: Tensor  # (N, H)
    reserve: Tensor | None  # (N, 4H) "torch": r, z, n, W_hn h + b_hn; (N, 3H) otherwise: r, z, n; None: not saved
    h_n: Tensor | None = None  # (B, H) each sequence's last state, written by forward; None: the output alone has it

    @classmethod
    def empty(cls, run: Recurrence, operands: Operands, save: bool) -> Kept:
        """Memory for it; no reserve unless `save`."""
        h0, output, reserve = operands.h0, operands.output, operands.reserve
        hidden_size = h0.shape[-1]
        if output is None:
            output = h0.new_empty(operands.steps.num_rows, operands.sides * hidden_size)
        if save and reserve is None:
            reserve = operands.new(kept_values(run.variant) * hidden_size)
        return cls(output, reserve if save else None)

    def arguments(self, operands: Operands) -> dict[str, Any]:
        """The tensors that every forward kernel of every schedule takes, by name."""
        return {
            "gates_in_ptr": operands.gates_in,
            "w_hh_ptr": operands.w_hh,
            "w_hh_back_ptr": operands.w_hh_back,
            "output_ptr": self.output,
            "reserve_ptr": self.reserve,
        }


class Gradients(NamedTuple):
    """Derivatives of the loss by what forward gave."""

    output: Tensor  # (N, H)
    h_n: Tensor | None  # (B, H), of any strides, or float32; None: zeros

    def last_state(self, h0: Tensor, **others: Any) -> Tensor:
        """The derivative by the running state at the end of time, in float32, to be run backwards. others: of
        `prologue`, which makes it."""
        from .prologue import State, prologue  # imports Triton

        d_state = h0.new_empty(h0.shape, dtype=torch.float32)
        prologue(state=State(d_state, None if self.h_n is None else self.h_n.contiguous()), **others)
        return d_state


class Derivatives(NamedTuple):
    """What backward gives."""

    d_gates: Tensor  # (N, 3H), by the pre-activations of r, z, n
    d_an: Tensor | None  # (N, H), "torch": by W_hn h + b_hn; None otherwise, where it is dn
    d_state: Tensor  # (B, H) float32, by h0
    d_begin: Tensor | None = None  # (N, H), by what each step begins from (see PerStep); None: not asked for

    @classmethod
    def empty(cls, run: Recurrence, operands: Operands, gradients: Gradients) -> Derivatives:
        """Memory for it; d_state holds the derivative by h_n."""
        hidden_size = operands.h0.shape[-1]
        d_an = operands.new(hidden_size) if run.variant == "torch" else None
        d_begin = operands.new(hidden_size) if operands.wants_d_begin else None
        return cls(operands.new(3 * hidden_size), d_an, gradients.last_state(operands.h0), d_begin)

    def arguments(self, operands: Operands, kept: Kept) -> dict[str, Any]:
        """The tensors that every backward kernel of every schedule takes, by name."""
        return {
            "h0_ptr": operands.h0,
            "w_hh_ptr": operands.w_hh,
            "w_hh_back_ptr": operands.w_hh_back,
            "output_ptr": kept.output,
            "reserve_ptr": kept.reserve,
            "d_state_ptr": self.d_state,
            "d_gates_ptr": self.d_gates,
        }
