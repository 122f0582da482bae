"""Large pages: what Linux is asked for lies within the tensor's memory, and a compiler's tensors are left alone. Memory
that is taken again: when, how much of it stays, and what happens where there is none."""

from __future__ import annotations

import mmap
import os
import signal

import pytest
import torch

import trigru
from trigru.schedules import pages


@pytest.fixture
def asked(monkeypatch):
    """What Linux would be asked, of tensors of any size."""
    found = []
    monkeypatch.setattr(pages, "LEAST_BYTES", 0)
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *given: found.append(given))
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    return found


@pytest.mark.parametrize("bytes_before", [0, 64, 1 << 21])
def test_whole_pages_within_the_memory(asked, bytes_before):
    buffer = torch.empty(bytes_before + (5 << 21), dtype=torch.uint8)
    assert pages.in_large_pages(buffer) is buffer
    ((first, length, advice),) = asked
    assert advice == mmap.MADV_HUGEPAGE
    assert first % (1 << 21) == length % (1 << 21) == 0
    assert buffer.data_ptr() <= first
    assert first + length <= buffer.data_ptr() + buffer.numel()
    assert length >= 4 << 21


def test_too_small_for_a_page_or_on_no_cpu(asked):
    pages.in_large_pages(torch.empty(1 << 20, dtype=torch.uint8))
    pages.in_large_pages(torch.empty(5 << 21, dtype=torch.uint8, device="meta"))
    assert asked == []


def test_a_compilers_tensors_have_no_memory(asked):
    layer = trigru.GRU(2, 3, 2)
    x = torch.randn(4, 5, 2)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.fixture
def pool(monkeypatch):
    """An empty one, for tensors of any size."""
    monkeypatch.setattr(pages, "LEAST_REUSED", 1)
    monkeypatch.setattr(pages, "_pool", pages._Pool())
    return pages._pool


MIB = 1 << 20


def _floats(mebibytes, like=None):
    return pages.empty_again(torch.empty(0) if like is None else like, mebibytes, MIB // 4)


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="nothing is kept")
def test_memory_is_taken_again_when_its_last_tensor_has_died(pool):
    x = _floats(10).fill_(1)
    place, row = x.data_ptr(), x[3]
    del x
    other = _floats(10).fill_(2)
    assert other.data_ptr() != place
    assert row.eq(1).all()
    del row
    assert [len(memory) for _, memory in pool.unused] == [10 * MIB]
    again = _floats(9, torch.empty(0, dtype=torch.float64))  # twice as large
    assert again.data_ptr() != place
    assert _floats(9).data_ptr() == place
    assert not pool.unused or _floats(5).data_ptr() != place  # for half of it another is made


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="nothing is kept")
def test_no_more_is_kept_than_so_much_and_for_so_long(pool, monkeypatch):
    monkeypatch.setattr(pages, "KEPT_BYTES", 12 * MIB)
    monkeypatch.setattr(pages, "KEPT_CALLS", 3)
    tensors = [_floats(8), _floats(2), _floats(4)]
    while tensors:
        tensors.pop(0)
    assert [len(memory) for _, memory in pool.unused] == [2 * MIB, 4 * MIB]
    held = [_floats(64) for _ in range(4)]
    assert not pool.unused
    assert held


def test_given_back_while_the_lock_is_held(pool):
    with pool.lock:
        pool.give_back(mmap.mmap(-1, 2 * MIB))
        assert not pool.unused
    memory = pool.take(2 * MIB)
    assert not pool.late
    assert memory not in [memory for _, memory in pool.unused]


def test_a_training_step_takes_its_memory_again(pool, monkeypatch):
    monkeypatch.setattr(pages, "LEAST_REUSED", 1 << 12)
    layer, x = trigru.GRU(6, 32, 2, schedule="eager"), torch.randn(20, 16, 6)
    found, places = [], []
    for _ in range(3):
        layer.zero_grad()
        layer(x)[0].square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
        places.append({id(memory) for _, memory in pool.unused})
    assert places[0]
    assert places[0] == places[1] == places[2]
    for grads in found[1:]:
        for one, first in zip(grads, found[0], strict=True):
            assert torch.equal(one, first)


def test_where_torch_fills_memory_it_does(poisoned, pool):
    assert _floats(2).isnan().all()
    assert not pool.calls


def test_where_there_is_no_memory_torch_says_so(pool, monkeypatch):
    def none(*_args, **_kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", none)
    assert _floats(2).shape == (2, MIB // 4)
    with pytest.raises(RuntimeError, match="memory"):
        _floats(1 << 40)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_does_not_wait_for_a_thread_of_its_parent(pool):
    with pool.lock:  # as another thread might hold it
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(_floats(2).numel() != 2 * MIB // 4)
    assert os.waitpid(child, 0)[1] == 0
