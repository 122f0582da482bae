"""Where the rows of each time step lie, for padded and for packed sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """The rows of a time-major sequence flattened to (num_rows, features).

    counts[t] sequences are alive at step t: all of them in a padded sequence, fewer and fewer in a packed one, where
    the sequences are sorted by decreasing length. Row offsets[t] + b is sequence b at step t.
    """

    counts: Sequence[int]
    offsets: Sequence[int]
    batch: int
    packed: bool

    @staticmethod
    @functools.lru_cache(maxsize=64)  # of these values nothing changes, and every call of a layer makes them
    def padded(seq_len: int, batch: int) -> Steps:
        """Steps of a (seq_len, batch, features) sequence."""
        return Steps(
            (batch,) * seq_len, range(0, (seq_len + 1) * batch, batch) if batch else (0,) * (seq_len + 1), batch, False
        )

    @staticmethod
    def of_batch_sizes(batch_sizes: Sequence[int]) -> Steps:
        """Steps of a packed sequence, from its batch sizes (decreasing)."""
        return Steps(tuple(batch_sizes), tuple(accumulate(batch_sizes, initial=0)), batch_sizes[0], True)

    @property
    def seq_len(self) -> int:
        return len(self.counts)

    @property
    def num_rows(self) -> int:
        return self.offsets[-1]

    def part(self, first: int, last: int) -> Steps:
        """The steps from `first` up to, not with, `last`, as a sequence of their own; its rows start at 0."""
        start = self.offsets[first]
        counts = self.counts[first:last]
        return Steps(counts, tuple(row - start for row in self.offsets[first : last + 1]), counts[0], self.packed)

    def row_offsets(self, device: torch.device) -> Tensor | None:
        """For a packed sequence `offsets` on `device`, int64; else None, since t * batch is the offset. Can be captured
        in a CUDA graph."""
        if not self.packed:
            return None
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return self.computed_offsets(device)
        pinned = device.type == "cuda"
        offsets = torch.tensor(self.offsets, dtype=torch.int64, device="cpu", pin_memory=pinned)
        return offsets.to(device, non_blocking=True)  # a copy from pageable memory would wait for the device

    def computed_offsets(self, device: torch.device) -> Tensor:
        """`offsets` on `device`, int64, without a copy from the host, which a capture does not allow: a kernel for each
        stretch of steps of equal counts."""
        offsets = torch.zeros(self.seq_len + 1, dtype=torch.int64, device=device)
        first = 0
        for count, stretch in groupby(self.counts):
            last = first + len(list(stretch))
            start = self.offsets[first] + count
            torch.arange(start, self.offsets[last] + 1, count, out=offsets[first + 1 : last + 1], device=device)
            first = last
        return offsets

    def order(self, reverse: bool) -> range:
        """Time steps in the order in which a layer runs through them."""
        return range(self.seq_len - 1, -1, -1) if reverse else range(self.seq_len)

    def walk(self, reverse: bool) -> Iterator[tuple[int, int, int, int]]:
        """For each step as a layer runs: its first row, its count, the first row of the step before it, and how many of
        its sequences were alive there too. The others (all, at the first step) start from h0."""
        row_before = count_before = 0
        for t in self.order(reverse):
            row, count = self.offsets[t], self.counts[t]
            yield row, count, row_before, min(count, count_before)
            row_before, count_before = row, count
