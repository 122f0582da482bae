"""One side of a comparison: a GRU with its inputs, ready to be called, checked and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import trigru

from ..cases.case import Case, Inputs
from .timers import Call

Grads = Sequence[Tensor | None]


class Side:
    """A call with everything that it needs, in the layout that its implementation wants.

    Args:
        name: as rows name it.
        call: computes the output from `leaves`; or a list of outputs, of several layers called one after another, which
            has no `results`.
        leaves: what backward differentiates by: input, initial state, parameters.
        grad: gradient of the output, in the output's layout; or a list.
        output: turns the output into nn.GRU's layout.
        grads: turns gradients by `leaves` into those by input, initial state and nn.GRU's parameters; None where there
            is none to compare.
        training: switches between training and evaluation, for cuDNN keeps what backward needs by that alone.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[], Any],
        leaves: Sequence[Tensor],
        grad: Tensor | Sequence[Tensor],
        *,
        output: Callable[[Tensor], Tensor] = lambda out: out,
        grads: Callable[[Sequence[Tensor]], Grads] = lambda found: found,
        training: Callable[[bool], object] = lambda on: None,
    ) -> None:
        self.name = name
        self.call = call
        self.leaves = list(leaves)
        self.grad = grad
        self.output = output
        self.grads = grads
        self.training = training

    def timed(self, direction: str) -> Call:
        """What is timed for one of `case.DIRECTIONS`, until it is asked for another."""
        self.training(direction != "forward")
        if direction == "forward":
            return self._forward
        if direction == "forward+backward":
            return self._train
        out = self.call()
        return lambda: torch.autograd.grad(out, self.leaves, self.grad, retain_graph=True)

    def results(self) -> tuple[Tensor, Grads]:
        """Output and gradients, in nn.GRU's layout and order."""
        out = self.call()
        found = torch.autograd.grad(out, self.leaves, self.grad)
        return self.output(out.detach()), self.grads(found)

    def _forward(self) -> Any:
        with torch.no_grad():
            return self.call()

    def _train(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.call(), self.leaves, self.grad)


def side_of_module(name: str, module: nn.Module, inputs: Inputs) -> Side:
    """A side that calls a module as nn.GRU or nn.GRUCell is called."""
    x, h0 = inputs.leaves()
    leaves = [x, h0, *module.parameters()]

    def call() -> Tensor:
        result = module(inputs.of(x), h0)
        if isinstance(result, Tensor):  # a cell
            return result
        return result[0] if inputs.batch_sizes is None else result[0].data

    return Side(name, call, leaves, inputs.grad, training=module.train)


def ours(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """trigru's side of a case."""
    places = {"device": case.device, "dtype": case.number}
    module: nn.Module
    if case.cell:
        module = trigru.GRUCell(case.input_size, case.hidden_size, variant=case.variant, **places)  # type: ignore[arg-type]
    else:
        module = trigru.GRU(
            case.input_size,
            case.hidden_size,
            case.num_layers,
            bidirectional=case.bidirectional,
            variant=case.variant,  # type: ignore[arg-type]  # checked when it is called
            schedule=case.schedule,  # type: ignore[arg-type]  # checked when it is called
            memory=case.memory,  # type: ignore[arg-type]  # checked when it is called
            **places,  # type: ignore[arg-type]
        )
    module.load_state_dict(source.state_dict())
    return side_of_module("trigru", module, inputs)
