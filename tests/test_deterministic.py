"""Equal bits: run to run, under torch's deterministic algorithms, in any interleaving of programs; and of a sequence
whatever its batch, within `trigru.batch_invariant`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import INTERPRETED
from cudnn_standin import standin
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import trigru
from trigru.planning import plan
from trigru.planning.devices import PRESETS

WAITS = "the interpreter runs programs one after another: they cannot wait"
TORCH = pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
SCHEDULES = [
    pytest.param("stepwise", marks=pytest.mark.interpretable),
    pytest.param("resident", marks=pytest.mark.interpretable),
    pytest.param("walking", marks=pytest.mark.skipif(INTERPRETED, reason=WAITS)),
    pytest.param("persistent", marks=pytest.mark.skipif(INTERPRETED, reason=WAITS)),
]
ON_ONE_ARCHITECTURE = pytest.mark.parametrize("on_cpu", ["interpreter" if INTERPRETED else "sm_90"], indirect=True)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def layer_of(schedule, dtype=torch.float32, hidden_size=20, **options):
    torch.manual_seed(1)
    return trigru.GRU(6, hidden_size, dtype=dtype, schedule=schedule, **options)


def results(layer, x, hx, upstream, weights=True):
    """Output, last state, and derivatives by input, hx and, where asked for, weights."""
    packed = isinstance(x, nn.utils.rnn.PackedSequence)
    data, hx = (x.data if packed else x).clone().requires_grad_(), hx.clone().requires_grad_()
    output, h_n = layer(x._replace(data=data) if packed else data, hx)
    rows = output.data if packed else output
    leaves = [data, hx, *(layer.parameters() if weights else ())]
    return [rows, h_n, *torch.autograd.grad([rows, h_n], leaves, [upstream, h_n.detach()])]


def assert_equal_bits(*runs):
    first, *others = runs
    assert all(x.isfinite().all() for x in first)
    for run in others:
        assert all(torch.equal(a, b) for a, b in zip(first, run, strict=True))


def random_call(layer, batch, seq_len=4, dtype=None):
    dtype = dtype or layer.weight_ih_l0.dtype
    parts = layer.num_layers * (1 + layer.bidirectional)
    width = layer.hidden_size * (1 + layer.bidirectional)
    shapes = (seq_len, batch, 6), (parts, batch, layer.hidden_size), (seq_len, batch, width)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@TORCH
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_torch_operations_from_run_to_run(dtype, variant, memory):
    layer = layer_of("eager", dtype, num_layers=2, bidirectional=True, variant=variant, memory=memory)
    call = random_call(layer, 7, 40)
    assert_equal_bits(*(results(layer, *call) for _ in range(3)))


@TORCH
def test_cudnn_by_its_stand_in_from_run_to_run(monkeypatch, deterministic):
    """With what makes cuDNN deterministic; without it, it is refused (test_cudnn.py)."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2")
    with standin(monkeypatch):
        layer = layer_of("cudnn", num_layers=2, bidirectional=True)
        call = random_call(layer, 5, 12)
        assert_equal_bits(*(results(layer, *call) for _ in range(3)))


@TORCH
@pytest.mark.usefixtures("deterministic")
def test_options_from_run_to_run():
    """No operation of which torch says that it is not deterministic."""
    layer = layer_of("eager", clip=0.5, zoneout=0.2, recurrent_dropout=0.2, weight_dropout=0.2)
    x, hx, upstream = random_call(layer, 5, 12)
    given = {"reset": torch.rand(12, 5) < 0.2, "mask": torch.rand(12, 5) < 0.9}
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        leaf, state = x.clone().requires_grad_(), torch.randn(1, 20).requires_grad_()
        output, _ = layer(leaf, hx, reset_state=state, **given)
        found.append([output, *torch.autograd.grad(output, [leaf, state, *layer.parameters()], upstream)])
    assert_equal_bits(*found)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("schedule", SCHEDULES)
@ON_ONE_ARCHITECTURE
def test_kernels_from_run_to_run_and_in_any_interleaving(on_cpu, schedule):
    """Programs take turns in other orders each time, and warps of a program fall apart otherwise."""
    layer = layer_of(schedule, torch.bfloat16, num_layers=2, bidirectional=True)
    call = random_call(layer, 5, 3)
    orders = [{}, {}] if INTERPRETED else [{"seed": 0}, {"seed": 1, "quantum": 50}, {"seed": "round-robin"}]
    found = []
    for order in orders:
        with on_cpu(**order):
            found.append(results(layer, *call))
    assert_equal_bits(*found)


@pytest.fixture
def _sums_in_order(monkeypatch):
    """The interpreter multiplies tiles by numpy, whose BLAS may round a row by where in the tile it stands; a GPU does
    not."""

    def matmul(a, b, dtype):
        return np.add.reduce((a[..., None] * b[..., None, :, :]).astype(dtype), axis=-2)

    if INTERPRETED:
        monkeypatch.setattr(np, "matmul", matmul)


@pytest.mark.usefixtures("_sums_in_order")
@pytest.mark.parametrize("variant", ["torch", pytest.param("cho", marks=() if INTERPRETED else pytest.mark.slow)])
@pytest.mark.parametrize("schedule", SCHEDULES)
@ON_ONE_ARCHITECTURE
def test_a_sequence_has_the_same_bits_in_every_batch(on_cpu, schedule, variant):
    """float32 where a kernel has it in full: there, tile sizes and so the order of sums hang on the batch."""
    dtype = torch.bfloat16 if schedule == "persistent" else torch.float32
    layer = layer_of(schedule, dtype, 32, bidirectional=True, variant=variant)
    x, hx, upstream = random_call(layer, 19, 2)
    with on_cpu(), trigru.batch_invariant():
        whole = results(layer, x, hx, upstream, weights=False)
        for places in ([18], [17, *range(8)]):
            given = [t[:, places].contiguous() for t in (x, hx, upstream)]
            alone = results(layer, *given, weights=False)
            for name, got, want in zip(("output", "h_n", "d_input", "d_hx"), alone, whole, strict=True):
                assert torch.equal(got, want[:, places]), (name, places)
        assert all(t.isfinite().all() for t in whole)


@pytest.mark.interpretable
@pytest.mark.usefixtures("_sums_in_order")
@pytest.mark.parametrize("schedule", ["stepwise", "resident"])
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter")
def test_a_packed_sequence_has_the_same_bits_in_every_batch(schedule):
    layer = layer_of(schedule, hidden_size=32)
    x, hx, _ = random_call(layer, 17, 4)
    lengths = torch.randint(1, 5, (17,))
    given = pack_padded_sequence(x, lengths, enforce_sorted=False)
    with trigru.batch_invariant():
        output, h_n = layer(given, hx)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output)
        for b in (0, 16):
            own, last = layer(pack_padded_sequence(x[:, [b]], lengths[[b]]), hx[:, [b]])
            assert torch.equal(own.data, padded[: lengths[b], b])
            assert torch.equal(last[:, 0], h_n[:, b])


@pytest.mark.interpretable
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter")
def test_without_the_option_bits_may_hang_on_the_batch():
    """What the option is for: here tiles of 16 and of 32 sequences sum in chunks of another length."""
    layer = layer_of("stepwise", hidden_size=32)
    x, hx, _ = random_call(layer, 17, 2)
    whole, one = layer(x, hx)[0][:, :5], layer(x[:, :5], hx[:, :5])[0]
    torch.testing.assert_close(one, whole)
    assert not torch.equal(one, whole)


@TORCH
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: trigru.GRU(6, 20)(x), "schedule 'eager' cannot run within trigru.batch_invariant"),
        (lambda x: trigru.GRU(6, 20, schedule="eager")(x), "schedule 'eager' cannot run"),
        (lambda x: trigru.GRU(6, 20, norm="layer")(x), 'norm="layer" cannot run'),
        (lambda x: trigru.GRUCell(6, 20)(x[0]), "a cell on a CPU cannot run"),
        (lambda x: trigru.GRUCell(6, 20, variant="dreamer")(x[0]), "variant 'dreamer' cannot run"),
        (lambda x: trigru.GRUD(6, 20)(x, x > 0, x), "GRU-D, whose decays come from a product of torch's, cannot run"),
        (lambda x: trigru.explain(trigru.GRU(6, 20), x), "schedule 'eager' cannot run"),
        (
            lambda x: torch.func.jvp(lambda x: trigru.GRU(6, 20)(x)[0], (x,), (x,)),
            "the reference implementation cannot run",
        ),
    ],
    ids=["auto", "eager", "norm", "cell", "dreamer", "GRU-D", "explain", "torch.func"],
)
def test_what_cannot_promise_it_raises(call, said):
    x = torch.randn(9, 3, 6)
    with trigru.batch_invariant(), pytest.raises(RuntimeError, match=said):
        call(x)
    assert not trigru.planning.invariant.is_on()


@TORCH
def test_gates_computed_again_are_refused(on_cpu):
    layer = layer_of("stepwise", torch.bfloat16, memory="recompute")
    with on_cpu(), trigru.batch_invariant(), pytest.raises(RuntimeError, match="memory='recompute' cannot run"):
        layer(torch.randn(3, 2, 6).bfloat16())


@TORCH
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden_size", [32, 100, 512, 2048])
def test_one_choice_for_all_batches(hidden_size, dtype, direction):
    """Of a GPU: the schedule and what of its configuration kernels are compiled for."""
    taken = set()
    with trigru.batch_invariant():
        for batch in (1, 8, 9, 16, 17, 64, 500):
            sizes = plan.cost.Layer("torch", dtype, batch, hidden_size)
            choice = plan.planned("auto", PRESETS["H100"], sizes, direction)
            assert "for a batch of 16" in choice.reason
            taken.add((choice.schedule, choice.config))
    assert len(taken) == 1
