"""Fast GRU training for PyTorch: fused Triton kernels behind a drop-in for nn.GRU."""

from .explain import explain
from .functional import gru
from .kernels.errors import KernelTimeout
from .modules import GRU, GRUCell
from .reference import VARIANTS
from .swap import swap, unswap

__version__ = "0.1.0"

__all__ = ["GRU", "VARIANTS", "GRUCell", "KernelTimeout", "__version__", "explain", "gru", "swap", "unswap"]
