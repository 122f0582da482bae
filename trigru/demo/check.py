"""Compare a GRU's gradients with those of the float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import reference
from ..modules import GRU
from ..planning.precision import rnn_in_tf32


def tolerance(device: torch.device) -> float:
    """The largest relative error that float32 explains over some dozens of steps on the device.

    With TF32, which torch allows its RNNs on a GPU by default, products keep 10 bits instead of 23."""
    tf32 = device.type == "cuda" and rnn_in_tf32()
    return 1e-2 if tf32 else 1e-5


def gradient_errors(gru: GRU, sequences: PackedSequence) -> dict[str, float]:
    """||error|| / ||reference|| of the gradient of the input and of every parameter of a one-layer GRU.

    The derivatives are those of a random linear function of all outputs and final states. Those of a trained model's
    loss are near zero, so their relative errors would say more about the softmax than about the GRU."""
    data = sequences.data.detach().clone().requires_grad_()
    named = dict(gru.named_parameters())
    output, h_n = gru(sequences._replace(data=data))
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (output.data, h_n)]
    got = torch.autograd.grad((output.data, h_n), [data, *named.values()], [u.to(h_n) for u in upstream])

    exact = {name: p.detach().cpu().double().requires_grad_() for name, p in named.items()}
    exact_data = data.detach().cpu().double().requires_grad_()
    outputs = _reference(gru, sequences._replace(data=exact_data), exact)
    want = torch.autograd.grad(outputs, [exact_data, *exact.values()], upstream)
    names = ["input", *named]
    return {name: _relative(g.cpu().double(), w) for name, g, w in zip(names, got, want, strict=True)}


def _reference(gru: GRU, sequences: PackedSequence, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs and final states as `gru` gives them, by the reference."""
    outputs, finals = [], []
    for suffix in ("l0", "l0_reverse") if gru.bidirectional else ("l0",):
        h0 = sequences.data.new_zeros(int(sequences.batch_sizes[0]), gru.hidden_size)
        names = [f"{kind}_{side}_{suffix}" for kind in ("weight", "bias") for side in ("ih", "hh")]
        output, h_n = reference.gru_packed(
            sequences.data,
            sequences.batch_sizes,
            h0,
            *[weights[name] for name in names if name in weights],
            variant=gru.variant,
            reverse=suffix.endswith("reverse"),
        )
        outputs.append(output)
        finals.append(h_n)
    unsorted = sequences.unsorted_indices
    h_n = torch.stack(finals)
    return torch.cat(outputs, -1), h_n if unsorted is None else h_n[:, unsorted.cpu()]


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())
