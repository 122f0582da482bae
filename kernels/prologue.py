"""What a loop finds before its first step, made by one launch: biases folded, a first state, memory filled.

Each would be one of torch's operations, or two: all of them together take the host, and the device, as long as one.
On CPU tensors, with which kernels run in tests alone, torch's operations do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import cdiv
from .launch import launch

BLOCK, WARPS = 1024, 4


class Folded(NamedTuple):
    """A sum of biases: of b_hh the first `shared` values are added to b_ih."""

    out: Tensor  # (3H,)
    b_ih: Tensor  # (3H,)
    b_hh: Tensor  # (3H,)
    shared: int


class State(NamedTuple):
    """A state that a loop starts from: every NaN in a payload that is not the reserved pattern (see exchange.py)."""

    out: Tensor  # contiguous
    source: Tensor | None  # of any dtype, contiguous; None: zeros


@triton.jit(do_not_specialize=["biases", "folded", "values", "words", "more_words", "counters", "zeros"])
def prologue_kernel(
    bias_ptr,  # (biases,), out: b_ih with the first `folded` of b_hh added; or None, as for all
    b_ih_ptr,
    b_hh_ptr,
    state_ptr,  # (values,), out
    source_ptr,  # (values,), or None: zeros
    pattern_ptr,  # so many words, out: all bits set
    more_pattern_ptr,  # so many more
    status_ptr,  # (counters,) int32, out: zeros
    zeros_ptr,  # (zeros,), out: zeros
    biases,
    folded,
    values,
    words,
    more_words,
    counters,
    zeros,
    BLOCK: tl.constexpr,
):
    """A block of each."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if bias_ptr is not None:
        own = tl.load(b_ih_ptr + i, mask=i < biases, other=0.0).to(tl.float32)
        more = tl.load(b_hh_ptr + i, mask=i < folded, other=0.0).to(tl.float32)
        tl.store(bias_ptr + i, tl.where(i < folded, own + more, own).to(bias_ptr.dtype.element_ty), mask=i < biases)
    if state_ptr is not None:
        x = tl.zeros((BLOCK,), tl.float32)
        if source_ptr is not None:
            x = tl.load(source_ptr + i, mask=i < values, other=0.0).to(tl.float32)
            x = tl.where(x == x, x, float("nan"))
        tl.store(state_ptr + i, x.to(state_ptr.dtype.element_ty), mask=i < values)
    if pattern_ptr is not None:
        tl.store(pattern_ptr.to(tl.pointer_type(tl.int32)) + i, tl.full((BLOCK,), -1, tl.int32), mask=i < words)
    if more_pattern_ptr is not None:
        at = more_pattern_ptr.to(tl.pointer_type(tl.int32)) + i
        tl.store(at, tl.full((BLOCK,), -1, tl.int32), mask=i < more_words)
    if status_ptr is not None:
        tl.store(status_ptr + i, tl.zeros((BLOCK,), tl.int32), mask=i < counters)
    if zeros_ptr is not None:
        tl.store(zeros_ptr + i, tl.zeros((BLOCK,), zeros_ptr.dtype.element_ty), mask=i < zeros)


def prologue(
    *,
    folded: Folded | None = None,
    state: State | None = None,
    patterns: Sequence[Tensor] = (),
    status: Tensor | None = None,
    zeros: Tensor | None = None,
) -> None:
    """Do what is asked for, in one launch. All tensors are contiguous.

    Args:
        folded, state: see there.
        patterns: up to two buffers of whole words of 32 bits, to be filled with the reserved pattern.
        status: int32, to be filled with zeros.
        zeros: memory to be filled with zeros.
    """
    sizes = [_numel(x) for x in (folded and folded.out, state and state.out, status, zeros)]
    words = [x.numel() * x.element_size() // 4 for x in patterns]
    most = max([*sizes, *words])
    like = next(x for x in (folded and folded.out, state and state.out, *patterns, status, zeros) if x is not None)
    if not like.is_cuda:
        _by_torch(folded, state, patterns, status, zeros)
        return
    pattern, more, *_ = (*patterns, None, None)
    args: dict[str, Any] = {"bias_ptr": None, "b_ih_ptr": None, "b_hh_ptr": None, "folded": 0}
    if folded is not None:
        args = {"bias_ptr": folded.out, "b_ih_ptr": folded.b_ih, "b_hh_ptr": folded.b_hh, "folded": folded.shared}
    args |= {"state_ptr": None, "source_ptr": None} if state is None else _named(state)
    args |= {"pattern_ptr": pattern, "more_pattern_ptr": more, "status_ptr": status, "zeros_ptr": zeros}
    args |= dict(zip(("biases", "values", "counters", "zeros"), sizes, strict=True))
    args |= dict(zip(("words", "more_words"), (*words, 0, 0), strict=False))
    launch(prologue_kernel, (cdiv(most, BLOCK),), args, {"BLOCK": BLOCK}, num_warps=WARPS, num_stages=1)


def _numel(x: Tensor | None) -> int:
    return 0 if x is None else x.numel()


def _named(state: State) -> dict[str, Tensor | None]:
    return {"state_ptr": state.out, "source_ptr": state.source}


def _by_torch(
    folded: Folded | None, state: State | None, patterns: Sequence[Tensor], status: Tensor | None, zeros: Tensor | None
) -> None:
    if folded is not None:
        folded.out.copy_(folded.b_ih)
        folded.out.narrow(0, 0, folded.shared).add_(folded.b_hh.narrow(0, 0, folded.shared))
    if state is not None:
        if state.source is None:
            state.out.zero_()
        else:
            state.out.copy_(state.source.nan_to_num(float("nan"), float("inf"), -float("inf")))
    for x in patterns:
        x.view(torch.int32).fill_(-1)
    for memory in (status, zeros):
        if memory is not None:
            memory.zero_()
