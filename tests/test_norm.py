"""Normalised layers: haste's form in a loop, every schedule against the reference, and Dreamer's cell."""

import pytest
import torch
from given import normalised
from torch import nn
from torch.nn.functional import layer_norm

import trigru
from trigru import operators
from trigru.operators import compute


def derivatives(results, leaves, upstream):
    return torch.autograd.grad(results, leaves, upstream, retain_graph=True)


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
    module = normalised(3, 5, bidirectional=True, variant=variant, dtype=torch.float64)
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


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("rows", ["padded", "packed"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_eager(variant, rows, memory):
    """A stack in both directions, long enough for several chunks of a loop; each derivative alone, too."""
    module = normalised(3, 24, 2, bidirectional=True, bias=rows == "padded", variant=variant, memory=memory)
    module.double()
    x, hx = torch.randn(70, 3, 3).double().requires_grad_(), torch.randn(4, 3, 24).double().requires_grad_()
    records = module._records(x, hx)
    if rows == "packed":
        data, sizes, *_ = nn.utils.rnn.pack_padded_sequence(x, [70, 41, 3])
        records = module._records(data, hx, sizes)
    assert trigru.explain(module, x).schedule == "eager"
    found, want = operators.gru(*records), compute.by_reference(*records)
    torch.testing.assert_close(found, want)
    upstream, leaves = [torch.randn_like(out) for out in want], [x, hx, *module.parameters()]
    wanted = derivatives(want, leaves, upstream)
    torch.testing.assert_close(derivatives(found, leaves, upstream), wanted)
    for leaf, grad in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(derivatives(found, [leaf], upstream), (grad,))


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_derivatives_of_derivatives(variant):
    module = normalised(2, 3, variant=variant, dtype=torch.float64)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(call, (x, *parameters))
    torch.autograd.gradgradcheck(call, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_in_narrow_numbers(variant, dtype):
    module = normalised(3, 24, 2, variant=variant, dtype=dtype)
    x = torch.randn(20, 3, 3, dtype=dtype).requires_grad_()
    layer, weights, call = module._records(x, None)
    wide = call._replace(input=call.input.double(), hx=call.hx.double(), gain=call.gain.double())
    output, want = (
        operators.gru(layer, weights, call)[0],
        compute.by_reference(layer, [w.double() for w in weights], wide)[0],
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output.double(), want, rtol=0, atol=tolerance)
    upstream, leaves = torch.randn_like(output), [x, *module.parameters()]
    grads = derivatives(output, leaves, upstream), derivatives(want, leaves, upstream.double())
    for got, wanted in zip(*grads, strict=True):
        assert (got.double() - wanted).norm() <= 2 * tolerance * wanted.norm()


def test_transforms_autocast_and_checkpointing():
    module = normalised(3, 5, dtype=torch.float64)
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(lambda one: module(one)[0])(x), torch.stack([module(one)[0] for one in x])
    )
    parameters = dict(module.named_parameters())

    def loss(values, one):
        return torch.func.functional_call(module, values, (one,))[0].square().sum()

    by_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    want = torch.autograd.grad(loss(parameters, x[1]), list(parameters.values()))
    torch.testing.assert_close([grad[1] for grad in by_sample.values()], list(want))
    output = torch.utils.checkpoint.checkpoint(module, x[1], use_reentrant=False)[0]
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), list(parameters.values())), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = module.float()(x[1].float(), torch.zeros(1, 2, 5).bfloat16())[0]
        narrow.sum().backward()
    assert narrow.dtype == torch.bfloat16
    assert module.gain_l0.grad.dtype == torch.float32


def test_taps_see_the_normalised_gates():
    module, x = normalised(3, 5, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    with trigru.tap(module) as found:
        output, _ = module(x)
    (gates,) = found
    before = torch.cat([torch.zeros_like(output[:1]), output[:-1]])
    torch.testing.assert_close((1 - gates.z) * gates.n + gates.z * before, output)


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
