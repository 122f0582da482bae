"""What the eager schedule's forward and backward agree on: rows, chunks, dtype, order of the gates."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks import whole
from ..planning.configs import EagerConfig, heads_apart
from .part import Part, Run

CHUNKS = EagerConfig()
"""Where a plan does not say otherwise. Views of a step's buffers are made once and serve every chunk, so that there are
few of them; and a chunk stays in cache."""

REUSE_ELEMENTS = 1 << 13
"""Elements of a step up to which gates are computed in such reused buffers and then copied to the reserve; above, the
copies cost more than the views."""

STEPS_BY_CHUNK = 14
"""What a chunk costs beside its steps, by what the views of a step cost: some 50 us by 3.5 us (an Intel Xeon)."""


@functools.lru_cache(maxsize=1024)
def even_steps(seq_len: int, most: int) -> int:
    """Steps of a chunk, at most `most`: so many that their views, made once, and the chunks together cost least, and
    where it can be such that no chunk is shorter than the others, for which views would be made anew."""
    best = min(most, round(math.sqrt(STEPS_BY_CHUNK * seq_len)))
    if seq_len <= best:
        return max(1, seq_len)
    near = range(max(1, best * 2 // 3), min(most, best * 4 // 3) + 1)
    return min(near, key=lambda steps: (-seq_len % steps > 0, abs(steps - best)))


class Chunk(NamedTuple):
    """Consecutive steps: the first one, the rows [start, stop) of all, and the batch size of each."""

    first: int
    start: int
    stop: int
    sizes: tuple[int, ...]


class Layout:
    """What forward and backward must agree on: rows, chunks, dtype of the arithmetic, order of the gates."""

    def __init__(self, part: Part, run: Run) -> None:
        input, steps = run.input, run.steps
        batch, self.hidden_size = run.h0.shape
        self.variant, self.reverse, self.packed = part.variant, part.reverse, steps.packed
        self.at_most = part.choice.config if isinstance(part.choice.config, EagerConfig) else CHUNKS
        self.sizes, self.offsets = steps.counts, steps.offsets
        self.dtype = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
        self.reset_after = part.variant == "torch"
        self.heads = part.heads
        self.apart = heads_apart(batch, self.hidden_size, self.heads)
        self.planes = 4 if self.reset_after else 3
        elements = batch * self.hidden_size
        self.rz = slice((self.planes - 3) * self.hidden_size, (self.planes - 1) * self.hidden_size)
        self.narrow = self.dtype != input.dtype
        self.reuse = self.narrow or elements <= REUSE_ELEMENTS

    def chunks(self) -> list[Chunk]:
        """All chunks, from the first step to the last."""
        sizes, offsets, rows = self.sizes, self.offsets, self.at_most.chunk_elements // self.hidden_size
        most = max(1, min(self.at_most.chunk_steps if self.reuse else rows, rows // max(sizes[0], 1)))
        even = self.reuse and not self.packed and self.at_most == EagerConfig()
        steps = even_steps(len(sizes), most) if even else most
        return [
            Chunk(t, offsets[t], offsets[min(t + steps, len(sizes))], tuple(sizes[t : t + steps]))
            for t in range(0, len(sizes), steps)
        ]

    def rows(self, x: Tensor, chunk: Chunk) -> Tensor:
        """The rows of `chunk` of a tensor shaped as the input, contiguous."""
        if self.packed:
            return x[chunk.start : chunk.stop].to(self.dtype).contiguous()
        return x[chunk.first : chunk.first + len(chunk.sizes)].to(self.dtype).reshape(-1, x.shape[-1])

    def before(self, states: Tensor, h0: Tensor, chunk: Chunk) -> Tensor:
        """The state that each row of `chunk` started from."""
        pieces, last = [], len(self.sizes) - 1
        if not self.packed:
            shift = self.sizes[0] if self.reverse else -self.sizes[0]
            start, stop = max(chunk.start + shift, 0), min(chunk.stop + shift, self.offsets[-1])
            pieces = [states[start:stop]]
            if stop - start < chunk.stop - chunk.start:
                pieces.insert(len(pieces) if self.reverse else 0, h0)
        else:
            for t, size in enumerate(chunk.sizes, chunk.first):
                source = t + 1 if self.reverse else t - 1
                held = min(size, self.sizes[source]) if 0 <= source <= last else 0
                if held:
                    pieces.append(states[self.offsets[source] : self.offsets[source] + held])
                pieces.append(h0[held:size])
        return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).to(self.dtype)

    def stack(self, w: Tensor) -> Tensor:
        """A weight or bias as it is used, gates in the order r, z, n."""
        return w.to(self.dtype).contiguous()

    def recurrent(self, w_hh: Tensor) -> Tensor:
        """The recurrent weights as they are used: gates in the order of the first planes of a row; of heads that are
        not taken apart, the whole matrix."""
        if not self.apart:
            w_hh = whole(w_hh, self.heads)
        if not self.reset_after:
            return self.stack(w_hh)
        r, z, n = w_hh.to(self.dtype).chunk(3)
        return torch.cat([n, r, z])

    def gains(self, gain: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Those of the products with the input and with the state, in the order of their weights."""
        return (None, None) if gain is None else (self.stack(gain[0]), self.recurrent(gain[1]))
