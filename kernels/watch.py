"""Raise `KernelTimeout` when a kernel gave up waiting, without making the host wait for the device.

Every device has one word in page-locked host memory. A launch is given its address and a number; where a wait was
given up, the kernel writes the number there as it ends, otherwise nothing. So a launch costs no copy, no event and no
entry in a list; in a CUDA graph it has the same two arguments, and each replay that expires writes the number again.
The host looks at the words before a later launch, in `check`, and at the end of the process, which asks nothing of the
device. A number stands for what is said of a launch, its kernel and sizes, so it is known for as long as graphs may
need it. A launch on CPU tensors has a word of its own, which is looked at as soon as it has ended.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import sys
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import KernelTimeout


class _Word:
    """A device's word, as a tensor for kernels and as a number for the host."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=True)
        self.number = ctypes.c_int32.from_address(self.tensor.data_ptr())


class Watched(NamedTuple):
    """What a launch is given: where to write that it expired, and what."""

    word: Tensor  # (1,) int32
    number: int
    immediate: bool  # whether the launch has ended when the host goes on

    def launched(self) -> None:
        """After the launch: raise KernelTimeout if it is already known to have expired."""
        if self.immediate and self.word.item():
            raise _timeout(self.number)


_words: dict[int | None, _Word] = {}  # by the device's index
_known: dict[tuple[int | None, tuple[object, ...]], Watched] = {}
_numbers: dict[tuple[object, ...], int] = {}  # of what is said of launches; 1, 2, ... in this order
_MOST = 1 << 16  # launches told apart by their sizes; further ones by their kernel alone
_lock = threading.Lock()


def _number(said: tuple[object, ...]) -> int:
    with _lock:
        return _numbers.setdefault(said if len(_numbers) < _MOST else said[:1], len(_numbers) + 1)


def _timeout(number: int) -> KernelTimeout:
    said = next(itertools.islice(_numbers, number - 1, None))
    launch = "{} on {} x {} programs, T={}, B={}, H={}".format(*said) if len(said) > 1 else said[0]
    return KernelTimeout(f"{launch}: a program gave up waiting for the others; outputs of this launch are not valid")


def check() -> None:
    """Raise KernelTimeout for a launch that is known to have expired. After `torch.cuda.synchronize()`, for any."""
    for word in _words.values():
        if number := word.number.value:
            word.number.value = 0  # reported once; the next replay of a graph writes it again
            raise _timeout(number)


def watch(device: torch.device, kernel: str, programs: int, tiles: int, steps: int, batch: int, hidden: int) -> Watched:
    """Before a launch on `device`; also raises for earlier launches, as `check` does."""
    said = (kernel, programs, tiles, steps, batch, hidden)
    if device.type != "cuda":
        word = torch.zeros(1, dtype=torch.int32, device=device)
        return Watched(word, _number(said), device.type == "cpu")
    check()
    known = _known.get((device.index, said))
    if known is None:
        if device.index not in _words:
            _words[device.index] = _Word()
        known = Watched(_words[device.index].tensor, _number(said), False)
        if len(_known) < _MOST:
            _known[device.index, said] = known
    return known


@atexit.register
def _report() -> None:
    try:
        check()
    except KernelTimeout as error:
        print(f"trigru: {error}", file=sys.stderr)
