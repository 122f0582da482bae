"""What the ONNX exporters find at trigru's operator. What they write is in `trigru.onnx`, imported when they ask."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from .operators import LIBRARY
from .operators.late import when_imported


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


def _symbolic(g: Any, *arguments: Any) -> Any:
    """A call in a graph of TorchScript's exporter."""
    from . import onnx

    return onnx.symbolic(g, *arguments)


def _register() -> None:
    """With both exporters, for as long as the operators' library lives."""
    torch.library.register_torch_dispatch("trigru::gru", ProxyTorchDispatchMode, _trace, lib=LIBRARY)
    opset = 13  # and later ones
    when_imported("torch.onnx", lambda onnx: onnx.register_custom_op_symbolic("trigru::gru", _symbolic, opset))


_register()
