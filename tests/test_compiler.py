"""torch.compile, torch.export, fake and meta tensors: one graph for all batch sizes and lengths, the same numbers."""

from __future__ import annotations

import contextlib
import copy
import shutil

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import error
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import trigru

# The first sizes are none of those below: dynamo takes dimensions that are equal at first for the same one.
SHAPES = [(7, 8), (5, 4), (12, 2), (3, 3), (9, 5), (20, 6), (4, 9), (6, 7), (15, 10), (2, 11)]
LAYERS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "layers": {"num_layers": 3, "bias": False},
    "bidirectional layers, cho": {"num_layers": 2, "bidirectional": True, "variant": "cho"},
}


OLD = torch.__version__ < (2, 10)
MOST = 2 if torch.__version__ < (2, 13) else 1  # compilations of what is one graph: dynamo of 2.9 and 2.11 begins again


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(module, *inputs):
    """Outputs and gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = module(*leaves)
    loss = sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(loss, [*leaves, *module.parameters()])]


def assert_same(got, want):
    assert all(error(g, w) <= 1e-5 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("options", list(LAYERS.values()), ids=LAYERS)
def test_one_graph_for_ten_lengths_and_batch_sizes(options, given):
    layer = trigru.GRU(5, 6, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True, backend=counter)
    states = layer.num_layers * (1 + layer.bidirectional)
    for i, (seq_len, batch) in enumerate(SHAPES):
        shape = (batch, seq_len, 5) if layer.batch_first else (seq_len, batch, 5)
        inputs = [torch.randn(shape), *([torch.randn(states, batch, 6)] if given else [])]
        assert_same(run(compiled, *inputs), run(layer, *inputs))
        if i == 0:
            first = counter.frame_count
    assert counter.frame_count == first
    # Between layers dynamo finds that dropout is a constant, and starts again before anything has run.
    assert first == 2 if layer.num_layers > 1 else first <= MOST


def test_without_dynamic_what_the_second_shape_compiles_serves_every_other():
    layer = trigru.GRU(5, 6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    counts = []
    for seq_len, batch in SHAPES:
        x = torch.randn(seq_len, batch, 5)
        assert_same(compiled(x), layer(x))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 2
    assert counts[1] == counts[-1]


@pytest.mark.parametrize("name", ["lengths", "mask", "reset"])
def test_what_is_given_first_where_the_inputs_sizes_are_dynamic_already(name):
    layer = trigru.GRU(5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seq_len, batch in SHAPES[:2]:
        compiled(torch.randn(seq_len, batch, 5))
    x = torch.randn(4, 3, 5)
    given = {name: torch.tensor([4, 0, 2]) if name == "lengths" else torch.rand(4, 3) < 0.5}
    assert_same(compiled(x, **given), layer(x, **given))


def packed(seq_len, batch, enforce_sorted):
    lengths = torch.randint(1, seq_len + 1, (batch,))
    lengths[0] = seq_len
    if enforce_sorted:
        lengths = lengths.sort(descending=True).values
    return pack_padded_sequence(torch.randn(seq_len, batch, 5), lengths, enforce_sorted=enforce_sorted)


@pytest.mark.skipif(OLD, reason="torch 2.9 compiles no operator whose result's size is in its arguments' values")
@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("enforce_sorted", [False, True], ids=["unsorted", "sorted"])
def test_one_graph_for_packed_sequences(enforce_sorted, given):
    layer = trigru.GRU(5, 6, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def call(data, batch_sizes, sorted_indices, unsorted_indices, hx):
        output, h_n = layer(PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices), hx)
        return output.data, h_n

    for seq_len, batch in SHAPES[:4]:
        x = packed(seq_len, batch, enforce_sorted)
        hx = torch.randn(2, batch, 6) if given else None
        want, want_h = layer(x, hx)
        got, got_h = call(*x, hx)
        assert_same((got, got_h), (want.data, want_h))
        grads = [torch.autograd.grad(out.sum(), list(layer.parameters())) for out in (got, want.data)]
        assert_same(*grads)
    assert counter.frame_count <= MOST


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_cells_compile_whole(variant):
    cell = trigru.GRUCell(5, 6, variant=variant)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 4, 7):
        x, h = torch.randn(batch, 5), torch.randn(batch, 6)
        assert_same([compiled(x, h)], [cell(x, h)])
    assert counter.frame_count == 1


def test_dropout_draws_anew_at_every_call():
    layer = torch.compile(trigru.GRU(5, 6, num_layers=2, dropout=0.5), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_training_and_inference_within_a_model():
    model = nn.ModuleDict({"gru": trigru.GRU(5, 6, 2), "out": nn.Linear(6, 3)})

    def loss(x):
        return model["out"](torch.relu_(model["gru"](x)[0])).square().mean()

    x = torch.randn(4, 3, 5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    assert_same(torch.autograd.grad(compiled(x), parameters), torch.autograd.grad(loss(x), parameters))
    with torch.no_grad():
        assert_same([compiled(x)], [loss(x)])


def test_autocast_is_compiled_in():
    layer = trigru.GRU(5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = layer(x.bfloat16(), torch.zeros(1, 3, 6).bfloat16()), None
        got = compiled(x.bfloat16(), torch.zeros(1, 3, 6).bfloat16())
    assert got[0].dtype == want[0].dtype == torch.bfloat16
    assert torch.equal(got[0], want[0])


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_transforms_of_torch_func_are_compiled_in(transform):
    layer = trigru.GRU(5, 6)

    def call(x):
        def loss(x):
            return layer(x)[0].square().sum()

        if transform == "grad":
            return torch.func.grad(loss)(x)
        if transform == "jvp":
            return torch.func.jvp(loss, (x,), (torch.ones_like(x),))[1]
        return torch.func.vmap(loss)(x)

    x = torch.randn(4, 3, 5) if transform != "vmap" else torch.randn(2, 4, 3, 5)
    want = call(x)
    assert want.norm() > 0
    assert_same([torch.compile(call, fullgraph=True, backend="aot_eager")(x)], [want])


def test_a_compiled_module_under_forward_mode_keeps_tangents_or_raises():
    layer = trigru.GRU(5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5)
    compiled(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        refusals = (NotImplementedError, torch._dynamo.exc.Unsupported)  # by torch 2.9 and 2.14
        # Torch 2.11 takes what was compiled for a tensor of its inference mode, and fails an assertion of its own.
        with (
            torch.no_grad(),
            contextlib.suppress(*refusals, *[RuntimeError] * ((2, 11) <= torch.__version__ < (2, 12))),
        ):
            got, want = (forward_ad.unpack_dual(m(dual)[0]).tangent for m in (compiled, layer))
            assert_same([got], [want])
        with pytest.raises(refusals, match=r"jvp|tangent|forward-mode"):
            compiled(dual)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen W_ih"])
@pytest.mark.parametrize("options", [{}, {"norm": "layer", "clip": 0.5}], ids=["plain", "norm, clip"])
def test_compiled_autograd(options, frozen):
    """The derivative of a call that was not compiled, in one graph."""
    layer = trigru.GRU(5, 6, **options)
    layer.weight_ih_l0.requires_grad_(not frozen)
    x = torch.randn(12, 2, 5, requires_grad=True)
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    want = torch.autograd.grad(layer(x)[0].square().sum(), leaves)
    loss = layer(x)[0].square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        loss.backward()
    assert_same([leaf.grad for leaf in leaves], want)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
@pytest.mark.parametrize("options", list(LAYERS.values()), ids=LAYERS)
def test_inductor(options):
    layer = trigru.GRU(5, 6, **options)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True)
    for seq_len, batch in SHAPES[:3]:
        x = torch.randn((batch, seq_len, 5) if layer.batch_first else (seq_len, batch, 5))
        assert_same(run(compiled, x), run(layer, x))


@pytest.mark.parametrize(
    ("options", "strict"),
    [*((options, False) for options in LAYERS.values()), (LAYERS["bidirectional"], True)],
    ids=str,
)
def test_export_with_dynamic_shapes(options, strict):
    layer = trigru.GRU(5, 6, **options)
    first, second = torch.export.Dim("first", min=2), torch.export.Dim("second", min=2)
    program = torch.export.export(
        layer, (torch.randn(4, 3, 5),), dynamic_shapes=({0: first, 1: second},), strict=strict
    )
    calls = [node for node in program.graph.nodes if node.target is torch.ops.trigru.gru.default]
    assert len(calls) == 1
    for shape in ((4, 3, 5), (9, 7, 5)):
        x = torch.randn(shape)
        assert_same(program.module()(x), layer(x))
    decomposed = program.run_decompositions()
    assert_same(decomposed.module()(x), layer(x))


def test_fake_and_meta_tensors_have_the_shapes_and_dtypes_of_real_ones():
    for dtype in (torch.float32, torch.bfloat16):
        for options in LAYERS.values():
            layer = trigru.GRU(5, 6, **options, dtype=dtype)
            x = torch.randn(4, 3, 5, dtype=dtype)
            want = [(out.shape, out.stride(), out.dtype) for out in layer(x)]
            meta = copy.deepcopy(layer).to("meta")(x.to("meta"))
            assert [(out.shape, out.stride(), out.dtype) for out in meta] == want
            assert all(out.is_meta and out.requires_grad for out in meta)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = layer(mode.from_tensor(x))
            assert [(out.shape, out.stride(), out.dtype) for out in fake] == want


def test_backward_on_meta_tensors():
    layer = trigru.GRU(5, 6, 2, bidirectional=True, device="meta")
    x = torch.randn(4, 3, 5, device="meta", requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape for p in layer.parameters())
