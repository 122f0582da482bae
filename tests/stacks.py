"""Several layers without the lowest one's input projection, as `trigru.kernels.stacked` sees them, and the float64
reference for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cases import error
from torch import Tensor
from torch.nn.functional import linear

from trigru import reference
from trigru.kernels import stacked
from trigru.kernels.config import kept_values, stacked_config
from trigru.kernels.recurrence import Recurrence
from trigru.kernels.steps import Steps


@dataclass
class Stack:
    """Inputs of `stacked.forward` and `stacked.backward`, and what they must give."""

    layers: stacked.Layers
    grad_output: Tensor
    grad_h_n: Tensor
    variant: str
    reverse: bool
    expected: dict[str, Tensor]

    def run(self, module=stacked, **fields) -> dict[str, Tensor]:
        """Forward and backward of a module like `stacked`. fields: of the config, in place of its own."""
        h0 = self.layers.h0
        config = replace(stacked_config(h0.dtype, *h0.shape[1:]), **fields)
        run = Recurrence(self.variant, self.reverse, "tf32", config)
        results = {name: torch.full_like(getattr(self.layers, name), float("nan")) for name in RESULTS}
        layers = module.Layers._make(self.layers)._replace(**results)
        module.forward(run, layers)
        left = layers._replace(gates_in=None, bias=None, b_hn=None)
        found = module.backward(run, left, self.grad_output, self.grad_h_n)
        got = {name: results[name] for name in ("states", "output")}
        got |= {"d_gates": found.d_gates, "d_h0": found.d_state}
        if layers.b_hn is not None:
            got["d_b_hn"] = found.d_an.double().sum(1)
        return got

    def errors(self, got: dict[str, Tensor]) -> dict[str, float]:
        """||got - expected|| / ||expected||; infinite where an element is NaN."""
        return {name: error(value, self.expected[name]) for name, value in got.items()}


RESULTS = ("states", "output", "reserve")


def stack(
    num_layers: int,
    seq_len: int,
    batch: int,
    hidden_size: int,
    *,
    variant: str = "torch",
    dtype: torch.dtype = torch.bfloat16,
    reverse: bool = False,
    dropout: float = 0.0,
    bias: bool = True,
) -> Stack:
    """A random one."""
    rows, gates = seq_len * batch, 3 * hidden_size
    upper = num_layers - 1

    def random(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(shape) * size).to(dtype)

    gates_in, h0 = random(rows, gates), random(num_layers, batch, hidden_size)
    w_ih, w_hh = (random(n, gates, hidden_size, size=hidden_size**-0.5) for n in (upper, num_layers))
    b_ih = random(upper, gates, size=0.5) if bias else None
    b_hn = random(num_layers, hidden_size, size=0.5) if bias and variant == "torch" else None
    stays = torch.rand(upper, rows, hidden_size) >= dropout if dropout else None
    scale = torch.ones((), dtype=dtype).div(1 - dropout).item()
    results = [random(upper, rows, hidden_size), random(rows, hidden_size)]
    reserve = random(num_layers, rows, kept_values(variant) * hidden_size)
    grad_output, grad_h_n = random(rows, hidden_size), random(num_layers, batch, hidden_size)
    steps = Steps.padded(seq_len, batch)
    layers = stacked.Layers(gates_in, h0, w_ih, w_hh, b_ih, b_hn, steps, *results, reserve, stays, scale)

    starts = h0.double().requires_grad_()
    of_hn = None if b_hn is None else b_hn.double().requires_grad_()
    x, passed_on = gates_in.double().requires_grad_(), torch.eye(gates, dtype=torch.float64)
    inputs, outputs, finals = [], [], []
    for index in range(num_layers):
        if index:
            seen = outputs[-1] if stays is None else outputs[-1] * (stays[index - 1] * scale)
            x = linear(seen, w_ih[index - 1].double(), None if b_ih is None else b_ih[index - 1].double())
        b_hh = None if of_hn is None else torch.cat([torch.zeros(2 * hidden_size).double(), of_hn[index]])
        weights = passed_on, w_hh[index].double(), None, b_hh
        y, final = reference.gru(x.view(seq_len, batch, -1), starts[index], *weights, variant=variant, reverse=reverse)
        inputs.append(x)
        outputs.append(y.flatten(0, 1))
        finals.append(final)
    loss = (outputs[-1] * grad_output).sum() + (torch.stack(finals) * grad_h_n).sum()
    leaves = [*inputs, starts] if of_hn is None else [*inputs, starts, of_hn]
    grads = torch.autograd.grad(loss, leaves)
    expected = {"states": torch.stack(outputs[:-1]), "output": outputs[-1], "d_gates": torch.stack(grads[:num_layers])}
    expected |= dict(zip(("d_h0", "d_b_hn"), grads[num_layers:], strict=False))
    return Stack(layers, grad_output, grad_h_n, variant, reverse, expected)
