"""Layers whose steps do more than the equations (`PerStep`), and the float64 loop for them, plain torch throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from recurrences import Case, beside_each_other
from torch import Tensor

from trigru.kernels.recurrence import PerStep
from trigru.kernels.steps import Steps

OPTIONS = ("reset", "fresh", "decay", "amount", "dropped", "zoneout", "clip")


def loop(
    gates_in: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    b_hn: Tensor | None,
    per_step: PerStep,
    *,
    variant: str,
    reverse: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The equations, with what `PerStep` adds to them; to be differentiated by autograd.

    Args:
        gates_in: the input's share of the pre-activations, (T, B, 3H).
        h0: (B, H). w_hh: (3H, H). b_hn: (H,), variant "torch" only, or None.
        per_step: any of its fields; rows of all steps together as (N,) or (N, H), N = T * B. `begins` is not looked at.

    Returns:
        The state after each step, (T, B, H); what each step begins from, T times (B, H), before `dropped`; and the
        state after each step before `clip` and what it leaves as it is.
    """
    seq_len, batch, _ = gates_in.shape
    w_r, w_z, w_n = w_hh.chunk(3)

    def at(rows: Tensor | None, t: int) -> Tensor | None:
        """(N,) or (N, H) at step t: (B, 1) or (B, H)."""
        return None if rows is None else rows.reshape(seq_len, batch, -1)[t]

    begins, before_clip, outputs = [h0] * seq_len, [h0] * seq_len, [h0] * seq_len
    h = h0
    for t in reversed(range(seq_len)) if reverse else range(seq_len):
        reset, decay, amount = at(per_step.reset, t), at(per_step.decay, t), at(per_step.amount, t)
        begin = h.clone()  # a tensor of its own, by which to differentiate
        if reset is not None:
            fresh = torch.zeros_like(h)
            if per_step.fresh is not None:
                each = per_step.fresh.shape[0] == seq_len * batch
                fresh = at(per_step.fresh, t) if each else per_step.fresh
            begin = torch.where(reset, fresh, begin)
        if decay is not None:
            begin = decay * begin
        begins[t] = begin
        seen = begin if per_step.dropped is None else per_step.dropped * begin

        gr, gz, gn = gates_in[t].chunk(3, -1)
        r = torch.sigmoid(gr + seen @ w_r.T)
        z = torch.sigmoid(gz + seen @ w_z.T)
        if variant == "torch":
            n = torch.tanh(gn + r * (seen @ w_n.T + (0 if b_hn is None else b_hn)))
        else:
            n = torch.tanh(gn + (r * seen) @ w_n.T)
        h = (1 - z) * begin + z * n if variant == "chung" else (1 - z) * n + z * begin

        if amount is not None:
            h = begin + amount * (h - begin)
        before_clip[t] = h
        if per_step.clip is not None:
            h = h.clamp(-per_step.clip, per_step.clip)
        if amount is not None:
            h = torch.where(amount == 0, begin, h)
        outputs[t] = h
    return torch.stack(outputs), begins, before_clip


def _with_masks(case: Case) -> PerStep:
    """Of a case in one direction."""
    batch, hidden_size = case.h0.shape
    return case.per_step.masked(case.steps.num_rows, hidden_size).dropping(batch, hidden_size, torch.float64)


def _exact(per_step: PerStep) -> PerStep:
    """In float64."""
    floats = {name: x.double() for name, x in per_step._asdict().items() if isinstance(x, Tensor) and name != "reset"}
    return per_step._replace(**floats)


def _loop(case: Case, *leaves: Tensor | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`loop` of a case in one direction, from its gates_in, h0, w_hh and b_hn in float64."""
    gates_in, *others = leaves
    per_step = _exact(_with_masks(case))
    gates_in = gates_in.view(case.steps.seq_len, case.steps.batch, -1)
    return loop(gates_in, *others, per_step, variant=case.variant, reverse=case.reverse)


def _leaves(case: Case) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in (case.gates_in, case.h0, case.w_hh, case.b_hn)]


def _with_expected(case: Case) -> Case:
    """With what must come out."""
    leaves = [None if x is None else x.requires_grad_() for x in _leaves(case)]
    outputs, begins, _ = _loop(case, *leaves)
    last, output = outputs[0 if case.reverse else -1], outputs.flatten(0, 1)
    gates, h0, _, b_hn = leaves
    wanted = [*begins, gates, h0] if b_hn is None else [*begins, gates, h0, b_hn]
    grads = torch.autograd.grad((output * case.grad_output).sum() + (last * case.grad_h_n).sum(), wanted)
    expected = {"output": output.detach(), "d_begin": torch.cat(grads[: len(begins)])}
    expected |= dict(zip(("d_gates", "d_h0", "d_b_hn"), grads[len(begins) :], strict=False))
    if case.per_step.carries:
        dropped = 1.0 if case.per_step.dropped is None else _with_masks(case).dropped
        expected["begins"] = torch.cat([dropped * begin.detach() for begin in begins])
    return replace(case, expected=expected)


def per_step_recurrence(
    seq_len: int,
    batch: int,
    hidden_size: int,
    options: Sequence[str] = OPTIONS,
    *,
    by_unit: bool = False,
    fresh_once: bool = False,
    flags: bool = False,
    variant: str = "torch",
    dtype: torch.dtype = torch.float32,
    reverse: bool = False,
    both: bool = False,
) -> Case:
    """A random padded layer with some of the options.

    by_unit: decay and amount are (N, H), not (N,). fresh_once: one fresh state for all steps, (B, H). flags: amount is
    bool."""
    rows, wide = seq_len * batch, 3 * hidden_size
    seed, of_dropped = torch.randint(1 << 62, (2,)).unbind()

    def drawn(reverse: bool) -> Case:
        given = [
            torch.randn(rows, wide),
            torch.randn(batch, hidden_size),
            torch.randn(wide, hidden_size) / hidden_size**0.5,
            torch.randn(hidden_size) / 4 if variant == "torch" else None,
            torch.randn(rows, hidden_size),
            torch.randn(batch, hidden_size),
        ]
        per_step = _options(rows, batch, hidden_size, options, by_unit, fresh_once, flags, dtype)
        if "zoneout" in options:  # the second direction's rows are counted on from the first one's
            per_step = per_step._replace(seed=seed + rows if both and reverse else seed, zoneout=0.4)
        if "dropped" in options:
            own = of_dropped + batch if both and reverse else of_dropped
            per_step = per_step._replace(dropped=own, recurrent_dropout=0.3)
            per_step = per_step._replace(begins=torch.empty(rows, hidden_size, dtype=dtype))
        rounded = (None if x is None else x.to(dtype) for x in given)
        return Case(*rounded, Steps.padded(seq_len, batch), variant, reverse, {}, per_step=per_step)

    cases = [drawn(False), drawn(True)] if both else [drawn(reverse)]
    clip = _far_from_all(cases) if "clip" in options else None
    cases = [_with_expected(replace(case, per_step=case.per_step._replace(clip=clip))) for case in cases]
    if not both:
        return cases[0]
    ahead, back = (case.per_step for case in cases)
    together = {n: torch.stack([x, getattr(back, n)]) for n, x in ahead._asdict().items() if isinstance(x, Tensor)}
    return replace(beside_each_other(*cases), per_step=ahead._replace(**together))


def _options(
    rows: int,
    batch: int,
    hidden_size: int,
    options: Sequence[str],
    by_unit: bool,
    fresh_once: bool,
    flags: bool,
    dtype: torch.dtype,
) -> PerStep:
    """All of them but `clip`, each random, with the values among them that are told apart."""
    each = (rows, hidden_size) if by_unit else (rows,)
    chance = torch.rand(each)
    amount = torch.where(chance < 0.3, 0.0, torch.where(chance < 0.6, 1.0, torch.rand(each)))
    found = {
        "reset": torch.rand(rows) < 0.4,
        "fresh": torch.randn(batch if fresh_once else rows, hidden_size).to(dtype),
        "decay": torch.rand(each).to(dtype),
        "amount": amount > 0.5 if flags else amount.to(dtype),
    }
    per_step = PerStep(**{name: x for name, x in found.items() if name in options}, wants_d_begin=True)
    if per_step.carries:
        per_step = per_step._replace(begins=torch.empty(rows, hidden_size, dtype=dtype))
    return per_step


def _far_from_all(cases: Sequence[Case]) -> float:
    """Of some clips the one that is farthest from every value that it is compared with: nearer than they are rounded,
    a kernel would decide otherwise than float64 does."""

    def distance(clip: float) -> float:
        clipped = [replace(case, per_step=case.per_step._replace(clip=clip)) for case in cases]
        before = [x for case in clipped for x in _loop(case, *_leaves(case))[2]]
        return (torch.stack(before).abs() - clip).abs().min().item()

    return max(torch.linspace(0.3, 0.7, 41).tolist(), key=distance)
