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


def given_for(name, steps, batch, parts, hidden_size):
    """The arguments of a call and, of them, those that take a gradient."""
    every, given = name.startswith("all"), {}
    if every or name == "reset":
        given["reset"] = torch.rand(steps, batch) < 0.4
        given["reset_state"] = torch.randn(steps, parts, batch, hidden_size).requires_grad_()
    if every or name == "lengths":
        given["lengths"] = torch.tensor([steps, 0, 2])[:batch]
    if name == "mask":
        given["mask"] = torch.rand(steps, batch) < 0.7
    if every or name == "decay":
        width = parts * hidden_size if every else 1
        given["decay"] = torch.rand(steps, batch, width).requires_grad_()
    if every or name == "attention":
        given["attention"] = torch.rand(steps, batch).requires_grad_()
    return given, [x for x in given.values() if x.requires_grad]


def launched():
    """Where kernels run."""
    if INTERPRETED:
        return contextlib.nullcontext()
    from ptx import ptx_launcher

    return using(ptx_launcher(arch=90))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize("name", list(OPTIONS) if INTERPRETED else ["lengths", "all"])
def test_against_the_reference(name, variant, schedule):
    torch.manual_seed(1)
    steps, batch, hidden_size, bidirectional = 3, 3, 9, name != "decay"
    module = trigru.GRU(
        4, hidden_size, bidirectional=bidirectional, variant=variant, schedule=schedule, **OPTIONS[name]
    )
    parts = len(module._all_weights)
    given, leaves = given_for(name, steps, batch, parts, hidden_size)
    x, hx = torch.randn(steps, batch, 4).requires_grad_(), torch.randn(parts, batch, hidden_size).requires_grad_()
    records = module._records(x, hx, given=trigru.options.PerCall(**given))
    leaves = [x, hx, *module.parameters(), *leaves]
    want = compute.by_reference(*records)
    upstream = [torch.randn_like(out) for out in want]

    def derivatives(results):
        return torch.autograd.grad(
            results, leaves, upstream, retain_graph=True, materialize_grads=True, allow_unused=True
        )

    with launched():
        found = operators.gru(*records)
        got = derivatives(found)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    wanted = derivatives(want)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)
