"""Zoneout's masks: what masks.py says they are, as good as random, and made by kernels where they need them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import INTERPRETED
from torch.utils._python_dispatch import TorchDispatchMode

import trigru
from trigru.kernels.launch import using
from trigru.kernels.masks import renewed, threshold
from trigru.kernels.offline import Recorder
from trigru.operators import compute
from trigru.operators.schema import Backward, Recorded
from trigru.schedules import recompute

MASK = (1 << 32) - 1


def lowbias32(x: int) -> int:
    """Of Wellons's Hash Prospector: two multiplications between three shifts."""
    x = (x ^ x >> 16) * 0x7FEB352D & MASK
    x = (x ^ x >> 15) * 0x846CA68B & MASK
    return x ^ x >> 16


def number(row: int, unit: int) -> int:
    """The 24 bits of a unit at a row with its number, which may be negative."""
    row &= (1 << 64) - 1
    low = lowbias32(row & MASK)
    high = lowbias32(row >> 32 ^ low)
    x = unit * 0x9E3779B9 + low & MASK
    x = (x ^ x >> 16) * 0x7FEB352D & MASK ^ high
    x = (x ^ x >> 15) * 0x846CA68B & MASK
    return x >> 8


@pytest.mark.parametrize("seed", [0, 1 << 32, (1 << 62) - 1, -3, (5 << 32) - 2], ids=hex)
def test_as_it_is_written(seed):
    """Beyond 32 bits and 64 too."""
    rate = 0.37
    want = [[number(seed + row, unit) >= threshold(rate) for unit in range(9)] for row in range(6)]
    assert renewed(torch.tensor(seed), 6, 9, rate).tolist() == want


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.3, 0.5, 0.97, 1.0])
def test_its_rate(rate):
    """Of all, of each unit and of each row: within six standard deviations, and no nearer than chance."""
    mask = (~renewed(torch.randint(1 << 62, ()), 2000, 500, rate)).double()
    variance = rate * (1 - rate)
    assert abs(mask.mean() - rate) <= 6 * (variance / 10**6) ** 0.5
    if 0.1 < rate < 0.9:  # else the few have not the normal distribution's tails
        for dim, count in ((0, 2000), (1, 500)):
            found, deviation = mask.mean(dim), (variance / count) ** 0.5
            assert ((found - rate).abs() <= 6 * deviation).all()
            assert 0.8 < found.std() / deviation < 1.2


@pytest.mark.parametrize("batch", [1, 16, 32, 128])
def test_neighbours_have_nothing_to_do_with_each_other(batch):
    """Units beside each other and a power of two apart, sequences, steps, layers and calls whose seeds are alike."""
    rows, units = 128 * batch, 128
    seed = torch.randint(1 << 62, ())
    mask = renewed(seed, rows, units, 0.5).view(128, batch, units).double() * 2 - 1
    pairs = [(mask[..., d:], mask[..., :-d]) for d in (1, 2, 3, 4, 8, 16, 32, 64)]
    pairs += [(mask[d:], mask[:-d]) for d in (1, 2, 3, 16, 64)]
    pairs += [(mask[:, d:], mask[:, :-d]) for d in (1, 2, 8) if d < batch]
    pairs += [(mask[1:, :, 1:], mask[:-1, :, :-1]), (mask[1:, :, :-1], mask[:-1, :, 1:])]
    others = [seed + rows, seed + 2 * rows, *(seed ^ (1 << bit) for bit in range(rows.bit_length(), 62, 3))]
    pairs += [(mask, renewed(other, rows, units, 0.5).view_as(mask).double() * 2 - 1) for other in others]
    for first, second in pairs:
        correlation = (first * second).mean() * first.numel() ** 0.5  # of standard deviation 1
        assert abs(correlation) < 5.5


def test_patterns_of_eight_are_alike():
    """Along units, steps and sequences: chi-square of 255 degrees of freedom."""
    mask = renewed(torch.randint(1 << 62, ()), 512 * 64, 64, 0.5).view(512, 64, 64)
    for dim in range(3):
        eights = mask.movedim(dim, -1).unflatten(-1, (-1, 8)).flatten(0, -2).long()
        count = torch.bincount((eights * 2 ** torch.arange(8)).sum(-1), minlength=256).double()
        expected = count.sum() / 256
        assert ((count - expected) ** 2 / expected).sum() < 255 + 6 * 510**0.5


def test_no_two_rows_are_alike():
    mask = renewed(torch.randint(1 << 62, ()), 20000, 64, 0.5)
    assert mask.unique(dim=0).shape[0] == 20000


class Made(TorchDispatchMode):
    """Counts tensors that operations return, by shape and dtype."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(x, torch.Tensor):
                self.count[tuple(x.shape), x.dtype] += 1
        return found


@pytest.mark.skipif(INTERPRETED, reason="replaces the launcher")
@pytest.mark.parametrize("schedule", ["stepwise", "walking", "resident", "persistent"])
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_kernels_are_given_no_masks(schedule, variant):
    """Forward and backward make the tensors of a layer without zoneout, and beside them the seed of each layer's rows:
    of the second layer here, forward and backward, which is put together for two directions."""
    x, made = torch.randn(3, 5, 4, dtype=torch.bfloat16), []
    for rate in (0.0, 0.5):
        module = trigru.GRU(4, 7, 2, bidirectional=True, variant=variant, schedule=schedule, zoneout=rate).bfloat16()
        recorded = Recorded(*module._records(x, torch.zeros(4, 5, 7, dtype=torch.bfloat16)), 0)
        with using(Recorder()), torch.no_grad(), Made() as mode:
            result = compute.forward(recorded)
            needs = (True,) * (2 + len(recorded.weights)) + (False,) * 3
            compute.backward(Backward(recorded, result.output, result.h_n, result.reserve, True, needs))
        made.append(mode.count)
    more = made[1] - made[0]
    assert not made[0] - made[1]
    assert more
    assert all(torch.Size(shape).numel() <= 2 and dtype == torch.int64 for shape, dtype in more)


@pytest.mark.interpretable
@pytest.mark.parametrize("schedule", ["stepwise", "resident"] if INTERPRETED else ["eager"])
def test_a_chunk_of_steps_has_the_masks_of_its_rows(schedule, monkeypatch):
    """Gates computed again in several chunks, in both directions."""
    module = trigru.GRU(4, 5, bidirectional=True, schedule=schedule, zoneout=0.5)
    x, grads = torch.randn(6, 2, 4), []
    for memory, elements in (("keep", 1 << 20), ("recompute", 4 * 5 * 2 * 2)):
        monkeypatch.setattr(recompute, "CHUNK_ELEMENTS", elements)
        module.memory = memory
        torch.manual_seed(4)
        output, _ = module(x)
        grads.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    torch.testing.assert_close(*grads)
