"""Inputs from 1e-7 to 1e4, biases zero or small: every element as near to the reference as its dtype allows."""

from __future__ import annotations

import pytest
import torch
from accuracy import SCALES, assert_elements_as_reachable, scaled
from cases import TOLERANCE, error, layer
from conftest import INTERPRETED

import trigru

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# 1e4 times a weight is beyond float16's range.
LARGEST = {torch.float16: 1e3}

WAITS = "the interpreter runs programs one after another: they cannot wait"
ON_ONE_ARCHITECTURE = pytest.mark.parametrize(
    "on_cpu",
    ["interpreter"] if INTERPRETED else ["sm_90", pytest.param("sm_80", marks=pytest.mark.slow)],
    indirect=True,
)

pytestmark = pytest.mark.interpretable


def case_of(scale, bias, dtype, size=(6, 5, 4, 20), **options):
    return scaled(layer(*size, dtype=dtype, **options), min(scale, LARGEST.get(dtype, scale)), bias)


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize(("bias", "memory"), [(0.0, "keep"), (1e-3, "recompute")])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_eager(scale, bias, dtype, variant, memory):
    case = case_of(scale, bias, dtype, variant=variant, packed=bias > 0)
    assert_elements_as_reachable(case, schedule="eager", memory=memory)


def axis(quick):
    """The scales; all but some are slow where kernels are executed from PTX."""
    return [pytest.param(x, marks=() if INTERPRETED or x in quick else pytest.mark.slow) for x in SCALES]


@pytest.mark.parametrize("schedule", ["stepwise", "resident"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", axis(SCALES[1::3]))
@ON_ONE_ARCHITECTURE
def test_kernels(on_cpu, scale, dtype, variant, schedule):
    if INTERPRETED and dtype == torch.bfloat16 and scale > 1:
        pytest.skip("the interpreter cuts bfloat16 off instead of rounding: a candidate of 0.9999 is not 1")
    case = case_of(scale, 0.0 if scale < 1 else 1e-3, dtype, (3, 4, 5, 17), variant=variant)
    with on_cpu():
        assert_elements_as_reachable(case, schedule=schedule, memory="recompute" if scale == 1 else "keep")


@pytest.mark.skipif(INTERPRETED, reason=WAITS)
@pytest.mark.parametrize("variant", [*trigru.VARIANTS[:2], pytest.param("chung", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES, ids=["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", axis((1e-7, 1e-3, 1e4)))
@ON_ONE_ARCHITECTURE
def test_persistent_kernels(on_cpu, monkeypatch, scale, dtype, variant):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    case = case_of(scale, 0.0 if scale < 1 else 1e-3, dtype, (3, 4, 5, 17), variant=variant)
    with on_cpu():
        assert_elements_as_reachable(case, schedule="persistent", tf32=dtype == torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_no_worse_than_nn_gru(scale, dtype):
    """Output and gradients of a module with Keras' zero biases: at most twice nn.GRU's error and a few roundings."""
    case = case_of(scale, 0.0, dtype, (12, 8, 6, 40))
    x, h0, w_ih, w_hh, zeros, _ = case.tensors
    found = {}
    for name, make, number in (
        ("exact", torch.nn.GRU, torch.float64),
        ("theirs", torch.nn.GRU, dtype),
        ("ours", trigru.GRU, dtype),
    ):
        module = make(6, 40, dtype=number)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), (w_ih, w_hh, zeros, zeros), strict=True):
                parameter.copy_(value)
        leaves = [x.to(number, copy=True).requires_grad_(), h0[None].to(number, copy=True).requires_grad_()]
        output, _ = module(*leaves)
        found[name] = [output, *torch.autograd.grad(output.square().sum(), [*leaves, *module.parameters()])]
    for want, theirs, ours in zip(*found.values(), strict=True):
        assert error(ours, want) <= 2 * error(theirs, want) + 8 * torch.finfo(dtype).eps


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_gradients_behind_saturated_gates_in_16_bits(variant, dtype, memory):
    """With pre-activations of some 10 all gates are nearly 0 or 1. What is left of the gradients has its digits."""
    case = scaled(layer(1, 16, 8, 40, dtype=dtype, variant=variant), 10.0, 0.0)
    leaves, exact = case.arguments(dtype), case.arguments(torch.float64)
    got = trigru.gru(*leaves, variant=variant, schedule="eager", memory=memory)[0]
    want = trigru.reference.gru(*exact, variant=variant)[0]
    grads = torch.autograd.grad(got.sum(), leaves)
    for ours, theirs in zip(grads, torch.autograd.grad(want.sum(), exact), strict=True):
        assert error(ours, theirs) <= TOLERANCE[dtype] / 3


@pytest.mark.interpretable
@pytest.mark.skipif(not INTERPRETED, reason="in Triton's interpreter")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("schedule", ["stepwise", "resident"])
def test_an_infinite_weight_does_not_meet_a_sequence_that_is_over(schedule, reverse):
    """What is finite in the reference is: no NaN comes of the weight and a step that a sequence has not."""
    case = layer(3, 3, 4, 5, packed=True, reverse=reverse)
    case.batch_sizes = torch.tensor([3, 2, 1])
    case.tensors[0] = torch.randn(6, 4).double()
    case.tensors[3][2, 3] = float("inf")
    leaves, exact = case.arguments(torch.float32), case.arguments(torch.float64)
    got = trigru.gru(*leaves, batch_sizes=case.batch_sizes, reverse=reverse, schedule=schedule)
    want = trigru.reference.layer(*exact, batch_sizes=case.batch_sizes, reverse=reverse, variant="torch")
    pairs = list(zip(got, want, strict=True))
    grads = (torch.autograd.grad(x[0].sum() + x[1].sum(), of) for x, of in ((got, leaves), (want, exact)))
    pairs += list(zip(*grads, strict=True))
    assert any(0 < theirs.isfinite().sum() < theirs.numel() for _, theirs in pairs)
    for ours, theirs in pairs:
        assert ours[theirs.isfinite()].isfinite().all()


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize("variant", ["cho", "chung"])
def test_a_cell_loses_nothing_behind_a_large_state(variant):
    """Where the update gate is 1 in 16 bits, a state of thousands leaves no trace in a candidate near 0, nor the other
    way round."""
    cell = trigru.GRUCell(1, 1, dtype=torch.float16, variant=variant)
    with torch.no_grad():
        for parameter, value in zip(
            cell.parameters(), ([[0.0], [0], [0.02]], [[0.0], [0], [0]], [0.0, 30, 0], [0.0] * 3), strict=True
        ):
            parameter.copy_(torch.tensor(value))
        state = torch.tensor([[5000.0 if variant == "chung" else 1e-4]]).half()
        if variant == "cho":
            cell.weight_ih[2] = 30.0
        got = cell(torch.ones(1, 1).half(), state)
    want = torch.tensor(0.02).tanh() if variant == "chung" else state
    torch.testing.assert_close(got.float().squeeze(), want.float().squeeze(), rtol=2e-3, atol=0)


def against_nn_gru(size, dtype, x, w, upstream, **options):
    """Of output and gradients: what is exact, what nn.GRU makes of it, and what this package does, at these scales of
    input, weights and derivatives."""
    seq_len, batch, width, hidden = size
    case = layer(*size, dtype=dtype)
    given, h0, *weights = case.tensors
    given, weights = given * x, [each * w for each in weights]
    grad, found = torch.randn(seq_len, batch, hidden) * upstream, []
    for make, number in ((torch.nn.GRU, torch.float64), (torch.nn.GRU, dtype), (trigru.GRU, dtype)):
        module = make(width, hidden, dtype=number, **(options if make is trigru.GRU else {}))
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), weights, strict=True):
                parameter.copy_(value.to(dtype))
        leaves = [t.to(dtype).to(number, copy=True).requires_grad_() for t in (given, h0[None])]
        output, _ = module(*leaves)
        grads = torch.autograd.grad(output, [*leaves, *module.parameters()], grad.to(dtype).to(number))
        found.append([t.detach().double() for t in (output, *grads)])
    return zip(*found, strict=True)


FAR = [torch.finfo(torch.float32).tiny * 1e8, 1e-30, 1e-12, 1e-4, 1.0, 1e4, 1e12, 1e30]


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("weights", [1e-3, 1.0], ids=["small weights", "weights"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_at_any_scale_no_worse_than_those_of_nn_gru(dtype, weights, memory):
    """Pre-activations from 1e-30 to 1e30, and to 1e4 and beyond what any gate tells from 1: at most twice nn.GRU's
    error, a few roundings, and a few of the smallest numbers that a dtype has."""
    info = torch.finfo(dtype)
    scales = FAR if dtype != torch.float16 else [1e-4, 1e-2, 1.0, 10.0, 300.0]
    for x in scales:
        for upstream in (1.0, 1e-20) if dtype != torch.float16 else (1.0,):
            for exact, theirs, ours in against_nn_gru(
                (8, 4, 6, 24), dtype, x, weights, upstream, schedule="eager", memory=memory
            ):
                if not (exact.abs() < 0.1 * info.max).all():
                    continue  # none in this dtype
                assert ours.isfinite().all()
                least = info.smallest_normal * max(1.0, x) * exact.numel()
                allowed = 2 * (theirs - exact).norm() + 8 * info.eps * exact.norm() + least
                assert (ours - exact).norm() <= allowed, (x, upstream)


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize("seq_len", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_sequences_drift_no_more_than_nn_gru(dtype, seq_len):
    """Far from the start, and back to it: at most twice the error that nn.GRU makes in this dtype."""
    for exact, theirs, ours in against_nn_gru((seq_len, 1, 3, 6), dtype, 1.0, 1.0, seq_len**-0.5, schedule="eager"):
        allowed = 2 * (theirs - exact).norm() + 8 * torch.finfo(dtype).eps * exact.norm()
        assert (ours - exact).norm() <= allowed


def assert_same_infinities(got, want):
    for ours, theirs in zip(got, want, strict=True):
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(ours), kind(theirs))


def infinite_cases():
    """Schedule and hidden_size: 17 is widened, by zeros or masks, 100 then padded to a power of two."""
    for schedule in ("eager", "stepwise", "resident", "persistent"):
        for hidden_size in (16, 17, 100):
            slow = schedule != "eager" and hidden_size != 17
            yield pytest.param(schedule, hidden_size, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("schedule", "hidden_size"), list(infinite_cases()))
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@ON_ONE_ARCHITECTURE
def test_infinite_states(on_cpu, variant, schedule, hidden_size):
    """NaN and infinities where the reference has them and nowhere else. One unit of each sequence starts infinite,
    which leaves gates of exactly 0 and 1."""
    if schedule == "persistent" and INTERPRETED:
        pytest.skip(WAITS)
    # Exact float32: no persistent kernel, and of so many units no resident one.
    dtype = torch.float16 if hidden_size == 100 or schedule == "persistent" else torch.float32
    case = layer(4, 16, 5, hidden_size, variant=variant, dtype=dtype)
    case.tensors[1].diagonal()[:] = torch.tensor([float("inf"), -float("inf")]).repeat(8)
    with on_cpu(), torch.no_grad():
        got = trigru.gru(*case.arguments(dtype), variant=variant, schedule=schedule)
    want = trigru.reference.gru(*case.tensors, variant=variant)
    assert want[0].isnan().any()
    assert not want[0].isnan().all()
    assert_same_infinities(got, want)


@pytest.mark.parametrize("schedule", ["resident", "persistent"])
@pytest.mark.parametrize(
    "variant", [pytest.param("torch", marks=pytest.mark.slow), "cho", pytest.param("chung", marks=pytest.mark.slow)]
)
@ON_ONE_ARCHITECTURE
def test_infinite_derivatives_do_not_meet_added_units(on_cpu, variant, schedule):
    """The one unit there is gets an infinite derivative: NaN where the stepwise schedule, which adds no units, has it.
    The reference is no help, for its dh * h - dh * n is NaN where dh * (h - n) is infinite."""
    if schedule == "persistent" and INTERPRETED:
        pytest.skip(WAITS)
    case, found = layer(2, 16, 5, 1, variant=variant, dtype=torch.float16), []
    for each in (schedule, "stepwise"):
        leaves = case.arguments(torch.float16)
        with on_cpu():
            output, _ = trigru.gru(*leaves, variant=variant, schedule=each)
            upstream = torch.zeros_like(output)
            upstream[1] = float("inf")
            found.append(torch.autograd.grad(output, leaves[:2], upstream))
    assert found[1][1].isinf().any()
    assert_same_infinities(*found)
