"""Every Triton schedule against the reference: in Triton's interpreter, and compiled, executed from PTX."""

from __future__ import annotations

import pytest
import torch
from cases import TOLERANCE, assert_as_reference, error, layer
from conftest import INTERPRETED
from torch.nn.utils.rnn import PackedSequence

import trigru
from trigru import reference
from trigru.layer import Weights
from trigru.schedules import recompute

pytestmark = [pytest.mark.interpretable, pytest.mark.usefixtures("poisoned")]

# Every combination in the interpreter; compiled code, which takes longer to make and to execute, in a selection.
SIZES = [(3, 2, 5, 7), (1, 1, 1, 1), (2, 3, 9, 17), (2, 17, 4, 33)][:: 1 if INTERPRETED else 3]
LAYOUTS = [("padded", "forward"), ("packed", "reverse"), ("packed", "forward"), ("padded", "reverse")]
LAYOUTS = LAYOUTS[: 4 if INTERPRETED else 2]


@pytest.fixture(params=["stepwise", "resident"])
def schedule(request):
    return request.param


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rows", "direction"), LAYOUTS)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_every_size(on_cpu, schedule, variant, rows, direction, size):
    case = layer(*size, variant=variant, reverse=direction == "reverse", packed=rows == "packed")
    with on_cpu():
        assert_as_reference(case, schedule=schedule)


@pytest.mark.parametrize(("rows", "direction"), LAYOUTS)
@pytest.mark.parametrize("variant", trigru.VARIANTS[:2])
def test_one_step(on_cpu, schedule, variant, rows, direction):
    """Whose state before is no output."""
    case = layer(1, 17, 4, 33, variant=variant, reverse=direction == "reverse", packed=rows == "packed")
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


def negated(x):
    """The same values, in memory with the other sign, as torch has them where it negates what it reads."""
    found = torch._neg_view(-x.detach())
    assert found.is_neg()
    assert found.is_contiguous()
    return found.requires_grad_()


@pytest.mark.parametrize(("variant", "given"), [("torch", False), ("cho", True)])
def test_tensors_that_are_read_negated(on_cpu, schedule, variant, given):
    leaves = [torch.randn(size) for size in ((4, 3, 5), (3, 16), (48, 5), (48, 16), (48,), (48,))]
    names, reset = ["input", "h0", "w_ih", "w_hh", "b_ih", "b_hh"], {}
    if given:
        leaves += [torch.rand(4, 3, 16), torch.rand(4, 3), torch.randn(3, 16), 1 + torch.rand(2, 48)]
        names += ["decay", "attention", "reset_state", "gain"]
        reset = {"reset": torch.rand(4, 3) < 0.5}
    upstream = [torch.randn(4, 3, 16), torch.randn(3, 16)]

    def results(leaves, upstream, **options):
        found = trigru.gru(**dict(zip(names, leaves, strict=True)), **reset, variant=variant, **options)
        return [*found, *torch.autograd.grad(found, leaves, upstream)]

    with on_cpu():
        got = results([negated(x) for x in leaves], [negated(x).detach() for x in upstream], schedule=schedule)
    want = results([x.double().requires_grad_() for x in leaves], [x.double() for x in upstream])
    for g, w in zip(got, want, strict=True):
        assert error(g, w) <= TOLERANCE[torch.float32]


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


# Layers, rows, and how many steps the gates of a chunk are computed again for (None: they are kept).
STACKS = [("cho", "packed", None), ("chung", "padded", None), ("torch", "packed", 2), ("torch", "padded", 9)]


@pytest.mark.parametrize("schedule", ["stepwise", "resident", "persistent"])
@pytest.mark.parametrize(("variant", "rows", "chunk"), STACKS[:: 1 if INTERPRETED else 2])
def test_both_directions_of_a_stack(on_cpu, schedule, variant, rows, chunk, monkeypatch):
    if schedule == "persistent":
        if INTERPRETED:
            pytest.skip("the interpreter runs programs one after another: they cannot wait")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    if chunk is not None:
        monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", chunk * 4 * 2 * 17 * 3)
    memory = "keep" if chunk is None else "recompute"
    module = trigru.GRU(4, 17, 2, bidirectional=True, variant=variant, schedule=schedule, memory=memory)
    x, hx, batch_sizes = torch.randn(5, 3, 4), torch.randn(4, 3, 17), None
    if rows == "packed":
        x, batch_sizes = torch.randn(9, 4), torch.tensor([3, 2, 2, 1, 1])
    leaves = [x, hx, *module.parameters()]
    given = PackedSequence(x.requires_grad_(), batch_sizes) if rows == "packed" else x.requires_grad_()
    with on_cpu():
        output, h_n = module(given, hx.requires_grad_())
        output = output.data if rows == "packed" else output
        upstream = [torch.randn_like(output), torch.randn_like(h_n)]
        got = [output, h_n, *torch.autograd.grad([output, h_n], leaves, upstream)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    weights = [Weights(*exact[first : first + 4]) for first in range(2, len(exact), 4)]
    options = {"variant": variant, "bidirectional": True, "batch_sizes": batch_sizes}
    want = reference.stack(exact[0], exact[1], weights, **options)
    want = [*want, *torch.autograd.grad(want, exact, [grad.double() for grad in upstream])]
    for g, w in zip(got, want, strict=True):
        assert error(g, w) <= (3e-3 if schedule == "persistent" else TOLERANCE[torch.float32])
