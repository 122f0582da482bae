"""Normalised layers by the Triton schedules, against the reference: in Triton's interpreter, and executed from PTX."""

from __future__ import annotations

import pytest
import torch
from accuracy import FACTOR, SCALES, excess, reachable
from cases import TOLERANCE, error
from conftest import INTERPRETED
from given import normalised
from torch.nn.utils.rnn import pack_padded_sequence

import trigru
from trigru import operators, reference
from trigru.layer import Call
from trigru.operators import compute
from trigru.planning import cost, plan
from trigru.planning.devices import PRESETS
from trigru.schedules import recompute

pytestmark = [pytest.mark.interpretable, pytest.mark.usefixtures("poisoned")]

# Hidden sizes: 19 is added to or masked, 16 is neither; of a batch of 17 there are two tiles.
WAYS = {
    "both directions": (3, 16, {"bidirectional": True}),
    "packed stack": (3, 19, {"num_layers": 2}),
    "computed again": (3, 24, {"memory": "recompute"}),
    "two tiles": (17, 24, {"bias": False}),
}


def cases():
    """Of all combinations, those that are not slow: a few with each schedule and variant, fewer of compiled code."""
    for i, schedule in enumerate(["resident", "stepwise"]):
        for j, variant in enumerate(trigru.VARIANTS):
            for k, way in enumerate(WAYS):
                for narrow, dtype in enumerate([torch.float32, torch.bfloat16]):
                    by_turns = (k, narrow) == (3 * (i + j) % 4, (i + j) % 2)
                    quick = by_turns if INTERPRETED else (j, k, narrow) == (i, 1 - i, i)
                    marks = [] if quick else pytest.mark.slow
                    yield pytest.param(schedule, variant, way, dtype, marks=marks)


@pytest.mark.parametrize("on_cpu", ["interpreter" if INTERPRETED else "sm_90"], indirect=True)
@pytest.mark.parametrize(("schedule", "variant", "way", "dtype"), [*cases()], ids=str)
def test_against_the_reference(on_cpu, schedule, variant, way, dtype, monkeypatch):
    """Values and all gradients."""
    batch, hidden_size, options = WAYS[way]
    module = normalised(3, hidden_size, variant=variant, schedule=schedule, dtype=dtype, **options)
    parts = len(module._all_weights)
    x = torch.randn(3, batch, 3, dtype=dtype).requires_grad_()
    hx = torch.randn(parts, batch, hidden_size, dtype=dtype).requires_grad_()
    if way == "computed again":
        monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", 2 * 4 * hidden_size * batch)  # two steps
    with on_cpu():
        records = module._records(x, hx)
        if way == "packed stack":
            data, sizes, *_ = pack_padded_sequence(x, [3, 2, 1])
            records = module._records(data, hx, sizes)
        layer, weights, call = records
        found = operators.gru(*records)
        upstream, leaves = [torch.randn_like(out) for out in found], [x, hx, *module.parameters()]
        got = [*found, *torch.autograd.grad(found, leaves, upstream, retain_graph=True)]
    wide = call._replace(input=call.input.double(), hx=call.hx.double(), gain=call.gain.double())
    want = compute.by_reference(layer, [w.double() for w in weights], wide)
    want = [*want, *torch.autograd.grad(want, leaves, [grad.double() for grad in upstream])]
    for g, w in zip(got, want, strict=True):
        assert error(g, w) <= 2 * TOLERANCE[dtype]


def scales():
    """Schedules and dtypes by turns are slow in the interpreter."""
    for i, schedule in enumerate(["resident", "stepwise"] if INTERPRETED else ["eager"]):
        for j, dtype in enumerate([torch.float32, torch.bfloat16]):
            for k, scale in enumerate(SCALES):
                slow = INTERPRETED and (i + 2 * j + k) % 4
                yield pytest.param(scale, dtype, schedule, marks=pytest.mark.slow if slow else [])


@pytest.mark.parametrize(("scale", "dtype", "schedule"), [*scales()], ids=str)
def test_every_element_at_every_scale(scale, dtype, schedule):
    """Where a variance is far below what is added to it, and where it is far above; variants by turns."""
    variant = trigru.VARIANTS[(SCALES.index(scale) + (dtype == torch.bfloat16)) % 3]
    module = normalised(4, 9, variant=variant, schedule=schedule, dtype=dtype)
    layer, weights, _ = module._records(torch.zeros(3, 2, 4, dtype=dtype), None)
    tensors = [scale * torch.randn(3, 2, 4), min(scale, 1.0) * torch.randn(1, 2, 9), *weights, module.gain_l0]
    tensors = [x.detach().to(dtype).double() for x in tensors]
    upstream = [torch.randn(3, 2, 9).to(dtype), torch.randn(1, 2, 9).to(dtype)]

    def results(call, tensors, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        outputs = call(*leaves)
        return [*outputs, *torch.autograd.grad(outputs, leaves, [grad.to(dtype) for grad in upstream])]

    def plain(x, hx, *others):
        *weights, gain = others
        options = reference.Options(gain=gain)
        output, h_n = reference.gru(x, hx[0], *weights, variant=variant, options=options)
        return output, h_n[None]

    def ours(x, hx, *others):
        *weights, gain = others
        return operators.gru(layer, weights, Call(x, hx, gain=gain[None]))

    reach = reachable(lambda *arguments: results(plain, *arguments), tensors, dtype)
    want, got = results(plain, tensors, torch.float64), results(ours, tensors, dtype)
    found = [excess(g, w, r, dtype) for g, w, r in zip(got, want, reach, strict=True)]
    assert max(found) <= FACTOR, found


@pytest.mark.parametrize("schedule", ["walking", "persistent"])
def test_what_would_have_to_exchange_statistics_says_so(schedule):
    layer = cost.Layer("torch", torch.bfloat16, 16, 512, normalised=True)
    with pytest.raises(RuntimeError, match=f"schedule '{schedule}' cannot run here: .*norm='layer'.* exchange"):
        plan.planned(schedule, PRESETS["H100"], layer, "forward")
    chosen = plan.planned("auto", PRESETS["H100"], layer, "forward")
    assert chosen.schedule == "stepwise"
    assert "norm='layer'" in chosen.reason
    assert chosen.launches == (2, 0)
