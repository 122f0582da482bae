"""Layers for `kernels.kernelize`: their forward takes the place of the forward of a module of torch's.

`build_hf_kernel.py` puts this file beside the sources of trigru.
"""

import torch
from torch import nn

from . import modules


class GRU(nn.Module):
    """The forward of an `nn.GRU`, or of a subclass that was made replaceable, with its parameters.

    Not for torch.compile, which refuses to trace an nn.GRU whatever its forward is."""

    def forward(self, input, hx: torch.Tensor | None = None):
        """See `nn.GRU`."""
        return modules.GRU.forward(_twin(self), input, hx)


def _twin(module: nn.Module) -> modules.GRU:
    """A trigru.GRU that shares everything with the module."""
    twin = modules.GRU.__new__(modules.GRU)
    twin.__dict__.update(module.__dict__, variant="torch", schedule="auto")
    return twin
