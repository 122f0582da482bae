"""What torch's ONNX exporters find at trigru's operator. What they write is in `onnx.py`, imported when they ask."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode


def _is_asked() -> bool:
    """Whether an ONNX export is going on."""
    onnx = sys.modules.get("torch.onnx")  # not imported for the question: it takes 0.1 s
    return onnx is not None and onnx.is_in_onnx_export()


def _trace(mode: ProxyTorchDispatchMode, operator: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Trace a call of the operator: for ONNX as a node of its own, else as any operator is traced."""
    if not _is_asked():
        return mode.__torch_dispatch__(operator, types, args, kwargs)
    from . import onnx

    with mode:
        return onnx.decompose(*args, **(kwargs or {}))


def tell_torchscript() -> None:
    """To be called where torch.jit traces a call of the operator: its exporter then knows what to write for it."""
    if _is_asked():
        from . import onnx

        onnx.register()


def register(library: torch.library.Library) -> None:
    """Register what is registered at import, for as long as the operator's library lives."""
    torch.library.register_torch_dispatch("trigru::gru", ProxyTorchDispatchMode, _trace, lib=library)
