"""Layers without their input projection, as a schedule's kernels see them, and the float64 reference for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cases import error
from torch import Tensor

from trigru import reference
from trigru.kernels import resident
from trigru.kernels.recurrence import Gradients, Operands, PerStep, Recurrence
from trigru.kernels.steps import Steps


@dataclass
class Case:
    """Inputs of a schedule's `forward` and `backward`, and what they must give."""

    gates_in: Tensor
    h0: Tensor
    w_hh: Tensor
    b_hn: Tensor | None
    grad_output: Tensor
    grad_h_n: Tensor
    steps: Steps
    variant: str
    reverse: bool
    expected: dict[str, Tensor]
    w_hh_back: Tensor | None = None  # of both directions at once, see trigru/kernels/recurrence.py
    b_hn_back: Tensor | None = None
    per_step: PerStep | None = None

    @property
    def operands(self) -> Operands:
        more = {"w_hh_back": self.w_hh_back, "b_hn_back": self.b_hn_back, "per_step": self.per_step}
        return Operands(self.gates_in, self.h0, self.w_hh, self.b_hn, self.steps, **more)

    def run(self, schedule, config, *, precision: str = "tf32", **fields) -> dict[str, Tensor]:
        """`forward` and `backward` of a schedule's module. fields: of the config, in place of its own."""
        run = Recurrence(self.variant, self.reverse, precision, replace(config, **fields))
        operands, per_step = self.operands, self.per_step
        if per_step is not None and per_step.begins is not None:  # fresh ones: what an earlier run wrote proves nothing
            per_step = per_step._replace(begins=torch.full_like(per_step.begins, float("nan")))
            operands = operands._replace(per_step=per_step)
        kept = schedule.forward(run, operands, True)
        found = schedule.backward(
            run,
            operands._replace(gates_in=None, b_hn=None, b_hn_back=None),
            kept,
            Gradients(self.grad_output, self.grad_h_n),
        )
        got = {"output": kept.output, "d_gates": found.d_gates, "d_h0": found.d_state, "d_begin": found.d_begin}
        if per_step is not None and schedule is not resident:
            got["begins"] = per_step.begins
        if found.d_an is not None and self.b_hn is not None:
            got["d_b_hn"] = found.d_an.double().sum(-2)
        return {name: value for name, value in got.items() if value is not None}

    def errors(self, got: dict[str, Tensor]) -> dict[str, float]:
        """||got - expected|| / ||expected||; infinite where an element is NaN."""
        return {name: error(value, self.expected[name]) for name, value in got.items()}


def _steps(seq_len: int, batch: int, packed: bool) -> Steps:
    if not packed:
        return Steps.padded(seq_len, batch)
    lengths = torch.cat([torch.tensor([seq_len]), torch.randint(1, seq_len + 1, (batch - 1,))])
    return Steps.of_batch_sizes((lengths[None, :] > torch.arange(seq_len)[:, None]).sum(1).tolist())


def recurrence(
    seq_len: int,
    batch: int,
    hidden_size: int,
    *,
    variant: str = "torch",
    dtype: torch.dtype = torch.bfloat16,
    reverse: bool = False,
    packed: bool = False,
    both: bool = False,
) -> Case:
    """A random one; `both` directions of time at once."""
    steps = _steps(seq_len, batch, packed)
    if not both:
        return _one(steps, hidden_size, variant, dtype, reverse)
    return beside_each_other(*(_one(steps, hidden_size, variant, dtype, reverse) for reverse in (False, True)))


def beside_each_other(ahead: Case, back: Case) -> Case:
    """Two that run in opposite directions of time as one that runs both at once."""

    def together(name: str) -> Tensor:
        return torch.stack([getattr(ahead, name), getattr(back, name)])

    expected = {
        name: torch.cat([x, back.expected[name]], 1) if name == "output" else torch.stack([x, back.expected[name]])
        for name, x in ahead.expected.items()
    }
    return replace(
        ahead,
        gates_in=together("gates_in"),
        h0=together("h0"),
        grad_output=torch.cat([ahead.grad_output, back.grad_output], 1),
        grad_h_n=together("grad_h_n"),
        expected=expected,
        w_hh_back=back.w_hh,
        b_hn_back=back.b_hn,
    )


def _one(steps: Steps, hidden_size: int, variant: str, dtype: torch.dtype, reverse: bool) -> Case:
    """A random one in one direction."""
    seq_len, batch = steps.seq_len, steps.batch
    wide = 3 * hidden_size
    gates_in, grad_output = torch.randn(steps.num_rows, wide), torch.randn(steps.num_rows, hidden_size)
    h0, grad_h_n = torch.randn(batch, hidden_size), torch.randn(batch, hidden_size)
    w_hh = torch.randn(wide, hidden_size) / hidden_size**0.5
    b_hn = torch.randn(hidden_size) / 4 if variant == "torch" else None
    given = [None if x is None else x.to(dtype) for x in (gates_in, h0, w_hh, b_hn, grad_output, grad_h_n)]
    exact = [None if x is None else x.double().requires_grad_() for x in given]
    gates, start, weights, bias, d_output, d_last = exact

    b_hh = None if bias is None else torch.cat([torch.zeros(2 * hidden_size, dtype=torch.float64), bias])
    passed_on = torch.eye(wide, dtype=torch.float64)  # the input's share of the gates is the input itself
    h, outputs = start, [start] * seq_len
    for t in steps.order(reverse):
        count, row = steps.counts[t], steps.offsets[t]
        x = gates[row : row + count]
        outputs[t] = reference.gru_cell(x, h[:count], passed_on, weights, None, b_hh, variant=variant)
        h = torch.cat([outputs[t], h[count:]])
    output = torch.cat(outputs)
    leaves = [gates, start] if bias is None else [gates, start, bias]
    grads = torch.autograd.grad((output * d_output).sum() + (h * d_last).sum(), leaves)
    expected = dict(zip(("d_gates", "d_h0", "d_b_hn"), grads, strict=False)) | {"output": output.detach()}
    gates_in, h0, w_hh, b_hn, grad_output, grad_h_n = given
    return Case(gates_in, h0, w_hh, b_hn, grad_output, grad_h_n, steps, variant, reverse, expected)
