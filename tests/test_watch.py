"""What the host hears of a launch that expired, and that it costs a launch nothing to be watched. A device's word lies
in ordinary memory here, and the test writes there what a kernel would."""

from __future__ import annotations

import gc

import pytest
import torch

pytest.importorskip("triton")

from trigru.kernels import exchange, watch
from trigru.kernels.watch import KernelTimeout

DEVICE = torch.device("cuda", 0)
LAUNCH = ("forward_torch", 32, 2, 100, 32, 512)


@pytest.fixture(autouse=True)
def _words(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, pin_memory=False, **options: zeros(*sizes, **options))
    monkeypatch.setattr(watch, "_words", {})
    monkeypatch.setattr(watch, "_numbers", {})
    monkeypatch.setattr(watch, "_known", {})


def announced(*launch):
    return watch.watch(DEVICE, *(launch or LAUNCH))


def test_an_expired_launch_is_reported_once_by_name():
    announced("backward_torch", 32, 2, 100, 32, 512)
    given = announced()
    watch.check()
    given.word.fill_(given.number)
    with pytest.raises(KernelTimeout, match=r"forward_torch on 32 x 2 programs, T=100, B=32, H=512: a program gave up"):
        announced("another", 1, 1, 1, 1, 1)
    watch.check()
    given.word.fill_(given.number)  # a graph that holds the launch is replayed
    with pytest.raises(KernelTimeout, match="forward_torch on 32 x 2"):
        watch.check()


def test_another_device_has_a_word_of_its_own():
    first, second = announced(), watch.watch(torch.device("cuda", 1), *LAUNCH)
    assert first.word is not second.word
    assert first.number == second.number
    second.word.fill_(second.number)
    with pytest.raises(KernelTimeout):
        announced()


def test_launches_leave_nothing_behind():
    """Launches that graphs captured, and deleted, made every later one slower."""

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    first = announced()
    before = objects()
    for _ in range(2000):
        given = announced()
        assert given.word is first.word
    del given
    assert objects() - before < 10
    assert len(watch._numbers) == len(watch._words) == 1


def test_the_numbers_of_many_sizes_end(monkeypatch):
    monkeypatch.setattr(watch, "_MOST", 3)
    numbers = [announced("forward_torch", 32, 2, steps, 32, 512).number for steps in range(6)]
    assert numbers == [1, 2, 3, 4, 4, 4]
    given = announced("forward_torch", 32, 2, 5, 32, 512)
    given.word.fill_(given.number)
    with pytest.raises(KernelTimeout, match="forward_torch: a program"):
        watch.check()


def test_the_end_of_the_process_asks_nothing_of_a_dead_device(monkeypatch, capsys):
    given = announced()
    given.word.fill_(given.number)

    def dead(*args, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("synchronize", "current_stream", "set_device", "is_current_stream_capturing", "Event", "device"):
        monkeypatch.setattr(torch.cuda, name, dead)
    watch._report()
    assert "trigru: forward_torch on 32 x 2 programs" in capsys.readouterr().err
    watch._report()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("given", "seconds"), [(None, 60.0), ("600", 600.0), ("0.5", 0.5)])
def test_the_time_that_a_wait_may_last(monkeypatch, given, seconds):
    exchange.default_timeout.cache_clear()
    monkeypatch.delenv("TRIGRU_TIMEOUT", raising=False)
    if given is not None:
        monkeypatch.setenv("TRIGRU_TIMEOUT", given)
    assert exchange.default_timeout() == seconds
    assert exchange.ticks(seconds) == pytest.approx(seconds * 953.674, abs=1)
    exchange.default_timeout.cache_clear()


@pytest.mark.parametrize("given", ["", "-1", "0", "nan", "1e7", "60 s"])
def test_a_time_that_is_none(monkeypatch, given):
    exchange.default_timeout.cache_clear()
    monkeypatch.setenv("TRIGRU_TIMEOUT", given)
    with pytest.raises(ValueError, match=r"TRIGRU_TIMEOUT: expected a number of seconds above 0"):
        exchange.default_timeout()
