"""How many threads torch computes with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch uses one thread on the CPU: right where products are too small to share. On 2 cores, 40
    epochs of the demo took 3 to 7 s with two threads while the machine was idle, but 30 to 95 s while others used it
    and the threads waited for each other; with one, 5 s then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
