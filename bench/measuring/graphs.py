"""Calls recorded in a CUDA graph: the GPU's own time, without the host's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .timers import Call

WARM_UPS = 3  # compiles, lets libraries choose algorithms, allocates what cannot be allocated while recording


def graphed(make: Callable[[], Call]) -> Call:
    """The replay of what `make()` returns. `make` itself runs outside of the graph, but on the recording's stream: a
    backward pass runs on the stream that its forward pass ran on."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = make()
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, call: Call) -> None:
    """`call` is handed along so that the tensors which the graph reads live as long as it."""
    graph.replay()
