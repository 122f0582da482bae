"""Whether tensors are like others: by torch's guards, and without them. On a GPU: tests/fakecuda/test_repeat.py."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch._C._dynamo import guards

from trigru.operators.alike import like


@pytest.fixture(params=[True, False], ids=["guards", "facts"], autouse=True)
def _guards(request, monkeypatch):
    if not request.param:
        monkeypatch.delattr(guards, "TensorGuards")


def pair():
    return torch.randn(3, 4), nn.Parameter(torch.randn(4))


OTHERS = {
    "shape": lambda x: x.new_ones(3, 5),
    "strides": lambda x: x.t().contiguous().t(),
    "dtype": lambda x: x.bfloat16().half(),
    "device": lambda x: x.to("meta"),
    "requires_grad": lambda x: x.requires_grad_(),
    "type": nn.Parameter,
    "a view that negates": torch._neg_view,
    "sparse": lambda x: x.to_sparse(),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_tells_tensors_apart(what):
    fits = like(pair())
    assert fits(*pair())
    x, y = pair()
    assert not fits(OTHERS[what](x), y)
    assert not fits(x, y.detach())


def test_under_vmap():
    fits, found = like(pair()), []
    y = pair()[1]
    torch.func.vmap(lambda x: (found.append(fits(x, y)), x)[1])(torch.randn(2, 3, 4))
    assert found == [False]


def test_one_tensor_in_two_places():
    x = torch.randn(3)
    fits = like((x, x))
    assert fits(x, x)
    assert fits(x, x.clone())
    assert not fits(x, x.double())


def test_nothing_is_like_a_subclass():
    class Own(torch.Tensor):
        pass

    assert like((torch.ones(3), torch.ones(3).as_subclass(Own))) is None


def test_no_tensor_is_kept_alive():
    x = torch.ones(3)
    fits, left = like((x,)), weakref.ref(x)
    del x
    assert left() is None
    assert fits(torch.zeros(3))
