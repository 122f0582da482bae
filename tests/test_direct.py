"""Calls that go to torch's own GRU without the records that lead there: which ones, and that they are the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import trigru
from trigru import modules, operators


def _layer(**arguments):
    return trigru.GRU(5, 6, **arguments)


@pytest.fixture
def taken(monkeypatch):
    """How many calls went directly."""
    found = []

    def watched(*arguments):
        result = operators.direct.direct(*arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr(modules, "direct", watched)
    return lambda: any(found)


@pytest.mark.parametrize("recording", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_layers": 3}, {"bidirectional": True, "batch_first": True}, {"bias": False, "num_layers": 2}],
    ids=["one", "stack", "both-directions", "no-bias"],
)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_a_direct_call_is_the_call(taken, arguments, recording, given):
    layer = _layer(**arguments)
    x = torch.randn(3, 2, 5)
    hx = torch.randn(len(layer.all_weights), 3 if layer.batch_first else 2, 6) if given else None
    peer = nn.GRU(5, 6, **arguments)
    peer.load_state_dict(layer.state_dict())
    with torch.set_grad_enabled(recording):
        found = layer(x, hx)
        assert taken()
        for got, slow, own in zip(found, operators.gru(*layer._records(x, hx)), peer(x, hx), strict=True):
            assert torch.equal(got, slow)
            assert torch.equal(got, own)
            assert got.requires_grad == recording
    if recording:
        grads, own = (torch.autograd.grad(m(x, hx)[0].square().sum(), list(m.parameters())) for m in (layer, peer))
        for got, expected in zip(grads, own, strict=True):
            torch.testing.assert_close(got, expected)


class _Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _Own(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("arguments", "x"),
    [
        ({"schedule": "eager"}, torch.ones(1, 2, 5)),
        ({"memory": "recompute"}, torch.ones(1, 2, 5)),
        ({"variant": "cho"}, torch.ones(1, 2, 5)),
        ({"num_heads": 2}, torch.ones(1, 2, 5)),
        ({"clip": 1.0}, torch.ones(1, 2, 5)),
        ({"norm": "layer"}, torch.ones(1, 2, 5)),
        ({"learn_initial_state": True}, torch.ones(1, 2, 5)),
        ({"dtype": torch.float64}, torch.ones(1, 2, 5, dtype=torch.float64)),
        ({}, torch.ones(40, 2, 5, requires_grad=True)),
        ({}, torch.ones(1, 2, 5).as_subclass(_Own)),
    ],
    ids=str,
)
def test_others_go_the_whole_way(taken, arguments, x):
    _layer(**arguments)(x)
    assert not taken()


def test_a_parametrized_weight_is_computed_once(taken):
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return 2 * x

    layer, counted = _layer(), Counted()
    nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", counted)
    before = counted.calls
    layer(torch.ones(1, 2, 5))
    assert not taken()
    assert counted.calls == before + 1


def test_who_looks_on_sees_the_whole_way(taken):
    layer, x = _layer(), torch.ones(1, 2, 5)
    with _Seen():
        layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    torch.func.vmap(layer, in_dims=1)(x.unsqueeze(1))
    torch.func.grad(lambda x: layer(x)[0].sum())(x)
    torch.jit.trace(layer, x, check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, x))
    with trigru.tap(layer) as gates:
        layer(x)
    assert len(gates) == 1
    assert not taken()
    with pytest.raises(RuntimeError, match="batch_invariant"), trigru.batch_invariant():
        layer(x)
    copy.deepcopy(layer)(x)
    assert taken()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [("bias_ih_l0", (1,), "b_ih"), ("weight_hh_l0", (18, 1), "w_hh"), ("weight_ih_l0", (18, 4), "w_ih")],
)
def test_a_weight_that_does_not_fit_is_named(name, shape, said):
    layer = _layer()
    setattr(layer, name, nn.Parameter(torch.ones(shape)))
    with pytest.raises(RuntimeError, match=f"{said}: expected shape"):
        layer(torch.ones(1, 2, 5))
