"""Autocast and dtypes: results of the dtype that nn.GRU gives, numbers within its rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import error
from torch import nn

import trigru
from trigru.autocast import autocast_dtype
from trigru.checks import layer_of
from trigru.layer import Call
from trigru.operators.schema import Recorded, flat

HALVES = [torch.bfloat16, torch.float16]
REALS = [torch.float32, torch.bfloat16, torch.float16]
# Of a product rounded to 8 or 11 bits and a few steps.
CLOSE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}


def pair(**options):
    theirs, ours = nn.GRU(5, 7, **options), trigru.GRU(5, 7, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("autocast", HALVES, ids=str)
@pytest.mark.parametrize(("input_dtype", "hx_dtype"), itertools.product(REALS, [None, *REALS]), ids=str)
def test_on_a_cpu_dtypes_and_numbers_are_those_of_nn(autocast, input_dtype, hx_dtype):
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x = torch.randn(4, 3, 5).to(input_dtype)
    hx = None if hx_dtype is None else torch.randn(4, 3, 7).to(hx_dtype)
    found = []
    for module in (theirs, ours):
        with torch.autocast("cpu", autocast):
            output, h_n = module(x, hx)
        loss = (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() + h_n.float().sum()
        found.append([output, h_n, *torch.autograd.grad(loss, list(module.parameters()))])
    for want, got in zip(*found, strict=True):
        assert got.dtype == want.dtype
        assert error(got, want) <= CLOSE[torch.bfloat16]


@pytest.mark.parametrize("autocast", HALVES, ids=str)
@pytest.mark.parametrize("hx_dtype", [None, *REALS], ids=str)
def test_cells_on_a_cpu_as_nn(autocast, hx_dtype):
    theirs, ours = nn.GRUCell(5, 7), trigru.GRUCell(5, 7)
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(3, 5), None if hx_dtype is None else torch.randn(3, 7).to(hx_dtype)
    with torch.autocast("cpu", autocast):
        want, got = theirs(x, hx), ours(x, hx)
    assert got.dtype == want.dtype
    assert error(got, want) <= CLOSE[autocast]


class Elsewhere:
    """Stands for a tensor on a device that this machine need not have."""

    def __init__(self, dtype, device="cuda"):
        self.dtype, self.device = dtype, torch.device(device)

    def is_floating_point(self):
        return self.dtype.is_floating_point


@pytest.mark.parametrize("dtypes", itertools.product(REALS, repeat=3), ids=str)
def test_elsewhere_everything_is_cast_to_the_dtype_of_autocast(dtypes):
    tensors = [Elsewhere(dtype) for dtype in dtypes]
    assert autocast_dtype(*tensors) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(*tensors) is None
    torch.set_autocast_enabled("cuda", True)
    try:
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        assert autocast_dtype(*tensors) == torch.bfloat16
        torch.set_autocast_dtype("cuda", torch.float16)
        assert autocast_dtype(*tensors) == torch.float16
        assert autocast_dtype(*tensors[:2], Elsewhere(torch.float64)) is None
        assert autocast_dtype(*[Elsewhere(torch.float32, "cpu")] * 3) is None
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


def test_float64_is_never_cast():
    layer = trigru.GRU(5, 7).double()
    x = torch.randn(4, 3, 5).double()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)[0]
    assert torch.equal(got, layer(x)[0])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="input: expected the weights' dtype"):
        trigru.GRU(5, 7)(x)


def test_nothing_inside_the_operators_is_cast():
    layer = trigru.GRU(5, 7)
    x, hx = torch.randn(4, 3, 5, requires_grad=True), torch.zeros(3, 7)
    weights = list(layer.parameters())
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = torch.ops.trigru.gru(*flat(Recorded(layer_of(5, 7), weights, Call(x, hx[None]), 0)))
            found.append([outputs[0], *torch.autograd.grad(outputs[0].sum(), [x, *weights])])
    for want, got in zip(*found, strict=True):
        assert torch.equal(got, want)


def test_backward_under_autocast():
    layer = trigru.GRU(5, 7)
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)[0]
        inside = torch.autograd.grad(output.sum(), list(layer.parameters()), retain_graph=True)
    outside = torch.autograd.grad(output.sum(), list(layer.parameters()))
    assert all(error(a, b) <= 1e-6 for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
def test_module_casts(dtype):
    theirs, ours = pair(bidirectional=True)
    cast = {torch.bfloat16: "bfloat16", torch.float16: "half", torch.float64: "double"}[dtype]
    theirs, ours = getattr(theirs, cast)(), getattr(ours, cast)()
    x = torch.randn(4, 3, 5).to(dtype)
    want, got = theirs(x), ours(x)
    for w, g in zip(want, got, strict=True):
        assert g.dtype == w.dtype == dtype
        assert error(g, w) <= CLOSE.get(dtype, 1e-12)


@pytest.mark.parametrize("autocast", HALVES, ids=str)
def test_grad_scaler_trains_float32_parameters(autocast):
    losses = []
    for module in pair():
        optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        torch.manual_seed(4)
        x, target = torch.randn(6, 3, 5), torch.rand(6, 3, 7) - 0.5
        for _ in range(15):
            optimiser.zero_grad()
            with torch.autocast("cpu", autocast):
                loss = (module(x)[0] - target).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
        assert all(p.dtype == torch.float32 for p in module.parameters())
        losses.append((loss.item(), [p.detach() for p in module.parameters()]))
    (want, theirs), (got, ours) = losses
    assert got == pytest.approx(want, rel=1e-2)
    assert all(error(g, w) <= CLOSE[autocast] for g, w in zip(ours, theirs, strict=True))


def kept_in_steps(module, steps=20):
    """Bytes of distinct memory that autograd keeps of a model's loop over time under autocast."""
    h, kept = torch.zeros(len(module._all_weights), 2, 128, dtype=torch.bfloat16), {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x  # held, so that no memory is counted twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        for _ in range(steps):
            _, h = module(torch.randn(1, 2, 64, dtype=torch.bfloat16), h)
    return sum(x.untyped_storage().nbytes() for x in kept.values()), h


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_weights_are_cast_once_for_a_graph(options):
    (theirs, _), (ours, h) = (kept_in_steps(cls(64, 128, **options)) for cls in (nn.GRU, trigru.GRU))
    assert ours <= 1.5 * theirs
    h.sum().backward()


def test_a_cast_weight_follows_the_weight():
    layer, x = trigru.GRU(3, 4), torch.randn(9, 2, 3, dtype=torch.bfloat16)
    hx = torch.zeros(1, 2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        first = layer(x, hx)[0]
        with torch.no_grad():
            without = layer(x, hx)[0]
            layer.weight_hh_l0.mul_(2)
        second = layer(x, hx)[0]
    assert torch.equal(first, without)
    assert not torch.equal(first, second)
    second.sum().backward()
    assert layer.weight_hh_l0.grad is not None


def values_after(change, cls, **autocast):
    """The first outputs of two stretches of autocast, a graph of the first alive, the weights changed between them."""
    torch.manual_seed(0)
    module, x = cls(4, 4), torch.randn(20, 2, 4).bfloat16()
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, **autocast):
            found.append(module(x)[0])
        change(module)
    return found


def by_fused_adam(module):
    module.weight_hh_l0.grad = torch.ones_like(module.weight_hh_l0)
    torch.optim.Adam(module.parameters(), lr=0.5, fused=True).step()


CHANGES = {
    "through data": lambda module: [w.data.mul_(0) for w in module.parameters()],
    "other data": lambda module: [setattr(w, "data", torch.zeros_like(w)) for w in module.parameters()],
    "fused optimizer": by_fused_adam,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_new_stretch_of_autocast_sees_weights_that_changed_without_a_new_version(change):
    for ours, theirs in zip(values_after(change, trigru.GRU), values_after(change, nn.GRU), strict=True):
        assert error(ours, theirs) <= CLOSE[torch.bfloat16]


def test_no_cast_is_kept_where_autocast_keeps_none():
    module, x = trigru.GRU(4, 4), torch.randn(20, 2, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        first = module(x)[0]
        for w in module.parameters():
            w.data.mul_(0)
        assert first.count_nonzero() > 0
        assert module(x)[0].count_nonzero() == 0
