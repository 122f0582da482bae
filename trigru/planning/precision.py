"""How torch multiplies float32 on a GPU. It has two doors, `allow_tf32` and `fp32_precision`, and once anyone has used
the second, reading the first may raise. What torch's own RNNs go by is the second, which the first sets too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn  # its module is of a class that has more than mypy knows
_RNN = _CUDNN.rnn  # looking it up takes longer than asking it


def rnn_in_tf32() -> bool:
    """Whether torch lets its RNNs on a GPU multiply float32 in TF32."""
    return _RNN.fp32_precision == "tf32"


@contextlib.contextmanager
def multiplied_in_tf32(*, rnn: bool, products: bool) -> Iterator[None]:
    """Within the block float32 is multiplied in TF32 as asked for: by RNNs (cuDNN and trigru), and by torch's matrix
    products. Both of torch's doors agree there; afterwards they are as before."""
    cudnn, matmul = _CUDNN, torch.backends.cuda.matmul
    before = [_old_door(backend) for backend in (cudnn, matmul)]
    parts = (cudnn.rnn, cudnn.conv, matmul)
    exact = [part.fp32_precision for part in parts]
    cudnn.allow_tf32, matmul.allow_tf32 = rnn, products
    try:
        yield
    finally:
        for backend, allowed in zip((cudnn, matmul), before, strict=True):
            if allowed is not None:
                backend.allow_tf32 = allowed
        for part, precision in zip(parts, exact, strict=True):
            if part.fp32_precision != precision:
                part.fp32_precision = precision


def _old_door(backend: Any) -> bool | None:
    """Its allow_tf32, or None where reading it raises, because the new door says otherwise."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None
