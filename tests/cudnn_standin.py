"""cuDNN's recurrent operators of torch, where there is no cuDNN: registered for the CPU, computed by torch's own GRU.

What `aten/src/ATen/native/cudnn/RNN.cpp` demands is demanded here, and what it spoils is spoiled: the weights are read
out of the buffer alone, whose layout is none that one would guess (every bias comes before the matrices, with gaps);
the reserve holds bytes, is empty unless `train`, and serves one backward; hx is contiguous; gradients of the weights
are views of one buffer. On the fake device (tests/fakecuda) it is there for CUDA tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

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
        buffer = weights[0].new_zeros(self._size(weights))
        for w, view in zip(weights, self._views(weights, stride, buffer), strict=True):
            view.copy_(w)
            w.data = view
        return buffer

    @staticmethod
    def _size(weights: Sequence[Tensor]) -> int:
        return BEGIN + sum(w.numel() + GAP for w in weights)

    def _views(self, weights: Sequence[Tensor], stride: int, buffer: Tensor) -> list[Tensor]:
        """The places of the weights in the buffer: every bias, then every matrix."""
        assert buffer.numel() == self._size(weights), "no buffer of cuDNN's size"
        views, at = {}, BEGIN
        for i in sorted(range(len(weights)), key=lambda i: i % stride < 2):
            views[i] = buffer.narrow(0, at, weights[i].numel()).view(weights[i].shape)
            at += weights[i].numel() + GAP
        return [views[i] for i in range(len(weights))]

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
        params = self._views(weights, stride, buffer)
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
        given = [x, hx, *self._views(weights, stride, buffer)]
        options = (stride, num_layers, batch_first, bidirectional, list(batch_sizes))

        def differentiated() -> list[Tensor]:
            x, hx, *params = leaves = [p.detach().cpu().clone().requires_grad_() for p in given]
            again, h_n = self._compute(x, params, hx, *options)
            torch.testing.assert_close(again.detach() + self.wrong, output.cpu())
            pairs = ((again, grad_output), (h_n, grad_h_n))
            upstream = [torch.zeros_like(out) if grad is None else grad.cpu() for out, grad in pairs]
            return list(torch.autograd.grad([again, h_n], leaves, upstream))

        with ThreadPoolExecutor(1) as pool:  # in an operator's own autograd is off, and a GPU's is taken
            d_x, d_hx, *d_params = (d.to(x.device) for d in pool.submit(differentiated).result())
        views = []
        if mask[3]:
            views = self._views(weights, stride, torch.zeros_like(buffer))
            for view, d in zip(views, d_params, strict=True):
                view.copy_(d)
        nothing = x.new_empty(0)  # aten's is undefined, which Python cannot return
        return d_x if mask[0] else nothing, d_hx if mask[1] else nothing, nothing, views


@contextmanager
def standin(monkeypatch) -> Iterator[Standin]:
    """cuDNN is there: for CPU tensors, or, where the fake device is installed, for its own."""
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
        library.impl(name, function, "CUDA" if fakecuda.installed() else "CPU")
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
