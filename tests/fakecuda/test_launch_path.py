"""The way of a launch on the fake device: numbers, options, devices, streams, time-outs, graphs; and mistakes on that
way, each of which has to be noticed. FAKECUDA_DEVICES=2 for all of them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from unittest.mock import ANY

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fakecuda
import trigru
from trigru.kernels import launch, persistent, watch
from trigru.kernels.config import fetches, persistent_config
from trigru.kernels.errors import KernelTimeout
from trigru.kernels.recurrence import Operands, Recurrence
from trigru.kernels.steps import Steps
from trigru.planning import plan

HALF = torch.float16


@pytest.fixture(autouse=True)
def _nothing_expired():
    """What has expired in an earlier test is no business of this one."""
    with contextlib.suppress(KernelTimeout):
        watch.check()


def forward(seq_len=3, batch=3, hidden_size=64, steps=None, h0=None, device="cuda", reverse=False, **config):
    """`persistent.forward` on random tensors. config: fields of it."""
    steps = Steps.padded(seq_len, batch) if steps is None else steps

    def random(*shape):
        return torch.randn(*shape, device=device, dtype=HALF)

    config = replace(persistent_config(HALF, batch, hidden_size), **config)
    operands = Operands(
        random(steps.num_rows, 3 * hidden_size),
        random(steps.batch, hidden_size) if h0 is None else h0,
        random(3 * hidden_size, hidden_size) / 8,
        random(hidden_size),
        steps,
    )
    return persistent.forward(Recurrence("torch", reverse, "ieee", config), operands, True)


def loops():
    """The launches so far, but for those of what surrounds a loop."""
    around = ("prologue_kernel", "rows_kernel", "few_rows_kernel")
    return [run for run in fakecuda.launches if run["kernel"] not in around]


@pytest.mark.parametrize("schedule", ["stepwise", "walking", "resident", "persistent"])
def test_numbers_and_launches(schedule):
    module = trigru.GRU(8, 64, schedule=schedule, device="cuda", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda", dtype=HALF, requires_grad=True)
    output, _ = module(x)
    output.float().square().sum().backward()
    exact = trigru.GRU(8, 64, schedule="eager").double()
    exact.load_state_dict({name: p.cpu().double() for name, p in module.state_dict().items()})
    y = x.detach().cpu().double().requires_grad_()
    wanted, _ = exact(y)
    wanted.square().sum().backward()
    torch.testing.assert_close(output.cpu().double(), wanted, rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(x.grad.cpu().double(), y.grad, rtol=1e-2, atol=1e-2)
    cooperative = {launched["cooperative"] for launched in loops()}
    assert cooperative == {schedule in ("walking", "persistent")}
    assert all(launched["grid"][0] * launched["grid"][1] <= launched["blocks_per_sm"] * 132 for launched in loops())


@pytest.mark.parametrize("schedule", ["stepwise", "walking", "resident", "persistent"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_where_torch_makes_tensors_on_a_gpu(monkeypatch, schedule, packed):
    """As after `torch.set_default_device("cuda")`: words and offsets of the host's stay there."""
    layer = trigru.GRU(8, 64, schedule=schedule, device="cuda", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda", dtype=HALF)
    input = pack_padded_sequence(x, torch.tensor([3, 3, 2, 1, 1])) if packed else x
    expected = layer(input)
    torch.cuda.synchronize()
    monkeypatch.setattr(watch, "_words", {})
    monkeypatch.setattr(watch, "_known", {})
    with torch.device("cuda"):
        found = layer(input)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("schedule", "forwards", "backwards"), [("stepwise", 3, 4), ("resident", 1, 1), ("persistent", 1, 1)]
)
def test_launches_of_a_bidirectional_layer(schedule, forwards, backwards):
    """Both directions in each, and no copy of one's states beside the other's."""
    module = trigru.GRU(8, 64, bidirectional=True, schedule=schedule, device="cuda", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda", dtype=HALF, requires_grad=True)
    output, _ = module(x)
    assert len(loops()) == forwards
    output.float().square().sum().backward()
    assert len(loops()) == forwards + backwards
    exact = trigru.GRU(8, 64, bidirectional=True, schedule="eager").double()
    exact.load_state_dict({name: p.cpu().double() for name, p in module.state_dict().items()})
    y = x.detach().cpu().double().requires_grad_()
    wanted, _ = exact(y)
    wanted.square().sum().backward()
    torch.testing.assert_close(output.cpu().double(), wanted, rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(x.grad.cpu().double(), y.grad, rtol=1e-2, atol=1e-2)


def test_a_stack_in_one_launch():
    """Forward, backward and forward without gradients; nothing between the layers, and the host waits for nothing."""
    module = trigru.GRU(8, 64, 3, schedule="persistent", device="cuda", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda", dtype=HALF, requires_grad=True)
    assert "3 layers in a launch" in trigru.explain(module, x).reason
    waits = fakecuda.counts()["synchronisations"]
    output, h_n = module(x)
    (output.float().square().sum() + h_n.float().sum()).backward()
    with torch.no_grad():
        again, _ = module(x)
    assert fakecuda.counts()["synchronisations"] == waits
    kernels = [(run["kernel"], run["grid"][:2], run["cooperative"]) for run in loops()]
    names = "stacked_torch", "stacked_back_torch", "stacked_torch"
    assert kernels == [(name, (4, 3), True) for name in names]
    assert torch.equal(again, output)
    exact = trigru.GRU(8, 64, 3, schedule="eager").double()
    exact.load_state_dict({name: p.cpu().double() for name, p in module.state_dict().items()})
    y = x.detach().cpu().double().requires_grad_()
    wanted, last = exact(y)
    (wanted.square().sum() + last.sum()).backward()
    torch.testing.assert_close(output.cpu().double(), wanted, rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(x.grad.cpu().double(), y.grad, rtol=1e-2, atol=1e-2)
    for parameter, of_exact in zip(module.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu().double(), of_exact.grad, rtol=1e-2, atol=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="FAKECUDA_DEVICES=2")
def test_on_the_device_and_stream_of_its_tensors():
    module = trigru.GRU(8, 64, schedule="persistent", device="cuda:1", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda:1", dtype=HALF, requires_grad=True)
    module(x)[0].float().sum().backward()
    assert [(run["device"], run["stream"]) for run in loops()] == [(1, 0)] * 2
    assert {(run["device"], run["stream"]) for run in fakecuda.launches} == {(1, 0)}
    assert torch.cuda.current_device() == 0
    fakecuda.launches.clear()
    stream = torch.cuda.Stream(device=1)
    stream.wait_stream(torch.cuda.current_stream(1))
    with torch.cuda.device(1), torch.cuda.stream(stream):
        loss = module(x)[0].float().sum()
    loss.backward()  # on the stream that forward ran on
    assert [(run["device"], run["stream"]) for run in loops()] == [(1, stream.cuda_stream)] * 2
    assert {(run["device"], run["stream"]) for run in fakecuda.launches} == {(1, stream.cuda_stream)}


SHORT = {"timeout": 1e-9}  # a wait gives up at its first look at the clock


def test_an_expired_wait_is_reported_by_the_next_launch():
    fakecuda.options["quantum"] = 50_000  # a program looks many times before another one runs
    forward(**SHORT)
    torch.cuda.synchronize()
    fakecuda.options["quantum"] = 200
    with pytest.raises(KernelTimeout, match="forward_torch"):
        forward()
    watch.check()  # once


def test_an_expired_wait_is_not_known_before_the_device_is_done():
    """Nor does a launch wait for it; two streams may write to the one word."""
    forward()
    torch.cuda.synchronize()
    fakecuda.options["quantum"] = 50_000
    before = fakecuda.counts()
    with torch.cuda.stream(torch.cuda.Stream()):
        forward(**SHORT)
    forward(seq_len=4, **SHORT)
    assert fakecuda.counts() == {**before, "blocks": ANY, "blocks_made": ANY}
    watch.check()
    torch.cuda.synchronize()
    with pytest.raises(KernelTimeout, match="T=4"):
        watch.check()
    watch.check()


def test_an_expired_wait_in_a_graph():
    forward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(**SHORT)
    fakecuda.options["quantum"] = 50_000
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        with pytest.raises(KernelTimeout):
            watch.check()
        watch.check()


def test_more_programs_than_fit_are_refused():
    with pytest.raises(RuntimeError, match="too many blocks in cooperative launch"):
        forward(batch=16 * 400, tiles_at_once=None)


@pytest.mark.parametrize("sizes", [[(1, 3), (2, 3), (3, 5), (16, 1)], [(1, 9), (2, 16), (16, 17), (17, 19)]])
def test_sizes_of_one_tile_share_a_binary(sizes):
    """Up to 8 sequences take a tile of their own."""
    compiled = set()
    for seq_len, batch in sizes:
        fakecuda.options["execute"] = False
        forward(seq_len, batch)
        compiled |= {run["binary"] for run in loops()}
    assert len(compiled) == 1


# -- mistakes that it has to notice ------------------------------------------------------------------------------------


def test_without_the_cooperative_attribute_programs_run_one_after_another(monkeypatch):
    monkeypatch.setattr(launch, "COOPERATIVE", {})
    forward()
    torch.cuda.synchronize()
    with pytest.raises(KernelTimeout, match="forward_torch"):
        watch.check()


def test_a_misspelt_option(monkeypatch):
    monkeypatch.setattr(launch, "COOPERATIVE", {"launch_cooperative": True})
    with pytest.raises(KeyError, match="launch_cooperative"):
        forward()


def test_a_copy_from_pageable_memory_in_a_capture(monkeypatch):
    steps = Steps.of_batch_sizes([3, 2])
    forward(steps=steps)
    monkeypatch.setattr(
        Steps, "computed_offsets", lambda self, device: torch.tensor(self.offsets, dtype=torch.int64, device=device)
    )
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        forward(steps=steps)


def test_a_kernel_that_is_first_used_in_a_capture():
    forward()
    graph = torch.cuda.CUDAGraph()
    said = r"a kernel is loaded.* forward_torch .* before the capture, call the layer once"
    with pytest.raises(RuntimeError, match=said), torch.cuda.graph(graph):
        forward(hidden_size=96)


def test_sizes_and_a_direction_that_are_first_used_in_a_capture():
    """They are no other kernels."""
    forward(batch=16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward(seq_len=5, batch=3, reverse=True)
    graph.replay()
    assert captured.output.isfinite().all()


def test_tensors_of_the_cpu():
    with pytest.raises(ValueError, match="cpu tensor"):
        forward(h0=torch.zeros(3, 64, dtype=HALF), protocol="flags")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="FAKECUDA_DEVICES=2")
def test_a_launch_without_the_device_guard(monkeypatch):
    forward(device="cuda:1")
    monkeypatch.setattr(launch.torch.cuda, "device", lambda device: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="the kernel was loaded on device 1, not 0"):
        forward(device="cuda:1")
    launch.forget()  # and where Triton starts it
    with pytest.raises(RuntimeError, match="illegal memory access"):
        forward(device="cuda:1")


@pytest.mark.parametrize("protocol", ["data", "flags"])
def test_an_h0_whose_rows_are_not_aligned(protocol):
    """Contiguous, so `.contiguous()` leaves it; a wide look wants 16 bytes."""
    h0 = torch.randn(3 * 64 + 1, device="cuda", dtype=HALF)[1:].view(3, 64)
    forward(h0=h0, protocol=protocol)


def test_rows_that_are_not_aligned(monkeypatch):
    """If nothing took care of it."""
    h0 = torch.randn(3 * 64 + 1, device="cuda", dtype=HALF)[1:].view(3, 64)
    monkeypatch.setattr(persistent, "first_state", lambda h0, *others, **named: h0)
    with pytest.raises(RuntimeError, match="isaligned"):
        forward(h0=h0)


SEVERAL = pytest.mark.skipif(not fetches(), reason="several batch tiles are for Triton 3.7")


@SEVERAL
@pytest.mark.parametrize("protocol", ["data", "flags"])
def test_several_batch_tiles_a_program(protocol):
    """The numbers of one tile a program, also from a graph; one binary for any number of tiles."""

    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=HALF)

    operands = Operands(random(99, 192), random(33, 64), random(192, 64) / 8, random(64), Steps.padded(3, 33))

    def run(tiles):
        config = replace(persistent_config(HALF, 33, 64), tiles=tiles, protocol=protocol)
        return persistent.forward(Recurrence("torch", False, "ieee", config), operands, True).output

    one = run(1)
    fakecuda.launches.clear()
    assert all(torch.equal(run(tiles), one) for tiles in (2, 3))
    assert [tuple(launched["grid"][:2]) for launched in loops()] == [(4, 2), (4, 1)]
    assert len({launched["binary"] for launched in loops()}) == 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(2)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, one)


@SEVERAL
@pytest.mark.parametrize(
    ("multiprocessors", "hidden_size", "batch", "calls", "grid"),
    [
        (1, 32, 40, 4, (2, 2)),  # room for two groups of three, again and again, as calls alike are repeated
        (9, 288, 33, 1, (9, 1)),  # for none of 18 programs, but for one of 9 with more hidden units each
    ],
    ids=["usual", "wide"],
)
def test_a_plan_of_several_batch_tiles_a_program(monkeypatch, multiprocessors, hidden_size, batch, calls, grid):
    small = replace(plan.present(0), multiprocessors=multiprocessors)
    monkeypatch.setattr(plan, "present", lambda index: small)
    plan._chosen.cache_clear()
    module = trigru.GRU(8, hidden_size, schedule="persistent", device="cuda", dtype=HALF)
    exact = trigru.GRU(8, hidden_size, schedule="eager").double()
    exact.load_state_dict({name: p.cpu().double() for name, p in module.state_dict().items()})
    for _ in range(calls):
        fakecuda.launches.clear()
        x = torch.randn(3, batch, 8, device="cuda", dtype=HALF, requires_grad=True)
        output, _ = module(x)
        output.float().square().sum().backward()
        assert [tuple(launched["grid"][:2]) for launched in loops()] == [grid] * 2
        y = x.detach().cpu().double().requires_grad_()
        wanted, _ = exact(y)
        wanted.square().sum().backward()
        torch.testing.assert_close(output.cpu().double(), wanted, rtol=4e-3, atol=4e-3)
        torch.testing.assert_close(x.grad.cpu().double(), y.grad, rtol=1e-2, atol=1e-2)
    plan._chosen.cache_clear()
