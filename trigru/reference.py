"""The GRU equations in plain PyTorch: the specification that every schedule is compared with.

Written to be read beside the equations, never optimised. Works in any floating dtype, on any device, and is
differentiable by autograd to any order. Gates are stacked in the order r, z, n, as in `nn.GRU`.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)

    "torch"  n = tanh(W_in x + b_in + r * (W_hn h + b_hn))    h' = (1 - z) * n + z * h    (nn.GRU, cuDNN)
    "cho"    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)    h' = (1 - z) * n + z * h    (Cho et al. 2014)
    "chung"  n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)    h' = (1 - z) * h + z * n    (Chung et al. 2014)

With a gain, two rows of 3H, products are normalised (`layer_norm`, Ba et al. 2016, as haste has it): W_i x of all three
gates together, times the first row; W_h h likewise times the second, but in "cho" and "chung" the candidate's product
by itself, for it comes later. Biases are added behind.

What a step may do beside the equations, for which see `Options`:

    h_begin = decay * (reset_state where an episode begins, else h)        the blend's h
    the h of the products is dropped * h_begin
    h'      = clamp(h_begin + amount * (GRU(x, h_begin) - h_begin), -clip, clip), or h_begin where amount is 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layer import Weights

VARIANTS = ("torch", "cho", "chung")


def check_variant(variant: str) -> None:
    """Raise ValueError unless `variant` is one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")


def gates(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    variant: str,
    gain: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gates of one step: reset r, update z and candidate n, each (batch, hidden_size), from what the products see.

    Arguments and errors are those of `gru_cell`."""
    check_variant(variant)
    if gain is not None:
        return _normalised_gates(x, h, w_ih, w_hh, b_ih, b_hh, gain, variant)
    w_ir, w_iz, w_in = w_ih.chunk(3)
    w_hr, w_hz, w_hn = w_hh.chunk(3)
    no_bias = x.new_zeros(3 * h.shape[-1])
    b_ir, b_iz, b_in = (no_bias if b_ih is None else b_ih).chunk(3)
    b_hr, b_hz, b_hn = (no_bias if b_hh is None else b_hh).chunk(3)

    r = torch.sigmoid(x @ w_ir.T + b_ir + h @ w_hr.T + b_hr)
    z = torch.sigmoid(x @ w_iz.T + b_iz + h @ w_hz.T + b_hz)
    if variant == "torch":
        n = torch.tanh(x @ w_in.T + b_in + r * (h @ w_hn.T + b_hn))
    else:
        n = torch.tanh(x @ w_in.T + b_in + (r * h) @ w_hn.T + b_hn)
    return r, z, n


def _normalised_gates(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    gain: Tensor,
    variant: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gates` with a gain."""
    size = h.shape[-1]
    no_bias = x.new_zeros(3 * size)
    b_hh = no_bias if b_hh is None else b_hh
    of_input, of_state = gain
    gr, gz, gn = (layer_norm(x @ w_ih.T, of_input) + (no_bias if b_ih is None else b_ih)).chunk(3, -1)
    if variant == "torch":
        hr, hz, hn = (layer_norm(h @ w_hh.T, of_state) + b_hh).chunk(3, -1)
        r, z = torch.sigmoid(gr + hr), torch.sigmoid(gz + hz)
        return r, z, torch.tanh(gn + r * hn)
    hr, hz = (layer_norm(h @ w_hh[: 2 * size].T, of_state[: 2 * size]) + b_hh[: 2 * size]).chunk(2, -1)
    r, z = torch.sigmoid(gr + hr), torch.sigmoid(gz + hz)
    hn = layer_norm((r * h) @ w_hh[2 * size :].T, of_state[2 * size :]) + b_hh[2 * size :]
    return r, z, torch.tanh(gn + hn)


EPS = 1e-5
"""Of `layer_norm`: what is added to a variance."""


def layer_norm(x: Tensor, gain: Tensor, eps: float = EPS) -> Tensor:
    """x less its mean over the last dimension, by the root of its variance and eps, times the gain; no shift."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gain, eps=eps)


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    variant: str,
    dropped: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """One step of a GRU.

    Args:
        x: input of the step, (batch, input_size).
        h: state before the step, (batch, hidden_size).
        w_ih: input weights W_ir, W_iz, W_in stacked, (3 * hidden_size, input_size).
        w_hh: recurrent weights W_hr, W_hz, W_hn stacked, (3 * hidden_size, hidden_size).
        b_ih, b_hh: biases, (3 * hidden_size,), or None for no bias.
        variant: "torch", "cho" or "chung"; see the module's docstring for the equations.
        dropped: what the products see of h, (batch, hidden_size), as a factor; None for all.
        gain: of normalised products, (2, 3 * hidden_size); None for products as they are.

    Returns:
        The state after the step, (batch, hidden_size).

    Raises:
        ValueError: unknown variant.
    """
    seen = h if dropped is None else dropped * h
    _, z, n = gates(x, seen, w_ih, w_hh, b_ih, b_hh, variant=variant, gain=gain)
    if variant == "chung":
        return (1 - z) * h + z * n
    return (1 - z) * n + z * h


class Options(NamedTuple):
    """What the steps of one layer in one direction do beside the equations.

    reset: (seq_len, batch) bool, where an episode begins: the state before that step is `fresh`, and in reverse that
        before the step which runs after it, the last one of the episode before.
    fresh: (batch, hidden_size), or (seq_len, batch, hidden_size) for the steps that begin from it; None for zeros.
    decay: (seq_len, batch, hidden_size or 1), what is left of the state that each step begins from.
    amount: (seq_len, batch, hidden_size or 1), how much of a step is done; none where it is 0.
    dropped: (batch, hidden_size), a factor on the state in the recurrent products.
    clip: the largest size of a state that a step ends with.
    gain: (2, 3 * hidden_size), of normalised products.
    """

    reset: Tensor | None = None
    fresh: Tensor | None = None
    decay: Tensor | None = None
    amount: Tensor | None = None
    dropped: Tensor | None = None
    clip: float | None = None
    gain: Tensor | None = None

    def begin(self, h: Tensor, t: int, reset: Tensor | None) -> Tensor:
        """The state that step t begins from, (batch, hidden_size); `reset`: (batch,), whose state is another one."""
        if reset is not None:
            fresh = (
                torch.zeros_like(h) if self.fresh is None else self.fresh[t] if self.fresh.dim() == 3 else self.fresh
            )
            h = torch.where(reset.unsqueeze(-1), fresh, h)
        return h if self.decay is None else self.decay[t] * h

    def end(self, h: Tensor, new: Tensor, t: int) -> Tensor:
        """The state that step t ends with, from the one it began from and the one of the equations."""
        # h + amount * (new - h), to the last digit where amount is 1
        end = new if self.amount is None else torch.lerp(h, new, self.amount[t])
        if self.clip is None:
            return end
        clipped = end.clamp(-self.clip, self.clip)
        return clipped if self.amount is None else torch.where(self.amount[t] == 0, end, clipped)

    def resets(self, reverse: bool, seq_len: int) -> Sequence[Tensor | None]:
        """For each step, whose state before it is another one."""
        if self.reset is None:
            return [None] * seq_len
        if reverse:
            return [*self.reset[1:], torch.zeros_like(self.reset[0])]
        return list(self.reset)


PLAIN = Options()


def gru(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    variant: str,
    reverse: bool = False,
    options: Options = PLAIN,
) -> tuple[Tensor, Tensor]:
    """One layer in one direction over a whole sequence.

    Args:
        input: (seq_len, batch, input_size), seq_len at least 1.
        h0: state before the first step, (batch, hidden_size).
        w_ih, w_hh, b_ih, b_hh, variant: as for `gru_cell`.
        reverse: run from the last step to the first; outputs stay at their own step's place.
        options: what steps do beside the equations.

    Returns:
        output: the state after each step, (seq_len, batch, hidden_size).
        h_n: the state after the last step that ran, (batch, hidden_size).
    """
    steps = range(input.shape[0])
    h, outputs, resets = h0, [h0] * input.shape[0], options.resets(reverse, input.shape[0])
    for t in reversed(steps) if reverse else steps:
        h = options.begin(h, t, resets[t])
        own = {"dropped": options.dropped, "gain": options.gain}
        new = gru_cell(input[t], h, w_ih, w_hh, b_ih, b_hh, variant=variant, **own)
        outputs[t] = h = options.end(h, new, t)
    return torch.stack(outputs), h


def gru_packed(
    data: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    variant: str,
    reverse: bool = False,
    gain: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `gru`, over sequences of different lengths, laid out as in `torch.nn.utils.rnn.PackedSequence`.

    Args:
        data: (sum of lengths, input_size): the rows of step 0, then those of step 1, ...; longest sequence first.
        batch_sizes: number of sequences alive at each step, (seq_len,), decreasing.
        reverse: each sequence runs from its own last step to its first.
        gain: as for `gru_cell`.

    Returns:
        output: (sum of lengths, hidden_size), laid out as `data`.
        h_n: the state of each sequence after the last of its steps that ran, (batch, hidden_size).
    """
    rows = data.split(batch_sizes.tolist())
    h, outputs = h0, list(rows)
    for t in reversed(range(len(rows))) if reverse else range(len(rows)):
        alive = rows[t].shape[0]
        outputs[t] = gru_cell(rows[t], h[:alive], w_ih, w_hh, b_ih, b_hh, variant=variant, gain=gain)
        h = torch.cat([outputs[t], h[alive:]])
    return torch.cat(outputs), h


def layer(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    *,
    variant: str,
    reverse: bool = False,
    options: Options = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`gru`, or where there are batch_sizes `gru_packed`, which of the options has the gain alone."""
    weights = (w_ih, w_hh, b_ih, b_hh)
    if batch_sizes is None:
        return gru(input, h0, *weights, variant=variant, reverse=reverse, options=options)
    return gru_packed(input, batch_sizes, h0, *weights, variant=variant, reverse=reverse, gain=options.gain)


def stack(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Weights],
    *,
    variant: str,
    bidirectional: bool = False,
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
    masks: Sequence[Tensor | None] = (),
    options: Sequence[Options] = (),
) -> tuple[Tensor, Tensor]:
    """Several layers, in one or both directions: as `gru`, or `gru_packed` with batch_sizes.

    Args:
        hx: (num_layers * directions, batch, hidden_size), the directions of a layer beside each other.
        weights: of each layer and direction, in the order of hx; gains are those of `options`.
        reverse: a single direction runs from the last step to the first.
        masks: what the output of each layer but the last is multiplied with on its way to the next; None for nothing.
        options: of each layer and direction, in the order of hx; empty for none.

    Returns:
        output: of the last layer, its directions beside each other in the last dimension. h_n: as hx.
    """
    directions = 2 if bidirectional else 1
    finals: list[Tensor] = []
    for index in range(len(weights) // directions):
        if index > 0 and masks and (mask := masks[index - 1]) is not None:
            input = input * mask
        outputs = []
        for direction in range(directions):
            part = index * directions + direction
            back = reverse or direction == 1
            own = options[part] if options else PLAIN
            output, h_n = layer(
                input, hx[part], *weights[part][:4], batch_sizes, variant=variant, reverse=back, options=own
            )
            outputs.append(output)
            finals.append(h_n)
        input = torch.cat(outputs, -1)
    return input, torch.stack(finals)
