"""Everything that takes derivatives: hooks, checkpointing, forward mode, torch.func, in-place use of the results."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import error, flat_call, layer
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import trigru
from trigru.operators.schema import Backward, flat, flat_backward, recorded


class Watch(TorchDispatchMode):
    """A mode that changes nothing; with it on, calls go through the operator instead of past the dispatcher."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


WAYS = {"direct": contextlib.nullcontext, "operator": Watch}


def pair(**options):
    options = {"dtype": torch.float64, **options}
    theirs, ours = nn.GRU(3, 4, **options), trigru.GRU(3, 4, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def same(got, want, tolerance=1e-10):
    if isinstance(want, dict):
        return all(same(got[name], w) for name, w in want.items())
    if isinstance(want, (tuple, list)):
        return all(same(g, w) for g, w in zip(got, want, strict=True))
    return error(got, want) <= tolerance


def gradients(module, x, call=None):
    x = x.detach().clone().requires_grad_()
    output, h_n = (call or module)(x)
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)).sum() + h_n.square().sum()
    return [output, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("through", ["output", "h_n", "both"])
def test_both_ways_give_the_gradients_of_nn(way, through):
    found = []
    for module in pair(num_layers=2, bidirectional=True):
        torch.manual_seed(1)
        x, hx = data(4, 2, 3).requires_grad_(), data(4, 2, 4).requires_grad_()
        with WAYS[way]():
            outputs = module(x, hx)
            used = {"output": outputs[:1], "h_n": outputs[1:], "both": outputs}[through]
            found.append(torch.autograd.grad(sum(out.cos().sum() for out in used), [x, hx, *module.parameters()]))
    assert same(found[1], found[0])


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives(way):
    found = []
    for module in pair():
        torch.manual_seed(1)
        x = data(3, 2, 3).requires_grad_()
        with WAYS[way]():
            first = torch.autograd.grad(module(x)[0].square().sum(), [x, *module.parameters()], create_graph=True)
            penalty = sum(g.square().sum() for g in first)
            found.append(torch.autograd.grad(penalty, [x, *module.parameters()]))
    assert same(found[1], found[0])


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpointing(reentrant):
    _, ours = pair(num_layers=2)
    x = data(4, 2, 3).requires_grad_()
    want = torch.autograd.grad(ours(x)[0].square().sum(), [x, *ours.parameters()])
    checkpoint(ours, x, use_reentrant=reentrant)[0].square().sum().backward()
    assert same([x.grad, *(p.grad for p in ours.parameters())], want)


def test_retain_graph_and_two_calls_before_a_backward():
    found = []
    for module in pair():
        torch.manual_seed(1)
        x, y = data(4, 2, 3).requires_grad_(), data(3, 5, 3)
        first, second = module(x)[0].sum(), module(y)[0].square().sum()
        parameters = list(module.parameters())
        once = torch.autograd.grad(first, parameters, retain_graph=True)
        again = torch.autograd.grad(first, parameters)
        assert same(once, again)
        found.append([once, torch.autograd.grad(second, parameters)])
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(second, parameters)
    assert same(found[1], found[0])


def test_hooks_on_tensors_and_modules_see_what_they_see_in_nn():
    found = []
    for module in pair(bidirectional=True):
        torch.manual_seed(1)
        seen = []
        x = data(4, 2, 3).requires_grad_()
        module.register_full_backward_hook(lambda m, inputs, outputs, seen=seen: seen.extend([*inputs, *outputs]))
        module.register_forward_hook(lambda m, args, outputs: (outputs[0] * 2, outputs[1]))
        module.weight_hh_l0.register_hook(lambda g, seen=seen: seen.append(g))
        output, h_n = module(x)
        output.register_hook(lambda g: g * 3)
        (output.square().sum() + h_n.sum()).backward()
        found.append([*seen, x.grad, *(p.grad for p in module.parameters())])
    assert len(found[0]) > 9
    assert same(found[1], found[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_results_may_be_modified_in_place_as_those_of_nn_on_a_cpu(bidirectional, batch_first):
    def call(module):
        def modified(x):
            output, h_n = module(x)
            return torch.relu_(output), h_n.mul_(2)

        return modified

    theirs, ours = pair(num_layers=2, bidirectional=bidirectional, batch_first=batch_first)
    x = data(4, 2, 3)
    assert same(gradients(ours, x, call(ours)), gradients(theirs, x, call(theirs)))


@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_weight_or_bias_changed_in_place_before_backward_is_noticed(name):
    layer = trigru.GRU(3, 4)
    output, _ = layer(torch.randn(40, 2, 3))
    with torch.no_grad():
        getattr(layer, name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_output_of_the_functional_form_may_be_modified_in_place_on_a_cpu():
    found = []
    for relu in (torch.relu, torch.relu_):
        torch.manual_seed(1)
        arguments = layer().arguments(torch.float64)
        output, _ = trigru.gru(*arguments, schedule="eager")
        found.append(torch.autograd.grad(relu(output).square().sum(), arguments))
    assert same(*found)


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("of", ["input", "hx", "weight"])
def test_forward_mode_gives_the_tangents_of_nn(of, recorded):
    found = []
    for module in pair(num_layers=2, bidirectional=True):
        torch.manual_seed(1)
        x, hx = data(4, 2, 3), data(4, 2, 4)
        weights = {name: p.detach() for name, p in module.named_parameters()}
        with forward_ad.dual_level(), torch.set_grad_enabled(recorded):
            if of == "weight":
                name = "weight_hh_l0_reverse"
                weights[name] = forward_ad.make_dual(weights[name], torch.ones_like(weights[name]))
            elif of == "hx":
                hx = forward_ad.make_dual(hx, torch.ones_like(hx))
            else:
                x = forward_ad.make_dual(x, torch.ones_like(x))
            outputs = functional_call(module, weights, (x, hx))
            found.append([forward_ad.unpack_dual(out).tangent for out in outputs])
    assert found[0][0].norm() > 0
    assert same(found[1], found[0])


@pytest.mark.parametrize("above", ["both", "h_n"])
@pytest.mark.parametrize("higher", [False, True], ids=["", "with a graph"])
def test_forward_mode_of_what_comes_from_above(above, higher):
    found = []
    for module in pair(num_layers=2, bidirectional=True):
        torch.manual_seed(1)
        x = data(12, 2, 3).requires_grad_()
        outputs = module(x)
        upstream = [torch.randn_like(out) for out in outputs]
        leaves = [x, *module.parameters()]
        with forward_ad.dual_level():
            last = forward_ad.make_dual(upstream[1], torch.randn_like(upstream[1]))
            first = upstream[0] if above == "h_n" else forward_ad.make_dual(upstream[0], torch.randn_like(upstream[0]))
            grads = torch.autograd.grad(outputs, leaves, [first, last], create_graph=higher)
            found.append([part.detach() for grad in grads for part in forward_ad.unpack_dual(grad)])
    assert same(found[1], found[0])


def test_forward_mode_of_packed_sequences():
    found = []
    for module in pair():
        torch.manual_seed(1)
        packed = pack_padded_sequence(data(4, 3, 3), torch.tensor([2, 4, 1]), enforce_sorted=False)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(packed.data, torch.ones_like(packed.data))
            found.append(forward_ad.unpack_dual(module(packed._replace(data=dual))[0].data).tangent)
    assert same(found[1], found[0])


def test_the_raw_operator_refuses_tangents_rather_than_drop_them():
    case = layer()
    arguments = [x.detach() for x in case.arguments(torch.float32)]
    with forward_ad.dual_level():
        arguments[0] = forward_ad.make_dual(arguments[0], torch.ones_like(arguments[0]))
        with pytest.raises(NotImplementedError, match=r"torch\.ops\.trigru\.gru has no forward-mode derivative"):
            torch.ops.trigru.gru(*flat_call(case, arguments))


def of_input(transform):
    def call(module):
        torch.manual_seed(2)
        return transform(lambda x: module(x)[0].square().sum())(data(3, 2, 3))

    return call


def by_parameters(transform):
    def call(module):
        torch.manual_seed(2)
        x = data(3, 2, 3)
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        return transform(lambda p: functional_call(module, p, (x,))[0].square().sum())(parameters)

    return call


def pushed(module):
    torch.manual_seed(2)
    x, tangent = data(3, 2, 3), data(3, 2, 3)
    return jvp(lambda x: module(x)[0], (x,), (tangent,))


def pulled(module):
    torch.manual_seed(2)
    output, pull = vjp(lambda x: module(x)[0], data(3, 2, 3))
    return output, pull(torch.ones_like(output))


def backward_after_grad(module):
    torch.manual_seed(2)
    x = data(3, 2, 3)
    inner = grad(lambda x: module(x)[0].square().sum())(x)
    return torch.autograd.grad(inner.square().sum(), list(module.parameters()))


TRANSFORMS = {
    "grad": of_input(grad),
    "grad by parameters": by_parameters(grad),
    "grad of grad": of_input(lambda f: grad(lambda x: grad(f)(x).square().sum())),
    "jacrev": of_input(lambda f: jacrev(grad(f))),
    "jacfwd": of_input(lambda f: jacfwd(f)),
    "hessian": of_input(hessian),
    "jvp": pushed,
    "vjp": pulled,
    "backward after grad": backward_after_grad,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_as_nn(transform):
    theirs, ours = pair(num_layers=2)
    assert same(TRANSFORMS[transform](ours), TRANSFORMS[transform](theirs))


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_cells_under_torch_func(variant):
    cell = trigru.GRUCell(3, 4, variant=variant, dtype=torch.float64)
    xs, hs, tangent = data(5, 2, 3), data(5, 2, 4), data(2, 3)
    assert same(vmap(cell)(xs, hs), looped(cell, xs, hs))
    assert same(
        hessian(lambda x: cell(x).sum())(xs[0]), torch.autograd.functional.hessian(lambda x: cell(x).sum(), xs[0])
    )
    pushed = jvp(cell, (xs[0],), (tangent,))[1]
    jacobian = torch.autograd.functional.jacobian(cell, xs[0])
    assert same(pushed, torch.einsum("bhci,ci->bh", jacobian, tangent))


def looped(call, *batched):
    return torch.stack([call(*sample) for sample in zip(*batched, strict=True)])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"variant": "cho"}], ids=str)
def test_vmap_over_input_and_state_is_one_call_an_operator(options):
    module = trigru.GRU(3, 4, **options, dtype=torch.float64)
    states = module.num_layers * (1 + module.bidirectional)
    xs, hxs = data(5, 3, 2, 3), data(5, states, 2, 4)
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        got = vmap(lambda x, h: module(x, h)[0])(xs, hxs)
    assert calls.count(torch.ops.trigru.gru.default) == 1
    assert same(got, looped(lambda x, h: module(x, h)[0], xs, hxs))
    assert same(vmap(lambda x: module(x)[1])(xs), looped(lambda x: module(x)[1], xs))
    assert same(vmap(lambda h: module(xs[0], h)[0])(hxs), looped(lambda h: module(xs[0], h)[0], hxs))
    assert same(vmap(lambda x: module(x)[0], in_dims=1)(xs.movedim(0, 1)), looped(lambda x: module(x)[0], xs))
    unbatched = xs[:, :, 0]
    assert same(vmap(lambda x: module(x)[0])(unbatched), looped(lambda x: module(x)[0], unbatched))


def test_vmap_where_the_batch_comes_first():
    module, xs = trigru.GRU(3, 4, batch_first=True, dtype=torch.float64), data(5, 2, 6, 3)
    assert same(vmap(lambda x: module(x)[0])(xs), looped(lambda x: module(x)[0], xs))


def test_vmap_over_weights_runs_an_ensemble():
    modules = [trigru.GRU(3, 4, dtype=torch.float64) for _ in range(3)]
    stacked = torch.func.stack_module_state(modules)[0]
    x = data(3, 2, 3)
    got = vmap(lambda p: functional_call(modules[0], p, (x,))[0])(stacked)
    assert same(got, torch.stack([m(x)[0] for m in modules]))
    first = torch.autograd.grad(got.square().sum(), list(stacked.values()))
    want = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in modules]
    assert same(first, [torch.stack(parts) for parts in zip(*want, strict=True)])


def test_gradients_of_each_sample():
    module = trigru.GRU(3, 4, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    xs = data(5, 3, 2, 3)

    def loss(p, x):
        return functional_call(module, p, (x,))[0].square().sum()

    got = vmap(grad(loss), (None, 0))(parameters, xs)
    want = [grad(loss)(parameters, x) for x in xs]
    assert same(got, {name: torch.stack([w[name] for w in want]) for name in parameters})


def test_backward_through_vmap_and_vmap_over_backward():
    theirs, ours = pair()
    xs = data(5, 3, 2, 3).requires_grad_()
    got = torch.autograd.grad(vmap(lambda x: ours(x)[0])(xs).square().sum(), [xs, *ours.parameters()])
    flat = xs.transpose(0, 1).flatten(1, 2)
    want = torch.autograd.grad(theirs(flat)[0].square().sum(), [xs, *theirs.parameters()])
    assert same(got, want)
    x = data(3, 2, 3)
    jacobians = [torch.autograd.functional.jacobian(lambda x, m=m: m(x)[0], x, vectorize=True) for m in (ours, theirs)]
    assert same(*jacobians)


def test_the_raw_operators_within_vmap():
    case = layer()
    arguments = [x.detach() for x in case.arguments(torch.float64)]
    xs = data(4, *arguments[0].shape)

    def call(x):
        forward = recorded(*flat_call(case, [x, *arguments[1:]]))
        output, _, reserve = torch.ops.trigru.gru(*flat(forward))
        found = torch.ops.trigru.gru_backward(
            *flat_backward(Backward(forward, output, None, reserve, True, [True] * 6))
        )
        return found[0], found[1], *found[2]

    want = [torch.stack(parts) for parts in zip(*map(call, xs), strict=True)]
    assert same(vmap(call)(xs), want)
