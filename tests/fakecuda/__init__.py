"""An H100 that is not there: `install()` before torch is imported, and torch, Triton and what uses them find a GPU.

    import fakecuda
    fakecuda.install()
    import torch, triton
    ...  # torch.cuda.is_available(); triton.jit functions on CUDA tensors run
    fakecuda.launches  # what cuLaunchKernelEx was given

See README.md for what is real and what is not.
"""

from __future__ import annotations

import atexit
import time

from . import build, driver, torch_c
from .driver import clock, launches, options

__all__ = ["check_order", "clock", "counts", "install", "installed", "launches", "options", "problems"]

_COUNTS = (
    "synchronisations",
    "event_queries",
    "events_made",
    "events",
    "pinned_made",
    "pinned",
    "blocks_made",
    "blocks",
)


def install(devices: int = 1) -> None:
    """Let the torch and the Triton of this process find `devices` H100s; nothing happens where they do already."""
    if installed():
        return
    libcuda, libtorch = build.libraries()
    driver.load(libcuda, devices)
    torch_c.install(libtorch)
    # Autograd's thread of the device wants Python once more when all is done, and must not find it gone.
    atexit.register(time.sleep, 0.2)


def installed() -> bool:
    """Whether this process has the fake device."""
    return driver.library is not None


def counts() -> dict[str, int]:
    """How often something has happened, and how much is alive: times that the host waited for the device (a blocking
    copy and `.item()` are such), queries of events, events and blocks of page-locked and device memory made, and those
    that there are now."""
    return dict(zip(_COUNTS, driver.torch_library.fakecuda_counts(), strict=False))


def problems() -> list[str]:
    """What could not be raised where it was noticed (memory freed too early), since the last call."""
    return driver.torch_library.fakecuda_problems().decode().splitlines()


def check_order(on: bool) -> None:
    """Whether work that is not ordered against what other streams do to its memory is an error."""
    driver.torch_library.fakecuda_check_order(int(on))
