"""Heads with programs of their own: against the whole matrix with zeros, values and every gradient."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import INTERPRETED
from test_options_kernels import given_for
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import trigru
from trigru.blocks import narrow, whole
from trigru.kernels.launch import using
from trigru.kernels.offline import Recorder
from trigru.operators import compute
from trigru.operators.schema import Backward, Recorded
from trigru.planning import configs, cost
from trigru.planning.devices import preset
from trigru.planning.plan import planned
from trigru.schedules import recompute

# T, B, H, heads: heads of 6 units, of which kernels make 16; a batch of two tiles; one step
CASES = [
    ("torch", (4, 3, 12, 2), {"bidirectional": True}),
    ("cho", (3, 17, 48, 3), {}),
    ("chung", (1, 2, 32, 2), {"bias": False, "bidirectional": True, "num_layers": 2}),
    ("torch", (3, 2, 32, 4), {"zoneout": 0.4, "recurrent_dropout": 0.3, "clip": 0.5, "bidirectional": True}),
    ("cho", (5, 2, 12, 2), {"memory": "recompute", "bidirectional": True, "zoneout": 0.4}),
]


def launched():
    """Where kernels run."""
    if INTERPRETED:
        return contextlib.nullcontext()
    from ptx import ptx_launcher

    return using(ptx_launcher(arch=90))


def results(module, x, hx, given, upstream):
    """Values and gradients by everything, with the same masks at every call."""
    leaves = [x, hx, *module.parameters(), *(v for v in given.values() if v.is_floating_point())]
    torch.manual_seed(7)
    found = module(x, hx, **given)
    return [*found, *torch.autograd.grad(found, leaves, upstream)]


@pytest.mark.interpretable
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("variant", "sizes", "options"),
    CASES if INTERPRETED else [CASES[0], pytest.param(*CASES[3], marks=pytest.mark.slow)],
)
def test_against_the_eager_schedule(monkeypatch, variant, sizes, options):
    """Of the whole matrix. Several chunks where gates are computed again."""
    steps, batch, hidden_size, heads = sizes
    monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", 4 * hidden_size // heads * batch * 2)
    module = trigru.GRU(5, hidden_size, variant=variant, num_heads=heads, schedule="resident", **options)
    parts = len(module._all_weights)
    given = given_for("all" if "clip" in options else "", steps, batch, parts, hidden_size, torch.float32)
    given = {name: v.requires_grad_(v.is_floating_point()) for name, v in given.items()}
    x = torch.randn(steps, batch, 5).requires_grad_()
    hx = torch.randn(parts, batch, hidden_size).requires_grad_()
    upstream = [
        torch.randn(steps, batch, hidden_size * (1 + module.bidirectional)),
        torch.randn(parts, batch, hidden_size),
    ]
    with launched():
        assert trigru.explain(module, x, **given).launches == module.num_layers
        got = results(module, x, hx, given, upstream)
    module.schedule = "eager"
    want = results(module, x, hx, given, upstream)
    assert module.weight_hh_l0.shape == (3 * hidden_size, hidden_size // heads)
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("kind", ["padded", "packed", "bfloat16", "options"])
def test_eager_multiplies_heads_by_themselves(monkeypatch, variant, memory, kind):
    """As it does the whole matrix."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float64
    options = {"clip": 0.5, "zoneout": 0.3, "recurrent_dropout": 0.3} if kind == "options" else {}
    module = trigru.GRU(5, 12, 2, num_heads=3, bidirectional=True, variant=variant, memory=memory, **options).to(dtype)
    module.schedule = "eager"
    rows = torch.randn(7, 4, 5, dtype=dtype).requires_grad_()
    given = {"reset": torch.rand(7, 4) < 0.3} if kind == "options" else {}
    found = []
    for fewest in (1 << 40, 1):
        monkeypatch.setattr(configs, "HEADS_MULTIPLICATIONS", fewest)
        how = "run as one matrix with zeros" if fewest > 1 else "multiply by themselves"
        x = rows if kind != "packed" else pack_padded_sequence(rows, torch.tensor([7, 5, 2, 1]))
        assert trigru.explain(module, x, **given).reason == f"asked for by name; 3 heads {how}"
        torch.manual_seed(3)
        output, h_n = module(x, **given)
        output = output if kind != "packed" else output.data
        leaves = [rows, *module.parameters()]
        found.append([output, h_n, *torch.autograd.grad(output.square().sum() + h_n.sum(), leaves)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.interpretable
@pytest.mark.skipif(not INTERPRETED, reason="compiled code runs the same")
def test_packed_reversed_and_derivatives_of_derivatives():
    torch.manual_seed(2)
    weights = [torch.randn(48, 3), torch.randn(48, 8) / 3, torch.randn(48), torch.randn(48)]
    sizes, x = torch.tensor([4, 3, 1]), torch.randn(8, 3)
    leaves = [w.requires_grad_() for w in (x, *weights)]
    found = []
    for schedule in ("resident", "eager"):
        output, h_n = trigru.gru(
            leaves[0], None, *leaves[1:], batch_sizes=sizes, num_heads=2, reverse=True, schedule=schedule
        )
        first = torch.autograd.grad(output.square().sum() + h_n.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), leaves)
        found.append((output, h_n, *first, *second))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.interpretable
@pytest.mark.parametrize("schedule", ["eager", "resident"] if INTERPRETED else ["eager"])
def test_normalised_products_are_of_the_whole_matrix(monkeypatch, schedule):
    """For their statistics are of all heads: as a layer whose matrix is written out."""
    monkeypatch.setattr(configs, "HEADS_MULTIPLICATIONS", 1)
    module, plain = (trigru.GRU(4, 12, num_heads=n, norm="layer", schedule=schedule) for n in (3, 1))
    state = module.state_dict()
    plain.load_state_dict(state | {"weight_hh_l0": whole(state["weight_hh_l0"], 3)})
    x, found = torch.randn(5, 3, 4), []
    for one in (module, plain):
        output, h_n = one(x)
        d_hh, d_gain = torch.autograd.grad(output.square().sum(), [one.weight_hh_l0, one.gain_l0])
        found.append((output, h_n, d_hh if one is module else narrow(d_hh, 3), d_gain))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    with launched():
        assert trigru.explain(module, x).reason.endswith("3 heads run as one matrix with zeros")


@pytest.mark.skipif(INTERPRETED, reason="by torch operations")
def test_a_compiled_graph_has_heads_and_an_exported_one_whole_matrices():
    module, x = trigru.GRU(6, 8, num_heads=2, bidirectional=True).eval(), torch.randn(9, 3, 6)
    want, parameters = module(x), list(module.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(module, (x,))
    for found in (compiled(x), exported.module()(x)):
        torch.testing.assert_close(found, want)
    grads = [torch.autograd.grad(one(x)[0].square().sum(), parameters) for one in (compiled, module)]
    torch.testing.assert_close(*grads)
    (node,) = [node for node in exported.graph.nodes if "trigru.gru" in str(node.target)]
    assert [tuple(w.meta["val"].shape) for w in node.args[2][1::4]] == [(24, 8)] * 2


class Made(TorchDispatchMode):
    """The shapes of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        every = found if isinstance(found, (list, tuple)) else [found]
        self.shapes |= {tuple(x.shape) for x in every if isinstance(x, torch.Tensor)}
        return found


@pytest.mark.skipif(INTERPRETED, reason="replaces the launcher")
def test_one_launch_and_no_whole_matrix():
    recorder = Recorder()
    module = trigru.GRU(8, 64, num_heads=4, bidirectional=True, schedule="resident", dtype=torch.bfloat16)
    x, hx = torch.randn(3, 5, 8).bfloat16(), torch.zeros(2, 5, 64).bfloat16()
    recorded = Recorded(*module._records(x, hx), 0)
    with using(recorder), torch.no_grad(), Made() as made:
        result = compute.forward(recorded)
        needs = (True,) * (2 + len(recorded.weights)) + (False,) * 3
        backward = Backward(recorded, result.output, result.h_n, result.reserve, True, needs)
        found = compute.backward(backward)
    assert [launch.grid[1] for launch in recorder.launches] == [8, 8]
    assert found[3].shape == module.weight_hh_l0.shape == (192, 16)
    assert not [shape for shape in made.shapes if shape[-2:] == (192, 64)]


def test_the_plan_says_what_runs():
    module, x = trigru.GRU(8, 64, num_heads=4, schedule="resident"), torch.randn(3, 5, 8)
    with using(Recorder()):
        found = trigru.explain(module, x)
        assert (found.schedule, found.launches) == ("resident", 1)
        assert found.reason == "asked for by name; 4 heads of 16 units each have programs of their own"
        module.schedule = "stepwise"
        assert trigru.explain(module, x).reason == "asked for by name; 4 heads run as one matrix with zeros"
        weights = torch.zeros(3072, 8), torch.zeros(3072, 512)
        with pytest.raises(RuntimeError, match="'resident' cannot run here: a head of 512 units: needs"):
            trigru.gru(x, None, *weights, num_heads=2, schedule="resident")
    module.schedule = "auto"
    for batch, how in ((5, "run as one matrix with zeros"), (512, "multiply by themselves")):
        assert trigru.explain(module, torch.randn(50, batch, 8)).reason.endswith(f"; 4 heads {how}")


def test_a_planned_gpu():
    """Where a head fits, it is taken, however large all of them are."""
    for hidden_size, heads, schedule in ((512, 4, "resident"), (512, 1, "persistent"), (4096, 2, "walking")):
        layer = cost.Layer("torch", torch.bfloat16, 64, hidden_size)
        for direction in ("forward", "backward"):
            assert planned("auto", preset("h100"), layer, direction, heads=heads).schedule == schedule
