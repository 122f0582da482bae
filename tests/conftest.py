"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile

import pytest
import torch
import triton
from thinned import Thinning

from trigru.kernels.config import waits_by_thread
from trigru.kernels.launch import using
from trigru.planning import measured
from trigru.planning.plan import _chosen
from trigru.tune import _tried

# Tests run two at a time; more threads than cores would only get in each other's way.
torch.set_num_threads(1)

INTERPRETED = bool(triton.knobs.runtime.interpret)


# Counts, spills, and which mutation of the waiting code shows: all of that belongs to the code one Triton generates.
generated_code = pytest.mark.skipif(
    INTERPRETED or not waits_by_thread(),
    reason="about the code that Triton 3.5 to 3.9 generates, where threads wait for themselves",
)


def pytest_configure(config):
    """torch's compiler keeps what it has made in a folder of this run alone: it knows an operator by its name, and
    would take what it made of another version of it."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(items):
    thinning = Thinning(2 if INTERPRETED else 1)  # the interpreter's run is of kernels that the other one compiles
    for item in items:
        already = item.get_closest_marker("slow") is not None
        if not already and thinning.leaves(item.path.name, getattr(item, "originalname", item.name)):
            item.add_marker(pytest.mark.slow)
    # The longest by far: begun last, it would leave the other worker without work.
    items.sort(key=lambda item: item.path.name != "test_in_interpreter.py")


def pytest_collection_finish():
    """What has been imported and collected, millions of objects, stays: no search for garbage has to go through it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """As the process ends, its modules can be freed as ever."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _same_numbers(monkeypatch):
    """The same random numbers in every run, and float32 multiplied as float32 unless a test says otherwise."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    measured.TABLE.clear()
    _tried.clear()
    _chosen.cache_clear()  # what a test replaces (a device, an obstacle) is no part of its key


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory holds NaN: an element that nobody wrote cannot pass for a result."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["interpreter"] if INTERPRETED else ["sm_80", "sm_90"])
def on_cpu(request):
    """Run Triton schedules on CPU tensors: in Triton's interpreter where TRITON_INTERPRET=1 is set, else as code
    compiled for each architecture and executed from its PTX with every access checked."""
    if INTERPRETED:
        return contextlib.nullcontext
    from ptx import ptx_launcher

    return lambda **options: using(ptx_launcher(arch=int(request.param[3:]), **options))
