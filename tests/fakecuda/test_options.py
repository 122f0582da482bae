"""What a call gives each step, on the fake device: CUDA tensors through Triton's own launch, kernels executed from PTX,
without a wait for the device."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fakecuda
import trigru
from trigru.kernels.config import triton_version


def given_for(steps, batch, features):
    return {
        "reset": torch.rand(steps, batch) < 0.3,
        "reset_state": torch.randn(2, features // 2),
        "lengths": torch.tensor([steps, 0, 2]),
        "decay": torch.rand(steps, batch, features).bfloat16(),
        "attention": torch.rand(steps, batch).bfloat16(),
    }


@pytest.mark.parametrize("schedule", ["stepwise", "walking", "resident", "persistent", "auto"])
@pytest.mark.parametrize("variant", ["torch", "chung"])
def test_as_on_the_cpu(schedule, variant):
    torch.manual_seed(2)
    steps, batch, size = 3, 3, 16
    normed = [("resident", "torch"), *([("stepwise", "chung")] if triton_version() >= (3, 7) else [])]
    norm = "layer" if (schedule, variant) in normed else None
    options = {"bidirectional": True, "variant": variant, "zoneout": 0.3, "clip": 0.7, "norm": norm}
    module = trigru.GRU(4, size, schedule=schedule, **options).bfloat16().eval()
    x, given = torch.randn(steps, batch, 4).bfloat16(), given_for(steps, batch, 2 * size)
    given["reset_state"] = given["reset_state"].bfloat16()
    exact = trigru.GRU(4, size, **options).double().eval()
    exact.load_state_dict(module.state_dict())
    results = []
    for one, place, dtype in ((module, "cuda", torch.bfloat16), (exact, "cpu", torch.float64)):
        one.to(place)
        own = {k: v.to(place, dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}
        leaf = x.to(place, dtype).requires_grad_()
        before = len(fakecuda.launches)
        output, h_n = one(leaf, **own)
        grads = torch.autograd.grad(output.square().sum() + h_n.sum(), [leaf, *one.parameters()])
        assert (len(fakecuda.launches) > before) == (place == "cuda")
        results.append([out.detach().cpu().double() for out in (output, h_n, *grads)])
    for got, want in zip(*results, strict=True):
        assert (got - want).abs().max() <= 0.05 * max(1.0, want.abs().max())


@pytest.mark.parametrize("schedule", ["resident", "stepwise"])
def test_training_draws_its_masks_on_the_device(schedule):
    module = trigru.GRU(4, 16, zoneout=0.5, recurrent_dropout=0.5, schedule=schedule).bfloat16().cuda()
    x = torch.randn(4, 3, 4, device="cuda", dtype=torch.bfloat16)
    torch.manual_seed(1)
    first, _ = module(x)
    torch.manual_seed(1)
    again, _ = module(x)
    assert torch.equal(first, again)
    assert not torch.equal(module(x)[0], first)
    assert trigru.explain(module, x).schedule == schedule


@pytest.mark.parametrize("schedule", ["resident", "persistent"])
def test_masks_of_a_graph_follow_the_seed_on_the_device(schedule, monkeypatch):
    """Forward and backward."""
    seed = torch.tensor(5, device="cuda")
    monkeypatch.setattr(trigru.options, "_new_seed", lambda device: seed)
    module = trigru.GRU(4, 16, zoneout=0.5, recurrent_dropout=0.5, schedule=schedule).bfloat16().cuda()
    x = torch.randn(4, 3, 4, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def call():
        output, _ = module(x)
        return output, *torch.autograd.grad(output.square().sum(), [x])

    first = [out.detach() for out in call()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    seed.fill_(6)
    graph.replay()
    assert all(map(torch.equal, got, call()))
    assert not any(map(torch.equal, got, first))


def test_sequences_without_a_step_read_nothing_beside_what_they_are_given():
    module = trigru.GRU(4, 16, schedule="resident").bfloat16().cuda()
    x, hx = torch.randn(3, 2, 4, device="cuda"), torch.randn(1, 2, 16, device="cuda").bfloat16().requires_grad_()
    given = {"reset": torch.ones(3, 2, device="cuda").bool(), "lengths": torch.zeros(2, device="cuda").long()}
    output, h_n = module(x.bfloat16(), hx, **given)
    d_hx, *grads = torch.autograd.grad(output.sum() + h_n.sum(), [hx, *module.parameters()])
    assert torch.equal(h_n, hx)
    assert (d_hx == 1).all()
    assert not any(x.any() for x in (output, *grads))


def test_packed_sequences_neither_wait_nor_hinder_a_capture():
    module = trigru.GRU(4, 16, zoneout=0.3, clip=0.7, schedule="resident").bfloat16().cuda().eval()
    x = pack_padded_sequence(torch.randn(4, 3, 4, device="cuda", dtype=torch.bfloat16), [4, 2, 1])
    reset = torch.rand(7, device="cuda") < 0.3

    def call():
        output, _ = module(x, reset=reset)
        return output.data, *torch.autograd.grad(output.data.sum(), list(module.parameters()))

    first = [out.detach() for out in call()]
    waits = fakecuda.counts()["synchronisations"]
    call()
    assert fakecuda.counts()["synchronisations"] == waits
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    graph.replay()
    assert all(map(torch.equal, got, first))


def test_heads_are_an_axis_of_one_launch_and_repeated_as_one():
    module = trigru.GRU(4, 32, num_heads=2, bidirectional=True, dtype=torch.bfloat16).cuda()
    exact = trigru.GRU(4, 32, num_heads=2, bidirectional=True, dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    for _ in range(4):  # the third is noted, the fourth repeated
        x, before = torch.randn(3, 3, 4).bfloat16(), len(fakecuda.launches)
        output, _ = module(x.cuda())
        (launched,) = (run for run in fakecuda.launches[before:] if run["kernel"] == "forward_kernel")
        assert launched["grid"] == (1, 4, 1)
        got = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        wanted, _ = exact(x.double())
        assert (output.cpu() - wanted).abs().max() <= 0.01
        for d, want in zip(got, torch.autograd.grad(wanted.square().sum(), list(exact.parameters())), strict=True):
            assert (d.cpu() - want).abs().max() <= 0.03 * max(1.0, want.abs().max())
