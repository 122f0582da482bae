"""Every Triton schedule against the reference: in Triton's interpreter, and compiled, executed from PTX."""

from __future__ import annotations

import pytest
import torch
from cases import TOLERANCE, assert_as_reference, error, layer
from conftest import INTERPRETED
from torch.nn.utils.rnn import pack_padded_sequence

import trigru
from trigru import reference
from trigru.schedules import recompute

pytestmark = pytest.mark.interpretable

# Every combination in the interpreter; compiled code, which takes longer to make and to execute, in a selection.
SIZES = [(3, 2, 5, 7), (1, 1, 1, 1), (2, 3, 9, 17), (2, 17, 4, 33)][:: 1 if INTERPRETED else 3]
LAYOUTS = [("padded", "forward"), ("packed", "reverse"), ("packed", "forward"), ("padded", "reverse")]
LAYOUTS = LAYOUTS[: 4 if INTERPRETED else 2]


@pytest.fixture(params=["stepwise", "resident"])
def schedule(request):
    return request.param


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Fresh memory holds NaN: an element that nobody wrote cannot pass for a result."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rows", "direction"), LAYOUTS)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_every_size(on_cpu, schedule, variant, rows, direction, size):
    case = layer(*size, variant=variant, reverse=direction == "reverse", packed=rows == "packed")
    with on_cpu():
        assert_as_reference(case, schedule=schedule)


@pytest.mark.parametrize(("bias", "through"), [(True, "output"), (False, "h_n")], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_every_dtype(on_cpu, schedule, variant, dtype, bias, through):
    case = layer(4, 3, 8, 24, variant=variant, dtype=dtype, bias=bias)
    with on_cpu():
        assert_as_reference(case, schedule=schedule, through=through)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter multiplies float32 exactly")
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_tf32_where_torch_allows_it_for_its_rnns(on_cpu, schedule, variant, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    case = layer(3, 4, 8, 32, variant=variant)
    with on_cpu():
        assert_as_reference(case, schedule=schedule, tolerance=3e-3)
        with pytest.raises(AssertionError, match="errors above"):
            assert_as_reference(case, schedule=schedule, tolerance=TOLERANCE[torch.float32])


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_strided_and_expanded_arguments(on_cpu, schedule, variant):
    batch, hidden_size = 3, 16
    x = torch.randn(batch, 4, 10)[:, :, ::2].transpose(0, 1).requires_grad_()
    h0 = torch.randn(1, hidden_size).expand(batch, -1).requires_grad_()
    w_ih = torch.randn(5, 3 * hidden_size).T.requires_grad_()
    w_hh = torch.randn(hidden_size, 3 * hidden_size).T.requires_grad_()
    leaves = [x, h0, w_ih, w_hh]
    with on_cpu():
        got = trigru.gru(*leaves, variant=variant, schedule=schedule)[0]
        grads = torch.autograd.grad(got.sum(), leaves)  # the gradient of a sum is an expanded number
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = reference.gru(*exact, variant=variant)[0]
    for g, w in zip([got, *grads], [want, *torch.autograd.grad(want.sum(), exact)], strict=True):
        assert error(g, w) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(("rows", "direction"), LAYOUTS)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_gates_computed_again_in_chunks(on_cpu, schedule, variant, rows, direction, monkeypatch):
    monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", 2 * 4 * 7 * 3)  # two steps
    case = layer(5, 3, 4, 7, variant=variant, reverse=direction == "reverse", packed=rows == "packed")
    with on_cpu():
        assert_as_reference(case, schedule=schedule, memory="recompute")


def test_nan_and_inf_come_out_where_the_reference_has_them(on_cpu, schedule):
    case = layer(3, 3, 4, 8)
    case.tensors[0][1, 0, 2] = float("nan")
    case.tensors[1][1, 3] = float("inf")
    arguments = case.arguments(torch.float32)
    with on_cpu():
        got, _ = trigru.gru(*arguments, schedule=schedule)
    want, _ = reference.gru(*arguments, variant="torch")
    assert got.isnan().any()
    assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("schedule", ["stepwise", "resident", "persistent"])
def test_packed_bidirectional_module(on_cpu, schedule, monkeypatch):
    if schedule == "persistent":
        if INTERPRETED:
            pytest.skip("the interpreter runs programs one after another: they cannot wait")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    theirs = torch.nn.GRU(4, 16, bidirectional=True)
    ours = trigru.GRU(4, 16, bidirectional=True, schedule=schedule)
    ours.load_state_dict(theirs.state_dict())
    packed = pack_padded_sequence(torch.randn(4, 3, 4), torch.tensor([2, 4, 1]), enforce_sorted=False)
    found = []
    for module in (theirs, ours):
        with on_cpu():
            output, h_n = module(packed)
            loss = (output.data.square().sum() + h_n.sum(),)
            found.append([output.data, h_n, *torch.autograd.grad(loss, list(module.parameters()))])
    for want, got in zip(*found, strict=True):
        assert error(got, want) <= (3e-3 if schedule == "persistent" else TOLERANCE[torch.float32])
