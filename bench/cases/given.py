"""Random inputs of a workload's GRU, and its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .workloads import Gru


@dataclass(frozen=True)
class Given:
    """A call's tensors. x: (T, B, I); h0: (L * D, B, H), of a cell (B, H); grad: of the output, (T, B, D * H).

    lengths: (B,) int64 on the CPU, of packed rows. resets: (T, B) bool, where the state is zero before the step. keep:
    (T, B, 1) or (T, B, H), what the state before a step is multiplied by: ones and zeros for resets, or a decay."""

    x: Tensor
    h0: Tensor
    grad: Tensor
    lengths: Tensor | None = None
    resets: Tensor | None = None
    keep: Tensor | None = None

    def exact(self) -> Given:
        """The same in float64."""
        keep = None if self.keep is None else self.keep.double()
        return replace(self, x=self.x.double(), h0=self.h0.double(), grad=self.grad.double(), keep=keep)


def given(gru: Gru, device: str, dtype: torch.dtype, seed: int = 0) -> Given:
    """Standard normal numbers, the same for every run with the seed; lengths, resets and decays as `workloads.ROWS`
    says."""
    generator = torch.Generator().manual_seed(seed)
    seq_len, batch, size = gru.seq_len, gru.batch, gru.hidden_size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    h0 = random(batch, size) if gru.cell else random(gru.num_layers * gru.directions, batch, size)
    found = Given(random(seq_len, batch, gru.input_size), h0, random(seq_len, batch, gru.directions * size))
    if gru.rows == "packed":
        lengths = torch.randint(1, seq_len + 1, (batch,), generator=generator)
        lengths[0] = seq_len
        return replace(found, lengths=lengths)
    if gru.rows == "resets":
        resets = torch.rand(seq_len, batch, generator=generator) < gru.reset_rate
        resets[seq_len // 2, 0] = True  # one at least, however few steps there are
        return replace(found, resets=resets.to(device), keep=(~resets[..., None]).to(device, dtype))
    if gru.rows == "decayed":
        return replace(found, keep=torch.rand(seq_len, batch, size, generator=generator).to(device, dtype))
    return found


def source_of(gru: Gru, device: str, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """An nn.GRU or nn.GRUCell with its own initial weights, which every side takes."""
    torch.manual_seed(seed)
    if gru.cell:
        return nn.GRUCell(gru.input_size, gru.hidden_size, gru.bias).to(device, dtype)
    module = nn.GRU(
        gru.input_size,
        gru.hidden_size,
        gru.num_layers,
        bias=gru.bias,
        dropout=gru.dropout,
        bidirectional=gru.bidirectional,
    )
    return module.to(device, dtype)
