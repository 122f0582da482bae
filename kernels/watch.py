"""Raise `KernelTimeout` when a kernel gave up waiting, without making the host wait for the device.

After a launch its error word is copied to page-locked host memory, behind the kernel on its stream, with an event after
the copy. The word is looked at when a later launch is watched and its event has passed, by `check`, and at the end of
the process. Nothing here synchronises. In a CUDA graph the copy becomes part of the graph and no event is needed: the
host memory stays, and is looked at each time. Allocating it can break a capture, so it comes from words set aside at
the first watched launch outside of a capture (the warm-up that capturing asks for anyway); a launch captured when none
is left is not watched. Tensors on the CPU are looked at immediately.
"""

from __future__ import annotations

import atexit
import sys
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import KernelTimeout
from .exchange import ERROR_WORD


@dataclass(frozen=True)
class _Watched:
    launch: str
    word: Tensor  # host memory
    passed: torch.cuda.Event | None  # None: part of a CUDA graph

    def expired(self) -> bool:
        return bool(self.word[0])


_watched: list[_Watched] = []
_spare: list[Tensor] = []  # page-locked words for launches in CUDA graphs
_SPARE_WORDS = 1024
_lock = threading.Lock()


def _timeout(launch: str) -> KernelTimeout:
    return KernelTimeout(f"{launch}: a program gave up waiting for the others; outputs of this launch are not valid")


def check() -> None:
    """Raise KernelTimeout for a watched launch that is known to have expired. After `torch.cuda.synchronize()`, for
    any."""
    with _lock:
        done = [entry for entry in _watched if entry.passed is None or entry.passed.query()]
        expired = [entry for entry in done if entry.expired()]
        for entry in done:
            if entry.passed is not None:
                _watched.remove(entry)
            elif entry.expired():
                entry.word.zero_()  # reported once; the next replay writes it again
    if expired:
        raise _timeout(expired[0].launch)


def watch(launch: str, status: Tensor) -> None:
    """Look after the launch that `status` was given to; also raises for earlier launches, as `check` does."""
    if status.is_cpu:
        if status[ERROR_WORD].item():
            raise _timeout(launch)
        return
    if not status.is_cuda:  # nothing ran on it
        return
    word = status[ERROR_WORD : ERROR_WORD + 1]
    with torch.cuda.device(status.device):
        capturing = torch.cuda.is_current_stream_capturing()
        with _lock:
            if not capturing and not _spare:
                _spare.extend(torch.zeros(_SPARE_WORDS, dtype=word.dtype, pin_memory=True).split(1))
            host = _spare.pop() if capturing and _spare else None
        if host is None:
            if capturing:
                return
            host = torch.zeros(1, dtype=word.dtype, pin_memory=True)
        host.copy_(word, non_blocking=True)
        passed = None
        if not capturing:
            passed = torch.cuda.Event()
            passed.record()
    with _lock:
        _watched.append(_Watched(launch, host, passed))
    if passed is not None:
        check()


@atexit.register
def _report() -> None:
    try:
        check()
    except KernelTimeout as error:
        print(f"trigru: {error}", file=sys.stderr)
