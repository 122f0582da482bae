"""What the fake device sees of streams, the allocator, waiting and leaks: right programs pass, planted mistakes do
not."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
import triton
import triton.language as tl
from torch.nn.utils.rnn import pack_padded_sequence

import fakecuda
import trigru
from trigru.kernels import launch, watch

HALF = torch.float16
SCHEDULES = ["stepwise", "walking", "resident", "persistent"]


@triton.jit
def _twice(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, 2 * tl.load(x_ptr + at, mask=at < n, other=0.0), mask=at < n)


def twice(x, y):
    launch.launch(_twice, (1,), {"x_ptr": x, "y_ptr": y, "n": x.numel()}, {"BLOCK": 64}, num_warps=1, num_stages=1)


def operation(x, y):
    y.copy_(x).mul_(2)


WORK = pytest.mark.parametrize("work", [twice, operation], ids=["kernel", "operation"])


def pair():
    x, y = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    torch.cuda.synchronize()
    return x, y


@contextlib.contextmanager
def refused(match):
    """As pytest.raises; then all is waited for, so that memory may be freed."""
    with pytest.raises(RuntimeError, match=match):
        yield
    torch.cuda.synchronize()


# -- the order of streams ----------------------------------------------------------------------------------------------


@WORK
def test_a_read_of_what_another_stream_writes(work):
    x, y = pair()
    with torch.cuda.stream(torch.cuda.Stream()):
        x.fill_(3)
    with refused(r"reads memory that aten::fill_ on stream \d+ writes, and no event"):
        work(x, y)
    torch.cuda.synchronize()
    work(x, y)


@WORK
def test_a_write_to_what_another_stream_reads(work):
    x, y = pair()
    with torch.cuda.stream(torch.cuda.Stream()):
        work(x, y)
    with refused("aten::fill_ on the default stream of device 0 writes memory that"):
        x.fill_(3)


@WORK
def test_an_event_that_was_recorded_too_early(work):
    x, y = pair()
    side = torch.cuda.Stream()
    early = side.record_event()
    with torch.cuda.stream(side):
        x.fill_(3)
    torch.cuda.current_stream().wait_event(early)
    with refused("no event lies between"):
        work(x, y)


@WORK
@pytest.mark.parametrize(
    "how", ["event", "stream", "host waits for stream", "host waits for event", "event of a third"]
)
def test_ways_to_order_streams(work, how):
    x, y = pair()
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        x.fill_(3)
    if how == "event":
        here.wait_event(side.record_event())
    elif how == "stream":
        here.wait_stream(side)
    elif how == "host waits for stream":
        side.synchronize()
    elif how == "host waits for event":
        side.record_event().synchronize()
    else:
        third = torch.cuda.Stream()
        third.wait_stream(side)
        here.wait_stream(third)
    work(x, y)
    assert torch.equal(y.cpu(), torch.full((64,), 6.0))


def test_order_is_not_checked_where_that_is_turned_off():
    x, y = pair()
    fakecuda.check_order(False)
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            x.fill_(3)
        operation(x, y)
    finally:
        torch.cuda.synchronize()
        fakecuda.check_order(True)


def test_two_streams_may_read_and_may_write_apart():
    x, y = pair()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y[:32].copy_(x[:32])
        twice(x, torch.empty_like(x))
    twice(x, torch.empty_like(x))
    y[32:].copy_(x[32:])
    torch.cuda.current_stream().wait_stream(side)


def test_replays_of_a_graph_on_two_streams():
    x, y = pair()
    twice(x, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twice(x, y)
        z = y + 1
    graph.replay()
    assert torch.equal(z.cpu(), torch.full((64,), 3.0))
    graph.replay()
    with torch.cuda.stream(torch.cuda.Stream()), refused("no event lies between"):
        graph.replay()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_layer_on_a_side_stream(schedule):
    """It is ordered by its own stream, and so is its backward."""
    module = trigru.GRU(8, 48, schedule=schedule, device="cuda", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda", dtype=HALF, requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loss = module(x)[0].float().sum()
        loss.backward()
    torch.cuda.current_stream().wait_stream(side)
    assert bool(torch.isfinite(x.grad).all())
    with torch.cuda.stream(side):
        y = x.detach().clone()
        output = module(y)[0]
    with refused("no event lies between"):
        output.sum()


# -- memory that goes back to the allocator ----------------------------------------------------------------------------


def test_memory_freed_while_another_stream_reads_it():
    x, y = pair()
    with torch.cuda.stream(torch.cuda.Stream()):
        y.copy_(x)
    del x
    (problem,) = fakecuda.problems()
    torch.cuda.synchronize()
    assert "is freed while aten::copy_" in problem


@pytest.mark.parametrize("how", ["record_stream", "event"])
def test_memory_freed_in_order(how):
    x, y = pair()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y.copy_(x)
    if how == "event":
        torch.cuda.current_stream().wait_stream(side)
    else:
        x.record_stream(side)
        y.record_stream(side)
    del x, y
    assert not fakecuda.problems()


# -- waiting, and leaks: the calls of a training loop ------------------------------------------------------------------


def trained(schedule, packed):
    """A function that does one step of training, which ran a few times already."""
    module = trigru.GRU(8, 48, num_layers=2, bidirectional=True, schedule=schedule, device="cuda", dtype=HALF)
    x = torch.randn(3, 5, 8, device="cuda", dtype=HALF)
    x = pack_padded_sequence(x, [3, 3, 2, 1, 1]) if packed else x
    output = module(x)[0]
    grad = torch.ones_like(output.data if packed else output)

    def step():
        output, _ = module(x)
        torch.autograd.backward(output.data if packed else output, grad)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    watch.check()
    return step


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_of_training_does_not_wait_and_keeps_nothing(schedule, packed):
    fakecuda.options["execute"] = False  # only the host's part
    step = trained(schedule, packed)
    gc.collect()
    before = fakecuda.counts()
    for _ in range(5):
        step()
    after = fakecuda.counts()
    assert after["synchronisations"] == before["synchronisations"]
    torch.cuda.synchronize()
    watch.check()
    gc.collect()
    after = fakecuda.counts()
    assert {name: after[name] for name in ("events", "pinned", "blocks")} == {
        name: before[name] for name in ("events", "pinned", "blocks")
    }


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1, 2], device="cuda"),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: x[x > 0],
    ],
    ids=["item", "copy back", "from a list", "synchronize", "mask"],
)
def test_a_wait_is_counted(wait):
    x, _ = pair()
    before = fakecuda.counts()["synchronisations"]
    x.mul_(1)
    assert fakecuda.counts()["synchronisations"] == before
    wait(x)
    assert fakecuda.counts()["synchronisations"] > before


def test_leaks_are_counted():
    kept = []
    before = fakecuda.counts()
    for _ in range(3):
        event = torch.cuda.Event()
        event.record()
        kept.append((event, torch.zeros(1, pin_memory=True)))
    after = fakecuda.counts()
    assert (after["events"] - before["events"], after["pinned"] - before["pinned"]) == (3, 3)
    del event, kept
    assert {name: fakecuda.counts()[name] for name in ("events", "pinned")} == {
        name: before[name] for name in ("events", "pinned")
    }
