"""The products that have no recurrence: single GEMMs over the rows of all steps together.

Shapes: N rows of all steps, I input_size, H hidden_size, B batch. Derivatives by pre-activations come from a schedule's
backward loop: `d_gates` (N, 3H) for r, z, n, and for variant "torch" `d_an` (N, H) for W_hn h + b_hn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..kernels.steps import Steps
from ..layer import Weights
from ..planning import invariant
from ..reference import EPS
from .norm import Unnormed
from .part import Run


def folded(weights: Weights, variant: str, zeros: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """The biases that can be added to the input's share, as one (3H,), and b_hn, which variant "torch" keeps apart.
    zeros: memory to be filled with zeros."""
    b_ih, b_hh = weights.bias_ih, weights.bias_hh
    count, b_hn = _apart(weights, variant)
    if b_ih is not None and b_hh is not None and b_ih.is_cuda:
        from ..kernels.prologue import Folded, prologue  # imports Triton

        both = torch.empty_like(b_ih, memory_format=torch.contiguous_format)
        prologue(folded=Folded(both, b_ih.contiguous(), b_hh.contiguous(), count), zeros=zeros)
        return both, b_hn
    if zeros is not None:
        zeros.zero_()
    if b_hh is None:
        bias = b_ih
    elif variant == "torch":
        hidden_size = b_hh.shape[0] // 3
        b_hrz = b_hh.narrow(0, 0, 2 * hidden_size)
        bias = torch.zeros_like(b_hh) if b_ih is None else b_ih.clone()
        bias.narrow(0, 0, 2 * hidden_size).add_(b_hrz)
    else:
        bias = b_hh if b_ih is None else b_ih + b_hh
    return bias, b_hn


def _apart(weights: Weights, variant: str) -> tuple[int, Tensor | None]:
    """How many values of b_hh can be added to the input's share, and the others, b_hn."""
    b_hh = weights.bias_hh
    if b_hh is None or variant != "torch":
        return 0 if b_hh is None else b_hh.shape[0], None
    hidden_size = b_hh.shape[0] // 3
    return 2 * hidden_size, b_hh.narrow(0, 2 * hidden_size, hidden_size).contiguous()


FEW, FEW_FEATURES = 64, 1024
"""Up to so many rows, of so many values, a product on a GPU is a kernel that does with it what else is to be done: it
is so small that what it costs is the launch, and torch's own would be one of several."""


def are_few(rows: Tensor) -> bool:
    """Whether their products are such a kernel's."""
    count, features = rows.shape
    return rows.is_cuda and count <= FEW and 0 < features <= FEW_FEATURES


def project_input(
    input: Tensor, weights: Weights, variant: str, out: Tensor | None = None, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The input's share of every pre-activation, (N, 3H), in memory of its own or in `out`, normalised where there is a
    gain, and the bias b_hn that variant "torch" keeps apart, (H,). zeros: memory to be filled with zeros.

    Every other bias is folded into the first result."""
    if weights.gain is None and not invariant.is_on() and are_few(input):
        count, b_hn = _apart(weights, variant)
        return few_rows(input, weights, count, zeros=zeros, out=out), b_hn
    bias, b_hn = folded(weights, variant, zeros)
    if weights.gain is not None:
        products = linear(input, weights.ih)
        share = torch.nn.functional.layer_norm(products, products.shape[1:], weights.gain[0], bias, EPS)
        return share if out is None else out.copy_(share), b_hn
    if invariant.is_on():
        return by_rows(input, weights.ih, transposed=True, bias=bias, out=out), b_hn
    if out is None:
        return linear(input, weights.ih, bias), b_hn
    if bias is None:
        return torch.mm(input, weights.ih.t(), out=out), b_hn
    return torch.addmm(bias, input, weights.ih.t(), out=out), b_hn


def by_rows(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """`product` of kernels/rows.py, in the precision that the recurrence has."""
    from ..kernels.rows import product  # imports Triton
    from ..planning.plan import precision_of

    return product(x, weight, precision_of(x.dtype), **options)


def few_rows(input: Tensor, weights: Weights, folded: int, **options: Any) -> Tensor:
    """The input's share, with b_ih and the first `folded` of b_hh, in one launch; see FEW."""
    from ..kernels.rows import TILE_OF_FEW, product  # imports Triton

    bias, more = (x if x is None else x.contiguous() for x in (weights.bias_ih, weights.bias_hh))
    options |= {"bias": bias, "more_bias": more, "folded": folded}
    return product(input, weights.ih, "ieee", transposed=True, tile=TILE_OF_FEW, **options)


def states_before(output: Tensor, h0: Tensor, steps: Steps, reverse: bool) -> Tensor:
    """The state that each row's step started from, (N, H)."""
    if steps.packed:
        before = dict(zip(steps.order(reverse), steps.walk(reverse), strict=True))
        pieces = []
        for t in range(steps.seq_len):
            _, count, row_before, carried = before[t]
            pieces += [output[row_before : row_before + carried], h0[carried:count]]
        return torch.cat(pieces)
    later = steps.num_rows - steps.batch
    return torch.cat([output[steps.batch :], h0]) if reverse else torch.cat([h0, output[:later]])


def state_into(first: int, last: int, output: Tensor, h0: Tensor, steps: Steps, reverse: bool) -> Tensor:
    """What steps first..last-1 started from, as if they were a sequence of their own: (counts[first], H)."""
    count, source = steps.counts[first], last if reverse else first - 1
    if not 0 <= source < steps.seq_len:
        return h0[:count]
    row, carried = steps.offsets[source], min(count, steps.counts[source])
    before = output[row : row + carried]
    return before if carried == count else torch.cat([before, h0[carried:count]])


def final_state(output: Tensor, steps: Steps, reverse: bool, out: Tensor) -> None:
    """Put each sequence's state after the last of its steps that ran into `out`, (B, H)."""
    if reverse or not steps.packed:
        out.copy_(output.narrow(0, 0 if reverse else steps.num_rows - steps.batch, steps.batch))
        return
    pieces = []
    for t in range(steps.seq_len - 1, -1, -1):  # the longest sequences, which come first, end last
        ends = steps.counts[t + 1] if t + 1 < steps.seq_len else 0
        pieces.append(output[steps.offsets[t] + ends : steps.offsets[t] + steps.counts[t]])
    torch.cat(pieces, out=out)


def gradients_of_few(
    d_gates: Tensor,
    d_an: Tensor | None,
    run: Run,
    reverse: bool,
    input: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]:
    """`gradients` of `few_gradients`, of one direction's run, in one launch; see FEW."""
    from ..kernels.few_rows import Places, Rows, few_rows  # imports Triton

    hidden_size = run.h0.shape[1]
    shapes = ((3 * hidden_size, 0 if input is None else input.shape[1]), (3 * hidden_size, hidden_size))
    found = Places._make(
        d_gates.new_empty(shape) if need and (input is not None or i) else None
        for i, (need, shape) in enumerate(zip(needs, (*shapes, (3 * hidden_size,), (3 * hidden_size,)), strict=False))
    )
    if any(x is not None for x in found):
        reset = run.gates if d_an is None else None
        input = None if input is None else input.contiguous()
        few_rows(Rows(d_gates, d_an, reset, input, run.output, run.h0.contiguous(), reverse), found, "ieee")
    return *found, None


def have_few(run: Run) -> bool:
    """Whether `gradients_of_few` has the derivatives."""
    plain = run.per_step is None and not run.steps.packed
    return plain and run.h0.shape[1] <= FEW_FEATURES and run.steps.num_rows > 0 and are_few(run.input)


def gradients(
    d_gates: Tensor,
    d_an: Tensor | None,
    r: Tensor,
    input: Tensor | None,
    before: Tensor | None,
    needs: Sequence[bool],
    unnormed: Unnormed | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives by w_ih, w_hh, b_ih, b_hh and the gain; None for those that `needs` (in this order) does not ask for.

    before (N, H): what each step's recurrent products saw of the state before it, read for w_hh. `r` (N, H): the reset
    gate, used for "cho" and "chung", where W_hn multiplies r * h. unnormed: where products are normalised."""
    hidden_size = r.shape[1]
    need_w_ih, need_w_hh, need_b_ih, need_b_hh, need_gain = needs
    of_input = d_gates if unnormed is None else unnormed.input
    d_w_ih = torch.mm(of_input.t(), input) if need_w_ih and input is not None else None
    d_w_hh = None
    if need_w_hh:
        assert before is not None
        d_w_hh = d_gates.new_empty(3 * hidden_size, hidden_size)
        d_w_hrz, d_w_hn = d_w_hh.split_with_sizes((2 * hidden_size, hidden_size))
        of_state = d_gates if unnormed is None else unnormed.state
        of_n = of_state.narrow(1, 2 * hidden_size, hidden_size)
        torch.mm(of_state.narrow(1, 0, 2 * hidden_size).t(), before, out=d_w_hrz)
        if d_an is None:
            torch.mm(of_n.t(), r * before, out=d_w_hn)
        else:
            torch.mm((d_an if unnormed is None else of_n).t(), before, out=d_w_hn)
    d_b_ih = d_gates.sum(0) if need_b_ih or need_b_hh else None
    d_b_hh = None
    if need_b_hh:
        assert d_b_ih is not None
        d_b_hh = d_b_ih.clone() if d_an is None else torch.cat([d_b_ih.narrow(0, 0, 2 * hidden_size), d_an.sum(0)])
    d_gain = unnormed.gain if need_gain and unnormed is not None else None
    return d_w_ih, d_w_hh, d_b_ih if need_b_ih else None, d_b_hh, d_gain
