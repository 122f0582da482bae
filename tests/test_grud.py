"""trigru.GRUD against a loop over the equations of Che et al. 2018, in float64."""

import re

import pytest
import torch
from torch import nn

import trigru

INPUT, HIDDEN = 3, 5


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def layer_of(**options):
    layer = trigru.GRUD(INPUT, HIDDEN, dtype=torch.float64, **{"mean": randn(INPUT), **options})
    with torch.no_grad():  # decays of which few are nothing
        layer.weight_gamma_h.abs_()
        layer.weight_gamma_x.abs_()
    return layer


def series(steps=9, batch=4, share=0.4):
    """Values, NaN where none is, the mask and times."""
    values, times = randn(steps, batch, INPUT), torch.rand(steps, batch, dtype=torch.float64).cumsum(0)
    mask = torch.rand(steps, batch, INPUT) < share
    values[~mask] = torch.nan
    return values, mask, times


def gaps_of(times, mask):
    """The paper's recursion."""
    gaps = torch.zeros(mask.shape, dtype=times.dtype)
    for t in range(1, len(times)):
        gaps[t] = (times[t] - times[t - 1]).unsqueeze(-1) + torch.where(mask[t - 1], 0, gaps[t - 1])
    return gaps


def paper(layer, values, mask, gaps, h, last=None):
    """Equations 3 to 10 of the paper, the matrices W, U and V by name."""
    w, v = (part.chunk(3) for part in layer.gru.weight_ih_l0.split(INPUT, 1))
    u, b = layer.gru.weight_hh_l0.chunk(3), (layer.gru.bias_ih_l0 + layer.gru.bias_hh_l0).chunk(3)
    last, states = layer.mean.expand(values.shape[1:]) if last is None else last, []
    for x, m, d in zip(values, mask, gaps, strict=True):
        gamma_x = torch.exp(-torch.clamp(layer.weight_gamma_x * d + layer.bias_gamma_x, min=0))
        gamma_h = torch.exp(-torch.clamp(d @ layer.weight_gamma_h.T + layer.bias_gamma_h, min=0))
        last = torch.where(m, x, last)
        x_hat = torch.where(m, x, gamma_x * last + (1 - gamma_x) * layer.mean)
        h, m = gamma_h * h, m.double()
        r = torch.sigmoid(x_hat @ w[0].T + h @ u[0].T + m @ v[0].T + b[0])
        z = torch.sigmoid(x_hat @ w[1].T + h @ u[1].T + m @ v[1].T + b[1])
        new = torch.tanh(x_hat @ w[2].T + (r * h) @ u[2].T + m @ v[2].T + b[2])
        h = (1 - z) * h + z * new
        states.append(h)
    return torch.stack(states), h


def test_the_papers_equations_and_their_derivatives():
    layer = layer_of()
    values, mask, times = series()
    gaps, hx = gaps_of(times, mask).requires_grad_(), randn(4, HIDDEN).requires_grad_()
    values.requires_grad_()
    found, h_n = layer(values, mask, gaps, hx.unsqueeze(0))
    want, want_h = paper(layer, values, mask, gaps, hx)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(h_n[0], want_h)
    upstream, leaves = torch.randn_like(want), [values, gaps, hx, *layer.parameters()]
    grads = [torch.autograd.grad(out, leaves, upstream) for out in (found, want)]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)
        assert wanted.abs().max() > 0
    assert not grads[0][0][~mask].any(), "what is missing has no derivative"


def test_gaps_of_times():
    layer = layer_of()
    _, mask, times = series()
    torch.testing.assert_close(layer.time_gaps(times, mask), gaps_of(times, mask))
    want = gaps_of(times[:, :1].expand(9, 4), mask)
    torch.testing.assert_close(layer.time_gaps(times[:, 0], mask), want)
    first = layer_of(batch_first=True)
    torch.testing.assert_close(first.time_gaps(times[:, 0], mask.transpose(0, 1)), want.transpose(0, 1))


def test_layouts_and_masks_of_numbers_agree():
    layer = layer_of()
    values, mask, times = series()
    gaps = layer.time_gaps(times, mask)
    want, want_h = layer(values, mask, gaps)
    first = layer_of(batch_first=True)
    first.load_state_dict(layer.state_dict())
    got, h_n = first(*(x.transpose(0, 1) for x in (values, mask.double(), gaps)))
    torch.testing.assert_close(got.transpose(0, 1), want)
    torch.testing.assert_close(h_n, want_h)
    for one in (layer, first):
        got, h_n = one(values[:, 1], mask[:, 1], one.time_gaps(times[:, 1], mask[:, 1]))
        torch.testing.assert_close(got, want[:, 1])
        torch.testing.assert_close(h_n, want_h[:, 1])
    shared = gaps[..., :1]
    torch.testing.assert_close(layer(values, mask, shared), layer(values, mask, shared.expand_as(gaps)))


@pytest.mark.parametrize("batch_first", [False, True])
def test_two_calls_are_one(batch_first):
    layer, (values, mask, times) = layer_of(batch_first=batch_first), series()
    gaps = gaps_of(times, mask)
    if batch_first:
        values, mask, gaps = (x.transpose(0, 1).contiguous() for x in (values, mask, gaps))
    want, want_h = layer(values, mask, gaps)
    outputs, hx, last = [], None, None
    for part in zip(*(x.split([2, 1, 6], int(batch_first)) for x in (values, mask, gaps)), strict=True):
        output, hx = layer(*part, hx, last=last)
        last = layer.last_values(*part[:2], last)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, int(batch_first)), want)
    torch.testing.assert_close(hx, want_h)


def test_two_calls_with_episodes_are_one():
    layer, (values, mask, times) = layer_of(), series()
    reset, last, hx, outputs = torch.rand(9, 4) < 0.3, None, None, []
    mask = mask & (torch.rand(mask.shape) < 0.5)
    gaps = layer.time_gaps(times, mask, reset)
    want, want_h = layer(values, mask, gaps, reset=reset)
    for part in zip(*(x.split([4, 1, 4]) for x in (values, mask, gaps, reset)), strict=True):
        output, hx = layer(*part[:3], hx, last=last, reset=part[3])
        last = layer.last_values(*part[:2], last, reset=part[3])
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), want)
    torch.testing.assert_close(hx, want_h)


def test_what_was_observed_last_of_ragged_series():
    layer, (values, mask, _) = layer_of(), series()
    reset, last, lengths = torch.rand(9, 4) < 0.3, randn(4, INPUT), torch.tensor([9, 4, 0, 2], dtype=torch.uint8)
    got = layer.last_values(values, mask, last, reset=reset, lengths=lengths)
    for b, end in enumerate(lengths.tolist()):
        want = last[b] if end == 0 else layer.last_values(values[:end, b], mask[:end, b], last[b], reset=reset[:end, b])
        torch.testing.assert_close(got[b], want, equal_nan=True)
    with pytest.raises(RuntimeError, match=r"lengths: expected shape \(4,\), got \(3,\)"):
        layer(values, mask, values.abs(), lengths=lengths[1:])


def test_episodes_know_nothing_of_each_other():
    layer, (values, mask, times) = layer_of(), series()
    reset, last = torch.zeros(9, 4, dtype=torch.bool), randn(4, INPUT)
    reset[0, 0] = reset[4] = reset[6, 2] = True
    gaps = layer.time_gaps(times, mask, reset)
    got, h_n = layer(values, mask, gaps, randn(1, 4, HIDDEN), last=last, reset=reset)
    zeros = torch.zeros(1, 1, HIDDEN, dtype=torch.float64)
    for b, (begin, end) in [(0, (0, 4)), (1, (4, 9)), (2, (4, 6)), (2, (6, 9))]:
        rows = slice(begin, end), slice(b, b + 1)
        want, want_h = layer(values[rows], mask[rows], gaps_of(times[rows], mask[rows]), zeros)
        torch.testing.assert_close(got[rows], want)
        if end == 9:
            torch.testing.assert_close(h_n[:, b : b + 1], want_h)


def test_what_is_past_the_end_reaches_nothing():
    layer, (values, mask, times) = layer_of(), series()
    lengths, gaps = torch.tensor([9, 4, 0, 6]), gaps_of(times, mask)
    dead = torch.arange(9).unsqueeze(1) >= lengths
    values[dead], gaps[dead] = torch.nan, torch.inf
    output, h_n = layer(values, mask, gaps, lengths=lengths)
    assert not output[dead].any()
    grads = torch.autograd.grad(output.sum() + h_n.sum(), list(layer.parameters()))
    wanted = [torch.zeros_like(p) for p in grads]
    for b, length in enumerate(lengths.tolist()):
        if length:
            alone = [x[:length, b] for x in (values, mask, gaps)]
            want, want_h = layer(*alone)
            torch.testing.assert_close(output[:length, b], want)
            torch.testing.assert_close(h_n[:, b], want_h)
            torch._foreach_add_(wanted, torch.autograd.grad(want.sum() + want_h.sum(), list(layer.parameters())))
    torch.testing.assert_close(list(grads), wanted)


@pytest.mark.slow
def test_one_graph():
    layer = trigru.GRUD(INPUT, HIDDEN, clip=0.5, learn_initial_state=True)
    values, mask, times = (x if x.dtype == torch.bool else x.float() for x in series())

    def call(values, mask, times):
        return layer(values, mask, layer.time_gaps(times, mask))[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(values, mask, times), call(values, mask, times))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_numbers(dtype):
    layer, (values, mask, times) = layer_of(), series()
    want, _ = layer(values, mask, gaps_of(times, mask))
    layer.to(dtype)
    got, _ = layer(values.to(dtype), mask, gaps_of(times, mask).to(dtype))
    assert got.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def test_new_values_and_what_is_kept():
    layer = layer_of(recurrent_dropout=0.2)
    assert isinstance(layer.gru, trigru.GRU)
    assert repr(layer).startswith("GRUD(\n  3, 5\n  (gru): trigru.GRU(6, 5, variant='chung', recurrent_dropout=0.2)")
    assert "mean" in layer.state_dict()
    before = {name: p.clone() for name, p in layer.named_parameters()}
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        assert not torch.equal(parameter, before[name])
        assert parameter.abs().max() <= (INPUT if "_x" in name else HIDDEN) ** -0.5
    other = nn.Sequential(trigru.GRUD(INPUT, HIDDEN, dtype=torch.float64))
    other[0].load_state_dict(layer.state_dict())
    assert torch.equal(other[0].mean, layer.mean)


MISUSE = {
    "mask of another shape": ({"mask": torch.ones(5, 2)}, RuntimeError, "mask: expected shape (5, 2, 3), got (5, 2)"),
    "mask of integers": ({"mask": torch.ones(5, 2, 3).long()}, RuntimeError, "mask: expected dtype torch.bool or"),
    "gaps of times": ({"gaps": torch.ones(5, 2)}, RuntimeError, "gaps: expected shape (5, 2, 3) or (5, 2, 1), got"),
    "gaps that are no tensor": ({"gaps": 1.0}, TypeError, "gaps: expected a torch.Tensor, got float"),
    "last of another shape": ({"last": torch.ones(3)}, RuntimeError, "last: expected shape (2, 3), got (3,)"),
    "reset of another shape": (
        {"reset": torch.ones(2, 5, dtype=torch.bool)},
        RuntimeError,
        "reset: expected shape (5, 2), got (2, 5)",
    ),
    "input of another width": ({"input": torch.ones(5, 2, 4)}, RuntimeError, "Expected 3, got 4"),
    "input of another dtype": (
        {"input": torch.ones(5, 2, 3).double(), "gaps": torch.ones(5, 2, 3).double()},
        ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32)",
    ),
    "lengths for another batch": (
        {"lengths": torch.ones(2, 2, dtype=torch.int64)},
        RuntimeError,
        "lengths: expected shape (2,), got (2, 2)",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_what_does_not_fit_is_refused(case):
    given, error, said = MISUSE[case]
    call = {"input": torch.zeros(5, 2, 3), "mask": torch.ones(5, 2, 3, dtype=torch.bool), "gaps": torch.ones(5, 2, 3)}
    with pytest.raises(error, match=re.escape(said)):
        trigru.GRUD(3, 4)(**{**call, **given})


def test_a_mean_or_times_of_another_shape_are_refused():
    with pytest.raises(TypeError, match=r"mean: expected a torch\.Tensor, got list"):
        trigru.GRUD(3, 4, mean=[0.0, 1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"mean: expected shape \(3,\), got \(4,\)"):
        trigru.GRUD(3, 4, mean=torch.zeros(4))
    with pytest.raises(RuntimeError, match=r"times: expected shape \(5, 2\), got \(4, 2\)"):
        trigru.GRUD(3, 4).time_gaps(torch.zeros(4, 2), torch.ones(5, 2, 3, dtype=torch.bool))


def test_last_values_and_gaps_refuse_what_a_call_refuses():
    layer, x, mask = trigru.GRUD(3, 4), torch.zeros(5, 2, 3), torch.ones(5, 2, 3, dtype=torch.bool)
    for lengths, error, said in (
        (torch.tensor([5.0, 2.0]), RuntimeError, "lengths: expected an integer dtype, got torch.float32"),
        (torch.tensor([6, 2]), ValueError, "lengths: expected numbers from 0 to 5, the steps of input, got 2 to 6"),
    ):
        with pytest.raises(error, match=said):
            layer.last_values(x, mask, lengths=lengths)
    with pytest.raises(RuntimeError, match=r"reset: expected shape \(5, 2\), got \(2,\)"):
        layer.time_gaps(torch.zeros(5, 2), mask, reset=torch.tensor([True, False]))
    with pytest.raises(TypeError, match=r"times: expected a torch\.Tensor, got list"):
        layer.time_gaps([0.0, 1.0], mask)
