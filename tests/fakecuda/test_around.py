"""What surrounds a loop in launches of its own: what torch's operations give in its place."""

from __future__ import annotations

import pytest
import torch

import trigru
from trigru.kernels.prologue import Folded, State, prologue
from trigru.kernels.steps import Steps
from trigru.layer import Weights
from trigru.schedules import projections
from trigru.schedules.part import Run
from trigru.schedules.recompute import seen_before

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def drawn(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prologue_gives_the_bits_of_torch_s_operations(dtype):
    """More than a block of some, none of others, a NaN of the reserved pattern; as tests without a GPU have it."""
    h0 = drawn(5, 300, dtype=dtype)
    h0[1, 3], h0[2, 2] = float("inf"), -0.0
    h0.view(torch.int32)[4, 7] = -1
    biases, found = (drawn(93, dtype=dtype), drawn(93, dtype=dtype)), []
    for device in ("cpu", "cuda"):
        b_ih, b_hh, source = (x.to(device) for x in (*biases, h0))
        bias, state, zeros = torch.empty_like(b_ih), torch.empty_like(source), torch.full_like(source, 7.0)
        patterns = [torch.zeros(n, dtype=dtype, device=device) for n in (3000, 46)]
        status = torch.full((8,), 3, dtype=torch.int32, device=device)
        prologue(folded=Folded(bias, b_ih, b_hh, 62), state=State(state, source), patterns=patterns, zeros=zeros)
        assert (status == 3).all()
        prologue(status=status)
        running = torch.empty_like(source, dtype=torch.float32)
        prologue(state=State(running, source), patterns=patterns[:1], status=status)
        start = torch.ones_like(running)
        prologue(state=State(start, None))
        found.append([bias, zeros, status, start, *(x.view(torch.int16) for x in (state, *patterns))])
        found[-1].append(running.nan_to_num(7.0))
    for on_cpu, on_cuda in zip(*found, strict=True):
        assert torch.equal(on_cpu, on_cuda.cpu())
    whole = biases[0].clone()
    whole[:62] += biases[1][:62]
    assert torch.equal(found[1][0].cpu(), whole)
    assert not (found[1][4].view(torch.int32) == -1).any()
    assert (found[1][5].view(torch.int32) == -1).all()


def exact(x):
    return None if x is None else x.cpu().double()


def assert_close(got, wanted, dtype):
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-6}[dtype]
    assert (got is None) == (wanted is None)
    if got is not None:
        assert (exact(got) - wanted).abs().max() <= tolerance * max(1.0, wanted.abs().max())


@pytest.mark.parametrize(
    ("dtype", "variant", "rows"),
    [
        (torch.float16, "torch", 1),
        (torch.bfloat16, "cho", 64),
        (torch.float32, "torch", 17),
        (torch.float32, "cho", 65),
        (torch.float16, "torch", 65),
    ],
)
def test_the_input_s_share_of_few_rows_and_of_more(dtype, variant, rows):
    x, zeros = drawn(rows, 135, dtype=dtype).cuda(), torch.ones(5, 17, dtype=dtype, device="cuda")
    weights = [drawn(51, 135, dtype=dtype) / 12, drawn(51, 17, dtype=dtype), drawn(51, dtype=dtype)]
    own = Weights(*(w.cuda() for w in weights), drawn(102, dtype=dtype).cuda()[::2])
    share, b_hn = projections.project_input(x, own, variant, zeros=zeros)
    bias, wanted_b_hn = projections.folded(Weights(*map(exact, own)), variant)
    assert_close(share, torch.nn.functional.linear(exact(x), exact(own.ih), bias), dtype)
    assert not zeros.any()
    assert (b_hn is None) == (variant == "cho")
    if b_hn is not None:
        assert torch.equal(exact(b_hn), wanted_b_hn)


@pytest.mark.parametrize(
    ("dtype", "variant", "reverse", "needs"),
    [
        (torch.float16, "torch", False, (True, True, True, True)),
        (torch.float32, "torch", True, (False, True, False, True)),
        (torch.bfloat16, "chung", True, (True, True, True, True)),
        (torch.float16, "cho", False, (True, False, True, False)),
        (torch.float32, "cho", True, (False, True, False, False)),
    ],
)
def test_derivatives_of_few_rows(dtype, variant, reverse, needs):
    """States that are columns of a wider tensor, as those of a second direction are."""
    steps, batch, size, features, values = 7, 3, 37, 70, 4 if variant == "torch" else 3
    rows = steps * batch
    both, gates = drawn(rows, 2 * size, dtype=dtype), torch.rand(rows, values * size).to(dtype)
    d_gates, d_an = drawn(rows, 3 * size, dtype=dtype), drawn(rows, size, dtype=dtype) if variant == "torch" else None
    x, h0 = drawn(rows, features, dtype=dtype), drawn(batch, size, dtype=dtype)

    def run(place):
        return Run(place(x), place(h0), Steps.padded(steps, batch), place(both)[:, size:], place(gates))

    on_cuda, needs = run(lambda x: x.cuda()), (*needs, False)
    assert projections.have_few(on_cuda)
    moved = [None if d is None else d.cuda() for d in (d_gates, d_an)]
    got = projections.gradients_of_few(*moved, on_cuda, reverse, on_cuda.input, needs)
    own = run(exact)
    before = seen_before(own, reverse)
    r = own.gates[:, :size]
    if variant != "torch":  # rounded, as it is before it is multiplied
        r = exact((r * before).to(dtype)) / before
    wanted = projections.gradients(exact(d_gates), exact(d_an), r, own.input, before, needs)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, dtype)


@pytest.mark.parametrize("batch", [21, 22])
def test_a_layer_of_few_rows_and_of_more(batch):
    """63 and 66 rows: by launches, and by torch's products."""
    module = trigru.GRU(5, 16, schedule="resident", dtype=torch.float32, device="cuda", bidirectional=True)
    of_exact = trigru.GRU(5, 16, dtype=torch.float64, bidirectional=True)
    of_exact.load_state_dict(module.state_dict())
    x = drawn(3, batch, 5)
    found = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for layer, input in ((module, x.cuda()), (of_exact, x.double())):
            input.requires_grad_()
            output, h_n = layer(input)
            loss = output.square().sum() + h_n.sum()
            found.append([output, h_n, *torch.autograd.grad(loss, [input, *layer.parameters()])])
    for got, wanted in zip(*found, strict=True):
        assert (exact(got.detach()) - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max())
