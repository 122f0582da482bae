"""What is started again through the object that Triton compiled: nothing that Triton would compile anew, with the
arguments that Triton would pass."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import generated_code

from trigru.kernels import launch
from trigru.kernels.errors import DoesNotFit
from trigru.kernels.offline import specialise, target_of
from trigru.kernels.stepwise import candidate_step

pytestmark = generated_code

DEVICE = torch.device("cuda", 0)
OPTIONS = {"num_warps": 4, "num_stages": 3}
TILES = {"VARIANT": "cho", "PRECISION": "ieee", "BLOCK_H": 32, "BLOCK_B": 16, "BLOCK_K": 64}
VARYING = ("row", "count", "row_before", "carried")
SECOND = ("row_back", "count_back", "row_before_back", "carried_back", "rows", "batch", "w_hh_back_ptr")  # one runs
# What steps do beside the equations, and what normalises their products: nothing.
BESIDE = ("reset_ptr", "fresh_ptr", "decay_ptr", "amount_ptr", "dropped_ptr", "begins_ptr", "direction", "clip")
BESIDE += ("seed_ptr", "zoneout_below", "FRESH_BY_STEP", "DECAY_BY_UNIT", "AMOUNT_BY_UNIT")
BESIDE += ("gain_ptr", "products_ptr")
POINTERS = ("gates_in_ptr", "w_hh_ptr", "state_ptr", "output_ptr", "update_ptr", "reset_state_ptr", "reserve_ptr")


@pytest.fixture
def started(monkeypatch):
    """What reaches Triton's launcher, with a driver of which only the device and the stream are asked."""
    active = Mock(**{"get_current_device.return_value": 0, "get_current_stream.return_value": 7})
    monkeypatch.setattr(launch, "driver", Mock(active=active))
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: launch._HERE)
    return []


def arguments(dtype=torch.float16, offset=0, hidden_size=128):
    args = {name: torch.zeros(64, dtype=dtype)[offset:] for name in POINTERS}
    return args | dict.fromkeys(SECOND + BESIDE) | {"H": hidden_size}


class Kernel:
    """In place of a compiled kernel: notes what it is asked."""

    def __init__(self, started, error=None):
        self.fn, self.arg_names = candidate_step.fn, candidate_step.arg_names
        self.pre_run_hooks, self.do_not_specialize = [], candidate_step.do_not_specialize
        self.started, self.error = started, error
        self.__name__ = candidate_step.__name__

    def __getitem__(self, grid):
        def by_triton(**given):
            if self.error:
                raise self.error
            self.started.append(("triton", grid, given))
            return SimpleNamespace(run=self.run, function="function", packed_metadata="metadata")

        return by_triton

    def run(self, *given):
        self.started.append(("directly", given[:3], given[3:]))


def prepared(kernel, args=None, tiles=TILES):
    return launch._Prepared(kernel, args or arguments(), tiles, VARYING, OPTIONS, DEVICE)


def test_the_first_start_is_tritons_and_the_next_have_its_arguments(started):
    kernel, args = Kernel(started), arguments()
    start = prepared(kernel, args)
    start((4, 2), 0, 3, 0, 0)
    start((4, 1), 16, 2, 0, 2)
    prepared(kernel, args)((4, 1), 32, 1, 16, 1)
    (first, _, given), (second, grid, values), (third, _, last) = started
    assert (first, second, third) == ("triton", "directly", "directly")
    assert given == args | TILES | OPTIONS | {"row": 0, "count": 3, "row_before": 0, "carried": 0}
    assert grid == (4, 1, 1)
    assert values[:6] == (7, "function", "metadata", None, None, None)
    by_name = dict(zip(kernel.arg_names, values[6:], strict=True))
    assert by_name.keys() == (args | TILES).keys() | set(VARYING)
    assert all(by_name[name] is args[name] for name in POINTERS)
    assert {name: by_name[name] for name in TILES} == TILES
    assert [by_name[name] for name in (*VARYING, "H")] == [16, 2, 0, 2, 128]
    assert dict(zip(kernel.arg_names, last[6:], strict=True))["row"] == 32


def test_rows_past_32_bits_are_for_triton(started):
    start = prepared(Kernel(started))
    for row in (0, (1 << 31) - 1, 1 << 31, 5):
        start((1, 1), row, 1, 0, 0)
    assert [how for how, *_ in started] == ["triton", "directly", "triton", "directly"]


def test_a_first_row_past_32_bits_does_not_speak_for_others(started):
    start = prepared(Kernel(started))
    start((1, 1), 1 << 31, 1, 0, 0)
    start((1, 1), 0, 1, 0, 0)
    assert [how for how, *_ in started] == ["triton", "triton"]


def test_where_hooks_listen_triton_starts(started, monkeypatch):
    kernel = Kernel(started)
    for _ in range(2):
        prepared(kernel)((1, 1), 0, 1, 0, 0)
    monkeypatch.setattr(launch.triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    prepared(kernel)((1, 1), 0, 1, 0, 0)
    monkeypatch.undo()
    assert [how for how, *_ in started] == ["triton", "directly", "triton"]


def test_an_empty_grid_starts_nothing(started):
    prepared(Kernel(started))((4, 0), 0, 0, 0, 0)
    assert not started


def test_a_grid_that_does_not_fit_has_an_error_of_its_own(started):
    error = RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")
    with pytest.raises(DoesNotFit, match="too many blocks"):
        prepared(Kernel(started, error))((4, 1), 0, 1, 0, 0)
    with pytest.raises(RuntimeError, match="out of memory"):
        prepared(Kernel(started, RuntimeError("out of memory")))((4, 1), 0, 1, 0, 0)


def test_equal_keys_are_one_binary(started):
    """Against what Triton makes of the same arguments."""
    target, found = target_of("sm_90"), {}
    sizes = (1, 2, 16, 17, 128, (1 << 31) - 1, 1 << 31)
    dtypes, variants = (torch.float16, torch.float32), ("cho", "chung")
    for dtype, offset, size, variant in itertools.product(dtypes, (0, 1, 8), sizes, variants):
        args, tiles = arguments(dtype, offset, size), TILES | {"VARIANT": variant}
        key = launch._key(candidate_step, args, tiles, VARYING, OPTIONS, DEVICE)
        binary = specialise(candidate_step, args | tiles | dict.fromkeys(VARYING, 3), target, **OPTIONS).key
        assert found.setdefault(key, binary) == binary
    assert len(found) < 3 * 4 * len(sizes)  # it tells apart no more than it must: not every size
