"""cuDNN's recurrent operators of torch, where there is no cuDNN: registered for the CPU, computed by torch's own GRU.

What `aten/src/ATen/native/cudnn/RNN.cpp` demands is demanded here, and what it spoils is spoiled: the weights are read
out of the buffer alone, whose layout is none that one would guess (every bias comes before the matrices, with gaps);
the reserve holds bytes, is empty unless `train`, and serves one backward; hx is contiguous; gradients of the weights
are views of one buffer. On the fake device (tests/fakecuda) the same run on CUDA tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

GRU = 3
GAP, BEGIN = 5, 3


@dataclass
class Standin:
    """What was called, and a switch for a wrong result."""

    calls: list[str] = field(default_factory=list)
    wrong: float = 0.0  # added to the output
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def flatten(
        self, weights, stride, input_size, mode, hidden_size, proj_size, num_layers, batch_first, bidirectional
    ):  # type: ignore[no-untyped-def]
        """aten::_cudnn_rnn_flatten_weight"""
        self.calls.append("flatten")
        assert mode == GRU
        assert proj_size == 0
        views = self._views(weights[0], weights, stride)
        for w, view in zip(weights, views, strict=True):
            view.copy_(w)
            w.set_(view)
        return torch.empty(0, dtype=views[0].dtype, device=views[0].device).set_(views[0].untyped_storage())

    @staticmethod
    def _views(like: Tensor, shapes: Any, stride: int, buffer: Tensor | None = None) -> list[Tensor]:
        """The places of the weights in a buffer, a new one of zeros if None."""
        order = [i for i in range(len(shapes)) if i % stride >= 2] + [i for i in range(len(shapes)) if i % stride < 2]
        offsets, at = {}, BEGIN
        for i in order:
            offsets[i] = at
            at += shapes[i].numel() + GAP
        if buffer is None:
            buffer = like.new_zeros(at)
        assert buffer.numel() == at, "no buffer of cuDNN's size"
        return [
            torch.as_strided(buffer, shapes[i].shape, torch.empty(shapes[i].shape, device="meta").stride(), offsets[i])
            for i in range(len(shapes))
        ]

    def _compute(self, x, params, hx, stride, num_layers, batch_first, bidirectional, batch_sizes):  # type: ignore[no-untyped-def]
        rest = (params, stride == 4, num_layers, 0.0, False, bidirectional)
        if batch_sizes:
            return torch.gru(x, torch.tensor(batch_sizes), hx, *rest)
        return torch.gru(x, hx, *rest, batch_first)

    def forward(
        self,
        x,
        weights,
        stride,
        buffer,
        hx,
        cx,
        mode,
        hidden_size,
        proj_size,
        num_layers,
        batch_first,
        dropout,
        train,
        bidirectional,
        batch_sizes,
        dropout_state,
    ):  # type: ignore[no-untyped-def]
        """aten::_cudnn_rnn"""
        self.calls.append("forward" if train else "inference")
        assert mode == GRU
        assert proj_size == 0
        assert cx is None
        assert dropout == 0
        assert dropout_state is None
        assert hx.is_contiguous(), "rnn: hx is not contiguous"
        assert x.numel(), "BAD_PARAM"
        params = self._views(x, weights, stride, buffer)
        with torch.no_grad():
            output, h_n = self._compute(
                x, params, hx, stride, num_layers, batch_first, bidirectional, list(batch_sizes)
            )
        output = output + self.wrong
        if batch_first and not batch_sizes:  # steps outermost
            output = output.transpose(0, 1).contiguous().transpose(0, 1)
        number = next(self.numbers) % 251
        reserve = torch.tensor([1, number, 7] if train else [], dtype=torch.uint8, device=x.device)
        return output, h_n, x.new_empty(0), reserve, buffer

    def backward(
        self,
        x,
        weights,
        stride,
        buffer,
        hx,
        cx,
        output,
        grad_output,
        grad_h_n,
        grad_cy,
        mode,
        hidden_size,
        proj_size,
        num_layers,
        batch_first,
        dropout,
        train,
        bidirectional,
        batch_sizes,
        dropout_state,
        reserve,
        mask,
    ):  # type: ignore[no-untyped-def]
        """aten::_cudnn_rnn_backward"""
        self.calls.append("backward")
        assert train, "cudnn RNN backward can only be called in training mode"
        assert reserve.dtype == torch.uint8
        assert reserve.numel() == 3
        assert int(reserve[0]) == 1, "this reserve has served another backward"
        reserve.zero_()
        given = [x, hx, *self._views(x, weights, stride, buffer)]
        options = (stride, num_layers, batch_first, bidirectional, list(batch_sizes))

        def differentiated() -> list[Tensor]:
            x, hx, *params = leaves = [p.detach().clone().requires_grad_() for p in given]
            again, h_n = self._compute(x, params, hx, *options)
            torch.testing.assert_close(again.detach() + self.wrong, output)
            upstream = [
                torch.zeros_like(out) if grad is None else grad for out, grad in ((again, grad_output), (h_n, grad_h_n))
            ]
            return list(torch.autograd.grad([again, h_n], leaves, upstream))

        with ThreadPoolExecutor(1) as pool:  # within an operator autograd is off, for its thread
            d_x, d_hx, *d_params = pool.submit(differentiated).result()
        views = []
        if mask[3]:
            views = self._views(x, weights, stride)
            for view, d in zip(views, d_params, strict=True):
                view.copy_(d)
        return d_x, d_hx, x.new_empty(0), views


@contextmanager
def standin(monkeypatch, key: str = "CPU") -> Iterator[Standin]:
    """cuDNN is there: for CPU tensors, unless the fake device is installed, whose operations are the CPU's."""
    import fakecuda

    from trigru.planning import cudnn
    from trigru.planning.plan import _chosen
    from trigru.schedules.cudnn import _places

    found = Standin()
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("_cudnn_rnn_flatten_weight", found.flatten),
        ("_cudnn_rnn", found.forward),
        ("_cudnn_rnn_backward", found.backward),
    ):
        library.impl(name, function, key)
    if fakecuda.installed():
        monkeypatch.setattr(cudnn._CUDNN, "is_available", lambda: True)
    else:
        monkeypatch.setattr(cudnn, "_not_there", lambda device: None)
    monkeypatch.setattr(cudnn, "_has_bfloat16", lambda device: True)
    _places.cache_clear()
    _chosen.cache_clear()
    try:
        yield found
    finally:
        library._destroy()
        _places.cache_clear()
        _chosen.cache_clear()
