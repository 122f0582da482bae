"""When cuDNN can run a GRU: as torch decides for nn.GRU, and where a layer is no more than cuDNN has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from ..layer import Layer

if TYPE_CHECKING:
    from .plan import Site

_CUDNN: Any = torch.backends.cudnn  # its module is of a class that has more than mypy knows
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BFLOAT16_SINCE = 91300  # aten's own bound, CUDAHooks::supportsBFloat16RNNWithCuDNN
ONE_WAY = "cuDNN runs a single direction from the first step to the last"
DETERMINISTIC = ("CUBLAS_WORKSPACE_CONFIG", (":16:8", ":4096:2"))
"""What makes cuDNN's recurrent layers deterministic, by the notes of torch.nn.GRU."""


def why_not(layer: Layer, site: Site) -> str | None:
    """Why cuDNN cannot run a layer's calls there, or None where it can."""
    if (reason := why_not_here(layer.variant, site.device, site.dtype, site.batch)) is not None:
        return reason
    if layer.reverse:
        return ONE_WAY
    if site.given:
        return f"cuDNN has the equations alone, not {', '.join(site.given)}"
    return None


def why_not_here(variant: str, device: torch.device, dtype: torch.dtype, batch: int) -> str | None:
    """`why_not`, of what does not depend on layers and options."""
    if (reason := _not_there(device)) is not None:
        return reason
    if variant != "torch":
        return f"cuDNN has the equations of 'torch' alone, not those of {variant!r}"
    if dtype not in DTYPES:
        return f"cuDNN computes in float32, float16, bfloat16 and float64, the tensors are {dtype}"
    if dtype == torch.bfloat16 and not _has_bfloat16(device):
        return "bfloat16 needs cuDNN 9.13 and a GPU of compute capability 8.0 or newer"
    if batch == 0:
        return "cuDNN takes no empty batch"
    name, values = DETERMINISTIC
    if torch.are_deterministic_algorithms_enabled() and os.environ.get(name) not in values:
        return f"deterministic algorithms are asked for, and cuDNN's are with {name}={' or '.join(values)} only"
    return None


def _not_there(device: torch.device) -> str | None:
    """Why there is no cuDNN for tensors of a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"cuDNN needs tensors on an NVIDIA GPU, these are on {device.type}"
    if not _CUDNN.is_available():
        return "this torch was built without cuDNN"
    return None if _CUDNN.enabled else "torch.backends.cudnn.enabled is off"


def _has_bfloat16(device: torch.device) -> bool:
    return (_CUDNN.version() or 0) >= BFLOAT16_SINCE and torch.cuda.get_device_capability(device) >= (8, 0)
