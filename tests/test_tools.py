"""What torch's own tools see of the operators: FLOP counts, names in a profile, traces."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import trigru

LAYERS = {
    "plain": {},
    "no bias": {"bias": False},
    "stack": {"num_layers": 3},
    "both": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
}


def counted(module, x, hx, frozen):
    for name in frozen:
        getattr(module, name).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        output, h_n = module(x, hx)
        (output.sum() + h_n.sum()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("frozen", [(), ("weight_ih_l0",), ("weight_hh_l0",)], ids=str)
@pytest.mark.parametrize("needs", [(False, False), (True, True)], ids=["weights", "all"])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_flops_are_those_of_nn_gru(options, needs, frozen):
    theirs = nn.GRU(4, 6, **options)
    ours = trigru.GRU(4, 6, **options)
    x = torch.randn(12, 2, 4, requires_grad=needs[0])
    batch = 12 if theirs.batch_first else 2
    hx = torch.randn(len(theirs._all_weights), batch, 6, requires_grad=needs[1])
    assert counted(ours, x, hx, frozen) == counted(theirs, x, hx, frozen) > 0


@pytest.mark.parametrize("options", [{"memory": "recompute"}, {"norm": "layer"}], ids=str)
def test_products_made_again_are_counted(options):
    x, hx = torch.randn(12, 2, 4, requires_grad=True), torch.zeros(1, 2, 6, requires_grad=True)
    once, again = (counted(trigru.GRU(4, 6, **given), x, hx, ()) for given in ({}, options))
    assert again == once + 2 * 24 * 18 * (4 + 6)


def test_flops_are_registered_whichever_is_imported_first():
    code = """
import sys, torch
{}
assert "torch.utils.flop_counter" in sys.modules
counter = sys.modules["torch.utils.flop_counter"].FlopCounterMode(display=False)
with counter:
    trigru.GRU(4, 6)(torch.randn(12, 2, 4))
assert counter.get_total_flops() == 2 * 24 * 18 * 10
"""
    orders = ["import torch.utils.flop_counter, trigru", "import trigru, torch.utils.flop_counter"]
    look = "import importlib.util; importlib.util.find_spec('torch.utils.flop_counter')"
    orders.append(f"import trigru; {look}; import torch.utils.flop_counter")
    for order in orders:
        subprocess.run([sys.executable, "-c", code.format(order)], check=True)


def test_importing_trigru_imports_no_counter_and_no_triton():
    code = "import sys, trigru; assert not {'torch.utils.flop_counter', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no grad"])
def test_a_profile_names_the_layer(recording):
    layer, x = trigru.GRU(4, 6), torch.randn(200, 8, 4)
    with torch.set_grad_enabled(recording), torch.profiler.profile() as seen:
        output = layer(x)[0]
        if recording:
            output.sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert "trigru::gru" in names
    assert ("trigru::gruBackward" in names) == recording


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no grad"])
def test_a_trace_runs_at_other_lengths(options, recording):
    layer = trigru.GRU(4, 6, **options)
    with torch.set_grad_enabled(recording):
        traced = torch.jit.trace(layer, (torch.randn(12, 2, 4),))
        x = torch.randn(20, 2, 4) if not layer.batch_first else torch.randn(12, 5, 4)
        for got, want in zip(traced(x), layer(x), strict=True):
            torch.testing.assert_close(got, want)


def test_a_second_import_takes_the_operators_over():
    code = """
import sys, torch, trigru
first = trigru.GRU(4, 6)
for name in [m for m in sys.modules if m.split(".")[0] == "trigru"]:
    del sys.modules[name]
import trigru
for layer in (trigru.GRU(4, 6), first):
    x = torch.randn(20, 2, 4, requires_grad=True)
    torch.autograd.gradgradcheck(lambda x: layer.double()(x)[0], (x[:3].detach().double().requires_grad_(),))
    with torch.autocast("cpu", torch.bfloat16):
        layer.float()(x)[0].sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
