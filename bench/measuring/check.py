"""No time for wrong results: both sides against the float64 reference, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from trigru import reference
from trigru.command.threads import one_thread

from ..cases.case import Case, Inputs
from .side import Side

CHECKED_STEPS = 32  # of gradients; outputs are checked at every step
# ||got - exact|| / ||exact||, about twice what the tests allow trigru, because peers round in other places.
TOLERANCE = {"fp32": 1e-4, "tf32": 6e-3, "fp16": 8e-3, "bf16": 6e-2}
ROWS_AT_ONCE = 1 << 14
NAMES = ("input", "h0")


class WrongResult(RuntimeError):
    """A side's results are not those of the equations."""


def _error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def specified(source: nn.Module, case: Case, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients (input, h0, parameters) of the reference in float64."""
    x, h0 = (tensor.detach().double().requires_grad_() for tensor in (inputs.x, inputs.h0))
    weights = [p.detach().double().requires_grad_() for p in source.parameters()]
    output = _specified_output(weights, case, x, h0, inputs.batch_sizes)
    return output.detach(), list(torch.autograd.grad(output, [x, h0, *weights], inputs.grad.double()))


def _specified_output(
    weights: Sequence[Tensor], case: Case, x: Tensor, h0: Tensor, batch_sizes: Tensor | None
) -> Tensor:
    if case.cell:
        return reference.gru_cell(x, h0, *weights, variant=case.variant)
    state = iter(zip(h0, (weights[i : i + 4] for i in range(0, len(weights), 4)), strict=True))
    for _ in range(case.num_layers):
        outputs = []
        for reverse in (False, True)[: case.directions]:
            h, own = next(state)
            if batch_sizes is None:
                output = reference.gru(x, h, *own, variant=case.variant, reverse=reverse)[0]
            else:
                output = reference.gru_packed(x, batch_sizes, h, *own, variant=case.variant, reverse=reverse)[0]
            outputs.append(output)
        x = torch.cat(outputs, -1)
    return x


def errors(side: Side, source: nn.Module, case: Case, inputs: Inputs) -> dict[str, float]:
    """Relative errors of output and gradients over the first steps, by name. `side` was made for these steps alone."""
    exact_output, exact_grads = specified(source, case, inputs)
    output, grads = side.results()
    names = [*NAMES, *(name for name, _ in source.named_parameters())]
    found = {"output": _error(output, exact_output)}
    for name, got, exact in zip(names, grads, exact_grads, strict=True):
        if got is not None:
            found[f"gradient of {name}"] = _error(got, exact)
    return found


def _states_before(output: Tensor, inputs: Inputs) -> Tensor:
    """The state that each row of a layer's output started from, (rows, H)."""
    h0 = inputs.h0[0]
    if inputs.batch_sizes is None:
        return torch.cat([h0, output[:-1].flatten(0, 1)])
    steps = output.split(inputs.batch_sizes.tolist())
    later = [before[: after.shape[0]] for before, after in pairwise(steps)]
    return torch.cat([h0, *later])


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE))


def error_of_steps(side: Side, source: nn.Module, case: Case, inputs: Inputs) -> float:
    """Relative error of every step of the whole sequence, each from the state that the side itself had before it.

    For one layer in one direction: all steps are then independent, so this costs no time loop."""
    with torch.no_grad():
        output = side.output(side.call())
        rows, before, x = output.flatten(0, -2), _states_before(output, inputs), inputs.x.flatten(0, -2)
        weights = [p.double() for p in source.parameters()]
        wrong = scale = 0.0
        for part in _chunks(rows.shape[0]):
            exact = reference.gru_cell(x[part].double(), before[part].double(), *weights, variant=case.variant)
            wrong += float((rows[part].double() - exact).square().sum())
            scale += float(exact.square().sum())
    return (wrong / max(scale, 1e-300)) ** 0.5


def check(short: Side, whole: Side, source: nn.Module, case: Case, inputs: Inputs) -> float:
    """The largest relative error of a side.

    Args:
        short: the side over `inputs.first(CHECKED_STEPS)`: output and gradients are compared.
        whole: the side that will be timed: its output is, for one layer in one direction.
        source: whose weights both have.

    Raises:
        WrongResult: an error above TOLERANCE, or no number.
    """
    with one_thread():
        found = errors(short, source, case, inputs.first(CHECKED_STEPS))
        if not case.cell and case.num_layers == case.directions == 1:
            found["some step of the whole sequence"] = error_of_steps(whole, source, case, inputs)
    for name, error in found.items():
        _allowed(f"{short.name}: {name}", error, case.dtype)
    return max(found.values())


def _allowed(name: str, error: float, dtype: str) -> None:
    allowed = TOLERANCE[dtype]
    if not error <= allowed:
        raise WrongResult(f"{name} is {error:.1e} away, {allowed:.0e} allowed")


def within(name: str, got: Tensor, exact: Tensor, dtype: str) -> float:
    """The relative error of one tensor.

    Raises:
        WrongResult: it is above TOLERANCE, or no number.
    """
    error = _error(got, exact)
    _allowed(name, error, dtype)
    return error
