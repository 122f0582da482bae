"""What a call brings for each step, as a stage's schedule takes it; and the way back of its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.recurrence import PerStep
from ..layer import NOTHING, Call, Given, Layer
from ..planning.stages import Stage
from ..reference import Options
from .part import Found, Run
from .projections import states_before
from .zoneout import renewed, skipped


def is_given(layer: Layer, call: Call) -> bool:
    """Whether a step does anything beside the equations."""
    return layer.clip is not None or call.gain is not None or any(x is not None for x in call.given)


def names(layer: Layer, call: Call) -> tuple[str, ...]:
    """What steps do beside the equations, by PerStep's names."""
    given = call.given
    found = [name for name in ("reset", "fresh", "decay", "amount", "dropped") if getattr(given, name) is not None]
    found += [said for said, x in (("zoneout", given.seed), ("lengths", given.lengths)) if x is not None]
    others = {"clip": layer.clip, "norm": call.gain}
    return (*found, *(name for name, x in others.items() if x is not None))


def names_of(per_step: PerStep | None) -> tuple[str, ...]:
    """The same of what a stage's steps do."""
    return tuple(name for name, x in (per_step or PerStep())._asdict().items() if x is not None and x is not False)


def of_part(layer: Layer, call: Call, part: int) -> PerStep:
    """Of one layer and direction: row t * B + b is sequence b at step t."""
    reset, fresh, decay, amount, dropped, seed = _before_their_ends(layer, call)
    direction, (_, batch, hidden_size) = part % layer.directions, call.hx.shape
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
    if seed is not None:
        mask = renewed(seed, part, seq_len_of(layer, call) * batch, hidden_size, layer.zoneout)
        amount = mask.to(call.input.dtype) if amount is None else mask * amount.unsqueeze(1)
    return PerStep(reset, fresh, decay, amount, None if dropped is None else dropped[part], layer.clip)


def of_parts(layer: Layer, call: Call, first: int, last: int) -> Given:
    """What belongs to the layers and directions first..last-1, as if there were no others."""
    given = call.given
    if given is NOTHING or (first == 0 and last == layer.parts):
        return given
    fresh, dropped, seed = given.fresh, given.dropped, given.seed
    if fresh is not None:
        fresh = fresh[first:last] if fresh.dim() == 3 else fresh[:, first:last]
    if seed is not None:
        seed = skipped(seed, first, seq_len_of(layer, call) * call.hx.shape[1], layer.hidden_size)
    return given._replace(fresh=fresh, dropped=None if dropped is None else dropped[first:last], seed=seed)


def seq_len_of(layer: Layer, call: Call) -> int:
    """Of a padded call."""
    return call.input.shape[1 if layer.batch_first else 0]


def _before_their_ends(layer: Layer, call: Call) -> tuple[Tensor | None, ...]:
    """Given's fields but for lengths, which take the others' steps away where a sequence is over."""
    *fields, lengths = call.given
    if lengths is None:
        return tuple(fields)
    reset, fresh, decay, amount, dropped, seed = fields
    alive = torch.arange(seq_len_of(layer, call), device=lengths.device).unsqueeze(1) < lengths
    reset = None if reset is None else reset & alive
    decay = None if decay is None else torch.where(alive.unsqueeze(-1), decay, 1)
    amount = alive.to(call.input.dtype) if amount is None else torch.where(alive, amount, 0)
    return reset, fresh, decay, amount, dropped, seed


def of_stage(layer: Layer, call: Call, stage: Stage) -> PerStep | None:
    """Of the directions that a stage runs, one behind the other where there are two; None where nothing is given."""
    if not is_given(layer, call):
        return None
    first = stage.layers[0] * layer.directions
    parts = [of_part(layer, call, first + direction) for direction in stage.directions]
    if len(parts) == 1:
        return parts[0]
    forth, back = parts
    tensors = {name: x for name, x in forth._asdict().items() if isinstance(x, Tensor)}
    pairs: dict[str, Any] = {name: torch.stack([x, getattr(back, name)]) for name, x in tensors.items()}
    return forth._replace(**pairs)


def as_options(layer: Layer, call: Call) -> list[Options]:
    """Of each layer and direction, as the reference takes them."""
    if not is_given(layer, call):
        return []
    seq_len, batch = seq_len_of(layer, call), call.hx.shape[1]
    options: list[Options] = []
    reset, *_ = _before_their_ends(layer, call)
    for part in range(layer.parts):
        _, _, decay, amount, dropped, clip, *_ = of_part(layer, call, part)
        by_step = [None if x is None else x.reshape(seq_len, batch, -1) for x in (decay, amount)]
        fresh = call.given.fresh
        if fresh is not None:
            fresh = fresh[part] if fresh.dim() == 3 else fresh[:, part]
        gain = None if call.gain is None else call.gain[part]
        options.append(Options(reset, fresh, by_step[0], by_step[1], dropped, clip, gain))
    return options


def from_begins(per_step: PerStep, d_begin: Tensor, before: Tensor, needs: Sequence[bool]) -> Found:
    """Derivatives by fresh and decay, from those by the state that each step begins from. before: the state before each
    row's step; all (N, H). needs: of fresh, decay, amount."""
    reset, fresh, decay, *_ = per_step
    d_fresh = d_decay = None
    mask = None if reset is None else reset.unsqueeze(1)
    if fresh is not None and needs[0]:
        own = d_begin if decay is None else d_begin * _by_row(decay)
        d_fresh = torch.zeros_like(own) if mask is None else own.masked_fill(~mask, 0)
        if fresh.shape[0] != own.shape[0]:
            d_fresh = d_fresh.view(-1, *fresh.shape).sum(0)
    if decay is not None and needs[1]:
        d_decay = d_begin * selected(per_step, before)
        if decay.dim() == 1:
            d_decay = d_decay.sum(1)
    return Found(d_fresh, d_decay)


def selected(per_step: PerStep, before: Tensor) -> Tensor:
    """(N, H): the state before each step, the fresh one where an episode begins."""
    if per_step.reset is None:
        return before
    reset, fresh = per_step.reset.unsqueeze(1), per_step.fresh
    if fresh is None:
        return before.masked_fill(reset, 0)
    if fresh.shape[0] != before.shape[0]:
        fresh = fresh.expand(before.shape[0] // fresh.shape[0], *fresh.shape).reshape(before.shape)
    return torch.where(reset, fresh, before)


def begun(per_step: PerStep, before: Tensor) -> Tensor:
    """(N, H): the state that each step begins from."""
    begin, decay = selected(per_step, before), per_step.decay
    return begin if decay is None else begin * _by_row(decay)


def seen(per_step: PerStep, begin: Tensor) -> Tensor:
    """What the products see of it."""
    dropped = per_step.dropped
    return begin if dropped is None else (begin.view(-1, *dropped.shape) * dropped).view_as(begin)


def one_of(per_step: PerStep | None, side: int) -> PerStep | None:
    """One direction's own, where they lie one behind the other."""
    if per_step is None:
        return None
    return PerStep._make(x[side] if isinstance(x, Tensor) else x for x in per_step)


def rows_of(per_step: PerStep | None, here: slice, num_rows: int) -> PerStep | None:
    """That of some rows out of num_rows."""
    if per_step is None:
        return None
    by_row = {name: x for name, x in per_step._asdict().items() if isinstance(x, Tensor) and name != "dropped"}
    own: dict[str, Any] = {name: x[here] for name, x in by_row.items() if x.shape[0] == num_rows}
    return per_step._replace(**own)


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
    amount = per_step.amount
    if amount is None or not needs[2]:
        return found
    # By the state that a step ends with: what the loss gives it, and what the step that begins from it does.
    d_before = d_begin if per_step.decay is None else d_begin * _by_row(per_step.decay)
    if per_step.reset is not None:
        d_before = d_before.masked_fill(per_step.reset.unsqueeze(1), 0)
    d_end = d_output.to(torch.float32, copy=True)
    rest = d_end.shape[0] - batch
    last = 0 if reverse else rest
    d_end.narrow(0, batch if reverse else 0, rest).add_(d_before.narrow(0, 0 if reverse else batch, rest))
    if d_h_n is not None:
        d_end.narrow(0, last, batch).add_(d_h_n)
    begin = begun(per_step, before).float()
    size = begin.shape[1]
    z, n = (run.gates.narrow(1, i * size, size).float() for i in (1, 2))
    new = (1 - z) * begin + z * n if variant == "chung" else (n - z * n) + z * begin
    difference = new - begin
    if per_step.clip is not None:
        end = begin + _by_row(amount) * difference
        difference = difference.masked_fill((end.abs() > per_step.clip) & (_by_row(amount) != 0), 0)
    d_amount = d_end * difference
    return found._replace(amount=(d_amount.sum(1) if amount.dim() == 1 else d_amount).to(amount.dtype))


def _by_row(x: Tensor) -> Tensor:
    """(N,) or (N, H) beside (N, H)."""
    return x if x.dim() == 2 else x.unsqueeze(1)


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
            of_decay = own.decay.view(place.shape)
            if given.lengths is not None:
                steps = torch.arange(len(of_decay), device=of_decay.device).view(-1, 1, 1)
                of_decay = of_decay.masked_fill(steps >= given.lengths.unsqueeze(1), 0)
            place.add_(of_decay)
        if amount is not None and own.amount is not None:
            found = own.amount
            if given.seed is not None:
                rows, hidden_size = found.shape
                found = (found * renewed(given.seed, part, rows, hidden_size, layer.zoneout)).sum(1)
            found = found.view(amount.shape)
            if given.lengths is not None:
                steps = torch.arange(found.shape[0], device=found.device).unsqueeze(1)
                found = found.masked_fill(steps >= given.lengths, 0)
            amount.add_(found)
