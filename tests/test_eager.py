"""The eager schedule against the reference, and against nn.GRU."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import NAMES, assert_as_reference, error, layer

from trigru.kernels.config import kept_values
from trigru.kernels.steps import Steps
from trigru.layer import Weights
from trigru.planning.configs import EagerConfig
from trigru.planning.stages import Choice
from trigru.reference import VARIANTS
from trigru.schedules import eager, eager_layout, eager_products
from trigru.schedules.part import Part, Run, Upstream

# (seq_len, batch, input_size, hidden_size). The last ones cross what the schedule decides by: sigmoid instead of tanh,
# fresh instead of reused buffers, several chunks, another matrix product, weights laid out for it.
SMALL = [(1, 1, 1, 1), (1, 3, 4, 7), (5, 1, 3, 17), (9, 4, 1, 33), (7, 5, 33, 2), (4, 0, 3, 5)]
LARGE = [(70, 3, 5, 7), (130, 16, 6, 33), (5, 64, 40, 160), (6, 72, 24, 256), (33, 4, 6, 256)]


@pytest.fixture(autouse=True)
def _one_thread():
    """On a busy machine two threads wait for each other far longer than these small layers take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "reverse"])
def reverse(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_small(variant, reverse, bias, packed, shape, dtype):
    if packed and shape[1] == 0:
        pytest.skip("a packed sequence has at least one sequence")
    case = layer(*shape, dtype=dtype, bias=bias, packed=packed, variant=variant, reverse=reverse)
    assert_as_reference(case, schedule="eager")


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_large(variant, reverse, packed, shape):
    case = layer(*shape, packed=packed, variant=variant, reverse=reverse)
    assert_as_reference(case, schedule="eager")


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_several_chunks_exactly(variant, reverse, packed, monkeypatch):
    """Chunks of a few steps, in reused and in fresh buffers, give what one chunk gives."""
    monkeypatch.setattr(eager_layout, "CHUNKS", EagerConfig(chunk_elements=7 * 4 * 3))
    case = layer(8, 4, 3, 7, dtype=torch.float64, packed=packed, variant=variant, reverse=reverse)
    assert_as_reference(case, schedule="eager")
    monkeypatch.setattr(eager_layout, "REUSE_ELEMENTS", 0)
    assert_as_reference(case, schedule="eager")


@pytest.mark.parametrize("through", ["output", "h_n"])
def test_gradient_of_one_result(variant, reverse, through):
    case = layer(6, 3, 4, 5, dtype=torch.float64, packed=True, variant=variant, reverse=reverse)
    assert_as_reference(case, schedule="eager", through=through)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_16_bits(variant, dtype):
    case = layer(70, 3, 8, 16, dtype=dtype, variant=variant)
    assert_as_reference(case, schedule="eager")


def forward(arguments, case, *, save=True):
    """output, h_n and the gates, None unless saved, of the schedule's own function."""
    data, h0, *weights = arguments
    batch_sizes, options = case.batch_sizes, case.options
    steps = Steps.padded(*data.shape[:2]) if batch_sizes is None else Steps.of_batch_sizes(batch_sizes.tolist())
    part = Part(Choice("eager", "named"), options["variant"], options["reverse"])
    gates = data.new_empty(steps.num_rows, kept_values(part.variant) * h0.shape[1]) if save else None
    run = Run(data, h0, steps, data.new_empty(steps.num_rows, h0.shape[1]), gates, h0.new_empty(h0.shape))
    eager.forward(part, [Weights(*weights)], run)
    return part, run


def backward(arguments, forwards, grads, needs):
    part, run = forwards
    upstream = Upstream(*grads, (*needs, False))  # of no gain
    d_input, d_h0, d_weights, _ = eager.backward(part, [Weights(*arguments[2:])], run, upstream)
    return d_input, d_h0, *d_weights[:4]


def call(case, needs, transform=lambda x: x, scale=1.0):
    """(output, h_n, gates) and the gradients, every tensor passed through `transform`."""
    arguments = [None if x is None else transform(x.to(case.dtype)) for x in case.tensors]
    forwards = forward(arguments, case)
    _, run = forwards
    output = run.output.view(*arguments[0].shape[:-1], -1)
    grads = transform(torch.full_like(output, scale)), transform(torch.full_like(run.h_n, scale))
    return (output, run.h_n, run.gates), backward(arguments, forwards, grads, needs)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_needs(variant, packed):
    case = layer(dtype=torch.float64, packed=packed, variant=variant)
    _, everything = call(case, [True] * 6)
    for needs in itertools.product([False, True], repeat=6):
        _, results = call(case, needs)
        for name, need, result, full in zip(NAMES, needs, results, everything, strict=True):
            assert (result is None) is not need, name
            assert result is None or torch.equal(result, full), name


def every_second(x):
    """The same values, strided in every dimension."""
    wide = x.new_full([2 * n for n in x.shape], float("nan"))
    view = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("transform", [every_second, lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)])
def test_strided(variant, reverse, packed, transform):
    case = layer(5, 4, 3, 6, dtype=torch.float64, packed=packed, variant=variant, reverse=reverse)
    plain, strided = call(case, [True] * 6), call(case, [True] * 6, transform)
    for want, got in zip((*plain[0], *plain[1]), (*strided[0], *strided[1]), strict=True):
        assert error(got, want) <= 1e-14


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (1, 1, 1, 1), (4, 40, 5, 33), (3, 64, 64, 256)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_expanded_and_unshared(variant, reverse, packed, shape):
    """Arguments that repeat one value stay as they are, and no result shares memory with another or an argument."""
    case = layer(*shape, packed=packed, variant=variant, reverse=reverse)
    arguments = [x.to(case.dtype).flatten()[:1].expand(x.shape[-1]).expand(x.shape) for x in case.tensors]
    before = [x.clone() for x in arguments]
    forwards = forward(arguments, case)
    _, (_, _, _, output, reserve, h_n, *_) = forwards
    grads = torch.ones(()).expand(*arguments[0].shape[:-1], shape[3]), torch.ones(()).expand(h_n.shape)
    kept = output.clone(), reserve.clone()
    results = backward(arguments, forwards, grads, [True] * 6)
    for x, was in zip((*arguments, output, reserve), (*before, *kept), strict=True):
        assert torch.equal(x, was)
    for result, x in zip(results, arguments, strict=True):
        assert result.shape == x.shape
        assert result.is_contiguous()
    storages = [x.untyped_storage().data_ptr() for x in (*arguments, output, h_n, reserve, *grads, *results)]
    assert len(set(storages)) == len(storages)


def test_nothing_saved(variant):
    case = layer(variant=variant)
    arguments = [x.to(case.dtype) for x in case.tensors]
    _, run = forward(arguments, case, save=False)
    _, want = forward(arguments, case)
    assert run.gates is None
    assert torch.equal(run.output, want.output)
    assert torch.equal(run.h_n, want.h_n)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (6, 3, 4, 5), (12, 40, 8, 33)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_as_nn_gru(shape, packed):
    case = layer(*shape, dtype=torch.float64, packed=packed)
    peer = torch.nn.GRU(shape[2], shape[3]).double()
    for parameter, value in zip(peer.parameters(), case.tensors[2:], strict=True):
        parameter.data = value
    data, h0 = (x.clone().requires_grad_() for x in case.tensors[:2])
    given = torch.nn.utils.rnn.PackedSequence(data, case.batch_sizes) if packed else data
    want, want_h_n = peer(given, h0[None])
    want = want.data if packed else want
    (want.sum() + want_h_n.sum()).backward()
    (output, h_n, _), results = call(case, [True] * 6)
    assert error(output, want) <= 1e-12
    assert error(h_n, want_h_n[0]) <= 1e-12
    for result, x in zip(results, (data, h0, *peer.parameters()), strict=True):
        assert error(result, x.grad) <= 1e-12


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_transposed_copy_of_the_recurrent_weights(variant, packed, monkeypatch):
    monkeypatch.setattr(eager_products, "is_intel", lambda: True)
    assert eager_products.turned(torch.ones(36, 12), 9, 33).is_contiguous()
    assert_as_reference(layer(33, 9, 5, 12, packed=packed, variant=variant), schedule="eager")


def test_chunks_are_even_where_they_can_be():
    for seq_len in range(1, 300):
        steps = eager_layout.even_steps(seq_len, 64)
        assert 1 <= steps <= min(64, seq_len)
    for seq_len, steps in ((20, 20), (64, 32), (100, 25), (156, 52), (1000, 50)):
        assert eager_layout.even_steps(seq_len, 64) == steps
    assert eager_layout.even_steps(1000, 7) <= 7
