"""The schedules on a GPU, where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import assert_as_reference, layer
from recurrences import recurrence
from torch.nn.utils.rnn import pack_padded_sequence

import trigru
from trigru.kernels import persistent
from trigru.kernels.config import persistent_config
from trigru.kernels.watch import check
from trigru.planning.plan import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

SCHEDULES = ["stepwise", "walking", "resident", "persistent"]
SIZES = [(5, 3, 9, 40), (7, 33, 64, 128), (20, 16, 64, 512)]


def on_gpu(*arguments, batch_sizes, **options):
    """`trigru.gru` with its tensors moved there and its results moved back."""
    moved = [None if x is None else x.cuda() for x in arguments]
    return tuple(out.cpu() for out in trigru.gru(*moved, batch_sizes=batch_sizes, **options))


def needs(schedule, variant, dtype, batch, hidden_size):
    """Skip what the plan refuses on this GPU, with its reason."""
    for direction in ("forward", "backward"):
        try:
            device = torch.device("cuda", torch.cuda.current_device())
            choose(schedule, device, dtype, batch, hidden_size, variant=variant, direction=direction)
        except RuntimeError as obstacle:
            pytest.skip(str(obstacle))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("packed", "reverse"), [(False, False), (True, True)], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_as_the_reference(schedule, variant, dtype, packed, reverse, size, monkeypatch):
    tf32 = dtype == torch.float32 and schedule == "persistent"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    needs(schedule, variant, dtype, size[1], size[3])
    case = layer(*size, variant=variant, dtype=dtype, packed=packed, reverse=reverse)
    assert_as_reference(case, call=on_gpu, schedule=schedule, tolerance=3e-3 if tf32 else None)
    torch.cuda.synchronize()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_bidirectional_stack(schedule, variant, packed):
    """Against the same layer in float64 on the CPU."""
    needs(schedule, variant, torch.float16, 5, 40)
    options = {"num_layers": 2, "bidirectional": True, "variant": variant}
    module = trigru.GRU(9, 40, schedule=schedule, device="cuda", dtype=torch.float16, **options)
    exact = trigru.GRU(9, 40, schedule="eager", dtype=torch.float64, **options)
    exact.load_state_dict({name: p.double() for name, p in module.state_dict().items()})
    x = torch.randn(7, 5, 9, device="cuda", dtype=torch.float16)
    found = []
    for gru, given in ((exact, x.cpu().double()), (module, x)):
        given = pack_padded_sequence(given, [7, 7, 4, 2, 1]) if packed else given
        output, h_n = gru(given)
        output = output.data if packed else output
        loss = output.double().square().sum() + h_n.double().square().sum()
        grads = torch.autograd.grad(loss, list(gru.parameters()))
        found.append([x.double().cpu() for x in (output, h_n, *grads)])
    for want, got in zip(*found, strict=True):
        assert (got - want).norm() <= 1e-2 * want.norm()
    check()


@pytest.mark.parametrize("size", [(30, 16, 512), (30, 5, 1000), (30, 33, 61)], ids=str)
@pytest.mark.parametrize("protocol", ["data", "flags"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_protocols_of_the_exchange(variant, protocol, size):
    _, batch, hidden_size = size
    needs("persistent", variant, torch.float16, batch, hidden_size)
    case = recurrence(*size, variant=variant, dtype=torch.float16)
    names = ("gates_in", "h0", "w_hh", "b_hn", "grad_output", "grad_h_n")
    there = {name: x.cuda() for name in names if (x := getattr(case, name)) is not None}
    config = replace(persistent_config(torch.float16, batch, hidden_size), protocol=protocol)
    got = replace(case, **there).run(persistent, config)
    torch.cuda.synchronize()
    check()
    errors = case.errors({name: x.cpu() for name, x in got.items()})
    assert max(errors.values()) <= 5e-3, errors


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_in_a_cuda_graph(schedule, packed):
    needs(schedule, "torch", torch.float16, 16, 128)
    module = trigru.GRU(32, 128, schedule=schedule, device="cuda", dtype=torch.float16)
    x = torch.randn(10, 16, 32, device="cuda", dtype=torch.float16)
    if packed:
        x = pack_padded_sequence(x, [10] * 3 + [7] * 9 + [2] * 4)

    def run():
        output = module(x)[0]
        return output.data if packed else output

    with torch.no_grad():
        want = run()  # also compiles, which a capture must not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run()
        got.fill_(float("nan"))
        graph.replay()
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(not torch.backends.cudnn.is_available(), reason="needs cuDNN")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True, "bias": False}], ids=str)
def test_cudnn_as_nn_gru(options, packed):
    """The same kernels on the same weights, which lie where cuDNN reads them."""
    module = trigru.GRU(12, 80, schedule="cudnn", device="cuda", **options)
    theirs = torch.nn.GRU(12, 80, device="cuda", **options)
    theirs.load_state_dict(module.state_dict())
    assert len({w.untyped_storage().data_ptr() for w in module.parameters()}) == 1
    x = torch.randn(9, 4, 12, device="cuda")
    given = pack_padded_sequence(x, torch.tensor([9, 7, 7, 2])) if packed else x
    results = []
    for each in (module, theirs):
        output, h_n = each(given)
        rows = output.data if packed else output
        grads = torch.autograd.grad(rows.square().sum() + h_n.sum(), list(each.parameters()))
        results.append((rows, h_n, *grads))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    loss = module(x)[0].square().sum()
    first = torch.autograd.grad(loss, [module.weight_hh_l0], create_graph=True)
    assert torch.autograd.grad(first[0].square().sum(), [module.weight_ih_l0])[0].isfinite().all()


def test_the_measured_choice():
    module, x = trigru.GRU(16, 32, device="cuda"), torch.randn(4, 2, 16, device="cuda")
    trigru.tune(module, x, seconds=0.05)
    assert trigru.explain(module, x).reason.startswith("measured on")
    module(x)[0].sum().backward()
