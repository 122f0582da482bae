"""What a call brings for each step, as a stage's schedule takes it; and the way back of its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.masks import renewed
from ..kernels.recurrence import PerStep, by_row
from ..layer import NOTHING, Call, Given, Layer, alive, present
from ..planning.stages import Stage
from ..reference import Options
from .part import Found, Run
from .projections import states_before


def is_given(layer: Layer, call: Call) -> bool:
    """Whether a step does anything beside the equations, normalised or not."""
    return call.given is not NOTHING or layer.clip is not None


def does_more(layer: Layer, call: Call) -> bool:
    """Whether a step does anything beside the equations, or on normalised products."""
    return is_given(layer, call) or call.gain is not None


def names(layer: Layer, call: Call) -> tuple[str, ...]:
    """What steps do beside the equations: fields of Given, "clip", "norm"."""
    others = {"clip": layer.clip, "norm": call.gain}
    return (*present(call.given), *(name for name, x in others.items() if x is not None))


def of_part(layer: Layer, call: Call, part: int) -> PerStep:
    """Of one layer and direction of a call `before_their_ends`: row t * B + b is sequence b at step t."""
    reset, fresh, decay, amount, dropped, seed, lengths = call.given
    direction, hidden_size = part % layer.directions, layer.hidden_size
    if reset is not None:
        if layer.runs_backwards(direction):
            reset = torch.cat([reset[1:], torch.zeros_like(reset[:1])])
        reset = reset.reshape(-1)
    if fresh is not None:
        fresh = fresh[part] if fresh.dim() == 3 else fresh[:, part].reshape(-1, hidden_size)
    if decay is not None:
        decay = decay.reshape(-1, decay.shape[-1])
        decay = decay.squeeze(1) if decay.shape[1] == 1 else decay.chunk(layer.directions, 1)[direction]
    amount = None if amount is None else amount.reshape(-1)
    dropped = None if dropped is None else _of_rows(dropped, part * call.hx.shape[1])
    seed = None if seed is None else _of_rows(seed, part * num_rows_of(layer, call))
    own = PerStep(reset, fresh, decay, amount, dropped, layer.clip, lengths=lengths)
    return own._replace(seed=seed, zoneout=layer.zoneout, recurrent_dropout=layer.recurrent_dropout)


def _of_rows(seed: Tensor, first: int) -> Tensor:
    """That of the rows from `first` on."""
    return seed + first if first else seed


def of_parts(layer: Layer, call: Call, first: int, last: int) -> Given:
    """What belongs to the layers and directions first..last-1, as if there were no others."""
    given = call.given
    if given is NOTHING or (first == 0 and last == layer.parts):
        return given
    fresh, dropped, seed = given.fresh, given.dropped, given.seed
    if fresh is not None:
        fresh = fresh[first:last] if fresh.dim() == 3 else fresh[:, first:last]
    seed = None if seed is None else _of_rows(seed, first * num_rows_of(layer, call))
    dropped = None if dropped is None else _of_rows(dropped, first * call.hx.shape[1])
    return given._replace(fresh=fresh, dropped=dropped, seed=seed)


def seq_len_of(layer: Layer, call: Call) -> int:
    """Of a padded call."""
    return call.input.shape[1 if layer.batch_first else 0]


def num_rows_of(layer: Layer, call: Call) -> int:
    """Of a padded call."""
    return seq_len_of(layer, call) * call.hx.shape[1]


def before_their_ends(layer: Layer, call: Call) -> Call:
    """The call whose other fields take the steps away where a sequence is over. Lengths stay, for who skips them."""
    reset, _, decay, amount, *_, lengths = call.given
    if lengths is None:
        return call
    flags = alive(seq_len_of(layer, call), lengths)
    reset = None if reset is None else reset & flags
    decay = None if decay is None else torch.where(flags.unsqueeze(-1), decay, 1)
    given = call.given._replace(reset=reset, decay=decay, amount=_only(flags, amount))
    return call._replace(given=given)


def _only(flags: Tensor, amount: Tensor | None) -> Tensor:
    """An amount, none where a flag says so; flags as long as it is all or nothing."""
    if amount is None or amount.dtype == torch.bool:
        return flags if amount is None else flags & amount
    return torch.where(flags, amount, 0)


def of_stage(layer: Layer, call: Call, stage: Stage) -> PerStep | None:
    """Of the directions that a stage runs, one behind the other where there are two; None where nothing is given.

    Torch operations and heads take masks, zoneout's as an amount; kernels make them of the seeds."""
    if not is_given(layer, call):
        return None
    first = stage.layers[0] * layer.directions
    parts = [of_part(layer, call, first + direction) for direction in stage.directions]
    if stage.choice.schedule == "eager" or layer.num_heads > 1:
        parts = [_with_masks(part, layer, call, torch.promote_types(call.hx.dtype, torch.float32)) for part in parts]
    if len(parts) == 1:
        return parts[0]
    forth, back = parts
    tensors = {name: x for name, x in forth._asdict().items() if isinstance(x, Tensor)}
    pairs: dict[str, Any] = {name: torch.stack([x, getattr(back, name)]) for name, x in tensors.items()}
    return forth._replace(**pairs)


def _with_masks(per_step: PerStep, layer: Layer, call: Call, dtype: torch.dtype) -> PerStep:
    """Of one layer and direction, with masks in the place of seeds; dtype: of recurrent_dropout's."""
    batch, hidden_size = call.hx.shape[1:]
    return per_step.masked(num_rows_of(layer, call), hidden_size).dropping(batch, hidden_size, dtype)


def as_options(layer: Layer, call: Call) -> list[Options]:
    """Of each layer and direction, as the reference takes them."""
    if not is_given(layer, call) and call.gain is None:
        return []
    seq_len, batch = seq_len_of(layer, call), call.hx.shape[1]
    options: list[Options] = []
    call = before_their_ends(layer, call)
    for part in range(layer.parts):
        dtype = call.input.dtype
        _, _, decay, amount, dropped, clip, *_ = _with_masks(of_part(layer, call, part), layer, call, dtype)
        by_step = [None if x is None else x.to(dtype).reshape(seq_len, batch, -1) for x in (decay, amount)]
        fresh = call.given.fresh
        if fresh is not None:
            fresh = fresh[part] if fresh.dim() == 3 else fresh[:, part]
        gain = None if call.gain is None else call.gain[part]
        options.append(Options(call.given.reset, fresh, by_step[0], by_step[1], dropped, clip, gain))
    return options


def partly(begin: Tensor, new: Tensor, amount: Tensor) -> Tensor:
    """begin + amount * (new - begin), exact where amount is 1."""
    return torch.where(amount == 1, new, (1 - amount) * begin + amount * new)


def clipped(per_step: PerStep, begin: Tensor, new: Tensor) -> Tensor | None:
    """(N, H) bool: where the clip lets no derivative pass, of steps whose equations say `new`; None without a clip."""
    clip, amount = per_step.clip, None if per_step.amount is None else by_row(per_step.amount)
    if clip is None:
        return None
    end = new if amount is None else partly(begin, new, amount)
    beyond = end.abs() > clip
    return beyond if amount is None else beyond & (amount != 0)


def from_begins(per_step: PerStep, d_begin: Tensor, before: Tensor, needs: Sequence[bool]) -> Found:
    """Derivatives by fresh and decay, from those by the state that each step begins from. before: the state before each
    row's step; all (N, H). needs: of fresh, decay, amount."""
    reset, fresh, decay, *_ = per_step
    d_fresh = d_decay = None
    mask = None if reset is None else reset.unsqueeze(1)
    if fresh is not None and needs[0]:
        own = d_begin if decay is None else d_begin * by_row(decay)
        d_fresh = torch.zeros_like(own) if mask is None else own.masked_fill(~mask, 0)
        if fresh.shape[0] != own.shape[0]:
            d_fresh = d_fresh.view(-1, *fresh.shape).sum(0)
    if decay is not None and needs[1]:
        d_decay = d_begin * per_step.selected(before)
        if decay.dim() == 1:
            d_decay = d_decay.sum(1)
    return Found(d_fresh, d_decay)


def joined(per_step: PerStep | None, by_chunk: Sequence[tuple[slice, Found]]) -> Found:
    """The derivatives of a layer from those of its rows; a state for all steps has the sum."""
    assert per_step is not None
    chunks = sorted(by_chunk, key=lambda chunk: chunk[0].start)
    whole: list[Tensor | None] = []
    for name in Found._fields:
        parts, like = [getattr(found, name) for _, found in chunks], getattr(per_step, name)
        if any(x is None for x in parts) or like is None:
            whole.append(None)
        elif sum(x.shape[0] for x in parts) == like.shape[0]:
            whole.append(torch.cat(parts))
        else:
            whole.append(torch.stack(parts).sum(0))
    return Found._make(whole)


def by_given(
    variant: str,
    reverse: bool,
    run: Run,
    d_begin: Tensor,
    d_output: Tensor,
    d_h_n: Tensor | None,
    needs: Sequence[bool],
) -> Found:
    """Derivatives by fresh, decay and amount, of one direction whose gates are r, z, n, in this order, from those by
    the state that each step begins from, by each step's output, and by the last state."""
    per_step, batch = run.per_step, run.steps.batch
    assert per_step is not None
    assert run.gates is not None
    before = states_before(run.output, run.h0, run.steps, reverse)
    found = from_begins(per_step, d_begin, before, needs)
    if per_step.amount is None or not needs[2]:
        return found
    per_step = per_step.masked(*before.shape)
    amount = per_step.amount
    assert amount is not None
    # By the state that a step ends with: what the loss gives it, and what the step that begins from it does.
    d_before = per_step.begun_grad(d_begin)
    d_end = d_output.to(torch.float32, copy=True)
    rest = d_end.shape[0] - batch
    last = 0 if reverse else rest
    d_end.narrow(0, batch if reverse else 0, rest).add_(d_before.narrow(0, 0 if reverse else batch, rest))
    if d_h_n is not None:
        d_end.narrow(0, last, batch).add_(d_h_n)
    begin = per_step.begun(before).float()
    size = begin.shape[1]
    z, n = (run.gates.narrow(1, i * size, size).float() for i in (1, 2))
    new = (1 - z) * begin + z * n if variant == "chung" else (n - z * n) + z * begin
    hidden = clipped(per_step, begin, new)
    if hidden is not None:
        d_end.masked_fill_(hidden, 0)
    d_amount = d_end.mul_(new - begin)
    return found._replace(amount=of_amount(per_step, d_amount).to(amount.dtype))


def of_amount(per_step: PerStep, d_amount: Tensor) -> Tensor:
    """From the derivative by each unit's amount (N, H), that by the amount as it was given."""
    assert per_step.amount is not None
    return d_amount.sum(1) if per_step.amount.dim() == 1 else d_amount


class Sums:
    """Derivatives by what a call was given, summed over its stages."""

    def __init__(self, layer: Layer, call: Call, needs: Sequence[bool]) -> None:
        self.layer, self.call = layer, call
        self.needs = tuple(needs) or (False, False, False)
        self.found = [
            torch.zeros(x.shape, dtype=x.dtype, device=x.device) if need and x is not None else None
            for x, need in zip(call.given.differentiable, self.needs, strict=True)
        ]

    def add(self, part: int, own: Found) -> None:
        """Those of one layer and direction."""
        (fresh, decay, amount), layer, given = self.found, self.layer, self.call.given
        if fresh is not None and own.fresh is not None:
            place = fresh[part] if fresh.dim() == 3 else fresh[:, part]
            place.add_(own.fresh.view(place.shape))
        if decay is not None and own.decay is not None:
            width = decay.shape[-1]
            place = decay if width == 1 else decay.chunk(layer.directions, -1)[part % layer.directions]
            place.add_(own.decay.view(place.shape))
        if amount is not None and own.amount is not None:
            found = own.amount
            if given.seed is not None:
                rows, hidden_size = found.shape
                seed = _of_rows(given.seed, part * rows)
                found = (found * renewed(seed, rows, hidden_size, layer.zoneout)).sum(1)
            amount.add_(found.view(amount.shape))

    def in_all(self) -> list[Tensor | None]:
        """By fresh, decay and amount; past its end a sequence has none of the latter two."""
        lengths, (fresh, decay, amount) = self.call.given.lengths, self.found
        if lengths is not None and not (decay is None and amount is None):
            over = ~alive(seq_len_of(self.layer, self.call), lengths)
            decay = None if decay is None else decay.masked_fill_(over.unsqueeze(-1), 0)
            amount = None if amount is None else amount.masked_fill_(over, 0)
        return [fresh, decay, amount]
