"""cuDNN as a schedule, with a stand-in for cuDNN: what it is given, what is kept, and every derivative."""

from __future__ import annotations

import gc
import os
import weakref

import pytest
import torch
from cudnn_standin import standin
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import trigru
from trigru.operators import compute
from trigru.operators.schema import Backward, Recorded, flat, flat_backward
from trigru.planning import cudnn as rules
from trigru.planning.plan import Site
from trigru.schedules import cudnn
from trigru.schedules.reserve import shares_output


@pytest.fixture
def there(monkeypatch):
    """cuDNN is there, for CPU tensors."""
    with standin(monkeypatch) as found:
        yield found


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "stack without biases": {"num_layers": 3, "bias": False},
    "both": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "recompute": {"num_layers": 2, "memory": "recompute"},
    "dropout": {"num_layers": 3, "dropout": 0.4, "bidirectional": True, "batch_first": True},
    "dropout, recompute": {"num_layers": 2, "dropout": 0.4, "memory": "recompute", "bias": False},
}
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def given(options, packed, dtype=torch.float64):
    """A module, and the records of a call of it, all of whose tensors are leaves."""
    module = trigru.GRU(3, 5, schedule="cudnn", dtype=dtype, **options)
    hx = torch.randn(module.num_layers * (1 + module.bidirectional), 3, 5, dtype=dtype, requires_grad=True)
    if packed:
        rows = pack_sequence([torch.randn(n, 3, dtype=dtype) for n in (4, 2, 1)])
        x = rows.data.requires_grad_()
        return module, module._records(x, hx, rows.batch_sizes)
    x = torch.randn(3, 4, 3, dtype=dtype) if module.batch_first else torch.randn(4, 3, 3, dtype=dtype)
    return module, module._records(x.requires_grad_(), hx)


def leaves_of(records):
    return [records.call.input, records.call.hx, *records.weights]


def by_reference(layer, weights, call):
    return compute.by_reference(layer, weights, call, trigru.operators._drawn(layer, call))


def caller(records, function=trigru.operators.gru):
    """The call as a function of its leaves; dropout's masks are always the same."""

    def call(input, hx, *weights):
        torch.manual_seed(3)
        return function(records.layer, weights, records.call._replace(input=input, hx=hx))

    return call


@LAYOUTS
@EVERY
def test_as_the_reference(there, options, packed):
    _, records = given(options, packed)
    leaves = leaves_of(records)
    with torch.no_grad():
        caller(records)(*leaves)  # asks for the layout, once
    there.calls.clear()
    got, want = caller(records)(*leaves), caller(records, by_reference)(*leaves)
    torch.testing.assert_close(got, want, check_stride=False)
    upstream = [torch.randn_like(out).requires_grad_() for out in got]
    torch.testing.assert_close(*[torch.autograd.grad(outs, leaves, upstream, True) for outs in (got, want)])
    layer = records.layer
    kinds = ["inference", "forward", "backward"] if layer.memory == "recompute" else ["forward", "backward"]
    each = layer.num_layers if layer.dropout else 1
    assert there.calls == [kind for kind in kinds for _ in range(each)]
    torch.testing.assert_close(*[second(outs, leaves, upstream) for outs in (got, want)])
    with torch.no_grad():
        torch.testing.assert_close(caller(records)(*leaves), want, check_stride=False)
    assert there.calls[-1] == "inference"


def second(outputs, leaves, upstream):
    """Derivatives of a sum of the squares of all derivatives."""
    first = torch.autograd.grad(outputs, leaves, upstream, create_graph=True)
    return torch.autograd.grad(sum(d.square().sum() for d in first), [*leaves, *upstream])


@pytest.mark.parametrize("name", ["both", "dropout"])
def test_a_kept_graph_serves_several_backwards(there, name):
    """cuDNN's backward spoils its reserve, as the stand-in's does."""
    _, records = given(OPTIONS[name], False)
    leaves = leaves_of(records)
    loss = caller(records)(*leaves)[0].square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), first)
    output, _ = caller(records)(*leaves)
    upstream = torch.randn(2, *output.shape, dtype=output.dtype)
    each = [torch.autograd.grad(output, leaves, grad, retain_graph=True) for grad in upstream]
    batched = torch.autograd.grad(output, leaves, upstream, is_grads_batched=True)
    torch.testing.assert_close(batched, tuple(torch.stack(pair) for pair in zip(*each, strict=True)))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("frozen", ["all weights", "first layer", "input"])
def test_only_what_needs_a_gradient(there, frozen, dropout):
    _, records = given({"num_layers": 2, "bias": False, "dropout": dropout}, False)
    leaves = leaves_of(records)
    still = {"all weights": range(2, 6), "first layer": range(4), "input": range(2)}[frozen]
    for i in still:
        leaves[i] = leaves[i].detach()
    wanted = [x for x in leaves if x.requires_grad]
    upstream = torch.randn(4, 3, 5, dtype=torch.float64)
    got = torch.autograd.grad(caller(records)(*leaves)[0], wanted, upstream)
    want = torch.autograd.grad(caller(records, by_reference)(*leaves)[0], wanted, upstream)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    reached = 1 if frozen == "first layer" else 2  # of the layers, each a call with dropout
    assert there.calls.count("backward") == (reached if dropout else 1)


@pytest.mark.parametrize(("name", "packed"), [("batch first", False), ("both", True)])
def test_opcheck(there, name, packed):
    _, records = given(OPTIONS[name], packed)
    call = Recorded(*records, 0)
    torch.library.opcheck(torch.ops.trigru.gru.default, flat(call))
    with torch.no_grad():
        output, h_n, reserve = torch.ops.trigru.gru(*flat(call))
    assert reserve == []
    reserve = [output] if shares_output(output.device) else []
    still = call._replace(
        weights=[w.detach() for w in call.weights],
        call=call.call._replace(input=call.call.input.detach(), hx=call.call.hx.detach()),
    )
    needs = [True] * (2 + len(call.weights))
    backward = Backward(still, torch.randn_like(output), torch.randn_like(h_n), reserve, True, needs)
    torch.library.opcheck(torch.ops.trigru.gru_backward.default, flat_backward(backward))


def test_the_operator_goes_back_through_all_layers_or_none(there):
    _, records = given(OPTIONS["both"], False)
    with pytest.raises(RuntimeError, match="first_kept: expected 0 or 2 with schedule 'cudnn', got 1"):
        torch.ops.trigru.gru(*flat(Recorded(*records, 1)))


@pytest.mark.parametrize(("name", "calls"), [("both", 1), ("dropout", 3)])
def test_under_a_compiler_forward_runs_again(there, name, calls):
    module, _ = given(OPTIONS[name], False)
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    torch.manual_seed(3)
    want = module(x)[0]
    grads = torch.autograd.grad(want.square().sum(), list(module.parameters()))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    there.calls.clear()
    torch.manual_seed(3)
    got = compiled(x)[0]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), list(module.parameters())), grads)
    assert there.calls == [kind for kind in ("inference", "forward", "backward") for _ in range(calls)]


def test_vmap_over_a_batch_of_batches(there):
    module, _ = given({}, False)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        got = torch.func.vmap(lambda one: module(one)[0])(x)
        torch.testing.assert_close(got, torch.stack([module(one)[0] for one in x]))


def test_weights_lie_where_cudnn_reads_them(there):
    """Laid out once, as those of nn.GRU on a GPU; an optimiser's steps, `.data` and state dicts are seen."""
    module, records = given(OPTIONS["both"], False)
    weights = records.weights
    assert len({w.untyped_storage().data_ptr() for w in weights}) == 1
    x = records.call.input.detach()
    module(x)  # asks cuDNN for the layout, once
    there.calls.clear()
    buffer = cudnn.flat(records.layer, weights)
    assert buffer.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
    for change in (
        lambda: torch.optim.SGD(module.parameters(), 0.5).step(),
        lambda: module.weight_hh_l1.data.mul_(2),
        lambda: module.load_state_dict({name: torch.randn_like(w) for name, w in module.state_dict().items()}),
    ):
        module(x)[0].sum().backward()
        change()
        want = compute.by_reference(*module._records(x, None))
        torch.testing.assert_close(module(x), want, check_stride=False)
    assert "flatten" not in there.calls
    module.float()
    assert there.calls[-1] == "flatten"
    torch.testing.assert_close(module(x.float())[0], want[0].float(), check_stride=False)


def test_weights_of_a_stack_with_dropout_lie_layer_by_layer(there):
    """So that no call of a layer copies them, nor one of all layers in evaluation."""
    module, records = given(OPTIONS["dropout"], False)
    x, width = records.call.input.detach(), len(records.weights) // 3
    of_layers = [
        {w.untyped_storage().data_ptr() for w in records.weights[i : i + width]} for i in (0, width, 2 * width)
    ]
    assert [len(one) for one in of_layers] == [1, 1, 1]
    assert len(set.union(*of_layers)) == 3
    for module_now in (module, module.eval()):
        there.calls.clear()
        torch.manual_seed(3)
        output = module_now(x)[0]
        kept = [t for t in output.grad_fn.saved_tensors if t is not None and t.dim() == 1]
        assert {t.untyped_storage().data_ptr() for t in kept if t.is_floating_point()} >= set.union(*of_layers)
        output.sum().backward()
        assert there.calls.count("forward") == there.calls.count("backward") == 3
    want = compute.by_reference(*module._records(x, None))
    torch.testing.assert_close(module(x), want, check_stride=False)


def test_dropout_of_all_and_in_lower_precision(there):
    module = trigru.GRU(3, 5, 2, dropout=1.0, schedule="cudnn")
    x = torch.randn(4, 2, 3)
    want = compute.by_reference(*module.eval()._records(x, None))[1][0]
    output, h_n = module.train()(x)
    torch.testing.assert_close(h_n[0], want)
    zeros = trigru.functional.gru(torch.zeros(4, 2, 5), None, *module._flat_weights[4:])[0]
    torch.testing.assert_close(output, zeros)


@pytest.mark.parametrize("kind", ["swapped schedule", "tied", "parametrised", "part of a larger buffer"])
def test_weights_that_lie_elsewhere_are_copied_at_each_call(there, kind):
    module = trigru.GRU(5, 5, 2, dtype=torch.float64)
    module.schedule = "cudnn"
    if kind == "tied":
        module.weight_ih_l1 = module.weight_ih_l0
        module.flatten_parameters()
    elif kind == "parametrised":
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        module.flatten_parameters()
    elif kind == "part of a larger buffer":
        everything = torch.randn(2000, dtype=torch.float64)
        at = 0
        for w in module.parameters():
            w.data = everything[at : at + w.numel()].view_as(w)
            at += w.numel()
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    for _ in range(2):
        got, want = module(x)[0], compute.by_reference(*module._records(x, None))[0]
        torch.testing.assert_close(got, want)
        parameters = list(module.parameters())
        pairs = zip(
            torch.autograd.grad(got.sum(), parameters), torch.autograd.grad(want.sum(), parameters), strict=True
        )
        for one, other in pairs:
            torch.testing.assert_close(one, other)
        next(iter(parameters)).data.mul_(1.5)  # no version counts this


def test_nothing_outlives_the_module_and_its_graph(there):
    module = trigru.GRU(3, 5, dtype=torch.float64)
    module.schedule = "cudnn"  # so that there is a buffer beside the weights
    output = module(torch.randn(4, 2, 3, dtype=torch.float64))[0]
    kept = [weakref.ref(x) for x in output.grad_fn.saved_tensors if x is not None]
    storages = [weakref.ref(x.untyped_storage()) for x in (output, module.weight_hh_l0)]
    weights = [weakref.ref(w) for w in module.parameters()]
    output.sum().backward()
    del output, module
    gc.collect()
    assert [ref() for ref in (*kept, *storages, *weights) if ref() is not None] == []


def site(**changes):
    return Site(torch.device("cpu"), torch.float32, 4, 3, False, True, True)._replace(**changes)


REFUSED = {
    "equations": ({"variant": "cho"}, {}, "has the equations of 'torch' alone, not those of 'cho'"),
    "reverse": ({"reverse": True}, {}, "runs a single direction from the first step to the last"),
    "dtype": ({}, {"dtype": torch.complex64}, "computes in float32, float16, bfloat16 and float64"),
    "empty": ({}, {"batch": 0}, "takes no empty batch"),
}


@pytest.mark.parametrize(("options", "changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cudnn_has_not_is_refused_with_the_reason(there, options, changes, reason):
    layer = trigru.checks.layer_of(3, 5, schedule="cudnn", **options)
    with pytest.raises(RuntimeError, match=f"schedule 'cudnn' cannot run here: cuDNN {reason}"):
        trigru.planning.plan.plan(layer, site(**changes))


def test_deterministic_algorithms_are_respected(there, monkeypatch):
    layer = trigru.checks.layer_of(3, 5)
    name, values = rules.DETERMINISTIC
    monkeypatch.delenv(name, raising=False)
    torch.use_deterministic_algorithms(True)
    try:
        assert f"{name}={values[0]}" in rules.why_not(layer, site())
        monkeypatch.setitem(os.environ, name, values[0])
        assert rules.why_not(layer, site()) is None
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_cudnn_it_is_refused_and_nothing_is_moved(monkeypatch):
    module = trigru.GRU(3, 5, schedule="cudnn")
    before = [w.data_ptr() for w in module.parameters()]
    module.flatten_parameters()
    assert [w.data_ptr() for w in module.parameters()] == before
    with pytest.raises(RuntimeError, match="schedule 'cudnn' cannot run here: cuDNN needs tensors on an NVIDIA GPU"):
        module(torch.randn(4, 2, 3))
    there = torch.device("cuda", 0)
    assert rules.why_not_here("torch", there, torch.float32, 1) == "this torch was built without cuDNN"
    monkeypatch.setattr(rules._CUDNN, "is_available", lambda: True)
    with torch.backends.cudnn.flags(enabled=False):
        assert rules.why_not_here("torch", there, torch.float32, 1) == "torch.backends.cudnn.enabled is off"
    monkeypatch.setattr(rules._CUDNN, "version", lambda: 91200)
    assert "bfloat16 needs cuDNN 9.13" in rules.why_not_here("torch", there, torch.bfloat16, 1)


def test_explain_says_it(there):
    module, records = given({}, False)
    found = trigru.explain(module, records.call.input)
    assert (found.schedule, found.reason) == ("cudnn", "asked for by name")
