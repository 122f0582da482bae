"""Operations that are noted and done again. With kernels: tests/fakecuda/test_repeat.py."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

from trigru.kernels import launch
from trigru.schedules.repeat import MOST_LINES, Repeated, noted


def work(tensors):
    x, y = tensors
    rows = x.view(-1, x.shape[-1])
    halves = rows.contiguous().chunk(2, 0)
    total = torch.empty(2, dtype=x.dtype)
    torch.sum(halves[0] * y, 1, out=total)
    _unused = halves[1].narrow(0, 0, 1)
    return [total.add_(1), None, (rows.t(),)]


def drawn():
    return torch.randn(2, 2, 3), torch.randn(3)


def test_it_gives_what_the_function_gives():
    result, again = noted(work, drawn())
    assert again is not None
    for _ in range(3):
        x, y = drawn()
        total, nothing, (turned,) = again(x, y)
        wanted, _, (wanted_turned,) = work((x, y))
        assert torch.equal(total, wanted)
        assert torch.equal(turned, wanted_turned)
        assert turned.data_ptr() == x.data_ptr()  # a view, as there
        assert nothing is None
    assert result[0].shape == (2,)


def test_views_that_nothing_reads_are_left_out():
    _, again = noted(work, drawn())
    names = [getattr(value, "__name__", None) for value in again.__globals__.values()]
    assert "narrow" in names  # it was noted
    assert len([line for line in again.__code__.co_varnames if line.startswith("v")]) == 6


def test_one_tensor_in_two_places_is_two():
    same = torch.randn(3)
    _, again = noted(lambda tensors: tensors[0] - tensors[1], (same, same))
    assert torch.equal(again(torch.ones(3), torch.zeros(3)), torch.ones(3))


@pytest.mark.parametrize(
    "function",
    [
        lambda tensors: tensors[0] * tensors[0].sum().item(),
        lambda tensors: tensors[0] if tensors[0].sum() > 0 else -tensors[0],
        lambda tensors: tensors[0] + ELSEWHERE,
        lambda tensors: [tensors[0].mul_(1) for _ in range(MOST_LINES)],
        lambda tensors: tensors[0].index_fill_(0, torch.tensor(tensors[0].tolist()).long().abs(), 1.0),
        lambda tensors: [tensors[0] + 1, (launch._note.get() or id)(None)],  # a launch that only Triton may make
    ],
)
def test_what_depends_on_values_or_comes_from_elsewhere_is_not_repeated(function):
    result, again = noted(function, (torch.ones(3),))
    assert result is not None
    assert again is None
    repeated = Repeated()
    for _ in range(5):
        repeated(function, (torch.ones(3),))
    assert repeated.again is None
    assert repeated.left == math.inf


ELSEWHERE = torch.ones(3)


def test_memory_is_freed_where_it_is_last_read():
    made, alive = [], []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            alive.append(sum(ref() is not None for ref in made))
            result = func(*args, **(kwargs or {}))
            if func is torch.exp:
                made.append(weakref.ref(result))
            return result

    def chain(tensors):
        x = tensors[0]
        for _ in range(4):
            x = torch.exp(x)
        return x.clone()

    _, again = noted(chain, (torch.zeros(3),))
    x = torch.zeros(3)
    with Watched():
        result = again(x)
    assert alive == [0, 1, 1, 1, 1]  # what is read next, and nothing that was read before
    assert not any(ref() is not None for ref in made)
    assert result is not None


def test_an_error_is_the_function_s_own_and_nothing_is_kept():
    repeated, x = Repeated(), torch.ones(3)

    def wrong(tensors):
        raise ValueError("of its own")

    for _ in range(4):
        with pytest.raises(ValueError, match="of its own"):
            repeated(wrong, (x,))
    left = weakref.ref(x)
    del x
    gc.collect()
    assert left() is None
