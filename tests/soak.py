"""Random calls for as long as one likes: what test_properties.py asks of a few, asked of many.

    python tests/soak.py --minutes 10 --seed 1
    PYTHONPATH=tests python -m fakecuda soak --device cuda --minutes 10 --seed 1

The second asks it of a GPU that is not there (tests/fakecuda), or without "-m fakecuda" of one that is.

Batch by batch, each with the next seed. A batch that finds a case which breaks a property shrinks it, prints it and its
seed, with which `--seed S --batches 1` finds it again. Exit code 1 where there was one; the last line has the counts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import time
import warnings
from pathlib import Path

if "fakecuda" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels on the CPU, which "auto" does not take
# oneDNN, and torch's interface to it, keep up to 1,024 compiled products each, one for each shape: of nn.GRU in 16
# bits, beside which calls are checked, 600 MiB after some hundred shapes, which would hide whatever else grows.
os.environ |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "LRU_CACHE_CAPACITY": "1"}

import property_runs
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from properties import check
from property_cases import Case, cases

SIZES = {False: 200, True: 10}  # of a batch: of torch operations, of kernels
KERNELS_EVERY = 5  # batches
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mib() -> float:
    """Memory of this process, without what its allocator has free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


class Soak:
    """Batches, and what they came to."""

    def __init__(self, minutes: float, device: bool) -> None:
        self.device = device
        self.end = time.monotonic() + 60 * minutes
        self.cases = {False: 0, True: 0}
        self.failures = 0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def batch(self, number: int, kernels: bool) -> None:
        """One, and its failure."""

        failed = False

        @seed(number)
        @settings(
            max_examples=SIZES[kernels],
            database=None,
            report_multiple_bugs=False,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(cases(kernels=kernels, device=self.device))
        def any_call(case: Case) -> None:
            nonlocal failed
            if self.over and not failed:
                return
            failed, before = True, failed  # until it is through: a failure is shrunk and shown however long that takes
            check(case)
            failed = before
            self.cases[kernels] += 1

        try:
            any_call()
        except Exception as error:
            self.failures += 1
            notes = "\n".join(getattr(error, "__notes__", []))
            print(f"seed {number}: {type(error).__name__}: {error}\n{notes}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--batches", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all of it runs")
    given = parser.parse_args()
    property_runs.DEVICE = given.device
    torch.backends.cudnn.allow_tf32 = False  # float32 is compared with what float32 can do
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton|numpy")  # numpy's, of infinite numbers
    began, soak, sizes = time.monotonic(), Soak(given.minutes, given.device != "cpu"), []
    number = given.seed
    while not soak.over and number < given.seed + given.batches:
        soak.batch(number, kernels=soak.device or number % KERNELS_EVERY == KERNELS_EVERY - 1)
        number += 1
        sizes.append(resident_mib())
    early = sizes[len(sizes) // 4]  # by then all code is there
    counts = f"{soak.cases[False]} cases of torch operations, {soak.cases[True]} of kernels, {soak.failures} failures"
    memory = f"resident memory {early:.0f} MiB after a quarter, {sizes[-1]:.0f} MiB at the end"
    print(f"{counts} in {time.monotonic() - began:.0f} s; {memory}")
    return int(soak.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
