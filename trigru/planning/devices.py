"""What a plan needs to know of a device, and presets for devices that are not at hand."""

from __future__ import annotations

import functools
import json
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

KIB = 1024
FITTED = Path(__file__).parent / "fitted"
"""Tables of constants fitted to measured rows, `<name of the preset>.json`, as `trigru bench --fit --write` stores."""


@dataclass(frozen=True)
class Device:
    """A GPU as the planner sees it.

    Sizes are in bytes, rates in bytes or operations a second, times in seconds. Rates and times are the makers' figures
    or published measurements (see each preset), not measurements of this project; they rank candidates, they do not
    predict a benchmark. They are meant to be replaced by a fit to measured rows.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int  # the most that one program can have
    memory_bandwidth: float
    l2_bandwidth: float
    clock: float  # boost clock, 1/s
    half_flops: float  # float16 and bfloat16 with float32 accumulation, dense
    tf32_flops: float
    float_flops: float
    # A kernel launch inside a CUDA graph, or in a stream that is never empty.
    launch_time: float = 1.5e-6
    # What the host takes to start a kernel again, of a stepwise layer: 0.14 times 1000 additions in Python, up to
    # Triton's launcher (`trigru bench --suite overhead`, an AMD EPYC), and a microsecond for the driver.
    eager_launch_time: float = 4.5e-6
    # One program's store until another program's load sees it: two trips to L2, each some 200-300 cycles on A100 and
    # H100 in published microbenchmarks, and the store on its way.
    exchange_time: float = 0.7e-6
    origin: str = "published"  # of rates and times; "fitted": of those that a table in FITTED has

    @property
    def target(self) -> str:
        """The name that the offline compiler knows it by, such as "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= (8, 0)

    def flops(self, dtype: torch.dtype, precision: str) -> float:
        """Rate of matrix products of `dtype`; precision: "tf32" or "ieee", for float32 only."""
        if dtype != torch.float32:
            return self.half_flops
        return self.tf32_flops if precision == "tf32" and self.capability >= (8, 0) else self.float_flops


def slug(name: str) -> str:
    """A preset's name as its table's file is named: "RTX 4090" is "rtx-4090"."""
    return name.lower().replace(" ", "-")


def fitted(device: Device, folder: Path = FITTED) -> Device:
    """The device with the constants of its table in place of published ones, where there is a table."""
    path = folder / f"{slug(device.name)}.json"
    if not path.exists():
        return device
    return replace(device, origin="fitted", **json.loads(path.read_text(encoding="utf-8"))["constants"])


# Sources: NVIDIA's data sheets of each product (dense rates) and architecture white papers (multiprocessors, clocks);
# shared memory a block from the CUDA C++ programming guide's table of compute capabilities; L2 bandwidth: A100's white
# paper gives 5,120 bytes a clock, the others are published microbenchmarks of the kind "5.5-6 TB/s for H100".
PUBLISHED = {
    device.name: device
    for device in (
        Device("A100", (8, 0), 108, 163 * KIB, 2.04e12, 7.2e12, 1.41e9, 312e12, 156e12, 19.5e12),
        Device("H100", (9, 0), 132, 227 * KIB, 3.35e12, 5.5e12, 1.83e9, 989e12, 494e12, 67e12),
        Device("H200", (9, 0), 132, 227 * KIB, 4.8e12, 5.5e12, 1.83e9, 989e12, 494e12, 67e12),
        Device("B200", (10, 0), 148, 227 * KIB, 8.0e12, 9.0e12, 1.85e9, 2250e12, 1125e12, 75e12),
        Device("L4", (8, 9), 58, 99 * KIB, 0.3e12, 1.6e12, 2.04e9, 121e12, 60e12, 30e12),
        Device("T4", (7, 5), 40, 64 * KIB, 0.32e12, 1.3e12, 1.59e9, 65e12, 0.0, 8.1e12),
        Device("RTX 4090", (8, 9), 128, 99 * KIB, 1.01e12, 5.0e12, 2.52e9, 165e12, 82e12, 82e12),
    )
}
PRESETS = {name: fitted(device) for name, device in PUBLISHED.items()}


def preset(name: str) -> Device:
    """The preset of that name, in any case and spacing ("h100", "rtx4090").

    Raises:
        ValueError: no such preset.
    """
    wanted = name.lower().replace(" ", "").replace("-", "").replace("_", "")
    for known, device in PRESETS.items():
        if known.lower().replace(" ", "") == wanted:
            return device
    raise ValueError(f"device: expected one of {', '.join(PRESETS)}, got {name!r}")


@functools.lru_cache
def present(index: int) -> Device:
    """CUDA device `index` of this machine: its own counts, and the rates of the preset that is most like it."""
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    named = [device for known, device in PRESETS.items() if re.search(rf"\b{known}\b", properties.name)]

    def unlike(device: Device) -> tuple[int, ...]:
        major, minor = (abs(a - b) for a, b in zip(device.capability, capability, strict=True))
        return major, minor, abs(device.multiprocessors - properties.multi_processor_count)

    alike = named or sorted(PRESETS.values(), key=unlike)
    shared = getattr(properties, "shared_memory_per_block_optin", alike[0].shared_per_block)
    return replace(
        alike[0],
        name=properties.name,
        capability=capability,
        multiprocessors=properties.multi_processor_count,
        shared_per_block=shared,
    )


@functools.cache
def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
