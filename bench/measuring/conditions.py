"""What every row of a run shares: the machine, the versions, the commit, the command."""

from __future__ import annotations

import contextlib
import datetime
import platform
import re
import shlex
import sys
from importlib import metadata
from typing import Any

import torch

import trigru
from trigru.command.machine import commit
from trigru.planning.devices import cpu_model
from trigru.planning.precision import multiplied_in_tf32

PACKAGES = ("triton", "flashrnn", "gru-qat", "torchrl", "haste_pytorch")


def device_name(device: str) -> str:
    """The name of the GPU in use, or of the processor."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def versions() -> dict[str, str]:
    """Versions of everything that a time depends on, of peers where they are installed."""
    found = {"trigru": trigru.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        if torch.backends.cudnn.is_available():
            found["cudnn"] = str(torch.backends.cudnn.version())
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def of_run(device: str, command: str | None = None) -> dict[str, Any]:
    """The fields, by name. `command`: what was run; None for this process's own arguments."""
    return {
        "device": device,
        "device_name": device_name(device),
        "multiprocessors": torch.cuda.get_device_properties().multi_processor_count if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "command": command or shlex.join(["trigru", "bench", *sys.argv[2:]]),
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
    }


def folder(shared: dict[str, Any]) -> str:
    """Where results of these conditions are kept: "<device>/<date>-<commit>"."""
    device = re.sub(r"[^a-z0-9]+", "-", shared["device_name"].lower()).strip("-") or shared["device"]
    return f"{device}/{shared['date'][:10]}-{(shared['commit'] or 'installed')[:7]}"


def multiplied_in(precision: str) -> contextlib.AbstractContextManager[None]:
    """Within the block float32 is multiplied in TF32 ("tf32") or not ("ieee"), by cuDNN, cuBLAS and trigru alike."""
    return multiplied_in_tf32(rnn=precision == "tf32", products=precision == "tf32")
