"""What of the machine and the checkout decides over results and times."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

from .options import Refused

HERE = Path(__file__).resolve()


def devices() -> list[torch.device]:
    """The devices that a GRU could run on here: the CPU first."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def devices_named(name: str) -> list[torch.device]:
    """Those of `devices` that "cpu", "cuda" (every one), "cuda:0", ... names.

    Raises:
        Refused: there is none.
    """
    kind, _, index = name.partition(":")
    found = [here for here in devices() if here.type == kind and index in ("", str(here.index or 0))]
    if not found:
        raise Refused(f"--device: expected one that is here ({', '.join(map(str, devices()))}), got {name!r}")
    return found


def driver() -> str | None:
    """The version of the GPU's driver in the kernel, or None without one."""
    for path, pattern in (
        ("/proc/driver/nvidia/version", r"Kernel Module.*?\s(\d+\.[\d.]+)"),
        ("/sys/module/amdgpu/version", r"(\S+)"),
    ):
        try:
            found = re.search(pattern, Path(path).read_text())
        except OSError:
            continue
        if found:
            return found[1]
    return None


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None for an installed package, even where it lies
    within another project's checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", HERE.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
