"""Memory that is about to be written for the first time: asked of Linux in large pages, or taken again from a call
before, whose pages are there already."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

LEAST_BYTES = 1 << 25
"""From which it is asked for: two pages at least, as numpy does. 200 MB took 15 ms to fill in place of 63 (a virtual
machine of two cores of an AMD EPYC, Linux 6.18, where the kernel's setting is "madvise", as on most distributions)."""

LEAST_REUSED = 1 << 20
KEPT_BYTES = 1 << 29
KEPT_CALLS = 64
"""What forward keeps of its gates, and backward's own memory, is taken again by later calls, from so many bytes on.
Unused it stays to so many bytes in all, and no longer than through so many of such requests. To touch memory first
costs 0.2 us a KB, in large pages 0.03, and in a virtual machine whose host takes back what is free 1.3: of a training
step of 190 ms, 82 (dcase-crnn of `trigru bench --suite workloads`, an AMD EPYC)."""

_PAGE = 1 << 21


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Of the C library, or None where there is none or it knows no large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


def in_large_pages(x: Tensor) -> Tensor:
    """x, a new tensor whose memory nobody has touched; Linux may give it pages of 2 MiB in place of 4 KiB.

    What is computed does not change, and what the kernel answers does not matter."""
    if type(x) is not Tensor or not x.is_cpu:  # a compiler's tensors have no memory, and sizes that are not to be asked
        return x
    if x.numel() * x.element_size() < LEAST_BYTES or (madvise := _madvise()) is None:
        return x
    start = x.data_ptr()
    first = -(-start // _PAGE) * _PAGE
    last = (start + x.untyped_storage().nbytes()) // _PAGE * _PAGE
    if last > first:
        madvise(first, last - first, mmap.MADV_HUGEPAGE)
    return x


def _fills() -> bool:
    """Whether torch fills memory that is not initialised."""
    return torch.are_deterministic_algorithms_enabled() and getattr(
        torch.utils.deterministic, "fill_uninitialized_memory", True
    )


class _Pool:
    """Memory that nobody uses, to be used again."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0
        self.unused: list[tuple[int, mmap.mmap]] = []  # with the number of requests when it was given back
        self.late: deque[mmap.mmap] = deque()  # given back while the lock was held, maybe by the same thread

    def take(self, size: int) -> mmap.mmap:
        """Memory of at least `size` bytes, of what there is the one that is least too large."""
        size = -(-size // _PAGE) * _PAGE
        with self.lock:
            self.calls += 1
            self._collect()
            fitting = [i for i, (_, memory) in enumerate(self.unused) if size <= len(memory) <= size + size // 4]
            if fitting:
                return self.unused.pop(min(fitting, key=lambda i: len(self.unused[i][1])))[1]
            self._drop()
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= LEAST_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def give_back(self, memory: mmap.mmap) -> None:
        """When the last tensor in it has died."""
        self.late.append(memory)
        if self.lock.acquire(blocking=False):
            try:
                self._collect()
                self._drop()
            finally:
                self.lock.release()

    def _collect(self) -> None:
        while self.late:
            self.unused.append((self.calls, self.late.popleft()))

    def _drop(self) -> None:
        """What has been unused for long, or is too much: the oldest first."""
        total, kept = 0, []
        for call, memory in reversed(self.unused):
            total += len(memory)
            if total <= KEPT_BYTES and self.calls - call <= KEPT_CALLS:
                kept.append((call, memory))
        self.unused = kept[::-1]


_pool = _Pool()


def _after_fork() -> None:
    """In the child no other thread is left to give the lock back."""
    _pool.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def empty_again(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of this shape, with the dtype and device of `like`, for trigru's own use: its memory may
    have been another call's, and cannot be resized."""
    size = math.prod(shape) * like.element_size() if type(like) is Tensor and like.is_cpu else 0
    if size < LEAST_REUSED or not hasattr(mmap, "MAP_ANONYMOUS") or _fills():
        return in_large_pages(like.new_empty(shape))
    try:
        memory = _pool.take(size)
    except OSError:  # there is none: torch says it in its own words
        return like.new_empty(shape)
    view = memoryview(memory)
    weakref.finalize(view, _pool.give_back, memory).atexit = False
    return torch.frombuffer(view, dtype=like.dtype, count=math.prod(shape)).view(shape)
