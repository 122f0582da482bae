"""What a call gives each step, by the Triton schedules: whole calls against the reference, values and gradients."""

import contextlib

import pytest
import torch
from conftest import INTERPRETED

import trigru
from trigru import operators
from trigru.kernels.launch import using
from trigru.operators import compute

pytestmark = pytest.mark.interpretable

# Programs that wait for each other do not run in the interpreter, but as code compiled for a GPU.
SCHEDULES = ("stepwise", "resident") if INTERPRETED else ("walking", "persistent")
OPTIONS = {
    "reset": {},
    "lengths": {},
    "mask": {},
    "decay": {},
    "attention": {},
    "zoneout": {"zoneout": 0.4},
    "recurrent dropout": {"recurrent_dropout": 0.5},
    "clip": {"clip": 0.3},
    "all, recompute": {"zoneout": 0.3, "recurrent_dropout": 0.4, "clip": 0.5, "memory": "recompute"},
    "all": {"zoneout": 0.3, "recurrent_dropout": 0.4, "clip": 0.5},
}
if INTERPRETED:  # the others refuse it
    OPTIONS["all, normalised"] = {**OPTIONS["all"], "norm": "layer"}


def given_for(name, steps, batch, parts, hidden_size, dtype):
    """The arguments of a call."""
    every, given = name.startswith("all"), {}
    if every or name == "reset":
        given["reset"] = torch.rand(steps, batch) < 0.4
        given["reset_state"] = torch.randn(steps, parts, batch, hidden_size, dtype=dtype)
    if every or name == "lengths":
        given["lengths"] = torch.tensor([steps, 0, 2])[:batch]
    if name == "mask":
        given["mask"] = torch.rand(steps, batch) < 0.7
    if every or name == "decay":
        given["decay"] = torch.rand(steps, batch, parts * hidden_size if every else 1, dtype=dtype)
    if every or name == "attention":
        given["attention"] = torch.rand(steps, batch, dtype=dtype)
    return given


def launched():
    """Where kernels run."""
    if INTERPRETED:
        return contextlib.nullcontext()
    from ptx import ptx_launcher

    return using(ptx_launcher(arch=90))


# Each option with either variant, by turns; the compiled code of both.
CASES = [
    pytest.param(name, variant, marks=[] if name == "all" or (INTERPRETED and (i + j) % 2) else pytest.mark.slow)
    for i, name in enumerate(OPTIONS)
    for j, variant in enumerate(["torch", "cho"])
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_against_the_reference(name, variant, schedule):
    torch.manual_seed(1)
    steps, batch, hidden_size, bidirectional = 3, 3, 9, name != "decay"
    options, dtype, tolerance = OPTIONS[name], torch.float32, 2e-5
    if schedule == "persistent":  # not in exact float32; and a rounded state may lie on the other side of a clip
        options, dtype, tolerance = {**options, "clip": None}, torch.bfloat16, 4e-2
    module = trigru.GRU(4, hidden_size, bidirectional=bidirectional, variant=variant, schedule=schedule, **options)
    module.to(dtype)
    parts = len(module._all_weights)
    given = given_for(name, steps, batch, parts, hidden_size, dtype)
    leaves = [x.requires_grad_() for x in given.values() if x.is_floating_point()]
    x = torch.randn(steps, batch, 4, dtype=dtype).requires_grad_()
    hx = torch.randn(parts, batch, hidden_size, dtype=dtype).requires_grad_()
    records = module._records(x, hx, given=trigru.options.PerCall(**given))
    leaves = [x, hx, *module.parameters(), *leaves]
    layer, weights, call = records
    wide = [None if v is None else v.double() if v.is_floating_point() else v for v in call.given]
    exact = call._replace(input=call.input.double(), hx=call.hx.double(), given=trigru.layer.Given._make(wide))
    exact = exact._replace(gain=None if call.gain is None else call.gain.double())
    want = compute.by_reference(layer, [w.double() for w in weights], exact)
    upstream = [torch.randn_like(out).to(dtype) for out in want]

    def derivatives(results):
        grads = [grad.to(out.dtype) for grad, out in zip(upstream, results, strict=True)]
        return torch.autograd.grad(results, leaves, grads, retain_graph=True, materialize_grads=True, allow_unused=True)

    with launched():
        found = operators.gru(*records)
        got = derivatives(found)
    for out, wanted in zip(found, want, strict=True):
        assert (out - wanted).abs().max() <= tolerance
    for got_one, wanted in zip(got, derivatives(want), strict=True):
        assert (got_one - wanted).abs().max() <= 4 * tolerance * max(1.0, wanted.abs().max())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("name", ["reset", "lengths", "recurrent dropout", "all, recompute"])
def test_an_empty_batch(name, heads, schedule):
    """Nothing is launched, and every result has its shape."""
    dtype = torch.bfloat16 if schedule == "persistent" else torch.float32
    module = trigru.GRU(4, 9, bidirectional=True, num_heads=heads, schedule=schedule, dtype=dtype, **OPTIONS[name])
    given = given_for(name, 3, 0, 2, 9, dtype)
    leaves = [x.requires_grad_() for x in given.values() if x.is_floating_point()]
    x, hx = torch.randn(3, 0, 4, dtype=dtype).requires_grad_(), torch.randn(2, 0, 9, dtype=dtype).requires_grad_()
    with launched():
        output, h_n = module(x, hx, **given)
        assert (output.shape, h_n.shape) == ((3, 0, 18), (2, 0, 9))
        leaves = [x, hx, *module.parameters(), *leaves]
        grads = torch.autograd.grad(output.sum() + h_n.sum(), leaves)
    assert all(grad.shape == leaf.shape and not grad.any() for grad, leaf in zip(grads, leaves, strict=True))


@pytest.mark.parametrize("schedule", ["resident"])
@pytest.mark.parametrize(("variant", "memory"), [("torch", "keep"), ("cho", "keep"), ("chung", "recompute")])
def test_steps_without_a_sequence_alive_are_passed_over(monkeypatch, schedule, variant, memory):
    """Of a tile whose sequences have all ended, or not begun in reverse, with everything else given: as by the eager
    schedule, whatever the memory holds that nobody wrote."""
    if not INTERPRETED and variant != "torch":
        pytest.skip("compiled in a selection")
    steps, batch, size = 6, 19, 5
    module = trigru.GRU(4, size, bidirectional=True, variant=variant, schedule=schedule, memory=memory, zoneout=0.3)
    given = given_for("all", steps, batch, 2, size, torch.float32)
    given["lengths"] = torch.randint(0, 4, (batch,))
    given["lengths"][:3] = torch.tensor([3, 0, 1])
    given["lengths"][16:] = 0  # a tile of its own
    leaves = [x.requires_grad_() for x in given.values() if x.is_floating_point()]
    x, hx = torch.randn(steps, batch, 4).requires_grad_(), torch.randn(2, batch, size).requires_grad_()
    upstream = torch.randn(steps, batch, 2 * size), torch.randn(2, batch, size)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    found = []
    for name in (schedule, "eager"):
        module.schedule = name
        torch.manual_seed(6)
        with launched():
            output, h_n = module(x, hx, **given)
            grads = torch.autograd.grad((output, h_n), [x, hx, *module.parameters(), *leaves], upstream)
        found.append((output, h_n, *grads))
    torch.use_deterministic_algorithms(False)
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


@pytest.mark.skipif(INTERPRETED, reason="about compiled code")
def test_what_has_ended_is_not_multiplied():
    """Products executed by a tile are those of its longest sequence's steps, forward and backward."""
    from ptx import ptx_launcher

    module, x = trigru.GRU(8, 16, schedule="resident", dtype=torch.bfloat16), torch.randn(8, 5, 8).bfloat16()
    counts = []
    for longest in (8, 2):
        with using(launcher := ptx_launcher(arch=90)):
            output, _ = module(x, lengths=torch.tensor([1, longest, 0, 1, 2]))
            torch.autograd.grad(output.sum(), list(module.parameters()))
        counts.append([launch["mma"] for launch in launcher.launches])
    assert len(counts[0]) == 2
    assert [whole / 4 for whole in counts[0]] == counts[1]
