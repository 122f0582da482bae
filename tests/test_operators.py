"""The torch.library operators: registration, gradients asked for and not, second derivatives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import assert_as_reference, flat_call, layer
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import trigru
from trigru.checks import layer_of
from trigru.layer import Call
from trigru.operators import batching, derivative
from trigru.operators.schema import Backward, Recorded, flat, flat_backward
from trigru.schedules import reserve
from trigru.schedules import stack as stack_module

LAYOUTS = [(packed, reverse) for packed in (False, True) for reverse in (False, True)]


def leaves_of(case):
    return [x for x in case.arguments(torch.float64) if x is not None]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_first_and_second_derivatives_against_finite_differences(variant, packed, reverse, bias):
    case = layer(3, 2, 2, 2, variant=variant, reverse=reverse, packed=packed, bias=bias, dtype=torch.float64)

    def call(*leaves):
        return trigru.gru(*leaves, batch_sizes=case.batch_sizes, **case.options)

    assert gradcheck(call, leaves_of(case))
    assert gradgradcheck(call, leaves_of(case))


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "stack": {"num_layers": 3, "bias": False},
    "both": {"num_layers": 2, "bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "recompute": {"num_layers": 2, "memory": "recompute"},
    "reverse": {"reverse": True},
}


def stack(variant, packed, *, dtype=torch.float32, **options):
    """The arguments of `torch.ops.trigru.gru` for a random stack, leaves all."""
    record = layer_of(3, 5, variant=variant, **options)
    case = layer(2, 3, 3, 5, packed=packed)
    x = case.tensors[0] if packed or not record.batch_first else case.tensors[0].transpose(0, 1).contiguous()
    module = trigru.GRU(3, 5, record.num_layers, record.bias, bidirectional=record.bidirectional, dtype=dtype)
    weights = [w.detach().requires_grad_() for w in module.parameters()]
    hx = torch.randn(record.parts, 3, 5).to(dtype).requires_grad_()
    return record, Recorded(record, weights, Call(x.to(dtype).requires_grad_(), hx, case.batch_sizes), 0)


def detached(call):
    """The same call without a gradient."""
    given = call.call._replace(input=call.call.input.detach(), hx=call.call.hx.detach())
    return call._replace(weights=[w.detach() for w in call.weights], call=given)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no grad"])
def test_opcheck(options, packed, recording, request):
    variant = trigru.VARIANTS[len(request.node.name) % 3]
    record, call = stack(variant, packed, **options)
    if not recording:
        call = detached(call)._replace(first_kept=record.num_layers)
    checks = {"test_utils": ("test_schema", "test_faketensor")} if record.dropout else {}  # draws anew in each
    torch.library.opcheck(torch.ops.trigru.gru.default, flat(call), **checks)
    if not recording:
        return
    with torch.no_grad():
        output, h_n, reserve = torch.ops.trigru.gru(*flat(call))
    # Its own derivative goes through the reference, step by step, which a compiler takes its time to trace: once.
    once = options == {} and not packed
    given = call if once else detached(call)
    pairs = [(torch.randn_like(output).requires_grad_(once), torch.randn_like(h_n))]
    pairs += [(transposed(output), None), (None, transposed(h_n))]
    for i, grads in enumerate(pairs):
        needs = [True] * (2 + len(call.weights))
        backward = Backward(given if i == 0 else detached(call), *grads, reserve, True, needs)
        torch.library.opcheck(torch.ops.trigru.gru_backward.default, flat_backward(backward))


def transposed(like):
    """Random values of the same shape, of which the first dimension is the fastest in memory."""
    return torch.randn(like.shape[::-1]).permute(*reversed(range(like.dim()))).to(like.dtype)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the `needs` of every backward operator that runs."""

    def __init__(self):
        super().__init__()
        self.needs: list[list[bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.trigru.gru_backward.default:
            self.needs.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen", range(6))
def test_only_what_needs_a_gradient_is_computed(frozen):
    case = layer()
    arguments = case.arguments(torch.float32)
    full = torch.autograd.grad(trigru.gru(*arguments)[0].sum(), arguments)
    arguments[frozen].requires_grad_(False)
    others = [x for i, x in enumerate(arguments) if i != frozen]
    with Calls() as calls:
        got = torch.autograd.grad(trigru.gru(*arguments)[0].sum(), others)
    assert calls.needs == [[i != frozen for i in range(6)]]
    for g, w in zip(got, [x for i, x in enumerate(full) if i != frozen], strict=True):
        torch.testing.assert_close(g, w)


def saved_elements(call) -> int:
    """Elements of distinct memory that autograd keeps for the backward of `call`."""
    sizes = {}

    def keep(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call()
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_what_forward_keeps_for_backward(variant, memory, dtype):
    """The figures of the README's table: elements a step, sequence and hidden unit."""
    case = layer(5, 3, 4, 6, variant=variant)
    arguments = case.arguments(dtype)
    given = sum(x.numel() for x in arguments)
    kept = saved_elements(lambda: trigru.gru(*arguments, variant=variant, schedule="eager", memory=memory)) - given
    gates = 0 if memory == "recompute" else 4 if variant == "torch" else 3
    assert kept == 5 * 3 * 6 * (1 + gates)


@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
@pytest.mark.parametrize("hidden_size", [7, 40], ids=["tanh", "sigmoid"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_gates_computed_again_give_the_same_gradients(variant, hidden_size, packed, reverse):
    case = layer(7, 30, 5, hidden_size, variant=variant, packed=packed, reverse=reverse, dtype=torch.float64)
    assert_as_reference(case, memory="recompute")


def test_nothing_is_kept_without_gradients():
    case = layer()
    arguments = case.arguments(torch.float32)
    with torch.no_grad():
        assert saved_elements(lambda: trigru.gru(*arguments)) == 0
        reserve = torch.ops.trigru.gru(*flat_call(case, arguments, first_kept=1))[2]
    assert reserve == []
    with torch.inference_mode():
        assert trigru.gru(*arguments)[0].is_inference()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_second_derivatives_of_a_frozen_layer_which_keeps_no_input(variant, options):
    module = trigru.GRU(3, 4, variant=variant, **options, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    batch = 4 if module.batch_first else 2
    hx = torch.randn(len(module._all_weights), batch, 4, dtype=torch.float64, requires_grad=True)
    kept = saved_elements(lambda: module(x, hx))
    module.weight_ih_l0.requires_grad_(True)
    assert kept + x.numel() - 1 == saved_elements(lambda: module(x, hx))
    module.requires_grad_(False)
    assert gradgradcheck(lambda x, hx: module(x, hx), (x, hx))


@pytest.mark.parametrize("frozen", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_below_the_first_gradient_keep_nothing(frozen, batch_first):
    module = trigru.GRU(3, 4, 3, batch_first=batch_first, dropout=0.3, dtype=torch.float64)
    twin = torch.nn.GRU(3, 4, 3, batch_first=batch_first, dropout=0.3, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    whole = saved_elements(lambda: module(x))
    grads = []
    for each in (module, twin):
        for layer_number in range(frozen):
            for name in each._all_weights[layer_number]:
                getattr(each, name).requires_grad_(False)
        torch.manual_seed(3)
        asked = [w for w in each.parameters() if w.requires_grad]
        first = torch.autograd.grad(each(x)[0].square().sum(), asked, create_graph=True)
        grads.append([*first, *torch.autograd.grad(sum(d.square().sum() for d in first), asked)])
    assert saved_elements(lambda: module(x)) < whole - frozen * 10 * 4 * 4
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_stands_for_the_input_holds_zeros():
    """`new_empty` would do, but for what may lie in memory: deterministic algorithms fill it with NaN."""
    layer = trigru.GRU(4, 4).requires_grad_(False)
    x = torch.randn(20, 2, 4, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        (first,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert second.isfinite().all()


@pytest.mark.parametrize(("batch_first", "sides"), [(False, 1), (True, 1), (True, 2)])
def test_second_derivatives_where_the_last_states_are_the_output(monkeypatch, batch_first, sides):
    """As on a GPU."""
    for module in (stack_module, reserve, derivative, batching):
        monkeypatch.setattr(module, "shares_output", lambda device: True)
    options = {"batch_first": batch_first, "bidirectional": sides == 2, "dtype": torch.float64}
    layer = trigru.GRU(3, 4, **options).requires_grad_(False)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: layer(x, torch.zeros(sides, 4 if batch_first else 2, 4).double()), (x,))


def test_frozen_layers_below_may_change_between_forward_and_backward():
    layer = trigru.GRU(4, 4, 2)
    for name in layer._all_weights[0]:
        getattr(layer, name).requires_grad_(False)
    output = layer(torch.randn(20, 2, 4))[0]
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.9)
    output.sum().backward()
    assert layer.weight_hh_l1.grad is not None


@pytest.mark.parametrize("cls", [nn.GRU, trigru.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_a_stream_through_frozen_weights_may_keep_its_state_in_one_place(cls, options):
    layer = cls(4, 4, dtype=torch.float64, **options).requires_grad_(False)
    x = torch.randn(20, 2, 4, dtype=torch.float64, requires_grad=True)
    start = torch.randn(len(layer._all_weights), 2, 4, dtype=torch.float64)
    state = start.clone()
    output, h_n = layer(x, state)
    state.copy_(h_n.detach())
    (found,) = torch.autograd.grad(output.square().sum(), x)
    (want,) = torch.autograd.grad(layer(x, start)[0].square().sum(), x)
    torch.testing.assert_close(found, want)


def test_the_first_call_under_another_default_device_or_dtype():
    code = """
import torch, trigru
from trigru.schedules import eager_products
layer, x = trigru.GRU(8, 16), torch.randn(40, 2, 8)
torch.set_default_dtype(torch.float64)
with torch.device("meta"):
    layer(x)
    found = eager_products._onednn()
eager_products._onednn.cache_clear()
torch.set_default_dtype(torch.float32)
assert (found is None) == (eager_products._onednn() is None)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
