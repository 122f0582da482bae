"""Large pages: what Linux is asked for lies within the tensor's memory, and a compiler's tensors are left alone."""

from __future__ import annotations

import mmap

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
