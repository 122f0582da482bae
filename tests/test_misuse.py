"""Calls and constructions that do not fit: refused as nn.GRU refuses them, by the same type of exception."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import trigru


def packed(rows, sizes, dtype=torch.int64):
    return PackedSequence(torch.randn(rows, 4), torch.tensor(sizes, dtype=dtype))


def quantised(x):
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def with_weight(module, weight):
    module.weight_hh_l0 = nn.Parameter(weight)
    return module


def x(*shape):
    return torch.randn(shape or (12, 2, 4))


def h(*shape):
    return torch.zeros(shape or (1, 2, 6))


CALLS = {
    "sparse input": lambda m: m(x().to_sparse()),
    "sparse state": lambda m: m(x(), h().to_sparse()),
    "compressed input": lambda m: m(x(5, 4).to_sparse_csr()),
    "quantised state": lambda m: m(x(), quantised(h())),
    "0-d input": lambda m: m(torch.tensor(1.0)),
    "0-d state": lambda m: m(x(), torch.tensor(0.0)),
    "1-d input": lambda m: m(x(4)),
    "4-d input": lambda m: m(x(1, 2, 3, 4)),
    "integer input": lambda m: m(x().long()),
    "integer state": lambda m: m(x(), h().long()),
    "boolean state": lambda m: m(x(), h().bool()),
    "complex input": lambda m: m(x().to(torch.complex64)),
    "complex state": lambda m: m(x(), h().to(torch.complex64)),
    "no input": lambda m: m(None),
    "list": lambda m: m([1.0]),
    "array": lambda m: m(x().numpy()),
    "list of states": lambda m: m(x(), [h()]),
    "pair of states": lambda m: m(x(), (h(), h())),
    "float16 input": lambda m: m(x().half()),
    "float16 state": lambda m: m(x(), h().half()),
    "float64 state": lambda m: m(x(), h().double()),
    "float16 weights": lambda m: m.half()(x()),
    "other features": lambda m: m(x(3, 2, 5)),
    "no features": lambda m: m(x(3, 2, 0)),
    "other batch": lambda m: m(x(), h(1, 3, 6)),
    "other layers": lambda m: m(x(), h(2, 2, 6)),
    "other hidden size": lambda m: m(x(), h(1, 2, 5)),
    "unbatched state": lambda m: m(x(), h(2, 6)),
    "batched state": lambda m: m(x(3, 4), h()),
    "no steps": lambda m: m(x(0, 2, 4)),
    "packed rows missing": lambda m: m(packed(5, [3, 2, 1])),
    "packed sizes grow": lambda m: m(packed(5, [2, 3])),
    "packed size of 0": lambda m: m(packed(4, [2, 0, 2])),
    "packed size below 0": lambda m: m(packed(4, [5, -1])),
    "packed int32": lambda m: m(packed(5, [3, 2], torch.int32)),
    "packed state": lambda m: m(packed(5, [3, 2]), h()),
    "packed unbatched state": lambda m: m(packed(5, [3, 2]), h(3, 6)),
    "meta input": lambda m: m(x().to("meta")),
    "meta state": lambda m: m(x(), h().to("meta")),
    "one weight of another dtype": lambda m: with_weight(m, torch.randn(18, 6).double())(x()),
    "one weight of another shape": lambda m: with_weight(m, torch.randn(18, 5))(x()),
}


def raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011  which type is what is compared
        call()
    return caught.value


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_raises_what_nn_gru_raises(call):
    ours, theirs = (raised(lambda cls=cls: call(cls(4, 6))) for cls in (trigru.GRU, nn.GRU))
    assert type(ours) is type(theirs), (ours, theirs)


NAMED = {
    "packed rows left over": (lambda m: m(packed(7, [3, 2, 1])), RuntimeError, "batch_sizes: expected a sum of 7"),
    "packed floats": (lambda m: m(packed(5, [3, 2], torch.float32)), RuntimeError, "batch_sizes: expected .* int64"),
    "packed, two dimensions": (lambda m: m(packed(5, [[3, 2]])), RuntimeError, r"batch_sizes: .* got \(1, 2\)"),
    "packed, empty": (lambda m: m(packed(0, [])), RuntimeError, "sequence length to be larger than 0 in RNN"),
    "quantised input": (lambda m: m(quantised(x())), ValueError, "does not match weight dtype"),
    "complex layer": (lambda m: m.to(torch.complex64)(x().to(torch.complex64)), RuntimeError, "expected a floating"),
}


@pytest.mark.parametrize(("call", "kind", "words"), NAMED.values(), ids=NAMED)
def test_where_nn_gru_takes_what_does_not_fit_or_says_nothing_useful(call, kind, words):
    with pytest.raises(kind, match=words):
        call(trigru.GRU(4, 6))


@pytest.mark.parametrize("steps", [1, 12], ids=["torch's own", "eager"])
@pytest.mark.parametrize("dropout", [2, -0.5])
def test_a_dropout_set_out_of_its_range_raises_what_nn_gru_raises(dropout, steps):
    def call(cls):
        module = cls(4, 6, num_layers=2)
        module.dropout = dropout
        module.eval()(x(steps, 2, 4))
        module.train()(x(steps, 2, 4))

    ours, theirs = (raised(lambda cls=cls: call(cls)) for cls in (trigru.GRU, nn.GRU))
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: trigru.GRU(4, 6)(x),
        lambda x: trigru.GRUD(4, 6)(x, x, x),
        lambda x: trigru.gru(x, None, torch.randn(18, 4), torch.randn(18, 6)),
    ],
    ids=["GRU", "GRUD", "gru"],
)
def test_nested_input_is_named(call, layout):
    nested = torch.nested.nested_tensor([x(5, 4), x(3, 4)], layout=layout)
    with pytest.raises(RuntimeError, match=r"input: expected .* with lengths, .* got a nested tensor"):
        call(nested)


@pytest.mark.parametrize("steps", [1, 12], ids=["torch's own", "eager"])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "gain_l0", "h0"])
def test_a_weight_that_is_gone_is_named(name, steps):
    options = {"gain_l0": {"norm": "layer"}, "h0": {"learn_initial_state": True}}.get(name, {})
    layer = trigru.GRU(4, 6, **options)
    setattr(layer, name, None)
    with pytest.raises(TypeError, match=f"{name}: expected a torch.Tensor, got NoneType"):
        layer(x(steps, 2, 4))
    delattr(layer, name)
    with pytest.raises(AttributeError, match=name):
        layer(x(steps, 2, 4))


@pytest.mark.parametrize("variant", [*trigru.VARIANTS, "dreamer"])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_a_cells_weight_that_is_gone_is_named(name, variant):
    cell = trigru.GRUCell(4, 6, variant=variant)
    setattr(cell, name, None)
    with pytest.raises(TypeError, match=f"{name}: expected a torch.Tensor, got NoneType"):
        cell(cell_x())


@pytest.mark.parametrize(("sizes", "batch"), [([3, 2, 1], 3), ([2, 3], 2), ([2, 0, 3], 2), ([6, -1], 6), ([4, 1], 3)])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("clip", [None, 0.5])  # with it packed rows run padded
def test_batch_sizes_that_do_not_fit_reach_no_schedule(sizes, batch, compiled, clip):
    weights = [torch.randn(18, 4), torch.randn(18, 6)]

    def call(data, batch_sizes, h0):
        return trigru.gru(data, h0, *weights, batch_sizes=batch_sizes, clip=clip)[0]

    run = torch.compile(call, backend="eager", fullgraph=True) if compiled else call
    with pytest.raises(RuntimeError, match=r"batch_sizes|h0"):
        run(torch.randn(5, 4), torch.tensor(sizes), torch.zeros(batch, 6))


CONSTRUCTIONS = [
    {"input_size": 0},
    {"hidden_size": 0},
    {"input_size": -1},
    {"input_size": 3.0},
    {"hidden_size": 3.0},
    {"input_size": "3"},
    {"num_layers": 0},
    {"num_layers": 1.5},
    {"bias": 1},
    {"batch_first": 0},
    {"dropout": 2},
    {"dropout": True},
    {"dropout": "a"},
    {"dropout": float("nan")},
    {"proj_size": 2},
    {"proj_size": 0},
    {"device": "nope"},
    {"dtype": torch.int32},
    {"foo": 1},
]


@pytest.mark.parametrize("options", CONSTRUCTIONS, ids=str)
def test_a_construction_raises_what_nn_gru_raises(options):
    given = {"input_size": 3, "hidden_size": 4, **options}
    ours, theirs = raised(lambda: trigru.GRU(**given)), raised(lambda: nn.GRU(**given))
    assert type(ours) is type(theirs), (ours, theirs)


def test_flags_are_flags():
    with pytest.raises(TypeError, match="bidirectional should be of type bool, got: int"):
        trigru.GRU(3, 4, bidirectional=1)


def cell_x(*shape):
    return torch.randn(shape or (2, 4))


def cell_h(*shape):
    return torch.zeros(shape or (2, 6))


def with_cell_weight(cell, weight):
    cell.weight_hh = nn.Parameter(weight)
    return cell


CELL_CALLS = {
    "sparse state": lambda m: m(cell_x(), cell_h().to_sparse()),
    "quantised input": lambda m: m(quantised(cell_x())),
    "quantised state": lambda m: m(cell_x(), quantised(cell_h())),
    "0-d input": lambda m: m(torch.tensor(1.0)),
    "0-d state": lambda m: m(cell_x(), torch.tensor(0.0)),
    "3-d input": lambda m: m(cell_x(1, 2, 4)),
    "3-d state": lambda m: m(cell_x(), cell_h(1, 2, 6)),
    "integer input": lambda m: m(cell_x().long()),
    "integer state": lambda m: m(cell_x(), cell_h().long()),
    "boolean state": lambda m: m(cell_x(), cell_h().bool()),
    "complex input": lambda m: m(cell_x().to(torch.complex64)),
    "complex state": lambda m: m(cell_x(), cell_h().to(torch.complex64)),
    "no input": lambda m: m(None),
    "list": lambda m: m([1.0]),
    "array": lambda m: m(cell_x().numpy()),
    "list of states": lambda m: m(cell_x(), [cell_h()]),
    "pair of states": lambda m: m(cell_x(), (cell_h(), cell_h())),
    "array as state": lambda m: m(cell_x(), cell_h().numpy()),
    "float16 input": lambda m: m(cell_x().half()),
    "float16 state": lambda m: m(cell_x(), cell_h().half()),
    "float64 state": lambda m: m(cell_x(), cell_h().double()),
    "float16 weights": lambda m: m.half()(cell_x()),
    "other features": lambda m: m(cell_x(2, 5)),
    "other features, unbatched": lambda m: m(cell_x(5)),
    "no features": lambda m: m(cell_x(2, 0)),
    "other batch": lambda m: m(cell_x(), cell_h(3, 6)),
    "other hidden size": lambda m: m(cell_x(), cell_h(2, 5)),
    "unbatched state": lambda m: m(cell_x(), cell_h(6)),
    "batched state": lambda m: m(cell_x(4), cell_h(2, 6)),
    "meta input": lambda m: m(cell_x().to("meta")),
    "meta state": lambda m: m(cell_x(), cell_h().to("meta")),
    "one weight of another dtype": lambda m: with_cell_weight(m, torch.randn(18, 6).double())(cell_x()),
    "one weight of another shape": lambda m: with_cell_weight(m, torch.randn(18, 5))(cell_x()),
    "two states": lambda m: m(cell_x(), cell_h(), cell_h()),
    "nothing": lambda m: m(),
}


def outcome(call):
    """The type of what it raises; the dtype and shape of what it returns."""
    try:
        found = call()
    except Exception as error:  # whatever it is, it is compared
        return type(error)
    return (found.dtype, found.shape) if isinstance(found, torch.Tensor) else type(found).__name__


@pytest.mark.parametrize("call", CELL_CALLS.values(), ids=CELL_CALLS)
def test_a_call_of_a_cell_does_what_nn_grucell_does(call):
    ours, theirs = (outcome(lambda cls=cls: call(cls(4, 6))) for cls in (trigru.GRUCell, nn.GRUCell))
    assert ours == theirs


class Explained(trigru.GRUCell):
    """Says what a call would do, in place of it."""

    def forward(self, *given):
        return trigru.explain(self, *given)


@pytest.mark.parametrize("variant", [*trigru.VARIANTS, "dreamer"])
def test_explain_of_a_cell_refuses_what_the_cell_refuses(variant):
    for name, call in CELL_CALLS.items():
        cells = [cls(4, 6, variant=variant) for cls in (trigru.GRUCell, Explained)]
        called, explained = (outcome(partial(call, cell)) for cell in cells)
        assert isinstance(called, type) == isinstance(explained, type), (name, called, explained)
    for given in ((cell_x(), cell_h()), (cell_x(4), cell_h(6)), (cell_x().to_sparse(),)):
        assert Explained(4, 6, variant=variant)(*given).variant == variant


@pytest.mark.parametrize("to", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_a_cell_takes_sparse_input_as_nn_grucell_does(variant, to):
    cell, x = trigru.GRUCell(4, 6, variant=variant), cell_x()
    torch.testing.assert_close(cell(to(x)), cell(x))


CELL_CONSTRUCTIONS = [
    {"input_size": 0},
    {"hidden_size": 0},
    {"input_size": -1},
    {"hidden_size": -1},
    {"input_size": 3.0},
    {"hidden_size": 3.0},
    {"input_size": "3"},
    {"input_size": None},
    {"hidden_size": True},
    {"bias": 1},
    {"bias": None},
    {"device": "nope"},
    {"dtype": torch.int32},
    {"dtype": "a"},
    {"num_layers": 2},
]


@pytest.mark.parametrize("options", CELL_CONSTRUCTIONS, ids=str)
def test_a_construction_of_a_cell_does_what_nn_grucell_does(options):
    given = {"input_size": 3, "hidden_size": 4, **options}
    ours, theirs = outcome(lambda: trigru.GRUCell(**given)), outcome(lambda: nn.GRUCell(**given))
    assert ours == theirs
