"""Recorded gates against the equations, and the ways to start a module."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import trigru
from trigru.reference import gates as gates_of


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_gates_of_every_layer_and_direction(variant):
    module = trigru.GRU(3, 5, 2, bidirectional=True, dropout=0.5, variant=variant, dtype=torch.float64)
    x, hx = randn(6, 2, 3), randn(4, 2, 5)
    with trigru.tap(module) as gates:
        output, h_n = module(x, hx)
    assert [one.name for one in gates] == ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    torch.testing.assert_close(torch.cat([gates[2].h, gates[3].h], -1), output)
    for part, one in enumerate(gates):
        back = part % 2
        h = one.h.flip(0) if back else one.h
        torch.testing.assert_close(h[-1], h_n[part])
        before = torch.cat([hx[part : part + 1], h[:-1]])
        z, n = (v.flip(0) if back else v for v in (one.z, one.n))
        torch.testing.assert_close(h, (1 - z) * before + z * n if variant == "chung" else (1 - z) * n + z * before)
    weights = list(module.parameters())
    r, *_ = gates_of(x[0], hx[0], *weights[:4], variant=variant)
    torch.testing.assert_close(gates[0].r[0], r)


def test_off_it_leaves_nothing_and_changes_no_result():
    model = nn.Sequential(nn.Linear(4, 3), trigru.GRU(3, 5, zoneout=0.5))
    x, before = torch.randn(6, 2, 4), set(vars(model[1]))
    torch.manual_seed(1)
    want, _ = model(x)
    torch.manual_seed(1)
    with trigru.tap(model) as gates:
        got, _ = model(x)
        after = torch.rand(1)
    assert torch.equal(got, want)
    torch.testing.assert_close(gates[0].h, got)
    assert gates[0].name == "1_l0"
    torch.manual_seed(1)
    model(x)
    assert torch.equal(torch.rand(1), after), "a recorded call draws what another one draws"
    model(x)
    assert len(gates) == 1
    assert set(vars(model[1])) == before
    assert not model[1]._forward_hooks


@pytest.mark.parametrize("before", [False, True], ids=["", "compiled before"])
@pytest.mark.filterwarnings("error")
def test_a_compiled_call_is_recorded(before):
    """In a graph that breaks there, and says so where it may not."""
    torch.compiler.reset()
    module, x = trigru.GRU(3, 5), torch.randn(12, 2, 3)
    compiled, whole = (torch.compile(module, backend="eager", fullgraph=full) for full in (False, True))
    want, _ = compiled(x) if before else module(x)
    with trigru.tap(module) as gates:
        output, _ = compiled(x)
        torch.compiler.reset()  # else what was compiled in parts serves both
        with pytest.raises(Exception, match=r"trigru\.tap records calls as they run"):
            whole(x)
    torch.testing.assert_close(output, want)
    torch.testing.assert_close(gates[0].h, want)
    compiled(x)
    assert len(gates) == 1


def dual(module, x):
    with forward_ad.dual_level():
        module(forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    "call",
    [
        lambda module, x: torch.func.grad(lambda x: module(x)[0].sum())(x),
        lambda module, x: torch.vmap(lambda x: module(x)[0])(x.unsqueeze(0)),
        lambda module, x: torch.func.jvp(lambda x: module(x)[0], (x,), (x,)),
        lambda module, x: torch.export.export(module, (x,)),
        dual,
    ],
    ids=["grad", "vmap", "jvp", "export", "dual"],
)
def test_what_others_look_at_is_refused(call):
    module = trigru.GRU(3, 5)
    with trigru.tap(module), pytest.raises(RuntimeError, match="tap: expected a call"):
        call(module, torch.randn(12, 2, 3))


def test_layouts():
    module = trigru.GRU(3, 5, batch_first=True)
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with trigru.tap(module) as gates:
        batched, _ = module(torch.randn(2, 6, 3))
        alone, _ = module(torch.randn(6, 3))
        rows, _ = module(packed)
    for one, output in zip(gates, (batched, alone, rows.data), strict=True):
        torch.testing.assert_close(one.h, output)
    assert all(v.shape == one.h.shape for one in gates for v in one[1:])


def test_a_reset_shows_in_the_gates():
    module, x = trigru.GRU(3, 5, dtype=torch.float64), randn(6, 2, 3)
    starts = torch.zeros(6, 2, dtype=torch.bool)
    starts[3] = True
    with trigru.tap(module) as gates:
        module(x, reset=starts)
        module(x[3:])
    torch.testing.assert_close(gates[0].r[3:], gates[1].r)


def test_input_by_keyword():
    module, x = trigru.GRU(3, 5), torch.randn(6, 2, 3)
    with trigru.tap(module) as gates:
        output, _ = module(input=x)
        alone, _ = module(hx=None, input=x[:, 0])
    torch.testing.assert_close([one.h for one in gates], [output, alone])


def test_a_tap_within_a_tap():
    module, x = trigru.GRU(3, 5), torch.randn(6, 2, 3)
    with trigru.tap(module) as outer:
        with trigru.tap(module) as inner:
            first, _ = module(x)
        second, _ = module(2 * x)
    module(x)
    torch.testing.assert_close([one.h for one in inner], [first])
    torch.testing.assert_close([one.h for one in outer], [first, second])
    assert "_prepared" not in vars(module)


def test_a_copy_made_within_is_not_tapped():
    module, x = trigru.GRU(3, 5), torch.randn(6, 2, 3)
    with trigru.tap(module) as gates:
        copied = copy.deepcopy(module)
        with torch.no_grad():
            copied.weight_hh_l0.zero_()
        output, _ = copied(x)
        assert not gates
    assert "_prepared" not in vars(copied)
    torch.testing.assert_close(copied(x)[0], output)
    assert not gates


def test_packed_rows_that_run_padded_are_recorded_as_rows():
    lengths, reset = torch.tensor([3, 6, 1]), torch.rand(6, 3) < 0.5
    x, reset = (pack_padded_sequence(v, lengths, enforce_sorted=False) for v in (torch.randn(6, 3, 3), reset))
    module = trigru.GRU(3, 5, 2, bidirectional=True, batch_first=True)
    with trigru.tap(module) as gates:
        output, _ = module(x, reset=reset)
    assert {one.r.shape for one in gates} == {(10, 5)}
    torch.testing.assert_close(torch.cat([gates[2].h, gates[3].h], -1), output.data)


def test_there_must_be_a_gru():
    with (
        pytest.raises(ValueError, match=r"module: expected a trigru\.GRU or a model with one, got Linear"),
        trigru.tap(nn.Linear(1, 1)),
    ):
        pass


def test_a_figure(tmp_path):
    pytest.importorskip("matplotlib")
    module = trigru.GRU(3, 5, bidirectional=True)
    with trigru.tap(module) as gates:
        module(torch.randn(6, 2, 3))
    figure = trigru.plot_gates(gates, tmp_path / "gates.png", sequence=1)
    assert (tmp_path / "gates.png").stat().st_size > 0
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert torch.equal(torch.as_tensor(shown[0]), gates[0].r[:, 1].T)
    assert len(trigru.plot_gates(gates[0]).axes) == 8
    with pytest.raises(ValueError, match="sequence: expected 0 to 1, got 2"):
        trigru.plot_gates(gates, sequence=2)
    with pytest.raises(ValueError, match="gates: expected a record"):
        trigru.plot_gates([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal(dtype):
    module = trigru.GRU(3, 8, 2, num_heads=2, bidirectional=True).to(dtype)
    assert trigru.init.orthogonal(module, 2.0) is module
    for name, weight in module.named_parameters():
        if "weight_hh" in name:
            for block in weight.detach().float().split(4):
                torch.testing.assert_close(
                    block @ block.T, 4 * torch.eye(4), rtol=0, atol=1e-5 if dtype.itemsize == 4 else 0.1
                )


@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_update_bias_keeps_the_state(variant):
    module = trigru.init.update_bias(trigru.GRU(3, 5, variant=variant), 30.0)
    hx = torch.randn(1, 2, 5)
    torch.testing.assert_close(module(torch.zeros(4, 2, 3), hx)[1], hx)
    assert torch.equal(module.bias_hh_l0.chunk(3)[1], torch.zeros(5))


@pytest.mark.parametrize(
    ("module", "given", "error", "said"),
    [
        (trigru.GRU(3, 5), {}, TypeError, "expected either value or max_steps"),
        (trigru.GRU(3, 5), {"value": 1.0, "max_steps": 9}, TypeError, "expected either value or max_steps"),
        (trigru.GRU(3, 5), {"max_steps": 2}, ValueError, "max_steps: expected at least 3, got 2"),
        (trigru.GRU(3, 5, bias=False), {"value": 1.0}, ValueError, "expected one with biases"),
        (nn.GRU(3, 5), {"value": 1.0}, TypeError, r"expected a trigru\.GRU, got torch"),
    ],
)
def test_update_bias_of_what_it_cannot_set(module, given, error, said):
    with pytest.raises(error, match=said):
        trigru.init.update_bias(module, **given)
