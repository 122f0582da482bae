"""The eager schedule with units outermost, and what it asks of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cases import assert_as_reference, layer

import trigru
from trigru import reference
from trigru.schedules import eager_forward, eager_products, eager_turned, pages

SHAPES = [(1, 64, 1, 1), (9, 70, 3, 8), (33, 65, 9, 4)]  # (seq_len, batch, input_size, hidden_size)


@pytest.fixture
def _no_rows(monkeypatch):
    """Fail where rows are taken instead."""
    monkeypatch.delattr(eager_forward, "forward")


@pytest.mark.usefixtures("_no_rows")
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_the_reference(shape, dtype, bias, reverse, monkeypatch):
    monkeypatch.setattr(eager_turned, "CHUNK_ELEMENTS", 4 * shape[1] * shape[3])  # several chunks, the last shorter
    assert_as_reference(layer(*shape, dtype=dtype, bias=bias, reverse=reverse), schedule="eager")


@pytest.mark.parametrize("shape", [(3, 63, 2, 8), (3, 64, 2, 9)], ids=str)
def test_rows_elsewhere(shape, monkeypatch):
    monkeypatch.delattr(eager_turned, "forward")
    assert_as_reference(layer(*shape), schedule="eager")


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_stack_in_both_directions(batch_first):
    module = trigru.GRU(5, 6, 2, batch_first=batch_first, bidirectional=True, dtype=torch.float64, schedule="eager")
    peer = torch.nn.GRU(5, 6, 2, batch_first=batch_first, bidirectional=True, dtype=torch.float64)
    peer.load_state_dict(module.state_dict())
    x = torch.randn((66, 7, 5) if batch_first else (7, 66, 5), dtype=torch.float64)
    h0 = torch.randn(4, 66, 6, dtype=torch.float64)
    found = []
    for gru in (module, peer):
        leaves = [x.clone().requires_grad_(), h0.clone().requires_grad_()]
        output, h_n = gru(*leaves)
        grads = torch.autograd.grad(output.sin().sum() + h_n.cos().sum(), [*leaves, *gru.parameters()])
        found.append([output, h_n, *grads])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(module(x, h0)[0], found[1][0], rtol=1e-10, atol=1e-12)


def test_second_derivatives_without_the_input():
    """Of frozen weights: the input is not kept, and what it gave is found again from the gates."""
    x, h0 = torch.randn(3, 64, 2, dtype=torch.float64), torch.randn(64, 4, dtype=torch.float64)
    weights = [torch.randn(12, 2), torch.randn(12, 4), torch.randn(12), torch.randn(12)]
    weights = [w.double() / 3 for w in weights]
    found = []
    for gru in (
        lambda x, h: trigru.gru(x, h, *weights, schedule="eager"),
        lambda x, h: reference.gru(x, h, *weights, variant="torch"),
    ):
        leaves = [x.clone().requires_grad_(), h0.clone().requires_grad_()]
        output, _ = gru(*leaves)
        first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(d.square().sum() for d in first), leaves))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_an_infinite_first_state_gives_no_new_nan():
    x, h0 = torch.zeros(2, 64, 2), torch.zeros(64, 4)
    h0[3, 1] = torch.inf
    weights = [torch.full((12, 2), 0.1), torch.full((12, 4), 0.1)]
    output, _ = trigru.gru(x, h0, *weights, schedule="eager")
    expected, _ = reference.gru(x, h0, *weights, variant="torch")
    assert output.isinf().any()
    torch.testing.assert_close(output, expected, equal_nan=True)


def test_who_multiplies_on_zen_4(monkeypatch):
    monkeypatch.setattr(eager_products, "is_zen4", lambda: True)
    monkeypatch.setattr(eager_products, "_onednn", lambda: "onednn")
    x = torch.empty(0)
    for rows, inner, columns in ((512, 128, 384), (8, 512, 1536), (1, 2048, 6144), (2048, 256, 768)):
        assert eager_products.fast_linear(x, rows, inner, columns) is None
    for rows, inner, columns in ((3, 512, 1536), (8, 1024, 3072), (512, 512, 512)):
        assert eager_products.fast_linear(x, rows, inner, columns) == "onednn"


def test_who_multiplies_where_weights_are_laid_out(monkeypatch):
    monkeypatch.setattr(eager_products, "is_zen4", lambda: False)
    monkeypatch.setattr(eager_products, "_onednn", lambda: lambda x, w, bias: (w, bias))
    monkeypatch.setattr(eager_products, "_laid_out", lambda w, rows: (w, rows))
    for rows, hidden_size in ((1, 768), (2, 384), (3, 256), (48, 128)):
        w, x = torch.empty(3 * hidden_size, hidden_size), torch.empty(rows, hidden_size)
        for weights, steps in ((w, eager_products.PACKED_STEPS), (w.t(), eager_products.PACKED_TURNED_STEPS)):
            product = eager_products.repeated(weights, rows, steps)
            assert product is not None
            assert product(x) == ((weights, rows), None)
        shorter = eager_products.repeated(w, rows, eager_products.PACKED_STEPS - 1)
        assert (shorter is None) == (rows < eager_products.ONEDNN_ROWS)
        assert shorter is None or shorter(x)[0] is w
    for rows, hidden_size in ((1, 512), (2, 256), (3, 200), (32, 128)):
        assert eager_products.repeated(torch.empty(3 * hidden_size, hidden_size), rows, 100) is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_large_memory_is_asked_for_in_large_pages():
    if pages._madvise() is None or not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel knows no large pages")
    x = torch.empty(pages.LEAST_BYTES // 4 + 100)
    assert pages.in_large_pages(x) is x
    middle, inside, flags = x.data_ptr() + pages.LEAST_BYTES // 2, False, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, _, stop = first.partition("-")
            inside = int(start, 16) <= middle < int(stop, 16)
        elif inside and first == "VmFlags:":
            flags = rest.split()
    assert flags is not None
    assert "hg" in flags
