"""Calls that are repeated as they were noted: with other values, what a first call gives; and what ends it."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref

import pytest
import torch
import triton
from torch import nn
from torch.autograd import forward_ad

import fakecuda
import trigru
from trigru import operators
from trigru.kernels import launch, persistent, watch
from trigru.kernels.errors import DoesNotFit, KernelTimeout
from trigru.operators import compute, known
from trigru.schedules import repeat

HALF = torch.float16


@pytest.fixture(autouse=True)
def _nothing_known():
    known.forget()


def made(schedule, input_size=4, hidden_size=16, **options):
    options = {"schedule": schedule, "dtype": HALF, "device": "cuda", **options}
    return trigru.GRU(input_size, hidden_size, **options)


def repeated():
    """How many kinds of calls are."""
    return sum(again.again is not None for again, _ in compute._kinds.values())


def exact(module):
    """The same layers on the CPU in float64."""
    options = {name: getattr(module, name) for name in ("num_layers", "batch_first", "bidirectional", "variant")}
    own = trigru.GRU(module.input_size, module.hidden_size, dtype=torch.float64, **options)
    own.load_state_dict(module.state_dict())
    return own


def results(module, x, hx=None, alike=False):
    """alike: derivatives by all outputs are one number in memory."""
    leaves = [x, *([] if hx is None else [hx]), *module.parameters()]
    output, h_n = module(x, hx)
    weighed = output if alike else output * torch.linspace(-1, 1, output.numel(), device=x.device).view_as(output)
    return [output, h_n, *torch.autograd.grad(weighed.sum() + h_n.sum(), leaves)]


def assert_exact(module, x, hx=None, **options):
    others = [None if one is None else one.detach().cpu().double().requires_grad_() for one in (x, hx)]
    for got, want in zip(results(module, x, hx, **options), results(exact(module), *others, **options), strict=True):
        error = (got.detach().cpu().double() - want.detach()).abs().max()
        assert error <= 0.02 * max(1.0, want.abs().max())


def drawn(*shape):
    return torch.randn(*shape).to("cuda", HALF).requires_grad_()


def test_a_state_that_is_read_negated_is_resolved_anew_in_each_call():
    """Not what comes out, for the device that is not there has operations that see nothing of that bit."""
    module, x, hx = made("resident"), drawn(3, 2, 4).detach(), drawn(1, 2, 16).detach()
    for state, kinds in ((torch._neg_view(-hx), 0), (hx, 1)):
        for _ in range(4):
            module(x, state)
        assert repeated() == kinds


@pytest.mark.parametrize("schedule", ["stepwise", "walking", "resident", "persistent"])
@pytest.mark.parametrize(
    ("variant", "options"),
    [("torch", {}), ("cho", {"bidirectional": True, "batch_first": True}), ("chung", {"num_layers": 2})],
)
def test_with_other_values(schedule, variant, options):
    """Fresh weights, inputs and states at each call, an optimizer's steps and `.data` among them."""
    module = made(schedule, variant=variant, **options)
    parts = module.num_layers * (2 if module.bidirectional else 1)
    for step in range(5):
        fakecuda.options["execute"] = step in (0, 3, 4)
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(torch.randn_like(weight) / 4) if step % 2 else setattr(
                    weight, "data", torch.randn_like(weight) / 4
                )
        x, hx = drawn(3, 3, 4), drawn(parts, 3, 16)
        if fakecuda.options["execute"]:
            assert_exact(module, x, hx)
        else:
            results(module, x, hx)
    assert repeated() == 2  # forward, and backward


def test_calls_of_other_kinds_are_told_apart():
    module = made("resident")
    for shape in [(3, 3, 4)] * 4 + [(2, 3, 4), (3, 2, 4)]:
        assert_exact(module, drawn(*shape), drawn(1, shape[1], 16))
    x, hx = drawn(3, 3, 4), drawn(1, 3, 16)
    assert_exact(module, x.transpose(0, 1), hx)  # of other strides
    assert_exact(module, x, hx, alike=True)  # of strides of 0
    not_aligned = drawn(1 * 3 * 16 + 1)[1:].view(1, 3, 16)
    assert_exact(module, x, not_aligned)
    module.weight_hh_l0.requires_grad_(False)
    output, _ = module(drawn(3, 3, 4))
    output.sum().backward()
    assert module.weight_hh_l0.grad is None
    with torch.no_grad():
        module(drawn(3, 3, 4))
    assert repeated() == 2


def test_what_backward_finds_need_not_be_what_forward_kept():
    """Of the same values: elsewhere in memory, not aligned, in other strides; and last as forward left it."""
    module, x, hx = made("resident"), drawn(3, 3, 4), drawn(1, 3, 16)
    for _ in range(4):
        wanted = results(module, x, hx)
    weight = module.weight_hh_l0
    leaves, values = [x, hx, *module.parameters()], weight.detach().clone()
    others = [values.clone(), values.new_empty(values.numel() + 1)[1:].view_as(values).copy_(values)]
    for other in (*others, values.t().contiguous().t(), values):
        output, h_n = module(x, hx)
        weight.data = other
        weighed = output * torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output)
        found = torch.autograd.grad(weighed.sum() + h_n.sum(), leaves)
        for got, want in zip(found, wanted[2:], strict=True):
            assert (got - want).abs().max() <= 0.02 * max(1.0, want.abs().max())
    assert repeated() == 2


def test_a_call_noted_without_gradients_has_them_where_they_are_recorded():
    fakecuda.options["execute"] = False
    module, x = made("resident"), drawn(3, 3, 4)
    with torch.no_grad():
        for _ in range(4):
            assert not module(x)[0].requires_grad
    assert repeated() == 1
    assert module(x)[0].requires_grad


def test_what_is_asked_for_is_told_apart():
    """First one derivative, often enough for it to be noted, then all."""
    module, x, hx = made("resident"), drawn(3, 3, 4), drawn(1, 3, 16)
    for number in range(6):
        fakecuda.options["execute"] = number == 5
        output, h_n = module(x, hx)
        (found,) = torch.autograd.grad(output.sum() + h_n.sum(), [x])
    assert_exact(module, x, hx)
    output, h_n = module(x, hx)
    assert torch.equal(torch.autograd.grad(output.sum() + h_n.sum(), [x])[0], found)


@pytest.mark.parametrize("there", [True, False])
def test_with_torch_s_guards_and_without(monkeypatch, there):
    if not there:
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    module, x = made("resident"), drawn(3, 3, 4)
    wanted = results(module, x)
    fakecuda.options["execute"] = False
    for _ in range(3):
        results(module, x)
    fakecuda.options["execute"] = True
    monkeypatch.setattr(compute, "forward", None)  # neither goes the long way
    monkeypatch.setattr(compute, "backward", None)
    assert all(map(torch.equal, results(module, x), wanted))


def test_tied_weights_and_untied():
    module = made("resident", input_size=16)
    module.weight_ih_l0 = module.weight_hh_l0
    x = drawn(2, 3, 16)
    first, *others = [results(module, x) for _ in range(4)]
    assert all(torch.equal(one, again) for other in others for one, again in zip(first, other, strict=True))
    module.weight_ih_l0 = nn.Parameter(torch.randn_like(module.weight_hh_l0) / 4)
    assert_exact(module, x)


def test_dropout_is_drawn_anew():
    """As a call that is not repeated draws it."""
    module, x = made("resident", num_layers=2, dropout=0.5), drawn(3, 3, 4)
    torch.manual_seed(0)
    wanted = module(x)[0]
    seen = [module(x)[0] for _ in range(4)]
    assert repeated() == 1
    assert not torch.equal(seen[-1], seen[-2])
    torch.manual_seed(0)
    assert torch.equal(module(x)[0], wanted)


@pytest.mark.parametrize(
    ("schedule", "batch", "options"),
    [
        ("eager", 3, {}),
        ("persistent", 2, {"num_layers": 2, "input_size": 16}),
        ("resident", 3, {"bias": False}),
        ("resident", 33, {"bias": False}),
        ("stepwise", 33, {"bidirectional": True}),
    ],
)
def test_without_a_first_state_it_is_zeros(schedule, batch, options):
    """Whatever its memory held before."""
    module = made(schedule, **options)
    x = drawn(2, batch, module.input_size)
    zeros = torch.zeros(module.num_layers * (2 if module.bidirectional else 1), batch, 16, dtype=HALF).cuda()
    for number in range(4):
        fakecuda.options["execute"] = number == 3
        for one in [torch.full_like(zeros, float("nan")) for _ in range(8)]:
            del one
        found = results(module, x)
    wanted = results(module, x, zeros.requires_grad_())
    del wanted[3]  # the derivative by it
    assert all(map(torch.equal, found, wanted))


def test_the_function_is_repeated_too():
    weights = [
        (torch.randn(*shape) / 4).to("cuda", HALF).requires_grad_() for shape in ((48, 4), (48, 16), (48,), (48,))
    ]
    exact_weights = [w.detach().cpu().double().requires_grad_() for w in weights]
    for h0 in (None, drawn(3, 16)):
        for number in range(5):
            fakecuda.options["execute"] = number in (0, 4)
            x = drawn(2, 3, 4)
            found = []
            for own, one, first in ((weights, x, h0), (exact_weights, x.detach().cpu().double(), h0)):
                first = None if first is None else first.detach().to(one.device, one.dtype).requires_grad_()
                output, h_n = trigru.gru(
                    one, first, *own, variant="cho", schedule="resident" if one.is_cuda else "eager"
                )
                leaves = [*own, *([] if first is None else [first])]
                found.append([output, h_n, *torch.autograd.grad(output.sum() + h_n.square().sum(), leaves)])
            if fakecuda.options["execute"]:
                for got, wanted in zip(*found, strict=True):
                    error = (got.detach().cpu().double() - wanted.detach()).abs().max()
                    assert error <= 0.02 * max(1.0, wanted.abs().max())
    assert repeated() == 4
    with pytest.raises(ValueError, match="variant"):
        trigru.gru(x, None, *weights, variant=["cho"])


def test_nothing_is_kept_alive():
    module = made("persistent")
    for _ in range(4):
        x = drawn(3, 3, 4)
        output, h_n = module(x)
        output.sum().backward()
    assert repeated() == 2
    left = [weakref.ref(one) for one in (x, output, h_n, module.weight_ih_l0)]
    alive = []
    for _ in range(3):
        results(module, x)
        gc.collect()
        torch.cuda.synchronize()
        time.sleep(0.05)  # autograd's own thread lets go of what it gave a moment later
        alive.append(fakecuda.counts()["blocks"])
    assert alive[-1] <= alive[0]
    del module, x, output, h_n
    gc.collect()
    assert not any(ref() is not None for ref in left)


def test_hooks_of_triton_see_each_launch():
    module, seen = made("resident"), []
    x = drawn(3, 3, 4)
    for _ in range(4):
        del fakecuda.launches[:]
        module(x)
    hook, launches = seen.append, len(fakecuda.launches)
    triton.knobs.runtime.launch_enter_hook.add(hook)
    try:
        module(x)
        module(x)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(hook)
    assert len(seen) == 2 * launches


def test_another_protocol_is_no_repetition():
    module, x = made("persistent"), drawn(3, 3, 4)
    for _ in range(4):
        module(x)
    fakecuda.launches.clear()
    with persistent.exchanging_by("flags"):
        assert_exact(module, x)
    module(x)
    assert len({run["binary"] for run in fakecuda.launches if "forward" in run["kernel"]}) == 2


def test_a_launch_that_no_longer_fits(monkeypatch):
    """The plan decides anew, aloud."""
    module, x = made("auto", hidden_size=144), drawn(3, 3, 4)
    for _ in range(4):
        module(x)
    assert repeated() == 1

    def too_large(*tensors):
        raise RuntimeError("too many blocks in cooperative launch")

    (again, _), *_ = compute._kinds.values()
    monkeypatch.setattr(again, "again", too_large)
    assert_exact(module, x)
    assert again.again is None
    assert isinstance(launch.named(RuntimeError("too many blocks in cooperative launch")), DoesNotFit)


def test_a_launch_before_that_expired_is_told():
    module, x = made("persistent"), drawn(3, 3, 4)
    for _ in range(4):
        module(x)
    torch.cuda.synchronize()
    watch._words[0].number.value = 1  # as a kernel that gives up does
    with pytest.raises(KernelTimeout):
        module(x)
    module(x)


def test_in_a_graph():
    module, x = made("persistent"), drawn(3, 3, 4)
    with torch.no_grad():
        for _ in range(4):
            module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = module(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(output, module(x)[0])
    assert repeated() == 1


def test_a_stream_of_its_own():
    module, x = made("resident"), drawn(3, 3, 4)
    for _ in range(4):
        wanted = module(x)[0]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    fakecuda.launches.clear()
    with torch.cuda.stream(side):
        output = module(x)[0]
    torch.cuda.current_stream().wait_stream(side)
    assert {run["stream"] for run in fakecuda.launches} == {side.cuda_stream}
    assert torch.equal(output, wanted)
    torch.cuda.synchronize()  # before the memory of `output` goes back to its stream


def test_calls_within_batch_invariant_are_of_another_kind():
    """Tiles and plan are the same here; who multiplies the rows of all steps is not."""
    module, x = made("stepwise"), drawn(5, 16, 4)
    fakecuda.options["execute"] = False
    for inside in (False, False, False, False, True, True, True, True, False):
        del fakecuda.launches[:]
        with trigru.batch_invariant() if inside else contextlib.nullcontext():
            results(module, x)
        assert ("rows_kernel" in [launch["kernel"] for launch in fakecuda.launches]) is inside
    assert repeated() == 4  # forward and backward, of either kind


@pytest.mark.parametrize(("schedule", "more"), [("resident", 2), ("persistent", 5), ("stepwise", 3)])
def test_memory_that_only_launches_see_is_one_allocation(monkeypatch, schedule, more):
    """Where it is small; results have their own. more: allocations where it is large."""
    module, x = made(schedule), drawn(3, 3, 4).detach()
    found, allocations = [], []
    for most in (repeat._SHARED, -1):
        monkeypatch.setattr(repeat, "_SHARED", most)
        known.forget()
        for number in range(4):
            fakecuda.options["execute"] = number == 3
            before = fakecuda.counts()["blocks_made"]
            output, h_n = module(x)
            own = [output, h_n, *torch.autograd.grad(output, list(module.parameters()), torch.ones_like(output))]
            count = fakecuda.counts()["blocks_made"] - before
        assert len({one.untyped_storage().data_ptr() for one in own}) == len(own)
        found.append(own)
        allocations.append(count)
    assert allocations[1] - allocations[0] == more
    assert all(map(torch.equal, *found))


def test_tangents_from_above_of_a_call_like_one_before():
    module, x = made("resident"), drawn(3, 2, 4)
    d, tangent = drawn(2, 3, 2, 16).detach()
    for _ in range(4):
        (expected,) = torch.autograd.grad(module(x)[0], x, tangent)
    assert repeated() == 2
    output, _ = module(x)
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(output, x, forward_ad.make_dual(d, tangent))
        got = forward_ad.unpack_dual(found).tangent
    assert (got - expected).abs().max() <= 0.02 * expected.abs().max()


def test_second_derivatives_of_a_call_like_one_before():
    module = made("resident", dtype=torch.float32)
    x, hx = (drawn(*shape).detach().float().requires_grad_() for shape in ((3, 3, 4), (1, 3, 16)))
    for _ in range(4):
        results(module, x, hx)
    found = []
    for layer, *leaves in ((module, x, hx), (exact(module), *(one.detach().cpu().double() for one in (x, hx)))):
        leaves = [*(one.requires_grad_() for one in leaves), *layer.parameters()]
        output, h_n = layer(*leaves[:2])
        assert (type(output.grad_fn) is operators._Again._backward_cls) is output.is_cuda
        first = torch.autograd.grad(output.square().sum() + h_n.sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), leaves))
    for got, wanted in zip(*found, strict=True):
        assert (got.cpu().double() - wanted).abs().max() <= 0.02 * max(1.0, wanted.abs().max())
