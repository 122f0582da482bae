"""What is measured: a layer with its sizes, and random inputs for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trigru.command.inspect_cases import DTYPES

DIRECTIONS = ("forward", "backward", "forward+backward")
"""forward: without gradients. backward: alone, its forward pass not counted."""


@dataclass(frozen=True)
class Case:
    """A GRU and the shape of what it gets. dtype: a name of `inspect_cases.DTYPES`, "tf32" among them."""

    suite: str
    device: str
    dtype: str
    variant: str
    hidden_size: int
    batch: int
    seq_len: int
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    cell: bool = False
    schedule: str = "auto"
    memory: str = "keep"
    features: int | None = None  # of the input, where they are not hidden_size

    @property
    def input_size(self) -> int:
        """That of the first layer."""
        return self.hidden_size if self.features is None else self.features

    @property
    def number(self) -> torch.dtype:
        """The dtype of the tensors."""
        return DTYPES[self.dtype][0]

    @property
    def precision(self) -> str:
        """How float32 is multiplied: "tf32" or "ieee"."""
        return DTYPES[self.dtype][1]

    @property
    def directions(self) -> int:
        """Directions of time."""
        return 2 if self.bidirectional else 1

    def fields(self) -> dict[str, object]:
        """The case's part of a row."""
        return {
            "suite": self.suite,
            "dtype": str(self.number).removeprefix("torch."),
            "precision": self.precision,
            "variant": self.variant,
            "schedule": self.schedule,
            "memory": self.memory,
            "hidden_size": self.hidden_size,
            "input_size": self.input_size,
            "batch": self.batch,
            "seq_len": self.seq_len,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "packed": self.packed,
            "cell": self.cell,
        }

    def __str__(self) -> str:
        kind = "cell " if self.cell else f"{self.num_layers} layers " if self.num_layers > 1 else ""
        both = "both directions " if self.bidirectional else ""
        packed = " packed" if self.packed else ""
        inputs = "" if self.features is None else f"input_size {self.features}, "
        sizes = f"{inputs}hidden_size {self.hidden_size}, batch {self.batch}, seq_len {self.seq_len}"
        return f"{kind}{both}{self.variant} {self.dtype}{packed}, {sizes}"


@dataclass(frozen=True)
class Inputs:
    """A call's tensors. x: (T, B, I), (B, I) for a cell, or with `batch_sizes` packed rows (N, I); h0: (L, B, H), for a
    cell (B, H); grad: of the output, as the output."""

    x: Tensor
    h0: Tensor
    grad: Tensor
    batch_sizes: Tensor | None = None

    def first(self, steps: int) -> Inputs:
        """The first steps alone."""
        if self.x.dim() == 2 and self.batch_sizes is None:
            return self
        if self.batch_sizes is None:
            return replace(self, x=self.x[:steps], grad=self.grad[:steps])
        sizes = self.batch_sizes[:steps]
        rows = int(sizes.sum())
        return Inputs(self.x[:rows], self.h0, self.grad[:rows], sizes)

    def leaves(self) -> tuple[Tensor, Tensor]:
        """x and h0 as leaves that take gradients, contiguous, apart from those of other calls."""
        return self.x.detach().clone().requires_grad_(), self.h0.detach().clone().requires_grad_()

    def of(self, x: Tensor) -> Tensor | PackedSequence:
        """What a module is called with."""
        return x if self.batch_sizes is None else PackedSequence(x, self.batch_sizes)


def random_inputs(case: Case) -> Inputs:
    """Standard normal numbers, the same for every run; packed: lengths from 1 to seq_len, the longest first."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.device, case.number)

    width = case.directions * case.hidden_size
    if case.cell:
        return Inputs(
            random(case.batch, case.input_size), random(case.batch, case.hidden_size), random(case.batch, width)
        )
    rows: tuple[int, ...] = (case.seq_len, case.batch)
    batch_sizes = None
    if case.packed:
        others = torch.randint(1, case.seq_len + 1, (case.batch - 1,), generator=generator)
        lengths = torch.cat([torch.tensor([case.seq_len]), others])
        batch_sizes = (lengths[None, :] > torch.arange(case.seq_len)[:, None]).sum(1)
        rows = (int(lengths.sum()),)
    h0 = random(case.num_layers * case.directions, case.batch, case.hidden_size)
    return Inputs(random(*rows, case.input_size), h0, random(*rows, width), batch_sizes)


def source_of_weights(case: Case) -> nn.Module:
    """An nn.GRU or nn.GRUCell with nn.GRU's own initial weights: every side takes them from here."""
    torch.manual_seed(0)
    if case.cell:
        return nn.GRUCell(case.input_size, case.hidden_size).to(case.device, case.number)
    module = nn.GRU(case.input_size, case.hidden_size, case.num_layers, bidirectional=case.bidirectional)
    return module.to(case.device, case.number)
