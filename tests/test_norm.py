"""Normalised layers: haste's form in a loop, Dreamer's cell, and what has no schedule for them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

import trigru


def haste(module, x, h, reverse=False):
    """haste's LayerNormGRU, docs/pytorch/haste_pytorch/LayerNormGRU.md, with trigru's order of gates."""
    suffix = "_l0_reverse" if reverse else "_l0"
    w_i, w_h, b_i, b_h, gain = (
        getattr(module, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain")
    )
    size, outputs = h.shape[-1], []
    for step in x.flip(0) if reverse else x:
        gx = layer_norm(step @ w_i.T, (3 * size,)) * gain[0] + b_i
        if module.variant == "torch":
            gh = layer_norm(h @ w_h.T, (3 * size,)) * gain[1] + b_h
            r, z = torch.sigmoid(gx + gh)[:, : 2 * size].chunk(2, -1)
            n = torch.tanh(gx[:, 2 * size :] + r * gh[:, 2 * size :])
        else:
            both = slice(2 * size)
            gh = layer_norm(h @ w_h[both].T, (2 * size,)) * gain[1, both] + b_h[both]
            r, z = torch.sigmoid(gx[:, both] + gh).chunk(2, -1)
            last = layer_norm((r * h) @ w_h[2 * size :].T, (size,)) * gain[1, 2 * size :] + b_h[2 * size :]
            n = torch.tanh(gx[:, 2 * size :] + last)
        h = (1 - z) * h + z * n if module.variant == "chung" else (1 - z) * n + z * h
        outputs.append(h)
    return torch.stack(outputs[::-1] if reverse else outputs)


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_as_haste(variant):
    torch.manual_seed(0)
    module = trigru.GRU(3, 5, bidirectional=True, norm="layer", variant=variant, dtype=torch.float64)
    with torch.no_grad():
        for gain in (module.gain_l0, module.gain_l0_reverse):
            gain.uniform_(0.5, 1.5)
    x, hx = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(2, 2, 5, dtype=torch.float64)
    output, h_n = module(x, hx)
    want = torch.cat([haste(module, x, hx[0]), haste(module, x, hx[1], reverse=True)], -1)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(h_n, torch.stack([want[-1, :, :5], want[0, :, 5:]]))
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (output, want)]
    torch.testing.assert_close(*grads)


def test_with_lengths_resets_and_packed_rows():
    torch.manual_seed(0)
    module = trigru.GRU(3, 5, 2, norm="layer", dropout=0.5, zoneout=0.2).eval()
    lengths, x = torch.tensor([6, 2, 4]), torch.randn(6, 3, 3)
    output, h_n = module(x, lengths=lengths)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    rows, last = module(packed)
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(rows)[0], output)
    torch.testing.assert_close(last, h_n)
    starts = torch.zeros(6, 3, dtype=torch.bool)
    starts[2] = True
    torch.testing.assert_close(module(x, reset=starts)[0][2:], module(x[2:])[0])


def test_what_runs_it_is_said_and_no_schedule_is():
    module, x = trigru.GRU(3, 5, norm="layer"), torch.zeros(50, 2, 3)
    found = trigru.explain(module, x)
    assert found.schedule == "reference"
    assert "norm='layer'" in found.reason
    module.schedule = "stepwise"
    with pytest.raises(RuntimeError, match="schedule 'stepwise' cannot run here: with norm='layer'"):
        module(x)


def test_a_norm_starts_with_gains_of_one():
    module = trigru.GRU(3, 5, bidirectional=True, norm="layer")
    assert repr(module) == "trigru.GRU(3, 5, bidirectional=True, norm='layer')"
    assert [name for name, _ in module.named_parameters() if "gain" in name] == ["gain_l0", "gain_l0_reverse"]
    with torch.no_grad():
        module.gain_l0.zero_()
    module.reset_parameters()
    assert torch.equal(module.gain_l0, torch.ones(2, 15))


@pytest.mark.parametrize("norm", [None, "layer"])
def test_dreamers_cell(norm):
    torch.manual_seed(0)
    cell = trigru.GRUCell(3, 5, variant="dreamer", norm=norm, dtype=torch.float64)
    if norm is not None:
        with torch.no_grad():
            cell.norm_weight.uniform_(0.5, 1.5)
            cell.norm_bias.normal_()
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    parts = torch.cat([x, h], -1) @ torch.cat([cell.weight_ih, cell.weight_hh], -1).T + cell.bias_ih + cell.bias_hh
    if norm is not None:
        parts = layer_norm(parts, (15,), eps=1e-3) * cell.norm_weight + cell.norm_bias
    reset, candidate, update = parts.chunk(3, -1)
    candidate, update = torch.tanh(torch.sigmoid(reset) * candidate), torch.sigmoid(update - 1)
    torch.testing.assert_close(cell(x, h), update * candidate + (1 - update) * h)
    torch.testing.assert_close(cell(x[0], h[0]), cell(x, h)[0])
    assert trigru.explain(cell, x).schedule == "cell"


@pytest.mark.parametrize("given", [{"norm": "layer"}, {"variant": "dreamer", "norm": "batch"}])
def test_a_norm_that_a_cell_has_not(given):
    with pytest.raises(ValueError, match="norm: expected None, or 'layer' for variant 'dreamer'"):
        trigru.GRUCell(3, 5, **given)
    with pytest.raises(ValueError, match="variant: expected one of"):
        trigru.GRU(3, 5, variant="dreamer")
