"""A cell's step with derivatives by hand, against the reference and as torch's own in what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import trigru
from trigru import functional, reference
from trigru.reference import VARIANTS
from trigru.schedules import eager_products, single


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Any size pays, whatever this machine is."""
    monkeypatch.setattr(single, "MULTIPLICATIONS", 0)
    monkeypatch.setattr(eager_products, "pays", lambda *sizes: True)


@pytest.fixture
def taken(monkeypatch):
    calls = []
    step = single.step
    monkeypatch.setattr(single, "step", lambda *arguments: calls.append(1) or step(*arguments))
    return calls


def _tensors(batch, size, hidden_size, bias, dtype=torch.float32):
    shapes = [(batch, size), (batch, hidden_size), (3 * hidden_size, size), (3 * hidden_size, hidden_size)]
    shapes += [(3 * hidden_size,)] * 2 * bias
    return [(torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (64, 40, 160), (1, 1, 1), (0, 3, 2)], ids=str)
def test_as_reference(variant, bias, shape, taken):
    tensors = _tensors(*shape, bias)
    state = functional.gru_cell(*tensors, variant=variant)
    assert taken
    exact = [x.detach().double().requires_grad_() for x in tensors]
    expected = reference.gru_cell(*exact, *[None] * (6 - len(exact)), variant=variant)
    torch.testing.assert_close(state, expected.float(), rtol=1e-5, atol=1e-5)
    d = torch.randn_like(state)
    found = torch.autograd.grad(state, tensors, d)
    for one, by_reference in zip(found, torch.autograd.grad(expected, exact, d.double()), strict=True):
        torch.testing.assert_close(one, by_reference.float(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(functional.gru_cell(*tensors, variant=variant), state, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_needs(variant):
    tensors = _tensors(3, 4, 5, True)
    whole = torch.autograd.grad(functional.gru_cell(*tensors, variant=variant).sum(), tensors)
    for i, one in enumerate(tensors):
        alone = [x.detach().requires_grad_(x is one) for x in tensors]
        (found,) = torch.autograd.grad(functional.gru_cell(*alone, variant=variant).sum(), alone[i])
        torch.testing.assert_close(found, whole[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_derivatives_of_derivatives(variant, taken):
    tensors = _tensors(2, 3, 4, True, torch.float64)

    def cell(*tensors):
        return single.step(variant, *tensors)

    assert torch.autograd.gradcheck(cell, tensors)
    assert torch.autograd.gradgradcheck(cell, tensors)
    assert taken


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tensor_in_several_places_has_one_derivative_whether_a_graph_is_kept_or_not(variant, taken):
    x, h, w, _, bias, _ = _tensors(3, 4, 4, True)
    state = functional.gru_cell(x, h, w, w, bias, bias, variant=variant)
    state = functional.gru_cell(state, state, w, w, bias, bias, variant=variant)
    state = functional.gru_cell(x, state, w, w, bias, bias, variant=variant)
    assert len(taken) == 3
    of = (x, h, w, bias)
    expected = torch.autograd.grad(state.sum(), of, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(state.sum(), of, create_graph=True), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("by", ["autograd", "torch.func"])
def test_derivatives_batched(variant, by, taken):
    tensors = _tensors(3, 4, 5, True)
    state = functional.gru_cell(*tensors, variant=variant)
    assert taken
    several = torch.randn(2, *state.shape)

    def back(d, **batched):
        return torch.autograd.grad(state, tensors, d, retain_graph=True, **batched)

    found = torch.func.vmap(back)(several) if by == "torch.func" else back(several, is_grads_batched=True)
    expected = tuple(map(torch.stack, zip(*map(back, several), strict=True)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_tangent_from_above_is_dropped(variant, taken, monkeypatch):
    @torch.library.custom_op("trigru_tests::linear", mutates_args=())
    def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w.t()

    monkeypatch.setattr(eager_products, "fast_linear", lambda *sizes: lambda x, w, bias=None: linear(x, w))
    tensors = _tensors(3, 4, 5, False)
    state = functional.gru_cell(*tensors, variant=variant)
    assert taken
    d, tangent = torch.randn(2, *state.shape)
    (expected,) = torch.autograd.grad(state, tensors[0], tangent, retain_graph=True)
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(state, tensors[0], forward_ad.make_dual(d, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_looks_on_gets_plain_operations(variant, taken):
    tensors = [x.detach() for x in _tensors(2, 3, 4, True)]

    def cell(x, h):
        return functional.gru_cell(x, h, *tensors[2:], variant=variant)

    x, h = tensors[:2]
    expected = cell(x, h)
    assert taken
    taken.clear()
    batched = torch.func.vmap(cell)(x.unsqueeze(0), h.unsqueeze(0))[0]
    output, _ = torch.func.jvp(cell, (x, h), (x, h))
    with torch.autocast("cpu", torch.bfloat16):
        cell(x, h)
    assert not taken
    for found in (batched, output):
        torch.testing.assert_close(found, expected)


def test_misuse_is_refused_as_by_nn(taken):
    ours, theirs = trigru.GRUCell(3, 4), nn.GRUCell(3, 4)
    for arguments in [(torch.ones(2, 5),), (torch.ones(2, 3), torch.ones(3, 4)), (torch.ones(2, 3), torch.ones(2, 5))]:
        with pytest.raises(RuntimeError) as expected:
            theirs(*arguments)
        with pytest.raises(RuntimeError) as found:
            ours(*arguments)
        assert str(found.value) == str(expected.value)
    x, h, w_ih, w_hh = (x.detach() for x in _tensors(2, 3, 4, False))
    with pytest.raises(RuntimeError):
        functional.gru_cell(x, h, w_ih, w_hh[:, :3])
    assert not taken


def test_by_sizes(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(eager_products, "_onednn", lambda: None)
    assert functional.cell_way("torch", 240, 512, 512, torch.float32) == "torch"
    assert functional.cell_way("cho", 240, 512, 512, torch.float32) == "cell"
    monkeypatch.setattr(eager_products, "_onednn", lambda: "onednn")
    monkeypatch.setattr(eager_products, "is_zen4", lambda: False)
    for variant in VARIANTS:
        assert functional.cell_way(variant, 240, 512, 512, torch.float32) == "eager"
    assert functional.cell_way("torch", 240, 512, 512, torch.float64) == "torch"
    assert functional.cell_way("torch", 32, 35, 32, torch.float32) == "torch"
