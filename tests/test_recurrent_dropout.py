"""recurrent_dropout's masks: from counters, the same in every schedule, forward and backward, and stored by none."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import INTERPRETED

import trigru
from trigru.kernels.counters import masks_kernel, written
from trigru.kernels.launch import using
from trigru.kernels.masks import factors, renewed, scale, threshold
from trigru.kernels.offline import Recorder
from trigru.operators import compute
from trigru.operators.schema import Backward, Recorded

RATE = 0.4
STEPS = 3


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.3, 0.97])
def test_what_is_left_in_makes_up_for_the_rest(rate):
    seed = torch.randint(1 << 62, ())
    found = factors(seed, 300, 400, rate, torch.float64)
    torch.testing.assert_close(found, renewed(seed, 300, 400, rate).double() / (1 - threshold(rate) / (1 << 24)))
    assert abs(found.mean() - 1) <= 6 * (rate / (1 - rate) / 120_000) ** 0.5
    assert abs(scale(rate) * (1 - rate) - 1) < 3e-6


def test_nothing_is_left_at_a_rate_of_one():
    assert not factors(torch.randint(1 << 62, ()), 30, 40, 1.0, torch.float32).any()


def units_by_themselves(schedule: str, variant: str, memory: str) -> trigru.GRU:
    """Each unit sees itself alone, and no input."""
    module = trigru.GRU(
        4, 19, bias=False, bidirectional=True, variant=variant, schedule=schedule, memory=memory, recurrent_dropout=RATE
    )
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.eye(19).repeat(3, 1) if "hh" in name else torch.zeros(weight.shape))
    return module.to(torch.bfloat16 if schedule == "persistent" else torch.float32)


COMPILED = [
    ("persistent", "torch", "keep"),
    ("walking", "cho", "keep"),
    pytest.param("persistent", "cho", "recompute", marks=pytest.mark.slow),
    pytest.param("walking", "torch", "keep", marks=pytest.mark.slow),
    pytest.param("stepwise", "cho", "keep", marks=pytest.mark.slow),
    pytest.param("resident", "cho", "keep", marks=pytest.mark.slow),
]
PLAIN = [(name, *way) for name in ("stepwise", "resident") for way in (("torch", "keep"), ("cho", "recompute"))]


@pytest.mark.interpretable
@pytest.mark.parametrize(
    ("schedule", "variant", "memory"),
    PLAIN if INTERPRETED else [("eager", "torch", "keep"), ("eager", "cho", "recompute"), *COMPILED],
)
def test_the_same_units_in_every_schedule(schedule, variant, memory):
    """A unit that nothing is seen of has gates of 0.5 and a candidate of 0: at each step its state is halved, and so is
    its derivative on the way back. No other's is."""
    module, batch, size = units_by_themselves(schedule, variant, memory), 18, 19
    dtype = next(module.parameters()).dtype
    hx = torch.ones(2, batch, size, dtype=dtype).requires_grad_()
    launched = contextlib.nullcontext()
    if not INTERPRETED and schedule != "eager":
        from ptx import ptx_launcher

        launched = using(ptx_launcher(arch=90))
    torch.manual_seed(3)
    seed = torch.randint(1 << 62, ())
    left_in = factors(seed, 2 * batch, size, RATE, torch.float32).view(2, batch, size) != 0
    torch.manual_seed(3)
    with launched:
        output, h_n = module(torch.zeros(STEPS, batch, 4, dtype=dtype), hx)
        (d_hx,) = torch.autograd.grad(h_n.sum(), [hx])
    halved = 0.5 ** torch.arange(1, STEPS + 1)
    forth, back = output.detach().unflatten(-1, (2, size)).unbind(2)
    for found, wanted in ((forth, left_in[0]), (back.flip(0), left_in[1])):
        assert torch.equal(found != halved.view(-1, 1, 1), wanted.expand(STEPS, -1, -1))
    assert torch.equal(d_hx != halved[-1], left_in)


@pytest.mark.interpretable
@pytest.mark.parametrize("shape", [(), (2,)], ids=["one direction", "both"])
def test_a_launch_writes_the_same_masks(shape):
    """More than a block of each direction's; seeds whose halves both count."""
    seeds = torch.randint(1 << 62, shape)
    launched = contextlib.nullcontext()
    if not INTERPRETED:
        from ptx import ptx_launcher

        launched = using(ptx_launcher(arch=90))
    with launched:
        found = written(seeds, 33, 19, RATE)
    each = [factors(seed, 33, 19, RATE, torch.float32) for seed in seeds.view(-1)]
    assert torch.equal(found, torch.stack(each).view(*shape, 33, 19))


def launches_of(schedule: str, variant: str) -> tuple[list, torch.Tensor]:
    """A training step's of two layers of 7 units and both directions, batch 5; and the seed drawn for it."""
    x = torch.randn(3, 5, 4, dtype=torch.bfloat16)
    module = trigru.GRU(4, 7, 2, bidirectional=True, variant=variant, schedule=schedule, recurrent_dropout=RATE)
    recorded = Recorded(*module.bfloat16()._records(x, torch.zeros(4, 5, 7, dtype=torch.bfloat16)), 0)
    recorder = Recorder()
    with using(recorder), torch.no_grad():
        result = compute.forward(recorded)
        needs = (True,) * (2 + len(recorded.weights))
        compute.backward(Backward(recorded, result.output, result.h_n, result.reserve, True, needs))
    assert not [x for x in result.reserve if x.shape[-2:] == (5, 7)]  # as masks are
    return recorder.launches, recorded.call.given.dropped


@pytest.mark.skipif(INTERPRETED, reason="replaces the launcher")
@pytest.mark.parametrize("schedule", ["resident", "persistent"])
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_kernels_of_whole_sequences_are_given_no_masks(schedule, variant):
    """But the seed of each direction's."""
    launches, drawn = launches_of(schedule, variant)
    seeds = [launch.args["dropped_ptr"] for launch in launches if "dropped_ptr" in launch.args]
    assert len(seeds) >= 4
    for seed in seeds:
        assert seed.tolist() in ([int(drawn), int(drawn) + 5], [int(drawn) + 10, int(drawn) + 15])


@pytest.mark.skipif(INTERPRETED, reason="replaces the launcher")
@pytest.mark.parametrize(("schedule", "variant"), [("stepwise", "cho"), ("walking", "torch")])
def test_other_kernels_are_given_masks_that_a_launch_has_written(schedule, variant):
    """Once for all steps of a layer's forward, and again before its backward."""
    launches, drawn = launches_of(schedule, variant)
    writing = [launch for launch in launches if launch.kernel is masks_kernel]
    first, second = [int(drawn), int(drawn) + 5], [int(drawn) + 10, int(drawn) + 15]
    assert [launch.args["seeds_ptr"].tolist() for launch in writing] == [first, second, second, first]
    made = [launch.args["out_ptr"] for launch in writing]
    given = [launch.args["dropped_ptr"] for launch in launches if launch.args.get("dropped_ptr") is not None]
    assert len(given) >= 4
    assert all(any(mask is one for one in made) for mask in given)
