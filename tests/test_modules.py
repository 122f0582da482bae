"""`trigru.GRU` and `trigru.GRUCell` beside nn.GRU, nn.GRUCell and ONNX Runtime."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import trigru

SAME = {torch.float32: 1e-5, torch.float64: 1e-12}
STACKS = list(itertools.product((1, 2, 3), (False, True)))


def compare(theirs: nn.Module, ours: nn.Module, *inputs) -> None:
    """Outputs and gradients of both modules on the same inputs and weights."""
    results = []
    for module in (theirs, ours):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        outputs = module(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [*leaves, *module.parameters()])])
    for got, want in zip(results[1], results[0], strict=True):
        assert error(got, want) <= SAME[want.dtype]


@pytest.mark.parametrize("dtype", SAME, ids=str)
@pytest.mark.parametrize(("num_layers", "bidirectional"), STACKS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru_with_nn_weights_gives_nn_results(num_layers, bidirectional, batch_first, bias, dtype):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    theirs = nn.GRU(5, 7, **options, dtype=dtype)
    ours = trigru.GRU(5, 7, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    states = num_layers * (1 + bidirectional)
    compare(theirs, ours, torch.randn(4, 3, 5, dtype=dtype))
    batch = 4 if batch_first else 3
    compare(theirs, ours, torch.randn(4, 3, 5, dtype=dtype), torch.randn(states, batch, 7, dtype=dtype))
    compare(theirs, ours, torch.randn(4, 5, dtype=dtype), torch.randn(states, 7, dtype=dtype))


@pytest.mark.parametrize("dtype", SAME, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_cell_with_nn_weights_gives_nn_results(bias, dtype):
    theirs, ours = nn.GRUCell(5, 7, bias, dtype=dtype), trigru.GRUCell(5, 7, bias, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    compare(theirs, ours, torch.randn(3, 5, dtype=dtype))
    compare(theirs, ours, torch.randn(3, 5, dtype=dtype), torch.randn(3, 7, dtype=dtype))
    compare(theirs, ours, torch.randn(5, dtype=dtype), torch.randn(7, dtype=dtype))


@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("lengths", [(4, 3, 1), (2, 4, 2)], ids=["sorted", "unsorted"])
def test_packed_sequences_give_nn_results(lengths, given):
    theirs = nn.GRU(5, 7, num_layers=2, bidirectional=True)
    ours = trigru.GRU(5, 7, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    hx = torch.randn(4, 3, 7) if given else None
    packed = pack_padded_sequence(torch.randn(4, 3, 5), torch.tensor(lengths), enforce_sorted=False)
    (want, want_h), (got, got_h) = theirs(packed, hx), ours(packed, hx)
    assert error(got.data, want.data) <= 1e-5
    assert error(got_h, want_h) <= 1e-5
    for got_field, want_field in zip(got[1:], want[1:], strict=True):
        assert torch.equal(got_field, want_field)


def test_initial_weights_and_repr_are_those_of_nn():
    for theirs, ours in ((nn.GRU, trigru.GRU), (nn.GRUCell, trigru.GRUCell)):
        torch.manual_seed(3)
        a = theirs(5, 7)
        torch.manual_seed(3)
        b = ours(5, 7)
        assert f"trigru.{a!r}" == repr(b)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert repr(trigru.GRU(5, 7, 2, variant="cho", schedule="eager")) == (
        "trigru.GRU(5, 7, num_layers=2, variant='cho', schedule='eager')"
    )
    assert repr(trigru.GRUCell(5, 7, variant="chung")) == "trigru.GRUCell(5, 7, variant='chung')"


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((5, 0), {}),
        ((0, 7), {}),
        ((5.0, 7), {}),
        ((5, 7, 0), {}),
        ((5, 7), {"bias": 1}),
        ((5, 7), {"batch_first": None}),
        ((5, 7), {"dropout": True}),
        ((5, 7), {"dropout": "a"}),
        ((5, 7), {"dropout": float("nan")}),
        ((5, 7), {"dropout": None}),
    ],
    ids=str,
)
def test_bad_arguments_raise_what_nn_raises(args, kwargs):
    try:
        nn.GRU(*args, **kwargs)
    except (TypeError, ValueError) as error:
        theirs = type(error)
    else:
        pytest.skip(f"nn.GRU of torch {torch.__version__} raises nothing")
    with pytest.raises(theirs):
        trigru.GRU(*args, **kwargs)


@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_onnx_runtime_agrees(variant, bidirectional):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    module = trigru.GRU(5, 7, bidirectional=bidirectional, variant=variant)
    directions = ("", "_reverse") if bidirectional else ("",)

    def stacked(name):  # ONNX orders the gates z, r, h
        rows = [getattr(module, f"{name}_l0{suffix}").detach().chunk(3) for suffix in directions]
        return torch.stack([torch.cat([z, r, n]) for r, z, n in rows])

    weights = {
        "W": stacked("weight_ih"),
        "R": stacked("weight_hh"),
        "B": torch.cat([stacked("bias_ih"), stacked("bias_hh")], 1),
    }
    helper = onnx.helper
    node = helper.make_node(
        "GRU",
        ["X", "W", "R", "B", "", "H"],
        ["Y", "Y_h"],
        hidden_size=7,
        direction="bidirectional" if bidirectional else "forward",
        linear_before_reset=int(variant == "torch"),
    )
    real = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "gru",
        [helper.make_tensor_value_info(name, real, None) for name in ("X", "H")],
        [helper.make_tensor_value_info(name, real, None) for name in ("Y", "Y_h")],
        [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString())
    x, hx = torch.randn(4, 3, 5), torch.randn(len(directions), 3, 7)
    output, h_n = module(x, hx)
    want, want_h = (torch.from_numpy(y) for y in session.run(None, {"X": x.numpy(), "H": hx.numpy()}))
    assert error(output, want.transpose(1, 2).flatten(2)) <= 1e-5
    assert error(h_n, want_h) <= 1e-5
