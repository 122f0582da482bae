"""Calls recorded in a CUDA graph: the GPU's own time, without the host's."""

from __future__ import annotations

from collections.abc import Callable

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
    return graph.replay
