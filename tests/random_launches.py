"""Random kernels of random sizes, executed from PTX: for as long as one likes, or a few.

    python tests/random_launches.py --minutes 480 --seed 1
    python tests/random_launches.py --seed 1234 --cases 1      # one again

A case is a schedule, an architecture, a variant, a dtype, sizes of no tile's, tile sizes of the plan or others, padded
or packed rows, a direction or both, options, and an order of the programs. Forward and backward are launched within
red zones, twice, with two poisons (`redzones.py`), and compared with the float64 loop. Exit code 1 where one fails; the
last line has the counts.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import traceback
from collections import Counter
from typing import NamedTuple

import redzones
import torch
from per_step import OPTIONS, per_step_recurrence
from ptx import ptx_launcher
from recurrences import Case, recurrence

from trigru.kernels.config import persistent_config, resident_config, stepwise_config, walking_config
from trigru.kernels.launch import using

CONFIGS = {
    "stepwise": stepwise_config,
    "walking": walking_config,
    "resident": resident_config,
    "persistent": persistent_config,
}
TOLERANCE = {torch.float32: 4e-3, torch.float16: 6e-3, torch.bfloat16: 5e-2}
ARCHS = {name: (80, 90) if name == "resident" else (80, 90, 100) for name in CONFIGS}
"""On sm_100 Triton multiplies large tiles by tcgen05, which is not executed."""
LARGEST = {"stepwise": 80, "walking": 80, "resident": 64, "persistent": 80}  # hidden units: executed in seconds


class Launch(NamedTuple):
    """A case, by all that was drawn for it."""

    schedule: str
    arch: int
    variant: str
    dtype: torch.dtype
    sizes: tuple[int, int, int]  # T, B, H
    packed: bool
    reverse: bool
    both: bool
    options: tuple[str, ...]
    by_unit: bool
    flags: bool
    protocol: str
    seed: int  # of values, and of the order of the programs

    @staticmethod
    def drawn(seed: int) -> Launch:
        """The case of a seed."""
        draw = random.Random(seed)
        schedule = draw.choice(list(CONFIGS))
        hidden_size = draw.choice([draw.randint(1, LARGEST[schedule]), draw.choice([1, 8, 16, 17, 31, 32, 33, 48, 64])])
        options = tuple(name for name in OPTIONS if draw.random() < 0.35) if draw.random() < 0.5 else ()
        if "fresh" in options and "reset" not in options:
            options = (*options, "reset")
        return Launch(
            schedule,
            draw.choice(ARCHS[schedule]),
            draw.choice(["torch", "cho", "chung"]),
            draw.choice(list(TOLERANCE)),
            (draw.randint(1, 4), draw.choice([1, 2, 3, 5, 8, 9, 16, 17, 19]), min(hidden_size, LARGEST[schedule])),
            not options and draw.random() < 0.4,
            draw.random() < 0.5,
            draw.random() < 0.3,
            options,
            draw.random() < 0.5,
            draw.random() < 0.5,
            draw.choice(["data", "flags"]),
            seed,
        )

    def case(self) -> Case:
        """Its values."""
        torch.manual_seed(self.seed)
        common = {"variant": self.variant, "dtype": self.dtype, "reverse": self.reverse and not self.both}
        if self.options:
            more = {"by_unit": self.by_unit, "flags": self.flags, "both": self.both}
            return per_step_recurrence(*self.sizes, self.options, **common, **more)
        return recurrence(*self.sizes, packed=self.packed, both=self.both, **common)

    def check(self) -> list[str]:
        """Raise what is wrong; the names of what was launched."""
        case, schedule = self.case(), importlib.import_module(f"trigru.kernels.{self.schedule}")
        config = CONFIGS[self.schedule](self.dtype, *self.sizes[1:])
        fields = {"protocol": self.protocol} if self.schedule == "persistent" else {}
        precision = "tf32" if self.schedule == "persistent" else "ieee"
        errors: dict[str, float] = {}

        def run() -> dict[str, torch.Tensor]:
            got = case.run(schedule, config, precision=precision, **fields)
            errors.update(case.errors(got))
            return got

        launches = redzones.check(run, using, lambda: ptx_launcher(arch=self.arch, seed=self.seed))
        wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE[self.dtype]}
        assert not wrong, f"relative errors {wrong}, at most {TOLERANCE[self.dtype]}"
        return launches


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="at most so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, cases, failures = time.monotonic(), 0, 0
    launched: Counter[str] = Counter()
    while cases < args.cases and time.monotonic() - start < 60 * args.minutes:
        launch = Launch.drawn(args.seed + cases)
        cases += 1
        try:
            launched.update(launch.check())
        except Exception:
            failures += 1
            print(f"seed {launch.seed}: {launch}\n{traceback.format_exc()}", flush=True)
    each = ", ".join(f"{name} {count}" for name, count in sorted(launched.items()))
    seconds = time.monotonic() - start
    print(f"launches: {each}")
    print(f"{cases} cases, {sum(launched.values())} launches, {failures} failures in {seconds:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
