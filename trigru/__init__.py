"""Fast GRU training for PyTorch: fused Triton kernels behind a drop-in for nn.GRU.

`VARIANTS` names the equations that modules and functions take as `variant`; `trigru.reference` has them as code.

    >>> trigru.VARIANTS
    ('torch', 'cho', 'chung')

`KernelTimeout` is raised when a program of a persistent kernel waited in vain for the others. The kernel does not hang:
it leaves, and the host raises when it next launches a persistent kernel after that, so possibly at a later call than
the one whose results are not valid. A wait lasts 60 seconds, or as many as `TRIGRU_TIMEOUT` in the environment says
when the first such kernel is launched: more for a debugger or a sanitizer. Go back to a checkpoint, and go on by a
schedule whose programs do not wait:

    >>> import copy
    >>> def train(layer, x, steps):
    ...     for step in range(steps):
    ...         layer(x)[0].sum().backward()
    >>> layer, x = trigru.GRU(8, 16), torch.randn(50, 2, 8)
    >>> checkpoint = copy.deepcopy(layer.state_dict())
    >>> try:
    ...     train(layer, x, steps=3)
    ... except trigru.KernelTimeout:
    ...     layer.load_state_dict(checkpoint)
    ...     layer.schedule = "stepwise"
    ...     train(layer, x, steps=3)
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from .started import only_for_help

# The command prints its help without torch, whose import takes seconds.
if TYPE_CHECKING or not only_for_help():
    from . import exporters as _exporters  # noqa: F401  registers
    from .cell import GRUCell
    from .explain import explain
    from .functional import gru
    from .grud import GRUD
    from .kernels.errors import KernelTimeout
    from .modules import GRU
    from .planning.invariant import batch_invariant
    from .reference import VARIANTS
    from .swap import swap, unswap
    from .tapping import plot_gates, tap
    from .tune import tune
    from .warm import warm

if TYPE_CHECKING:
    from . import convert as convert
    from . import init as init
    from . import onnx as onnx

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "GRUD",
    "VARIANTS",
    "GRUCell",
    "KernelTimeout",
    "__version__",
    "batch_invariant",
    "explain",
    "gru",
    "plot_gates",
    "swap",
    "tap",
    "tune",
    "unswap",
    "warm",
]

_LAZY = ("convert", "init", "onnx")  # rooms that cost an import of their own at their first use


if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> _Any:
        if name in _LAZY:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
